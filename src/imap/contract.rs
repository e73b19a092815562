//! The vocabulary of a session: what its caller tells it, and what it wants from its caller.
//!
//! The caller owns sockets and time. It writes [`Output::to_client`] and [`Output::to_backend`],
//! carries out [`Action`]s, and offers bytes of each side, which a [`Step`] answers. Order matters:
//! bytes that a [`Step::Forward`] named are written before output that came later, output before the
//! next forward, and both before an action is carried out.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, OnceLock};

use super::capability::{self, Capabilities, XAPPLEPUSHSERVICE};
use super::login::LoginKinds;
use super::peek::{Status, Verb};
use super::refusal::Refusal;
use super::registration::xapple::CheckedRegistration;
use super::sasl;
use crate::model::{Account, Credentials};

/// Longest STATUS response that is ours to swallow, in bytes.
pub(super) const LONGEST_STATUS: usize = 8 * 1024;

/// What a client gets where there is no connection to the backend, or no answer.
pub const UNAVAILABLE: &str = "NO [UNAVAILABLE] The mail server cannot be reached, try again later";

/// What a client gets where the backend takes no login of this kind.
pub const NOT_TAKEN: &str = "NO [CANNOT] The mail server does not take this kind of login";

/// What sessions offer, and how much they take.
#[derive(Clone, Debug)]
pub struct Profile {
    /// What the backend was last seen to offer before login; `None` before it was seen.
    pub backend: Option<Arc<Capabilities>>,
    /// What is taken by other backends, at which some users are.
    pub logins_elsewhere: LoginKinds,
    /// `None` where push is not offered: no route is open.
    pub push: Option<PushOffer>,
    /// Relay mechanisms of the backend that hide the password.
    pub relay_mechanisms: bool,
    /// A master user watches: whose password is hidden can be watched too.
    pub master: bool,
    /// The domains, in lower case, whose users are on another backend than users who are not known before
    /// the login.
    pub routed: Vec<String>,
    /// Most commands of a client until it is logged in.
    pub commands: u32,
    /// Longest command before login, and longest command of ours, in bytes.
    pub command_size: usize,
    /// Longest capability list of a backend, and most data in its answer to a login, in bytes.
    pub capability_size: usize,
    /// COMPRESS=DEFLATE is offered (RFC 4978).
    pub compress: bool,
    /// Made of the rest.
    pub shown: ShownCapabilities,
}

/// The capability lists that clients see before login, without TLS and with it, once they were asked
/// for. A clone has none, as it may become another profile.
#[derive(Debug, Default)]
pub struct ShownCapabilities([OnceLock<Box<str>>; 2]);

impl Clone for ShownCapabilities {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// What is particular to one connection.
#[derive(Clone, Debug)]
pub struct ClientConnection {
    /// TLS is active; otherwise STARTTLS is offered and nothing else.
    pub secure: bool,
    /// Starts each tag of ours; one that the client cannot guess: letters and digits.
    pub tag_prefix: String,
    /// Fields that are added to the client's ID when that is passed on: names and values.
    pub id_fields: Vec<(&'static str, String)>,
}

/// Push as it is offered to devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushOffer {
    /// Where pushes to them leave, by domain.
    pub routes: Vec<DomainRoute>,
    /// Mail clients that are served, by the ids of their apps; `*` at the end stands for anything.
    pub clients: Vec<String>,
    /// Most mailboxes in one registration; those beyond are left out.
    pub most_mailboxes: usize,
}

/// The route for devices of the users of one domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainRoute {
    /// In lower case; `None` stands for all users whom no other entry names.
    pub domain: Option<String>,
    /// `None` where they cannot be pushed at the moment.
    pub route: Option<String>,
}

/// What to do with the first bytes of a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many bytes go on to the other side unchanged.
    Forward(usize),
    /// So many bytes (perhaps none) are used up; the outputs may have grown.
    Take(usize),
    /// Nothing can be done with these bytes yet: keep them, offer them again with more or after
    /// anything else has happened.
    Wait,
    /// The session must end, for this reason.
    Close(&'static str),
}

