//! What accounts on demand wait for without a task. Where their backend cannot be reached, or the database, they wait together
//! (see `asking`) until one of them has reached it. Where it is known of one account alone that it cannot be asked for, the
//! account waits by itself, for a time that grows. The supervisor has each asked for then.

use std::time::Duration;

use tokio::time::Instant;

use super::asking::KnownAway;
use super::status::WatcherState;
use super::watcher::{FailedVisit, NextStep, SessionEnd, Unasked, Watcher};
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
        self.waits_with_others(known)
    }

    /// The database could not be used.
    pub(super) fn database_is_away(&mut self, why: &str, backoff: Backoff) -> NextStep {
        let Some((known, is_told)) =
            self.asking.as_mut().map(|it| it.database_failed(why, backoff))
        else {
            return NextStep::Try(backoff.wait(1, rand::random()));
        };
        if is_told {
            let account = &self.account;
            tracing::info!(
                target: "mailchime::watch::waiting_for_database",
                %account, why, "watching waits for the database; mailchime tries again"
            );
        }
        match self.waits_with_others(known) {
            // It may be another task that tries. This one tries as well, to store what it alone has, and ever more rarely.
            NextStep::Try(wait) => {
                NextStep::Try(wait.max(backoff.wait(self.unread, rand::random())))
            }
            next => {
                // They cannot be told now. All is looked at by the next task.
                self.hints.take();
                next
            }
        }
    }

    /// Another account is asked for first.
    pub(super) fn waits_with_others(&mut self, KnownAway { why, next_try }: KnownAway) -> NextStep {
        self.status.set(WatcherState::BackingOff { next_try: Some(next_try), why });
        let failed = self.failed_visit(self.retry_at.unwrap_or_else(Instant::now));
        if self.ends_unasked(Unasked::Away(failed)) {
            return NextStep::Rest;
        }
        let left = u64::try_from(next_try.0.saturating_sub(Timestamp::now().0)).unwrap_or_default();
        let wait = Duration::from_millis(left).max(self.context.config.retry_min);
        self.retry_at = Some(Instant::now() + wait);
        NextStep::Try(wait)
    }

    /// The supervisor asks for an account on demand no earlier than then. It tells `push` all the same what events say in full.
    pub(super) fn waits_alone(&mut self, retry_at: Instant) -> NextStep {
        self.retry_at = Some(retry_at);
        match self.ends_unasked(Unasked::Failed(self.failed_visit(retry_at))) {
            true => NextStep::Rest,
            false => NextStep::Try(retry_at.saturating_duration_since(Instant::now())),
        }
    }

    /// What the next task has to know of what failed so far.
    fn failed_visit(&self, retry_at: Instant) -> FailedVisit {
        let refusals = if self.acts_as_master() { self.known.refusals } else { 0 };
        let (failures, at) = (self.failures, self.considered.clone());
        FailedVisit { retry_at, failures, refusals, at }
    }

    /// Whether the account needs no task while it waits for this. It does where the task alone has a password that is still
    /// to be stored, and where it has a connection. What a parked account has to do before is for
    /// [`Self::wait_for_login`].
    pub(super) fn ends_unasked(&mut self, unasked: Unasked) -> bool {
        if self.asking.is_none() || self.known.unsaved {
            return false;
        }
        // All of it is looked at by the next task.
        self.looks = self.directive.read(|told| told.looks);
        self.unasked = Some(Box::new(unasked));
        true
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
