//! An HTTP server, with or without TLS: its connections and their limits. What is asked and answered is the caller's.
//!
//! HTTP/1.1 and HTTP/2, chosen by ALPN (RFC 7301) or by HTTP/2's preface. A new connection always gets in:
//! when there are too many, one of the address that has most of them goes. A connection on which no
//! request is under way ends after a while, and one whose first request does not come ends sooner.

mod connections;
mod endless;

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Method, Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_io_timeout::TimeoutWriter;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use self::connections::{AdmittedConnection, OpenConnections, RequestUnderWay};
use self::endless::{BodySlot, FlushNoted, ServedBody, UntilEndless};
use super::counters::HttpCounters;
use super::listen;
use super::proxy_protocol::{self, Addresses};
use super::tls_stream::TlsServer;
use crate::config::Network;

/// A request's head in bytes, and its fields. hyper answers 431 to more.
const HEAD_SIZE: u32 = 16 * 1024;
const HEADERS: usize = 64;

/// A client of HTTP/1.1 that closes its side is answered all the same: a mail server may say what it has to say and go
/// (RFC 9112 section 9.6).
const HALF_CLOSE: bool = true;

/// Requests at once on one connection of HTTP/2.
const STREAMS: u32 = 16;

/// Bytes that a client may send ahead on one stream of HTTP/2, and on all of a connection.
const WINDOW: u32 = 64 * 1024;

/// Bytes that wait to be sent on one stream of HTTP/2.
const SEND_BUFFER: usize = 64 * 1024;

/// Between two signs of life that a client of HTTP/2 is asked for, and for its answer.
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Between two requests of one connection.
const IDLE: Duration = Duration::from_secs(60);

/// For a client to take the body of an answer, from its head on.
const BODY_TIME: Duration = Duration::from_mins(2);

/// Bytes of a body that are handed to the connection at once.
const PIECE: usize = 16 * 1024;

/// For the last words to a client.
const FAREWELL: Duration = Duration::from_secs(1);

/// An HTTP server that does not serve yet.
#[derive(Debug)]
pub struct HttpServer {
    /// Where it listens.
    pub listener: TcpListener,
    /// What a client that connects now is shown; without ALPN, which is added here. `None`: connections
    /// are in the clear.
    pub tls: Option<TlsSource>,
    /// Who begins each connection with a PROXY header that tells the client's address.
    pub proxy_protocol: Vec<Network>,
    /// How much there may be of what.
    pub limits: HttpLimits,
    /// The table of the configuration, for the log: `[api]`.
    pub table: &'static str,
    /// How often each limit was reached.
    pub counters: Arc<HttpCounters>,
}

/// Says what clients are shown at the moment.
#[derive(Clone)]
pub struct TlsSource(Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>);

/// An extension of a response whose body ends when it pleases: there is no limit of time for it.
#[derive(Clone, Copy, Debug)]
pub struct EndlessBody;

/// An extension of each request: the connection on which it came.
#[derive(Clone, Debug)]
pub struct ConnectionHandle(CancellationToken);

/// Limits of an [`HttpServer`].
#[derive(Clone, Copy, Debug)]
pub struct HttpLimits {
    /// Connections at once.
    pub connections: usize,
    /// For the PROXY header and the TLS handshake, and then again for the head of the first request.
    pub request_timeout: Duration,
    /// How long a client may take none of what it is sent.
    pub write_timeout: Duration,
    /// For requests that are under way when the server stops.
    pub shutdown_grace: Duration,
}

/// A client's connection. Writing to it fails where the client takes nothing for too long.
type HttpStream = Pin<Box<TimeoutWriter<Either<TlsServer, TcpStream>>>>;

/// Whether a connection of an [`HttpServer`] ended since its client took nothing for [`HttpLimits::write_timeout`]. Where the
/// kernel says that time is over, the client has gone.
pub fn is_write_timeout(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none()
}

impl TlsSource {
    /// As `current` says each time.
    pub fn new(current: impl Fn() -> Arc<ServerConfig> + Send + Sync + 'static) -> Self {
        Self(Arc::new(current))
    }
}

impl fmt::Debug for TlsSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSource").finish_non_exhaustive()
    }
}

impl ConnectionHandle {
    /// Ends the connection at once, with all that is under way on it. One that was upgraded stays.
    pub fn close(&self) {
        self.0.cancel();
    }
}

