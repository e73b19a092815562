//! Writing a registration: the one errand of a session that outlives a short database outage.

use std::sync::Arc;
use std::time::Duration;

use super::Context;
use crate::model::{Credentials, Registration, SessionEvent, Timestamp};

/// A device waits about a day after a NO, so an outage of the database is waited out this often.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_secs(2);

/// Stores the registration, with what the user logged in with if that is known, and lets it be watched; returns whether it is on disk.
pub(super) async fn register(
    context: Arc<Context>,
    registration: Registration,
    credentials: Option<Credentials>,
) -> bool {
    let account = registration.device.account.clone();
    let token = registration.device.token.clone();
    let mailboxes = registration.mailboxes.len();
    for attempt in 1..=TRIES {
        let (source, now) = (&context.credentials, Timestamp::now());
        match source.register(&registration, credentials.as_ref(), context.devices, now).await {
            Ok(()) => {
                tracing::info!(%account, %token, mailboxes, "device registered");
                // If the watching side is gone the program is ending, and starts it next time.
                let _ =
                    context.events.send(SessionEvent::Registered { account, credentials }).await;
                return true;
            }
            Err(error) if attempt == TRIES || !error.is_temporary() => {
                tracing::error!(%account, %token, %error, "a registration could not be stored");
            }
            Err(error) => {
                tracing::warn!(%account, %token, %error, "a registration waits for the database");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    false
}
