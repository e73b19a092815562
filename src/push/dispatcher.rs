//! The task that owns what is pending for subscriptions: it reads whose subscriptions, sends, and writes what
//! came of it, as the rules (`scheduler`) say. All decisions are there, all I/O is here.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Duration, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::explain::{Explanation, Facts};

use super::push_id::push_id;
use super::recent::{RecentPush, RecentPushes};
pub use super::scheduler::{BackendOf, OWN_FAULT};
use super::scheduler::{Batch, ChangeId, Delivery, Effect, Rules, Scheduler};
use super::transport::{MailboxChange, Notice, RouteId, Routes, Verdict};
use crate::config;
use crate::metrics::{Metrics, Queue};
use crate::model::{
    Account, BackendId, Change, ChangeKind, Mailbox, Snapshot, Subscription, SubscriptionKey,
    Timestamp, WatchEvent, seconds,
};
use crate::net::backends::Backends;
use crate::net::backoff::Backoff;
use crate::net::counters::LimitCounters;
use crate::nodes::Assignment;
use crate::store::{Alive, Store, StoreError, Target};

/// How long requests that are under way may take to end when the program does, and how long the
/// last write may take.
const GRACE: Duration = Duration::from_secs(5);
/// From one write to the next at least. What gathers meanwhile is one transaction: events of mail servers wait for the
/// same writer.
const GATHER: Duration = Duration::from_millis(10);
/// Between attempts to read which pushes are due on disk.
const OWED: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));

/// How many questions may wait for an answer.
const QUESTIONS: usize = 8;

/// What the dispatcher works with.
#[derive(Debug)]
pub struct DispatcherParts {
    /// What watchers saw.
    pub events: mpsc::Receiver<WatchEvent>,
    /// The database.
    pub store: Store,
    /// Which one each account has.
    pub backends: Backends,
    /// On which pushes leave.
    pub routes: Routes,
    /// `[push]`
    pub config: config::PushConfig,
    /// Gets the accounts that have no live subscription: a hint, given without waiting, that may be late
    /// or lost.
    pub removed: mpsc::Sender<Account>,
    /// Whose marks on disk that a push is owed are this node's matter.
    pub assignment: watch::Receiver<Assignment>,
    /// What people ask; see [`DispatcherHandle`].
    pub requests: DispatcherRequests,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// By whose names accounts take turns.
    pub backend_of: BackendOf,
    /// The limits that were reached.
    pub counters: Arc<LimitCounters>,
}

/// Asks the dispatcher why it does what it does. Clones ask the same one.
#[derive(Clone, Debug)]
pub struct DispatcherHandle {
    requests: mpsc::Sender<DispatcherRequest>,
    recent: RecentPushes,
}

/// The questions of a [`DispatcherHandle`].
#[derive(Debug)]
pub struct DispatcherRequests {
    asked: mpsc::Receiver<DispatcherRequest>,
    recent: RecentPushes,
}

#[derive(Debug)]
enum DispatcherRequest {
    Explain(Explain),
    /// The subscriptions of this account have been changed in the database.
    Changed(Account),
}

#[derive(Debug)]
struct Explain {
    account: Account,
    mailbox: Option<Mailbox>,
    reply: oneshot::Sender<Result<Vec<Explanation>, StoreError>>,
}

/// For a dispatcher, and for those who want to know of it.
pub fn channel() -> (DispatcherHandle, DispatcherRequests) {
    let ((requests, asked), recent) = (mpsc::channel(QUESTIONS), RecentPushes::default());
    (DispatcherHandle { requests, recent: recent.clone() }, DispatcherRequests { asked, recent })
}

impl DispatcherHandle {
    /// Why each subscription of the account would or would not be pushed if new mail came now: to
    /// `mailbox`, or to any that it registered for. `None` when the dispatcher has ended.
    pub async fn explain(
        &self,
        account: Account,
        mailbox: Option<Mailbox>,
    ) -> Option<Result<Vec<Explanation>, StoreError>> {
        let (reply, answer) = oneshot::channel();
        let explain = Explain { account, mailbox, reply };
        self.requests.send(DispatcherRequest::Explain(explain)).await.ok()?;
        answer.await.ok()
    }

