//! Accounts on demand, as the supervisor knows them. One for which nothing is to be done has no task and no
//! socket, only a place in a table. A task begins with a hint, with word of another node, with a login or registration of
//! its user, some time after a session of the user has ended, in the account's turn of a sweep, and when a wait is over. It
//! ends when the account was asked for, or cannot be for now: since its backend or the database is away, a visit has failed,
//! or it is parked. It lasts while it waits for its turn to log in or to have devices pushed, and where the database does not
//! take a password or a refusal that it alone knows, or does not say what a parked account's events are to be compared with.
//! What was told is remembered for a while, so that the next hint is compared with it.
//!
//! A sweep asks for all accounts: after a start, after a time in which events may have been missed, and every
//! `[watch] sweep`. Those that have been due for longest come first. The others are marked as due in the database, some
//! at a time, and then asked for; each visit takes its marks away. So a sweep that the end of the program interrupts
//! goes on where it stopped.

mod parked;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep_until};

use self::parked::{KeptCredentials, LoginPushes, ParkedAccount};
use super::asking::{AskingTasks, WaitingAccounts};
use super::missed_events::{MissedAt, MissedEvents};
use super::parked_wait::ParkedWait;
use super::source::imap::mailbox_faults::MailboxFaults;
use super::status::{StatusCell, WatchMode, WatcherState, WatcherStatus};
use super::watcher::{FailedVisit, TakenOver, Unasked, WatchedMailbox, Watcher, WatcherStart};
use crate::model::{Account, BackendId};
use crate::net::backend::Backend;
use crate::net::backoff::Backoff;
use crate::store::LookedAt;

/// Accounts whose sessions have ended that may wait. Of more, the next sweep learns.
const ENDED: usize = 100_000;

/// The longest wait for another look at mailboxes that visits have left due.
const LEFT_DUE: Duration = Duration::from_hours(1);

/// For so long what was told is remembered: `push` records it on disk meanwhile.
const REMEMBERED: Duration = Duration::from_secs(10);

/// The accounts on demand of this node.
#[derive(Debug)]
pub(super) struct OnDemand {
    /// Those without a task.
    resting: HashMap<Account, RestingAccount>,
    /// What those have been told that had a task lately, each with when the end of that task was heard of, as the
    /// supervisor counts.
    told: HashMap<Account, (u64, ToldAccount)>,
    /// When that is forgotten.
    forget: VecDeque<(Instant, Account, u64)>,
    /// The mailboxes that did not answer as others do, of accounts that have such ones and no task.
    faults: HashMap<Account, MailboxFaults>,
    /// What waits to be asked for.
    waiting: WaitingAccounts,
    /// Accounts of which sessions have ended, each with when it is to be asked for.
    sessions: VecDeque<(Instant, Account)>,
    /// Those of `sessions`.
    after_session: HashSet<Account>,
    /// When accounts are asked for again whose visits have left mailboxes due or failed, and when there is something to
    /// do for those that are parked.
    left_due: BTreeSet<(Instant, Account)>,
    /// The same of each of these, and how many visits in a row have left mailboxes due: none of one that is put off.
    visits_left: HashMap<Account, (Instant, u32)>,
    /// Those without a task whose visits failed.
    failed: HashMap<Account, FailedVisit>,
    /// What those without a task wait for that are parked.
    parked: HashMap<Account, ParkedAccount>,
    /// What the next tasks have to know of credentials that were refused.
    credentials: HashMap<Account, KeptCredentials>,
    pushes: LoginPushes,
    /// Of the next sweep.
    sweep_at: Instant,
    /// This node then tells the others to sweep theirs.
    everybody: bool,
    missed: MissedEvents,
    /// When that of the last sweep did.
    swept: u64,
    visits: JoinSet<VisitEnd>,
    /// Whose tasks these are.
    accounts: HashMap<Id, Account>,
    asking: AskingTasks,
}

/// An account without a task.
#[derive(Debug)]
pub(super) struct RestingAccount {
    pub(super) status: StatusCell,
    /// When it was last known that it is to be watched.
    pub(super) known_at: u64,
    /// As [`Watcher::inherited`].
    pub(super) inherited: bool,
}

/// What an account's task has told.
#[derive(Debug)]
pub(super) struct ToldAccount {
    /// When the task began, as the supervisor counts.
    task: u64,
    /// It was to look at all of the account.
    is_of_all: bool,
    mailboxes: Vec<WatchedMailbox>,
}

