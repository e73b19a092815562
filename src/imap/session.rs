//! One client's session as a state machine: greeting, login dialogue, backend login, relay.
//!
//! ```text
//!   Command ──credentials──▶ Connect ──▶ Backend ──accepted──▶ Relay ──▶ Closed
//!     ▲  │ STARTTLS             │         │   ▲ │
//!     │  ▼                      │         │   └─▼─ Challenge (the client answers)
//!     │ Handshake               ▼         ▼
//!     └──────────────────── Refused (for a while), then NO
//! ```
//!
//! The caller owns sockets and time. It writes [`Output::to_client`] and [`Output::to_backend`],
//! carries out [`Action`]s, and offers bytes of each side to [`Session::client`] and
//! [`Session::backend`]. Order matters: bytes that a direction's [`Step::Forward`] named are written
//! before output that came later, output before the next forward, and both before an action is
//! carried out.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use super::capability::{Capabilities, XAPPLEPUSHSERVICE};
use super::login::{BackendLogin, LoginAttempt, LoginKinds, LoginOptions, LoginOutcome, edited};
use super::not_authenticated::{LoginState, NotAuthenticated};
use super::peek::{Status, Verb};
use super::refusal::Refusal;
use super::relay::{LONGEST_STATUS, Relay, tagged};
use super::sasl;
use crate::model::{Account, Credentials, Mailbox, Registration};

/// What a client is told where there is no connection to the backend, or no answer.
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
    /// `None` where push is not to be had: no topic.
    pub push: Option<PushOffer>,
    /// Relay mechanisms of the backend that hide the password.
    pub relay_mechanisms: bool,
    /// A master user watches: whose password is hidden can be watched too.
    pub master: bool,
    /// The domains, in lower case, whose users are on another backend than whoever is not known before
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
    /// TLS is active; otherwise STARTTLS is offered and nothing else is to be had.
    pub secure: bool,
    /// Starts each tag of ours; one that the client cannot guess: letters and digits.
    pub tag_prefix: String,
    /// Fields that are added to the client's ID when that is passed on: names and values.
    pub id_fields: Vec<(&'static str, String)>,
}

/// Push as it is offered to devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushOffer {
    pub topics: Vec<DomainTopic>,
    /// Bundle ids of mail clients that are served; `*` at the end stands for anything.
    pub clients: Vec<String>,
    /// Most mailboxes in one registration; those beyond are left out.
    pub most_mailboxes: usize,
}

/// What devices of the users of one domain are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainTopic {
    /// In lower case; `None` stands for all users whom no other entry names.
    pub domain: Option<String>,
    /// `None` where they cannot be pushed at the moment.
    pub topic: Option<String>,
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
    /// Shake hands with the client, then call [`Session::secured`]. No byte of the client may be at
    /// hand: it would have come without TLS.
    StartTls,
    /// Connect to the backend of this account (any, if it is not known yet), then call
    /// [`Session::connected`], [`Session::unavailable`] or [`Session::turned_away`].
    Connect(Option<Account>),
    /// A login failed. Close the connection to the backend, if there is one; another may follow. After
    /// a while call [`Session::release`], which tells the client.
    Failed(LoginFailure),
    /// The backend has accepted a login, and the connection is this account's. Call
    /// [`Session::admitted`] or [`Session::turned_away`].
    Admit(Option<Account>),
    /// The user is logged in.
    LoggedIn(Authenticated),
    /// The backend was seen to offer this before login.
    Seen(Capabilities),
    /// Store this, then call [`Session::registered`].
    Register(Registration),
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
    /// Who it is beyond doubt. Without it nothing of the session is stored, and nobody is told.
    pub proven: Option<ProvenIdentity>,
}

/// An account whose user the backend has accepted under just this name.
#[derive(Clone, Debug)]
pub struct ProvenIdentity {
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

/// What became of an [`Action::Register`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistrationResult {
    /// It is on disk.
    Stored,
    /// It cannot be written now.
    Unavailable,
    /// The account registers too often.
    TooMany,
    /// There are as many accounts or devices of its domain as there may be.
    DomainFull,
    /// There are as many accounts or devices of its backend as there may be.
    BackendFull,
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
    /// [`Session::turned_away`].
    TurnedAway,
}

