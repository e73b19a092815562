//! Writing a registration, which waits where its account registers too often.
//!
//! A device waits about a day after a NO, so a short outage of the database is waited out, for as long
//! as `busy_timeout` says. The session's other commands go on meanwhile.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::SessionContext;
use crate::imap::contract::RegistrationResult;
use crate::model::{AcceptedLogin, Account, Registration, SessionEvent, Timestamp};
use crate::store::{Full, RegisterOutcome, StoreError};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(250);

/// After this time the log says that a registration waits.
const SLOW: Duration = Duration::from_secs(1);

const MINUTE: Duration = Duration::from_secs(60);

/// Registrations that are written, by account: so many a minute, of which all may come at once. Those
/// beyond are put off, each to its own time.
#[derive(Debug, Default)]
pub(super) struct RegistrationPace {
    /// When all that an account was granted would have been used up, had it come evenly. Names that
    /// differ in nothing but case share a pace: to most servers they are one user.
    accounts: Mutex<HashMap<String, Instant>>,
}

/// With so many accounts the ones that may register freely are forgotten.
const SWEEP: usize = 4096;

impl RegistrationPace {
    /// How long the next registration of this account is put off, of which `per_minute` are free. An
    /// error is the time after which it is refused: more than a minute's worth waits already.
    fn wait(&self, account: &Account, per_minute: u32, now: Instant) -> Result<Duration, Duration> {
        let mut accounts = self.accounts.lock();
        if accounts.len() >= SWEEP && accounts.len().is_power_of_two() {
            accounts.retain(|_, used| *used > now);
        }
        let used = accounts.entry(account.case_folded()).or_insert(now);
        let next = (*used).max(now) + MINUTE / per_minute;
        let wait = next.saturating_duration_since(now + MINUTE);
        if wait > MINUTE {
            return Err(MINUTE);
        }
        *used = next;
        Ok(wait)
    }
}

/// Stores the registration of a session with this login, and lets it be watched; returns whether it is
/// on disk. It is not where the account has another backend since. One that is on disk already is not
/// written again within the hour.
pub(super) async fn register(
    context: Arc<SessionContext>,
    registration: Registration,
    mut login: AcceptedLogin,
) -> RegistrationResult {
    let account = registration.subscription.account.clone();
    let endpoint = registration.subscription.endpoint.clone();
    let mailboxes = registration.mailboxes.len();
    let source = &context.credentials;
    if !is_at_home(&context, &account, &mut login) {
        return RegistrationResult::Unavailable;
    }
    let (asked, patience) = (Instant::now(), context.busy_timeout);
    let known = source.has_registered(&registration, &login, Timestamp::now());
    // Where the database cannot say, the write says it.
    if let Ok(Ok(true)) = timeout(patience, known).await {
        tracing::debug!(
            target: "mailchime::proxy::registration_unchanged",
            %account, token = %endpoint, mailboxes, "a device registered again, without a change"
        );
        return RegistrationResult::Stored;
    }
    let patience = patience.saturating_sub(asked.elapsed());
    if let Err(refused) = keep_pace(&context, &account).await {
        return refused;
    }
    let mut why = None;
    let written = {
        let writing = write(&context, &registration, &mut login, &mut why);
        let mut writing = pin!(timeout(patience, writing));
        tokio::select! {
            written = &mut writing => written,
            () = tokio::time::sleep(SLOW) => {
                tracing::warn!(
                    target: "mailchime::proxy::registration_waits",
                    %account, token = %endpoint, "a registration waits for the database"
                );
                writing.await
            }
        }
    };
    match written {
        Ok(Some(RegisterOutcome::Stored(room))) => {
            tracing::info!(
                target: "mailchime::proxy::registered",
                %account, token = %endpoint, mailboxes, "device registered"
            );
            if room.registrations > 0 && context.counters.accounts_per_device.hit() {
                tracing::warn!(
                    target: "mailchime::proxy::registration_displaced",
                    %account,
                    token = %endpoint,
                    "[push] accounts_per_device is reached; of the domain with most accounts for \
                     this device, mailchime removed the oldest registration"
                );
            }
            // If the watching side is gone the program is ending, and starts it next time.
            let _ = context.events.send(SessionEvent::Registered { account, login }).await;
            RegistrationResult::Stored
        }
        Ok(Some(RegisterOutcome::Full(full))) => no_room(&context, &account, full),
        Ok(None) | Err(_) => {
            let error = why.map_or_else(|| "no answer".to_owned(), |why| why.to_string());
            tracing::error!(
                target: "mailchime::proxy::registration_failed",
                %account, token = %endpoint, error,
                "could not store a registration; the device gets NO and tries again within a day"
            );
            RegistrationResult::Unavailable
        }
    }
}

