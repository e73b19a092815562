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

mod mailbox_check;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use self::mailbox_check::{MailboxCheck, names_size};
use super::wires::Wires;
use crate::imap::args;
use crate::imap::capability::{Own, XAPPLEPUSHSERVICE};
use crate::imap::collect::{Collector, Progress};
use crate::imap::contract::{Action, Awaited, Profile, PushOffer, Step, tagged};
use crate::imap::peek::{Status, Verb};
use crate::imap::registration::xapple::{
    self, CheckedRegistration, RegistrationReply, XAppleRegistration,
};
use crate::model::{Account, Mailbox, RegistrationResult};

/// Most registrations of a session that are written while its client goes on.
const MOST_DETACHED: usize = 8;

const UNANSWERED: &str = "NO [UNAVAILABLE] The mail server does not answer, try again later";

/// The commands of one session that mailchime answers itself.
#[derive(Debug)]
pub(super) struct Intercept {
    profile: Arc<Profile>,
    /// `None` when there is no saying who it is, or no way to watch for them: then there is no push
    /// either.
    account: Option<Account>,
    /// Starts each tag of ours; no client could have made it up.
    tag_prefix: String,
    questions: u32,
    /// The one that is under way.
    command: Option<Box<Intercepted>>,
    /// Registrations that are being written while the client goes on, in their order.
    detached: VecDeque<DetachedRegistration>,
    /// Names of mailboxes are UTF-8.
    pub(super) utf8: bool,
    /// The client's connection is compressed.
    compressed: bool,
    /// There is no memory to spare: COMPRESS is refused.
    pub(super) scarce: bool,
    /// Mailboxes for which the backend is not asked.
    pub(super) unasked: Vec<Mailbox>,
}

/// A command of the client that mailchime answers.
#[derive(Debug)]
struct Intercepted {
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
    Check(Box<XAppleRegistration>, MailboxCheck),
    /// The caller writes the registration.
    Store(RegistrationReply),
}

/// A registration that the caller writes while the client goes on.
#[derive(Debug)]
struct DetachedRegistration {
    tag: Vec<u8>,
    reply: RegistrationReply,
}

/// Whether the backend does not get this command after login.
pub(super) fn is_intercepted(verb: Verb) -> bool {
    matches!(
        verb,
        Verb::Register
            | Verb::Login
            | Verb::Authenticate
            | Verb::StartTls
            | Verb::Unauthenticate
            | Verb::Compress
    )
}

impl Intercept {
    pub(super) fn new(profile: Arc<Profile>, account: Option<Account>, tag_prefix: String) -> Self {
        Self {
            profile,
            account,
            tag_prefix,
            questions: 0,
            command: None,
            detached: VecDeque::new(),
            utf8: false,
            compressed: false,
            scarce: false,
            unasked: Vec::new(),
        }
    }

    /// Goes by another profile from now on. The route for this user's devices then; `None` if they
    /// are offered no push.
    pub(super) fn renewed(&mut self, profile: Arc<Profile>) -> Option<&str> {
        self.profile = profile;
        self.push().map(|(_, route)| route)
    }

    pub(super) fn profile(&self) -> &Profile {
        &self.profile
    }

    /// What mailchime adds to capability lists.
    pub(super) fn own(&self) -> Own {
        Own { push: self.push().is_some(), compress: self.profile.compress }
    }

    /// What is offered to this user, and the route for devices of theirs.
    fn push(&self) -> Option<(&PushOffer, &str)> {
        offered(&self.profile, self.account.as_ref())
    }

    /// Memory that is held, in bytes, about.
    pub(super) fn held(&self) -> usize {
        let detached: usize = self.detached.iter().map(DetachedRegistration::held).sum();
        self.command.as_ref().map_or(0, |command| command.held()) + detached
    }

    /// Whether a command is under way: the client's bytes are for [`Intercept::collect`].
    pub(super) fn is_at_work(&self) -> bool {
        self.command.is_some()
    }

    /// Whether a command is not answered yet.
    pub(super) fn is_busy(&self) -> bool {
        self.command.is_some() || !self.detached.is_empty()
    }

