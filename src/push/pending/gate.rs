//! What is true of the identity as a whole: whether APNs takes anything from it at the moment, and
//! whether its answers about tokens can be believed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::model::DeviceToken;
use crate::net::backoff::Backoff;

/// How many of the last answers are looked at to tell a dead token from a wrong environment.
const ANSWERS: usize = 50;

/// Shut while APNs cannot be reached or refuses the certificate. When the wait is over one push
/// goes to try, and only after an answer to it the others follow.
#[derive(Default)]
pub(super) struct Gate {
    /// Tries in a row that failed.
    failures: u32,
    shut_until: Option<Instant>,
    trying: bool,
}

/// How a push came through the gate; its outcome is told with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Open,
    Try,
    /// Through a gate that is no longer there: its outcome says nothing of the one that is.
    Late,
}

/// Remembers the last answers, one for each token.
#[derive(Default)]
pub(super) struct TokenAlarm {
    last: VecDeque<(DeviceToken, bool)>,
}

impl Gate {
    /// Whether a push may go now.
    pub(super) fn pass(&mut self, now: Instant) -> Option<Pass> {
        match self.shut_until {
            None => Some(Pass::Open),
            Some(until) if until <= now && !self.trying => {
                self.trying = true;
                Some(Pass::Try)
            }
            Some(_) => None,
        }
    }

    /// APNs answered, whatever it said.
    pub(super) fn answered(&mut self, pass: Pass) {
        // A late answer to a push of before does not say that things are well again.
        if pass == Pass::Try || (pass == Pass::Open && self.shut_until.is_none()) {
            *self = Self::default();
        }
    }

    /// APNs did not answer, or refused the identity. `at_least` is what APNs asked for.
    pub(super) fn failed(
        &mut self,
        pass: Pass,
        now: Instant,
        backoff: Backoff,
        at_least: Duration,
        chance: f64,
    ) {
        // Of many that were under way together the first shuts the gate.
        if pass == Pass::Late || (pass == Pass::Open && self.shut_until.is_some()) {
            return;
        }
        self.failures = self.failures.saturating_add(1);
        self.trying = false;
        self.shut_until = Some(now + backoff.wait(self.failures, chance).max(at_least));
    }

    /// When the next push may go, seen from a moment at which none may; `None` while one is trying.
    pub(super) fn opens_at(&self) -> Option<Instant> {
        self.shut_until.filter(|_| !self.trying)
    }

    pub(super) fn is_open(&self) -> bool {
        self.shut_until.is_none()
    }
}

impl TokenAlarm {
    /// Takes note of an answer about a token; returns whether more than half of the tokens that
    /// were lately answered for are bad, which says more of the environment than of the tokens. One
    /// that is the only bad one, and was good under the same identity, has come to its end.
    pub(super) fn answered(&mut self, token: &DeviceToken, bad: bool) -> bool {
        let before = self.last.iter().position(|(other, _)| other == token);
        let before = before.and_then(|place| self.last.remove(place));
        self.last.push_back((token.clone(), bad));
        if self.last.len() > ANSWERS {
            self.last.pop_front();
        }
        let all_bad = self.last.iter().filter(|(_, bad)| *bad).count();
        let was_good = before.is_some_and(|(_, bad)| !bad);
        all_bad * 2 > self.last.len() && !(all_bad == 1 && was_good)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));

    #[test]
    fn one_push_tries_and_the_others_wait_for_its_answer() {
        let mut gate = Gate::default();
        let now = Instant::now();
        let later = |seconds| now + Duration::from_secs(seconds);
        let fail = |gate: &mut Gate, pass, at| {
            gate.failed(pass, at, BACKOFF, Duration::ZERO, 1.0);
        };

        assert_eq!(gate.pass(now), Some(Pass::Open));
        fail(&mut gate, Pass::Open, now);
        fail(&mut gate, Pass::Open, now);
        gate.answered(Pass::Open);
        assert_eq!((gate.pass(now), gate.opens_at()), (None, Some(later(1))));

        assert_eq!(gate.pass(later(1)), Some(Pass::Try));
        assert_eq!((gate.pass(later(1)), gate.opens_at()), (None, None));
        fail(&mut gate, Pass::Try, later(1));
        assert_eq!(gate.opens_at(), Some(later(3)), "the wait grows");

        assert_eq!(gate.pass(later(3)), Some(Pass::Try));
        gate.answered(Pass::Try);
        assert_eq!(gate.pass(later(3)), Some(Pass::Open));

        gate.failed(Pass::Open, later(9), BACKOFF, Duration::from_secs(60), 1.0);
        assert_eq!(gate.opens_at(), Some(later(69)), "APNs' own wish counts");
    }

    #[test]
    fn b25_the_alarm_counts_each_token_once_among_the_last() {
        let token = |n: usize| DeviceToken::new(&format!("{n:064x}")).unwrap();
        let mut alarm = TokenAlarm::default();
        assert!(alarm.answered(&token(1), true), "the only answer there is");
        assert!(!alarm.answered(&token(2), false), "half is not most");
        for _ in 0..10 {
            assert!(!alarm.answered(&token(1), true), "one token is one token");
        }
        assert!(alarm.answered(&token(3), true));
        assert!(alarm.answered(&token(2), true), "good before, but not the only one");
        for n in 0..ANSWERS {
            alarm.answered(&token(100 + n), false);
        }
        assert!(!alarm.answered(&token(4), true), "old answers are forgotten");

        let mut household = TokenAlarm::default();
        assert!(!household.answered(&token(1), false));
        assert!(!household.answered(&token(1), true), "it was good under this identity");
        assert!(household.answered(&token(1), true), "and is no longer");
    }
}
