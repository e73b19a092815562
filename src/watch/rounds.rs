//! What a watcher does while it is connected: it looks at its mailboxes (see `look`), and waits for
//! a reason to look again.
//!
//! ```text
//!   EXAMINE INBOX ──▶ NOTIFY for the others ──▶ look ──▶ IDLE until news, the next poll or check ──▶ look …
//!                                                 │ compare     │ EXISTS, STATUS
//!                                                 ▼             ▼
//!                                       Changed or Confirmed   Changed, announced before it was looked at
//! ```
//!
//! What the backend does not have, refuses, or does not tell is left out: without IDLE nothing is
//! open, without NOTIFY the others are polled. With NOTIFY they are polled too, but more rarely:
//! Dovecot's does not know of mail that another program puts into a Maildir. And so is INBOX while
//! the backend has not told anything by IDLE, to whichever account. Where it has, INBOX is looked at
//! once more after news: Cyrus does not tell of mail that comes in the moment in which IDLE begins.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::Instant;

use super::account::{End, LIVED, Watcher};
use super::connection::{Answer, Connection, Lost};
use super::status::{Doing, Mode};
use super::upstream::Upstream;
use crate::config;
use crate::imap::args::quote;
use crate::imap::capability::Capabilities;
use crate::imap::mailbox;
use crate::model::{ChangeKind, Mailbox};

/// Connections on which IDLE got no answer at all, before one is tried without.
const SILENT_IDLES: u32 = 2;

/// What NOTIFY is asked to tell (RFC 5465 section 5): the three go together.
const EVENTS: &str = "(MessageNew MessageExpunge FlagChange)";

/// Longest command that servers have to take (RFC 7162 section 4), in bytes, with some to spare for
/// the tag.
pub(super) const LONGEST_COMMAND: usize = 8000;

/// Which mailboxes to look at, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// All, since nothing is known to have told of them.
    All,
    /// All, whatever was told; IDLE or NOTIFY should have told of new mail.
    Check { idle: bool, notify: bool },
    /// Those of which nothing is told by itself, or was not yet.
    Poll,
    /// Those of which something was told.
    News,
}

/// What is known of the backend on this connection.
pub(super) struct Round<'a> {
    pub(super) connection: &'a mut Connection,
    pub(super) upstream: &'a Upstream,
    /// Whether STATUS tells HIGHESTMODSEQ (RFC 7162 section 3.1.7).
    pub(super) mod_seq: bool,
    /// What it lists and has not refused here: IDLE, NOTIFY, LIST-STATUS (RFC 5819).
    pub(super) idles: bool,
    pub(super) notifies: bool,
    pub(super) lists: bool,
    /// INBOX is open, so that IDLE tells of it, since then.
    pub(super) open: Option<Instant>,
    /// NOTIFY tells of all mailboxes that are not open.
    pub(super) armed: bool,
    /// A NOTIFY SET was accepted and not taken back, whatever it asks for.
    notified: bool,
    /// Between two polls; nothing before the first.
    interval: Duration,
    poll_at: Instant,
    check_at: Instant,
    /// When INBOX is looked at once more although IDLE tells of it.
    pub(super) again_at: Option<Instant>,
}

impl Watcher {
    /// Watches on `connection`; `granted` is what the backend told with the login.
    pub(super) async fn rounds(
        &mut self,
        connection: &mut Connection,
        upstream: &Upstream,
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
        let mut round = Round::new(connection, upstream, &granted.take().unwrap_or_default());
        if round.idles && self.silent_idles >= SILENT_IDLES {
            tracing::warn!(account = %self.account, "the backend does not answer IDLE: polled");
            (round.idles, self.silent_idles) = (false, 0);
        }
        let mut look = Look::All;
        loop {
            // Boxed: an account spends its life waiting, and a look takes more room than that.
            let changed = Box::pin(async {
                if matches!(look, Look::All | Look::Check { .. }) {
                    self.open_inbox(&mut round, look).await?;
                    self.arm(&mut round).await?;
                    self.mailboxes.iter_mut().for_each(|watched| watched.due = true);
                }
                self.look(&mut round, look).await
            })
            .await?;
            let config = &self.context.config;
            round.looked(look, changed, config);
            self.status.set(Doing::Watching(round.mode()));
            look = match round.is_believed() {
                true => self.wait(&mut round).await?,
                false => Look::All,
            };
        }
    }

