//! A client's session: listener, TLS, login dialogue, backend, relay.
//!
//! What a session says and does is decided by [`crate::imap::session`]; here are its sockets, its
//! deadlines and its errands. A session is one task. Nothing here knows watchers or pushes: what
//! they must know of it leaves through a bounded channel of [`SessionEvent`]s.

mod driver;
mod register;
mod serve;

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, mpsc};

pub use self::serve::serve;
use crate::config::{self, Config};
use crate::imap::session::{Profile, PushOffer};
use crate::model::SessionEvent;
use crate::net::backend::Backend;
use crate::store::{Store, Vault};

/// What all sessions share.
#[derive(Debug)]
pub struct Context {
    backend: Backend,
    /// Offered to clients; `None` when push is off.
    push: Option<PushOffer>,
    store: Store,
    vault: Arc<Vault>,
    events: mpsc::Sender<SessionEvent>,
    limits: config::Limits,
    /// One for each client that may be connected, to whichever listener.
    places: Arc<Semaphore>,
    /// Most devices of one account.
    devices: u32,
    profile: Mutex<Option<Arc<Profile>>>,
}

impl Context {
    pub fn new(
        backend: Backend,
        push: Option<PushOffer>,
        store: Store,
        vault: Arc<Vault>,
        events: mpsc::Sender<SessionEvent>,
        config: &Config,
    ) -> Self {
        Self {
            backend,
            push,
            store,
            vault,
            events,
            places: Arc::new(Semaphore::new(config.limits.sessions)),
            limits: config.limits.clone(),
            devices: u32::try_from(config.push.devices).unwrap_or(u32::MAX),
            profile: Mutex::new(None),
        }
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
            relay_mechanisms: false,
            command_size: self.limits.command_size,
            capability_size: self.limits.capability_size,
        })))
    }
}
