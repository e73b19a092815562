//! What a watcher does while it is connected: it looks at its mailboxes, and waits for a reason to
//! look again.
//!
//! ```text
//!   look (STATUS) ──▶ IDLE on INBOX until news, the next poll or renewal ──▶ look …
//!        │ compare      │ EXISTS
//!        ▼              ▼
//!     Changed or     Changed, announced before it was looked at
//!     Confirmed
//! ```

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant as StdInstant;

use tokio::time::Instant;

use super::account::{End, LIVED, Watcher};
use super::connection::{Answer, Connection, Lost};
use super::snapshot::{difference, with_new_mail};
use super::status::{Doing, Mode};
use crate::imap::args::quote;
use crate::imap::capability::Capabilities;
use crate::imap::mailbox;
use crate::imap::status::mailbox_status;
use crate::model::{Change, ChangeKind, Mailbox, Snapshot, WatchEvent};

/// What STATUS is asked for, with and without CONDSTORE (RFC 7162 section 3.1.7).
const ITEMS: &str = "(MESSAGES UIDNEXT UIDVALIDITY UNSEEN)";
const ITEMS_CONDSTORE: &str = "(MESSAGES UIDNEXT UIDVALIDITY UNSEEN HIGHESTMODSEQ)";

/// Connections on which IDLE got no answer at all, before one is tried without.
const SILENT_IDLES: u32 = 2;

/// Which mailboxes to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    All,
    Inbox,
}

/// What is known of the backend on this connection.
struct Round<'a> {
    connection: &'a mut Connection,
    /// The items of STATUS that it takes.
    items: &'static str,
    /// Whether it is still believed to have IDLE.
    idles: bool,
    /// Whether INBOX is open.
    open: bool,
}

impl Watcher {
    /// Watches on `connection`; `granted` is what the backend told with the login.
    pub(super) async fn rounds(
        &mut self,
        connection: &mut Connection,
        mut granted: Option<Capabilities>,
    ) -> Result<Infallible, End> {
        if granted.is_none() {
            let capability = |line: &[u8]| {
                granted = Capabilities::in_response(line).or(granted.take());
            };
            connection.command("CAPABILITY", capability).await?;
            // The login says who we are where ID was offered by then. Coremail opens no mailbox for
            // a client that has not (RFC 2971).
            if granted.as_ref().is_some_and(|granted| granted.has("ID")) {
                connection.command("ID (\"name\" \"mailchime\")", |_| {}).await?;
            }
        }
        let granted = granted.unwrap_or_default();
        let condstore = granted.has("CONDSTORE") || granted.has("QRESYNC");
        let idles = granted.has("IDLE") && self.silent_idles < SILENT_IDLES;
        if granted.has("IDLE") && !idles {
            tracing::warn!(account = %self.account, "the backend does not answer IDLE: polled");
            self.silent_idles = 0;
        }
        let items = if condstore { ITEMS_CONDSTORE } else { ITEMS };
        let mut round = Round { connection, items, idles, open: false };
        let mut wanted = Look::All;
        let mut next_poll = Instant::now();
        loop {
            self.open_inbox(&mut round).await?;
            let mode = if round.open { Mode::Idle } else { Mode::Poll };
            self.status.set(Doing::Watching(mode));
            self.look(&mut round, wanted).await?;
            if wanted == Look::All {
                next_poll = Instant::now() + self.context.config.poll_interval;
            }
            wanted = match round.open {
                true => self.idle(&mut round, next_poll).await?,
                false => self.pause(&mut round, next_poll).await?,
            };
        }
    }

    /// Opens INBOX for IDLE, where both are to be had, without touching \Recent.
    async fn open_inbox(&self, round: &mut Round<'_>) -> Result<(), End> {
        let wanted = self.mailboxes.iter().any(|watched| watched.mailbox.is_inbox());
        if round.open || !round.idles || !wanted {
            return Ok(());
        }
        round.open = round.connection.command("EXAMINE INBOX", |_| {}).await? == Answer::Ok;
        if !round.open {
            tracing::warn!(account = %self.account, "the backend does not open INBOX: polled");
            round.idles = false;
        }
        Ok(())
    }