    /// Whether a tag may be that of a question of ours.
    pub(super) fn may_have_asked(&self, tag: &[u8]) -> bool {
        tag.starts_with(self.tag_prefix.as_bytes())
    }

    /// The word that holds up the client; `turn`: it is for the client's own commands.
    pub(super) fn awaited(&self, turn: bool) -> Option<Awaited> {
        let command = self.command.as_ref()?;
        if let InterceptStage::Store(_) = command.stage {
            return Some(Awaited::Stored(self.questions));
        }
        let answer = || if turn { Awaited::Turn } else { Awaited::Answer(self.questions) };
        command.awaits().then(answer)
    }

    /// What [`Intercept::awaited`] named is not waited for any longer.
    pub(super) fn overdue(&mut self, wires: &mut Wires<'_>) {
        match self.command.as_ref().map(|command| &command.stage) {
            Some(InterceptStage::Store(_)) => self.detach_registration(),
            _ => self.give_up(wires),
        }
    }

    /// The registration of the first [`Action::Register`] without an answer is on disk, or cannot be.
    pub(super) fn registered(&mut self, result: RegistrationResult, wires: &mut Wires<'_>) {
        if self.detached.is_empty() {
            self.detach_registration();
        }
        let Some(DetachedRegistration { tag, reply }) = self.detached.pop_front() else { return };
        if self.detached.is_empty() {
            self.detached = VecDeque::new();
        }
        let mut answer = Vec::new();
        let refusal = match result {
            RegistrationResult::Stored { route } => {
                answer = reply.answer(&route);
                tagged(&mut answer, &tag, format_args!("OK {XAPPLEPUSHSERVICE} completed"));
                wires.out.answered.push((Verb::Register, Status::Ok));
                return wires.say(&answer);
            }
            RegistrationResult::TooMany => "NO [LIMIT] Too many registrations of this account",
            RegistrationResult::DomainFull => {
                "NO [LIMIT] No more devices of this domain can register"
            }
            RegistrationResult::BackendFull => {
                "NO [LIMIT] No more devices of this mail server can register"
            }
            RegistrationResult::Unavailable => {
                "NO [UNAVAILABLE] Registrations cannot be kept just now"
            }
        };
        tagged(&mut answer, &tag, refusal);
        wires.out.answered.push((Verb::Register, Status::No));
        wires.say(&answer);
    }

    /// The client goes on while its registration is written.
    pub(super) fn detach_registration(&mut self) {
        match self.command.take().map(|intercepted| *intercepted) {
            Some(Intercepted { tag, stage: InterceptStage::Store(reply), .. }) => {
                self.detached.push_back(DetachedRegistration { tag, reply });
            }
            other => self.command = other.map(Box::new),
        }
    }

    /// A STATUS response that may be the answer to a question of ours.
    pub(super) fn keep(&mut self, response: &[u8]) {
        if let Some(Intercepted { stage: InterceptStage::Check(_, check), .. }) =
            self.command.as_deref_mut()
        {
            check.keep(response);
        }
    }

    /// The mailbox that the backend is asked for.
    pub(super) fn asked(&self) -> Option<&Mailbox> {
        match &self.command.as_ref()?.stage {
            InterceptStage::Check(_, check) => check.asked(),
            InterceptStage::Fence | InterceptStage::Collect(_) | InterceptStage::Store(_) => None,
        }
    }

    /// Whether a STATUS response may be the answer to a question of ours.
    pub(super) fn takes_statuses(&self) -> bool {
        let stage = self.command.as_ref().map(|command| &command.stage);
        matches!(stage, Some(InterceptStage::Check(_, check)) if check.takes_statuses())
    }

    pub(super) fn start(&mut self, tag: &[u8], verb: Verb, wires: &mut Wires<'_>) {
        self.command = Some(Box::new(Intercepted {
            tag: tag.to_vec(),
            verb,
            question: Vec::new(),
            late: false,
            stage: InterceptStage::Fence,
        }));
        self.ask(b"NOOP", wires);
    }

