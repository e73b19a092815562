//! A stand-in for a browser and its push service: HTTPS in HTTP/2 or HTTP/1.1, the checks that push services
//! make (RFC 8030, RFC 8292), messages decrypted as the browser does it (RFC 8291), and answers that a test
//! can prescribe.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_ENCODING, LOCATION, RETRY_AFTER};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::answer_gate::AnswerGate;
use super::farewell;
use super::pki::{Pki, PkiError};
use super::port::Port;
use super::random_uuid;
use super::reply_body::ReplyBody;
use super::request_body::whole;

mod browser;
mod firefox;
mod vapid;

pub use browser::Browser;
pub use firefox::FirefoxDoor;
use firefox::{FirefoxChannel, FirefoxMessages};

/// A running push service, and the browsers that subscribed there. Dropping it closes its port and its
/// connections.
pub struct PushService {
    port: Port,
    shared: Arc<ServiceParts>,
}

/// A request as it came, whatever it was answered.
#[derive(Clone, Debug)]
pub struct PushedMessage {
    /// The path of the endpoint.
    pub path: String,
    /// All headers but `authorization`, in lower case.
    pub headers: BTreeMap<String, String>,
    /// How long the body was.
    pub size: usize,
    /// What the browser reads; `None` where the endpoint is not known, the message is not for it, or it is a
    /// real browser.
    pub plain: Option<Bytes>,
    /// What it was answered; `None` for [`Reply::Hang`].
    pub status: Option<u16>,
    /// HTTP/2, not HTTP/1.1.
    pub is_http2: bool,
}

/// An answer to prescribe. It is given to requests that a push service would take; others are refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reply {
    /// 201.
    #[default]
    Created,
    /// This status, with `Retry-After` in seconds where there is one.
    Status(u16, Option<u32>),
    /// 201, and the connection takes nothing else: GOAWAY.
    Farewell,
    /// 307 to this URL.
    Redirect(String),
    /// Never.
    Hang,
    /// This status, and a body without an end.
    Endless(u16),
    /// 201, but 413 where the body has more than so many bytes.
    UpTo(usize),
}

struct ServiceParts {
    /// `https://localhost:port`
    origin: String,
    /// Never held over an await.
    state: Mutex<ServiceState>,
    /// How many requests have come.
    received: watch::Sender<u64>,
    connections: AtomicU64,
    gate: AnswerGate,
}

#[derive(Default)]
struct ServiceState {
    /// By the path of its endpoint.
    browsers: HashMap<String, Subscriber>,
    /// By the name that each got at its first hello.
    firefoxes: HashMap<String, Arc<FirefoxMessages>>,
    /// The last [`RECORDED`] requests that [`PushService::next`] has not handed out.
    messages: VecDeque<PushedMessage>,
    replies: HashMap<String, Reply>,
    reply_to_all: Reply,
}

/// Who a message is for.
#[derive(Clone)]
enum Subscriber {
    /// A browser of this stand-in.
    Simulated(Arc<Browser>),
    /// A real one.
    Firefox(FirefoxChannel),
}

/// Requests that are kept; of more, the oldest are forgotten.
const RECORDED: usize = 10_000;

/// What every push service takes (RFC 8030 section 7.2).
const MAX_BODY: usize = 4096;

const TLS_HANDSHAKE: Duration = Duration::from_secs(10);

/// Why the push service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum PushServiceError {
    /// The certificates cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The listener failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

// === impl PushService ===

impl PushService {
    /// Serves `listener` with the server certificate of `pki`, by HTTP/2 or HTTP/1.1 as the client chooses.
    ///
    /// # Errors
    /// [`PushServiceError`] when the listener or the certificates cannot be used.
    pub fn start(listener: TcpListener, pki: &Pki) -> Result<Self, PushServiceError> {
        Self::speaking(listener, pki, &["h2", "http/1.1"])
    }

    /// The same in HTTP/1.1 alone.
    ///
    /// # Errors
    /// As [`PushService::start`].
    pub fn start_http1(listener: TcpListener, pki: &Pki) -> Result<Self, PushServiceError> {
        Self::speaking(listener, pki, &["http/1.1"])
    }

