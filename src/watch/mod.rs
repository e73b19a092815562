//! Watching registered mailboxes, also while no client is connected.
//!
//! ```text
//!   supervisor ──▶ one task per account ──▶ one connection: EXAMINE, IDLE, STATUS
//!                          │ compares two snapshots
//!                          ▼
//!                      WatchEvent ──▶ (app) ──▶ push
//! ```
//!
//! Nothing here knows sessions or pushes. What the devices of an account were told is in the
//! store; a watcher only reads it, after every connect, so that whatever was interrupted shows as a
//! difference again. The push side moves it.

mod account;
mod backoff;
mod connection;
mod pacer;
mod snapshot;
mod supervisor;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

pub use self::supervisor::run;
use crate::model::WatchEvent;
use crate::net::backend::Backend;
use crate::store::{Store, Vault};

/// Times and bounds of watching; each is a key of `[watch]`, `[push]` or `[limits]`.
#[derive(Clone, Debug)]
pub struct Config {
    /// An IDLE is not left open longer than this (RFC 2177 asks for less than 29 minutes).
    pub idle_renewal: Duration,
    /// Between two looks at mailboxes for which the backend sends no news.
    pub poll_interval: Duration,
    /// For the backend's answer to a command.
    pub answer_timeout: Duration,
    /// New connections of watchers, over all accounts.
    pub logins_per_second: u32,
    /// Shortest and longest pause before a watcher tries again.
    pub retry_min: Duration,
    pub retry_max: Duration,
    /// After news that is not new mail, before looking: such news come in bursts.
    pub settle: Duration,
    /// A device that has not registered for so long is gone.
    pub registration_ttl: Duration,
    /// Longest response of a backend, in bytes.
    pub response_size: usize,
}

/// What all watchers share.
#[derive(Debug)]
pub struct Context {
    pub config: Config,
    pub backend: Backend,
    pub store: Store,
    pub vault: Vault,
    pub events: mpsc::Sender<WatchEvent>,
    pacer: pacer::Pacer,
    last_id: AtomicU64,
}

impl Context {
    pub fn new(
        config: Config,
        backend: Backend,
        store: Store,
        vault: Vault,
        events: mpsc::Sender<WatchEvent>,
    ) -> Self {
        let pacer = pacer::Pacer::new(config.logins_per_second);
        Self { config, backend, store, vault, events, pacer, last_id: AtomicU64::new(0) }
    }

    /// An id for a change, above all earlier ones.
    fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }
}