/// What happens to accounts on demand.
#[derive(Debug)]
pub(super) enum OnDemandEvent {
    /// A task has ended.
    Ended(VisitEnd),
    /// A session of the account's user ended some time ago, or a visit that has left mailboxes due, or the wait is over
    /// of one that was put off.
    LookAgain(Account),
    /// The task of this account broke off.
    Broken(Account),
    /// More tasks may begin.
    Room,
}

/// Which accounts are marked as due when all are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sweep {
    None,
    /// Those of this node.
    Ours,
    /// The same, and this node tells the others to sweep theirs.
    Everybody,
}

/// The end of an account's task.
#[derive(Debug)]
pub(super) struct VisitEnd {
    pub(super) account: Account,
    /// When the task began, as the supervisor counts.
    pub(super) began: u64,
    pub(super) taken_over: TakenOver,
    pub(super) told: ToldAccount,
    pub(super) faults: MailboxFaults,
    pub(super) looked_at: Vec<LookedAt>,
    /// All of the account is still to be looked at.
    pub(super) unasked: Option<Box<Unasked>>,
    /// Mailboxes are still due: their state is refused for now, or they are left out.
    pub(super) left_due: bool,
    /// What is known of its credentials where that matters to the next task.
    pub(super) credentials: Option<KeptCredentials>,
    /// As [`Watcher::inherited`].
    pub(super) inherited: bool,
}

impl OnDemand {
    pub(super) fn new() -> Self {
        Self {
            resting: HashMap::new(),
            told: HashMap::new(),
            forget: VecDeque::new(),
            faults: HashMap::new(),
            waiting: WaitingAccounts::default(),
            sessions: VecDeque::new(),
            after_session: HashSet::new(),
            left_due: BTreeSet::new(),
            visits_left: HashMap::new(),
            failed: HashMap::new(),
            parked: HashMap::new(),
            credentials: HashMap::new(),
            pushes: LoginPushes::default(),
            sweep_at: Instant::now(),
            everybody: false,
            missed: MissedEvents::default(),
            swept: 0,
            visits: JoinSet::new(),
            accounts: HashMap::new(),
            asking: AskingTasks::new(),
        }
    }

    /// When the next sweep is due.
    pub(super) fn next_sweep(&self) -> Instant {
        self.missed.sweep_at().map_or(self.sweep_at, |at| at.min(self.sweep_at))
    }

    /// Events were missed, of accounts of any node. Each node sweeps its own, and the one that has missed them tells the
    /// others.
    pub(super) fn missed_events(&mut self, now: Instant, at: MissedAt) {
        self.missed.note(now, at);
    }

    /// The next sweep is due then at the latest.
    pub(super) fn sweep_at(&mut self, at: Instant) {
        self.sweep_at = self.sweep_at.min(at);
    }

    /// The same, and this node tells the others to sweep, too.
    pub(super) fn everybody_at(&mut self, at: Instant) {
        self.everybody = true;
        self.sweep_at(at);
    }

    /// Whether a sweep begins now, and of which accounts; the next one is due after this time.
    pub(super) fn begin_sweep(&mut self, now: Instant, every: Duration) -> Sweep {
        if now < self.next_sweep() {
            return Sweep::None;
        }
        self.sweep_at = now + every;
        let missed = self.missed.begin_sweep(now);
        if missed {
            tracing::info!(
                target: "mailchime::watch::events_missed",
                "events of mail servers may have been missed; mailchime asks for all accounts without a connection"
            );
        }
        let untold = missed && self.missed.take_untold();
        match std::mem::take(&mut self.everybody) || untold {
            true => Sweep::Everybody,
            false => Sweep::Ours,
        }
    }

    /// A sweep that was begun has not come to its end: it begins again then.
    pub(super) fn sweep_again(&mut self, sweep: Sweep, at: Instant) {
        match sweep {
            Sweep::None => {}
            Sweep::Ours => self.sweep_at(at),
            Sweep::Everybody => self.everybody_at(at),
        }
    }

    /// A session has ended: the account is to be asked for then, unless it is anyway.
    pub(super) fn session_ended(&mut self, account: Account, at: Instant) {
        if self.sessions.len() < ENDED && self.after_session.insert(account.clone()) {
            self.sessions.push_back((at, account));
        }
    }

