//! One account: its devices with what each is still to be told, and its rows in the database that
//! move when all of them have been.
//!
//! A row is held up by a device while the device is to be told of the mailbox, unless a mark on
//! disk says so too. Nothing here sends, writes or reads a clock.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::debug;

use super::super::payload::MAX_MAILBOXES;
use super::gate::Pass;
use super::{Push, Rules, View};
use crate::model::{BackendId, Change, ChangeKind, Device, Mailbox, Snapshot, Timestamp};
use crate::store::{DeviceKey, Target};

/// For how long what was read of a device is believed when it is to be pushed: long enough for a push
/// at once to be one read. Of a registration in between comes word ([`AccountState::doubt`]).
const FRESH: Duration = Duration::from_secs(1);
/// Word of a registration comes no later than this after it is on disk; a push that was accepted
/// meanwhile for what the device was before has told it nothing.
const WORD: Duration = Duration::from_secs(10);
/// How long the state of an announced change is waited for. Where it never comes the row stays as
/// it is, and the next look at the mailbox finds the difference.
const UNCONFIRMED: Duration = Duration::from_secs(600);

/// After so many answers that there is no such token, one is left alone until it registers anew.
const BAD_ANSWERS: u32 = 2;
/// How often a device that is left alone so is looked at: has it registered?
const RECHECK: Duration = Duration::from_mins(15);

/// [`Change::id`] as logs show it: `#17`, the same in each line on the way of the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChangeId(u64);

#[derive(Default)]
pub(super) struct AccountState {
    pub(super) devices: Vec<DeviceState>,
    telling: HashMap<Mailbox, Telling>,
    /// Changes that still need to know whom they concern.
    unread: HashMap<Mailbox, Change>,
    pub(super) read: Read,
    /// Where the last change was seen.
    backend: Option<BackendId>,
}

/// Whether the account's devices are being read from the database.
#[derive(Default)]
pub(super) enum Read {
    #[default]
    Idle,
    Wanted {
        at: Instant,
        failures: u32,
    },
    /// With the changes that this read is for: one that came later is for the next, since a device
    /// may have registered in between.
    UnderWay {
        changes: HashMap<Mailbox, Change>,
        failures: u32,
        /// What comes of it may be old: the devices are to be read once more.
        again: bool,
    },
}

/// What the devices are being told of; replaced by a newer change.
struct Telling {
    id: u64,
    snapshot: Option<Snapshot>,
    since: Instant,
}

pub(super) struct DeviceState {
    pub(super) device: Arc<Device>,
    pub(super) registered_at: Timestamp,
    read_at: Instant,
    /// It may be another one now: it is read again before it is its turn to be pushed.
    stale: bool,
    /// It is its turn: as soon as it has been read again it is pushed, if there is still something to
    /// push.
    pub(super) turn: Option<Turn>,
    /// No longer registered, but a push is under way.
    departed: bool,
    waiting: Option<Waiting>,
    pub(super) in_flight: Option<InFlight>,
    /// The last push that APNs accepted.
    told: Option<Told>,
    failures: u32,
    back_off_until: Option<Instant>,
    /// It is left alone for a reason that goes when it registers anew.
    heals: bool,
    /// It was pushed lately for other accounts.
    pub(super) held_until: Option<Instant>,
    /// How often APNs said that there is no such token, since it registered.
    bad_answers: u32,
}

/// A device's place among those that are pushed at this moment.
#[derive(Clone, Debug)]
pub(super) struct Turn {
    pub(super) topic: Arc<str>,
    pub(super) pass: Pass,
}

struct Told {
    mailboxes: BTreeMap<Mailbox, Due>,
    sent_at: Instant,
    accepted_at: Instant,
}

/// A mailbox of which a device is to be told.
#[derive(Clone, Copy, Default)]
struct Due {
    /// A mark on disk says that it is owed.
    marked: bool,
    /// The last change; `None` if that was in an earlier run.
    change: Option<ChangeId>,
}

/// What a device is to be told next.
struct Waiting {
    mailboxes: BTreeMap<Mailbox, Due>,
    /// Since the first of these changes.
    since: Instant,
    until: Instant,
    seen_at: Instant,
}

/// A push that has not been answered.
pub(super) struct InFlight {
    mailboxes: BTreeMap<Mailbox, Due>,
    pub(super) pass: Pass,
    /// When the device that it was sent to had registered.
    pub(super) registered_at: Timestamp,
    /// The device listens to another account id or topic since.
    in_vain: bool,
    sent_at: Instant,
    seen_at: Instant,
}