impl HttpServer {
    /// Answers requests by `answer`, which hears the addresses of the connection, until `stop`.
    ///
    /// A request is under way until the last byte of its answer's body was handed to the connection.
    pub async fn serve<A, F, B>(self, answer: A, stop: CancellationToken)
    where
        A: Fn(Request<Incoming>, Addresses) -> F + Clone + Send + Sync + Unpin + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let Self { listener, tls, proxy_protocol, limits, table, counters } = self;
        let connections = Arc::new(OpenConnections::new(limits.connections));
        let proxy_protocol: Arc<[Network]> = proxy_protocol.into();
        let tasks = TaskTracker::new();
        let mut shown = None;
        let stopped_at = Arc::default();
        loop {
            let make_room = || connections.make_room();
            let (stream, peer) = tokio::select! {
                () = stop.cancelled() => break,
                next = listen::accept(&listener, make_room) => next,
            };
            let (admitted, crowded) = connections.admit(peer.ip());
            if crowded && counters.connections.hit() {
                tracing::warn!(
                    target: "mailchime::net::http_connections_reached",
                    table,
                    limit = limits.connections,
                    "an HTTP server has as many connections as it may have; mailchime closes the \
                     oldest ones of the address that has most"
                );
            }
            let connection = ServedConnection {
                limits,
                counters: Arc::clone(&counters),
                admitted: Arc::clone(&admitted),
                stop: stop.clone(),
                stopped_at: Arc::clone(&stopped_at),
            };
            let tls = tls.as_ref().map(|tls| with_alpn(&mut shown, (tls.0)()));
            let proxies = Arc::clone(&proxy_protocol);
            let (connections, answer) = (Arc::clone(&connections), answer.clone());
            let for_endless = tasks.clone();
            tasks.spawn(async move {
                let endless = tokio::select! {
                    endless = connection.run(stream, peer, tls, &proxies, answer) => endless,
                    () = admitted.leave.cancelled() => None,
                };
                match endless {
                    None => connections.leave(&admitted),
                    // It lasts, and needs less than what it has come out of.
                    Some((stream, body)) => drop(for_endless.spawn(async move {
                        tokio::select! {
                            () = connection.send_endless(peer, stream, body) => {}
                            () = admitted.leave.cancelled() => {}
                        }
                        connections.leave(&admitted);
                    })),
                }
            });
        }
        drop(listener);
        tasks.close();
        tasks.wait().await;
    }
}

/// What clients that speak HTTP are shown, behind what it was made of.
type ShownTls = (Arc<ServerConfig>, Arc<ServerConfig>);

/// The same certificates, for clients that speak HTTP. Connections share it while `shown` is of these.
fn with_alpn(shown: &mut Option<ShownTls>, current: Arc<ServerConfig>) -> Arc<ServerConfig> {
    if let Some((before, shown)) = shown
        && Arc::ptr_eq(before, &current)
    {
        return Arc::clone(shown);
    }
    let mut tls = ServerConfig::clone(&current);
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let tls = Arc::new(tls);
    *shown = Some((current, Arc::clone(&tls)));
    tls
}

/// What a client speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spoken {
    /// HTTP/1.1: with TLS, HTTP/2 is agreed on (RFC 9113 section 3.2).
    Http1,
    /// It is to be seen.
    Any,
}

/// What one connection is served with.
struct ServedConnection {
    limits: HttpLimits,
    counters: Arc<HttpCounters>,
    admitted: Arc<AdmittedConnection>,
    stop: CancellationToken,
    /// When the first connection saw that the server stops.
    stopped_at: Arc<OnceLock<Instant>>,
}

