//! One account: its subscriptions with the pushes that each still has to get, and its rows in the database that
//! move when all of them have been.
//!
//! A row is held up by a subscription while the subscription is to be told of the mailbox, unless a mark on
//! disk says so too. Nothing here sends, writes or reads a clock.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::debug;

use super::super::transport::{RouteId, Transport, Verdict};
use super::change_id::ChangeId;
use super::preview::Previews;
use super::route_queue::RouteQueue;
use super::subscription::{MarksRead, SendSlot, SubscriptionQueue};
use super::unread::unread_before;
use super::{Delivery, Rules};
use crate::model::{
    BackendId, Change, ChangeKind, Mailbox, Preview, Snapshot, SubscriptionKey, Timestamp,
};
use crate::store::Target;

/// How long the state of an announced change is waited for. Where it never comes the row stays as
/// it is, and the next look at the mailbox finds the difference.
const UNCONFIRMED: Duration = Duration::from_secs(600);

#[derive(Default)]
pub(super) struct AccountState {
    pub(super) subscriptions: Vec<SubscriptionQueue>,
    telling: HashMap<Mailbox, Telling>,
    /// Changes that still need to know whom they concern.
    unread: HashMap<Mailbox, Change>,
    previews: Previews,
    /// Which marks on disk have to be read of subscriptions that are known.
    unread_marks: MarksRead,
    /// Subscriptions that rest are tried anew when they have been read.
    wakes: bool,
    pub(super) read: ReadState,
    /// Where the last change was seen.
    backend: Option<BackendId>,
    /// The peers of routes in whose queues it is.
    pub(super) queued: Vec<(RouteId, Arc<str>)>,
}

/// Whether the account's subscriptions are being read from the database.
#[derive(Default)]
pub(super) enum ReadState {
    #[default]
    Idle,
    Wanted {
        at: Instant,
        failures: u32,
    },
    /// With the changes that this read is for: one that came later is for the next, since a subscription
    /// may have registered in between.
    UnderWay {
        changes: HashMap<Mailbox, Change>,
        marks: MarksRead,
        failures: u32,
        /// What comes of it may be old: the subscriptions are to be read once more.
        again: bool,
    },
}

/// The change that the subscriptions hear of; a newer one replaces it.
struct Telling {
    id: u64,
    snapshot: Option<Snapshot>,
    since: Instant,
}

// === impl AccountState ===

impl AccountState {
    /// Takes note of a change, unless the subscriptions hear of its state already.
    pub(super) fn change(&mut self, change: Change, rules: &Rules, now: Instant) {
        if change.snapshot.is_some() && self.newest_snapshot(&change.mailbox) == change.snapshot {
            debug!(
                target: "mailchime::push::change_already_pending",
                change = %ChangeId(change.id), "this state is being pushed already"
            );
            return;
        }
        self.backend = Some(change.backend.clone());
        self.previews.changed(&change, now);
        merge(&mut self.unread, change, rules);
        self.want_read(now);
    }

    /// Whether what was seen was seen at this backend.
    pub(super) fn is_of(&self, backend: &BackendId) -> bool {
        self.backend.as_ref().is_none_or(|seen_at| backend.is(seen_at.as_str()))
    }

    /// The subscriptions may be others now, or another backend's: they are read again before they are pushed.
    pub(super) fn doubt(&mut self, now: Instant) {
        self.subscriptions.iter_mut().for_each(|subscription| subscription.stale = true);
        match &mut self.read {
            // It began before.
            ReadState::UnderWay { again, .. } => *again = true,
            ReadState::Wanted { .. } => {}
            ReadState::Idle => self.want_read(now),
        }
    }

    /// The same, and subscriptions that rest are tried anew.
    pub(super) fn wake(&mut self, now: Instant) {
        self.wakes = true;
        self.doubt(now);
    }

    /// Forgets which pushes subscriptions still have to get. Their rows stay, so the next look at the former
    /// backend finds it again.
    pub(super) fn set_aside(&mut self) {
        self.subscriptions.iter_mut().for_each(SubscriptionQueue::depart);
        self.subscriptions
            .retain(|subscription| subscription.in_flight.is_some() || subscription.turn.is_some());
        self.telling.clear();
        self.unread.clear();
        self.wakes = false;
        self.previews.clear();
        self.backend = None;
        if let ReadState::UnderWay { changes, .. } = &mut self.read {
            changes.clear();
        }
    }