// === impl AccountState ===

impl AccountState {
    /// Takes note of a change, unless its state is being told already.
    pub(super) fn change(&mut self, change: Change, rules: &Rules, now: Instant) {
        if change.snapshot.is_some() && self.newest_snapshot(&change.mailbox) == change.snapshot {
            debug!(change = %ChangeId(change.id), "is being told already");
            return;
        }
        self.backend = Some(change.backend.clone());
        merge(&mut self.unread, change, rules);
        self.want_read(now);
    }

    /// Whether what was seen was seen at this backend.
    pub(super) fn is_of(&self, backend: &BackendId) -> bool {
        self.backend.as_ref().is_none_or(|seen_at| backend.is(seen_at.as_str()))
    }

    /// The devices may be others now, or another backend's: they are read again before they are pushed.
    pub(super) fn doubt(&mut self, now: Instant) {
        self.devices.iter_mut().for_each(|device| device.stale = true);
        match &mut self.read {
            // It began before.
            Read::UnderWay { again, .. } => *again = true,
            Read::Wanted { .. } => {}
            Read::Idle => self.want_read(now),
        }
    }

    /// Forgets what devices are still to be told. Their rows stay, so the next look at the former
    /// backend finds it again.
    pub(super) fn set_aside(&mut self) {
        self.devices.iter_mut().for_each(DeviceState::depart);
        self.devices.retain(|device| device.in_flight.is_some() || device.turn.is_some());
        self.telling.clear();
        self.unread.clear();
        self.backend = None;
        if let Read::UnderWay { changes, .. } = &mut self.read {
            changes.clear();
        }
    }

