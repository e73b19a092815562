//! What is known of new mail beyond its mailbox, on its way into the pushes that may carry it. A push waits for it
//! for a moment, and goes without where it does not come.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::model::{Change, ChangeKind, Mailbox, PREVIEW_WAIT, Preview};

/// For how long a preview is kept for subscriptions that cannot be read.
const KEPT: Duration = Duration::from_secs(30);

/// The newest mail that a push is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::push) struct NewestMail {
    pub(in crate::push) mailbox: Mailbox,
    pub(in crate::push) preview: Preview,
}

/// The last preview of each mailbox of an account, or that one is awaited.
#[derive(Debug, Default)]
pub(super) struct Previews(HashMap<Mailbox, PreviewState>);

/// What is known of the newest mail of a mailbox.
#[derive(Clone, Debug)]
pub(super) enum PreviewState {
    /// It comes by then, or not at all.
    Awaited(Instant),
    /// It is known, and kept until then.
    Known(Preview, Instant),
}

impl NewestMail {
    /// Both in one push.
    pub(super) fn after(mut self, before: Option<Self>) -> Self {
        if let Some(before) = before.filter(|before| before.mailbox == self.mailbox) {
            let messages = &mut self.preview.messages;
            *messages = messages.saturating_add(before.preview.messages);
        }
        self
    }
}

impl Previews {
    /// Of this mailbox another mail is the newest now, unless it is a change of another kind.
    pub(super) fn changed(&mut self, change: &Change, now: Instant) {
        if change.kind != ChangeKind::NewMail {
            return;
        }
        match change.preview_follows {
            true => {
                let awaited = PreviewState::Awaited(now + PREVIEW_WAIT);
                self.0.insert(change.mailbox.clone(), awaited);
            }
            false => drop(self.0.remove(&change.mailbox)),
        }
    }

    /// This is known of it, or nothing will be.
    pub(super) fn came(&mut self, mailbox: &Mailbox, preview: Option<Preview>, now: Instant) {
        match preview {
            Some(preview) => {
                let known = PreviewState::Known(preview, now + KEPT);
                self.0.insert(mailbox.clone(), known);
            }
            None => drop(self.0.remove(mailbox)),
        }
    }

    /// The subscriptions have it, or know that there is none.
    pub(super) fn told(&mut self, mailbox: &Mailbox) {
        self.0.remove(mailbox);
    }

    /// The subscriptions have it, if it has come.
    pub(super) fn told_if_known(&mut self, mailbox: &Mailbox) {
        if let Some(PreviewState::Known(..)) = self.0.get(mailbox) {
            self.0.remove(mailbox);
        }
    }

    pub(super) fn of(&self, mailbox: &Mailbox) -> Option<&PreviewState> {
        self.0.get(mailbox)
    }

    /// Forgets what is kept no longer; returns when there will be more to forget.
    pub(super) fn forget(&mut self, now: Instant) -> Option<Instant> {
        self.0.retain(|_, state| now < state.until());
        self.0.values().map(PreviewState::until).min()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl PreviewState {
    fn until(&self) -> Instant {
        match self {
            Self::Awaited(until) | Self::Known(_, until) => *until,
        }
    }
}
