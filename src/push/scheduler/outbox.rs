//! What has to be written to the database, while it is being written or cannot be.
//!
//! Only the newest state of each row is kept, so however long the database is away, this is no
//! larger than the rows that it is about.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::change_id::ChangeId;
use crate::model::{Account, LastingFailure, Mailbox, Snapshot, SubscriptionKey, Timestamp};
use crate::net::backoff::Backoff;
use crate::store::Settlement;

const BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));

#[derive(Default)]
pub(super) struct Outbox {
    told: HashMap<(Account, Mailbox), (Snapshot, ChangeId)>,
    subscriptions: HashMap<SubscriptionKey, Marks>,
    removals: HashMap<SubscriptionKey, Timestamp>,
    writing: bool,
    failures: u32,
    not_before: Option<Instant>,
}

/// What is to be written at once: first the settlements, all or nothing, then the removals.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Batch {
    /// A subscription's marks stand before the states that rely on them.
    pub(crate) settlements: Vec<Settlement>,
    /// The change of each [`Settlement::Told`], in the same order.
    pub(crate) changes: Vec<ChangeId>,
    /// The subscription, and when it registered last for the removal to be right.
    pub(crate) removals: Vec<(SubscriptionKey, Timestamp)>,
}

#[derive(Default)]
struct Marks {
    accepted_at: Option<Timestamp>,
    /// Its pushes fail for a reason that lasts.
    failing: Option<(LastingFailure, Timestamp)>,
    /// Owed since, or no longer owed.
    mailboxes: HashMap<Mailbox, Option<Timestamp>>,
}

impl Outbox {
    pub(super) fn told(
        &mut self,
        account: Account,
        mailbox: Mailbox,
        snapshot: Snapshot,
        change: ChangeId,
    ) {
        self.told.insert((account, mailbox), (snapshot, change));
    }

    pub(super) fn owed(
        &mut self,
        subscription: &SubscriptionKey,
        mailbox: Mailbox,
        since: Timestamp,
    ) {
        self.marks(subscription).mailboxes.insert(mailbox, Some(since));
    }

    /// The subscription's pushes fail so, for a reason that lasts, as it was registered at that time.
    pub(super) fn failing(
        &mut self,
        subscription: &SubscriptionKey,
        failure: LastingFailure,
        registered_at: Timestamp,
    ) {
        self.marks(subscription).failing = Some((failure, registered_at));
    }

    pub(super) fn accepted(
        &mut self,
        subscription: &SubscriptionKey,
        mailboxes: Vec<Mailbox>,
        at: Timestamp,
    ) {
        let marks = self.marks(subscription);
        (marks.accepted_at, marks.failing) = (Some(at), None);
        marks.mailboxes.extend(mailboxes.into_iter().map(|mailbox| (mailbox, None)));
    }

    /// The subscription is dead, if it has not registered after `not_after`.
    pub(super) fn remove(&mut self, subscription: SubscriptionKey, not_after: Timestamp) {
        self.removals.insert(subscription, not_after);
    }

    /// All that there is to write, unless a write is under way or failed a moment ago. The answer
    /// goes to [`Outbox::written`].
    pub(super) fn take(&mut self, now: Instant) -> Option<Batch> {
        let wait = self.writing || self.is_empty() || self.not_before.is_some_and(|at| now < at);
        (!wait).then(|| {
            self.writing = true;
            self.drain()
        })
    }

    /// A batch was written but for `failed`.
    pub(super) fn written(&mut self, failed: Batch, now: Instant, chance: f64) {
        self.writing = false;
        if failed == Batch::default() {
            (self.failures, self.not_before) = (0, None);
            return;
        }
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + BACKOFF.wait(self.failures, chance));
        self.put_back(failed);
    }

    /// When there will be something to take, if time alone can bring it.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        (!self.writing && !self.is_empty()).then(|| self.not_before.unwrap_or(now))
    }

    /// Rows that wait.
    pub(super) fn len(&self) -> usize {
        self.told.len() + self.subscriptions.len() + self.removals.len()
    }

    /// Everything, whatever is under way or failed: the last write of all.
    pub(super) fn drain(&mut self) -> Batch {
        let mut settlements = Vec::new();
        for (subscription, marks) in self.subscriptions.drain() {
            let (owed, settled): (Vec<_>, Vec<_>) =
                marks.mailboxes.into_iter().partition(|(_, since)| since.is_some());
            if let Some(at) = marks.accepted_at {
                let mailboxes = settled.into_iter().map(|(mailbox, _)| mailbox).collect();
                let subscription = subscription.clone();
                settlements.push(Settlement::Accepted { subscription, mailboxes, at });
            }
            if let Some((failure, registered_at)) = marks.failing {
                let subscription = subscription.clone();
                settlements.push(Settlement::Failing { subscription, failure, registered_at });
            }
            settlements.extend(owed.into_iter().filter_map(|(mailbox, since)| {
                Some(Settlement::Owed {
                    subscription: subscription.clone(),
                    mailbox,
                    since: since?,
                })
            }));
        }
        let mut changes = Vec::new();
        for ((account, mailbox), (snapshot, change)) in self.told.drain() {
            settlements.push(Settlement::Told { account, mailbox, snapshot });
            changes.push(change);
        }
        Batch { settlements, changes, removals: self.removals.drain().collect() }
    }

    /// What has come since is newer and stays.
    pub(super) fn put_back(&mut self, batch: Batch) {
        let mut changes = batch.changes.into_iter();
        for settlement in batch.settlements {
            match settlement {
                Settlement::Told { account, mailbox, snapshot } => {
                    let Some(change) = changes.next() else { continue };
                    self.told.entry((account, mailbox)).or_insert((snapshot, change));
                }
                Settlement::Owed { subscription, mailbox, since } => {
                    self.marks(&subscription).mailboxes.entry(mailbox).or_insert(Some(since));
                }
                Settlement::Failing { subscription, failure, registered_at } => {
                    let marks = self.marks(&subscription);
                    if marks.accepted_at.is_none_or(|accepted| accepted <= failure.since) {
                        marks.failing.get_or_insert((failure, registered_at));
                    }
                }
                Settlement::Accepted { subscription, mailboxes, at } => {
                    let marks = self.marks(&subscription);
                    marks.accepted_at.get_or_insert(at);
                    for mailbox in mailboxes {
                        marks.mailboxes.entry(mailbox).or_insert(None);
                    }
                }
            }
        }
        for (subscription, not_after) in batch.removals {
            self.removals.entry(subscription).or_insert(not_after);
        }
    }

    fn is_empty(&self) -> bool {
        self.told.is_empty() && self.subscriptions.is_empty() && self.removals.is_empty()
    }

    fn marks(&mut self, subscription: &SubscriptionKey) -> &mut Marks {
        self.subscriptions.entry(subscription.clone()).or_default()
    }
}
