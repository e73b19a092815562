//! Mailboxes that somebody follows for a while, as their own user: the streams of the API do.
//!
//! ```text
//!   follow ──▶ Followed: an account, by one proof ──▶ what its watcher sees, or a connection of its own
//!                  │ compares each look with what each follower was told
//!                  ▼
//!              FollowEvent ──▶ its followers
//! ```
//!
//! Where the account has a watcher here that watches all mailboxes that are wanted, its followers hear what that
//! one sees, and there is no other connection. Else followers who have proved themselves by the same credentials
//! share a connection, which the backend lets see what it lets that user see. It is none of the supervisor's, and
//! it ends with its last follower. Nothing is on disk, and nobody is pushed. The credentials are proved anew now
//! and then.

mod connection;
mod followed;
mod follower;
mod following;
mod table;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::followed::Followed;
pub use self::follower::{FollowEvent, FollowListener};
use self::follower::{FollowedMailbox, Follower};
pub(super) use self::table::{FollowedTable, LookRequest};
use super::WatchContext;
use crate::metrics::Metrics;
use crate::model::FollowRequest;

/// Has mailboxes followed. Clones have the same followers.
#[derive(Clone, Debug)]
pub struct Followers(Arc<FollowersInner>);

#[derive(Debug)]
struct FollowersInner {
    context: Arc<WatchContext>,
    /// They are no watchers of the supervisor, and not counted as such.
    uncounted: Arc<Metrics>,
    last_number: AtomicU64,
    tasks: TaskTracker,
}

/// Mailboxes are followed while this lives.
#[derive(Debug)]
pub struct FollowGuard {
    followers: Followers,
    followed: Arc<Followed>,
    number: u64,
}

// === impl Followers ===

impl Followers {
    /// Nobody follows anything yet. `context` is what watchers share.
    pub fn new(context: Arc<WatchContext>) -> Self {
        Self(Arc::new(FollowersInner {
            context,
            uncounted: Arc::default(),
            last_number: AtomicU64::new(0),
            tasks: TaskTracker::new(),
        }))
    }

    /// Tells `hears` what differs from what the follower knows, before this returns, and then of what happens,
    /// until the guard is dropped or the backend refuses the credentials. Where the backend is away, a follower
    /// hears of what happens meanwhile when it is back.
    pub fn follow(&self, request: FollowRequest, hears: FollowListener) -> FollowGuard {
        let FollowRequest { account, backend, credentials, mailboxes } = request;
        let number = self.0.last_number.fetch_add(1, Ordering::Relaxed) + 1;
        let mailboxes = mailboxes.into_iter().map(|wanted| FollowedMailbox::new(wanted, &hears));
        let follower = Follower { number, mailboxes: mailboxes.collect(), hears };
        let of_account = account.clone();
        let is_same =
            |known: &Followed| known.credentials.same_as(&credentials) && known.is_of(&backend);
        let followed = self.0.context.followed.join(&of_account, is_same, |known| match known {
            Some(followed) => {
                followed.join(follower);
                Arc::clone(followed)
            }
            None => {
                let new = Followed::new(account, backend.clone(), credentials.clone(), follower);
                let followed = Arc::new(new);
                self.0.tasks.spawn(Arc::clone(&followed).run(Arc::clone(&self.0)));
                followed
            }
        });
        FollowGuard { followers: self.clone(), followed, number }
    }

    /// Waits for `stop`, and then until all connections have ended.
    pub async fn run(self, stop: CancellationToken) {
        stop.cancelled().await;
        self.0.context.followed.end();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl Drop for FollowGuard {
    fn drop(&mut self) {
        self.followers.0.context.followed.leave(&self.followed, self.number);
    }
}