    /// Takes snapshots, and tells `push` of what differs.
    async fn look(&mut self, round: &mut Round<'_>, wanted: Look) -> Result<(), End> {
        for index in 0..self.mailboxes.len() {
            if wanted == Look::Inbox && !self.mailboxes[index].mailbox.is_inbox() {
                continue;
            }
            self.look_at(round, index).await?;
            // INBOX is the first of the list. What is told of it on the way does not wait.
            if let Some(count) = round.connection.news.take_grown() {
                self.announce(count).await?;
                self.look_at(round, 0).await?;
            }
        }
        Ok(())
    }

    async fn look_at(&mut self, round: &mut Round<'_>, index: usize) -> Result<(), End> {
        let mailbox = self.mailboxes[index].mailbox.clone();
        if mailbox.is_inbox() {
            // What is told from here on may be later than the snapshot.
            round.connection.news.settle();
        }
        let (mut answer, mut now) = status(round, &mailbox).await?;
        if answer == Answer::Bad && round.items != ITEMS {
            // It lists CONDSTORE and does not know this item.
            round.items = ITEMS;
            (answer, now) = status(round, &mailbox).await?;
        }
        if answer != Answer::Ok && mailbox.is_inbox() && round.open {
            // A server may refuse STATUS of the mailbox that is open (RFC 9051 section 6.3.11).
            self.distrust_idle(round).await?;
            (answer, now) = status(round, &mailbox).await?;
        }
        match now {
            Some(now) if answer == Answer::Ok => self.compare(index, now).await,
            _ if mailbox.is_inbox() => Err(End::Failed("there is no STATUS of INBOX".into())),
            // Deleted or renamed, it may come back; its devices will register again.
            _ => {
                tracing::debug!(account = %self.account, %mailbox, "has no STATUS");
                Ok(())
            }
        }
    }

    async fn compare(&mut self, index: usize, now: Snapshot) -> Result<(), End> {
        let context = Arc::clone(&self.context);
        let watched = &mut self.mailboxes[index];
        let event = match (difference(&watched.known, &now), watched.announced.take()) {
            (Some(kind), _) => {
                self.status.event(kind);
                tracing::debug!(account = %self.account, mailbox = %watched.mailbox, ?kind, "changed");
                Some(WatchEvent::Changed(Change {
                    account: self.account.clone(),
                    mailbox: watched.mailbox.clone(),
                    kind,
                    id: context.next_id(),
                    snapshot: Some(now),
                    seen_at: StdInstant::now(),
                }))
            }
            (None, Some(id)) => Some(WatchEvent::Confirmed {
                account: self.account.clone(),
                mailbox: watched.mailbox.clone(),
                id,
                snapshot: now,
            }),
            (None, None) => None,
        };
        watched.known = now;
        match event {
            Some(event) => context.events.send(event).await.map_err(|_| End::Stop),
            None => Ok(()),
        }
    }

    /// INBOX was told to hold `count` messages: those that are new are announced before they have
    /// been looked at.
    async fn announce(&mut self, count: u64) -> Result<(), End> {
        let context = Arc::clone(&self.context);
        let inbox = self.mailboxes.iter_mut().find(|watched| watched.mailbox.is_inbox());
        let Some(inbox) = inbox else { return Ok(()) };
        // Where messages went as well, only a look can tell.
        let arrived = inbox.known.messages.and_then(|known| count.checked_sub(known));
        let Some(arrived @ 1..) = arrived else { return Ok(()) };
        inbox.known = with_new_mail(&inbox.known, arrived);
        let id = context.next_id();
        inbox.announced = Some(id);
        self.status.event(ChangeKind::NewMail);
        let change = Change {
            account: self.account.clone(),
            mailbox: inbox.mailbox.clone(),
            kind: ChangeKind::NewMail,
            id,
            snapshot: None,
            seen_at: StdInstant::now(),
        };
        context.events.send(WatchEvent::Changed(change)).await.map_err(|_| End::Stop)
    }

