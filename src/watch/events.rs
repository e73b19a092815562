//! What follows from hints and looks, on its way to `push`.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use super::WatchContext;
use super::ledger::Consequence;
use super::watcher::{SessionEnd, Watcher, in_order};
use crate::model::{Change, ChangeKind, Hint, Mailbox, Preview, Snapshot, WatchEvent};

/// Room for one event on its way to `push`. It is waited for first: a future that holds the event
/// meanwhile would be larger, for each of many accounts.
type EventPermit<'a> = mpsc::Permit<'a, WatchEvent>;

impl Watcher {
    /// Something happened in this mailbox, as far as is known: tells `push` of new mail before it has been
    /// looked at, and has what is to be looked at looked at.
    pub(super) async fn hint(
        &mut self,
        index: usize,
        kind: Option<ChangeKind>,
        state: &Snapshot,
    ) -> Result<Consequence, SessionEnd> {
        let context = Arc::clone(&self.context);
        let watched = &mut self.mailboxes[index];
        let uid_next = watched.ledger.known().uid_next;
        let follows = watched.ledger.hint(kind, state, || context.next_id());
        watched.due |= follows.urgency().is_some();
        let preview_follows = self.begins_preview(index, &follows, uid_next);
        self.tell_news(index, follows, preview_follows).await?;
        Ok(follows)
    }

    /// Another source says that something happened in this mailbox. An account on demand tells `push` what follows; a
    /// connection that is held looks, and believes no numbers.
    pub(super) async fn event(
        &mut self,
        index: usize,
        hint: &Hint,
    ) -> Result<Consequence, SessionEnd> {
        let context = Arc::clone(&self.context);
        let watched = &mut self.mailboxes[index];
        let kind = hint.event.kind();
        let uid_next = watched.ledger.known().uid_next;
        // The last look may know better.
        let follows = match watched.looked_at.is_some_and(|looked_at| hint.seen_at < looked_at) {
            true => {
                watched.ledger.hears_of(kind);
                Consequence::LookDue(kind)
            }
            // The connection that is held looks at once.
            false if !self.on_demand => {
                watched.ledger.hint(Some(kind), &Snapshot::default(), || context.next_id())
            }
            false => watched.ledger.event(hint.event, &hint.state, || context.next_id()),
        };
        watched.due |= follows.urgency().is_some();
        let preview_follows = self.begins_preview(index, &follows, uid_next);
        self.tell_news(index, follows, preview_follows).await?;
        Ok(follows)
    }

    /// The same as [`Self::tell`] of what is no look. Where nothing follows, nobody learns anything by it.
    async fn tell_news(
        &self,
        index: usize,
        follows: Consequence,
        preview_follows: bool,
    ) -> Result<(), SessionEnd> {
        match follows {
            Consequence::Nothing => Ok(()),
            follows => self.tell(index, follows, preview_follows).await,
        }
    }

    /// Tells those who follow the mailbox what follows from a look or from news. Tells `push`, if that concerns
    /// it, and whether a preview is going to.
    pub(super) async fn tell(
        &self,
        index: usize,
        follows: Consequence,
        preview_follows: bool,
    ) -> Result<(), SessionEnd> {
        let watched = &self.mailboxes[index];
        let known = watched.ledger.known();
        if let Some(instead) = &self.instead {
            (instead.0)(&watched.mailbox, follows, known);
            return Ok(());
        }
        let whose = (&self.account, self.backend.id());
        self.context.followed.saw(whose, &watched.mailbox, (follows, known));
        if matches!(follows, Consequence::Nothing | Consequence::LookDue(_)) {
            return Ok(());
        }
        let room = self.context.room().await?;
        let account = self.account.clone();
        let backend = self.backend.id().clone();
        let mailbox = self.mailboxes[index].mailbox.clone();
        let seen_at = Instant::now();
        let unread_before = self.mailboxes[index].ledger.unread_before();
        let event = match follows {
            Consequence::Nothing | Consequence::LookDue(_) => return Ok(()),
            Consequence::Announced { id } => {
                let kind = ChangeKind::NewMail;
                self.status.event(kind);
                let snapshot = None;
                let change = Change {
                    account,
                    backend,
                    mailbox,
                    kind,
                    id,
                    snapshot,
                    seen_at,
                    unread_before,
                    preview_follows,
                };
                WatchEvent::Announced(change)
            }
            Consequence::Changed { kind, id, state } => {
                self.status.event(kind);
                let snapshot = Some(state);
                let change = Change {
                    account,
                    backend,
                    mailbox,
                    kind,
                    id,
                    snapshot,
                    seen_at,
                    unread_before,
                    preview_follows,
                };
                WatchEvent::Changed(change)
            }
            Consequence::Rebased { id, state: snapshot } => {
                WatchEvent::Rebased { account, backend, mailbox, id, snapshot }
            }
        };
        room.send(event);
        Ok(())
    }

    /// Tells `push` what is known of the newest mail of a mailbox; `None` if nothing will be.
    pub(super) async fn tell_preview(
        &self,
        mailbox: Mailbox,
        preview: Option<Preview>,
    ) -> Result<(), SessionEnd> {
        let room = self.context.room().await?;
        let (account, backend) = (self.account.clone(), self.backend.id().clone());
        room.send(WatchEvent::Previewed { account, backend, mailbox, preview });
        Ok(())
    }

    pub(super) fn place(&self, mailbox: &Mailbox) -> Option<usize> {
        self.mailboxes.binary_search_by(|watched| in_order(&watched.mailbox, mailbox)).ok()
    }
}

impl WatchContext {
    async fn room(&self) -> Result<EventPermit<'_>, SessionEnd> {
        self.events.reserve().await.map_err(|_| SessionEnd::Stop)
    }
}
