//! Accounts on demand that are being asked for, and those that wait for it, by backend. A task counts from its begin to its
//! end, also while it waits for its turn to log in or notes a refusal. One does not count while it waits for a time or for
//! its user, which it does only where the database does not take what it has to store or does not answer it, and while it has
//! the devices of a parked account pushed. Parked accounts wait elsewhere (see `on_demand`). At a backend that cannot be reached
//! one account at a time is asked for, after growing times, and all others wait without a task. While the database cannot
//! be used, this is so for all backends together.

use std::collections::{HashMap, HashSet, VecDeque};

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::model::{Account, BackendId, Timestamp};
use crate::net::backoff::Backoff;

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
    of: HashMap<AskedBackend, AskedCount>,
    all: usize,
    /// The database cannot be used.
    database: Option<Away>,
}

/// Of one backend.
#[derive(Debug, Default)]
struct AskedCount {
    tasks: usize,
    away: Option<Away>,
}

/// A backend that cannot be reached, or the database.
#[derive(Debug)]
struct Away {
    /// Tries in a row that failed.
    failures: u32,
    next_try: Instant,
    /// One is under way.
    is_tried: bool,
    known: KnownAway,
}

/// What is known of a backend that cannot be reached, or of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KnownAway {
    pub(super) why: String,
    /// When it is tried again.
    pub(super) next_try: Timestamp,
}

/// One task. It counts as asking until it says otherwise or ends.
#[derive(Debug)]
pub(super) struct AskingTask {
    tasks: watch::Sender<AskingCounts>,
    backend: AskedBackend,
    asks: bool,
    /// It is the one that tries a backend that could not be reached.
    tries: bool,
    /// It is the one that tries a database that could not be used.
    tries_database: bool,
}

/// Those that wait, in their order at each backend, each once. The backends take turns.
#[derive(Debug, Default)]
pub(super) struct WaitingAccounts {
    /// Where an account stands twice, its first place counts.
    of: VecDeque<(AskedBackend, VecDeque<Account>)>,
    all: HashSet<Account>,
    /// Those that were put before all others.
    first: HashSet<Account>,
}

impl AskingTasks {
    pub(super) fn new() -> Self {
        Self(watch::Sender::default())
    }

    /// A task begins.
    pub(super) fn begin(&self, backend: AskedBackend) -> AskingTask {
        let (tasks, asks) = (self.0.clone(), false);
        let mut task = AskingTask { tasks, backend, asks, tries: false, tries_database: false };
        task.set(true);
        // Before another one of any backend begins, too.
        task.database_away();
        task
    }

    /// Waits until another task may begin for one of these. Cancel safe.
    pub(super) async fn room(&self, waiting: &WaitingAccounts) {
        let mut counts = self.0.subscribe();
        loop {
            let next_try = {
                let (counts, now) = (counts.borrow_and_update(), Instant::now());
                if waiting.of.iter().any(|(backend, _)| counts.has_room(backend, now)) {
                    return;
                }
                let tries = waiting.of.iter().filter_map(|(of, _)| counts.next_try(of));
                let database = counts.database.as_ref().map(|away| away.next_try);
                tries.chain(database).filter(|at| *at > now).min()
            };
            tokio::select! {
                // The sender is here.
                _ = counts.changed() => {}
                () = sleep_until(next_try.unwrap_or_else(Instant::now)), if next_try.is_some() => {}
            }
        }
    }
}

impl AskingCounts {
    fn has_room(&self, backend: &AskedBackend, now: Instant) -> bool {
        self.all < MOST
            && self.database.as_ref().is_none_or(|away| away.is_due(now))
            && match self.of.get(backend) {
                None => true,
                Some(AskedCount { tasks, away: Some(away) }) => *tasks == 0 && away.is_due(now),
                Some(AskedCount { tasks, away: None }) => *tasks < MOST_OF_BACKEND,
            }
    }

    fn next_try(&self, backend: &AskedBackend) -> Option<Instant> {
        Some(self.of.get(backend)?.away.as_ref()?.next_try)
    }