    /// Spawns the task of an account.
    pub(super) fn spawn(&mut self, mut watcher: Watcher, begin: Box<WatcherStart>, began: u64) {
        if let Some((_, told)) = self.told.remove(&watcher.account) {
            watcher.mailboxes = told.mailboxes;
        }
        watcher.faults = self.faults.remove(&watcher.account).unwrap_or_default();
        if let Some(failed) = self.failed.remove(&watcher.account)
            && !failed.has_moved(watcher.context.backends.of(&watcher.account).ok().as_ref())
        {
            (watcher.failures, watcher.retry_at) = (failed.failures, Some(failed.retry_at));
            watcher.known.refusals = watcher.known.refusals.max(failed.refusals);
        }
        if let Some(parked) = self.parked.remove(&watcher.account) {
            watcher.elsewhere = matches!(parked.wait, ParkedWait::Change { elsewhere: true, .. });
            watcher.waited = Some(Box::new(parked.wait));
        }
        if let Some(credentials) = self.credentials.remove(&watcher.account) {
            watcher.known = *credentials;
        }
        self.is_put_off_no_more(&watcher.account);
        let may_push = self.pushes.begins(&watcher.account);
        watcher.may_push = may_push;
        let backend = watcher.considered.as_ref().map(|backend| backend.id().clone());
        watcher.asking = Some(Box::new(self.asking.begin(backend)));
        let account = watcher.account.clone();
        let task = self.visits.spawn(async move {
            watcher.run(begin).await;
            let taken_over = watcher.taken_over();
            let of_user = !watcher.acts_as_master();
            let Watcher { account, mailboxes, faults, mut looked_at, unasked, .. } = watcher;
            // Since the look there was word of something else.
            let is_due = |it: &LookedAt| mailboxes.iter().any(|m| m.due && m.mailbox == it.mailbox);
            looked_at.retain(|it| !is_due(it));
            let (known, inherited) = (watcher.known, watcher.inherited);
            let known = match unasked {
                Some(_) => known.of_next_task(),
                None => known.at_rest(),
            };
            let credentials = (of_user && known.matters()).then(|| Box::new(known));
            let is_left = |it: &WatchedMailbox| it.due || it.is_left_out(&faults);
            let left_due = unasked.is_none() && mailboxes.iter().any(is_left);
            let is_of_all = taken_over.looks > 0;
            let told = ToldAccount { task: began, is_of_all, mailboxes };
            VisitEnd {
                account,
                began,
                taken_over,
                told,
                faults,
                looked_at,
                unasked,
                left_due,
                credentials,
                inherited,
            }
        });
        self.accounts.insert(task.id(), account);
        if may_push {
            self.pushes.begun(task.id());
        }
    }

    /// What the task of an account has told is remembered for a while; with `unasked`, where new mail was announced, until
    /// the next task looks. Which mailboxes did not answer is remembered for as long as the account is this node's.
    pub(super) fn remember(
        &mut self,
        account: &Account,
        now: u64,
        mut told: ToldAccount,
        faults: MailboxFaults,
        unasked: bool,
    ) {
        if !faults.is_empty() {
            self.faults.insert(account.clone(), faults);
        }
        let at = Instant::now();
        while let Some((_, account, task)) = self.forget.pop_front_if(|(until, ..)| *until <= at) {
            if self.told.get(&account).is_some_and(|(_, told)| told.task == task) {
                self.told.remove(&account);
            }
        }
        told.mailboxes = told.mailboxes.into_iter().map(WatchedMailbox::rested).collect();
        if !unasked || !told.mailboxes.iter().any(|it| it.ledger.has_announced()) {
            self.forget.push_back((at + REMEMBERED, account.clone(), told.task));
        }
        self.told.insert(account.clone(), (now, told));
    }

    /// Whether the account, which has no task, had one at this moment or since that has looked at all of it.
    pub(super) fn has_told_all_since(&self, account: &Account, moment: u64) -> bool {
        let told = self.told.get(account);
        let is_it = told.is_some_and(|(ended, told)| told.is_of_all && *ended >= moment);
        is_it && !self.is_unasked(account)
    }

    /// A visit has left mailboxes of the account due, or none. They are asked for again after `first`, which doubles with
    /// each such visit in a row, and not while the task's own `faults` say that they are left out.
    pub(super) fn visited(&mut self, account: &Account, left_due: bool, first: Duration) {
        let before = self.visits_left.remove(account);
        if let Some((at, _)) = before {
            self.left_due.remove(&(at, account.clone()));
        }
        // What else happens to the account does not put it off.
        if let Some((at, visits)) = before.filter(|(at, _)| left_due && *at > Instant::now()) {
            self.left_due.insert((at, account.clone()));
            self.visits_left.insert(account.clone(), (at, visits));
        } else if left_due {
            let visits = before.map_or(0, |(_, visits)| visits).saturating_add(1);
            let backoff = Backoff::new(first, LEFT_DUE.max(first));
            let at = Instant::now() + backoff.wait(visits, rand::random());
            let rests = self.faults.get(account).and_then(MailboxFaults::next_try);
            let at = rests.map_or(at, |rests| rests.max(at));
            self.left_due.insert((at, account.clone()));
            self.visits_left.insert(account.clone(), (at, visits));
        }
    }

