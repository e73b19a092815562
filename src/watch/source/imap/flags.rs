//! Asks for flags where the numbers of a look leave open whether a phone would show anything new.

use std::collections::HashSet;

use super::connection::Completion;
use super::session::{ImapSession, quoted};
use crate::imap::status::{Fetched, fetched};
use crate::model::Snapshot;
use crate::watch::ledger::{ArrivedRead, Unclear};
use crate::watch::watcher::{SessionEnd, WatchedMailbox, Watcher};

impl Watcher {
    /// Where the numbers alone do not say whether a phone would show anything new, finds out by the
    /// flags. `None` where the numbers say it.
    pub(super) async fn shown(
        &mut self,
        session: &mut ImapSession<'_>,
        index: usize,
        now: &Snapshot,
    ) -> Result<Option<bool>, SessionEnd> {
        let WatchedMailbox { mailbox, ledger, .. } = &self.mailboxes[index];
        let is_open = mailbox.is_inbox() && session.open.is_some();
        let known = *ledger.known();
        let unclear = match ledger.unclear(now, is_open) {
            None => return Ok(None),
            Some(Unclear::ArrivedRead(_)) if session.connection.unsolicited.has_read() => {
                return Ok(None);
            }
            Some(unclear) => unclear,
        };
        // The last question may have been too much for the backend.
        if std::mem::replace(&mut self.asked_for_flags, true) {
            self.asked_for_flags = false;
            return Ok(Some(true));
        }
        let shown = match unclear {
            Unclear::ArrivedRead(new) => session.any_but_new_mail_read(&new).await?,
            Unclear::Flags if is_open => session.flags_are_shown(&known, now).await?,
            Unclear::Flags => self.flags_are_shown_elsewhere(session, index, now).await?,
        };
        self.asked_for_flags = false;
        Ok(Some(shown))
    }

    /// The same for a mailbox that has to be opened first; then INBOX is, if it was.
    async fn flags_are_shown_elsewhere(
        &self,
        session: &mut ImapSession<'_>,
        index: usize,
        now: &Snapshot,
    ) -> Result<bool, SessionEnd> {
        let WatchedMailbox { mailbox, ledger, .. } = &self.mailboxes[index];
        session.connection.unsolicited.leave_inbox();
        let examine = format!("EXAMINE {}", quoted(mailbox));
        let shown = match session.connection.command(&examine, |_| {}).await? {
            Completion::Ok => session.flags_are_shown(ledger.known(), now).await?,
            Completion::No | Completion::Bad => true,
        };
        self.back_to_inbox(session).await?;
        Ok(shown)
    }

    /// Another mailbox was opened for a moment: INBOX is open again, if it was before.
    pub(in crate::watch) async fn back_to_inbox(
        &self,
        session: &mut ImapSession<'_>,
    ) -> Result<(), SessionEnd> {
        if session.open.is_some() {
            // What happened in INBOX meanwhile is not told any more.
            session.left_inbox = true;
            return self.examine_inbox(session).await;
        }
        session.connection.command("CLOSE", |_| {}).await?;
        session.connection.unsolicited.back_in_inbox(None);
        Ok(())
    }
}

impl ImapSession<'_> {
    /// Whether other mail than what has just come was read: then a phone that has looked already does
    /// not know.
    async fn any_but_new_mail_read(&mut self, new: &ArrivedRead) -> Result<bool, SessionEnd> {
        let (first, last) = (new.uids.start(), new.uids.end());
        let mut read = HashSet::new();
        let untagged = |response: &[u8]| {
            if let Some(Fetched { uid: Some(uid), flags: Some(flags) }) = fetched(response)
                && flags.seen
                && new.uids.contains(&uid)
            {
                read.insert(uid);
            }
        };
        let command = format!("UID FETCH {first}:{last} (FLAGS)");
        let answer = self.connection.command(&command, untagged).await?;
        Ok(answer != Completion::Ok || u64::try_from(read.len()) != Ok(new.read))
    }

    /// Whether flags have changed that a phone shows, where all numbers are as they were. If messages
    /// were read, as many were marked unread, so there are some of both kinds among those that have
    /// changed.
    async fn flags_are_shown(
        &mut self,
        known: &Snapshot,
        now: &Snapshot,
    ) -> Result<bool, SessionEnd> {
        let since = match (known.highest_mod_seq, now.highest_mod_seq) {
            (Some(known), Some(now)) if known < now => known,
            // The backend counts anew.
            _ => return Ok(true),
        };
        let (mut read, mut unread, mut deleted) = (false, false, false);
        let untagged = |response: &[u8]| {
            if let Some(Fetched { flags: Some(flags), .. }) = fetched(response) {
                read |= flags.seen;
                unread |= !flags.seen;
                deleted |= flags.deleted;
            }
        };
        // RFC 7162 section 3.1.4.1
        let command = format!("UID FETCH 1:* (FLAGS) (CHANGEDSINCE {since})");
        let answer = self.connection.command(&command, untagged).await?;
        Ok(answer != Completion::Ok || deleted || (read && unread))
    }
}
