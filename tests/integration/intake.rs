//! `[events]` as mail servers and scripts see it: dialogues of HTTP, and the pushes that follow.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "the helpers of tests are tests")]

mod answers;
mod bad_days;
mod cyrus;
mod cyrus_layouts;
mod dovecot;
mod dovecot24;
mod ox;
mod pushes;
mod reload;
mod udp;
mod waits;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mailchime::config::{Config, EventSourceConfig, WatchConnection};
use mailchime::demo::backend::DemoBackend;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::in_process::{InProcess, demo_backend, loopback};
use crate::support::soon;

pub(crate) const TOKEN: &str = "correct-horse-battery";
/// A secret that also signs.
pub(crate) const SIGNING: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

const ALICE: &str = "alice@example.org";
const CAROL: &str = "carol@example.com";
const MAIL: &str = "Subject: hello\r\n\r\nHi there\r\n";

/// mailchime with `[events]`, whose accounts have no connection, in front of a backend on which the passwords
/// are `secret`. The source `dovecot` speaks for example.org, `script` for everybody.
struct IntakeWorld {
    backend: DemoBackend,
    world: InProcess,
}

/// An answer over HTTP/1.1.
#[derive(Debug)]
pub(crate) struct IntakeReply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl IntakeWorld {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let backend = demo_backend(&[ALICE, CAROL]).await;
        let world = InProcess::pushing(backend.address(), |config| {
            config.watch.connection = WatchConnection::OnDemand;
            // mailchime looks at no account because a session of its user has ended: that would find its mail, too.
            (config.watch.poll_interval, config.watch.poll_max) =
                (Duration::from_hours(1), Duration::from_hours(1));
            config.admin.address = Some(loopback().into());
            config.events.address = Some(loopback());
            let folder = config.key_file.parent().unwrap().to_owned();
            let source = |name: &str, secret: &str| {
                let file = folder.join(name);
                std::fs::write(&file, secret).unwrap();
                EventSourceConfig::new(name, file)
            };
            let mut dovecot = source("dovecot", TOKEN);
            dovecot.domains = vec!["example.org".to_owned()];
            dovecot.default_domain = Some("example.org".to_owned());
            config.events.sources = vec![dovecot, source("script", SIGNING)];
            change(config);
        });
        let world = world.await;
        Self { backend, world }
    }

    fn address(&self) -> SocketAddr {
        self.world.mailchime.events.expect("[events] is on")
    }

    async fn ask(&self, request: &str) -> IntakeReply {
        ask(self.address(), request).await
    }

    /// The source `dovecot` posts this.
    async fn post(&self, body: &str) -> IntakeReply {
        post(self.address(), body).await
    }

    /// The same over TLS.
    async fn ask_by_tls(&self, request: &str) -> IntakeReply {
        let stream = TcpStream::connect(self.address()).await.unwrap();
        let connector = TlsConnector::from(Arc::new(self.world.client_config()));
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = soon("TLS", connector.connect(name, stream)).await.unwrap();
        dialogue(&mut stream, request).await
    }

    /// Alice's phone registers for INBOX, which has been looked at since, and nobody is connected.
    async fn registered(&self) {
        self.world.register((ALICE, "secret"), &["INBOX"]).await;
        self.resting().await;
    }

    /// Nothing is due, and nobody is connected.
    async fn resting(&self) {
        let store = &self.world.mailchime.store;
        loop {
            let seen = self.backend.wait_until(|c| c.connections == 0).await;
            let visited = seen.commands.contains_key("STATUS");
            if visited && store.due_accounts().await.unwrap().is_empty() {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Which accounts have a mailbox that is due.
    async fn due(&self) -> Vec<String> {
        let due = self.world.mailchime.store.due_accounts().await.unwrap();
        due.iter().map(|(account, _)| account.as_str().to_owned()).collect()
    }

    /// The lines of the metrics of events that are not zero.
    async fn counted(&self) -> Vec<String> {
        let admin = self.world.mailchime.admin.expect("[admin] is on");
        let metrics = ask(admin, "GET /metrics").await.body;
        let events = metrics.lines().filter(|line| line.starts_with("mailchime_events"));
        let mut events: Vec<_> = events
            .filter(|line| !line.ends_with(" 0"))
            .map(|line| line["mailchime_events".len()..].to_owned())
            .collect();
        events.sort();
        events
    }
}

impl IntakeReply {
    /// The code of an error, behind its status.
    fn error(&self) -> (u16, String) {
        let body: Value = serde_json::from_str(&self.body).unwrap_or(Value::Null);
        (self.status, body["error"].as_str().unwrap_or("").to_owned())
    }
}

/// The source `dovecot` posts this there.
pub(crate) async fn post(address: SocketAddr, body: &str) -> IntakeReply {
    ask(address, &format!("POST /v1/events\nAuthorization: Bearer {TOKEN}\n\n{body}")).await
}

/// Sends a request: its first line without the version, its header fields, and perhaps an empty line and a
/// body. `Host` and the body's length are added, and `Content-Type` where there is none.
pub(crate) async fn ask(address: SocketAddr, request: &str) -> IntakeReply {
    dialogue(&mut TcpStream::connect(address).await.unwrap(), request).await
}

async fn dialogue(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    request: &str,
) -> IntakeReply {
    // The server may answer, and hang up, before it has read all.
    let _ = stream.write_all(written(request).as_bytes()).await;
    let mut bytes = Vec::new();
    let _ = soon("an answer", stream.read_to_end(&mut bytes)).await;
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    IntakeReply { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

/// A request as it is sent.
pub(crate) fn written(request: &str) -> String {
    let (head, body) = request.split_once("\n\n").unwrap_or((request, ""));
    let (first, fields) = head.split_once('\n').unwrap_or((head, ""));
    let mut sent = format!("{first} HTTP/1.1\r\nConnection: close\r\n");
    for field in fields.lines().map(str::trim) {
        sent.push_str(&format!("{field}\r\n"));
    }
    for (name, value) in [
        ("Host", "localhost".to_owned()),
        ("Content-Type", "application/json".to_owned()),
        ("Content-Length", body.len().to_string()),
    ] {
        if !fields.to_ascii_lowercase().contains(&format!("{}: ", name.to_ascii_lowercase())) {
            sent.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    format!("{sent}\r\n{body}")
}
