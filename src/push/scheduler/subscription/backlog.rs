//! What waits for a subscription: its next push.

use std::collections::BTreeMap;
use std::time::Instant;

use super::super::super::transport::MailboxChange;
use super::super::change_id::ChangeId;
use super::super::preview::NewestMail;
use super::super::unread::unread_before;
use crate::model::{Change, ChangeKind, Mailbox, Snapshot};

/// A mailbox for which a subscription has to get a push.
#[derive(Clone, Copy)]
pub(super) struct Due {
    /// A mark on disk says that it is owed.
    pub(super) marked: bool,
    /// The last change; `None` if that was in an earlier run.
    pub(super) change: Option<ChangeId>,
    /// What matters most of all that has changed.
    pub(super) kind: ChangeKind,
    /// As the last change says it, or as it was asked for since.
    pub(super) state: Option<Snapshot>,
    /// How many messages were unread before the new mail, where that was known, see [`unread_before`].
    pub(super) unread_before: Option<u64>,
}

/// The next push of a subscription.
pub(in super::super) struct Backlog {
    pub(super) mailboxes: BTreeMap<Mailbox, Due>,
    pub(super) newest: Option<NewestMail>,
    /// Since the first of these changes.
    pub(super) since: Instant,
    pub(super) until: Instant,
    pub(super) seen_at: Instant,
}

// === impl Due ===

impl Due {
    /// Owed by a mark on disk.
    pub(super) const FROM_DISK: Self = Self {
        marked: false,
        change: None,
        kind: ChangeKind::NewMail,
        state: None,
        unread_before: None,
    };

    pub(super) fn of(change: &Change) -> Self {
        let Change { kind, snapshot, unread_before, .. } = change;
        let unread_before = unread_before.filter(|_| *kind == ChangeKind::NewMail);
        let change = Some(ChangeId::of(change));
        Self { marked: false, change, kind: *kind, state: *snapshot, unread_before }
    }

    /// Both in one push. A push that a mark owes has no state.
    pub(super) fn after(self, before: Self) -> Self {
        let last = if self.change.is_some() { self } else { before };
        Self {
            marked: self.marked || before.marked,
            change: last.change,
            kind: self.kind.max(before.kind),
            state: last.state,
            unread_before: unread_before([
                (before.kind, before.unread_before),
                (self.kind, self.unread_before),
            ]),
        }
    }

    pub(super) fn told_of(&self, mailbox: &Mailbox) -> MailboxChange {
        let (mailbox, state) = (mailbox.clone(), self.state.unwrap_or_default());
        MailboxChange { mailbox, kind: self.kind, state, unread_before: self.unread_before }
    }
}

impl Backlog {
    pub(super) fn since(now: Instant, seen_at: Instant) -> Self {
        Self { mailboxes: BTreeMap::new(), newest: None, since: now, until: now, seen_at }
    }
}
