//! A stand-in for Apple's push service: HTTP/2 over TLS with a client certificate or provider tokens,
//! the checks that Apple makes, and answers that a test can prescribe (PROTOCOL.md section 2).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, DATE, HeaderValue};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::answer_gate::AnswerGate;
use super::pki::{Pki, PkiError};
use super::port::Port;
use super::random_uuid;
use super::reply_body::ReplyBody;
use super::request_body::whole;
use crate::imap::registration::xapple::DeviceToken;
use provider::Provider;
use refusal::{PAYLOAD, refusal};

mod provider;
mod refusal;

/// A running push service. Dropping it closes its port and its connections.
pub struct Apns {
    port: Port,
    shared: Arc<ApnsShared>,
}

/// A request as it came, whatever it was answered.
#[derive(Clone, Debug)]
pub struct Push {
    /// The device that the path names; `None` if it names none.
    pub token: Option<DeviceToken>,
    /// `content-type` and what begins with `apns-`, in lower case. Never `authorization`.
    pub headers: BTreeMap<String, String>,
    /// Empty if it was longer than Apple takes.
    pub body: Bytes,
    /// When it came.
    pub received: Instant,
    /// Counts the TLS connections from 1.
    pub connection: u64,
    /// What it was answered; `None` for [`Answer::Hang`] and [`Answer::Disconnect`].
    pub status: Option<u16>,
}

/// An answer to prescribe. It is given to requests that Apple would accept; others are refused as
/// Apple refuses them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 200.
    Accept,
    /// Refuses the push.
    Refuse {
        /// The HTTP status.
        status: u16,
        /// Goes into the JSON as it is, known to Apple or not.
        reason: String,
        /// Since when the token is dead, in milliseconds since 1970; Apple gives it with 410.
        timestamp: Option<i64>,
        /// Seconds.
        retry_after: Option<u32>,
    },
    /// Never.
    Hang,
    /// This status, and a body without an end.
    Endless(u16),
    /// The TCP connection is closed, with all that is under way on it.
    Disconnect,
}

struct ApnsShared {
    /// Never held over an await.
    state: Mutex<ApnsState>,
    /// How many requests have come.
    received: watch::Sender<u64>,
    gate: AnswerGate,
    /// Whether clients that connect get nothing, not even TLS.
    stalled: watch::Sender<bool>,
    /// Counts the calls of [`Apns::go_away`].
    farewells: watch::Sender<u64>,
    connections: AtomicU64,
    provider: Provider,
    /// By how many seconds its clock is ahead.
    ahead: AtomicI64,
}

#[derive(Default)]
struct ApnsState {
    /// The last [`RECORDED`] requests.
    pushes: VecDeque<Push>,
    /// How many requests were dropped from the front of `pushes`.
    forgotten: u64,
    /// How many requests [`Apns::next`] has handed out or passed over.
    handed_out: u64,
    next_answers: VecDeque<Answer>,
    /// To everything that has no other.
    answer_to_all: Option<Answer>,
    answers: HashMap<DeviceToken, Answer>,
}

/// Requests that are kept; of more, the oldest are forgotten.
const RECORDED: usize = 100_000;

/// What Apple allows on one connection.
const STREAMS: u32 = 1000;

const TLS_HANDSHAKE: Duration = Duration::from_secs(10);

// === impl Apns ===

impl Apns {
    /// Serves `listener` with the server certificate of `pki`, to clients with a certificate that
    /// its CA has signed, or with tokens that [`Pki::provider`] signs, to push to [`Pki::topic`].
    ///
    /// # Errors
    /// [`ApnsStartError`] when the listener or the certificates cannot be used.
    pub fn start(listener: TcpListener, pki: &Pki) -> Result<Self, ApnsStartError> {
        let shared = Arc::new(ApnsShared {
            state: Mutex::default(),
            received: watch::Sender::new(0),
            gate: AnswerGate::default(),
            stalled: watch::Sender::new(false),
            farewells: watch::Sender::new(0),
            connections: AtomicU64::new(0),
            provider: Provider::new(&pki.provider, &pki.topic),
            ahead: AtomicI64::new(0),
        });
        let tls = TlsAcceptor::from(pki.apns_config()?);
        let for_connections = shared.clone();
        let port = Port::open(listener, move |stream| {
            let (tls, shared) = (tls.clone(), for_connections.clone());
            async move {
                let _ = shared.stalled.subscribe().wait_for(|stalled| !stalled).await;
                // Whose certificate is another CA's learns it from TLS.
                if let Ok(Ok(stream)) =
                    tokio::time::timeout(TLS_HANDSHAKE, tls.accept(stream)).await
                {
                    serve(stream, shared).await;
                }
            }
        })?;
        Ok(Self { port, shared })
    }

    /// Where it listens; `https://localhost:<port>` is an endpoint that its certificate covers.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// The next request that was not handed out yet, in the order of arrival. Waits for it.
    /// Cancel safe.
    pub async fn next(&self) -> Push {
        let mut received = self.shared.received.subscribe();
        loop {
            if let Some(push) = self.shared.state().hand_out() {
                return push;
            }
            // The handle holds the sender, so the wait cannot fail.
            let _ = received.changed().await;
        }
    }

