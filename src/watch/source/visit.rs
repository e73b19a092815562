//! An account on demand: it has no connection. When a mailbox is due, a short one asks for its state: login,
//! STATUS, logout; or doveadm is asked, where the backend has it. What a hint tells in full needs neither.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{Instant as TokioInstant, sleep};

use super::doveadm::DoveadmCalls;
use super::imap::connection::ImapConnection;
use super::imap::health::BackendHealth;
use super::imap::session::{ImapSession, RefreshReason};
use crate::metrics::VisitBy;
use crate::model::{Hint, MailboxEvent};
use crate::net::backend::Backend;
use crate::net::doveadm::{Doveadm, DoveadmQuery};
use crate::store::{DueMailbox, LookedAt};
use crate::watch::status::{WatchMode, WatcherState};
use crate::watch::watcher::{NextStep, SessionEnd, WatchedMailbox, Watcher};

/// What is due within this time is asked for together.
const MERGED: Duration = Duration::from_secs(1);

impl Watcher {
    /// Tells `push` what can be told without the backend, and finds what is due. Whether anything is.
    pub(in crate::watch) async fn find_due(
        &mut self,
        backend: &Backend,
    ) -> Result<bool, SessionEnd> {
        self.shows(WatcherState::Watching(WatchMode::OnDemand));
        self.backend = backend.clone();
        let due = self.reload(backend).await?;
        if let Some(asking) = &mut self.asking {
            asking.database_answers();
        }
        self.found = self.registrations;
        let looks = self.directive.read(|told| told.looks);
        let all = std::mem::replace(&mut self.looks, looks) != looks;
        for watched in &mut self.mailboxes {
            let unknown = watched.ledger.is_unknown();
            watched.due |= all || unknown;
            watched.must_look |= all || unknown;
        }
        self.hear_marks(due).await?;
        self.hear_hints().await?;
        // A sweep has its own pace.
        if self.is_due() && !all {
            tokio::select! {
                () = sleep(MERGED) => {}
                () = self.directive.stopped() => return Err(SessionEnd::Stop),
            }
            self.hear_hints().await?;
        }
        self.note_what_is_known();
        Ok(self.is_due())
    }

    /// Whether anything is due that is not left out for now.
    fn is_due(&self) -> bool {
        let now = TokioInstant::now();
        let is_asked = |it: &WatchedMailbox| it.due && !self.faults.rests(&it.mailbox, now);
        self.mailboxes.iter().any(is_asked)
    }

    /// Whether a visit that failed, and knows what is due, needs no other one for now: what it has not asked for is left
    /// out, and other mailboxes are well.
    pub(in crate::watch) fn has_left_out_the_rest(&mut self) -> bool {
        let has_asked = !self.is_due();
        let is_it = has_asked && self.mailboxes.iter().any(|it| self.faults.is_sound(&it.mailbox));
        if is_it {
            self.note_what_is_known();
        }
        is_it
    }

    /// Takes note of what is due on disk. Where another node was told a state in full, that is the look. Marks
    /// of this node are not news: their hints are here, or all of the account is looked at.
    async fn hear_marks(&mut self, due: Vec<DueMailbox>) -> Result<(), SessionEnd> {
        for DueMailbox { mailbox, marks, state, shown_flags } in due {
            let Some(index) = self.place(&mailbox) else { continue };
            let watched = &mut self.mailboxes[index];
            if marks.count > watched.marks.count {
                self.status.hint();
            }
            (watched.marked, watched.marks) = (true, marks);
            watched.must_look |= marks.count > 0 && state.is_none();
            match state {
                Some(state) if marks.count > 0 => {
                    // The numbers say what else has happened.
                    let event = match shown_flags {
                        true => MailboxEvent::MessageRead,
                        false => MailboxEvent::FlagsSet,
                    };
                    let seen_at = Instant::now();
                    let (account, mailbox) = (self.account.clone(), Some(mailbox));
                    self.hear_hint(index, &Hint { account, mailbox, event, state, seen_at })
                        .await?;
                    self.mailboxes[index].ledger.is_told();
                }
                _ => {
                    watched.due |= marks.count > 0;
                    // Nobody has looked since it was left out.
                    watched.left_out = !watched.due && !self.faults.is_sound(&mailbox);
                }
            }
        }
        Ok(())
    }

