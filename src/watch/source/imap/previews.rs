//! Asks for sender and subject of new mail, where a subscription's pushes may say them. A push waits for that, but
//! not for long: whatever goes wrong here, it goes without.

use tokio::time::Instant;

use super::connection::{Completion, ConnectionLost};
use super::preview_requests::DuePreview;
use super::session::{ImapSession, quoted};
use crate::imap::preview::{FetchedHeader, fetch_item, fetched_header, preview};
use crate::model::{ChangeKind, PREVIEW_WAIT, Preview};
use crate::watch::ledger::Consequence;
use crate::watch::watcher::{SessionEnd, Watcher};

/// The answer of a backend that was asked for the newest mail.
struct NewestAnswer {
    preview: Option<Preview>,
    /// It does not understand the question.
    is_bad: bool,
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
            previews.on(connected);
        }
    }

    /// After a look: asks for the newest mail of each mailbox that has new mail, and tells `push` of it. INBOX is
    /// open afterwards, if it was before.
    pub(in crate::watch) async fn fetch_previews(
        &mut self,
        session: &mut ImapSession<'_>,
    ) -> Result<(), SessionEnd> {
        let due = self.previews.as_mut().map(|previews| previews.take()).unwrap_or_default();
        let (mut elsewhere, began) = (false, Instant::now());
        for due in due {
            let asked_at = Instant::now();
            // Nothing else is heard meanwhile, and the pushes go without after this time.
            let is_late = asked_at.duration_since(began) >= PREVIEW_WAIT;
            let asked = match is_late || self.faults.rests(&due.mailbox, asked_at) {
                true => Ok(NewestAnswer { preview: None, is_bad: false }),
                false => self.ask_for_newest(session, &due, &mut elsewhere).await,
            };
            let took = asked_at.elapsed();
            let (preview, is_bad, lost) = match asked {
                Ok(NewestAnswer { preview, is_bad }) => (preview, is_bad, None),
                Err(lost) => (None, false, Some(lost)),
            };
            if let Some(lost) = &lost {
                self.pause_previews(&lost.to_string());
            } else if is_bad {
                self.pause_previews("it is answered BAD");
            } else if took >= PREVIEW_WAIT {
                self.pause_previews(&format!("the answer took {} seconds", took.as_secs()));
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
        let asked_at = Instant::now();
        let is_open = due.mailbox.is_inbox() && session.open.is_some() && !*elsewhere;
        if !is_open {
            *elsewhere = true;
            session.connection.unsolicited.leave_inbox();
            let examine = format!("EXAMINE {}", quoted(&due.mailbox));
            let answer = session.connection.command(&examine, |_| {}).await?;
            if answer != Completion::Ok || asked_at.elapsed() >= PREVIEW_WAIT {
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
        previews.pause();
        tracing::warn!(
            target: "mailchime::watch::previews_paused",
            account = %self.account, why,
            "the backend did not tell sender and subject of new mail in time; pushes of this account name the \
             mailbox alone for an hour. See the backend's log"
        );
    }
}
