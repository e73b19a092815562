//! The task that owns what is pending for devices: it reads whose devices, sends, and writes what
//! came of it, as the rules (`pending`) say. All decisions are there, all I/O is here.

use std::time::Instant;

use a2::PushType;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Duration, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::apns::{Apns, Outcome, new_apns_id};
use super::payload::{Headers, MailPush};
use super::pending::{Action, Batch, Pending, Push, Rules};
use crate::config;
use crate::model::{Account, Timestamp, WatchEvent};
use crate::net::backoff::Backoff;
use crate::store::{DeviceKey, Store, Target};

/// How long requests that are under way may take to end when the program does, and how long the
/// last write may take.
const GRACE: Duration = Duration::from_secs(5);
/// Between attempts to learn what is owed since an earlier run.
const OWED: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));

/// Takes changes from `events` and tells devices of them, until `cancel` or until `events` is
/// closed; begins with what is owed since an earlier run. Then it lets requests under way end, for
/// some seconds, marks on disk what devices have not been told of, and returns.
///
/// `removed` gets the accounts that have no live device: a hint, given without waiting, that may
/// be late or lost.
pub async fn run(
    mut events: mpsc::Receiver<WatchEvent>,
    store: Store,
    apns: Apns,
    config: config::Push,
    removed: mpsc::Sender<Account>,
    cancel: CancellationToken,
) {
    let mut pending = Pending::new(Rules {
        quiet_delay: config.quiet_delay,
        min_interval: config.min_interval,
        max_delay: config.max_delay,
        in_flight: apns.in_flight().max(1),
        topic: apns.topic().to_owned(),
        chance: rand::random,
    });
    let mut jobs = Jobs { store, apns, config, removed, under_way: JoinSet::new(), busy: 0 };
    jobs.load();
    loop {
        while let Some(action) = pending.next(now()) {
            jobs.start(action);
        }
        let wake = pending.wake_at(now());
        tokio::select! {
            () = cancel.cancelled() => break,
            Some(done) = jobs.under_way.join_next() => jobs.done(done, &mut pending),
            event = events.recv(), if pending.takes_events() => match event {
                Some(event) => pending.event(event, now()),
                None => break,
            },
            () = sleep_until(wake.unwrap_or_else(now).into()), if wake.is_some() => {}
        }
    }
    jobs.end(pending).await;
}

/// The I/O that is under way, and what it needs.
struct Jobs {
    store: Store,
    apns: Apns,
    config: config::Push,
    removed: mpsc::Sender<Account>,
    under_way: JoinSet<Done>,
    /// Those of them that are worth waiting for at the end: pushes and writes.
    busy: usize,
}

