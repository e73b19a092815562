//! Looks at mailboxes: their states asked for in one go, compared with what is known, and what
//! differs told to `push`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant as StdInstant;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::connection::{CommandRefused, Completion, ConnectionLost};
use super::health::BackendHealth;
use super::session::{ImapSession, LONGEST_COMMAND, RefreshReason, quoted};
use super::unsolicited::Unsolicited;
use crate::imap::status::{Fetched, fetched};
use crate::model::{Change, ChangeKind, Mailbox, Snapshot, Timestamp, WatchEvent};
use crate::net::backoff::Backoff;
use crate::watch::WatchContext;
use crate::watch::ledger::{ArrivedRead, Consequence, Unclear};
use crate::watch::snapshot::{merged, only_uid_next_grew};
use crate::watch::watcher::{SessionEnd, WatchedMailbox, Watcher, in_order};

/// What STATUS is asked for, with and without CONDSTORE (RFC 7162 section 3.1.7).
const ITEMS: &str = "(MESSAGES UIDNEXT UIDVALIDITY UNSEEN)";
const ITEMS_CONDSTORE: &str = "(MESSAGES UIDNEXT UIDVALIDITY UNSEEN HIGHESTMODSEQ)";

/// For how long a mailbox is left out at most, in times of the first: `[watch] poll_max`.
const LONGEST_LEFT_OUT: u32 = 64;

/// Room for one event on its way to `push`. It is waited for first: a future that holds the event
/// meanwhile would be larger, for each of many accounts.
type EventPermit<'a> = mpsc::Permit<'a, WatchEvent>;

/// A command that asks for states.
struct StatusCommand {
    command: String,
    /// The only mailbox that it asks for, by its place.
    of: Option<usize>,
}

