//! What is true of a peer of a route as a whole: whether the service takes anything on it at the moment, and
//! whether its answers about endpoints can be believed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::model::{Account, PushEndpoint};
use crate::net::backoff::Backoff;

/// Domains and accounts of each that are looked at to tell a dead token from a wrong environment, the
/// last that the service answered for, and tokens of each account.
const DOMAINS: usize = 32;
const ACCOUNTS: usize = 32;
const TOKENS: usize = 8;
/// Endpoints that are looked at to tell a failure of one from a failure of the service, the last that it was asked
/// for; and how many of them must have failed at least.
const ENDPOINTS: usize = 16;
const SEVERAL: usize = 3;
/// Between two lines of the log that say so.
const SAID: Duration = Duration::from_hours(1);

/// Shut while nothing can be sent, or while pushes to several endpoints fail, which are most of the last
/// ones. When the wait is over one push goes to try, and only after an answer to it the others follow.
/// An endpoint whose pushes fail alone is left alone, and no other.
#[derive(Default)]
pub(super) struct CircuitBreaker {
    /// Tries in a row that failed.
    failures: u32,
    shut_until: Option<Instant>,
    trying: bool,
    /// Whether the last push to each endpoint failed.
    endpoints: Votes<PushEndpoint, ()>,
}

/// Whose a failure may be.
#[derive(Clone, Copy, Debug)]
pub(super) enum FailureScope<'a> {
    /// Nothing can be sent to anybody.
    Route,
    /// A push to this endpoint failed, perhaps as those to all others would.
    One(&'a PushEndpoint),
}

/// How a push came through the breaker; its outcome is reported with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BreakerPass {
    Open,
    Try,
    /// Through a breaker that is no longer there: its outcome says nothing of the one that is.
    Late,
}

/// Remembers the last answers about tokens. Most domains decide; in each of them most of its accounts, and of
/// an account most of its tokens. A user who makes up a thousand tokens, or accounts, decides no
/// more than one with a single phone.
#[derive(Default)]
pub(super) struct BadEndpointMonitor {
    domains: Votes<Option<Box<str>>, AccountVotes>,
    said_at: Option<Instant>,
}

/// What an answer says of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadEndpoints {
    /// Most tokens are bad, as it seems, which says more of the environment than of the tokens.
    pub(super) mostly: bool,
    /// It is time to say so in the log.
    pub(super) say: bool,
}

type AccountVotes = Votes<Account, Votes<PushEndpoint, ()>>;

/// The last votes, the newest at the back, each with whether it is "bad".
struct Votes<K, V> {
    last: VecDeque<(K, V, bool)>,
}

impl CircuitBreaker {
    /// Whether a push may go now.
    pub(super) fn pass(&mut self, now: Instant) -> Option<BreakerPass> {
        match self.shut_until {
            None => Some(BreakerPass::Open),
            Some(until) if until <= now && !self.trying => {
                self.trying = true;
                Some(BreakerPass::Try)
            }
            Some(_) => None,
        }
    }

    /// The service answered a push to this endpoint, and takes pushes. Returns whether the breaker was shut.
    pub(super) fn answered(&mut self, pass: BreakerPass, endpoint: &PushEndpoint) -> bool {
        let was_shut = self.shut_until.is_some();
        match pass {
            BreakerPass::Try => *self = Self::default(),
            BreakerPass::Open if !was_shut => self.failures = 0,
            // A late answer to a push of before does not say that things are well again.
            BreakerPass::Open | BreakerPass::Late => return false,
        }
        self.endpoints.vote(endpoint.clone(), ENDPOINTS, |()| (false, ()));
        was_shut
    }

    /// A push failed. `at_least` is what the service asked for. Returns whether the breaker is shut by that, and
    /// was not before.
    pub(super) fn failed(
        &mut self,
        pass: BreakerPass,
        failure: FailureScope<'_>,
        now: Instant,
        backoff: Backoff,
        at_least: Duration,
        chance: f64,
    ) -> bool {
        let was_shut = self.shut_until.is_some();
        // Of many that were under way together the first shuts the breaker.
        if pass == BreakerPass::Late || (pass == BreakerPass::Open && was_shut) {
            return false;
        }
        self.trying = false;
        if let FailureScope::One(endpoint) = failure {
            self.endpoints.vote(endpoint.clone(), ENDPOINTS, |()| (true, ()));
            if self.endpoints.bad() < SEVERAL || !self.endpoints.are_mostly_bad() {
                (self.failures, self.shut_until) = (0, None);
                return false;
            }
        }
        self.failures = self.failures.saturating_add(1);
        self.shut_until = Some(now + backoff.wait(self.failures, chance).max(at_least));
        !was_shut
    }

    /// A push that passed is not sent.
    pub(super) fn release(&mut self, pass: BreakerPass) {
        if pass == BreakerPass::Try {
            self.trying = false;
        }
    }

    /// When the next push may go, seen from a moment at which none may; `None` while one is trying.
    pub(super) fn opens_at(&self) -> Option<Instant> {
        self.shut_until.filter(|_| !self.trying)
    }

