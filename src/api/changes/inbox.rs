//! What waits to be told on one stream: the newest state of each mailbox. Putting something in never waits,
//! however slowly the client reads.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::position::{self, MailboxName};
use crate::model::{ChangeKind, Mailbox, Snapshot};

/// Takes what happens to the mailboxes of a stream.
#[derive(Debug)]
pub struct StreamInbox {
    inner: Mutex<InboxInner>,
    woken: Notify,
}

#[derive(Debug)]
struct InboxInner {
    mailboxes: Box<[StreamMailbox]>,
    /// Since when something waits.
    waits_since: Option<Instant>,
    refused: bool,
}

/// A mailbox, and what the client knows of it.
#[derive(Debug)]
struct StreamMailbox {
    mailbox: Mailbox,
    name: MailboxName,
    told: Snapshot,
    /// What it is to hear.
    waiting: Option<(ChangeKind, Snapshot)>,
}

/// Something that a client is to hear.
#[derive(Debug, PartialEq)]
pub(super) struct StreamChange {
    pub(super) mailbox: Mailbox,
    pub(super) kind: ChangeKind,
    pub(super) state: Snapshot,
    /// The id of the states that the client knows with it; the last of several that go at once has one.
    pub(super) id: Option<String>,
}

impl StreamInbox {
    /// Of a client that knows these states.
    pub(super) fn new(states: impl Iterator<Item = (Mailbox, Snapshot)>) -> Arc<Self> {
        let mailboxes = states.map(|(mailbox, told)| {
            let name = position::name(&mailbox);
            StreamMailbox { mailbox, name, told, waiting: None }
        });
        let mailboxes = mailboxes.collect();
        let inner = InboxInner { mailboxes, waits_since: None, refused: false };
        Arc::new(Self { inner: Mutex::new(inner), woken: Notify::new() })
    }

    /// The mailbox has this state now; `kind` says what has happened, where a client must know it.
    pub fn state(&self, mailbox: &Mailbox, kind: Option<ChangeKind>, state: Snapshot) {
        let mut inner = self.inner.lock();
        let InboxInner { mailboxes, waits_since, .. } = &mut *inner;
        let Some(of) = mailboxes.iter_mut().find(|of| of.mailbox == *mailbox) else { return };
        let before = of.waiting.map(|(kind, _)| kind);
        match kind.max(before) {
            Some(kind) => of.waiting = Some((kind, state)),
            None => of.told = state,
        }
        if kind.is_some() {
            waits_since.get_or_insert_with(Instant::now);
            self.woken.notify_one();
        }
    }

    /// What the stream was opened with does not count any more.
    pub fn refused(&self) {
        self.inner.lock().refused = true;
        self.woken.notify_one();
    }

    /// What the client is to hear, which it knows then. Whether its proof is refused.
    pub(super) fn take(&self) -> (Vec<StreamChange>, bool) {
        let mut inner = self.inner.lock();
        let InboxInner { mailboxes, waits_since, refused } = &mut *inner;
        let mut changes = Vec::new();
        if waits_since.take().is_some() {
            for of in &mut *mailboxes {
                let Some((kind, state)) = of.waiting.take() else { continue };
                of.told = state;
                changes.push(StreamChange { mailbox: of.mailbox.clone(), kind, state, id: None });
            }
            if let Some(last) = changes.last_mut() {
                last.id = Some(id(mailboxes));
            }
        }
        (changes, *refused)
    }

    /// What the client knows, and its id.
    pub(super) fn told(&self) -> (Vec<(Mailbox, Snapshot)>, String) {
        let inner = self.inner.lock();
        let states = inner.mailboxes.iter().map(|of| (of.mailbox.clone(), of.told)).collect();
        (states, id(&inner.mailboxes))
    }

    /// Since when something waits that was not taken.
    pub(super) fn waits_since(&self) -> Option<Instant> {
        self.inner.lock().waits_since
    }

    /// Waits for something new. Cancel safe.
    pub(super) async fn woken(&self) {
        self.woken.notified().await;
    }
}

fn id(mailboxes: &[StreamMailbox]) -> String {
    position::id(mailboxes.iter().map(|of| (of.name, of.told)))
}

#[cfg(test)]
mod tests {
    use super::super::position::ClientPosition;
    use super::*;

    fn state(messages: u64) -> Snapshot {
        Snapshot { messages: Some(messages), ..Snapshot::default() }
    }

    #[test]
    fn a_slow_reader_gets_the_newest_state_of_each_mailbox() {
        let (inbox, other) = (Mailbox::inbox(), Mailbox::new("Lists"));
        let known = [inbox.clone(), other.clone()].into_iter().map(|mailbox| (mailbox, state(0)));
        let stream = StreamInbox::new(known);
        assert!(stream.take().0.is_empty() && stream.waits_since().is_none());
        stream.state(&inbox, Some(ChangeKind::NewMail), state(1));
        stream.state(&other, Some(ChangeKind::Quiet), state(7));
        stream.state(&inbox, Some(ChangeKind::Quiet), state(2));
        stream.state(&inbox, None, state(3));
        stream.state(&Mailbox::new("Strange"), Some(ChangeKind::NewMail), state(9));
        assert!(stream.waits_since().is_some());
        let (changes, refused) = stream.take();
        assert!(!refused && stream.waits_since().is_none() && stream.take().0.is_empty());
        let told: Vec<_> =
            changes.iter().map(|change| (&change.mailbox, change.kind, change.state)).collect();
        assert_eq!(
            told,
            [(&inbox, ChangeKind::NewMail, state(3)), (&other, ChangeKind::Quiet, state(7))]
        );
        // A client that is cut off after the first of them hears both again when it is back.
        assert_eq!(changes[0].id, None);
        let last = ClientPosition::parse(changes[1].id.as_deref().unwrap()).unwrap();
        let states = [&inbox, &other].map(|mailbox| last.state_of(mailbox));
        assert_eq!(states, [Some(state(3)), Some(state(7))]);
    }

    #[tokio::test]
    async fn what_nobody_must_know_waits_for_no_event_and_is_in_the_next_id() {
        let inbox = Mailbox::inbox();
        let stream = StreamInbox::new([(inbox.clone(), state(0))].into_iter());
        stream.state(&inbox, None, state(1));
        assert!(stream.take().0.is_empty());
        assert_eq!(stream.told().0, [(inbox, state(1))]);
        stream.refused();
        stream.woken().await;
        assert!(stream.take().1);
    }
}
