//! Writing a registration, which waits where its account registers too often.
//!
//! A device waits about a day after a NO, so a short outage of the database is waited out, for as long
//! as `busy_timeout` says. The session's other commands go on meanwhile.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::context::SessionContext;
use crate::imap::contract::RegistrationResult;
use crate::model::{AcceptedLogin, Account, Registration, SessionEvent, Timestamp};
use crate::store::{Full, RegisterOutcome, StoreError};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(250);

/// After this time the log says that a registration waits.
const SLOW: Duration = Duration::from_secs(1);

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
    let stored = RegistrationResult::Stored { topic: registration.subscription.route.clone() };
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
        return stored;
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
            stored
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
