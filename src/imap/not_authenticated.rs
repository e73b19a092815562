//! What is said with a client before it is logged in: the Not Authenticated State (RFC 9051 section
//! 3.1).
//!
//! Commands are answered here, without a backend, until there are credentials to be tried. What the
//! backend makes of them is the [session](super::session)'s matter.

use std::fmt;

use super::args;
use super::collect::{Collector, Progress};
use super::contract::{
    Action, BackendTraits, ClientConnection, LoginFailure, Output, Profile, Step, tagged,
};
use super::login::{BackendLogin, LoginAttempt, Secret, WrittenLogin};
use super::peek::{self, Command, Status, Verb};
use super::refusal::Refusal;
use super::sasl::{self, Mechanism, SaslExchange};
use crate::model::{Account, Credentials};

/// Malformed or unknown commands after which the client is sent away.
const MOST_BAD_COMMANDS: u32 = 20;

/// The fields of a client's ID that are passed on (RFC 2971 section 3.3). Proxies tell servers of their
/// clients in fields of other names, so whatever has another name could be taken for a proxy's word.
const ID_FIELDS: [&str; 11] = [
    "name",
    "version",
    "os",
    "os-version",
    "vendor",
    "support-url",
    "address",
    "date",
    "command",
    "arguments",
    "environment",
];

/// Longest value of such a field (RFC 2971 section 3.3), and of all of them together, which are kept until
/// the login.
const LONGEST_ID_FIELD: usize = 1024;
const MOST_ID: usize = 4 * 1024;

/// The login dialogue.
#[derive(Debug)]
pub(super) struct NotAuthenticated {
    pub(super) connection: ClientConnection,
    /// What the client said of itself, as ID fields.
    client_id: Vec<IdField>,
    collector: Collector,
    commands: u32,
    bad_commands: u32,
    /// Of the backend that was last reached.
    pub(super) reached: BackendTraits,
    /// The client is gone.
    pub(super) abandoned: bool,
    pub(super) state: LoginState,
}

