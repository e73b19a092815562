//! How many pushes users have sent by the API: those with a code, and those that are tests.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

use super::error::ApiError;
use crate::model::Account;
use crate::registrar::RegistrationPace;

/// Pushes of one account in a minute.
const PER_MINUTE: u32 = 10;

/// Pushes under way at once, of all accounts.
const AT_ONCE: usize = 16;

/// For one of them to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// The pushes that users have sent.
#[derive(Debug)]
pub(super) struct Sends {
    pace: RegistrationPace,
    under_way: Semaphore,
}

impl Default for Sends {
    fn default() -> Self {
        Self { pace: RegistrationPace::default(), under_way: Semaphore::new(AT_ONCE) }
    }
}

impl Sends {
    /// Counts a push of this account.
    pub(super) fn count(&self, account: &Account) -> Result<(), ApiError> {
        match self.pace.wait(account, PER_MINUTE, Instant::now()) {
            Ok(Duration::ZERO) => Ok(()),
            _ => Err(ApiError::too_many("This account has sent too many pushes. Try again later.")),
        }
    }

    /// A place for a push, until it is dropped.
    pub(super) async fn place(&self) -> Result<SemaphorePermit<'_>, ApiError> {
        let place = timeout(PATIENCE, self.under_way.acquire()).await;
        place.ok().and_then(Result::ok).ok_or_else(|| {
            ApiError::unavailable("Too many pushes are being sent. Try again later.")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_account_has_ten_a_minute_and_all_have_sixteen_at_once() {
        let sends = Sends::default();
        let (alice, bob) = (Account::from_login("alice"), Account::from_login("bob"));
        assert!((0..PER_MINUTE).all(|_| sends.count(&alice).is_ok()));
        assert!(sends.count(&alice).is_err() && sends.count(&bob).is_ok());
        tokio::time::sleep(Duration::from_mins(2)).await;
        assert!(sends.count(&alice).is_ok());

        let mut places = Vec::new();
        for _ in 0..AT_ONCE {
            places.push(sends.place().await.unwrap_or_else(|_| panic!("no place")));
        }
        assert!(sends.place().await.is_err());
        places.pop();
        assert!(sends.place().await.is_ok());
    }
}
