//! Who may come in: sessions in all and by address, and addresses whose logins fail.
//!
//! What is counted here outlives a configuration; the limits themselves come with each call.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

/// Counts of what is going on now.
#[derive(Debug, Default)]
pub(super) struct Gate {
    sessions: Arc<Mutex<Sessions>>,
    /// Somebody left, or there may be more places now.
    left: Arc<Notify>,
    failures: Mutex<Failures>,
}

#[derive(Debug, Default)]
struct Sessions {
    all: usize,
    by_origin: HashMap<Origin, usize>,
}

/// A session's place among all of them, and among those from its address once that is known.
/// Dropping it gives both back.
#[derive(Debug)]
pub(super) struct Place {
    sessions: Arc<Mutex<Sessions>>,
    left: Arc<Notify>,
    origin: Option<Origin>,
}

/// Addresses that count as one: an IPv4 address, or an IPv6 network of 64 bits, which is the least
/// that one subscriber gets (RFC 6177 section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Origin(IpAddr);

/// Failed logins by origin, in this minute and in the one before.
#[derive(Debug, Default)]
struct Failures {
    /// When this minute began.
    began: Option<Instant>,
    now: HashMap<Origin, u32>,
    before: HashMap<Origin, u32>,
}

const MINUTE: Duration = Duration::from_secs(60);

/// Origins that are remembered for one minute; when more fail, the minute is over at once. It bounds
/// the table at a few megabytes.
const MOST_ORIGINS: usize = 1 << 16;

// === impl Gate ===

impl Gate {
    /// A place for one more session, unless there are `limit`.
    pub(super) fn enter(&self, limit: usize) -> Option<Place> {
        let mut sessions = lock(&self.sessions);
        (sessions.all < limit).then(|| {
            sessions.all += 1;
            let (sessions, left) = (Arc::clone(&self.sessions), Arc::clone(&self.left));
            Place { sessions, left, origin: None }
        })
    }

    /// Ends when [`Gate::enter`] is worth another try; to be had before the try that fails.
    pub(super) fn left(&self) -> Notified<'_> {
        self.left.notified()
    }

    /// The limits have changed.
    pub(super) fn changed(&self) {
        self.left.notify_waiters();
    }

    /// A login from this address failed.
    pub(super) fn failed(&self, address: IpAddr) {
        lock(&self.failures).add(Origin::of(address));
    }

    /// Whether `limit` logins from this address failed within about a minute.
    pub(super) fn fails_often(&self, address: IpAddr, limit: u32) -> bool {
        lock(&self.failures).recent(Origin::of(address)) >= f64::from(limit)
    }
}

// === impl Place ===

impl Place {
    /// Takes a place among the sessions from this address, unless there are `limit`. Returns whether
    /// it did.
    pub(super) fn settle(&mut self, address: IpAddr, limit: usize) -> bool {
        let origin = Origin::of(address);
        let mut sessions = lock(&self.sessions);
        let open = sessions.by_origin.get(&origin).copied().unwrap_or(0);
        let fits = open < limit && self.origin.is_none();
        if fits {
            sessions.by_origin.insert(origin, open + 1);
            self.origin = Some(origin);
        }
        fits
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sessions = lock(&self.sessions);
        sessions.all -= 1;
        self.left.notify_one();
        let Some(origin) = self.origin else { return };
        match sessions.by_origin.get_mut(&origin) {
            Some(open) if *open > 1 => *open -= 1,
            _ => drop(sessions.by_origin.remove(&origin)),
        }
    }
}

// === impl Origin ===

impl Origin {
    fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
        })
    }
}

// === impl Failures ===

impl Failures {
    fn add(&mut self, origin: Origin) {
        self.turn();
        if self.now.len() >= MOST_ORIGINS && !self.now.contains_key(&origin) {
            self.before = std::mem::take(&mut self.now);
            self.began = Some(Instant::now());
        }
        let failures = self.now.entry(origin).or_default();
        *failures = failures.saturating_add(1);
    }

