//! One subscription of an account: which pushes it has to get, and when.
//!
//! Nothing here sends, writes or reads a clock.

mod backlog;
pub(super) mod follow_up;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::backlog::{Backlog, Due};
use super::super::transport::{RouteId, Transport};
use super::change_id::ChangeId;
use super::circuit_breaker::BreakerPass;
use super::preview::{NewestMail, PreviewState, Previews};
use super::{Delivery, DeliveryView, Rules};
use crate::model::{
    Change, ChangeKind, LastingFailure, Mailbox, Preview, Snapshot, Subscription, SubscriptionKey,
    Timestamp,
};
use crate::store::Target;

/// For how long what was read of a subscription is believed when it is to be pushed: long enough for a push
/// at once to be one read. Of a registration in between comes word (`AccountState::doubt`).
const FRESH: Duration = Duration::from_secs(1);
/// Word of a registration comes no later than this after it is on disk; a push that was accepted
/// meanwhile for what the subscription was before has told it nothing.
pub(super) const WORD: Duration = Duration::from_secs(10);
/// After so many answers that there is no such token, one is left alone until it registers anew.
const BAD_ANSWERS: u32 = 2;
/// How often a subscription that is left alone so is looked at: has it registered?
const RECHECK: Duration = Duration::from_mins(15);
/// One that rests is forgotten so long after it might have been tried again, so that one that is refused with each
/// mail is tried less and less often.
const REST_KNOWN: Duration = Duration::from_mins(15);

pub(super) struct SubscriptionQueue {
    pub(super) subscription: Arc<Subscription>,
    pub(super) route: RouteId,
    /// Of that route.
    pub(super) peer: Arc<str>,
    /// When it registered, by the time of day and by that of service.
    pub(super) registered_at: Timestamp,
    pub(super) heard_at: Timestamp,
    /// It registers again by itself, so its silence says something.
    pub(super) renews: bool,
    /// Its pushes may say what is known of new mail.
    carries_preview: bool,
    read_at: Instant,
    /// It may be another one now: it is read again before it is its turn to be pushed.
    pub(super) stale: bool,
    /// It is its turn: as soon as it has been read again it is pushed, if there is still something to
    /// push.
    pub(super) turn: Option<SendSlot>,
    /// No longer registered, but a push is under way.
    pub(super) departed: bool,
    pub(super) waiting: Option<Backlog>,
    pub(super) in_flight: Option<InFlight>,
    /// The last push that was accepted.
    pub(super) told: Option<LastDelivery>,
    failures: u32,
    /// How its pushes fail for a reason that lasts, as it is written.
    failing: Option<LastingFailure>,
    /// When its last push was tried, if that showed the fault to be its own.
    at_fault_at: Option<Instant>,
    back_off_until: Option<Instant>,
    /// Why it rests: time alone does not bring another try. Then marks on disk say all that waits.
    rests: Option<Box<str>>,
    /// There is a reason to try that came after its last push was sent.
    wakes: bool,
    /// It is left alone for a reason that goes when it registers anew.
    heals: bool,
    /// It was pushed lately for other accounts.
    pub(super) held_until: Option<Instant>,
    /// How often the service did not know its endpoint, since it registered.
    bad_answers: u32,
}

/// A subscription's place among those that are pushed at this moment.
#[derive(Clone, Debug)]
pub(super) struct SendSlot {
    pub(super) route: RouteId,
    pub(super) peer: Arc<str>,
    pub(super) pass: BreakerPass,
    /// Most mailboxes of its push.
    pub(super) mailboxes: usize,
}

/// Which marks on disk say something of a subscription that is known. One that is read may be about to be
/// taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum MarksRead {
    #[default]
    None,
    /// Those of mailboxes that no push to it has named, and none will.
    Unheard,
    All,
}

pub(super) struct LastDelivery {
    mailboxes: BTreeMap<Mailbox, Due>,
    pub(super) sent_at: Instant,
    pub(super) accepted_at: Instant,
}

/// A push that has not been answered.
pub(super) struct InFlight {
    mailboxes: BTreeMap<Mailbox, Due>,
    newest: Option<NewestMail>,
    pub(super) pass: BreakerPass,
    /// When the subscription that it was sent to had registered.
    pub(super) registered_at: Timestamp,
    /// The subscription listens elsewhere since.
    in_vain: bool,
    sent_at: Instant,
    seen_at: Instant,
}