    /// The state that change `id` announced. Returned is the change when devices are told nothing of
    /// the mailbox, so that the row may move at once.
    pub(super) fn confirm(
        &mut self,
        mailbox: &Mailbox,
        id: u64,
        snapshot: Snapshot,
    ) -> Option<ChangeId> {
        let under_way = match &self.read {
            Read::UnderWay { changes, .. } => changes.contains_key(mailbox),
            _ => false,
        };
        let idle = !under_way
            && !self.unread.contains_key(mailbox)
            && !self.telling.contains_key(mailbox)
            && !self.devices.iter().any(|device| device.holds_up(mailbox));
        let asked = match &mut self.read {
            Read::UnderWay { changes, .. } => changes.get_mut(mailbox),
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
        idle.then_some(ChangeId(id))
    }

    /// The devices are to be read, now or when a failed read may be repeated.
    pub(super) fn want_read(&mut self, now: Instant) {
        if matches!(self.read, Read::Idle) {
            self.read = Read::Wanted { at: now, failures: 0 };
        }
    }

    pub(super) fn begin_read(&mut self) {
        let failures = match self.read {
            Read::Wanted { failures, .. } => failures,
            _ => 0,
        };
        let changes = std::mem::take(&mut self.unread);
        self.read = Read::UnderWay { changes, failures, again: false };
    }

    /// A read failed: nothing that it was for is lost. `wait` says how long to wait, given the
    /// number of failures in a row.
    pub(super) fn read_failed(
        &mut self,
        rules: &Rules,
        now: Instant,
        wait: impl FnOnce(u32) -> Duration,
    ) {
        let Read::UnderWay { changes, failures, .. } = std::mem::take(&mut self.read) else {
            return;
        };
        self.devices.iter_mut().for_each(|device| device.stale = true);
        let newer = std::mem::replace(&mut self.unread, changes);
        for change in newer.into_values() {
            merge(&mut self.unread, change, rules);
        }
        let failures = failures.saturating_add(1);
        self.read = Read::Wanted { at: now + wait(failures), failures };
    }

    /// The account's devices as they are registered now, those of another topic left out.
    pub(super) fn read(&mut self, targets: Vec<Target>, rules: &Rules, now: Instant) {
        let (changes, again) = match std::mem::take(&mut self.read) {
            Read::UnderWay { changes, again, .. } => (changes, again),
            other => {
                self.read = other;
                (HashMap::new(), false)
            }
        };
        if again || !self.unread.is_empty() {
            self.read = Read::Wanted { at: now, failures: 0 };
        }
        for device in &mut self.devices {
            match targets.iter().find(|target| device.is(&target.device)) {
                Some(target) => device.refresh(target, now),
                None => device.depart(),
            }
        }
        self.devices.retain(|device| {
            !device.departed || device.in_flight.is_some() || device.turn.is_some()
        });
        for target in targets {
            self.read_target(&target, &changes, rules, now);
        }
        self.devices.iter_mut().for_each(|device| device.stale = again);
        for (mailbox, change) in changes {
            let telling = Telling { id: change.id, snapshot: change.snapshot, since: now };
            if let Some(older) = self.telling.insert(mailbox, telling) {
                covered(older.id, change.id);
            }
        }
    }

    fn read_target(
        &mut self,
        target: &Target,
        changes: &HashMap<Mailbox, Change>,
        rules: &Rules,
        now: Instant,
    ) {
        // With version 1 a device is told of INBOX alone.
        let told_of = |mailbox: &Mailbox| target.device.version > 1 || mailbox.is_inbox();
        let mailboxes = || target.mailboxes.iter().filter(|(mailbox, _)| told_of(mailbox));
        let known = self.devices.iter().position(|device| device.is(&target.device));
        let index = known.unwrap_or_else(|| {
            self.devices.push(DeviceState::new(target, now));
            self.devices.len() - 1
        });
        let device = &mut self.devices[index];
        if known.is_none() {
            // Of a device that is known what it is owed is known, and better than on disk. A mark
            // that is only read may be about to be taken away, so it does not count as one here.
            for (mailbox, _) in mailboxes().filter(|(_, owed)| *owed) {
                device.wait_for(mailbox.clone(), None, ChangeKind::NewMail, now, now, rules);
            }
        }
        for (mailbox, _) in mailboxes() {
            if let Some(Change { kind, id, seen_at, .. }) = changes.get(mailbox)
                && rules.tells(*kind)
            {
                let change = Some(ChangeId(*id));
                device.wait_for(mailbox.clone(), change, *kind, *seen_at, now, rules);
            }
        }
    }

    /// The rows that nobody holds up any longer; they are not being told after this.
    pub(super) fn take_told(&mut self) -> Vec<(Mailbox, Snapshot, ChangeId)> {
        let devices = &self.devices;
        self.telling
            .extract_if(|mailbox, telling| {
                telling.snapshot.is_some() && !devices.iter().any(|device| device.holds_up(mailbox))
            })
            .filter_map(|(mailbox, telling)| {
                Some((mailbox, telling.snapshot?, ChangeId(telling.id)))
            })
            .collect()
    }

    /// After a read, or when there will be none: the pushes of the devices whose turn it is, and the
    /// turns of those that have nothing to push any more.
    pub(super) fn take_turns(&mut self, now: Instant) -> (Vec<Push>, Vec<Turn>) {
        let (mut pushes, mut left) = (Vec::new(), Vec::new());
        for device in &mut self.devices {
            let reads_on = device.stale && matches!(self.read, Read::Wanted { failures: 0, .. });
            let Some(turn) = device.turn.take_if(|_| !reads_on) else { continue };
            let sends =
                !device.stale && !device.is_suspended() && device.device.topic == *turn.topic;
            match sends.then(|| device.send(turn.pass, now)).flatten() {
                Some(push) => pushes.push(push),
                None => left.push(turn),
            }
        }
        self.devices.retain(|device| !device.departed || device.in_flight.is_some());
        (pushes, left)
    }

    /// The devices that are left alone for their tokens and registered before `before`; they are not
    /// known after this. With each comes when it registered.
    pub(super) fn take_dead(&mut self, before: Timestamp) -> Vec<(DeviceKey, Timestamp)> {
        let dead = |device: &mut DeviceState| {
            device.is_suspended()
                && device.registered_at < before
                && device.in_flight.is_none()
                && device.turn.is_none()
        };
        let dead = self.devices.extract_if(.., dead);
        dead.map(|device| (device.key(), device.registered_at)).collect()
    }

    pub(super) fn device(&mut self, key: &DeviceKey) -> Option<&mut DeviceState> {
        self.devices
            .iter_mut()
            .find(|state| state.device.token == key.token && state.device.subtopic == key.subtopic)
    }

    pub(super) fn remove(&mut self, key: &DeviceKey) {
        self.devices.retain(|state| {
            state.device.token != key.token || state.device.subtopic != key.subtopic
        });
    }

    /// Of the devices of this topic the one that may be pushed soonest, and when.
    pub(super) fn next_push(&self, topic: &str, rules: &Rules) -> Option<(usize, Instant)> {
        let due = |(index, device): (usize, &DeviceState)| Some((index, device.due(rules)?));
        let mine = |(_, device): &(usize, &DeviceState)| device.device.topic == topic;
        let devices = self.devices.iter().enumerate().filter(mine);
        devices.filter_map(due).min_by_key(|(_, at)| *at)
    }

    pub(super) fn next_read(&self) -> Option<Instant> {
        match self.read {
            Read::Wanted { at, .. } => Some(at),
            _ => None,
        }
    }

    /// Forgets what need not be remembered; returns when there will be more to forget.
    pub(super) fn forget(&mut self, rules: &Rules, now: Instant) -> Option<Instant> {
        let idle_until = |device: &DeviceState| {
            let idle =
                device.waiting.is_none() && device.in_flight.is_none() && device.turn.is_none();
            let told =
                |told: &Told| (told.sent_at + rules.min_interval).max(told.accepted_at + WORD);
            idle.then(|| device.told.as_ref().map_or(now, told))
        };
        let lost_at =
            |telling: &Telling| telling.snapshot.is_none().then_some(telling.since + UNCONFIRMED);
        self.devices.retain(|device| idle_until(device).is_none_or(|at| now < at));
        self.telling.retain(|_, telling| lost_at(telling).is_none_or(|at| now < at));
        let devices = self.devices.iter().filter_map(idle_until);
        devices.chain(self.telling.values().filter_map(lost_at)).min()
    }

    /// Whether there is nothing to remember.
    pub(super) fn is_empty(&self) -> bool {
        self.devices.is_empty()
            && self.telling.is_empty()
            && self.unread.is_empty()
            && matches!(self.read, Read::Idle)
    }

    fn newest_snapshot(&self, mailbox: &Mailbox) -> Option<Snapshot> {
        if let Some(change) = self.unread.get(mailbox) {
            return change.snapshot;
        }
        if let Read::UnderWay { changes, .. } = &self.read
            && let Some(change) = changes.get(mailbox)
        {
            return change.snapshot;
        }
        self.telling.get(mailbox)?.snapshot
    }
}

/// A newer change replaces an older one, and takes over what of it is still to be done.
fn merge(changes: &mut HashMap<Mailbox, Change>, mut newer: Change, rules: &Rules) {
    if let Some(older) = changes.get(&newer.mailbox) {
        // What is not told must not hide what is.
        let kinds = [newer.kind, older.kind];
        let most = kinds.into_iter().max_by_key(|kind| (rules.tells(*kind), *kind));
        newer.kind = most.unwrap_or(newer.kind);
        newer.seen_at = newer.seen_at.min(older.seen_at);
        covered(older.id, newer.id);
    }
    changes.insert(newer.mailbox.clone(), newer);
}

/// The trail of an older change goes on as that of a newer one.
fn covered(older: u64, newer: u64) {
    debug!(change = %ChangeId(older), by = %ChangeId(newer), "covered by a later change");
}

// === impl DeviceState ===

impl DeviceState {
    fn new(target: &Target, now: Instant) -> Self {
        Self {
            device: Arc::new(target.device.clone()),
            registered_at: target.registered_at,
            read_at: now,
            stale: false,
            turn: None,
            departed: false,
            waiting: None,
            in_flight: None,
            told: None,
            failures: 0,
            back_off_until: None,
            heals: false,
            held_until: None,
            bad_answers: 0,
        }
    }

