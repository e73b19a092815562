//! Registrations of any kind on their way to the disk: XAPPLEPUSHSERVICE's and those of other doors alike.
//!
//! A registration waits where its account registers too often. A client may come back no sooner than a day
//! after a refusal, so a short outage of the database is waited out, for as long as `[store] busy_timeout`
//! says. Nothing here knows by what protocol or for which transport a client registers.

mod pace;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

pub use self::pace::RegistrationPace;
use crate::config::{Config, LimitsConfig};
use crate::model::{
    AcceptedLogin, Account, BackendId, Registration, RegistrationResult, SessionEvent,
    SubscriptionState, Timestamp,
};
use crate::net::backends::Backends;
use crate::net::counters::LimitCounters;
use crate::store::{CredentialSource, Full, MadeRoom, RegisterOutcome, StoreError};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(250);

/// After this time the log says that a registration waits.
const SLOW: Duration = Duration::from_secs(1);

/// Stores registrations, and tells the watching side of them. Cheap to clone; what is counted is shared.
#[derive(Clone, Debug)]
pub struct Registrar {
    parts: Arc<RegistrarParts>,
    events: mpsc::Sender<SessionEvent>,
    /// It registers what the configuration says, and no client asks for it.
    is_of_operator: bool,
}

#[derive(Debug)]
struct RegistrarParts {
    backends: Backends,
    counters: Arc<LimitCounters>,
    credentials: Arc<CredentialSource>,
    pace: RegistrationPace,
    /// `[limits] registrations_per_minute`
    per_minute: AtomicU32,
    /// Most subscriptions of one account.
    most: u32,
    /// For how long a registration waits for the database.
    busy_timeout: Duration,
}

impl Registrar {
    /// A registrar with the limits of `config`; `events` leads to the watching side.
    pub fn new(
        backends: Backends,
        credentials: Arc<CredentialSource>,
        events: mpsc::Sender<SessionEvent>,
        config: &Config,
    ) -> Self {
        let parts = RegistrarParts {
            counters: backends.counters(),
            backends,
            credentials,
            pace: RegistrationPace::default(),
            per_minute: AtomicU32::new(config.limits.registrations_per_minute),
            most: u32::try_from(config.push.subscriptions).unwrap_or(u32::MAX),
            busy_timeout: config.store.busy_timeout,
        };
        Self { parts: Arc::new(parts), events, is_of_operator: false }
    }

    /// The same for what the configuration registers, which counts as none of the account's registrations in a
    /// minute. What it stores goes to `events`, so it does not come back to one that stands between the
    /// sessions and the watching side.
    #[must_use]
    pub fn of_operator(self, events: mpsc::Sender<SessionEvent>) -> Self {
        Self { events, is_of_operator: true, ..self }
    }

    /// Goes by these limits from now on.
    pub fn limit(&self, limits: &LimitsConfig) {
        self.parts.per_minute.store(limits.registrations_per_minute, Ordering::Relaxed);
    }

    /// Stores a registration of the account that `login` proved, and lets it be watched. To be waited for
    /// to the end: nothing is stored by a call that is dropped before.
    ///
    /// Nothing is stored where the account has another backend since the login. What is on disk already is
    /// not written again within the hour.
    pub async fn register(
        self,
        registration: Registration,
        login: AcceptedLogin,
    ) -> RegistrationResult {
        self.register_in(registration, login, SubscriptionState::Active).await
    }

    /// The same for a subscription that counts when it is confirmed ([`Registrar::confirm`]). One that is there
    /// and counts goes on counting.
    pub async fn register_pending(
        self,
        registration: Registration,
        login: AcceptedLogin,
    ) -> RegistrationResult {
        self.register_in(registration, login, SubscriptionState::Pending).await
    }