/// What a session wants done.
#[derive(Debug)]
pub enum Action {
    /// Shake hands with the client, then call `Session::secured`. No byte of the client may be at
    /// hand: it would have come without TLS.
    StartTls,
    /// Connect to the backend of this account (any, if it is not known yet), then call
    /// `Session::connected`, `Session::unavailable` or `Session::turned_away`.
    Connect(Option<Account>),
    /// A login failed. Close the connection to the backend, if there is one; another may follow. After
    /// a while call `Session::release`, which tells the client.
    Failed(LoginFailure),
    /// The backend has accepted a login, and the connection is this account's. Call
    /// `Session::admitted` or `Session::turned_away`.
    Admit(Option<Account>),
    /// The user is logged in.
    LoggedIn(Authenticated),
    /// The backend was seen to offer this before login.
    Seen(Capabilities),
    /// Store this under a route of `Session::renewed`, then call `Session::registered`.
    Register(CheckedRegistration),
    /// From here on both directions of the client's connection are deflated (RFC 4978).
    Compress,
    /// Write what there is to write, then close.
    Close,
}

/// Who is logged in.
#[derive(Clone, Debug)]
pub struct Authenticated {
    /// Whom the client claims to be, for logs and nothing else; `None` where that was not said.
    pub claimed: Option<Account>,
    /// Who it is beyond doubt. Without it nothing of the session is stored or passed on.
    pub proven: Option<ProvenIdentity>,
}

/// An account whose user the backend has accepted under just this name.
#[derive(Clone, Debug)]
pub struct ProvenIdentity {
    /// Whose session it is.
    pub account: Account,
    /// What was accepted; `None` where it was hidden from us.
    pub credentials: Option<Credentials>,
}

/// What a session must know of the connection to its backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct BackendTraits {
    /// The greeting has been read, as before STARTTLS.
    pub greeted: bool,
    /// The client's ID is passed on.
    pub send_id: bool,
    /// The backend refuses an access token that was not issued to the name that comes with it.
    pub checks_token_name: bool,
    /// Names in any case are one user to the backend.
    pub names_ignore_case: bool,
}

/// A word without which the client gets no answer, or its commands do not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// The answer to a login.
    Login,
    /// The client's own commands come before it: while the backend speaks, it may be at work on those.
    Turn,
    /// The answer to mailchime's question of this number, and to nothing else.
    Answer(u32),
    /// No word of the backend's: the caller's, of the registration behind the question of this number.
    Stored(u32),
}

/// Why a login failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoginFailure {
    /// It was refused, and what the refusal says.
    Refused(Option<Account>, Refusal),
    /// The backend has no answer, for this reason.
    Unavailable(String),
    /// `Session::turned_away`.
    TurnedAway,
}

/// What a session has to say.
#[derive(Debug, Default)]
pub struct Output {
    /// Bytes for the client.
    pub to_client: Vec<u8>,
    /// Bytes for the backend.
    pub to_backend: Vec<u8>,
    /// What is to be done, in this order.
    pub actions: VecDeque<Action>,
    /// The limits that were reached.
    pub over: LimitHits,
    /// Lines of what passes that were looked at, for the caller to take note of how much it was.
    pub lines: u32,
    /// Commands of ours and how they were answered, for the caller to count.
    pub answered: Vec<(Verb, Status)>,
}

/// How often a limit was hit, for the caller to count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitHits {
    /// [`Profile::commands`].
    pub commands: u32,
    /// [`Profile::command_size`].
    pub command: u32,
    /// [`Profile::capability_size`].
    pub capability: u32,
    /// [`PushOffer::most_mailboxes`]: mailboxes of registrations that were left out.
    pub mailboxes: u32,
}
impl PushOffer {
    /// The route for devices of this account; `None` where it is not offered push.
    pub fn route(&self, account: &Account) -> Option<&str> {
        let named =
            |domain: &str| self.routes.iter().any(|entry| entry.domain.as_deref() == Some(domain));
        // A name that mentions a domain in another form than user@domain counts as of none of them.
        self.of_domain(account.domain_among(named).unwrap_or_default())
    }

    /// The same for all users of this domain.
    pub fn of_domain(&self, domain: Option<&str>) -> Option<&str> {
        let of = |domain: Option<&str>| {
            self.routes.iter().find(|entry| entry.domain.as_deref() == domain)
        };
        let own = domain.and_then(|domain| of(Some(domain)));
        own.or_else(|| of(None))?.route.as_deref()
    }

    /// Whether there is anybody to whom push is offered.
    pub fn is_open(&self) -> bool {
        self.routes.iter().any(|entry| entry.route.is_some())
    }

    /// Whether a client with this id of its app is served.
    pub fn serves(&self, app: &str) -> bool {
        self.clients.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => app.starts_with(start),
            None => app == pattern,
        })
    }
}

