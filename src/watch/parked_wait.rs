//! What a parked account on demand waits for.

use tokio::time::Instant;

use super::{WatchContext, refusal};
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
    /// Tries were refused.
    pub(super) refused: Option<RefusedTries>,
    /// When the wait began.
    pub(super) recoveries: Option<Box<KnownRecoveries>>,
}

/// How often a backend was found to have been at fault.
#[derive(Clone, Debug)]
pub(super) struct KnownRecoveries {
    pub(super) at: Backend,
    pub(super) count: u64,
}

/// Tries in a row that were refused.
#[derive(Clone, Copy, Debug)]
pub(super) struct RefusedTries {
    pub(super) tries: u32,
    /// When the last one was, if this process made it.
    pub(super) at: Option<Instant>,
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
            Self::Login(ParkedLogin { push, refused: Some(refused), recoveries, .. }) => {
                let Some(backend) = now else { return false };
                // What was refused at another one says nothing of this one.
                let known = recoveries.as_deref().filter(|known| known.is_of(&backend));
                let Some(KnownRecoveries { count, .. }) = known else { return false };
                let state = context.backend_health.of(&backend).logins.state();
                let state = state.borrow();
                let explains = || refused.at.is_some_and(|at| state.explains(at.elapsed()));
                // After too many tries it stays parked, also where the backend is at fault.
                let is_excused = || refusal::is_excused(refused.tries) && explains();
                state.recoveries() > *count || push.is_some() && is_excused()
            }
        }
    }
}

impl KnownRecoveries {
    /// Whether they are this backend's, perhaps under another configuration: what is known of its health stays then.
    pub(super) fn is_of(&self, backend: &Backend) -> bool {
        self.at.name() == backend.name()
    }
}

impl ParkedLogin {
    /// Its account has another backend since the wait began, if this is another one: what happens there from now on counts.
    /// Whether it is.
    pub(super) fn moves(&mut self, now: Option<KnownRecoveries>) -> bool {
        let moved = match (&self.recoveries, &now) {
            (Some(before), Some(now)) => !before.is_of(&now.at),
            (before, now) => before.is_some() != now.is_some(),
        };
        if moved {
            self.recoveries = now.map(Box::new);
            if let Some(refused) = &mut self.refused {
                refused.at = None;
            }
        }
        moved
    }
}

/// Whether an account that had the first backend has another one now.
pub(super) fn has_moved(before: Option<&Backend>, now: Option<&Backend>) -> bool {
    match (before, now) {
        (Some(before), Some(now)) => !now.is(before),
        (before, now) => before.is_some() != now.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::watch::test_context::{context, one_backend};

    #[tokio::test]
    async fn a_backend_at_fault_changes_the_wait_only_where_the_account_is_excused() {
        let (_folder, context) = context(&one_backend("localhost")).await;
        let alice = Account::from_login("alice");
        let backend = context.backends.of(&alice).unwrap();
        let health = context.backend_health.of(&backend);
        let now = Instant::now();
        let is_over = |tries| {
            let refused = Some(RefusedTries { tries, at: Some(now) });
            let push = Some(now + Duration::from_hours(24));
            let recoveries = Some(KnownRecoveries { at: backend.clone(), count: 0 }.into());
            let wait = ParkedLogin { retry: None, push, refused, recoveries };
            ParkedWait::Login(wait).is_over(&context, &alice)
        };
        assert!(!is_over(3));
        for user in ["bob", "carol", "dave"] {
            health.logins.refused(&Account::from_login(user));
        }
        assert!(is_over(3));
        // It stays parked, so there is nothing to do.
        assert!(!is_over(4));
        // But when it is well again there is.
        assert!(health.logins.accepted(&Account::from_login("bob"), true));
        assert!(is_over(4));
    }
}
