//! Connections on which nobody is logged in yet. There is room for so many; where it is full, one of
//! those that take most of it has to go.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use tokio_util::sync::CancellationToken;

use super::origin::Origin;

/// All that wait. Pure: the caller says what happens, and each has a token that tells it to go.
#[derive(Debug, Default)]
pub(super) struct WaitingRoom {
    /// The next one's number: who has a smaller one is older.
    next: u64,
    members: HashMap<u64, WaitingClient>,
    /// They have no login under way, and go first.
    idle: Ranks,
    /// The backend is being asked about their login.
    trying: Ranks,
}

#[derive(Debug)]
struct WaitingClient {
    address: IpAddr,
    trying: bool,
    /// Cancelled when it has to go.
    goes: CancellationToken,
}

/// Members by network, and the networks by how much of the room they take.
#[derive(Debug, Default)]
struct Ranks {
    networks: HashMap<Origin, (u32, BTreeSet<u64>)>,
    /// The last one is the next to lose its oldest member.
    order: BTreeSet<(usize, Reverse<u64>, Origin)>,
}

impl WaitingRoom {
    /// Takes in a connection from `address`. Where there are `limit` already, another one goes for it.
    /// Returns its number, what ends when it has to go itself, and whether another one had to.
    pub(super) fn enter(
        &mut self,
        address: IpAddr,
        limit: usize,
    ) -> (u64, CancellationToken, bool) {
        let mut crowded = false;
        while self.members.len() >= limit.max(1) {
            crowded = true;
            self.evict();
        }
        let goes = CancellationToken::new();
        let number = self.next;
        self.next += 1;
        self.members.insert(number, WaitingClient { address, trying: false, goes: goes.clone() });
        self.idle.add(number, address);
        (number, goes, crowded)
    }

    /// The connection is known to come from another address than that of who sent it here.
    pub(super) fn comes_from(&mut self, number: u64, address: IpAddr) {
        self.change(number, |member| member.address = address);
    }

    /// A login began or ended. Whose login is under way goes after all others.
    pub(super) fn tries(&mut self, number: u64, trying: bool) {
        if self.members.get(&number).is_some_and(|member| member.trying != trying) {
            self.change(number, |member| member.trying = trying);
        }
    }

    /// It is over, or its user is logged in.
    pub(super) fn leave(&mut self, number: u64) {
        if let Some(member) = self.members.remove(&number) {
            self.crowd(member.trying).remove(number, member.address);
        }
    }

    /// Sends one away; returns whether there was any.
    pub(super) fn evict(&mut self) -> bool {
        let oldest = self.idle.next_to_go().or_else(|| self.trying.next_to_go());
        if let Some(member) = oldest.and_then(|number| self.members.get(&number)) {
            member.goes.cancel();
        }
        oldest.inspect(|number| self.leave(*number)).is_some()
    }

    fn change(&mut self, number: u64, change: impl FnOnce(&mut WaitingClient)) {
        let Some(mut member) = self.members.remove(&number) else { return };
        self.crowd(member.trying).remove(number, member.address);
        change(&mut member);
        self.crowd(member.trying).add(number, member.address);
        self.members.insert(number, member);
    }

    fn crowd(&mut self, trying: bool) -> &mut Ranks {
        if trying { &mut self.trying } else { &mut self.idle }
    }
}

impl Ranks {
    fn add(&mut self, number: u64, address: IpAddr) {
        for (network, factor) in Origin::all(address) {
            self.update(network, factor, |members| members.insert(number));
        }
    }

    fn remove(&mut self, number: u64, address: IpAddr) {
        for (network, factor) in Origin::all(address) {
            self.update(network, factor, |members| members.remove(&number));
        }
    }

    fn update(
        &mut self,
        network: Origin,
        factor: u32,
        change: impl FnOnce(&mut BTreeSet<u64>) -> bool,
    ) {
        let entry = self.networks.entry(network).or_insert((factor, BTreeSet::new()));
        if let Some(place) = place(network, entry) {
            self.order.remove(&place);
        }
        change(&mut entry.1);
        match place(network, entry) {
            Some(place) => drop(self.order.insert(place)),
            None => drop(self.networks.remove(&network)),
        }
    }

    /// The oldest of the network that takes most for its size; of several such, the oldest of all.
    fn next_to_go(&self) -> Option<u64> {
        self.order.last().map(|(_, Reverse(oldest), _)| *oldest)
    }
}

/// Where a network stands in the order, if it has members.
fn place(
    network: Origin,
    (factor, members): &(u32, BTreeSet<u64>),
) -> Option<(usize, Reverse<u64>, Origin)> {
    // Every factor divides it.
    let weight = members.len() * 16 / *factor as usize;
    members.first().map(|oldest| (weight, Reverse(*oldest), network))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Lets all of them in, into a room for `limit`; the numbers of those that had to go, in order.
    fn gone(limit: usize, addresses: &[&str]) -> Vec<u64> {
        let mut waiting = WaitingRoom::default();
        let (mut receivers, mut gone) = (Vec::new(), Vec::new());
        for address in addresses {
            let (number, goes, _) = waiting.enter(ip(address), limit);
            receivers.push((number, goes));
            receivers.retain(|(number, goes): &(u64, CancellationToken)| {
                if goes.is_cancelled() {
                    gone.push(*number);
                }
                !goes.is_cancelled()
            });
        }
        gone
    }

    #[test]
    fn the_oldest_of_the_origin_that_has_most_goes() {
        assert_eq!(gone(3, &["192.0.2.1", "198.51.100.1", "192.0.2.1"]), [0; 0]);
        assert_eq!(gone(3, &["198.51.100.1", "192.0.2.1", "192.0.2.1", "203.0.113.1"]), [1]);
        // Of one each, the oldest of all.
        assert_eq!(gone(2, &["198.51.100.1", "192.0.2.1", "203.0.113.1"]), [0]);
        // Many addresses of one network are one origin when they are very many.
        let mut many = vec!["198.51.100.1".to_owned(), "198.51.100.1".to_owned()];
        many.extend((0..40).map(|at| format!("192.0.2.{at}")));
        many.push("203.0.113.1".to_owned());
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert_eq!(gone(42, &many), [2]);
        let mut many = vec!["2001:db8::1".to_owned(), "2001:db8::1".to_owned()];
        many.extend((0..40).map(|at| format!("2001:db8:1:{at:x}::1")));
        many.push("192.0.2.1".to_owned());
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert_eq!(gone(42, &many), [2]);
    }

    #[test]
    fn a_connection_whose_login_is_under_way_goes_last_and_closed_ones_are_forgotten() {
        let mut waiting = WaitingRoom::default();
        let (first, first_goes, _) = waiting.enter(ip("192.0.2.1"), 2);
        waiting.tries(first, true);
        let (second, second_goes, _) = waiting.enter(ip("192.0.2.2"), 2);
        waiting.comes_from(second, ip("192.0.2.3"));
        let (third, _, crowded) = waiting.enter(ip("192.0.2.4"), 2);
        assert!(crowded && !first_goes.is_cancelled() && second_goes.is_cancelled());
        waiting.leave(third);
        assert!(waiting.evict(), "there is nobody else");
        assert!(first_goes.is_cancelled());
        assert!(!waiting.evict());
        for number in [first, second, third] {
            waiting.leave(number);
            waiting.comes_from(number, ip("192.0.2.1"));
        }
        let crowds = [&waiting.idle, &waiting.trying];
        assert!(crowds.iter().all(|crowd| crowd.networks.is_empty() && crowd.order.is_empty()));
        assert!(waiting.members.is_empty());
    }
}
