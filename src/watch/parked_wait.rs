//! What a parked account on demand waits for.

use tokio::time::Instant;

use super::WatchContext;
use crate::model::Account;
use crate::net::backend::Backend;

/// What an account on demand waits for without a task while it cannot be asked for.
#[derive(Clone, Debug)]
pub(super) enum ParkedWait {
    /// Its user, or a time.
    Login(ParkedLogin),
    /// Another configuration, or a registration.
    Change {
        /// It was found to be of another backend than it has by the configuration.
        elsewhere: bool,
        /// The backend that it has by the configuration, if that says which.
        at: Option<Backend>,
    },
}

/// The wait for a user's login.
#[derive(Clone, Debug)]
pub(super) struct ParkedLogin {
    /// It is tried again then all the same.
    pub(super) retry: Option<Instant>,
    /// Its devices are pushed then, so that they log in.
    pub(super) push: Option<Instant>,
    /// Tries were refused, the last one at this time, if this process made it.
    pub(super) refused: Option<Option<Instant>>,
    /// How often its backend was at fault when the wait began.
    pub(super) recoveries: Option<u64>,
}

impl ParkedWait {
    /// When something is to be done, if only time brings that.
    pub(super) fn next(&self) -> Option<Instant> {
        match self {
            Self::Login(ParkedLogin { retry, push, .. }) => {
                [*retry, *push].into_iter().flatten().min()
            }
            Self::Change { .. } => None,
        }
    }

    /// When the account is tried again.
    pub(super) fn retry(&self) -> Option<Instant> {
        match self {
            Self::Login(ParkedLogin { retry, .. }) => *retry,
            Self::Change { .. } => None,
        }
    }

    /// Whether the account is to be tried now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        matches!(self, Self::Login(ParkedLogin { retry: Some(retry), .. }) if *retry <= now)
    }

    /// Whether the account's devices are to be pushed now.
    pub(super) fn pushes(&self, now: Instant) -> bool {
        matches!(self, Self::Login(ParkedLogin { push: Some(push), .. }) if *push <= now)
    }

    /// Whether something has happened at the account's backend that ends the wait, or changes it.
    pub(super) fn is_over(&self, context: &WatchContext, account: &Account) -> bool {
        let now = context.backends.of(account).ok();
        match self {
            Self::Change { at, .. } => has_moved(at.as_ref(), now.as_ref()),
            Self::Login(ParkedLogin { refused: None, .. }) => false,
            Self::Login(ParkedLogin { push, refused: Some(at), recoveries, .. }) => {
                let Some(backend) = now else { return false };
                let state = context.backend_health.of(&backend).logins.state();
                let state = state.borrow();
                let explains = || at.is_some_and(|at| state.explains(at.elapsed()));
                recoveries.is_some_and(|known| state.recoveries() > known)
                    || push.is_some() && explains()
            }
        }
    }
}

/// Whether an account that had the first backend has another one now.
pub(super) fn has_moved(before: Option<&Backend>, now: Option<&Backend>) -> bool {
    match (before, now) {
        (Some(before), Some(now)) => !now.is(before),
        (before, now) => before.is_some() != now.is_some(),
    }
}
