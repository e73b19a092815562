//! One client's session as a state machine: greeting, login dialogue, backend login, relay.
//!
//! ```text
//!   Login ──credentials──▶ Connect ──▶ Backend ──accepted──▶ Relay ──▶ Closed
//!     ▲                       │           │
//!     └──── NO (try again) ───┴───────────┘
//! ```
//!
//! The caller owns sockets and time. It writes [`Output::to_client`] and [`Output::to_backend`],
//! carries out [`Action`]s, and offers bytes of each side to [`Session::client`] and
//! [`Session::backend`]. Order matters: bytes that a lane's [`Step::Forward`] named are written
//! before output that came later, and output before the next forward.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use super::args;
use super::capability::{Capabilities, XAPPLEPUSHSERVICE};
use super::collect::{Collector, Progress};
use super::login::{Login, Outcome, edited};
use super::peek::{self, Command, Verb};
use super::relay::{Relay, tagged};
use super::sasl::{self, Exchange, Mechanism};
use crate::model::{Credentials, Registration};

/// Malformed or unknown commands before login after which the client is sent away.
const MOST_BAD_COMMANDS: u32 = 20;

const UNAVAILABLE: &str = "NO [UNAVAILABLE] The mail server cannot be reached, try again later";

/// What sessions offer, and how much they take.
#[derive(Clone, Debug)]
pub struct Profile {
    /// What the backend was last seen to offer before login; `None` before it was seen.
    pub backend: Option<Arc<Capabilities>>,
    /// `None` where push is not to be had: no topic, or no TLS to the client.
    pub push: Option<PushOffer>,
    /// Longest command before login, and longest command of ours, in bytes.
    pub command_size: usize,
    /// Longest capability list of a backend, and most data in its answer to a login, in bytes.
    pub capability_size: usize,
}

/// Push as it is offered to devices.
#[derive(Clone, Debug)]
pub struct PushOffer {
    pub topic: String,
    /// Bundle ids of mail clients that are served; `*` at the end stands for anything.
    pub clients: Vec<String>,
    /// Most mailboxes in one registration.
    pub most_mailboxes: usize,
}

/// What to do with the first bytes of a lane.
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
    /// Connect to the backend of this user, then call [`Session::connected`] or
    /// [`Session::unavailable`].
    Connect(Credentials),
    /// Close the connection to the backend, which refused the credentials, or had no answer for the
    /// reason given; another may follow.
    Disconnect(Disconnect),
    /// The backend accepted these credentials.
    LoggedIn(Credentials),
    /// The backend was seen to offer this before login.
    Seen(Capabilities),
    /// Store this, then call [`Session::registered`].
    Register(Registration),
    /// Write what there is to write, then close.
    Close,
}

/// Why a login failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disconnect {
    Refused,
    Unavailable(String),
}

/// What a session has to say.
#[derive(Debug, Default)]
pub struct Output {
    pub to_client: Vec<u8>,
    pub to_backend: Vec<u8>,
    pub actions: VecDeque<Action>,
}

/// One client's session.
#[derive(Debug)]
pub struct Session {
    profile: Arc<Profile>,
    tag_prefix: String,
    phase: Phase,
    pub output: Output,
}

#[derive(Debug)]
enum Phase {
    Login(Box<Dialogue>),
    Relay(Relay),
    Closed,
}

/// The login dialogue.
#[derive(Debug)]
struct Dialogue {
    collector: Collector,
    bad_commands: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    Command,
    Authenticate {
        tag: Vec<u8>,
        exchange: Exchange,
    },
    /// The backend is being dialled.
    Connect {
        tag: Vec<u8>,
        credentials: Credentials,
        by_login: bool,
    },
    /// The backend is asked.
    Backend {
        tag: Vec<u8>,
        login: Login,
    },
}

impl PushOffer {
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
    pub fn before_login(&self) -> Capabilities {
        let seen = self.backend.as_deref().cloned().unwrap_or_default();
        let mut shown = Capabilities::parse(b"IMAP4rev1");
        for token in seen.edited(false).iter() {
            let upper = token.to_ascii_uppercase();
            if !upper.starts_with("AUTH=") && upper != "LOGINDISABLED" && upper != "SASL-IR" {
                shown.add(token);
            }
        }
        for token in ["SASL-IR", "AUTH=PLAIN", "AUTH=LOGIN"] {
            shown.add(token);
        }
        if self.push.is_some() {
            shown.add(XAPPLEPUSHSERVICE);
        }
        shown
    }
}

impl Session {
    /// A session whose greeting is in the output already. `tag_prefix` must be one that the client
    /// cannot guess: letters and digits.
    pub fn new(profile: Arc<Profile>, tag_prefix: String) -> Self {
        let mut output = Output::default();
        output.to_client.extend_from_slice(
            format!("* OK [CAPABILITY {}] mailchime ready\r\n", profile.before_login()).as_bytes(),
        );
        let dialogue = Dialogue {
            collector: Collector::new(profile.command_size),
            bad_commands: 0,
            state: State::Command,
        };
        Self { profile, tag_prefix, phase: Phase::Login(Box::new(dialogue)), output }
    }

