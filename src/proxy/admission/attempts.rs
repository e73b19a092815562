//! Attempts to log in: how many failed, how many are under way, and who is known.
//!
//! A try is reserved before the backend is dialled, so that many at once cannot overrun a limit, and
//! what it was is said when the backend has answered. Counts are kept by origin and its larger
//! networks, by account, and by pairs of both. Pure: the clock is an argument.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::origin::Origin;
use crate::config::LimitsConfig;
use crate::model::Account;

const MINUTE: Duration = Duration::from_secs(60);

/// What is counted apart for one minute; when there is more, the minute is over at once. It bounds the
/// table at a few megabytes.
const MOST_COUNTS: usize = 1 << 16;

/// How long a pair is known at least after its last login, and at most twice as long; and how many
/// are known.
const KNOWN: Duration = Duration::from_hours(12);
const MOST_KNOWN: usize = 1 << 17;

/// Between two tries of what is slowed down.
const SPACING: Duration = Duration::from_secs(2);

/// A try that would have to wait longer for its turn is not made.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is counted: a keyed digest of a network, an account, or a pair of both.
type AttemptKey = u64;

#[derive(Debug, Default)]
pub(super) struct Attempts {
    counts: Generations<AttemptKey, Count>,
    open: HashMap<AttemptKey, Open>,
    known: Generations<AttemptKey, ()>,
    digest: RandomState,
}

/// Of about a minute.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    failed: u32,
    /// Until when the allowance of connections to the backend is used up, at the rate of the limit.
    dials: Option<Instant>,
    /// When the last turn of those that are slowed down ends.
    turn: Option<Instant>,
}

/// Attempts under way.
#[derive(Debug, Default)]
struct Open {
    tries: u32,
    freed: Arc<Notify>,
}

/// A table of what is new, and one of what was in the span of time before.
#[derive(Debug)]
struct Generations<K, V> {
    began: Option<Instant>,
    now: HashMap<K, V>,
    before: HashMap<K, V>,
}

/// Whether a try may be made.
#[derive(Debug)]
pub(super) enum Decision {
    /// It is reserved, and is to be made at that time, which has mostly come.
    Go {
        keys: AttemptKeys,
        at: Instant,
        slowed: Option<LimitHit>,
    },
    /// Not before another one has ended; then it may ask again.
    Full {
        freed: Arc<Notify>,
        why: LimitHit,
    },
    No(LimitHit),
}

/// The limit that a try met: its key in `[limits]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum LimitHit {
    LoginFailures,
    AccountFailures,
    DialsPerMinute,
    DialsAtOnce,
}

/// Where a try is counted: the networks, and the account and its pair with the origin if it is known before the login.
pub(super) type AttemptKeys = Vec<AttemptKey>;

impl Attempts {
    /// Whether an account (`None` if nobody knows which) may be tried from `address` now.
    ///
    /// A pair that is known counts for itself alone and is never turned away for what others do. Any
    /// other one counts for its networks, and is slowed down where its account fails often.
    pub(super) fn begin(
        &mut self,
        address: IpAddr,
        account: Option<&Account>,
        limits: &LimitsConfig,
        now: Instant,
    ) -> Decision {
        self.counts.turn(now, MINUTE);
        self.known.turn(now, KNOWN);
        let networks: Vec<_> =
            Origin::all(address).map(|(network, factor)| (self.key(&network), factor)).collect();
        let name = account.map(folded);
        let account = name.as_ref().map(|name| self.key(name));
        let pair = name.as_ref().map(|name| self.pair(address, name));
        let known = pair.filter(|pair| self.known.has(pair));
        let gates = known.map_or(networks.clone(), |pair| vec![(pair, 1)]);

        if let Some(refused) = self.is_barred(&gates, known.is_some(), limits, now) {
            return refused;
        }

        let (mut at, mut slowed) = (now, None);
        let counted = match known {
            Some(pair) => Some((pair, limits.login_failures_per_minute, LimitHit::LoginFailures)),
            None => {
                account.map(|a| (a, limits.account_failures_per_minute, LimitHit::AccountFailures))
            }
        };
        let mut turn = None;
        if let Some((key, limit, over)) = counted
            && self.failed(&key, now) + f64::from(self.open(&key)) >= f64::from(limit)
        {
            at = self.latest(&key, |count| count.turn).unwrap_or(now).max(now);
            (turn, slowed) = (Some((key, at + SPACING)), Some(over));
        }
        let mut dials = Vec::new();
        for (key, factor) in &gates {
            let each = MINUTE / limits.dials_per_minute.saturating_mul(*factor).max(1);
            let until = self.latest(key, |count| count.dials).unwrap_or(now).max(now) + each;
            let earliest = until.checked_sub(MINUTE).unwrap_or(now);
            if earliest > at {
                (at, slowed) = (earliest, Some(LimitHit::DialsPerMinute));
            }
            dials.push((*key, until));
        }
        if let Some(over) = slowed
            && at > now + PATIENCE
        {
            return Decision::No(over);
        }

        // A known pair uses up what its networks have as well.
        if known.is_some() {
            for (key, factor) in &networks {
                let each = MINUTE / limits.dials_per_minute.saturating_mul(*factor).max(1);
                let until = self.latest(key, |count| count.dials).unwrap_or(now).max(now) + each;
                dials.push((*key, until.min(now + MINUTE)));
            }
        }
        for (key, until) in dials {
            self.count(key, now).dials = Some(until);
        }
        if let Some((key, until)) = turn {
            self.count(key, now).turn = Some(until);
        }
        let networks = networks.into_iter().map(|(key, _)| key);
        let keys: AttemptKeys = networks.chain(account).chain(pair).collect();
        for key in &keys {
            self.open.entry(*key).or_default().tries += 1;
        }
        Decision::Go { keys, at, slowed }
    }

