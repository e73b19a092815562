//! When which account has its turn. Those that are due take turns by backend, by domain within a
//! backend, and by account within a domain: one with many accounts has its turn as often as one with
//! few, and a single account does not wait behind a crowd. A backend or domain that may have no turn
//! before some time is passed over until then.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use crate::model::Account;

/// Whose account it is, as far as turns are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tenant {
    pub(super) backend: Arc<str>,
    /// Empty for names without one.
    pub(super) domain: Box<str>,
}

/// At most one time for each account.
#[derive(Default)]
pub(super) struct Schedule {
    places: HashMap<Account, Position>,
    /// Of whom the time has not come, soonest first.
    waiting: BTreeSet<(Instant, u64, Account)>,
    ready: RoundRobin<Arc<str>, DomainTurns>,
    /// Puts accounts with the same time in the order in which they came.
    came: u64,
}

enum Position {
    Waiting { at: Instant, came: u64 },
    Ready { at: Instant, share: Tenant },
}

type DomainTurns = RoundRobin<Box<str>, RoundRobin<Account, ()>>;

/// Members that have their turns one after the other.
struct RoundRobin<K, V> {
    order: BTreeMap<u64, K>,
    members: HashMap<K, Member<V>>,
    /// Who has no turn until some time; not in `order`.
    paused: BTreeMap<(Instant, u64), K>,
    next: u64,
}

struct Member<V> {
    turn: u64,
    paused_until: Option<Instant>,
    value: V,
}

