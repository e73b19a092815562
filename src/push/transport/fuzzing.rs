//! The way in of `fuzz/` to what is private here. It is in no other build.

use std::time::Duration;

use bytes::Bytes;
use hyper::Response;
use hyper::header::RETRY_AFTER;

use super::webhook::WebhookOwner;
use super::{Verdict, fcm, webhook, webpush};

/// Whose answer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FuzzedService {
    /// Firebase Cloud Messaging.
    Fcm,
    /// A push service of browsers.
    WebPush,
    /// A receiver that a user named.
    UsersWebhook,
    /// A receiver of the configuration.
    OperatorsWebhook,
}

/// The verdict on an answer with this status, body and `Retry-After`; `None` if there is no such status.
pub fn judge(
    service: FuzzedService,
    status: u16,
    body: &[u8],
    retry_after: Option<Duration>,
) -> Option<Verdict> {
    let mut response = Response::builder().status(status);
    if let Some(after) = retry_after {
        response = response.header(RETRY_AFTER, after.as_secs());
    }
    let response = response.body(Bytes::copy_from_slice(body)).ok()?;
    Some(match service {
        FuzzedService::Fcm => fcm::judge::judge(&response),
        FuzzedService::WebPush => webpush::judge::judge(&response),
        FuzzedService::UsersWebhook => webhook::judge::judge(WebhookOwner::User, &response),
        FuzzedService::OperatorsWebhook => webhook::judge::judge(WebhookOwner::Operator, &response),
    })
}
