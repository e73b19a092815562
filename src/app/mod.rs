//! The composition root: the only place that knows all parts.
//!
//! ```text
//!   listeners ──▶ proxy ──SessionEvent──▶ watch ──WatchEvent──▶ push ──▶ APNs
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
mod reload;
pub mod renewal;
pub mod systemd;

use std::collections::HashMap;
use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use rustls::server::ProducesTickets;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch as cell};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::renewal::Renewal;
use crate::config::{self, CertificateFiles, Config, Sni};
use crate::files;
use crate::imap::contract::{DomainTopic, PushOffer};
use crate::metrics::{Metrics, Queue};
use crate::model::{SessionEvent, Timestamp};
use crate::net::backends::{Backends, Table};
use crate::net::counters::Counters;
use crate::net::resolve::NameResolver;
use crate::net::{listen, tls};
use crate::nodes::{self, ClusterView, Membership};
use crate::proxy;
use crate::push::dispatcher::{self, DispatcherHandle};
use crate::push::transport::Routes;
use crate::push::transport::apns::certificate_watch;
use crate::push::transport::apns::identities::{Identities, Offer};
use crate::record;
use crate::store::{self, CredentialSource, Shares, Store, StoreError};
use crate::watch;

/// Events that may wait between two parts; then the one that sends them waits.
const QUEUE: usize = 1024;

/// Between two looks at what the backend offers before login.
const PROBE_INTERVAL: Duration = Duration::from_secs(600);
const PROBE_RETRY: Duration = Duration::from_secs(10);

/// Between two looks for credentials that have expired.
const TIDY_INTERVAL: Duration = Duration::from_secs(60);

/// Between two looks whether the database's file is still there.
const FILE_INTERVAL: Duration = Duration::from_secs(1);

/// For the answers of a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);

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
    /// The database.
    pub store: Store,
    /// To be reloaded when certificates were renewed.
    pub identities: Identities,
    /// Knows why a push would or would not be sent.
    pub inquirer: DispatcherHandle,
    /// What it goes by.
    config: Config,
    metrics: Arc<Metrics>,
    backends: Backends,
    resolver: NameResolver,
    /// What new sessions begin with.
    current: proxy::CurrentContext,
    tickets: Arc<dyn ProducesTickets>,
    renewal: Renewal,
    listening: Vec<Listening>,
    /// What clients are served by beside `listening`: who asks the backend what it offers, the
    /// calendar of the push identities, and listeners that were closed, while they have sessions.
    serving: Vec<JoinHandle<()>>,
    watching: JoinHandle<()>,
    pushing: JoinHandle<()>,
    /// Takes part in the assignment among the nodes, if there may be others.
    membership_task: Option<JoinHandle<()>>,
    admin_task: Option<JoinHandle<()>>,
    stop_serving: CancellationToken,
    stop_watching: CancellationToken,
    stop_pushing: CancellationToken,
    stop_membership: CancellationToken,
    stop_admin: CancellationToken,
}

/// A listener at work. It is closed when this is dropped; its sessions go on.
#[derive(Debug)]
struct Listening {
    address: SocketAddr,
    /// What the listener's new sessions go by.
    how: cell::Sender<config::Listener>,
    serving: JoinHandle<()>,
    /// systemd gave it, so its address is systemd's matter.
    inherited: bool,
}