/// Whose turns have to wait.
#[derive(Clone, Copy, Debug)]
pub(super) enum TenantPart<'a> {
    Backend(&'a Arc<str>),
    Domain(&'a str),
}

impl Schedule {
    /// Replaces the account's time; `None` takes it off. An account whose time has come keeps its turn
    /// unless it is put off.
    pub(super) fn set(&mut self, account: &Account, at: Option<Instant>) {
        match (self.places.get_mut(account), at) {
            (None, None) => return,
            (Some(Position::Waiting { at: before, .. }), Some(at)) if *before == at => return,
            (Some(Position::Ready { at: before, .. }), Some(at)) if at <= *before => {
                *before = at;
                return;
            }
            _ => self.remove(account),
        }
        if let Some(at) = at {
            self.came += 1;
            self.waiting.insert((at, self.came, account.clone()));
            self.places.insert(account.clone(), Position::Waiting { at, came: self.came });
        }
    }

    /// Takes off the account whose turn it is, and says whose it is.
    pub(super) fn take(
        &mut self,
        now: Instant,
        share: impl Fn(&Account) -> Tenant,
    ) -> Option<(Account, Tenant)> {
        self.take_unless(now, share, |_| None)
    }

    /// As [`Schedule::take`], but for backends and domains that have no turn until the time that `wait`
    /// says.
    pub(super) fn take_unless(
        &mut self,
        now: Instant,
        share: impl Fn(&Account) -> Tenant,
        mut wait: impl FnMut(TenantPart<'_>) -> Option<Instant>,
    ) -> Option<(Account, Tenant)> {
        while self.waiting.first().is_some_and(|(at, ..)| *at <= now)
            && let Some((at, _, account)) = self.waiting.pop_first()
        {
            let share = share(&account);
            let domains = self.ready.member(share.backend.clone());
            domains.member(share.domain.clone()).member(account.clone());
            self.places.insert(account, Position::Ready { at, share });
        }
        self.ready.resume(now);
        let (backend, domain, account) = loop {
            let backend = self.ready.first()?.0.clone();
            if let Some(until) = wait(TenantPart::Backend(&backend)) {
                self.ready.pause(&backend, until);
                continue;
            }
            let domains = self.ready.get_mut(&backend)?;
            domains.resume(now);
            match domains.first() {
                Some((domain, accounts)) => {
                    let domain = domain.clone();
                    let Some(until) = wait(TenantPart::Domain(&domain)) else {
                        break (backend, domain, accounts.first()?.0.clone());
                    };
                    domains.pause(&domain, until);
                }
                None => {
                    let until = domains.resumes_at()?;
                    self.ready.pause(&backend, until);
                }
            }
        };
        self.remove(&account);
        self.ready.put_last(&backend);
        if let Some(domains) = self.ready.get_mut(&backend) {
            domains.put_last(&domain);
        }
        Some((account, Tenant { backend, domain }))
    }

    /// The soonest time at which somebody has a turn.
    pub(super) fn next(&self) -> Option<Instant> {
        let ready = |domains: &DomainTurns| {
            let account = domains.first()?.1.first()?.0;
            match self.places.get(account)? {
                Position::Ready { at, .. } | Position::Waiting { at, .. } => Some(*at),
            }
        };
        let waiting = || self.waiting.first().map(|(at, ..)| *at);
        // A backend all of whose domains wait, although it does not wait itself.
        let domains = || self.ready.in_order().filter_map(DomainTurns::resumes_at);
        let later = || waiting().into_iter().chain(self.ready.resumes_at()).chain(domains()).min();
        // Who is ready has a time that has passed.
        self.ready.in_order().find_map(ready).or_else(later)
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    fn remove(&mut self, account: &Account) {
        match self.places.remove(account) {
            None => {}
            Some(Position::Waiting { at, came }) => {
                self.waiting.remove(&(at, came, account.clone()));
            }
            Some(Position::Ready { share: Tenant { backend, domain }, .. }) => {
                let Some(domains) = self.ready.get_mut(&backend) else { return };
                if let Some(accounts) = domains.get_mut(&domain) {
                    accounts.remove(account);
                    if accounts.is_empty() {
                        domains.remove(&domain);
                    }
                }
                if domains.is_empty() {
                    self.ready.remove(&backend);
                }
            }
        }
    }
}

impl<K, V> Default for RoundRobin<K, V> {
    fn default() -> Self {
        let (order, members, paused) = Default::default();
        Self { order, members, paused, next: 0 }
    }
}

impl<K: Clone + Eq + Hash, V: Default> RoundRobin<K, V> {
    /// The member of this name, which has the last turn if it is new. What it gets may have its turn
    /// at once, so a pause ends.
    fn member(&mut self, key: K) -> &mut V {
        let member = self.members.entry(key.clone()).or_insert_with(|| {
            self.next += 1;
            self.order.insert(self.next, key);
            Member { turn: self.next, paused_until: None, value: V::default() }
        });
        if let Some(until) = member.paused_until.take()
            && let Some(key) = self.paused.remove(&(until, member.turn))
        {
            self.order.insert(member.turn, key);
        }
        &mut member.value
    }

    /// Takes its turns from the member until this time; then it has the one that it had.
    fn pause(&mut self, key: &K, until: Instant) {
        if let Some(member) = self.members.get_mut(key)
            && let Some(key) = self.order.remove(&member.turn)
        {
            member.paused_until = Some(until);
            self.paused.insert((until, member.turn), key);
        }
    }

    /// Ends the pauses whose time has come.
    fn resume(&mut self, now: Instant) {
        while let Some(first) = self.paused.first_entry()
            && first.key().0 <= now
        {
            let ((_, turn), key) = first.remove_entry();
            if let Some(member) = self.members.get_mut(&key) {
                member.paused_until = None;
            }
            self.order.insert(turn, key);
        }
    }

    /// When the first pause ends.
    fn resumes_at(&self) -> Option<Instant> {
        self.paused.first_key_value().map(|((until, _), _)| *until)
    }

    /// Whose turn it is.
    fn first(&self) -> Option<(&K, &V)> {
        let (_, key) = self.order.first_key_value()?;
        Some((key, &self.members.get(key)?.value))
    }

    /// Those that do not pause, the one whose turn it is first.
    fn in_order(&self) -> impl Iterator<Item = &V> {
        self.order.values().filter_map(|key| Some(&self.members.get(key)?.value))
    }

    fn get_mut<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.members.get_mut(key).map(|member| &mut member.value)
    }

    fn put_last(&mut self, key: &K) {
        if let Some(member) = self.members.get_mut(key)
            && let Some(key) = self.order.remove(&member.turn)
        {
            self.next += 1;
            member.turn = self.next;
            self.order.insert(self.next, key);
        }
    }

    fn remove(&mut self, key: &K) {
        if let Some(member) = self.members.remove(key) {
            self.order.remove(&member.turn);
            if let Some(until) = member.paused_until {
                self.paused.remove(&(until, member.turn));
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.members.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn account(name: &str) -> Account {
        Account::from_login(name)
    }

    /// The backend of a domain is its last letter.
    fn share(account: &Account) -> Tenant {
        let domain = account.domain().unwrap_or_default();
        Tenant { backend: domain[domain.len() - 1..].into(), domain: domain.into() }
    }

    #[test]
    fn backends_take_turns_then_domains_then_accounts() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        let names = ["1@a.x", "2@a.x", "3@a.x", "1@b.x", "1@c.y", "2@c.y"];
        for name in names {
            schedule.set(&account(name), Some(now));
        }
        let mut order = Vec::new();
        while let Some((account, _)) = schedule.take(now, share) {
            // The first has more to do, and has its turn again after the others of its domain.
            if order.len() < 2 && account.as_str() == "1@a.x" {
                schedule.set(&account, Some(now));
            }
            order.push(account.to_string());
        }
        assert_eq!(order, ["1@a.x", "1@c.y", "1@b.x", "2@c.y", "2@a.x", "3@a.x", "1@a.x"]);
        assert_eq!((schedule.len(), schedule.next()), (0, None));
        assert!(schedule.ready.is_empty() && schedule.waiting.is_empty());
    }

    #[test]
    fn the_time_of_an_account_can_change_before_its_turn() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut schedule = Schedule::default();
        for name in ["1@a.x", "2@a.x", "3@a.x"] {
            schedule.set(&account(name), Some(now));
        }
        schedule.set(&account("4@a.x"), Some(later));
        let take = |schedule: &mut Schedule, now| schedule.take(now, share).map(|(taken, _)| taken);
        assert_eq!(take(&mut schedule, now), Some(account("1@a.x")));
        schedule.set(&account("2@a.x"), Some(later));
        schedule.set(&account("3@a.x"), None);
        assert_eq!((take(&mut schedule, now), schedule.next()), (None, Some(later)));
        assert_eq!(take(&mut schedule, later), Some(account("4@a.x")));
        assert_eq!(take(&mut schedule, later), Some(account("2@a.x")));
        assert_eq!(schedule.len(), 0);
    }

    #[test]
    fn an_account_that_has_to_wait_is_passed_over_until_its_time_and_keeps_its_place() {
        let now = Instant::now();
        let later = |seconds| now + Duration::from_secs(seconds);
        let mut schedule = Schedule::default();
        for name in ["1@a.x", "2@a.x", "1@b.x", "1@c.y", "2@c.y"] {
            schedule.set(&account(name), Some(now));
        }
        let take = |schedule: &mut Schedule, at: Instant| {
            let wait = |part: TenantPart<'_>| match part {
                TenantPart::Domain("a.x") => Some(later(2)),
                TenantPart::Backend(name) if **name == *"y" => Some(later(3)),
                _ => None,
            };
            let wait = |part: TenantPart<'_>| wait(part).filter(|until| at < *until);
            schedule.take_unless(at, share, wait).map(|(taken, _)| taken.to_string())
        };
        assert_eq!(take(&mut schedule, now).as_deref(), Some("1@b.x"));
        assert_eq!((take(&mut schedule, now), schedule.next()), (None, Some(later(2))));
        assert_eq!((take(&mut schedule, later(1)), schedule.len()), (None, 4));
        // One that comes to a backend all of whose domains wait has its turn at once.
        schedule.set(&account("2@b.x"), Some(later(1)));
        assert_eq!(take(&mut schedule, later(1)).as_deref(), Some("2@b.x"));
        assert_eq!((take(&mut schedule, later(1)), schedule.next()), (None, Some(later(2))));
        // Who is gone is not waited for.
        schedule.set(&account("1@c.y"), None);
        assert_eq!(take(&mut schedule, later(2)).as_deref(), Some("1@a.x"));
        assert_eq!(take(&mut schedule, later(2)).as_deref(), Some("2@a.x"));
        assert_eq!((take(&mut schedule, later(2)), schedule.next()), (None, Some(later(3))));
        assert_eq!(take(&mut schedule, later(3)).as_deref(), Some("2@c.y"));
        assert_eq!((schedule.len(), schedule.next()), (0, None));
        assert!(schedule.ready.is_empty() && schedule.ready.paused.is_empty());
    }
}
