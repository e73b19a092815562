//! A client of HTTPS servers: HTTP/2 or HTTP/1.1, as the server chooses, over connections that are kept for a
//! while. One request out, one bounded response in, within one limit of time. No redirect is followed, no
//! cookie kept.
//!
//! Users may say which servers there are, so the number of connections is bounded, and what a server sends is
//! read no further than it is wanted.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::client::danger::ServerCertVerifier;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tower_service::Service;

use super::dial::{DialError, Dialer};
use super::tls::{self, TlsError};

/// Most bytes of an answer's body. What is beyond is not read.
pub const MAX_ANSWER: usize = 4096;

/// For name, TCP, proxy and TLS.
const CONNECT: Duration = Duration::from_secs(10);
/// For the body, once the head is there, which says most.
const BODY: Duration = Duration::from_secs(5);
/// A connection without a request is closed after this time.
const IDLE: Duration = Duration::from_secs(60);
/// Connections without a request that are kept for one server.
const IDLE_PER_SERVER: usize = 4;
/// With more open connections than this all that are without a request are closed.
const MOST_OPEN: usize = 512;
/// An HTTP/2 connection in use that does not answer a PING in [`CONNECT`] is closed.
const PING: Duration = Duration::from_secs(30);
/// Most characters of an error that are shown.
const MOST_SHOWN: usize = 300;
/// Bytes of an answer that a server may send before they are read.
const WINDOW: u32 = 16 * 1024;

/// The client. Cheap to clone; clones share the connections.
#[derive(Clone)]
pub struct HttpsClient {
    shared: Arc<HttpsParts>,
    limit: Duration,
    /// Bytes of an answer's body that are read.
    longest: usize,
}

/// Why there is no response. `Display` is a clause for people that begins with the step.
#[derive(Debug)]
pub struct HttpsError(String);

struct HttpsParts {
    connector: Connector,
    /// Replaced to close the connections that are without a request.
    pool: Mutex<Pool>,
}

type Pool = Client<Connector, Full<Bytes>>;

#[derive(Clone)]
struct Connector {
    dialer: Dialer,
    /// `http://` of this machine is allowed.
    plain_here: bool,
    /// How many connections are open.
    open: Arc<AtomicUsize>,
}

/// A connection that counts.
struct Counted {
    io: TokioIo<Either<TlsStream<TcpStream>, TcpStream>>,
    open: Arc<AtomicUsize>,
}

/// TLS to servers that `ca` vouches for, or the system's authorities, in HTTP/2 or HTTP/1.1.
///
/// # Errors
/// When there is nobody to trust, or TLS cannot be set up.
pub fn client_tls(ca: Option<&std::path::Path>) -> Result<Arc<ClientConfig>, TlsError> {
    client_tls_with(tls::verifier(ca)?)
}

/// The TLS of a client that verifies servers by this.
///
/// # Errors
/// When TLS cannot be set up.
pub fn client_tls_with(
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let mut tls = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}

// === impl HttpsClient ===

impl HttpsClient {
    /// Connects by `dialer`, whose TLS is [`client_tls`]. `limit` is for one request and its response,
    /// connecting included. Opens no socket.
    pub fn new(dialer: Dialer, limit: Duration) -> Self {
        Self::with(Connector { dialer, plain_here: false, open: Arc::default() }, limit)
    }

    /// As [`HttpsClient::new`], and connects in the clear to `http://` URLs of this machine.
    pub fn or_plain_here(dialer: Dialer, limit: Duration) -> Self {
        Self::with(Connector { dialer, plain_here: true, open: Arc::default() }, limit)
    }

    fn with(connector: Connector, limit: Duration) -> Self {
        let pool = Mutex::new(pool(&connector));
        Self { shared: Arc::new(HttpsParts { connector, pool }), limit, longest: MAX_ANSWER }
    }

    /// Reads so many bytes of an answer's body in place of [`MAX_ANSWER`].
    #[must_use]
    pub fn reading(self, longest: usize) -> Self {
        Self { longest, ..self }
    }

