//! Whether our clock and that of APNs agree. One that is wrong makes provider tokens expire before
//! they are made, certificates end early and devices outlive their registration.

use std::time::{Duration, UNIX_EPOCH};

use hyper::header::HeaderValue;
use parking_lot::Mutex;
use tracing::warn;

use crate::model::Timestamp;

/// What is put down to the way of the answer, and to clocks as they are.
const TOLERATED: Duration = Duration::from_mins(5);
/// How often a clock that stays wrong is logged.
const REMINDER: Duration = Duration::from_hours(24);

/// What was last seen.
#[derive(Debug, Default)]
pub(super) struct Skew {
    /// When it was warned of.
    warned: Mutex<Option<Timestamp>>,
}

impl Skew {
    /// Compares the `Date` of an answer (RFC 9110 section 6.6.1) with our clock.
    pub(super) fn look(&self, date: Option<&HeaderValue>, now: Timestamp) {
        let Some(seconds) = date.and_then(|date| ahead(date, now)) else { return };
        let mut warned = self.warned.lock();
        if seconds.unsigned_abs() <= TOLERATED.as_secs() {
            *warned = None;
        } else if warned.is_none_or(|at| now < at || at <= now.minus(REMINDER)) {
            *warned = Some(now);
            warn!(
                target: "mailchime::push::clock_skew",
                seconds,
                "the clock of this machine is ahead of that of APNs by so many seconds, or behind \
                 if negative; correct it"
            );
        }
    }
}

/// By how many seconds our clock is ahead.
fn ahead(date: &HeaderValue, now: Timestamp) -> Option<i64> {
    let theirs = httpdate::parse_http_date(date.to_str().ok()?).ok()?;
    let theirs = theirs.duration_since(UNIX_EPOCH).ok()?.as_secs();
    Some((now.0 / 1000).saturating_sub(i64::try_from(theirs).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_clock_is_reported_at_once_and_then_daily() {
        let date = HeaderValue::from_static("Fri, 15 Jan 2027 08:00:00 GMT");
        let theirs = 1_800_000_000;
        let at = |seconds: i64| Timestamp((theirs + seconds) * 1000);
        assert_eq!(ahead(&date, at(-301)), Some(-301));
        assert_eq!(ahead(&HeaderValue::from_static("soon"), at(0)), None);

        let skew = Skew::default();
        let warned = |now| {
            skew.look(Some(&date), now);
            *skew.warned.lock()
        };
        assert_eq!((warned(at(300)), warned(at(-300))), (None, None));
        assert_eq!((warned(at(301)), warned(at(400))), (Some(at(301)), Some(at(301))));
        let tomorrow = at(301 + 24 * 3600);
        assert_eq!((warned(tomorrow), warned(at(0))), (Some(tomorrow), None));
        assert_eq!(warned(at(-301)), Some(at(-301)));
    }
}
