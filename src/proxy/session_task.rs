//! One session: a single task that moves bytes both ways ([`pump`](super::pump)), carries out what
//! the session wants done, and ends it.

mod actions;
mod farewell;
mod login;
mod side_task;
mod waits;

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as Poller, Poll, ready};

use rustls::ServerConfig;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use self::side_task::SideTask;
use super::admission::{AttemptPermit, SessionPermit, WaitingPermit};
use super::context::SessionContext;
use super::ended::Ended;
use super::memory_share::MemoryShare;
use super::pump::{Duplex, Pause, SessionFault};
use super::read_buffer::ReadBuffer;
use super::session_metrics::{self, CountedBytes};
use crate::imap::contract::{Awaited, ClientConnection, Output};
use crate::imap::session::Session;
use crate::imap::tap::Tapped;
use crate::metrics::Phase;
use crate::model::{AcceptedLogin, Account, Registration, RegistrationResult};
use crate::net::account_connections::ConnectionPermit;
use crate::net::backend::Backend;
use crate::net::proxy_protocol::Addresses;
use crate::net::stream::Stream;
use crate::net::tls_stream::TlsStream;

/// What a session before its login may hold in any case, however much all of them hold together.
const SHARE: usize = 8 * 1024;

/// Learns of an accepted login.
pub(super) type LoginSender = oneshot::Sender<(Account, AcceptedLogin)>;

/// One client's session and its two sockets.
pub(super) struct SessionTask {
    context: Arc<SessionContext>,
    session: Tapped,
    duplex: Duplex,
    side_task: Option<SideTask>,
    /// The registration that is being written.
    registering: Option<Pin<Box<dyn Future<Output = RegistrationResult> + Send>>>,
    /// Registrations that are written after it. Nothing for one that has to be refused in its turn.
    registrations: VecDeque<Option<Registration>>,
    /// Whose session it is said to be, once the backend has accepted the login.
    account: Option<Account>,
    /// What was accepted, where it proves whose session it is; with credentials where a registration may
    /// need them.
    login: Option<AcceptedLogin>,
    /// Whose session it is, where that is proven.
    proven: Option<Account>,
    /// Learns of that login.
    reports_to: Option<LoginSender>,
    addresses: Addresses,
    /// The backend that was last chosen.
    chosen: Backend,
    /// Wraps the client's connection after STARTTLS.
    start_tls: Option<Arc<ServerConfig>>,
    /// The client's connection changes its form once all that is said has left.
    switch: Option<Switch>,
    counted: CountedBytes,
    share: MemoryShare,
    /// When the login that is under way was tried.
    tried_at: Option<Instant>,
    /// The try that the backend is asked about.
    attempt: Option<AttemptPermit>,
    /// Whom the client claims to be in it, as far as that is known before the login.
    trying_as: Option<Account>,
    /// The client is gone; the try is finished without it.
    abandoned: bool,
    /// Held to the end by who is logged in: among all sessions, and among the account's connections.
    places: Option<(SessionPermit, Option<ConnectionPermit>)>,
    /// Armed while a peer takes no bytes.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Armed while the client is held up until this is said.
    awaited: Option<(Awaited, Pin<Box<Sleep>>)>,
    close: bool,
    /// The program is stopping: the session ends when nothing is under way.
    draining: bool,
}

#[derive(Clone, Copy)]
enum Switch {
    Tls,
    Compression,
}

impl SessionTask {
    /// A session on a connection whose handshake is done, or comes with STARTTLS, which `start_tls`
    /// is for.
    pub(super) fn new(
        mut stream: Stream,
        addresses: Addresses,
        start_tls: Option<Arc<ServerConfig>>,
        context: Arc<SessionContext>,
    ) -> Self {
        stream.keep_little(true);
        let Addresses { source, destination } = addresses;
        let connection = ClientConnection {
            secure: start_tls.is_none(),
            tag_prefix: format!("mc{:016x}x", rand::random::<u64>()),
            // As Dovecot names them (login_trusted_networks).
            id_fields: vec![
                ("x-originating-ip", source.ip().to_string()),
                ("x-originating-port", source.port().to_string()),
                ("x-connected-ip", destination.ip().to_string()),
                ("x-connected-port", destination.port().to_string()),
            ],
        };
        let (profile, secure) = (context.profile(), connection.secure);
        let session = Session::new(Arc::clone(&profile), connection);
        let session = Tapped::new(session, context.taps.as_ref(), &profile, secure);
        let share = MemoryShare::new(Arc::clone(&context.metrics));
        Self {
            session,
            chosen: context.backends.default(),
            context,
            duplex: Duplex::new(stream, profile.longest_response()),
            side_task: None,
            registering: None,
            registrations: VecDeque::new(),
            account: None,
            login: None,
            proven: None,
            reports_to: None,
            addresses,
            start_tls,
            switch: None,
            counted: CountedBytes::default(),
            share,
            tried_at: None,
            attempt: None,
            trying_as: None,
            abandoned: false,
            places: None,
            stalled: None,
            awaited: None,
            close: false,
            draining: false,
        }
    }