// === impl SubscriptionQueue ===

/// A push that failed says for so long what is known of the newest mail.
const NEWEST_KEPT: Duration = Duration::from_mins(5);

impl SubscriptionQueue {
    pub(super) fn new(
        target: &Target,
        peer: Arc<str>,
        carries_preview: bool,
        now: Instant,
    ) -> Self {
        Self {
            subscription: Arc::new(target.subscription.clone()),
            route: RouteId::of(&target.subscription),
            peer,
            registered_at: target.registered_at,
            heard_at: target.heard_at,
            renews: target.renews,
            carries_preview,
            read_at: now,
            stale: false,
            turn: None,
            departed: false,
            waiting: None,
            in_flight: None,
            told: None,
            failures: 0,
            failing: target.failing.clone(),
            at_fault_at: None,
            back_off_until: None,
            rests: None,
            wakes: false,
            heals: false,
            held_until: None,
            bad_answers: 0,
        }
    }

    pub(super) fn key(&self) -> SubscriptionKey {
        (&*self.subscription).into()
    }

    pub(super) fn is(&self, subscription: &Subscription) -> bool {
        self.subscription.is(&subscription.into())
    }

    /// It is registered so now; `transport` is that of its route.
    pub(super) fn refresh(&mut self, target: &Target, transport: &dyn Transport, now: Instant) {
        let new = &target.subscription;
        if *self.subscription != *new {
            if self.subscription.route != new.route || !transport.covers(&self.subscription, new) {
                self.tell_again(now);
            }
            self.subscription = Arc::new(new.clone());
            (self.route, self.peer) = (RouteId::of(new), transport.peer(new));
        }
        if self.registered_at < target.registered_at {
            (self.failing, self.at_fault_at) = (target.failing.clone(), None);
            if self.heals {
                // The subscription lives, and so may its token.
                self.try_anew();
            }
        }
        (self.registered_at, self.heard_at) = (target.registered_at, target.heard_at);
        self.renews = target.renews;
        (self.read_at, self.stale, self.departed) = (now, false, false);
        let waiting = self.waiting.as_mut().map(|it| (&mut it.mailboxes, &mut it.newest));
        let in_flight = self.in_flight.as_mut().map(|it| (&mut it.mailboxes, &mut it.newest));
        let registered = |mailbox: &Mailbox| {
            target.mailboxes.iter().any(|(registered, _)| registered == mailbox)
        };
        for (mailboxes, newest) in [waiting, in_flight].into_iter().flatten() {
            mailboxes.retain(|mailbox, _| registered(mailbox));
            newest.take_if(|newest| !registered(&newest.mailbox));
        }
        self.waiting.take_if(|waiting| waiting.mailboxes.is_empty());
    }

    /// It listens elsewhere since it registered, so what it was sent a moment ago
    /// may have told it nothing.
    fn tell_again(&mut self, now: Instant) {
        self.wake();
        if let Some(push) = &mut self.in_flight {
            push.in_vain = true;
        }
        if let Some(LastDelivery { mailboxes, accepted_at, .. }) = &mut self.told
            && now.saturating_duration_since(*accepted_at) < WORD
        {
            let mailboxes = std::mem::take(mailboxes);
            self.put_back((mailboxes, None), now, now, false);
        }
    }

    pub(super) fn depart(&mut self) {
        (self.departed, self.waiting) = (true, None);
    }

    /// The subscription has to get the push that these marks on disk owe it. A mark that is only read
    /// may be about to be taken away, so it does not count as one here.
    pub(super) fn owed(&mut self, target: &Target, marks: MarksRead, now: Instant, rules: &Rules) {
        for (mailbox, _) in target.mailboxes.iter().filter(|(_, owed)| *owed) {
            match marks {
                MarksRead::None => continue,
                MarksRead::Unheard if self.hears(mailbox) => continue,
                MarksRead::Unheard | MarksRead::All => {}
            }
            self.wait_for(mailbox, Due::FROM_DISK, (now, now), now, rules);
            self.wake();
        }
    }

    /// It rests no longer, if it did: there is a new reason to try.
    pub(super) fn wake(&mut self) {
        (self.rests, self.wakes) = (None, true);
    }

