//! What streams need of the watching side, which `app` gives.

use std::fmt;
use std::sync::Arc;

use super::changes::StreamInbox;
use crate::model::{Account, BackendId, Credentials, Mailbox, Snapshot};

/// Follows mailboxes for streams.
pub trait LiveSide: fmt::Debug + Send + Sync {
    /// Puts what differs from what the client knows into `inbox`, before this returns, and then what happens,
    /// until the guard is dropped. It does not wait.
    fn follow(&self, wanted: LiveRequest, inbox: Arc<StreamInbox>) -> LiveGuard;
}

/// Mailboxes are followed while this lives.
pub type LiveGuard = Box<dyn fmt::Debug + Send + Sync>;

/// What a stream is to be told of.
#[derive(Debug)]
pub struct LiveRequest {
    /// Whose mailboxes they are.
    pub account: Account,
    /// The backend that has accepted the credentials.
    pub backend: BackendId,
    /// With which the client has proved the account.
    pub credentials: Credentials,
    /// Each once.
    pub mailboxes: Vec<LiveMailbox>,
}

/// One mailbox of a [`LiveRequest`].
#[derive(Debug)]
pub struct LiveMailbox {
    /// The mailbox.
    pub mailbox: Mailbox,
    /// The state that the client knows, if there is one.
    pub told: Option<Snapshot>,
    /// The state that it has; nothing, where it is not known.
    pub now: Snapshot,
}
