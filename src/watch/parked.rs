//! What a watcher does while the backend refuses its credentials, or there are none: it waits for its user,
//! has the user's devices pushed, and tries again now and then.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::refusal::{self, AfterRefusal};
use super::source::imap::login_breaker::{BreakerState, WITHIN};
use super::status::WatcherState;
use super::watcher::{LoginWait, NextStep, Watcher, WatcherStart};
use crate::imap::refusal::Refusal;
use crate::imap::responses::printable;
use crate::metrics::Parked;
use crate::model::{Timestamp, WatchEvent, seconds};
use crate::net::backoff::Backoff;

/// Between attempts to store what was refused.
const NOTE: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));

/// Between two pushes that ask an account's user to log in.
const PUSHES: Duration = Duration::from_hours(24);

/// As long as a wait for nothing in particular.
const FOREVER: Duration = Duration::from_hours(24 * 365);

impl Watcher {
    /// What comes first, for one whose credentials were last found to be refused.
    pub(super) fn begins_refused(&mut self, begin: &WatcherStart) -> NextStep {
        let WatcherStart::Refused { tries, at, parked } = begin else {
            return NextStep::Try(Duration::ZERO);
        };
        (self.known.refusals, self.known.noted) = (*tries, true);
        self.known.parked = parked.is_some();
        let wait = match parked {
            Some(_) => refusal::retry((*tries).max(1), rand::random()),
            None => Some(refusal::again(rand::random())),
        };
        let at = at.unwrap_or_else(Timestamp::now);
        let since = Timestamp::now().0.saturating_sub(at.0);
        let since = Duration::from_millis(u64::try_from(since).unwrap_or_default());
        let retry = wait.map(|wait| wait.saturating_sub(since));
        let push = parked.as_ref().map(|_| WITHIN);
        if parked.is_none() {
            self.rest(retry, "the backend has refused the stored password");
        }
        NextStep::Login(LoginWait { retry, push })
    }

    /// All that was tried is refused; `tries` of them.
    pub(super) async fn refused(
        &mut self,
        answer: &[u8],
        refusal: Refusal,
        tries: u32,
    ) -> NextStep {
        let wrong = matches!(refusal, Refusal::Wrong | Refusal::Barred);
        // The process before may have tried it, and had no time to note that.
        let before = u32::from(std::mem::take(&mut self.inherited) && wrong);
        let tries = self.known.refusals.saturating_add(tries).saturating_add(before);
        (self.known.refusals, self.known.refused_at) = (tries, Some(Instant::now()));
        self.known.used = None;
        let (config, account) = (&self.context.config, self.account.clone());
        let backoff = Backoff::new(config.retry_min, config.retry_max);
        let health = self.context.backend_health.of(&self.backend);
        let at_fault = health.logins.state().borrow().explains(Duration::ZERO);
        let reason = printable(answer);
        if at_fault && let Some(retry) = self.excuse(&reason).await {
            return NextStep::Login(LoginWait { retry: Some(retry), push: None });
        }
        match refusal::then(refusal, tries, backoff, rand::random()) {
            AfterRefusal::Again(wait) => {
                tracing::warn!(
                    target: "mailchime::watch::password_refused",
                    %account, reason, wait_seconds = seconds(wait),
                    "the backend refuses the stored password; mailchime tries again"
                );
                self.rest(Some(wait), &reason);
                // Before the last try: who is killed after it must not count anew.
                self.note(tries, wrong.then_some(&reason)).await;
                NextStep::Login(LoginWait { retry: Some(wait), push: None })
            }
            AfterRefusal::Park(retry) => {
                tracing::warn!(
                    target: "mailchime::watch::parked_password_refused",
                    %account, reason, tries, again_in_seconds = retry.map(seconds),
                    "not watched until its user logs in again: the backend refuses the stored \
                     password; mailchime pushes the devices so that they log in"
                );
                self.known.parked = true;
                self.context.metrics.parked.of(Parked::Refused).inc();
                self.rest(None, &reason);
                self.note(tries, Some(&reason)).await;
                self.status.set(WatcherState::Parked { why: reason });
                NextStep::Login(LoginWait { retry, push: Some(WITHIN) })
            }
        }
    }

    /// It is the backend's fault that its tries were refused: it is not parked, unless they were too many.
    /// Returns when it tries again.
    pub(super) async fn excuse(&mut self, reason: &str) -> Option<Duration> {
        let tries = self.known.refusals;
        let wait = refusal::wait_for_backend(tries, rand::random())?;
        let account = &self.account;
        tracing::info!(
            target: "mailchime::watch::refusal_excused",
            %account, reason, wait_seconds = seconds(wait),
            "the backend refuses many accounts; mailchime does not park this one and tries again"
        );
        (self.known.excused, self.known.parked) = (true, false);
        self.note(tries, None).await;
        self.rest(Some(wait), &format!("the backend refuses many accounts: {reason}"));
        Some(wait)
    }

    /// There is nothing to log in with.
    pub(super) fn has_no_password(&mut self, why: &str, login_helps: bool) -> NextStep {
        self.context.metrics.parked.of(Parked::NoPassword).inc();
        self.status.set(WatcherState::Parked { why: why.to_owned() });
        (self.known.used, self.known.parked) = (None, true);
        NextStep::Login(LoginWait { retry: None, push: login_helps.then_some(Duration::ZERO) })
    }