    pub(super) fn key(&self) -> DeviceKey {
        (&*self.device).into()
    }

    fn is(&self, device: &Device) -> bool {
        self.device.token == device.token && self.device.subtopic == device.subtopic
    }

    fn refresh(&mut self, target: &Target, now: Instant) {
        let ears = |device: &Device| (device.account_id.clone(), device.topic.clone());
        if ears(&self.device) != ears(&target.device) {
            self.tell_again(now);
        }
        if *self.device != target.device {
            self.device = Arc::new(target.device.clone());
        }
        if self.registered_at < target.registered_at && self.heals {
            // The device lives, and so may its token.
            self.try_anew();
        }
        self.registered_at = target.registered_at;
        (self.read_at, self.stale, self.departed) = (now, false, false);
        let waiting = self.waiting.as_mut().map(|waiting| &mut waiting.mailboxes);
        let in_flight = self.in_flight.as_mut().map(|push| &mut push.mailboxes);
        for mailboxes in [waiting, in_flight].into_iter().flatten() {
            mailboxes.retain(|mailbox, _| {
                target.mailboxes.iter().any(|(registered, _)| registered == mailbox)
            });
        }
        self.waiting.take_if(|waiting| waiting.mailboxes.is_empty());
    }

    /// It listens to another account id or topic since it registered, so what it was sent a moment ago
    /// may have told it nothing.
    fn tell_again(&mut self, now: Instant) {
        if let Some(push) = &mut self.in_flight {
            push.in_vain = true;
        }
        if let Some(Told { mailboxes, accepted_at, .. }) = &mut self.told
            && now.saturating_duration_since(*accepted_at) < WORD
        {
            let mailboxes = std::mem::take(mailboxes);
            self.put_back(mailboxes, now, now, false);
        }
    }

