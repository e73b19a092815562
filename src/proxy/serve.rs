//! Accepting clients, and one task for each.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::driver::{Driver, Ended};
use super::limits::Place;
use super::{Context, Current};
use crate::config::{Listener, ListenerTls};
use crate::metrics::{Held, SessionEnd};
use crate::net::listen::{accept, canonical};
use crate::net::proxy_protocol::{self, Addresses};
use crate::net::stream::Stream;

/// A client that was accepted, where, and its place among the sessions.
struct Client {
    stream: TcpStream,
    peer: SocketAddr,
    how: Listener,
    place: Place,
}

/// Accepts clients until `stop`, or until nobody is left to say how; returns when their sessions
/// have ended.
///
/// Each session goes by what `how` and `current` are when it begins, and is not touched by what they
/// become.
pub async fn serve(
    listener: TcpListener,
    how: watch::Receiver<Listener>,
    current: Current,
    stop: CancellationToken,
) {
    let sessions = TaskTracker::new();
    let mut changes = how.clone();
    let closed = async { while changes.changed().await.is_ok() {} };
    tokio::pin!(closed);
    loop {
        // Where all places are taken the next client waits here, and others in the system's queue.
        let next = async {
            let client = accept(&listener).await;
            (place(&current).await, client)
        };
        // The place lives in the session's task, so no way to end it can leak the place.
        let (place, (stream, peer)) = tokio::select! {
            () = stop.cancelled() => break,
            () = &mut closed => break,
            next = next => next,
        };
        let how = how.borrow().clone();
        let client = Box::new(Client { stream, peer, how, place });
        sessions.spawn(session(client, current.get(), stop.clone()));
    }
    drop(listener);
    sessions.close();
    sessions.wait().await;
}

/// A place for one more client, once there is one.
async fn place(current: &Current) -> Place {
    loop {
        let context = current.get();
        let limit = context.limits.sessions;
        let left = context.gate.left();
        if let Some(place) = context.gate.enter(limit) {
            return place;
        }
        if context.counters.sessions.hit() {
            tracing::warn!(limit, "[limits] sessions is reached: clients have to wait");
        }
        left.await;
    }
}

async fn session(client: Box<Client>, context: Arc<Context>, stop: CancellationToken) {
    let started = Instant::now();
    let _open = Held::new(&context.metrics.sessions);
    // Boxed, as what follows is too where it is rare: a session spends its life in what is left.
    let (mut driver, _place) = match Box::pin(opened(client, &context, &stop)).await {
        Ok(opened) => opened,
        Err(end) => {
            context.metrics.sessions_ended.of(end).inc();
            return;
        }
    };
    let ended = driver.run(&stop).await;
    context.metrics.sessions_ended.of(SessionEnd::from(&ended)).inc();
    let seconds = started.elapsed().as_secs_f64();
    let (peer, account, [received, sent]) = (driver.peer(), driver.account(), driver.relayed());
    if matches!(ended, Ended::LoginTimeout) {
        context.counters.login_timeout.hit();
    }
    // One line a session; a connection that never logged in is of interest to few.
    match (&account, &ended) {
        (Some(account), Ended::Fault(why)) => {
            tracing::warn!(%peer, %account, seconds, received, sent, why, "session broken off");
        }
        (Some(account), _) => {
            tracing::info!(%peer, %account, seconds, received, sent, ?ended, "session ended");
        }
        (None, _) => tracing::debug!(%peer, seconds, ?ended, "connection ended without login"),
    }
    Box::pin(driver.farewell(&ended)).await;
}

/// What comes before the first word of IMAP, in time; otherwise how it ended.
async fn opened(
    client: Box<Client>,
    context: &Arc<Context>,
    stop: &CancellationToken,
) -> Result<(Box<Driver>, Place), SessionEnd> {
    let Client { stream, peer, how, mut place } = *client;
    let limit = context.limits.handshake_timeout;
    let opening = opening(stream, peer, &how, &mut place, context);
    let opened = tokio::select! {
        () = stop.cancelled() => return Err(SessionEnd::Stopped),
        opened = tokio::time::timeout(limit, opening) => opened,
    };
    match opened {
        Ok(Ok(Some((stream, addresses)))) => {
            let acceptor = (how.tls == ListenerTls::StartTls)
                .then(|| TlsAcceptor::from(Arc::clone(&context.tls)));
            let driver = Driver::new(stream, addresses, acceptor, Arc::clone(context));
            Ok((Box::new(driver), place))
        }
        Ok(Ok(None)) => Err(SessionEnd::TurnedAway),
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "no session came about");
            Err(SessionEnd::Handshake)
        }
        Err(_) => {
            context.counters.handshake_timeout.hit();
            tracing::debug!(%peer, ?limit, "TLS handshake took too long");
            Err(SessionEnd::Handshake)
        }
    }
}

/// The PROXY header, if `peer` is one that sends it, the place among the sessions from the client's
/// address, and TLS. `None`: turned away.
async fn opening(
    mut stream: TcpStream,
    peer: SocketAddr,
    how: &Listener,
    place: &mut Place,
    context: &Context,
) -> io::Result<Option<(Stream, Addresses)>> {
    let mut addresses = Addresses { source: peer, destination: canonical(stream.local_addr()?) };
    if how.proxy_protocol.iter().any(|network| network.contains(peer.ip()))
        && let Some(told) = proxy_protocol::read(&mut stream).await?
    {
        addresses = told;
    }
    let (client, limit) = (addresses.source, context.limits.sessions_per_ip);
    if !place.settle(client.ip(), limit) {
        if context.counters.sessions_per_ip.hit() {
            tracing::warn!(peer = %client, limit, "[limits] sessions_per_ip is reached");
        }
        return Ok(None);
    }
    let stream = match how.tls {
        ListenerTls::StartTls => Stream::Plain(stream),
        ListenerTls::Implicit => {
            let acceptor = TlsAcceptor::from(Arc::clone(&context.tls));
            Stream::Server(Box::new(acceptor.accept(stream).await?))
        }
    };
    Ok(Some((stream, addresses)))
}
