//! Firefox as a client of the push service, by Mozilla's protocol over a WebSocket: it says hello, registers a
//! channel for each subscription, and gets each message as it came, which it alone can read.
//!
//! Firefox connects where its setting `dom.push.serverURL` leads; `firefox_profile` writes one that leads here.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use futures_util::{SinkExt, StreamExt};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderMap, UPGRADE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::{PushService, ServiceParts, Subscriber};
use crate::demo::port::Port;
use crate::demo::random_uuid;

/// Where Firefox connects to. Dropping it closes the port and its connections.
pub struct FirefoxDoor(Port);

/// A subscription of a Firefox.
#[derive(Clone)]
pub(super) struct FirefoxChannel {
    /// The browser's own name for it.
    id: String,
    pub(super) application_server_key: String,
    browser: Arc<FirefoxMessages>,
}

/// Messages on their way to a Firefox, which may be away.
#[derive(Default)]
pub(super) struct FirefoxMessages {
    /// The last [`WAITING`].
    waiting: Mutex<VecDeque<String>>,
    news: Notify,
}

/// Messages that are kept for a Firefox that is away; of more, the oldest are forgotten.
const WAITING: usize = 64;

/// More in one message is not read.
const MAX_MESSAGE: usize = 64 * 1024;

/// How long the beginning of a WebSocket may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

// === impl PushService ===

impl PushService {
    /// Serves Firefox on `listener`, beside the senders of messages.
    ///
    /// # Errors
    /// When the listener fails.
    pub fn serve_firefox(&self, listener: TcpListener) -> io::Result<FirefoxDoor> {
        let shared = Arc::clone(&self.shared);
        Port::open(listener, move |stream| begin(stream, Arc::clone(&shared))).map(FirefoxDoor)
    }
}

// === impl FirefoxDoor ===

impl FirefoxDoor {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// What Firefox takes as its `dom.push.serverURL`.
    pub fn url(&self) -> String {
        format!("ws://{}/", self.address())
    }
}

impl std::fmt::Debug for FirefoxDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("FirefoxDoor").field(&self.address()).finish()
    }
}

// === impl FirefoxChannel ===

impl FirefoxChannel {
    /// Passes a message on, as it came from its sender.
    pub(super) fn send(&self, encoding: &str, body: &Bytes) {
        let message = json!({
            "messageType": "notification",
            "channelID": self.id,
            "version": random_uuid(),
            "data": URL_SAFE_NO_PAD.encode(body),
            "headers": { "encoding": encoding },
        });
        let mut waiting = self.browser.waiting.lock();
        if waiting.len() == WAITING {
            waiting.pop_front();
        }
        waiting.push_back(message.to_string());
        drop(waiting);
        self.browser.news.notify_one();
    }
}

// === impl FirefoxMessages ===

impl FirefoxMessages {
    /// The next one. Waits for it. Cancel safe.
    async fn next(&self) -> String {
        loop {
            let next = self.waiting.lock().pop_front();
            match next {
                Some(message) => return message,
                None => self.news.notified().await,
            }
        }
    }
}

// --- Connections ---

/// The HTTP request that becomes a WebSocket (RFC 6455 section 4.2).
async fn begin(stream: TcpStream, shared: Arc<ServiceParts>) {
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(upgraded(request, shared)) }
    });
    // How a connection ends is the client's to see.
    let http = hyper::server::conn::http1::Builder::new();
    let _ = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
}

fn upgraded(mut request: Request<Incoming>, shared: Arc<ServiceParts>) -> Response<Empty<Bytes>> {
    let mut response = Response::new(Empty::new());
    let Some(accept) = accept(request.headers()) else {
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, upgrade).await else { return };
        let limits = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE));
        let stream = TokioIo::new(stream);
        talk(WebSocketStream::from_raw_socket(stream, Role::Server, Some(limits)).await, &shared)
            .await;
    });
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, hyper::header::HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, hyper::header::HeaderValue::from_static("websocket"));
    headers.insert(hyper::header::SEC_WEBSOCKET_ACCEPT, accept);
    response
}

/// What proves that the server speaks WebSocket; `None` where the client does not.
fn accept(headers: &HeaderMap) -> Option<hyper::header::HeaderValue> {
    const SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let key = headers.get(hyper::header::SEC_WEBSOCKET_KEY)?;
    let key = [key.as_bytes(), SUFFIX].concat();
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &key);
    STANDARD.encode(hash).try_into().ok()
}

async fn talk(
    mut stream: WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>,
    shared: &ServiceParts,
) {
    let mut browser: Arc<FirefoxMessages> = Arc::default();
    loop {
        let answer = tokio::select! {
            said = stream.next() => match said {
                Some(Ok(Message::Text(text))) => {
                    let message = serde_json::from_str(&text).unwrap_or_default();
                    answer(&message, &mut browser, shared).map(|answer| answer.to_string())
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => None,
            },
            message = browser.next() => Some(message),
        };
        if let Some(answer) = answer
            && stream.send(Message::text(answer)).await.is_err()
        {
            return;
        }
    }
}

/// What Firefox is answered.
fn answer(
    message: &Value,
    browser: &mut Arc<FirefoxMessages>,
    shared: &ServiceParts,
) -> Option<Value> {
    let mut state = shared.state();
    let channel = message["channelID"].as_str().unwrap_or_default();
    let said = |more: Value| {
        let mut answer = json!({ "messageType": message["messageType"], "status": 200 });
        if let (Some(answer), Value::Object(more)) = (answer.as_object_mut(), more) {
            answer.extend(more);
        }
        Some(answer)
    };
    match message["messageType"].as_str() {
        // A ping.
        None => Some(json!({})),
        Some("hello") => {
            // One that comes back finds its messages.
            let name = message["uaid"].as_str().filter(|name| state.firefoxes.contains_key(*name));
            let name = name.map_or_else(random_uuid, str::to_owned);
            *browser = Arc::clone(state.firefoxes.entry(name.clone()).or_default());
            said(json!({ "uaid": name, "use_webpush": true, "broadcasts": {} }))
        }
        Some("register") => {
            let path = format!("/push/{}", random_uuid());
            let endpoint = format!("{}{path}", shared.origin);
            let id = channel.to_owned();
            // Firefox pads it.
            let key = message["key"].as_str().unwrap_or_default();
            let application_server_key = key.trim_end_matches('=').to_owned();
            let browser = Arc::clone(browser);
            let channel = FirefoxChannel { id, application_server_key, browser };
            state.browsers.insert(path, Subscriber::Firefox(channel));
            said(json!({ "channelID": message["channelID"], "pushEndpoint": endpoint }))
        }
        Some("unregister") => {
            state.browsers.retain(|_, subscriber| match subscriber {
                Subscriber::Firefox(it) => it.id != channel || !Arc::ptr_eq(&it.browser, browser),
                Subscriber::Simulated(_) => true,
            });
            said(json!({ "channelID": message["channelID"] }))
        }
        Some(_) => None,
    }
}
