//! APNs' answers: only those that say so cost a registration, and no text of theirs grows.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::push::transport::apns::Outcome;
use mailchime::push::transport::apns::fuzzing::{outcome, retry_after};

const STATUSES: [u16; 12] = [200, 400, 403, 404, 405, 410, 413, 429, 500, 503, 302, 0];

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&options, body)) = data.split_first() else { return Corpus::Reject };
    let status = STATUSES[usize::from(options) % STATUSES.len()];
    let later = (options & 0x80 != 0).then_some(Duration::from_secs(7));
    let told = outcome(status, body, "ID", later);
    let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let reason = json.as_ref().and_then(|json| json["reason"].as_str()).unwrap_or_default();
    match &told {
        Outcome::Accepted { apns_id } => assert_eq!((status, &apns_id[..]), (200, "ID")),
        Outcome::Gone { since } => {
            assert!(status == 410 && matches!(reason, "Unregistered" | "ExpiredToken"));
            assert!(since.is_none_or(|since| since.0 > 0));
            let told = json.as_ref().map(|json| &json["timestamp"]);
            let number =
                told.and_then(|told| told.as_f64().or_else(|| told.as_str()?.parse().ok()));
            // In milliseconds or, if it would be before 1973, in seconds.
            let units = [1.0, 1000.0].map(|unit| number.map(|number| (number * unit) as i64));
            assert!(since.is_none_or(|since| units.contains(&Some(since.0))));
        }
        Outcome::BadToken => assert_eq!((status, reason), (400, "BadDeviceToken")),
        Outcome::NotForTopic => {
            assert!((400..500).contains(&status) && reason == "DeviceTokenNotForTopic");
        }
        Outcome::Refused { status: told, reason } => {
            assert_eq!(*told, status);
            short(reason);
        }
        Outcome::TooMany { retry_after } => assert_eq!((status, *retry_after), (429, later)),
        Outcome::Unavailable { why, retry_after, of_all } => {
            short(why);
            assert!(*retry_after == later || status == 429);
            assert_eq!(*of_all, status == 429);
        }
    }
    assert_eq!(matches!(told, Outcome::Accepted { .. }), status == 200);
    assert!(!told.name().is_empty());
    if let Ok(text) = std::str::from_utf8(body) {
        let seconds = text.trim().parse::<u64>().ok().map(Duration::from_secs);
        assert_eq!(retry_after(text), seconds);
    }
    Corpus::Keep
});

/// Texts are fit for a log line: of bounded length, and without control bytes.
fn short(text: &str) {
    assert!(text.chars().count() <= 100 * 10 + 50, "{} characters", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}
