//! A backend that cannot be reached, as accounts on demand learn of it: the task of each ends, and they wait together
//! (see `asking`) until one of them has reached it. The supervisor has each asked for then.

use std::time::Duration;

use tokio::time::Instant;

use super::asking::KnownAway;
use super::status::WatcherState;
use super::watcher::{NextStep, SessionEnd, Watcher};
use crate::model::Timestamp;
use crate::net::backend::{ConnectError, LoggedIn, LoginError};
use crate::net::backoff::Backoff;

impl Watcher {
    /// Takes note of what a login showed: whatever a backend answers, it can be reached.
    pub(super) fn note_reach(&mut self, answer: &Result<LoggedIn, LoginError>) {
        if !matches!(answer, Err(LoginError::Connect(_))) {
            self.backend_answers();
        }
    }

    /// The backend can be reached.
    pub(super) fn backend_answers(&mut self) {
        if self.asking.as_mut().is_some_and(|asking| asking.reached()) {
            tracing::info!(
                target: "mailchime::watch::backend_reached_again",
                backend = self.considered.as_ref().map(|backend| backend.name()),
                "the backend can be reached again; mailchime asks for the accounts without a connection that \
                 waited for it"
            );
        }
    }

    /// The backend could not be reached.
    pub(super) fn backend_is_away(&mut self, why: &str, backoff: Backoff) -> NextStep {
        let Some((known, is_new)) = self.asking.as_mut().map(|it| it.failed(why, backoff)) else {
            return NextStep::Try(backoff.wait(1, rand::random()));
        };
        if is_new {
            tracing::warn!(
                target: "mailchime::watch::backend_away",
                backend = self.considered.as_ref().map(|backend| backend.name()), why,
                "the backend cannot be reached; its accounts without a connection wait, and mailchime asks for one \
                 of them at a time until that succeeds"
            );
        }
        self.waits_for_backend(known)
    }

    /// Another account of the backend is asked for first. This one needs no task meanwhile, unless that knows what
    /// the next one would not.
    pub(super) fn waits_for_backend(&mut self, KnownAway { why, next_try }: KnownAway) -> NextStep {
        self.status.set(WatcherState::BackingOff { next_try: Some(next_try), why });
        let known = &self.known;
        self.was_away = !(known.unsaved || known.noted || known.refusals > 0);
        if self.was_away {
            return NextStep::Rest;
        }
        let left = u64::try_from(next_try.0.saturating_sub(Timestamp::now().0)).unwrap_or_default();
        let wait = Duration::from_millis(left).max(self.context.config.retry_min);
        self.retry_at = Some(Instant::now() + wait);
        NextStep::Try(wait)
    }
}

impl From<LoginError> for SessionEnd {
    fn from(error: LoginError) -> Self {
        match &error {
            LoginError::Connect(ConnectError::TooMany { .. }) => Self::Failed(error.to_string()),
            LoginError::Connect(_) => Self::Unreachable(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}