/// Writes the registration as soon as the database takes it; `None` if it never will, or the account
/// has another backend since. `why` is what was in the way last.
async fn write(
    context: &SessionContext,
    registration: &Registration,
    login: &mut AcceptedLogin,
    why: &mut Option<StoreError>,
) -> Option<RegisterOutcome> {
    let source = &context.credentials;
    while is_at_home(context, &registration.subscription.account, login) {
        let now = Timestamp::now();
        match source.register(registration, login, context.devices, now).await {
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

/// Says which limit leaves no room, to the log and to the client.
fn no_room(context: &SessionContext, account: &Account, full: Full) -> RegistrationResult {
    let counters = &context.counters;
    let (key, counter) = match full {
        Full::AccountsPerDomain => ("accounts_per_domain", &counters.accounts_per_domain),
        Full::DevicesPerDomain => ("devices_per_domain", &counters.devices_per_domain),
        Full::AccountsPerBackend => ("accounts_per_backend", &counters.accounts_per_backend),
        Full::DevicesPerBackend => ("devices_per_backend", &counters.devices_per_backend),
    };
    if counter.hit() {
        tracing::warn!(
            target: "mailchime::proxy::registration_refused",
            %account, "[push] {key} is reached; mailchime refused a registration"
        );
    }
    match full {
        Full::AccountsPerDomain | Full::DevicesPerDomain => RegistrationResult::DomainFull,
        Full::AccountsPerBackend | Full::DevicesPerBackend => RegistrationResult::BackendFull,
    }
}

/// Waits until the account may register again; an error is the answer where too many wait.
async fn keep_pace(context: &SessionContext, account: &Account) -> Result<(), RegistrationResult> {
    let limit = context.limits.registrations_per_minute;
    let wait = context.pace.wait(account, limit, Instant::now());
    if wait != Ok(Duration::ZERO) && context.counters.registrations_per_minute.hit() {
        tracing::warn!(
            target: "mailchime::proxy::registrations_per_minute_reached",
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
fn is_at_home(context: &SessionContext, account: &Account, login: &mut AcceptedLogin) -> bool {
    let now = context.backends.id_of(account);
    match now {
        Some(now) if now.is(login.backend.as_str()) => {
            login.backend = now;
            true
        }
        _ => {
            let former = &login.backend;
            tracing::warn!(
                target: "mailchime::proxy::registration_for_former_backend",
                %account, %former,
                "the account's backend changed after this session began; the device gets NO and \
                 registers at a later login"
            );
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_a_minute_are_free_ten_more_wait_and_what_is_beyond_is_refused() {
        let (pace, now) = (RegistrationPace::default(), Instant::now());
        let alice = Account::from_login("alice@example.org");
        let waits: Vec<_> = (0..21).map(|_| pace.wait(&alice, 10, now)).collect();
        assert!(waits[..10].iter().all(|wait| *wait == Ok(Duration::ZERO)), "{waits:?}");
        let seconds = |number| Ok(Duration::from_secs(number));
        assert_eq!((waits[10], waits[19]), (seconds(6), seconds(60)));
        assert_eq!(waits[20], Err(MINUTE));
        // Another spelling is the same user, another user is not.
        let spelling = Account::from_login("ALICE@example.org");
        assert_eq!(pace.wait(&spelling, 10, now), Err(MINUTE));
        let bob = Account::from_login("bob@example.org");
        assert_eq!(pace.wait(&bob, 10, now), Ok(Duration::ZERO));
        // Who has waited for the twenty has ten free ones a minute after that.
        let later = now + 2 * MINUTE;
        assert_eq!(pace.wait(&alice, 10, later), Ok(Duration::ZERO));
    }

    #[test]
    fn accounts_that_may_register_freely_are_forgotten() {
        let (pace, now) = (RegistrationPace::default(), Instant::now());
        for number in 0..3 * SWEEP {
            let account = Account::from_login(&format!("user{number}"));
            let at = now + MINUTE * u32::try_from(number).unwrap();
            assert_eq!(pace.wait(&account, 10, at), Ok(Duration::ZERO));
        }
        assert!(pace.accounts.lock().len() <= SWEEP);
    }
}
