//! How an account is followed: by its watcher, where that watches all that is wanted, else by a connection of its
//! own.
//!
//! ```text
//!   a look is asked for ──▶ the watcher has looked at all that is wanted ──▶ listen ── it does no more ──┐
//!     ▲    │ there is none, or it has not                                                               │
//!     │    ▼                                                                                             │
//!     └── a connection of its own, until a watcher watches all ◀─────────────────────────────────────────┘
//! ```

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::FollowersInner;
use super::connection::{FollowedEnd, PROOF, until_proof};
use super::followed::Followed;
use super::follower::{FollowEvent, Follower};
use crate::model::seconds;
use crate::net::backoff::Backoff;
use crate::watch::WatchContext;

/// For the account's watcher to look. It is listened to meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);

impl Followed {
    /// Follows until the last follower has gone, or the credentials are refused.
    pub(super) async fn run(self: Arc<Self>, followers: Arc<FollowersInner>) {
        let FollowersInner { context, uncounted, .. } = &*followers;
        let backoff = Backoff::new(context.config.retry_min, context.config.retry_max);
        let (mut own, mut failures) = (None, 0);
        loop {
            let began = Instant::now();
            // What is waited for is boxed, each by itself: a stream has room for that which it is at.
            let is_watched_here = self.left.run_until_cancelled(self.is_watched_here(context));
            let end = match Box::pin(is_watched_here).await {
                None => FollowedEnd::Left,
                Some(true) => {
                    own = None;
                    Box::pin(self.by_watcher(context)).await
                }
                Some(false) => {
                    let own = own.get_or_insert_with(|| Box::new(self.watcher(context, uncounted)));
                    Box::pin(self.connection(context, own)).await
                }
            };
            let account = &self.account;
            match end {
                FollowedEnd::Left => return,
                FollowedEnd::Anew => failures = 0,
                FollowedEnd::Refused(why) => {
                    tracing::info!(
                        target: "mailchime::watch::stream_refused",
                        %account, why,
                        "what a user opened streams with does not count any more; mailchime ends these \
                         streams"
                    );
                    context.followed.forget(&self);
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
                        %account, why, wait_seconds = seconds(wait),
                        "the connection for a user's streams ended; mailchime connects again, and the \
                         streams hear then what has changed"
                    );
                    if !Box::pin(self.waits(wait)).await {
                        return;
                    }
                }
            }
        }
    }

    /// Waits for so long, and no longer than until the account's watcher watches all that is wanted. Whether
    /// somebody still follows.
    async fn waits(&self, wait: Duration) -> bool {
        tokio::select! {
            () = sleep(wait) => true,
            () = self.watched() => true,
            () = self.left.cancelled() => false,
        }
    }

    /// Has the account's watcher look, and listens to it from then on. Whether there is one here, and it watches
    /// all that is wanted.
    async fn is_watched_here(&self, context: &WatchContext) -> bool {
        self.begin_to_listen();
        let looked = async { context.followed.look(&self.account).await && self.looked().await };
        let watched = timeout(PATIENCE, looked).await.unwrap_or(false);
        if !watched {
            self.stop_listening();
        }
        watched
    }

    /// Listens to the account's watcher. The credentials are proved now and then all the same.
    async fn by_watcher(&self, context: &WatchContext) -> FollowedEnd {
        let backoff = Backoff::new(context.config.retry_min, context.config.retry_max);
        let (mut failures, mut wait) = (0, until_proof());
        loop {
            let backend = match self.backend_of(context) {
                Ok(backend) => backend,
                Err(end) => return end,
            };
            tokio::select! {
                () = self.left.cancelled() => return FollowedEnd::Left,
                () = self.more.notified() => return FollowedEnd::Anew,
                () = self.unwatched() => return FollowedEnd::Anew,
                () = context.backends.moved(Some(&self.account), &backend) => {
                    return FollowedEnd::Anew;
                }
                () = sleep(wait) => {}
            }
            match Box::pin(self.prove(context, &backend)).await {
                Ok(()) => (failures, wait) = (0, until_proof()),
                Err(FollowedEnd::Failed(why)) => {
                    failures += 1;
                    wait = backoff.wait(failures, rand::random());
                    tracing::info!(
                        target: "mailchime::watch::stream_not_proved",
                        account = %self.account, why, wait_seconds = seconds(wait),
                        "could not learn whether what a user opened streams with still counts; mailchime \
                         keeps these streams open and tries again"
                    );
                }
                Err(end) => return end,
            }
        }
    }
}
