//! The commands that mailchime answers itself after login.
//!
//! ```text
//!   Fence (a NOOP of our own) ──▶ Collect ──▶ Check (STATUS, mailbox by mailbox) ──▶ Store ──▶ answer
//! ```
//!
//! Each mailbox stands for itself. One that is refused for now, or not answered in time, is registered
//! with an unknown state: the watcher asks for it as the same user. INBOX always is.
//!
//! The client's direction is held meanwhile, but for the database, of which its other commands need nothing:
//! where that takes long, they go on, and the answer comes when it comes. The directions themselves are the
//! [relay](super)'s matter.

use std::collections::{HashSet, VecDeque};
use std::fmt;

use super::pending_replies::ReplyTo;
use super::{Relay, STATUS_ITEMS, offered};
use crate::imap::args::{self, quote};
use crate::imap::collect::{Collector, Progress};
use crate::imap::contract::tagged;
use crate::imap::contract::{Action, Output, RegistrationResult, Step};
use crate::imap::mailbox;
use crate::imap::peek::{Status, Verb};
use crate::imap::registration::xapple::{self, XAppleRegistration};
use crate::imap::status::mailbox_status;
use crate::model::{Mailbox, Registration, Snapshot};

/// Most STATUS responses that are looked at for one question, and most bytes of them but for the last.
const MOST_STATUSES: usize = 64;
const MOST_STATUSES_SIZE: usize = 16 * 1024;

/// Most registrations of a session that are written while its client goes on.
const MOST_DETACHED: usize = 8;

const UNANSWERED: &str = "NO [UNAVAILABLE] The mail server does not answer, try again later";

/// A command of the client that mailchime answers.
#[derive(Debug)]
pub(super) struct Intercepted {
    tag: Vec<u8>,
    verb: Verb,
    /// Our tag that is awaited, if one is.
    question: Vec<u8>,
    /// The backend did not answer in time: it is asked no more.
    late: bool,
    stage: InterceptStage,
}

#[derive(Debug)]
enum InterceptStage {
    Fence,
    Collect(Collector),
    Check(MailboxCheck),
    /// The caller writes the registration.
    Store(RegistrationReply),
}

/// What the client gets for a registration that is on disk.
#[derive(Debug)]
struct RegistrationReply {
    version: u8,
    names: Vec<Vec<u8>>,
}

/// A registration that the caller writes while the client goes on.
#[derive(Debug)]
pub(super) struct DetachedRegistration {
    tag: Vec<u8>,
    reply: RegistrationReply,
}

/// Which of the mailboxes asked for can this user read?
#[derive(Debug)]
struct MailboxCheck {
    request: XAppleRegistration,
    /// Memory that the names take.
    names_size: usize,
    /// Index of the next name to look at.
    next: usize,
    asked: Option<(Vec<u8>, Mailbox)>,
    /// The backend did not answer in time.
    gave_up: bool,
    found: Vec<(Vec<u8>, Mailbox, Snapshot)>,
    /// Those that were asked for.
    known: HashSet<Mailbox>,
    /// STATUS responses since the question was put, and their size.
    statuses: Vec<Vec<u8>>,
    statuses_size: usize,
}

impl Relay {
    /// The registration of the first [`Action::Register`] without an answer is on disk, or cannot be.
    pub fn registered(&mut self, result: RegistrationResult, out: &mut Output) {
        if self.detached.is_empty() {
            self.detach_registration();
        }
        let Some(DetachedRegistration { tag, reply: RegistrationReply { version, names } }) =
            self.detached.pop_front()
        else {
            return;
        };
        if self.detached.is_empty() {
            self.detached = VecDeque::new();
        }
        let mut answer = Vec::new();
        match self.push() {
            Some((_, topic)) if result == RegistrationResult::Stored => {
                let names = names.iter().map(Vec::as_slice);
                answer = xapple::answer(version, topic, names);
                tagged(&mut answer, &tag, "OK XAPPLEPUSHSERVICE completed");
                out.answered.push((Verb::XApplePushService, Status::Ok));
            }
            _ => {
                out.answered.push((Verb::XApplePushService, Status::No));
                tagged(
                    &mut answer,
                    &tag,
                    match result {
                        RegistrationResult::TooMany => {
                            "NO [LIMIT] Too many registrations of this account"
                        }
                        RegistrationResult::DomainFull => {
                            "NO [LIMIT] No more devices of this domain can register"
                        }
                        RegistrationResult::BackendFull => {
                            "NO [LIMIT] No more devices of this mail server can register"
                        }
                        _ => "NO [UNAVAILABLE] Registrations cannot be kept just now",
                    },
                );
            }
        }
        self.say(answer, out);
    }