    pub(super) fn is_open(&self) -> bool {
        self.shut_until.is_none()
    }

    /// Whether the last pushes failed to most endpoints, and to more than one.
    pub(super) fn fails_mostly(&self) -> bool {
        !self.is_open() || (self.endpoints.bad() > 1 && self.endpoints.are_mostly_bad())
    }

    /// Whether there have been pushes to no more than one endpoint.
    pub(super) fn has_one_endpoint(&self) -> bool {
        self.endpoints.last.len() == 1
    }
}

impl BadEndpointMonitor {
    /// Takes note of an answer about a token. A token that is the only bad one, and was good under
    /// the same identity, has come to its end, so it is not said.
    pub(super) fn answered(
        &mut self,
        account: &Account,
        token: &PushEndpoint,
        bad: bool,
        now: Instant,
    ) -> BadEndpoints {
        let was_good = self.vote(account, token, bad) == Some(false);
        let mostly = self.domains.are_mostly_bad() && !(was_good && self.is_only_bad_one());
        let due = self.said_at.is_none_or(|at| now.saturating_duration_since(at) >= SAID);
        let say = mostly && bad && due;
        if say {
            self.said_at = Some(now);
        }
        BadEndpoints { mostly, say }
    }

    /// Returns whether the token was bad before, if that is remembered.
    fn vote(&mut self, account: &Account, token: &PushEndpoint, bad: bool) -> Option<bool> {
        self.domains.vote(account.domain().map(Into::into), DOMAINS, |accounts| {
            let before = accounts.vote(account.clone(), ACCOUNTS, |tokens| {
                let before = tokens.of(token);
                tokens.vote(token.clone(), TOKENS, |()| (bad, ()));
                (tokens.are_mostly_bad(), before)
            });
            (accounts.are_mostly_bad(), before)
        })
    }

    /// Whether just one token is bad, of all that are remembered.
    pub(super) fn is_only_bad_one(&self) -> bool {
        let accounts = self.domains.last.iter().flat_map(|(_, accounts, _)| &accounts.last);
        let tokens = accounts.flat_map(|(_, tokens, _)| &tokens.last);
        tokens.filter(|(.., bad)| *bad).count() == 1
    }
}

impl<K, V> Default for Votes<K, V> {
    fn default() -> Self {
        Self { last: VecDeque::new() }
    }
}

impl<K: PartialEq, V: Default> Votes<K, V> {
    /// The vote of `key` becomes what `change` returns first, and the newest of all, of which there
    /// are `most`. Returns what `change` returns besides.
    fn vote<T>(&mut self, key: K, most: usize, change: impl FnOnce(&mut V) -> (bool, T)) -> T {
        let before = self.last.iter().position(|(other, ..)| *other == key);
        let before = before.and_then(|place| self.last.remove(place));
        let mut value = before.map(|(_, value, _)| value).unwrap_or_default();
        let (vote, besides) = change(&mut value);
        self.last.push_back((key, value, vote));
        if self.last.len() > most {
            self.last.pop_front();
        }
        besides
    }

    fn of(&self, key: &K) -> Option<bool> {
        self.last.iter().find(|(other, ..)| other == key).map(|(.., vote)| *vote)
    }

    fn are_mostly_bad(&self) -> bool {
        self.bad() * 2 > self.last.len()
    }

