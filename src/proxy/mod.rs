//! A client's session: listener, TLS, login dialogue, backend, relay.
//!
//! What a session says and does is decided by [`crate::imap::session`]; here are its sockets, its
//! deadlines and its errands. A session is one task. Nothing here knows watchers or pushes: what
//! they must know of it leaves through a bounded channel of [`SessionEvent`]s.

mod driver;
mod register;
mod serve;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

pub use self::serve::serve;
use crate::imap::session::{Profile, PushOffer};
use crate::model::SessionEvent;
use crate::net::backend::Backend;
use crate::store::{Store, Vault};

/// What all sessions share.
#[derive(Debug)]
pub struct Context {
    pub backend: Backend,
    /// Offered to clients; `None` when push is off.
    pub push: Option<PushOffer>,
    pub store: Store,
    pub vault: Vault,
    pub events: mpsc::Sender<SessionEvent>,
    pub limits: Limits,
    profile: Mutex<Option<Arc<Profile>>>,
}

/// Bounds of sessions; each is a key of `[limits]` or `[push]`.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Sessions at a time.
    pub sessions: usize,
    pub handshake_timeout: Duration,
    /// From the connection to the login.
    pub login_timeout: Duration,
    /// For a peer that takes no bytes although some are waiting.
    pub write_timeout: Duration,
    pub command_size: usize,
    pub capability_size: usize,
    /// Devices of one account.
    pub devices: u32,
}

impl Context {
    pub fn new(
        backend: Backend,
        push: Option<PushOffer>,
        store: Store,
        vault: Vault,
        events: mpsc::Sender<SessionEvent>,
        limits: Limits,
    ) -> Self {
        let profile = Mutex::new(None);
        Self { backend, push, store, vault, events, limits, profile }
    }

    /// What a session that starts now may offer; shared by all sessions while it stays the same.
    fn profile(&self) -> Arc<Profile> {
        let seen = self.backend.seen();
        let mut profile = self.profile.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(profile) = &*profile
            && profile.backend.as_ref().map(Arc::as_ptr) == seen.as_ref().map(Arc::as_ptr)
        {
            return Arc::clone(profile);
        }
        Arc::clone(profile.insert(Arc::new(Profile {
            backend: seen,
            push: self.push.clone(),
            command_size: self.limits.command_size,
            capability_size: self.limits.capability_size,
        })))
    }
}
