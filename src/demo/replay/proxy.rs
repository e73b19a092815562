//! mailchime's sessions alone, in front of one backend: no watchers, no pushes, a store that is
//! forgotten.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Failure, LIMIT};
use crate::config::{self, Config};
use crate::demo::dialogue::Settings;
use crate::demo::pki::Pki;
use crate::imap::contract::{DomainRoute, PushOffer};
use crate::imap::registration::xapple::EXAMPLE_ROUTE;
use crate::model::SessionEvent;
use crate::net::backend::Backend;
use crate::net::backends::{Backends, Table};
use crate::net::listen;
use crate::net::resolve::NameResolver;
use crate::net::tls::ServerTls;
use crate::net::tls_stream::TlsClient;
use crate::registrar::Registrar;
use crate::store::{CredentialSource, Store};
use crate::{proxy, record};

/// The push topic that registrations in dialogues are answered with.
pub const TOPIC: &str = EXAMPLE_ROUTE;

/// The push that dialogues are offered.
pub fn push_offer() -> PushOffer {
    PushOffer {
        routes: vec![DomainRoute { domain: None, route: Some(TOPIC.into()) }],
        clients: vec!["com.apple.mobilemail".into()],
        most_mailboxes: record::MAILBOXES,
    }
}

/// The push that a dialogue with these settings is offered.
pub fn push_offer_of(settings: &Settings) -> PushOffer {
    let offer = push_offer();
    let most_mailboxes = settings.mailboxes.unwrap_or(offer.most_mailboxes);
    PushOffer { most_mailboxes, ..offer }
}

/// mailchime's sessions behind a listener, until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its database.
    pub store: Store,
    /// What it proxies to.
    pub backend: Backend,
    client_tls: Arc<ClientConfig>,
    /// What sessions tell the watching side.
    pub events: mpsc::Receiver<SessionEvent>,
    /// What sessions offer.
    pub push: watch::Sender<Option<PushOffer>>,
    stop: CancellationToken,
    sessions: TaskTracker,
    _open: watch::Sender<config::ListenerConfig>,
    folder: tempfile::TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Proxy {
    /// In front of the server at `backend`, which is spoken to without TLS; `change` may change the
    /// configuration. The first listener counts, and the address of none.
    ///
    /// # Errors
    /// `Failure` when it cannot be set up.
    pub async fn start(
        backend: SocketAddr,
        push: Option<PushOffer>,
        pki: &Pki,
        change: impl FnOnce(&mut Config),
    ) -> Result<Self, Failure> {
        let folder = tempfile::tempdir().map_err(Failure::broken)?;
        let (host, port) = (backend.ip().to_string(), backend.port());
        let mut config = Config::new(
            config::TlsConfig::new("unused", "unused"),
            config::BackendConfig::new(host, port, config::BackendTls::None),
        );
        config.limits.failure_delay = Duration::from_millis(1);
        change(&mut config);
        if config.credentials == config::CredentialsMode::Master {
            let (name, login_template) = ("master".into(), None);
            let password_file = folder.path().join("master.password");
            let mut file = OpenOptions::new();
            let file = file.write(true).create_new(true).mode(0o600).open(&password_file);
            file.and_then(|mut file| file.write_all(b"secret")).map_err(Failure::broken)?;
            config.backend.master =
                Some(config::MasterUser { name, password_file, login_template });
        }
        let store = Store::open(&database_in(&folder), Duration::from_millis(100))
            .await
            .map_err(Failure::broken)?;
        let credentials = CredentialSource::open(
            config::CredentialsMode::Memory,
            &config.key_file,
            store.clone(),
        );
        let credentials = Arc::new(credentials.map_err(Failure::broken)?);
        let (sender, events) = mpsc::channel(1000);
        let table = Table::new(&config, &NameResolver::default()).map_err(Failure::broken)?;
        let backends = Backends::new(table, Arc::default());
        let backend = backends.default();
        let config_of_tls = pki.server_config().map_err(Failure::broken)?;
        let tls = ServerTls { config: config_of_tls, named: [].into(), names: [].into() };
        let (push, offered) = watch::channel(push);
        let (known, to_watchers) = (Arc::clone(&credentials), sender.clone());
        let registrar = Registrar::new(backends.clone(), known, to_watchers, &config);
        let context = proxy::SessionContext::new(
            backends,
            offered,
            credentials,
            sender,
            registrar,
            tls,
            &config,
        )
        .tapped(config.record.as_ref().map(record::taps));
        let listener = listen::bind(([127, 0, 0, 1], 0).into()).map_err(Failure::broken)?;
        let address = listener.local_addr().map_err(Failure::broken)?;
        let client = pki.client_config(None).map_err(Failure::broken)?;
        let stop = CancellationToken::new();
        let sessions = TaskTracker::new();
        let (open, how) = watch::channel(config.listeners[0].clone());
        let current = proxy::CurrentContext::new(context);
        sessions.spawn(proxy::serve(listener, how, current, stop.clone()));
        Ok(Self {
            address,
            store,
            backend,
            client_tls: Arc::new(client),
            events,
            push,
            stop,
            sessions,
            _open: open,
            folder,
        })
    }

    /// The URL of its database, for a connection beside it.
    pub fn database(&self) -> String {
        database_in(&self.folder).to_string()
    }

    /// Lets the sessions end, as at the end of the program.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Lets the sessions end, and waits until they have.
    pub async fn ended(&self) {
        self.stop.cancel();
        self.sessions.close();
        self.sessions.wait().await;
    }

    /// A client's TLS connection.
    ///
    /// # Errors
    /// `Failure` when there is no connection.
    pub async fn connect(&self) -> Result<TlsClient, Failure> {
        self.handshake(self.connect_plain().await?).await
    }

    /// A client's connection without TLS.
    pub(super) async fn connect_plain(&self) -> Result<TcpStream, Failure> {
        let stream = TcpStream::connect(self.address).await.map_err(Failure::broken)?;
        stream.set_nodelay(true).map_err(Failure::broken)?;
        Ok(stream)
    }

    /// The client's side of TLS.
    pub(super) async fn handshake(&self, stream: TcpStream) -> Result<TlsClient, Failure> {
        let name = ServerName::try_from("localhost").map_err(Failure::broken)?;
        let handshake = TlsClient::connect(stream, &self.client_tls, name);
        match tokio::time::timeout(LIMIT, handshake).await {
            Ok(result) => result.map_err(Failure::broken),
            Err(_) => Err(Failure::Broken(format!("no TLS handshake within {LIMIT:?}"))),
        }
    }
}

fn database_in(folder: &tempfile::TempDir) -> config::DatabaseUrl {
    config::DatabaseUrl::sqlite(&folder.path().join("mailchime.db"))
}