/// The states that were asked for, by place; `None` is what has not been told.
struct StatusAnswers {
    states: Vec<Option<Snapshot>>,
    /// STATUS was answered BAD.
    bad: bool,
    /// What the backend said to those that it refused, by place.
    refusals: Vec<(usize, Box<str>)>,
    /// The connection ended before all had an answer.
    lost: Option<ConnectionLost>,
}

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
                session.connection.unsolicited.settle();
            }
            let mut asked_for_flags = false;
            let mut told = self.ask(session, &due).await;
            let made_up = self.made_up(session, reason, &due, &mut told).await;
            for index in due {
                let watched = &mut self.mailboxes[index];
                if made_up.binary_search(&index).is_ok() {
                    watched.ledger.forget_uid_next();
                }
                match told.states[index] {
                    Some(now) => {
                        watched.due = false;
                        // A connection that has ended answers no more questions.
                        let shown = match told.lost {
                            None => self.shown(session, index, &now).await?,
                            Some(_) => None,
                        };
                        asked_for_flags |= shown.is_some();
                        let news = self.compare(session, (index, now), shown, reason).await?;
                        changed |= news;
                        if session.covers(&self.mailboxes[index].mailbox, &self.methods) {
                            let interval = self.context.config.poll_interval;
                            session.again_at = news.then(|| Instant::now() + interval);
                        }
                    }
                    // It was not answered: the next connection asks again.
                    None if told.lost.is_some() => {}
                    None => {
                        watched.due = false;
                        let refusal = told.refusals.iter().rfind(|(of, _)| *of == index);
                        let why = refusal.map_or("no STATUS", |(_, refusal)| refusal.trim());
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

    /// The mailboxes that are to be looked at now, by place. One that is left out is not.
    fn due(&mut self) -> Vec<usize> {
        let (faults, now) = (&self.faults, Instant::now());
        for watched in &mut self.mailboxes {
            watched.due &= !faults.rests(&watched.mailbox, now);
        }
        (0..self.mailboxes.len()).filter(|index| self.mailboxes[*index].due).collect()
    }

    /// STATUS of a mailbox was refused, although the connection goes on. INBOX is asked for again after
    /// a time that grows. Others are asked for as ever: one that was deleted or renamed may come back,
    /// and its devices will register again.
    fn status_refused(&mut self, index: usize, why: &str) {
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
                    %account, %mailbox, why, ?wait,
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

    /// A connection on which INBOX is refused, and nothing else is watched, is of no use.
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

    /// The states of these mailboxes, in as few turns as the backend allows. Those under suspicion are
    /// asked for behind the others, each by itself.
    async fn ask(&mut self, session: &mut ImapSession<'_>, due: &[usize]) -> StatusAnswers {
        let states = vec![None; self.mailboxes.len()];
        let mut told = StatusAnswers { states, bad: false, refusals: Vec::new(), lost: None };
        let losses = |index: &usize| self.faults.losses(&self.mailboxes[*index].mailbox);
        let (due, mut suspects): (Vec<usize>, Vec<usize>) =
            due.iter().partition(|index| losses(index) == 0);
        // The one at which most connections ended comes last, so that others are found to be sound.
        suspects.sort_by_key(losses);
        if session.lists && due.len() > 1 {
            let asks = self.list_commands(session, &due);
            self.ask_once(session, &asks, &due, &mut told).await;
            // A part of a state that NOTIFY brought is no answer.
            for state in &mut told.states {
                state.take_if(|state| state.messages.is_none());
            }
        }
        // What LIST did not tell of may have a STATUS all the same.
        self.ask_each(session, &due, &mut told).await;
        for suspect in suspects {
            self.ask_each(session, &[suspect], &mut told).await;
        }
        told
    }

    /// Asks for those that are not told yet, by STATUS.
    async fn ask_each(
        &mut self,
        session: &mut ImapSession<'_>,
        due: &[usize],
        told: &mut StatusAnswers,
    ) {
        self.ask_by_status(session, due, told).await;
        if told.bad && session.mod_seq {
            // It lists CONDSTORE and does not know this item.
            session.mod_seq = false;
            self.ask_by_status(session, due, told).await;
        }
        let inbox = due.iter().position(|index| self.mailboxes[*index].mailbox.is_inbox());
        if let Some(place) = inbox
            && told.states[due[place]].is_none()
            && told.lost.is_none()
            && session.open.is_some()
        {
            // A server may refuse STATUS of the mailbox that is open (RFC 9051 section 6.3.11).
            if let Err(lost) = session.close().await {
                told.lost = Some(lost);
                return;
            }
            self.ask_by_status(session, &due[place..=place], told).await;
            // Where there is none in either case it is not IDLE that fails.
            if told.states[due[place]].is_some() {
                self.idle_refused(session);
            }
        }
    }

    async fn ask_by_status(
        &mut self,
        session: &mut ImapSession<'_>,
        due: &[usize],
        told: &mut StatusAnswers,
    ) {
        let missing = due.iter().filter(|index| told.states[**index].is_none());
        let asks: Vec<StatusCommand> = missing
            .map(|&index| {
                let name = quoted(&self.mailboxes[index].mailbox);
                StatusCommand {
                    command: format!("STATUS {name} {}", session.items()),
                    of: Some(index),
                }
            })
            .collect();
        told.bad = false;
        self.ask_once(session, &asks, due, told).await;
    }

    /// LIST with STATUS in it (RFC 5819), as often as its length demands. Names that it would take
    /// for patterns are left out.
    fn list_commands(&self, session: &ImapSession<'_>, due: &[usize]) -> Vec<StatusCommand> {
        let mailboxes = due.iter().map(|index| &self.mailboxes[*index].mailbox);
        let mut names = mailboxes.map(quoted).filter(|name| !name.contains(['*', '%'])).peekable();
        let mut asks = Vec::new();
        while let Some(first) = names.next() {
            let mut list = first;
            while let Some(next) =
                names.next_if(|next| list.len() + next.len() < LONGEST_COMMAND - 200)
            {
                list.push(' ');
                list.push_str(&next);
            }
            let command = format!("LIST \"\" ({list}) RETURN (STATUS {})", session.items());
            asks.push(StatusCommand { command, of: None });
        }
        asks
    }

    /// Sends these commands, which ask for those that are `due`. Nothing is asked once the connection
    /// has ended.
    async fn ask_once(
        &mut self,
        session: &mut ImapSession<'_>,
        asks: &[StatusCommand],
        due: &[usize],
        told: &mut StatusAnswers,
    ) {
        if told.lost.is_some() || asks.is_empty() {
            return;
        }
        let commands: Vec<String> = asks.iter().map(|ask| ask.command.clone()).collect();
        let place = |mailbox: &Mailbox| self.place(mailbox);
        let mut unasked = Vec::new();
        let mut unanswered = vec![true; asks.len()];
        let lists = &mut session.lists;
        let answered =
            |number: usize, result: Result<(), CommandRefused>, news: &mut Unsolicited| {
                unanswered[number] = false;
                let of = asks[number].of;
                *lists &= of.is_some() || result.is_ok();
                for (mailbox, state) in news.take_states() {
                    // Whatever a server calls it, the answer to a STATUS is about its mailbox.
                    let Some(index) = mailbox.as_ref().and_then(place).or(of) else { continue };
                    if !self.mailboxes[index].due {
                        unasked.push((mailbox, state));
                        continue;
                    }
                    let known = told.states[index].get_or_insert_default();
                    *known = merged(known, &state);
                }
                if let (Some(index), Err(CommandRefused { bad, refusal })) = (of, result) {
                    told.bad |= bad;
                    told.states[index] = None;
                    told.refusals.push((index, refusal));
                }
            };
        let asked = session.connection.commands(&commands, answered).await;
        for (mailbox, state) in unasked {
            session.connection.unsolicited.read_state(mailbox, state);
        }
        if let Err(lost) = asked {
            // A server answers in order.
            let first = unanswered.iter().position(|unanswered| *unanswered);
            let first = first.and_then(|first| asks[first].of);
            self.lost_at(session, due, first, told, lost.to_string());
            told.lost = Some(lost);
            return;
        }
        for &index in due {
            if told.states[index].is_none() {
                continue;
            }
            session.answered = true;
            let mailbox = &self.mailboxes[index].mailbox;
            if self.faults.answered(mailbox) {
                tracing::info!(
                    target: "mailchime::watch::status_answered",
                    account = %self.account, %mailbox,
                    "the backend answers STATUS again; mailchime watches this mailbox again"
                );
            }
        }
    }

    /// The connection ended while these were asked for, at the `first` of them or at any.
    fn lost_at(
        &mut self,
        session: &ImapSession<'_>,
        due: &[usize],
        first: Option<usize>,
        told: &StatusAnswers,
        why: String,
    ) {
        let Some(index) = first else {
            let untold = due.iter().filter(|index| told.states[**index].is_none());
            self.faults.suspect(untold.map(|index| &self.mailboxes[*index].mailbox));
            return;
        };
        let (account, mailbox) = (&self.account, &self.mailboxes[index].mailbox);
        // Where nothing was answered, it may be the backend that has failed altogether.
        if self.faults.losses(mailbox) == 0 || !session.answered {
            self.faults.suspect([mailbox].into_iter());
            return;
        }
        let first = self.context.config.poll_max;
        let times = self.faults.leave_out(mailbox, why.clone());
        let backoff = Backoff::new(first, first.saturating_mul(LONGEST_LEFT_OUT));
        let wait = backoff.wait(times, rand::random());
        self.faults.rest(mailbox, Instant::now() + wait, Timestamp::now().plus(wait));
        tracing::warn!(
            target: "mailchime::watch::mailbox_set_aside",
            %account, %mailbox, why, ?wait,
            "the backend closes the connection, or does not answer, when asked for this mailbox; \
             mailchime leaves it out and watches the others. See the backend's log"
        );
    }

    /// Where the numbers alone do not say whether a phone would show anything new, finds out by the
    /// flags. `None` where the numbers say it.
    async fn shown(
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
        if session.open.is_some() {
            self.examine_inbox(session).await?;
        } else {
            session.connection.command("CLOSE", |_| {}).await?;
            session.connection.unsolicited.back_in_inbox(None);
        }
        Ok(shown)
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
        let (surprise, announced) = (ledger.expects_nothing(), ledger.has_announced());
        let consequence = ledger.look(&now, shown, || context.next_id());
        let Consequence::Changed { kind, .. } = consequence else {
            self.tell(index, consequence).await?;
            return Ok(announced);
        };
        tracing::debug!(
            target: "mailchime::watch::mailbox_changed",
            account = %self.account, %mailbox, ?kind, "mailbox changed"
        );
        if kind == ChangeKind::NewMail && surprise {
            self.missed(session, index, reason);
        }
        self.tell(index, consequence).await?;
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

    /// Something happened in this mailbox, as far as is known: tells `push` of new mail before it has been
    /// looked at, and has what is to be looked at looked at.
    pub(in crate::watch) async fn hint(
        &mut self,
        index: usize,
        kind: Option<ChangeKind>,
        state: &Snapshot,
    ) -> Result<Consequence, SessionEnd> {
        let context = Arc::clone(&self.context);
        let watched = &mut self.mailboxes[index];
        let follows = watched.ledger.hint(kind, state, || context.next_id());
        watched.due |= follows.urgency().is_some();
        self.tell(index, follows).await?;
        Ok(follows)
    }

    /// Tells `push` what follows, if that concerns it.
    async fn tell(&self, index: usize, follows: Consequence) -> Result<(), SessionEnd> {
        if matches!(follows, Consequence::Nothing | Consequence::LookDue(_)) {
            return Ok(());
        }
        let room = self.context.room().await?;
        let account = self.account.clone();
        let backend = self.backend.id().clone();
        let mailbox = self.mailboxes[index].mailbox.clone();
        let seen_at = StdInstant::now();
        let event = match follows {
            Consequence::Nothing | Consequence::LookDue(_) => return Ok(()),
            Consequence::Announced { id } => {
                let kind = ChangeKind::NewMail;
                self.status.event(kind);
                let snapshot = None;
                let change = Change { account, backend, mailbox, kind, id, snapshot, seen_at };
                WatchEvent::Announced(change)
            }
            Consequence::Changed { kind, id, state } => {
                self.status.event(kind);
                let snapshot = Some(state);
                let change = Change { account, backend, mailbox, kind, id, snapshot, seen_at };
                WatchEvent::Changed(change)
            }
            Consequence::Rebased { id, state: snapshot } => {
                WatchEvent::Rebased { account, backend, mailbox, id, snapshot }
            }
        };
        room.send(event);
        Ok(())
    }

    pub(in crate::watch) fn place(&self, mailbox: &Mailbox) -> Option<usize> {
        self.mailboxes.binary_search_by(|watched| in_order(&watched.mailbox, mailbox)).ok()
    }
}

impl WatchContext {
    async fn room(&self) -> Result<EventPermit<'_>, SessionEnd> {
        self.events.reserve().await.map_err(|_| SessionEnd::Stop)
    }
}

/// What STATUS is asked for, with HIGHESTMODSEQ where the backend has it.
pub(in crate::watch) fn items(mod_seq: bool) -> &'static str {
    if mod_seq { ITEMS_CONDSTORE } else { ITEMS }
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

    /// The items of STATUS that the backend takes.
    fn items(&self) -> &'static str {
        items(self.mod_seq)
    }
}