    /// The visit of an account failed: it is asked for again when that says so.
    pub(super) fn failed(&mut self, account: &Account, failed: FailedVisit) {
        self.put_off(account, failed.retry_at);
        self.failed.insert(account.clone(), failed);
    }

    /// The account waits with others, and its visits had failed before.
    pub(super) fn failed_before(&mut self, account: &Account, failed: FailedVisit) {
        if failed.counts() {
            self.failed.insert(account.clone(), failed);
        }
    }

    /// The account is looked into then, unless there is a reason before that.
    fn put_off(&mut self, account: &Account, until: Instant) {
        if let Some((at, _)) = self.visits_left.insert(account.clone(), (until, 0)) {
            self.left_due.remove(&(at, account.clone()));
        }
        self.left_due.insert((until, account.clone()));
    }

    /// The account gets a task, which sees for itself whether it is to wait on.
    fn is_put_off_no_more(&mut self, account: &Account) {
        if let Some((at, 0)) = self.visits_left.get(account).copied() {
            self.visits_left.remove(account);
            self.left_due.remove(&(at, account.clone()));
        }
    }

    /// Whether the account has no task since its visit failed.
    pub(super) fn has_failed(&self, account: &Account) -> bool {
        self.failed.contains_key(account)
    }

    /// Accounts have these backends from now on. What failed at another one is tried at once.
    pub(super) fn backends_are_replaced(&mut self, of: impl Fn(&Account) -> Option<Backend>) {
        let failed = self.failed.iter();
        let moved = failed.filter(|(account, failed)| failed.has_moved(of(account).as_ref()));
        let moved: Vec<Account> = moved.map(|(account, _)| account.clone()).collect();
        for account in moved {
            self.put_off(&account, Instant::now());
        }
    }

