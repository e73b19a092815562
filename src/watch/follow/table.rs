//! All that is followed on this node, and how it hears of the accounts' watchers: what they see, which mailboxes
//! they watch, and what other sources say.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::followed::Followed;
use crate::model::{Account, BackendId, Hint, Mailbox, Snapshot};
use crate::watch::ledger::Consequence;

/// How many requests to the supervisor may wait.
const REQUESTS: usize = 64;

/// Accounts that are followed. A watcher finds here at once that nobody follows its account.
#[derive(Debug, Default)]
pub(in crate::watch) struct FollowedTable {
    accounts: Mutex<HashMap<Account, Vec<Arc<Followed>>>>,
    /// `None` while there is no supervisor.
    supervisor: Mutex<Option<mpsc::Sender<LookRequest>>>,
}

/// All mailboxes of an account are to be looked at by its watcher.
#[derive(Debug)]
pub(in crate::watch) struct LookRequest {
    pub(in crate::watch) account: Account,
    /// Whether the account has a watcher here that is neither parked nor in trouble.
    pub(in crate::watch) reply: oneshot::Sender<bool>,
}

impl FollowedTable {
    /// A supervisor begins; it gets what it is asked from now on.
    pub(in crate::watch) fn attend(&self) -> mpsc::Receiver<LookRequest> {
        let (requests, asked) = mpsc::channel(REQUESTS);
        *self.supervisor.lock() = Some(requests);
        asked
    }

    /// The account's watcher has this to tell of a mailbox that is known to have this state.
    pub(in crate::watch) fn saw(
        &self,
        (account, backend): (&Account, &BackendId),
        mailbox: &Mailbox,
        (follows, known): (Consequence, &Snapshot),
    ) {
        let all = self.of(account);
        let listening = all.iter().filter(|it| it.is_of(backend) && it.listens());
        listening.for_each(|followed| followed.hear(mailbox, follows, known));
    }

    /// The account's watcher has looked; `watches` says of which mailboxes it hears.
    pub(in crate::watch) fn watched(
        &self,
        (account, backend): (&Account, &BackendId),
        watches: impl Fn(&Mailbox) -> bool,
    ) {
        if let Some(all) = self.accounts.lock().get(account) {
            for followed in all {
                followed.is_watched(followed.is_of(backend) && followed.all_wanted(&watches));
            }
        }
    }

    /// The account has no watcher here any more, or one that does not watch for now.
    pub(in crate::watch) fn unwatched(&self, account: &Account) {
        if let Some(all) = self.accounts.lock().get(account) {
            all.iter().for_each(|followed| followed.is_watched(false));
        }
    }

    /// Another source has news of an account. What a watcher takes in is heard of it.
    pub(in crate::watch) fn hint(&self, hint: &Hint) {
        let all = self.of(&hint.account);
        all.iter().filter(|it| !it.listens()).for_each(|followed| followed.hint(hint.clone()));
    }

    /// What is followed of an account. Those who hear of it do so without the lock of all.
    fn of(&self, account: &Account) -> Vec<Arc<Followed>> {
        self.accounts.lock().get(account).cloned().unwrap_or_default()
    }

    /// Has the account's watcher look at all its mailboxes, where there is one.
    pub(super) async fn look(&self, account: &Account) -> bool {
        let supervisor = self.supervisor.lock().clone();
        let Some(supervisor) = supervisor else { return false };
        let (reply, answer) = oneshot::channel();
        let request = LookRequest { account: account.clone(), reply };
        supervisor.send(request).await.is_ok() && answer.await.unwrap_or(false)
    }

    /// One more follows: what is followed by the same proof, or what `new` makes.
    pub(super) fn join(
        &self,
        account: &Account,
        is_same: impl Fn(&Followed) -> bool,
        join: impl FnOnce(Option<&Arc<Followed>>) -> Arc<Followed>,
    ) -> Arc<Followed> {
        let mut accounts = self.accounts.lock();
        let of_account = accounts.entry(account.clone()).or_default();
        let known = of_account.iter().find(|followed| is_same(followed));
        let (is_new, followed) = (known.is_none(), join(known));
        if is_new {
            of_account.push(Arc::clone(&followed));
        }
        followed
    }

    /// A follower leaves, and takes what is followed along where it was the last.
    pub(super) fn leave(&self, followed: &Arc<Followed>, number: u64) {
        // Nobody joins meanwhile.
        let mut accounts = self.accounts.lock();
        let mut left = followed.followers.lock();
        left.retain(|follower| follower.number != number);
        if left.is_empty() {
            forget(&mut accounts, followed);
            followed.left.cancel();
        }
    }

    /// Nobody joins this one any more.
    pub(super) fn forget(&self, followed: &Arc<Followed>) {
        forget(&mut self.accounts.lock(), followed);
    }

    /// Nobody follows anything any more.
    pub(super) fn end(&self) {
        let all = std::mem::take(&mut *self.accounts.lock());
        all.into_values().flatten().for_each(|followed| followed.left.cancel());
    }
}

fn forget(all: &mut HashMap<Account, Vec<Arc<Followed>>>, followed: &Arc<Followed>) {
    if let Some(of_account) = all.get_mut(&followed.account) {
        of_account.retain(|other| !Arc::ptr_eq(other, followed));
        if of_account.is_empty() {
            all.remove(&followed.account);
        }
    }
}