    fn ask(&mut self, command: &[u8], wires: &mut Wires<'_>) {
        let Some(intercepted) = self.command.as_deref_mut() else { return };
        self.questions += 1;
        intercepted.question = format!("{}{}", self.tag_prefix, self.questions).into_bytes();
        wires.ask(&intercepted.question, command);
    }

    /// The question under this tag is answered, with a `refusal` or OK; without a tag it is the one that
    /// is awaited.
    pub(super) fn question_answered(
        &mut self,
        tag: Option<&[u8]>,
        refusal: Option<&[u8]>,
        wires: &mut Wires<'_>,
    ) {
        let limit = self.profile.command_size;
        let Some(intercepted) = self.command.as_deref_mut() else { return };
        // It may be one that is not waited for any more.
        if !intercepted.awaits() || tag.is_some_and(|tag| tag != intercepted.question) {
            return;
        }
        intercepted.question.clear();
        match &mut intercepted.stage {
            InterceptStage::Fence => {
                intercepted.stage = InterceptStage::Collect(Collector::new(limit))
            }
            InterceptStage::Check(_, check) => {
                check.conclude(refusal, wires.selection, wires.out);
                self.next_question(wires);
            }
            InterceptStage::Collect(_) | InterceptStage::Store(_) => {}
        }
    }

    /// The question that is awaited is not answered in time.
    pub(super) fn give_up(&mut self, wires: &mut Wires<'_>) {
        let limit = self.profile.command_size;
        let Some(intercepted) =
            self.command.as_deref_mut().filter(|intercepted| intercepted.awaits())
        else {
            return;
        };
        wires.pending.give_up();
        intercepted.question.clear();
        intercepted.late = true;
        match &mut intercepted.stage {
            // The command is still to be read, to its end.
            InterceptStage::Fence => {
                intercepted.stage = InterceptStage::Collect(Collector::new(limit))
            }
            InterceptStage::Check(_, check) => {
                let statuses = check.give_up();
                wires.say(&statuses);
                self.next_question(wires);
            }
            InterceptStage::Collect(_) | InterceptStage::Store(_) => {}
        }
    }

    /// The client's bytes while a command of ours is under way.
    pub(super) fn collect(&mut self, input: &[u8], wires: &mut Wires<'_>) -> Step {
        let Some(intercepted) = self.command.as_deref_mut() else { return Step::Wait };
        let InterceptStage::Collect(collector) = &mut intercepted.stage else { return Step::Wait };
        if input.is_empty() {
            return Step::Wait;
        }
        let (used, progress) = collector.push(input);
        match progress {
            Progress::More => {}
            Progress::Continue | Progress::Whole if intercepted.late => {
                self.finish(Status::No, UNANSWERED, wires);
            }
            Progress::Continue => wires.say(b"+ OK\r\n"),
            Progress::Refused | Progress::TooLong => {
                wires.out.over.command += 1;
                self.finish(Status::Bad, "BAD Command is too long", wires);
            }
            Progress::Whole => {
                let command = collector.take();
                self.received(&command, wires);
            }
        }
        Step::Take(used)
    }

    /// A whole command of ours.
    fn received(&mut self, command: &[u8], wires: &mut Wires<'_>) {
        let Some(intercepted) = self.command.as_deref_mut() else { return };
        match intercepted.verb {
            Verb::Register => {}
            Verb::Login | Verb::Authenticate => {
                return self.finish(Status::Bad, "BAD Already logged in", wires);
            }
            Verb::StartTls => return self.finish(Status::Bad, "BAD TLS is active already", wires),
            Verb::Compress => return self.compress(command, wires),
            _ => return self.finish(Status::Bad, "BAD Command is not available here", wires),
        }
        let Some((push, _)) = offered(&self.profile, self.account.as_ref()) else {
            let text = format_args!("BAD {XAPPLEPUSHSERVICE} is not available here");
            return self.finish(Status::Bad, text, wires);
        };
        let Ok((arguments, _)) = args::tag_and_verb(command) else {
            return self.finish(Status::Bad, "BAD Malformed command", wires);
        };
        let mut request = match xapple::parse(arguments) {
            Ok(request) => request,
            Err(why) => {
                let text = format_args!("BAD {XAPPLEPUSHSERVICE}: {why}");
                return self.finish(Status::Bad, text, wires);
            }
        };
        if !push.serves(request.app()) {
            return self.finish(
                Status::No,
                "NO [CANNOT] This mail client is not served with push",
                wires,
            );
        }
        let (check, left_out) =
            MailboxCheck::new(request.take_names(), push.most_mailboxes, self.utf8);
        wires.out.over.mailboxes += u32::try_from(left_out).unwrap_or(u32::MAX);
        intercepted.stage = InterceptStage::Check(Box::new(request), check);
        self.next_question(wires);
    }