    /// Opens INBOX for IDLE, where both are to be had, without touching \Recent; closes it where
    /// IDLE is no longer believed.
    async fn open_inbox(&self, round: &mut Round<'_>, look: Look) -> Result<(), End> {
        let wanted = self.mailboxes.iter().any(|watched| watched.mailbox.is_inbox())
            && round.idles
            && round.upstream.idle.holds();
        // STATUS may tell of an open mailbox only what this connection has been told; so now and
        // then it is opened anew.
        let check = matches!(look, Look::Check { .. });
        let fresh =
            round.open.is_some_and(|at| !check || at.elapsed() < self.context.config.idle_check);
        match (wanted, fresh) {
            (true, false) => {
                let answer = round.connection.command("EXAMINE INBOX", |_| {}).await?;
                round.open = (answer == Answer::Ok).then(Instant::now);
                if round.open.is_none() {
                    tracing::warn!(account = %self.account, "the backend does not open INBOX: polled");
                    round.idles = false;
                }
            }
            (false, _) if round.open.is_some() => round.close().await?,
            _ => {}
        }
        Ok(())
    }

    /// Asks to be told of all mailboxes that IDLE does not cover, if there are any.
    async fn arm(&self, round: &mut Round<'_>) -> Result<(), End> {
        round.armed = false;
        if !round.notifies || !round.upstream.notify.holds() {
            return Ok(());
        }
        let others = self.mailboxes.iter().map(|watched| &watched.mailbox);
        let others = others.filter(|mailbox| !mailbox.is_inbox() || round.open.is_none());
        let names: Vec<String> = others.map(quoted).collect();
        if names.is_empty() {
            return Ok(());
        }
        // Without `selected` IDLE would not tell of INBOX any more (RFC 5465 section 6.1).
        let selected = round.open.map(|_| format!("(selected {EVENTS}) ")).unwrap_or_default();
        let command = format!("NOTIFY SET {selected}(mailboxes ({}) {EVENTS})", names.join(" "));
        if command.len() > LONGEST_COMMAND {
            round.notifies = false;
            return Ok(());
        }
        if round.notified {
            // One that takes the place of another makes Dovecot 2.3 tell nothing, until the next.
            round.connection.command("NOTIFY NONE", |_| {}).await?;
        }
        round.armed = round.connection.command(&command, |_| {}).await? == Answer::Ok;
        round.notified = round.armed;
        if round.armed {
            round.upstream.notify.accepted();
            return Ok(());
        }
        tracing::debug!(account = %self.account, "NOTIFY is refused: polled");
        round.notifies = false;
        if round.upstream.notify.refused() {
            let backend = &round.upstream.name;
            tracing::warn!(backend, "lists NOTIFY and refuses it: done without for a day");
        }
        Ok(())
    }

    /// Waits until there is something to look at: in IDLE, if INBOX is open. What else it does on the
    /// way is boxed, since it is for the waiting that room is kept.
    async fn wait(&mut self, round: &mut Round<'_>) -> Result<Look, End> {
        let settle = self.context.config.settle;
        let began = Instant::now();
        if round.open.is_some() && !Box::pin(self.begin_idle(round)).await? {
            return Box::pin(self.distrust_idle(round)).await;
        }
        let polls = self.mailboxes.iter().any(|watched| !round.covers(&watched.mailbox));
        let checks = round.armed || round.open.is_some();
        let check_at = round.check_at;
        let mut look_at = match (polls, checks) {
            (true, true) => round.poll_at.min(check_at),
            (true, false) => round.poll_at,
            _ => check_at,
        };
        if let Some(again_at) = round.again_at {
            look_at = look_at.min(again_at);
        }
        if self.mailboxes.iter().any(|watched| watched.due) {
            look_at = look_at.min(began + settle);
        }
        let mut reloaded = false;
        loop {
            match Box::pin(self.hear(round)).await? {
                // At once; but however much a backend tells, there is some time between two looks.
                Some(ChangeKind::NewMail) => {
                    look_at = look_at.min(Instant::now().max(began + settle));
                }
                Some(ChangeKind::Quiet) => look_at = look_at.min(Instant::now() + settle),
                None => {}
            }
            tokio::select! {
                idle_ended = round.connection.unasked() => if idle_ended? {
                    // Some servers end it when they please; one that does so at once has no IDLE.
                    if began.elapsed() < LIVED {
                        return Box::pin(self.distrust_idle(round)).await;
                    }
                    round.upstream.idle.accepted();
                    return Ok(Look::All);
                },
                () = tokio::time::sleep_until(look_at) => break,
                changed = self.orders.changed() => {
                    changed.map_err(|_| End::Stop)?;
                    reloaded = Box::pin(self.obey()).await?;
                    if reloaded {
                        break;
                    }
                }
            }
        }
        if round.connection.idles() && began.elapsed() >= LIVED {
            round.upstream.idle.accepted();
        }
        Box::pin(round.connection.done()).await?;
        let now = Instant::now();
        if round.again_at.take_if(|again_at| now >= *again_at).is_some()
            && let Some(inbox) = self.place(&Mailbox::inbox())
        {
            self.mailboxes[inbox].due = true;
        }
        Ok(if reloaded {
            round.interval = Duration::ZERO;
            Look::All
        } else if checks && now >= check_at {
            Look::Check { idle: round.open.is_some(), notify: round.armed }
        } else if polls && now >= round.poll_at {
            match checks {
                true => Look::Poll,
                // What could not be had before may be there by now.
                false => Look::All,
            }
        } else {
            Look::News
        })
    }