    fn depart(&mut self) {
        (self.departed, self.waiting) = (true, None);
    }

    /// The device is to be told of the mailbox: at once, or when quiet changes have ceased.
    fn wait_for(
        &mut self,
        mailbox: Mailbox,
        change: Option<ChangeId>,
        kind: ChangeKind,
        seen_at: Instant,
        now: Instant,
        rules: &Rules,
    ) {
        let waits = self.waiting.is_some();
        let waiting = self.waiting.get_or_insert_with(|| Waiting::since(now, seen_at));
        // A mark that is there covers this change too: only a push that is sent from now on can
        // take it away, and that push names the mailbox.
        let due = waiting.mailboxes.entry(mailbox).or_default();
        due.change = change.or(due.change);
        waiting.seen_at = waiting.seen_at.min(seen_at);
        match kind {
            // What is urgent takes along what is not.
            ChangeKind::NewMail => waiting.until = waiting.until.min(now),
            // What is due, or would be but for a wait of its own, is not put off.
            ChangeKind::Quiet if waits && waiting.until <= now => {}
            ChangeKind::Quiet => waiting.until = now + rules.quiet_delay,
        }
    }

    fn holds_up(&self, mailbox: &Mailbox) -> bool {
        let unmarked = |mailboxes: &BTreeMap<Mailbox, Due>| {
            mailboxes.get(mailbox).is_some_and(|due| !due.marked)
        };
        self.waiting.as_ref().is_some_and(|waiting| unmarked(&waiting.mailboxes))
            || self.in_flight.as_ref().is_some_and(|push| unmarked(&push.mailboxes))
    }

    /// When it may be pushed, if there is something to push.
    fn due(&self, rules: &Rules) -> Option<Instant> {
        let waiting = self.waiting.as_ref()?;
        if self.in_flight.is_some() || self.turn.is_some() || self.stale {
            return None;
        }
        if self.is_suspended() {
            // Then what is known of it is old, and it is read again.
            return Some(self.read_at + RECHECK);
        }
        let last = self.told.as_ref().map(|told| told.sent_at + rules.min_interval);
        let spaced = last.max(Some(waiting.until))?;
        // A delay that begins anew with each change needs an end.
        let capped = spaced.min(waiting.since + rules.max_delay);
        Some(capped).max(self.back_off_until).max(self.held_until)
    }

    /// What is pending for it, seen at `now`.
    pub(super) fn view(&self, rules: &Rules, now: Instant) -> View {
        let left = |at: Instant| Some(at.saturating_duration_since(now)).filter(|d| !d.is_zero());
        let waiting = self.waiting.iter().flat_map(|waiting| &waiting.mailboxes);
        View {
            under_way: self.in_flight.as_ref().map(|push| now.duration_since(push.sent_at)),
            waiting: waiting.map(|(mailbox, _)| mailbox.clone()).collect(),
            due_in: self.due(rules).map(|at| at.saturating_duration_since(now)),
            too_soon: self.told.as_ref().and_then(|told| left(told.sent_at + rules.min_interval)),
            backs_off: self.back_off_until.and_then(left),
            held: self.held_until.and_then(left),
            failures: self.failures,
            suspended: self.is_suspended(),
            shut: None,
        }
    }

    /// Whether its token seems not to exist, so that it is not pushed.
    fn is_suspended(&self) -> bool {
        self.bad_answers >= BAD_ANSWERS
    }

