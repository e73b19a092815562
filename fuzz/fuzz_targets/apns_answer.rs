//! APNs' answers: only those that say so cost a registration, and no text of theirs grows.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::push::transport::Verdict;
use mailchime::push::transport::apns::fuzzing::{judge, retry_after};

const STATUSES: [u16; 11] = [200, 400, 403, 404, 405, 410, 413, 429, 500, 503, 302];

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&options, body)) = data.split_first() else { return Corpus::Reject };
    let status = STATUSES[usize::from(options) % STATUSES.len()];
    let later = (options & 0x80 != 0).then_some(Duration::from_secs(7));
    let Some(verdict) = judge(status, body, later) else { return Corpus::Reject };
    let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let reason = json.as_ref().and_then(|json| json["reason"].as_str()).unwrap_or_default();
    match &verdict {
        Verdict::Accepted { id } => assert_eq!((status, id.as_deref()), (200, Some("ID"))),
        Verdict::Gone { since } => {
            assert!(status == 410 && matches!(reason, "Unregistered" | "ExpiredToken"));
            assert!(since.is_none_or(|since| since.0 > 0));
            let said = json.as_ref().map(|json| &json["timestamp"]);
            let number =
                said.and_then(|said| said.as_f64().or_else(|| said.as_str()?.parse().ok()));
            // In milliseconds or, if it would be before 1973, in seconds.
            let units = [1.0, 1000.0].map(|unit| number.map(|number| (number * unit) as i64));
            assert!(since.is_none_or(|since| units.contains(&Some(since.0))));
        }
        Verdict::Unrenderable { .. } => panic!("an answer to what was never sent"),
        Verdict::BadEndpoint => assert_eq!((status, reason), (400, "BadDeviceToken")),
        Verdict::OtherRoute => {
            assert!((400..500).contains(&status) && reason == "DeviceTokenNotForTopic");
        }
        Verdict::TooLarge => assert_eq!((status, reason), (413, "PayloadTooLarge")),
        Verdict::TooLargeInShort => panic!("of one answer alone that is not known"),
        Verdict::Refused { .. } | Verdict::Rejected { .. } => {
            panic!("APNs says what an operator has to mend");
        }
        Verdict::Misconfigured { why } => {
            assert!((400..500).contains(&status) && why.starts_with(&status.to_string()));
            short(why);
        }
        Verdict::TooMany { retry_after } => assert_eq!((status, *retry_after), (429, later)),
        Verdict::Unavailable { why, retry_after } => {
            short(why);
            assert_eq!(*retry_after, later);
        }
        Verdict::RouteClosed { why, retry_after } => {
            short(why);
            assert!(status == 429 && *retry_after >= later);
        }
    }
    assert_eq!(matches!(verdict, Verdict::Accepted { .. }), status == 200);
    assert!(!verdict.name().is_empty());
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
