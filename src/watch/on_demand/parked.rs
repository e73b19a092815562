//! Parked accounts on demand: what each waits for, and when there is something to do for it.

use tokio::time::Instant;

use super::OnDemand;
use crate::model::{Account, BackendId};
use crate::watch::credential_history::CredentialHistory;
use crate::watch::parked_wait::ParkedWait;

/// Parked accounts whose devices are being pushed at once, each in its turn at its backend.
const PUSHING: usize = 64;

/// What was refused, and whether nothing has shown yet that the credentials are right.
pub(in crate::watch) type KeptCredentials = Box<(CredentialHistory, bool)>;

/// A parked account without a task.
#[derive(Debug)]
pub(super) struct ParkedAccount {
    pub(super) wait: ParkedWait,
    /// There is something to be looked into before its time.
    is_called: bool,
    /// Its user may have logged in at another node.
    missed_logins: bool,
}

impl OnDemand {
    /// What the next task of the account has to know of its credentials.
    pub(in crate::watch) fn remember_credentials(
        &mut self,
        account: &Account,
        credentials: Option<KeptCredentials>,
    ) {
        if let Some(credentials) = credentials {
            self.credentials.insert(account.clone(), credentials);
        }
    }

    /// The account is parked, and needs no task for that.
    pub(in crate::watch) fn parked(&mut self, account: &Account, wait: ParkedWait) {
        if let Some(at) = wait.next() {
            self.put_off(account, at);
        }
        let parked = ParkedAccount { wait, is_called: false, missed_logins: false };
        self.parked.insert(account.clone(), parked);
    }

    /// The same of one whose credentials were refused before the program started.
    pub(in crate::watch) fn parked_before(
        &mut self,
        account: &Account,
        wait: ParkedWait,
        known: CredentialHistory,
    ) {
        self.parked(account, wait);
        self.credentials.insert(account.clone(), Box::new((known, true)));
    }

    /// Whether the account has no task since it is parked.
    pub(in crate::watch) fn is_parked(&self, account: &Account) -> bool {
        self.parked.contains_key(account)
    }

    /// Whether the account is parked, and neither is its time over nor is there something to be looked into.
    pub(in crate::watch) fn waits_parked(&self, account: &Account) -> bool {
        let now = Instant::now();
        self.parked.get(account).is_some_and(|it| !it.is_called && !it.wait.is_due(now))
    }

    /// Parked accounts of which this says that their waits are over are looked into, when their backends have room.
    pub(in crate::watch) fn call_parked(
        &mut self,
        is_over: impl Fn(&Account, &ParkedWait) -> bool,
        backend_of: impl Fn(&Account) -> Option<BackendId>,
    ) {
        let parked = self.parked.iter_mut();
        let over = parked.filter(|(account, it)| !it.is_called && is_over(account, &it.wait));
        let called = over.map(|(account, parked)| {
            parked.is_called = true;
            account.clone()
        });
        let called = called.collect();
        self.waiting.add(called, backend_of);
    }

    /// The same of one account.
    pub(in crate::watch) fn call(&mut self, account: &Account, backend: Option<BackendId>) {
        if let Some(parked) = self.parked.get_mut(account) {
            parked.is_called = true;
            self.wait_for_backend(account.clone(), backend);
        }
    }

    /// The user of a parked account may have logged in at another node: that is looked into.
    pub(in crate::watch) fn missed_logins(
        &mut self,
        account: &Account,
        backend: Option<BackendId>,
    ) {
        if let Some(parked) = self.parked.get_mut(account) {
            parked.missed_logins = true;
            self.call(account, backend);
        }
    }

    /// Whether the user of a parked account may have logged in at another node.
    pub(in crate::watch) fn has_missed_logins(&self, account: &Account) -> bool {
        self.parked.get(account).is_some_and(|parked| parked.missed_logins)
    }

    /// The time of a parked account has come: for another try, when its backend has room, or for a push.
    pub(in crate::watch) fn parked_until_now(
        &mut self,
        account: Account,
        backend: Option<BackendId>,
    ) {
        let now = Instant::now();
        if !self.waits_parked(&account) {
            self.wait_for_backend(account, backend);
        } else if self.parked.get(&account).is_some_and(|parked| parked.wait.pushes(now)) {
            self.to_push.push_back(account);
        }
    }

    /// The next parked account whose devices are to be pushed, if another task for that may begin.
    pub(in crate::watch) fn next_to_push(&mut self) -> Option<Account> {
        while self.pushing.len() < PUSHING {
            let account = self.to_push.pop_front()?;
            // It may have got a task meanwhile.
            if self.parked.contains_key(&account) {
                self.pushing.insert(account.clone());
                return Some(account);
            }
        }
        None
    }
}
