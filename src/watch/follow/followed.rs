//! An account that is followed by one proof, and those who follow it.

use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::follower::{FollowEvent, Follower};
use crate::model::{Account, BackendId, Credentials, Hint, Mailbox, MailboxEvent, Snapshot};
use crate::watch::hints::Hints;
use crate::watch::ledger::Consequence;
use crate::watch::watcher::{Directive, WatchedMailbox, in_order};

/// An account that is followed by one proof.
#[derive(Debug)]
pub(super) struct Followed {
    pub(super) account: Account,
    pub(super) backend: BackendId,
    pub(super) credentials: Credentials,
    pub(super) followers: Mutex<Vec<Follower>>,
    /// A mailbox is wanted that the connection does not watch.
    pub(super) more: Notify,
    pub(super) hints: Hints,
    pub(super) directive: watch::Sender<Directive>,
    /// Cancelled when the last follower has gone.
    pub(super) left: CancellationToken,
}

impl Followed {
    /// One more follows.
    pub(super) fn join(&self, follower: Follower) {
        let mut followers = self.followers.lock();
        let watched = |mailbox: &Mailbox| followers.iter().any(|other| other.wants(mailbox));
        let more = !follower.mailboxes.iter().all(|wanted| watched(&wanted.mailbox));
        followers.push(follower);
        drop(followers);
        if more {
            self.more.notify_one();
        } else {
            // The others may have been told what this one does not know.
            self.look();
        }
    }

    /// Has all mailboxes looked at.
    pub(super) fn look(&self) {
        self.hints.add(Hint {
            account: self.account.clone(),
            mailbox: None,
            event: MailboxEvent::FlagsSet,
            state: Snapshot::default(),
            seen_at: Instant::now(),
        });
        self.directive.send_modify(|_| {});
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
