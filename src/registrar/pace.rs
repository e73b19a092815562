//! How often an account may register.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::model::Account;

const MINUTE: Duration = Duration::from_secs(60);

/// Registrations that are written, by account, or pushes that users have sent: so many a minute, of which all
/// may come at once. Those beyond are put off, each to its own time.
#[derive(Debug, Default)]
pub struct RegistrationPace {
    /// When all that an account was granted would have been used up, had it come evenly. Names that
    /// differ in nothing but case share a pace: to most servers they are one user.
    accounts: Mutex<HashMap<String, Instant>>,
}

/// With so many accounts the ones that may register freely are forgotten.
const SWEEP: usize = 4096;

impl RegistrationPace {
    /// How long the next registration of this account is put off, of which `per_minute` are free. An
    /// error is the time after which it is refused: more than a minute's worth waits already.
    ///
    /// # Errors
    /// That time.
    pub fn wait(
        &self,
        account: &Account,
        per_minute: u32,
        now: Instant,
    ) -> Result<Duration, Duration> {
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