    /// The client goes on while its registration is written.
    pub(super) fn detach_registration(&mut self) {
        match self.intercepted.take().map(|intercepted| *intercepted) {
            Some(Intercepted { tag, stage: InterceptStage::Store(reply), .. }) => {
                self.detached.push_back(DetachedRegistration { tag, reply });
            }
            other => self.intercepted = other.map(Box::new),
        }
    }

    /// Whether a response may be the answer to a question of ours.
    pub(super) fn is_asking(&self) -> bool {
        self.intercepted.as_ref().is_some_and(|intercepted| {
            matches!(&intercepted.stage, InterceptStage::Check(check)
                if check.asked.is_some()
                    && check.statuses.len() < MOST_STATUSES
                    && check.statuses_size < MOST_STATUSES_SIZE)
        })
    }

    /// The mailbox that the backend is asked for.
    pub fn asked(&self) -> Option<&Mailbox> {
        match &self.intercepted.as_ref()?.stage {
            InterceptStage::Check(check) => check.asked.as_ref().map(|(_, mailbox)| mailbox),
            InterceptStage::Fence | InterceptStage::Collect(_) | InterceptStage::Store(_) => None,
        }
    }

    /// A response that may be the answer to a question of ours.
    pub(super) fn keep(&mut self, response: &[u8]) {
        if let Some(Intercepted { stage: InterceptStage::Check(check), .. }) =
            self.intercepted.as_deref_mut()
        {
            check.statuses_size += response.len();
            check.statuses.push(response.to_vec());
        }
    }

    pub(super) fn start(&mut self, tag: &[u8], verb: Verb, out: &mut Output) {
        self.intercepted = Some(Box::new(Intercepted {
            tag: tag.to_vec(),
            verb,
            question: Vec::new(),
            late: false,
            stage: InterceptStage::Fence,
        }));
        self.ask(b"NOOP", out);
    }

    fn ask(&mut self, command: &[u8], out: &mut Output) {
        let Some(intercepted) = self.intercepted.as_deref_mut() else { return };
        self.questions += 1;
        intercepted.question = format!("{}{}", self.tag_prefix, self.questions).into_bytes();
        self.pending.begin(&intercepted.question, ReplyTo::Question);
        out.to_backend.extend_from_slice(&intercepted.question);
        out.to_backend.push(b' ');
        out.to_backend.extend_from_slice(command);
        out.to_backend.extend_from_slice(b"\r\n");
    }

    /// The question under this tag is answered, with a `refusal` or OK; without a tag it is the one that
    /// is awaited.
    pub(super) fn question_answered(
        &mut self,
        tag: Option<&[u8]>,
        refusal: Option<&[u8]>,
        out: &mut Output,
    ) {
        let limit = self.profile.command_size;
        let Some(intercepted) = self.intercepted.as_deref_mut() else { return };
        // It may be one that is not waited for any more.
        if !intercepted.awaits() || tag.is_some_and(|tag| tag != intercepted.question) {
            return;
        }
        intercepted.question.clear();
        match &mut intercepted.stage {
            InterceptStage::Fence => {
                intercepted.stage = InterceptStage::Collect(Collector::new(limit))
            }
            InterceptStage::Check(check) => {
                check.conclude(refusal, out);
                self.next_question(out);
            }
            InterceptStage::Collect(_) | InterceptStage::Store(_) => {}
        }
    }

    /// The question that is awaited is not answered in time.
    pub(super) fn give_up(&mut self, out: &mut Output) {
        let limit = self.profile.command_size;
        let Some(intercepted) =
            self.intercepted.as_deref_mut().filter(|intercepted| intercepted.awaits())
        else {
            return;
        };
        self.pending.give_up();
        intercepted.question.clear();
        intercepted.late = true;
        match &mut intercepted.stage {
            // The command is still to be read, to its end.
            InterceptStage::Fence => {
                intercepted.stage = InterceptStage::Collect(Collector::new(limit))
            }
            InterceptStage::Check(check) => {
                let statuses = std::mem::take(&mut check.statuses).concat();
                // The backend is at work on this one, and is not asked for those behind it.
                check.found.extend(check.asked.take().map(unknown));
                check.gave_up = true;
                self.say(statuses, out);
                self.next_question(out);
            }
            InterceptStage::Collect(_) | InterceptStage::Store(_) => {}
        }
    }

