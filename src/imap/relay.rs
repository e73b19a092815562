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
//!               Fence ──▶ Collect ──▶ Check (STATUS, mailbox by mailbox) ──▶ Store ──▶ answer
//!
//!   backend ──▶ response? ──▶ capability list: edit │ our own tag, our STATUS: swallow │ pass on
//! ```
//!
//! While a command of ours is under way the client's lane is held. The fence, a NOOP of our own, is
//! answered when all earlier commands of the client are, since a server answers in order.

use std::fmt;
use std::sync::Arc;

use memchr::memchr;

use super::args::{self, quote};
use super::capability::{self, Own};
use super::collect::{Collector, Progress};
use super::literal::{Announcement, End, Tail, end_of_line, end_of_response};
use super::mailbox;
use super::peek::{self, Command, Response, Status, Verb};
use super::registration::{self, Request};
use super::session::{Action, Output, Profile, PushOffer, Step};
use super::status::mailbox_status;
use crate::model::{Account, Device, Mailbox, Registration, Snapshot};

/// Longest STATUS response that is ours to swallow, in bytes.
const LONGEST_STATUS: usize = 8 * 1024;

/// Most STATUS responses that are looked at for one question.
const MOST_STATUSES: usize = 64;

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

/// Where in a stream a lane is.
#[derive(Clone, Copy, Debug)]
enum At {
    LineStart,
    Line {
        tail: Tail,
        /// Whether this line's end may announce a literal.
        literals: bool,
    },
    /// Inside a literal, with so many octets to come.
    Literal(u64),
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

/// A command of the client that mailchime answers.
#[derive(Debug)]
struct Job {
    tag: Vec<u8>,
    verb: Verb,
    /// Our tag that is awaited, if one is.
    question: Vec<u8>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Fence,
    Collect(Collector),
    Check(Check),
    /// The caller writes the registration; these names are echoed then.
    Store {
        version: u8,
        echoed: Vec<Vec<u8>>,
    },
}

/// Which of the mailboxes asked for can this user read?
#[derive(Debug)]
struct Check {
    request: Request,
    /// Index of the next name to look at.
    next: usize,
    asked: Option<(Vec<u8>, Mailbox)>,
    found: Vec<(Vec<u8>, Mailbox, Snapshot)>,
    /// STATUS responses since the question was put.
    statuses: Vec<Vec<u8>>,
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

