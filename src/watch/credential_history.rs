//! What a watcher knows of its credentials: which worked, which were refused, what its user brought.

use tokio::time::Instant;

use crate::model::{BackendId, Credentials, Timestamp};

/// What a watcher knows of its credentials.
#[derive(Debug, Default)]
pub(super) struct CredentialHistory {
    /// Of which the supervisor has told, as [`super::watcher::Directive::logins`] counts them.
    pub(super) logins: u64,
    /// The same at other nodes.
    pub(super) logins_elsewhere: u64,
    /// Times after which such may have been missed.
    pub(super) logins_missed: u64,
    /// Those of them that count, as they were at the account's backend.
    pub(super) accepted: u64,
    /// The last of them.
    pub(super) taken: Option<(BackendId, Credentials, Timestamp)>,
    /// It is not in the store, as far as is known.
    pub(super) unsaved: bool,
    /// What its user has logged in with since the backend refused the watcher.
    pub(super) brought: Option<(BackendId, Credentials)>,
    /// With what it last logged in.
    pub(super) used: Option<Credentials>,
    /// What was refused since then.
    pub(super) refused: Vec<Credentials>,
    /// Tries that were refused in a row.
    pub(super) refusals: u32,
    /// When the last of them was.
    pub(super) refused_at: Option<Instant>,
    /// They are the backend's fault.
    pub(super) excused: bool,
    /// It waits for its user.
    pub(super) parked: bool,
    /// The store knows of them.
    pub(super) noted: bool,
}

impl CredentialHistory {
    /// How many logins the supervisor has told of, here and at other nodes.
    pub(super) fn logins(&self) -> (u64, u64) {
        (self.logins, self.logins_elsewhere)
    }

    /// Whether the next task of an account on demand has to know of it.
    pub(super) fn matters(&self) -> bool {
        self.noted || self.refusals > 0 || !self.refused.is_empty() || self.brought.is_some()
    }

    /// The same for another task, which the supervisor tells anew.
    pub(super) fn of_next_task(self) -> Self {
        Self { logins: 0, logins_elsewhere: 0, logins_missed: 0, ..self }
    }

    /// Whether tries were refused, and not as those of all accounts.
    pub(super) fn is_refused_alone(&self) -> bool {
        self.refusals > 0 && !self.excused
    }
}
