//! What FCM says of a message, as the scheduler can act on it. Pure.
//!
//! `errorCode` in the detail of FCM's own type counts, or else `status`: the HTTP status alone is ambiguous
//! (404 is a dead token, and a project that does not exist).
//! <https://firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode>

use bytes::Bytes;
use hyper::{Response, StatusCode};
use serde::Deserialize;

use crate::net::https::printable;
use crate::push::transport::Verdict;
use crate::push::transport::retry_after::retry_after;

const FCM_ERROR: &str = "type.googleapis.com/google.firebase.fcm.v1.FcmError";
const BAD_REQUEST: &str = "type.googleapis.com/google.rpc.BadRequest";

/// With these words an `INVALID_ARGUMENT` is about the token.
const NO_TOKEN: &str = "The registration token is not a valid FCM registration token";

/// How much of a word that is not known is kept, for the log.
const MAX_WORD: usize = 60;

#[derive(Default, Deserialize)]
#[serde(default)]
struct FcmResponse {
    error: AnswerError,
    name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AnswerError {
    status: String,
    message: String,
    details: Vec<AnswerDetail>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AnswerDetail {
    #[serde(rename = "@type")]
    kind: String,
    #[serde(rename = "errorCode")]
    code: String,
    #[serde(rename = "fieldViolations")]
    violations: Vec<serde_json::Value>,
}

/// What an answer means. What cannot be read of it counts as not said.
pub(in crate::push::transport) fn judge(response: &Response<Bytes>) -> Verdict {
    let (http, retry_after) = (response.status().as_u16(), retry_after(response.headers()));
    if http == 200 {
        let name = parsed(response).name;
        return Verdict::Accepted { id: name.map(|name| printable(&name, MAX_WORD)) };
    }
    let error = parsed(response).error;
    let (AnswerError { message, details, .. }, (word, by_fcm)) = (&error, error.word());
    let why = || format!("FCM answered {http} {}", printable(word, MAX_WORD)).trim_end().to_owned();
    match word {
        "UNREGISTERED" if by_fcm => Verdict::Gone { since: None },
        // Of another project. If most are, it is the project that is the wrong one.
        "SENDER_ID_MISMATCH" if by_fcm => Verdict::BadEndpoint,
        "INVALID_ARGUMENT" if by_fcm && message.contains(NO_TOKEN) && !names_fields(details) => {
            Verdict::BadEndpoint
        }
        "QUOTA_EXCEEDED" | "RESOURCE_EXHAUSTED" => Verdict::TooMany { retry_after },
        "UNAVAILABLE" | "INTERNAL" => Verdict::Unavailable { why: why(), retry_after },
        _ if http == 429 => Verdict::TooMany { retry_after },
        // Google says not to send these again. A 408 is none of FCM's.
        _ if (400..500).contains(&http) && http != 408 => Verdict::Rejected { why: why() },
        _ => Verdict::Unavailable { why: why(), retry_after },
    }
}

/// Whether FCM finds our access token too old, or none of its own.
pub(super) fn refuses_token(response: &Response<Bytes>) -> bool {
    response.status() == StatusCode::UNAUTHORIZED
        && parsed(response).error.word() == ("UNAUTHENTICATED", false)
}

fn parsed(response: &Response<Bytes>) -> FcmResponse {
    serde_json::from_slice(response.body()).unwrap_or_default()
}

impl AnswerError {
    /// What counts of it, and whether that is FCM's own code.
    fn word(&self) -> (&str, bool) {
        let code = self.details.iter().find(|it| it.kind == FCM_ERROR && !it.code.is_empty());
        code.map_or((&self.status, false), |detail| (&detail.code, true))
    }
}

/// Whether it says which fields of the message are wrong: then it is the message.
fn names_fields(details: &[AnswerDetail]) -> bool {
    details.iter().any(|detail| detail.kind == BAD_REQUEST && !detail.violations.is_empty())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper::header::RETRY_AFTER;
    use serde_json::{Value, json};

    use super::*;

    fn error(status: &str, code: &str, message: &str) -> Value {
        let mut error = json!({ "error": { "status": status, "message": message } });
        if !code.is_empty() {
            error["error"]["details"] = json!([
                { "@type": "type.googleapis.com/google.rpc.Other", "errorCode": "UNREGISTERED" },
                { "@type": FCM_ERROR, "errorCode": code },
            ]);
        }
        error
    }

    #[test]
    fn each_answer_has_its_outcome() {
        let later = Some(Duration::from_secs(7));
        let refused = |why: &str| Verdict::Rejected { why: format!("FCM answered {why}") };
        let unavailable = |why: &str| Verdict::Unavailable {
            why: format!("FCM answered {why}"),
            retry_after: later,
        };
        let gone = Verdict::Gone { since: None };
        let not_found = "Requested entity was not found.";
        let mut our_fault = error("INVALID_ARGUMENT", "INVALID_ARGUMENT", NO_TOKEN);
        let violation = json!({ "field": "message.data", "description": "no string" });
        our_fault["error"]["details"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "@type": BAD_REQUEST, "fieldViolations": [violation] }));
        let name = json!({ "name": "projects/p/messages/0:1" });
        let accepted = Verdict::Accepted { id: Some("projects/p/messages/0:1".into()) };
        for (http, body, expected) in [
            (200, name, accepted),
            (200, Value::Null, Verdict::Accepted { id: None }),
            (404, error("NOT_FOUND", "UNREGISTERED", not_found), gone),
            // A project that does not exist.
            (404, error("NOT_FOUND", "", not_found), refused("404 NOT_FOUND")),
            (403, error("PERMISSION_DENIED", "SENDER_ID_MISMATCH", ""), Verdict::BadEndpoint),
            (400, error("INVALID_ARGUMENT", "INVALID_ARGUMENT", NO_TOKEN), Verdict::BadEndpoint),
            (
                400,
                error("INVALID_ARGUMENT", "INVALID_ARGUMENT", "Bad data"),
                refused("400 INVALID_ARGUMENT"),
            ),
            (400, our_fault, refused("400 INVALID_ARGUMENT")),
            (400, error("INVALID_ARGUMENT", "", NO_TOKEN), refused("400 INVALID_ARGUMENT")),
            (
                429,
                error("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", ""),
                Verdict::TooMany { retry_after: later },
            ),
            (429, Value::Null, Verdict::TooMany { retry_after: later }),
            (503, error("UNAVAILABLE", "UNAVAILABLE", ""), unavailable("503 UNAVAILABLE")),
            (500, error("INTERNAL", "INTERNAL", ""), unavailable("500 INTERNAL")),
            (
                401,
                error("UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR", ""),
                refused("401 THIRD_PARTY_AUTH_ERROR"),
            ),
            (401, error("UNAUTHENTICATED", "APNS_AUTH_ERROR", ""), refused("401 APNS_AUTH_ERROR")),
            (
                400,
                error("INVALID_ARGUMENT", "UNSPECIFIED_ERROR", ""),
                refused("400 UNSPECIFIED_ERROR"),
            ),
            (500, error("UNKNOWN", "UNSPECIFIED_ERROR", ""), unavailable("500 UNSPECIFIED_ERROR")),
            (401, error("UNAUTHENTICATED", "", ""), refused("401 UNAUTHENTICATED")),
            (403, error("PERMISSION_DENIED", "", ""), refused("403 PERMISSION_DENIED")),
            (404, error("NEW\r\n", "", ""), refused("404 NEW\\r\\n")),
            (404, json!([]), refused("404")),
            (502, json!("<html>"), unavailable("502")),
            (302, Value::Null, unavailable("302")),
            (408, Value::Null, unavailable("408")),
        ] {
            let body = body.to_string();
            let response = Response::builder().status(http).header(RETRY_AFTER, 7);
            let response = response.body(Bytes::from(body.clone())).unwrap();
            assert_eq!(judge(&response), expected, "{http} {body}");
            let token = http == 401 && !body.contains("AUTH_ERROR");
            assert_eq!(refuses_token(&response), token, "{http} {body}");
        }
    }
}