    /// COMPRESS (RFC 4978), which ends here.
    fn compress(&mut self, command: &[u8], wires: &mut Wires<'_>) {
        if !self.profile.compress {
            return self.finish(Status::No, "NO COMPRESS is switched off", wires);
        }
        let deflate = args::tag_and_verb(command)
            .ok()
            .and_then(|(arguments, _)| args::atom_and_word(arguments))
            .is_some_and(|(name, more)| name.eq_ignore_ascii_case(b"DEFLATE") && more.is_none());
        if !deflate {
            return self.finish(Status::Bad, "BAD COMPRESS knows DEFLATE only", wires);
        }
        if !self.detached.is_empty() {
            let text = "NO [INUSE] A registration is being written, try again";
            return self.finish(Status::No, text, wires);
        }
        if self.compressed {
            return self.finish(
                Status::No,
                "NO [COMPRESSIONACTIVE] DEFLATE is active already",
                wires,
            );
        }
        if self.scarce {
            let text = "NO [LIMIT] There is no memory for compression just now";
            return self.finish(Status::No, text, wires);
        }
        self.compressed = true;
        self.finish(Status::Ok, "OK DEFLATE active", wires);
        // The OK itself is the last that goes out as it is.
        wires.compress();
    }

    /// Asks for the next mailbox, or ends the check.
    fn next_question(&mut self, wires: &mut Wires<'_>) {
        let Some(Intercepted { stage: InterceptStage::Check(_, check), .. }) =
            self.command.as_deref_mut()
        else {
            return;
        };
        match check.next_question(&self.unasked, self.utf8) {
            Some(question) => self.ask(&question, wires),
            None => self.store(wires),
        }
    }

    fn store(&mut self, wires: &mut Wires<'_>) {
        let Some(account) = self.account.clone() else { return };
        if self.detached.len() >= MOST_DETACHED {
            return self.finish(Status::No, "NO [LIMIT] Too many registrations at once", wires);
        }
        let Some(intercepted) = self.command.as_deref_mut() else { return };
        let InterceptStage::Check(request, check) =
            std::mem::replace(&mut intercepted.stage, InterceptStage::Fence)
        else {
            return;
        };
        let (names, mailboxes) = check.into_found();
        intercepted.stage = InterceptStage::Store(request.reply(names));
        let checked = CheckedRegistration { account, request: *request, mailboxes };
        wires.out.actions.push_back(Action::Register(checked));
        // It waits for those before it.
        if !self.detached.is_empty() {
            self.detach_registration();
        }
    }

    /// Answers a command of ours; `text` begins with `status`.
    fn finish(&mut self, status: Status, text: impl fmt::Display, wires: &mut Wires<'_>) {
        let Some(intercepted) = self.command.take() else { return };
        let mut answer = Vec::new();
        tagged(&mut answer, &intercepted.tag, text);
        wires.out.answered.push((intercepted.verb, status));
        wires.say(&answer);
    }
}

/// What is offered to the user of this account, and the route for devices of theirs.
fn offered<'a>(
    profile: &'a Profile,
    account: Option<&'a Account>,
) -> Option<(&'a PushOffer, &'a str)> {
    let offer = profile.push.as_ref()?;
    Some((offer, offer.route(account?)?))
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
            InterceptStage::Check(_, check) => check.held(),
            InterceptStage::Store(reply) => names_size(reply.names()),
        }
    }
}

impl DetachedRegistration {
    /// Memory of it.
    pub(super) fn held(&self) -> usize {
        self.tag.len() + names_size(self.reply.names())
    }
}