impl ServedConnection {
    /// Serves a connection to its end, or until all that is left is an endless body.
    async fn run<A, F, B>(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        tls: Option<Arc<ServerConfig>>,
        proxies: &[Network],
        answer: A,
    ) -> Option<(HttpStream, Box<CountedBody<B>>)>
    where
        A: Fn(Request<Incoming>, Addresses) -> F + Clone + Send + Sync + Unpin + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        // Boxed: it is large, and soon over.
        let opened = Box::pin(self.open(stream, peer, tls, proxies)).await;
        let (stream, addresses, version) = opened?;
        self.admitted.comes_from(addresses.source.ip());
        let admitted = Arc::clone(&self.admitted);
        let slot = BodySlot::default();
        let endless_bodies = (version == Spoken::Http1).then(|| Arc::clone(&slot));
        let service = service_fn(move |mut request: Request<Incoming>| {
            // A client of HTTP/1.0 knows no pieces, and the answer to HEAD has no body.
            let pieces = request.version() == Version::HTTP_11 && request.method() != Method::HEAD;
            let slot = endless_bodies.clone().filter(|_| pieces);
            let connection = ConnectionHandle(admitted.leave.clone());
            request.extensions_mut().insert(connection);
            let under_way = AdmittedConnection::request(&admitted);
            let answering = answer(request, addresses);
            let admitted = Arc::clone(&admitted);
            async move {
                let answer = answering.await;
                let endless = answer.extensions().get::<EndlessBody>().is_some();
                Ok::<_, Infallible>(answer.map(|body| {
                    let body = CountedBody::new(body, &admitted, under_way, endless);
                    match slot.filter(|_| endless) {
                        Some(slot) => ServedBody::Endless(Some(body), slot),
                        None => ServedBody::Whole(body),
                    }
                }))
            }
        });
        match version {
            Spoken::Http1 => Box::pin(self.serve_http1(peer, stream, service, slot)).await,
            Spoken::Any => {
                Box::pin(self.serve_any(peer, stream, service)).await;
                None
            }
        }
    }

    /// Opens a connection in time.
    async fn open(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        tls: Option<Arc<ServerConfig>>,
        proxies: &[Network],
    ) -> Option<(HttpStream, Addresses, Spoken)> {
        let opening = opening(stream, peer, tls, proxies, self.limits.write_timeout);
        let opened = tokio::select! {
            () = self.stop.cancelled() => return None,
            opened = timeout(self.limits.request_timeout, opening) => opened,
        };
        match opened {
            Ok(Ok(opened)) => Some(opened),
            Ok(Err(error)) => {
                tracing::debug!(
                    target: "mailchime::net::http_connection_failed",
                    %peer, %error, "a connection to an HTTP server failed"
                );
                None
            }
            Err(_) => {
                self.counters.request_timeout.hit();
                None
            }
        }
    }

    /// Serves what may be HTTP/1.1 or HTTP/2.
    async fn serve_any<S, B>(&self, peer: SocketAddr, stream: HttpStream, service: S)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let builder = builder();
        let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let served = self.until_end(pin!(serving), |serving| serving.graceful_shutdown()).await;
        self.ended(peer, served.and_then(Result::err));
    }

    /// Serves HTTP/1.1, until an endless body comes into `slot`: then it is to be sent here.
    async fn serve_http1<S, B>(
        &self,
        peer: SocketAddr,
        stream: HttpStream,
        service: S,
        slot: BodySlot<B>,
    ) -> Option<(HttpStream, Box<B>)>
    where
        S: Service<Request<Incoming>, Response = Response<ServedBody<B>>, Error = Infallible>
            + Unpin,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let unflushed = Arc::new(AtomicBool::new(false));
        let stream = FlushNoted { inner: stream, unflushed: Arc::clone(&unflushed) };
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            // The time for a head is that of the connection.
            .header_read_timeout(None)
            .max_buf_size(HEAD_SIZE as usize)
            .max_headers(HEADERS)
            .half_close(HALF_CLOSE);
        let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
        let mut serving = UntilEndless { connection: Box::new(connection), slot, unflushed };
        let goodbye = |serving: Pin<&mut UntilEndless<http1::UpgradeableConnection<_, _>, _>>| {
            Pin::new(&mut *serving.get_mut().connection).graceful_shutdown();
        };
        let served = self.until_end(Pin::new(&mut serving), goodbye).await;
        let body = serving.slot.lock().take();
        let (Some(Ok(())), Some(body)) = (&served, body) else {
            self.ended(peer, served.and_then(Result::err).map(Into::into));
            return None;
        };
        // What hyper kept goes.
        let http1::Parts { io, .. } = serving.connection.into_parts()?;
        Some((io.into_inner().inner, Box::new(body)))
    }

    /// Sends an endless body until it or the connection ends, or the program does.
    async fn send_endless<B>(&self, peer: SocketAddr, stream: HttpStream, body: B)
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let mut sending = pin!(endless::send(stream, body));
        let sent = tokio::select! {
            sent = &mut sending => sent,
            () = self.grace_is_over() => Ok(()),
        };
        if sent.as_ref().is_err_and(is_write_timeout) {
            self.counters.write_timeout.hit();
        }
        self.ended(peer, sent.err().map(Into::into));
    }

    /// Serves until nothing is under way for too long, or the program ends; `goodbye` has it end then.
    async fn until_end<F: Future>(
        &self,
        mut serving: Pin<&mut F>,
        goodbye: impl FnOnce(Pin<&mut F>),
    ) -> Option<F::Output> {
        let is_idle = tokio::select! {
            served = serving.as_mut() => return Some(served),
            slow = self.admitted.idle(self.limits.request_timeout, IDLE) => {
                if slow {
                    self.counters.request_timeout.hit();
                }
                true
            }
            () = self.stop.cancelled() => false,
        };
        goodbye(serving.as_mut());
        // Nothing is under way, or the program ends.
        tokio::select! {
            served = serving => Some(served),
            () = sleep(FAREWELL), if is_idle => None,
            () = self.grace_is_over() => None,
        }
    }

    /// Waits until the server has stopped, and then for as long as requests have that were under way.
    async fn grace_is_over(&self) {
        self.stop.cancelled().await;
        let stopped_at = *self.stopped_at.get_or_init(Instant::now);
        // Boxed: a timer is large, and each connection has room for what it may wait for.
        Box::pin(sleep_until(stopped_at + self.limits.shutdown_grace)).await;
    }

    fn ended(&self, peer: SocketAddr, error: Option<Box<dyn Error + Send + Sync>>) {
        let Some(error) = error else { return };
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse_too_large) {
            self.counters.head_size.hit();
        }
        tracing::debug!(
            target: "mailchime::net::http_connection_failed",
            %peer, error, "a connection to an HTTP server failed"
        );
    }
}

