//! The rules of the dispatcher: which subscription gets a push of what, when, how often, and when a row in the
//! database may move (DESIGN.md promise 2 and section 5).
//!
//! Pure: no socket, no database, no clock. What happened comes in with the time at which it did;
//! what is to be done comes out of [`Scheduler::next`], one [`Effect`] at a time, until there is
//! none; [`Scheduler::wake_at`] says when time alone will bring another.
//!
//! ```text
//!   Changed ─> unread ─[Read: to whom?]─> waiting ─[Push]─> in flight ─┬─ accepted ─> row moves
//!   Rebased ───────────────── (its state) ────────┘ ^                        │
//!                                                   └──── marked as owed <───┴─ failed
//! ```
//!
//! A push goes by the registration as it is at that moment: where a subscription has its turn and was not
//! read just now, it is read first.

mod account;
mod change_id;
mod circuit_breaker;
mod endpoint_limits;
mod outbox;
mod preview;
mod rates;
mod route_queue;
mod rules;
mod schedule;
mod subscription;
#[cfg(test)]
mod tests;
mod unread;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::transport::{MailboxChange, Route, RouteId, Verdict};
use crate::model::{
    Account, BackendId, Mailbox, Subscription, SubscriptionKey, Timestamp, WatchEvent,
};
use crate::net::backoff::Backoff;
use crate::store::Target;

use account::{AccountState, ReadState};
pub(super) use change_id::ChangeId;
use circuit_breaker::BreakerPass;
use endpoint_limits::EndpointLimits;
pub(super) use outbox::Batch;
use outbox::Outbox;
pub(super) use preview::NewestMail;
use rates::Rates;
pub(super) use rates::Waits;
use route_queue::{PushAnswer, RouteQueue};
pub use rules::BackendOf;
pub(super) use rules::Rules;
use schedule::Schedule;
pub use subscription::follow_up::OWN_FAULT;
use subscription::follow_up::{Circumstances, Doubts, FollowUp};
use subscription::{MarksRead, SendSlot};

/// How many accounts may wait for the database to say who their subscriptions are; then no more changes
/// are taken in.
const MAX_UNREAD: usize = 4096;
/// How many of them are asked for at once. The store asks for several by one statement.
const MAX_READS: usize = 64;
/// The longest that a `Retry-After` is believed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

const DATABASE: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
const UNAVAILABLE: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
const TOO_MANY: Backoff = Backoff::new(Duration::from_secs(60), Duration::from_secs(300));
const TOO_MANY_LEAST: Duration = Duration::from_secs(60);
const REFUSED: Backoff = Backoff::new(Duration::from_secs(60), Duration::from_secs(900));
/// Most likely the subscription has to register anew, and then it does not wait.
const OTHER_ROUTE: Backoff = Backoff::new(Duration::from_secs(60), Duration::from_secs(3600));

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Read the account's subscriptions, then [`Scheduler::read`].
    Read(Account),
    /// Send this, then [`Scheduler::answered`].
    Send(Delivery),
    /// Write this, then [`Scheduler::written`].
    Write(Batch),
}

/// A push to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Delivery {
    pub(super) subscription: Arc<Subscription>,
    pub(super) mailboxes: Vec<MailboxChange>,
    /// What is known of the newest mail in them, for a transport that may carry it.
    pub(super) newest: Option<NewestMail>,
    /// The last change of each of them, unless it is from an earlier run.
    pub(super) changes: Vec<ChangeId>,
    /// When the first of its changes was seen.
    pub(super) seen_at: Instant,
}

/// What is pending for one subscription, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DeliveryView {
    /// For how long a push has been under way.
    pub(super) under_way: Option<Duration>,
    /// The mailboxes that its next push names, and when that may go.
    pub(super) waiting: Vec<Mailbox>,
    pub(super) due_in: Option<Duration>,
    /// How long until another push is not too soon after the last.
    pub(super) too_soon: Option<Duration>,
    /// How long it is left alone after so many failures in a row.
    pub(super) backs_off: Option<Duration>,
    pub(super) failures: u32,
    /// For how long it is left alone because it was pushed for other accounts.
    pub(super) held: Option<Duration>,
    /// The service said more than once that it does not know the endpoint: it is left alone until it
    /// registers anew.
    pub(super) suspended: bool,
    /// Why it is not tried again by time.
    pub(super) rests: Option<String>,
    /// For how long all subscriptions of this peer of the route wait; zero while one push tries.
    pub(super) shut: Option<Duration>,
}

