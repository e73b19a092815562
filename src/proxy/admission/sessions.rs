//! Sessions of users who are logged in: in all, and by network.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::origin::Origin;
use crate::config::LimitsConfig;

#[derive(Debug, Default)]
pub(super) struct Sessions {
    all: usize,
    by_network: HashMap<Origin, usize>,
}

/// A session's place. Dropping it gives it back.
#[derive(Debug)]
pub(in crate::proxy) struct SessionPermit {
    sessions: Arc<Mutex<Sessions>>,
    address: IpAddr,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum SessionsFull {
    /// `[limits] sessions`.
    All,
    /// `[limits] sessions_per_ip`.
    Origin,
}

/// The networks that a session counts for. Of IPv4 it is the address alone: the subscribers of a
/// mobile network share the addresses of one network of 24 bits, by the thousand.
fn networks(address: IpAddr) -> impl Iterator<Item = (Origin, usize)> {
    let only_origin = address.to_canonical().is_ipv4();
    let networks = Origin::all(address).take(if only_origin { 1 } else { usize::MAX });
    networks.map(|(network, factor)| (network, factor as usize))
}

impl SessionPermit {
    /// A place for a session from `address`, if there is one.
    pub(super) fn take(
        sessions: &Arc<Mutex<Sessions>>,
        address: IpAddr,
        limits: &LimitsConfig,
    ) -> Result<Self, SessionsFull> {
        let mut counts = sessions.lock();
        if counts.all >= limits.sessions {
            return Err(SessionsFull::All);
        }
        let fits = |(network, factor)| {
            let open = counts.by_network.get(&network).copied().unwrap_or(0);
            open < limits.sessions_per_ip.saturating_mul(factor)
        };
        if !networks(address).all(fits) {
            return Err(SessionsFull::Origin);
        }
        counts.all += 1;
        for (network, _) in networks(address) {
            *counts.by_network.entry(network).or_default() += 1;
        }
        Ok(Self { sessions: Arc::clone(sessions), address })
    }
}

impl Drop for SessionPermit {
    fn drop(&mut self) {
        let mut counts = self.sessions.lock();
        counts.all -= 1;
        for (network, _) in networks(self.address) {
            match counts.by_network.get_mut(&network) {
                Some(open) if *open > 1 => *open -= 1,
                _ => drop(counts.by_network.remove(&network)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(sessions: usize, sessions_per_ip: usize) -> LimitsConfig {
        LimitsConfig { sessions, sessions_per_ip, ..LimitsConfig::default() }
    }

    #[test]
    fn places_come_back_in_all_and_by_network() {
        let sessions = Arc::default();
        let take = |address: &str, limits: &LimitsConfig| {
            SessionPermit::take(&sessions, address.parse().unwrap(), limits)
        };
        let two = limits(2, 1);
        let first = take("192.0.2.1", &two).unwrap();
        assert_eq!(take("::ffff:192.0.2.1", &two).unwrap_err(), SessionsFull::Origin);
        let second = take("192.0.2.2", &two).unwrap();
        assert_eq!(take("192.0.2.3", &two).unwrap_err(), SessionsFull::All);
        drop(first);
        let third = take("192.0.2.1", &two).unwrap();
        drop((second, third));

        let many = limits(100, 1);
        let open: Vec<_> = (0..9).map(|at| take(&format!("2001:db8:0:{at}::1"), &many)).collect();
        let (fit, full): (Vec<_>, Vec<_>) = open.into_iter().partition(Result::is_ok);
        assert_eq!((fit.len(), full.len()), (4, 5), "a network of 56 bits has four allowances");
        drop((fit, full));
        let open = (0..0xff).map(|at| take(&format!("2001:db8:0:{at:x}00::1"), &many));
        let open: Vec<_> = open.filter_map(Result::ok).collect();
        assert_eq!(open.len(), 16, "and one of 48 bits sixteen");
        drop(open);
        let counts = sessions.lock();
        assert_eq!((counts.all, counts.by_network.len()), (0, 0));
    }

    #[test]
    fn a_place_comes_back_even_from_a_panic() {
        let sessions = Arc::default();
        let (inner, address) = (Arc::clone(&sessions), "192.0.2.1".parse().unwrap());
        let panicked = std::thread::spawn(move || {
            let _place = SessionPermit::take(&inner, address, &limits(1, 1)).unwrap();
            panic!("as a session might");
        });
        assert!(panicked.join().is_err());
        assert!(SessionPermit::take(&sessions, address, &limits(1, 1)).is_ok());
    }
}