    /// Changes what is known of a backend.
    fn change<R>(
        &mut self,
        backend: &AskedBackend,
        change: impl FnOnce(&mut AskedCount) -> R,
    ) -> R {
        let of = self.of.entry(backend.clone()).or_default();
        let changed = change(of);
        if of.tasks == 0 && of.away.is_none() {
            self.of.remove(backend);
        }
        changed
    }
}

impl Away {
    fn is_due(&self, now: Instant) -> bool {
        !self.is_tried && self.next_try <= now
    }

    /// What is known of it, for a task that is not to try it. Else the task does.
    fn known_or_tried(&mut self, tries: &mut bool) -> Option<KnownAway> {
        if *tries || self.is_due(Instant::now()) {
            (self.is_tried, *tries) = (true, true);
            return None;
        }
        Some(self.known.clone())
    }

    /// It could not be reached; `is_try` says that this task was the one to try. What is known of it, and whether it could
    /// be reached before.
    fn failed(
        away: &mut Option<Self>,
        is_try: bool,
        why: &str,
        backoff: Backoff,
    ) -> (KnownAway, bool) {
        let failures = match &*away {
            // It began before that was known.
            Some(away) if !is_try => return (away.known.clone(), false),
            before => before.as_ref().map_or(0, |before| before.failures).saturating_add(1),
        };
        let wait = backoff.wait(failures, rand::random());
        let known = KnownAway { why: why.to_owned(), next_try: Timestamp::now().plus(wait) };
        let next_try = Instant::now() + wait;
        let now = Self { failures, next_try, is_tried: false, known: known.clone() };
        (known, away.replace(now).is_none())
    }
}

impl AskingTask {
    /// Whether it asks now, or waits.
    pub(super) fn set(&mut self, asks: bool) {
        if std::mem::replace(&mut self.asks, asks) == asks {
            return;
        }
        let tried = !asks && std::mem::take(&mut self.tries);
        let tried_database = !asks && std::mem::take(&mut self.tries_database);
        self.tasks.send_modify(|counts| {
            if let Some(away) = counts.database.as_mut().filter(|_| tried_database) {
                away.is_tried = false;
            }
            counts.all = if asks { counts.all + 1 } else { counts.all - 1 };
            counts.change(&self.backend, |of| {
                of.tasks = if asks { of.tasks + 1 } else { of.tasks - 1 };
                if let Some(away) = of.away.as_mut().filter(|_| tried) {
                    away.is_tried = false;
                }
            });
        });
    }

    /// It asks at this backend from now on.
    pub(super) fn asks_at(&mut self, backend: &BackendId) {
        if self.backend.as_ref() != Some(backend) {
            let asks = self.asks;
            self.set(false);
            self.backend = Some(backend.clone());
            self.set(asks);
        }
    }

    /// What is known of its backend, where that cannot be reached and another one tries it, or nobody is to yet. Else
    /// this task does.
    pub(super) fn away(&mut self) -> Option<KnownAway> {
        let mut known = None;
        self.tasks.send_if_modified(|counts| {
            let of = counts.of.get_mut(&self.backend);
            if let Some(away) = of.and_then(|of| of.away.as_mut()) {
                known = away.known_or_tried(&mut self.tries);
            }
            false
        });
        known
    }

    /// What is known of the database, where that cannot be used and another one tries it, or nobody is to yet. Else this
    /// task does.
    pub(super) fn database_away(&mut self) -> Option<KnownAway> {
        let mut known = None;
        self.tasks.send_if_modified(|counts| {
            if let Some(away) = &mut counts.database {
                known = away.known_or_tried(&mut self.tries_database);
            }
            false
        });
        known
    }

    /// The database has answered.
    pub(super) fn database_answers(&mut self) {
        self.tries_database = false;
        self.tasks.send_if_modified(|counts| counts.database.take().is_some());
    }

    /// The database could not be used. What is known of that, and whether this task is the one that has found it.
    pub(super) fn database_failed(&mut self, why: &str, backoff: Backoff) -> (KnownAway, bool) {
        let is_try = std::mem::take(&mut self.tries_database);
        let mut known = KnownAway { why: why.to_owned(), next_try: Timestamp::now() };
        let mut is_new = false;
        self.tasks.send_modify(|counts| {
            (known, is_new) = Away::failed(&mut counts.database, is_try, why, backoff);
        });
        (known, is_new || is_try)
    }