    /// The registration of the last [`Action::Register`] is on disk, or cannot be.
    pub fn registered(&mut self, stored: bool, out: &mut Output) {
        let Some(job) = self.job.take() else { return };
        let Job { tag, stage: Stage::Store { version, echoed }, .. } = *job else { return };
        let mut answer = Vec::new();
        match self.push() {
            Some((_, topic)) if stored => {
                let names = echoed.iter().map(Vec::as_slice);
                answer = registration::answer(version, topic, names);
                tagged(&mut answer, &tag, "OK XAPPLEPUSHSERVICE completed");
                out.answered.push((Verb::XApplePushService, Status::Ok));
            }
            _ => {
                out.answered.push((Verb::XApplePushService, Status::No));
                tagged(&mut answer, &tag, "NO [UNAVAILABLE] Registrations cannot be kept just now")
            }
        }
        self.say(answer, out);
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
        Own { push: self.push().is_some(), compress: true }
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

    fn is_question(&self, tag: &[u8]) -> bool {
        self.job.as_ref().is_some_and(|job| !job.question.is_empty() && job.question == tag)
    }

    fn is_asking(&self) -> bool {
        self.job.as_ref().is_some_and(|job| {
            matches!(&job.stage, Stage::Check(check)
                if check.asked.is_some() && check.statuses.len() < MOST_STATUSES)
        })
    }

    /// A whole response that does not simply pass.
    fn take(&mut self, response: Response<'_>, line: &[u8], out: &mut Output) {
        match response {
            Response::Status { tag: Some(tag), status, .. } if self.is_question(tag) => {
                self.question_answered(status == Status::Ok, out);
            }
            Response::MailboxStatus => {
                if let Some(Job { stage: Stage::Check(check), .. }) = self.job.as_deref_mut() {
                    check.statuses.push(line.to_vec());
                }
            }
            _ => {
                if let Response::Status { tag: Some(tag), .. } = response {
                    self.answered(tag);
                }
                let edited = capability::edit_response(line, self.own());
                out.to_client.extend_from_slice(&edited);
            }
        }
    }

    // --- commands of ours ---

    fn start(&mut self, tag: &[u8], verb: Verb, out: &mut Output) {
        self.job = Some(Box::new(Job {
            tag: tag.to_vec(),
            verb,
            question: Vec::new(),
            stage: Stage::Fence,
        }));
        self.ask(b"NOOP", out);
    }

    fn ask(&mut self, command: &[u8], out: &mut Output) {
        let Some(job) = self.job.as_deref_mut() else { return };
        self.questions += 1;
        job.question = format!("{}{}", self.tag_prefix, self.questions).into_bytes();
        out.to_backend.extend_from_slice(&job.question);
        out.to_backend.push(b' ');
        out.to_backend.extend_from_slice(command);
        out.to_backend.extend_from_slice(b"\r\n");
    }

    fn question_answered(&mut self, ok: bool, out: &mut Output) {
        let limit = self.profile.command_size;
        let Some(job) = self.job.as_deref_mut() else { return };
        job.question.clear();
        match &mut job.stage {
            Stage::Fence => job.stage = Stage::Collect(Collector::new(limit)),
            Stage::Check(check) => {
                check.conclude(ok, out);
                self.next_question(out);
            }
            Stage::Collect(_) | Stage::Store { .. } => {}
        }
    }

    /// The client's bytes while a command of ours is under way.
    fn collect(&mut self, input: &[u8], out: &mut Output) -> Step {
        let Some(job) = self.job.as_deref_mut() else { return Step::Wait };
        let Stage::Collect(collector) = &mut job.stage else { return Step::Wait };
        if input.is_empty() {
            return Step::Wait;
        }
        let (used, progress) = collector.push(input);
        match progress {
            Progress::More => {}
            Progress::Continue => self.say(b"+ OK\r\n".to_vec(), out),
            Progress::Refused | Progress::TooLong => {
                out.over.command += 1;
                self.finish(Status::Bad, "BAD Command is too long", out);
            }
            Progress::Whole => {
                let command = collector.take();
                self.received(&command, out);
            }
        }
        Step::Take(used)
    }

    /// A whole command of ours.
    fn received(&mut self, command: &[u8], out: &mut Output) {
        let Some(job) = self.job.as_deref_mut() else { return };
        match job.verb {
            Verb::XApplePushService => {}
            Verb::Login | Verb::Authenticate => {
                return self.finish(Status::Bad, "BAD Already logged in", out);
            }
            Verb::StartTls => return self.finish(Status::Bad, "BAD TLS is active already", out),
            Verb::Compress => return self.compress(command, out),
            _ => return self.finish(Status::Bad, "BAD Command is not available here", out),
        }
        let Some((push, _)) = offered(&self.profile, self.account.as_ref()) else {
            return self.finish(Status::Bad, "BAD XAPPLEPUSHSERVICE is not available here", out);
        };
        let Ok((arguments, _)) = args::tag_and_verb(command) else {
            return self.finish(Status::Bad, "BAD Malformed command", out);
        };
        let request = match registration::parse(arguments) {
            Ok(request) => request,
            Err(why) => {
                return self.finish(Status::Bad, format_args!("BAD XAPPLEPUSHSERVICE: {why}"), out);
            }
        };
        if !push.serves(&request.subtopic) {
            return self.finish(
                Status::No,
                "NO [CANNOT] This mail client is not served with push",
                out,
            );
        }
        if request.mailboxes.len() > push.most_mailboxes {
            let text = format!("NO [LIMIT] At most {} mailboxes", push.most_mailboxes);
            return self.finish(Status::No, text, out);
        }
        job.stage = Stage::Check(Check {
            request,
            next: 0,
            asked: None,
            found: Vec::new(),
            statuses: Vec::new(),
        });
        self.next_question(out);
    }

    /// COMPRESS (RFC 4978), which ends here.
    fn compress(&mut self, command: &[u8], out: &mut Output) {
        let deflate = args::tag_and_verb(command)
            .ok()
            .and_then(|(arguments, _)| args::atom_and_word(arguments))
            .is_some_and(|(name, more)| name.eq_ignore_ascii_case(b"DEFLATE") && more.is_none());
        if !deflate {
            return self.finish(Status::Bad, "BAD COMPRESS knows DEFLATE only", out);
        }
        if self.compressed {
            return self.finish(
                Status::No,
                "NO [COMPRESSIONACTIVE] DEFLATE is active already",
                out,
            );
        }
        self.compressed = true;
        self.finish(Status::Ok, "OK DEFLATE active", out);
        // The OK itself is the last that goes out as it is.
        if self.deferred.is_empty() {
            out.actions.push_back(Action::Compress);
        } else {
            self.compress_behind_deferred = true;
        }
    }

    /// Asks for the next mailbox that has a name one can ask for, or ends the check.
    fn next_question(&mut self, out: &mut Output) {
        let utf8 = self.utf8;
        let Some(Job { stage: Stage::Check(check), .. }) = self.job.as_deref_mut() else { return };
        while let Some(name) = check.name(check.next).map(<[u8]>::to_vec) {
            check.next += 1;
            let (Some(mailbox), Some(quoted)) = (mailbox::decode(&name, utf8), quote(&name)) else {
                continue;
            };
            if check.found.iter().any(|(_, found, _)| *found == mailbox) {
                continue;
            }
            check.asked = Some((name, mailbox));
            let mut command = b"STATUS ".to_vec();
            command.extend_from_slice(&quoted);
            command.push(b' ');
            command.extend_from_slice(STATUS_ITEMS.as_bytes());
            return self.ask(&command, out);
        }
        self.store(out);
    }

    fn store(&mut self, out: &mut Output) {
        let (Some((_, topic)), Some(account)) = (self.push(), self.account.clone()) else { return };
        let topic = topic.to_owned();
        let Some(job) = self.job.as_deref_mut() else { return };
        let Stage::Check(check) = std::mem::replace(&mut job.stage, Stage::Fence) else { return };
        let request = check.request;
        let version = request.version;
        let device = Device {
            account,
            account_id: request.account_id,
            token: request.token,
            subtopic: request.subtopic,
            version,
            topic,
        };
        let mut echoed = Vec::new();
        let mut mailboxes = Vec::new();
        for (name, mailbox, snapshot) in check.found {
            echoed.push(name);
            mailboxes.push((mailbox, snapshot));
        }
        job.stage = Stage::Store { version, echoed };
        out.actions.push_back(Action::Register(Registration { device, mailboxes }));
    }

    /// Answers a command of ours; `text` begins with `status`.
    fn finish(&mut self, status: Status, text: impl fmt::Display, out: &mut Output) {
        let Some(job) = self.job.take() else { return };
        let mut answer = Vec::new();
        tagged(&mut answer, &job.tag, text);
        out.answered.push((job.verb, status));
        self.say(answer, out);
    }

    /// To the client, but not into the middle of a response that is on its way.
    fn say(&mut self, bytes: Vec<u8>, out: &mut Output) {
        if self.at_response_boundary() && self.deferred.is_empty() {
            out.to_client.extend_from_slice(&bytes);
        } else {
            self.deferred.extend_from_slice(&bytes);
        }
    }
}

impl Check {
    /// The nth name to look at; with version 1 there is INBOX only.
    fn name(&self, index: usize) -> Option<&[u8]> {
        if self.request.version == 1 {
            return (index == 0).then_some(Mailbox::INBOX.as_bytes());
        }
        self.request.mailboxes.get(index).map(Vec::as_slice)
    }

