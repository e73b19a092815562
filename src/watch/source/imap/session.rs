//! What a watcher does while it is connected: it looks at its mailboxes (see `source::imap::refresh`), and waits for
//! a reason to look again.
//!
//! ```text
//!   EXAMINE INBOX ──▶ NOTIFY for the others ──▶ look ──▶ IDLE until news, the next poll or check ──▶ look …
//!                                                 │ compare     │ EXISTS, STATUS
//!                                                 ▼             ▼
//!                                       Changed or Rebased   Announced
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

use super::connection::{Completion, ConnectionLost, ImapConnection};
use super::health::BackendHealth;
use super::overflow::NotifyOverflow;
use super::reliability::{GivenUp, MethodConfidence};
use crate::config;
use crate::imap::args::quote;
use crate::imap::capability::Capabilities;
use crate::imap::mailbox;
use crate::imap::status::{Activity, activity};
use crate::model::{ChangeKind, Mailbox, seconds};
use crate::watch::status::{WatchMode, WatcherState};
use crate::watch::watcher::{SessionEnd, WatchedMailbox, Watcher};

/// A backend that ends IDLE sooner than this has no IDLE.
const LASTED: Duration = Duration::from_secs(10);

/// What NOTIFY is asked to tell (RFC 5465 section 5): the three go together.
const EVENTS: &str = "(MessageNew MessageExpunge FlagChange)";

/// Longest command that servers have to take (RFC 7162 section 4), in bytes, with some to spare for
/// the tag.
pub(in crate::watch) const LONGEST_COMMAND: usize = 8000;

/// Which mailboxes to look at, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::watch) enum RefreshReason {
    /// All, since nothing is known to have told of them.
    All,
    /// All, whatever the backend said; IDLE or NOTIFY should have told of new mail.
    Check { idle: bool, notify: bool },
    /// Those of which the backend says nothing by itself, or has not yet.
    Poll,
    /// Those of which the backend said something.
    Unsolicited,
}

/// What is known of the backend on this connection.
pub(in crate::watch) struct ImapSession<'a> {
    pub(in crate::watch) connection: &'a mut ImapConnection,
    pub(in crate::watch) health: &'a BackendHealth,
    /// Whether STATUS tells HIGHESTMODSEQ (RFC 7162 section 3.1.7).
    pub(in crate::watch) mod_seq: bool,
    /// What it lists and has not refused here: IDLE, NOTIFY, LIST-STATUS (RFC 5819).
    pub(in crate::watch) idles: bool,
    pub(in crate::watch) notifies: bool,
    pub(in crate::watch) lists: bool,
    /// A mailbox was answered on this connection.
    pub(in crate::watch) answered: bool,
    /// INBOX is open, so that IDLE tells of it, since then.
    pub(in crate::watch) open: Option<Instant>,
    /// Another mailbox was opened for a moment since INBOX was last looked at.
    pub(super) left_inbox: bool,
    /// NOTIFY tells of all mailboxes that are not open.
    pub(in crate::watch) armed: bool,
    /// A NOTIFY SET was accepted and not taken back, whatever it asks for.
    notified: bool,
    /// The backend has ended NOTIFY.
    overflow: NotifyOverflow,
    /// Between two polls; nothing before the first.
    interval: Duration,
    poll_at: Instant,
    check_at: Instant,
    /// When INBOX is looked at once more although IDLE tells of it.
    pub(in crate::watch) again_at: Option<Instant>,
}