    /// The state that change `id` announced. Returns the change when no subscription hears of
    /// the mailbox, so that the row may move at once.
    pub(super) fn confirm(
        &mut self,
        mailbox: &Mailbox,
        id: u64,
        snapshot: Snapshot,
    ) -> Option<ChangeId> {
        let idle = !self.is_unread(mailbox)
            && !self.telling.contains_key(mailbox)
            && !self.subscriptions.iter().any(|subscription| subscription.holds_up(mailbox));
        let asked = match &mut self.read {
            ReadState::UnderWay { changes, .. } => changes.get_mut(mailbox),
            _ => None,
        };
        for change in [asked, self.unread.get_mut(mailbox)].into_iter().flatten() {
            if change.id == id {
                change.snapshot = Some(snapshot);
            }
        }
        if let Some(telling) = self.telling.get_mut(mailbox).filter(|telling| telling.id == id) {
            telling.snapshot = Some(snapshot);
        }
        self.subscriptions
            .iter_mut()
            .for_each(|subscription| subscription.learn(mailbox, ChangeId(id), snapshot));
        idle.then_some(ChangeId(id))
    }

    /// What is known of the newest mail of the mailbox; `None` if nothing will be.
    pub(super) fn previewed(&mut self, mailbox: &Mailbox, preview: Option<Preview>, now: Instant) {
        if self.is_unread(mailbox) {
            // The subscriptions get it with the change, when they have been read.
            self.previews.came(mailbox, preview, now);
            return;
        }
        self.previews.told(mailbox);
        for subscription in &mut self.subscriptions {
            subscription.previewed(mailbox, preview.as_ref(), now);
        }
    }

    /// Whether the subscriptions of a change of this mailbox have yet to be read.
    fn is_unread(&self, mailbox: &Mailbox) -> bool {
        let under_way = match &self.read {
            ReadState::UnderWay { changes, .. } => changes.contains_key(mailbox),
            _ => false,
        };
        under_way || self.unread.contains_key(mailbox)
    }

    /// The subscriptions are to be read, now or when a failed read may be repeated.
    pub(super) fn want_read(&mut self, now: Instant) {
        if matches!(self.read, ReadState::Idle) {
            self.read = ReadState::Wanted { at: now, failures: 0 };
        }
    }

    /// The same, as something may have been marked on disk that is owed to them.
    pub(super) fn want_marks_read(&mut self, marks: MarksRead, now: Instant) {
        self.unread_marks = self.unread_marks.max(marks);
        self.want_read(now);
    }

    pub(super) fn begin_read(&mut self) {
        let failures = match self.read {
            ReadState::Wanted { failures, .. } => failures,
            _ => 0,
        };
        let changes = std::mem::take(&mut self.unread);
        let marks = std::mem::take(&mut self.unread_marks);
        self.read = ReadState::UnderWay { changes, marks, failures, again: false };
    }

    /// A read failed: nothing that it was for is lost. `wait` says how long to wait, given the
    /// number of failures in a row.
    pub(super) fn read_failed(
        &mut self,
        rules: &Rules,
        now: Instant,
        wait: impl FnOnce(u32) -> Duration,
    ) {
        let ReadState::UnderWay { changes, marks, failures, .. } = std::mem::take(&mut self.read)
        else {
            return;
        };
        self.unread_marks = self.unread_marks.max(marks);
        self.subscriptions.iter_mut().for_each(|subscription| subscription.stale = true);
        let newer = std::mem::replace(&mut self.unread, changes);
        for change in newer.into_values() {
            merge(&mut self.unread, change, rules);
        }
        let failures = failures.saturating_add(1);
        self.read = ReadState::Wanted { at: now + wait(failures), failures };
    }

    /// The mailboxes whose changes, of those that this read is for, a subscription on no route has to be told of once
    /// it has one, those that it is owed already left out. Whether it has a use for them only its transport could say.
    pub(super) fn missed(&self, target: &Target, rules: &Rules) -> Vec<Mailbox> {
        let ReadState::UnderWay { changes, .. } = &self.read else { return Vec::new() };
        // A mark does not say of which kind it is. Those whose users registered them would hear of new mail.
        let counts = |kind| kind == ChangeKind::NewMail || target.renews && rules.tells(kind);
        let tells = |mailbox| changes.get(mailbox).is_some_and(|it| counts(it.kind));
        let missed = target.mailboxes.iter().filter(|(mailbox, owed)| !owed && tells(mailbox));
        missed.map(|(mailbox, _)| mailbox.clone()).collect()
    }