    fn speaking(
        listener: TcpListener,
        pki: &Pki,
        protocols: &[&str],
    ) -> Result<Self, PushServiceError> {
        let mut tls = (*pki.server_config()?).clone();
        tls.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let tls = TlsAcceptor::from(Arc::new(tls));
        let shared = Arc::new(ServiceParts {
            origin: format!("https://localhost:{}", listener.local_addr()?.port()),
            state: Mutex::default(),
            received: watch::Sender::new(0),
            connections: AtomicU64::new(0),
            gate: AnswerGate::default(),
        });
        let for_connections = Arc::clone(&shared);
        let port = Port::open(listener, move |stream| {
            let (tls, shared) = (tls.clone(), Arc::clone(&for_connections));
            async move {
                let accepted = tokio::time::timeout(TLS_HANDSHAKE, tls.accept(stream)).await;
                if let Ok(Ok(stream)) = accepted {
                    serve(stream, shared).await;
                }
            }
        })?;
        Ok(Self { port, shared })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// What its endpoints begin with, and what a token has to be for: `https://localhost:port`.
    pub fn origin(&self) -> &str {
        &self.shared.origin
    }

    /// A new browser with a subscription that only the holder of this VAPID key can send to.
    pub fn subscribe(&self, application_server_key: &str) -> Arc<Browser> {
        let path = format!("/push/{}", random_uuid());
        let endpoint = format!("{}{path}", self.shared.origin);
        let browser = Arc::new(Browser::new(endpoint, application_server_key));
        self.shared.state().browsers.insert(path, Subscriber::Simulated(Arc::clone(&browser)));
        browser
    }

    /// How many subscriptions there are.
    pub fn subscriptions(&self) -> usize {
        self.shared.state().browsers.len()
    }

    /// The browser's subscription is over: 410 from now on.
    pub fn expire(&self, browser: &Browser) {
        self.reply_to(browser, Reply::Status(410, None));
    }

    /// The answer to every message to this browser from now on.
    pub fn reply_to(&self, browser: &Browser, reply: Reply) {
        let path = browser.endpoint().strip_prefix(&self.shared.origin).unwrap_or_default();
        self.shared.state().replies.insert(path.to_owned(), reply);
    }

    /// The answer to every message for which nothing else is prescribed, from now on.
    pub fn reply_to_all(&self, reply: Reply) {
        self.shared.state().reply_to_all = reply;
    }

    /// Takes requests, but answers none of them before `held` is false again.
    pub fn hold_answers(&self, held: bool) {
        self.shared.gate.shut(held);
    }

    /// The next request that was not handed out yet, in the order of arrival. Waits for it. Cancel safe.
    pub async fn next(&self) -> PushedMessage {
        let mut received = self.shared.received.subscribe();
        loop {
            if let Some(message) = self.shared.state().messages.pop_front() {
                return message;
            }
            // The handle holds the sender, so the wait cannot fail.
            let _ = received.changed().await;
        }
    }

    /// How many requests have come.
    pub fn received(&self) -> u64 {
        *self.shared.received.borrow()
    }

    /// Waits until so many requests have come since the start.
    pub async fn wait_for(&self, count: u64) {
        let _ = self.shared.received.subscribe().wait_for(|received| *received >= count).await;
    }

    /// How many TLS connections were ever made.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Closes every connection at once.
    pub fn drop_connections(&self) {
        self.port.drop_connections();
    }

    /// Refuses new connections until [`PushService::resume`]. Open ones stay.
    pub async fn refuse(&self) {
        self.port.close().await;
    }

    /// Listens again on the same port.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn resume(&self) -> io::Result<()> {
        self.port.reopen().await
    }
}

impl std::fmt::Debug for PushService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PushService").field("origin", &self.shared.origin).finish_non_exhaustive()
    }
}

// === impl PushedMessage ===

impl PushedMessage {
    /// A header by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// What the browser reads, as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(self.plain.as_deref().unwrap_or_default()).unwrap_or_default()
    }
}

// === impl Subscriber ===

impl Subscriber {
    fn application_server_key(&self) -> &str {
        match self {
            Self::Simulated(browser) => browser.application_server_key(),
            Self::Firefox(channel) => &channel.application_server_key,
        }
    }

    /// What a body says to it, as far as that can be known here.
    fn decrypt(&self, body: &[u8]) -> Option<Bytes> {
        match self {
            Self::Simulated(browser) => browser.decrypt(body),
            Self::Firefox(_) => None,
        }
    }
}

// === impl ServiceParts ===

impl ServiceParts {
    fn state(&self) -> MutexGuard<'_, ServiceState> {
        self.state.lock()
    }
}

// --- Connections ---

