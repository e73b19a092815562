//! The two lanes after login, and mailchime's own questions between them.
//!
//! Bytes of both directions are followed, not parsed: lines, literals, and the first words of
//! commands and responses. All of them go on unchanged but for capability lists, which are edited,
//! and the few commands that mailchime answers itself.
//!
//! ```text
//!   client  ──▶ command? ──▶ IDLE or a synchronising literal: hold the lane for the go-ahead
//!                  │ ours
//!                  ▼
//!               a job (see `own`): the lane is held until it is answered
//!
//!   backend ──▶ response? ──▶ capability list: edit │ our own tag, our STATUS: swallow │ pass on
//! ```
//!
//! While a command of ours is under way the client's lane is held. The fence, a NOOP of our own, is
//! answered when all earlier commands of the client are, since a server answers in order.

mod at;
mod own;

use std::fmt;
use std::sync::Arc;

use self::at::{At, LineEnd};
use self::own::Job;
use super::capability::{self, Own};
use super::literal::{Announcement, End, end_of_line, end_of_response};
use super::peek::{self, Command, Response, Status, Verb};
use super::session::{Action, Output, Profile, PushOffer, Step};
use crate::model::Account;

/// Longest STATUS response that is ours to swallow, in bytes.
const LONGEST_STATUS: usize = 8 * 1024;

/// What a STATUS for a registration asks. HIGHESTMODSEQ is not in it: asking would switch the
/// client's session to CONDSTORE (RFC 7162 section 3.1).
pub const STATUS_ITEMS: &str = "(MESSAGES UIDNEXT UIDVALIDITY UNSEEN)";

/// A session after login.
#[derive(Debug)]
pub struct Relay {
    profile: Arc<Profile>,
    /// `None` when there is no saying who it is, or no way to watch for them: then there is no push
    /// either.
    account: Option<Account>,
    client: At,
    backend: At,
    /// Tag of the client's last command that was passed on.
    client_tag: Vec<u8>,
    /// The client's last command is IDLE, and its line has not ended.
    idle_line: bool,
    /// Commands of the client that are not answered yet, as far as tagged responses tell.
    unanswered: u32,
    waiting: Waiting,
    utf8: bool,
    /// The client's connection is compressed.
    compressed: bool,
    /// Starts each tag of ours; no client could have made it up.
    tag_prefix: String,
    questions: u32,
    job: Option<Box<Job>>,
    /// Bytes for the client that must wait for the end of a response that is on its way.
    deferred: Vec<u8>,
    compress_behind_deferred: bool,
}

/// What the client has been told to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    Nothing,
    /// A synchronising literal of this length was announced.
    Literal(u64),
    Idle {
        started: bool,
    },
}

impl Relay {
    /// A session of `account` that starts at a line start in both directions.
    pub fn new(profile: Arc<Profile>, account: Option<Account>, tag_prefix: String) -> Self {
        Self {
            profile,
            account,
            client: At::LineStart,
            backend: At::LineStart,
            client_tag: Vec::new(),
            idle_line: false,
            unanswered: 0,
            waiting: Waiting::Nothing,
            utf8: false,
            compressed: false,
            tag_prefix,
            questions: 0,
            job: None,
            deferred: Vec::new(),
            compress_behind_deferred: false,
        }
    }

