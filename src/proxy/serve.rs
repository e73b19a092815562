//! Accepting clients, and one task for each.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::DuplexStream;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admission::WaitingPermit;
use super::context::{CurrentContext, SessionContext};
use super::ended::Ended;
use super::handshake::{handshake_failed, handshake_too_slow};
use super::session_task::{LoginSender, SessionTask};
use crate::config::{ListenerConfig, ListenerTls};
use crate::metrics::{Held, SessionEnd};
use crate::model::seconds;
use crate::net::listen::{accept, canonical};
use crate::net::proxy_protocol::{self, Addresses};
use crate::net::stream::Stream;
use crate::net::tls_stream::TlsStream;

/// A client that was accepted, and its place among those that are not logged in.
pub(super) struct AcceptedClient {
    pub(super) arrival: Arrival,
    pub(super) wait: WaitingPermit,
    /// Learns whose session it is.
    pub(super) login: Option<LoginSender>,
}

/// How a client came.
pub(super) enum Arrival {
    /// To a listener, which says what comes before the first word of IMAP.
    Listener { stream: TcpStream, peer: SocketAddr, how: ListenerConfig },
    /// From this process: nothing comes before that.
    Local { stream: DuplexStream, addresses: Addresses },
}

/// Accepts clients until `stop`, or until nobody is left to say how; returns when their sessions
/// have ended.
///
/// Each session goes by what `how` and `current` are when it begins, and is not touched by what they
/// become. However many clients there are, the next one is accepted.
pub async fn serve(
    listener: TcpListener,
    how: watch::Receiver<ListenerConfig>,
    current: CurrentContext,
    stop: CancellationToken,
) {
    let sessions = TaskTracker::new();
    let mut changes = how.clone();
    let closed = async { while changes.changed().await.is_ok() {} };
    tokio::pin!(closed);
    loop {
        let make_room = || current.get().admission.make_room();
        let (stream, peer) = tokio::select! {
            () = stop.cancelled() => break,
            () = &mut closed => break,
            next = accept(&listener, make_room) => next,
        };
        let (how, context) = (how.borrow().clone(), current.get());
        // The place lives in the session's task, so no way to end it can leak the place.
        let wait = context.admission.enter(peer.ip(), &context.limits, &context.counters);
        let arrival = Arrival::Listener { stream, peer, how };
        let client = Box::new(AcceptedClient { arrival, wait, login: None });
        sessions.spawn(session(client, context, stop.clone()));
    }
    drop(listener);
    sessions.close();
    sessions.wait().await;
}

/// A client's session, from its first byte to its last registration.
pub(super) async fn session(
    client: Box<AcceptedClient>,
    context: Arc<SessionContext>,
    stop: CancellationToken,
) {
    let started = Instant::now();
    let _open = Held::new(&context.metrics.sessions);
    // Boxed, as what follows is too where it is rare: a session spends its life in what is left.
    let Some(mut task) = Box::pin(logged_in(client, &context, &stop)).await else { return };
    let account = |task: &SessionTask| {
        task.account().map_or_else(|| "?".to_owned(), |account| account.to_string())
    };
    tracing::info!(
        target: "mailchime::proxy::session_began",
        peer = %task.peer(), account = account(&task), "session began"
    );
    let ended = task.run(&stop).await;
    task.report_end();
    context.metrics.sessions_ended.of(SessionEnd::from(&ended)).inc();
    let seconds = seconds(started.elapsed());
    let (peer, account, [received, sent]) = (task.peer(), account(&task), task.relayed());
    match &ended {
        Ended::Fault(why) => {
            tracing::warn!(
                target: "mailchime::proxy::session_broken",
                %peer, account, seconds, received, sent, why, "session broken off"
            );
        }
        _ => tracing::info!(
            target: "mailchime::proxy::session_ended",
            %peer, account, seconds, received, sent, ?ended, "session ended"
        ),
    }
    Box::pin(task.farewell(&ended)).await;
    Box::pin(task.finish_registrations(&stop)).await;
}

