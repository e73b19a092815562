//! The connection of an account that is followed.

use std::sync::Arc;
use std::time::Duration;

use super::followed::Followed;
use super::follower::{FollowEvent, Follower};
use super::{Followers, FollowersInner, forget};
use crate::imap::refusal::Refusal;
use crate::imap::responses::printable;
use crate::metrics::Held;
use crate::net::backend::{Backend, LoggedIn, LoginError};
use crate::net::backoff::Backoff;
use crate::watch::WatchContext;
use crate::watch::source::imap::connection::ImapConnection;
use crate::watch::source::imap::health::ConnectionSlot;
use crate::watch::status::{StatusCell, WatcherState};
use crate::watch::watcher::{InsteadOfPush, SessionEnd, Watcher};

/// From a login to the next one, which proves that the credentials still count; less up to a tenth.
const PROOF: Duration = Duration::from_hours(1);

/// Why a connection ended, or never was.
enum FollowedEnd {
    /// Nobody follows any more.
    Left,
    /// Another one is wanted at once.
    Anew,
    /// The backend's answer, or why the proof is none any more.
    Refused(String),
    Failed(String),
}

impl Followed {
    pub(super) async fn run(self: Arc<Self>, followers: &Followers) {
        let FollowersInner { context, uncounted, .. } = &*followers.0;
        let _counted = Held::new(&context.metrics.stream_connections);
        let status = StatusCell::new(uncounted, WatcherState::Starting);
        let (account, hints) = (self.account.clone(), self.hints.clone());
        let directive = self.directive.subscribe();
        let mut watcher = Watcher::new(account, Arc::clone(context), directive, hints, status);
        let hears = Arc::clone(&self);
        watcher.instead = Some(InsteadOfPush(Arc::new(move |mailbox, follows, known| {
            hears.hear(mailbox, follows, known);
        })));
        (watcher.on_demand, watcher.previews) = (false, None);
        let backoff = Backoff::new(context.config.retry_min, context.config.retry_max);
        let mut failures = 0;
        loop {
            let began = tokio::time::Instant::now();
            let account = &self.account;
            match Box::pin(self.connection(context, &mut watcher)).await {
                FollowedEnd::Left => return,
                FollowedEnd::Anew => failures = 0,
                FollowedEnd::Refused(why) => {
                    tracing::info!(
                        target: "mailchime::watch::stream_refused",
                        %account, why,
                        "what a user opened streams with does not count any more; mailchime ends these \
                         streams"
                    );
                    forget(&mut followers.0.followed.lock(), &self);
                    for Follower { hears, .. } in &*self.followers.lock() {
                        (hears.0)(FollowEvent::Refused);
                    }
                    return;
                }
                FollowedEnd::Failed(why) => {
                    failures = if began.elapsed() < PROOF / 10 { failures + 1 } else { 1 };
                    let wait = backoff.wait(failures, rand::random());
                    tracing::info!(
                        target: "mailchime::watch::stream_interrupted",
                        %account, why, ?wait,
                        "the connection for a user's streams ended; mailchime connects again, and the \
                         streams hear then what has changed"
                    );
                    let waited = tokio::time::sleep(wait);
                    if self.left.run_until_cancelled(waited).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    /// One connection from login to its end.
    async fn connection(&self, context: &WatchContext, watcher: &mut Watcher) -> FollowedEnd {
        let backend = match context.backends.of(&self.account) {
            Ok(backend) if backend.id().is(self.backend.as_str()) => backend,
            _ => return FollowedEnd::Refused("the account has another backend now".to_owned()),
        };
        let logging_in = self.left.run_until_cancelled(self.log_in(context, &backend)).await;
        let (mut logged_in, _place) = match logging_in {
            None => return FollowedEnd::Left,
            Some(Ok(logged_in)) => logged_in,
            Some(Err(LoginError::Refused { answer, refusal })) if refusal != Refusal::Temporary => {
                return FollowedEnd::Refused(printable(&answer));
            }
            Some(Err(error)) => return FollowedEnd::Failed(error.to_string()),
        };
        let granted = logged_in.capabilities.take();
        let (timeout, longest) = (context.config.answer_timeout, context.response_size);
        let mut connection = ImapConnection::new(logged_in, timeout, longest);
        let health = context.backend_health.of(&backend);
        // All mailboxes are looked at, and compared with what their followers know.
        self.hints.take();
        watcher.mailboxes = self.wanted();
        watcher.faults.forget_refusals();
        watcher.keepalive.begin(&health.keepalive, rand::random());
        watcher.watches_since = None;
        let proof = PROOF.mul_f64(1.0 - rand::random::<f64>() / 10.0);
        let (end, orderly) = tokio::select! {
            Err(end) = watcher.run_session(&mut connection, &health, granted) => match end {
                SessionEnd::Failed(why) => (FollowedEnd::Failed(why), false),
                end => (FollowedEnd::Failed(format!("{end:?}")), true),
            },
            () = self.left.cancelled() => (FollowedEnd::Left, true),
            () = self.more.notified() => (FollowedEnd::Anew, true),
            () = health.wanted() => (FollowedEnd::Anew, true),
            () = tokio::time::sleep(proof) => (FollowedEnd::Anew, true),
            () = context.backends.moved(Some(&self.account), &backend) => (FollowedEnd::Anew, true),
        };
        if orderly {
            Box::pin(connection.log_out()).await;
        } else {
            watcher.learn_from(&connection, &health);
        }
        end
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