    /// Whether a push has named the mailbox, or will.
    fn hears(&self, mailbox: &Mailbox) -> bool {
        let waiting = self.waiting.as_ref().map(|waiting| &waiting.mailboxes);
        let in_flight = self.in_flight.as_ref().map(|push| &push.mailboxes);
        let told = self.told.as_ref().map(|told| &told.mailboxes);
        let mut all = [waiting, in_flight, told].into_iter().flatten();
        all.any(|mailboxes| mailboxes.contains_key(mailbox))
    }

    /// The subscription has to get a push of those of the changes that it registered for; `transport` is that of its
    /// route.
    pub(super) fn tell(
        &mut self,
        target: &Target,
        transport: &dyn Transport,
        (changes, previews): (&HashMap<Mailbox, Change>, &Previews),
        now: Instant,
        rules: &Rules,
    ) {
        for (mailbox, _) in &target.mailboxes {
            // A push that waits takes the newer state along.
            let waits = self
                .waiting
                .as_ref()
                .is_some_and(|waiting| waiting.mailboxes.contains_key(mailbox));
            if let Some(change) = changes.get(mailbox)
                && rules.tells(change.kind)
                && let concerns = transport.tells(&target.subscription, change.kind)
                && (waits || concerns)
            {
                if concerns {
                    self.wake();
                }
                let preview = previews.of(mailbox).filter(|_| change.kind == ChangeKind::NewMail);
                let awaited = match preview {
                    Some(PreviewState::Awaited(until)) if self.carries_preview => *until,
                    _ => now,
                };
                let times = (change.seen_at, awaited.max(now));
                self.wait_for(mailbox, Due::of(change), times, now, rules);
                match preview {
                    Some(PreviewState::Known(preview, _)) => {
                        self.previewed(mailbox, Some(preview), now);
                    }
                    None if change.kind == ChangeKind::NewMail => self.forget_preview(mailbox),
                    _ => {}
                }
            }
        }
    }

    /// What is known of the newest mail of the mailbox; `None` if nothing will be. A push that waits for it
    /// waits no longer.
    pub(super) fn previewed(&mut self, mailbox: &Mailbox, preview: Option<&Preview>, now: Instant) {
        let is_new = |waiting: &&mut Backlog| {
            let due = waiting.mailboxes.get(mailbox);
            due.is_some_and(|due| due.kind == ChangeKind::NewMail)
        };
        if let Some(waiting) = self.waiting.as_mut().filter(is_new)
            && self.carries_preview
        {
            waiting.until = waiting.until.min(now);
            match preview.cloned() {
                Some(preview) => {
                    let newest = NewestMail { mailbox: mailbox.clone(), preview };
                    waiting.newest = Some(newest.after(waiting.newest.take()));
                }
                None => self.forget_preview(mailbox),
            }
        }
    }

    /// Nothing is known of the newest mail of the mailbox: that of an older one does not go out in its place.
    fn forget_preview(&mut self, mailbox: &Mailbox) {
        if let Some(waiting) = &mut self.waiting {
            waiting.newest.take_if(|newest| newest.mailbox == *mailbox);
        }
    }

    /// New mail at once, or when it has been asked for what it is (`new_at`); other changes when they have
    /// ceased.
    fn wait_for(
        &mut self,
        mailbox: &Mailbox,
        due: Due,
        (seen_at, new_at): (Instant, Instant),
        now: Instant,
        rules: &Rules,
    ) {
        let waits = self.waiting.is_some();
        let waiting = self.waiting.get_or_insert_with(|| Backlog::since(now, seen_at));
        let has_new = waiting.mailboxes.values().any(|due| due.kind == ChangeKind::NewMail);
        // A mark that is there covers this change too: only a push that is sent from now on can
        // take it away, and that push names the mailbox.
        match waiting.mailboxes.get_mut(mailbox) {
            Some(before) => *before = due.after(*before),
            None => drop(waiting.mailboxes.insert(mailbox.clone(), due)),
        }
        waiting.seen_at = waiting.seen_at.min(seen_at);
        match due.kind {
            // What is urgent takes along what is not.
            ChangeKind::NewMail if waits => waiting.until = waiting.until.min(new_at),
            ChangeKind::NewMail => waiting.until = new_at,
            // What is due, or would be but for a wait of its own, is not put off.
            ChangeKind::Quiet if waits && (has_new || waiting.until <= now) => {}
            ChangeKind::Quiet => waiting.until = now + rules.quiet_delay,
        }
    }