    /// Starts IDLE; false if that is refused.
    async fn begin_idle(&mut self, round: &mut Round<'_>) -> Result<bool, End> {
        match round.connection.idle().await {
            Ok(begun) => {
                if begun {
                    self.silent_idles = 0;
                }
                Ok(begun)
            }
            Err(lost) => {
                if matches!(lost, Lost::Silent(_)) {
                    self.silent_idles += 1;
                }
                Err(lost.into())
            }
        }
    }

    /// The backend lists IDLE and this account cannot be watched with it: it is polled from here on.
    async fn distrust_idle(&self, round: &mut Round<'_>) -> Result<Look, End> {
        self.idle_refused(round);
        round.close().await?;
        Ok(Look::All)
    }

    /// The same, with INBOX closed already.
    pub(super) fn idle_refused(&self, round: &mut Round<'_>) {
        tracing::debug!(account = %self.account, "the backend cannot do what IDLE needs: polled");
        if round.upstream.idle.refused() {
            let backend = &round.upstream.name;
            tracing::warn!(backend, "lists IDLE and cannot do what it needs: polled for a day");
        }
        round.idles = false;
    }
}

impl<'a> Round<'a> {
    fn new(connection: &'a mut Connection, upstream: &'a Upstream, granted: &Capabilities) -> Self {
        let now = Instant::now();
        Self {
            connection,
            upstream,
            mod_seq: granted.has("CONDSTORE") || granted.has("QRESYNC"),
            idles: granted.has("IDLE"),
            notifies: granted.has("NOTIFY"),
            lists: granted.has("LIST-STATUS"),
            open: None,
            armed: false,
            notified: false,
            interval: Duration::ZERO,
            poll_at: now,
            check_at: now,
            again_at: None,
        }
    }

    /// Sets the times of the next looks. Between polls there is more and more time while nothing
    /// changes.
    fn looked(&mut self, look: Look, changed: bool, config: &config::Watch) {
        let now = Instant::now();
        if matches!(look, Look::All | Look::Check { .. }) {
            self.check_at = now + config.idle_renewal.min(config.idle_check);
        }
        let polled = look != Look::News;
        // What NOTIFY told is no reason to doubt it.
        let changed = changed && (polled || !self.armed);
        self.interval = interval(self.interval, changed, polled, config);
        let next = now + self.interval;
        self.poll_at = if polled { next } else { self.poll_at.min(next) };
    }

    /// Whether the mailbox need not be polled.
    pub(super) fn covers(&self, mailbox: &Mailbox) -> bool {
        self.open.is_some() && mailbox.is_inbox() && self.upstream.idle.is_proven()
    }

    fn mode(&self) -> Mode {
        match (self.armed, self.open) {
            (true, _) => Mode::Notify,
            (false, Some(_)) => Mode::Idle,
            (false, None) => Mode::Poll,
        }
    }

    /// Whether what this connection relies on is believed in still: others may have caught it.
    fn is_believed(&self) -> bool {
        let Upstream { idle, notify, .. } = self.upstream;
        (self.open.is_none() || idle.holds()) && (!self.armed || notify.holds())
    }

    /// Closes INBOX, as STATUS may tell of an open mailbox only what this connection has been told.
    pub(super) async fn close(&mut self) -> Result<(), Lost> {
        // NOTIFY was not asked to tell of INBOX.
        (self.open, self.armed) = (None, false);
        self.connection.command("CLOSE", |_| {}).await?;
        Ok(())
    }
}

/// The time to the next poll: it doubles with each that found nothing. `before` is nothing at first.
fn interval(before: Duration, changed: bool, polled: bool, config: &config::Watch) -> Duration {
    match (changed || before.is_zero(), polled) {
        (true, _) => config.poll_interval,
        (false, true) => before.saturating_mul(2).min(config.poll_max),
        (false, false) => before,
    }
}

/// A mailbox's name as an argument.
pub(super) fn quoted(mailbox: &Mailbox) -> String {
    // Modified UTF-7 is printable ASCII, which can always be quoted.
    let name = quote(mailbox::encode(mailbox).as_bytes()).unwrap_or_default();
    String::from_utf8_lossy(&name).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polls_grow_rare_while_nothing_changes() {
        let config = config::Watch::default();
        let mut seconds = Duration::ZERO;
        let mut looked = |changed, polled| {
            seconds = interval(seconds, changed, polled, &config);
            seconds.as_secs()
        };
        assert_eq!([(); 5].map(|()| looked(false, true)), [60, 120, 240, 300, 300]);
        assert_eq!(looked(false, false), 300, "a look at what was told of is no poll");
        assert_eq!((looked(true, false), looked(false, true)), (60, 120));
    }
}
