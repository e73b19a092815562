//! Dialogues over real sockets: TLS to mailchime, and a backend that follows the script.

use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use mailchime::config::{self, Config};
use mailchime::demo::dialogue::{Dialogue, Event, Peer, Text, Variables, What};
use mailchime::demo::pki::Pki;
use mailchime::model::Timestamp;
use mailchime::net::backend::Backend;
use mailchime::net::backends::{Backends, Table};
use mailchime::proxy;
use mailchime::store::{Store, Vault};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

/// For each thing that is waited for.
const LIMIT: Duration = Duration::from_secs(10);

pub(crate) static PKI: LazyLock<Pki> = LazyLock::new(|| Pki::generate(None).unwrap());

/// mailchime's sessions in front of a listener, with a store in a temporary folder.
pub(crate) struct Proxy {
    pub(crate) address: std::net::SocketAddr,
    pub(crate) store: Store,
    pub(crate) backend: Backend,
    _events: mpsc::Receiver<mailchime::model::SessionEvent>,
    stop: CancellationToken,
    _open: watch::Sender<config::Listener>,
    _folder: tempfile::TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Proxy {
    pub(crate) async fn start(
        backend: std::net::SocketAddr,
        push: Option<mailchime::imap::session::PushOffer>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::new(
            config::Tls::new("unused", "unused"),
            config::Backend::new(
                backend.ip().to_string(),
                backend.port(),
                config::BackendTls::None,
            ),
        );
        config.limits.failure_delay = Duration::from_millis(1);
        change(&mut config);
        let url = format!("sqlite://{}/mailchime.db", folder.path().display());
        let store = Store::open(&url, Duration::from_millis(100)).await.unwrap();
        let vault = Arc::new(Vault::open(&folder.path().join("key")).unwrap());
        let (sender, events) = mpsc::channel(1000);
        let backends = Backends::new(Table::new(&config).unwrap(), Arc::default());
        let backend = backends.of(None);
        let tls = PKI.server_config().unwrap();
        let push = watch::channel(push).1;
        let context =
            proxy::Context::new(backends, push, store.clone(), vault, sender, tls, &config);
        let listener = mailchime::net::listen::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let (open, how) = watch::channel(config.listeners[0].clone());
        let current = proxy::Current::new(context);
        tokio::spawn(proxy::serve(listener, how, current, stop.clone()));
        Self { address, store, backend, _events: events, stop, _open: open, _folder: folder }
    }

    /// Lets the sessions end, as at the end of the program.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// A client's TLS connection.
    pub(crate) async fn connect(&self) -> TlsStream<TcpStream> {
        let connector = TlsConnector::from(Arc::new(PKI.client_config(None).unwrap()));
        let stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        connector.connect(name, stream).await.unwrap()
    }
}

pub(crate) async fn play(path: &Path, dialogue: &Dialogue) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let backend_address = listener.local_addr().unwrap();
    let proxy = Proxy::start(backend_address, super::push(dialogue), |_| {}).await;
    if let Some(offered) = super::offered(dialogue) {
        proxy.backend.saw(offered);
    }
    let mut client = proxy.connect().await;
    let mut backend: Option<TcpStream> = None;
    let (mut client_heard, mut backend_heard) = (Vec::new(), Vec::new());
    let mut variables = Variables::default();
    for Event { line, what } in &dialogue.events {
        let place = format!("{}:{line}", path.display());
        match what {
            What::Says(Peer::Client, text) => {
                client.write_all(&text.filled(&variables)).await.unwrap();
                client.flush().await.unwrap();
            }
            What::Says(Peer::Backend, text) => {
                let backend = backend.as_mut().unwrap_or_else(|| panic!("{place}: no backend"));
                backend.write_all(&text.filled(&variables)).await.unwrap();
            }
            What::Hears(Peer::Client, text) => {
                hear(text, &mut client, &mut client_heard, &mut variables, &place).await;
            }
            What::Hears(Peer::Backend, text) => {
                let backend = backend.as_mut().unwrap_or_else(|| panic!("{place}: no backend"));
                hear(text, backend, &mut backend_heard, &mut variables, &place).await;
            }
            What::Does(what) => match what.as_str() {
                "connect" => {
                    let accepted = tokio::time::timeout(LIMIT, listener.accept()).await;
                    let accepted = accepted.unwrap_or_else(|_| panic!("{place}: nobody came"));
                    backend = Some(accepted.unwrap().0);
                    backend_heard.clear();
                }
                "unreachable" => {
                    let accepted = tokio::time::timeout(LIMIT, listener.accept()).await;
                    drop(accepted.unwrap_or_else(|_| panic!("{place}: nobody came")));
                }
                "hang up" => backend = None,
                "close" => {
                    let rest = read_to_end(&mut client).await;
                    client_heard.extend_from_slice(&rest);
                }
                // Its failure has to be there before the question is: see below.
                "cannot store" => {}
                stored if stored.starts_with("store") => {}
                other => panic!("{place}: what is {other:?}?"),
            },
        }
        // A store that cannot is closed as soon as the registration has begun.
        let fails = dialogue.events.iter().any(|e| e.what == What::Does("cannot store".into()));
        if fails && matches!(what, What::Does(what) if what == "connect") {
            proxy.store.close().await;
        }
    }
    for event in dialogue.events.iter().rev() {
        if let What::Does(what) = &event.what
            && let Some(mailboxes) = what.strip_prefix("store")
        {
            let stored = stored_mailboxes(&proxy.store).await;
            let mut expected: Vec<_> =
                mailboxes.trim().split(", ").filter(|m| !m.is_empty()).collect();
            expected.sort_unstable();
            assert_eq!(stored, expected, "{}: what is in the store", path.display());
            break;
        }
    }
    // Nothing more was said than the dialogue has.
    let _ = client.shutdown().await;
    drop(backend);
    client_heard.extend(read_to_end(&mut client).await);
    assert_eq!(client_heard.escape_ascii().to_string(), "", "{}: left over", path.display());
    assert_eq!(backend_heard.escape_ascii().to_string(), "", "{}: left over", path.display());
}

async fn stored_mailboxes(store: &Store) -> Vec<String> {
    let mut mailboxes = Vec::new();
    for live in store.accounts(Timestamp(0)).await.unwrap() {
        for (mailbox, _) in store.watched(&live.account, Timestamp(0)).await.unwrap() {
            mailboxes.push(mailbox.to_string());
        }
    }
    mailboxes.sort_unstable();
    mailboxes
}

async fn hear(
    text: &Text,
    stream: &mut (impl AsyncRead + Unpin),
    heard: &mut Vec<u8>,
    variables: &mut Variables,
    place: &str,
) {
    for line in text.lines() {
        let length = loop {
            let length = match line.length() {
                Some(length) => (heard.len() >= length).then_some(length),
                None => heard.iter().position(|b| *b == b'\n').map(|feed| feed + 1),
            };
            if let Some(length) = length {
                break length;
            }
            match tokio::time::timeout(LIMIT, stream.read_buf(heard)).await {
                Ok(Ok(1..)) => {}
                other => panic!(
                    "{place}: expected {line:?}, heard {} and then {other:?}",
                    heard.escape_ascii()
                ),
            }
        };
        let line_heard: Vec<u8> = heard.drain(..length).collect();
        if let Err(difference) = line.compare(&line_heard, variables) {
            panic!("{place}:\n{difference}");
        }
    }
}

pub(crate) async fn read_to_end(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut rest = Vec::new();
    // How the end comes is no matter, that it comes is.
    let end = tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest)).await;
    assert!(end.is_ok(), "the connection was not closed");
    rest
}
