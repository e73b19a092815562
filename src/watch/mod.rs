//! Watching registered mailboxes, also while no client is connected.
//!
//! ```text
//!   supervisor ──▶ one task per account ──▶ one connection: EXAMINE, IDLE, NOTIFY, STATUS
//!                          │ compares two snapshots
//!                          ▼
//!                      WatchEvent ──▶ (app) ──▶ push
//! ```
//!
//! Of several nodes each watches its share. Nothing here knows sessions or pushes. What the devices of
//! an account know is in the store; a watcher only reads it, after every connect, so that
//! whatever was interrupted shows as a difference again. The push side moves it.

mod accounts;
mod asking;
mod credential_history;
mod directive;
mod due_accounts;
mod entries;
mod events;
mod follow;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod hint_writer;
mod hints;
mod ledger;
mod lifecycle;
mod login;
mod missed_events;
mod on_demand;
mod parked;
mod parked_wait;
mod reach;
mod refusal;
mod snapshot;
mod source;
mod status;
mod supervisor;
#[cfg(test)]
mod test_context;
mod watcher;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use self::follow::FollowedTable;
pub use self::follow::{FollowEvent, FollowGuard, FollowListener, Followers};
pub use self::hint_writer::HintError;
pub use self::missed_events::tell_missed_events;
use self::source::imap::health::BackendHealthTable;
pub use self::source::imap::mailbox_faults::LeftOut;
pub use self::status::{SupervisorHandle, SupervisorRequests, WatcherStatus, requests};
pub use self::supervisor::run;
use crate::config::{self, Config};
use crate::metrics::Metrics;
use crate::model::{Account, Timestamp, TransportId, WatchEvent};
use crate::net::backends::Backends;
use crate::store::{Alive, CredentialSource, Store};

/// What all watchers share.
#[derive(Debug)]
pub struct WatchContext {
    config: config::WatchConfig,
    /// For how long devices live.
    push: config::PushConfig,
    /// Hints that may wait until they are on disk.
    most_hints: usize,
    /// Events of mail servers come to this node.
    takes_events: bool,
    /// Longest response of a backend, in bytes.
    response_size: usize,
    backends: Backends,
    store: Store,
    credentials: Arc<CredentialSource>,
    events: mpsc::Sender<WatchEvent>,
    backend_health: BackendHealthTable,
    last_id: AtomicU64,
    metrics: Arc<Metrics>,
    followed: FollowedTable,
    /// Whose pushes may say what is known of new mail.
    carry_previews: PreviewCarriers,
    /// Those that need an entry at the backend for each account.
    entry_sources: Vec<config::EventSourceConfig>,
}

/// Says whose pushes may say what is known of new mail.
struct PreviewCarriers(Box<dyn Fn(&TransportId) -> bool + Send + Sync>);

impl fmt::Debug for PreviewCarriers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PreviewCarriers")
    }
}

impl WatchContext {
    /// All that watchers share.
    pub fn new(
        config: &Config,
        backends: Backends,
        store: Store,
        credentials: Arc<CredentialSource>,
        events: mpsc::Sender<WatchEvent>,
    ) -> Self {
        Self {
            config: config.watch.clone(),
            push: config.push.clone(),
            most_hints: config.events.waiting,
            takes_events: config.events.is_on(),
            response_size: config.limits.capability_size,
            backend_health: BackendHealthTable::new(&config.watch, backends.counters()),
            backends,
            store,
            credentials,
            events,
            last_id: AtomicU64::new(0),
            metrics: Arc::default(),
            followed: FollowedTable::default(),
            carry_previews: PreviewCarriers(Box::new(|_| false)),
            entry_sources: config.events.with_metadata().cloned().collect(),
        }
    }

    /// Asks for sender and subject of new mail from now on, as `[push] preview` says, where a subscription of a
    /// transport wants the mailbox of which `carry` says that its pushes may say them.
    #[must_use]
    pub fn previewing_for(
        self,
        carry: impl Fn(&TransportId) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { carry_previews: PreviewCarriers(Box::new(carry)), ..self }
    }

    /// Counts in `metrics` from now on.
    #[must_use]
    pub fn counting(self, metrics: Arc<Metrics>) -> Self {
        Self { metrics, ..self }
    }

    /// Whether the backend is asked for anything of a mail.
    fn asks_for_previews(&self) -> bool {
        self.push.preview != config::PreviewContent::None && self.push.events.new_mail
    }

    fn carries_preview(&self, transport: &TransportId) -> bool {
        (self.carry_previews.0)(transport)
    }

    fn previews_subject(&self) -> bool {
        self.push.preview == config::PreviewContent::Subject
    }

    /// Whether a source needs an entry of this account at its backend.
    fn wants_entry(&self, account: &Account) -> bool {
        self.entry_sources.iter().any(|source| source.covers(account))
    }

    /// Whether the account has a connection for a moment only, when there is a reason.
    fn is_on_demand(&self, account: &Account) -> bool {
        self.config.is_on_demand(account)
    }

    /// Whether any may have.
    fn knows_on_demand(&self) -> bool {
        let mut connections = self.config.connection_of_routes.values();
        let is_on_demand = |connection: &_| *connection == config::WatchConnection::OnDemand;
        is_on_demand(&self.config.connection) || connections.any(is_on_demand)
    }

    /// Other devices are gone.
    fn alive(&self) -> Alive {
        Alive::at(self.store.served(Timestamp::now()), &self.push)
    }

    /// An id for a change, above all earlier ones.
    fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }
}
