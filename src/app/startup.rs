//! The start, in named steps: [`Built::new`] makes every part and fails if one cannot be made, and
//! [`Built::run`] joins the parts by channels and starts their tasks.

use std::net::SocketAddr;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use rustls::server::ProducesTickets;
use tokio::sync::{mpsc, watch as cell};

use super::background::{SubscriptionNews, count, count_service, drop_ended, guard, probe, tidy};
use super::listeners::{ListenerSocket, Listening, sockets};
use super::renewal::Renewal;
use super::server_tls::server_tls;
use super::services::ServicesSetup;
use super::tasks::{StopStage, Tasks};
use super::webhook::{Enrolment, EnrolmentParts};
use super::webpush::{self, Browsers, WebPushSetup};
use super::{MailPushSetup, Server, StartError, admin, api, intake};
use crate::config::{Config, CredentialsMode, WebhookConfig};
use crate::files;
use crate::imap::contract::PushOffer;
use crate::intake::KnownSources;
use crate::metrics::{Metrics, Queue};
use crate::model::{Account, SessionEvent, Timestamp, WatchEvent};
use crate::net::backends::{Backends, Table};
use crate::net::counters::LimitCounters;
use crate::net::descriptors;
use crate::net::door::SessionDoor;
use crate::net::resolve::NameResolver;
use crate::net::tls::{self, ServerTls};
use crate::nodes::{self, Assignment, ClusterView, Membership};
use crate::push::dispatcher::{self, DispatcherHandle};
use crate::push::transport::enrol::Transports;
use crate::push::transport::{self, Routes};
use crate::registrar::Registrar;
use crate::store::{CredentialSource, Shares, Store, unreadable};
use crate::{proxy, record, watch};

/// Events that may wait between two parts; then the one that sends them waits.
const QUEUE: usize = 1024;

/// Every part, made and not yet at work.
pub(super) struct Built {
    tickets: Arc<dyn ProducesTickets>,
    renewal: Renewal,
    server_tls: ServerTls,
    resolver: NameResolver,
    backends: Backends,
    mail_push: MailPushSetup,
    /// Under whose authority pushes are sent at the moment.
    routes: Routes,
    /// What clients can subscribe to by HTTP.
    transports: Transports,
    sockets: Vec<ListenerSocket>,
    admin_socket: Option<admin::Socket>,
    api_socket: Option<api::ApiSocket>,
    event_sockets: Option<intake::EventSockets>,
    event_sources: KnownSources,
    /// As [`Server::awaits_vapid_key`].
    awaits_vapid_key: bool,
    registry: Registry,
    metrics: Arc<Metrics>,
    store: Store,
    credentials: Arc<CredentialSource>,
    /// The name of this node.
    node: String,
}