    /// All requests so far (the last 100,000), those that were handed out included.
    pub fn pushes(&self) -> Vec<Push> {
        self.shared.state().pushes.iter().cloned().collect()
    }

    /// How many requests have come.
    pub fn received(&self) -> u64 {
        let state = self.shared.state();
        state.forgotten + state.pushes.len() as u64
    }

    /// Waits until so many requests have come since the start.
    pub async fn wait_for(&self, count: u64) {
        let mut received = self.shared.received.subscribe();
        let _ = received.wait_for(|received| *received >= count).await;
    }

    /// How many TLS connections were ever made.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// The answer to the next `count` requests that would be accepted, behind those that were
    /// prescribed before, and ahead of what [`Apns::answer_token`] says.
    pub fn answer_next(&self, count: usize, answer: Answer) {
        self.shared.state().next_answers.extend(std::iter::repeat_n(answer, count));
    }

    /// The answer to every push to this device from now on.
    pub fn answer_token(&self, token: &DeviceToken, answer: Answer) {
        self.shared.state().answers.insert(token.clone(), answer);
    }

    /// The answer to every push for which nothing else is prescribed, until another is given.
    pub fn answer_all(&self, answer: Answer) {
        self.shared.state().answer_to_all = Some(answer);
    }

    /// Sends GOAWAY on every connection; what is under way is still answered (RFC 9113 section 6.8).
    pub fn go_away(&self) {
        self.shared.farewells.send_modify(|count| *count += 1);
    }

    /// Takes requests, but answers none of them before `held` is false again.
    pub fn hold_answers(&self, held: bool) {
        self.shared.gate.shut(held);
    }

    /// Takes connections, but says nothing on those that come before `stalled` is false again.
    pub fn stall(&self, stalled: bool) {
        self.shared.stalled.send_replace(stalled);
    }

    /// Sets its clock so many seconds ahead of this machine's, or behind. `date` in its answers
    /// tells.
    pub fn set_clock_ahead(&self, seconds: i64) {
        self.shared.ahead.store(seconds, Ordering::Relaxed);
    }

    /// Closes every connection at once.
    pub fn drop_connections(&self) {
        self.port.drop_connections();
    }

    /// Refuses new connections until [`Apns::resume`]. Open ones stay.
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

    /// Closes everything and waits until it is closed.
    pub async fn stop(self) {
        self.port.stop().await;
    }
}

impl std::fmt::Debug for Apns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Apns").field("address", &self.address()).finish_non_exhaustive()
    }
}

/// Why the push service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ApnsStartError {
    /// The certificates cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The listener failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

// === impl Push ===

impl Push {
    /// A header by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

// === impl Answer ===

impl Answer {
    /// A refusal without further detail.
    pub fn refuse(status: u16, reason: &str) -> Self {
        Self::Refuse { status, reason: reason.to_owned(), timestamp: None, retry_after: None }
    }

    /// 410 `Unregistered`: the token is dead since `timestamp`, in milliseconds since 1970.
    pub fn gone(timestamp: i64) -> Self {
        Self::Refuse {
            status: 410,
            reason: "Unregistered".to_owned(),
            timestamp: Some(timestamp),
            retry_after: None,
        }
    }

    /// A refusal with a `Retry-After` of so many seconds.
    pub fn retry_after(status: u16, reason: &str, seconds: u32) -> Self {
        Self::Refuse {
            status,
            reason: reason.to_owned(),
            timestamp: None,
            retry_after: Some(seconds),
        }
    }

    fn status(&self) -> Option<u16> {
        match self {
            Self::Accept => Some(200),
            Self::Refuse { status, .. } | Self::Endless(status) => Some(*status),
            Self::Hang | Self::Disconnect => None,
        }
    }
}

// === impl State ===

impl ApnsState {
    fn record(&mut self, push: Push) {
        if self.pushes.len() == RECORDED {
            self.pushes.pop_front();
            self.forgotten += 1;
        }
        self.pushes.push_back(push);
    }

    fn hand_out(&mut self) -> Option<Push> {
        let at = self.handed_out.saturating_sub(self.forgotten);
        let push = self.pushes.get(usize::try_from(at).ok()?)?.clone();
        self.handed_out = self.forgotten + at + 1;
        Some(push)
    }

    fn prescribed(&mut self, token: &DeviceToken) -> Answer {
        self.next_answers
            .pop_front()
            .or_else(|| self.answers.get(token).cloned())
            .or_else(|| self.answer_to_all.clone())
            .unwrap_or(Answer::Accept)
    }
}

impl ApnsShared {
    fn clock(&self) -> SystemTime {
        let ahead = self.ahead.load(Ordering::Relaxed);
        let by = Duration::from_secs(ahead.unsigned_abs());
        if ahead < 0 { SystemTime::now() - by } else { SystemTime::now() + by }
    }