/// Why the program cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file or a value that the configuration names is at fault; the message says which.
    #[error("{0}")]
    Configuration(String),
    /// A listener's address cannot be bound.
    #[error("{address}: cannot listen: {source}{}", remedy(source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the library or the system says.
        source: io::Error,
    },
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
    let tickets = tls::tickets().map_err(|error| StartError::key("[tls]", error))?;
    let mut renewal = Renewal::new(config);
    let server_tls = server_tls(&config.tls, &tickets)?;
    renewal.read_ends(&config.tls);
    let counters = Arc::new(Counters::default());
    let resolver = NameResolver::new(&config.resolver, Arc::clone(&counters));
    let table = Table::new(config, &resolver)
        .map_err(|error| StartError::Configuration(error.to_string()))?;
    let backends = Backends::new(table, counters);
    // Each transport publishes its routes here.
    let routes = Routes::default();
    let identities = Identities::load(&config.apns, (&config.push).into(), &resolver, &routes)
        .map_err(|error| StartError::Configuration(error.to_string()))?;
    // What makes files comes last, so that a start that fails before it leaves none behind.
    check_record(config)?;
    let sockets = sockets(config, inherited)?;
    let admin_socket = admin::Socket::open(&config.admin)?;
    let mut registry = Registry::default();
    let metrics = Arc::new(Metrics::new(&mut registry));
    let store = Store::open(&config.store.url, config.store.busy_timeout).await.map_err(
        |error| match error.is_temporary() {
            true => StartError::Store(error),
            false => StartError::key("[store] url", error),
        },
    )?;
    let store = store.sharing(Shares {
        accounts_per_device: config.push.accounts_per_device,
        accounts_per_domain: config.push.accounts_per_domain,
        devices_per_domain: config.push.devices_per_domain,
        accounts_per_backend: config.push.accounts_per_backend,
        devices_per_backend: config.push.devices_per_backend,
    });
    let store = store.counting(Arc::clone(&metrics)).of_node(nodes::incarnation().into());
    let store = store.serving().await;
    let credentials = CredentialSource::open(&config.credentials, store.clone())
        .map_err(|error| StartError::key("[credentials] key_file", error))?;
    let credentials = Arc::new(credentials);
    metrics.exposed_files.set(exposed(config));
    let port = sockets.first().map_or(0, |socket| socket.address.port());
    let node = config.node.name.clone().unwrap_or_else(|| nodes::default_name(port));
    tracing::info!(
        target: "mailchime::app::started",
        version = env!("CARGO_PKG_VERSION"),
        backend = backends.default().name(),
        topic = topics(&identities),
        node,
        "mailchime starts"
    );

    let (sessions, mut session_events) = mpsc::channel(QUEUE);
    let [stop_serving, stop_watching, stop_pushing, stop_membership] =
        [(); 4].map(|()| CancellationToken::new());
    let offered = push_offer(identities.offers(Timestamp::now()), &config.push);
    let (offer, offered) = tokio::sync::watch::channel(offered);
    let takes_registrations = offered.clone();
    let push = config.push.clone();
    let publish = move |offers| drop(offer.send_replace(push_offer(offers, &push)));
    let calendar =
        certificate_watch::run(identities.clone(), Timestamp::now, publish, stop_serving.clone());
    let (inquirer, inquiries) = dispatcher::channel();
    let (watchers, watch_inquiries) = watch::requests();
    metrics.watch_channel(Queue::SessionEvents, &sessions);
    let counters = backends.counters();
    metrics.watch_limits(move || counters.all().map(|(key, counter)| (key, counter.hits())).into());
    let (mut membership_task, mut cluster) = (None, ClusterView::none(&node));
    metrics.nodes.set(1);
    if store.is_shared() {
        let (name, takeover) = (node.into(), config.node.takeover);
        let membership;
        (membership, cluster) =
            Membership::new(name, store.clone(), takeover, Arc::clone(&metrics));
        let (first, stop) = (routes.clone(), stop_membership.clone());
        membership_task = Some(tokio::spawn(async move {
            // A node that watches nobody must not have a share.
            if stop.run_until_cancelled(first.first()).await.is_some() {
                membership.run(stop).await;
            }
        }));
    }
    let assignment = cluster.assignment.clone();
    let (changes, change_events) = mpsc::channel(QUEUE);
    let (removed, unwatched) = mpsc::channel(QUEUE);
    let of_accounts = backends.clone();
    let parts = dispatcher::DispatcherParts {
        events: change_events,
        store: store.clone(),
        backends: backends.clone(),
        routes: routes.clone(),
        config: config.push.clone(),
        removed,
        assignment: assignment.clone(),
        requests: inquiries,
        metrics: Arc::clone(&metrics),
        // Names that are ambiguous have no backend, and no watcher either.
        backend_of: dispatcher::BackendOf::new(move |account| {
            of_accounts.of(account).map_or_else(|_| "".into(), |backend| backend.name().into())
        }),
        counters: backends.counters(),
    };
    metrics.watch_channel(Queue::ChangeEvents, &changes);
    let (first, stop) = (routes.clone(), stop_pushing.clone());
    let pushing = tokio::spawn(async move {
        if stop.run_until_cancelled(first.first()).await.is_some() {
            dispatcher::run(parts, stop).await;
        }
    });
    let context = watch::WatchContext::new(
        config,
        backends.clone(),
        store.clone(),
        credentials.clone(),
        changes,
    );
    let context = Arc::new(context.counting(Arc::clone(&metrics)));
    let (first, stop) = (routes.clone(), stop_watching.clone());
    let watching = tokio::spawn(async move {
        // Without a route nothing can be pushed, so nothing is watched either, and who logs in
        // is nobody's matter.
        tokio::select! {
            biased;
            () = first.first() => {}
            () = forget(&mut session_events) => return,
            () = stop.cancelled() => return,
        }
        watch::run(context, session_events, unwatched, cluster, watch_inquiries, stop).await;
    });
    let context = proxy::SessionContext::new(
        backends.clone(),
        offered,
        Arc::clone(&credentials),
        sessions,
        server_tls,
        config,
    );
    let current = proxy::CurrentContext::new(
        context.counting(Arc::clone(&metrics)).tapped(config.record.as_ref().map(record::taps)),
    );
    let probing = probe(backends.clone(), config.limits.capability_size, stop_serving.clone());
    let tidying = tidy(credentials, stop_serving.clone());
    let guarding = guard(store.clone(), stop_serving.clone());
    let counting = count_service(store.clone(), takes_registrations, stop_serving.clone());
    let listening = config.listeners.iter().zip(sockets).map(|(how, socket)| {
        Listening::start(socket, how.clone(), current.clone(), stop_serving.clone())
    });
    let listening: Vec<_> = listening.collect();
    let stop_admin = CancellationToken::new();
    let admin = admin_socket.as_ref().and_then(admin::Socket::address);
    let admin_task = admin_socket.map(|socket| {
        let parts = admin::Parts {
            registry,
            metrics: Arc::clone(&metrics),
            store: store.clone(),
            backends: backends.clone(),
            identities: identities.clone(),
            routes,
            assignment,
            watchers,
            pushes: inquirer.clone(),
            push: config.push.clone(),
            capability_size: config.limits.capability_size,
            stopping: stop_serving.clone(),
        };
        socket.serve(parts, stop_admin.clone())
    });
    let mut running = Server {
        admin,
        addresses: listening.iter().map(|listening| listening.address).collect(),
        store,
        identities,
        inquirer,
        config: config.clone(),
        metrics,
        backends,
        resolver,
        current,
        tickets,
        renewal,
        listening,
        serving: vec![
            tokio::spawn(probing),
            tokio::spawn(calendar),
            tokio::spawn(tidying),
            tokio::spawn(guarding),
            tokio::spawn(counting),
        ],
        watching,
        pushing,
        membership_task,
        admin_task,
        stop_serving,
        stop_watching,
        stop_pushing,
        stop_membership,
        stop_admin,
    };
    running.tell_of_certificates();
    Ok(running)
}

