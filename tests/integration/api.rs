//! `[api]` as users' programs and browsers see it: dialogues of HTTP with mailchime in front of a backend.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "the helpers of tests are tests")]

pub(crate) mod changes;
mod commands;
mod connections;
mod document;
mod logins;
mod openapi;
mod paper;
mod schemathesis;
mod sessions;
mod subscriptions;
mod web_app;
mod web_push;
mod webhooks;

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mailchime::config::Config;
use mailchime::demo::backend::DemoBackend;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::in_process::{InProcess, demo_backend, loopback};
use crate::support::soon;

/// mailchime with `[api]` in front of a backend on which alice's and bob's password is `secret`.
struct ApiWorld {
    backend: DemoBackend,
    world: InProcess,
}

/// An answer over HTTP/1.1.
struct ApiReply {
    status: u16,
    head: String,
    body: String,
}

const ALICE: &str = "alice@example.org";
const BOB: &str = "bob@example.org";

impl ApiWorld {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let backend = demo_backend(&[ALICE, BOB]).await;
        let world = InProcess::pushing(backend.address(), |config| {
            config.api.address = Some(loopback());
            change(config);
        });
        let world = world.await;
        Self { backend, world }
    }

    fn address(&self) -> SocketAddr {
        self.world.mailchime.api.expect("[api] is on")
    }

    /// A connection that offers these protocols.
    async fn connect(&self, protocols: &[&str]) -> TlsStream<TcpStream> {
        self.secured(TcpStream::connect(self.address()).await.unwrap(), protocols).await
    }

    /// TLS on `stream`.
    async fn secured(&self, stream: TcpStream, protocols: &[&str]) -> TlsStream<TcpStream> {
        let mut config = self.world.client_config();
        config.alpn_protocols = protocols.iter().map(|it| it.as_bytes().to_vec()).collect();
        let name = ServerName::try_from("localhost").unwrap();
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
        soon("the TLS handshake", connecting).await.unwrap()
    }

    /// Sends a request: its first line without the version, its header fields, and perhaps an empty line and
    /// a body. `Host` and the body's length are added, and `Content-Type` where there is none.
    async fn ask(&self, request: &str) -> ApiReply {
        self.ask_on(self.connect(&[]).await, request).await
    }

    /// The same on a connection that is new.
    async fn ask_on(&self, mut stream: TlsStream<TcpStream>, request: &str) -> ApiReply {
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
        stream.write_all(format!("{sent}\r\n{body}").as_bytes()).await.unwrap();
        ApiReply::read(&mut stream).await
    }

    /// Alice subscribes by this transport. Returns the id.
    async fn subscribe_by(&self, transport: &str, mut body: Value) -> String {
        body["transport"] = json!(transport);
        let made = self.of(ALICE, "POST /v1/subscriptions", Some(body)).await;
        assert_eq!(made.status, 201, "{}", made.body);
        made.json()["id"].as_str().unwrap().to_owned()
    }

    /// She confirms what she has subscribed.
    async fn confirm(&self, id: &str, code: Value) {
        let confirm = format!("POST /v1/subscriptions/{id}/confirm");
        let reply = self.of(ALICE, &confirm, Some(json!({ "code": code }))).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    }

    /// A cookie of the web app: what stands in the header `Cookie`.
    async fn cookie(&self, login: &str) -> String {
        let body = format!("{{\"login\":\"{login}\",\"password\":\"secret\"}}");
        let reply = self.ask(&format!("POST /v1/session\n\n{body}")).await;
        assert_eq!(reply.status, 201, "{}", reply.body);
        let field = reply.field("set-cookie").expect("a cookie");
        field.split(';').next().unwrap().to_owned()
    }
}

impl ApiReply {
    /// Reads to the end of the connection.
    async fn read(stream: &mut TlsStream<TcpStream>) -> Self {
        let mut bytes = Vec::new();
        // The end may come without a close_notify.
        let _ = soon("an answer", stream.read_to_end(&mut bytes)).await;
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Self { status, head: head.to_owned(), body: body.to_owned() }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.body))
    }

    /// The code of an error, behind its status.
    fn error(&self) -> (u16, String) {
        (self.status, self.json()["error"].as_str().expect("an error").to_owned())
    }

    /// The first header field of this name, in lower case.
    fn field(&self, name: &str) -> Option<&str> {
        self.fields(name).into_iter().next()
    }

    fn fields(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.filter(|(it, _)| it.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
    }
}

/// The header of a login with a password.
pub(crate) fn basic(login: &str, password: &str) -> String {
    format!("Authorization: Basic {}", STANDARD.encode(format!("{login}:{password}")))
}