/// The session of a client that has logged in. `None`: it ended before that.
async fn logged_in(
    client: Box<AcceptedClient>,
    context: &Arc<SessionContext>,
    stop: &CancellationToken,
) -> Option<Box<SessionTask>> {
    let started = Instant::now();
    let ends = |end: SessionEnd| context.metrics.sessions_ended.of(end).inc();
    let (mut task, wait) = match opened(client, context, stop).await {
        Ok(opened) => opened,
        Err(end) => {
            ends(end);
            return None;
        }
    };
    let Some(ended) = task.log_in(&wait, stop).await else { return Some(task) };
    ends(SessionEnd::from(&ended));
    if matches!(ended, Ended::LoginTimeout) {
        context.counters.login_timeout.hit();
    }
    // It is of interest to few.
    let (peer, seconds) = (task.peer(), seconds(started.elapsed()));
    tracing::debug!(
        target: "mailchime::proxy::connection_ended",
        %peer, seconds, ?ended, "connection ended without login"
    );
    tokio::select! {
        () = task.farewell(&ended) => {}
        () = wait.over(), if !matches!(ended, Ended::Evicted) => {}
    }
    drop(wait);
    task.finish(stop).await;
    None
}

/// What comes before the first word of IMAP, in time; otherwise how it ended.
async fn opened(
    client: Box<AcceptedClient>,
    context: &Arc<SessionContext>,
    stop: &CancellationToken,
) -> Result<(Box<SessionTask>, WaitingPermit), SessionEnd> {
    let AcceptedClient { arrival, wait, login } = *client;
    let (stream, peer, how) = match arrival {
        Arrival::Listener { stream, peer, how } => (stream, peer, how),
        Arrival::Local { stream, addresses } => {
            let (stream, context) = (Stream::Local(stream), Arc::clone(context));
            let task = SessionTask::new(stream, addresses, None, context).reporting(login);
            return Ok((Box::new(task), wait));
        }
    };
    let limit = context.limits.handshake_timeout;
    let opening = tokio::time::timeout(limit, opening(stream, peer, &how, &wait, context));
    let opened = tokio::select! {
        () = stop.cancelled() => return Err(SessionEnd::Stopped),
        () = wait.over() => return Err(SessionEnd::Evicted),
        opened = opening => opened,
    };
    match opened {
        Ok(Ok((stream, addresses))) => {
            let start_tls = (how.tls == ListenerTls::StartTls).then(|| Arc::clone(&context.tls));
            let task = SessionTask::new(stream, addresses, start_tls, Arc::clone(context));
            Ok((Box::new(task), wait))
        }
        Ok(Err(error)) => {
            handshake_failed(peer, &error, &context.counters);
            tracing::debug!(
                target: "mailchime::proxy::connection_failed",
                %peer, %error, "the connection ended before its session began"
            );
            Err(SessionEnd::Handshake)
        }
        Err(_) => {
            handshake_too_slow(peer, limit, &context.counters);
            Err(SessionEnd::Handshake)
        }
    }
}

/// The PROXY header, if `peer` is one that sends it, and TLS. `wait` learns the client's address.
async fn opening(
    mut stream: TcpStream,
    peer: SocketAddr,
    how: &ListenerConfig,
    wait: &WaitingPermit,
    context: &SessionContext,
) -> io::Result<(Stream, Addresses)> {
    let mut addresses = Addresses { source: peer, destination: canonical(stream.local_addr()?) };
    if how.proxy_protocol.iter().any(|network| network.contains(peer.ip()))
        && let Some(told) = proxy_protocol::read(&mut stream).await?
    {
        addresses = told;
        wait.comes_from(told.source.ip());
    }
    let stream = match how.tls {
        ListenerTls::StartTls => Stream::Plain(stream),
        ListenerTls::Implicit => {
            Stream::Server(Box::new(TlsStream::accept(stream, &context.tls).await?))
        }
    };
    Ok((stream, addresses))
}
