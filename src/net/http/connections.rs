//! Which connections there are, from where, and on which a request is under way.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// All connections of a server.
#[derive(Debug)]
pub(super) struct OpenConnections {
    most: usize,
    /// In the order in which they came.
    open: Mutex<(u64, BTreeMap<u64, Arc<AdmittedConnection>>)>,
}

/// What is known of one connection.
#[derive(Debug)]
pub(super) struct AdmittedConnection {
    number: u64,
    /// The client's network.
    origin: Mutex<IpAddr>,
    /// How many requests are under way.
    requests: AtomicUsize,
    /// That number is another one.
    changed: Notify,
    /// Cancelled when it has to go.
    pub(super) leave: CancellationToken,
}

/// A request is under way while this lives.
#[derive(Debug)]
pub(super) struct RequestUnderWay(Arc<AdmittedConnection>);

impl OpenConnections {
    /// At most so many.
    pub(super) fn new(most: usize) -> Self {
        Self { most, open: Mutex::default() }
    }

    /// Takes in a connection from `address`. Where it is one too many, another one has to go, which the
    /// second value says.
    pub(super) fn admit(&self, address: IpAddr) -> (Arc<AdmittedConnection>, bool) {
        let mut open = self.open.lock();
        let crowded = open.1.len() >= self.most;
        if crowded {
            evict(&mut open.1);
        }
        let number = open.0;
        open.0 += 1;
        let admitted = Arc::new(AdmittedConnection {
            number,
            origin: Mutex::new(network(address)),
            requests: AtomicUsize::new(0),
            changed: Notify::new(),
            leave: CancellationToken::new(),
        });
        open.1.insert(number, Arc::clone(&admitted));
        (admitted, crowded)
    }

    /// Sends a connection away, if there is any.
    pub(super) fn make_room(&self) {
        evict(&mut self.open.lock().1);
    }

    /// The connection has ended.
    pub(super) fn leave(&self, admitted: &AdmittedConnection) {
        self.open.lock().1.remove(&admitted.number);
    }
}

/// Sends a connection of the network that has most of them away: the oldest one on which no request is
/// under way, or else the oldest one.
fn evict(open: &mut BTreeMap<u64, Arc<AdmittedConnection>>) {
    let mut by_origin: HashMap<IpAddr, usize> = HashMap::new();
    for admitted in open.values() {
        *by_origin.entry(*admitted.origin.lock()).or_default() += 1;
    }
    let Some((crowd, _)) = by_origin.into_iter().max_by_key(|(_, connections)| *connections) else {
        return;
    };
    let of_crowd = || open.values().filter(|admitted| *admitted.origin.lock() == crowd);
    let idle = of_crowd().find(|admitted| admitted.is_idle());
    if let Some(number) = idle.or_else(|| of_crowd().next()).map(|admitted| admitted.number)
        && let Some(admitted) = open.remove(&number)
    {
        admitted.leave.cancel();
    }
}

/// The address, or the network of 64 bits that an IPv6 address is in.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
    }
}

impl AdmittedConnection {
    /// The connection comes from this address, as the proxy in front says.
    pub(super) fn comes_from(&self, address: IpAddr) {
        *self.origin.lock() = network(address);
    }

    /// A request begins.
    pub(super) fn request(this: &Arc<Self>) -> RequestUnderWay {
        this.requests.fetch_add(1, Ordering::SeqCst);
        this.changed.notify_one();
        RequestUnderWay(Arc::clone(this))
    }

    fn is_idle(&self) -> bool {
        self.requests.load(Ordering::SeqCst) == 0
    }

    /// Ends when no request has been under way for `later`, or `first` before the first one: then it
    /// returns true.
    pub(super) async fn idle(&self, first: Duration, later: Duration) -> bool {
        let (mut limit, mut is_first) = (first, true);
        loop {
            // One that has changed meanwhile is heard of at once.
            let changed = self.changed.notified();
            if !self.is_idle() {
                changed.await;
            } else if timeout(limit, changed).await.is_err() {
                return is_first;
            }
            (limit, is_first) = (later, false);
        }
    }
}

impl Drop for RequestUnderWay {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::SeqCst);
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_too_many_costs_the_address_with_most_its_oldest_idle_connection() {
        let connections = OpenConnections::new(4);
        let admit = |address: &str| connections.admit(address.parse().unwrap()).0;
        let quiet = admit("192.0.2.1");
        let [busy, idle, _] = ["2001:db8::1", "2001:db8::2", "2001:db8::3"].map(admit);
        let request = AdmittedConnection::request(&busy);
        let (new, crowded) = connections.admit("192.0.2.9".parse().unwrap());
        assert!(crowded && idle.leave.is_cancelled());
        assert!([&quiet, &busy, &new].iter().all(|other| !other.leave.is_cancelled()));
        drop(request);
        connections.leave(&new);
        connections.make_room();
        assert!(busy.leave.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_sooner_before_its_first_request() {
        let connections = OpenConnections::new(4);
        let (admitted, _) = connections.admit("192.0.2.1".parse().unwrap());
        let [first, later] = [10, 60].map(Duration::from_secs);
        let began = tokio::time::Instant::now();
        assert!(admitted.idle(first, later).await);
        assert_eq!(began.elapsed(), first);
        let request = AdmittedConnection::request(&admitted);
        let idle = tokio::spawn({
            let admitted = Arc::clone(&admitted);
            async move { admitted.idle(first, later).await }
        });
        tokio::time::sleep(later * 2).await;
        drop(request);
        let began = tokio::time::Instant::now();
        assert!(!idle.await.unwrap());
        assert_eq!(began.elapsed(), later);
    }
}