    /// Whether one of these counts leaves no room for another attempt now.
    fn is_barred(
        &self,
        gates: &[(AttemptKey, u32)],
        known: bool,
        limits: &LimitsConfig,
        now: Instant,
    ) -> Option<Decision> {
        for (key, factor) in gates {
            let (open, factor) = (f64::from(self.open(key)), f64::from(*factor));
            let allowed = f64::from(limits.login_failures_per_minute) * factor;
            if !known && self.failed(key, now) >= allowed {
                return Some(Decision::No(LimitHit::LoginFailures));
            }
            let over_reserved = !known && self.failed(key, now) + open >= allowed;
            if over_reserved || open >= f64::from(limits.dials_at_once) * factor {
                let freed = self.open.get(key).map(|open| Arc::clone(&open.freed));
                let why =
                    if over_reserved { LimitHit::LoginFailures } else { LimitHit::DialsAtOnce };
                return Some(Decision::Full { freed: freed.unwrap_or_default(), why });
            }
        }
        None
    }

    /// The try is over, whatever it was.
    pub(super) fn end(&mut self, keys: &[AttemptKey]) {
        for key in keys {
            let Some(open) = self.open.get_mut(key) else { continue };
            open.tries -= 1;
            if open.tries > 0 {
                open.freed.notify_one();
            } else {
                // Nothing is left that could wake the others one by one.
                open.freed.notify_waiters();
                self.open.remove(key);
            }
        }
    }

    /// The name or the password was wrong.
    pub(super) fn fail(&mut self, keys: &[AttemptKey], now: Instant) {
        self.counts.turn(now, MINUTE);
        for key in keys {
            let failed = &mut self.count(*key, now).failed;
            *failed = failed.saturating_add(1);
        }
    }

    /// The account's user is logged in from `address`.
    pub(super) fn succeed(&mut self, address: IpAddr, account: &Account, now: Instant) {
        self.known.turn(now, KNOWN);
        let pair = self.pair(address, &folded(account));
        self.known.insert(pair, (), MOST_KNOWN, now);
    }

    /// Where a try that is not reserved is counted.
    pub(super) fn keys(&self, address: IpAddr, account: Option<&Account>) -> AttemptKeys {
        let networks = Origin::all(address).map(|(network, _)| self.key(&network));
        let name = account.map(folded);
        let pair = name.as_ref().map(|name| self.pair(address, name));
        let account = name.as_ref().map(|name| self.key(name));
        networks.chain(account).chain(pair).collect()
    }

    fn pair(&self, address: IpAddr, name: &str) -> AttemptKey {
        self.key(&(Origin::of(address), name))
    }

    fn key(&self, of: &impl Hash) -> AttemptKey {
        self.digest.hash_one(of)
    }

    fn open(&self, key: &AttemptKey) -> u32 {
        self.open.get(key).map_or(0, |open| open.tries)
    }

    /// Failures within the last sixty seconds, those of the minute before being taken as evenly
    /// spread.
    fn failed(&self, key: &AttemptKey, now: Instant) -> f64 {
        let count = |minute: &HashMap<AttemptKey, Count>| {
            minute.get(key).map_or(0.0, |count| f64::from(count.failed))
        };
        let Generations { began, now: this, before } = &self.counts;
        let elapsed = began.map_or(Duration::ZERO, |began| now.saturating_duration_since(began));
        let still_counts = 1.0 - elapsed.div_duration_f64(MINUTE).min(1.0);
        count(this) + count(before) * still_counts
    }

