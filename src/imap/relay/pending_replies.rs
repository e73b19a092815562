//! What the backend owes, in the order in which it was asked for it.
//!
//! ```text
//!   a LIST "" *     a tagged answer
//!   b IDLE          a go-ahead, then a tagged answer
//!   DONE            (is b's)
//!   hello           BAD or nothing: it is no command
//!   mc7x1 NOOP      a tagged answer that is ours
//!   c APPEND x {5}  a go-ahead, then a tagged answer: always the last, as nothing passes behind it
//! ```
//!
//! Tagged answers name their command and may come in any order. The others do not, and count in order:
//! a go-ahead is that of the first IDLE that has had none, and only then that of the literal; an
//! untagged BAD, with which a backend refuses what it cannot tell the tag of (RFC 9051 section 7.1.3),
//! is that of the first that has no answer.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher};

/// Most answers that are kept in mind. Of the oldest beyond them only the number is.
const MOST: usize = 256;

/// What is pending; holds no memory while nothing is.
#[derive(Debug, Default)]
pub(super) struct PendingReplies {
    replies: VecDeque<PendingReply>,
    /// Answers to older commands that are not kept in mind.
    older: u32,
}

#[derive(Clone, Copy, Debug)]
struct PendingReply {
    /// A digest of the tag: a client that finds two of one digest confuses only itself.
    tag: u64,
    to: ReplyTo,
}

/// What an answer is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplyTo {
    Command,
    /// The client's last command, refused without a tag, which takes it as said if it goes on.
    Refused,
    Idle {
        /// It has had its go-ahead.
        started: bool,
        /// The client has said DONE.
        done: bool,
    },
    /// A line that is no command.
    Stray,
    /// A question of mailchime's own.
    Question,
    /// One that is not waited for any more.
    Late,
}

/// Whose answer it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplyOwner {
    /// That of the client's last command.
    Last,
    Question,
    /// That of an earlier command, or of none that is known.
    Another,
}

impl ReplyTo {
    pub(super) const IDLE: Self = Self::Idle { started: false, done: false };

    /// Whether an untagged BAD may be the answer to it.
    fn is_open(self) -> bool {
        !matches!(self, Self::Refused | Self::Late | Self::Idle { started: true, .. })
    }
}

impl PendingReplies {
    /// Something went to the backend under this tag.
    pub(super) fn begin(&mut self, tag: &[u8], to: ReplyTo) {
        self.replies.pop_back_if(|last| last.to == ReplyTo::Refused);
        if self.replies.len() >= MOST
            && let Some(PendingReply { to: ReplyTo::Command | ReplyTo::Idle { .. }, .. }) =
                self.replies.pop_front()
        {
            self.older = self.older.saturating_add(1);
        }
        self.replies.push_back(PendingReply { tag: digest(tag), to });
    }

    /// Whether the client's last command is an IDLE without DONE; if so, whether it has had its
    /// go-ahead.
    pub(super) fn idle(&self) -> Option<bool> {
        match self.replies.back()?.to {
            ReplyTo::Idle { started, done: false } => Some(started),
            _ => None,
        }
    }

    /// Takes the last IDLE for one that has had its go-ahead.
    pub(super) fn start_idle(&mut self) {
        if let Some(PendingReply { to: ReplyTo::Idle { started, .. }, .. }) =
            self.replies.back_mut()
        {
            *started = true;
        }
    }

    /// The client said DONE.
    pub(super) fn done(&mut self) {
        match self.replies.back_mut() {
            Some(PendingReply { to: ReplyTo::Idle { done, .. }, .. }) if !*done => *done = true,
            _ => self.begin(b"DONE", ReplyTo::Stray),
        }
    }

    /// The backend said `+`; whether that was an IDLE's.
    pub(super) fn go_ahead(&mut self) -> bool {
        for reply in &mut self.replies {
            if let ReplyTo::Idle { started: started @ false, .. } = &mut reply.to {
                *started = true;
                return true;
            }
        }
        false
    }

    /// Takes the last command for one that was not refused after all.
    pub(super) fn revive(&mut self) {
        if let Some(PendingReply { to: to @ ReplyTo::Refused, .. }) = self.replies.back_mut() {
            *to = ReplyTo::Command;
        }
    }