impl Watcher {
    /// Watches on `connection`.
    pub(in crate::watch) async fn run_session(
        &mut self,
        connection: &mut ImapConnection,
        health: &BackendHealth,
    ) -> Result<Infallible, SessionEnd> {
        let mut session = {
            let granted = Box::pin(connection.capabilities()).await?;
            ImapSession::new(connection, health, &granted)
        };
        self.previews_on(true);
        let mut reason = RefreshReason::All;
        loop {
            // Boxed: an account spends its life waiting, and a look takes more room than that.
            // Under suspicion are mailboxes at which a connection has ended: before anything is asked that
            // is for several of them, they are asked for by themselves. A lone one keeps no other waiting.
            let suspicious = self.mailboxes.len() > 1 && self.faults.is_suspicious(Instant::now());
            let changed = Box::pin(async {
                if matches!(reason, RefreshReason::All | RefreshReason::Check { .. }) {
                    if !suspicious {
                        self.open_inbox(&mut session, reason).await?;
                        self.arm(&mut session).await?;
                    }
                    self.mailboxes.iter_mut().for_each(|watched| watched.due = true);
                }
                let changed = self.refresh(&mut session, reason).await?;
                self.fetch_previews(&mut session).await?;
                if std::mem::take(&mut session.left_inbox)
                    && let Some(inbox) = self.place(&Mailbox::inbox())
                {
                    self.mailboxes[inbox].due = true;
                }
                Ok::<_, SessionEnd>(changed)
            })
            .await?;
            let config = &self.context.config;
            session.refreshed(reason, changed, config);
            self.status.set(WatcherState::Watching(session.mode()));
            self.watches_since.get_or_insert_with(Instant::now);
            self.watches();
            let left_undone =
                suspicious && (session.notifies || session.idles && session.open.is_none());
            reason = match session.is_believed(&self.methods) && !left_undone {
                true => self.wait(&mut session).await?,
                false => RefreshReason::All,
            };
        }
    }

    /// Opens INBOX for IDLE, where the backend has both, without touching \Recent; closes it where
    /// IDLE is no longer believed.
    async fn open_inbox(
        &mut self,
        session: &mut ImapSession<'_>,
        reason: RefreshReason,
    ) -> Result<(), SessionEnd> {
        let now = Instant::now();
        let inbox = |watched: &WatchedMailbox| {
            watched.mailbox.is_inbox() && !self.faults.rests(&watched.mailbox, now)
        };
        let wanted = self.mailboxes.iter().any(inbox)
            && session.idles
            && self.methods.idle.holds(&session.health.idle);
        // STATUS may tell of an open mailbox only what this connection has been told; so now and
        // then it is opened anew.
        let check = matches!(reason, RefreshReason::Check { .. });
        let fresh =
            session.open.is_some_and(|at| !check || at.elapsed() < self.context.config.idle_check);
        match (wanted, fresh) {
            (true, false) => {
                let examined = self.examine_inbox(session).await;
                if examined.is_err() {
                    self.methods.idle.lost();
                }
                examined?;
            }
            (false, _) if session.open.is_some() => session.close().await?,
            _ => {}
        }
        Ok(())
    }

    /// Opens INBOX, whichever mailbox is open.
    pub(in crate::watch) async fn examine_inbox(
        &self,
        session: &mut ImapSession<'_>,
    ) -> Result<(), SessionEnd> {
        let mut count = None;
        // What is said last is said of INBOX.
        let exists = |response: &[u8]| {
            if let Some(Activity::Exists(number)) = activity(response) {
                count = Some(number);
            }
        };
        session.connection.unsolicited.leave_inbox();
        let answer = session.connection.command("EXAMINE INBOX", exists).await?;
        session.connection.unsolicited.back_in_inbox(count);
        session.open = (answer == Completion::Ok).then(Instant::now);
        if session.open.is_none() {
            tracing::warn!(
                target: "mailchime::watch::inbox_not_opened",
                account = %self.account,
                "the backend does not open INBOX; mailchime polls this account"
            );
            session.idles = false;
        }
        Ok(())
    }

    /// Asks for news of all mailboxes that IDLE does not cover, if there are any.
    async fn arm(&mut self, session: &mut ImapSession<'_>) -> Result<(), SessionEnd> {
        session.armed = false;
        self.hear_overflow(session);
        if session.overflow.is_over() && !self.set_notify(session).await? {
            session.overflow.goes_on(&self.context.config);
        }
        Ok(())
    }