    /// A pending subscription of the account that `login` proved has shown that its endpoint is its client's: it
    /// counts from now on and is watched. To be waited for to the end. `None` where the account has no such
    /// subscription.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn confirm(
        self,
        account: Account,
        id: i64,
        login: AcceptedLogin,
    ) -> Result<Option<RegistrationResult>, StoreError> {
        let Self { parts, events, .. } = self;
        match parts.credentials.confirm(&account, id, &login, parts.most).await? {
            None => Ok(None),
            Some(RegisterOutcome::Full(full)) => Ok(Some(parts.no_room(&account, full))),
            Some(RegisterOutcome::Stored(room)) => {
                parts.made_room(&account, room);
                // If the watching side is gone the program is ending, and starts it next time.
                let _ = events.send(SessionEvent::Registered { account, login }).await;
                Ok(Some(RegistrationResult::Stored { route: "".into() }))
            }
        }
    }

    /// Whether the account still has this backend.
    pub fn has_backend(&self, account: &Account, backend: &BackendId) -> bool {
        self.parts.backends.id_of(account).is_some_and(|now| now.is(backend.as_str()))
    }

    /// Forgets what is kept in memory for an account that has no subscription any more.
    pub fn forget(&self, account: &Account) {
        self.parts.credentials.forget(account);
    }

    async fn register_in(
        self,
        registration: Registration,
        mut login: AcceptedLogin,
        state: SubscriptionState,
    ) -> RegistrationResult {
        let Self { parts, events, is_of_operator } = self;
        let account = registration.subscription.account.clone();
        let endpoint = registration.subscription.endpoint.clone();
        let mailboxes = registration.mailboxes.len();
        let route = Arc::clone(&registration.subscription.route);
        let stored = RegistrationResult::Stored { route };
        if !parts.is_at_home(&account, &mut login) {
            return RegistrationResult::Unavailable;
        }
        let (asked, patience) = (Instant::now(), parts.busy_timeout);
        let known = parts.credentials.has_registered(&registration, &login, Timestamp::now());
        // Where the database cannot say, the write says it.
        if let Ok(Ok(true)) = timeout(patience, known).await {
            tracing::debug!(
                target: "mailchime::registrar::registration_unchanged",
                %account, %endpoint, mailboxes, "a client registered again, without a change"
            );
            // If the watching side is gone the program is ending, and starts it next time.
            let _ = events.send(SessionEvent::RegisteredAgain { account, login }).await;
            return stored;
        }
        let patience = patience.saturating_sub(asked.elapsed());
        if !is_of_operator && let Err(refused) = parts.keep_pace(&account).await {
            return refused;
        }
        let mut why = None;
        let written = {
            let writing = parts.write(&registration, &mut login, state, &mut why);
            let mut writing = pin!(timeout(patience, writing));
            tokio::select! {
                written = &mut writing => written,
                () = tokio::time::sleep(SLOW) => {
                    tracing::warn!(
                        target: "mailchime::registrar::registration_waits",
                        %account, %endpoint, "a registration waits for the database"
                    );
                    writing.await
                }
            }
        };
        match written {
            Ok(Some(RegisterOutcome::Stored(room))) => {
                if !is_of_operator {
                    tracing::info!(
                        target: "mailchime::registrar::registered",
                        %account, %endpoint, mailboxes, "a client registered for push"
                    );
                }
                parts.made_room(&account, room);
                // If the watching side is gone the program is ending, and starts it next time.
                let _ = events.send(SessionEvent::Registered { account, login }).await;
                stored
            }
            Ok(Some(RegisterOutcome::Full(full))) => parts.no_room(&account, full),
            Ok(None) | Err(_) => {
                let error = why.map_or_else(|| "no answer".to_owned(), |why| why.to_string());
                tracing::error!(
                    target: "mailchime::registrar::registration_failed",
                    %account, %endpoint, error,
                    "could not store a registration; the client is refused, and an iPhone tries \
                     again within a day"
                );
                RegistrationResult::Unavailable
            }
        }
    }
}

