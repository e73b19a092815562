//! A receiver of web hooks: an HTTP server, with TLS or without, that checks signatures as Standard Webhooks
//! says, and answers what a test prescribes.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{HeaderMap, Request, Response, StatusCode};
use parking_lot::Mutex;
use rustls::ServerConfig;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::answer_gate::AnswerGate;
use super::farewell;
use super::pki::{Pki, PkiError};
use super::port::Port;
use super::reply_body::ReplyBody;
use super::request_body::whole;

/// A running receiver. Dropping it closes its port.
pub struct WebhookReceiver {
    port: Port,
    shared: Arc<ReceiverShared>,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct ReceivedEvent {
    /// `POST`, for all that is well.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// All headers.
    pub headers: HeaderMap,
    /// At most 64 KiB.
    pub body: Bytes,
    /// What it was answered; `None` for [`ReceiverAnswer::Hang`].
    pub status: Option<u16>,
}

/// An answer to prescribe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReceiverAnswer {
    /// This status, and the seconds of a `Retry-After`.
    Status(u16, Option<u32>),
    /// 204, and the connection takes nothing else: GOAWAY where it is of HTTP/2.
    Farewell,
    /// Never.
    Hang,
    /// This status, and a body without an end.
    Endless(u16),
}

/// Decides on the answer.
type Decide = dyn Fn(&ReceivedEvent) -> ReceiverAnswer + Send + Sync;

struct ReceiverShared {
    decide: Box<Decide>,
    /// Goes before `decide`. Never held over an await.
    answer: Mutex<Option<ReceiverAnswer>>,
    events: Mutex<Vec<ReceivedEvent>>,
    handed_out: Mutex<usize>,
    received: watch::Sender<u64>,
    tls: bool,
    gate: AnswerGate,
}

/// More of a request is not read.
const MAX_REQUEST: usize = 64 * 1024;

/// How old the time of an event may be, in seconds.
const TOLERANCE: u64 = 300;

const TLS_HANDSHAKE: Duration = Duration::from_secs(10);

// === impl WebhookReceiver ===

impl WebhookReceiver {
    /// Serves `listener`, with the server certificate of `pki` where there is one, and answers 204.
    ///
    /// # Errors
    /// When the listener or the certificate cannot be used.
    pub fn start(listener: TcpListener, pki: Option<&Pki>) -> Result<Self, ReceiverStartError> {
        Self::deciding(listener, pki, |_| ReceiverAnswer::Status(204, None))
    }

    /// As [`WebhookReceiver::start`] with TLS, and speaks HTTP/2 with clients that do.
    ///
    /// # Errors
    /// As [`WebhookReceiver::start`].
    pub fn start_http2(listener: TcpListener, pki: &Pki) -> Result<Self, ReceiverStartError> {
        let mut tls = (*pki.server_config()?).clone();
        tls.alpn_protocols = ["h2", "http/1.1"].map(|name| name.as_bytes().to_vec()).to_vec();
        Self::over(listener, Some(Arc::new(tls)), |_| ReceiverAnswer::Status(204, None))
    }

    /// As [`WebhookReceiver::start`], and answers what `decide` says.
    ///
    /// # Errors
    /// As [`WebhookReceiver::start`].
    pub fn deciding(
        listener: TcpListener,
        pki: Option<&Pki>,
        decide: impl Fn(&ReceivedEvent) -> ReceiverAnswer + Send + Sync + 'static,
    ) -> Result<Self, ReceiverStartError> {
        Self::over(listener, pki.map(Pki::server_config).transpose()?, decide)
    }

