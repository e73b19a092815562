//! The way of a change out, over real sockets: HTTP/2 and TLS with a client certificate to the
//! stand-in for APNs, a database in a file, and the dispatcher between them.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mailchime::config::{self, ApnsServer, Config, FcmConfig};
pub(crate) use mailchime::demo::apns::Apns as StandIn;
use mailchime::demo::fcm::FcmStandIn;
use mailchime::demo::pki::Pki;
use mailchime::imap::registration::xapple::{ApnsOptions, DeviceToken, XAppleRegistration};
use mailchime::metrics::Metrics;
use mailchime::model::{
    Account, Change, ChangeKind, Mailbox, Registration, Snapshot, Subscription, Timestamp,
    WatchEvent,
};
use mailchime::net::backends::{Backends, Table};
use mailchime::net::resolve::NameResolver;
use mailchime::nodes::ClusterView;
use mailchime::push::dispatcher::{self, DispatcherHandle, DispatcherParts};
use mailchime::push::transport::apns::ApnsIdentity;
use mailchime::push::transport::apns::identities::{Identities, LoadError, route};
use mailchime::push::transport::{Route, Routes};
use mailchime::store::{Registrant, Store};
use prometheus_client::registry::Registry;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, SqliteConnection};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::listener;

/// The backend of all accounts.
pub(crate) fn backends() -> Backends {
    let backend = config::BackendConfig::new("imap.example.org", 993, config::BackendTls::None);
    let config = Config::new(config::TlsConfig::new("", ""), backend);
    let table = Table::new(&config, &NameResolver::default()).unwrap();
    Backends::new(table, Arc::default())
}

/// The route of this identity, with the defaults of `[push]`.
pub(crate) fn route_of(identity: &ApnsIdentity, config: &config::ApnsConfig) -> Route {
    route(identity, config, (&config::PushConfig::default()).into(), &NameResolver::default())
        .unwrap()
}

/// The same for all identities of a configuration, with routes of their own.
pub(crate) fn load(config: &[config::ApnsConfig]) -> Identities {
    try_load(config, &config::PushConfig::default()).unwrap()
}

/// As [`load`], with this `[push]`.
pub(crate) fn try_load(
    config: &[config::ApnsConfig],
    push: &config::PushConfig,
) -> Result<Identities, LoadError> {
    Identities::load(config, push.into(), &NameResolver::default(), &Routes::default())
}

/// A registration in a session that has just logged in there.
pub(crate) async fn register(store: &Store, registration: &Registration, now: Timestamp) {
    let backend = backends().default();
    let login = Registrant::new(backend.id(), now, None);
    store.register(registration, login, 50, now).await.unwrap();
}

/// Certificates in memory and in a folder.
pub(crate) struct Certificates {
    pub(crate) pki: Pki,
    pub(crate) folder: TempDir,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let pki = Pki::generate(None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        pki.write_to(folder.path()).unwrap();
        Self { pki, folder }
    }

    pub(crate) async fn stand_in(&self) -> StandIn {
        StandIn::start(listener().await, &self.pki).unwrap()
    }

    pub(crate) fn identity(&self) -> ApnsIdentity {
        let file = |name| self.folder.path().join(name);
        let config = config::ApnsConfig::new(file("apns.pem"), file("apns.key"));
        ApnsIdentity::load(&config.identity).unwrap()
    }

    /// How to reach a server of these certificates.
    pub(crate) fn config(&self, address: SocketAddr) -> config::ApnsConfig {
        let file = |name| self.folder.path().join(name);
        let mut config = config::ApnsConfig::new(file("apns.pem"), file("apns.key"));
        config.endpoint = ApnsServer { host: address.ip().to_string(), port: address.port() };
        config.ca = Some(file("ca.pem"));
        config
    }

    pub(crate) fn route(&self, address: SocketAddr) -> Route {
        route_of(&self.identity(), &self.config(address))
    }