    /// The marks of mailboxes that are not due any more are to be taken away.
    pub(in crate::watch) fn note_what_is_known(&mut self) {
        let is_known = |it: &&mut WatchedMailbox| !it.due && !it.is_left_out(&self.faults);
        for watched in self.mailboxes.iter_mut().filter(is_known) {
            watched.must_look = false;
            if std::mem::take(&mut watched.marked) {
                let (account, mailbox) = (self.account.clone(), watched.mailbox.clone());
                let marks = std::mem::take(&mut watched.marks);
                if marks.count > 0 {
                    // The events of what the look has shown came to other nodes.
                    watched.ledger.is_told();
                }
                self.looked_at.push(LookedAt { account, mailbox, marks });
            }
        }
    }

    /// Asks for what is due.
    pub(in crate::watch) async fn visit(
        &mut self,
        connection: &mut ImapConnection,
        health: &BackendHealth,
    ) -> SessionEnd {
        match self.ask_for_due(connection, health).await {
            Ok(()) => SessionEnd::Visited,
            Err(end) => end,
        }
    }

    async fn ask_for_due(
        &mut self,
        connection: &mut ImapConnection,
        health: &BackendHealth,
    ) -> Result<(), SessionEnd> {
        self.context.metrics.visits.of(VisitBy::Login).inc();
        let granted = connection.capabilities().await?;
        let mut session = ImapSession::new(connection, health, &granted);
        self.shows(WatcherState::Watching(WatchMode::OnDemand));
        self.previews_on(true);
        if self.mailboxes.len() > 1 && self.faults.is_suspicious(TokioInstant::now()) {
            // Whether it is the mailbox or the backend shows when others are answered before it.
            self.mailboxes.iter_mut().for_each(|watched| watched.due = true);
        }
        self.refresh(&mut session, RefreshReason::All).await?;
        self.note_what_is_known();
        self.fetch_previews(&mut session).await
    }

    /// Asks doveadm for what is due.
    pub(in crate::watch) async fn visit_by_doveadm(
        &mut self,
        doveadm: &Arc<Doveadm>,
        calls: &DoveadmCalls,
    ) -> SessionEnd {
        self.context.metrics.visits.of(VisitBy::Doveadm).inc();
        let due: Vec<_> =
            (0..self.mailboxes.len()).filter(|index| self.mailboxes[*index].due).collect();
        let mailboxes = due.iter().map(|index| self.mailboxes[*index].mailbox.clone()).collect();
        let query = DoveadmQuery { account: self.account.clone(), mailboxes };
        let answer = tokio::select! {
            answer = calls.ask(doveadm, query) => answer,
            () = self.directive.stopped() => return SessionEnd::Stop,
        };
        let states = match answer {
            Ok(answer) => {
                self.backend_answers();
                match answer {
                    Ok(states) => states,
                    Err(why) => return SessionEnd::Failed(why),
                }
            }
            Err(why) => return SessionEnd::Unreachable(why),
        };
        let seen =
            due.iter().zip(&states).filter_map(|(index, state)| state.is_some().then_some(*index));
        if let Err(end) = self.read_unknown(seen).await {
            return end;
        }
        for (index, state) in due.into_iter().zip(states) {
            let context = Arc::clone(&self.context);
            let Some(now) = state else {
                self.status_refused(index, "not listed by doveadm");
                // INBOX stays due, on disk too. Another one is gone, and asked for again by the next sweep.
                let watched = &mut self.mailboxes[index];
                watched.due = watched.mailbox.is_inbox();
                continue;
            };
            let watched = &mut self.mailboxes[index];
            self.faults.answered(&watched.mailbox);
            watched.due = false;
            watched.looked_at = Some(Instant::now());
            // Which flags have changed is not known.
            let shown = watched.ledger.unclear(&now, false).map(|_| true);
            let follows = watched.ledger.look(&now, shown, || context.next_id());
            if let Err(end) = self.tell(index, follows, false).await {
                return end;
            }
        }
        self.note_what_is_known();
        SessionEnd::Visited
    }

    /// What comes after a visit, or where none was needed.
    pub(in crate::watch) fn visited(&mut self) -> NextStep {
        (self.failures, self.retry_at) = (0, None);
        self.status.set(WatcherState::Watching(WatchMode::OnDemand));
        self.status.leave_out(self.faults.shown());
        self.watches();
        NextStep::Rest
    }
}
