//! Asks for sender and subject of new mail, where a subscription's pushes may say them. A push waits for that, but
//! not for long: whatever goes wrong here, it goes without.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::connection::{Completion, ConnectionLost};
use super::session::{ImapSession, quoted};
use crate::imap::preview::{FetchedHeader, fetch_item, fetched_header, preview};
use crate::model::{ChangeKind, Mailbox, PREVIEW_WAIT, Preview};
use crate::watch::ledger::Consequence;
use crate::watch::watcher::{SessionEnd, Watcher};

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
struct DuePreview {
    mailbox: Mailbox,
    /// The UID of the first new mail, or a lower one.
    first: u64,
    since: Instant,
}

/// The answer of a backend that was asked for the newest mail.
struct NewestAnswer {
    preview: Option<Preview>,
    /// It does not understand the question.
    is_bad: bool,
}

impl PreviewRequests {
    /// There is new mail in a mailbox whose UIDNEXT was this. Whether it is going to be asked for. `soon`: there
    /// is no connection now, and there will be one in a moment.
    fn begin(&mut self, mailbox: &Mailbox, uid_next: Option<u64>, soon: bool) -> bool {
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
    fn take(&mut self) -> Vec<DuePreview> {
        let mut due = std::mem::take(&mut self.due);
        due.retain(|due| due.since.elapsed() < PREVIEW_WAIT);
        due.sort_by_key(|due| !due.mailbox.is_inbox());
        due
    }
}

impl Watcher {
    /// Whether the newest mail of the mailbox at this place is going to be asked for, after what `follows` there.
    /// `uid_next` is as it was known before.
    pub(in crate::watch) fn begins_preview(
        &mut self,
        index: usize,
        follows: &Consequence,
        uid_next: Option<u64>,
    ) -> bool {
        let Some(previews) = &mut self.previews else { return false };
        let (is_new, look_follows) = match follows {
            Consequence::Announced { .. } => (true, true),
            Consequence::Changed { kind, .. } => (*kind == ChangeKind::NewMail, false),
            Consequence::Nothing | Consequence::LookDue(_) | Consequence::Rebased { .. } => {
                (false, false)
            }
        };
        let soon = self.on_demand && look_follows;
        is_new && previews.begin(&self.mailboxes[index].mailbox, uid_next, soon)
    }

    /// There is a connection from now on, or none any more.
    pub(in crate::watch) fn previews_on(&mut self, connected: bool) {
        if let Some(previews) = &mut self.previews {
            previews.connected = connected;
            if !connected {
                previews.due = Vec::new();
            }
        }
    }

    /// After a look: asks for the newest mail of each mailbox that has new mail, and tells `push` of it. INBOX is
    /// open afterwards, if it was before.
    pub(in crate::watch) async fn fetch_previews(
        &mut self,
        session: &mut ImapSession<'_>,
    ) -> Result<(), SessionEnd> {
        let due = self.previews.as_mut().map(|previews| previews.take()).unwrap_or_default();
        let mut elsewhere = false;
        for due in due {
            let rests = self.faults.rests(&due.mailbox, Instant::now());
            let asked = match rests {
                true => Ok(NewestAnswer { preview: None, is_bad: false }),
                false => self.ask_for_newest(session, &due, &mut elsewhere).await,
            };
            let (preview, is_bad, lost) = match asked {
                Ok(NewestAnswer { preview, is_bad }) => (preview, is_bad, None),
                Err(lost) => (None, false, Some(lost)),
            };
            if is_bad || lost.is_some() {
                let why =
                    lost.as_ref().map_or("it is answered BAD".to_owned(), ToString::to_string);
                self.pause_previews(&why);
            }
            self.tell_preview(due.mailbox, preview).await?;
            if let Some(lost) = lost {
                return Err(lost.into());
            }
        }
        if elsewhere {
            self.back_to_inbox(session).await?;
        }
        Ok(())
    }

    /// Asks for the newest mail of a mailbox, which is opened for that where it is not. What was there before is
    /// not told.
    async fn ask_for_newest(
        &self,
        session: &mut ImapSession<'_>,
        due: &DuePreview,
        elsewhere: &mut bool,
    ) -> Result<NewestAnswer, ConnectionLost> {
        let nothing = |answer| NewestAnswer { preview: None, is_bad: answer == Completion::Bad };
        let is_open = due.mailbox.is_inbox() && session.open.is_some() && !*elsewhere;
        if !is_open {
            *elsewhere = true;
            session.connection.unsolicited.leave_inbox();
            let examine = format!("EXAMINE {}", quoted(&due.mailbox));
            let answer = session.connection.command(&examine, |_| {}).await?;
            if answer != Completion::Ok {
                return Ok(nothing(answer));
            }
        }
        let with_subject = self.context.previews_subject();
        let (mut newest, mut found) = (due.first, None);
        let untagged = |response: &[u8]| {
            if let Some(FetchedHeader { uid: Some(uid), header }) = fetched_header(response)
                && uid >= newest
            {
                newest = uid;
                found = preview(&header, with_subject, (uid - due.first).saturating_add(1));
            }
        };
        // The last message, whatever its UID is (RFC 9051 section 9, seq-number).
        let fetch = format!("UID FETCH * (UID {})", fetch_item(with_subject));
        let answer = session.connection.command(&fetch, untagged).await?;
        Ok(NewestAnswer { preview: found, ..nothing(answer) })
    }

    fn pause_previews(&mut self, why: &str) {
        let Some(previews) = &mut self.previews else { return };
        previews.paused_until = Some(Instant::now() + PAUSE);
        tracing::warn!(
            target: "mailchime::watch::previews_paused",
            account = %self.account, why,
            "could not ask the backend for sender and subject of new mail; pushes of this account name the \
             mailbox alone for an hour. See the backend's log"
        );
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
        previews.connected = true;
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
        previews.paused_until = Some(Instant::now() + PAUSE);
        assert!(!previews.begin(a, Some(4), false));
        tokio::time::advance(PAUSE).await;
        assert!(previews.begin(a, Some(4), false));
    }
}