    /// Has the account's subscriptions read again, as somebody else has changed them in the database: who is
    /// gone gets nothing more, and if all are, that is passed on. `None` when the dispatcher has
    /// ended.
    pub async fn changed(&self, account: Account) -> Option<()> {
        self.requests.send(DispatcherRequest::Changed(account)).await.ok()
    }

    /// The same where it may be that the dispatcher does not run yet: what finds no place in its queue is lost.
    pub fn changed_perhaps(&self, account: Account) {
        let _ = self.requests.try_send(DispatcherRequest::Changed(account));
    }

    /// The last pushes, the newest first.
    pub fn recent(&self) -> Vec<RecentPush> {
        self.recent.all()
    }
}

/// Takes changes from `events` and tells subscriptions of them, until `cancel` or until `events` is
/// closed; begins with the pushes that are due since an earlier run, and whenever the nodes divide the accounts
/// anew, with what the node that had them before has left. Then it lets requests under way end, for
/// some seconds, marks on disk what subscriptions have not been told of, and returns.
pub async fn run(parts: DispatcherParts, cancel: CancellationToken) {
    let DispatcherParts {
        mut events,
        store,
        backends,
        routes,
        config,
        removed,
        mut assignment,
        mut requests,
        metrics,
        backend_of,
        counters,
    } = parts;
    let mut scheduler = Scheduler::new(Rules {
        quiet_delay: config.quiet_delay,
        min_interval: config.min_interval,
        max_delay: config.max_delay,
        per_domain: config.pushes_per_second_per_domain,
        per_backend: config.pushes_per_second_per_backend,
        events: config.events,
        chance: rand::random,
        backend_of,
    });
    let mut changes = routes.changes();
    let mut replacements = backends.replacements();
    scheduler.routes(routes.all(), now(), Timestamp::now());
    let (under_way, busy) = (JoinSet::new(), 0);
    let shares = assignment.clone();
    let recent = requests.recent.clone();
    let mut jobs =
        Jobs { store, backends, routes, config, removed, shares, metrics, recent, under_way, busy };
    assignment.mark_changed();
    loop {
        while let Some(effect) = scheduler.next(now()) {
            jobs.start(effect);
        }
        jobs.measure(&scheduler);
        let held = u32::try_from(scheduler.take_held()).unwrap_or(u32::MAX);
        counters.min_interval.add(held);
        let waits = scheduler.take_waits();
        counters.pushes_per_second_per_domain.add(waits.domains);
        counters.pushes_per_second_per_backend.add(waits.backends);
        let wake = scheduler.wake_at(now());
        tokio::select! {
            () = cancel.cancelled() => break,
            Some(done) = jobs.under_way.join_next() => jobs.done(done, &mut scheduler),
            event = events.recv(), if scheduler.takes_events() => match event {
                Some(event) if jobs.is_at_home(&event) => {
                    trace(&event);
                    scheduler.event(event, now());
                }
                Some(_) => {}
                None => break,
            },
            () = changes.next() => {
                scheduler.routes(jobs.routes.all(), now(), Timestamp::now());
                // Perhaps to subscriptions of a route that was not there before.
                jobs.load();
            }
            Ok(()) = assignment.changed() => jobs.load(),
            Ok(()) = replacements.changed() => {
                scheduler.backends_are_replaced(|account| jobs.home(account), now());
                // Perhaps to subscriptions of an account that has its former backend again.
                jobs.load();
            }
            Some(request) = requests.asked.recv() => match request {
                DispatcherRequest::Explain(explain) => jobs.ask(explain),
                DispatcherRequest::Changed(account) => scheduler.doubted(vec![account], now()),
            },
            () = sleep_until(wake.unwrap_or_else(now).into()), if wake.is_some() => {}
        }
    }
    jobs.end(scheduler).await;
}

/// The first line of a change's trail; `push` and `settled` are the next, with the same number.
fn trace(event: &WatchEvent) {
    if let WatchEvent::Announced(change) | WatchEvent::Changed(change) = event {
        let Change { account, mailbox, kind, .. } = change;
        debug!(
            target: "mailchime::push::change_received",
            %account, change = %ChangeId::of(change), %mailbox, ?kind, "change received"
        );
    }
}

