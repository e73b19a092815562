//! What a watcher does while the backend refuses its credentials, or there are none: it waits for its user,
//! has the user's devices pushed, and tries again now and then. An account on demand waits for that without a task:
//! the supervisor begins one when there is something to do (see `on_demand`). Tasks tell `push` meanwhile what events say in full.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::WatchContext;
use super::credential_history::CredentialHistory;
use super::parked_wait::{KnownRecoveries, ParkedLogin, ParkedWait, RefusedTries};
use super::refusal::{self, AfterRefusal};
use super::source::imap::login_breaker::{BreakerState, WITHIN};
use super::status::WatcherState;
use super::watcher::{LoginWait, NextStep, SessionEnd, Unasked, Watcher, WatcherStart};
use crate::imap::refusal::Refusal;
use crate::imap::responses::printable;
use crate::metrics::Parked;
use crate::model::{Account, BackendId, Timestamp, WatchEvent, seconds};
use crate::net::backoff::Backoff;

/// Between attempts to store what was refused.
const NOTE: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));

/// Between two pushes that ask an account's user to log in.
const PUSHES: Duration = Duration::from_hours(24);

/// As long as a wait for nothing in particular.
const FOREVER: Duration = Duration::from_hours(24 * 365);

/// What is known of an account whose credentials were refused before the program started.
#[derive(Debug)]
pub(super) struct RefusedBefore {
    pub(super) known: CredentialHistory,
    pub(super) waits: LoginWait,
    pub(super) shown: WatcherState,
}

impl ParkedWait {
    /// How the next task goes on.
    pub(super) fn goes_on(self) -> NextStep {
        let now = Instant::now();
        match self {
            Self::Login(ParkedLogin { retry, push, recoveries, .. }) => {
                let left = |at: Instant| at.saturating_duration_since(now);
                let (retry, push) = (retry.map(left), push.map(left));
                NextStep::Login(LoginWait { retry, push, recoveries })
            }
            // The database says at once whether it still waits.
            Self::Change { .. } => NextStep::Try(Duration::ZERO),
        }
    }
}

impl LoginWait {
    /// Until there is another try, after this time.
    pub(super) fn until_retry(retry: Duration) -> Self {
        Self { retry: Some(retry), ..Self::default() }
    }

    /// The same of an account that needs no task meanwhile.
    pub(super) fn without_task(self, refusals: u32) -> ParkedWait {
        let now = Instant::now();
        let at = |after: Duration| now + after.min(FOREVER);
        let (retry, push) = (self.retry.map(at), self.push.map(at));
        let refused = (refusals > 0).then_some(RefusedTries { tries: refusals, at: None });
        ParkedWait::Login(ParkedLogin { retry, push, refused, recoveries: self.recoveries })
    }
}

impl WatcherStart {
    /// What follows where credentials were refused before.
    pub(super) fn refused_before(&self) -> Option<RefusedBefore> {
        let Self::Refused { tries, at, parked } = self else { return None };
        let wait = match parked {
            Some(_) => refusal::retry((*tries).max(1), rand::random()),
            None => Some(refusal::again(rand::random())),
        };
        let at = at.unwrap_or_else(Timestamp::now);
        let since = Timestamp::now().0.saturating_sub(at.0);
        let since = Duration::from_millis(u64::try_from(since).unwrap_or_default());
        let retry = wait.map(|wait| wait.saturating_sub(since));
        let push = parked.as_ref().map(|_| WITHIN);
        let shown = match parked {
            Some(why) => WatcherState::Parked { why: why.clone() },
            None => WatcherState::BackingOff {
                next_try: retry.map(|retry| Timestamp::now().plus(retry)),
                why: "the backend has refused the stored password".to_owned(),
            },
        };
        let (refusals, parked) = (*tries, parked.is_some());
        let known = CredentialHistory { refusals, parked, noted: true, ..Default::default() };
        let waits = LoginWait { retry, push, recoveries: None };
        Some(RefusedBefore { known, waits, shown })
    }
}

impl WatchContext {
    /// What an account shows that is another backend's, which `recorded` names; says so in the log if that `is_new`.
    pub(super) fn parked_elsewhere(
        &self,
        account: &Account,
        recorded: &str,
        is_new: bool,
    ) -> WatcherState {
        let now = self.backends.id_of(account);
        let now = now.as_ref().map_or("unknown", BackendId::as_str);
        if is_new {
            tracing::warn!(
                target: "mailchime::watch::parked_other_backend",
                %account, recorded, now,
                "parked: the account registered at another backend than the configuration \
                 names; mailchime watches it again when its phone registers there, or when \
                 the configuration names the former one"
            );
        }
        let why = format!("it registered at {recorded}, and its backend is {now} now");
        WatcherState::Parked { why }
    }

    /// How often the account's backend was found to have been at fault.
    pub(super) fn recoveries(&self, account: &Account) -> Option<KnownRecoveries> {
        let at = self.backends.of(account).ok()?;
        let count = self.backend_health.of(&at).logins.state().borrow().recoveries();
        Some(KnownRecoveries { at, count })
    }
}

impl Watcher {
    /// What comes first, for one whose credentials were last found to be refused.
    pub(super) fn begins_refused(&mut self, begin: &WatcherStart) -> NextStep {
        let Some(RefusedBefore { known, waits, shown }) = begin.refused_before() else {
            return NextStep::Try(Duration::ZERO);
        };
        self.known = known;
        self.status.set(shown);
        NextStep::Login(waits)
    }

