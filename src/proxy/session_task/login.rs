//! One login of a session: its try is reserved, its backend dialled, its user let in or not.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::admission::{AttemptPermit, LimitHit, SessionsFull};
use super::super::context::SessionContext;
use super::super::login_refused::login_refused;
use super::super::pump::{Endpoint, Side};
use super::SessionTask;
use super::side_task::SideTask;
use crate::imap::capability::Capabilities;
use crate::imap::contract::LoginFailure;
use crate::imap::contract::{BackendTraits, NOT_TAKEN, UNAVAILABLE};
use crate::imap::refusal::Refusal;
use crate::model::Account;
use crate::net::backend::{ConnectError, Connected};
use crate::net::proxy_protocol::ProxiedClient;

/// For the backend to decide on a login whose client is gone. It must be longer than a backend waits
/// before it refuses a wrong password: Dovecot up to 17 seconds.
const FINISH: Duration = Duration::from_secs(60);

/// For the backend to say what it offers.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

impl SessionTask {
    /// Lets the backend decide on the try that is under way, if there is one, now that its client is
    /// gone: who hangs up before the answer has guessed all the same.
    pub(in crate::proxy) async fn finish(mut self: Box<Self>, stop: &CancellationToken) {
        if self.attempt.is_none() {
            return;
        }
        self.abandoned = true;
        // Its client has waited for as long as a backend may take, and did not hang up.
        let waited = std::mem::take(&mut self.close);
        let tried_for = self.tried_at.filter(|_| waited).map_or(Duration::ZERO, |at| at.elapsed());
        let limit = FINISH.saturating_sub(tried_for);
        self.duplex.client = Endpoint::gone(Side::Client);
        self.session.output.to_client = Vec::new();
        self.session.abandoned();
        let decided = poll_fn(|cx| {
            let ended = self.poll(cx, true);
            if ended.is_ready() || self.attempt.is_none() { Poll::Ready(()) } else { Poll::Pending }
        });
        tokio::select! {
            decided = tokio::time::timeout(limit, decided) => {
                if decided.is_err() {
                    let why = "its client is gone, and the backend has not decided";
                    self.unanswered(why.to_owned());
                    if waited {
                        self.attempt.take().into_iter().for_each(AttemptPermit::no_guess);
                    }
                }
            }
            // Nobody guesses by having the program stopped.
            () = stop.cancelled() => {
                if let Some(attempt) = self.attempt.take() {
                    attempt.no_guess();
                }
            }
        }
    }

    /// Begins a login, whose account may not be known yet: connects to its backend as soon as there
    /// may be another try.
    pub(super) fn connect(&mut self, account: Option<Account>) {
        let backends = &self.context.backends;
        self.chosen = match &account {
            None => backends.default(),
            // The routes may be others than when the session began.
            Some(account) => match backends.of(account) {
                Ok(backend) => backend,
                Err(_) => return self.session.refused(),
            },
        };
        self.tried_at = Some(Instant::now());
        self.trying_as = account;
        match self.chosen.seen() {
            Some(seen) if !self.session.fits(&seen) => {
                let (backend, longest) = (self.chosen.clone(), self.context.limits.capability_size);
                self.side_task = Some(SideTask::Ask(Box::pin(async move {
                    backend.seen_anew(PROBE_TIMEOUT, longest).await
                })));
            }
            _ => self.reserve(),
        }
    }

    /// Waits until the login may be tried.
    pub(super) fn reserve(&mut self) {
        let (context, account) = (Arc::clone(&self.context), self.trying_as.clone());
        let peer = self.addresses.source.ip();
        self.side_task = Some(SideTask::Reserve(Box::pin(async move {
            let SessionContext { admission, limits, counters, .. } = &*context;
            admission.try_in(peer, account.as_ref(), limits, counters).await
        })));
    }

    /// What the backend offers now, which was in the way of the login.
    pub(super) fn asked(&mut self, seen: Option<Arc<Capabilities>>) {
        // One that does not answer is to be asked by the login itself.
        if seen.is_some_and(|seen| !self.session.fits(&seen)) {
            self.session.turned_away(NOT_TAKEN);
        } else {
            self.reserve();
        }
    }

    /// The login may be tried, or meets a limit.
    pub(super) fn reserved(&mut self, reserved: Result<AttemptPermit, LimitHit>) {
        match reserved {
            Ok(mut attempt) => {
                attempt.ask();
                self.attempt = Some(attempt);
                self.tried_at = Some(Instant::now());
                let (context, backend) = (Arc::clone(&self.context), self.chosen.clone());
                let tls = self.duplex.client.stream.client_tls();
                let client = ProxiedClient { addresses: self.addresses, tls };
                let longest = context.limits.capability_size;
                self.side_task = Some(SideTask::Connect(Box::pin(async move {
                    context.backends.connect(&backend, client, longest).await
                })));
            }
            Err(over) => self.session.turned_away(over.answer()),
        }
    }

