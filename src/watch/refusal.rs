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

/// How long to wait after this many tries in a row were refused so, this one included; `None` when the
/// account is to be parked. `chance` is 0 to 1.
pub(super) fn wait(
    refusal: Refusal,
    tries: u32,
    backoff: Backoff,
    chance: f64,
) -> Option<Duration> {
    match refusal {
        Refusal::Temporary => Some(backoff.wait(tries, chance)),
        Refusal::Wrong | Refusal::Barred => {
            (tries < WRONG_TRIES).then(|| backoff.wait(tries, chance))
        }
        Refusal::Unexplained => (tries < UNEXPLAINED_TRIES).then_some(UNEXPLAINED_WAIT),
    }
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
    fn b41_a_password_is_tried_twice_or_three_times_far_apart_and_no_more() {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
        let waits =
            |refusal: Refusal| [1, 2, 3, 99].map(|tries| wait(refusal, tries, backoff, 1.0));
        let (second, minutes) = (Some(Duration::from_secs(1)), Some(Duration::from_mins(10)));
        assert_eq!(waits(Refusal::Wrong), [second, None, None, None]);
        assert_eq!(waits(Refusal::Unexplained), [minutes, minutes, None, None]);
        assert_eq!(waits(Refusal::Temporary)[3], Some(Duration::from_secs(300)));
    }
}