    fn bad(&self) -> usize {
        self.last.iter().filter(|(.., bad)| *bad).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));

    #[test]
    fn one_push_tries_and_the_others_wait_for_its_answer() {
        let mut breaker = CircuitBreaker::default();
        let now = Instant::now();
        let later = |seconds| now + Duration::from_secs(seconds);
        let fail = |breaker: &mut CircuitBreaker, pass, at| {
            breaker.failed(pass, FailureScope::Route, at, BACKOFF, Duration::ZERO, 1.0)
        };

        assert_eq!(breaker.pass(now), Some(BreakerPass::Open));
        assert!(fail(&mut breaker, BreakerPass::Open, now));
        assert!(!fail(&mut breaker, BreakerPass::Open, now));
        assert!(!breaker.answered(BreakerPass::Open, &token(1)));
        assert_eq!((breaker.pass(now), breaker.opens_at()), (None, Some(later(1))));

        assert_eq!(breaker.pass(later(1)), Some(BreakerPass::Try));
        assert_eq!((breaker.pass(later(1)), breaker.opens_at()), (None, None));
        fail(&mut breaker, BreakerPass::Try, later(1));
        assert_eq!(breaker.opens_at(), Some(later(3)), "the wait grows");

        assert_eq!(breaker.pass(later(3)), Some(BreakerPass::Try));
        breaker.release(BreakerPass::Try);
        assert_eq!(
            breaker.pass(later(3)),
            Some(BreakerPass::Try),
            "who does not send tries nothing"
        );
        assert!(breaker.answered(BreakerPass::Try, &token(1)));
        assert_eq!(breaker.pass(later(3)), Some(BreakerPass::Open));

        let (own_wish, at) = (Duration::from_secs(60), later(9));
        breaker.failed(BreakerPass::Open, FailureScope::Route, at, BACKOFF, own_wish, 1.0);
        assert_eq!(breaker.opens_at(), Some(later(69)), "what the service asks for counts");
    }

    #[test]
    fn failures_are_those_of_their_endpoints_until_several_and_most_of_the_last_fail() {
        let mut breaker = CircuitBreaker::default();
        let now = Instant::now();
        let shut_by = |breaker: &mut CircuitBreaker, mut endpoints: std::ops::Range<usize>| {
            endpoints.find(|n| {
                let endpoint = token(*n);
                breaker.failed(
                    BreakerPass::Open,
                    FailureScope::One(&endpoint),
                    now,
                    BACKOFF,
                    Duration::ZERO,
                    1.0,
                )
            })
        };
        for _ in 0..1000 {
            assert_eq!(shut_by(&mut breaker, 1..3), None, "two are not several");
        }
        assert_eq!(shut_by(&mut breaker, 3..9), Some(3));
        let later = now + Duration::from_secs(1);
        assert_eq!(breaker.pass(later), Some(BreakerPass::Try));
        assert!(breaker.answered(BreakerPass::Try, &token(4)));
        assert_eq!(breaker.pass(later), Some(BreakerPass::Open));

        // Among many that are well it takes more.
        for n in 0..100 {
            breaker.answered(BreakerPass::Open, &token(100 + n));
        }
        assert_eq!(shut_by(&mut breaker, 0..100), Some(ENDPOINTS / 2));
    }

    fn token(n: usize) -> PushEndpoint {
        let token = format!("{n:064x}");
        PushEndpoint::new(&token, &token)
    }

    #[test]
    fn the_monitor_counts_each_token_once_among_the_last() {
        let now = Instant::now();
        let mut monitor = BadEndpointMonitor::default();
        let mut answered = |n: usize, bad| {
            monitor.answered(&Account::from_login(&format!("user{n}")), &token(n), bad, now).mostly
        };
        assert!(answered(1, true), "the only answer there is");
        assert!(!answered(2, false), "half is not most");
        for _ in 0..10 {
            assert!(!answered(1, true), "one token is one token");
        }
        assert!(answered(3, true));
        assert!(answered(2, true), "good before, but not the only one");
        for n in 0..ACCOUNTS {
            answered(100 + n, false);
        }
        assert!(!answered(4, true), "old answers are forgotten");

        let alice = Account::from_login("alice");
        let mut household = BadEndpointMonitor::default();
        let mut answered = |n, bad| household.answered(&alice, &token(n), bad, now).mostly;
        assert!(!answered(1, false));
        assert!(!answered(2, false));
        assert!(!answered(2, true), "one of two");
        assert!(!answered(1, false));
        let mut alone = BadEndpointMonitor::default();
        let mut answered = |bad| alone.answered(&alice, &token(1), bad, now).mostly;
        assert!(!answered(false));
        assert!(!answered(true), "it was good under this identity");
        assert!(answered(true), "and is no longer");
    }

    #[test]
    fn a_user_with_invented_tokens_accounts_or_both_has_one_vote() {
        let now = Instant::now();
        let account = |login: &str| Account::from_login(login);
        let mut monitor = BadEndpointMonitor::default();
        for n in 0..500 {
            // One account with many, and many accounts of a domain.
            monitor.answered(&account("m@a.example"), &token(n), true, now);
            monitor.answered(&account(&format!("m{n}@b.example")), &token(n), true, now);
        }
        assert!(monitor.answered(&account("m@a.example"), &token(1), true, now).mostly);
        for domain in ["c.example", "d.example"] {
            monitor.answered(&account(&format!("u@{domain}")), &token(1000), false, now);
        }
        assert!(!monitor.answered(&account("v@c.example"), &token(1001), true, now).mostly);
        // Where the environment is wrong, it is so for all domains.
        for domain in ["c.example", "d.example"] {
            monitor.answered(&account(&format!("u@{domain}")), &token(1000), true, now);
        }
        assert!(monitor.answered(&account("v@c.example"), &token(1001), true, now).mostly);
        let remembered = monitor.domains.last.iter().flat_map(|(_, accounts, _)| &accounts.last);
        let tokens: usize = remembered.clone().map(|(_, tokens, _)| tokens.last.len()).sum();
        assert!(tokens <= 2 * TOKENS + 2 * ACCOUNTS, "{tokens}");
    }

    #[test]
    fn mostly_bad_tokens_are_logged_once_an_hour_not_for_each_push() {
        let now = Instant::now();
        let alice = Account::from_login("alice");
        let mut monitor = BadEndpointMonitor::default();
        let mut said = |n: usize, at| monitor.answered(&alice, &token(n), true, at).say;
        assert_eq!([said(1, now), said(2, now), said(1, now)], [true, false, false]);
        assert_eq!([said(1, now + SAID), said(2, now + SAID)], [true, false]);
    }
}