    /// Its backend was reached. Whether it could not be before.
    pub(super) fn reached(&mut self) -> bool {
        self.tries = false;
        self.tasks
            .send_if_modified(|counts| counts.change(&self.backend, |of| of.away.take().is_some()))
    }

    /// Its backend could not be reached. What is known of that, and whether it could be before.
    pub(super) fn failed(&mut self, why: &str, backoff: Backoff) -> (KnownAway, bool) {
        let is_try = std::mem::take(&mut self.tries);
        let mut known = KnownAway { why: why.to_owned(), next_try: Timestamp::now() };
        let mut is_new = false;
        self.tasks.send_modify(|counts| {
            counts.change(&self.backend, |of| {
                (known, is_new) = Away::failed(&mut of.away, is_try, why, backoff);
            });
        });
        (known, is_new)
    }
}

impl Drop for AskingTask {
    fn drop(&mut self) {
        self.set(false);
    }
}

impl WaitingAccounts {
    /// These wait, too, in this order, behind those that do. One that does already keeps its place.
    pub(super) fn add(&mut self, accounts: Vec<Account>, of: impl Fn(&Account) -> AskedBackend) {
        let mut by_backend: HashMap<AskedBackend, VecDeque<Account>> = self.of.drain(..).collect();
        for account in accounts {
            if self.all.insert(account.clone()) {
                by_backend.entry(of(&account)).or_default().push_back(account);
            }
        }
        self.of.extend(by_backend);
    }

    /// This one waits, too, before all others of its backend: a sweep may be long.
    pub(super) fn add_first(&mut self, account: Account, of: AskedBackend) {
        if !self.first.insert(account.clone()) {
            return;
        }
        self.all.insert(account.clone());
        match self.of.iter_mut().find(|(backend, _)| *backend == of) {
            Some((_, accounts)) => accounts.push_front(account),
            None => self.of.push_back((of, VecDeque::from([account]))),
        }
    }

    /// The next one whose task may begin.
    pub(super) fn next(&mut self, asking: &AskingTasks) -> Option<Account> {
        let (counts, now) = (asking.0.borrow(), Instant::now());
        let place = self.of.iter().position(|(backend, _)| counts.has_room(backend, now))?;
        let (backend, mut accounts) = self.of.remove(place)?;
        let mut in_order = std::iter::from_fn(|| accounts.pop_front());
        let next = in_order.find(|account| self.all.remove(account));
        if !accounts.is_empty() {
            self.of.push_back((backend, accounts));
        }
        if let Some(account) = &next {
            self.first.remove(account);
        }
        next
    }