    /// Waits in IDLE until there is something to look at.
    async fn idle(&mut self, round: &mut Round<'_>, next_poll: Instant) -> Result<Look, End> {
        let settle = self.context.config.settle;
        let began = Instant::now();
        let renewal = began + self.context.config.idle_renewal;
        let others = self.mailboxes.iter().any(|watched| !watched.mailbox.is_inbox());
        let deadline = if others { renewal.min(next_poll) } else { renewal };
        match round.connection.idle().await {
            Ok(true) => self.silent_idles = 0,
            Ok(false) => return self.distrust_idle(round).await,
            Err(lost) => {
                if matches!(lost, Lost::Silent(_)) {
                    self.silent_idles += 1;
                }
                return Err(lost.into());
            }
        }
        let mut look_at = deadline;
        let mut reloaded = false;
        loop {
            if let Some(count) = round.connection.news.take_grown() {
                self.announce(count).await?;
                // At once; but however much a backend tells, there is some time between two looks.
                look_at = look_at.min(Instant::now().max(began + settle));
            }
            if round.connection.news.take_other() {
                look_at = look_at.min(Instant::now() + settle);
            }
            tokio::select! {
                goes_on = round.connection.idling() => if !goes_on? {
                    // Some servers end it when they please; one that does so at once has no IDLE.
                    return match began.elapsed() < LIVED {
                        true => self.distrust_idle(round).await,
                        false => Ok(Look::All),
                    };
                },
                () = tokio::time::sleep_until(look_at) => break,
                changed = self.orders.changed() => {
                    changed.map_err(|_| End::Stop)?;
                    reloaded = self.obey().await?;
                    if reloaded {
                        break;
                    }
                }
            }
        }
        round.connection.done().await?;
        // Once in a while everything is looked at, whatever was or was not told.
        Ok(if reloaded || Instant::now() >= deadline { Look::All } else { Look::Inbox })
    }

    /// The backend lists IDLE and cannot be watched with it: it is polled from here on. INBOX is
    /// closed, as STATUS may tell of an open mailbox only what this connection has been told.
    async fn distrust_idle(&self, round: &mut Round<'_>) -> Result<Look, End> {
        tracing::warn!(account = %self.account, "the backend cannot do what IDLE needs: polled");
        (round.idles, round.open) = (false, false);
        round.connection.command("CLOSE", |_| {}).await?;
        Ok(Look::All)
    }

    /// Waits, without IDLE, for the next look.
    async fn pause(&mut self, round: &mut Round<'_>, next_poll: Instant) -> Result<Look, End> {
        loop {
            tokio::select! {
                // Untagged data between two looks tells nothing that the look will not; BYE does.
                response = round.connection.response() => { response?; }
                () = tokio::time::sleep_until(next_poll) => return Ok(Look::All),
                changed = self.orders.changed() => {
                    changed.map_err(|_| End::Stop)?;
                    if self.obey().await? {
                        return Ok(Look::All);
                    }
                }
            }
        }
    }
}

/// Asks for the state of a mailbox.
async fn status(
    round: &mut Round<'_>,
    mailbox: &Mailbox,
) -> Result<(Answer, Option<Snapshot>), Lost> {
    // Modified UTF-7 is printable ASCII, which can always be quoted.
    let name = quote(mailbox::encode(mailbox).as_bytes()).unwrap_or_default();
    let command = format!("STATUS {} {}", String::from_utf8_lossy(&name), round.items);
    let mut now = None;
    let read = |line: &[u8]| now = mailbox_status(line).map(|(_, now)| now).or(now);
    let answer = round.connection.command(&command, read).await?;
    Ok((answer, now))
}
