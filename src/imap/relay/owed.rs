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

/// What is owed; holds no memory while nothing is.
#[derive(Debug, Default)]
pub(super) struct Owed {
    debts: VecDeque<Debt>,
    /// Answers to older commands that are not kept in mind.
    older: u32,
}

#[derive(Clone, Copy, Debug)]
struct Debt {
    /// A digest of the tag: a client that finds two of one digest confuses only itself.
    tag: u64,
    to: To,
}

/// What an answer is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
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
pub(super) enum Whose {
    /// That of the client's last command.
    Last,
    Question,
    /// That of an earlier command, or of none that is known.
    Another,
}

impl To {
    pub(super) const IDLE: Self = Self::Idle { started: false, done: false };

    /// Whether an untagged BAD may be the answer to it.
    fn is_open(self) -> bool {
        !matches!(self, Self::Refused | Self::Late | Self::Idle { started: true, .. })
    }
}

impl Owed {
    /// Something went to the backend under this tag.
    pub(super) fn begin(&mut self, tag: &[u8], to: To) {
        self.debts.pop_back_if(|last| last.to == To::Refused);
        if self.debts.len() >= MOST
            && let Some(Debt { to: To::Command | To::Idle { .. }, .. }) = self.debts.pop_front()
        {
            self.older = self.older.saturating_add(1);
        }
        self.debts.push_back(Debt { tag: digest(tag), to });
    }

    /// Whether the client's last command is an IDLE without DONE; if so, whether it has had its
    /// go-ahead.
    pub(super) fn idle(&self) -> Option<bool> {
        match self.debts.back()?.to {
            To::Idle { started, done: false } => Some(started),
            _ => None,
        }
    }

    /// Takes the last IDLE for one that has had its go-ahead.
    pub(super) fn start_idle(&mut self) {
        if let Some(Debt { to: To::Idle { started, .. }, .. }) = self.debts.back_mut() {
            *started = true;
        }
    }

    /// The client said DONE.
    pub(super) fn done(&mut self) {
        match self.debts.back_mut() {
            Some(Debt { to: To::Idle { done, .. }, .. }) if !*done => *done = true,
            _ => self.begin(b"DONE", To::Stray),
        }
    }

    /// The backend said `+`; whether that was an IDLE's.
    pub(super) fn go_ahead(&mut self) -> bool {
        for debt in &mut self.debts {
            if let To::Idle { started: started @ false, .. } = &mut debt.to {
                *started = true;
                return true;
            }
        }
        false
    }

    /// Takes the last command for one that was not refused after all.
    pub(super) fn revive(&mut self) {
        if let Some(Debt { to: to @ To::Refused, .. }) = self.debts.back_mut() {
            *to = To::Command;
        }
    }

    /// A tagged answer came, OK or not.
    pub(super) fn answered(&mut self, tag: &[u8], ok: bool) -> Whose {
        let tag = digest(tag);
        let Some(mut place) = self.debts.iter().position(|debt| debt.tag == tag) else {
            self.older = self.older.saturating_sub(1);
            return Whose::Another;
        };
        let whose = self.settle(place, ok);
        // Lines before it that are no commands will have no answer.
        while let Some(stray) = self.debts.iter().take(place).position(|debt| debt.to == To::Stray)
        {
            self.debts.remove(stray);
            place -= 1;
        }
        self.rest();
        whose
    }

    /// An untagged BAD came.
    pub(super) fn refused(&mut self) -> Whose {
        let Some(place) = self.debts.iter().position(|debt| debt.to.is_open()) else {
            return Whose::Another;
        };
        let last = place + 1 == self.debts.len();
        let debt = &mut self.debts[place];
        match debt.to {
            To::Command if last => debt.to = To::Refused,
            // Its tagged answer may come yet, and is nobody else's.
            To::Question => {
                debt.to = To::Late;
                return Whose::Question;
            }
            _ => return self.settle(place, false),
        }
        Whose::Last
    }

    /// Whether the next untagged BAD is the answer to a question of mailchime's own.
    pub(super) fn is_question_next(&self) -> bool {
        let mut open = self.debts.iter().filter(|debt| debt.to.is_open());
        open.next().is_some_and(|debt| debt.to == To::Question)
    }

    /// Whether a question of mailchime's own under this tag has no answer.
    pub(super) fn is_question(&self, tag: &[u8]) -> bool {
        let tag = digest(tag);
        let is_ours = |debt: &&Debt| matches!(debt.to, To::Question | To::Late);
        self.debts.iter().filter(is_ours).any(|debt| debt.tag == tag)
    }

    /// No question is waited for any more.
    pub(super) fn give_up(&mut self) {
        for debt in self.debts.iter_mut().filter(|debt| debt.to == To::Question) {
            debt.to = To::Late;
        }
    }

    /// Whether all commands of the client are answered.
    pub(super) fn is_settled(&self) -> bool {
        let is_owed = |debt: &Debt| matches!(debt.to, To::Command | To::Idle { .. });
        self.older == 0 && !self.debts.iter().any(is_owed)
    }