    /// What to do with the client's bytes. `last` means that no more will follow.
    pub fn client(&mut self, input: &[u8], last: bool) -> Step {
        match &mut self.phase {
            Phase::Login(dialogue) => {
                let step = dialogue.client(input, &self.profile, &mut self.output);
                if matches!(self.output.actions.back(), Some(Action::Close)) {
                    self.phase = Phase::Closed;
                }
                step
            }
            Phase::Relay(relay) => relay.client(input, last, &mut self.output),
            Phase::Closed => Step::Take(input.len()),
        }
    }

    /// What to do with the backend's bytes. `last` means that no more will follow.
    pub fn backend(&mut self, input: &[u8], last: bool) -> Step {
        match &mut self.phase {
            Phase::Login(dialogue) => {
                let State::Backend { login, .. } = &mut dialogue.state else {
                    return Step::Take(input.len());
                };
                let (used, outcome) = login.step(input, &mut self.output.to_backend);
                match outcome {
                    Some(outcome) => self.decided(outcome),
                    None if used == 0 => return Step::Wait,
                    None => {}
                }
                Step::Take(used)
            }
            Phase::Relay(relay) => relay.backend(input, last, &mut self.output),
            Phase::Closed => Step::Take(input.len()),
        }
    }

    /// The connection that [`Action::Connect`] asked for is open.
    pub fn connected(&mut self) {
        let Phase::Login(dialogue) = &mut self.phase else { return };
        dialogue.state = match std::mem::replace(&mut dialogue.state, State::Command) {
            State::Connect { tag, credentials, by_login } => {
                let limit = self.profile.capability_size;
                State::Backend { tag, login: Login::new(credentials, by_login, limit) }
            }
            other => other,
        };
    }

    /// The backend cannot be reached, or its connection ended. During the login dialogue the
    /// client is told and may try again; returns whether it was so.
    pub fn unavailable(&mut self) -> bool {
        let Phase::Login(dialogue) = &mut self.phase else { return false };
        match std::mem::replace(&mut dialogue.state, State::Command) {
            State::Connect { tag, .. } | State::Backend { tag, .. } => {
                tagged(&mut self.output.to_client, &tag, UNAVAILABLE);
                true
            }
            other => {
                dialogue.state = other;
                false
            }
        }
    }

    /// The registration of the last [`Action::Register`] is on disk, or cannot be.
    pub fn registered(&mut self, stored: bool) {
        if let Phase::Relay(relay) = &mut self.phase {
            relay.registered(stored, &mut self.output);
        }
    }

    /// Whether the user is logged in.
    pub fn is_relaying(&self) -> bool {
        matches!(self.phase, Phase::Relay(_))
    }

    /// Whether something may be said to the client now without breaking into a response that is
    /// on its way.
    pub fn at_response_boundary(&self) -> bool {
        match &self.phase {
            Phase::Relay(relay) => relay.at_response_boundary(),
            Phase::Login(_) | Phase::Closed => true,
        }
    }

    fn decided(&mut self, outcome: Outcome) {
        let Phase::Login(dialogue) = &mut self.phase else { return };
        let State::Backend { tag, login } = std::mem::replace(&mut dialogue.state, State::Command)
        else {
            return;
        };
        let Output { to_client, actions, .. } = &mut self.output;
        let push = self.profile.push.is_some();
        match outcome {
            Outcome::Accepted { untagged, answer, offered, .. } => {
                to_client.extend_from_slice(&edited(&untagged, push));
                let mut line = tag;
                line.extend_from_slice(&answer);
                to_client.extend_from_slice(&edited(&line, push));
                let credentials = login.credentials().clone();
                let account = credentials.account();
                actions.push_back(Action::Seen(offered));
                actions.push_back(Action::LoggedIn(credentials));
                let prefix = std::mem::take(&mut self.tag_prefix);
                let relay = Relay::new(Arc::clone(&self.profile), account, prefix);
                self.phase = Phase::Relay(relay);
            }
            Outcome::Refused { answer, offered } => {
                to_client.extend_from_slice(&tag);
                to_client.extend_from_slice(&answer);
                actions.push_back(Action::Seen(offered));
                actions.push_back(Action::Disconnect(Disconnect::Refused));
            }
            Outcome::Unavailable(why) => {
                tagged(to_client, &tag, UNAVAILABLE);
                actions.push_back(Action::Disconnect(Disconnect::Unavailable(why)));
            }
        }
    }
}

// === impl Dialogue ===

