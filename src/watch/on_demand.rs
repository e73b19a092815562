//! Accounts on demand, as the supervisor knows them. One for which nothing is to be done has no task and no
//! socket, only a place in a table. A task begins with a hint, with a login or registration of its user, or in
//! its turn of a sweep. It ends when the account was asked for, and lasts where it is parked or in trouble.
//! What was told is remembered for a while, so that the next hint is compared with it.
//!
//! A sweep asks for all accounts: after a start, after a time in which events may have been missed, and every
//! `[watch] sweep`. It begins by marking them as due in the database, each visit takes its marks away, and those that have been due for longest come first. So a
//! sweep that the end of the program interrupts goes on where it stopped.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::WatchContext;
use super::status::{StatusCell, WatchMode, WatcherState, WatcherStatus};
use super::watcher::{TakenOver, WatchedMailbox, Watcher, WatcherStart};
use crate::model::{Account, Timestamp};
use crate::nodes::Assignment;
use crate::store::{DueMark, LiveAccount, LookedAt, StoreError};

/// Accounts of a sweep that are under way at once.
const VISITS: usize = 256;

/// Accounts whose sessions have ended that may wait. Of more, the next sweep learns.
const ENDED: usize = 100_000;

/// Accounts that are marked in one transaction.
const BATCH: usize = 500;

/// For so long what was told is remembered: `push` records it on disk meanwhile.
const REMEMBERED: Duration = Duration::from_secs(10);

/// The accounts on demand of this node.
#[derive(Debug)]
pub(super) struct OnDemand {
    /// Those without a task, each with when it was last known that it is to be watched.
    resting: HashMap<Account, (StatusCell, u64)>,
    /// What those have been told that had a task lately, each with the number of that task.
    told: HashMap<Account, (u64, Vec<WatchedMailbox>)>,
    /// When that is forgotten.
    forget: VecDeque<(Instant, Account, u64)>,
    /// What waits to be asked for.
    waiting: VecDeque<Account>,
    /// Accounts of which sessions have ended, each with when it is to be asked for.
    sessions: VecDeque<(Instant, Account)>,
    /// Those of `sessions`.
    after_session: HashSet<Account>,
    /// Of the next sweep.
    sweep_at: Instant,
    /// It is of the accounts of all nodes.
    everybody: bool,
    visits: JoinSet<VisitEnd>,
}

/// What happens to accounts on demand.
#[derive(Debug)]
pub(super) enum OnDemandEvent {
    /// A task has ended.
    Ended(VisitEnd),
    /// A session of the account's user ended some time ago.
    AfterSession(Account),
    /// A task broke off, which the next reading of all accounts finds.
    Broken,
}

/// Which accounts are marked as due when all are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sweep {
    None,
    /// Those of this node.
    Ours,
    /// Those of all nodes.
    Everybody,
}

/// The end of an account's task.
#[derive(Debug)]
pub(super) struct VisitEnd {
    pub(super) account: Account,
    /// When the task began, as the supervisor counts.
    pub(super) began: u64,
    pub(super) taken_over: TakenOver,
    pub(super) mailboxes: Vec<WatchedMailbox>,
    pub(super) looked_at: Vec<LookedAt>,
}

impl OnDemand {
    pub(super) fn new() -> Self {
        Self {
            resting: HashMap::new(),
            told: HashMap::new(),
            forget: VecDeque::new(),
            waiting: VecDeque::new(),
            sessions: VecDeque::new(),
            after_session: HashSet::new(),
            sweep_at: Instant::now(),
            everybody: false,
            visits: JoinSet::new(),
        }
    }

    /// When the next sweep is due.
    pub(super) fn next_sweep(&self) -> Instant {
        self.sweep_at
    }

    /// The next sweep is due then at the latest.
    pub(super) fn sweep_at(&mut self, at: Instant) {
        self.sweep_at = self.sweep_at.min(at);
    }

    /// The same, and it is of the accounts of all nodes: events of them were missed here. Those of other nodes
    /// are marked as due, and looked at when their nodes next read all.
    pub(super) fn everybody_at(&mut self, at: Instant) {
        self.everybody = true;
        self.sweep_at(at);
    }

    /// Whether a sweep begins now, and of which accounts; the next one is due after this time.
    pub(super) fn begin_sweep(&mut self, now: Instant, every: Duration) -> Sweep {
        if now < self.sweep_at {
            return Sweep::None;
        }
        self.sweep_at = now + every;
        match std::mem::take(&mut self.everybody) {
            true => Sweep::Everybody,
            false => Sweep::Ours,
        }
    }

    /// A session has ended: the account is to be asked for then, unless it is anyway.
    pub(super) fn session_ended(&mut self, account: Account, at: Instant) {
        if self.sessions.len() < ENDED && self.after_session.insert(account.clone()) {
            self.sessions.push_back((at, account));
        }
    }

    /// Spawns the task of an account.
    pub(super) fn spawn(&mut self, mut watcher: Watcher, begin: WatcherStart, began: u64) {
        if let Some((_, mailboxes)) = self.told.remove(&watcher.account) {
            watcher.mailboxes = mailboxes;
        }
        self.visits.spawn(async move {
            watcher.run(begin).await;
            let taken_over = watcher.taken_over();
            let Watcher { account, mailboxes, looked_at, .. } = watcher;
            VisitEnd { account, began, taken_over, mailboxes, looked_at }
        });
    }