type IdField = (&'static str, Option<Vec<u8>>);

#[derive(Debug)]
pub(super) enum LoginState {
    Command,
    /// STARTTLS was answered.
    Handshake,
    Authenticate {
        tag: Vec<u8>,
        exchange: SaslExchange,
    },
    /// The backend is being dialled.
    Connect {
        tag: Vec<u8>,
        attempt: LoginAttempt,
    },
    /// The backend is asked.
    Backend {
        tag: Vec<u8>,
        login: Box<BackendLogin>,
    },
    /// The backend asks; the client answers.
    Challenge {
        tag: Vec<u8>,
        login: Box<BackendLogin>,
    },
    /// The backend has accepted; whether there is room is yet to be said.
    Accepted {
        tag: Vec<u8>,
        login: Box<BackendLogin>,
        /// Untagged responses to the login, and the answer behind its tag.
        untagged: Vec<u8>,
        answer: Vec<u8>,
    },
    /// The answer waits for its time.
    Refused(Vec<u8>),
}

impl NotAuthenticated {
    /// On a connection that has been greeted. No command may be longer than `longest` bytes.
    pub(super) fn new(connection: ClientConnection, longest: usize) -> Self {
        Self {
            connection,
            client_id: Vec::new(),
            collector: Collector::new(longest),
            commands: 0,
            bad_commands: 0,
            reached: BackendTraits::default(),
            abandoned: false,
            state: LoginState::Command,
        }
    }

    /// Whether the client waits for no answer, and is not in the middle of a command.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, LoginState::Command) && self.collector.is_empty()
    }

    /// Whether nothing happens until the client says more.
    pub(super) fn awaits_client(&self) -> bool {
        !matches!(
            self.state,
            LoginState::Connect { .. } | LoginState::Backend { .. } | LoginState::Refused(_)
        )
    }

    /// As [`Session::held`](super::session::Session::held).
    pub(super) fn held(&self) -> usize {
        let id = self.client_id.iter().map(|field| id_size(field) + size_of::<IdField>());
        let state = match &self.state {
            LoginState::Connect { attempt, .. } => attempt.held(),
            LoginState::Backend { login, .. } | LoginState::Challenge { login, .. } => login.held(),
            LoginState::Accepted { login, untagged, answer, .. } => {
                login.held() + untagged.capacity() + answer.capacity()
            }
            LoginState::Refused(answer) => answer.capacity(),
            LoginState::Command | LoginState::Handshake | LoginState::Authenticate { .. } => 0,
        };
        self.collector.held() + id.sum::<usize>() + state
    }

    /// As [`Session::secured`](super::session::Session::secured).
    pub(super) fn secured(&mut self) {
        self.connection.secure = true;
        self.client_id.clear();
        self.state = LoginState::Command;
    }

    /// What to do with the client's bytes.
    pub(super) fn client(&mut self, input: &[u8], profile: &Profile, out: &mut Output) -> Step {
        match self.state {
            LoginState::Handshake if input.is_empty() => return Step::Wait,
            // What came before the handshake was not protected by it (CVE-2011-0411 and its kin).
            LoginState::Handshake => {
                return Step::Close("bytes between STARTTLS and the handshake");
            }
            LoginState::Connect { .. }
            | LoginState::Backend { .. }
            | LoginState::Accepted { .. }
            | LoginState::Refused(_) => return Step::Wait,
            LoginState::Authenticate { .. } | LoginState::Challenge { .. } => {
                self.collector.expect_plain_line();
            }
            LoginState::Command => {}
        }
        if input.is_empty() {
            return Step::Wait;
        }
        let (used, progress) = self.collector.push(input);
        if let Progress::Whole | Progress::Refused | Progress::TooLong = progress {
            self.commands += 1;
            if self.commands > profile.commands {
                out.over.commands += 1;
                out.to_client.extend_from_slice(b"* BYE Too many commands before a login\r\n");
                out.actions.push_back(Action::Close);
                return Step::Take(used);
            }
        }
        match progress {
            // Whether its end is at hand already is chance, and makes no difference.
            Progress::More | Progress::TooLong if self.collector.is_too_long() => {
                out.over.command += 1;
                out.to_client.extend_from_slice(b"* BYE Command is too long\r\n");
                out.actions.push_back(Action::Close);
            }
            Progress::More => {}
            Progress::Continue => out.to_client.extend_from_slice(b"+ OK\r\n"),
            Progress::Refused | Progress::TooLong => {
                out.over.command += 1;
                let command = self.collector.take();
                self.refuse(tag_of(&command), "BAD Command is too long", out);
            }
            Progress::Whole => {
                let command = self.collector.take();
                match std::mem::replace(&mut self.state, LoginState::Command) {
                    LoginState::Authenticate { tag, exchange } => {
                        let line = command.trim_ascii_end();
                        self.respond(tag, exchange.respond(line), profile, out);
                    }
                    LoginState::Challenge { tag, mut login } => {
                        login.respond(&command, &mut out.to_backend);
                        self.state = LoginState::Backend { tag, login };
                    }
                    _ => self.command(&command, profile, out),
                }
            }
        }
        Step::Take(used)
    }

    fn command(&mut self, command: &[u8], profile: &Profile, out: &mut Output) {
        let verb = match peek::command(command) {
            Some(Command::Known { verb, .. }) => Some(verb),
            Some(Command::Other { .. }) => None,
            _ => return self.refuse(None, "BAD Malformed command", out),
        };
        let Ok((arguments, (tag, name))) = args::tag_and_verb(command) else {
            return self.refuse(tag_of(command), "BAD Malformed command", out);
        };
        let secure = self.connection.secure;
        let answer = &mut out.to_client;
        match verb {
            Some(Verb::Capability) => {
                answer.extend_from_slice(b"* CAPABILITY ");
                answer.extend_from_slice(profile.list_before_login(secure).as_bytes());
                answer.extend_from_slice(b"\r\n");
                tagged(answer, tag, "OK CAPABILITY completed");
            }
            Some(Verb::Noop) => tagged(answer, tag, "OK NOOP completed"),
            Some(Verb::Id) => {
                self.client_id = id_fields(arguments);
                answer.extend_from_slice(b"* ID (\"name\" \"mailchime\")\r\n");
                tagged(answer, tag, "OK ID completed");
            }
            Some(Verb::Logout) => {
                answer.extend_from_slice(b"* BYE Logging out\r\n");
                tagged(answer, tag, "OK LOGOUT completed");
                out.actions.push_back(Action::Close);
            }
            Some(Verb::StartTls) if !secure => {
                tagged(answer, tag, "OK Begin TLS negotiation now");
                out.actions.push_back(Action::StartTls);
                out.answered.push((Verb::StartTls, Status::Ok));
                self.state = LoginState::Handshake;
            }
            Some(Verb::StartTls) => self.refuse(Some(tag), "BAD TLS is active already", out),
            Some(Verb::Login | Verb::Authenticate) if !secure => {
                tagged(answer, tag, "NO [PRIVACYREQUIRED] STARTTLS comes first");
            }
            Some(Verb::Login) => match args::login(arguments) {
                Some((name, password)) => match String::from_utf8(name.bytes.into_owned()) {
                    Ok(login) => {
                        let secret = |written: Option<&[u8]>| Some(Secret(written?.to_vec()));
                        let written = WrittenLogin {
                            name: secret(name.written),
                            password: secret(password.written),
                        };
                        let password = password.bytes.into_owned();
                        let credentials = Credentials::password(login, password);
                        self.verify(tag.to_vec(), credentials, Some(written), profile, out);
                    }
                    Err(_) => self.refuse_credentials(tag, None, out),
                },
                None => self.refuse(Some(tag), "BAD LOGIN takes a name and a password", out),
            },
            Some(Verb::Authenticate) => self.authenticate(tag, arguments, profile, out),
            // Too early, and harmless: Dovecot answers so, too.
            None if name.eq_ignore_ascii_case(b"ENABLE") => {
                answer.extend_from_slice(b"* ENABLED\r\n");
                tagged(answer, tag, "OK ENABLE is ignored before login");
            }
            _ => self.refuse(Some(tag), "BAD Unknown command, or not before login", out),
        }
    }

    fn authenticate(&mut self, tag: &[u8], arguments: &[u8], profile: &Profile, out: &mut Output) {
        let Some((name, initial)) = args::atom_and_word(arguments) else {
            return self.refuse(Some(tag), "BAD AUTHENTICATE takes a mechanism", out);
        };
        if let Some(mechanism) = Mechanism::named(name) {
            let (exchange, challenge) = mechanism.start();
            let step = match initial {
                Some(initial) => exchange.respond(initial),
                None => sasl::SaslStep::Challenge(exchange, challenge),
            };
            return self.respond(tag.to_vec(), step, profile, out);
        }
        match std::str::from_utf8(name) {
            Ok(name) if profile.relays(name) => {
                let initial = initial.map(<[u8]>::to_vec);
                self.relay(tag.to_vec(), name.to_ascii_uppercase(), initial, out);
            }
            _ => tagged(&mut out.to_client, tag, "NO [CANNOT] Mechanism is not available"),
        }
    }

    fn respond(&mut self, tag: Vec<u8>, step: sasl::SaslStep, profile: &Profile, out: &mut Output) {
        match step {
            sasl::SaslStep::Challenge(exchange, challenge) => {
                out.to_client.extend_from_slice(format!("+ {challenge}\r\n").as_bytes());
                self.state = LoginState::Authenticate { tag, exchange };
            }
            sasl::SaslStep::Credentials(credentials) => {
                self.verify(tag, credentials, None, profile, out);
            }
            sasl::SaslStep::Nameless(message) => {
                let mechanism = Mechanism::OAuthBearer.name().to_owned();
                self.relay(tag, mechanism, Some(message.into_bytes()), out);
            }
            sasl::SaslStep::Cancelled => self.refuse(Some(&tag), "BAD AUTHENTICATE cancelled", out),
            sasl::SaslStep::Malformed => self.refuse(Some(&tag), "BAD Malformed response", out),
        }
    }

    /// Has a backend judge messages of which nothing is understood, its initial response in base64.
    fn relay(
        &mut self,
        tag: Vec<u8>,
        mechanism: String,
        initial: Option<Vec<u8>>,
        out: &mut Output,
    ) {
        let attempt = LoginAttempt::Relayed { mechanism, initial: initial.map(Secret) };
        out.actions.push_back(Action::Connect(None));
        self.state = LoginState::Connect { tag, attempt };
    }

    /// Has a backend judge these credentials. `written` is how they came by LOGIN, if they did.
    fn verify(
        &mut self,
        tag: Vec<u8>,
        credentials: Credentials,
        written: Option<WrittenLogin>,
        profile: &Profile,
        out: &mut Output,
    ) {
        // An empty password opens a door at some directories; control bytes are nobody's name.
        let names = [&credentials.login, &credentials.authorization];
        let unfit = credentials.login.is_empty()
            || credentials.expose_secret().is_empty()
            || credentials.expose_secret().contains(&0)
            || names.iter().any(|name| name.len() > 512 || name.chars().any(char::is_control));
        let account = credentials.account();
        // Whose server it is must be certain, before any server sees the password.
        let unfit = unfit || credentials.domain_among(|domain| profile.routes(domain)).is_err();
        if unfit {
            return self.refuse_credentials(&tag, Some(account), out);
        }
        out.actions.push_back(Action::Connect(Some(account)));
        self.state = LoginState::Connect {
            tag,
            attempt: LoginAttempt::Credentials { credentials, written },
        };
    }

    /// Answers a command that makes no sense, and sends away who sends many of them.
    fn refuse(&mut self, tag: Option<&[u8]>, text: impl fmt::Display, out: &mut Output) {
        tagged(&mut out.to_client, tag.unwrap_or(b"*"), text);
        self.bad_commands += 1;
        if self.bad_commands >= MOST_BAD_COMMANDS {
            out.to_client.extend_from_slice(b"* BYE Too many bad commands\r\n");
            out.actions.push_back(Action::Close);
        }
    }

    /// Refuses credentials that no backend needs to be asked about, as if one had been.
    pub(super) fn refuse_credentials(
        &mut self,
        tag: &[u8],
        account: Option<Account>,
        out: &mut Output,
    ) {
        let mut answer = Vec::new();
        tagged(&mut answer, tag, "NO [AUTHENTICATIONFAILED] Authentication failed");
        self.state = LoginState::Refused(answer);
        out.answered.push((Verb::Login, Status::No));
        out.actions.push_back(Action::Failed(LoginFailure::Refused(account, Refusal::Wrong)));
    }

    /// The arguments of the ID that goes to the backend: the client's fields, and those that tell
    /// where it comes from, which a client cannot claim for itself.
    pub(super) fn id(&self) -> Vec<u8> {
        let mut fields: Vec<String> = Vec::new();
        let mut add = |name: &str, value: Option<&[u8]>| {
            let value = value.map_or(Some(b"NIL".to_vec()), args::quote);
            if let (Some(name), Some(value)) = (args::quote(name.as_bytes()), value) {
                fields.push(String::from_utf8_lossy(&[&name[..], b" ", &value].concat()).into());
            }
        };
        for (name, value) in &self.client_id {
            add(name, value.as_deref());
        }
        if self.client_id.is_empty() {
            add("name", Some(b"mailchime"));
        }
        for (name, value) in &self.connection.id_fields {
            add(name, Some(value.as_bytes()));
        }
        format!("({})", fields.join(" ")).into_bytes()
    }
}

/// The fields of a client's ID that are fit to be passed on, each once; none if it is malformed or
/// NIL.
fn id_fields(arguments: &[u8]) -> Vec<IdField> {
    let (mut fields, mut size): (Vec<IdField>, usize) = (Vec::new(), 0);
    for (name, value) in args::id_fields(arguments).unwrap_or_default() {
        let known = ID_FIELDS.into_iter().find(|known| name.eq_ignore_ascii_case(known.as_bytes()));
        let fits = value.as_ref().is_none_or(|value| value.len() <= LONGEST_ID_FIELD);
        if let Some(known) = known
            && fits
            && fields.iter().all(|(name, _)| *name != known)
        {
            size += value.as_ref().map_or(0, |value| value.len());
            if size > MOST_ID {
                break;
            }
            fields.push((known, value.map(args::Bytes::into_owned)));
        }
    }
    fields
}

fn id_size((name, value): &IdField) -> usize {
    name.len() + value.as_ref().map_or(0, Vec::len)
}

/// The tag of a command that is otherwise malformed.
fn tag_of(command: &[u8]) -> Option<&[u8]> {
    args::tag_and_verb(command).ok().map(|(_, (tag, _))| tag)
}
