//! What watchers are doing, for people who ask and for the metrics.
//!
//! A watcher notes each turn of its life in its [`StatusCell`], which the supervisor shares and reads;
//! neither ever waits for the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use tokio::sync::{Notify, mpsc, oneshot};

use super::hint_writer::HintError;
use super::source::imap::mailbox_faults::LeftOut;
use crate::metrics::{Held, Kind, Metrics, Watching};
use crate::model::{Account, ChangeKind, Hint, Timestamp};

/// How many questions may wait for an answer.
const QUESTIONS: usize = 64;

/// One account, and how it is watched. Times are in milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WatcherStatus {
    /// Whose watcher it is.
    pub account: String,
    /// `starting`, `watching`, `backing_off` or `parked`.
    pub state: &'static str,
    /// While watching: `poll`, `idle`, `notify` or `on_demand`.
    pub mode: Option<&'static str>,
    /// Since when it has been so.
    pub since: i64,
    /// When it last saw a change.
    pub last_event_at: Option<i64>,
    /// When a mail server or another source last told of it.
    pub last_hint_at: Option<i64>,
    /// While backing off; `None` when something has to happen first.
    pub next_try_at: Option<i64>,
    /// Why it is backing off or parked, or what a look waits for.
    pub reason: Option<String>,
    /// Mailboxes that are not watched for now, although the others are.
    pub left_out: Vec<LeftOut>,
}

/// Speaks to the supervisor. Clones speak to the same one.
#[derive(Clone, Debug)]
pub struct SupervisorHandle {
    requests: mpsc::Sender<SupervisorRequest>,
    shared: Arc<SharedWithSupervisor>,
}

/// What a [`SupervisorHandle`] asks and says.
#[derive(Debug)]
pub struct SupervisorRequests {
    requests: mpsc::Receiver<SupervisorRequest>,
    shared: Arc<SharedWithSupervisor>,
}

/// What takes no room in the queue of requests.
#[derive(Debug, Default)]
struct SharedWithSupervisor {
    has_begun: AtomicBool,
    missed_events: Notify,
    read_again: Notify,
}

#[derive(Debug)]
pub(super) enum SupervisorRequest {
    /// How an account is watched; `None` asks for all.
    Status { account: Option<Account>, reply: oneshot::Sender<Vec<WatcherStatus>> },
    /// Events of other sources were not handed in.
    MissedEvents,
    /// Accounts may have other rows.
    ReadAgain,
    /// Other sources have news.
    Hints { hints: Vec<Hint>, reply: oneshot::Sender<Result<Vec<bool>, HintError>> },
}

/// For a supervisor, and for those who want to know of it.
pub fn requests() -> (SupervisorHandle, SupervisorRequests) {
    let (handle, requests) = mpsc::channel(QUESTIONS);
    let shared = Arc::<SharedWithSupervisor>::default();
    let handle = SupervisorHandle { requests: handle, shared: Arc::clone(&shared) };
    (handle, SupervisorRequests { requests, shared })
}

/// What a watcher does at the moment; clones are of the same watcher.
#[derive(Clone, Debug)]
pub(super) struct StatusCell(Arc<Mutex<StatusInner>>);

#[derive(Debug)]
struct StatusInner {
    metrics: Arc<Metrics>,
    now: WatcherState,
    since: Timestamp,
    last_event: Option<Timestamp>,
    last_hint: Option<Timestamp>,
    /// Counts the watcher among those that do the same.
    counted: Held,
    /// The mailboxes that are not watched for now, each counted.
    left_out: Vec<(LeftOut, Held)>,
}

/// A turn in a watcher's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WatcherState {
    /// It waits for its turn, connects and logs in.
    Starting,
    Watching(WatchMode),
    BackingOff {
        next_try: Option<Timestamp>,
        why: String,
    },
    Parked {
        why: String,
    },
}

/// How it learns of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WatchMode {
    /// All mailboxes by looks now and then.
    Poll,
    /// INBOX by IDLE (RFC 2177), other mailboxes by looks now and then.
    Idle,
    /// INBOX by IDLE where the backend has it, everything else by NOTIFY (RFC 5465).
    Notify,
    /// By short connections, when there is a reason.
    OnDemand,
}