impl Built {
    /// Makes all parts. What makes files comes last, so that a start that fails before it leaves none
    /// behind.
    pub(super) async fn new(
        config: &Config,
        inherited: Vec<std::net::TcpListener>,
    ) -> Result<Self, StartError> {
        let tickets = tls::tickets().map_err(|error| StartError::key("[tls]", error))?;
        let mut renewal = Renewal::new(config);
        let server_tls = server_tls(&config.tls, &tickets)?;
        renewal.read_ends(&config.tls);
        let counters = Arc::new(LimitCounters::default());
        let resolver = NameResolver::new(&config.resolver, Arc::clone(&counters));
        let table = Table::new(config, &resolver)
            .map_err(|error| StartError::Configuration(error.to_string()))?;
        let backends = Backends::new(table, counters);
        // Each transport publishes its routes here.
        let routes = Routes::default();
        let mail_push = MailPushSetup::load(config, &resolver, &routes)?;
        let transports = Transports::default();
        // Users subscribe by the API alone.
        let services = ServicesSetup::load(config, config.api.address.is_some(), &resolver)?;
        services.publish(&routes, &transports);
        check_record(config)?;
        let sockets = sockets(config, inherited)?;
        let admin_socket = admin::Socket::open(&config.admin)?;
        let api_socket = api::ApiSocket::open(&config.api)?;
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::new(&mut registry));
        transport::NAMES.into_iter().for_each(|name| metrics.transport(name));
        let event_sources =
            intake::sources(&config.events, &metrics).map_err(StartError::Configuration)?;
        let event_sources = KnownSources::new(event_sources);
        let event_sockets = intake::EventSockets::open(&config.events, &metrics).await?;
        let store = open_store(config, &metrics).await?;
        keep_key(config, &store).await?;
        let credentials =
            CredentialSource::open(config.credentials, &config.key_file, store.clone())
                .map_err(|error| StartError::key("[credentials] key_file", error))?;
        let browsers = Browsers::of(config.web_push.as_ref(), &store).await;
        let web_push = WebPushSetup::new(config.web_push.as_ref(), &resolver, browsers)?;
        if let Some(web_push) = &web_push {
            web_push.news().tell(&store).await;
        }
        webpush::publish(web_push, &routes, &transports);
        metrics.exposed_files.set(exposed(config));
        metrics.notice(notices(config));
        let port = sockets.first().map_or(0, |socket| socket.address.port());
        let node = config.node.name.clone().unwrap_or_else(|| nodes::default_name(port));
        Ok(Self {
            tickets,
            renewal,
            server_tls,
            resolver,
            backends,
            mail_push,
            routes,
            transports,
            sockets,
            admin_socket,
            api_socket,
            event_sockets: Some(event_sockets),
            event_sources,
            awaits_vapid_key: browsers == Browsers::NotKnown,
            registry,
            metrics,
            store,
            credentials: Arc::new(credentials),
            node,
        })
    }

    /// Joins the parts and starts their tasks.
    pub(super) fn run(mut self, config: &Config) -> Server {
        tracing::info!(
            target: "mailchime::app::started",
            version = env!("CARGO_PKG_VERSION"),
            backend = self.backends.default().name(),
            routes = self.routes.open(Timestamp::now()),
            node = self.node,
            "mailchime starts"
        );
        let mut tasks = Tasks::default();
        let (sessions, session_events) = mpsc::channel(QUEUE);
        let (changes, change_events) = mpsc::channel(QUEUE);
        let (removed, unwatched) = mpsc::channel(QUEUE);
        self.watch_queues(&sessions, &changes);
        let offered = self.mail_push.start_offer(&mut tasks);
        let cluster = self.start_membership(config, &mut tasks);
        let assignment = cluster.assignment.clone();
        let dispatcher =
            self.start_pushing(config, &mut tasks, change_events, removed, assignment.clone());
        let registrar = self.registrar(config, sessions.clone());
        let news = SubscriptionNews { routes: self.routes.clone(), pushes: dispatcher.clone() };
        let enrolment = (registrar.clone(), assignment.clone(), news.clone());
        let (webhooks, covering) = cell::channel(config.webhooks.as_slice().into());
        let enrolment = self.enrolment(config, covering, enrolment);
        let session_events = start_enrolment(&mut tasks, session_events, enrolment);
        let inputs = WatchInputs { session_events, unwatched, cluster };
        let (watchers, followers) = self.start_watching(config, &mut tasks, inputs, changes);
        let current = self.sessions(config, offered.clone(), sessions, registrar.clone());
        self.start_background(
            config,
            &mut tasks,
            offered.clone(),
            (news.clone(), watchers.clone()),
        );
        let stop = tasks.stop_of(StopStage::Serving);
        let local_sessions = proxy::LocalSessions::new(current.clone(), stop.clone());
        let ended = local_sessions.clone().ended();
        tasks.start(StopStage::Serving, "sessions of clients in this process", ended);
        let sockets = std::mem::take(&mut self.sockets);
        let listening = config.listeners.iter().zip(sockets).map(|(how, socket)| {
            Listening::start(socket, how.clone(), current.clone(), stop.clone())
        });
        let listening: Vec<_> = listening.collect();
        let admin = self.admin_socket.as_ref().and_then(admin::Socket::address);
        let asked = (assignment.clone(), watchers.clone(), dispatcher.clone());
        let registry = std::mem::take(&mut self.registry);
        self.start_admin(config, &mut tasks, registry, asked);
        let door: Arc<dyn SessionDoor> = Arc::new(local_sessions);
        let joined = (&door, &current, &registrar, &news, followers);
        let api = self.start_api(config, &mut tasks, joined);
        let joined = (watchers.clone(), registrar.clone(), offered);
        let (events, udp_events) = self.start_intake(config, &mut tasks, &current, joined);
        let mut server = Server {
            admin,
            api,
            events,
            udp_events,
            door,
            addresses: listening.iter().map(|listening| listening.address).collect(),
            store: self.store,
            routes: self.routes,
            transports: self.transports,
            webhooks,
            event_sources: self.event_sources,
            watchers,
            awaits_vapid_key: self.awaits_vapid_key,
            mail_push: self.mail_push,
            dispatcher,
            config: config.clone(),
            metrics: self.metrics,
            backends: self.backends,
            resolver: self.resolver,
            current,
            registrar,
            tickets: self.tickets,
            renewal: self.renewal,
            listening,
            tasks,
        };
        server.tell_of_certificates();
        server
    }

    /// Shows how full the queues between the parts are, and how often each limit was hit.
    fn watch_queues(
        &self,
        sessions: &mpsc::Sender<SessionEvent>,
        changes: &mpsc::Sender<WatchEvent>,
    ) {
        self.metrics.watch_channel(Queue::SessionEvents, sessions);
        self.metrics.watch_channel(Queue::ChangeEvents, changes);
        let counters = self.backends.counters();
        self.metrics.watch_limits(move || counters.all().map(|(key, it)| (key, it.hits())).into());
    }

    /// Joins the nodes that share the database, if it can be shared.
    fn start_membership(&self, config: &Config, tasks: &mut Tasks) -> ClusterView {
        self.metrics.nodes.set(1);
        if !self.store.is_shared() {
            return ClusterView::none(&self.node);
        }
        let (name, takeover) = (self.node.as_str().into(), config.node.takeover);
        let metrics = Arc::clone(&self.metrics);
        let (membership, cluster) = Membership::new(name, self.store.clone(), takeover, metrics);
        let (routes, stop) = (self.routes.clone(), tasks.stop_of(StopStage::Membership));
        tasks.start(StopStage::Membership, "membership", async move {
            // A node that watches nobody must not have a share.
            if stop.run_until_cancelled(routes.first()).await.is_some() {
                membership.run(stop).await;
            }
        });
        cluster
    }

    fn start_pushing(
        &self,
        config: &Config,
        tasks: &mut Tasks,
        events: mpsc::Receiver<WatchEvent>,
        removed: mpsc::Sender<Account>,
        assignment: cell::Receiver<Assignment>,
    ) -> DispatcherHandle {
        let (dispatcher, requests) = dispatcher::channel();
        let of_accounts = self.backends.clone();
        let parts = dispatcher::DispatcherParts {
            events,
            store: self.store.clone(),
            backends: self.backends.clone(),
            routes: self.routes.clone(),
            config: config.push.clone(),
            removed,
            assignment,
            requests,
            metrics: Arc::clone(&self.metrics),
            // Names that are ambiguous have no backend, and no watcher either.
            backend_of: dispatcher::BackendOf::new(move |account| {
                of_accounts.of(account).map_or_else(|_| "".into(), |backend| backend.name().into())
            }),
            counters: self.backends.counters(),
        };
        let (routes, stop) = (self.routes.clone(), tasks.stop_of(StopStage::Pushing));
        tasks.start(StopStage::Pushing, "pushing", async move {
            if stop.run_until_cancelled(routes.first()).await.is_some() {
                dispatcher::run(parts, stop).await;
            }
        });
        dispatcher
    }

    fn start_watching(
        &self,
        config: &Config,
        tasks: &mut Tasks,
        inputs: WatchInputs,
        changes: mpsc::Sender<WatchEvent>,
    ) -> (watch::SupervisorHandle, watch::Followers) {
        let (watchers, requests) = watch::requests();
        let (backends, store) = (self.backends.clone(), self.store.clone());
        let credentials = Arc::clone(&self.credentials);
        let context = watch::WatchContext::new(config, backends, store, credentials, changes);
        let context = context.counting(Arc::clone(&self.metrics));
        let carry = self.routes.clone();
        let context = context.previewing_for(move |transport| carry.carry_previews_by(transport));
        let context = Arc::new(context);
        let followers = watch::Followers::new(Arc::clone(&context));
        let following = followers.clone().run(tasks.stop_of(StopStage::Watching));
        tasks.start(StopStage::Watching, "connections for streams", following);
        let (routes, store) = (self.routes.clone(), self.store.clone());
        let stop = tasks.stop_of(StopStage::Watching);
        let takes_events = store.is_shared() && config.events.is_on();
        let WatchInputs { mut session_events, unwatched, cluster } = inputs;
        tasks.start(StopStage::Watching, "watching", async move {
            // Without a route nothing can be pushed, so nothing is watched either, and who logs
            // in is nobody's matter.
            tokio::select! {
                biased;
                () = routes.first() => {}
                () = forget(&mut session_events) => return,
                () = stop.cancelled() => return,
                never = watch::tell_missed_events(&store, &requests), if takes_events => match never {},
            }
            watch::run(context, session_events, unwatched, cluster, requests, stop).await;
        });
        (watchers, followers)
    }

    /// What stores the registrations of all clients.
    fn registrar(&self, config: &Config, events: mpsc::Sender<SessionEvent>) -> Registrar {
        let credentials = Arc::clone(&self.credentials);
        Registrar::new(self.backends.clone(), credentials, events, config)
    }

    /// What keeps the rows of the operator's web hooks.
    fn enrolment(
        &self,
        config: &Config,
        webhooks: cell::Receiver<Arc<[WebhookConfig]>>,
        (registrar, assignment, news): (Registrar, cell::Receiver<Assignment>, SubscriptionNews),
    ) -> Enrolment {
        let (store, backends) = (self.store.clone(), self.backends.clone());
        let parts = EnrolmentParts { webhooks, store, registrar, backends, assignment, news };
        Enrolment::new(config, parts)
    }

    /// What sessions begin with.
    fn sessions(
        &self,
        config: &Config,
        offered: cell::Receiver<Option<PushOffer>>,
        events: mpsc::Sender<SessionEvent>,
        registrar: Registrar,
    ) -> proxy::CurrentContext {
        let (backends, credentials) = (self.backends.clone(), Arc::clone(&self.credentials));
        let tls = self.server_tls.clone();
        let context = proxy::SessionContext::new(
            backends,
            offered,
            credentials,
            events,
            registrar,
            tls,
            config,
        )
        .counting(Arc::clone(&self.metrics))
        .tapped(config.record.as_ref().map(record::taps));
        proxy::CurrentContext::new(context)
    }

    /// What goes on beside the sessions for as long as clients are served.
    fn start_background(
        &self,
        config: &Config,
        tasks: &mut Tasks,
        offered: cell::Receiver<Option<PushOffer>>,
        (news, watchers): (SubscriptionNews, watch::SupervisorHandle),
    ) {
        let stop = tasks.stop_of(StopStage::Serving);
        let longest = config.limits.capability_size;
        let (store, credentials) = (self.store.clone(), Arc::clone(&self.credentials));
        let ended = drop_ended(store.clone(), Arc::clone(&credentials), news, stop.clone());
        let probing = probe(self.backends.clone(), longest, stop.clone());
        tasks.start(StopStage::Serving, "backend probe", probing);
        tasks.start(StopStage::Serving, "credential expiry", tidy(credentials, stop.clone()));
        let guarding = guard(store.clone(), watchers, stop.clone());
        tasks.start(StopStage::Serving, "database file guard", guarding);
        tasks.start(StopStage::Serving, "ended subscriptions", ended);
        let counting = count(store.clone(), Arc::clone(&self.metrics), stop.clone());
        tasks.start(StopStage::Serving, "count for the metrics", counting);
        tasks.start(StopStage::Serving, "service time", count_service(store, offered, stop));
    }

    /// Serves users' programs; where.
    fn start_api(
        &mut self,
        config: &Config,
        tasks: &mut Tasks,
        (door, current, registrar, news, followers): (
            &Arc<dyn SessionDoor>,
            &proxy::CurrentContext,
            &Registrar,
            &SubscriptionNews,
            watch::Followers,
        ),
    ) -> Option<SocketAddr> {
        let socket = self.api_socket.take()?;
        let address = socket.address;
        let joints = api::ApiJoints {
            door: Arc::clone(door),
            current: current.clone(),
            registrar: registrar.clone(),
            store: self.store.clone(),
            push: Arc::new(api::JoinedPushSide {
                transports: self.transports.clone(),
                routes: self.routes.clone(),
                store: self.store.clone(),
                news: news.clone(),
                config: config.push.clone(),
            }),
            live: Arc::new(api::JoinedLiveSide(followers)),
            counters: self.backends.counters(),
            metrics: Arc::clone(&self.metrics),
        };
        let serving = socket.serve(config, joints, tasks.stop_of(StopStage::Serving));
        tasks.add(StopStage::Serving, "api", serving);
        Some(address)
    }

    /// Takes events of mail servers; where, by HTTP and as datagrams.
    fn start_intake(
        &mut self,
        config: &Config,
        tasks: &mut Tasks,
        current: &proxy::CurrentContext,
        (watchers, registrar, offered): (
            watch::SupervisorHandle,
            Registrar,
            cell::Receiver<Option<PushOffer>>,
        ),
    ) -> (Option<SocketAddr>, Option<SocketAddr>) {
        let sockets = self.event_sockets.take().filter(|sockets| !sockets.is_empty());
        let Some(sockets) = sockets else { return (None, None) };
        let addresses = sockets.addresses();
        let joints = intake::IntakeJoints {
            current: current.clone(),
            sources: self.event_sources.clone(),
            backends: self.backends.clone(),
            marks: intake::DueMarks {
                store: self.store.clone(),
                watchers,
                config: config.watch.clone(),
            },
            metrics: Arc::clone(&self.metrics),
            registrar,
            offered,
        };
        let serving = sockets.serve(config, joints, tasks.stop_of(StopStage::Serving));
        tasks.add(StopStage::Serving, "events", serving);
        addresses
    }

    fn start_admin(
        &mut self,
        config: &Config,
        tasks: &mut Tasks,
        registry: Registry,
        (assignment, watchers, pushes): (
            cell::Receiver<Assignment>,
            watch::SupervisorHandle,
            DispatcherHandle,
        ),
    ) {
        let Some(socket) = self.admin_socket.take() else { return };
        let parts = admin::Parts {
            registry,
            metrics: Arc::clone(&self.metrics),
            store: self.store.clone(),
            backends: self.backends.clone(),
            mail_push: self.mail_push.clone(),
            routes: self.routes.clone(),
            assignment,
            watchers,
            pushes,
            push: config.push.clone(),
            capability_size: config.limits.capability_size,
            stopping: tasks.stop_of(StopStage::Serving),
        };
        let serving = socket.serve(parts, tasks.stop_of(StopStage::Admin));
        tasks.add(StopStage::Admin, "admin", serving);
    }
}

