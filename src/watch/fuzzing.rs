//! The way in of `fuzz/` to what is private here. It is in no other build.

use std::time::Duration;

use super::refusal::{AfterRefusal, then};
use super::snapshot;
use super::source::imap::unsolicited::Unsolicited;
use crate::imap::refusal::Refusal;
use crate::model::{ChangeKind, Mailbox, Snapshot};
use crate::net::backoff::Backoff;

/// What a watcher makes of whole responses.
#[derive(Debug, PartialEq, Eq)]
pub struct Heard {
    /// By how many messages INBOX has grown.
    pub grown: Option<u64>,
    /// Whether anything else may have changed.
    pub other: bool,
    /// What was said of mailboxes.
    pub states: Vec<(Option<Mailbox>, Snapshot)>,
}

/// What `responses` say.
pub fn hear<'a>(responses: impl Iterator<Item = &'a [u8]>) -> Heard {
    let mut news = Unsolicited::default();
    responses.for_each(|response| news.read(response));
    Heard { grown: news.take_grown(), other: news.take_other(), states: news.take_states() }
}

/// What the devices have to know.
pub fn difference(told: &Snapshot, now: &Snapshot) -> Option<ChangeKind> {
    snapshot::difference(told, now)
}

/// What is known after `told`.
pub fn merged(known: &Snapshot, told: &Snapshot) -> Snapshot {
    snapshot::merged(known, told)
}

/// The state after so many messages have arrived.
pub fn with_new_mail(told: &Snapshot, arrived: u64) -> Snapshot {
    snapshot::with_new_mail(told, arrived)
}

/// The wait after this many refusals in a row that say so; `None` where the account is parked.
pub fn wait_after_refusal(answer: &[u8], tries: u32) -> Option<Duration> {
    let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
    match then(Refusal::of(answer), tries, backoff, 1.0) {
        AfterRefusal::Again(wait) => Some(wait),
        AfterRefusal::Park(_) => None,
    }
}