    fn latest(&self, key: &AttemptKey, of: impl Fn(&Count) -> Option<Instant>) -> Option<Instant> {
        let Generations { now, before, .. } = &self.counts;
        [now, before].iter().filter_map(|counts| counts.get(key).and_then(&of)).max()
    }

    fn count(&mut self, key: AttemptKey, now: Instant) -> &mut Count {
        if self.counts.now.len() >= MOST_COUNTS && !self.counts.now.contains_key(&key) {
            self.counts.end(now);
        }
        self.counts.now.entry(key).or_default()
    }
}

impl<K: Eq + Hash, V> Generations<K, V> {
    /// Ends the span of time if it is over at `now`.
    fn turn(&mut self, now: Instant, span: Duration) {
        let began = *self.began.get_or_insert(now);
        let elapsed = now.saturating_duration_since(began);
        if elapsed >= span {
            let last = std::mem::take(&mut self.now);
            self.before = if elapsed < 2 * span { last } else { HashMap::new() };
            self.began = Some(if elapsed < 2 * span { began + span } else { now });
        }
    }

    /// Ends it before its time.
    fn end(&mut self, now: Instant) {
        self.before = std::mem::take(&mut self.now);
        self.began = Some(now);
    }

    fn has(&self, key: &K) -> bool {
        self.now.contains_key(key) || self.before.contains_key(key)
    }

    fn insert(&mut self, key: K, value: V, most: usize, now: Instant) {
        if self.now.len() >= most && !self.now.contains_key(&key) {
            self.end(now);
        }
        self.now.insert(key, value);
    }
}

impl<K, V> Default for Generations<K, V> {
    fn default() -> Self {
        Self { began: None, now: HashMap::new(), before: HashMap::new() }
    }
}

