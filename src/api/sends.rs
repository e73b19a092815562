//! How many pushes users have sent by the API: those with a code, and those that are tests.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::error::ApiError;
use crate::model::{Account, Subscription, TransportId};
use crate::registrar::RegistrationPace;

/// Pushes of one account in a minute.
const PER_MINUTE: u32 = 10;

/// Pushes under way at once by one transport, of all accounts.
const AT_ONCE: usize = 16;

/// The same of one account by all transports. Receivers that its user names may answer late.
const AT_ONCE_OF_ACCOUNT: usize = 2;

/// For one of them to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// The pushes that users have sent.
#[derive(Debug, Default)]
pub(super) struct Sends {
    pace: RegistrationPace,
    /// One that answers late holds up no other.
    under_way: Mutex<HashMap<TransportId, Arc<Semaphore>>>,
    of_accounts: Mutex<HashMap<Account, Arc<Semaphore>>>,
}

/// A place for a push.
#[derive(Debug)]
pub(super) struct SendPlace<'a> {
    sends: &'a Sends,
    account: Account,
    places: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

impl Sends {
    /// Counts a push of this account.
    pub(super) fn count(&self, account: &Account) -> Result<(), ApiError> {
        match self.pace.wait(account, PER_MINUTE, Instant::now()) {
            Ok(Duration::ZERO) => Ok(()),
            _ => Err(ApiError::too_many("This account has sent too many pushes. Try again later.")),
        }
    }

    /// A place for a push to this subscription, until it is dropped.
    pub(super) async fn place(
        &self,
        subscription: &Subscription,
    ) -> Result<SendPlace<'_>, ApiError> {
        let Subscription { account, transport, .. } = subscription;
        let mut place = SendPlace { sends: self, account: account.clone(), places: None };
        let of_account = places(&mut self.of_accounts.lock(), account, AT_ONCE_OF_ACCOUNT);
        let of_transport = places(&mut self.under_way.lock(), transport, AT_ONCE);
        // That of the account first: its pushes that wait hold no place that others want.
        let both = async {
            let of_account = of_account.acquire_owned().await.ok()?;
            Some((of_account, of_transport.acquire_owned().await.ok()?))
        };
        place.places = timeout(PATIENCE, both).await.ok().flatten();
        match place.places {
            Some(_) => Ok(place),
            None => Err(ApiError::unavailable("Too many pushes are being sent. Try again later.")),
        }
    }
}

/// The places of this key.
fn places<K: Clone + Eq + std::hash::Hash>(
    of: &mut HashMap<K, Arc<Semaphore>>,
    key: &K,
    most: usize,
) -> Arc<Semaphore> {
    Arc::clone(of.entry(key.clone()).or_insert_with(|| Arc::new(Semaphore::new(most))))
}

impl Drop for SendPlace<'_> {
    /// An account that sends nothing is forgotten.
    fn drop(&mut self) {
        self.places = None;
        let mut accounts = self.sends.of_accounts.lock();
        if accounts.get(&self.account).is_some_and(|places| Arc::strong_count(places) == 1) {
            accounts.remove(&self.account);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PushEndpoint;

    fn subscription(account: &str, transport: &str) -> Subscription {
        Subscription {
            account: Account::from_login(account),
            transport: TransportId::new(transport),
            endpoint: PushEndpoint::new("https://a.example/", "https://a.example/"),
            app: "".into(),
            route: "".into(),
            options: "{}".into(),
            secrets: None,
            expires_at: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_has_ten_a_minute() {
        let sends = Sends::default();
        let (alice, bob) = (Account::from_login("alice"), Account::from_login("bob"));
        assert!((0..PER_MINUTE).all(|_| sends.count(&alice).is_ok()));
        assert!(sends.count(&alice).is_err() && sends.count(&bob).is_ok());
        tokio::time::sleep(Duration::from_mins(2)).await;
        assert!(sends.count(&alice).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_answers_late_takes_no_place_of_another_account_or_transport() {
        let sends = Sends::default();
        let mut held = Vec::new();
        for account in 0..AT_ONCE / AT_ONCE_OF_ACCOUNT {
            let hook = subscription(&format!("user{account}"), "webhook");
            for _ in 0..AT_ONCE_OF_ACCOUNT {
                held.push(sends.place(&hook).await.unwrap());
            }
            // Its third waits in vain, by any transport.
            let third = subscription(&format!("user{account}"), "webpush");
            assert!(sends.place(&third).await.is_err());
        }
        assert!(sends.place(&subscription("alice", "webhook")).await.is_err());
        assert!(sends.place(&subscription("alice", "webpush")).await.is_ok());
        held.pop();
        assert!(sends.place(&subscription("alice", "webhook")).await.is_ok());
        held.clear();
        assert!(sends.of_accounts.lock().is_empty());
    }
}
