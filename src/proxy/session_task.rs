//! One session: a single task that moves bytes both ways ([`pump`](super::pump)), carries out what
//! the session wants done, and ends it.

mod login;

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as Poller, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::SessionContext;
use super::admission::{AttemptPermit, LimitHit, SessionPermit, WaitingPermit};
use super::handshake::cannot_use_tls;
use super::pump::{Duplex, Endpoint, Pause, SessionFault, Side};
use super::read_buffer::{MemoryShare, ReadBuffer};
use super::register::register;
use super::session_metrics::{self, CountedBytes};
use crate::imap::capability::Capabilities;
use crate::imap::contract::{
    Action, Authenticated, Awaited, BackendTraits, ClientConnection, NOT_TAKEN, Output,
    ProvenIdentity, RegistrationResult, UNAVAILABLE,
};
use crate::imap::session::Session;
use crate::imap::tap::Tapped;
use crate::metrics::Phase;
use crate::model::{AcceptedLogin, Account, Registration, SessionEvent, Timestamp};
use crate::net::backend::{Backend, ConnectError, Connected};
use crate::net::backends;
use crate::net::proxy_protocol::Addresses;
use crate::net::stream::Stream;

/// For a registration to be written before its session's other commands go on. It is answered when that
/// is known.
const STORED: Duration = Duration::from_secs(1);

/// For the last words of a session to arrive, and for the client to hang up.
const FAREWELL: Duration = Duration::from_secs(5);

/// What a session before its login may hold in any case, however much all of them hold together.
const SHARE: usize = 8 * 1024;

/// One client's session and its two sockets.
pub(super) struct SessionTask {
    context: Arc<SessionContext>,
    session: Tapped,
    duplex: Duplex,
    side_task: Option<SideTask>,
    /// Registrations that are written after that of the side_task.
    /// Nothing for one that has to be refused in its turn.
    registrations: VecDeque<Option<Registration>>,
    /// Whose session it is said to be, once the backend has accepted the login.
    account: Option<Account>,
    /// What was accepted, where it proves whose session it is; with credentials where a registration may
    /// need them.
    login: Option<AcceptedLogin>,
    addresses: Addresses,
    /// The backend that was last chosen.
    chosen: Backend,
    /// Wraps the client's connection after STARTTLS.
    acceptor: Option<TlsAcceptor>,
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
    places: Option<(SessionPermit, Option<backends::Place>)>,
    /// Armed while a peer takes no bytes.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Armed while the client is held up until this is said.
    awaited: Option<(Awaited, Pin<Box<Sleep>>)>,
    close: bool,
    /// The program is stopping: the session ends when nothing is under way.
    draining: bool,
}

/// What a session waits for, beside its sockets.
enum SideTask {
    /// What the backend offers rules the login out, and may have changed.
    Ask(Pin<Box<dyn Future<Output = Option<Arc<Capabilities>>> + Send>>),
    /// A login waits until it may be tried.
    Reserve(Pin<Box<dyn Future<Output = Result<AttemptPermit, LimitHit>> + Send>>),
    Connect(Pin<Box<dyn Future<Output = Result<Connected, ConnectError>> + Send>>),
    Register(Pin<Box<dyn Future<Output = RegistrationResult> + Send>>),
    Handshake(Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>),
    /// A refusal waits for its time.
    Refuse(Pin<Box<Sleep>>),
}

#[derive(Clone, Copy)]
enum Switch {
    Tls,
    Compression,
}

/// How a session ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Either side closed its connection, the client by whatever means.
    Closed,
    /// The dialogue ended: LOGOUT before login, or too many errors.
    Dismissed,
    /// No login in time.
    LoginTimeout,
    /// Its place was needed for others, who are not logged in either.
    Evicted,
    /// The program is stopping.
    Stopped,
    /// A socket failed or a bound was hit.
    Fault(String),
}

