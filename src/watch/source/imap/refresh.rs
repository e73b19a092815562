//! Looks at mailboxes: their states are asked for (see `status_query`) and compared with what is known, and
//! what differs goes to `push`.

use std::sync::Arc;
use std::time::Instant as StdInstant;

use tokio::time::Instant;

use super::health::BackendHealth;
use super::session::{ImapSession, RefreshReason};
use super::status_query::StatusAnswers;
use crate::imap::refusal::is_of_mailbox;
use crate::model::{ChangeKind, Mailbox, Snapshot, Timestamp, seconds};
use crate::net::backoff::Backoff;
use crate::watch::ledger::Consequence;
use crate::watch::snapshot::only_uid_next_grew;
use crate::watch::watcher::{SessionEnd, WatchedMailbox, Watcher};

impl Watcher {
    /// Looks at the mailboxes that are due, and tells `push` of what differs. Whether there was
    /// anything.
    pub(in crate::watch) async fn refresh(
        &mut self,
        session: &mut ImapSession<'_>,
        reason: RefreshReason,
    ) -> Result<bool, SessionEnd> {
        if reason == RefreshReason::Poll {
            for watched in &mut self.mailboxes {
                watched.due |= !session.covers(&watched.mailbox, &self.methods);
            }
        }
        let mut changed = false;
        // News of INBOX on the way does not wait, but other news does.
        for _ in 0..2 {
            let due = self.due();
            if due.iter().any(|index| self.mailboxes[*index].mailbox.is_inbox()) {
                // News from here on may be later than the snapshot.
                session.connection.unsolicited.clear();
                session.left_inbox = false;
            }
            let mut asked_for_flags = false;
            let mut told = self.ask(session, &due).await;
            let made_up = self.made_up(session, reason, &due, &mut told).await;
            let seen = due.iter().copied().filter(|index| told.states[*index].is_some());
            self.read_unknown(seen).await?;
            for index in due {
                let watched = &mut self.mailboxes[index];
                if made_up.binary_search(&index).is_ok() {
                    watched.ledger.forget_uid_next();
                }
                match told.states[index] {
                    Some(now) => {
                        watched.due = false;
                        watched.looked_at = Some(StdInstant::now());
                        // A connection that has ended answers no more questions.
                        let shown = match told.lost {
                            None => self.shown(session, index, &now).await?,
                            Some(_) => None,
                        };
                        asked_for_flags |= shown.is_some();
                        let news = self.compare(session, (index, now), shown, reason).await?;
                        changed |= news;
                        let mailbox = &self.mailboxes[index].mailbox;
                        if mailbox.is_inbox() {
                            // Where it is polled it needs no second look of its own.
                            let again = news && session.covers(mailbox, &self.methods);
                            let interval = self.context.config.poll_interval;
                            session.again_at = again.then(|| Instant::now() + interval);
                        }
                    }
                    // It was not answered: the next connection asks again.
                    None if told.lost.is_some() => {}
                    None => {
                        let refusal = told.refusals.iter().rfind(|(of, _)| *of == index);
                        let why = refusal.map_or("no STATUS", |(_, refusal)| refusal.trim());
                        // Without a connection that is held it stays due, on disk too, where the refusal may pass.
                        // One that is gone, or denied, is asked for again by the next sweep.
                        let is_gone =
                            refusal.is_none_or(|(_, refusal)| is_of_mailbox(refusal.as_bytes()));
                        watched.due = self.on_demand && (watched.mailbox.is_inbox() || !is_gone);
                        self.status_refused(index, why);
                    }
                }
            }
            self.status.leave_out(self.faults.shown());
            if let Some(lost) = told.lost {
                return Err(lost.into());
            }
            self.is_watchable()?;
            match self.hear(session).await? {
                Some(ChangeKind::NewMail) => changed = true,
                // The answer looks as if something had changed, and something may have.
                Some(ChangeKind::Quiet) if asked_for_flags => {}
                _ => break,
            }
        }
        Ok(changed)
    }

    /// The mailboxes that are to be looked at now, by place. One that is left out is not; of an account on
    /// demand it stays due.
    fn due(&mut self) -> Vec<usize> {
        let (faults, now, mut due) = (&self.faults, Instant::now(), Vec::new());
        for (index, watched) in self.mailboxes.iter_mut().enumerate().filter(|(_, it)| it.due) {
            match faults.rests(&watched.mailbox, now) {
                true => watched.due = self.on_demand,
                false => due.push(index),
            }
        }
        due
    }

    /// STATUS of a mailbox was refused, although the connection goes on. INBOX is asked for again after
    /// a time that grows. Others are asked for as ever: one that was deleted or renamed may come back,
    /// and its devices will register again.
    pub(in crate::watch) fn status_refused(&mut self, index: usize, why: &str) {
        let (account, mailbox) = (&self.account, &self.mailboxes[index].mailbox);
        let times = self.faults.refuse(mailbox, why.to_owned());
        match (mailbox.is_inbox(), times) {
            (true, _) => {
                let config = &self.context.config;
                let backoff = Backoff::new(config.retry_min, config.retry_max);
                let wait = backoff.wait(times, rand::random());
                self.faults.rest(mailbox, Instant::now() + wait, Timestamp::now().plus(wait));
                tracing::warn!(
                    target: "mailchime::watch::status_refused",
                    %account, %mailbox, why, wait_seconds = seconds(wait),
                    "the backend refuses STATUS; mailchime does not watch this mailbox for now"
                );
            }
            (false, 1) => {
                tracing::info!(
                    target: "mailchime::watch::status_refused",
                    %account, %mailbox, why,
                    "the backend refuses STATUS; mailchime does not watch this mailbox for now"
                );
            }
            (false, _) => {}
        }
    }

