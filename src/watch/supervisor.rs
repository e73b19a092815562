//! Who is watched: one task owns the table of watchers.
//!
//! The task waits for nothing but its channels: what it has to ask the database is asked beside it, and
//! counts as of when it was asked. A registration that came since goes before it.
//!
//! Of several nodes each watches the accounts that the [`Assignment`] gives it. What a session of this
//! node tells of an account that another one watches reaches that one through the database.

mod answers;
mod device_news;
mod handle;
mod hints;
mod logins;
mod parked;
mod sweeps;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch as cell};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::device_news::DeviceNews;
use self::handle::WatcherHandle;
use super::WatchContext;
use super::accounts::{adopt, live};
use super::directive::{Directive, directive_channel};
use super::due_accounts::DueAccounts;
use super::entries::Entries;
use super::follow::LookRequest;
use super::hint_writer::HintWriter;
use super::hints::Hints;
use super::missed_events::MissedAt;
use super::on_demand::{OnDemand, OnDemandEvent, RestingAccount, Sweep, VisitEnd};
use super::status::{
    StatusCell, SupervisorRequest, SupervisorRequests, WatchMode, WatcherState, WatcherStatus,
};
use super::watcher::{Unasked, Watcher, WatcherStart};
use crate::model::{AcceptedLogin, Account, SessionEvent, Timestamp};
use crate::nodes::{Assignment, ClusterView};
use crate::store::{Invalidation, LiveAccount, StoreError};

/// Between two comparisons of the table with the store.
const REFRESH_INTERVAL: Duration = Duration::from_hours(1);
/// The same where mailboxes that were looked at are still due on disk: the database has failed.
const MARKS_LEFT: Duration = Duration::from_secs(5);

/// The same while the database does not answer.
const REFRESH_RETRY: Duration = Duration::from_secs(2);

/// Between two counts of what is due.
const COUNTED: Duration = Duration::from_mins(1);

/// Accounts that may be looked up at once. What is to be looked up beyond them waits.
const LOOK_UPS: usize = 64;

/// Logins of users whom another node watches that may be looked into at once. Of more, the next
/// login counts.
const LOGINS: usize = 64;

/// Logins of users who are not watched that are kept while the accounts are read. Of more, the next
/// login counts.
const EARLY: usize = 1024;

/// Each watched account, and its watcher.
#[derive(Debug)]
struct Supervisor {
    context: Arc<WatchContext>,
    assignment: cell::Receiver<Assignment>,
    /// When all accounts are read again, unless a sweep comes before that.
    next_refresh: Instant,
    /// As [`Assignment::joined`], when all was last read again.
    joined: u64,
    /// Counts what was asked of the database and what was learnt from elsewhere, in their order.
    moment: u64,
    asked: JoinSet<StoreReply>,
    /// All accounts are being read.
    reading: bool,
    /// They were read once. Only a watcher can take the news that a user logged in.
    begun: bool,
    /// Logins that are being passed on. Each gives its user, and with what he logged in if he can be
    /// watched here alone.
    logins: JoinSet<(Account, Option<AcceptedLogin>)>,
    /// The users of `logins`, and with what each has logged in since: of one user's logins the last
    /// has to be passed on last.
    passing: HashMap<Account, Option<AcceptedLogin>>,
    /// Logins of users who are not watched here, and may be by what is being read.
    early: HashMap<Account, AcceptedLogin>,
    watchers: HashMap<Account, WatcherHandle>,
    on_demand: OnDemand,
    device_news: DeviceNews,
    hint_writer: HintWriter,
    entries: Entries,
    tasks: TaskTracker,
}

/// What the database says, to what was asked at that moment.
#[derive(Debug)]
struct StoreReply {
    moment: u64,
    what: ReplyKind,
}