/// Takes what comes until nobody is left to send.
async fn forget(events: &mut mpsc::Receiver<SessionEvent>) {
    while events.recv().await.is_some() {}
}

/// How many files with secrets others can use; the log names each.
fn exposed(config: &Config) -> i64 {
    let mut exposed = 0;
    for (key, path) in config.secret_files() {
        if let Some(why) = files::exposure(path) {
            let file = path.display();
            tracing::error!(
                target: "mailchime::app::secret_file_exposed",
                key, %file, why,
                "other users of this machine can use a file that holds a secret; restrict its \
                 owner and mode to mailchime"
            );
            exposed += 1;
        }
    }
    exposed
}

/// Whether sessions can be recorded, if they are to be.
fn check_record(config: &Config) -> Result<(), StartError> {
    let Some(config) = &config.record else { return Ok(()) };
    record::check(config).map_err(|error| {
        let folder = config.folder.display();
        StartError::key("[record] folder", format!("{folder}: cannot be written: {error}"))
    })
}

impl Server {
    /// How often each limit was hit.
    pub fn counters(&self) -> Arc<Counters> {
        self.backends.counters()
    }

    /// Ends everything in order: no more clients, sessions say goodbye, watchers log out, pushes
    /// under way end or are marked as owed. What does not end in its time is given up; nothing is
    /// lost by that, it only comes later.
    pub async fn stop(self) {
        self.store.stop();
        self.stop_serving.cancel();
        let grace = self.config.limits.shutdown_grace + GRACE;
        let listening = self.listening.into_iter().map(|listening| listening.serving);
        for task in self.serving.into_iter().chain(listening) {
            ended("serving clients", task, grace).await;
        }
        self.stop_watching.cancel();
        ended("watching", self.watching, GRACE).await;
        self.stop_pushing.cancel();
        ended("pushing", self.pushing, GRACE).await;
        // When all that others need of it is on disk.
        self.stop_membership.cancel();
        if let Some(task) = self.membership_task {
            ended("membership_task", task, GRACE).await;
        }
        // Last, so that how it goes can be seen.
        self.stop_admin.cancel();
        if let Some(task) = self.admin_task {
            ended("admin_task of itself", task, GRACE).await;
        }
        if tokio::time::timeout(CLOSING, self.store.close()).await.is_err() {
            tracing::warn!(
                target: "mailchime::app::database_still_busy",
                "a database call did not end in time at the stop; mailchime exits without it"
            );
        }
    }
}