/// The I/O that is under way, and what it needs.
struct Jobs {
    store: Store,
    backends: Backends,
    routes: Routes,
    config: config::PushConfig,
    removed: mpsc::Sender<Account>,
    shares: watch::Receiver<Assignment>,
    metrics: Arc<Metrics>,
    recent: RecentPushes,
    under_way: JoinSet<Done>,
    /// Those of them that are worth waiting for at the end: pushes and writes.
    busy: usize,
}

enum Done {
    Loaded(Vec<Account>),
    Read(Account, Option<Vec<Target>>),
    Answered(Arc<Subscription>, Verdict),
    /// All subscriptions of an account in any state, and those of them that can be sent to.
    Asked(Explain, Result<(Vec<Target>, Vec<SubscriptionKey>), StoreError>),
    /// With what could not be written, and the accounts of subscriptions that were to be removed and have
    /// registered since.
    Written(Batch, Vec<Account>),
}

// === impl Jobs ===

impl Jobs {
    fn load(&mut self) {
        let store = self.store.clone();
        self.under_way.spawn(async move {
            let mut failures = 0;
            loop {
                match store.owed_accounts().await {
                    Ok(accounts) => return Done::Loaded(accounts),
                    Err(error) => warn!(
                        target: "mailchime::push::owed_pushes_unreadable",
                        %error,
                        "could not read from the database which pushes are due; mailchime tries \
                         again"
                    ),
                }
                failures += 1;
                sleep(OWED.wait(failures, rand::random())).await;
            }
        });
    }

    fn start(&mut self, effect: Effect) {
        match effect {
            Effect::Read(account) => {
                let store = self.store.clone();
                let alive = Alive::at(self.served(), &self.config);
                self.under_way.spawn(async move {
                    let targets = store.targets(&account, alive).await;
                    let targets = targets.inspect_err(|error| {
                        warn!(
                            target: "mailchime::push::subscriptions_unreadable",
                            %account, %error,
                            "could not read the registrations of an account; mailchime tries again"
                        )
                    });
                    Done::Read(account, targets.ok())
                });
            }
            Effect::Send(push) => {
                self.busy += 1;
                let (routes, ttl) = (self.routes.clone(), self.config.expiration);
                let (metrics, recent) = (Arc::clone(&self.metrics), self.recent.clone());
                self.under_way.spawn(async move {
                    let verdict = send(&routes, ttl, &push).await;
                    recent.note(&metrics, &push, &verdict, now());
                    Done::Answered(push.subscription, verdict)
                });
            }
            Effect::Write(batch) => {
                self.busy += 1;
                let (store, removed) = (self.store.clone(), self.removed.clone());
                self.under_way.spawn(async move {
                    let next = tokio::time::Instant::now() + GATHER;
                    let (failed, alive) = write(&store, &removed, batch).await;
                    sleep_until(next).await;
                    Done::Written(failed, alive)
                });
            }
        }
    }

    /// The time of service: how long subscriptions have been silent goes by it.
    fn served(&self) -> Timestamp {
        self.store.served(Timestamp::now())
    }

    /// The account's backend, if its name says which one it is.
    fn home(&self, account: &Account) -> Option<BackendId> {
        self.backends.id_of(account)
    }

    /// Whether what was seen was seen at the account's backend.
    fn is_at_home(&self, event: &WatchEvent) -> bool {
        let (account, seen_at) = match event {
            WatchEvent::Announced(change) | WatchEvent::Changed(change) => {
                (&change.account, &change.backend)
            }
            WatchEvent::Rebased { account, backend, .. }
            | WatchEvent::Previewed { account, backend, .. }
            | WatchEvent::LoginWanted { account, backend } => (account, backend),
            WatchEvent::Registered { .. } => return true,
        };
        self.home(account).is_some_and(|home| home.is(seen_at.as_str()))
    }

    /// Tells how much is waiting.
    fn measure(&self, scheduler: &Scheduler) {
        for (queue, length) in
            [(Queue::Pushes, scheduler.to_push()), (Queue::Settlements, scheduler.to_write())]
        {
            self.metrics.queues.of(queue).set(i64::try_from(length).unwrap_or(i64::MAX));
        }
    }