    fn settle(&mut self, place: usize, ok: bool) -> Whose {
        let last = place + 1 == self.debts.len();
        let debt = &mut self.debts[place];
        let whose = match debt.to {
            To::Question | To::Late => Whose::Question,
            _ if last => Whose::Last,
            _ => Whose::Another,
        };
        match debt.to {
            // There is no IDLE that its DONE could end.
            To::Idle { started: false, done: true } if !ok => {
                *debt = Debt { tag: digest(b"DONE"), to: To::Stray };
            }
            _ => {
                self.debts.remove(place);
            }
        }
        whose
    }

    /// Gives memory back when there is no use for it.
    fn rest(&mut self) {
        if self.debts.is_empty() && self.debts.capacity() > 16 {
            self.debts = VecDeque::new();
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

    fn owed(commands: &[(&str, To)]) -> Owed {
        let mut owed = Owed::default();
        for (tag, to) in commands {
            owed.begin(tag.as_bytes(), *to);
        }
        owed
    }

    #[test]
    fn a_go_ahead_is_that_of_the_first_idle_without() {
        let mut owed = owed(&[("a", To::IDLE)]);
        assert_eq!(owed.idle(), Some(false));
        owed.done();
        assert_eq!(owed.idle(), None);
        owed.begin(b"b", To::IDLE);
        owed.done();
        owed.begin(b"c", To::Command);
        assert!(owed.go_ahead());
        // It has seen DONE, and says nothing but the answer.
        assert_eq!(owed.answered(b"b", true), Whose::Another);
        assert!(!owed.go_ahead(), "that of the literal");
        assert_eq!(owed.answered(b"c", true), Whose::Last);
        assert!(!owed.is_settled());
        assert_eq!(owed.answered(b"a", true), Whose::Last);
        assert!(owed.is_settled());
    }

    #[test]
    fn an_untagged_bad_is_for_the_first_without_an_answer() {
        let mut owed = owed(&[("a", To::IDLE), ("", To::Stray), ("b", To::Command)]);
        assert!(owed.go_ahead());
        assert_eq!(owed.refused(), Whose::Another);
        assert_eq!(owed.refused(), Whose::Last);
        assert_eq!(owed.refused(), Whose::Another, "of nobody");
        owed.revive();
        assert_eq!(owed.refused(), Whose::Last);
        // The client goes on.
        owed.begin(b"c", To::Command);
        assert_eq!(owed.answered(b"b", false), Whose::Another);
        assert_eq!(owed.refused(), Whose::Last);
        assert_eq!(owed.answered(b"a", true), Whose::Another);
        assert!(owed.is_settled());
    }

    #[test]
    fn lines_that_are_no_commands_are_over_when_what_follows_is_answered() {
        let mut owed = owed(&[("x", To::Stray), ("a", To::Command), ("y", To::Stray)]);
        assert_eq!(owed.answered(b"a", true), Whose::Another);
        owed.begin(b"b", To::Command);
        assert_eq!(owed.refused(), Whose::Another, "y");
        assert_eq!(owed.refused(), Whose::Last, "b");
    }

    #[test]
    fn the_done_of_a_refused_idle_is_no_command() {
        let mut owed = owed(&[("a", To::IDLE)]);
        owed.done();
        owed.begin(b"b", To::Command);
        assert_eq!(owed.answered(b"a", false), Whose::Another);
        assert_eq!(owed.refused(), Whose::Another, "DONE");
        assert_eq!(owed.answered(b"b", false), Whose::Last);
        assert!(owed.is_settled());
    }

    #[test]
    fn questions_are_answered_even_when_nobody_waits_for_it() {
        let mut owed = owed(&[("a", To::Command), ("q1", To::Question)]);
        assert!(owed.is_question(b"q1") && !owed.is_question(b"a") && !owed.is_question(b"q2"));
        assert!(!owed.is_question_next());
        owed.answered(b"a", true);
        assert!(owed.is_question_next() && owed.is_settled());
        assert_eq!(owed.refused(), Whose::Question);
        owed.begin(b"q2", To::Question);
        owed.give_up();
        assert!(!owed.is_question_next());
        assert!(owed.is_question(b"q1") && owed.is_question(b"q2"));
        owed.begin(b"b", To::Command);
        assert_eq!(owed.refused(), Whose::Last);
        assert_eq!(owed.answered(b"q2", true), Whose::Question);
        assert_eq!(owed.answered(b"q1", true), Whose::Question);
        assert!(!owed.is_question(b"q1"));
    }

    #[test]
    fn what_is_kept_in_mind_is_bounded() {
        let mut owed = Owed::default();
        for number in 0..10_000 {
            owed.begin(format!("a{number}").as_bytes(), To::Command);
        }
        assert!(owed.debts.capacity() <= 2 * MOST);
        for number in 0..10_000 {
            assert!(!owed.is_settled());
            owed.answered(format!("a{number}").as_bytes(), true);
        }
        assert!(owed.is_settled());
        assert_eq!(owed.debts.capacity(), 0);
    }
}
