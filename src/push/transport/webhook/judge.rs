//! What the receiver of a web hook says, as the scheduler can act on it (Standard Webhooks, "Operational
//! considerations"). Pure.

use bytes::Bytes;
use hyper::Response;

use super::WebhookOwner;
use crate::push::transport::Verdict;
use crate::push::transport::retry_after::retry_after;

/// What an answer means. Its body says nothing.
pub(in crate::push::transport) fn judge(
    owner: WebhookOwner,
    response: &Response<Bytes>,
) -> Verdict {
    let (status, retry_after) = (response.status().as_u16(), retry_after(response.headers()));
    match (status, owner) {
        (200..300, _) => Verdict::Accepted { id: None },
        // Its owner wants no more of it. One of the configuration is taken from there.
        (410, WebhookOwner::User) => Verdict::Gone { since: None },
        (413, _) => Verdict::TooLarge,
        (429, _) => Verdict::TooMany { retry_after },
        (300..500, WebhookOwner::Operator) => Verdict::Misconfigured { why: said(status) },
        _ => Verdict::Unavailable { why: said(status), retry_after },
    }
}

fn said(status: u16) -> String {
    match status {
        300..400 => format!("it answered {status}, and mailchime follows no redirect"),
        _ => format!("it answered {status}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper::header::RETRY_AFTER;

    use super::*;

    #[test]
    fn each_answer_has_its_outcome() {
        use WebhookOwner::{Operator, User};
        let later = Some(Duration::from_secs(7));
        let unavailable = |why: &str| Verdict::Unavailable { why: why.into(), retry_after: later };
        let refused = |why: &str| Verdict::Misconfigured { why: why.into() };
        let redirect = "it answered 302, and mailchime follows no redirect";
        for (owner, status, expected) in [
            (User, 200, Verdict::Accepted { id: None }),
            (User, 202, Verdict::Accepted { id: None }),
            (User, 204, Verdict::Accepted { id: None }),
            (Operator, 299, Verdict::Accepted { id: None }),
            (User, 410, Verdict::Gone { since: None }),
            (Operator, 410, refused("it answered 410")),
            (User, 413, Verdict::TooLarge),
            (Operator, 413, Verdict::TooLarge),
            (User, 429, Verdict::TooMany { retry_after: later }),
            (Operator, 429, Verdict::TooMany { retry_after: later }),
            (User, 302, unavailable(redirect)),
            (Operator, 302, refused(redirect)),
            (User, 400, unavailable("it answered 400")),
            (User, 404, unavailable("it answered 404")),
            (Operator, 401, refused("it answered 401")),
            (Operator, 404, refused("it answered 404")),
            (User, 500, unavailable("it answered 500")),
            (Operator, 502, unavailable("it answered 502")),
            (Operator, 503, unavailable("it answered 503")),
            (Operator, 504, unavailable("it answered 504")),
            (User, 101, unavailable("it answered 101")),
        ] {
            let response = Response::builder().status(status).header(RETRY_AFTER, 7);
            let response = response.body(Bytes::from_static(b"{}")).unwrap();
            assert_eq!(judge(owner, &response), expected, "{owner:?} {status}");
        }
    }
}
