//! How a backend takes what users logged in with, as all its watchers know it.
//!
//! A password that is refused may be wrong. When those of several accounts are refused within minutes, and
//! none is accepted in between, the backend is at fault: its directory is empty, say. Then
//! nobody is parked, and few try: thousands of refused logins would have it lock accounts and ban our
//! address. So until a login was accepted, and again after each refusal, one watcher at a time tries.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::{Instant, timeout_at};

use crate::model::Account;

/// Accounts in a row that are refused, before that is the backend's fault.
const MANY: usize = 3;

/// Refusals of different accounts within this time count together.
pub(in crate::watch) const WITHIN: Duration = Duration::from_mins(5);

/// Logins that were accepted so shortly before count against that: servers hold refusals back, so after a
/// start those of a few wrong passwords come together, behind all that were accepted.
const TOGETHER: Duration = Duration::from_secs(30);

/// How long nobody tries then but those whose users have just logged in; it doubles with each further
/// refusal, up to the second.
const RESTS: [Duration; 2] = [Duration::from_mins(10), Duration::from_hours(1)];

/// A backend that has refused nobody for so long is not at fault any more.
const FORGOTTEN: Duration = Duration::from_hours(24);

/// Accounts that are known by name. Of more it is not known when all of them are in order again.
const MOST: usize = 256;

/// A try that takes longer holds up no others.
pub(in crate::watch) const PATIENCE: Duration = Duration::from_secs(5);

/// The logins at one backend.
#[derive(Debug)]
pub(in crate::watch) struct LoginBreaker {
    state: watch::Sender<BreakerState>,
    /// For the one who tries while it is in doubt.
    trial: Semaphore,
    /// Hears when a backend is at fault, and when it was.
    faults: watch::Sender<()>,
}

#[derive(Clone, Debug, Default)]
pub(in crate::watch) struct BreakerState {
    /// The last login was accepted.
    accepted: bool,
    /// How many were accepted, each within [`TOGETHER`] of the next, and when the last one was.
    lately: (usize, Option<Instant>),
    /// How often nobody tried for some time since then.
    rests: u32,
    /// Nobody tries until then.
    rest: Option<Instant>,
    /// Who is refused, each once, and when they last were.
    refused: Vec<(Account, Instant)>,
    /// Since when it is the backend's fault.
    at_fault: Option<Instant>,
    /// How often it was found that it was.
    recoveries: u64,
}

/// Leave to try; to be held until the outcome was noted.
#[derive(Debug)]
pub(in crate::watch) struct LoginPermit<'a>(Option<SemaphorePermit<'a>>);

/// What a refusal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::watch) struct RefusalCause {
    /// It is the backend's fault.
    backend: bool,
    /// That is new, and to be logged.
    pub(in crate::watch) new: bool,
}

impl BreakerState {
    fn accepted_lately(&self, now: Instant) -> usize {
        let (count, last) = self.lately;
        last.filter(|last| now < *last + TOGETHER).map_or(0, |_| count)
    }

    /// How often it was found that the backend had been at fault, and takes again what it refused.
    pub(in crate::watch) fn recoveries(&self) -> u64 {
        self.recoveries
    }

    /// Whether the backend is to blame for a refusal of so long ago.
    pub(in crate::watch) fn explains(&self, ago: Duration) -> bool {
        self.at_fault.is_some_and(|since| ago < since.elapsed() + WITHIN)
    }
}

impl LoginPermit<'_> {
    /// Whether others wait until it is given back.
    pub(in crate::watch) fn is_alone(&self) -> bool {
        self.0.is_some()
    }

    /// The outcome takes long: others may try meanwhile.
    pub(in crate::watch) fn give_back(&mut self) {
        self.0 = None;
    }
}

impl LoginBreaker {
    /// `faults` hears whenever the backend is found to be at fault, or to have been.
    pub(in crate::watch) fn new(faults: watch::Sender<()>) -> Self {
        Self { state: watch::Sender::default(), trial: Semaphore::new(1), faults }
    }

    /// What is known; it tells of changes.
    pub(in crate::watch) fn state(&self) -> watch::Receiver<BreakerState> {
        self.state.subscribe()
    }

