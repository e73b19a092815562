//! Parked accounts on demand: what each waits for, and when there is something to do for it.

use std::collections::{HashMap, HashSet, VecDeque};

use tokio::task::Id;
use tokio::time::Instant;

use super::OnDemand;
use crate::model::{Account, BackendId};
use crate::watch::credential_history::CredentialHistory;
use crate::watch::parked_wait::{KnownRecoveries, ParkedWait};

/// Parked accounts of one backend whose devices are being pushed at once, each in its turn there.
pub(super) const PUSHING: usize = 64;

/// What is known of credentials.
pub(in crate::watch) type KeptCredentials = Box<CredentialHistory>;

/// A parked account without a task.
#[derive(Debug)]
pub(super) struct ParkedAccount {
    pub(super) wait: ParkedWait,
    /// There is something to be looked into before its time.
    is_called: bool,
    /// Its user may have logged in at another node.
    missed_logins: bool,
}

/// Parked accounts whose devices are to be pushed, so that their users log in. A backend at which turns are slow holds
/// up no other one's.
#[derive(Debug, Default)]
pub(super) struct LoginPushes {
    of_backends: HashMap<Option<BackendId>, PushQueue>,
    /// Those that wait, of all backends.
    waiting: HashSet<Account>,
    /// The one that is to get its task now, with its backend.
    begins: Option<(Account, Option<BackendId>)>,
    /// The tasks that push devices, with the backends of their accounts.
    under_way: HashMap<Id, Option<BackendId>>,
}

#[derive(Debug, Default)]
struct PushQueue {
    waiting: VecDeque<Account>,
    under_way: usize,
}

impl LoginPushes {
    fn add(&mut self, account: Account, backend: Option<BackendId>) {
        if self.waiting.insert(account.clone()) {
            self.of_backends.entry(backend).or_default().waiting.push_back(account);
        }
    }

    /// The next account for which a task may begin, of those that still are to be pushed. It has to begin at once.
    fn next(&mut self, is_parked: impl Fn(&Account) -> bool) -> Option<Account> {
        for (backend, queue) in &mut self.of_backends {
            while queue.under_way < PUSHING
                && let Some(account) = queue.waiting.pop_front()
            {
                self.waiting.remove(&account);
                if is_parked(&account) {
                    self.begins = Some((account.clone(), backend.clone()));
                    return Some(account);
                }
            }
        }
        None
    }

    /// Whether the task of this account that begins now is to push its devices.
    pub(super) fn begins(&self, account: &Account) -> bool {
        self.begins.as_ref().is_some_and(|(begins, _)| begins == account)
    }

    /// The task has begun that is to push devices.
    pub(super) fn begun(&mut self, task: Id) {
        let Some((_, backend)) = self.begins.take() else { return };
        self.of_backends.entry(backend.clone()).or_default().under_way += 1;
        self.under_way.insert(task, backend);
    }

    /// The task has ended. An account may have another one by now.
    pub(super) fn ended(&mut self, task: Id) {
        let Some(backend) = self.under_way.remove(&task) else { return };
        let Some(queue) = self.of_backends.get_mut(&backend) else { return };
        queue.under_way -= 1;
        if queue.under_way == 0 && queue.waiting.is_empty() {
            self.of_backends.remove(&backend);
        }
    }
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
        self.credentials.insert(account.clone(), Box::new(known));
    }

    /// Whether the account has no task since it is parked.
    pub(in crate::watch) fn is_parked(&self, account: &Account) -> bool {
        self.parked.contains_key(account)
    }

    /// Whether the account is parked, its time is not over, and there is nothing to look into.
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

    /// Accounts have these backends from now on. What parked ones wait for may happen at another one.
    pub(in crate::watch) fn parked_move(
        &mut self,
        recoveries: impl Fn(&Account) -> Option<KnownRecoveries>,
    ) {
        for (account, parked) in &mut self.parked {
            moved(&mut parked.wait, self.credentials.get_mut(account), recoveries(account));
        }
    }

    /// The same of one account.
    pub(in crate::watch) fn parked_moves(
        &mut self,
        account: &Account,
        now: Option<KnownRecoveries>,
    ) {
        if let Some(parked) = self.parked.get_mut(account) {
            moved(&mut parked.wait, self.credentials.get_mut(account), now);
        }
    }

    /// What a parked account waits for.
    pub(in crate::watch) fn parked_wait(&self, account: &Account) -> Option<&ParkedWait> {
        self.parked.get(account).map(|it| &it.wait)
    }

    /// A parked account is looked into, when its backend has room.
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

    /// The user of a parked account may have registered at another node: that is looked into where it helps.
    pub(in crate::watch) fn missed_registrations(
        &mut self,
        account: &Account,
        backend: Option<BackendId>,
    ) {
        let waits = self.parked.get(account).map(|parked| &parked.wait);
        if matches!(waits, Some(ParkedWait::Change { .. })) {
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
        } else if let Some(parked) = self.parked.get(&account)
            && parked.wait.pushes(now)
        {
            // The push may have to wait for its turn.
            if let Some(retry) = parked.wait.retry() {
                self.put_off(&account, retry);
            }
            self.pushes.add(account, backend);
        }
    }

    /// The next parked account whose devices are to be pushed, if another task for that may begin.
    pub(in crate::watch) fn next_to_push(&mut self) -> Option<Account> {
        self.pushes.next(|account| self.parked.contains_key(account))
    }
}

/// The account of this wait has the backend of which this is known. What another one has refused explains nothing there.
fn moved(
    wait: &mut ParkedWait,
    credentials: Option<&mut KeptCredentials>,
    now: Option<KnownRecoveries>,
) {
    if let ParkedWait::Login(wait) = wait
        && wait.moves(now)
        && let Some(credentials) = credentials
    {
        credentials.refused_at = None;
    }
}