    fn ask(&mut self, request: Explain) {
        let store = self.store.clone();
        self.under_way.spawn(async move {
            let both = async {
                let all = store.all_targets(&request.account).await?;
                Ok((all, store.unopened(&request.account).await?))
            };
            let both = both.await;
            Done::Asked(request, both)
        });
    }

    fn done(&mut self, done: Result<Done, JoinError>, scheduler: &mut Scheduler) {
        match done {
            Ok(Done::Loaded(mut accounts)) => {
                let assignment = self.shares.borrow().clone();
                accounts.retain(|account| assignment.is_mine(account));
                if !accounts.is_empty() {
                    info!(
                        target: "mailchime::push::owed_pushes_loaded",
                        accounts = accounts.len(),
                        "found pushes on disk that are due; mailchime sends them"
                    );
                }
                scheduler.owed(accounts, now());
            }
            Ok(Done::Read(account, targets)) => {
                if targets.as_ref().is_some_and(Vec::is_empty) {
                    hint(&self.removed, &account);
                }
                let home = self.home(&account);
                let elsewhere = |targets: &Vec<Target>| {
                    let elsewhere = |target: &Target| {
                        home.as_ref().is_none_or(|home| target.elsewhere(home).is_some())
                    };
                    targets.first().is_some_and(elsewhere)
                };
                match targets.as_ref().is_some_and(elsewhere) {
                    true => scheduler.set_aside(&account, now()),
                    false => {
                        let wall = Timestamp::now();
                        scheduler.read(&account, targets, now(), wall, self.served());
                    }
                }
            }
            Ok(Done::Answered(subscription, verdict)) => {
                self.busy -= 1;
                scheduler.answered(&subscription, &verdict, now(), Timestamp::now(), self.served());
            }
            Ok(Done::Asked(Explain { mailbox, reply, .. }, found)) => {
                let wall = Timestamp::now();
                let explained = found.map(|(all, unopened)| {
                    let explained = all.iter().map(|target| {
                        let home = self.home(&target.subscription.account);
                        let route = self.routes.find(&RouteId::of(&target.subscription));
                        let facts = Facts {
                            target,
                            opened: !unopened.iter().any(|key| target.subscription.is(key)),
                            home: home.as_ref(),
                            config: &self.config,
                            route: route.as_ref(),
                            pending: scheduler.view(&target.subscription, now()),
                        };
                        facts.explain(mailbox.as_ref(), wall, self.served())
                    });
                    explained.collect()
                });
                // The one who asked may have gone.
                let _ = reply.send(explained);
            }
            Ok(Done::Written(failed, alive)) => {
                self.busy -= 1;
                scheduler.written(failed, now());
                scheduler.doubted(alive, now());
            }
            // Its rows have not moved, so the next start finds what it was about.
            Err(error) => error!(
                target: "mailchime::push::task_failed",
                %error, "a task that pushes failed; please report it with this line"
            ),
        }
    }

    async fn end(mut self, mut scheduler: Scheduler) {
        let settled = timeout(GRACE, async {
            while self.busy > 0
                && let Some(done) = self.under_way.join_next().await
            {
                self.done(done, &mut scheduler);
            }
        });
        if settled.await.is_err() {
            warn!(
                target: "mailchime::push::pushes_under_way_at_stop",
                under_way = self.busy,
                "pushes were under way at the stop; mailchime sends them again at the next start"
            );
        }
        // What is no longer waited for is to do nothing after this.
        self.under_way.shutdown().await;
        let batch = scheduler.end(now(), Timestamp::now());
        let rows = batch.settlements.len();
        match timeout(GRACE, write(&self.store, &self.removed, batch)).await {
            Ok((failed, _)) if failed == Batch::default() => debug!(
                target: "mailchime::push::last_write_done",
                rows, "wrote the results of pushes before the stop"
            ),
            _ => error!(
                target: "mailchime::push::last_write_failed",
                rows,
                "could not write the results of pushes before the stop; mailchime finds the \
                 changes again at the next start"
            ),
        }
    }
}