impl SessionTask {
    /// A session on a connection whose handshake is done, or comes with STARTTLS, which `acceptor`
    /// serves.
    pub(super) fn new(
        mut stream: Stream,
        addresses: Addresses,
        acceptor: Option<TlsAcceptor>,
        context: Arc<SessionContext>,
    ) -> Self {
        stream.keep_little(true);
        let Addresses { source, destination } = addresses;
        let connection = ClientConnection {
            secure: acceptor.is_none(),
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
            registrations: VecDeque::new(),
            account: None,
            login: None,
            addresses,
            acceptor,
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
        let scarce =
            !until_login && self.share.is_over(Phase::Session, self.context.limits.session_memory);
        self.session.spare(scarce);
        self.duplex.begin(scarce);
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
                    if self.poll_side_task(cx).is_ready() || self.poll_awaited(cx).is_ready() {
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
            && self.share.is_over(Phase::Login, self.context.limits.login_memory)
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
        match (switch, stream, &self.acceptor) {
            (Switch::Compression, stream, _) => self.duplex.client.stream = stream.deflated(),
            (Switch::Tls, Stream::Plain(stream), Some(acceptor)) => {
                let limit = self.context.limits.handshake_timeout;
                let handshake = acceptor.accept(stream);
                self.side_task = Some(SideTask::Handshake(Box::pin(async move {
                    match tokio::time::timeout(limit, handshake).await {
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

    fn act(&mut self) {
        while let Some(action) = self.session.output.actions.pop_front() {
            match action {
                Action::StartTls => self.switch = Some(Switch::Tls),
                Action::Compress => self.switch = Some(Switch::Compression),
                Action::Failed(failure) => self.failed(failure),
                Action::Connect(account) => self.connect(account),
                Action::Admit(account) => self.admit(account.as_ref()),
                Action::Seen(offered) => self.chosen.saw(offered),
                Action::LoggedIn(Authenticated { claimed, proven }) => {
                    self.duplex.client.stream.keep_little(false);
                    self.account = claimed;
                    if let Some(account) = &self.account {
                        let unanswered = self.context.unanswered.of(account, Instant::now());
                        self.session.ask_not(unanswered);
                    }
                    let event = proven.map(|ProvenIdentity { account, credentials }| {
                        let peer = self.addresses.source.ip();
                        self.context.admission.logged_in(peer, &account);
                        let takes = self.context.credentials.takes_logins();
                        let credentials = credentials.filter(|_| takes);
                        let (backend, at) = (self.chosen.id().clone(), Timestamp::now());
                        let names_ignore_case = self.chosen.names_ignore_case();
                        let login = AcceptedLogin { backend, credentials, at, names_ignore_case };
                        // For its registrations. Who cannot register needs none.
                        if self.session.offers_push() {
                            self.login = Some(login.clone());
                        }
                        SessionEvent::LoggedIn { account, login }
                    });
                    // Mail does not wait for watchers: a lost event only leaves a parked account
                    // parked until its user's next login.
                    if event.is_some_and(|event| self.context.events.try_send(event).is_err()) {
                        tracing::debug!(
                            target: "mailchime::proxy::login_not_reported",
                            "the queue to the watchers is full; they do not learn of this login"
                        );
                    }
                }
                // The identities may be others than when the session began.
                Action::Register(mut registration) => {
                    let registration = self.session.renewed(self.context.profile()).map(|topic| {
                        registration.subscription.route = topic.into();
                        registration
                    });
                    self.registrations.push_back(registration);
                    self.register();
                }
                Action::Close => self.close = true,
            }
        }
        // Most sessions have had all of theirs after the login.
        self.session.output.actions = VecDeque::new();
    }

    /// Begins to write the first registration that waits, if none is being written.
    fn register(&mut self) {
        while self.side_task.is_none()
            && let Some(registration) = self.registrations.pop_front()
        {
            match registration.zip(self.login.clone()) {
                Some((registration, login)) => {
                    let side_task = register(Arc::clone(&self.context), registration, login);
                    self.side_task = Some(SideTask::Register(Box::pin(side_task)));
                }
                None => self.session.registered(RegistrationResult::Unavailable),
            }
        }
    }

    fn poll_side_task(&mut self, cx: &mut Poller<'_>) -> Poll<()> {
        match &mut self.side_task {
            None => return Poll::Pending,
            Some(SideTask::Ask(ask)) => {
                let seen = ready!(ask.as_mut().poll(cx));
                self.side_task = None;
                // One that does not answer is to be asked by the login itself.
                if seen.is_some_and(|seen| !self.session.fits(&seen)) {
                    self.session.turned_away(NOT_TAKEN);
                } else {
                    self.reserve();
                }
                return Poll::Ready(());
            }
            Some(SideTask::Reserve(reserve)) => {
                let reserved = ready!(reserve.as_mut().poll(cx));
                self.side_task = None;
                match reserved {
                    Ok(mut attempt) => {
                        attempt.ask();
                        self.attempt = Some(attempt);
                        self.tried_at = Some(Instant::now());
                        let (context, backend) = (Arc::clone(&self.context), self.chosen.clone());
                        let addresses = self.addresses;
                        let longest = context.limits.capability_size;
                        self.side_task = Some(SideTask::Connect(Box::pin(async move {
                            context.backends.connect(&backend, addresses, longest).await
                        })));
                    }
                    Err(over) => self.session.turned_away(over.answer()),
                }
                return Poll::Ready(());
            }
            Some(SideTask::Connect(connect)) => match ready!(connect.as_mut().poll(cx)) {
                Ok(Connected { stream, heard, greeted }) => {
                    let mut backend = Endpoint::new(stream, Side::Backend);
                    backend.inbound.buffer.append(&heard);
                    self.duplex.backend = Some(backend);
                    self.session.connected(self.reached(greeted));
                }
                // It decides on these words as on those of a backend that is there.
                Err(ConnectError::Unfit { said, .. }) => {
                    if said.len() > self.context.limits.capability_size {
                        self.context.counters.capability_size.hit();
                    }
                    self.session.connected(self.reached(false));
                    self.session.backend(&said, true);
                    self.session.unavailable("it hung up".to_owned());
                }
                Err(error) => {
                    let unreachable = &self.context.counters.unreachable;
                    match unreachable.due(&self.chosen.name()) {
                        Some(left_out) => tracing::warn!(
                            target: "mailchime::proxy::backend_unreachable",
                            %error, left_out,
                            "could not reach the backend; the client gets NO [UNAVAILABLE]"
                        ),
                        None => tracing::debug!(
                            target: "mailchime::proxy::backend_unreachable",
                            %error, "could not reach the backend; the client gets NO [UNAVAILABLE]"
                        ),
                    }
                    self.session.turned_away(UNAVAILABLE);
                }
            },
            Some(SideTask::Register(register)) => {
                let result = ready!(register.as_mut().poll(cx));
                self.session.registered(result);
                self.side_task = None;
                self.register();
                return Poll::Ready(());
            }
            Some(SideTask::Refuse(time)) => {
                ready!(time.as_mut().poll(cx));
                self.session.release();
            }
            Some(SideTask::Handshake(handshake)) => match ready!(handshake.as_mut().poll(cx)) {
                Ok(mut stream) => {
                    stream.keep_little(true);
                    self.duplex.client = Endpoint::new(stream, Side::Client);
                    self.session.secured();
                }
                Err(error) => {
                    let peer = self.addresses.source;
                    cannot_use_tls(peer, &error, &self.context.counters);
                    tracing::debug!(
                        target: "mailchime::proxy::tls_handshake_failed",
                        %peer, %error, "TLS handshake failed"
                    );
                    self.close = true;
                }
            },
        }
        self.side_task = None;
        Poll::Ready(())
    }

    /// What the session must know of the backend that was chosen.
    fn reached(&self, greeted: bool) -> BackendTraits {
        BackendTraits {
            greeted,
            send_id: self.chosen.takes_id(),
            checks_token_name: self.chosen.checks_token_name(),
            names_ignore_case: self.chosen.names_ignore_case(),
        }
    }

    /// Whether nothing would be lost if the session ended now.
    fn is_quiet(&self) -> bool {
        let duplex = [Some(&self.duplex.client), self.duplex.backend.as_ref()];
        self.session.is_idle()
            && self.session.output.to_client.is_empty()
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
                // Behind LOGOUT a registration may be unanswered yet.
                let answered = self.side_task.is_none();
                (backend.inbound.ended && backend.inbound.buffer.is_empty() && written && answered)
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

    /// Ready when the backend, or the database, has held up the client for too long, and does so no
    /// more.
    fn poll_awaited(&mut self, cx: &mut Poller<'_>) -> Poll<()> {
        let heard = std::mem::take(&mut self.duplex.heard);
        let Some(now) = self.session.awaited() else {
            self.awaited = None;
            return Poll::Pending;
        };
        let limit = match now {
            Awaited::Stored(_) => STORED,
            _ => self.context.limits.answer_timeout,
        };
        let arm = || (now, Box::pin(tokio::time::sleep(limit)));
        let (awaited, timer) = self.awaited.get_or_insert_with(arm);
        if *awaited != now || (heard && now == Awaited::Turn) {
            *awaited = now;
            timer.as_mut().reset(Instant::now() + limit);
        }
        ready!(timer.as_mut().poll(cx));
        self.awaited = None;
        if let Awaited::Stored(_) = now {
            self.session.overdue();
            return Poll::Ready(());
        }
        let backend = self.chosen.name();
        if self.context.counters.answer_timeout.hit() && now != Awaited::Login {
            let account = self.account();
            let account = account.map_or_else(|| "?".to_owned(), |account| account.to_string());
            tracing::warn!(
                target: "mailchime::proxy::answer_timeout_reached",
                backend,
                account,
                limit_s = limit.as_secs(),
                "[limits] answer_timeout is reached; the backend does not answer, and the client's \
                 session goes on"
            );
        }
        if now == Awaited::Login {
            self.unanswered(format!("no answer within {limit:?}"));
        }
        self.unanswered_mailbox();
        self.session.overdue();
        Poll::Ready(())
    }

    /// The backend has hung up, or said nothing for too long: what it was asked for is not asked again
    /// in a session of this account.
    fn unanswered_mailbox(&self) {
        if let (Some(account), Some(mailbox)) = (&self.account, self.session.asked()) {
            let backend = self.chosen.name();
            tracing::warn!(
                target: "mailchime::proxy::mailbox_unanswered",
                %account, %mailbox, backend,
                "the backend closed the connection, or did not answer, when asked for this \
                 mailbox; for a day mailchime does not ask for it when this account registers. See \
                 the backend's log"
            );
            self.context.unanswered.add(account, mailbox, Instant::now());
        }
    }

    fn poll_stall(&mut self, cx: &mut Poller<'_>, stalled: bool) -> Poll<Option<Ended>> {
        if !stalled {
            self.stalled = None;
            return Poll::Pending;
        }
        let write_timeout = self.context.limits.write_timeout;
        let timer = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(write_timeout)));
        ready!(timer.as_mut().poll(cx));
        self.context.counters.write_timeout.hit();
        Poll::Ready(Some(Ended::Fault(format!("a peer took no bytes for {write_timeout:?}"))))
    }

    /// Says goodbye where one can be said, and closes both connections in order; that to the backend
    /// only where no login is under way on it.
    pub(super) async fn farewell(&mut self, ended: &Ended) {
        let words: &[u8] = match ended {
            Ended::LoginTimeout => b"* BYE No login in time\r\n",
            Ended::Evicted => b"* BYE [UNAVAILABLE] Too many connections without a login\r\n",
            Ended::Stopped => b"* BYE The server is shutting down\r\n",
            Ended::Closed | Ended::Dismissed | Ended::Fault(_) => b"",
        };
        if self.duplex.backend.as_ref().is_some_and(|backend| backend.inbound.ended) {
            self.unanswered_mailbox();
        }
        self.session.conclude();
        let client = &mut self.duplex.client;
        let mut rest = std::mem::take(&mut self.session.output.to_client);
        // Not into the middle of a response.
        if self.session.at_response_boundary()
            && self.duplex.backend.as_ref().is_none_or(|backend| backend.inbound.forward == 0)
        {
            rest.extend_from_slice(words);
        }
        let (backend, trying) = (&mut self.duplex.backend, self.attempt.is_some());
        let last_words = async {
            poll_fn(|cx| client.poll_write_own(cx, &mut rest)).await?;
            poll_fn(|cx| client.poll_shutdown(cx)).await?;
            // A login that is under way is still to be decided.
            if let Some(backend) = backend
                && !trying
            {
                poll_fn(|cx| backend.poll_shutdown(cx)).await?;
            }
            // A client that still sends would meet a reset, and might lose our last words to it.
            poll_fn(|cx| client.poll_discard(cx)).await
        };
        // Whoever does not take them in time or is gone already has no use for them.
        // Where its place was needed nobody waits for one.
        let patience = if matches!(ended, Ended::Evicted) { Duration::ZERO } else { FAREWELL };
        let _: Result<io::Result<()>, _> = tokio::time::timeout(patience, last_words).await;
        self.session.finish().await;
    }
}

impl From<SessionFault> for Ended {
    /// A client that hangs up without a word, or whose network does, is no fault.
    fn from(fault: SessionFault) -> Self {
        use io::ErrorKind::{
            BrokenPipe, ConnectionAborted, ConnectionReset, HostUnreachable, NetworkDown,
            NetworkUnreachable, NotConnected, TimedOut, UnexpectedEof, WriteZero,
        };
        match fault {
            SessionFault::Client(error) => match error.kind() {
                BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof
                | WriteZero => Self::Closed,
                HostUnreachable | NetworkDown | NetworkUnreachable | TimedOut => Self::Closed,
                _ => Self::Fault(SessionFault::Client(error).to_string()),
            },
            fault => Self::Fault(fault.to_string()),
        }
    }
}

impl fmt::Debug for SessionTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionTask").field("session", &self.session).finish_non_exhaustive()
    }
}