#[derive(Debug)]
enum ReplyKind {
    /// All accounts with a live device, after those without were removed; as [`Assignment::joined`] was
    /// when that began.
    All { joined: u64, sweep: Sweep, accounts: Result<Vec<LiveAccount>, StoreError> },
    /// What of them is due.
    Due { sweep: Sweep, due: Result<DueAccounts, StoreError> },
    /// The first of those that this sweep has still to mark are marked.
    Marked { sweep: Sweep, due: Result<DueAccounts, StoreError> },
    /// What is due was counted.
    Counted,
    /// One account, if it is to be watched; with the news that had it looked up.
    One {
        account: Account,
        live: Result<Option<LiveAccount>, StoreError>,
        news: Option<Invalidation>,
    },
}

/// Watches every account with a live registration, from those in the store to those that `sessions`
/// tells of, as far as they are this node's, until `stop` or until `sessions` is closed; then all
/// watchers log out. `unwatched` names accounts whose last device is gone; `requests` ask how
/// accounts are watched.
pub async fn run(
    context: Arc<WatchContext>,
    mut sessions: mpsc::Receiver<SessionEvent>,
    mut unwatched: mpsc::Receiver<Account>,
    cluster: ClusterView,
    mut requests: SupervisorRequests,
    stop: CancellationToken,
) {
    requests.begin();
    let ClusterView { mut assignment, mut news } = cluster;
    let mut supervisor = Supervisor::new(context, assignment.clone());
    let mut counting = interval(COUNTED);
    let mut looks = supervisor.context.followed.attend();
    let mut replacements = supervisor.context.backends.replacements();
    let mut faults = supervisor.context.backend_health.faults();
    loop {
        if !supervisor.reading && Instant::now() >= supervisor.reads_at() {
            supervisor.read_all();
        }
        supervisor.ask_for_those_due();
        supervisor.record();
        let reads_at = supervisor.reads_at();
        let may_ask = supervisor.asked.len() < LOOK_UPS;
        tokio::select! {
            () = stop.cancelled() => break,
            () = sleep_until(reads_at), if !supervisor.reading => {}
            Some(answer) = supervisor.asked.join_next() => {
                let again = Instant::now() + REFRESH_RETRY;
                if supervisor.answered(answer, again).is_err() {
                    supervisor.next_refresh = supervisor.next_refresh.min(again);
                }
            }
            Ok(()) = assignment.changed() => {
                supervisor.next_refresh = Instant::now();
                // A node that is gone, or was, may have missed events.
                supervisor.on_demand.sweep_at(Instant::now());
            }
            _ = counting.tick(), if supervisor.on_demand.is_used() => supervisor.count(),
            Ok(()) = replacements.changed() => {
                supervisor.backends_are_replaced();
                // Backends may have got names.
                supervisor.next_refresh = Instant::now();
            }
            Ok(()) = faults.changed() => supervisor.call_parked(),
            Some(news) = news.recv(), if may_ask => supervisor.node_news(news),
            Some(login) = supervisor.logins.join_next() => match login {
                Ok((account, here)) => supervisor.passed_on(account, here),
                // It is not known whose it was.
                Err(_) => supervisor.passing.clear(),
            },
            written = supervisor.hint_writer.written() => {
                if let Some(written) = written {
                    supervisor.recorded(written);
                }
            }
            () = supervisor.device_news.tell_next() => {}
            next = supervisor.on_demand.next() => supervisor.on_demand_event(next),
            Some(account) = unwatched.recv(), if may_ask => supervisor.look_up(account, None),
            Some(request) = requests.next() => supervisor.request(request),
            Some(LookRequest { account, reply }) = looks.recv(), if supervisor.begun => {
                // Who asked may have gone.
                let _ = reply.send(supervisor.look(account));
            }
            event = sessions.recv(), if supervisor.begun => match event {
                Some(event) => supervisor.session_event(event),
                // No session is left to speak: the program is ending.
                None => break,
            },
        }
    }
    supervisor.end().await;
}