impl RegistrarParts {
    /// Writes the registration as soon as the database takes it; `None` if it never will, or the account
    /// has another backend since. `why` is what was in the way last.
    async fn write(
        &self,
        registration: &Registration,
        login: &mut AcceptedLogin,
        state: SubscriptionState,
        why: &mut Option<StoreError>,
    ) -> Option<RegisterOutcome> {
        let source = &self.credentials;
        while self.is_at_home(&registration.subscription.account, login) {
            let now = Timestamp::now();
            let written = match state {
                SubscriptionState::Active => {
                    source.register(registration, login, self.most, now).await
                }
                SubscriptionState::Pending => {
                    source.register_pending(registration, login, self.most, now).await
                }
            };
            match written {
                Ok(outcome) => return Some(outcome),
                Err(error) => {
                    let last = !error.is_temporary() || source.is_stopping();
                    *why = Some(error);
                    if last {
                        break;
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        None
    }

    /// Says to the log that a registration of another account had to go.
    fn made_room(&self, account: &Account, room: MadeRoom) {
        if room.registrations > 0 && self.counters.accounts_per_device.hit() {
            tracing::warn!(
                target: "mailchime::registrar::registration_displaced",
                %account,
                "[push] accounts_per_device is reached; of the domain with most accounts for an \
                 endpoint, mailchime removed the oldest registration"
            );
        }
    }

    /// Says which limit leaves no room, to the log and to the client.
    fn no_room(&self, account: &Account, full: Full) -> RegistrationResult {
        let counters = &self.counters;
        let (key, counter) = match full {
            Full::AccountsPerDomain => ("accounts_per_domain", &counters.accounts_per_domain),
            Full::SubscriptionsPerDomain => {
                ("subscriptions_per_domain", &counters.subscriptions_per_domain)
            }
            Full::AccountsPerBackend => ("accounts_per_backend", &counters.accounts_per_backend),
            Full::SubscriptionsPerBackend => {
                ("subscriptions_per_backend", &counters.subscriptions_per_backend)
            }
            Full::PendingPerAccount => return RegistrationResult::TooMany,
        };
        if counter.hit() {
            tracing::warn!(
                target: "mailchime::registrar::registration_refused",
                %account, "[push] {key} is reached; mailchime refused a registration"
            );
        }
        match full {
            Full::AccountsPerDomain | Full::SubscriptionsPerDomain => {
                RegistrationResult::DomainFull
            }
            Full::AccountsPerBackend | Full::SubscriptionsPerBackend => {
                RegistrationResult::BackendFull
            }
            Full::PendingPerAccount => RegistrationResult::TooMany,
        }
    }

    /// Waits until the account may register again; an error is the answer where too many wait.
    async fn keep_pace(&self, account: &Account) -> Result<(), RegistrationResult> {
        let limit = self.per_minute.load(Ordering::Relaxed);
        let wait = self.pace.wait(account, limit, Instant::now());
        if wait != Ok(Duration::ZERO) && self.counters.registrations_per_minute.hit() {
            tracing::warn!(
                target: "mailchime::registrar::registrations_per_minute_reached",
                %account,
                limit,
                "[limits] registrations_per_minute is reached; further registrations of this account \
                 wait"
            );
        }
        match wait {
            Ok(wait) => {
                tokio::time::sleep(wait).await;
                Ok(())
            }
            Err(time) => {
                tokio::time::sleep(time).await;
                Err(RegistrationResult::TooMany)
            }
        }
    }

    /// Whether the account still has the backend at which its session has logged in, which may have got a
    /// name since.
    fn is_at_home(&self, account: &Account, login: &mut AcceptedLogin) -> bool {
        let now = self.backends.id_of(account);
        match now {
            Some(now) if now.is(login.backend.as_str()) => {
                login.backend = now;
                true
            }
            _ => {
                let former = &login.backend;
                tracing::warn!(
                    target: "mailchime::registrar::registration_for_former_backend",
                    %account, %former,
                    "the account's backend changed after this session began; the client is refused, \
                     and registers at a later login"
                );
                false
            }
        }
    }
}
