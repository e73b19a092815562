//! Accounts on demand that are being asked for, and those that wait for it in a sweep, by backend. A task that waits,
//! parked or after a failure, does not count.

use std::collections::{HashMap, VecDeque};

use tokio::sync::watch;

use crate::model::{Account, BackendId};

/// While so many tasks ask at one backend, none of a sweep begins there: one that is slow holds up no other.
pub(super) const MOST_OF_BACKEND: usize = 256;

/// While so many ask at all of them, none begins.
const MOST: usize = 2048;

/// The backend of an account; `None` where it has none.
type AskedBackend = Option<BackendId>;

/// Counts tasks that ask, by backend.
#[derive(Debug)]
pub(super) struct AskingTasks(watch::Sender<AskingCounts>);

#[derive(Debug, Default)]
struct AskingCounts {
    of: HashMap<AskedBackend, usize>,
    all: usize,
}

/// One task. It counts as asking until it says otherwise or ends.
#[derive(Debug)]
pub(super) struct AskingTask {
    tasks: watch::Sender<AskingCounts>,
    backend: AskedBackend,
    asks: bool,
}

/// Those that wait, in their order at each backend. The backends take turns.
#[derive(Debug, Default)]
pub(super) struct WaitingAccounts(VecDeque<(AskedBackend, VecDeque<Account>)>);

impl AskingTasks {
    pub(super) fn new() -> Self {
        Self(watch::Sender::default())
    }

    /// A task begins.
    pub(super) fn begin(&self, backend: AskedBackend) -> AskingTask {
        let mut task = AskingTask { tasks: self.0.clone(), backend, asks: false };
        task.set(true);
        task
    }

    /// Waits until another task may begin for one of these. Cancel safe.
    pub(super) async fn room(&self, waiting: &WaitingAccounts) {
        let has_room =
            |counts: &AskingCounts| waiting.0.iter().any(|(backend, _)| counts.has_room(backend));
        // The sender is here.
        let _ = self.0.subscribe().wait_for(has_room).await;
    }
}

impl AskingCounts {
    fn has_room(&self, backend: &AskedBackend) -> bool {
        self.all < MOST && self.of.get(backend).is_none_or(|count| *count < MOST_OF_BACKEND)
    }
}

impl AskingTask {
    /// Whether it asks now, or waits.
    pub(super) fn set(&mut self, asks: bool) {
        if std::mem::replace(&mut self.asks, asks) == asks {
            return;
        }
        self.tasks.send_modify(|counts| {
            let of = counts.of.entry(self.backend.clone()).or_default();
            match asks {
                true => (*of, counts.all) = (*of + 1, counts.all + 1),
                false => (*of, counts.all) = (*of - 1, counts.all - 1),
            }
            if *of == 0 {
                counts.of.remove(&self.backend);
            }
        });
    }
}

impl Drop for AskingTask {
    fn drop(&mut self) {
        self.set(false);
    }
}

impl WaitingAccounts {
    /// These wait, too, in this order.
    pub(super) fn add(&mut self, accounts: Vec<Account>, of: impl Fn(&Account) -> AskedBackend) {
        let mut by_backend: HashMap<AskedBackend, VecDeque<Account>> = self.0.drain(..).collect();
        for account in accounts {
            by_backend.entry(of(&account)).or_default().push_back(account);
        }
        self.0.extend(by_backend);
    }

    /// The next one whose task may begin.
    pub(super) fn next(&mut self, asking: &AskingTasks) -> Option<Account> {
        let counts = asking.0.borrow();
        let place = self.0.iter().position(|(backend, _)| counts.has_room(backend))?;
        let (backend, mut accounts) = self.0.remove(place)?;
        let next = accounts.pop_front();
        if !accounts.is_empty() {
            self.0.push_back((backend, accounts));
        }
        next
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|(_, accounts)| accounts.len()).sum()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Account> {
        self.0.iter().flat_map(|(_, accounts)| accounts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(name: &str) -> AskedBackend {
        Some(BackendId::new(None, name, 143))
    }

    /// Each waits at the backend of its domain.
    fn waiting(users: &[&str]) -> WaitingAccounts {
        let accounts = users.iter().map(|user| Account::from_login(user)).collect();
        let mut waiting = WaitingAccounts::default();
        waiting.add(accounts, |account| backend(account.as_str().split_once('@')?.1));
        waiting
    }

    fn next(waiting: &mut WaitingAccounts, asking: &AskingTasks) -> Option<String> {
        waiting.next(asking).map(|account| account.as_str().to_owned())
    }

    #[tokio::test]
    async fn a_task_that_waits_or_has_ended_makes_room() {
        let (tasks, alice) = (AskingTasks::new(), waiting(&["alice@a"]));
        let mut asking: Vec<_> = (0..MOST_OF_BACKEND).map(|_| tasks.begin(backend("a"))).collect();
        let has_room = |tasks: &AskingTasks| tasks.0.borrow().has_room(&backend("a"));
        assert!(!has_room(&tasks));
        asking[0].set(false);
        asking[0].set(false);
        tasks.room(&alice).await;
        asking[0].set(true);
        assert!(!has_room(&tasks));
        tokio::join!(tasks.room(&alice), async { drop(asking.pop()) });
        drop(asking);
        assert!(tasks.0.borrow().of.is_empty() && tasks.0.borrow().all == 0);
    }

    #[test]
    fn accounts_of_a_slow_backend_hold_up_no_others() {
        let tasks = AskingTasks::new();
        let mut waiting = waiting(&["one@slow", "two@slow", "one@fast", "two@fast"]);
        let slow: Vec<_> = (0..MOST_OF_BACKEND).map(|_| tasks.begin(backend("slow"))).collect();
        assert_eq!(next(&mut waiting, &tasks).unwrap(), "one@fast");
        assert_eq!(next(&mut waiting, &tasks).unwrap(), "two@fast");
        assert_eq!((next(&mut waiting, &tasks), waiting.len()), (None, 2));
        drop(slow);
        assert_eq!(next(&mut waiting, &tasks).unwrap(), "one@slow");
        assert_eq!(waiting.iter().count(), 1);
        let _all: Vec<_> =
            (0..MOST).map(|number| tasks.begin(backend(&number.to_string()))).collect();
        assert_eq!((next(&mut waiting, &tasks), waiting.is_empty()), (None, false));
    }

    #[test]
    fn backends_take_turns() {
        let tasks = AskingTasks::new();
        let mut waiting = waiting(&["one@a", "two@a", "one@b", "two@b"]);
        let first: Vec<_> = (0..2).filter_map(|_| next(&mut waiting, &tasks)).collect();
        assert!(first.iter().all(|account| account.starts_with("one@")), "{first:?}");
    }
}