/// All pushes that subscriptions still have to get, and what is to be written about them.
pub(super) struct Scheduler {
    rules: Rules,
    accounts: HashMap<Account, AccountState>,
    reads: Schedule,
    forgets: Schedule,
    /// Reads that are under way.
    reading: usize,
    /// A subscription of another route sleeps.
    queues: BTreeMap<RouteId, RouteQueue>,
    /// Pushes that had their turns.
    ready: VecDeque<Delivery>,
    endpoints: EndpointLimits,
    /// How often a push was put off because its subscription was pushed for other accounts.
    held: u64,
    rates: Rates,
    outbox: Outbox,
}

// === impl Scheduler: what happened ===

impl Scheduler {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rates: Rates::new(rules.per_domain, rules.per_backend),
            rules,
            accounts: HashMap::new(),
            reads: Schedule::default(),
            forgets: Schedule::default(),
            reading: 0,
            queues: BTreeMap::new(),
            ready: VecDeque::new(),
            endpoints: EndpointLimits::default(),
            held: 0,
            outbox: Outbox::default(),
        }
    }

    /// These are the routes from now on, open or not. An operator may have mended what was refused, so
    /// each is tried at once; pushes to subscriptions of a route that is gone are marked as owed.
    /// `wall` is the time of day.
    pub(super) fn routes(
        &mut self,
        routes: impl IntoIterator<Item = (RouteId, Route)>,
        now: Instant,
        wall: Timestamp,
    ) {
        let mut before = std::mem::take(&mut self.queues);
        for (id, route) in routes {
            let queue = RouteQueue::new(id.clone(), &route, before.remove(&id));
            self.queues.insert(id, queue);
        }
        let accounts: Vec<Account> = self.accounts.keys().cloned().collect();
        for account in accounts {
            let Some(state) = self.accounts.get_mut(&account) else { continue };
            for subscription in &mut state.subscriptions {
                subscription.has_new_identity();
                if !self.queues.contains_key(&subscription.route) {
                    let key = subscription.key();
                    for mailbox in subscription.owe_all(now) {
                        self.outbox.owed(&key, mailbox, wall);
                    }
                }
            }
            state
                .subscriptions
                .retain(|subscription| self.queues.contains_key(&subscription.route));
            self.reschedule(&account, now);
        }
    }

    /// A watcher saw something.
    pub(super) fn event(&mut self, event: WatchEvent, now: Instant) {
        let account = match event {
            WatchEvent::Announced(change) | WatchEvent::Changed(change) => {
                let account = change.account.clone();
                let state = self.accounts.entry(account.clone()).or_default();
                state.change(change, &self.rules, now);
                account
            }
            WatchEvent::Rebased { account, mailbox, id, snapshot, .. } => {
                let state = self.accounts.entry(account.clone()).or_default();
                if let Some(change) = state.confirm(&mailbox, id, snapshot) {
                    self.outbox.told(account.clone(), mailbox, snapshot, change);
                }
                account
            }
            WatchEvent::Previewed { account, mailbox, preview, .. } => {
                if let Some(state) = self.accounts.get_mut(&account) {
                    state.previewed(&mailbox, preview, now);
                }
                account
            }
            WatchEvent::Registered { account } => {
                // A registration that brings the state of a mailbox marks what is owed to the others.
                let state = self.accounts.entry(account.clone()).or_default();
                state.doubt(now);
                state.want_marks_read(MarksRead::Unheard, now);
                account
            }
            WatchEvent::LoginWanted { account, .. } => {
                self.accounts
                    .entry(account.clone())
                    .or_default()
                    .want_marks_read(MarksRead::All, now);
                account
            }
        };
        self.reschedule(&account, now);
    }

    /// These accounts have subscriptions to which a push is owed since an earlier run, by another node, or on a route
    /// that was not there: they are tried, those that rest as well.
    pub(super) fn owed(&mut self, accounts: Vec<Account>, now: Instant) {
        for account in accounts {
            self.accounts.entry(account.clone()).or_default().wake(now);
            self.reschedule(&account, now);
        }
    }

    /// Somebody else has changed the subscriptions of these accounts.
    pub(super) fn doubted(&mut self, accounts: Vec<Account>, now: Instant) {
        for account in accounts {
            self.accounts.entry(account.clone()).or_default().doubt(now);
            self.reschedule(&account, now);
        }
    }

    /// Accounts may have another backend now, which `home` says: what was seen at the former one is
    /// not told, and no subscription is pushed before it has been read again.
    pub(super) fn backends_are_replaced(
        &mut self,
        home: impl Fn(&Account) -> Option<BackendId>,
        now: Instant,
    ) {
        let accounts: Vec<Account> = self.accounts.keys().cloned().collect();
        for account in accounts {
            let Some(state) = self.accounts.get_mut(&account) else { continue };
            match home(&account).is_some_and(|home| state.is_of(&home)) {
                true => state.doubt(now),
                false => {
                    state.set_aside();
                    self.take_turns(&account, now);
                }
            }
            self.reschedule(&account, now);
        }
    }

    /// The account's subscriptions were read, and are of another backend than it has now: they get nothing,
    /// and its rows stay as they are until it has its former backend again.
    pub(super) fn set_aside(&mut self, account: &Account, now: Instant) {
        self.reading = self.reading.saturating_sub(1);
        let Some(state) = self.accounts.get_mut(account) else { return };
        state.set_aside();
        state.read = ReadState::default();
        self.take_turns(account, now);
        self.reschedule(account, now);
    }

    /// The account's live subscriptions, or `None` if the database could not say.
    /// One that has ended gets
    /// nothing, and what one on no route misses is marked as owed. `wall` is the time of day, `served` that of service.
    pub(super) fn read(
        &mut self,
        account: &Account,
        targets: Option<Vec<Target>>,
        now: Instant,
        wall: Timestamp,
        served: Timestamp,
    ) {
        self.reading = self.reading.saturating_sub(1);
        let Some(state) = self.accounts.get_mut(account) else { return };
        match targets {
            Some(mut targets) => {
                // They are removed soon.
                targets.retain(|target| !target.subscription.has_ended(wall));
                let has_route =
                    |it: &Target| self.queues.contains_key(&RouteId::of(&it.subscription));
                for target in targets.extract_if(.., |target| !has_route(target)) {
                    // The marks are written before the rows that rely on them.
                    for mailbox in state.missed(&target, &self.rules) {
                        self.outbox.owed(&(&target.subscription).into(), mailbox, wall);
                    }
                }
                for Target { subscription, mailboxes, .. } in &mut targets {
                    let queue = self.queues.get(&RouteId::of(subscription));
                    let gets = |queue: &RouteQueue, mailbox: &Mailbox| {
                        queue.transport.withholds(subscription, mailbox).is_none()
                    };
                    mailboxes
                        .retain(|(mailbox, _)| queue.is_some_and(|queue| gets(queue, mailbox)));
                }
                state.read(targets, &self.queues, &self.rules, now);
                self.take_turns(account, now);
                let Some(state) = self.accounts.get_mut(account) else { return };
                let dead_before =
                    |route: &RouteId| Some(served.minus(self.queues.get(route)?.limits.silence));
                for (subscription, registered_at) in state.take_dead(dead_before) {
                    self.outbox.remove(subscription, registered_at);
                }
            }
            None => {
                let chance = (self.rules.chance)();
                state.read_failed(&self.rules, now, |failures| DATABASE.wait(failures, chance));
                self.take_turns(account, now);
            }
        }
        self.reschedule(account, now);
    }

    /// The account's subscriptions whose turn it is are pushed, or leave their places to others.
    fn take_turns(&mut self, account: &Account, now: Instant) {
        let Some(state) = self.accounts.get_mut(account) else { return };
        let (pushes, left) = state.take_turns(now);
        self.ready.extend(pushes);
        for SendSlot { route, peer, pass, .. } in left {
            if let Some(queue) = self.queues.get_mut(&route) {
                queue.release(&peer, pass);
            }
        }
    }

    /// What became of a push that was sent for `sent`; `wall` is the time of day, `served` that of
    /// service.
    pub(super) fn answered(
        &mut self,
        sent: &Subscription,
        verdict: &Verdict,
        now: Instant,
        wall: Timestamp,
        served: Timestamp,
    ) {
        let route = RouteId::of(sent);
        let queue = self.queues.get_mut(&route);
        let chance = (self.rules.chance)();
        let key = &SubscriptionKey::from(sent);
        let subscription =
            self.accounts.get_mut(&key.account).and_then(|state| state.subscription(key));
        let under_way = subscription.and_then(|subscription| subscription.in_flight.as_ref());
        let under_way = under_way.map(|push| (push.pass, push.registered_at));
        let circumstances = queue.map(|queue| {
            let pass = under_way.map(|(pass, _)| pass);
            let news = queue.answered(PushAnswer { sent, verdict, pass, chance }, now);
            let doubts = news.bad.filter(|bad| bad.mostly).map(|bad| Doubts {
                renewed_since: served.minus(queue.limits.silence),
                say: bad.say.then(|| queue.transport.remedy()),
            });
            Circumstances { doubts, fault: news.fault, by_users: queue.has_peers() }
        });
        let circumstances = circumstances.unwrap_or_default();
        let Some((_, registered_at)) = under_way else { return };
        let Some(state) = self.accounts.get_mut(&key.account) else { return };
        let Some(subscription) = state.subscription(key) else { return };
        let failing = subscription.fails(verdict, registered_at, circumstances.fault, wall, now);
        let became = subscription.became(verdict, registered_at, circumstances);
        match became {
            FollowUp::Delivered => self.outbox.accepted(key, subscription.accepted(now), wall),
            FollowUp::Owed { backoff, heals } => {
                if let Some(failing) = failing {
                    self.outbox.failing(key, failing, registered_at);
                }
                let least = at_least(verdict);
                let wait = |failures| backoff.wait(failures, chance).max(least);
                for mailbox in subscription.failed(now, heals, wait) {
                    self.outbox.owed(key, mailbox, wall);
                }
            }
            FollowUp::Rests => {
                if let Some(failing) = failing {
                    self.outbox.failing(key, failing, registered_at);
                }
                let wait = |failures| REFUSED.wait(failures, chance);
                let why = verdict.detail().unwrap_or(verdict.name());
                for mailbox in subscription.rest(why, now, wait) {
                    self.outbox.owed(key, mailbox, wall);
                }
            }
            FollowUp::Dead { not_after } => {
                // Should it register before this is written, its row stays, and the marks tell it.
                for mailbox in subscription.owe_all(now) {
                    self.outbox.owed(key, mailbox, wall);
                }
                self.outbox.remove(key.clone(), not_after);
                state.remove(key);
            }
        }
        self.reschedule(&key.account, now);
    }

    /// A batch was written, but for `failed`.
    pub(super) fn written(&mut self, failed: Batch, now: Instant) {
        self.outbox.written(failed, now, (self.rules.chance)());
    }

    /// It ends here: what subscriptions have not been told of is marked as owed. Returns what is to be
    /// written last; what it does not say will be found when the mailboxes are looked at again.
    pub(super) fn end(mut self, now: Instant, wall: Timestamp) -> Batch {
        let accounts: Vec<Account> = self.accounts.keys().cloned().collect();
        for account in accounts {
            for subscription in
                self.accounts.get_mut(&account).iter_mut().flat_map(|s| &mut s.subscriptions)
            {
                let key = subscription.key();
                for mailbox in subscription.owe_all(now) {
                    self.outbox.owed(&key, mailbox, wall);
                }
            }
            self.reschedule(&account, now);
        }
        self.outbox.drain()
    }

    /// After anything that happened to an account: its rows, its places in the order of things.
    fn reschedule(&mut self, account: &Account, now: Instant) {
        let Some(state) = self.accounts.get_mut(account) else { return };
        for (mailbox, snapshot, change) in state.take_told() {
            self.outbox.told(account.clone(), mailbox, snapshot, change);
        }
        let forget = state.forget(&self.rules, now);
        self.reads.set(account, state.next_read());
        let due = state.due(&self.rules);
        for (route, peer) in std::mem::take(&mut state.queued) {
            if !due.contains_key(&(route.clone(), Arc::clone(&peer)))
                && let Some(queue) = self.queues.get_mut(&route)
            {
                queue.schedule(&peer, account, None);
            }
        }
        for ((route, peer), at) in &due {
            if let Some(queue) = self.queues.get_mut(route) {
                queue.schedule(peer, account, Some(*at));
            }
        }
        state.queued = due.into_keys().collect();
        self.forgets.set(account, forget);
        if state.is_empty() {
            self.accounts.remove(account);
        }
    }
}