    /// Sets NOTIFY; false if that is not wanted or cannot be done.
    async fn set_notify(&mut self, session: &mut ImapSession<'_>) -> Result<bool, SessionEnd> {
        if !session.notifies || !self.methods.notify.holds(&session.health.notify) {
            return Ok(false);
        }
        let now = Instant::now();
        let others = self.mailboxes.iter().map(|watched| &watched.mailbox);
        let others = others.filter(|mailbox| !mailbox.is_inbox() || session.open.is_none());
        let others: Vec<_> = others.filter(|mailbox| !self.faults.rests(mailbox, now)).collect();
        let names: Vec<String> = others.iter().map(|mailbox| quoted(mailbox)).collect();
        if names.is_empty() {
            return Ok(false);
        }
        // Without `selected` IDLE would not tell of INBOX any more (RFC 5465 section 6.1).
        let selected = session.open.map(|_| format!("(selected {EVENTS}) ")).unwrap_or_default();
        let command = format!("NOTIFY SET {selected}(mailboxes ({}) {EVENTS})", names.join(" "));
        if command.len() > LONGEST_COMMAND {
            session.notifies = false;
            return Ok(false);
        }
        if session.notified {
            // One that takes the place of another makes Dovecot 2.3 tell nothing, until the next.
            session.connection.command("NOTIFY NONE", |_| {}).await?;
        }
        let answer = session.connection.command(&command, |_| {}).await.inspect_err(|_| {
            self.faults.suspect(others.into_iter());
            self.methods.notify.lost();
        })?;
        session.armed = answer == Completion::Ok;
        session.notified = session.armed;
        // Even what it accepts may be too much.
        if session.connection.unsolicited.take_overflow() {
            self.overflowed(session);
            return Ok(true);
        }
        if session.armed {
            session.overflow.ends();
            self.methods.notify.accepted(&session.health.notify);
            return Ok(true);
        }
        tracing::debug!(
            target: "mailchime::watch::notify_refused",
            account = %self.account, "the backend refuses NOTIFY; mailchime polls this account"
        );
        session.notifies = false;
        let refused = self.methods.notify.refused(&session.health.notify, &self.account);
        self.given_up(session, "NOTIFY", "is listed and refused", refused);
        Ok(false)
    }

    /// Takes note of whether the backend has ended NOTIFY.
    pub(in crate::watch) fn hear_overflow(&self, session: &mut ImapSession<'_>) {
        // What is not set cannot end.
        if session.connection.unsolicited.take_overflow() && session.notified {
            self.overflowed(session);
        }
    }

    /// The backend has ended NOTIFY. It is set anew at once, and where that happens again and again,
    /// after more and more time.
    fn overflowed(&self, session: &mut ImapSession<'_>) {
        let account = &self.account;
        let wait = session.overflow.begins(&self.context.config);
        tracing::debug!(
            target: "mailchime::watch::notify_overflowed",
            %account, wait_seconds = seconds(wait),
            "the backend ended NOTIFY for too many events; mailchime asks for it again"
        );
        (session.armed, session.notified) = (false, false);
    }

    /// Waits until there is something to look at: in IDLE, if INBOX is open. What else it does on the
    /// way is boxed, since an account mostly waits, and the room is kept for that.
    async fn wait(&mut self, session: &mut ImapSession<'_>) -> Result<RefreshReason, SessionEnd> {
        let began = Instant::now();
        if session.open.is_some() && !Box::pin(self.begin_idle(session)).await? {
            return Box::pin(self.distrust_idle(session)).await;
        }
        let methods = &self.methods;
        let polls = self.mailboxes.iter().any(|watched| !session.covers(&watched.mailbox, methods));
        let checks = session.armed || session.open.is_some();
        let mut look_at = self.next_look(session, polls, checks, began + self.settle());
        // All has to be looked at, and polls begin anew.
        let mut anew = false;
        loop {
            match Box::pin(self.hear(session)).await? {
                // At once; but however much a backend tells, there is some time between two looks.
                Some(ChangeKind::NewMail) => {
                    look_at = look_at.min(Instant::now().max(began + self.settle()));
                }
                Some(ChangeKind::Quiet) => look_at = look_at.min(Instant::now() + self.settle()),
                None => {}
            }
            if Box::pin(self.hear_hints()).await? {
                look_at = look_at.min(Instant::now().max(began + self.settle()));
            }
            if session.overflow.take_look() {
                anew = true;
                break;
            }
            let until = self.renewal(session).map_or(look_at, |renewal| look_at.min(renewal));
            tokio::select! {
                idle_ended = session.connection.unasked() => if idle_ended? {
                    // Some servers end it when they please; one that does so at once has no IDLE.
                    if began.elapsed() < LASTED {
                        return Box::pin(self.distrust_idle(session)).await;
                    }
                    self.methods.idle.accepted(&session.health.idle);
                    return Ok(RefreshReason::All);
                },
                () = tokio::time::sleep_until(until) => break,
                () = self.directive.changed() => {
                    if self.directive.is_stopped() {
                        return Err(SessionEnd::Stop);
                    }
                    anew = Box::pin(self.follow_directive()).await?;
                    if anew {
                        break;
                    }
                }
            }
        }
        let renews = self.renewal(session).is_some_and(|renewal| Instant::now() >= renewal);
        if session.connection.idles() && (renews || began.elapsed() >= LASTED) {
            self.methods.idle.accepted(&session.health.idle);
        }
        if renews && !session.connection.idles() {
            Box::pin(session.connection.command("NOOP", |_| {})).await?;
        }
        Box::pin(session.connection.done()).await?;
        Ok(self.reason_to_look(session, polls, checks, anew))
    }