    /// What to do with the client's bytes. `last` means that no more will follow.
    pub fn client(&mut self, input: &[u8], last: bool, out: &mut Output) -> Step {
        if self.job.is_some() {
            return self.collect(input, out);
        }
        let mut used = 0;
        while used < input.len() {
            let rest = &input[used..];
            if let At::LineStart = self.client {
                match self.waiting {
                    Waiting::Literal(_) => break,
                    Waiting::Idle { started: false }
                        if peek::command(rest) != Some(Command::Done) && !last =>
                    {
                        break;
                    }
                    _ => {}
                }
                match peek::command(rest) {
                    None if last => {
                        self.client = At::line(false);
                    }
                    None => break,
                    // What came before it goes first.
                    Some(Command::Endless) if used > 0 => break,
                    Some(Command::Endless) => return Step::Close("a tag without end"),
                    Some(Command::Done) => {
                        self.waiting = Waiting::Nothing;
                        self.client = At::line(false);
                    }
                    // In IDLE nothing but DONE is a command; the backend says so.
                    Some(_) if self.waiting != Waiting::Nothing => self.client = At::line(false),
                    Some(Command::Known { tag, verb }) if is_ours(verb) => {
                        if used == 0 {
                            self.start(tag, verb, out);
                            return Step::Take(0);
                        }
                        break;
                    }
                    Some(Command::Known { tag, verb }) => {
                        self.begin(tag, verb == Verb::Idle);
                    }
                    Some(Command::Other { tag }) => self.begin(tag, false),
                    Some(Command::Garbage) => self.begin(b"", false),
                }
                continue;
            }
            let (length, end) = self.client.follow(rest);
            used += length;
            match end {
                LineEnd::None => {}
                LineEnd::Plain => {
                    if self.idle_line {
                        self.idle_line = false;
                        self.waiting = Waiting::Idle { started: false };
                    }
                }
                LineEnd::Announces(Announcement { length, synchronising: true }) => {
                    self.client = At::LineStart;
                    self.waiting = Waiting::Literal(length);
                }
                LineEnd::Announces(Announcement { length, .. }) => {
                    self.client = At::literal(length);
                }
            }
        }
        if used == 0 { Step::Wait } else { Step::Forward(used) }
    }

    /// What to do with the backend's bytes. `last` means that no more will follow.
    pub fn backend(&mut self, input: &[u8], last: bool, out: &mut Output) -> Step {
        let mut used = 0;
        loop {
            let at_start = matches!(self.backend, At::LineStart);
            if at_start && !self.deferred.is_empty() {
                if used == 0 {
                    out.to_client.append(&mut self.deferred);
                    if std::mem::take(&mut self.compress_behind_deferred) {
                        out.actions.push_back(Action::Compress);
                    }
                    return Step::Take(0);
                }
                break;
            }
            let rest = &input[used..];
            if rest.is_empty() {
                break;
            }
            if !at_start {
                let (length, end) = self.backend.follow(rest);
                used += length;
                if let LineEnd::Announces(Announcement { length, .. }) = end {
                    self.backend = At::literal(length);
                }
                continue;
            }
            let response = match peek::response(rest) {
                Some(response) => response,
                // Half a line is all that will ever come.
                None if last => Response::Data,
                None => break,
            };
            let taken = match response {
                Response::Status { tag, capability, .. } => {
                    let ours = tag.is_some_and(|tag| self.is_question(tag));
                    if !ours && !capability {
                        if let Some(tag) = tag {
                            self.answered(tag);
                        }
                        self.backend = At::line(false);
                        continue;
                    }
                    end_of_line(rest)
                }
                Response::Capability => end_of_line(rest),
                Response::Enabled => {
                    let limit = self.profile.capability_size;
                    match end_of_line(rest) {
                        End::At(length) if length <= limit => self.enabled(&rest[..length]),
                        End::Beyond if rest.len() <= limit && !last => break,
                        End::At(_) | End::Beyond => {}
                    }
                    self.backend = At::line(true);
                    continue;
                }
                Response::MailboxStatus if self.is_asking() => match end_of_response(rest) {
                    End::At(length) if length <= LONGEST_STATUS => End::At(length),
                    End::Beyond if rest.len() <= LONGEST_STATUS => End::Beyond,
                    End::At(_) | End::Beyond => {
                        self.backend = At::line(true);
                        continue;
                    }
                },
                Response::Continuation => {
                    self.go_ahead();
                    self.backend = At::line(false);
                    continue;
                }
                Response::MailboxStatus | Response::Data => {
                    self.backend = At::line(true);
                    continue;
                }
            };
            if taken == End::Beyond && last {
                self.backend = At::line(true);
                continue;
            }
            // A response that does not simply pass: what came before it goes first.
            if used > 0 {
                break;
            }
            let limit = self.profile.capability_size.max(LONGEST_STATUS);
            return match taken {
                End::At(length) if length <= limit => {
                    self.take(response, &rest[..length], out);
                    Step::Take(length)
                }
                End::Beyond if rest.len() <= limit => Step::Wait,
                // Whether its end is at hand already is chance, and makes no difference.
                End::At(_) | End::Beyond => {
                    out.over.capability += 1;
                    Step::Close("a capability list of the backend that is too long")
                }
            };
        }
        if used == 0 { Step::Wait } else { Step::Forward(used) }
    }

