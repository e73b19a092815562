//! With what a watcher logs in, and what it does while the backend refuses that: it waits for its user,
//! has the user's devices pushed, and tries again now and then.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::refusal::{self, AfterRefusal};
use super::source::imap::login_breaker::{BreakerState, WITHIN};
use super::status::WatcherState;
use super::watcher::{Directive, LoginTarget, NextStep, SessionEnd, Watcher, WatcherStart};
use crate::imap::refusal::Refusal;
use crate::imap::responses::printable;
use crate::metrics::Parked;
use crate::model::{BackendId, Credentials, Timestamp, WatchEvent};
use crate::net::backend::{Backend, LoggedIn, LoginError};
use crate::net::backoff::Backoff;
use crate::store::{CredentialsError, Kept};

/// Between attempts to store what was refused.
const NOTE: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));

/// Between two pushes that ask an account's user to log in.
const PUSHES: Duration = Duration::from_hours(24);

/// Credentials that are tried in a row.
const MOST_AT_ONCE: usize = 3;

/// Credentials that were refused and are remembered for as long as none is accepted.
const MOST_REFUSED: usize = 6;

/// How long the same login counts as known, in milliseconds.
const ASKED_AGAIN: i64 = 3_600_000;

/// As long as a wait for nothing in particular.
const FOREVER: Duration = Duration::from_hours(24 * 365);

/// How a watcher waits while its credentials are refused, or there are none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LoginWait {
    /// There is another try after this time.
    pub(super) retry: Option<Duration>,
    /// It is parked, and its devices are pushed after this time.
    pub(super) push: Option<Duration>,
}

/// What a watcher knows of its credentials.
#[derive(Debug, Default)]
pub(super) struct CredentialHistory {
    /// Of which the supervisor has told, as [`Directive::logins`] counts them.
    logins: u64,
    /// Those of them that count, as they were at the account's backend.
    accepted: u64,
    /// The last of them.
    taken: Option<(BackendId, Credentials, Timestamp)>,
    /// It is not in the store, as far as is known.
    unsaved: bool,
    /// What its user has logged in with since the backend refused the watcher.
    brought: Option<(BackendId, Credentials)>,
    /// With what it last logged in.
    used: Option<Credentials>,
    /// What was refused since then.
    refused: Vec<Credentials>,
    /// Tries that were refused in a row.
    pub(super) refusals: u32,
    /// When the last of them was.
    refused_at: Option<Instant>,
    /// They are the backend's fault.
    excused: bool,
    /// It waits for its user.
    parked: bool,
    /// The store knows of them.
    noted: bool,
}

impl CredentialHistory {
    /// How many logins the supervisor has told of.
    pub(super) fn logins(&self) -> u64 {
        self.logins
    }

