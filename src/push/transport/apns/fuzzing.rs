//! The way in of `fuzz/` to what is private here. It is in no other build.

use std::time::Duration;

use super::answer::{self, Outcome};

pub fn outcome(status: u16, body: &[u8], id: &str, retry_after: Option<Duration>) -> Outcome {
    answer::outcome(status, body, id, retry_after)
}

pub fn retry_after(value: &str) -> Option<Duration> {
    answer::retry_after(value)
}
