//! Sessions of clients in this process, which come by memory in place of a socket.

use std::sync::Arc;

use tokio::io::duplex;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::context::CurrentContext;
use super::serve::{AcceptedClient, Arrival, session};
use crate::net::door::{DoorSession, SessionDoor};
use crate::net::proxy_protocol::Addresses;

/// Bytes on the way between a client in this process and its session, in each direction.
const ON_THE_WAY: usize = 16 * 1024;

/// The sessions of clients in this process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LocalSessions {
    current: CurrentContext,
    sessions: TaskTracker,
    stop: CancellationToken,
}

impl LocalSessions {
    /// Sessions begin with what `current` is at that moment, and end at `stop`.
    pub fn new(current: CurrentContext, stop: CancellationToken) -> Self {
        Self { current, sessions: TaskTracker::new(), stop }
    }

    /// Returns when, after the stop, all sessions have ended.
    pub async fn ended(self) {
        self.stop.cancelled().await;
        self.sessions.close();
        self.sessions.wait().await;
    }
}

impl SessionDoor for LocalSessions {
    fn open(&self, addresses: Addresses) -> DoorSession {
        let (stream, served) = duplex(ON_THE_WAY);
        let (reports, login) = oneshot::channel();
        let context = self.current.get();
        let peer = addresses.source.ip();
        let wait = context.admission.enter(peer, &context.limits, &context.counters);
        let arrival = Arrival::Local { stream: served, addresses };
        let client = AcceptedClient { arrival, wait, login: Some(reports) };
        self.sessions.spawn(session(Box::new(client), Arc::clone(&context), self.stop.clone()));
        DoorSession { stream, login }
    }
}