    /// Failures within the last sixty seconds, those of the minute before being taken as evenly
    /// spread.
    fn recent(&mut self, origin: Origin) -> f64 {
        self.turn();
        let count =
            |minute: &HashMap<Origin, u32>| minute.get(&origin).copied().map_or(0.0, f64::from);
        let elapsed = self.began.map_or(Duration::ZERO, |began| began.elapsed());
        let still_counts = 1.0 - elapsed.div_duration_f64(MINUTE).min(1.0);
        count(&self.now) + count(&self.before) * still_counts
    }

    /// Begins another minute when this one is over.
    fn turn(&mut self) {
        let now = Instant::now();
        let began = *self.began.get_or_insert(now);
        let elapsed = now.duration_since(began);
        if elapsed >= MINUTE {
            let last = std::mem::take(&mut self.now);
            self.before = if elapsed < 2 * MINUTE { last } else { HashMap::new() };
            self.began = Some(if elapsed < 2 * MINUTE { began + MINUTE } else { now });
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn places_come_back_in_all_and_by_address() {
        let gate = Gate::default();
        let mut first = gate.enter(2).unwrap();
        let mut second = gate.enter(2).unwrap();
        assert!(gate.enter(2).is_none());
        assert!(first.settle(ip("192.0.2.1"), 1));
        assert!(!second.settle(ip("192.0.2.1"), 1));
        assert!(!second.settle(ip("::ffff:192.0.2.1"), 1), "the same address in its other form");
        assert!(second.settle(ip("192.0.2.2"), 1));
        drop(first);
        let mut third = gate.enter(2).unwrap();
        assert!(third.settle(ip("192.0.2.1"), 1));
        drop((second, third));
        let sessions = lock(&gate.sessions);
        assert_eq!((sessions.all, sessions.by_origin.len()), (0, 0));
    }

    #[test]
    fn a_place_comes_back_even_from_a_panic() {
        let gate = Arc::new(Gate::default());
        let inner = Arc::clone(&gate);
        let panicked = std::thread::spawn(move || {
            let _place = inner.enter(1).unwrap();
            panic!("as a session might");
        });
        assert!(panicked.join().is_err());
        assert!(gate.enter(1).is_some());
    }

    #[test]
    fn an_ipv6_network_of_64_bits_counts_as_one() {
        let gate = Gate::default();
        let mut places = [gate.enter(9).unwrap(), gate.enter(9).unwrap(), gate.enter(9).unwrap()];
        assert!(places[0].settle(ip("2001:db8:1:2::1"), 1));
        assert!(!places[1].settle(ip("2001:db8:1:2:ffff::2"), 1));
        assert!(places[2].settle(ip("2001:db8:1:3::1"), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_count_for_about_a_minute() {
        let gate = Gate::default();
        let guesser = ip("192.0.2.1");
        for _ in 0..3 {
            assert!(!gate.fails_often(guesser, 3));
            gate.failed(guesser);
        }
        assert!(gate.fails_often(guesser, 3));
        assert!(!gate.fails_often(guesser, 4));
        assert!(!gate.fails_often(ip("192.0.2.2"), 1));
        tokio::time::advance(MINUTE - Duration::from_millis(1)).await;
        assert!(gate.fails_often(guesser, 3));
        tokio::time::advance(Duration::from_secs(20)).await;
        assert!(!gate.fails_often(guesser, 3), "two thirds of three still count");
        assert!(gate.fails_often(guesser, 1));
        tokio::time::advance(2 * MINUTE).await;
        assert!(!gate.fails_often(guesser, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_of_failures_is_bounded() {
        let gate = Gate::default();
        for origin in 0..3 * MOST_ORIGINS {
            gate.failed(std::net::Ipv4Addr::from_bits(origin as u32).into());
        }
        let failures = lock(&gate.failures);
        assert!(failures.now.len() + failures.before.len() <= 2 * MOST_ORIGINS);
        drop(failures);
        let last = std::net::Ipv4Addr::from_bits(3 * MOST_ORIGINS as u32 - 1);
        assert!(gate.fails_often(last.into(), 1), "the latest are kept");
    }
}
