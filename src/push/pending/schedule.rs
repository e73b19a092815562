//! When which account has its turn. Those that are due take turns by backend, by domain within a
//! backend, and by account within a domain: one with many accounts has its turn as often as one with
//! few, and a single account does not wait behind a crowd.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use crate::model::Account;

/// Whose account it is, as far as turns are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) backend: Arc<str>,
    /// Empty for names without one.
    pub(super) domain: Box<str>,
}

/// At most one time for each account.
#[derive(Default)]
pub(super) struct Schedule {
    places: HashMap<Account, Place>,
    /// Of whom the time has not come, soonest first.
    waiting: BTreeSet<(Instant, u64, Account)>,
    ready: Turns<Arc<str>, DomainTurns>,
    /// Puts accounts with the same time in the order in which they came.
    came: u64,
}

enum Place {
    Waiting { at: Instant, came: u64 },
    Ready { at: Instant, share: Share },
}

type DomainTurns = Turns<Box<str>, Turns<Account, ()>>;

/// Members that have their turns one after the other.
struct Turns<K, V> {
    order: BTreeMap<u64, K>,
    members: HashMap<K, (u64, V)>,
    next: u64,
}

impl Schedule {
    /// Replaces the account's time; `None` takes it off. An account whose time has come keeps its turn
    /// unless it is put off.
    pub(super) fn set(&mut self, account: &Account, at: Option<Instant>) {
        match (self.places.get_mut(account), at) {
            (None, None) => return,
            (Some(Place::Waiting { at: before, .. }), Some(at)) if *before == at => return,
            (Some(Place::Ready { at: before, .. }), Some(at)) if at <= *before => {
                *before = at;
                return;
            }
            _ => self.remove(account),
        }
        if let Some(at) = at {
            self.came += 1;
            self.waiting.insert((at, self.came, account.clone()));
            self.places.insert(account.clone(), Place::Waiting { at, came: self.came });
        }
    }

    /// Takes off the account whose turn it is.
    pub(super) fn take(
        &mut self,
        now: Instant,
        share: impl Fn(&Account) -> Share,
    ) -> Option<Account> {
        while self.waiting.first().is_some_and(|(at, ..)| *at <= now)
            && let Some((at, _, account)) = self.waiting.pop_first()
        {
            let share = share(&account);
            let domains = self.ready.member(share.backend.clone());
            domains.member(share.domain.clone()).member(account.clone());
            self.places.insert(account, Place::Ready { at, share });
        }
        let (backend, domains) = self.ready.first()?;
        let (domain, accounts) = domains.first()?;
        let (account, ()) = accounts.first()?;
        let (backend, domain, account) = (backend.clone(), domain.clone(), account.clone());
        self.remove(&account);
        self.ready.put_last(&backend);
        if let Some(domains) = self.ready.get_mut(&backend) {
            domains.put_last(&domain);
        }
        Some(account)
    }

    /// The soonest time.
    pub(super) fn next(&self) -> Option<Instant> {
        let ready = || {
            let account = self.ready.first()?.1.first()?.1.first()?.0;
            match self.places.get(account)? {
                Place::Ready { at, .. } | Place::Waiting { at, .. } => Some(*at),
            }
        };
        ready().or_else(|| self.waiting.first().map(|(at, ..)| *at))
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    fn remove(&mut self, account: &Account) {
        match self.places.remove(account) {
            None => {}
            Some(Place::Waiting { at, came }) => {
                self.waiting.remove(&(at, came, account.clone()));
            }
            Some(Place::Ready { share: Share { backend, domain }, .. }) => {
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

impl<K, V> Default for Turns<K, V> {
    fn default() -> Self {
        Self { order: BTreeMap::new(), members: HashMap::new(), next: 0 }
    }
}

impl<K: Clone + Eq + Hash, V: Default> Turns<K, V> {
    /// The member of this name, which has the last turn if it is new.
    fn member(&mut self, key: K) -> &mut V {
        let (order, next) = (&mut self.order, &mut self.next);
        let member = self.members.entry(key.clone()).or_insert_with(|| {
            *next += 1;
            order.insert(*next, key);
            (*next, V::default())
        });
        &mut member.1
    }

    /// Whose turn it is.
    fn first(&self) -> Option<(&K, &V)> {
        let (_, key) = self.order.first_key_value()?;
        Some((key, &self.members.get(key)?.1))
    }

    fn get_mut<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.members.get_mut(key).map(|(_, value)| value)
    }

    fn put_last(&mut self, key: &K) {
        if let Some((turn, _)) = self.members.get_mut(key) {
            self.order.remove(turn);
            self.next += 1;
            *turn = self.next;
            self.order.insert(self.next, key.clone());
        }
    }

    fn remove(&mut self, key: &K) {
        if let Some((turn, _)) = self.members.remove(key) {
            self.order.remove(&turn);
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
    fn share(account: &Account) -> Share {
        let domain = account.domain().unwrap_or_default();
        Share { backend: domain[domain.len() - 1..].into(), domain: domain.into() }
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
        while let Some(account) = schedule.take(now, share) {
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
        assert_eq!(schedule.take(now, share), Some(account("1@a.x")));
        schedule.set(&account("2@a.x"), Some(later));
        schedule.set(&account("3@a.x"), None);
        assert_eq!((schedule.take(now, share), schedule.next()), (None, Some(later)));
        assert_eq!(schedule.take(later, share), Some(account("4@a.x")));
        assert_eq!(schedule.take(later, share), Some(account("2@a.x")));
        assert_eq!(schedule.len(), 0);
    }
}
