//! The database: who subscribed to which mailboxes, by which transport, what they were told,
//! and the credentials with which their users' watchers log in ([`CredentialSource`]).
//!
//! The store keeps and returns rows; it does not know why they change. It does not read the time of day:
//! times are arguments. Each call is one transaction, and when it has returned `Ok` the change is on disk;
//! [`Store::expire`] and [`Store::drop_ended`] have one transaction for each account. Every error leaves the
//! rows of its transaction as they were, and dropping a call's future in its middle does too, but for a
//! registration, which is then made or not; only where the connection broke while the end of the transaction
//! was on its way may the change have been made. Each call may be repeated.
//!
//! An account belongs to the backend that has accepted its user. What is read or written on behalf of
//! another backend finds no account, and a registration there begins a new one in its place.
//!
//! What always holds between two calls:
//! - an account has at least one subscription; with its last one go its credentials and mailboxes. Where it has
//!   an entry at its backend that is to be removed first, it and its credentials stay until then (`entries`);
//! - a mailbox has a row, with its state as last told, exactly while some subscription wants it.
//!
//! SQLite, PostgreSQL and MariaDB have one set of statements, which go through sqlx's `Any` driver; what
//! differs is in the dialect (`sql`). `sql::work` says what a call has of a connection. SQLite has one writer.
//! A server has many, so whatever adds or removes a subscription first locks the row of its account: "has no
//! subscription" stays true until the account is deleted for it. Transactions that get into each other's way
//! all the same are run again.
mod accounts;
mod batches;
mod calls;
mod census;
mod copy;
mod credentials;
mod delivery;
mod due;
mod entries;
mod error;
mod gathering;
mod import;
mod keeping;
mod kept_rows;
mod nodes;
mod notifications;
mod open;
mod questions;
mod records;
mod registrant;
mod removal;
mod rotation;
mod routes;
mod secrets;
mod service;
mod settlement;
mod shares;
mod sql;
mod subscriptions;
mod upkeep;
mod users;
mod vault;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use self::sql::file::DatabaseFile;
use self::sql::work::Connections;
use crate::config;
use crate::metrics::Metrics;
use crate::model::Timestamp;

pub use accounts::LiveAccount;
use batches::NewRegistration;
pub use census::Census;
pub use copy::{CopiedRows, CopyError, copy};
pub use credentials::{CredentialSource, CredentialsError, unreadable};
pub use delivery::Target;
use delivery::{TargetsQuestion, WatchedQuestion};
pub use due::{DueMailbox, DueMark, LookedAt, NodeMarks};
pub use entries::LeavingAccount;
pub use error::StoreError;
use gathering::Gathering;
pub use import::{ImportOutcome, ImportedRegistration};
pub use keeping::Kept;
pub use nodes::{Invalidation, Node, NodeNews};
use notifications::Notifier;
pub use notifications::{NewsListener, NodeNotification};
use questions::Question;
pub use registrant::{Registrant, Sealed};
pub use removal::Removed;
pub use rotation::{RotationError, rotate};
use service::Service;
pub use service::TICK;
pub use settlement::Settlement;
pub use shares::{Full, MadeRoom, Shares};
pub use subscriptions::RegisterOutcome;
pub use users::ListedSubscription;
use vault::VaultFile;
pub use vault::{Vault, VaultError};

/// A handle to the database; clones share it.
#[derive(Clone)]
pub struct Store {
    /// How errors name the database.
    database: Arc<str>,
    connections: Arc<Connections>,
    /// No call takes longer.
    limit: Duration,
    /// A server may be away when the program starts.
    up_to_date: Arc<OnceCell<()>>,
    registrations: Arc<Gathering<NewRegistration>>,
    asked_watched: Arc<Gathering<Question<WatchedQuestion>>>,
    asked_targets: Arc<Gathering<Question<TargetsQuestion>>>,
    shares: Shares,
    /// Of a program that serves phones.
    service: Option<Arc<Service>>,
    /// Seals the secrets of subscriptions, where a key file is named.
    vault: Option<Arc<VaultFile>>,
    /// Of SQLite: the files, and whether the log holds what was removed or replaced.
    file: Option<Arc<DatabaseFile>>,
    traces: Arc<AtomicBool>,
    stopping: Arc<Stopping>,
    metrics: Arc<Metrics>,
    /// When the log last said that a call took long.
    said_slow: Arc<Mutex<Option<Instant>>>,
    /// Of this process as a node; empty if it is none.
    incarnation: Arc<str>,
    notifier: Arc<Notifier>,
}

/// The end of the program, which does not wait for a database that is away.
#[derive(Default)]
struct Stopping {
    begun: CancellationToken,
    /// A call was late since: further ones fail at once.
    away: AtomicBool,
}

/// Which devices live, by the time of service ([`Store::served`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alive {
    /// They registered then or later,
    pub registered_since: Timestamp,
    /// and their account got no other password up to then with which they have not registered.
    pub outdated_after: Timestamp,
}

// === impl Alive ===

impl Alive {
    /// Those that live at this time of service.
    pub fn at(served: Timestamp, push: &config::PushConfig) -> Self {
        Self {
            registered_since: served.minus(push.registration_ttl),
            outdated_after: served.minus(push.outdated_for()),
        }
    }
}

impl From<Timestamp> for Alive {
    /// All that registered then or later.
    fn from(registered_since: Timestamp) -> Self {
        Self { registered_since, outdated_after: Timestamp(i64::MIN) }
    }
}

// === impl Store ===

impl Store {
    /// Keeps these limits from now on.
    #[must_use]
    pub fn sharing(self, shares: Shares) -> Self {
        Self { shares, ..self.asking_alone() }
    }

    /// Counts in `metrics` from now on.
    #[must_use]
    pub fn counting(self, metrics: Arc<Metrics>) -> Self {
        Self { metrics, ..self.asking_alone() }
    }

    /// Seals and opens the secrets of subscriptions with this key file from now on. It is made when the first
    /// such subscription is stored.
    #[must_use]
    pub fn sealing(self, key_file: &Path) -> Self {
        Self { vault: Some(Arc::new(VaultFile::at(key_file))), ..self }
    }

    /// The same for a process that is to be a node ([`Store::join`]), by a name that no other process
    /// has or had.
    #[must_use]
    pub fn of_node(self, incarnation: Arc<str>) -> Self {
        Self { incarnation, notifier: Arc::default(), ..self.asking_alone() }
    }

    /// What it is asked is asked by itself from now on: what becomes of it, or is counted, is another store's matter.
    fn asking_alone(self) -> Self {
        Self {
            registrations: self.registrations.anew(),
            asked_watched: self.asked_watched.anew(),
            asked_targets: self.asked_targets.anew(),
            ..self
        }
    }

    /// By what it [joins](Store::of_node); empty if it does not.
    pub fn incarnation(&self) -> &str {
        &self.incarnation
    }

    /// Whether processes on other machines may serve from the same database.
    pub fn is_shared(&self) -> bool {
        self.connections.are_to_a_server()
    }

    /// No call takes longer.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// The program ends: from now on a call takes two seconds at most, and when one has taken that long,
    /// further ones fail at once.
    pub fn stop(&self) {
        self.stopping.begun.cancel();
    }

    /// Whether it does.
    pub fn is_stopping(&self) -> bool {
        self.stopping.begun.is_cancelled()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("database", &self.database).finish_non_exhaustive()
    }
}
