//! A connection of its own for an account that is followed, and the login that proves its credentials.

use std::sync::Arc;
use std::time::Duration;

use super::followed::Followed;
use crate::imap::refusal::Refusal;
use crate::imap::responses::printable;
use crate::metrics::{Held, Metrics};
use crate::net::backend::{Backend, LoggedIn, LoginError};
use crate::watch::WatchContext;
use crate::watch::source::imap::connection::ImapConnection;
use crate::watch::source::imap::health::ConnectionSlot;
use crate::watch::status::{StatusCell, WatcherState};
use crate::watch::watcher::{InsteadOfPush, SessionEnd, Watcher};

/// From a login to the next one, which proves that the credentials still count; less up to a tenth.
pub(super) const PROOF: Duration = Duration::from_hours(1);

/// Why a connection ended, or never was, or why the account's watcher is not listened to any more.
pub(super) enum FollowedEnd {
    /// Nobody follows any more.
    Left,
    /// Another look at how the account is to be followed is wanted at once.
    Anew,
    /// The backend's answer, or why the proof is none any more.
    Refused(String),
    Failed(String),
}

impl Followed {
    /// What watches on a connection of its own. It is counted with `uncounted`.
    pub(super) fn watcher(
        self: &Arc<Self>,
        context: &Arc<WatchContext>,
        uncounted: &Arc<Metrics>,
    ) -> Watcher {
        let status = StatusCell::new(uncounted, WatcherState::Starting);
        let (account, hints) = (self.account.clone(), self.hints.clone());
        let directive = self.directive.subscribe();
        let mut watcher = Watcher::new(account, Arc::clone(context), directive, hints, status);
        let hears = Arc::clone(self);
        let instead = InsteadOfPush(Arc::new(move |mailbox, follows, known| {
            hears.hear(mailbox, follows, known);
        }));
        watcher.instead = Some(Box::new(instead));
        (watcher.on_demand, watcher.previews) = (false, None);
        watcher
    }

    /// One connection from login to its end.
    pub(super) async fn connection(
        &self,
        context: &WatchContext,
        watcher: &mut Watcher,
    ) -> FollowedEnd {
        let _counted = Held::new(&context.metrics.stream_connections);
        let backend = match self.backend_of(context) {
            Ok(backend) => backend,
            Err(end) => return end,
        };
        // Boxed: it is large, and soon over.
        let opened = Box::pin(async {
            let (logged_in, place) = self.proven(context, &backend).await?;
            Ok((context.connection(logged_in), place))
        });
        let (mut connection, _place) = match opened.await {
            Ok(opened) => opened,
            Err(end) => return end,
        };
        let health = context.backend_health.of(&backend);
        // All mailboxes are looked at, and compared with what their followers know.
        self.hints.take();
        watcher.mailboxes = self.wanted();
        watcher.faults.forget_refusals();
        watcher.keepalive.begin(&health.keepalive, rand::random());
        watcher.watches_since = None;
        let (end, orderly) = tokio::select! {
            Err(end) = watcher.run_session(&mut connection, &health) => match end {
                SessionEnd::Failed(why) => (FollowedEnd::Failed(why), false),
                end => (FollowedEnd::Failed(format!("{end:?}")), true),
            },
            () = self.left.cancelled() => (FollowedEnd::Left, true),
            () = self.more.notified() => (FollowedEnd::Anew, true),
            () = self.watched() => (FollowedEnd::Anew, true),
            () = health.wanted() => (FollowedEnd::Anew, true),
            () = tokio::time::sleep(until_proof()) => (FollowedEnd::Anew, true),
            () = context.backends.moved(Some(&self.account), &backend) => (FollowedEnd::Anew, true),
        };
        if orderly {
            Box::pin(connection.log_out()).await;
        } else {
            watcher.learn_from(&connection, &health);
        }
        end
    }

    /// Logs in, and out again.
    pub(super) async fn prove(
        &self,
        context: &WatchContext,
        backend: &Backend,
    ) -> Result<(), FollowedEnd> {
        let (logged_in, _place) = self.proven(context, backend).await?;
        context.connection(logged_in).log_out().await;
        Ok(())
    }

    /// The account's backend, where it is still the one that has accepted the credentials.
    pub(super) fn backend_of(&self, context: &WatchContext) -> Result<Backend, FollowedEnd> {
        match context.backends.of(&self.account) {
            Ok(backend) if self.is_of(backend.id()) => Ok(backend),
            _ => Err(FollowedEnd::Refused("the account has another backend now".to_owned())),
        }
    }

    /// A login by the credentials.
    async fn proven(
        &self,
        context: &WatchContext,
        backend: &Backend,
    ) -> Result<(LoggedIn, ConnectionSlot), FollowedEnd> {
        match self.left.run_until_cancelled(self.log_in(context, backend)).await {
            None => Err(FollowedEnd::Left),
            Some(Ok(logged_in)) => Ok(logged_in),
            Some(Err(LoginError::Refused { answer, refusal })) if refusal != Refusal::Temporary => {
                Err(FollowedEnd::Refused(printable(&answer)))
            }
            Some(Err(error)) => Err(FollowedEnd::Failed(error.to_string())),
        }
    }

    async fn log_in(
        &self,
        context: &WatchContext,
        backend: &Backend,
    ) -> Result<(LoggedIn, ConnectionSlot), LoginError> {
        let health = context.backend_health.of(backend);
        let (place, _turn) = health.turn(true).await;
        let (timeout, longest) = (context.config.answer_timeout, context.response_size);
        let credentials = self.credentials.clone();
        let logging_in =
            context.backends.log_in(backend, &self.account, credentials, timeout, longest);
        Ok((logging_in.await?, place))
    }
}

impl WatchContext {
    fn connection(&self, logged_in: LoggedIn) -> ImapConnection {
        ImapConnection::new(logged_in, self.config.answer_timeout, self.response_size)
    }
}

/// How long the credentials count as proven.
pub(super) fn until_proof() -> Duration {
    PROOF.mul_f64(1.0 - rand::random::<f64>() / 10.0)
}