    /// For so long it waits after news before it looks: more may follow.
    fn settle(&self) -> Duration {
        self.context.config.settle
    }

    /// When something is to be said: something on the way would end a connection on which nothing is said for longer.
    fn renewal(&self, session: &ImapSession<'_>) -> Option<Instant> {
        self.keepalive.renewal().map(|quiet| session.connection.active_at() + quiet)
    }

    /// When there is a look if nothing happens until then: `polls` says that mailboxes are polled, `checks` that
    /// the backend tells of others. What is due already is looked at at `soon`.
    fn next_look(
        &self,
        session: &ImapSession<'_>,
        polls: bool,
        checks: bool,
        soon: Instant,
    ) -> Instant {
        let mut look_at = match (polls, checks) {
            (true, true) => session.poll_at.min(session.check_at),
            (true, false) => session.poll_at,
            _ => session.check_at,
        };
        for at in [session.again_at, session.overflow.until()].into_iter().flatten() {
            look_at = look_at.min(at);
        }
        if self.mailboxes.iter().any(|watched| watched.due) {
            look_at = look_at.min(soon);
        }
        if let Some(next_try) = self.faults.next_try() {
            look_at = look_at.min(next_try.max(soon));
        }
        look_at
    }

    /// Why there is a look now; with `anew` all has to be looked at, and polls begin anew.
    fn reason_to_look(
        &mut self,
        session: &mut ImapSession<'_>,
        polls: bool,
        checks: bool,
        anew: bool,
    ) -> RefreshReason {
        let now = Instant::now();
        if session.again_at.take_if(|again_at| now >= *again_at).is_some()
            && let Some(inbox) = self.place(&Mailbox::inbox())
        {
            self.mailboxes[inbox].due = true;
        }
        if self.faults.take_due(now) {
            // With it what was left out for it is asked for anew.
            RefreshReason::All
        } else if anew {
            session.interval = Duration::ZERO;
            RefreshReason::All
        } else if session.overflow.until().is_some_and(|until| now >= until) {
            RefreshReason::All
        } else if checks && now >= session.check_at {
            RefreshReason::Check { idle: session.idle_tells(), notify: session.armed }
        } else if polls && now >= session.poll_at {
            match checks {
                true => RefreshReason::Poll,
                // What could not be had before may be there by now.
                false => RefreshReason::All,
            }
        } else {
            RefreshReason::Unsolicited
        }
    }

    /// Starts IDLE; false if that is refused.
    async fn begin_idle(&mut self, session: &mut ImapSession<'_>) -> Result<bool, SessionEnd> {
        let begun = session.connection.idle().await;
        if let Err(ConnectionLost::Silent(_)) = begun {
            let refused = self.methods.idle.refused(&session.health.idle, &self.account);
            self.given_up(session, "IDLE", "is listed and not answered", refused);
        }
        Ok(begun?)
    }

    /// The backend lists IDLE and this account cannot be watched with it: it is polled from here on.
    async fn distrust_idle(
        &mut self,
        session: &mut ImapSession<'_>,
    ) -> Result<RefreshReason, SessionEnd> {
        self.idle_refused(session);
        session.close().await?;
        Ok(RefreshReason::All)
    }

    /// The same, with INBOX closed already.
    pub(in crate::watch) fn idle_refused(&mut self, session: &mut ImapSession<'_>) {
        tracing::debug!(
            target: "mailchime::watch::idle_refused",
            account = %self.account,
            "the backend lists IDLE but it cannot be used; mailchime polls this account"
        );
        let refused = self.methods.idle.refused(&session.health.idle, &self.account);
        self.given_up(session, "IDLE", "is listed and cannot be used", refused);
        session.idles = false;
    }

