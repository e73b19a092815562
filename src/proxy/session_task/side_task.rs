//! What a session waits for, beside its sockets.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Poller, Poll};

use tokio::time::Sleep;

use super::super::admission::{AttemptPermit, LimitHit};
use crate::imap::capability::Capabilities;
use crate::net::backend::{ConnectError, Connected};
use crate::net::stream::Stream;

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// One thing at a time, before the login.
pub(super) enum SideTask {
    /// What the backend offers rules the login out, and may have changed.
    Ask(Boxed<Option<Arc<Capabilities>>>),
    /// A login waits until it may be tried.
    Reserve(Boxed<Result<AttemptPermit, LimitHit>>),
    Connect(Boxed<Result<Connected, ConnectError>>),
    Handshake(Boxed<io::Result<Stream>>),
    /// A refusal waits for its time.
    Refuse(Pin<Box<Sleep>>),
}

/// What came of it.
pub(super) enum Finished {
    Asked(Option<Arc<Capabilities>>),
    Reserved(Result<AttemptPermit, LimitHit>),
    Connected(Result<Connected, ConnectError>),
    Handshaken(io::Result<Stream>),
    RefusalDue,
}

impl SideTask {
    pub(super) fn poll(&mut self, cx: &mut Poller<'_>) -> Poll<Finished> {
        match self {
            Self::Ask(ask) => ask.as_mut().poll(cx).map(Finished::Asked),
            Self::Reserve(reserve) => reserve.as_mut().poll(cx).map(Finished::Reserved),
            Self::Connect(connect) => connect.as_mut().poll(cx).map(Finished::Connected),
            Self::Handshake(handshake) => handshake.as_mut().poll(cx).map(Finished::Handshaken),
            Self::Refuse(time) => time.as_mut().poll(cx).map(|()| Finished::RefusalDue),
        }
    }
}