/// Has the web hooks of the operator hear of accounts whose users log in; returns what sessions say, for the
/// watching side.
fn start_enrolment(
    tasks: &mut Tasks,
    sessions: mpsc::Receiver<SessionEvent>,
    enrolment: Enrolment,
) -> mpsc::Receiver<SessionEvent> {
    let (watching, passed_on) = mpsc::channel(QUEUE);
    let stop = tasks.stop_of(StopStage::Watching);
    let run = enrolment.run(sessions, watching, stop);
    tasks.start(StopStage::Watching, "web hook enrolment", run);
    passed_on
}

/// What the watching side hears.
struct WatchInputs {
    session_events: mpsc::Receiver<SessionEvent>,
    /// Accounts whose last device is gone.
    unwatched: mpsc::Receiver<Account>,
    cluster: ClusterView,
}

async fn open_store(config: &Config, metrics: &Arc<Metrics>) -> Result<Store, StartError> {
    let opened = Store::open(&config.store.url, config.store.busy_timeout).await;
    let store = opened.map_err(|error| match error.is_temporary() {
        true => StartError::Store(error),
        false => StartError::key("[store] url", error),
    })?;
    let store = store.sealing(&config.key_file).sharing(Shares {
        accounts_per_device: config.push.accounts_per_device,
        accounts_per_domain: config.push.accounts_per_domain,
        subscriptions_per_domain: config.push.subscriptions_per_domain,
        accounts_per_backend: config.push.accounts_per_backend,
        subscriptions_per_backend: config.push.subscriptions_per_backend,
    });
    let store = store.counting(Arc::clone(metrics)).of_node(nodes::incarnation().into());
    Ok(store.serving().await)
}

