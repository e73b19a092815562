//! What a session wants done, and what came of it.

use std::collections::VecDeque;
use std::io;
use std::task::{Context as Poller, Poll, ready};

use tokio::time::Instant;

use super::super::handshake::handshake_failed;
use super::super::pump::{Endpoint, Side};
use super::side_task::Finished;
use super::{SessionTask, Switch};
use crate::imap::contract::{Action, Authenticated, ProvenIdentity};
use crate::model::{AcceptedLogin, RegistrationResult, SessionEvent, Timestamp};
use crate::net::stream::Stream;

impl SessionTask {
    /// Carries out what the session wants done.
    pub(super) fn act(&mut self) {
        while let Some(action) = self.session.output.actions.pop_front() {
            match action {
                Action::StartTls => self.switch = Some(Switch::Tls),
                Action::Compress => self.switch = Some(Switch::Compression),
                Action::Failed(failure) => self.failed(failure),
                Action::Connect(account) => self.connect(account),
                Action::Admit(account) => self.admit(account.as_ref()),
                Action::Seen(offered) => self.chosen.saw(offered),
                Action::LoggedIn(authenticated) => self.logged_in(authenticated),
                // The identities may be others than when the session began.
                Action::Register(checked) => {
                    let route = self.session.renewed(self.context.profile());
                    let registration = route.map(|route| checked.under(route));
                    self.registrations.push_back(registration);
                    self.register();
                }
                Action::Close => self.close = true,
            }
        }
        // Most sessions have had all of theirs after the login.
        self.session.output.actions = VecDeque::new();
    }

    /// Takes note of who is logged in.
    fn logged_in(&mut self, authenticated: Authenticated) {
        let Authenticated { claimed, proven } = authenticated;
        let reports_to = self.reports_to.take();
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
            if let Some(reports_to) = reports_to {
                let _ = reports_to.send((account.clone(), login.clone()));
            }
            self.proven = Some(account.clone());
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

    /// The session of a user who was logged in has ended: it may have changed mailboxes. Of one that the queue
    /// has no room for, the next look learns.
    pub(in crate::proxy) fn report_end(&mut self) {
        if let Some(account) = self.proven.take() {
            let _ = self.context.events.try_send(SessionEvent::Ended { account });
        }
    }

    /// Begins to write the first registration that waits, if none is being written.
    fn register(&mut self) {
        while self.registering.is_none()
            && let Some(registration) = self.registrations.pop_front()
        {
            match registration.zip(self.login.clone()) {
                Some((registration, login)) => {
                    let registrar = self.context.registrar.clone();
                    self.registering = Some(Box::pin(registrar.register(registration, login)));
                }
                None => self.session.registered(RegistrationResult::Unavailable),
            }
        }
    }

    /// Ready when a registration is written, or cannot be.
    pub(super) fn poll_registering(&mut self, cx: &mut Poller<'_>) -> Poll<()> {
        let Some(registering) = &mut self.registering else { return Poll::Pending };
        let result = ready!(registering.as_mut().poll(cx));
        self.session.registered(result);
        self.registering = None;
        self.register();
        Poll::Ready(())
    }

    /// Ready when what the session waits for before its login has come.
    pub(super) fn poll_side_task(&mut self, cx: &mut Poller<'_>) -> Poll<()> {
        let Some(side_task) = &mut self.side_task else { return Poll::Pending };
        let finished = ready!(side_task.poll(cx));
        self.side_task = None;
        match finished {
            Finished::Asked(seen) => self.asked(seen),
            Finished::Reserved(reserved) => self.reserved(reserved),
            Finished::Connected(connected) => self.connected(connected),
            Finished::Handshaken(handshaken) => self.handshaken(handshaken),
            Finished::RefusalDue => self.session.release(),
        }
        Poll::Ready(())
    }

    fn handshaken(&mut self, handshaken: io::Result<Stream>) {
        match handshaken {
            Ok(mut stream) => {
                stream.keep_little(true);
                self.duplex.client = Endpoint::new(stream, Side::Client);
                self.session.secured();
            }
            Err(error) => {
                let peer = self.addresses.source;
                handshake_failed(peer, &error, &self.context.counters);
                tracing::debug!(
                    target: "mailchime::proxy::tls_handshake_failed",
                    %peer, %error, "TLS handshake failed"
                );
                self.close = true;
            }
        }
    }
}