    /// The backend is reached, or cannot be.
    pub(super) fn connected(&mut self, connected: Result<Connected, ConnectError>) {
        match connected {
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
        }
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

    /// Lets whom the backend has accepted in, if there is room.
    pub(super) fn admit(&mut self, account: Option<&Account>) {
        if let Some(attempt) = self.attempt.take() {
            attempt.no_guess();
        }
        let context = Arc::clone(&self.context);
        let SessionContext { admission, limits, counters, backends, .. } = &*context;
        let peer = self.addresses.source;
        if self.abandoned || self.close {
            self.session.turned_away("NO [UNAVAILABLE] Nobody is there");
            return;
        }
        let session = match admission.session(peer.ip(), limits) {
            Ok(session) => session,
            Err(SessionsFull::All) => {
                let limit = limits.sessions;
                if counters.sessions.hit() {
                    tracing::warn!(
                        target: "mailchime::proxy::sessions_reached",
                        limit, "[limits] sessions is reached; further logins get NO [UNAVAILABLE]"
                    );
                }
                let answer = "NO [UNAVAILABLE] The server has no room, try again later";
                self.session.turned_away(answer);
                return;
            }
            Err(SessionsFull::Origin) => {
                let limit = limits.sessions_per_ip;
                if counters.sessions_per_ip.hit() {
                    tracing::warn!(
                        target: "mailchime::proxy::sessions_per_ip_reached",
                        %peer, limit,
                        "[limits] sessions_per_ip is reached; further logins from this address get \
                         NO [LIMIT]"
                    );
                }
                self.session.turned_away("NO [LIMIT] Too many sessions from your address");
                return;
            }
        };
        match account.map(|account| backends.place(account)).transpose() {
            Ok(connection) => {
                self.places = Some((session, connection));
                self.session.admitted();
            }
            Err(_) => self.session.turned_away("NO [LIMIT] Too many connections of this account"),
        }
    }

    /// Takes note of a login that failed, and lets its answer wait.
    pub(super) fn failed(&mut self, failure: LoginFailure) {
        self.duplex.backend = None;
        let (attempt, peer) = (self.attempt.take(), self.addresses.source.ip());
        let SessionContext { admission, counters, .. } = &*self.context;
        match failure {
            LoginFailure::Refused(account, refusal) if refusal.may_be_a_guess() => {
                match attempt {
                    // It counts as failed.
                    Some(attempt) => drop(attempt),
                    None => admission.failed(peer, account.as_ref()),
                }
                login_refused(peer, account.as_ref());
            }
            LoginFailure::Refused(account, refusal) => {
                attempt.into_iter().for_each(AttemptPermit::no_guess);
                let (backend, account) = (self.chosen.name(), account.or(self.trying_as.take()));
                if let Some(left_out) = counters.undecided.due(&backend) {
                    let account = account.map(|account| account.to_string());
                    let why = match refusal {
                        Refusal::Barred => "somebody has to change something",
                        _ => "it may pass",
                    };
                    tracing::warn!(
                        target: "mailchime::proxy::login_undecided",
                        backend,
                        account,
                        why,
                        left_out,
                        "the backend refused a login, and not for its name or password; see the \
                         backend's log"
                    );
                }
            }
            LoginFailure::Unavailable(why) => {
                attempt.into_iter().for_each(AttemptPermit::no_guess);
                self.unanswered(why);
            }
            LoginFailure::TurnedAway => attempt.into_iter().for_each(AttemptPermit::no_guess),
        }
        // Nothing is a way to try faster.
        let tried_at = self.tried_at.take().unwrap_or_else(Instant::now);
        let at = tried_at + self.context.limits.failure_delay;
        self.side_task = Some(SideTask::Refuse(Box::pin(tokio::time::sleep_until(at))));
    }

    /// Takes note of a backend that has not answered a login.
    pub(super) fn unanswered(&self, why: String) {
        let backend = self.chosen.name();
        match self.context.counters.unanswered.due(&backend) {
            Some(left_out) => tracing::warn!(
                target: "mailchime::proxy::login_unanswered",
                backend, why, left_out, "the backend did not answer a login; see the backend's log"
            ),
            None => tracing::debug!(
                target: "mailchime::proxy::login_unanswered",
                backend, why, "the backend did not answer a login; see the backend's log"
            ),
        }
    }
}
