//! Which mailboxes are followed, and for whom.

use super::{Account, BackendId, Credentials, Mailbox, Snapshot};

/// What somebody wants to follow.
#[derive(Debug)]
pub struct FollowRequest {
    /// Whose mailboxes they are.
    pub account: Account,
    /// The backend that has accepted the credentials.
    pub backend: BackendId,
    /// With which the account was proved.
    pub credentials: Credentials,
    /// Each once.
    pub mailboxes: Vec<MailboxToFollow>,
}

/// One mailbox of a [`FollowRequest`].
#[derive(Debug)]
pub struct MailboxToFollow {
    /// The mailbox.
    pub mailbox: Mailbox,
    /// The state that the follower knows, if there is one.
    pub told: Option<Snapshot>,
    /// The state that it has; nothing, where it is not known.
    pub now: Snapshot,
}