    /// The client's bytes while a command of ours is under way.
    pub(super) fn collect(&mut self, input: &[u8], out: &mut Output) -> Step {
        let Some(intercepted) = self.intercepted.as_deref_mut() else { return Step::Wait };
        let InterceptStage::Collect(collector) = &mut intercepted.stage else { return Step::Wait };
        if input.is_empty() {
            return Step::Wait;
        }
        let (used, progress) = collector.push(input);
        match progress {
            Progress::More => {}
            Progress::Continue | Progress::Whole if intercepted.late => {
                self.finish(Status::No, UNANSWERED, out);
            }
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
        let Some(intercepted) = self.intercepted.as_deref_mut() else { return };
        match intercepted.verb {
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
        let mut request = match xapple::parse(arguments) {
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
        // A phone that gets a NO comes back in a day; one that gets less can use that.
        let left_out = keep_first(&mut request.mailboxes, push.most_mailboxes, self.utf8);
        out.over.mailboxes += u32::try_from(left_out).unwrap_or(u32::MAX);
        intercepted.stage = InterceptStage::Check(MailboxCheck {
            names_size: names_size(&request.mailboxes),
            request,
            next: 0,
            asked: None,
            gave_up: false,
            found: Vec::new(),
            known: HashSet::new(),
            statuses: Vec::new(),
            statuses_size: 0,
        });
        self.next_question(out);
    }

    /// COMPRESS (RFC 4978), which ends here.
    fn compress(&mut self, command: &[u8], out: &mut Output) {
        if !self.profile.compress {
            return self.finish(Status::No, "NO COMPRESS is switched off", out);
        }
        let deflate = args::tag_and_verb(command)
            .ok()
            .and_then(|(arguments, _)| args::atom_and_word(arguments))
            .is_some_and(|(name, more)| name.eq_ignore_ascii_case(b"DEFLATE") && more.is_none());
        if !deflate {
            return self.finish(Status::Bad, "BAD COMPRESS knows DEFLATE only", out);
        }
        if !self.detached.is_empty() {
            let text = "NO [INUSE] A registration is being written, try again";
            return self.finish(Status::No, text, out);
        }
        if self.compressed {
            return self.finish(
                Status::No,
                "NO [COMPRESSIONACTIVE] DEFLATE is active already",
                out,
            );
        }
        if self.scarce {
            let text = "NO [LIMIT] There is no memory for compression just now";
            return self.finish(Status::No, text, out);
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
        let Some(Intercepted { stage: InterceptStage::Check(check), .. }) =
            self.intercepted.as_deref_mut()
        else {
            return;
        };
        while let Some(name) = check.name(check.next).map(<[u8]>::to_vec) {
            check.next += 1;
            let (Some(mailbox), Some(quoted)) = (mailbox::decode(&name, utf8), quote(&name)) else {
                continue;
            };
            if !check.known.insert(mailbox.clone()) {
                continue;
            }
            if check.gave_up || self.unasked.contains(&mailbox) {
                check.found.push(unknown((name, mailbox)));
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
        if self.detached.len() >= MOST_DETACHED {
            return self.finish(Status::No, "NO [LIMIT] Too many registrations at once", out);
        }
        let Some(intercepted) = self.intercepted.as_deref_mut() else { return };
        let InterceptStage::Check(check) =
            std::mem::replace(&mut intercepted.stage, InterceptStage::Fence)
        else {
            return;
        };
        let request = check.request;
        let version = request.version;
        let subscription = request.subscription(account, &topic);
        let mut names = Vec::new();
        let mut mailboxes = Vec::new();
        for (name, mailbox, snapshot) in check.found {
            names.push(name);
            mailboxes.push((mailbox, snapshot));
        }
        intercepted.stage = InterceptStage::Store(RegistrationReply { version, names });
        out.actions.push_back(Action::Register(Registration { subscription, mailboxes }));
        // It waits for those before it.
        if !self.detached.is_empty() {
            self.detach_registration();
        }
    }

    /// Answers a command of ours; `text` begins with `status`.
    fn finish(&mut self, status: Status, text: impl fmt::Display, out: &mut Output) {
        let Some(intercepted) = self.intercepted.take() else { return };
        let mut answer = Vec::new();
        tagged(&mut answer, &intercepted.tag, text);
        out.answered.push((intercepted.verb, status));
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

/// Leaves the first `most` of these names, each of another mailbox, with INBOX in the last place if it is
/// none of them but comes behind them. Returns how many mailboxes are left out.
fn keep_first(names: &mut Vec<Vec<u8>>, most: usize, utf8: bool) -> usize {
    let (mut known, mut kept, mut has_inbox, mut left_out) = (HashSet::new(), Vec::new(), false, 0);
    for name in std::mem::take(names) {
        let mailbox = mailbox::decode(&name, utf8).filter(|_| quote(&name).is_some());
        let Some(mailbox) = mailbox.filter(|mailbox| !known.contains(mailbox)) else { continue };
        let is_inbox = mailbox.is_inbox();
        if kept.len() < most {
            has_inbox |= is_inbox;
            kept.push(name);
        } else {
            left_out += 1;
            if is_inbox && !has_inbox {
                kept.pop();
                kept.push(name);
                has_inbox = true;
            }
        }
        known.insert(mailbox);
    }
    *names = kept;
    left_out
}

/// Memory that these take, about.
fn names_size(names: &[Vec<u8>]) -> usize {
    names.iter().map(|name| name.len() + 64).sum()
}

impl Intercepted {
    /// Whether a question is asked and not answered.
    pub(super) fn awaits(&self) -> bool {
        !self.question.is_empty()
    }

    /// Memory of the command, and of what is asked for it.
    pub(super) fn held(&self) -> usize {
        match &self.stage {
            InterceptStage::Fence => 0,
            InterceptStage::Collect(collector) => collector.held(),
            InterceptStage::Check(check) => {
                // A name is held as it was written, as a mailbox, and where it was found.
                2 * check.names_size + check.statuses_size
            }
            InterceptStage::Store(reply) => names_size(&reply.names),
        }
    }

    /// Whether the caller writes a registration.
    pub(super) fn is_being_stored(&self) -> bool {
        matches!(self.stage, InterceptStage::Store(_))
    }
}

impl DetachedRegistration {
    /// Memory of it.
    pub(super) fn held(&self) -> usize {
        self.tag.len() + names_size(&self.reply.names)
    }
}

impl MailboxCheck {
    /// The nth name to look at; with version 1 there is INBOX only.
    fn name(&self, index: usize) -> Option<&[u8]> {
        if self.request.version == 1 {
            return (index == 0).then_some(Mailbox::INBOX.as_bytes());
        }
        self.request.mailboxes.get(index).map(Vec::as_slice)
    }

    /// Our question was answered: one of the responses since is the answer, the others are the client's
    /// (NOTIFY sends them unasked).
    fn conclude(&mut self, refusal: Option<&[u8]>, out: &mut Output) {
        let Some(asked) = self.asked.take() else { return };
        let (name, mailbox) = &asked;
        let mut responses = std::mem::take(&mut self.statuses);
        self.statuses_size = 0;
        let names_it = |told: &[u8]| {
            *told == **name || (mailbox.is_inbox() && told.eq_ignore_ascii_case(b"INBOX"))
        };
        let answer = match refusal {
            Some(_) => None,
            None => {
                let named =
                    |line: &Vec<u8>| mailbox_status(line).is_some_and(|(told, _)| names_it(&told));
                responses.iter().rposition(named).or(responses.len().checked_sub(1))
            }
        };
        let answer = answer.map(|answer| responses.remove(answer));
        for response in responses {
            out.to_client.extend_from_slice(&response);
        }
        match (answer, refusal) {
            (Some(status), _) if let Some((_, state)) = mailbox_status(&status) => {
                let (name, mailbox) = asked;
                self.found.push((name, mailbox, state));
            }
            // There is always one.
            _ if mailbox.is_inbox() => self.found.push(unknown(asked)),
            (_, Some(refusal)) if xapple::is_unreadable_for_now(refusal) => {
                self.found.push(unknown(asked));
            }
            _ => {}
        }
    }
}

/// A mailbox that is registered although its state is not known.
fn unknown((name, mailbox): (Vec<u8>, Mailbox)) -> (Vec<u8>, Mailbox, Snapshot) {
    (name, mailbox, Snapshot::default())
}