impl Supervisor {
    fn new(context: Arc<WatchContext>, assignment: cell::Receiver<Assignment>) -> Self {
        let (entries, writing) = Entries::new(&context, assignment.clone());
        let tasks = TaskTracker::new();
        tasks.spawn(writing);
        let mut on_demand = OnDemand::new();
        if context.takes_events {
            // What came while this node was away may be of any account.
            on_demand.everybody_at(Instant::now());
        }
        Self {
            device_news: DeviceNews::new(context.events.clone()),
            hint_writer: HintWriter::new(Arc::clone(&context)),
            context,
            assignment,
            next_refresh: Instant::now(),
            joined: 0,
            moment: 0,
            asked: JoinSet::new(),
            reading: false,
            begun: false,
            logins: JoinSet::new(),
            passing: HashMap::new(),
            early: HashMap::new(),
            watchers: HashMap::new(),
            on_demand,
            entries,
            tasks,
        }
    }

    /// All watchers log out.
    async fn end(mut self) {
        for WatcherHandle { directive, .. } in self.watchers.values() {
            directive.send_modify(|directive| directive.stop = true);
        }
        // Its task ends with it.
        drop(self.entries);
        self.tasks.close();
        self.tasks.wait().await;
        self.on_demand.wait().await;
    }

    fn on_demand_event(&mut self, event: OnDemandEvent) {
        match event {
            OnDemandEvent::Ended(end) => self.visit_ended(end),
            OnDemandEvent::LookAgain(account) => self.look_again(account),
            OnDemandEvent::Broken(account) => self.visit_broke_off(account),
            OnDemandEvent::Room => {}
        }
    }

    fn request(&mut self, request: SupervisorRequest) {
        match request {
            SupervisorRequest::Status { account, reply } => {
                // Who asked may have gone.
                let _ = reply.send(self.statuses(account.as_ref()));
            }
            SupervisorRequest::Hints { hints, reply } => self.write(hints, Some(reply)),
            SupervisorRequest::MissedEvents => self.missed_events(MissedAt::ThisNode),
            SupervisorRequest::ReadAgain => self.next_refresh = Instant::now(),
        }
    }

