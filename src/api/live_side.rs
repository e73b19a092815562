//! What streams need of the watching side, which `app` gives.

use std::fmt;
use std::sync::Arc;

use super::changes::StreamInbox;
use crate::model::FollowRequest;

/// Follows mailboxes for streams.
pub trait LiveSide: fmt::Debug + Send + Sync {
    /// Puts what differs from what the client knows into `inbox`, before this returns, and then what happens,
    /// until the guard is dropped. It does not wait.
    fn follow(&self, wanted: FollowRequest, inbox: Arc<StreamInbox>) -> LiveGuard;
}

/// Mailboxes are followed while this lives.
pub type LiveGuard = Box<dyn fmt::Debug + Send + Sync>;
