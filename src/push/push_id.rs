//! The name of a push.

use std::sync::LazyLock;
use std::time::Instant;

use aws_lc_rs::digest::{SHA256, digest};
use uuid::Uuid;

use super::scheduler::{ChangeId, Delivery};

/// The name of a push, which is the same at each try in this process: a receiver that gets it twice can tell.
/// It says nothing to others.
pub(super) fn push_id(push: &Delivery) -> Uuid {
    static PROCESS: LazyLock<(Uuid, Instant)> =
        LazyLock::new(|| (Uuid::new_v4(), tokio::time::Instant::now().into_std()));
    let (salt, start) = *PROCESS;
    let since =
        |later: Instant, earlier: Instant| later.saturating_duration_since(earlier).as_nanos();
    let Delivery { subscription, mailboxes, changes, seen_at, .. } = push;
    let (account, endpoint) = (subscription.account.as_str(), subscription.endpoint.hash_hex());
    let mailboxes: Vec<_> = mailboxes.iter().map(|it| it.mailbox.as_str()).collect();
    // Without a change, as after a restart, it is known by when it was found.
    let text = format!(
        "{salt}{:?}{:?}{} {}",
        (account, subscription.transport.as_str(), endpoint, &*subscription.app),
        (mailboxes, changes.iter().map(ChangeId::to_string).collect::<Vec<_>>().join(" ")),
        since(*seen_at, start),
        since(start, *seen_at),
    );
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest(&SHA256, text.as_bytes()).as_ref()[..16]);
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}