    fn session_event(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::Registered { account, login } => self.registered(account, login),
            SessionEvent::RegisteredAgain { account, login } => {
                self.registered_again(account, login);
            }
            SessionEvent::LoggedIn { account, login } => self.logged_in(account, login),
            SessionEvent::Ended { account } => self.session_ended(account),
        }
    }

    /// The next moment.
    fn now(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    /// When all accounts are read next.
    fn reads_at(&self) -> Instant {
        self.next_refresh.min(self.on_demand.next_sweep())
    }

    /// Mailboxes that were looked at are still due on disk: they are found when all accounts are read, and looked at
    /// once more.
    fn read_all_again(&mut self) {
        self.next_refresh = self.next_refresh.min(Instant::now() + MARKS_LEFT);
    }

    /// Has devices forgotten that have not registered for long, and all accounts with others read: also where not all
    /// of those can be forgotten.
    fn read_all(&mut self) {
        (self.reading, self.next_refresh) = (true, Instant::now() + REFRESH_INTERVAL);
        let (moment, joined) = (self.now(), self.assignment.borrow().joined());
        let context = Arc::clone(&self.context);
        let (now, every) = (Instant::now(), context.config.sweep);
        let mut sweep = self.on_demand.begin_sweep(now, every);
        self.asked.spawn(async move {
            let accounts = async {
                if sweep == Sweep::Everybody {
                    context.store.tell_missed_events().await?;
                    // The others know, whatever becomes of this one's sweep.
                    sweep = Sweep::Ours;
                }
                let alive = context.alive();
                if let Err(error) = context.store.expire(alive).await {
                    tracing::warn!(
                        target: "mailchime::watch::not_expired",
                        %error,
                        "could not remove all subscriptions that are over from the database; mailchime pushes \
                         none of them, and tries again within the hour"
                    );
                }
                let accounts = context.store.accounts(alive).await?;
                adopt(&context, &accounts).await?;
                Ok(accounts)
            };
            let accounts = accounts.await;
            StoreReply { moment, what: ReplyKind::All { joined, sweep, accounts } }
        });
    }

    /// Counts what is due, for the metrics.
    fn count(&mut self) {
        let (moment, context) = (self.now(), Arc::clone(&self.context));
        self.asked.spawn(async move {
            // An error is counted, and the database says it elsewhere.
            if let Ok((due, since)) = context.store.due_mailboxes().await {
                let age = since.map_or(0, |since| Timestamp::now().0.saturating_sub(since.0));
                let age = u64::try_from(age).map(Duration::from_millis).unwrap_or_default();
                context.metrics.due_mailboxes.set(i64::try_from(due).unwrap_or(i64::MAX));
                context.metrics.due_age.set(age.as_secs_f64());
            }
            StoreReply { moment, what: ReplyKind::Counted }
        });
    }

    /// Has an account looked up.
    fn look_up(&mut self, account: Account, news: Option<Invalidation>) {
        let (moment, context) = (self.now(), Arc::clone(&self.context));
        self.asked.spawn(async move {
            let live = live(&context, &account).await;
            StoreReply { moment, what: ReplyKind::One { account, live, news } }
        });
    }

    /// Brings the table to what the store said at that moment: starts a watcher for each account that
    /// lacks one, and stops those of accounts without any device and of accounts that another node
    /// watches. Where news of other nodes was missed, all watchers look again.
    fn refresh(&mut self, moment: u64, joined: u64, accounts: Vec<LiveAccount>) {
        let live: HashSet<&Account> = accounts.iter().map(|live| &live.account).collect();
        let (mut gone, mut elsewhere) = (Vec::new(), Vec::new());
        for (account, handle) in &self.watchers {
            match live.contains(account) {
                false if handle.moment > moment => {}
                false => gone.push(account.clone()),
                true if !self.is_ours(account) => elsewhere.push(account.clone()),
                true => {}
            }
        }
        gone.extend(self.on_demand.others(&live, moment));
        elsewhere.extend(self.on_demand.of_others(|account| self.is_ours(account)));
        gone.iter().for_each(|account| self.stop(account));
        elsewhere.iter().for_each(|account| self.hand_over(account));
        let (all, mut missing) = (accounts.len(), 0);
        for live in accounts {
            let begin = self.begin(&live);
            let LiveAccount { account, .. } = live;
            let handle = self.watchers.get(&account);
            match handle.filter(|it| it.is_live()) {
                Some(handle) if joined != self.joined => {
                    handle.look_again(false);
                    if self.context.credentials.are_shared() {
                        handle.missed_logins();
                    }
                }
                Some(_) => {}
                None if self.on_demand.is_resting(&account) => self.may_be_called(&account, joined),
                None if self.is_ours(&account) && self.context.is_on_demand(&account) => {
                    self.rests(account, &begin, moment);
                }
                None if self.is_ours(&account) => {
                    self.start(account, Directive::default(), begin);
                    missing += 1;
                }
                None => {}
            }
        }
        self.joined = joined;
        for (account, login) in std::mem::take(&mut self.early) {
            self.logged_in(account, login);
        }
        tracing::info!(
            target: "mailchime::watch::accounts_loaded",
            accounts = all,
            here = self.watchers.len() + self.on_demand.len(),
            started = missing,
            handed_over = elsewhere.len(),
            "watching accounts"
        );
    }

    /// The task of an account on demand has ended. What came too late for it is for another one.
    fn visit_ended(&mut self, end: VisitEnd) {
        let VisitEnd { account, began, taken_over, told, faults, looked_at, .. } = end;
        let VisitEnd { unasked, left_due, credentials, inherited, .. } = end;
        self.looked_at(&account, began, looked_at);
        if self.watchers.get(&account).is_none_or(|handle| handle.began != began) {
            return;
        }
        let Some(handle) = self.watchers.remove(&account) else { return };
        self.on_demand.remember(&account, self.moment, told, faults, unasked.is_some());
        self.on_demand.visited(&account, left_due, self.context.config.poll_interval);
        let now = handle.directive.read(Directive::clone);
        let mut next = Directive::default();
        if now.logins != taken_over.logins {
            (next.login, next.logins) = (now.login, 1);
        }
        let looks = now.looks != taken_over.looks;
        next.looks = u64::from(looks);
        next.logins_elsewhere = u64::from(now.logins_elsewhere != taken_over.logins_elsewhere);
        next.logins_missed = u64::from(now.logins_missed != taken_over.logins_missed);
        // What is due may have been marked by another node since it was read.
        let has_news = now.registrations != taken_over.registrations;
        let WatcherHandle { status, moment: known_at, .. } = handle;
        let resting = RestingAccount { status, known_at, inherited };
        self.on_demand.remember_credentials(&account, credentials);
        match unasked {
            None => self.on_demand.rest(account.clone(), resting),
            Some(why) => {
                match *why {
                    Unasked::Parked(wait) => self.parks(&account, wait),
                    Unasked::Failed(failed) => self.on_demand.failed(&account, failed),
                    Unasked::Away(failed) => {
                        self.on_demand.failed_before(&account, failed);
                        let backend = self.context.backends.id_of(&account);
                        self.on_demand.wait_for_backend(account.clone(), backend);
                    }
                }
                self.on_demand.rest_unasked(account.clone(), resting);
            }
        }
        let has_logins = next.logins + next.logins_elsewhere + next.logins_missed > 0;
        if !handle.hints.is_empty() || has_logins || looks || has_news {
            // A parked account hears of what is due on disk then.
            next.registrations = u64::from(has_news && self.on_demand.is_parked(&account));
            self.start_with(account, next, WatcherStart::AtOnce, handle.hints);
        }
    }

    /// The task of an account on demand broke off. What it was told is lost, so the account is looked at, but
    /// not at once: the next task may break off, too.
    fn visit_broke_off(&mut self, account: Account) {
        // There may be another task by now.
        let broke_off = |handle: &WatcherHandle| handle.directive.is_closed();
        if self.watchers.get(&account).is_some_and(broke_off)
            && let Some(handle) = self.watchers.remove(&account)
        {
            let WatcherHandle { status, moment: known_at, .. } = handle;
            let resting = RestingAccount { status, known_at, inherited: true };
            self.on_demand.rest(account.clone(), resting);
            self.session_ended(account);
        }
    }

    /// How the account's watcher begins.
    fn begin(&self, live: &LiveAccount) -> WatcherStart {
        let id = self.context.backends.id_of(&live.account);
        match (id.as_ref().and_then(|id| live.elsewhere(id)), &live.parked) {
            (Some(recorded), _) => WatcherStart::Elsewhere(recorded.to_owned()),
            (None, parked) if self.context.credentials.are_of_users() => {
                let (tries, at) = live.refused.map_or((0, None), |(tries, at)| (tries, Some(at)));
                match (parked, tries) {
                    (None, 0) => WatcherStart::AtOnce,
                    _ => WatcherStart::Refused { tries, at, parked: parked.clone() },
                }
            }
            (None, _) => WatcherStart::AtOnce,
        }
    }

    /// Whether this node is to watch the account.
    fn is_ours(&self, account: &Account) -> bool {
        self.assignment.borrow().is_mine(account) || self.context.credentials.holds(account)
    }

    /// Each watcher sees for itself whether its backend is another one now.
    fn backends_are_replaced(&mut self) {
        self.watchers.values().for_each(|handle| handle.directive.send_modify(|_| {}));
        let backends = &self.context.backends;
        self.on_demand.backends_are_replaced(|account| backends.of(account).ok());
        self.on_demand.parked_move(|account| self.context.recoveries(account));
        self.call_parked();
    }

    fn start(&mut self, account: Account, directive: Directive, begin: WatcherStart) {
        self.start_with(account, directive, begin, Hints::default());
    }

    fn start_with(
        &mut self,
        account: Account,
        mut directive: Directive,
        begin: WatcherStart,
        hints: Hints,
    ) {
        // What it was to be asked for is not known any more.
        directive.looks += u64::from(self.on_demand.is_unasked(&account));
        directive.logins_missed += u64::from(self.on_demand.has_missed_logins(&account));
        let on_demand = self.context.is_on_demand(&account);
        let (sender, receiver) = directive_channel(directive);
        let doing = match &begin {
            WatcherStart::Refused { parked: Some(why), .. } => {
                WatcherState::Parked { why: why.clone() }
            }
            WatcherStart::AtOnce if on_demand => WatcherState::Watching(WatchMode::OnDemand),
            WatcherStart::AtOnce | WatcherStart::Refused { .. } | WatcherStart::Elsewhere(_) => {
                WatcherState::Starting
            }
        };
        let began = self.now();
        // That it gets a task says nothing of its devices.
        let new = || {
            let status = StatusCell::new(&self.context.metrics, doing);
            RestingAccount { status, known_at: began, inherited: true }
        };
        let RestingAccount { status, known_at: moment, inherited } =
            self.on_demand.take(&account).unwrap_or_else(new);
        let context = Arc::clone(&self.context);
        let mut watcher =
            Watcher::new(account.clone(), context, receiver, hints.clone(), status.clone());
        watcher.inherited &= inherited;
        let begin = Box::new(begin);
        match on_demand {
            true => self.on_demand.spawn(watcher, begin, began),
            // In a box: the allocator adds 128 bytes to a task, which begins at a multiple of them.
            false => drop(self.tasks.spawn(Box::pin(async move { watcher.run(begin).await }))),
        }
        let directive = sender;
        let handle = WatcherHandle { directive, hints, status, moment, began, on_demand };
        self.watchers.insert(account, handle);
    }

    fn statuses(&self, account: Option<&Account>) -> Vec<WatcherStatus> {
        let live = self.watchers.iter().filter(|(_, handle)| handle.is_live());
        let asked = live.filter(|(watched, _)| account.is_none_or(|account| account == *watched));
        let mut statuses: Vec<_> =
            asked.map(|(account, handle)| handle.status.of(account)).collect();
        statuses.extend(self.on_demand.statuses(account));
        statuses.sort_by(|a, b| a.account.cmp(&b.account));
        statuses
    }

    fn stop(&mut self, account: &Account) {
        self.context.followed.unwatched(account);
        let rested = self.on_demand.leave(account);
        let watched = self.watchers.remove(account);
        if rested || watched.is_some() {
            tracing::info!(
                target: "mailchime::watch::account_left",
                %account, "the account has no device left; mailchime stops watching it"
            );
            if !self.entries.look_after(account) {
                self.context.credentials.forget(account);
            }
        }
        if let Some(WatcherHandle { directive, .. }) = watched {
            directive.send_modify(|directive| directive.stop = true);
        }
    }

    /// Another node watches the account from now on.
    fn hand_over(&mut self, account: &Account) {
        self.context.followed.unwatched(account);
        self.on_demand.leave(account);
        if let Some(WatcherHandle { directive, .. }) = self.watchers.remove(account) {
            directive.send_modify(|directive| directive.stop = true);
        }
    }
}

impl Directive {
    /// The account's user has logged in. Where a master watches, the credentials are nobody's matter.
    fn log_in(&mut self, login: AcceptedLogin, of_users: bool) {
        if of_users && login.credentials.is_none() {
            return;
        }
        self.logins += 1;
        self.login = of_users.then(|| Box::new(login));
    }
}

#[cfg(test)]
mod tests;
