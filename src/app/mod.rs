//! The composition root: the only place that knows all parts.
//!
//! ```text
//!   listeners ──▶ proxy ──SessionEvent──▶ watch ──WatchEvent──▶ push ──▶ push services
//!                   │                      ▲ ▲ └── reads ──┐      │ └─ Account without devices ─┐
//!                   └──────── store ◀──────┼─┼─────────────┴──────┘                             │
//!                               ▲          │ └──────────────────────────────────────────────────┘
//!                               └─ nodes ──┴── Assignment (to push, too), Invalidation
//! ```
//!
//! [`start`] builds everything from a checked configuration and runs it; [`Server::reload`] makes it
//! go by another; [`Server::stop`] ends it in the order in which bytes flow, so that what is under
//! way arrives.

mod admin;
mod api;
mod apns;
mod background;
mod examine;
mod intake;
mod listeners;
mod reload;
pub mod renewal;
mod server_tls;
mod services;
mod startup;
pub mod systemd;
mod tasks;
mod webhook;
mod webpush;

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::ProducesTickets;
use tokio::sync::watch;

use self::apns::MailPushSetup;
pub use self::apns::push_offer;
pub use self::examine::examine;
pub use self::intake::sources as event_sources;
use self::listeners::Listening;
use self::renewal::Renewal;
use self::startup::Built;
use self::tasks::{StopStage, Tasks};
use crate::config::{Config, WebhookConfig};
use crate::intake::KnownSources;
use crate::metrics::Metrics;
use crate::net::backends::Backends;
use crate::net::counters::LimitCounters;
use crate::net::door::SessionDoor;
use crate::net::listen;
use crate::net::resolve::NameResolver;
use crate::proxy;
use crate::push::dispatcher::DispatcherHandle;
use crate::push::transport::Routes;
use crate::push::transport::enrol::Transports;
use crate::registrar::Registrar;
use crate::store::{Store, StoreError};
use crate::watch::SupervisorHandle;

/// For each part to end; longer than the parts allow themselves, so it matters only for one that
/// waits for a peer that says nothing.
const GRACE: Duration = Duration::from_secs(12);

/// For calls that the database has not answered to end. They are not waited for any more.
const CLOSING: Duration = Duration::from_secs(2);

/// The program at work.
#[derive(Debug)]
pub struct Server {
    /// Where clients connect, in the order of the configuration.
    pub addresses: Vec<SocketAddr>,
    /// The port where it tells of itself, if there is one.
    pub admin: Option<SocketAddr>,
    /// Where it serves users' programs, if it does.
    pub api: Option<SocketAddr>,
    /// Where it takes events, if it does.
    pub events: Option<SocketAddr>,
    /// Where it takes datagrams, if it does.
    pub udp_events: Option<SocketAddr>,
    /// Opens sessions for clients in this process.
    pub door: Arc<dyn SessionDoor>,
    /// The database.
    pub store: Store,
    /// Under whose authority pushes are sent at the moment.
    pub routes: Routes,
    /// To which transports users' programs can subscribe.
    pub transports: Transports,
    /// Knows why a push would or would not be sent.
    pub dispatcher: DispatcherHandle,
    /// What it goes by.
    config: Config,
    mail_push: MailPushSetup,
    /// The web hooks of the operator, for what keeps their rows.
    webhooks: watch::Sender<Arc<[WebhookConfig]>>,
    /// Who may send events.
    event_sources: KnownSources,
    /// Have accounts asked for of which events were missed.
    watchers: SupervisorHandle,
    /// The VAPID key is missing, and the database has not said whether browsers have subscribed with it.
    awaits_vapid_key: bool,
    metrics: Arc<Metrics>,
    backends: Backends,
    resolver: NameResolver,
    /// What new sessions begin with.
    current: proxy::CurrentContext,
    /// Stores the registrations of all clients.
    registrar: Registrar,
    tickets: Arc<dyn ProducesTickets>,
    renewal: Renewal,
    listening: Vec<Listening>,
    /// All other tasks, listeners that were closed included, while they have sessions.
    tasks: Tasks,
}

