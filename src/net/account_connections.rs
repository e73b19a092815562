//! How many connections each account has.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::model::Account;

/// Connections by account: accounts whose names differ in nothing but case count as one, since to most
/// servers they are one user. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub(super) struct AccountConnections(Arc<Mutex<HashMap<Arc<str>, usize>>>);

/// One connection's place among those of its account. Dropping it gives the place back.
#[derive(Debug)]
pub struct ConnectionPermit {
    connections: AccountConnections,
    /// The account's key, shared with the counts.
    account: Arc<str>,
}

impl AccountConnections {
    /// A place for one more connection of the account; `None` where it has `limit` already. 0 is no
    /// limit.
    pub(super) fn permit(&self, account: &Account, limit: usize) -> Option<ConnectionPermit> {
        let account: Arc<str> = account.case_folded().into();
        let mut open = self.0.lock();
        let count = open.get(&account).copied().unwrap_or(0);
        if limit > 0 && count >= limit {
            return None;
        }
        open.insert(Arc::clone(&account), count + 1);
        Some(ConnectionPermit { connections: self.clone(), account })
    }

    /// Accounts that have a connection.
    #[cfg(test)]
    pub(super) fn accounts(&self) -> usize {
        self.0.lock().len()
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut open = self.connections.0.lock();
        match open.get_mut(&self.account) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(open.remove(&self.account)),
        }
    }
}
