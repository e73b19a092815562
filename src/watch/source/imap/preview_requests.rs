//! Of which mailboxes the newest mail is to be asked for. Pure, but for the clock of the runtime.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::{Mailbox, PREVIEW_WAIT};

/// Most mailboxes that are asked for after one look. Pushes of others go at once, without.
const AT_ONCE: usize = 4;

/// For so long an account is asked for nothing where the backend does not understand the question, or ends the
/// connection over it.
const PAUSE: Duration = Duration::from_hours(1);

/// What is asked for, of one account.
#[derive(Debug, Default)]
pub(in crate::watch) struct PreviewRequests {
    /// The mailboxes whose new mail some subscription may be told more of.
    pub(in crate::watch) wanted: HashSet<Mailbox>,
    due: Vec<DuePreview>,
    /// There is a connection to ask on.
    connected: bool,
    paused_until: Option<Instant>,
}

/// A mailbox with new mail that is to be asked for.
#[derive(Debug)]
pub(super) struct DuePreview {
    pub(super) mailbox: Mailbox,
    /// The UID of the first new mail, or a lower one.
    pub(super) first: u64,
    since: Instant,
}

impl PreviewRequests {
    /// There is a connection from now on, or none any more.
    pub(super) fn on(&mut self, connected: bool) {
        self.connected = connected;
        if !connected {
            self.due = Vec::new();
        }
    }

    /// Nothing is asked for a time.
    pub(super) fn pause(&mut self) {
        self.paused_until = Some(Instant::now() + PAUSE);
    }

    /// There is new mail in a mailbox whose UIDNEXT was this. Whether it is going to be asked for. `soon`: there
    /// is no connection now, and there will be one in a moment.
    pub(super) fn begin(&mut self, mailbox: &Mailbox, uid_next: Option<u64>, soon: bool) -> bool {
        let now = Instant::now();
        self.paused_until.take_if(|until| *until <= now);
        let asks = (self.connected || soon) && self.paused_until.is_none();
        let Some(first) = uid_next.filter(|_| asks && self.wanted.contains(mailbox)) else {
            return false;
        };
        if let Some(due) = self.due.iter_mut().find(|due| due.mailbox == *mailbox) {
            (due.first, due.since) = (due.first.min(first), now);
            return true;
        }
        let has_room = self.due.len() < AT_ONCE;
        if has_room {
            self.due.push(DuePreview { mailbox: mailbox.clone(), first, since: now });
        }
        has_room
    }

    /// What the pushes still wait for, the open mailbox first.
    pub(super) fn take(&mut self) -> Vec<DuePreview> {
        let mut due = std::mem::take(&mut self.due);
        due.retain(|due| due.since.elapsed() < PREVIEW_WAIT);
        due.sort_by_key(|due| !due.mailbox.is_inbox());
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_for_is_wanted_new_and_little() {
        let names = ["INBOX", "a", "b", "c", "d"].map(Mailbox::new);
        let mut previews = PreviewRequests { wanted: names.clone().into(), ..Default::default() };
        let [inbox, a, b, c, d] = &names;
        assert!(!previews.begin(inbox, Some(7), false), "there is no connection");
        previews.on(true);
        assert!(!previews.begin(inbox, None, false), "nobody knows what is new");
        assert!(!previews.begin(&Mailbox::new("e"), Some(7), false), "nobody wants it");
        assert!(previews.begin(a, Some(3), false) && previews.begin(inbox, Some(7), false));
        assert!(previews.begin(inbox, Some(8), false), "it is asked for already");
        assert!(previews.begin(b, Some(1), false) && previews.begin(c, Some(1), false));
        assert!(!previews.begin(d, Some(1), false), "there is no end of it");
        let due = previews.take();
        let due: Vec<_> = due.iter().map(|due| (due.mailbox.as_str(), due.first)).collect();
        assert_eq!(due, [("INBOX", 7), ("a", 3), ("b", 1), ("c", 1)]);
        assert!(previews.begin(a, Some(4), false));
        tokio::time::advance(PREVIEW_WAIT).await;
        assert!(previews.take().is_empty(), "its push has gone");
        previews.pause();
        assert!(!previews.begin(a, Some(4), false));
        tokio::time::advance(PAUSE).await;
        assert!(previews.begin(a, Some(4), false));
    }
}