    fn over(
        listener: TcpListener,
        tls: Option<Arc<ServerConfig>>,
        decide: impl Fn(&ReceivedEvent) -> ReceiverAnswer + Send + Sync + 'static,
    ) -> Result<Self, ReceiverStartError> {
        let tls = tls.map(TlsAcceptor::from);
        let shared = Arc::new(ReceiverShared {
            decide: Box::new(decide),
            answer: Mutex::default(),
            events: Mutex::default(),
            handed_out: Mutex::default(),
            received: watch::Sender::new(0),
            tls: tls.is_some(),
            gate: AnswerGate::default(),
        });
        let for_connections = shared.clone();
        let port = Port::open(listener, move |stream| {
            let (tls, shared) = (tls.clone(), for_connections.clone());
            async move {
                let Some(tls) = tls else { return serve(stream, false, shared).await };
                let accepting = tokio::time::timeout(TLS_HANDSHAKE, tls.accept(stream));
                if let Ok(Ok(stream)) = accepting.await {
                    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    serve(stream, is_http2, shared).await;
                }
            }
        })?;
        Ok(Self { port, shared })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// The URL of this path, which begins with a `/`.
    pub fn url(&self, path: &str) -> String {
        let port = self.address().port();
        match self.shared.tls {
            true => format!("https://localhost:{port}{path}"),
            false => format!("http://127.0.0.1:{port}{path}"),
        }
    }

    /// The next event that was not handed out yet. Waits for it. Cancel safe.
    pub async fn next(&self) -> ReceivedEvent {
        let mut received = self.shared.received.subscribe();
        loop {
            {
                let mut handed_out = self.shared.handed_out.lock();
                if let Some(event) = self.shared.events.lock().get(*handed_out).cloned() {
                    *handed_out += 1;
                    return event;
                }
            }
            // The handle holds the sender, so the wait cannot fail.
            let _ = received.changed().await;
        }
    }

    /// All events so far.
    pub fn events(&self) -> Vec<ReceivedEvent> {
        self.shared.events.lock().clone()
    }

    /// The answer to everything from now on; `None` lets the receiver decide.
    pub fn answer_all(&self, answer: Option<ReceiverAnswer>) {
        *self.shared.answer.lock() = answer;
    }

    /// Takes requests, but answers none of them before `held` is false again.
    pub fn hold_answers(&self, held: bool) {
        self.shared.gate.shut(held);
    }

    /// How many connections were ever made.
    pub fn connections(&self) -> u64 {
        self.port.accepted()
    }

    /// Refuses new connections, and closes those that are open.
    pub async fn refuse(&self) {
        self.port.close().await;
        self.port.drop_connections();
    }

    /// Listens again on the same port.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn resume(&self) -> io::Result<()> {
        self.port.reopen().await
    }
}

impl std::fmt::Debug for WebhookReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebhookReceiver").field("address", &self.address()).finish_non_exhaustive()
    }
}

/// Why the receiver cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ReceiverStartError {
    /// The certificate cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The listener failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

// === impl ReceivedEvent ===

impl ReceivedEvent {
    /// A header, if it is there and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Whether one of its signatures is that of this secret, and its time is now.
    pub fn is_signed_by(&self, secret: &str) -> bool {
        let Some(key) = secret.strip_prefix("whsec_") else { return false };
        let Ok(key) = STANDARD.decode(key) else { return false };
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        let header = |name| self.header(name).unwrap_or_default();
        let (id, timestamp) = (header("webhook-id"), header("webhook-timestamp"));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let recent = timestamp.parse::<u64>().is_ok_and(|at| now.abs_diff(at) <= TOLERANCE);
        let mut signed = format!("{id}.{timestamp}.").into_bytes();
        signed.extend_from_slice(&self.body);
        let fits = |signature: &str| {
            let signature = signature.strip_prefix("v1,").map(|text| STANDARD.decode(text));
            matches!(signature, Some(Ok(tag)) if hmac::verify(&key, &signed, &tag).is_ok())
        };
        recent && !id.contains('.') && header("webhook-signature").split(' ').any(fits)
    }
}

// === impl ReceiverAnswer ===

impl ReceiverAnswer {
    fn status(&self) -> Option<u16> {
        match self {
            Self::Status(status, _) | Self::Endless(status) => Some(*status),
            Self::Farewell => Some(204),
            Self::Hang => None,
        }
    }
}

// --- Connections ---

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    is_http2: bool,
    shared: Arc<ReceiverShared>,
) {
    let answer = |request, farewell| {
        let shared = Arc::clone(&shared);
        async move {
            let response = receive(request, &shared, &farewell).await;
            shared.gate.open().await;
            response
        }
    };
    farewell::serve(stream, is_http2, answer).await;
}

async fn receive(
    request: Request<Incoming>,
    shared: &ReceiverShared,
    farewell: &CancellationToken,
) -> Response<ReplyBody> {
    let (head, body) = request.into_parts();
    let body = whole(body, MAX_REQUEST).await.unwrap_or_default();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let mut event = ReceivedEvent {
        method: head.method.to_string(),
        path,
        headers: head.headers,
        body,
        status: None,
    };
    let prescribed = shared.answer.lock().clone();
    let answer = prescribed.unwrap_or_else(|| (shared.decide)(&event));
    event.status = answer.status();
    shared.events.lock().push(event);
    shared.received.send_modify(|count| *count += 1);
    match answer {
        ReceiverAnswer::Hang => std::future::pending().await,
        ReceiverAnswer::Endless(status) => {
            let mut response = Response::new(ReplyBody::Endless);
            *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
            response
        }
        ReceiverAnswer::Farewell => {
            farewell.cancel();
            let mut response = Response::new(ReplyBody::Text(None));
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        ReceiverAnswer::Status(status, retry_after) => {
            let mut response = Response::new(ReplyBody::Text(None));
            *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
            if let Some(seconds) = retry_after {
                response.headers_mut().insert(hyper::header::RETRY_AFTER, seconds.into());
            }
            response
        }
    }
}
