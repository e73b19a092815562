//! What a push service's answer means (RFC 8030 sections 5, 7 and 8; RFC 8292 section 4).

use bytes::Bytes;
use hyper::Response;

use crate::push::transport::Verdict;
use crate::push::transport::retry_after::retry_after;

/// Of a body, for people.
const MAX_REASON: usize = 100;

pub(in crate::push::transport) fn judge(response: &Response<Bytes>) -> Verdict {
    let (status, headers) = (response.status(), response.headers());
    let retry_after = retry_after(headers);
    match status.as_u16() {
        // 201 by RFC 8030; UnifiedPush's servers say 200, some others 202 or 204.
        200 | 201 | 202 | 204 => Verdict::Accepted { id: None },
        // It may be the whole service that knows nobody, behind a wrong proxy.
        404 => Verdict::BadEndpoint,
        410 => Verdict::Gone { since: None },
        413 => Verdict::TooLarge,
        429 => Verdict::TooMany { retry_after },
        // A redirect is not followed, as it could lead anywhere.
        300..=399 => Verdict::Unavailable {
            why: format!("the push service answered {status}, a redirect, which is not followed"),
            retry_after,
        },
        401 | 403 => Verdict::Refused {
            why: format!(
                "the push service answered {status} to the VAPID key: {:?}",
                reason(response.body())
            ),
        },
        400..=407 | 409..=499 => {
            let reason = reason(response.body());
            Verdict::Rejected { why: format!("the push service answered {status}: {reason:?}") }
        }
        // 408 is among them: it did not get the whole request.
        _ => {
            Verdict::Unavailable { why: format!("the push service answered {status}"), retry_after }
        }
    }
}

fn reason(body: &Bytes) -> String {
    String::from_utf8_lossy(body).chars().take(MAX_REASON).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper::header::RETRY_AFTER;

    use super::*;

    #[test]
    fn each_answer_has_its_verdict() {
        let later = Some(Duration::from_secs(7));
        let refused = |why: &str| Verdict::Rejected { why: why.to_owned() };
        let of_key = |why: &str| Verdict::Refused { why: why.to_owned() };
        let unavailable =
            |why: &str| Verdict::Unavailable { why: why.to_owned(), retry_after: later };
        let accepted = Verdict::Accepted { id: None };
        for (status, body, expected) in [
            (201, "", accepted.clone()),
            (200, "{}", accepted.clone()),
            (202, "", accepted.clone()),
            (204, "", accepted),
            (404, "", Verdict::BadEndpoint),
            (410, "", Verdict::Gone { since: None }),
            (400, "no\nTTL", refused("the push service answered 400 Bad Request: \"no\\nTTL\"")),
            (401, "", of_key("the push service answered 401 Unauthorized to the VAPID key: \"\"")),
            (
                403,
                r#"{"reason":"BadJwtToken"}"#,
                of_key(
                    "the push service answered 403 Forbidden to the VAPID key: \
                     \"{\\\"reason\\\":\\\"BadJwtToken\\\"}\"",
                ),
            ),
            (405, "", refused("the push service answered 405 Method Not Allowed: \"\"")),
            (408, "", unavailable("the push service answered 408 Request Timeout")),
            (413, "", Verdict::TooLarge),
            (429, "", Verdict::TooMany { retry_after: later }),
            (
                307,
                "",
                unavailable(
                    "the push service answered 307 Temporary Redirect, a redirect, which is not \
                     followed",
                ),
            ),
            (500, "", unavailable("the push service answered 500 Internal Server Error")),
            (503, "", unavailable("the push service answered 503 Service Unavailable")),
            (206, "", unavailable("the push service answered 206 Partial Content")),
        ] {
            let response = Response::builder().status(status).header(RETRY_AFTER, " 7 ");
            let response = response.body(Bytes::from_static(body.as_bytes())).unwrap();
            assert_eq!(judge(&response), expected, "{status} {body}");
        }
        let dated = Response::builder().status(429);
        let dated = dated.header(RETRY_AFTER, "Wed, 21 Oct 2026 07:28:00 GMT");
        let verdict = judge(&dated.body(Bytes::new()).unwrap());
        assert_eq!(verdict, Verdict::TooMany { retry_after: None });
        let long = Response::builder().status(400).body("x".repeat(9999).into()).unwrap();
        let Verdict::Rejected { why } = judge(&long) else { panic!() };
        assert!(why.len() < 200, "{why}");
    }
}
