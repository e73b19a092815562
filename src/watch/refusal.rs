//! What a refused login means: whether to try again, and when. Pure.

use std::time::Duration;

use crate::imap::login::has_code;
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

/// A backend's NO or BAD to a login, by its response code (RFC 5530).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It will pass, and says nothing of the password.
    Temporary,
    /// The password, or the user.
    Wrong,
    /// No code, or one that does not tell.
    Unexplained,
}

impl Refusal {
    /// `answer` is the tagged NO or BAD behind its tag.
    pub(super) fn of(answer: &[u8]) -> Self {
        let says = |codes: &[&str]| codes.iter().any(|code| has_code(answer, code));
        if says(&["UNAVAILABLE", "LIMIT", "INUSE", "SERVERBUG", "OVERQUOTA"]) {
            Self::Temporary
        } else if says(&[
            "AUTHENTICATIONFAILED",
            "AUTHORIZATIONFAILED",
            "EXPIRED",
            "PRIVACYREQUIRED",
            "CONTACTADMIN",
        ]) {
            Self::Wrong
        } else {
            Self::Unexplained
        }
    }

    /// How long to wait after this many tries in a row were refused, this one included; `None`
    /// when the account is to be parked. `chance` is 0 to 1.
    pub(super) fn wait(self, tries: u32, backoff: Backoff, chance: f64) -> Option<Duration> {
        match self {
            Self::Temporary => Some(backoff.wait(tries, chance)),
            Self::Wrong => (tries < WRONG_TRIES).then(|| backoff.wait(tries, chance)),
            Self::Unexplained => (tries < UNEXPLAINED_TRIES).then_some(UNEXPLAINED_WAIT),
        }
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
    fn b42_the_code_tells_a_wrong_password_from_a_backend_in_trouble() {
        for (answer, expected) in [
            ("NO [AUTHENTICATIONFAILED] Authentication failed.", Refusal::Wrong),
            ("NO [authorizationfailed] x", Refusal::Wrong),
            ("NO [UNAVAILABLE] Temporary authentication failure.", Refusal::Temporary),
            ("NO [UNAVAILABLE] Maximum number of connections", Refusal::Temporary),
            ("NO [LIMIT] too many", Refusal::Temporary),
            ("NO [INUSE] busy", Refusal::Temporary),
            ("NO [ALERT] Too many simultaneous connections. (Failure)", Refusal::Unexplained),
            ("NO Login failed", Refusal::Unexplained),
            ("NO see [AUTHENTICATIONFAILED]", Refusal::Unexplained),
            ("BAD cancelled", Refusal::Unexplained),
        ] {
            assert_eq!(Refusal::of(format!(" {answer}\r\n").as_bytes()), expected, "{answer}");
        }
    }

    #[test]
    fn b41_a_password_is_tried_twice_or_three_times_far_apart_and_no_more() {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
        let waits = |refusal: Refusal| [1, 2, 3, 99].map(|tries| refusal.wait(tries, backoff, 1.0));
        let (second, minutes) = (Some(Duration::from_secs(1)), Some(Duration::from_mins(10)));
        assert_eq!(waits(Refusal::Wrong), [second, None, None, None]);
        assert_eq!(waits(Refusal::Unexplained), [minutes, minutes, None, None]);
        assert_eq!(waits(Refusal::Temporary)[3], Some(Duration::from_secs(300)));
    }
}
