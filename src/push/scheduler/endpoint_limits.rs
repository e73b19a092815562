//! How often an endpoint is woken, whatever accounts it is registered for, and by whom. Its token is
//! all that is needed to register it, and is no secret that only its owner has.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::model::PushEndpoint;

/// Pushes for the accounts of one domain that may come at once; after them they keep the distance that
/// pushes for one account keep.
const OF_A_DOMAIN: u32 = 4;
/// The same for all accounts, with a distance that is a fifth as long: no domain holds up another.
const OF_ALL: u32 = 8;
const DISTANCE_OF_ALL: u32 = 5;

/// With so many endpoints those that may be pushed freely are forgotten.
const SWEEP: usize = 1024;

/// When endpoints were pushed lately.
#[derive(Default)]
pub(super) struct EndpointLimits {
    endpoints: HashMap<PushEndpoint, Used>,
    sweep_at: usize,
}

/// When what was granted would have been used up, had it come evenly.
struct Used {
    all: Instant,
    domains: Vec<(Box<str>, Instant)>,
}

impl EndpointLimits {
    /// A push to the endpoint for an account of this domain, with `distance` between two. An error is
    /// the time at which it may be tried again.
    pub(super) fn use_one(
        &mut self,
        endpoint: &PushEndpoint,
        domain: &str,
        distance: Duration,
        now: Instant,
    ) -> Result<(), Instant> {
        if self.endpoints.len() >= self.sweep_at.max(SWEEP) {
            self.endpoints.retain(|_, used| used.is_alive(now));
            self.sweep_at = 2 * self.endpoints.len();
        }
        let of_all = distance / DISTANCE_OF_ALL;
        let used = self.endpoints.entry(endpoint.clone());
        let used = used.or_insert_with(|| Used { all: now, domains: Vec::new() });
        used.domains.retain(|(_, until)| *until > now);
        let own = used.domains.iter().position(|(known, _)| **known == *domain);
        let of_domain = own.map_or(now, |place| used.domains[place].1);
        // As much is granted ahead of time as may come at once.
        let free_at = |until: Instant, distance: Duration, at_once: u32| {
            until.checked_sub(distance * (at_once - 1)).unwrap_or(now)
        };
        let free = free_at(used.all, of_all, OF_ALL).max(free_at(of_domain, distance, OF_A_DOMAIN));
        if free > now {
            return Err(free);
        }
        used.all = used.all.max(now) + of_all;
        let until = of_domain.max(now) + distance;
        match own {
            Some(place) => used.domains[place].1 = until,
            None => used.domains.push((domain.into(), until)),
        }
        Ok(())
    }
}

impl Used {
    fn is_alive(&self, now: Instant) -> bool {
        self.all > now || self.domains.iter().any(|(_, until)| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISTANCE: Duration = Duration::from_secs(5);

    fn token(n: usize) -> PushEndpoint {
        let token = format!("{n:064x}");
        PushEndpoint::new(&token, &token)
    }

    /// Seconds at which a push goes, of those that are tried at once and again as soon as they may.
    fn times(endpoints: &mut EndpointLimits, domains: &[&str], until: u64) -> Vec<(u64, String)> {
        let start = Instant::now();
        let mut times = Vec::new();
        for second in 0..until {
            for domain in domains {
                let now = start + Duration::from_secs(second);
                while endpoints.use_one(&token(1), domain, DISTANCE, now).is_ok() {
                    times.push((second, (*domain).to_owned()));
                }
            }
        }
        times
    }

    #[test]
    fn accounts_of_one_domain_wake_an_endpoint_as_often_as_one_account_does() {
        let times = times(&mut EndpointLimits::default(), &["a"], 22);
        let seconds: Vec<_> = times.iter().map(|(second, _)| *second).collect();
        assert_eq!(seconds, [0, 0, 0, 0, 5, 10, 15, 20]);
    }

    #[test]
    fn accounts_of_many_domains_wake_it_once_a_second_and_one_more_has_its_turn() {
        let domains: Vec<_> = (0..20).map(|number| format!("{number}.example")).collect();
        let domains: Vec<_> = domains.iter().map(String::as_str).collect();
        let mut endpoints = EndpointLimits::default();
        let woken = times(&mut endpoints, &domains, 22).len();
        assert_eq!(woken, 8 + 21);
        // Of one domain that does all it can, another's pushes are independent.
        let mut endpoints = EndpointLimits::default();
        let start = Instant::now();
        for second in 0..60 {
            let now = start + Duration::from_secs(second);
            while endpoints.use_one(&token(1), "tenant.example", DISTANCE, now).is_ok() {}
            if second % 5 == 0 {
                assert_eq!(endpoints.use_one(&token(1), "example.org", DISTANCE, now), Ok(()));
            }
        }
    }

    #[test]
    fn endpoints_that_may_be_pushed_freely_are_forgotten() {
        let mut endpoints = EndpointLimits::default();
        let start = Instant::now();
        for number in 0..10 * SWEEP {
            let now = start + Duration::from_secs(number as u64);
            assert_eq!(endpoints.use_one(&token(number), "a", DISTANCE, now), Ok(()));
        }
        assert!(endpoints.endpoints.len() <= SWEEP, "{}", endpoints.endpoints.len());
    }
}