    /// The same; `login` learns who is logged in.
    #[must_use]
    pub(super) fn reporting(self, login: Option<LoginSender>) -> Self {
        Self { reports_to: login, ..self }
    }

    /// Runs the session of a user who is logged in to its end.
    pub(super) async fn run(&mut self, stop: &CancellationToken) -> Ended {
        tokio::select! {
            ended = poll_fn(|cx| self.poll(cx, false)) => ended.unwrap_or(Ended::Closed),
            () = stop.cancelled() => Box::pin(self.drain()).await,
        }
    }

    /// Runs the session until the user is logged in, or to an end before that. `wait` is its place
    /// meanwhile.
    pub(super) async fn log_in(
        &mut self,
        wait: &WaitingPermit,
        stop: &CancellationToken,
    ) -> Option<Ended> {
        let deadline = Instant::now() + self.context.limits.login_timeout;
        let deadline = tokio::time::sleep_until(deadline);
        tokio::pin!(deadline);
        loop {
            let trying = self.attempt.is_some();
            wait.tries(trying);
            tokio::select! {
                ended = poll_fn(|cx| {
                    let ended = self.poll(cx, true);
                    if ended.is_pending() && self.attempt.is_some() != trying {
                        return Poll::Ready(None);
                    }
                    ended.map(Some)
                }) => {
                    if let Some(ended) = ended {
                        return ended;
                    }
                }
                () = stop.cancelled() => return Some(Ended::Stopped),
                () = wait.over() => return Some(Ended::Evicted),
                () = &mut deadline => return Some(Ended::LoginTimeout),
            }
        }
    }

    /// Lets the commands that are under way end, within the grace time.
    async fn drain(&mut self) -> Ended {
        self.draining = true;
        let grace = self.context.limits.shutdown_grace;
        match tokio::time::timeout(grace, poll_fn(|cx| self.poll(cx, false))).await {
            Ok(ended) => ended.unwrap_or(Ended::Stopped),
            Err(_) => Ended::Stopped,
        }
    }

    /// The client, as far as is known where it is.
    pub(super) fn peer(&self) -> SocketAddr {
        self.addresses.source
    }

    /// Whose session it is said to be, once the backend has accepted the login.
    pub(super) fn account(&self) -> Option<Account> {
        self.account.clone()
    }

    /// Bytes that went from the client to the backend, and the other way.
    pub(super) fn relayed(&self) -> [u64; 2] {
        [
            self.duplex.client.inbound.relayed,
            self.duplex.backend.as_ref().map_or(0, |backend| backend.inbound.relayed),
        ]
    }

    /// Ready with the end, or with `None` when the user is logged in and only that was waited for.
    fn poll(&mut self, cx: &mut Poller<'_>, until_login: bool) -> Poll<Option<Ended>> {
        let most = self.context.limits.session_memory;
        let kept = self.share.all(Phase::Session);
        self.session.spare(kept > most);
        self.duplex.begin(kept, most);
        loop {
            // There is no connection to the client to move bytes on before this has ended.
            if matches!(self.side_task, Some(SideTask::Handshake(_))) {
                ready!(self.poll_side_task(cx));
            }
            if let Some(switch) = self.switch {
                match self.duplex.poll_written(cx, &mut self.session) {
                    Poll::Pending => return self.poll_stall(cx, true),
                    Poll::Ready(Err(error)) => {
                        return Poll::Ready(Some(SessionFault::Client(error).into()));
                    }
                    Poll::Ready(Ok(())) => {}
                }
                self.switch = None;
                if let Err(fault) = self.switch(switch) {
                    return Poll::Ready(Some(fault.into()));
                }
                continue;
            }
            let duplex = self.duplex.poll_move(cx, &mut self.session);
            if std::mem::take(&mut self.duplex.moved) {
                // A peer that takes bytes slowly still takes them.
                self.stalled = None;
            }
            self.count();
            if self.holds_too_much() {
                let words = b"* BYE There is no memory for so long a command just now\r\n";
                self.session.output.to_client.extend_from_slice(words);
                // Its farewell may take a while. A try that is under way counts as failed.
                self.session.forget();
                self.duplex.client.inbound.buffer = ReadBuffer::default();
                (self.duplex.backend, self.side_task, self.attempt) = (None, None, None);
                self.count();
                return Poll::Ready(Some(Ended::Dismissed));
            }
            match duplex {
                Ok(Pause::Action) => self.act(),
                Ok(pause) => {
                    if self.poll_side_task(cx).is_ready()
                        || self.poll_registering(cx).is_ready()
                        || self.poll_awaited(cx).is_ready()
                    {
                        continue;
                    }
                    if until_login && self.session.is_relaying() {
                        return Poll::Ready(None);
                    }
                    if self.draining && self.is_quiet() {
                        return Poll::Ready(Some(Ended::Stopped));
                    }
                    if let Some(ended) = self.ended() {
                        return Poll::Ready(Some(ended));
                    }
                    if let Pause::Turn = pause {
                        // It is woken again behind all tasks that have something to do.
                        let _ = pin!(tokio::task::yield_now()).poll(cx);
                        return Poll::Pending;
                    }
                    // A client that has hung up waits for the backend to do so, but not for ever.
                    let stalled =
                        matches!(pause, Pause::Stalled) || self.duplex.client.inbound.ended;
                    return self.poll_stall(cx, stalled);
                }
                Err(fault) => {
                    if let SessionFault::Backend(_) = fault {
                        self.unanswered_mailbox();
                    }
                    return Poll::Ready(Some(fault.into()));
                }
            }
        }
    }