    /// What happens next. Cancel safe.
    pub(super) async fn next(&mut self) -> OnDemandEvent {
        let at = self.sessions.front().map(|(at, _)| *at);
        let left_at = self.left_due.first().map(|(at, _)| *at);
        tokio::select! {
            Some(ended) = self.visits.join_next_with_id() => match ended {
                Ok((task, end)) => {
                    self.accounts.remove(&task);
                    self.pushes.ended(task);
                    OnDemandEvent::Ended(end)
                }
                Err(error) => {
                    self.pushes.ended(error.id());
                    let account = self.accounts.remove(&error.id());
                    account.map_or(OnDemandEvent::Room, OnDemandEvent::Broken)
                }
            },
            () = self.asking.room(&self.waiting), if !self.waiting.is_empty() => OnDemandEvent::Room,
            () = sleep_until(at.unwrap_or_else(Instant::now)), if at.is_some() => {
                match self.sessions.pop_front() {
                    Some((_, account)) => {
                        self.after_session.remove(&account);
                        OnDemandEvent::LookAgain(account)
                    }
                    None => OnDemandEvent::Room,
                }
            }
            () = sleep_until(left_at.unwrap_or_else(Instant::now)), if left_at.is_some() => {
                match self.left_due.pop_first() {
                    Some((_, account)) => OnDemandEvent::LookAgain(account),
                    None => OnDemandEvent::Room,
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
    pub(super) fn rest(&mut self, account: Account, resting: RestingAccount) {
        resting.status.set(WatcherState::Watching(WatchMode::OnDemand));
        self.resting.insert(account, resting);
    }

    /// The same of one that is still to be asked for: it goes on showing why.
    pub(super) fn rest_unasked(&mut self, account: Account, resting: RestingAccount) {
        self.resting.insert(account, resting);
    }

    /// The account is to be asked for behind others, when its backend can be reached and has room.
    pub(super) fn wait_for_backend(&mut self, account: Account, backend: Option<BackendId>) {
        self.waiting.add(vec![account], |_| backend.clone());
    }

    /// The account is to be asked for before others, when its backend has room.
    pub(super) fn look_again(&mut self, account: Account, backend: Option<BackendId>) {
        self.waiting.add_first(account, backend);
    }

    /// Whether the account has no task although all of it is still to be looked at.
    pub(super) fn is_unasked(&self, account: &Account) -> bool {
        self.resting.get(account).is_some_and(|resting| resting.status.rests())
    }

    pub(super) fn is_resting(&self, account: &Account) -> bool {
        self.resting.contains_key(account)
    }

    /// When it was last known that the account, which has no task, is to be watched.
    pub(super) fn rests_since(&self, account: &Account) -> Option<u64> {
        self.resting.get(account).map(|resting| resting.known_at)
    }

    /// The account gets a task.
    pub(super) fn take(&mut self, account: &Account) -> Option<RestingAccount> {
        self.resting.remove(account)
    }

    /// The account is not this node's any more. Whether it was, without a task.
    pub(super) fn leave(&mut self, account: &Account) -> bool {
        self.faults.remove(account);
        self.failed.remove(account);
        self.parked.remove(account);
        self.credentials.remove(account);
        self.told.remove(account);
        self.visited(account, false, Duration::ZERO);
        self.resting.remove(account).is_some()
    }

    /// Those that were known before this moment and are not among these.
    pub(super) fn others(&self, live: &HashSet<&Account>, moment: u64) -> Vec<Account> {
        let known = self.resting.iter();
        let gone = known.filter(|(account, it)| it.known_at <= moment && !live.contains(account));
        gone.map(|(account, _)| account.clone()).collect()
    }

    /// Those that are another node's now.
    pub(super) fn of_others(&self, is_ours: impl Fn(&Account) -> bool) -> Vec<Account> {
        self.resting.keys().filter(|account| !is_ours(account)).cloned().collect()
    }

    /// These are due, in this order, by a reading that began at that moment, for this sweep.
    pub(super) fn found_due(
        &mut self,
        moment: u64,
        sweep: Sweep,
        accounts: Vec<Account>,
        backend_of: impl Fn(&Account) -> Option<BackendId>,
    ) {
        if sweep == Sweep::None {
            // A sweep may have marked others since this was read.
            self.waiting.add(accounts, backend_of);
        } else if moment >= self.swept {
            self.swept = moment;
            let before = std::mem::take(&mut self.waiting);
            self.waiting.add(accounts, &backend_of);
            // Of these the reading may not have known.
            let unasked = before.into_accounts().filter(|account| self.is_unasked(account));
            let unasked = unasked.collect();
            self.waiting.add(unasked, backend_of);
        }
    }

    /// These are to be asked for, too, by a sweep whose reading began at that moment. Whether it goes on: a later
    /// one is of all accounts as well.
    pub(super) fn marked(
        &mut self,
        moment: u64,
        accounts: Vec<Account>,
        backend_of: impl Fn(&Account) -> Option<BackendId>,
    ) -> bool {
        let goes_on = moment >= self.swept;
        if goes_on {
            self.waiting.add(accounts, backend_of);
        }
        goes_on
    }

    /// The next one that is to be asked for, if another task may begin.
    pub(super) fn next_waiting(&mut self) -> Option<Account> {
        self.waiting.next(&self.asking)
    }

    /// How many wait to be asked for.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether any account of this node is on demand.
    pub(super) fn is_used(&self) -> bool {
        !self.resting.is_empty() || !self.visits.is_empty()
    }

    /// How many have no task.
    pub(super) fn len(&self) -> usize {
        self.resting.len()
    }

    pub(super) fn statuses(&self, account: Option<&Account>) -> Vec<WatcherStatus> {
        let asked = self.resting.iter().filter(|(it, _)| account.is_none_or(|asked| asked == *it));
        let reason = |account: &Account| match self.waiting.contains(account) {
            true => Some("it waits for its turn to be asked for"),
            false if self.visits_left.contains_key(account) => {
                Some("it is asked for again soon: the state of a mailbox was not to be had")
            }
            false if self.after_session.contains(account) => {
                Some("it is asked for soon: a session of its user has ended, or its task broke off")
            }
            false if self.missed.sweep_at().is_some() => {
                Some("it is asked for soon: events of mail servers may have been missed")
            }
            false => None,
        };
        let shown = asked.map(|(account, resting)| {
            let status = resting.status.of(account);
            let reason = status.reason.or_else(|| reason(account).map(str::to_owned));
            WatcherStatus { reason, ..status }
        });
        shown.collect()
    }
}

#[cfg(test)]
mod tests;