    /// The only identity, for everybody.
    pub(crate) fn identities(&self, address: SocketAddr) -> Identities {
        load(&[self.config(address)])
    }

    /// A device whose token begins with `name`.
    pub(crate) fn device(&self, name: &str) -> Subscription {
        XAppleRegistration {
            version: 2,
            account_id: "0715A26B-CA09-4730-A419-793000CA982E".into(),
            token: DeviceToken::new(&format!("{name:0<64}")).unwrap(),
            subtopic: "com.apple.mobilemail".into(),
            mailboxes: Vec::new(),
        }
        .subscription(Account::from_login("alice@example.org"), &self.pki.topic)
    }
}

/// The options of a device that is registered for a mail account by this name of its own.
pub(crate) fn options(account_id: &str) -> Arc<str> {
    ApnsOptions { account_id: account_id.to_owned(), version: 2 }.to_json().into()
}

/// The device's own name for its mail account.
pub(crate) fn account_id(device: &Subscription) -> String {
    ApnsOptions::from_json(&device.options).unwrap().account_id
}

/// The token of the device.
pub(crate) fn token(device: &Subscription) -> DeviceToken {
    DeviceToken::new(device.endpoint.as_given()).unwrap()
}

pub(crate) const EVER: Timestamp = Timestamp(0);

/// A database with devices that registered when each mailbox had one mail.
pub(crate) struct Disk {
    pub(crate) folder: TempDir,
    pub(crate) store: Store,
}

impl Disk {
    pub(crate) async fn with(devices: &[Subscription]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("mailchime.db").display());
        let store = Store::open(&url.parse().unwrap(), Duration::from_millis(50)).await.unwrap();
        let store = store.sealing(&folder.path().join("key"));
        for device in devices {
            let mailboxes = ["INBOX", "Notes"].map(|name| (Mailbox::new(name), state(1))).to_vec();
            let registration = Registration { subscription: device.clone(), mailboxes };
            register(&store, &registration, Timestamp::now()).await;
        }
        Self { folder, store }
    }

    /// What the devices were told of.
    pub(crate) async fn told(&self) -> Vec<(String, u64)> {
        let rows = self.store.watched(&alice(), backends().default().id(), EVER).await.unwrap();
        rows.iter().map(|(mailbox, told)| (mailbox.to_string(), told.uid_next.unwrap())).collect()
    }

    /// The mailboxes that are owed, with how the token of the device begins.
    pub(crate) async fn owed(&self) -> Vec<String> {
        let mut owed = Vec::new();
        for target in self.store.targets(&alice(), EVER).await.unwrap() {
            let marked = target.mailboxes.iter().filter(|(_, owed)| *owed);
            let token = &target.subscription.endpoint.as_given()[..2];
            owed.extend(marked.map(|(mailbox, _)| format!("{token} {mailbox}")));
        }
        owed
    }

    /// A connection beside the program's own.
    pub(crate) async fn beside(&self) -> SqliteConnection {
        let file = self.folder.path().join("mailchime.db");
        SqliteConnectOptions::new().filename(file).connect().await.unwrap()
    }
}

/// A dispatcher that runs.
pub(crate) struct Running {
    pub(crate) events: mpsc::Sender<WatchEvent>,
    pub(crate) removed: mpsc::Receiver<Account>,
    pub(crate) cancel: CancellationToken,
    pub(crate) task: JoinHandle<()>,
    pub(crate) inquirer: DispatcherHandle,
    pub(crate) id: u64,
    metrics: (Arc<Metrics>, Registry),
}

impl Running {
    pub(crate) fn start(disk: &Disk, identities: Identities) -> Self {
        Self::with(disk, identities, config::PushConfig::default())
    }

    pub(crate) fn with(disk: &Disk, identities: Identities, config: config::PushConfig) -> Self {
        Self::over(disk, identities.routes(), config)
    }

