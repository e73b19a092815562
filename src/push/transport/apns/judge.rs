//! What APNs says of a push, as a caller can act on it (PROTOCOL.md section 2, "Answers").
//!
//! Pure. The body is read leniently: a reason that nobody knew when this was written must not turn
//! an answer into an error.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::RETRY_AFTER;
use hyper::{Response, StatusCode};
use serde_json::Value;

use crate::model::Timestamp;
use crate::net::https::printable;
use crate::push::transport::Verdict;

/// How much of a reason that is not known is kept, for the log.
const MAX_REASON: usize = 100;

/// A time that is a smaller number than this is in seconds, as some gateways send it: in milliseconds
/// it would be before March 1973.
const FIRST_MILLIS: f64 = 1e11;

/// After a provider brought new tokens too often it is left alone for so long.
const TOKEN_UPDATES: Duration = Duration::from_mins(5);

/// The reason with which APNs refuses a provider token that is too old.
const EXPIRED_TOKEN: &str = "ExpiredProviderToken";

/// What an answer means. Its body is `{"reason":…,"timestamp":…}` where the status is not 200.
pub(super) fn judge(response: &Response<Bytes>) -> Verdict {
    let text = |name: &str| response.headers().get(name)?.to_str().ok();
    let retry_after = text(RETRY_AFTER.as_str()).and_then(retry_after);
    let (status, body) = (response.status().as_u16(), parsed(response));
    let reason = reason(&body);
    match (status, reason) {
        (200, _) => Verdict::Accepted { id: text("apns-id").map(str::to_owned) },
        // A 410 with another reason is not known to mean that the token is dead.
        (410, "Unregistered" | "ExpiredToken") => Verdict::Gone { since: since(&body) },
        (400, "BadDeviceToken") => Verdict::BadEndpoint,
        (400..500, "DeviceTokenNotForTopic") => Verdict::OtherRoute,
        // About us and not about the device.
        (429, "TooManyProviderTokenUpdates") => Verdict::RouteClosed {
            why: format!("APNs answered {status} {reason}"),
            retry_after: retry_after.max(Some(TOKEN_UPDATES)),
        },
        (429, _) => Verdict::TooMany { retry_after },
        (413, "PayloadTooLarge") => Verdict::TooLarge,
        (400..500, _) => {
            Verdict::Misconfigured { why: format!("{status} {}", printable(reason, MAX_REASON)) }
        }
        _ => {
            let why = format!("APNs answered {status} {}", printable(reason, MAX_REASON));
            Verdict::Unavailable { why: why.trim_end().into(), retry_after }
        }
    }
}

/// Whether APNs finds our provider token too old.
pub(super) fn is_expired_token(response: &Response<Bytes>) -> bool {
    response.status() == StatusCode::FORBIDDEN && reason(&parsed(response)) == EXPIRED_TOKEN
}

fn parsed(response: &Response<Bytes>) -> Value {
    serde_json::from_slice(response.body()).unwrap_or_default()
}

fn reason(body: &Value) -> &str {
    body.get("reason").and_then(Value::as_str).unwrap_or_default()
}

/// `Retry-After` in its form of seconds (RFC 9110 section 10.2.3); a date is taken for no hint.
pub(super) fn retry_after(value: &str) -> Option<Duration> {
    value.trim().parse().ok().map(Duration::from_secs)
}

