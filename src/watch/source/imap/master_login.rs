//! Whether a backend takes the master user, as all its watchers know it (`[credentials]` mode
//! `master`).
//!
//! The master's password is tried with every account: a wrong one, tried twice by each of thousands,
//! would have the backend ban our address. So until it was accepted, and again after each refusal,
//! one watcher at a time tries it; and once it was refused as several accounts in a row, it is the
//! master that is refused and not a user who is gone, and nobody tries it for some time.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::{Instant, timeout_at};

use crate::model::Account;

/// Accounts in a row as which the master is refused, before that is the master's fault.
const ACCOUNTS: usize = 3;

/// For how long nobody tries then, but one watcher at its end.
const REST: Duration = Duration::from_mins(10);

/// The master user at one backend.
#[derive(Debug)]
pub(in crate::watch) struct MasterLogin {
    state: watch::Sender<MasterState>,
    /// For the one who tries while it is in doubt.
    trial: Semaphore,
}

#[derive(Debug, Default)]
struct MasterState {
    /// The last login was accepted.
    accepted: bool,
    /// As whom it was refused since one was accepted, each once, up to [`ACCOUNTS`].
    refused: Vec<Account>,
    /// Nobody tries until then, for this reason.
    rest: Option<(Instant, String)>,
}

/// Leave to log in as the master; to be held until the outcome was noted.
#[derive(Debug)]
pub(in crate::watch) struct MasterPermit<'a>(
    #[expect(dead_code, reason = "the watcher that tries holds it")] Option<SemaphorePermit<'a>>,
);

impl MasterLogin {
    pub(in crate::watch) fn new() -> Self {
        Self { state: watch::Sender::default(), trial: Semaphore::new(1) }
    }

    /// Waits until the caller may log in. `told` hears for how long nobody may, and why.
    pub(in crate::watch) async fn turn(&self, told: impl Fn(Duration, &str)) -> MasterPermit<'_> {
        let mut state = self.state.subscribe();
        loop {
            if self.state.borrow().accepted {
                return MasterPermit(None);
            }
            let rest = self.rest();
            if let Some((until, why)) = &rest {
                told(until.duration_since(Instant::now()), why);
                // Whatever comes first. The sender is here.
                let _ = timeout_at(*until, state.wait_for(|state| state.accepted)).await;
            }
            let trial = tokio::select! {
                trial = self.trial.acquire() => trial.ok(),
                _ = state.wait_for(|state| state.accepted) => None,
            };
            // It may have been refused, or accepted, while this one waited for the other.
            if trial.is_some() && self.rest().is_none() && !self.state.borrow().accepted {
                return MasterPermit(trial);
            }
        }
    }

    /// The backend accepted it, as whomever.
    pub(in crate::watch) fn accepted(&self) {
        self.state.send_if_modified(|state| {
            let changed = !state.accepted;
            *state = MasterState { accepted: true, ..MasterState::default() };
            changed
        });
    }

    /// The backend refused it as `account`. Returns for how long nobody tries it if that is the
    /// master's fault, to be logged.
    pub(in crate::watch) fn refused(&self, account: &Account, why: &str) -> Option<Duration> {
        let mut rests = false;
        self.state.send_modify(|state| {
            state.accepted = false;
            if state.refused.len() < ACCOUNTS && !state.refused.contains(account) {
                state.refused.push(account.clone());
            }
            rests = state.refused.len() >= ACCOUNTS;
            if rests {
                state.rest = Some((Instant::now() + REST, why.to_owned()));
            }
        });
        rests.then_some(REST)
    }

    fn rest(&self) -> Option<(Instant, String)> {
        self.state.borrow().rest.clone().filter(|(until, _)| Instant::now() < *until)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use tokio::time::sleep;

    use super::*;

    fn account(number: usize) -> Account {
        Account::from_login(&format!("user{number}"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_wrong_master_is_tried_by_few_and_then_by_one_each_ten_minutes() {
        let (master, good) = (Arc::new(MasterLogin::new()), Arc::new(Mutex::new(false)));
        let (tries, watching) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        for number in 0..50 {
            let (master, good) = (Arc::clone(&master), Arc::clone(&good));
            let (tries, watching) = (Arc::clone(&tries), Arc::clone(&watching));
            tokio::spawn(async move {
                loop {
                    let turn = master.turn(|_, why| assert_eq!(why, "NO")).await;
                    tries.fetch_add(1, Ordering::Relaxed);
                    sleep(Duration::from_millis(50)).await;
                    if *good.lock().unwrap() {
                        master.accepted();
                        break;
                    }
                    master.refused(&account(number), "NO");
                    drop(turn);
                    sleep(REST * 2).await;
                }
                watching.fetch_add(1, Ordering::Relaxed);
            });
        }
        for expected in 3..9 {
            sleep(Duration::from_secs(1)).await;
            assert_eq!(tries.load(Ordering::Relaxed), expected);
            sleep(REST).await;
        }
        *good.lock().unwrap() = true;
        sleep(REST * 3).await;
        assert_eq!(watching.load(Ordering::Relaxed), 50);
    }

    #[tokio::test(start_paused = true)]
    async fn a_user_who_is_gone_is_not_the_masters_fault() {
        let master = MasterLogin::new();
        let free = async |master: &MasterLogin| {
            let turn = timeout_at(Instant::now() + Duration::from_secs(1), master.turn(|_, _| ()));
            turn.await.is_ok()
        };
        master.accepted();
        for _ in 0..9 {
            assert_eq!(master.refused(&account(1), "NO"), None);
            assert_eq!(master.refused(&account(2), "NO"), None);
        }
        let trial = master.turn(|_, _| ()).await;
        assert!(!free(&master).await, "one at a time while it is in doubt");
        master.accepted();
        assert!(free(&master).await && free(&master).await);
        drop(trial);
        for number in 1..3 {
            assert_eq!(master.refused(&account(number), "NO"), None, "it begins anew");
        }
        assert_eq!(master.refused(&account(3), "NO"), Some(REST));
        assert!(!free(&master).await);
        master.accepted();
        assert!(free(&master).await, "the watcher that was on the way ends the rest");
    }
}