/// Why the program cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file or a value that the configuration names is at fault; the message says which.
    #[error("{0}")]
    Configuration(String),
    /// A listener's address cannot be bound.
    #[error("{address}: cannot listen: {source}{}", remedy(source, Some(*address), "[[listener]] address"))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the library or the system says.
        source: io::Error,
    },
    /// Another address cannot be had, and may be free some time later; the message says which.
    #[error("{0}")]
    Taken(String),
    /// systemd gave another number of sockets than there are listeners.
    #[error(
        "systemd hands over {given} sockets, and {wanted} [[listener]] tables say how to use them: \
         give as many tables as sockets, or stop and start both units anew"
    )]
    Sockets {
        /// How many systemd gave.
        given: usize,
        /// How many listeners there are.
        wanted: usize,
    },
    /// The database may be usable some time later.
    #[error(transparent)]
    Store(StoreError),
}

/// What to do where an address cannot be had, behind what the system says.
fn remedy(error: &io::Error, address: Option<SocketAddr>, key: &str) -> String {
    let remedy = listen::remedy(error, address, key);
    remedy.map(|remedy| format!("; {remedy}")).unwrap_or_default()
}

impl StartError {
    fn key(key: &str, problem: impl Display) -> Self {
        Self::Configuration(format!("{key}: {problem}"))
    }

    /// For an address of `[admin]`, `[api]` or `[events]` at which nobody could listen.
    fn address(key: &str, wanted: SocketAddr, error: &io::Error) -> Self {
        Self::place(key, wanted, error, &remedy(error, Some(wanted), key))
    }

    /// For the file of a Unix socket of `[admin]` or `[events]`.
    fn socket(key: &str, file: impl Display, error: &io::Error) -> Self {
        Self::place(key, file, error, &remedy(error, None, key))
    }

    fn place(key: &str, wanted: impl Display, error: &io::Error, remedy: &str) -> Self {
        let problem = format!("{key}: {wanted}: cannot listen: {error}{remedy}");
        match listen::may_pass(error) {
            true => Self::Taken(problem),
            false => Self::Configuration(problem),
        }
    }

    /// For a certificate and its private key, by whichever of them is at fault.
    fn pair(table: &str, pair: [&Path; 2], at_fault: Option<&Path>, problem: impl Display) -> Self {
        let keys = match pair.map(|file| at_fault == Some(file)) {
            [true, false] => "certificate",
            [false, true] => "private_key",
            _ => "certificate, private_key",
        };
        Self::key(&format!("{table} {keys}"), problem)
    }
}

/// Builds all parts and starts them.
///
/// # Errors
/// Nothing is left running when this fails.
pub async fn start(config: &Config) -> Result<Server, StartError> {
    start_with(config, Vec::new()).await
}

/// As [`start`], with sockets that systemd gave ([`listen::inherited`]) in place of the first
/// listeners' addresses.
///
/// # Errors
/// As [`start`].
pub async fn start_with(
    config: &Config,
    inherited: Vec<std::net::TcpListener>,
) -> Result<Server, StartError> {
    for warning in &config.warnings {
        tracing::warn!(target: "mailchime::config::warning", "{warning}");
    }
    Ok(Built::new(config, inherited).await?.run(config))
}

impl Server {
    /// How often each limit was hit.
    pub fn counters(&self) -> Arc<LimitCounters> {
        self.backends.counters()
    }

    /// Ends everything in order: no more clients, sessions say goodbye, watchers log out, pushes
    /// under way end or are marked as owed. What does not end in its time is given up; nothing is
    /// lost by that, it only comes later.
    pub async fn stop(self) {
        self.store.stop();
        let mut tasks = self.tasks;
        for Listening { serving, .. } in self.listening {
            tasks.add(StopStage::Serving, "listener", serving);
        }
        let shutdown_grace = self.config.limits.shutdown_grace;
        tasks
            .stop(|stage| match stage {
                StopStage::Serving => shutdown_grace + GRACE,
                _ => GRACE,
            })
            .await;
        if tokio::time::timeout(CLOSING, self.store.close()).await.is_err() {
            tracing::warn!(
                target: "mailchime::app::database_still_busy",
                "a database call did not end in time at the stop; mailchime exits without it"
            );
        }
    }
}
