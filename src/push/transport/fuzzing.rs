//! The way in of `fuzz/` to what is private here. It is in no other build.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{DATE, HeaderValue, RETRY_AFTER};
use hyper::{HeaderMap, Response};

use super::webhook::WebhookOwner;
use super::{Verdict, fcm, retry_after, webhook, webpush};

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

/// How long the server asks to be left alone with these values of `Retry-After` and `Date`. `None` if they are no values
/// of a header.
pub fn wait(value: &[u8], date: Option<&[u8]>) -> Option<Option<Duration>> {
    let mut headers = HeaderMap::new();
    headers.insert(RETRY_AFTER, HeaderValue::from_bytes(value).ok()?);
    if let Some(date) = date {
        headers.insert(DATE, HeaderValue::from_bytes(date).ok()?);
    }
    Some(retry_after::retry_after(&headers))
}

/// What an answer of the server of FCM's access tokens gives: the value of `authorization` and its life, or why there is
/// none. `None` if there is no such status.
pub fn access_token(status: u16, body: &[u8]) -> Option<Result<(HeaderValue, Duration), String>> {
    let response = Response::builder().status(status).body(Bytes::copy_from_slice(body)).ok()?;
    Some(fcm::token::fuzzed(&response))
}
