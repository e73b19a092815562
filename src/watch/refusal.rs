//! What a refused login means to a watcher: whether to try again, and when. Pure.

use std::time::Duration;

use crate::imap::refusal::Refusal;
use crate::net::backoff::Backoff;

/// Tries of a password that the backend calls wrong: more would have it ban our address.
const WRONG_TRIES: u32 = 2;

/// Tries of a password that was refused without a reason, and the wait between them. Most servers
/// say no more about a wrong password, but it may be their own trouble as well.
const UNEXPLAINED_TRIES: u32 = 3;
const UNEXPLAINED_WAIT: Duration = Duration::from_mins(10);

/// The first wait of an account as which the master user was refused, and the longest. No login of its
/// user could mend that, so there is always another try.
const MASTER_WAITS: [Duration; 2] = [Duration::from_mins(10), Duration::from_hours(1)];

/// Tries of an account that are refused in a row, in all: a backend that locks accounts does so after five
/// or more.
const MOST_TRIES: u32 = 4;

/// An account that is parked is tried again after the first time, and after the second one more: what was
/// refused may have been right.
const RETRIES: [Duration; 2] = [Duration::from_hours(4), Duration::from_hours(20)];

/// Between the tries of an account while its backend refuses everybody.
const FAULT_WAITS: [Duration; 3] =
    [Duration::from_mins(10), Duration::from_hours(1), Duration::from_hours(6)];

/// What comes after a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AfterRefusal {
    /// Another try after this time.
    Again(Duration),
    /// The account waits for its user to log in; it is tried again after this time all the same.
    Park(Option<Duration>),
}

/// How long an account waits of which so many tries in a row were refused while its backend refuses
/// everybody; `None` if there were too many.
pub(super) fn wait_for_backend(tries: u32, chance: f64) -> Option<Duration> {
    let place = usize::try_from(tries.saturating_sub(1)).ok()?;
    FAULT_WAITS.get(place).map(|wait| spread(*wait, chance))
}

/// Whether an account of which so many tries in a row were refused is not parked while its backend refuses everybody.
pub(super) fn is_excused(tries: u32) -> bool {
    wait_for_backend(tries, 0.0).is_some()
}

/// What comes after this many tries in a row were refused, this one included, with what the backend said
/// last. `chance` is 0 to 1.
pub(super) fn then(refusal: Refusal, tries: u32, backoff: Backoff, chance: f64) -> AfterRefusal {
    match refusal {
        _ if tries >= MOST_TRIES => AfterRefusal::Park(None),
        Refusal::Temporary => AfterRefusal::Again(backoff.wait(tries, chance)),
        Refusal::Wrong | Refusal::Barred if tries < WRONG_TRIES => {
            AfterRefusal::Again(backoff.wait(tries, chance))
        }
        Refusal::Unexplained if tries < UNEXPLAINED_TRIES => AfterRefusal::Again(UNEXPLAINED_WAIT),
        _ => AfterRefusal::Park(retry(tries, chance)),
    }
}

/// After how long an account is tried again that was parked when so many tries had been refused.
pub(super) fn retry(tries: u32, chance: f64) -> Option<Duration> {
    let [soon, last] = RETRIES;
    match MOST_TRIES.saturating_sub(tries) {
        0 => None,
        1 => Some(spread(last, chance)),
        _ => Some(spread(soon, chance)),
    }
}

/// After how long an account is tried again that is not parked, after a restart.
pub(super) fn again(chance: f64) -> Duration {
    spread(UNEXPLAINED_WAIT, chance)
}

/// Up to a quarter more, so that many do not come back together.
fn spread(wait: Duration, chance: f64) -> Duration {
    wait.mul_f64(1.0 + chance.clamp(0.0, 1.0) / 4.0)
}

/// How long an account waits as which the master user was refused so often in a row. `chance` is 0
/// to 1.
pub(super) fn master_wait(tries: u32, chance: f64) -> Duration {
    let [first, longest] = MASTER_WAITS;
    Backoff::new(first, longest).wait(tries, chance).max(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_tried_twice_or_three_times_far_apart_and_four_times_in_all() {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
        let thens = |refusal: Refusal| [1, 2, 3, 4].map(|tries| then(refusal, tries, backoff, 0.0));
        let [soon, last] = RETRIES.map(Some).map(AfterRefusal::Park);
        let second = AfterRefusal::Again(Duration::from_millis(500));
        let minutes = AfterRefusal::Again(Duration::from_mins(10));
        let never = AfterRefusal::Park(None);
        assert_eq!(thens(Refusal::Wrong), [second, soon, last, never]);
        assert_eq!(thens(Refusal::Unexplained), [minutes, minutes, last, never]);
        let rare = [1, 2, 3, 4].map(|tries| wait_for_backend(tries, 0.0));
        assert_eq!((&rare[..3], rare[3]), (&FAULT_WAITS.map(Some)[..], None));
    }
}