    /// The state that this change announced. What is under way has gone without, and has it when it is sent
    /// again.
    pub(super) fn learn(&mut self, mailbox: &Mailbox, change: ChangeId, state: Snapshot) {
        let waiting = self.waiting.as_mut().map(|waiting| &mut waiting.mailboxes);
        let in_flight = self.in_flight.as_mut().map(|push| &mut push.mailboxes);
        let told = self.told.as_mut().map(|told| &mut told.mailboxes);
        let all = [waiting, in_flight, told].into_iter().flatten();
        for due in all.filter_map(|mailboxes| mailboxes.get_mut(mailbox)) {
            if due.change == Some(change) {
                due.state = Some(state);
            }
        }
    }

    pub(super) fn holds_up(&self, mailbox: &Mailbox) -> bool {
        let unmarked = |mailboxes: &BTreeMap<Mailbox, Due>| {
            mailboxes.get(mailbox).is_some_and(|due| !due.marked)
        };
        self.waiting.as_ref().is_some_and(|waiting| unmarked(&waiting.mailboxes))
            || self.in_flight.as_ref().is_some_and(|push| unmarked(&push.mailboxes))
    }

    /// When it may be pushed, if there is something to push.
    pub(super) fn due(&self, rules: &Rules) -> Option<Instant> {
        let waiting = self.waiting.as_ref().filter(|_| self.rests.is_none())?;
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
    pub(super) fn view(&self, rules: &Rules, now: Instant) -> DeliveryView {
        let left = |at: Instant| Some(at.saturating_duration_since(now)).filter(|d| !d.is_zero());
        let waiting = self.waiting.iter().flat_map(|waiting| &waiting.mailboxes);
        DeliveryView {
            under_way: self.in_flight.as_ref().map(|push| now.duration_since(push.sent_at)),
            waiting: waiting.map(|(mailbox, _)| mailbox.clone()).collect(),
            due_in: self.due(rules).map(|at| at.saturating_duration_since(now)),
            too_soon: self.told.as_ref().and_then(|told| left(told.sent_at + rules.min_interval)),
            backs_off: self.back_off_until.and_then(left),
            held: self.held_until.and_then(left),
            failures: self.failures,
            suspended: self.is_suspended(),
            rests: self.rests.as_deref().map(str::to_owned),
            shut: None,
        }
    }

    /// Whether this is its place, as it is registered now.
    pub(super) fn has_place(&self, turn: &SendSlot) -> bool {
        (&self.route, &self.peer) == (&turn.route, &turn.peer)
    }

    /// Whether its token seems not to exist, so that it is not pushed.
    pub(super) fn is_suspended(&self) -> bool {
        self.bad_answers >= BAD_ANSWERS
    }

    /// Whether what is known of it is new enough to push it.
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.read_at) < FRESH
    }

    /// Makes what waits a push that is under way, of at most so many mailboxes; others wait on.
    pub(super) fn send(
        &mut self,
        pass: BreakerPass,
        most: usize,
        now: Instant,
    ) -> Option<Delivery> {
        let Backlog { mut mailboxes, mut newest, seen_at, .. } = self.waiting.take()?;
        if let Some(next) = mailboxes.keys().nth(most).cloned() {
            let mailboxes = mailboxes.split_off(&next);
            let newest = newest.take_if(|newest| mailboxes.contains_key(&newest.mailbox));
            self.waiting = Some(Backlog { mailboxes, newest, since: now, until: now, seen_at });
        }
        let push = Delivery {
            subscription: self.subscription.clone(),
            mailboxes: mailboxes.iter().map(|(mailbox, due)| due.told_of(mailbox)).collect(),
            newest: newest.clone(),
            changes: mailboxes.values().filter_map(|due| due.change).collect(),
            seen_at,
        };
        let registered_at = self.registered_at;
        let in_vain = false;
        self.wakes = false;
        self.in_flight = Some(InFlight {
            mailboxes,
            newest,
            pass,
            registered_at,
            in_vain,
            sent_at: now,
            seen_at,
        });
        Some(push)
    }

    /// The service accepted the push: the mailboxes that the push named.
    pub(super) fn accepted(&mut self, now: Instant) -> Vec<Mailbox> {
        let Some(push) = self.in_flight.take() else { return Vec::new() };
        self.try_anew();
        self.failing = None;
        let InFlight { mailboxes, newest, in_vain, sent_at, seen_at, .. } = push;
        let told = if in_vain { BTreeMap::new() } else { mailboxes.clone() };
        let names = told.keys().cloned().collect();
        self.told = Some(LastDelivery { mailboxes: told, sent_at, accepted_at: now });
        if in_vain && !self.departed {
            self.put_back((mailboxes, newest), seen_at, now, false);
        }
        names
    }

    /// The push failed, and another goes after `wait`, which is given the number of failures in a row.
    /// With `heals` it goes as soon as the subscription has registered anew. As [`SubscriptionQueue::owe`].
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

    /// The same of a push that would fail as often as it was sent: it rests, unless there is a new reason to try, and
    /// that is then no sooner than after `wait`.
    pub(super) fn rest(
        &mut self,
        why: &str,
        now: Instant,
        wait: impl FnOnce(u32) -> Duration,
    ) -> Vec<Mailbox> {
        let mut unmarked = self.failed(now, true, wait);
        if !self.wakes {
            self.rests = Some(why.into());
            unmarked.extend(self.owe_all(now));
        }
        unmarked
    }

    /// Until when it has to be known; `None` while there is something to do for it.
    pub(super) fn known_until(&self, rules: &Rules, now: Instant) -> Option<Instant> {
        let waits = self.waiting.is_some() && self.rests.is_none();
        if waits || self.in_flight.is_some() || self.turn.is_some() {
            return None;
        }
        let told = self.told.as_ref();
        let told =
            told.map(|told| (told.sent_at + rules.min_interval).max(told.accepted_at + WORD));
        let rest = self.rests.as_ref().and(self.back_off_until).map(|at| at + REST_KNOWN);
        told.max(rest).or(Some(now))
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
        self.put_back((push.mailboxes, push.newest), push.seen_at, now, true);
        unmarked
    }

    /// The subscription has to get a push of these after all, now; `marked`: marks on disk say so, too.
    fn put_back(
        &mut self,
        (mailboxes, newest): (BTreeMap<Mailbox, Due>, Option<NewestMail>),
        seen_at: Instant,
        now: Instant,
        marked: bool,
    ) {
        if mailboxes.is_empty() {
            return;
        }
        let waiting = self.waiting.get_or_insert_with(|| Backlog::since(now, seen_at));
        // Of a newer mail of its mailbox nothing is known, or it may have been read long since.
        let is_past = |newest: &NewestMail| {
            let newer = waiting.mailboxes.get(&newest.mailbox);
            let is_newer = newer.is_some_and(|due| due.kind == ChangeKind::NewMail);
            waiting.newest.is_none() && is_newer
                || now.saturating_duration_since(seen_at) > NEWEST_KEPT
        };
        let newest = newest.filter(|newest| !is_past(newest));
        for (mailbox, due) in mailboxes {
            let due = Due { marked, ..due };
            let newer = waiting.mailboxes.get(&mailbox);
            let due = newer.map_or(due, |newer| newer.after(due));
            waiting.mailboxes.insert(mailbox, due);
        }
        waiting.newest = match waiting.newest.take() {
            Some(newer) => Some(newer.after(newest)),
            None => newest,
        };
        waiting.until = waiting.until.min(now);
        waiting.seen_at = waiting.seen_at.min(seen_at);
    }

    /// Nothing that was said of it before is believed any longer.
    fn try_anew(&mut self) {
        (self.failures, self.back_off_until, self.bad_answers) = (0, None, 0);
        (self.heals, self.rests) = (false, None);
    }

    /// The identity may be another one: what was said under the one of before counts no longer.
    pub(super) fn has_new_identity(&mut self) {
        self.try_anew();
        if let Some(push) = &mut self.in_flight {
            push.pass = BreakerPass::Late;
        }
        if let Some(turn) = &mut self.turn {
            turn.pass = BreakerPass::Late;
        }
    }

    /// Marks everything that the subscription has not been told of; as [`SubscriptionQueue::owe`].
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