// === impl SupervisorHandle ===

impl SupervisorHandle {
    /// How the account is being watched, or all are; nothing is said of one that is not. `None` when
    /// the supervisor has ended.
    pub async fn watchers(&self, account: Option<Account>) -> Option<Vec<WatcherStatus>> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(SupervisorRequest::Status { account, reply }).await.ok()?;
        answer.await.ok()
    }

    /// Whether there is a supervisor, or was. One that begins looks at everything; until then it answers nothing.
    pub fn has_begun(&self) -> bool {
        self.shared.has_begun.load(Ordering::Acquire)
    }

    /// Events of other sources were not handed in. Accounts without a connection are all asked for, some time after
    /// the last of them. Does not wait.
    pub fn missed_events(&self) {
        self.shared.missed_events.notify_one();
    }

    /// Another program has written to the database: the supervisor reads all accounts again. Does not wait.
    pub fn read_again(&self) {
        self.shared.read_again.notify_one();
    }

    /// Other sources than the accounts' connections have news. It may be of accounts that any node watches, or
    /// that none does. When this returns, the mailboxes of accounts on demand are marked as due on disk, and
    /// the node that watches each account has word of it. Enough numbers go to `push` without a look; else
    /// new mail is announced, and the account looked at at once. Calls at the same time share a transaction.
    /// Returns for each hint whether somebody has registered for its mailbox; of an account that has a connection
    /// here, for any mailbox.
    ///
    /// # Errors
    /// [`HintError`] when nothing of it is recorded: too much waits, the database fails, or the supervisor has
    /// ended.
    pub async fn hints(&self, hints: Vec<Hint>) -> Result<Vec<bool>, HintError> {
        let (reply, answer) = oneshot::channel();
        let request = SupervisorRequest::Hints { hints, reply };
        self.requests.send(request).await.map_err(|_| HintError::Stopped)?;
        answer.await.unwrap_or(Err(HintError::Stopped))
    }
}

impl SupervisorRequests {
    /// There is a supervisor that answers.
    pub(super) fn begin(&self) {
        self.shared.has_begun.store(true, Ordering::Release);
    }

    /// Waits until events were missed. Cancel safe.
    pub(super) async fn missed_events(&self) {
        self.shared.missed_events.notified().await;
    }

    /// The next one; `None` when nobody is left to ask. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<SupervisorRequest> {
        tokio::select! {
            () = self.shared.missed_events.notified() => Some(SupervisorRequest::MissedEvents),
            () = self.shared.read_again.notified() => Some(SupervisorRequest::ReadAgain),
            request = self.requests.recv() => request,
        }
    }
}

// === impl StatusCell ===

impl StatusCell {
    pub(super) fn new(metrics: &Arc<Metrics>, doing: WatcherState) -> Self {
        let counted = metrics.watchers.hold(doing.label());
        let (metrics, since) = (Arc::clone(metrics), Timestamp::now());
        let (now, last_event, last_hint, left_out) = (doing, None, None, Vec::new());
        Self(Arc::new(Mutex::new(StatusInner {
            metrics,
            now,
            since,
            last_event,
            last_hint,
            counted,
            left_out,
        })))
    }

    pub(super) fn set(&self, doing: WatcherState) {
        let mut inner = self.inner();
        if inner.now == doing {
            return;
        }
        inner.counted = inner.metrics.watchers.hold(doing.label());
        (inner.now, inner.since) = (doing, Timestamp::now());
    }

    /// Whether it is parked, or waits after a failure.
    pub(super) fn rests(&self) -> bool {
        matches!(self.inner().now, WatcherState::BackingOff { .. } | WatcherState::Parked { .. })
    }

    /// These mailboxes are not watched for now.
    pub(super) fn leave_out(&self, mailboxes: Vec<LeftOut>) {
        let mut inner = self.inner();
        let gauge = &inner.metrics.mailboxes_left_out;
        inner.left_out = mailboxes.into_iter().map(|it| (it, Held::new(gauge))).collect();
    }

    /// Another source than the account's connection told of it.
    pub(super) fn hint(&self) {
        self.inner().last_hint = Some(Timestamp::now());
    }

