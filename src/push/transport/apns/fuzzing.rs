//! The way in of `fuzz/` to what is private here. It is in no other build.

use std::time::Duration;

use super::judge::{self, Outcome};

pub fn outcome(status: u16, body: &[u8], id: &str, retry_after: Option<Duration>) -> Outcome {
    judge::outcome(status, body, id, retry_after)
}

pub fn retry_after(value: &str) -> Option<Duration> {
    judge::retry_after(value)
}
