//! How many pushes a second the subscriptions of one domain, and of one backend, may have.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::schedule::{Tenant, TenantPart};

/// With so many domains or backends those that may be pushed freely are forgotten.
const SWEEP: usize = 1024;

/// Pushes of the last second, by domain and by backend.
pub(super) struct Rates {
    domains: Buckets<Box<str>>,
    backends: Buckets<Arc<str>>,
}

/// How often a push had to wait for its turn, by the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::push) struct Waits {
    pub(in crate::push) domains: u32,
    pub(in crate::push) backends: u32,
}

/// A token bucket for each key, that holds the pushes of one second.
struct Buckets<K> {
    per_second: u32,
    /// When each will be full again. It is so within a second, so there are no more keys than pushes
    /// in the last second, and those that were not swept away yet.
    full_at: HashMap<K, Instant>,
    sweep_at: usize,
    waits: u32,
}

impl Rates {
    /// Pushes a second for each domain and each backend; 0 is no limit.
    pub(super) fn new(per_domain: u32, per_backend: u32) -> Self {
        Self { domains: Buckets::new(per_domain), backends: Buckets::new(per_backend) }
    }

    /// Until when it has to wait for its next push, if it has to.
    pub(super) fn wait(&mut self, part: TenantPart<'_>, now: Instant) -> Option<Instant> {
        match part {
            TenantPart::Backend(backend) => self.backends.wait(&**backend, now),
            TenantPart::Domain(domain) => self.domains.wait(domain, now),
        }
    }

    /// Takes one push from both buckets; [`Rates::wait`] has said that it may go.
    pub(super) fn use_one(&mut self, Tenant { backend, domain }: Tenant, now: Instant) {
        self.domains.use_one(domain, now);
        self.backends.use_one(backend, now);
    }

    /// How often one had to wait since the last question.
    pub(super) fn take_waits(&mut self) -> Waits {
        let [domains, backends] =
            [&mut self.domains.waits, &mut self.backends.waits].map(std::mem::take);
        Waits { domains, backends }
    }
}

impl<K: Hash + Eq> Buckets<K> {
    fn new(per_second: u32) -> Self {
        Self { per_second, full_at: HashMap::new(), sweep_at: SWEEP, waits: 0 }
    }

    /// Between two pushes that come evenly.
    fn distance(&self) -> Option<Duration> {
        Duration::from_secs(1).checked_div(self.per_second)
    }

    fn wait<Q: Hash + Eq + ?Sized>(&mut self, key: &Q, now: Instant) -> Option<Instant>
    where
        K: Borrow<Q>,
    {
        let distance = self.distance()?;
        // There is room for one more when no more than all others are missing.
        let free_at = self.full_at.get(key)?.checked_sub(distance * (self.per_second - 1))?;
        let waits = free_at > now;
        self.waits = self.waits.saturating_add(waits.into());
        waits.then_some(free_at)
    }

    fn use_one(&mut self, key: K, now: Instant) {
        let Some(distance) = self.distance() else { return };
        if self.full_at.len() >= self.sweep_at {
            self.full_at.retain(|_, full_at| *full_at > now);
            self.sweep_at = SWEEP.max(2 * self.full_at.len());
        }
        let full_at = self.full_at.entry(key).or_insert(now);
        *full_at = (*full_at).max(now) + distance;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(domain: &str) -> Tenant {
        Tenant { backend: "backend".into(), domain: domain.into() }
    }

    /// Whether a push of this domain may go, which it does then.
    fn push(rates: &mut Rates, domain: &str, now: Instant) -> Result<(), Instant> {
        let backend = "backend".into();
        for part in [TenantPart::Backend(&backend), TenantPart::Domain(domain)] {
            rates.wait(part, now).map_or(Ok(()), Err)?;
        }
        rates.use_one(share(domain), now);
        Ok(())
    }

    #[test]
    fn one_second_goes_at_once_and_then_they_keep_their_distance() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut rates = Rates::new(4, 0);
        for _ in 0..4 {
            assert_eq!(push(&mut rates, "a", start), Ok(()));
        }
        assert_eq!(push(&mut rates, "a", start), Err(at(250)));
        assert_eq!(push(&mut rates, "b", start), Ok(()));
        assert_eq!(push(&mut rates, "a", at(249)), Err(at(250)));
        assert_eq!(push(&mut rates, "a", at(250)), Ok(()));
        assert_eq!(push(&mut rates, "a", at(250)), Err(at(500)));
        assert_eq!(rates.take_waits(), Waits { domains: 3, backends: 0 });
        assert_eq!(rates.take_waits(), Waits::default());
    }

    #[test]
    fn domains_of_one_backend_share_what_it_may_have() {
        let start = Instant::now();
        let mut rates = Rates::new(0, 2);
        assert_eq!(push(&mut rates, "a", start), Ok(()));
        assert_eq!(push(&mut rates, "b", start), Ok(()));
        let free_at = start + Duration::from_millis(500);
        assert_eq!(push(&mut rates, "c", start), Err(free_at));
        assert_eq!(push(&mut rates, "c", free_at), Ok(()));
        assert!(rates.domains.full_at.is_empty(), "what has no limit is not counted");
    }

    #[test]
    fn those_that_may_be_pushed_freely_are_forgotten() {
        let start = Instant::now();
        let mut rates = Rates::new(1, 0);
        for number in 0..10 * SWEEP {
            let now = start + Duration::from_secs(number as u64);
            assert_eq!(push(&mut rates, &number.to_string(), now), Ok(()));
        }
        assert!(rates.domains.full_at.len() <= SWEEP, "{}", rates.domains.full_at.len());
    }
}