    /// Logs that a way of watching is given up, if it is.
    pub(in crate::watch) fn given_up(
        &self,
        session: &ImapSession<'_>,
        way: &str,
        why: &str,
        by: Option<GivenUp>,
    ) {
        let backend = &session.health.name;
        match by {
            None => {}
            Some(GivenUp::ByAccount) => tracing::info!(
                target: "mailchime::watch::method_given_up",
                account = %self.account, backend, way, why,
                "this way of watching does not work for the account; mailchime watches it in \
                 another way for a day"
            ),
            Some(GivenUp::ByBackend) => tracing::warn!(
                target: "mailchime::watch::method_given_up_for_backend",
                backend,
                way,
                why,
                "this way of watching does not work for several accounts; mailchime watches all \
                 accounts of the backend in another way for a day"
            ),
        }
    }
}

impl<'a> ImapSession<'a> {
    pub(in crate::watch) fn new(
        connection: &'a mut ImapConnection,
        health: &'a BackendHealth,
        granted: &Capabilities,
    ) -> Self {
        let now = Instant::now();
        Self {
            connection,
            health,
            mod_seq: granted.has("CONDSTORE") || granted.has("QRESYNC"),
            idles: granted.has("IDLE"),
            notifies: granted.has("NOTIFY"),
            lists: granted.has("LIST-STATUS"),
            answered: false,
            open: None,
            left_inbox: false,
            armed: false,
            notified: false,
            overflow: NotifyOverflow::default(),
            interval: Duration::ZERO,
            poll_at: now,
            check_at: now,
            again_at: None,
        }
    }

    /// Sets the times of the next looks. Between polls there is more and more time while nothing
    /// changes.
    fn refreshed(&mut self, reason: RefreshReason, changed: bool, config: &config::WatchConfig) {
        let now = Instant::now();
        if matches!(reason, RefreshReason::All | RefreshReason::Check { .. }) {
            self.check_at = now + config.idle_renewal.min(config.idle_check);
        }
        let polled = reason != RefreshReason::Unsolicited;
        // What NOTIFY told is no reason to doubt it.
        let changed = changed && (polled || !self.armed);
        self.interval = interval(self.interval, changed, polled, config);
        let next = now + self.interval;
        self.poll_at = if polled { next } else { self.poll_at.min(next) };
    }

    /// Whether the mailbox need not be polled.
    pub(in crate::watch) fn covers(&self, mailbox: &Mailbox, methods: &MethodConfidence) -> bool {
        self.idle_tells() && mailbox.is_inbox() && methods.idle.is_proven(&self.health.idle)
    }

    /// Whether IDLE should tell of INBOX.
    pub(in crate::watch) fn idle_tells(&self) -> bool {
        self.open.is_some() && self.overflow.until().is_none()
    }

    fn mode(&self) -> WatchMode {
        match (self.armed, self.open) {
            (true, _) => WatchMode::Notify,
            (false, Some(_)) => WatchMode::Idle,
            (false, None) => WatchMode::Poll,
        }
    }

    /// Whether what this connection relies on is believed in still: others may have caught it.
    fn is_believed(&self, methods: &MethodConfidence) -> bool {
        let BackendHealth { idle, notify, .. } = self.health;
        (self.open.is_none() || methods.idle.holds(idle))
            && (!self.armed || methods.notify.holds(notify))
    }

    /// Closes INBOX, as STATUS may tell of an open mailbox only what this connection has been told.
    pub(in crate::watch) async fn close(&mut self) -> Result<(), ConnectionLost> {
        // NOTIFY was not asked to tell of INBOX.
        (self.open, self.armed) = (None, false);
        self.connection.command("CLOSE", |_| {}).await?;
        Ok(())
    }
}

/// The time to the next poll: it doubles with each that found nothing. `before` is nothing at first.
fn interval(
    before: Duration,
    changed: bool,
    polled: bool,
    config: &config::WatchConfig,
) -> Duration {
    match (changed || before.is_zero(), polled) {
        (true, _) => config.poll_interval,
        (false, true) => before.saturating_mul(2).min(config.poll_max),
        (false, false) => before,
    }
}

/// A mailbox's name as an argument.
pub(in crate::watch) fn quoted(mailbox: &Mailbox) -> String {
    // Modified UTF-7 is printable ASCII, which can always be quoted.
    let name = quote(mailbox::encode(mailbox).as_bytes()).unwrap_or_default();
    String::from_utf8_lossy(&name).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polls_grow_rare_while_nothing_changes() {
        let config = config::WatchConfig::default();
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
