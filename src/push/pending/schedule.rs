//! When which account wants attention, soonest first.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use crate::model::Account;

/// At most one time for each account.
#[derive(Default)]
pub(super) struct Schedule {
    order: BTreeSet<(Instant, Account)>,
    times: HashMap<Account, Instant>,
}

impl Schedule {
    /// Replaces the account's time; `None` takes it off.
    pub(super) fn set(&mut self, account: &Account, at: Option<Instant>) {
        let before = match at {
            Some(at) => self.times.insert(account.clone(), at),
            None => self.times.remove(account),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.order.remove(&(before, account.clone()));
        }
        if let Some(at) = at {
            self.order.insert((at, account.clone()));
        }
    }

    /// The account whose time has been reached for longest.
    pub(super) fn due(&self, now: Instant) -> Option<&Account> {
        self.order.first().filter(|(at, _)| *at <= now).map(|(_, account)| account)
    }

    /// The soonest time.
    pub(super) fn next(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }
}