impl Profile {
    /// The capabilities that a client sees before login: those of the backend that can be honoured,
    /// and mailchime's own.
    pub fn before_login(&self, secure: bool) -> Capabilities {
        let seen = self.backend.as_deref().cloned().unwrap_or_default();
        let mut shown = Capabilities::default();
        if seen.has("IMAP4rev1") || !seen.has("IMAP4rev2") {
            shown.add("IMAP4rev1");
        }
        let nothing_own = capability::Own { push: false, compress: false };
        for token in seen.clone().edited(nothing_own).iter() {
            let upper = token.to_ascii_uppercase();
            if !upper.starts_with("AUTH=") && upper != "LOGINDISABLED" && upper != "SASL-IR" {
                shown.add(token);
            }
        }
        if !secure {
            shown.add("STARTTLS");
            shown.add("LOGINDISABLED");
            return shown;
        }
        shown.add("SASL-IR");
        let LoginKinds { passwords, tokens } = self.logins();
        // Either kind is put into the form that the backend takes.
        for token in match passwords {
            true => &["AUTH=PLAIN", "AUTH=LOGIN"][..],
            false => &["LOGINDISABLED"],
        } {
            shown.add(token);
        }
        if tokens {
            shown.add("AUTH=XOAUTH2");
            shown.add("AUTH=OAUTHBEARER");
        }
        for token in seen.iter().filter(|_| self.relay_mechanisms) {
            if token.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("AUTH="))
                && sasl::is_relayable(&token[5..])
            {
                shown.add(token);
            }
        }
        if self.push.as_ref().is_some_and(PushOffer::is_open) {
            shown.add(XAPPLEPUSHSERVICE);
        }
        shown
    }

    /// What some backend takes.
    fn logins(&self) -> LoginKinds {
        let own = self.backend.as_deref().map_or(LoginKinds::UNKNOWN, LoginKinds::of);
        own.or(self.logins_elsewhere)
    }

    /// The longest response of a backend that is looked at as a whole, in bytes.
    pub fn longest_response(&self) -> usize {
        self.capability_size.max(LONGEST_STATUS)
    }

    /// What [`Profile::before_login`] says as the words of a list, made once.
    pub(super) fn list_before_login(&self, secure: bool) -> &str {
        let ShownCapabilities(lists) = &self.shown;
        lists[usize::from(secure)]
            .get_or_init(|| self.before_login(secure).to_string().into_boxed_str())
    }

    /// Whether users of this domain are on another backend than a session is before its user is
    /// known.
    pub(super) fn routes(&self, domain: &str) -> bool {
        self.routed.iter().any(|routed| routed == domain)
    }

    /// Whether this mechanism of the backend may be relayed, hidden as its secret is.
    pub(super) fn relays(&self, mechanism: &str) -> bool {
        let offered = |seen: &Capabilities| seen.has(&format!("AUTH={mechanism}"));
        self.relay_mechanisms
            && sasl::is_relayable(mechanism)
            && self.backend.as_deref().is_some_and(offered)
    }
}
/// Adds a tagged response.
pub(super) fn tagged(out: &mut Vec<u8>, tag: &[u8], text: impl fmt::Display) {
    out.extend_from_slice(tag);
    out.extend_from_slice(format!(" {text}\r\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_route_depends_on_the_domain_of_the_user() {
        let entry = |domain: Option<&str>, route: Option<&str>| DomainRoute {
            domain: domain.map(str::to_owned),
            route: route.map(str::to_owned),
        };
        let offer = |routes| PushOffer { routes, clients: Vec::new(), most_mailboxes: 1 };
        let entries = vec![
            entry(None, Some("others")),
            entry(Some("a.example"), Some("a")),
            entry(Some("b.example"), None),
        ];
        let several = offer(entries.clone());
        for (login, route) in [
            ("alice@A.example", Some("a")),
            // Not that of the others: its own is to be mended.
            ("bob@b.example", None),
            ("carol@c.example", Some("others")),
            ("dave", Some("others")),
            ("bob@b.example\\shared", Some("others")),
        ] {
            assert_eq!(several.route(&Account::from_login(login)), route, "{login}");
        }
        assert!(several.is_open() && !offer(vec![entry(None, None)]).is_open());
        assert_eq!(offer(entries[1..].to_vec()).route(&Account::from_login("dave")), None);
    }
}