    /// All of them, in any order.
    pub(super) fn into_accounts(self) -> impl Iterator<Item = Account> {
        self.all.into_iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn contains(&self, account: &Account) -> bool {
        self.all.contains(account)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
    async fn what_is_to_be_looked_at_again_goes_before_a_sweep_and_once() {
        let (tasks, mut waiting) = (AskingTasks::new(), waiting(&["alice@a", "bob@a", "carol@b"]));
        for _ in 0..2 {
            waiting.add_first(Account::from_login("bob@a"), backend("a"));
            waiting.add_first(Account::from_login("dave@c"), backend("c"));
        }
        assert_eq!(waiting.len(), 4);
        let mut in_order = Vec::new();
        while !waiting.is_empty() {
            in_order.extend(next(&mut waiting, &tasks));
        }
        let of_a: Vec<_> = in_order.iter().filter(|account| account.ends_with("@a")).collect();
        assert_eq!(of_a, ["bob@a", "alice@a"]);
        assert_eq!(in_order.len(), 4, "{in_order:?}");
        // It may wait again.
        waiting.add_first(Account::from_login("bob@a"), backend("a"));
        assert_eq!(next(&mut waiting, &tasks).as_deref(), Some("bob@a"));
        assert_eq!(next(&mut waiting, &tasks), None);
    }

    #[tokio::test]
    async fn a_task_that_waits_or_has_ended_makes_room() {
        let (tasks, alice) = (AskingTasks::new(), waiting(&["alice@a"]));
        let mut asking: Vec<_> = (0..MOST_OF_BACKEND).map(|_| tasks.begin(backend("a"))).collect();
        let has_room =
            |tasks: &AskingTasks| tasks.0.borrow().has_room(&backend("a"), Instant::now());
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
        assert!(waiting.len() == 1 && waiting.contains(&Account::from_login("two@slow")));
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

    const BACKOFF: Backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(60));

    #[tokio::test(start_paused = true)]
    async fn at_a_backend_that_cannot_be_reached_one_task_at_a_time_tries() {
        let (tasks, mut waiting) = (AskingTasks::new(), waiting(&["one@a", "two@a", "one@b"]));
        let mut under_way: Vec<_> = (0..3).map(|_| tasks.begin(backend("a"))).collect();
        assert_eq!(under_way[0].away(), None);
        let (known, is_new) = under_way[0].failed("reset", BACKOFF);
        assert!(is_new && known.why == "reset");
        // That of the others was known by then.
        assert_eq!(under_way[1].failed("timeout", BACKOFF), (known.clone(), false));
        assert_eq!(under_way[2].away(), Some(known));
        drop(under_way);
        assert_eq!(next(&mut waiting, &tasks).unwrap(), "one@b");
        assert_eq!(next(&mut waiting, &tasks), None);
        let began = Instant::now();
        tasks.room(&waiting).await;
        assert!((5..=10).contains(&began.elapsed().as_secs()));
        assert_eq!(next(&mut waiting, &tasks).unwrap(), "one@a");
        let (mut one, mut two) = (tasks.begin(backend("a")), tasks.begin(backend("a")));
        assert_eq!(one.away(), None);
        assert!(two.away().is_some());
        // The wait grows.
        let began = Instant::now();
        assert!(!one.failed("reset", BACKOFF).1);
        drop((one, two));
        tasks.room(&waiting).await;
        assert!((10..=20).contains(&began.elapsed().as_secs()));
        // One that ends without having tried leaves it to the next one.
        let mut one = tasks.begin(backend("a"));
        assert_eq!(one.away(), None);
        one.set(false);
        tasks.room(&waiting).await;
        let mut two = tasks.begin(backend("a"));
        assert_eq!(two.away(), None);
        assert!(two.reached() && !two.reached());
        assert_eq!(tasks.begin(backend("a")).away(), None);
        drop((one, two));
        assert!(tasks.0.borrow().of.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_database_cannot_be_used_one_task_of_all_backends_tries_it() {
        let (tasks, mut waiting) = (AskingTasks::new(), waiting(&["one@a", "one@b", "two@b"]));
        let mut under_way: Vec<_> = ["a", "b"].map(|name| tasks.begin(backend(name))).into();
        assert_eq!(under_way[0].database_away(), None);
        let (known, is_told) = under_way[0].database_failed("closed", BACKOFF);
        assert!(is_told && known.why == "closed");
        assert_eq!(under_way[1].database_failed("busy", BACKOFF), (known.clone(), false));
        drop(under_way);
        assert_eq!(next(&mut waiting, &tasks), None);
        assert_eq!(tasks.begin(backend("c")).database_away(), Some(known));
        tasks.room(&waiting).await;
        assert!(next(&mut waiting, &tasks).is_some());
        let mut one = tasks.begin(backend("a"));
        // Before it has come to that.
        assert_eq!(next(&mut waiting, &tasks), None);
        assert_eq!(one.database_away(), None);
        // One that ends without having tried leaves it to the next one.
        drop(one);
        tasks.room(&waiting).await;
        let mut one = tasks.begin(backend("a"));
        one.database_answers();
        assert!(next(&mut waiting, &tasks).is_some() && next(&mut waiting, &tasks).is_some());
    }

    #[test]
    fn an_account_waits_once() {
        let mut waiting = waiting(&["one@a", "one@a"]);
        waiting.add(vec![Account::from_login("one@a")], |_| backend("a"));
        assert_eq!(waiting.len(), 1);
    }
}