/// What a session has to say.
#[derive(Debug, Default)]
pub struct Output {
    pub to_client: Vec<u8>,
    pub to_backend: Vec<u8>,
    pub actions: VecDeque<Action>,
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

/// One client's session.
#[derive(Debug)]
pub struct Session {
    profile: Arc<Profile>,
    state: SessionState,
    pub output: Output,
}

#[derive(Debug)]
enum SessionState {
    NotAuthenticated(Box<NotAuthenticated>),
    Relay(Box<Relay>),
    Closed,
}

impl PushOffer {
    /// The topic for devices of this account; `None` where it is not offered push.
    pub fn topic(&self, account: &Account) -> Option<&str> {
        let named =
            |domain: &str| self.topics.iter().any(|entry| entry.domain.as_deref() == Some(domain));
        // A name that mentions a domain in another form than user@domain counts as of none of them.
        self.of_domain(account.domain_among(named).unwrap_or_default())
    }

    /// The same for all users of this domain.
    pub fn of_domain(&self, domain: Option<&str>) -> Option<&str> {
        let of = |domain: Option<&str>| {
            self.topics.iter().find(|entry| entry.domain.as_deref() == domain)
        };
        let own = domain.and_then(|domain| of(Some(domain)));
        own.or_else(|| of(None))?.topic.as_deref()
    }

    /// Whether there is anybody to whom push is offered.
    pub fn is_open(&self) -> bool {
        self.topics.iter().any(|entry| entry.topic.is_some())
    }