/// The PROXY header, if `peer` is one that sends it, and TLS, if it is used.
async fn opening(
    mut stream: TcpStream,
    peer: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    proxies: &[Network],
    write_timeout: Duration,
) -> io::Result<(HttpStream, Addresses, Spoken)> {
    let destination = listen::canonical(stream.local_addr()?);
    let mut addresses = Addresses { source: peer, destination };
    if proxies.iter().any(|network| network.contains(peer.ip()))
        && let Some(told) = proxy_protocol::read(&mut stream).await?
    {
        addresses = told;
    }
    let stream = match tls {
        Some(tls) => Either::Left(TlsServer::accept(stream, &tls).await?),
        None => Either::Right(stream),
    };
    let version = match &stream {
        Either::Left(tls) if tls.agreed().alpn_protocol() != Some(b"h2") => Spoken::Http1,
        _ => Spoken::Any,
    };
    let mut stream = TimeoutWriter::new(stream);
    stream.set_timeout(Some(write_timeout));
    Ok((Box::pin(stream), addresses, version))
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // The time for a head is that of the connection.
        .header_read_timeout(None)
        .max_buf_size(HEAD_SIZE as usize)
        .max_headers(HEADERS)
        .half_close(HALF_CLOSE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEAD_SIZE)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// A body whose request is under way while it lives, and which lives for [`BODY_TIME`] at most, unless it is
/// endless: then its connection ends. It comes in small pieces, so that a client of HTTP/2 that takes little of it
/// holds little.
struct CountedBody<B> {
    body: B,
    /// What is left of its last frame.
    rest: Bytes,
    _under_way: RequestUnderWay,
    _deadline: Option<AbortOnDropHandle<()>>,
}

impl<B> CountedBody<B> {
    fn new(
        body: B,
        connection: &AdmittedConnection,
        under_way: RequestUnderWay,
        endless: bool,
    ) -> Self {
        let deadline = (!endless).then(|| {
            let leave = connection.leave.clone();
            AbortOnDropHandle::new(tokio::spawn(async move {
                sleep(BODY_TIME).await;
                leave.cancel();
            }))
        });
        Self { body, rest: Bytes::new(), _under_way: under_way, _deadline: deadline }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for CountedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
        let length = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        if let Some(upper) = body.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(body.lower().saturating_add(rest));
        hint
    }
}

#[cfg(test)]
mod tests;