    /// A change was seen.
    pub(super) fn event(&self, kind: ChangeKind) {
        let mut inner = self.inner();
        inner.last_event = Some(Timestamp::now());
        let kind = match kind {
            ChangeKind::NewMail => Kind::NewMail,
            ChangeKind::Quiet => Kind::Quiet,
        };
        inner.metrics.changes.of(kind).inc();
    }

    pub(super) fn of(&self, account: &Account) -> WatcherStatus {
        let inner = self.inner();
        let (state, mode, next_try, reason) = match &inner.now {
            WatcherState::Starting => ("starting", None, None, None),
            WatcherState::Watching(mode) => ("watching", Some(mode.word()), None, None),
            WatcherState::BackingOff { next_try, why } => {
                ("backing_off", None, *next_try, Some(why))
            }
            WatcherState::Parked { why } => ("parked", None, None, Some(why)),
        };
        WatcherStatus {
            account: account.as_str().to_owned(),
            state,
            mode,
            since: inner.since.0,
            last_event_at: inner.last_event.map(|at| at.0),
            last_hint_at: inner.last_hint.map(|at| at.0),
            next_try_at: next_try.map(|at| at.0),
            reason: reason.cloned(),
            left_out: inner.left_out.iter().map(|(left_out, _)| left_out.clone()).collect(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, StatusInner> {
        self.0.lock()
    }
}

// === impl WatcherState ===

impl WatcherState {
    fn label(&self) -> Watching {
        match self {
            Self::Starting => Watching::Starting,
            Self::Watching(WatchMode::Poll) => Watching::Poll,
            Self::Watching(WatchMode::Idle) => Watching::Idle,
            Self::Watching(WatchMode::Notify) => Watching::Notify,
            Self::Watching(WatchMode::OnDemand) => Watching::OnDemand,
            Self::BackingOff { .. } => Watching::BackingOff,
            Self::Parked { .. } => Watching::Parked,
        }
    }
}

impl WatchMode {
    fn word(self) -> &'static str {
        match self {
            Self::Poll => "poll",
            Self::Idle => "idle",
            Self::Notify => "notify",
            Self::OnDemand => "on_demand",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watcher_is_counted_where_it_is_and_nowhere_when_it_is_gone() {
        let metrics = Arc::new(Metrics::default());
        let count = |what| metrics.watchers.of(what).get();
        let status = StatusCell::new(&metrics, WatcherState::Starting);
        assert_eq!(count(Watching::Starting), 1);
        status.set(WatcherState::Watching(WatchMode::Idle));
        assert_eq!([count(Watching::Starting), count(Watching::Idle)], [0, 1]);
        status.clone().set(WatcherState::Parked { why: "NO".into() });
        assert_eq!([count(Watching::Idle), count(Watching::Parked)], [0, 1]);
        let team = LeftOut { mailbox: "Team".into(), reason: "reset".into(), next_try_at: None };
        status.leave_out(vec![team.clone()]);
        status.leave_out(vec![team.clone()]);
        assert_eq!(metrics.mailboxes_left_out.get(), 1);
        assert_eq!(status.of(&Account::from_login("alice")).left_out, [team]);
        drop(status);
        assert_eq!((count(Watching::Parked), metrics.mailboxes_left_out.get()), (0, 0));
    }

    #[test]
    fn since_is_when_it_began_and_not_when_it_was_last_said() {
        let status = StatusCell::new(&Arc::default(), WatcherState::Starting);
        status.0.lock().since = Timestamp(5);
        status.set(WatcherState::Starting);
        status.event(ChangeKind::Quiet);
        let shown = status.of(&Account::from_login("alice"));
        assert_eq!((shown.account.as_str(), shown.state, shown.since), ("alice", "starting", 5));
        assert!(shown.last_event_at.is_some());
        status.set(WatcherState::BackingOff { next_try: Some(Timestamp(9)), why: "reset".into() });
        let shown = status.of(&Account::from_login("alice"));
        assert_eq!((shown.state, shown.next_try_at), ("backing_off", Some(9)));
        assert_eq!(shown.reason.as_deref(), Some("reset"));
        assert!(shown.since > 5);
    }
}