/// Waits for a part of the program, but not for ever.
async fn ended(part: &str, task: JoinHandle<()>, limit: Duration) {
    let abort = task.abort_handle();
    match tokio::time::timeout(limit, task).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(
            target: "mailchime::app::task_failed",
            part, %error, "a part of mailchime failed; please report it with this line"
        ),
        Err(_) => {
            tracing::warn!(
                target: "mailchime::app::task_abandoned",
                part,
                "a part of mailchime did not stop within {limit:?}; mailchime exits without it"
            );
            abort.abort();
        }
    }
}

/// Keeps what clients are offered before login up to date.
async fn probe(backends: Backends, longest: usize, stop: CancellationToken) {
    let probing = async {
        loop {
            let backend = backends.default();
            let pause = match backend.probe(PROBE_TIMEOUT, longest).await {
                Ok(()) => PROBE_INTERVAL,
                Err(error) => {
                    tracing::warn!(
                        target: "mailchime::app::backend_not_probed",
                        %error,
                        "the backend did not say what it offers; clients see what is known so far, \
                         and mailchime asks again"
                    );
                    PROBE_RETRY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = backends.moved(None, &backend) => {}
            }
        }
    };
    // Whether they take passwords or tokens is shown to all.
    let probing_routes = async {
        let mut replacements = backends.replacements();
        loop {
            for backend in backends.of_routes() {
                if let Err(error) = backend.probe(PROBE_TIMEOUT, longest).await {
                    tracing::debug!(
                        target: "mailchime::app::backend_not_probed",
                        %error,
                        "the backend of a route did not say what it offers; mailchime asks again"
                    );
                }
            }
            let replaced = tokio::time::timeout(PROBE_INTERVAL, replacements.changed()).await;
            drop(replaced);
        }
    };
    stop.run_until_cancelled(async { tokio::join!(probing, probing_routes) }).await;
}

/// Keeps no credentials longer than they may be kept.
async fn tidy(credentials: Arc<CredentialSource>, stop: CancellationToken) {
    match credentials.unreadable().await {
        Ok(0) => {}
        Ok(accounts) => tracing::error!(
            target: "mailchime::app::credentials_unreadable",
            accounts,
            "[credentials] key_file does not open the stored credentials of these accounts; put \
             back the key file that sealed them, or mailchime watches each account again once its \
             user logs in"
        ),
        Err(error) => tracing::warn!(
            target: "mailchime::app::credentials_not_checked",
            %error,
            "could not check whether [credentials] key_file opens the stored credentials; \
             mailchime goes on"
        ),
    }
    loop {
        match credentials.tidy(Timestamp::now()).await {
            Ok(0) => {}
            Ok(accounts) => tracing::info!(
                target: "mailchime::app::credentials_expired",
                accounts, "removed stored credentials that had expired"
            ),
            Err(error) => tracing::warn!(
                target: "mailchime::app::expired_credentials_not_removed",
                %error,
                "could not remove expired credentials from the database; mailchime tries again in \
                 a minute"
            ),
        }
        tokio::select! {
            () = tokio::time::sleep(TIDY_INTERVAL) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Notices that the file of the database was replaced, also while nothing is written.
async fn guard(store: Store, stop: CancellationToken) {
    let looking = async {
        while !store.is_shared() {
            store.look_at_file().await;
            tokio::time::sleep(FILE_INTERVAL).await;
        }
    };
    stop.run_until_cancelled(looking).await;
}

/// Counts the time in which phones can register: push is offered to them, and the database takes what
/// they say.
async fn count_service(
    store: Store,
    offered: cell::Receiver<Option<PushOffer>>,
    stop: CancellationToken,
) {
    loop {
        let open = offered.borrow().is_some();
        if let Err(error) = store.count_service(Timestamp::now(), open).await {
            tracing::warn!(
                target: "mailchime::app::service_time_not_recorded",
                %error,
                "could not record the time of service in the database; mailchime tries again"
            );
        }
        tokio::select! {
            () = tokio::time::sleep(store::TICK) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// A listening socket, and whether systemd gave it.
struct Socket {
    listener: TcpListener,
    address: SocketAddr,
    inherited: bool,
}

/// A socket for each listener.
fn sockets(
    config: &Config,
    inherited: Vec<std::net::TcpListener>,
) -> Result<Vec<Socket>, StartError> {
    let (given, wanted) = (inherited.len(), config.listeners.len());
    if given > wanted {
        return Err(StartError::Sockets { given, wanted });
    }
    let mut inherited = inherited.into_iter();
    let socket = |how: &config::Listener| Socket::open(how.address, inherited.next());
    config.listeners.iter().map(socket).collect()
}

impl Socket {
    fn open(wanted: SocketAddr, given: Option<std::net::TcpListener>) -> Result<Self, StartError> {
        let inherited = given.is_some();
        let failed = |source| StartError::Listen { address: wanted, source };
        let opened = given.map_or_else(|| listen::bind(wanted), listen::adopt);
        let listener = opened.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, inherited })
    }
}

impl Listening {
    fn start(
        socket: Socket,
        how: config::Listener,
        current: proxy::CurrentContext,
        stop: CancellationToken,
    ) -> Self {
        let Socket { listener, address, inherited } = socket;
        tracing::info!(target: "mailchime::app::listening", %address, "listening");
        let (how, changes) = cell::channel(how);
        let serving = tokio::spawn(proxy::serve(listener, changes, current, stop));
        Self { address, how, serving, inherited }
    }
}

/// What clients are shown.
fn server_tls(
    tls: &config::Tls,
    tickets: &Arc<dyn ProducesTickets>,
) -> Result<Arc<ServerConfig>, StartError> {
    let identities = |table, name: Option<&str>, certificates: &[CertificateFiles]| {
        let identity = |CertificateFiles { certificate, private_key }: &CertificateFiles| {
            let identity = match name {
                None => tls::identity(certificate, private_key),
                Some(name) => tls::identity_for(name, certificate, private_key),
            };
            identity.map(Arc::new).map_err(|error| {
                StartError::pair(table, [certificate, private_key], error.file(), &error)
            })
        };
        certificates.iter().map(identity).collect::<Result<Vec<_>, _>>()
    };
    let default = identities("[tls]", None, &tls.certificates)?;
    let mut named = HashMap::new();
    for Sni { name, certificates } in &tls.sni {
        named.insert(name.clone(), identities("[[tls.sni]]", Some(name), certificates)?);
    }
    tls::server(default, named, Arc::clone(tickets))
        .map_err(|error| StartError::key("[tls]", error))
}

/// The topics that devices get at the moment, for the log.
fn topics(identities: &Identities) -> String {
    let offers = identities.offers(Timestamp::now());
    let topics: Vec<_> = offers.into_iter().filter_map(|offer| offer.topic).collect();
    if topics.is_empty() { "none: push is off".into() } else { topics.join(" ") }
}

/// What sessions offer: `None` while nobody could be pushed, for then a phone that registers would
/// leave Fetch and get nothing.
pub fn push_offer(offers: Vec<Offer>, config: &config::Push) -> Option<PushOffer> {
    let mut topics = Vec::new();
    for Offer { topic, domains } in offers {
        let all_others = domains.is_empty().then_some(None);
        let domains = domains.into_iter().map(Some).chain(all_others);
        topics.extend(domains.map(|domain| DomainTopic { domain, topic: topic.clone() }));
    }
    let clients = config.clients.clone();
    let offer = PushOffer { topics, clients, most_mailboxes: config.mailboxes };
    offer.is_open().then_some(offer)
}
