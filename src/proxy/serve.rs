//! Accepting clients, and one task for each.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
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
    let places = Arc::new(Semaphore::new(context.limits.sessions));
    let sessions = TaskTracker::new();
    loop {
        let (stream, peer) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener) => accepted,
        };
        // The permit lives in the session's task, so no way to end it can leak the place.
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!(%peer, limit = context.limits.sessions, "[limits] sessions is reached");
            continue;
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
}