/// Sends a push to one subscription, whatever else is pending for it, and says what became of it.
/// Nothing is written but a line in the log. `ttl` as [`Notice::ttl`].
pub async fn send_now(
    routes: &Routes,
    ttl: Duration,
    subscription: Subscription,
    mailboxes: Vec<Mailbox>,
) -> Verdict {
    let subscription = Arc::new(subscription);
    let told = |mailbox| {
        let (kind, state) = (ChangeKind::NewMail, Snapshot::default());
        MailboxChange { mailbox, kind, state, unread_before: None }
    };
    let mailboxes = mailboxes.into_iter().map(told).collect();
    let (newest, changes) = (None, Vec::new());
    let push = Delivery { subscription, mailboxes, newest, changes, seen_at: now() };
    send(routes, ttl, &push).await
}

/// Sends one push and writes its line in the log.
async fn send(routes: &Routes, ttl: Duration, push: &Delivery) -> Verdict {
    let id = push_id(push).to_string();
    let newest = push.newest.as_ref();
    let notice = Notice {
        id: &id,
        mailboxes: &push.mailboxes,
        preview: newest.map(|newest| (&newest.mailbox, &newest.preview)),
        at: Timestamp::now(),
        ttl,
    };
    let verdict = match routes.find(&RouteId::of(&push.subscription)) {
        Some(route) => route.send(&push.subscription, &notice).await,
        // Everything is kept and tried again.
        None => Verdict::route_closed("there is no such route"),
    };
    let verdict = match verdict {
        Verdict::Accepted { id: None } => Verdict::Accepted { id: Some(id.clone()) },
        verdict => verdict,
    };
    let since_seen = now().saturating_duration_since(push.seen_at);
    info!(
        target: "mailchime::push::attempted",
        account = %push.subscription.account,
        endpoint = %push.subscription.endpoint,
        change = joined(&push.changes),
        mailboxes = push.mailboxes.len(),
        outcome = verdict.name(),
        detail = verdict.detail(),
        message_id = match &verdict {
            Verdict::Accepted { id: Some(id) } => id,
            _ => &id,
        },
        seconds = seconds(since_seen),
        "push attempted"
    );
    verdict
}

/// `#17 #18`.
fn joined(changes: &[ChangeId]) -> String {
    changes.iter().map(ChangeId::to_string).collect::<Vec<_>>().join(" ")
}

/// Writes a batch; returns what could not be written, and the accounts of subscriptions that were to be
/// removed and are registered anew, or gone already.
async fn write(
    store: &Store,
    removed: &mpsc::Sender<Account>,
    batch: Batch,
) -> (Batch, Vec<Account>) {
    let mut alive = Vec::new();
    if let Err(error) = store.settle(&batch.settlements).await {
        error!(
            target: "mailchime::push::results_not_written",
            rows = batch.settlements.len(), %error,
            "could not write the results of pushes; mailchime tries again"
        );
        return (batch, alive);
    }
    if !batch.changes.is_empty() {
        // Every subscription got its push, or has a mark on disk that one is due.
        debug!(
            target: "mailchime::push::results_written",
            change = joined(&batch.changes), "change recorded"
        );
    }
    let mut failed = Batch::default();
    for (subscription, not_after) in batch.removals {
        match store.remove_subscription(&subscription, Some(not_after)).await {
            Ok(Some(gone)) => {
                info!(
                    target: "mailchime::push::subscription_removed",
                    account = %subscription.account, endpoint = %subscription.endpoint, "registration removed"
                );
                if !gone.account_left {
                    hint(removed, &subscription.account);
                }
            }
            Ok(None) => alive.push(subscription.account),
            Err(error) => {
                error!(
                    target: "mailchime::push::subscription_not_removed",
                    account = %subscription.account, endpoint = %subscription.endpoint, %error,
                    "could not remove a registration; mailchime tries again"
                );
                failed.removals.push((subscription, not_after));
            }
        }
    }
    (failed, alive)
}

fn hint(removed: &mpsc::Sender<Account>, account: &Account) {
    if removed.try_send(account.clone()).is_err() {
        debug!(
            target: "mailchime::push::last_removal_not_reported",
            %account,
            "the queue to the watchers is full; they learn at their next refresh that the account \
             has no registration"
        );
    }
}

/// The runtime's clock, which tests can stop.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
