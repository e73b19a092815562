//! Mailboxes that somebody follows for a while, as their own user: the streams of the API do.
//!
//! ```text
//!   follow ──▶ Followed: an account, by one proof ──▶ one connection: EXAMINE, IDLE, NOTIFY, STATUS
//!                  │ compares each look with what each follower was told
//!                  ▼
//!              FollowEvent ──▶ its followers
//! ```
//!
//! Followers of one account who have proved themselves by the same credentials share a connection, which the
//! backend lets see what it lets that user see. It is none of the supervisor's: nothing of it is on disk, nobody
//! is pushed for it, and it ends with its last follower. The credentials are proved anew now and then.

mod connection;
mod followed;
mod follower;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::followed::Followed;
pub use self::follower::{FollowEvent, FollowListener};
use self::follower::{FollowedMailbox, Follower};
use super::WatchContext;
use super::hints::Hints;
use crate::metrics::Metrics;
use crate::model::{Account, FollowRequest};

/// Has mailboxes followed. Clones have the same followers.
#[derive(Clone, Debug)]
pub struct Followers(Arc<FollowersInner>);

#[derive(Debug)]
struct FollowersInner {
    context: Arc<WatchContext>,
    /// They are no watchers of the supervisor, and not counted as such.
    uncounted: Arc<Metrics>,
    followed: Mutex<HashMap<Account, Vec<Arc<Followed>>>>,
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
            followed: Mutex::default(),
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
        let mut all = self.0.followed.lock();
        let of_account = all.entry(account.clone()).or_default();
        let known = of_account.iter().find(|followed| {
            followed.credentials.same_as(&credentials) && followed.backend.is(backend.as_str())
        });
        let followed = match known {
            Some(followed) => {
                followed.join(follower);
                Arc::clone(followed)
            }
            None => {
                let followed = Arc::new(Followed {
                    account,
                    backend,
                    credentials,
                    followers: Mutex::new(vec![follower]),
                    more: Notify::new(),
                    hints: Hints::default(),
                    directive: watch::Sender::default(),
                    left: CancellationToken::new(),
                });
                of_account.push(Arc::clone(&followed));
                let (followers, following) = (self.clone(), Arc::clone(&followed));
                self.0.tasks.spawn(async move { following.run(&followers).await });
                followed
            }
        };
        FollowGuard { followers: self.clone(), followed, number }
    }

    /// Waits for `stop`, and then until all connections have ended.
    pub async fn run(self, stop: CancellationToken) {
        stop.cancelled().await;
        let all = std::mem::take(&mut *self.0.followed.lock());
        all.into_values().flatten().for_each(|followed| followed.left.cancel());
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl Drop for FollowGuard {
    fn drop(&mut self) {
        let Self { followers, followed, number } = self;
        // Nobody joins meanwhile.
        let mut all = followers.0.followed.lock();
        let mut left = followed.followers.lock();
        left.retain(|follower| follower.number != *number);
        if left.is_empty() {
            forget(&mut all, followed);
            followed.left.cancel();
        }
    }
}

/// Nobody joins this one any more.
fn forget(all: &mut HashMap<Account, Vec<Arc<Followed>>>, followed: &Arc<Followed>) {
    if let Some(of_account) = all.get_mut(&followed.account) {
        of_account.retain(|other| !Arc::ptr_eq(other, followed));
        if of_account.is_empty() {
            all.remove(&followed.account);
        }
    }
}