    pub(crate) fn over(disk: &Disk, routes: &Routes, config: config::PushConfig) -> Self {
        let (events, changes) = mpsc::channel(8);
        let (hints, removed) = mpsc::channel(8);
        let cancel = CancellationToken::new();
        let (inquirer, inquiries) = dispatcher::channel();
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::new(&mut registry));
        let parts = DispatcherParts {
            events: changes,
            store: disk.store.clone(),
            backends: backends(),
            routes: routes.clone(),
            config: config::PushConfig { min_interval: Duration::ZERO, ..config },
            removed: hints,
            assignment: ClusterView::none("here").assignment,
            requests: inquiries,
            metrics: Arc::clone(&metrics),
            backend_of: dispatcher::BackendOf::new(|_| "backend".into()),
            counters: Arc::default(),
        };
        let task = tokio::spawn(dispatcher::run(parts, cancel.clone()));
        let metrics = (metrics, registry);
        Self { events, removed, cancel, task, inquirer, id: 0, metrics }
    }

    pub(crate) async fn change(&mut self, mailbox: &str, snapshot: Option<Snapshot>) -> u64 {
        self.changed(mailbox, ChangeKind::NewMail, snapshot).await
    }

    pub(crate) async fn changed(
        &mut self,
        mailbox: &str,
        kind: ChangeKind,
        snapshot: Option<Snapshot>,
    ) -> u64 {
        self.id += 1;
        let (account, mailbox) = (alice(), Mailbox::new(mailbox));
        let (id, seen_at) = (self.id, Instant::now());
        let backend = backends().default().id().clone();
        let preview_follows = false;
        let change = Change {
            account,
            backend,
            mailbox,
            kind,
            id,
            snapshot,
            seen_at,
            unread_before: None,
            preview_follows,
        };
        let event = match change.snapshot {
            None => WatchEvent::Announced(change),
            Some(_) => WatchEvent::Changed(change),
        };
        self.events.send(event).await.unwrap();
        id
    }

    pub(crate) async fn mail(&mut self, mailbox: &str, n: u64) {
        self.change(mailbox, Some(state(n))).await;
    }

    /// Why the first device would not be pushed if mail came to `mailbox` now.
    pub(crate) async fn why(&self, mailbox: &str) -> Vec<String> {
        let mailbox = Some(Mailbox::new(mailbox));
        let explained = self.inquirer.explain(alice(), mailbox).await.unwrap().unwrap();
        explained[0].reasons.iter().map(ToString::to_string).collect()
    }

    /// What `/metrics` would show.
    pub(crate) fn metrics(&self) -> String {
        let (metrics, registry) = &self.metrics;
        metrics.text(registry)
    }

    /// Ends it as the program does.
    pub(crate) async fn end(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }
}

pub(crate) fn alice() -> Account {
    Account::from_login("alice@example.org")
}

pub(crate) fn state(n: u64) -> Snapshot {
    Snapshot { uid_next: Some(n), ..Snapshot::default() }
}

pub(crate) fn rows(inbox: u64, notes: u64) -> Vec<(String, u64)> {
    vec![("INBOX".into(), inbox), ("Notes".into(), notes)]
}

/// The configuration of a stand-in's project. Its account and the CA are files of this folder, the first of which this
/// writes.
pub(crate) fn fcm_project(service: &FcmStandIn, folder: &Path) -> FcmConfig {
    let account = folder.join(format!("{}.json", service.project()));
    fs::write(&account, service.service_account().unwrap()).unwrap();
    let mut project = FcmConfig::new(account);
    project.endpoint = service.endpoint().parse().unwrap();
    project.ca = Some(folder.join("ca.pem"));
    project
}

/// Goes by this configuration, as a reload does.
pub(crate) fn reload(
    identities: &Identities,
    config: &[config::ApnsConfig],
) -> Result<(), LoadError> {
    identities.prepare(config, None).map(|new| identities.replace(new))
}