/// The name under which an account is counted: a backend may take names in any case.
fn folded(account: &Account) -> String {
    account.as_str().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: &str = "alice@a.example";

    struct Play {
        tries: Attempts,
        limits: LimitsConfig,
        now: Instant,
    }

    impl Play {
        fn new() -> Self {
            let limits = LimitsConfig {
                login_failures_per_minute: 3,
                account_failures_per_minute: 5,
                dials_per_minute: 100,
                dials_at_once: 10,
                ..LimitsConfig::default()
            };
            Self { tries: Attempts::default(), limits, now: Instant::now() }
        }

        fn begin(&mut self, address: &str, account: &str) -> Decision {
            let account = Account::from_login(account);
            self.tries.begin(address.parse().unwrap(), Some(&account), &self.limits, self.now)
        }

        fn go(&mut self, address: &str, account: &str) -> (AttemptKeys, Duration) {
            match self.begin(address, account) {
                Decision::Go { keys, at, .. } => (keys, at - self.now),
                other => panic!("{other:?}"),
            }
        }

        fn fail(&mut self, address: &str, account: &str) {
            let (keys, _) = self.go(address, account);
            self.tries.end(&keys);
            self.tries.fail(&keys, self.now);
        }

        fn succeed(&mut self, address: &str, account: &str) -> Duration {
            let (keys, wait) = self.go(address, account);
            self.tries.end(&keys);
            let account = Account::from_login(account);
            self.tries.succeed(address.parse().unwrap(), &account, self.now);
            wait
        }

        fn no(&mut self, address: &str, account: &str) -> LimitHit {
            match self.begin(address, account) {
                Decision::No(over) => over,
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn failures_count_for_about_a_minute() {
        let mut play = Play::new();
        for name in ["a", "b", "c"] {
            play.fail("192.0.2.1", name);
        }
        assert_eq!(play.no("192.0.2.1", "d"), LimitHit::LoginFailures);
        play.go("192.0.2.2", "d");
        play.now += MINUTE - Duration::from_millis(1);
        assert_eq!(play.no("192.0.2.1", "d"), LimitHit::LoginFailures);
        play.now += Duration::from_secs(20);
        play.fail("192.0.2.1", "d");
        assert_eq!(
            play.no("192.0.2.1", "d"),
            LimitHit::LoginFailures,
            "two thirds of three, and one"
        );
        play.now += 2 * MINUTE;
        play.go("192.0.2.1", "d");
    }

    #[test]
    fn tries_under_way_count_as_failed_until_they_are_not() {
        let mut play = Play::new();
        let open: Vec<_> = ["a", "b", "c"].map(|name| play.go("192.0.2.1", name).0).into();
        let Decision::Full { freed, why: LimitHit::LoginFailures } = play.begin("192.0.2.1", "d")
        else {
            panic!("overrun");
        };
        play.tries.end(&open[0]);
        assert!(is_ready(&freed), "one that waits is woken");
        let (fourth, _) = play.go("192.0.2.1", "d");
        for keys in [&open[1], &open[2], &fourth] {
            play.tries.end(keys);
            play.tries.fail(keys, play.now);
        }
        assert_eq!(play.no("192.0.2.1", "e"), LimitHit::LoginFailures);
        assert!(play.tries.open.is_empty());
    }

    /// Whether one who waits from now on need not wait.
    fn is_ready(freed: &Notify) -> bool {
        let mut waiting = Box::pin(freed.notified());
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        waiting.as_mut().poll(&mut cx).is_ready()
    }

    #[test]
    fn a_known_user_gets_in_whatever_others_do() {
        let mut play = Play::new();
        play.succeed("192.0.2.1", ALICE);
        for name in ["x", "y", "z"] {
            play.fail("192.0.2.1", name);
        }
        for at in 0..5 {
            play.fail(&format!("198.51.{at}.1"), ALICE);
        }
        assert_eq!(play.succeed("192.0.2.1", "ALICE@a.example"), Duration::ZERO);
        assert_eq!(play.no("192.0.2.1", "bob"), LimitHit::LoginFailures);
        // Guesses from her own address slow her down, and no more.
        for _ in 0..3 {
            play.fail("192.0.2.1", ALICE);
        }
        for wait in [Duration::ZERO, SPACING] {
            let (keys, waits) = play.go("192.0.2.1", ALICE);
            play.tries.end(&keys);
            assert_eq!(waits, wait);
        }
        play.now += 2 * KNOWN;
        for name in ["x", "y", "z"] {
            play.fail("192.0.2.1", name);
        }
        assert_eq!(play.no("192.0.2.1", ALICE), LimitHit::LoginFailures, "it is too long ago");
    }

    #[test]
    fn an_account_that_is_tried_from_everywhere_is_slowed_down() {
        let mut play = Play::new();
        for at in 0..5 {
            play.fail(&format!("198.51.{at}.1"), ["alice", "ALICE"][at % 2]);
        }
        let mut waits = Vec::new();
        let mut at = 5;
        let over = loop {
            at += 1;
            match play.begin(&format!("198.51.{at}.1"), "alice") {
                Decision::Go { at, .. } => waits.push((at - play.now).as_secs()),
                Decision::No(over) => break over,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((waits.len(), waits[0], waits[10]), (11, 0, 20));
        assert_eq!(over, LimitHit::AccountFailures);
        assert_eq!(play.go("192.0.2.1", "bob").1, Duration::ZERO);
    }

    #[test]
    fn connections_of_an_origin_are_limited_in_rate_and_at_once() {
        let mut play = Play::new();
        play.limits.login_failures_per_minute = 1000;
        let open: Vec<_> = (0..10).map(|name| play.go("192.0.2.1", &name.to_string()).0).collect();
        assert!(matches!(
            play.begin("192.0.2.1", "x"),
            Decision::Full { why: LimitHit::DialsAtOnce, .. }
        ));
        open.iter().for_each(|keys| play.tries.end(keys));
        for name in 10..100 {
            let (keys, wait) = play.go("192.0.2.1", &name.to_string());
            assert_eq!(wait, Duration::ZERO);
            play.tries.end(&keys);
        }
        let (keys, wait) = play.go("192.0.2.1", "next");
        play.tries.end(&keys);
        assert_eq!(wait, MINUTE / 100);
        let mut more = 0;
        while let Decision::Go { keys, .. } = play.begin("192.0.2.1", "more") {
            play.tries.end(&keys);
            more += 1;
        }
        assert_eq!(more, 32, "until the wait is too long");
        assert_eq!(play.no("192.0.2.1", "more"), LimitHit::DialsPerMinute);
        play.go("192.0.2.2", "more");
    }

    #[test]
    fn the_tables_are_bounded() {
        let mut play = Play::new();
        for at in 0..MOST_COUNTS as u32 {
            let address = std::net::Ipv4Addr::from_bits(at << 8).to_string();
            play.fail(&address, &at.to_string());
        }
        let Generations { now, before, .. } = &play.tries.counts;
        assert!(now.len() + before.len() <= 2 * MOST_COUNTS && play.tries.open.is_empty());
        let last = std::net::Ipv4Addr::from_bits((MOST_COUNTS as u32 - 1) << 8).to_string();
        play.limits.login_failures_per_minute = 1;
        assert_eq!(play.no(&last, "x"), LimitHit::LoginFailures, "the latest are kept");
    }
}
