//! The composition root: the only place that knows all parts.
//!
//! ```text
//!   listeners ──▶ proxy ──SessionEvent──▶ watch ──WatchEvent──▶ push ──▶ APNs
//!                   │                       ▲ └── reads ──┐      │ └─ Account without devices ─┐
//!                   └──────── store ◀───────┼─────────────┴──────┘                             │
//!                                           └──────────────────────────────────────────────────┘
//! ```
//!
//! [`start`] builds everything from a checked configuration and runs it; [`Running::stop`] ends it
//! in the order in which bytes flow, so that what is under way arrives.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{self, BackendTls, Config};
use crate::imap::session::PushOffer;
use crate::model::Timestamp;
use crate::net::backend::Backend;
use crate::net::{self, listen, tls};
use crate::proxy;
use crate::push::apns::{Apns, Identity};
use crate::push::dispatcher;
use crate::store::{Store, StoreError, Vault, VaultError};
use crate::watch;

/// Events that may wait between two parts; then the one that sends them waits.
const QUEUE: usize = 1024;

/// Between two looks at what the backend offers before login.
const PROBE_INTERVAL: Duration = Duration::from_secs(600);
const PROBE_RETRY: Duration = Duration::from_secs(10);

/// So many days before its end a certificate is warned of.
const EXPIRY_WARNING_DAYS: i64 = 30;

/// For the answers of a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);

/// For each part to end; longer than the parts allow themselves, so it matters only for one that
/// waits for a peer that says nothing.
const GRACE: Duration = Duration::from_secs(12);

/// The program at work.
#[derive(Debug)]
pub struct Running {
    /// Where clients connect, in the order of the configuration.
    pub addresses: Vec<SocketAddr>,
    pub store: Store,
    /// For commands of sessions that are under way at the end.
    grace: Duration,
    serving: Vec<JoinHandle<()>>,
    watching: Option<JoinHandle<()>>,
    pushing: Option<JoinHandle<()>>,
    stop_serving: CancellationToken,
    stop_watching: CancellationToken,
    stop_pushing: CancellationToken,
}

/// Why the program cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file or a value that the configuration names is at fault; the message says which.
    #[error("{0}")]
    Configuration(String),
    #[error("{address}: cannot listen: {source}{}", remedy(source))]
    Listen { address: SocketAddr, source: io::Error },
    /// The database may be usable some time later.
    #[error(transparent)]
    Store(StoreError),
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            ". Another program listens there: stop it, or change [[listener]] address"
        }
        io::ErrorKind::AddrNotAvailable => {
            ". This machine has no such address: correct [[listener]] address"
        }
        io::ErrorKind::PermissionDenied => {
            ". Ports below 1024 need root or CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities=)"
        }
        _ => "",
    }
}

impl StartError {
    fn key(key: &str, problem: impl Display) -> Self {
        Self::Configuration(format!("{key}: {problem}"))
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
pub async fn start(config: &Config) -> Result<Running, StartError> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let config::Tls { certificate, private_key } = &config.tls;
    let server_tls = tls::server(certificate, private_key).map_err(|error| {
        StartError::pair("[tls]", [certificate, private_key], error.file(), &error)
    })?;
    let backend = backend(config)?;
    let apns = match &config.apns {
        Some(apns) => apns_client(apns, config)?,
        None => None,
    };
    // What makes files comes last, so that a start that fails before it leaves none behind.
    let mut listeners = Vec::new();
    for config::Listener { address } in &config.listeners {
        let listener = listen::bind(*address)
            .map_err(|source| StartError::Listen { address: *address, source })?;
        listeners.push(listener);
    }
    let addresses = listeners
        .iter()
        .map(|listener| listener.local_addr())
        .collect::<io::Result<Vec<_>>>()
        .map_err(|source| StartError::Listen { address: config.listeners[0].address, source })?;
    let store = Store::open(&config.store.url, config.store.busy_timeout).await.map_err(
        |error| match error.is_temporary() {
            true => StartError::Store(error),
            false => StartError::key("[store] url", error),
        },
    )?;
    let vault = Vault::open(&config.credentials.key_file).map_err(|error| match error {
        VaultError::KeyFile { .. } => StartError::key("[credentials] key_file", error),
        other => StartError::Configuration(other.to_string()),
    })?;
    let vault = Arc::new(vault);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        backend = backend.name(),
        topic = apns.as_ref().map_or("none: push is off", Apns::topic),
        "mailchime starts"
    );