impl Dialogue {
    fn client(&mut self, input: &[u8], profile: &Profile, out: &mut Output) -> Step {
        match self.state {
            State::Connect { .. } | State::Backend { .. } => return Step::Wait,
            State::Authenticate { .. } => self.collector.expect_plain_line(),
            State::Command => {}
        }
        if input.is_empty() {
            return Step::Wait;
        }
        let (used, progress) = self.collector.push(input);
        match progress {
            Progress::More if self.collector.is_too_long() => {
                out.to_client.extend_from_slice(b"* BYE Command is too long\r\n");
                out.actions.push_back(Action::Close);
            }
            Progress::More => {}
            Progress::Continue => out.to_client.extend_from_slice(b"+ OK\r\n"),
            Progress::TooLong => {
                let command = self.collector.take();
                self.refuse(tag_of(&command), "BAD Command is too long", out);
            }
            Progress::Whole => {
                let command = self.collector.take();
                match std::mem::replace(&mut self.state, State::Command) {
                    State::Authenticate { tag, exchange } => {
                        let line = command.trim_ascii_end();
                        self.respond(tag, exchange.respond(line), out);
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
        let Ok((arguments, (tag, _))) = args::tag_and_verb(command) else {
            return self.refuse(tag_of(command), "BAD Malformed command", out);
        };
        let answer = &mut out.to_client;
        match verb {
            Some(Verb::Capability) => {
                let list = format!("* CAPABILITY {}\r\n", profile.before_login());
                answer.extend_from_slice(list.as_bytes());
                tagged(answer, tag, "OK CAPABILITY completed");
            }
            Some(Verb::Noop) => tagged(answer, tag, "OK NOOP completed"),
            Some(Verb::Id) => {
                answer.extend_from_slice(b"* ID (\"name\" \"mailchime\")\r\n");
                tagged(answer, tag, "OK ID completed");
            }
            Some(Verb::Logout) => {
                answer.extend_from_slice(b"* BYE Logging out\r\n");
                tagged(answer, tag, "OK LOGOUT completed");
                out.actions.push_back(Action::Close);
            }
            Some(Verb::Login) => match args::two_astrings(arguments) {
                Some((login, password)) => match String::from_utf8(login.into_owned()) {
                    Ok(login) => {
                        let credentials = Credentials::password(login, password.into_owned());
                        self.verify(tag.to_vec(), credentials, true, out);
                    }
                    Err(_) => refuse_credentials(tag, out),
                },
                None => self.refuse(Some(tag), "BAD LOGIN takes a name and a password", out),
            },
            Some(Verb::Authenticate) => self.authenticate(tag, arguments, out),
            Some(Verb::StartTls) => self.refuse(Some(tag), "BAD TLS is active already", out),
            _ => self.refuse(Some(tag), "BAD Unknown command, or not before login", out),
        }
    }

    fn authenticate(&mut self, tag: &[u8], arguments: &[u8], out: &mut Output) {
        let Some((name, initial)) = args::atom_and_word(arguments) else {
            return self.refuse(Some(tag), "BAD AUTHENTICATE takes a mechanism", out);
        };
        let Some(mechanism) = Mechanism::named(name) else {
            return tagged(&mut out.to_client, tag, "NO [CANNOT] Mechanism is not available");
        };
        let (exchange, challenge) = mechanism.start();
        let step = match initial {
            Some(initial) => exchange.respond(initial),
            None => sasl::Step::Challenge(exchange, challenge),
        };
        self.respond(tag.to_vec(), step, out);
    }

    fn respond(&mut self, tag: Vec<u8>, step: sasl::Step, out: &mut Output) {
        match step {
            sasl::Step::Challenge(exchange, challenge) => {
                out.to_client.extend_from_slice(format!("+ {challenge}\r\n").as_bytes());
                self.state = State::Authenticate { tag, exchange };
            }
            sasl::Step::Credentials(credentials) => self.verify(tag, credentials, false, out),
            sasl::Step::Cancelled => self.refuse(Some(&tag), "BAD AUTHENTICATE cancelled", out),
            sasl::Step::Malformed => self.refuse(Some(&tag), "BAD Malformed response", out),
        }
    }

    fn verify(&mut self, tag: Vec<u8>, credentials: Credentials, by_login: bool, out: &mut Output) {
        // An empty password opens a door at some directories; control bytes are nobody's name.
        let names = [&credentials.login, &credentials.authorization];
        let unfit = credentials.login.is_empty()
            || credentials.expose_password().is_empty()
            || credentials.expose_password().contains(&0)
            || names.iter().any(|name| name.len() > 512 || name.chars().any(char::is_control));
        if unfit {
            return refuse_credentials(&tag, out);
        }
        out.actions.push_back(Action::Connect(credentials.clone()));
        self.state = State::Connect { tag, credentials, by_login };
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
}

fn refuse_credentials(tag: &[u8], out: &mut Output) {
    tagged(&mut out.to_client, tag, "NO [AUTHENTICATIONFAILED] Authentication failed");
}

/// The tag of a command that is otherwise malformed.
fn tag_of(command: &[u8]) -> Option<&[u8]> {
    args::tag_and_verb(command).ok().map(|(_, (tag, _))| tag)
}
