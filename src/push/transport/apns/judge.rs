//! What APNs made of a push, as a caller can act on it (PROTOCOL.md section 2, "Answers").
//!
//! Pure. The body is read leniently: a reason that nobody knew when this was written must not turn
//! an answer into an error.

use std::time::Duration;

use serde_json::Value;

use crate::model::Timestamp;

/// How much of a reason that is not known is kept, for the log.
const MAX_REASON: usize = 100;

/// A time that is a smaller number than this is in seconds, as some gateways send it: in milliseconds
/// it would be before March 1973.
const FIRST_MILLIS: f64 = 1e11;

/// After a provider brought new tokens too often it is left alone for so long.
const TOKEN_UPDATES: Duration = Duration::from_mins(5);

/// What became of one push. No text in here holds a device token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 200: APNs has it. Whether the device shows anything is not known.
    Accepted {
        /// The name under which Apple can find it.
        apns_id: String,
    },
    /// 410: the token is dead.
    Gone {
        /// Since when; a registration that is newer than this is none of the dead.
        since: Option<Timestamp>,
    },
    /// 400 `BadDeviceToken`: a dead token, or a token of the other environment.
    BadToken,
    /// `DeviceTokenNotForTopic`: heals when the device registers again.
    NotForTopic,
    /// 403, `TopicDisallowed` and what else only an operator can mend.
    Refused { status: u16, reason: String },
    /// 429: this device is pushed too often.
    TooMany { retry_after: Option<Duration> },
    /// 5xx, no answer in time, no connection: nobody's registration is to blame.
    Unavailable {
        why: String,
        retry_after: Option<Duration>,
        /// No push can be sent, to whichever device: there is no connection, or nothing that proves
        /// who we are. If not, it may be about this push alone.
        of_all: bool,
    },
}

impl Outcome {
    /// One word, for logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Accepted { .. } => "accepted",
            Self::Gone { .. } => "gone",
            Self::BadToken => "bad-token",
            Self::NotForTopic => "not-for-topic",
            Self::Refused { .. } => "refused",
            Self::TooMany { .. } => "too-many",
            Self::Unavailable { .. } => "unavailable",
        }
    }

    pub(super) fn unavailable(why: impl Into<String>) -> Self {
        Self::Unavailable { why: why.into(), retry_after: None, of_all: false }
    }

    /// Nothing can be sent, for this reason.
    pub(in crate::push) fn cannot_send(why: impl Into<String>) -> Self {
        Self::Unavailable { why: why.into(), retry_after: None, of_all: true }
    }
}

/// The outcome that an answer stands for. `apns_id` is the answer's own or the one that was sent;
/// `body` is what APNs says beside a status that is not 200: `{"reason":…,"timestamp":…}`.
pub(super) fn outcome(
    status: u16,
    body: &[u8],
    apns_id: &str,
    retry_after: Option<Duration>,
) -> Outcome {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let reason = body.get("reason").and_then(Value::as_str).unwrap_or_default();
    match (status, reason) {
        (200, _) => Outcome::Accepted { apns_id: apns_id.into() },
        // A 410 with another reason is not known to mean that the token is dead.
        (410, "Unregistered" | "ExpiredToken") => Outcome::Gone { since: since(&body) },
        (400, "BadDeviceToken") => Outcome::BadToken,
        (400..500, "DeviceTokenNotForTopic") => Outcome::NotForTopic,
        // About us and not about the device.
        (429, "TooManyProviderTokenUpdates") => Outcome::Unavailable {
            why: format!("APNs answered {status} {reason}"),
            retry_after: retry_after.max(Some(TOKEN_UPDATES)),
            of_all: true,
        },
        (429, _) => Outcome::TooMany { retry_after },
        (400..500, _) => Outcome::Refused { status, reason: printable(reason) },
        _ => {
            let why = format!("APNs answered {status} {}", printable(reason));
            Outcome::Unavailable { why: why.trim_end().into(), retry_after, of_all: false }
        }
    }
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

/// A peer's text, fit for a log line.
fn printable(reason: &str) -> String {
    reason.chars().take(MAX_REASON).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_has_its_outcome() {
        let refused = |status, reason: &str| Outcome::Refused { status, reason: reason.into() };
        let gone = |since: Option<i64>| Outcome::Gone { since: since.map(Timestamp) };
        let later = Some(Duration::from_secs(7));
        let unavailable =
            |why: &str| Outcome::Unavailable { why: why.into(), retry_after: later, of_all: false };
        for (status, body, expected) in [
            (200, "", Outcome::Accepted { apns_id: "ID".into() }),
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
            (400, r#"{"reason":"BadDeviceToken"}"#, Outcome::BadToken),
            (403, r#"{"reason":"BadDeviceToken"}"#, refused(403, "BadDeviceToken")),
            (400, r#"{"reason":"DeviceTokenNotForTopic"}"#, Outcome::NotForTopic),
            (400, r#"{"reason":"TopicDisallowed"}"#, refused(400, "TopicDisallowed")),
            (400, r#"{"reason":"BadCollapseId"}"#, refused(400, "BadCollapseId")),
            (400, r#"{"reason":"NeverHeardOf\r\n"}"#, refused(400, "NeverHeardOf\\r\\n")),
            (400, r#"{"reason":7}"#, refused(400, "")),
            (400, "[]", refused(400, "")),
            (403, r#"{"reason":"BadCertificate"}"#, refused(403, "BadCertificate")),
            (413, r#"{"reason":"PayloadTooLarge"}"#, refused(413, "PayloadTooLarge")),
            (429, r#"{"reason":"TooManyRequests"}"#, Outcome::TooMany { retry_after: later }),
            (
                429,
                r#"{"reason":"TooManyProviderTokenUpdates"}"#,
                Outcome::Unavailable {
                    why: "APNs answered 429 TooManyProviderTokenUpdates".into(),
                    retry_after: Some(TOKEN_UPDATES),
                    of_all: true,
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
            assert_eq!(outcome(status, body.as_bytes(), "ID", later), expected, "{status} {body}");
        }
    }

    #[test]
    fn a_reason_of_any_length_stays_short() {
        let body = format!(r#"{{"reason":"{}"}}"#, "x".repeat(10_000));
        let Outcome::Refused { reason, .. } = outcome(400, body.as_bytes(), "ID", None) else {
            panic!("not refused");
        };
        assert_eq!(reason.len(), MAX_REASON);
    }

    #[test]
    fn retry_after_is_seconds() {
        assert_eq!(retry_after(" 120 "), Some(Duration::from_secs(120)));
        for other in ["", "-1", "Wed, 21 Oct 2026 07:28:00 GMT", "1.5"] {
            assert_eq!(retry_after(other), None, "{other}");
        }
    }
}
