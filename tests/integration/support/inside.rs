//! mailchime in this process, its files in a folder, and clients that the test speaks for.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mailchime::app::{self, Server};
use mailchime::config::{self, BackendTls, Config};
use mailchime::demo::backend::Backend;
use mailchime::demo::pki::Pki;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{listener, soon};

pub(crate) struct World {
    folder: TempDir,
    pub(crate) pki: Pki,
    pub(crate) config: Config,
    pub(crate) mailchime: Server,
}

/// A client, or a backend that the test plays.
pub(crate) struct Line<S>(pub(crate) BufStream<S>);

impl World {
    /// Starts mailchime in front of `backend`, after `change` to its configuration.
    pub(crate) async fn start(backend: SocketAddr, change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::generate(None).unwrap();
        pki.write_to(folder.path()).unwrap();
        let file = |name: &str| folder.path().join(name);
        let mut config =
            Config::new(config::Tls::new(file("server.pem"), file("server.key")), plain(backend));
        config.listeners[0].address = loopback();
        config.store.url = format!("sqlite://{}", file("mailchime.db").display());
        let key_file = file("mailchime.key");
        config.credentials = config::Credentials::Stored { key_file };
        config.limits.failure_delay = Duration::from_millis(1);
        change(&mut config);
        let mailchime = app::start(&config).await.unwrap();
        Self { folder, pki, config, mailchime }
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
    pub(crate) async fn client(&self) -> Line<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address()).await.unwrap();
        self.greeted(stream).await.expect("a greeting")
    }

    /// TLS on `stream`, and the greeting; `None` if mailchime hangs up before.
    pub(crate) async fn greeted(&self, stream: TcpStream) -> Option<Line<TlsStream<TcpStream>>> {
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

    /// A client that is logged in.
    pub(crate) async fn session(&self, login: &str) -> Line<TlsStream<TcpStream>> {
        let mut client = self.client().await;
        let answer = client.log_in(login).await;
        assert!(answer.starts_with("in OK"), "{answer}");
        client
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Line<S> {
    pub(crate) fn of(stream: S) -> Self {
        Self(BufStream::new(stream))
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
        self.0.flush().await.unwrap();
    }

    /// The next line without its end; `None` at the end of the connection.
    pub(crate) async fn try_line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        let read = soon("a line", self.0.read_until(b'\n', &mut line)).await;
        matches!(read, Ok(1..)).then(|| String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    pub(crate) async fn line(&mut self) -> String {
        self.try_line().await.expect("the other side hung up")
    }

    /// Sends a command and reads to its answer.
    pub(crate) async fn command(&mut self, command: &str) -> String {
        self.send(&format!("{command}\r\n")).await;
        let tag = command.split(' ').next().unwrap();
        loop {
            let line = self.line().await;
            if line.starts_with(&format!("{tag} ")) {
                return line;
            }
        }
    }

    pub(crate) async fn log_in(&mut self, login: &str) -> String {
        self.command(&format!("in LOGIN {login} secret")).await
    }

    /// Reads to the end, which must come.
    pub(crate) async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        // It may be a reset.
        let _ = soon("the end of the connection", self.0.read_to_end(&mut rest)).await;
        String::from_utf8_lossy(&rest).into_owned()
    }
}

/// A registration for pushes, by a session that is logged in.
pub(crate) const REGISTER: &str = "r XAPPLEPUSHSERVICE \"aps-version\" \"2\" \
    \"aps-account-id\" \"0715A26B-CA09-4730-A419-793000CA982E\" \"aps-device-token\" \
    \"8df2a4c18df2a4c18df2a4c18df2a4c18df2a4c18df2a4c18df2a4c18df2a4c1\" \
    \"aps-subtopic\" \"com.apple.mobilemail\" \"mailboxes\" (\"INBOX\")";

/// Pushes go to the stand-in that listens there, and watchers try again soon.
pub(crate) fn push_by(config: &mut Config, apns: SocketAddr) {
    let folder = config.tls.certificates[0].certificate.parent().unwrap();
    let mut client = config::Apns::new(folder.join("apns.pem"), folder.join("apns.key"));
    client.endpoint = config::ApnsServer { host: "localhost".into(), port: apns.port() };
    client.ca = Some(folder.join("ca.pem"));
    config.apns = vec![client];
    config.watch.retry_min = Duration::from_millis(10);
    config.watch.retry_max = Duration::from_millis(20);
}

/// A backend in the clear.
pub(crate) fn plain(address: SocketAddr) -> config::Backend {
    config::Backend::new(address.ip().to_string(), address.port(), BackendTls::None)
}

pub(crate) fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A backend with these accounts, whose password is `secret`.
pub(crate) async fn demo_backend(accounts: &[&str]) -> Backend {
    let backend = Backend::start(listener().await, None).unwrap();
    for account in accounts {
        backend.add_account(account, b"secret");
    }
    backend
}

pub(crate) fn logins(backend: &Backend, account: &str) -> u64 {
    backend.counters().logins.get(account).copied().unwrap_or(0)
}

/// Plays a backend's part up to the login of `mailchime`, which [`World`] has connected to
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
