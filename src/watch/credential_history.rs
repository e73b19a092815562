//! What a watcher knows of its credentials: which worked, which were refused, what its user brought.

use std::time::Duration;

use tokio::time::Instant;

use crate::model::{BackendId, Credentials, Timestamp};

/// How long after a refusal the next try of an account that is not parked may come.
const TRIED_AGAIN: Duration = Duration::from_mins(15);

/// What a watcher knows of its credentials. What few have is boxed: there may be one for each account.
#[derive(Debug, Default)]
pub(super) struct CredentialHistory {
    /// Of which the supervisor has told, as [`super::directive::Directive::logins`] counts them.
    pub(super) logins: u64,
    /// The same at other nodes.
    pub(super) logins_elsewhere: u64,
    /// Times after which such may have been missed.
    pub(super) logins_missed: u64,
    /// Those of them that count, as they were at the account's backend.
    pub(super) accepted: u64,
    /// The last of them.
    pub(super) taken: Option<Box<(BackendId, Credentials, Timestamp)>>,
    /// It is not in the store, as far as is known.
    pub(super) unsaved: bool,
    /// What its user has logged in with since the backend refused the watcher.
    pub(super) brought: Option<Box<(BackendId, Credentials)>>,
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

    /// The same where the task has ended in order. What its user brought is stored then.
    pub(super) fn at_rest(self) -> Self {
        Self { brought: None, ..self.of_next_task() }
    }

    /// Whether another try follows the last refusal anyway.
    pub(super) fn is_tried_again(&self) -> bool {
        let was_lately = self.refused_at.is_some_and(|at| at.elapsed() < TRIED_AGAIN);
        !self.parked && (self.excused || was_lately)
    }

    /// Its user has logged in at another node. What was refused before says nothing any more, unless the account is parked or
    /// another try follows.
    pub(super) fn forget_earlier(&mut self) {
        if self.refusals == 0 {
            self.refused.clear();
        } else if !self.parked && !self.is_tried_again() {
            self.refusals = 0;
        }
    }

    /// Whether tries were refused, and not as those of all accounts.
    pub(super) fn is_refused_alone(&self) -> bool {
        self.refusals > 0 && !self.excused
    }
}