    fn state(&self) -> MutexGuard<'_, ApnsState> {
        self.state.lock()
    }
}

// --- Connections ---

async fn serve(stream: TlsStream<TcpStream>, shared: Arc<ApnsShared>) {
    let number = shared.connections.fetch_add(1, Ordering::Relaxed) + 1;
    let mut farewells = shared.farewells.subscribe();
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let topics: Option<Arc<[String]>> =
        certificate.map(|der| provider::topics_of(der).unwrap_or_default().into());
    let disconnect = CancellationToken::new();
    let service = service_fn(|request| {
        let (shared, topics, disconnect) = (shared.clone(), topics.clone(), disconnect.clone());
        async move {
            let (answer, id) = receive(request, &shared, topics.as_deref(), number).await;
            shared.gate.open().await;
            match answer {
                Answer::Hang => std::future::pending().await,
                Answer::Disconnect => {
                    disconnect.cancel();
                    std::future::pending().await
                }
                answer => Ok::<_, Infallible>(respond(answer, &id, shared.clock())),
            }
        }
    });
    let mut connection = pin!(
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .max_concurrent_streams(STREAMS)
            .serve_connection(TokioIo::new(stream), service)
    );
    loop {
        tokio::select! {
            // How a connection ends is the client's to see.
            _ = connection.as_mut() => return,
            () = disconnect.cancelled() => return,
            Ok(()) = farewells.changed() => connection.as_mut().graceful_shutdown(),
        }
    }
}

/// Reads and records a request. `topics` are those of the client's certificate, if it has one.
/// Returns its answer and its `apns-id`.
async fn receive(
    request: Request<Incoming>,
    shared: &ApnsShared,
    topics: Option<&[String]>,
    connection: u64,
) -> (Answer, String) {
    let received = Instant::now();
    let (head, body) = request.into_parts();
    let headers = headers_of_interest(&head.headers);
    let given = head.uri.path().strip_prefix("/3/device/");
    let token = given.and_then(DeviceToken::new);
    let body = whole(body, PAYLOAD).await;

    let topics = match topics {
        Some(topics) => Ok(topics.to_vec()),
        None => {
            let authorization =
                head.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
            let now = shared.clock().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            shared.provider.topics(authorization, connection, now.cast_signed())
        }
    };
    let refused = match &topics {
        Ok(topics) => refusal(&head.method, given, &headers, topics, body.as_ref()),
        Err(refused) => Some(*refused),
    };
    let answer = {
        let mut state = shared.state();
        let answer = match (&token, refused) {
            (_, Some((status, reason))) => Answer::refuse(status, reason),
            (Some(token), None) => state.prescribed(token),
            (None, None) => Answer::refuse(400, "BadDeviceToken"),
        };
        let status = answer.status();
        let body = body.unwrap_or_default();
        let headers = headers.clone();
        state.record(Push { token, headers, body, received, connection, status });
        answer
    };
    shared.received.send_modify(|count| *count += 1);
    (answer, headers.get("apns-id").cloned().unwrap_or_else(random_uuid))
}

fn headers_of_interest(headers: &HeaderMap) -> BTreeMap<String, String> {
    headers
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("apns-") || *name == "content-type")
        .map(|(name, value)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        })
        .collect()
}

fn respond(answer: Answer, id: &str, now: SystemTime) -> Response<ReplyBody> {
    let text = |text| ReplyBody::Text(Some(text));
    let (status, body, retry_after) = match answer {
        Answer::Refuse { status, reason, timestamp, retry_after } => {
            let mut body = json!({ "reason": reason });
            if let Some(timestamp) = timestamp {
                body["timestamp"] = timestamp.into();
            }
            (status, text(body.to_string().into()), retry_after)
        }
        Answer::Accept | Answer::Hang | Answer::Disconnect => (200, text(Bytes::new()), None),
        Answer::Endless(status) => (status, ReplyBody::Endless, None),
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    // An id that a client made up of odd bytes is not echoed.
    response.headers_mut().extend(id.parse().ok().map(|id| (APNS_ID, id)));
    let date = HeaderValue::try_from(httpdate::fmt_http_date(now)).ok();
    response.headers_mut().extend(date.map(|date| (DATE, date)));
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(hyper::header::RETRY_AFTER, seconds.into());
    }
    response
}

const APNS_ID: hyper::header::HeaderName = hyper::header::HeaderName::from_static("apns-id");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forgotten_is_passed_over() {
        let push = |connection| Push {
            token: None,
            headers: BTreeMap::new(),
            body: Bytes::new(),
            received: Instant::now(),
            connection,
            status: None,
        };
        let mut state = ApnsState::default();
        for number in 0..RECORDED as u64 + 2 {
            state.record(push(number));
        }
        assert_eq!(state.pushes.len(), RECORDED);
        assert_eq!(state.hand_out().map(|push| push.connection), Some(2));
        assert_eq!(state.hand_out().map(|push| push.connection), Some(3));
    }
}