// === impl Scheduler: what to do ===

impl Scheduler {
    /// Whether another event may be taken in.
    pub(super) fn takes_events(&self) -> bool {
        self.reads.len() + self.reading < MAX_UNREAD
    }

    /// What is to be done now. Pushes come first: new mail does not wait for the disk.
    pub(super) fn next(&mut self, now: Instant) -> Option<Effect> {
        while let Some((account, _)) = self.forgets.take(now, |account| self.rules.share(account)) {
            self.reschedule(&account, now);
        }
        if let Some(push) = self.ready.pop_front().or_else(|| self.next_push(now)) {
            return Some(Effect::Send(push));
        }
        if self.reading < MAX_READS
            && let Some((account, _)) = self.reads.take(now, |account| self.rules.share(account))
            && let Some(state) = self.accounts.get_mut(&account)
        {
            state.begin_read();
            self.reading += 1;
            self.reschedule(&account, now);
            return Some(Effect::Read(account));
        }
        self.outbox.take(now).map(Effect::Write)
    }

    /// When [`Scheduler::next`] will have something without anything having happened; seen from a
    /// moment at which it had nothing.
    pub(super) fn wake_at(&self, now: Instant) -> Option<Instant> {
        let push = self.queues.values().filter_map(RouteQueue::wake_at).min();
        let read = self.reads.next().filter(|_| self.reading < MAX_READS);
        [push, read, self.forgets.next(), self.outbox.next(now)].into_iter().flatten().min()
    }