async fn serve(stream: TlsStream<TcpStream>, shared: Arc<ServiceParts>) {
    shared.connections.fetch_add(1, Ordering::Relaxed);
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let answer = |request, farewell| {
        let shared = Arc::clone(&shared);
        async move {
            let response = receive(request, &shared, is_http2, &farewell).await;
            shared.gate.open().await;
            match response {
                Some(response) => response,
                None => std::future::pending().await,
            }
        }
    };
    farewell::serve(stream, is_http2, answer).await;
}

/// Reads and records a request. Returns its answer, if it gets one.
async fn receive(
    request: Request<Incoming>,
    shared: &ServiceParts,
    is_http2: bool,
    farewell: &CancellationToken,
) -> Option<Response<ReplyBody>> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let body = whole(body, MAX_BODY).await;
    let browser = shared.state().browsers.get(&path).cloned();
    let refused = refusal(&head.method, &head.headers, browser.as_ref(), shared, body.as_ref());
    let body = body.unwrap_or_default();
    let reply = {
        let mut state = shared.state();
        let reply = match refused {
            Some((status, _)) => Reply::Status(status, None),
            None => match state.replies.get(&path).unwrap_or(&state.reply_to_all) {
                Reply::UpTo(most) if body.len() > *most => Reply::Status(413, None),
                Reply::UpTo(_) => Reply::Created,
                other => other.clone(),
            },
        };
        if let (Reply::Created | Reply::Farewell, Some(Subscriber::Firefox(channel))) =
            (&reply, &browser)
        {
            channel.send("aes128gcm", &body);
        }
        if state.messages.len() == RECORDED {
            state.messages.pop_front();
        }
        state.messages.push_back(PushedMessage {
            path,
            headers: headers(&head.headers),
            size: body.len(),
            plain: browser.and_then(|browser| browser.decrypt(&body)),
            status: reply.status(),
            is_http2,
        });
        reply
    };
    shared.received.send_modify(|count| *count += 1);
    if reply == Reply::Farewell {
        farewell.cancel();
    }
    let text = refused.map_or("", |(_, why)| why);
    respond(reply, text)
}

/// Why a push service takes no such request: the status, and a text.
fn refusal(
    method: &Method,
    headers: &HeaderMap,
    browser: Option<&Subscriber>,
    shared: &ServiceParts,
    body: Option<&Bytes>,
) -> Option<(u16, &'static str)> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(browser) = browser else { return Some((404, "no such subscription")) };
    if method != Method::POST {
        return Some((405, "POST only"));
    }
    if header("ttl").and_then(|ttl| ttl.parse::<u32>().ok()).is_none() {
        return Some((400, "TTL is missing"));
    }
    if header("urgency").is_some_and(|it| !["very-low", "low", "normal", "high"].contains(&it)) {
        return Some((400, "Urgency is not known"));
    }
    let in_topics = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if header("topic").is_some_and(|topic| topic.len() > 32 || !topic.bytes().all(in_topics)) {
        return Some((400, "Topic is not understood"));
    }
    if header(CONTENT_ENCODING.as_str()) != Some("aes128gcm") {
        return Some((400, "Content-Encoding is not aes128gcm"));
    }
    if body.is_none() {
        return Some((413, "too large"));
    }
    let authorization = header(AUTHORIZATION.as_str()).unwrap_or_default();
    vapid::refusal(authorization, browser.application_server_key(), &shared.origin)
}

fn headers(headers: &HeaderMap) -> BTreeMap<String, String> {
    let told = headers.iter().filter(|(name, _)| **name != AUTHORIZATION);
    told.map(|(name, value)| {
        (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    })
    .collect()
}

impl Reply {
    fn status(&self) -> Option<u16> {
        match self {
            Self::Created | Self::Farewell | Self::UpTo(_) => Some(201),
            Self::Status(status, _) | Self::Endless(status) => Some(*status),
            Self::Redirect(_) => Some(307),
            Self::Hang => None,
        }
    }
}

fn respond(reply: Reply, text: &'static str) -> Option<Response<ReplyBody>> {
    let body = match reply {
        Reply::Endless(_) => ReplyBody::Endless,
        _ => ReplyBody::Text(Some(Bytes::from_static(text.as_bytes()))),
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(reply.status()?).unwrap_or_default();
    match reply {
        Reply::Status(_, Some(seconds)) => {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        Reply::Redirect(to) => {
            response.headers_mut().extend(to.parse().ok().map(|to| (LOCATION, to)));
        }
        _ => {}
    }
    Some(response)
}