    let (sessions, session_events) = mpsc::channel(QUEUE);
    let [stop_serving, stop_watching, stop_pushing] = [(); 3].map(|()| CancellationToken::new());
    let offer = apns.as_ref().map(|apns| PushOffer {
        topic: apns.topic().to_owned(),
        clients: config.push.clients.clone(),
        most_mailboxes: config.push.mailboxes,
    });
    let (mut watching, mut pushing) = (None, None);
    // Without an identity nothing can be pushed, so nothing is watched either.
    if let Some(apns) = apns {
        let (changes, change_events) = mpsc::channel(QUEUE);
        let (removed, unwatched) = mpsc::channel(QUEUE);
        pushing = Some(tokio::spawn(dispatcher::run(
            change_events,
            store.clone(),
            apns,
            config.push.clone(),
            removed,
            stop_pushing.clone(),
        )));
        let context = Arc::new(watch::Context::new(
            config,
            backend.clone(),
            store.clone(),
            vault.clone(),
            changes,
        ));
        let stop = stop_watching.clone();
        watching = Some(tokio::spawn(watch::run(context, session_events, unwatched, stop)));
    }
    let context = Arc::new(proxy::Context::new(
        backend.clone(),
        offer,
        store.clone(),
        vault,
        sessions,
        config,
    ));
    let mut serving =
        vec![tokio::spawn(probe(backend, config.limits.capability_size, stop_serving.clone()))];
    for (listener, address) in listeners.into_iter().zip(&addresses) {
        tracing::info!(%address, "listening");
        let (tls, context) = (Arc::clone(&server_tls), Arc::clone(&context));
        serving.push(tokio::spawn(proxy::serve(listener, tls, context, stop_serving.clone())));
    }
    Ok(Running {
        addresses,
        store,
        grace: config.limits.shutdown_grace,
        serving,
        watching,
        pushing,
        stop_serving,
        stop_watching,
        stop_pushing,
    })
}

impl Running {
    /// Ends everything in order: no more clients, sessions say goodbye, watchers log out, pushes
    /// under way end or are marked as owed. What does not end in its time is given up; nothing is
    /// lost by that, it only comes later.
    pub async fn stop(self) {
        self.stop_serving.cancel();
        for task in self.serving {
            ended("serving clients", task, self.grace + GRACE).await;
        }
        self.stop_watching.cancel();
        if let Some(task) = self.watching {
            ended("watching", task, GRACE).await;
        }
        self.stop_pushing.cancel();
        if let Some(task) = self.pushing {
            ended("pushing", task, GRACE).await;
        }
        if tokio::time::timeout(GRACE, self.store.close()).await.is_err() {
            tracing::warn!("the database was still at work at the end");
        }
    }
}

/// Waits for a part of the program, but not for ever.
async fn ended(part: &str, task: JoinHandle<()>, limit: Duration) {
    let abort = task.abort_handle();
    match tokio::time::timeout(limit, task).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(part, %error, "a part of the program broke"),
        Err(_) => {
            tracing::warn!(part, "did not end within {limit:?}, is given up");
            abort.abort();
        }
    }
}

/// Keeps what clients are offered before login up to date.
async fn probe(backend: Backend, longest: usize, stop: CancellationToken) {
    let probing = async {
        loop {
            let pause = match backend.probe(PROBE_TIMEOUT, longest).await {
                Ok(()) => PROBE_INTERVAL,
                Err(error) => {
                    tracing::warn!(%error, "the backend cannot be asked what it offers");
                    PROBE_RETRY
                }
            };
            tokio::time::sleep(pause).await;
        }
    };
    stop.run_until_cancelled(probing).await;
}

fn backend(config: &Config) -> Result<Backend, StartError> {
    let config::Backend { host, port, tls } = &config.backend;
    let tls = match tls {
        BackendTls::None => net::backend::Tls::None,
        BackendTls::Implicit { ca, server_name } => {
            let client = tls::client(ca.as_deref())
                .map_err(|error| StartError::key("[backend] ca", error))?;
            let name = ServerName::try_from(server_name.clone()).map_err(|_| {
                StartError::key(
                    "[backend] server_name",
                    format!("{server_name:?} is no host name or IP address"),
                )
            })?;
            net::backend::Tls::Implicit(client, name)
        }
    };
    Ok(Backend::new(host.clone(), *port, tls, config.limits.connect_timeout))
}

/// The client of APNs; `None` when its certificate has expired, for then a phone that registers
/// would leave Fetch and get nothing.
fn apns_client(apns: &config::Apns, config: &Config) -> Result<Option<Apns>, StartError> {
    let config::Apns { certificate, private_key, .. } = apns;
    let identity = Identity::load(certificate, private_key).map_err(|error| {
        StartError::pair("[apns]", [certificate, private_key], error.file(), &error)
    })?;
    let left = identity.not_after().0.saturating_sub(Timestamp::now().0);
    let days = left / (24 * 3600 * 1000);
    let certificate = certificate.display();
    if left <= 0 {
        tracing::error!(
            %certificate,
            "the APNs certificate has expired: push is off until there is a new one"
        );
        return Ok(None);
    }
    if days < EXPIRY_WARNING_DAYS {
        tracing::warn!(%certificate, days, "the APNs certificate expires soon: renew it");
    }
    Apns::new(&identity, apns, config.push.priority)
        .map(Some)
        .map_err(|error| StartError::key("[apns] ca", error))
}