    /// The account's subscriptions as they are registered now, those of a route that is not among `queues` left out.
    pub(super) fn read(
        &mut self,
        targets: Vec<Target>,
        queues: &BTreeMap<RouteId, RouteQueue>,
        rules: &Rules,
        now: Instant,
    ) {
        let (changes, marks, again) = match std::mem::take(&mut self.read) {
            ReadState::UnderWay { changes, marks, again, .. } => (changes, marks, again),
            other => {
                self.read = other;
                (HashMap::new(), MarksRead::None, false)
            }
        };
        if again || !self.unread.is_empty() || self.unread_marks != MarksRead::None {
            self.read = ReadState::Wanted { at: now, failures: 0 };
        }
        let wakes = std::mem::take(&mut self.wakes);
        for subscription in &mut self.subscriptions {
            let target = targets.iter().find(|target| subscription.is(&target.subscription));
            let queue = |target: &Target| queues.get(&RouteId::of(&target.subscription));
            match target.and_then(|target| Some((target, queue(target)?))) {
                Some((target, queue)) => {
                    subscription.refresh(target, &*queue.transport, now);
                    if wakes {
                        subscription.wake();
                    }
                }
                None => subscription.depart(),
            }
        }
        self.subscriptions.retain(|subscription| {
            !subscription.departed
                || subscription.in_flight.is_some()
                || subscription.turn.is_some()
        });
        // There may be many accounts, and most have one or two.
        self.subscriptions.reserve_exact(targets.len().saturating_sub(self.subscriptions.len()));
        for target in targets {
            let Some(queue) = queues.get(&RouteId::of(&target.subscription)) else { continue };
            let index = self
                .subscriptions
                .iter()
                .position(|subscription| subscription.is(&target.subscription));
            let is_new = index.is_none();
            let wakes = wakes || marks == MarksRead::All;
            if is_new
                && !wakes
                && is_at_rest(&target)
                && !is_told(&target, &changes, &*queue.transport, rules)
            {
                // Its marks stay, and the next read finds them.
                continue;
            }
            let index = index.unwrap_or_else(|| {
                let peer = queue.transport.peer(&target.subscription);
                let carries_preview = queue.transport.carries_preview();
                self.subscriptions.push(SubscriptionQueue::new(
                    &target,
                    peer,
                    carries_preview,
                    now,
                ));
                self.subscriptions.len() - 1
            });
            let subscription = &mut self.subscriptions[index];
            subscription.owed(&target, if is_new { MarksRead::All } else { marks }, now, rules);
            let told = (&changes, &self.previews);
            subscription.tell(&target, &*queue.transport, told, now, rules);
        }
        self.subscriptions.iter_mut().for_each(|subscription| subscription.stale = again);
        for (mailbox, change) in changes {
            self.previews.told_if_known(&mailbox);
            let telling = Telling { id: change.id, snapshot: change.snapshot, since: now };
            if let Some(older) = self.telling.insert(mailbox, telling) {
                covered(older.id, change.id);
            }
        }
    }

    /// Takes out the rows that no subscription holds up any longer.
    pub(super) fn take_told(&mut self) -> Vec<(Mailbox, Snapshot, ChangeId)> {
        let subscriptions = &self.subscriptions;
        self.telling
            .extract_if(|mailbox, telling| {
                telling.snapshot.is_some()
                    && !subscriptions.iter().any(|subscription| subscription.holds_up(mailbox))
            })
            .filter_map(|(mailbox, telling)| {
                Some((mailbox, telling.snapshot?, ChangeId(telling.id)))
            })
            .collect()
    }

    /// After a read, or when there will be none: the pushes of the subscriptions whose turn it is, and the
    /// turns of those that have nothing to push any more.
    pub(super) fn take_turns(&mut self, now: Instant) -> (Vec<Delivery>, Vec<SendSlot>) {
        let (mut pushes, mut left) = (Vec::new(), Vec::new());
        for subscription in &mut self.subscriptions {
            let reads_on =
                subscription.stale && matches!(self.read, ReadState::Wanted { failures: 0, .. });
            let Some(turn) = subscription.turn.take_if(|_| !reads_on) else { continue };
            let sends = !subscription.stale
                && !subscription.is_suspended()
                && subscription.has_place(&turn);
            match sends.then(|| subscription.send(turn.pass, turn.mailboxes, now)).flatten() {
                Some(push) => pushes.push(push),
                None => left.push(turn),
            }
        }
        self.subscriptions
            .retain(|subscription| !subscription.departed || subscription.in_flight.is_some());
        (pushes, left)
    }

    /// The subscriptions that are left alone for their endpoints and registered before the time of service that
    /// `before` says for their route; they are not known after this. With each comes when it registered.
    pub(super) fn take_dead(
        &mut self,
        before: impl Fn(&RouteId) -> Option<Timestamp>,
    ) -> Vec<(SubscriptionKey, Timestamp)> {
        let dead = |subscription: &mut SubscriptionQueue| {
            subscription.is_suspended()
                && before(&subscription.route).is_some_and(|before| subscription.heard_at < before)
                && subscription.in_flight.is_none()
                && subscription.turn.is_none()
        };
        let dead = self.subscriptions.extract_if(.., dead);
        dead.map(|subscription| (subscription.key(), subscription.registered_at)).collect()
    }

    pub(super) fn subscription(&mut self, key: &SubscriptionKey) -> Option<&mut SubscriptionQueue> {
        self.subscriptions.iter_mut().find(|state| state.subscription.is(key))
    }

