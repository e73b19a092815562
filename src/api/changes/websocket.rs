//! A stream over a WebSocket (RFC 6455): each event is a text message, a ping is the sign of life. What the
//! client says is not listened to.

use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use hyper::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::http::request::Parts;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::stream::{LiveStream, StreamEnd, StreamStep};
use crate::api::error::ApiError;
use crate::net::http::is_write_timeout;

/// What is hashed behind a client's key (RFC 6455 section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Bytes of a key in base64: of 16.
const KEY: usize = 24;

/// Bytes that a client may say at once, in a message.
const SAID: usize = 4096;

/// Bytes that are read at once.
const READ: usize = 128;

/// Bytes that may wait to be sent: more than all events of a stream together.
const UNSENT: usize = 2 * 1024 * 1024;

/// For the last words to a client.
const FAREWELL: Duration = Duration::from_secs(1);

/// Signs of life in a row to which a client says nothing.
const UNANSWERED: u32 = 2;

/// A client that wants a WebSocket, before its answer.
pub(super) struct WebSocketHandshake {
    upgrade: OnUpgrade,
    accept: HeaderValue,
}

impl WebSocketHandshake {
    /// `None`: the client wants no WebSocket.
    ///
    /// # Errors
    /// The request is not one of RFC 6455 section 4.1.
    pub(super) fn of(parts: &mut Parts) -> Result<Option<Self>, ApiError> {
        let Parts { headers, extensions, method, .. } = parts;
        if !names(headers, &UPGRADE, "websocket") {
            return Ok(None);
        }
        let malformed = || {
            let message = "This is not the handshake of a WebSocket (RFC 6455).";
            ApiError::new(StatusCode::BAD_REQUEST, "not_websocket", message)
        };
        let version = headers.get(SEC_WEBSOCKET_VERSION).map(HeaderValue::as_bytes);
        let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
        let key = key.filter(|key| key.len() == KEY).ok_or_else(malformed)?;
        let asks = *method == Method::GET && names(headers, &CONNECTION, "upgrade");
        if !asks || version != Some(b"13") {
            return Err(malformed());
        }
        let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID].concat());
        let accept = HeaderValue::try_from(STANDARD.encode(hash)).map_err(|_| malformed())?;
        let upgrade = extensions.remove::<OnUpgrade>().ok_or_else(malformed)?;
        Ok(Some(Self { upgrade, accept }))
    }

    /// The answer, behind which `stream` goes over the connection.
    pub(super) fn respond(self, stream: LiveStream) -> Response {
        let Self { upgrade, accept } = self;
        let tasks = stream.context.streams.tasks.clone();
        let stream = Box::new(stream);
        tasks.spawn(async move {
            // Where it fails, the client has gone.
            if let Ok(upgraded) = upgrade.await {
                Box::pin(serve(upgraded, stream)).await;
            }
        });
        let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        response
    }
}

/// Whether the header has this word, whatever its case.
fn names(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let fields = headers.get_all(name).iter().filter_map(|field| field.to_str().ok());
    fields.flat_map(|field| field.split(',')).any(|it| it.trim().eq_ignore_ascii_case(word))
}

async fn serve(upgraded: Upgraded, mut stream: Box<LiveStream>) {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ)
        .write_buffer_size(0)
        .max_write_buffer_size(UNSENT)
        .max_message_size(Some(SAID))
        .max_frame_size(Some(SAID));
    let upgraded = TokioIo::new(upgraded);
    let mut socket = WebSocketStream::from_raw_socket(upgraded, Role::Server, Some(config)).await;
    let mut unanswered = 0;
    loop {
        let mut messages = Vec::new();
        let mut is_last = false;
        tokio::select! {
            said = socket.next() => match said {
                Some(Ok(said)) => {
                    // Whatever it says, it lives. What it is to be answered is sent with the rest.
                    unanswered = 0;
                    is_last = matches!(said, Message::Close(_));
                }
                Some(Err(error)) => return stream.failed(&error),
                None => return,
            },
            next = stream.next() => match next {
                StreamStep::Messages(next) => {
                    messages.extend(next.into_iter().map(|it| Message::Text(it.json.into())));
                }
                StreamStep::Alive if unanswered >= UNANSWERED => return,
                StreamStep::Alive => {
                    unanswered += 1;
                    messages.push(Message::Ping(Bytes::new()));
                }
                StreamStep::End(why, last) => {
                    let code = match why {
                        StreamEnd::Restart => CloseCode::Restart,
                        StreamEnd::Unauthorized | StreamEnd::LoggedOut => CloseCode::Policy,
                    };
                    let close = CloseFrame { code, reason: why.reason().into() };
                    messages.extend([Message::Text(last.json.into()), Message::Close(Some(close))]);
                    is_last = true;
                }
            },
        }
        if is_last {
            // It does not wait for a client that takes nothing.
            let _ = timeout(FAREWELL, send(&mut socket, messages)).await;
            return;
        }
        // The connection has the limit of writing.
        if let Err(error) = send(&mut socket, messages).await {
            return stream.failed(&error);
        }
    }
}

impl LiveStream {
    /// The connection of its WebSocket has ended.
    fn failed(&self, error: &Error) {
        if matches!(error, Error::Io(error) if is_write_timeout(error)) {
            self.context.streams.web_socket_cut_off();
        }
    }
}

/// Sends these, and what the library has to say.
async fn send(
    socket: &mut WebSocketStream<TokioIo<Upgraded>>,
    messages: Vec<Message>,
) -> Result<(), Error> {
    for message in messages {
        socket.feed(message).await?;
    }
    socket.flush().await
}
