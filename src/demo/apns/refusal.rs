//! What Apple finds wrong with a request, in the order in which it looks.

use std::collections::BTreeMap;

use bytes::Bytes;
use hyper::Method;
use serde_json::Value;

use crate::imap::registration::xapple::DeviceToken;

/// Apple's limit for everything but VoIP.
pub(super) const PAYLOAD: usize = 4096;

const PUSH_TYPES: [&str; 11] = [
    "alert",
    "background",
    "complication",
    "controls",
    "fileprovider",
    "liveactivity",
    "location",
    "mdm",
    "pushtotalk",
    "voip",
    "widgets",
];

/// What Apple finds wrong with a request ("Handling notification responses from APNs"). `given` is
/// the token in the path, `body` is none if it was too long.
pub(super) fn refusal(
    method: &Method,
    given: Option<&str>,
    headers: &BTreeMap<String, String>,
    topics: &[String],
    body: Option<&Bytes>,
) -> Option<(u16, &'static str)> {
    let header = |name| headers.get(name).map(String::as_str);
    if *method != Method::POST {
        return Some((405, "MethodNotAllowed"));
    }
    let Some(given) = given else { return Some((404, "BadPath")) };
    if given.is_empty() {
        return Some((400, "MissingDeviceToken"));
    }
    if DeviceToken::new(given).is_none() || given.bytes().all(|digit| digit == b'0') {
        return Some((400, "BadDeviceToken"));
    }
    match header("apns-topic") {
        None => return Some((400, "MissingTopic")),
        Some(asked) if topics.iter().any(|topic| topic == asked) => {}
        Some(_) => return Some((400, "TopicDisallowed")),
    }
    match header("apns-push-type") {
        Some(kind) if PUSH_TYPES.contains(&kind) => {}
        _ => return Some((400, "InvalidPushType")),
    }
    match (header("apns-priority"), header("apns-push-type")) {
        (Some("10"), Some("background")) => return Some((400, "BadPriority")),
        (None | Some("1" | "5" | "10"), _) => {}
        _ => return Some((400, "BadPriority")),
    }
    if header("apns-expiration").is_some_and(|at| at.parse::<u64>().is_err()) {
        return Some((400, "BadExpirationDate"));
    }
    if header("apns-collapse-id").is_some_and(|id| id.len() > 64) {
        return Some((400, "BadCollapseId"));
    }
    match body {
        None => Some((413, "PayloadTooLarge")),
        Some(body) if body.is_empty() => Some((400, "PayloadEmpty")),
        // Apple has no reason of its own for a body that is no JSON object.
        Some(body) if !serde_json::from_slice(body).is_ok_and(|json: Value| json.is_object()) => {
            Some((400, "BadPayload"))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12";

    #[test]
    fn apple_refuses_what_is_wrong() {
        let good = || {
            BTreeMap::from(
                [("apns-topic", "t"), ("apns-push-type", "background")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned())),
            )
        };
        let with = |name: &str, value: &str| {
            let mut headers = good();
            headers.insert(name.to_owned(), value.to_owned());
            headers
        };
        let without = |name: &str| {
            let mut headers = good();
            headers.remove(name);
            headers
        };
        let topics = ["s".to_owned(), "t".to_owned()];
        let zeros = "0".repeat(64);
        let odd = &TOKEN[1..];
        let long = "x".repeat(65);
        for (token, headers, body, expected) in [
            (Some(TOKEN), good(), Some("{}"), None),
            (Some(TOKEN), with("apns-priority", "5"), Some("{}"), None),
            (Some(TOKEN), with("apns-priority", "10"), Some("{}"), Some((400, "BadPriority"))),
            (Some(TOKEN), with("apns-priority", "7"), Some("{}"), Some((400, "BadPriority"))),
            (Some(TOKEN), with("apns-topic", "u"), Some("{}"), Some((400, "TopicDisallowed"))),
            (Some(TOKEN), without("apns-topic"), Some("{}"), Some((400, "MissingTopic"))),
            (Some(TOKEN), without("apns-push-type"), Some("{}"), Some((400, "InvalidPushType"))),
            (Some(TOKEN), with("apns-push-type", "x"), Some("{}"), Some((400, "InvalidPushType"))),
            (
                Some(TOKEN),
                with("apns-expiration", "-1"),
                Some("{}"),
                Some((400, "BadExpirationDate")),
            ),
            (
                Some(TOKEN),
                with("apns-collapse-id", &long),
                Some("{}"),
                Some((400, "BadCollapseId")),
            ),
            (Some(TOKEN), good(), None, Some((413, "PayloadTooLarge"))),
            (Some(TOKEN), good(), Some(""), Some((400, "PayloadEmpty"))),
            (Some(TOKEN), good(), Some("{"), Some((400, "BadPayload"))),
            (Some(zeros.as_str()), good(), Some("{}"), Some((400, "BadDeviceToken"))),
            (Some(odd), good(), Some("{}"), Some((400, "BadDeviceToken"))),
            (Some("xyz"), good(), Some("{}"), Some((400, "BadDeviceToken"))),
            (Some(""), good(), Some("{}"), Some((400, "MissingDeviceToken"))),
            (None, good(), Some("{}"), Some((404, "BadPath"))),
        ] {
            let body = body.map(Bytes::from);
            let refused = refusal(&Method::POST, token, &headers, &topics, body.as_ref());
            assert_eq!(refused, expected, "{token:?} {headers:?} {body:?}");
        }
        let get = refusal(&Method::GET, Some(TOKEN), &good(), &topics, None);
        assert_eq!(get, Some((405, "MethodNotAllowed")));
    }
}