    /// What is pending for a subscription.
    pub(super) fn view(&self, subscription: &Subscription, now: Instant) -> DeliveryView {
        let key = SubscriptionKey::from(subscription);
        let known =
            self.accounts.get(&key.account).into_iter().flat_map(|state| &state.subscriptions);
        let view = known.map(|known| (known.key(), known)).find(|(other, _)| *other == key);
        let view = view.map(|(_, known)| known.view(&self.rules, now)).unwrap_or_default();
        let queue = self.queues.get(&RouteId::of(subscription));
        DeliveryView { shut: queue.and_then(|queue| queue.shut(subscription, now)), ..view }
    }

    /// Accounts with a subscription to be pushed, and pushes that are under way.
    pub(super) fn to_push(&self) -> usize {
        self.queues.values().map(RouteQueue::to_push).sum()
    }

    /// Rows to be written.
    pub(super) fn to_write(&self) -> usize {
        self.outbox.len()
    }

    fn next_push(&mut self, now: Instant) -> Option<Delivery> {
        let routes: Vec<RouteId> = self.queues.keys().cloned().collect();
        routes.iter().find_map(|route| self.next_push_of(route, now))
    }

    fn next_push_of(&mut self, route: &RouteId, now: Instant) -> Option<Delivery> {
        loop {
            let queue = self.queues.get_mut(route)?;
            let (peer, account, share) = queue.take(
                now,
                |account| self.rules.share(account),
                |part| self.rates.wait(part, now),
            )?;
            let Some(state) = self.accounts.get_mut(&account) else { continue };
            let Some(subscription) = state.next_push(route, &peer, &self.rules) else { continue };
            let (token, distance) = (&subscription.subscription.endpoint, self.rules.min_interval);
            let domain = account.domain().unwrap_or_default();
            if let Err(free_at) = self.endpoints.use_one(token, domain, distance, now) {
                subscription.held_until = Some(free_at);
                self.held += 1;
                self.reschedule(&account, now);
                continue;
            }
            subscription.held_until = None;
            let pass: BreakerPass = queue.begin(&peer, now)?;
            self.rates.use_one(share, now);
            if subscription.is_fresh(now) {
                let push = subscription.send(pass, queue.limits.mailboxes, now);
                self.reschedule(&account, now);
                return push;
            }
            let mailboxes = queue.limits.mailboxes;
            subscription.turn = Some(SendSlot { route: route.clone(), peer, pass, mailboxes });
            state.want_read(now);
            self.reschedule(&account, now);
        }
    }

    /// How often pushes were put off since the last question, as their subscriptions had been pushed for
    /// other accounts.
    pub(super) fn take_held(&mut self) -> u64 {
        std::mem::take(&mut self.held)
    }

    /// How often pushes waited for their turns since the last question, as their domain or backend had
    /// as many in a second as it may have.
    pub(super) fn take_waits(&mut self) -> Waits {
        self.rates.take_waits()
    }
}

/// For how long the service asked to be left alone. One that says too many without a time means a minute at least.
fn at_least(verdict: &Verdict) -> Duration {
    let unsaid = match verdict {
        Verdict::TooMany { .. } => TOO_MANY_LEAST,
        _ => Duration::ZERO,
    };
    verdict.retry_after().unwrap_or(unsaid).min(MAX_RETRY_AFTER)
}
