//! Answers of FCM, push services and receivers of web hooks: only those that say so cost a subscription, only those
//! that say so end a push, and no text of theirs grows.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::push::transport::Verdict;
use mailchime::push::transport::fuzzing::{FuzzedService, judge};

const SERVICES: [FuzzedService; 4] = [
    FuzzedService::Fcm,
    FuzzedService::WebPush,
    FuzzedService::UsersWebhook,
    FuzzedService::OperatorsWebhook,
];
const STATUSES: [u16; 16] =
    [200, 201, 202, 204, 299, 302, 400, 401, 403, 404, 405, 410, 413, 429, 500, 503];

fuzz_target!(|data: &[u8]| -> Corpus {
    let [options, rest @ ..] = data else { return Corpus::Reject };
    let [which, body @ ..] = rest else { return Corpus::Reject };
    let service = SERVICES[usize::from(*options) % SERVICES.len()];
    let status = STATUSES[usize::from(*which) % STATUSES.len()];
    let later = (options & 0x80 != 0).then_some(Duration::from_secs(7));
    let Some(verdict) = judge(service, status, body, later) else { return Corpus::Reject };
    let says = |word: &str| String::from_utf8_lossy(body).contains(word);
    let is_accepted = match service {
        FuzzedService::Fcm => status == 200,
        FuzzedService::WebPush => matches!(status, 200 | 201 | 202 | 204),
        FuzzedService::UsersWebhook | FuzzedService::OperatorsWebhook => {
            (200..300).contains(&status)
        }
    };
    assert_eq!(matches!(verdict, Verdict::Accepted { .. }), is_accepted);
    match &verdict {
        Verdict::Accepted { id } => id.iter().for_each(|id| short(id)),
        Verdict::Gone { since } => {
            assert_eq!(*since, None);
            match service {
                FuzzedService::Fcm => assert!(says("UNREGISTERED") || says("\\u"), "{status}"),
                FuzzedService::WebPush | FuzzedService::UsersWebhook => assert_eq!(status, 410),
                FuzzedService::OperatorsWebhook => panic!("it stands in the configuration"),
            }
        }
        Verdict::BadEndpoint => match service {
            FuzzedService::Fcm => assert!(
                says("SENDER_ID_MISMATCH") || says("INVALID_ARGUMENT") || says("\\u"),
                "{status}"
            ),
            FuzzedService::WebPush => assert_eq!(status, 404),
            FuzzedService::UsersWebhook | FuzzedService::OperatorsWebhook => {
                panic!("a receiver has no endpoints")
            }
        },
        Verdict::OtherRoute => panic!("none of them says so"),
        Verdict::Unrenderable { .. } => panic!("an answer to what was never sent"),
        Verdict::TooLarge => assert_eq!(status, 413),
        Verdict::TooLargeInShort => panic!("of one answer alone that is not known"),
        Verdict::Refused { why } => {
            assert!(service == FuzzedService::WebPush && matches!(status, 401 | 403), "{status}");
            short(why);
        }
        Verdict::Rejected { why } => {
            let may_rest = matches!(service, FuzzedService::Fcm | FuzzedService::WebPush);
            assert!(may_rest && (400..500).contains(&status) && status != 408, "{status}");
            short(why);
        }
        Verdict::Misconfigured { why } => short(why),
        Verdict::TooMany { retry_after } => assert_eq!(*retry_after, later),
        Verdict::Unavailable { why, retry_after } | Verdict::RouteClosed { why, retry_after } => {
            short(why);
            assert_eq!(*retry_after, later);
        }
    }
    Corpus::Keep
});

/// Texts are fit for a log line: of bounded length, and without control bytes.
fn short(text: &str) {
    assert!(text.chars().count() <= 100 * 10 + 100, "{} characters", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}