    /// A tagged answer came, OK or not.
    pub(super) fn answered(&mut self, tag: &[u8], ok: bool) -> ReplyOwner {
        let tag = digest(tag);
        let Some(mut place) = self.replies.iter().position(|reply| reply.tag == tag) else {
            self.older = self.older.saturating_sub(1);
            return ReplyOwner::Another;
        };
        let whose = self.close(place, ok);
        // Lines before it that are no commands will have no answer.
        while let Some(stray) =
            self.replies.iter().take(place).position(|reply| reply.to == ReplyTo::Stray)
        {
            self.replies.remove(stray);
            place -= 1;
        }
        self.give_memory_back();
        whose
    }

    /// An untagged BAD came.
    pub(super) fn refused(&mut self) -> ReplyOwner {
        let Some(place) = self.replies.iter().position(|reply| reply.to.is_open()) else {
            return ReplyOwner::Another;
        };
        let last = place + 1 == self.replies.len();
        let reply = &mut self.replies[place];
        match reply.to {
            ReplyTo::Command if last => reply.to = ReplyTo::Refused,
            // Its tagged answer may come yet, and is nobody else's.
            ReplyTo::Question => {
                reply.to = ReplyTo::Late;
                return ReplyOwner::Question;
            }
            _ => return self.close(place, false),
        }
        ReplyOwner::Last
    }

    /// Whether the next untagged BAD is the answer to a question of mailchime's own.
    pub(super) fn is_question_next(&self) -> bool {
        let mut open = self.replies.iter().filter(|reply| reply.to.is_open());
        open.next().is_some_and(|reply| reply.to == ReplyTo::Question)
    }

    /// Whether a question of mailchime's own under this tag has no answer.
    pub(super) fn is_question(&self, tag: &[u8]) -> bool {
        let tag = digest(tag);
        let is_ours = |reply: &&PendingReply| matches!(reply.to, ReplyTo::Question | ReplyTo::Late);
        self.replies.iter().filter(is_ours).any(|reply| reply.tag == tag)
    }

    /// No question is waited for any more.
    pub(super) fn give_up(&mut self) {
        for reply in self.replies.iter_mut().filter(|reply| reply.to == ReplyTo::Question) {
            reply.to = ReplyTo::Late;
        }
    }

    /// Whether all commands of the client are answered.
    pub(super) fn all_answered(&self) -> bool {
        let is_owed =
            |reply: &PendingReply| matches!(reply.to, ReplyTo::Command | ReplyTo::Idle { .. });
        self.older == 0 && !self.replies.iter().any(is_owed)
    }

    fn close(&mut self, place: usize, ok: bool) -> ReplyOwner {
        let last = place + 1 == self.replies.len();
        let reply = &mut self.replies[place];
        let whose = match reply.to {
            ReplyTo::Question | ReplyTo::Late => ReplyOwner::Question,
            _ if last => ReplyOwner::Last,
            _ => ReplyOwner::Another,
        };
        match reply.to {
            // There is no IDLE that its DONE could end.
            ReplyTo::Idle { started: false, done: true } if !ok => {
                *reply = PendingReply { tag: digest(b"DONE"), to: ReplyTo::Stray };
            }
            _ => {
                self.replies.remove(place);
            }
        }
        whose
    }

    /// Gives memory back when there is no use for it.
    fn give_memory_back(&mut self) {
        if self.replies.is_empty() && self.replies.capacity() > 16 {
            self.replies = VecDeque::new();
        }
    }
}

