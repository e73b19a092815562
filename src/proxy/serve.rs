//! Accepting clients, and one task for each.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Context;
use super::driver::{Driver, Ended};
use crate::net::listen::accept;
use crate::net::stream::Stream;

/// Accepts clients with implicit TLS until `stop`; returns when their sessions have ended.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    context: Arc<Context>,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let sessions = TaskTracker::new();
    loop {
        // Where all places are taken the next client waits here, and others in the system's queue.
        let next = async {
            let client = accept(&listener).await;
            (place(&context).await, client)
        };
        let (place, (stream, peer)) = tokio::select! {
            () = stop.cancelled() => break,
            next = next => next,
        };
        let (acceptor, context, stop) = (acceptor.clone(), Arc::clone(&context), stop.clone());
        sessions.spawn(async move {
            let _place = place;
            session(stream, peer, acceptor, context, stop).await;
        });
    }
    drop(listener);
    sessions.close();
    sessions.wait().await;
}

/// A place for one more client. It is given back by dropping it, which no end of a session can leave
/// out.
async fn place(context: &Context) -> Option<OwnedSemaphorePermit> {
    if let Ok(place) = Arc::clone(&context.places).try_acquire_owned() {
        return Some(place);
    }
    let limit = context.limits.sessions;
    tracing::warn!(limit, "[limits] sessions is reached: clients have to wait");
    // Nobody closes the semaphore, so there is a place in the end.
    Arc::clone(&context.places).acquire_owned().await.ok()
}

async fn session(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    context: Arc<Context>,
    stop: CancellationToken,
) {
    let started = Instant::now();
    let handshake = tokio::time::timeout(context.limits.handshake_timeout, acceptor.accept(stream));
    let stream = tokio::select! {
        () = stop.cancelled() => return,
        result = handshake => match result {
            Ok(Ok(stream)) => Stream::Server(Box::new(stream)),
            Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => return tracing::debug!(%peer, "TLS handshake took too long"),
        },
    };
    let mut driver = Driver::new(stream, peer, None, context);
    let ended = driver.run(&stop).await;
    let seconds = started.elapsed().as_secs_f64();
    let (account, [received, sent]) = (driver.account(), driver.relayed());
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
    driver.farewell(&ended).await;
}