enum Done {
    Loaded(Vec<Account>),
    Read(Account, Option<Vec<Target>>),
    Answered(DeviceKey, Outcome),
    /// With what could not be written.
    Written(Batch),
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
                    Err(error) => warn!("pushes owed since an earlier run are not known: {error}"),
                }
                failures += 1;
                sleep(OWED.wait(failures, rand::random())).await;
            }
        });
    }

    fn start(&mut self, action: Action) {
        match action {
            Action::Read(account) => {
                let store = self.store.clone();
                let since = Timestamp::now().minus(self.config.registration_ttl);
                self.under_way.spawn(async move {
                    let targets = store.targets(&account, since).await;
                    let targets = targets
                        .inspect_err(|error| warn!(%account, "no devices can be read: {error}"));
                    Done::Read(account, targets.ok())
                });
            }
            Action::Push(push) => {
                self.busy += 1;
                let (apns, config) = (self.apns.clone(), self.config.clone());
                self.under_way.spawn(async move {
                    let outcome = send(&apns, &config, &push).await;
                    Done::Answered((&*push.device).into(), outcome)
                });
            }
            Action::Write(batch) => {
                self.busy += 1;
                let (store, removed) = (self.store.clone(), self.removed.clone());
                self.under_way
                    .spawn(async move { Done::Written(write(&store, &removed, batch).await) });
            }
        }
    }

    fn done(&mut self, done: Result<Done, JoinError>, pending: &mut Pending) {
        match done {
            Ok(Done::Loaded(accounts)) => {
                if !accounts.is_empty() {
                    info!(accounts = accounts.len(), "pushes are owed since an earlier run");
                }
                pending.owed(accounts, now());
            }
            Ok(Done::Read(account, targets)) => {
                if targets.as_ref().is_some_and(Vec::is_empty) {
                    hint(&self.removed, &account);
                }
                pending.read(&account, targets, now());
            }
            Ok(Done::Answered(key, outcome)) => {
                self.busy -= 1;
                pending.answered(&key, &outcome, now(), Timestamp::now());
            }
            Ok(Done::Written(failed)) => {
                self.busy -= 1;
                pending.written(failed, now());
            }
            // Its rows have not moved, so the next start finds what it was about.
            Err(error) => error!("a task of the dispatcher failed: {error}"),
        }
    }

    async fn end(mut self, mut pending: Pending) {
        let settled = timeout(GRACE, async {
            while self.busy > 0
                && let Some(done) = self.under_way.join_next().await
            {
                self.done(done, &mut pending);
            }
        });
        if settled.await.is_err() {
            warn!(under_way = self.busy, "pushes were still under way at the end");
        }
        // What is no longer waited for is to do nothing after this.
        self.under_way.shutdown().await;
        let batch = pending.end(now(), Timestamp::now());
        let rows = batch.settlements.len();
        match timeout(GRACE, write(&self.store, &self.removed, batch)).await {
            Ok(failed) if failed == Batch::default() => debug!(rows, "the last write is done"),
            _ => error!(rows, "the last write failed; what it said is found at the next start"),
        }
    }
}

/// Sends one push and writes its line in the log.
async fn send(apns: &Apns, config: &config::Push, push: &Push) -> Outcome {
    let id = new_apns_id();
    let lifetime = i64::try_from(config.expiration.as_millis()).unwrap_or(i64::MAX);
    let expiration = Timestamp::now().0.saturating_add(lifetime) / 1000;
    let headers = Headers {
        id: &id,
        push_type: match config.push_type {
            config::PushType::Background => PushType::Background,
            config::PushType::Alert => PushType::Alert,
        },
        expiration: expiration.unsigned_abs(),
    };
    let outcome = apns.send(&MailPush::new(&push.device, &push.mailboxes, headers)).await;
    let detail = match &outcome {
        Outcome::Refused { status, reason } => Some(format!("{status} {reason}")),
        Outcome::Unavailable { why, .. } => Some(why.clone()),
        _ => None,
    };
    let since_seen = now().saturating_duration_since(push.seen_at);
    info!(
        account = %push.device.account,
        token = %push.device.token,
        mailboxes = push.mailboxes.len(),
        outcome = outcome.name(),
        detail,
        apns_id = match &outcome {
            Outcome::Accepted { apns_id } => apns_id,
            _ => &id,
        },
        // What is wider would be text in JSON.
        milliseconds = u64::try_from(since_seen.as_millis()).unwrap_or(u64::MAX),
        "push"
    );
    outcome
}

/// Writes a batch; returns what could not be written.
async fn write(store: &Store, removed: &mpsc::Sender<Account>, batch: Batch) -> Batch {
    if let Err(error) = store.settle(&batch.settlements).await {
        error!(rows = batch.settlements.len(), "what was pushed cannot be written: {error}");
        return batch;
    }
    let mut failed = Batch::default();
    for (device, not_after) in batch.removals {
        match store.remove_device(&device, Some(not_after)).await {
            Ok(Some(gone)) => {
                info!(account = %device.account, token = %device.token, "registration removed");
                if !gone.account_left {
                    hint(removed, &device.account);
                }
            }
            Ok(None) => {}
            Err(error) => {
                error!(account = %device.account, token = %device.token, "not removed: {error}");
                failed.removals.push((device, not_after));
            }
        }
    }
    failed
}

fn hint(removed: &mpsc::Sender<Account>, account: &Account) {
    if removed.try_send(account.clone()).is_err() {
        debug!(%account, "nobody took note that the account has no device");
    }
}

/// The runtime's clock, which tests can stop.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
