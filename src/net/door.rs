//! A way into the proxy for a client in this process.
//!
//! What stands here is between those who open sessions (an HTTP API) and the proxy, which serves them: neither
//! knows the other.

use std::fmt;

use tokio::io::DuplexStream;
use tokio::sync::oneshot;

use super::proxy_protocol::Addresses;
use crate::model::{AcceptedLogin, Account};

/// Opens sessions of clients in this process. They are served as those that come to a listener with TLS:
/// admission, limits, delays, log lines and backends are the same.
pub trait SessionDoor: fmt::Debug + Send + Sync {
    /// Opens a session for a client at `addresses`, which count for limits and in the log. It begins at once,
    /// and ends with the stream.
    fn open(&self, addresses: Addresses) -> DoorSession;
}

/// The client's end of a session.
#[derive(Debug)]
pub struct DoorSession {
    /// IMAP from the greeting on. At its end when the session is refused or over.
    pub stream: DuplexStream,
    /// Whose session it is, and what proves it, once the backend has accepted the login; that may come after
    /// the tagged OK. An error where the login proves nobody's name, and where the session ends before it.
    pub login: oneshot::Receiver<(Account, AcceptedLogin)>,
}