    /// Nothing but another configuration helps, or a registration.
    pub(super) fn waits_for_change(&mut self) -> NextStep {
        let (elsewhere, at) = (self.elsewhere, self.considered.clone());
        // Nothing more is to be read.
        self.found = self.told;
        match self.ends_unasked(Unasked::Parked(ParkedWait::Change { elsewhere, at })) {
            true => {
                // They cannot be told now, and another task could not either. The one that helps looks at everything.
                self.hints.take();
                NextStep::Rest
            }
            false => NextStep::Try(Duration::MAX),
        }
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
            return NextStep::Login(LoginWait::until_retry(retry));
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
                NextStep::Login(LoginWait::until_retry(wait))
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
                NextStep::Login(LoginWait { retry, push: Some(WITHIN), recoveries: None })
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
        let push = login_helps.then_some(Duration::ZERO);
        NextStep::Login(LoginWait { retry: None, push, recoveries: None })
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
                () = directive.changed() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.known.noted = true;
    }

    /// Waits until the account's user has logged in, or another try is due; `None` on stop, and where an account on demand
    /// needs no task for that. Returns whether its user has logged in: even the same password counts, for the backend has
    /// just accepted it.
    pub(super) async fn wait_for_login(&mut self, waiting: LoginWait) -> Option<bool> {
        let LoginWait { retry, mut push, recoveries } = waiting;
        let began = Instant::now();
        let after = |time: Duration| began + time.min(FOREVER);
        let (mut retry, mut push_at) = (retry.map(after), push.map(after));
        let accepted = self.known.accepted;
        let now = self.context.recoveries(&self.account);
        let health = now.as_ref().map(|now| self.context.backend_health.of(&now.at));
        let mut state = health.as_ref().map(|health| health.logins.state());
        let recoveries = match recoveries {
            Some(known) if now.as_ref().is_some_and(|now| known.is_of(&now.at)) => Some(known),
            known => {
                if known.is_some() {
                    // It was refused at another backend.
                    self.known.refused_at = None;
                }
                now.map(Box::new)
            }
        };
        // It may be known already that the backend is at fault.
        state.iter_mut().for_each(watch::Receiver::mark_changed);
        loop {
            let (tries, at) = (self.known.refusals, self.known.refused_at);
            let refused = (tries > 0).then_some(RefusedTries { tries, at });
            let known = recoveries.clone();
            let wait = ParkedLogin { retry, push: push_at, refused, recoveries: known };
            let failed = match self.needs_no_task(ParkedWait::Login(wait), accepted).await {
                Ok(true) => return None,
                Ok(false) => None,
                Err(again) => Some(again),
            };
            if self.known.accepted != accepted {
                break;
            }
            let (at, push_due) = (retry.unwrap_or(began + FOREVER), push_at);
            tokio::select! {
                biased;
                () = self.directive.changed() => {
                    if self.directive.is_stopped() {
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
                        (state.recoveries(), ago.is_some_and(|ago| state.explains(ago)))
                    };
                    if recoveries.as_ref().is_none_or(|known| now > known.count) {
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
                    let pause = self.want_login().await;
                    push_at = pause.map(|pause| Instant::now() + pause);
                }
                () = tokio::time::sleep_until(failed.unwrap_or(began)), if failed.is_some() => {}
            }
        }
        self.user_has_logged_in().await;
        Some(true)
    }

    /// Of an account on demand: takes over what the supervisor told, and tells `push` what events say in full. Whether
    /// it needs no task any more for this wait, which began when so many logins were `accepted`; an error with when to
    /// try again where the database does not say what is watched.
    async fn needs_no_task(&mut self, wait: ParkedWait, accepted: u64) -> Result<bool, Instant> {
        if self.asking.is_none() {
            return Ok(false);
        }
        self.take_directive().await;
        if self.directive.is_stopped() || self.known.accepted != accepted {
            return Ok(false);
        }
        self.tell_while_parked().await?;
        let now = Instant::now();
        let acts = wait.is_due(now)
            || self.may_push && wait.pushes(now)
            || wait.is_over(&self.context, &self.account);
        Ok(!acts && self.ends_unasked(Unasked::Parked(wait)))
    }

    /// The task tells numbers of events, and new mail, without a login.
    async fn tell_while_parked(&mut self) -> Result<(), Instant> {
        if self.hints.is_empty() && self.told == self.found {
            return Ok(());
        }
        let found = match self.context.backends.of(&self.account) {
            Ok(backend) => self.find_due(&backend).await,
            // Whose mailboxes they are of is not known.
            Err(error) => Err(SessionEnd::Failed(error.to_string())),
        };
        match found {
            Err(SessionEnd::Database(error)) => {
                tracing::debug!(
                    target: "mailchime::watch::events_not_told",
                    account = %self.account, error,
                    "the database does not say what is watched; mailchime tries again to tell of events"
                );
                Err(Instant::now() + NOTE.wait(u32::MAX, rand::random()))
            }
            Err(_) => {
                self.hints.take();
                self.found = self.told;
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    /// The account is not parked any more.
    async fn user_has_logged_in(&mut self) {
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
    }

    /// Has the account's devices pushed, so that they look, and their user logs in. Returns after how long
    /// that is to be tried again, if it was not done now. What comes before its turn comes first; from then on nobody may
    /// leave it, or the database would say that they are being pushed, and nobody would do it.
    async fn want_login(&mut self) -> Option<Duration> {
        let backend = self.context.backends.of(&self.account).ok()?;
        // A phone that is pushed logs in, too.
        let health = self.context.backend_health.of(&backend);
        let mut directive = self.directive.clone();
        let events = self.context.events.clone();
        let place_and_turn = async { (events.reserve().await.ok(), health.push_turn().await) };
        // Its user may log in, and the supervisor may say stop.
        let (place, turn) = tokio::select! {
            biased;
            () = directive.changed() => return Some(Duration::ZERO),
            both = place_and_turn => both,
        };
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
                if let Some(place) = place {
                    place.send(WatchEvent::LoginWanted { account, backend });
                }
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