    /// Notes how many tries were refused, for the next start of the program too; with a reason the account
    /// is parked then. While the store does not take it, nothing else is done, until the supervisor has
    /// something to tell.
    pub(super) async fn note(&mut self, tries: u32, parked: Option<&str>) {
        let id = self.backend.id().clone();
        let (store, account) = (self.context.store.clone(), self.account.clone());
        let mut failures = 0;
        while let Err(error) = store.refused(&account, &id, tries, parked, Timestamp::now()).await {
            tracing::warn!(
                target: "mailchime::watch::refusal_not_stored",
                %account, %error, "could not record the rejected password; mailchime tries again"
            );
            failures += 1;
            let pause = NOTE.wait(failures, rand::random());
            // Left for `run` to see.
            let mut directive = self.directive.clone();
            tokio::select! {
                _ = directive.changed() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.known.noted = true;
    }

    /// Waits until the account's user has logged in, or another try is due; `None` on stop. Returns whether
    /// its user has logged in: even the same password counts, for the backend has just accepted it.
    pub(super) async fn wait_for_login(&mut self, waiting: LoginWait) -> Option<bool> {
        let LoginWait { retry, mut push } = waiting;
        let began = Instant::now();
        let mut retry = retry.map(|retry| began + retry);
        let mut push_at = push.map(|push| began + push);
        let accepted = self.known.accepted;
        let health = self.context.backends.of(&self.account).ok();
        let health = health.map(|backend| self.context.backend_health.of(&backend));
        let mut state = health.as_ref().map(|health| health.logins.state());
        let recoveries = state.as_ref().map(|state| state.borrow().recoveries());
        // It may be known already that the backend is at fault.
        state.iter_mut().for_each(watch::Receiver::mark_changed);
        loop {
            let (at, push_due) = (retry.unwrap_or(began + FOREVER), push_at);
            tokio::select! {
                biased;
                changed = self.directive.changed() => {
                    changed.ok()?;
                    if self.directive.borrow().stop {
                        return None;
                    }
                    self.take_directive().await;
                    if self.known.accepted != accepted {
                        break;
                    }
                }
                () = tokio::time::sleep_until(at), if retry.is_some() => return Some(false),
                () = changes(&mut state), if self.known.refusals > 0 => {
                    let Some(state) = &mut state else { continue };
                    let (now, explains) = {
                        let state = state.borrow_and_update();
                        let ago = self.known.refused_at.map(|at| at.elapsed());
                        (Some(state.recoveries()), ago.is_some_and(|ago| state.explains(ago)))
                    };
                    if now != recoveries {
                        // It was not the password.
                        self.known.refusals = 0;
                        return Some(false);
                    }
                    if explains
                        && push.is_some()
                        && let Some(wait) = self.excuse("the password was refused").await
                    {
                        (push, push_at, retry) = (None, None, Some(Instant::now() + wait));
                    }
                }
                () = tokio::time::sleep_until(push_due.unwrap_or(began)), if push_due.is_some() => {
                    // Its user may log in, and the supervisor may say stop, before it is this one's turn.
                    let mut directive = self.directive.clone();
                    let pause = tokio::select! {
                        biased;
                        _ = directive.changed() => continue,
                        pause = self.want_login() => pause,
                    };
                    push_at = pause.map(|pause| Instant::now() + pause);
                }
            }
        }
        if self.known.taken.is_none() {
            self.known.refusals = 0;
            // The other node has done so, but this one may have parked the account since.
            let id = self.backend.id();
            if let Err(error) = self.context.store.unpark(&self.account, id).await {
                tracing::warn!(
                    target: "mailchime::watch::unparking_not_stored",
                    account = %self.account, %error,
                    "could not record that the account is no longer parked"
                );
            }
        }
        tracing::info!(
            target: "mailchime::watch::unparked",
            account = %self.account, "the user logged in; mailchime watches the account again"
        );
        Some(true)
    }

    /// Has the account's devices pushed, so that they look, and their user logs in. Returns after how long
    /// that is to be tried again, if it was not done now.
    async fn want_login(&mut self) -> Option<Duration> {
        let backend = self.context.backends.of(&self.account).ok()?;
        // A phone that is pushed logs in, too.
        let health = self.context.backend_health.of(&backend);
        let turn = health.push_turn().await;
        let (account, id, now) = (&self.account, backend.id(), Timestamp::now());
        match self.context.store.want_login(account, id, PUSHES, now).await {
            Ok(Ok(())) => {
                drop(turn);
                tracing::info!(
                    target: "mailchime::watch::login_requested",
                    %account, "the devices of a parked account get a push, so that they log in"
                );
                self.context.metrics.login_pushes.inc();
                let (account, backend) = (account.clone(), id.clone());
                // The push side that is gone finds the marks when it begins anew.
                let wanted = WatchEvent::LoginWanted { account, backend };
                let _ = self.context.events.send(wanted).await;
                None
            }
            Ok(Err(Timestamp(i64::MAX))) => None,
            Ok(Err(next)) => {
                let wait = u64::try_from(next.0.saturating_sub(now.0)).unwrap_or_default();
                Some(Duration::from_millis(wait))
            }
            Err(error) => {
                tracing::warn!(
                    target: "mailchime::watch::login_request_failed",
                    %account, %error,
                    "could not have the devices of a parked account pushed; mailchime tries again"
                );
                Some(NOTE.wait(u32::MAX, rand::random()))
            }
        }
    }
}

/// Waits until something is known of the backend's logins that was not.
async fn changes(state: &mut Option<watch::Receiver<BreakerState>>) {
    let known = match state {
        Some(state) => state.changed().await.is_ok(),
        None => false,
    };
    if !known {
        std::future::pending().await
    }
}