    /// Leave for a watcher whose user has just logged in.
    pub(in crate::watch) fn at_once(&self) -> LoginPermit<'_> {
        LoginPermit(None)
    }

    /// Waits until the caller may log in; `told` hears for how long nobody may. `None` if the caller is
    /// `refused` for reasons of its own, as it seemed, and now the backend is at fault.
    pub(in crate::watch) async fn leave(
        &self,
        refused: bool,
        told: impl Fn(Duration),
    ) -> Option<LoginPermit<'_>> {
        let mut state = self.state.subscribe();
        let excused = |state: &BreakerState| refused && state.at_fault.is_some();
        loop {
            if excused(&state.borrow()) {
                return None;
            }
            let (accepted, rest) = Self::look(&state.borrow());
            if accepted {
                return Some(LoginPermit(None));
            }
            if let Some(until) = rest {
                told(until.duration_since(Instant::now()));
                // Whatever comes first. The sender is here.
                let _ = timeout_at(until, state.wait_for(|state| state.accepted)).await;
            }
            let trial = tokio::select! {
                trial = self.trial.acquire() => trial.ok(),
                _ = state.wait_for(|state| state.accepted || excused(state)) => None,
            };
            // Another one may have been refused, or accepted, meanwhile.
            let (accepted, rest) = Self::look(&state.borrow());
            if trial.is_some() && rest.is_none() && !accepted {
                return Some(LoginPermit(trial));
            }
        }
    }

    /// Whether the last login was accepted, and until when nobody tries.
    fn look(state: &BreakerState) -> (bool, Option<Instant>) {
        (state.accepted, state.rest.filter(|until| Instant::now() < *until))
    }

    /// The backend has accepted this account, with what it had refused (`again`) or with something else.
    /// Returns whether it was at fault until now, to be logged.
    pub(in crate::watch) fn accepted(&self, account: &Account, again: bool) -> bool {
        let mut recovered = false;
        self.state.send_if_modified(|state| {
            let changed = !state.accepted || !state.refused.is_empty();
            (state.accepted, state.rests, state.rest) = (true, 0, None);
            let now = Instant::now();
            state.lately = (state.accepted_lately(now) + 1, Some(now));
            let all_known = state.refused.len() < MOST;
            state.refused.retain(|(refused, _)| refused != account);
            if state.at_fault.is_none() {
                state.refused.clear();
            } else if again {
                recovered = true;
                state.recoveries += 1;
            }
            // Their passwords were wrong.
            if recovered || all_known && state.refused.len() < MANY {
                state.at_fault = None;
                state.refused.clear();
            }
            changed
        });
        if recovered {
            self.faults.send_replace(());
        }
        recovered
    }

    /// The backend has refused what this account's user had logged in with.
    pub(in crate::watch) fn refused(&self, account: &Account) -> RefusalCause {
        let now = Instant::now();
        let mut blame = RefusalCause { backend: false, new: false };
        self.state.send_modify(|state| {
            let last = state.refused.iter().map(|(_, at)| *at).max();
            if state.at_fault.is_some() && last.is_none_or(|last| last + FORGOTTEN <= now) {
                (state.at_fault, state.rests) = (None, 0);
                state.refused.clear();
            }
            if state.at_fault.is_none() {
                state.refused.retain(|(_, at)| now < *at + WITHIN);
            }
            let known = state.refused.iter_mut().find(|(refused, _)| refused == account);
            if let Some((_, at)) = known {
                *at = now;
            } else if state.refused.len() < MOST {
                state.refused.push((account.clone(), now));
            }
            state.accepted = false;
            let many = state.accepted_lately(now).max(MANY);
            blame.new = state.at_fault.is_none() && state.refused.len() >= many;
            if blame.new {
                (state.at_fault, state.rests, state.rest) = (Some(now), 0, None);
            }
            blame.backend = state.at_fault.is_some();
            // What was under way already, or had been let through, says nothing new.
            if blame.backend && state.rest.is_none_or(|until| until <= now) {
                let [first, longest] = RESTS;
                let rest = first.saturating_mul(1 << state.rests.min(10)).min(longest);
                state.rests += 1;
                state.rest = Some(now + rest);
            }
        });
        if blame.new {
            self.faults.send_replace(());
        }
        blame
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::{advance, sleep, timeout};

    use super::*;

    fn account(number: usize) -> Account {
        Account::from_login(&format!("user{number}"))
    }

    async fn is_open(logins: &LoginBreaker) -> bool {
        timeout(Duration::from_secs(1), logins.leave(false, |_| ())).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_hundred_accounts_few_are_tried_while_the_backend_refuses_all() {
        let logins = Arc::new(LoginBreaker::new(watch::Sender::default()));
        let (tries, watched) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let well = Arc::new(AtomicUsize::new(0));
        for number in 0..100 {
            let (logins, tries) = (Arc::clone(&logins), Arc::clone(&tries));
            let (watched, well) = (Arc::clone(&watched), Arc::clone(&well));
            tokio::spawn(async move {
                loop {
                    let leave = logins.leave(false, |_| ()).await;
                    tries.fetch_add(1, Ordering::Relaxed);
                    // As Dovecot does.
                    sleep(Duration::from_secs(2)).await;
                    if well.load(Ordering::Relaxed) > 0 {
                        logins.accepted(&account(number), false);
                        break;
                    }
                    logins.refused(&account(number));
                    drop(leave);
                    sleep(Duration::from_hours(6)).await;
                }
                watched.fetch_add(1, Ordering::Relaxed);
            });
        }
        sleep(Duration::from_mins(9)).await;
        assert_eq!(tries.load(Ordering::Relaxed), MANY);
        sleep(Duration::from_mins(120)).await;
        // After 10, 20, 40 and 60 minutes.
        assert!((6..=7).contains(&tries.load(Ordering::Relaxed)), "{tries:?}");
        well.store(1, Ordering::Relaxed);
        sleep(Duration::from_mins(61)).await;
        // The others as soon as one was accepted.
        assert!(watched.load(Ordering::Relaxed) > 90, "{watched:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_between_accepted_logins_or_far_apart_are_the_accounts_own() {
        let logins = LoginBreaker::new(watch::Sender::default());
        let own = RefusalCause { backend: false, new: false };
        for number in 0..9 {
            assert_eq!(logins.refused(&account(number)), own);
            logins.accepted(&account(99), false);
            assert!(is_open(&logins).await);
        }
        for number in 0..9 {
            assert_eq!(logins.refused(&account(number)), own);
            assert_eq!(logins.refused(&account(number)), own, "one account alone");
            advance(WITHIN).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_refused_and_works_again_ends_it_for_all() {
        let logins = LoginBreaker::new(watch::Sender::default());
        let mut state = logins.state();
        let refusal = Instant::now();
        advance(Duration::from_mins(1)).await;
        for number in 0..3 {
            let blame = logins.refused(&account(number));
            assert_eq!((blame.backend, blame.new), (number == 2, number == 2));
        }
        let until = state.borrow().rest;
        assert!(!logins.refused(&account(3)).new);
        assert_eq!(state.borrow().rest, until, "it was under way");
        assert!(logins.leave(true, |_| ()).await.is_none(), "it is not the caller's password");
        assert!(state.borrow_and_update().explains(refusal.elapsed()));
        assert!(!is_open(&logins).await);
        // One that was never refused says nothing of the others.
        assert!(!logins.accepted(&account(7), false));
        assert!(state.borrow().explains(refusal.elapsed()) && is_open(&logins).await);
        assert!(logins.refused(&account(4)).backend);
        assert!(logins.accepted(&account(1), true));
        assert_eq!(
            (state.borrow().recoveries(), state.borrow().explains(Duration::ZERO)),
            (1, false)
        );
        assert!(!logins.refused(&account(1)).backend, "it begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn passwords_that_were_changed_are_not_the_backends_fault() {
        let logins = LoginBreaker::new(watch::Sender::default());
        for number in 0..4 {
            logins.refused(&account(number));
        }
        // Their users log in with others.
        for number in 0..2 {
            assert!(!logins.accepted(&account(number), false));
        }
        assert!(logins.leave(true, |_| ()).await.is_some());
        let blame = logins.refused(&account(2));
        assert_eq!(blame, RefusalCause { backend: false, new: false });
        assert_eq!(logins.state().borrow().recoveries(), 0);
    }
}