    /// Whether a client of this bundle id is served.
    pub fn serves(&self, subtopic: &str) -> bool {
        self.clients.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => subtopic.starts_with(start),
            None => subtopic == pattern,
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
        let nothing_own = super::capability::Own { push: false, compress: false };
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

impl Session {
    /// A session whose greeting is in the output already.
    pub fn new(profile: Arc<Profile>, connection: ClientConnection) -> Self {
        let mut output = Output::default();
        let capabilities = profile.list_before_login(connection.secure);
        let greeting = format!("* OK [CAPABILITY {capabilities}] mailchime ready\r\n");
        output.to_client.extend_from_slice(greeting.as_bytes());
        let dialogue = NotAuthenticated::new(connection, profile.command_size);
        Self { profile, state: SessionState::NotAuthenticated(Box::new(dialogue)), output }
    }

    /// What to do with the client's bytes. `last` means that no more will follow.
    pub fn client(&mut self, input: &[u8], last: bool) -> Step {
        match &mut self.state {
            SessionState::NotAuthenticated(dialogue) => {
                let step = dialogue.client(input, &self.profile, &mut self.output);
                if matches!(self.output.actions.back(), Some(Action::Close)) {
                    self.state = SessionState::Closed;
                }
                step
            }
            SessionState::Relay(relay) => relay.client(input, last, &mut self.output),
            SessionState::Closed => Step::Take(input.len()),
        }
    }

    /// What to do with the backend's bytes. `last` means that no more will follow.
    pub fn backend(&mut self, input: &[u8], last: bool) -> Step {
        match &mut self.state {
            SessionState::NotAuthenticated(dialogue) => {
                let LoginState::Backend { login, .. } = &mut dialogue.state else {
                    // Nothing was asked: what is said now waits, and an end ends it.
                    return Step::Wait;
                };
                let (used, outcome) = login.step(input, &mut self.output.to_backend);
                match outcome {
                    // Nobody is there to answer.
                    Some(LoginOutcome::Challenge(_)) if dialogue.abandoned => {
                        login.acknowledge(&mut self.output.to_backend);
                    }
                    Some(outcome) => self.decided(outcome),
                    None if used == 0 => return Step::Wait,
                    None => {}
                }
                Step::Take(used)
            }
            SessionState::Relay(relay) => relay.backend(input, last, &mut self.output),
            SessionState::Closed => Step::Take(input.len()),
        }
    }

    /// The client's connection has TLS now (RFC 9051 section 6.2.1): what was known before does not
    /// count.
    pub fn secured(&mut self) {
        if let SessionState::NotAuthenticated(dialogue) = &mut self.state {
            dialogue.secured();
        }
    }

    /// The connection that [`Action::Connect`] asked for is open.
    pub fn connected(&mut self, reached: BackendTraits) {
        let SessionState::NotAuthenticated(dialogue) = &mut self.state else { return };
        // What was for a backend of before, and did not get there, is nothing to this one.
        self.output.to_backend.clear();
        let BackendTraits { greeted, send_id, .. } = reached;
        let id = send_id.then(|| dialogue.id());
        dialogue.reached = reached;
        dialogue.state = match std::mem::replace(&mut dialogue.state, LoginState::Command) {
            LoginState::Connect { tag, attempt } => {
                let limit = self.profile.capability_size;
                let options = LoginOptions { greeted, id, limit };
                let mut login = Box::new(BackendLogin::new(attempt, options));
                login.start(&mut self.output.to_backend);
                LoginState::Backend { tag, login }
            }
            other => other,
        };
    }

    /// The backend cannot be reached, or its connection ended, for the reason given. During the login
    /// dialogue the client is told and may try again; returns whether it was so.
    pub fn unavailable(&mut self, why: impl Into<String>) -> bool {
        let why = why.into();
        let SessionState::NotAuthenticated(dialogue) = &mut self.state else { return false };
        match std::mem::replace(&mut dialogue.state, LoginState::Command) {
            LoginState::Backend { tag, mut login } | LoginState::Challenge { tag, mut login } => {
                let outcome = login.unanswered(why);
                dialogue.state = LoginState::Backend { tag, login };
                self.decided(outcome);
                true
            }
            other => {
                dialogue.state = other;
                self.failed(UNAVAILABLE, LoginFailure::Unavailable(why))
            }
        }
    }

    /// The login is not tried, or its user is not let in, for this reason: too many connections,
    /// sessions or failures. `answer` begins with NO.
    pub fn turned_away(&mut self, answer: &str) -> bool {
        self.failed(answer, LoginFailure::TurnedAway)
    }

    fn failed(&mut self, answer: &str, failure: LoginFailure) -> bool {
        let SessionState::NotAuthenticated(dialogue) = &mut self.state else { return false };
        match std::mem::replace(&mut dialogue.state, LoginState::Command) {
            LoginState::Connect { tag, .. }
            | LoginState::Backend { tag, .. }
            | LoginState::Challenge { tag, .. }
            | LoginState::Accepted { tag, .. } => {
                let mut line = Vec::new();
                tagged(&mut line, &tag, answer);
                dialogue.state = LoginState::Refused(line);
                self.output.answered.push((Verb::Login, Status::No));
                self.output.actions.push_back(Action::Failed(failure));
                true
            }
            other => {
                dialogue.state = other;
                false
            }
        }
    }

    /// No backend is asked about these credentials: they are refused as if one had refused them.
    pub fn refused(&mut self) {
        let SessionState::NotAuthenticated(dialogue) = &mut self.state else { return };
        match std::mem::replace(&mut dialogue.state, LoginState::Command) {
            LoginState::Connect { tag, attempt, .. } => {
                let account = match attempt {
                    LoginAttempt::Credentials { credentials, .. } => Some(credentials.account()),
                    LoginAttempt::Relayed { .. } => None,
                };
                dialogue.refuse_credentials(&tag, account, &mut self.output);
            }
            other => dialogue.state = other,
        }
    }

    /// Whether the login that waits for a connection is one that a backend may take which offers this.
    pub fn fits(&self, offered: &Capabilities) -> bool {
        match &self.state {
            SessionState::NotAuthenticated(dialogue) => match &dialogue.state {
                LoginState::Connect { attempt, .. } => attempt.fits(offered),
                _ => true,
            },
            _ => true,
        }
    }

    /// The client is gone, and the login that is under way is to be finished without it: what the
    /// backend asks is answered so that it decides.
    pub fn abandoned(&mut self) {
        let SessionState::NotAuthenticated(dialogue) = &mut self.state else { return };
        dialogue.abandoned = true;
        dialogue.state = match std::mem::replace(&mut dialogue.state, LoginState::Command) {
            LoginState::Challenge { tag, mut login } => {
                login.acknowledge(&mut self.output.to_backend);
                LoginState::Backend { tag, login }
            }
            other => other,
        };
    }

    /// The time has come to say that a login failed.
    pub fn release(&mut self) {
        let SessionState::NotAuthenticated(dialogue) = &mut self.state else { return };
        match std::mem::replace(&mut dialogue.state, LoginState::Command) {
            LoginState::Refused(_) if dialogue.abandoned => {}
            LoginState::Refused(answer) => self.output.to_client.extend_from_slice(&answer),
            other => dialogue.state = other,
        }
    }

    /// The session ends: a login that is under way gets an answer. The backend may still decide on it.
    pub fn conclude(&mut self) {
        let SessionState::NotAuthenticated(dialogue) = &mut self.state else { return };
        if std::mem::replace(&mut dialogue.abandoned, true) {
            return;
        }
        let to_client = &mut self.output.to_client;
        match &dialogue.state {
            LoginState::Connect { tag, .. }
            | LoginState::Backend { tag, .. }
            | LoginState::Challenge { tag, .. }
            | LoginState::Accepted { tag, .. } => tagged(to_client, tag, UNAVAILABLE),
            LoginState::Refused(answer) => to_client.extend_from_slice(answer),
            LoginState::Command | LoginState::Handshake | LoginState::Authenticate { .. } => {}
        }
    }

    /// The session began under another profile than sessions do now. The topic that is right for a
    /// registration now; `None` if there is none.
    pub fn renewed(&mut self, profile: Arc<Profile>) -> Option<&str> {
        match &mut self.state {
            SessionState::Relay(relay) => relay.renewed(profile),
            SessionState::NotAuthenticated(_) | SessionState::Closed => None,
        }
    }

    /// The registration of the first [`Action::Register`] without an answer is on disk, or cannot be.
    pub fn registered(&mut self, result: RegistrationResult) {
        if let SessionState::Relay(relay) = &mut self.state {
            relay.registered(result, &mut self.output);
        }
    }

    /// The word that holds up a client, if one does. When it has not come in time, call
    /// [`Session::overdue`].
    pub fn awaited(&self) -> Option<Awaited> {
        match &self.state {
            SessionState::Relay(relay) => relay.awaited(),
            SessionState::NotAuthenticated(dialogue) => {
                let asked = matches!(dialogue.state, LoginState::Backend { .. });
                (asked && !dialogue.abandoned).then_some(Awaited::Login)
            }
            SessionState::Closed => None,
        }
    }

    /// What [`Session::awaited`] named is not waited for any longer. A client whose login is not
    /// decided gets a NO and a BYE: the backend may still decide on it.
    pub fn overdue(&mut self) {
        let why = "it took too long";
        match &mut self.state {
            SessionState::Relay(relay) => relay.overdue(&mut self.output),
            SessionState::NotAuthenticated(dialogue) => match &dialogue.state {
                LoginState::Backend { login, .. } if login.is_refused() => {
                    self.unavailable(why);
                }
                LoginState::Backend { .. } => {
                    self.conclude();
                    let to_client = &mut self.output.to_client;
                    to_client.extend_from_slice(
                        b"* BYE [UNAVAILABLE] The mail server does not answer\r\n",
                    );
                    self.output.actions.push_back(Action::Close);
                }
                _ => {}
            },
            SessionState::Closed => {}
        }
    }

    /// The mailbox that the backend is asked for, to register a device.
    pub fn asked(&self) -> Option<&Mailbox> {
        match &self.state {
            SessionState::Relay(relay) => relay.asked(),
            SessionState::NotAuthenticated(_) | SessionState::Closed => None,
        }
    }

    /// Registrations ask the backend for none of these mailboxes: they are registered unseen.
    pub fn ask_not(&mut self, mailboxes: Vec<Mailbox>) {
        if let SessionState::Relay(relay) = &mut self.state {
            relay.ask_not(mailboxes);
        }
    }

    /// Whether a command that mailchime answers itself after the login is not answered yet.
    pub fn is_busy(&self) -> bool {
        matches!(&self.state, SessionState::Relay(relay) if relay.is_busy())
    }

    /// Whether nothing happens before the login until the client says more.
    pub fn awaits_client(&self) -> bool {
        match &self.state {
            SessionState::NotAuthenticated(dialogue) => dialogue.awaits_client(),
            SessionState::Relay(_) => false,
            SessionState::Closed => true,
        }
    }

    /// There is no memory to spare from now on, or there is: COMPRESS is refused meanwhile.
    pub fn spare(&mut self, scarce: bool) {
        if let SessionState::Relay(relay) = &mut self.state {
            relay.spare(scarce);
        }
    }

    /// Memory that is held for commands that are not whole or not answered, and for a login under way,
    /// in bytes.
    pub fn held(&self) -> usize {
        let Output { to_client, to_backend, .. } = &self.output;
        let state = match &self.state {
            SessionState::NotAuthenticated(dialogue) => dialogue.held(),
            SessionState::Relay(relay) => relay.held(),
            SessionState::Closed => 0,
        };
        state + to_client.capacity() + to_backend.capacity()
    }

    /// Gives up: what is still to be said is said, and nothing is heard any more.
    pub fn forget(&mut self) {
        self.state = SessionState::Closed;
    }

    /// Whether the user is logged in.
    pub fn is_relaying(&self) -> bool {
        matches!(self.state, SessionState::Relay(_))
    }

    /// Whether the user is logged in and is offered push.
    pub fn offers_push(&self) -> bool {
        matches!(&self.state, SessionState::Relay(relay) if relay.own().push)
    }

    /// Whether the client waits for nothing but news, and may be sent away without losing an
    /// answer.
    pub fn is_idle(&self) -> bool {
        match &self.state {
            SessionState::NotAuthenticated(dialogue) => dialogue.is_idle(),
            SessionState::Relay(relay) => relay.is_idle() && relay.at_response_boundary(),
            SessionState::Closed => true,
        }
    }

    /// Whether something may be said to the client now without breaking into a response that is
    /// on its way.
    pub fn at_response_boundary(&self) -> bool {
        match &self.state {
            SessionState::Relay(relay) => relay.at_response_boundary(),
            SessionState::NotAuthenticated(_) | SessionState::Closed => true,
        }
    }

    fn decided(&mut self, outcome: LoginOutcome) {
        let SessionState::NotAuthenticated(dialogue) = &mut self.state else { return };
        let LoginState::Backend { tag, login } =
            std::mem::replace(&mut dialogue.state, LoginState::Command)
        else {
            return;
        };
        let Output { to_client, actions, over, .. } = &mut self.output;
        match outcome {
            LoginOutcome::Challenge(text) => {
                to_client.extend_from_slice(b"+ ");
                to_client.extend_from_slice(&text);
                to_client.extend_from_slice(b"\r\n");
                dialogue.state = LoginState::Challenge { tag, login };
            }
            LoginOutcome::Accepted { untagged, answer, offered, .. } => {
                let proven = proven(&login, dialogue.reached, &self.profile);
                // Who claims to be somebody else takes no place of theirs.
                let whose = proven.map(|proven| proven.account).or_else(|| authenticated(&login));
                actions.push_back(Action::Seen(offered));
                actions.push_back(Action::Admit(whose));
                dialogue.state = LoginState::Accepted { tag, login, untagged, answer };
            }
            LoginOutcome::Refused { untagged, answer, refusal, offered } => {
                let failure = LoginFailure::Refused(claimed(&login), refusal);
                let line = [untagged, tag, answer].concat();
                dialogue.state = LoginState::Refused(line);
                actions.push_back(Action::Seen(offered));
                actions.push_back(Action::Failed(failure));
                self.output.answered.push((Verb::Login, Status::No));
            }
            LoginOutcome::NotOffered(offered) => {
                actions.push_back(Action::Seen(offered));
                dialogue.state = LoginState::Backend { tag, login };
                self.turned_away(NOT_TAKEN);
            }
            LoginOutcome::Unavailable(why) => {
                dialogue.state = LoginState::Backend { tag, login };
                self.failed(UNAVAILABLE, LoginFailure::Unavailable(why));
            }
            LoginOutcome::SentAway { answer, why } => {
                dialogue.state = LoginState::Backend { tag, login };
                let answer = answer.as_deref().unwrap_or(UNAVAILABLE);
                self.failed(answer, LoginFailure::Unavailable(why));
            }
            LoginOutcome::TooLong => {
                over.capability += 1;
                dialogue.state = LoginState::Backend { tag, login };
                let why = "an overlong answer to a login".to_owned();
                self.failed(UNAVAILABLE, LoginFailure::Unavailable(why));
            }
        }
    }

    /// Whom the backend has accepted is let in: the client hears of it, and is relayed from here on.
    pub fn admitted(&mut self) {
        let SessionState::NotAuthenticated(dialogue) = &mut self.state else { return };
        let (tag, login, untagged, answer) =
            match std::mem::replace(&mut dialogue.state, LoginState::Command) {
                LoginState::Accepted { tag, login, untagged, answer } => {
                    (tag, login, untagged, answer)
                }
                other => {
                    dialogue.state = other;
                    return;
                }
            };
        let Output { to_client, actions, answered, .. } = &mut self.output;
        let prefix = std::mem::take(&mut dialogue.connection.tag_prefix);
        let claimed = claimed(&login).map(|it| it.canonical(dialogue.reached.names_ignore_case));
        let proven = proven(&login, dialogue.reached, &self.profile);
        // Its watcher needs what the user has, or a master.
        let watchable =
            |proven: &&ProvenIdentity| self.profile.master || proven.credentials.is_some();
        let watched = proven.as_ref().filter(watchable).map(|it| it.account.clone());
        let relay = Relay::new(Arc::clone(&self.profile), watched, prefix);
        to_client.extend_from_slice(&edited(&untagged, relay.own()));
        let mut line = tag;
        line.extend_from_slice(&answer);
        to_client.extend_from_slice(&edited(&line, relay.own()));
        actions.push_back(Action::LoggedIn(Authenticated { claimed, proven }));
        answered.push((Verb::Login, Status::Ok));
        self.state = SessionState::Relay(Box::new(relay));
    }
}

/// Whose name and password were accepted, whoever they act as.
fn authenticated(login: &BackendLogin) -> Option<Account> {
    match login.attempt() {
        LoginAttempt::Credentials { credentials, .. } => {
            Some(Account::from_login(&credentials.login))
        }
        LoginAttempt::Relayed { .. } => login.observed_name().map(Account::from_login),
    }
}

/// Whom the client claims to be.
fn claimed(login: &BackendLogin) -> Option<Account> {
    match login.attempt() {
        LoginAttempt::Credentials { credentials, .. } => Some(credentials.account()),
        LoginAttempt::Relayed { .. } => login.observed_name().map(Account::from_login),
    }
}

/// Who has logged in, where the backend's answer proves it.
fn proven(
    login: &BackendLogin,
    reached: BackendTraits,
    profile: &Profile,
) -> Option<ProvenIdentity> {
    let BackendTraits { checks_token_name, names_ignore_case, .. } = reached;
    match login.attempt() {
        LoginAttempt::Credentials { credentials, .. } => {
            credentials.prove_account(checks_token_name).then(|| ProvenIdentity {
                account: credentials.account().canonical(names_ignore_case),
                credentials: Some(credentials.clone()),
            })
        }
        // One backend has accepted the name, and it may be somebody else's at another.
        LoginAttempt::Relayed { .. } => {
            let account = Account::from_login(login.observed_name()?);
            let domain = account.domain_among(|domain| profile.routes(domain));
            let certain = domain == Ok(None);
            let account = account.canonical(names_ignore_case);
            certain.then_some(ProvenIdentity { account, credentials: None })
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    #[test]
    fn the_topic_depends_on_the_domain_of_the_user() {
        let entry = |domain: Option<&str>, topic: Option<&str>| DomainTopic {
            domain: domain.map(str::to_owned),
            topic: topic.map(str::to_owned),
        };
        let offer = |topics| PushOffer { topics, clients: Vec::new(), most_mailboxes: 1 };
        let entries = vec![
            entry(None, Some("others")),
            entry(Some("a.example"), Some("a")),
            entry(Some("b.example"), None),
        ];
        let several = offer(entries.clone());
        for (login, topic) in [
            ("alice@A.example", Some("a")),
            // Not that of the others: its own is to be mended.
            ("bob@b.example", None),
            ("carol@c.example", Some("others")),
            ("dave", Some("others")),
            ("bob@b.example\\shared", Some("others")),
        ] {
            assert_eq!(several.topic(&Account::from_login(login)), topic, "{login}");
        }
        assert!(several.is_open() && !offer(vec![entry(None, None)]).is_open());
        assert_eq!(offer(entries[1..].to_vec()).topic(&Account::from_login("dave")), None);
    }

    fn profile() -> Profile {
        let topics = vec![DomainTopic { domain: None, topic: Some("topic".into()) }];
        Profile {
            backend: Some(Arc::new(Capabilities::parse(b"IMAP4rev1 AUTH=CRAM-MD5"))),
            logins_elsewhere: LoginKinds::default(),
            push: Some(PushOffer { topics, clients: Vec::new(), most_mailboxes: 1 }),
            relay_mechanisms: true,
            master: true,
            routed: vec!["b.example".into()],
            commands: 100,
            command_size: 1024,
            capability_size: 1024,
            compress: true,
            shown: ShownCapabilities::default(),
        }
    }

    /// What is said to who has logged in by CRAM-MD5 under this name.
    fn answer_by_cram_md5(profile: &Profile, name: &str) -> String {
        let (tag_prefix, id_fields) = ("mc".to_owned(), Vec::new());
        let connection = ClientConnection { secure: true, tag_prefix, id_fields };
        let mut session = Session::new(Arc::new(profile.clone()), connection);
        session.client(b"a AUTHENTICATE CRAM-MD5\r\n", false);
        assert!(matches!(session.output.actions.pop_back(), Some(Action::Connect(None))));
        session.connected(BackendTraits::default());
        session.backend(b"* OK [CAPABILITY IMAP4rev1 AUTH=CRAM-MD5] ready\r\n", false);
        session.backend(b"+ PDFAeD4=\r\n", false);
        let proof = STANDARD.encode(format!("{name} b913a602c7eda7a495b4e6e7334d3890"));
        session.client(format!("{proof}\r\n").as_bytes(), false);
        session.output.to_client.clear();
        session.backend(b"m2 OK [CAPABILITY IMAP4rev1] in\r\n", false);
        session.admitted();
        assert!(session.is_relaying());
        String::from_utf8(std::mem::take(&mut session.output.to_client)).unwrap()
    }

    /// The backend hangs up before what is for it was written.
    #[test]
    fn what_one_login_left_unsaid_goes_to_no_other_backend() {
        let (tag_prefix, id_fields) = ("mc".to_owned(), Vec::new());
        let connection = ClientConnection { secure: true, tag_prefix, id_fields };
        let mut session = Session::new(Arc::new(profile()), connection);
        for (login, expected) in
            [("a LOGIN alice one", "LOGIN alice one"), ("b LOGIN bob two", "LOGIN bob two")]
        {
            session.client(format!("{login}\r\n").as_bytes(), false);
            assert!(matches!(session.output.actions.pop_back(), Some(Action::Connect(_))));
            session.connected(BackendTraits::default());
            session.backend(b"* OK [CAPABILITY IMAP4rev1] ready\r\n", false);
            let said = String::from_utf8_lossy(&session.output.to_backend).into_owned();
            assert!(said.ends_with(&format!("{expected}\r\n")), "{said}");
            assert_eq!(said.matches("LOGIN").count(), 1, "{said}");
            session.unavailable("it hung up");
            session.output.actions.clear();
            session.release();
        }
    }

    #[test]
    fn whom_one_backend_accepts_is_not_watched_at_another() {
        let profile = profile();
        let offered =
            |profile: &Profile, name| answer_by_cram_md5(profile, name).contains(XAPPLEPUSHSERVICE);
        for (name, expected) in [
            ("tim", true),
            ("tim@a.example", true),
            ("tim@B.example", false),
            ("x@y@b.example", false),
            ("tim@b.example/x", false),
            ("tim@a.example/x", true),
        ] {
            assert_eq!(offered(&profile, name), expected, "{name}");
        }
        let stored = Profile { master: false, ..profile };
        assert!(!offered(&stored, "tim"));
    }
}