fn digest(tag: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(tag);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(commands: &[(&str, ReplyTo)]) -> PendingReplies {
        let mut pending = PendingReplies::default();
        for (tag, to) in commands {
            pending.begin(tag.as_bytes(), *to);
        }
        pending
    }

    #[test]
    fn a_go_ahead_is_that_of_the_first_idle_without() {
        let mut pending = pending(&[("a", ReplyTo::IDLE)]);
        assert_eq!(pending.idle(), Some(false));
        pending.done();
        assert_eq!(pending.idle(), None);
        pending.begin(b"b", ReplyTo::IDLE);
        pending.done();
        pending.begin(b"c", ReplyTo::Command);
        assert!(pending.go_ahead());
        // It has seen DONE, and says nothing but the answer.
        assert_eq!(pending.answered(b"b", true), ReplyOwner::Another);
        assert!(!pending.go_ahead(), "that of the literal");
        assert_eq!(pending.answered(b"c", true), ReplyOwner::Last);
        assert!(!pending.all_answered());
        assert_eq!(pending.answered(b"a", true), ReplyOwner::Last);
        assert!(pending.all_answered());
    }

    #[test]
    fn an_untagged_bad_is_for_the_first_without_an_answer() {
        let mut pending =
            pending(&[("a", ReplyTo::IDLE), ("", ReplyTo::Stray), ("b", ReplyTo::Command)]);
        assert!(pending.go_ahead());
        assert_eq!(pending.refused(), ReplyOwner::Another);
        assert_eq!(pending.refused(), ReplyOwner::Last);
        assert_eq!(pending.refused(), ReplyOwner::Another, "of nobody");
        pending.revive();
        assert_eq!(pending.refused(), ReplyOwner::Last);
        // The client goes on.
        pending.begin(b"c", ReplyTo::Command);
        assert_eq!(pending.answered(b"b", false), ReplyOwner::Another);
        assert_eq!(pending.refused(), ReplyOwner::Last);
        assert_eq!(pending.answered(b"a", true), ReplyOwner::Another);
        assert!(pending.all_answered());
    }

    #[test]
    fn lines_that_are_no_commands_are_over_when_what_follows_is_answered() {
        let mut pending =
            pending(&[("x", ReplyTo::Stray), ("a", ReplyTo::Command), ("y", ReplyTo::Stray)]);
        assert_eq!(pending.answered(b"a", true), ReplyOwner::Another);
        pending.begin(b"b", ReplyTo::Command);
        assert_eq!(pending.refused(), ReplyOwner::Another, "y");
        assert_eq!(pending.refused(), ReplyOwner::Last, "b");
    }

    #[test]
    fn the_done_of_a_refused_idle_is_no_command() {
        let mut pending = pending(&[("a", ReplyTo::IDLE)]);
        pending.done();
        pending.begin(b"b", ReplyTo::Command);
        assert_eq!(pending.answered(b"a", false), ReplyOwner::Another);
        assert_eq!(pending.refused(), ReplyOwner::Another, "DONE");
        assert_eq!(pending.answered(b"b", false), ReplyOwner::Last);
        assert!(pending.all_answered());
    }

    #[test]
    fn questions_are_answered_even_when_nobody_waits_for_it() {
        let mut pending = pending(&[("a", ReplyTo::Command), ("q1", ReplyTo::Question)]);
        assert!(
            pending.is_question(b"q1") && !pending.is_question(b"a") && !pending.is_question(b"q2")
        );
        assert!(!pending.is_question_next());
        pending.answered(b"a", true);
        assert!(pending.is_question_next() && pending.all_answered());
        assert_eq!(pending.refused(), ReplyOwner::Question);
        pending.begin(b"q2", ReplyTo::Question);
        pending.give_up();
        assert!(!pending.is_question_next());
        assert!(pending.is_question(b"q1") && pending.is_question(b"q2"));
        pending.begin(b"b", ReplyTo::Command);
        assert_eq!(pending.refused(), ReplyOwner::Last);
        assert_eq!(pending.answered(b"q2", true), ReplyOwner::Question);
        assert_eq!(pending.answered(b"q1", true), ReplyOwner::Question);
        assert!(!pending.is_question(b"q1"));
    }

    #[test]
    fn what_is_kept_in_mind_is_bounded() {
        let mut pending = PendingReplies::default();
        for number in 0..10_000 {
            pending.begin(format!("a{number}").as_bytes(), ReplyTo::Command);
        }
        assert!(pending.replies.capacity() <= 2 * MOST);
        for number in 0..10_000 {
            assert!(!pending.all_answered());
            pending.answered(format!("a{number}").as_bytes(), true);
        }
        assert!(pending.all_answered());
        assert_eq!(pending.replies.capacity(), 0);
    }
}