    /// What this task of an account has told is remembered for a while.
    pub(super) fn remember(
        &mut self,
        account: &Account,
        task: u64,
        mailboxes: Vec<WatchedMailbox>,
    ) {
        let now = Instant::now();
        while let Some((_, account, task)) = self.forget.pop_front_if(|(at, ..)| *at <= now) {
            if self.told.get(&account).is_some_and(|(told, _)| *told == task) {
                self.told.remove(&account);
            }
        }
        let mailboxes = mailboxes.into_iter().map(WatchedMailbox::rested).collect();
        self.told.insert(account.clone(), (task, mailboxes));
        self.forget.push_back((now + REMEMBERED, account.clone(), task));
    }

    /// What happens next. Cancel safe.
    pub(super) async fn next(&mut self) -> OnDemandEvent {
        let at = self.sessions.front().map(|(at, _)| *at);
        tokio::select! {
            Some(ended) = self.visits.join_next() => match ended {
                Ok(end) => OnDemandEvent::Ended(end),
                Err(_) => OnDemandEvent::Broken,
            },
            () = sleep_until(at.unwrap_or_else(Instant::now)), if at.is_some() => {
                match self.sessions.pop_front() {
                    Some((_, account)) => {
                        self.after_session.remove(&account);
                        OnDemandEvent::AfterSession(account)
                    }
                    None => OnDemandEvent::Broken,
                }
            }
            else => std::future::pending().await,
        }
    }

    /// Waits until all tasks have ended.
    pub(super) async fn wait(&mut self) {
        while self.visits.join_next().await.is_some() {}
    }

    /// The account has no task any more, or none yet.
    pub(super) fn rest(&mut self, account: Account, status: StatusCell, moment: u64) {
        status.set(WatcherState::Watching(WatchMode::OnDemand));
        self.resting.insert(account, (status, moment));
    }

    pub(super) fn is_resting(&self, account: &Account) -> bool {
        self.resting.contains_key(account)
    }

    /// The account gets a task, or is not this node's any more.
    pub(super) fn take(&mut self, account: &Account) -> Option<StatusCell> {
        self.resting.remove(account).map(|(status, _)| status)
    }

    /// Those that were known before this moment and are not among these.
    pub(super) fn others(&self, live: &HashSet<&Account>, moment: u64) -> Vec<Account> {
        let known = self.resting.iter();
        let gone = known.filter(|(account, (_, at))| *at <= moment && !live.contains(account));
        gone.map(|(account, _)| account.clone()).collect()
    }

    /// Those that are another node's now.
    pub(super) fn of_others(&self, is_ours: impl Fn(&Account) -> bool) -> Vec<Account> {
        self.resting.keys().filter(|account| !is_ours(account)).cloned().collect()
    }

    /// These are to be asked for, in this order.
    pub(super) fn ask_for(&mut self, accounts: Vec<Account>) {
        self.waiting = accounts.into();
    }

    /// The next one that is to be asked for, if so many more may be under way.
    pub(super) fn next_waiting(&mut self) -> Option<Account> {
        (self.visits.len() < VISITS).then(|| self.waiting.pop_front()).flatten()
    }

    /// How many wait to be asked for.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether any account of this node is on demand.
    pub(super) fn is_used(&self) -> bool {
        !self.resting.is_empty() || !self.visits.is_empty()
    }

    pub(super) fn statuses(&self, account: Option<&Account>) -> Vec<WatcherStatus> {
        let asked = self.resting.iter().filter(|(it, _)| account.is_none_or(|asked| asked == *it));
        let waiting: HashSet<&Account> = self.waiting.iter().collect();
        let reason = |account: &Account| match waiting.contains(account) {
            true => Some("it waits for its turn to be asked for, in a sweep"),
            false if self.after_session.contains(account) => {
                Some("it is asked for soon, since a session of its user has ended")
            }
            false => None,
        };
        let shown = asked.map(|(account, (status, _))| {
            let reason = reason(account).map(str::to_owned);
            WatcherStatus { reason, ..status.of(account) }
        });
        shown.collect()
    }
}

/// The accounts on demand of this node that are due, the one that has been for longest first.
pub(super) async fn due(
    context: &WatchContext,
    assignment: &Assignment,
    accounts: &[LiveAccount],
    sweep: Sweep,
) -> Result<Vec<Account>, StoreError> {
    let all = accounts.iter().map(|live| &live.account);
    let all: Vec<&Account> = all.filter(|account| context.is_on_demand(account)).collect();
    let is_ours =
        |account: &&Account| assignment.is_mine(account) || context.credentials.holds(account);
    let ours: HashSet<&Account> = all.iter().copied().filter(is_ours).collect();
    let marks: Vec<DueMark> = match sweep {
        Sweep::None => Vec::new(),
        Sweep::Ours => ours.iter().copied().map(sweeps).collect(),
        Sweep::Everybody => all.iter().copied().map(sweeps).collect(),
    };
    for marks in marks.chunks(BATCH) {
        context.store.mark_due(&[], marks, Timestamp::now()).await?;
    }
    if ours.is_empty() {
        return Ok(Vec::new());
    }
    let due = context.store.due_accounts().await?.into_iter().map(|(account, _)| account);
    Ok(due.filter(|account| ours.contains(account)).collect())
}

fn sweeps(account: &Account) -> DueMark {
    let account = account.clone();
    DueMark { account, mailbox: None, state: None, is_due: true, for_another_node: false }
}
