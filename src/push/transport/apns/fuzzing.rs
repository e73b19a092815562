//! The way in of `fuzz/` to what is private here. It is in no other build.

use std::time::Duration;

use bytes::Bytes;
use hyper::Response;
use hyper::header::RETRY_AFTER;

use super::judge;
use crate::push::transport::Verdict;

/// The verdict on an answer with this status, body and `Retry-After`; `None` if there is no such status.
pub fn judge(status: u16, body: &[u8], retry_after: Option<Duration>) -> Option<Verdict> {
    let mut response = Response::builder().status(status).header("apns-id", "ID");
    if let Some(after) = retry_after {
        response = response.header(RETRY_AFTER, after.as_secs());
    }
    Some(judge::judge(&response.body(Bytes::copy_from_slice(body)).ok()?))
}

/// What a value of `Retry-After` says.
pub fn retry_after(value: &str) -> Option<Duration> {
    judge::retry_after(value)
}