    /// Our STATUS was answered: one of the responses since is the answer, the others are the
    /// client's (NOTIFY sends them unasked).
    fn conclude(&mut self, ok: bool, out: &mut Output) {
        let Some((name, mailbox)) = self.asked.take() else { return };
        let mut statuses = std::mem::take(&mut self.statuses);
        if ok && !statuses.is_empty() {
            let names_it = |line: &Vec<u8>| {
                mailbox_status(line).is_some_and(|(told, _)| {
                    *told == *name || (mailbox.is_inbox() && told.eq_ignore_ascii_case(b"INBOX"))
                })
            };
            let answer = statuses.iter().rposition(names_it).unwrap_or(statuses.len() - 1);
            let answer = statuses.remove(answer);
            if let Some((_, snapshot)) = mailbox_status(&answer) {
                self.found.push((name, mailbox, snapshot));
            }
        }
        for status in statuses {
            out.to_client.extend_from_slice(&status);
        }
    }
}

// === impl At ===

enum LineEnd {
    /// The input ended first.
    None,
    Plain,
    Announces(Announcement),
}

impl At {
    fn line(literals: bool) -> Self {
        Self::Line { tail: Tail::default(), literals }
    }

    fn literal(length: u64) -> Self {
        if length == 0 { Self::line(true) } else { Self::Literal(length) }
    }

    /// Follows the stream to the end of this literal or line; returns the bytes it has there. After
    /// a line without announcement the stream is at a line start.
    fn follow(&mut self, input: &[u8]) -> (usize, LineEnd) {
        match self {
            Self::LineStart => (0, LineEnd::None),
            Self::Literal(left) => {
                let length = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *self = Self::literal(*left - length as u64);
                (length, LineEnd::None)
            }
            Self::Line { tail, literals } => {
                let Some(feed) = memchr(b'\n', input) else {
                    tail.push(input);
                    return (input.len(), LineEnd::None);
                };
                let announced = tail.announcement(&input[..feed]).filter(|_| *literals);
                *self = Self::LineStart;
                (feed + 1, announced.map_or(LineEnd::Plain, LineEnd::Announces))
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