    /// Whether what is known of it is new enough to push it.
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.read_at) < FRESH
    }

    /// Makes what waits a push that is under way, but for what one push cannot hold.
    pub(super) fn send(&mut self, pass: Pass, now: Instant) -> Option<Push> {
        let Waiting { mut mailboxes, seen_at, .. } = self.waiting.take()?;
        if let Some(next) = mailboxes.keys().nth(MAX_MAILBOXES).cloned() {
            let mailboxes = mailboxes.split_off(&next);
            self.waiting = Some(Waiting { mailboxes, since: now, until: now, seen_at });
        }
        let push = Push {
            device: self.device.clone(),
            mailboxes: mailboxes.keys().cloned().collect(),
            changes: mailboxes.values().filter_map(|due| due.change).collect(),
            seen_at,
        };
        let registered_at = self.registered_at;
        let in_vain = false;
        self.in_flight =
            Some(InFlight { mailboxes, pass, registered_at, in_vain, sent_at: now, seen_at });
        Some(push)
    }

    /// APNs accepted the push: the mailboxes that the device was told of.
    pub(super) fn accepted(&mut self, now: Instant) -> Vec<Mailbox> {
        let Some(push) = self.in_flight.take() else { return Vec::new() };
        self.try_anew();
        let InFlight { mailboxes, in_vain, sent_at, seen_at, .. } = push;
        let told = if in_vain { BTreeMap::new() } else { mailboxes.clone() };
        let names = told.keys().cloned().collect();
        self.told = Some(Told { mailboxes: told, sent_at, accepted_at: now });
        if in_vain && !self.departed {
            self.put_back(mailboxes, seen_at, now, false);
        }
        names
    }

    /// The push failed, and another goes after `wait`, which is given the number of failures in a row.
    /// With `heals` it goes as soon as the device has registered anew. As [`DeviceState::owe`].
    pub(super) fn failed(
        &mut self,
        now: Instant,
        heals: bool,
        wait: impl FnOnce(u32) -> Duration,
    ) -> Vec<Mailbox> {
        self.failures = self.failures.saturating_add(1);
        (self.back_off_until, self.heals) = (Some(now + wait(self.failures)), heals);
        self.owe(now)
    }

    /// The push did not arrive. The mailboxes that have to be marked on disk; those with a mark are not
    /// among them.
    fn owe(&mut self, now: Instant) -> Vec<Mailbox> {
        let Some(push) = self.in_flight.take_if(|_| !self.departed) else {
            self.in_flight = None;
            return Vec::new();
        };
        let unmarked = push.mailboxes.iter().filter(|(_, due)| !due.marked);
        let unmarked = unmarked.map(|(mailbox, _)| mailbox.clone()).collect();
        self.put_back(push.mailboxes, push.seen_at, now, true);
        unmarked
    }

    /// The device is to be told of these after all, now; `marked`: marks on disk say so, too.
    fn put_back(
        &mut self,
        mailboxes: BTreeMap<Mailbox, Due>,
        seen_at: Instant,
        now: Instant,
        marked: bool,
    ) {
        if mailboxes.is_empty() {
            return;
        }
        let waiting = self.waiting.get_or_insert_with(|| Waiting::since(now, seen_at));
        for (mailbox, Due { change, .. }) in mailboxes {
            let due = waiting.mailboxes.entry(mailbox).or_default();
            (due.marked, due.change) = (due.marked || marked, due.change.or(change));
        }
        waiting.until = waiting.until.min(now);
        waiting.seen_at = waiting.seen_at.min(seen_at);
    }

    /// APNs said that there is no such token, of the registration that is known.
    pub(super) fn is_bad(&mut self) {
        self.bad_answers = self.bad_answers.saturating_add(1);
    }

    /// Nothing that was said of it before is believed any longer.
    fn try_anew(&mut self) {
        (self.failures, self.back_off_until, self.bad_answers) = (0, None, 0);
        self.heals = false;
    }

    /// The identity may be another one: what was said under the one of before counts no longer.
    pub(super) fn has_new_identity(&mut self) {
        self.try_anew();
        if let Some(push) = &mut self.in_flight {
            push.pass = Pass::Late;
        }
        if let Some(turn) = &mut self.turn {
            turn.pass = Pass::Late;
        }
    }

    /// Marks everything that the device has not been told of; as [`DeviceState::owe`].
    pub(super) fn owe_all(&mut self, now: Instant) -> Vec<Mailbox> {
        let mut unmarked = self.owe(now);
        for (mailbox, due) in self.waiting.iter_mut().flat_map(|waiting| &mut waiting.mailboxes) {
            if !std::mem::replace(&mut due.marked, true) {
                unmarked.push(mailbox.clone());
            }
        }
        unmarked
    }
}

// === impl ChangeId ===

impl ChangeId {
    pub(crate) fn of(change: &Change) -> Self {
        Self(change.id)
    }
}

impl fmt::Display for ChangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

impl Waiting {
    fn since(now: Instant, seen_at: Instant) -> Self {
        Self { mailboxes: BTreeMap::new(), since: now, until: now, seen_at }
    }
}