fn since(body: &Value) -> Option<Timestamp> {
    let since = body.get("timestamp")?;
    // A number in quotes is no number in JSON, but would be as clear.
    let since = since.as_f64().or_else(|| since.as_str()?.parse().ok())?;
    let millis = if since < FIRST_MILLIS { since * 1000.0 } else { since };
    // A number of this size has its milliseconds exactly.
    (millis >= 1.0).then_some(Timestamp(millis as i64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: u16, body: &[u8], retry_after: Option<u64>) -> Verdict {
        let mut response = Response::builder().status(status).header("apns-id", "ID");
        if let Some(seconds) = retry_after {
            response = response.header(RETRY_AFTER, seconds);
        }
        judge(&response.body(Bytes::copy_from_slice(body)).unwrap())
    }

    #[test]
    fn each_answer_has_its_outcome() {
        let refused = |status: u16, reason: &str| Verdict::Misconfigured {
            why: format!("{status} {reason}"),
        };
        let gone = |since: Option<i64>| Verdict::Gone { since: since.map(Timestamp) };
        let later = Some(Duration::from_secs(7));
        let unavailable = |why: &str| Verdict::Unavailable { why: why.into(), retry_after: later };
        for (status, body, expected) in [
            (200, "", Verdict::Accepted { id: Some("ID".into()) }),
            (
                410,
                r#"{"reason":"Unregistered","timestamp":1700000000123}"#,
                gone(Some(1_700_000_000_123)),
            ),
            (
                410,
                r#"{"reason":"ExpiredToken","timestamp":"1700000000123"}"#,
                gone(Some(1_700_000_000_123)),
            ),
            // In seconds, as some gateways send it, whole or not.
            (
                410,
                r#"{"reason":"Unregistered","timestamp":1700000000}"#,
                gone(Some(1_700_000_000_000)),
            ),
            (
                410,
                r#"{"reason":"Unregistered","timestamp":"1700000000.5"}"#,
                gone(Some(1_700_000_000_500)),
            ),
            (410, r#"{"reason":"Unregistered"}"#, gone(None)),
            (410, r#"{"reason":"Unregistered","timestamp":{}}"#, gone(None)),
            (410, r#"{"reason":"MovedElsewhere","timestamp":1}"#, refused(410, "MovedElsewhere")),
            (410, "<html>", refused(410, "")),
            (400, r#"{"reason":"BadDeviceToken"}"#, Verdict::BadEndpoint),
            (403, r#"{"reason":"BadDeviceToken"}"#, refused(403, "BadDeviceToken")),
            (400, r#"{"reason":"DeviceTokenNotForTopic"}"#, Verdict::OtherRoute),
            (400, r#"{"reason":"TopicDisallowed"}"#, refused(400, "TopicDisallowed")),
            (400, r#"{"reason":"BadCollapseId"}"#, refused(400, "BadCollapseId")),
            (400, r#"{"reason":"NeverHeardOf\r\n"}"#, refused(400, "NeverHeardOf\\r\\n")),
            (400, r#"{"reason":7}"#, refused(400, "")),
            (400, "[]", refused(400, "")),
            (403, r#"{"reason":"BadCertificate"}"#, refused(403, "BadCertificate")),
            (413, r#"{"reason":"PayloadTooLarge"}"#, Verdict::TooLarge),
            (429, r#"{"reason":"TooManyRequests"}"#, Verdict::TooMany { retry_after: later }),
            (
                429,
                r#"{"reason":"TooManyProviderTokenUpdates"}"#,
                Verdict::RouteClosed {
                    why: "APNs answered 429 TooManyProviderTokenUpdates".into(),
                    retry_after: Some(TOKEN_UPDATES),
                },
            ),
            (
                500,
                r#"{"reason":"InternalServerError"}"#,
                unavailable("APNs answered 500 InternalServerError"),
            ),
            (503, "", unavailable("APNs answered 503")),
            (302, "", unavailable("APNs answered 302")),
        ] {
            assert_eq!(outcome(status, body.as_bytes(), Some(7)), expected, "{status} {body}");
        }
    }

    #[test]
    fn a_reason_of_any_length_stays_short() {
        let body = format!(r#"{{"reason":"{}"}}"#, "x".repeat(10_000));
        let Verdict::Misconfigured { why } = outcome(400, body.as_bytes(), None) else {
            panic!("not refused");
        };
        assert_eq!(why.len(), "400 ".len() + MAX_REASON);
    }

    #[test]
    fn retry_after_is_seconds() {
        assert_eq!(retry_after(" 120 "), Some(Duration::from_secs(120)));
        for other in ["", "-1", "Wed, 21 Oct 2026 07:28:00 GMT", "1.5"] {
            assert_eq!(retry_after(other), None, "{other}");
        }
    }
}
