//! An account that is followed by one proof, and those who follow it.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::follower::{FollowEvent, Follower};
use crate::model::{Account, BackendId, Credentials, Hint, Mailbox, Snapshot};
use crate::watch::directive::DirectiveSender;
use crate::watch::hints::Hints;
use crate::watch::ledger::Consequence;
use crate::watch::watcher::{WatchedMailbox, in_order};

/// An account that is followed by one proof.
#[derive(Debug)]
pub(super) struct Followed {
    pub(super) account: Account,
    pub(super) backend: BackendId,
    pub(super) credentials: Credentials,
    pub(super) followers: Mutex<Vec<Follower>>,
    /// A mailbox is wanted that the connection does not watch.
    pub(super) more: Notify,
    /// For a connection of its own.
    pub(super) hints: Hints,
    pub(super) directive: DirectiveSender,
    /// The account's watcher is listened to.
    listens: AtomicBool,
    /// Whether that one watches all that is wanted; `None` until it has looked once more.
    watched: Mutex<Option<bool>>,
    /// It has changed. A channel of tokio's would take 330 bytes in place of 40.
    watched_changed: Notify,
    /// Cancelled when the last follower has gone.
    pub(super) left: CancellationToken,
}

impl Followed {
    /// What this first one follows.
    pub(super) fn new(
        account: Account,
        backend: BackendId,
        credentials: Credentials,
        follower: Follower,
    ) -> Self {
        Self {
            account,
            backend,
            credentials,
            followers: Mutex::new(vec![follower]),
            more: Notify::new(),
            hints: Hints::default(),
            directive: DirectiveSender::default(),
            listens: AtomicBool::new(false),
            watched: Mutex::default(),
            watched_changed: Notify::new(),
            left: CancellationToken::new(),
        }
    }

    /// One more follows.
    pub(super) fn join(&self, follower: Follower) {
        let mut followers = self.followers.lock();
        let watched = |mailbox: &Mailbox| followers.iter().any(|other| other.wants(mailbox));
        let more = !follower.mailboxes.iter().all(|wanted| watched(&wanted.mailbox));
        followers.push(follower);
        drop(followers);
        if more || self.listens() {
            self.more.notify_one();
        } else {
            // The others may have been told what this one does not know.
            self.hint(Hint::of_all(self.account.clone()));
        }
    }

    /// Another source has news, for a connection of its own.
    pub(super) fn hint(&self, hint: Hint) {
        self.hints.add(hint);
        self.directive.send_modify(|_| {});
    }

    /// Whether this is the backend of what is followed.
    pub(super) fn is_of(&self, backend: &BackendId) -> bool {
        self.backend.is(backend.as_str())
    }

    /// Hears of the account's watcher from now on, which is to look.
    pub(super) fn begin_to_listen(&self) {
        self.listens.store(true, Ordering::Relaxed);
        self.set_watched(None);
    }

    pub(super) fn stop_listening(&self) {
        self.listens.store(false, Ordering::Relaxed);
    }

    pub(super) fn listens(&self) -> bool {
        self.listens.load(Ordering::Relaxed)
    }

    /// The account's watcher has looked, or ends; whether it watches all that is wanted.
    pub(super) fn is_watched(&self, watched: bool) {
        self.set_watched(Some(watched));
    }

    fn set_watched(&self, watched: Option<bool>) {
        if std::mem::replace(&mut *self.watched.lock(), watched) != watched {
            self.watched_changed.notify_waiters();
        }
    }

    /// Waits until the account's watcher has looked. Whether it watches all that is wanted.
    pub(super) async fn looked(&self) -> bool {
        self.until(|watched| watched.is_some()).await == Some(true)
    }

    /// Waits until the account's watcher watches all that is wanted.
    pub(super) async fn watched(&self) {
        self.until(|watched| watched == Some(true)).await;
    }

    /// Waits until it does not.
    pub(super) async fn unwatched(&self) {
        self.until(|watched| watched != Some(true)).await;
    }

    async fn until(&self, is: fn(Option<bool>) -> bool) -> Option<bool> {
        loop {
            // Before the look: a change behind it is heard.
            let changed = self.watched_changed.notified();
            let watched = *self.watched.lock();
            if is(watched) {
                return watched;
            }
            changed.await;
        }
    }

    /// Whether this is so of all mailboxes that are followed.
    pub(super) fn all_wanted(&self, is: impl Fn(&Mailbox) -> bool) -> bool {
        let followers = self.followers.lock();
        followers.iter().flat_map(|follower| &follower.mailboxes).all(|wanted| is(&wanted.mailbox))
    }

    /// Takes what follows for a mailbox that is known to have this state.
    pub(super) fn hear(&self, mailbox: &Mailbox, follows: Consequence, known: &Snapshot) {
        for Follower { mailboxes, hears, .. } in &mut *self.followers.lock() {
            let followed = mailboxes.iter_mut().find(|followed| followed.mailbox == *mailbox);
            let Some(followed) = followed else { continue };
            if let Some((kind, state)) = followed.hear(follows, known) {
                (hears.0)(FollowEvent::State { mailbox, kind, state });
            }
        }
    }

    /// All mailboxes that are followed, as their followers know them.
    pub(super) fn wanted(&self) -> Vec<WatchedMailbox> {
        let followers = self.followers.lock();
        let all = followers.iter().flat_map(|follower| &follower.mailboxes);
        let mut all: Vec<_> = all.map(|it| (it.mailbox.clone(), it.told)).collect();
        drop(followers);
        all.sort_by(|(one, _), (other, _)| in_order(one, other));
        all.dedup_by(|(one, _), (other, _)| one == other);
        all.into_iter().map(|(mailbox, told)| WatchedMailbox::new(mailbox, told, true)).collect()
    }
}
