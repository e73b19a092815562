//! mailchime in this process, its files in a folder, and APNs as it sees it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mailchime::app::{self, Server};
use mailchime::config::{self, BackendTls, Config, TrustConfig};
use mailchime::demo::apns::{Apns, Push};
use mailchime::demo::backend::DemoBackend;
use mailchime::demo::phone::Registered;
use mailchime::demo::pki::Pki;
use mailchime::model::Mailbox;
use mailchime::push::transport::apns::payload::mailbox_hash;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::line::{Client, Line};
use super::servers::{User, pki};
use super::world::{phone, registration};
use super::{listener, soon};

pub(crate) struct InProcess {
    folder: TempDir,
    pub(crate) pki: &'static Pki,
    /// Hears only from [`InProcess::pushing`].
    pub(crate) apns: Apns,
    pub(crate) config: Config,
    pub(crate) mailchime: Server,
}

impl InProcess {
    /// Starts mailchime in front of `backend`, after `change` to its configuration.
    pub(crate) async fn start(backend: SocketAddr, change: impl FnOnce(&mut Config)) -> Self {
        Self::begin(backend, |_, _| {}, change).await
    }

    /// The same with push. Nothing waits longer than a test likes to.
    pub(crate) async fn pushing(backend: SocketAddr, change: impl FnOnce(&mut Config)) -> Self {
        Self::begin(backend, push_to, change).await
    }

    async fn begin(
        backend: SocketAddr,
        push_to: impl FnOnce(&mut Config, SocketAddr),
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let (folder, pki) = (tempfile::tempdir().unwrap(), pki());
        pki.write_to(folder.path()).unwrap();
        let apns = Apns::start(listener().await, pki).unwrap();
        let file = |name: &str| folder.path().join(name);
        let mut config = Config::new(
            config::TlsConfig::new(file("server.pem"), file("server.key")),
            plain(backend),
        );
        config.listeners[0].address = loopback();
        config.store.url = config::DatabaseUrl::sqlite(&file("mailchime.db"));
        let key_file = file("mailchime.key");
        config.key_file = key_file;
        config.limits.failure_delay = Duration::from_millis(1);
        push_to(&mut config, apns.address());
        change(&mut config);
        let mailchime = app::start(&config).await.unwrap();
        Self { folder, pki, apns, config, mailchime }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.mailchime.addresses[0]
    }

    /// What trusts mailchime's certificate.
    pub(crate) fn client_config(&self) -> ClientConfig {
        self.pki.client_config(None).unwrap()
    }

    /// A client of the first listener that has heard the greeting.
    pub(crate) async fn client(&self) -> Client {
        let stream = TcpStream::connect(self.address()).await.unwrap();
        self.greeted(stream).await.expect("a greeting")
    }

    /// TLS on `stream`, and the greeting; `None` if mailchime hangs up before.
    pub(crate) async fn greeted(&self, stream: TcpStream) -> Option<Client> {
        let mut client = Line::of(self.secured(stream).await?);
        let greeting = client.try_line().await?;
        assert!(greeting.starts_with("* OK [CAPABILITY "), "{greeting}");
        Some(client)
    }

    pub(crate) async fn secured(&self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let connector = TlsConnector::from(Arc::new(self.client_config()));
        let name = ServerName::try_from("localhost").unwrap();
        soon("the TLS handshake", connector.connect(name, stream)).await.ok()
    }

    /// A client that is logged in, with the password `secret`.
    pub(crate) async fn session(&self, login: &str) -> Client {
        let mut client = self.client().await;
        let answer = client.log_in(login, "secret").await;
        assert!(answer.starts_with("in OK"), "{answer}");
        client
    }

    /// A phone of `user` registers for these mailboxes.
    pub(crate) async fn register(&self, user: User<'_>, mailboxes: &[&str]) -> Registered {
        let phone = phone(user, mailboxes);
        let ca = &self.pki.ca.certificate;
        phone.register(self.address(), "localhost", ca, |_, _| {}).await.unwrap()
    }

    /// The next push that names what `expected` names, in `m` or by its absence.
    pub(crate) async fn push_of(&self, expected: &[&str]) -> Push {
        loop {
            let push = self.apns.next().await;
            let named = push.json()["aps"].get("m").cloned();
            let hashes: Vec<_> =
                expected.iter().map(|name| mailbox_hash(&Mailbox::new(name))).collect();
            if named == (expected != ["INBOX"]).then(|| json!(hashes)) {
                return push;
            }
        }
    }
}

/// Pushes go to the stand-in at this address.
fn push_to(config: &mut Config, apns: SocketAddr) {
    let folder = config.tls.certificates[0].certificate.parent().unwrap();
    let mut client = config::ApnsConfig::new(folder.join("apns.pem"), folder.join("apns.key"));
    client.endpoint = config::ApnsServer { host: "localhost".into(), port: apns.port() };
    client.ca = Some(folder.join("ca.pem"));
    config.apns = vec![client];
    config.watch.retry_min = Duration::from_millis(10);
    config.watch.retry_max = Duration::from_millis(200);
    config.watch.settle = Duration::from_millis(50);
    config.push.quiet_delay = Duration::from_millis(100);
    config.push.min_interval = Duration::from_millis(50);
}

/// A backend behind TLS whose certificate, of [`pki`], must bear this name.
pub(crate) fn implicit_tls(config: &mut Config, server_name: &str) {
    let folder = config.tls.certificates[0].certificate.parent().unwrap();
    let (ca, server_name) = (Some(folder.join("ca.pem")), server_name.into());
    config.backend.tls = BackendTls::Implicit(TrustConfig { ca, server_name });
}

/// A registration for pushes, by a session that is logged in.
pub(crate) fn register() -> String {
    format!("r {}", registration())
}

/// A backend in the clear.
pub(crate) fn plain(address: SocketAddr) -> config::BackendConfig {
    config::BackendConfig::new(address.ip().to_string(), address.port(), BackendTls::None)
}

pub(crate) fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A backend with these accounts, whose password is `secret`.
pub(crate) async fn demo_backend(accounts: &[&str]) -> DemoBackend {
    let backend = DemoBackend::start(listener().await, None).unwrap();
    for account in accounts {
        backend.add_account(account, b"secret");
    }
    backend
}

pub(crate) fn logins(backend: &DemoBackend, account: &str) -> u64 {
    backend.counters().logins.get(account).copied().unwrap_or(0)
}

/// Plays a backend's part up to the login of `mailchime`, which [`InProcess`] has connected to
/// `listener`; those that only ask what it offers are sent away. Returns the ID it was sent.
pub(crate) async fn scripted_login(
    listener: &TcpListener,
    header: bool,
) -> (Option<mailchime::net::proxy_protocol::Addresses>, String) {
    loop {
        let (mut stream, _) = soon("mailchime", listener.accept()).await.unwrap();
        let mut told = None;
        if header {
            told = mailchime::net::proxy_protocol::read(&mut stream).await.unwrap();
        }
        let mut line = Line::of(stream);
        line.send("* OK [CAPABILITY IMAP4rev1 ID] ready\r\n").await;
        let mut id = String::new();
        while let Some(command) = line.try_line().await {
            let (tag, rest) = command.split_once(' ').unwrap();
            let rest = rest.to_owned();
            line.send(&format!("{tag} OK done\r\n")).await;
            match rest.split(' ').next().unwrap() {
                "ID" => id = rest,
                "LOGIN" => return (told, id),
                _ => {}
            }
        }
    }
}