    pub(super) fn remove(&mut self, key: &SubscriptionKey) {
        self.subscriptions.retain(|state| !state.subscription.is(key));
    }

    /// When the first subscription of each peer may be pushed.
    pub(super) fn due(&self, rules: &Rules) -> BTreeMap<(RouteId, Arc<str>), Instant> {
        let mut due: BTreeMap<_, Instant> = BTreeMap::new();
        for subscription in &self.subscriptions {
            if let Some(at) = subscription.due(rules) {
                let place = (subscription.route.clone(), Arc::clone(&subscription.peer));
                due.entry(place).and_modify(|first| *first = at.min(*first)).or_insert(at);
            }
        }
        due
    }

    /// Of the subscriptions of this peer of the route the one that may be pushed soonest.
    pub(super) fn next_push<'a>(
        &'a mut self,
        route: &RouteId,
        peer: &Arc<str>,
        rules: &Rules,
    ) -> Option<&'a mut SubscriptionQueue> {
        let mine = |subscription: &&mut SubscriptionQueue| {
            subscription.route == *route && subscription.peer == *peer
        };
        let due = |subscription: &'a mut SubscriptionQueue| {
            Some((subscription.due(rules)?, subscription))
        };
        let subscriptions = self.subscriptions.iter_mut().filter(mine).filter_map(due);
        subscriptions.min_by_key(|(at, _)| *at).map(|(_, subscription)| subscription)
    }

    pub(super) fn next_read(&self) -> Option<Instant> {
        match self.read {
            ReadState::Wanted { at, .. } => Some(at),
            _ => None,
        }
    }

    /// Forgets what need not be remembered; returns when there will be more to forget.
    pub(super) fn forget(&mut self, rules: &Rules, now: Instant) -> Option<Instant> {
        let idle_until = |subscription: &SubscriptionQueue| subscription.known_until(rules, now);
        let lost_at =
            |telling: &Telling| telling.snapshot.is_none().then_some(telling.since + UNCONFIRMED);
        self.subscriptions
            .retain(|subscription| idle_until(subscription).is_none_or(|at| now < at));
        self.telling.retain(|_, telling| lost_at(telling).is_none_or(|at| now < at));
        let previews = self.previews.forget(now);
        let subscriptions = self.subscriptions.iter().filter_map(idle_until);
        subscriptions.chain(self.telling.values().filter_map(lost_at)).chain(previews).min()
    }

    /// Whether there is nothing to remember.
    pub(super) fn is_empty(&self) -> bool {
        self.subscriptions.is_empty()
            && self.telling.is_empty()
            && self.unread.is_empty()
            && self.previews.is_empty()
            && self.unread_marks == MarksRead::None
            && matches!(self.read, ReadState::Idle)
    }

    fn newest_snapshot(&self, mailbox: &Mailbox) -> Option<Snapshot> {
        if let Some(change) = self.unread.get(mailbox) {
            return change.snapshot;
        }
        if let ReadState::UnderWay { changes, .. } = &self.read
            && let Some(change) = changes.get(mailbox)
        {
            return change.snapshot;
        }
        self.telling.get(mailbox)?.snapshot
    }
}

/// Whether its last push failed so that it is not tried again by time. What is known of it in memory comes first.
fn is_at_rest(target: &Target) -> bool {
    target.failing.as_ref().is_some_and(|failing| Verdict::is_rest(&failing.kind))
}

/// Whether it has to get a push of one of these changes.
fn is_told(
    target: &Target,
    changes: &HashMap<Mailbox, Change>,
    transport: &dyn Transport,
    rules: &Rules,
) -> bool {
    let told = |change: &Change| {
        rules.tells(change.kind) && transport.tells(&target.subscription, change.kind)
    };
    target.mailboxes.iter().any(|(mailbox, _)| changes.get(mailbox).is_some_and(told))
}

/// A newer change replaces an older one, and takes over what of it is still to be done.
fn merge(changes: &mut HashMap<Mailbox, Change>, mut newer: Change, rules: &Rules) {
    if let Some(older) = changes.get(&newer.mailbox) {
        // What is not told must not hide what is.
        let kinds = [newer.kind, older.kind];
        let most = kinds.into_iter().max_by_key(|kind| (rules.tells(*kind), *kind));
        newer.unread_before =
            unread_before([(older.kind, older.unread_before), (newer.kind, newer.unread_before)]);
        newer.kind = most.unwrap_or(newer.kind);
        newer.seen_at = newer.seen_at.min(older.seen_at);
        covered(older.id, newer.id);
    }
    changes.insert(newer.mailbox.clone(), newer);
}

/// The trail of an older change goes on as that of a newer one.
fn covered(older: u64, newer: u64) {
    debug!(
        target: "mailchime::push::change_superseded",
        change = %ChangeId(older), by = %ChangeId(newer), "a later change covers this one"
    );
}