    /// A connection on which INBOX is refused, and nothing else is watched, ends.
    fn is_watchable(&mut self) -> Result<(), SessionEnd> {
        let inbox = Mailbox::inbox();
        let refused = self.place(&inbox).is_some() && !self.faults.is_sound(&inbox);
        if refused && !self.mailboxes.iter().any(|it| self.faults.is_sound(&it.mailbox)) {
            return Err(SessionEnd::Failed("there is no STATUS of INBOX".into()));
        }
        Ok(())
    }

    /// Which of them have a UIDNEXT that grows with each question (Mailutils imap4d): where nothing
    /// else has changed, and the backend said nothing unasked, it is asked for once more. In their order.
    async fn made_up(
        &mut self,
        session: &mut ImapSession<'_>,
        reason: RefreshReason,
        due: &[usize],
        told: &mut StatusAnswers,
    ) -> Vec<usize> {
        if reason == RefreshReason::Unsolicited || told.lost.is_some() {
            return Vec::new();
        }
        let grew = |index: &usize, since: &Snapshot, now: Option<Snapshot>| {
            now.is_some_and(|now| only_uid_next_grew(since, &now)).then_some(*index)
        };
        let grown = due.iter().filter_map(|index| {
            grew(index, self.mailboxes[*index].ledger.known(), told.states[*index])
        });
        let grown: Vec<usize> = grown.collect();
        if grown.is_empty() {
            return grown;
        }
        let again = self.ask(session, &grown).await;
        told.lost = again.lost;
        let still = |index: &usize| grew(index, &told.states[*index]?, again.states[*index]);
        grown.iter().filter_map(still).collect()
    }

    /// Compares what was known with what is, at this place; `shown` says whether a phone would show it
    /// where the numbers do not. Whether that was news.
    async fn compare(
        &mut self,
        session: &ImapSession<'_>,
        (index, now): (usize, Snapshot),
        shown: Option<bool>,
        reason: RefreshReason,
    ) -> Result<bool, SessionEnd> {
        let context = Arc::clone(&self.context);
        let WatchedMailbox { mailbox, ledger, .. } = &mut self.mailboxes[index];
        let uid_next = ledger.known().uid_next;
        let (surprise, announced) = (ledger.expects_nothing(), ledger.has_announced());
        let consequence = ledger.look(&now, shown, || context.next_id());
        let Consequence::Changed { kind, .. } = consequence else {
            self.tell(index, consequence, false).await?;
            return Ok(announced);
        };
        tracing::debug!(
            target: "mailchime::watch::mailbox_changed",
            account = %self.account, %mailbox, ?kind, "mailbox changed"
        );
        if kind == ChangeKind::NewMail && surprise {
            self.missed(session, index, reason);
        }
        let preview_follows = self.begins_preview(index, &consequence, uid_next);
        self.tell(index, consequence, preview_follows).await?;
        Ok(true)
    }

    /// A look found new mail that nothing had told of.
    fn missed(&mut self, session: &ImapSession<'_>, index: usize, reason: RefreshReason) {
        let (idle, notify) = match reason {
            RefreshReason::Check { idle, notify } => (idle, notify),
            RefreshReason::Poll => (session.idle_tells(), session.armed),
            RefreshReason::All | RefreshReason::Unsolicited => return,
        };
        let (apart, account) = (self.context.config.idle_check, &self.account);
        let inbox = self.mailboxes[index].mailbox.is_inbox();
        let BackendHealth { idle: by_idle, notify: by_notify, .. } = session.health;
        let (way, caught) = match (inbox && idle, notify) {
            (true, _) => ("IDLE", self.methods.idle.missed(by_idle, account, apart)),
            (false, true) => ("NOTIFY", self.methods.notify.missed(by_notify, account, apart)),
            (false, false) => return,
        };
        self.given_up(session, way, "is accepted and tells nothing", caught);
    }

    /// Takes note of what the backend said unasked: announces new mail before it has been looked at, and
    /// marks what is to be looked at. The most urgent of it.
    pub(in crate::watch) async fn hear(
        &mut self,
        session: &mut ImapSession<'_>,
    ) -> Result<Option<ChangeKind>, SessionEnd> {
        let mut heard = None;
        self.hear_overflow(session);
        let news = &mut session.connection.unsolicited;
        let (grown, other, states) = (news.take_grown(), news.take_other(), news.take_states());
        if let Some(inbox) = self.place(&Mailbox::inbox()) {
            if other {
                let changed = Some(ChangeKind::Quiet);
                heard = self.hint(inbox, changed, &Snapshot::default()).await?.urgency();
            }
            if let Some(count) = grown {
                let counted = Snapshot { messages: Some(count), ..Snapshot::default() };
                let follows = self.hint(inbox, Some(ChangeKind::NewMail), &counted).await?;
                heard = heard.max(follows.urgency());
                // What comes with the answer to something else is no sign that IDLE works.
                if matches!(follows, Consequence::Announced { .. }) && session.connection.idles() {
                    self.methods.idle.told(&session.health.idle);
                }
            }
        }
        for (mailbox, state) in states {
            let Some(index) = mailbox.as_ref().and_then(|mailbox| self.place(mailbox)) else {
                continue;
            };
            let follows = self.hint(index, None, &state).await?;
            heard = heard.max(follows.urgency());
            if matches!(follows, Consequence::Announced { .. }) {
                self.methods.notify.told(&session.health.notify);
            }
        }
        Ok(heard)
    }
}