    /// Adds what has happened since the last time to what is counted for all sessions.
    fn count(&mut self) {
        let Output { over, answered, .. } = &mut self.session.output;
        self.context.count(std::mem::take(over), self.account.as_ref());
        let metrics = &self.context.metrics;
        session_metrics::answered(metrics, std::mem::take(answered));
        let relayed = self.relayed();
        self.counted.relayed(metrics, relayed);
        if let Some(totals) = self.duplex.client.stream.totals() {
            self.counted.compressed(metrics, totals);
        }
        let held = self.duplex.held() + self.session.held();
        let SessionContext { limits, counters, .. } = &*self.context;
        if self.session.is_relaying() {
            let (most, hits) = (limits.session_memory, &counters.session_memory);
            let held = held + self.duplex.unwritten();
            if self.share.set(Phase::Session, held, most, hits) {
                tracing::warn!(
                    target: "mailchime::proxy::session_memory_reached",
                    limit = most,
                    "[limits] session_memory is reached; mailchime reads less at once and refuses \
                     COMPRESS"
                );
            }
        } else {
            let (most, hits) = (limits.login_memory, &counters.login_memory);
            if self.share.set(Phase::Login, held, most, hits) {
                tracing::warn!(
                    target: "mailchime::proxy::login_memory_reached",
                    limit = most,
                    "[limits] login_memory is reached; clients that send long commands before \
                     login get a BYE"
                );
            }
        }
    }

    /// Whether it holds more than its share before its login, while login_memory is used up.
    fn holds_too_much(&self) -> bool {
        !self.session.is_relaying()
            && self.duplex.held() + self.session.held() > SHARE
            && self.share.all(Phase::Login) > self.context.limits.login_memory
    }

    /// Changes the form of the client's connection, now that nothing is under way on it.
    fn switch(&mut self, switch: Switch) -> Result<(), SessionFault> {
        // What came already was sent in the old form, which nobody may take for the new one.
        if !self.duplex.client.inbound.buffer.is_empty() {
            return Err(SessionFault::Bound(
                "bytes came before the connection had changed its form",
            ));
        }
        let stream = std::mem::replace(&mut self.duplex.client.stream, Stream::Taken);
        match (switch, stream, &self.start_tls) {
            (Switch::Compression, stream, _) => self.duplex.client.stream = stream.deflated(),
            (Switch::Tls, Stream::Plain(stream), Some(config)) => {
                let limit = self.context.limits.handshake_timeout;
                let config = Arc::clone(config);
                self.side_task = Some(SideTask::Handshake(Box::pin(async move {
                    match tokio::time::timeout(limit, TlsStream::accept(stream, &config)).await {
                        Ok(result) => result.map(|stream| Stream::Server(Box::new(stream))),
                        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "TLS handshake")),
                    }
                })));
            }
            (Switch::Tls, ..) => {
                return Err(SessionFault::Bound("STARTTLS where there is TLS already"));
            }
        }
        Ok(())
    }

    /// Whether nothing would be lost if the session ended now.
    fn is_quiet(&self) -> bool {
        let duplex = [Some(&self.duplex.client), self.duplex.backend.as_ref()];
        self.session.is_idle()
            && self.session.output.to_client.is_empty()
            && !self.duplex.is_client_behind()
            && duplex.into_iter().flatten().all(|peer| peer.inbound.buffer.is_empty())
    }

    /// Whether the session is over, now that nothing moves.
    fn ended(&self) -> Option<Ended> {
        let written = self.session.output.to_client.is_empty();
        if self.close {
            return written.then_some(Ended::Dismissed);
        }
        match &self.duplex.backend {
            Some(backend) if self.session.is_relaying() => {
                // Behind LOGOUT a registration may be on its way yet: see `finish_registrations`.
                (backend.inbound.ended && backend.inbound.buffer.is_empty() && written)
                    .then_some(Ended::Closed)
            }
            // A client that has said all it will say still gets the answers to that. A try that is
            // finished without its client goes on.
            _ => {
                let finishing = self.abandoned && self.attempt.is_some();
                let ended = self.duplex.client.inbound.ended && self.session.awaits_client();
                (ended && written && self.side_task.is_none() && !finishing)
                    .then_some(Ended::Closed)
            }
        }
    }
}

impl fmt::Debug for SessionTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionTask").field("session", &self.session).finish_non_exhaustive()
    }
}