    /// Goes by another profile from now on. The topic that this user's devices are told then; `None` if
    /// they are offered no push.
    pub fn renewed(&mut self, profile: Arc<Profile>) -> Option<&str> {
        self.profile = profile;
        self.push().map(|(_, topic)| topic)
    }

    /// Whether a command of ours is under way, so that the client's bytes wait.
    pub fn is_busy(&self) -> bool {
        self.job.is_some()
    }

    /// Whether the client waits for nothing but news: all its commands are answered, or it idles.
    pub fn is_idle(&self) -> bool {
        let idling = matches!(self.waiting, Waiting::Idle { .. });
        self.job.is_none() && (idling || self.unanswered == 0)
    }

    /// What mailchime adds to capability lists.
    pub fn own(&self) -> Own {
        Own { push: self.push().is_some(), compress: self.profile.compress }
    }

    /// What is offered to this user, and the topic.
    fn push(&self) -> Option<(&PushOffer, &str)> {
        offered(&self.profile, self.account.as_ref())
    }

    /// Whether no response of the backend is under way to the client.
    pub fn at_response_boundary(&self) -> bool {
        matches!(self.backend, At::LineStart)
    }

    fn begin(&mut self, tag: &[u8], idle: bool) {
        self.client_tag.clear();
        self.client_tag.extend_from_slice(tag);
        self.idle_line = idle;
        self.unanswered = self.unanswered.saturating_add(1);
        self.client = At::line(true);
    }

    /// The backend sent `+`.
    fn go_ahead(&mut self) {
        match self.waiting {
            Waiting::Literal(length) => {
                self.client = At::literal(length);
                self.waiting = Waiting::Nothing;
            }
            Waiting::Idle { .. } => self.waiting = Waiting::Idle { started: true },
            Waiting::Nothing => {}
        }
    }

    /// The backend answered a command of the client: its literal is not wanted, its IDLE is over.
    fn answered(&mut self, tag: &[u8]) {
        self.unanswered = self.unanswered.saturating_sub(1);
        if self.waiting != Waiting::Nothing && tag == self.client_tag {
            self.waiting = Waiting::Nothing;
        }
    }

    fn enabled(&mut self, line: &[u8]) {
        let mut words = line.split(|b| matches!(b, b' ' | b'\r' | b'\n'));
        self.utf8 |= words.any(|word| word.eq_ignore_ascii_case(b"UTF8=ACCEPT"));
    }

    /// A whole response that does not simply pass.
    fn take(&mut self, response: Response<'_>, line: &[u8], out: &mut Output) {
        match response {
            Response::Status { tag: Some(tag), status, .. } if self.is_question(tag) => {
                self.question_answered(status == Status::Ok, out);
            }
            Response::MailboxStatus => self.keep(line),
            _ => {
                if let Response::Status { tag: Some(tag), .. } = response {
                    self.answered(tag);
                }
                let edited = capability::edit_response(line, self.own());
                out.to_client.extend_from_slice(&edited);
            }
        }
    }
}

/// Commands after login that the backend does not get.
fn is_ours(verb: Verb) -> bool {
    matches!(
        verb,
        Verb::XApplePushService
            | Verb::Login
            | Verb::Authenticate
            | Verb::StartTls
            | Verb::Unauthenticate
            | Verb::Compress
    )
}

/// What is offered to the user of this account, and the topic that devices of theirs are told.
fn offered<'a>(
    profile: &'a Profile,
    account: Option<&'a Account>,
) -> Option<(&'a PushOffer, &'a str)> {
    let offer = profile.push.as_ref()?;
    Some((offer, offer.topic(account?)?))
}

/// Adds a tagged response.
pub(super) fn tagged(out: &mut Vec<u8>, tag: &[u8], text: impl fmt::Display) {
    out.extend_from_slice(tag);
    out.extend_from_slice(format!(" {text}\r\n").as_bytes());
}