    /// Whether tries were refused, and not as those of all accounts.
    pub(super) fn is_refused_alone(&self) -> bool {
        self.refusals > 0 && !self.excused
    }
}

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

    /// Takes over what the supervisor told; keeps what the user has logged in with.
    pub(super) async fn take_directive(&mut self) {
        let Directive { login, logins, registrations, .. } =
            self.directive.borrow_and_update().clone();
        self.told = registrations;
        let new = logins != self.known.logins;
        if !new && !self.known.unsaved {
            return;
        }
        self.known.logins = logins;
        let Some(login) = login else {
            // Another node has stored it.
            (self.known.taken, self.known.brought) = (None, None);
            self.known.accepted += 1;
            return;
        };
        let Some(fresh) = &login.credentials else { return };
        // A session may be older than the configuration.
        let id = self.context.backends.id_of(&self.account);
        if !id.is_some_and(|id| id.is(login.backend.as_str())) {
            return;
        }
        let again = self.known.taken.as_ref().is_some_and(|(backend, taken, at)| {
            // How long it has proved good is noted now and then.
            let lately = login.at.0.saturating_sub(at.0) < ASKED_AGAIN;
            backend.is(login.backend.as_str()) && taken.same_as(fresh) && lately
        });
        let known = &self.known;
        if !again || known.unsaved || known.noted || known.used.is_none() {
            match self.context.credentials.save(&self.account, &login, Timestamp::now()).await {
                Ok(true) => (self.known.unsaved, self.known.noted) = (false, false),
                // Another backend has the account, or it has another password since.
                Ok(false) => return,
                Err(error) => {
                    let account = &self.account;
                    tracing::warn!(
                        target: "mailchime::watch::password_not_stored",
                        %account, %error,
                        "could not store a new password; mailchime tries again before it next logs \
                         in"
                    );
                    // It is tried again before the watcher's next login, or with its user's.
                    self.known.unsaved = true;
                }
            }
        }
        if !new {
            return;
        }
        let known = &mut self.known;
        let backend = login.backend.clone();
        if known.refusals > 0 || known.unsaved {
            known.brought = Some((backend.clone(), fresh.clone()));
        }
        if !again {
            known.taken = Some((backend, fresh.clone(), login.at));
        }
        known.accepted += 1;
        // Of one that is tried anyway, what was refused does not count anew for being tried sooner.
        let counts_on = !known.parked && known.refused.iter().any(|it| it.same_as(fresh));
        if !counts_on {
            known.refusals = 0;
        }
        (known.parked, self.inherited, self.failures) = (false, false, 0);
    }

    /// What to try at this backend, in this order. Not empty.
    async fn to_try(&self, backend: &Backend) -> Result<Vec<Kept>, SessionEnd> {
        let (account, id) = (&self.account, backend.id());
        let of = |known: &Option<(BackendId, Credentials)>| {
            let known = known.as_ref().filter(|(by, _)| id.is(by.as_str()));
            known.map(|(_, credentials)| credentials.clone())
        };
        let brought = of(&self.known.brought);
        let mut kept = match self.context.credentials.kept(account, id, Timestamp::now()).await {
            Ok(kept) => kept,
            // It stays as it is: with the right key file the next start can read it.
            Err(CredentialsError::Vault(error)) if brought.is_none() => {
                tracing::error!(
                    target: "mailchime::watch::stored_password_unreadable",
                    %account, %error,
                    "not watched until its user logs in: the stored password cannot be opened"
                );
                return Err(SessionEnd::no_password("the stored password cannot be read"));
            }
            Err(CredentialsError::Vault(_)) => Vec::new(),
            Err(CredentialsError::Store(error)) => return Err(error.into()),
        };
        if let Some(used) = &self.known.used {
            put_first(&mut kept, used, false);
        }
        // Behind the others, of which the backend has not said anything yet.
        let refused = &self.known.refused;
        kept.sort_by_key(|kept| refused.iter().any(|it| it.same_as(&kept.credentials)));
        if let Some(brought) = &brought {
            put_first(&mut kept, brought, true);
        }
        if kept.is_empty() {
            tracing::warn!(
                target: "mailchime::watch::no_password",
                %account, "not watched until its user logs in: no password is stored"
            );
            return Err(SessionEnd::no_password("no password is kept"));
        }
        // What was stored under another configuration, or by an earlier version, may be a claim.
        kept.retain(|kept| kept.credentials.prove_account(backend.checks_token_name()));
        if kept.is_empty() {
            let why = "what is kept does not prove whose it is";
            tracing::warn!(
                target: "mailchime::watch::password_proves_nothing",
                %account,
                "not watched until its user logs in: the stored credentials do not prove whose \
                 account it is"
            );
            return Err(SessionEnd::NoPassword { why, login_helps: false });
        }
        // Of several that were refused one is enough, for it is the account that a backend locks.
        let most = if self.known.refusals == 0 { MOST_AT_ONCE } else { 1 };
        kept.truncate(most);
        Ok(kept)
    }

    /// Logs in with the first of its credentials that the backend takes.
    pub(super) async fn log_in_as_user(
        &mut self,
        LoginTarget { backend, health, .. }: LoginTarget<'_>,
    ) -> Result<LoggedIn, SessionEnd> {
        let mut to_try = self.to_try(backend).await?.into_iter().peekable();
        let several = to_try.len() > 1;
        let mut refused = Vec::new();
        while let Some(mut kept) = to_try.next() {
            let credentials = &kept.credentials;
            let context = &self.context;
            // It took its time to come here.
            if !context.backends.is_of(&self.account, backend) {
                self.count_refused(refused);
                return Err(SessionEnd::Moved);
            }
            let (timeout, longest) = (context.config.answer_timeout, context.response_size);
            let login = credentials.clone();
            let result =
                context.backends.log_in(backend, &self.account, login, timeout, longest).await;
            match result {
                Ok(logged_in) => {
                    let again = self.known.refused.iter().any(|it| it.same_as(credentials));
                    if health.logins.accepted(&self.account, again) {
                        let backend = &health.name;
                        tracing::info!(
                            target: "mailchime::watch::backend_accepts_again",
                            backend,
                            "the backend accepts logins that it had refused; mailchime watches its \
                             accounts again"
                        );
                    }
                    let proved = kept.prove(Timestamp::now());
                    self.logged_in_with(kept.credentials, refused, several || proved).await;
                    return Ok(logged_in);
                }
                Err(LoginError::Refused { answer, refusal }) if refusal != Refusal::Temporary => {
                    refused.push(kept.credentials);
                    let last = to_try.peek().is_none();
                    // An account is refused when all that is kept of it is.
                    if last && health.logins.refused(&self.account).new {
                        tracing::error!(
                            target: "mailchime::watch::backend_refuses_many",
                            backend = health.name,
                            reason = printable(&answer),
                            "the backend refuses accounts whose passwords it accepted before; \
                             mailchime parks none of them and tries one account at a time, after \
                             10 minutes and then less often. Check whether its user directory \
                             answers"
                        );
                    }
                    if last || health.logins.state().borrow().explains(Duration::ZERO) {
                        let tries = self.remember_refused(refused);
                        return Err(SessionEnd::Refused { answer, refusal, tries });
                    }
                    let (account, reason) = (&self.account, printable(&answer));
                    tracing::info!(
                        target: "mailchime::watch::next_password_tried",
                        %account, reason,
                        "the backend refuses stored credentials; mailchime tries the next ones of \
                         the account"
                    );
                    // Before the next try: who is killed after it must not count anew.
                    let tries = u32::try_from(refused.len()).unwrap_or(u32::MAX);
                    self.note(tries, Some(&reason)).await;
                }
                Err(error) => {
                    self.count_refused(refused);
                    return Err(SessionEnd::Failed(error.to_string()));
                }
            }
        }
        Err(SessionEnd::no_password("no password is kept"))
    }

    /// Notes that these were refused; returns how many they are.
    fn remember_refused(&mut self, refused: Vec<Credentials>) -> u32 {
        let tries = u32::try_from(refused.len()).unwrap_or(u32::MAX);
        self.known.refused.extend(refused);
        let more = self.known.refused.len().saturating_sub(MOST_REFUSED);
        self.known.refused.drain(..more);
        tries
    }

    /// These were refused, and what the others are worth is not known: they are tried first the next time.
    fn count_refused(&mut self, refused: Vec<Credentials>) {
        let tries = self.remember_refused(refused);
        if tries > 0 {
            let known = &mut self.known;
            known.refusals = known.refusals.saturating_add(tries);
            (known.refused_at, known.used) = (Some(Instant::now()), None);
        }
    }

    /// The backend has taken these, and had refused those.
    async fn logged_in_with(
        &mut self,
        accepted: Credentials,
        refused: Vec<Credentials>,
        sort_out: bool,
    ) {
        let before = std::mem::take(&mut self.known.refused);
        // What is taken again shows that the others were not wrong either.
        let again = before.iter().any(|it| it.same_as(&accepted));
        let refused = if again { refused } else { [before, refused].concat() };
        if sort_out || !refused.is_empty() {
            let (source, account, id) =
                (&self.context.credentials, &self.account, self.backend.id());
            let now = Timestamp::now();
            if let Err(error) = source.worked(account, id, &accepted, &refused, now).await {
                tracing::warn!(
                    target: "mailchime::watch::password_outcome_not_stored",
                    %account, %error, "could not store which credentials work"
                );
            }
        }
        let known = &mut self.known;
        (known.brought, known.used) = (None, Some(accepted));
        (known.refusals, known.refused_at) = (0, None);
        (known.excused, known.parked) = (false, false);
        self.inherited = false;
    }

    /// The store knows that nothing is refused any more, if it knew that something was.
    pub(super) async fn unpark(&mut self) -> Result<(), SessionEnd> {
        if std::mem::take(&mut self.known.noted) {
            let unparked = self.context.store.unpark(&self.account, self.backend.id()).await;
            unparked.inspect_err(|_| self.known.noted = true)?;
        }
        Ok(())
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
                    %account, reason, ?wait,
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
                    %account, reason, tries, again_in = ?retry,
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
            %account, reason, ?wait,
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
    async fn note(&mut self, tries: u32, parked: Option<&str>) {
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

/// Puts these in front, if they are kept, or all the same.
fn put_first(kept: &mut Vec<Kept>, credentials: &Credentials, even_if_not_kept: bool) {
    match kept.iter().position(|kept| kept.credentials.same_as(credentials)) {
        Some(place) => kept[..=place].rotate_right(1),
        None if even_if_not_kept => {
            kept.insert(0, Kept::new(credentials.clone(), None, Timestamp::now()));
        }
        None => {}
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