/// No key is made in the place of one that is missing: what that one sealed could not be read any more, and the new
/// one would hide why. Of a database that does not answer nothing is known.
async fn keep_key(config: &Config, store: &Store) -> Result<(), StartError> {
    let is_there = std::fs::symlink_metadata(&config.key_file).is_ok();
    if config.credentials != CredentialsMode::Stored || is_there {
        return Ok(());
    }
    match unreadable(store, None).await {
        Ok(0) | Err(_) => Ok(()),
        Ok(accounts) => {
            let file = config.key_file.display();
            let problem = format!(
                "{file} is not there, and was the key that sealed what is stored of {accounts} accounts; put it \
                 back from a copy. If there is none, make a new one as the user that mailchime runs as, and each of \
                 them is watched again when its user has logged in: (umask 077; openssl rand -base64 32 > {file})"
            );
            Err(StartError::key("[credentials] key_file", problem))
        }
    }
}

/// Takes what comes until nobody is left to send.
async fn forget(events: &mut mpsc::Receiver<SessionEvent>) {
    while events.recv().await.is_some() {}
}

/// What is to be said of the configuration, beside the log, for as long as it is in use.
pub(super) fn notices(config: &Config) -> Vec<String> {
    config.warnings.iter().cloned().chain(descriptors::shortage(&config.limits)).collect()
}

/// How many files with secrets others can use; the log names each.
pub(super) fn exposed(config: &Config) -> i64 {
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
pub(super) fn check_record(config: &Config) -> Result<(), StartError> {
    let Some(config) = &config.record else { return Ok(()) };
    record::check(config).map_err(|error| {
        let folder = config.folder.display();
        StartError::key("[record] folder", format!("{folder}: cannot be written: {error}"))
    })
}