    /// Sends the request, to an `https://` URL, and waits for the response, of whose body the first
    /// [`MAX_ANSWER`] bytes are read, or as many as [`HttpsClient::reading`] says. Where the connection breaks it is
    /// sent once more. Cancel safe in so far as a request that is dropped may or may not have been sent.
    ///
    /// # Errors
    /// When there is no connection, it breaks, or there is no answer in time.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpsError> {
        let deadline = Instant::now() + self.limit;
        let request = request.map(Full::new);
        let response = timeout_at(deadline, async {
            match self.shared.pool().request(request.clone()).await {
                // The server may have closed a connection that was kept, just then. A request that comes
                // twice is better than one that comes late.
                Err(error) if !error.is_connect() => self.shared.pool().request(request).await,
                response => response,
            }
        });
        let response = response
            .await
            .map_err(|_| HttpsError(format!("no answer within {:?}", self.limit)))?
            .map_err(|error| HttpsError(causes(&error)))?;
        let (head, body) = response.into_parts();
        let left = deadline.saturating_duration_since(Instant::now());
        Ok(Response::from_parts(head, read(body, left.min(BODY), self.longest).await))
    }
}

impl fmt::Debug for HttpsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpsClient").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl HttpsParts {
    fn pool(&self) -> Pool {
        let mut pool = self.pool.lock();
        if self.connector.open.load(Ordering::Relaxed) > MOST_OPEN {
            *pool = self::pool(&self.connector);
        }
        pool.clone()
    }
}

fn pool(connector: &Connector) -> Pool {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(IDLE_PER_SERVER)
        .http1_max_buf_size(WINDOW as usize)
        .http2_initial_stream_window_size(WINDOW)
        .http2_initial_connection_window_size(4 * WINDOW)
        .http2_max_header_list_size(WINDOW)
        .http2_keep_alive_interval(PING)
        .http2_keep_alive_timeout(CONNECT)
        .build(connector.clone())
}

/// What comes of the body in time, and no more than `longest` bytes of it.
async fn read(mut body: Incoming, limit: Duration, longest: usize) -> Bytes {
    let mut read = BytesMut::new();
    let reading = async {
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            let room = longest - read.len();
            read.extend_from_slice(&data[..data.len().min(room)]);
            if read.len() == longest {
                break;
            }
        }
    };
    let _ = timeout(limit, reading).await;
    read.freeze()
}

/// An error with its causes, for people: hyper's own texts do not include what the dialer, h2 and the socket said.
/// A peer has a say in it, by the debug data of a GOAWAY or the names of a certificate, so it is cut and escaped.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    printable(&text, MOST_SHOWN)
}

/// A peer's text, fit for a log line: the first `most` characters, escaped where they are not printable. What is
/// escaped already stays as it is.
pub fn printable(text: &str, most: usize) -> String {
    let escaped = |character: char| match character {
        '"' | '\'' | '\\' => vec![character],
        other => other.escape_debug().collect(),
    };
    text.chars().take(most).flat_map(escaped).collect()
}

// === impl HttpsError ===

impl fmt::Display for HttpsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for HttpsError {}

// === impl Connector ===

impl Service<Uri> for Connector {
    type Response = Counted;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Counted, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { dialer, plain_here, open } = self.clone();
        Box::pin(async move {
            let host = uri.host().unwrap_or_default();
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let deadline = Instant::now() + CONNECT;
            let stream = match uri.scheme_str() {
                Some("http") if plain_here => {
                    let port = uri.port_u16().unwrap_or(80);
                    Either::Right(dialer.connect_here(host, port, deadline).await?)
                }
                _ => {
                    let port = uri.port_u16().unwrap_or(443);
                    Either::Left(dialer.connect(host, port, deadline).await?)
                }
            };
            open.fetch_add(1, Ordering::Relaxed);
            Ok(Counted { io: TokioIo::new(stream), open })
        })
    }
}

// === impl Counted ===

impl Drop for Counted {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connection for Counted {
    fn connected(&self) -> Connected {
        match self.io.inner() {
            Either::Left(tls) if tls.get_ref().1.alpn_protocol() == Some(b"h2") => {
                Connected::new().negotiated_h2()
            }
            _ => Connected::new(),
        }
    }
}

impl Read for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What h2 says of a GOAWAY has the debug data of the peer.
    #[test]
    fn an_error_that_a_peer_has_written_is_cut_and_escaped() {
        let inner = io::Error::other(format!("not \"this\"\r\n\u{1b}[31m {}", "x".repeat(9999)));
        let shown = causes(&io::Error::other(inner));
        assert_eq!(printable(&printable("\u{1b}", 9), 9), "\\u{1b}");
        assert!(shown.contains("not \"this\"\\r\\n\\u{1b}[31m xxx"), "{shown}");
        assert!(shown.len() < MOST_SHOWN + 20, "{}", shown.len());
    }
}
