//! `Retry-After` (RFC 9110 section 10.2.3), as seconds or as a date.

use std::time::Duration;

use hyper::HeaderMap;
use hyper::header::{DATE, RETRY_AFTER};

/// How long the server asks to be left alone. A date counts from that of the answer, so that a wrong
/// clock here does no harm; without that it is no hint.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok().map(str::trim);
    let given = text(RETRY_AFTER)?;
    if let Ok(seconds) = given.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let (until, now) = (httpdate::parse_http_date(given), httpdate::parse_http_date(text(DATE)?));
    until.ok()?.duration_since(now.ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_seconds_or_a_date_after_that_of_the_answer() {
        let now = "Wed, 21 Oct 2026 07:28:00 GMT";
        for (given, date, expected) in [
            ("120", None, Some(120)),
            (" 0 ", None, Some(0)),
            ("-1", None, None),
            ("1.5", None, None),
            ("", None, None),
            ("Wed, 21 Oct 2026 07:29:30 GMT", Some(now), Some(90)),
            ("Wed, 21 Oct 2026 07:27:00 GMT", Some(now), None),
            ("Wed, 21 Oct 2026 07:29:30 GMT", None, None),
            ("Wed, 21 Oct 2026 07:29:30 GMT", Some("today"), None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, given.parse().unwrap());
            headers.extend(date.map(|date: &str| (DATE, date.parse().unwrap())));
            assert_eq!(retry_after(&headers), expected.map(Duration::from_secs), "{given}");
        }
    }
}
