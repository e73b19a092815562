//! Looks at mailboxes: their states asked for in one go, compared with what is known, and what
//! differs told to `push`.

use std::sync::Arc;
use std::time::Instant as StdInstant;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Context;
use super::account::{End, Watcher, in_order};
use super::connection::Answer;
use super::rounds::{LONGEST_COMMAND, Look, Round, quoted};
use super::snapshot::{difference, merged, only_uid_next_grew, renumbered, with_new_mail};
use super::upstream::Upstream;
use crate::model::{Change, ChangeKind, Mailbox, Snapshot, WatchEvent};

/// What STATUS is asked for, with and without CONDSTORE (RFC 7162 section 3.1.7).
const ITEMS: &str = "(MESSAGES UIDNEXT UIDVALIDITY UNSEEN)";
const ITEMS_CONDSTORE: &str = "(MESSAGES UIDNEXT UIDVALIDITY UNSEEN HIGHESTMODSEQ)";

/// Room for one event on its way to `push`. It is waited for first: a future that holds the event
/// meanwhile would be larger, for each of many accounts.
type Room<'a> = mpsc::Permit<'a, WatchEvent>;

/// A command that asks for states.
struct Ask {
    command: String,
    /// The only mailbox that it asks for, by its place.
    of: Option<usize>,
}

/// The states that were asked for, by place; `None` is what has not been told.
struct Told {
    states: Vec<Option<Snapshot>>,
    /// STATUS was answered BAD.
    bad: bool,
}

impl Watcher {
    /// Looks at the mailboxes that are due, and tells `push` of what differs. Whether there was
    /// anything.
    pub(super) async fn look(&mut self, round: &mut Round<'_>, look: Look) -> Result<bool, End> {
        if look == Look::Poll {
            for watched in &mut self.mailboxes {
                watched.due |= !round.covers(&watched.mailbox, &self.ways);
            }
        }
        let mut changed = false;
        // What is told of INBOX on the way does not wait, but what else is told does.
        for _ in 0..2 {
            let due: Vec<usize> =
                (0..self.mailboxes.len()).filter(|index| self.mailboxes[*index].due).collect();
            if due.iter().any(|index| self.mailboxes[*index].mailbox.is_inbox()) {
                // What is told from here on may be later than the snapshot.
                round.connection.news.settle();
            }
            let told = self.ask(round, &due).await?;
            let made_up = self.made_up(round, look, &due, &told).await?;
            for index in due {
                let watched = &mut self.mailboxes[index];
                watched.due = false;
                if made_up.binary_search(&index).is_ok() {
                    watched.known.uid_next = None;
                }
                match told.states[index] {
                    Some(now) => {
                        let news = self.compare(round, index, now, look).await?;
                        changed |= news;
                        if round.covers(&self.mailboxes[index].mailbox, &self.ways) {
                            let interval = self.context.config.poll_interval;
                            round.again_at = news.then(|| Instant::now() + interval);
                        }
                    }
                    None if watched.mailbox.is_inbox() => {
                        return Err(End::Failed("there is no STATUS of INBOX".into()));
                    }
                    // Deleted or renamed, it may come back; its devices will register again.
                    None => {
                        let (account, mailbox) = (&self.account, &watched.mailbox);
                        tracing::debug!(%account, %mailbox, "has no STATUS");
                    }
                }
            }
            match self.hear(round).await? {
                Some(ChangeKind::NewMail) => changed = true,
                _ => break,
            }
        }
        Ok(changed)
    }

    /// Which of them have a UIDNEXT that grows with each question (Mailutils imap4d): where nothing
    /// else has changed, and nothing was told unasked, it is asked for once more. In their order.
    async fn made_up(
        &mut self,
        round: &mut Round<'_>,
        look: Look,
        due: &[usize],
        told: &Told,
    ) -> Result<Vec<usize>, End> {
        if look == Look::News {
            return Ok(Vec::new());
        }
        let grew = |index: &usize, since: &Snapshot, now: Option<Snapshot>| {
            now.is_some_and(|now| only_uid_next_grew(since, &now)).then_some(*index)
        };
        let grown = due
            .iter()
            .filter_map(|index| grew(index, &self.mailboxes[*index].known, told.states[*index]));
        let grown: Vec<usize> = grown.collect();
        if grown.is_empty() {
            return Ok(grown);
        }
        let again = self.ask(round, &grown).await?;
        let still = |index: &usize| grew(index, &told.states[*index]?, again.states[*index]);
        Ok(grown.iter().filter_map(still).collect())
    }

    /// The states of these mailboxes, in as few turns as the backend allows.
    async fn ask(&mut self, round: &mut Round<'_>, due: &[usize]) -> Result<Told, End> {
        let mut told = Told { states: vec![None; self.mailboxes.len()], bad: false };
        if round.lists && due.len() > 1 {
            let asks = self.list_commands(round, due);
            self.ask_once(round, &asks, &mut told).await?;
            // A part of a state that NOTIFY brought is no answer.
            for state in &mut told.states {
                state.take_if(|state| state.messages.is_none());
            }
        }
        // What LIST did not tell of may have a STATUS all the same.
        self.ask_each(round, due, &mut told).await?;
        if told.bad && round.mod_seq {
            // It lists CONDSTORE and does not know this item.
            round.mod_seq = false;
            self.ask_each(round, due, &mut told).await?;
        }
        let inbox = due.iter().position(|index| self.mailboxes[*index].mailbox.is_inbox());
        if let Some(place) = inbox
            && told.states[due[place]].is_none()
            && round.open.is_some()
        {
            // A server may refuse STATUS of the mailbox that is open (RFC 9051 section 6.3.11).
            round.idles = false;
            round.close().await?;
            self.ask_each(round, &due[place..=place], &mut told).await?;
            // Where there is none in either case it is not IDLE that fails.
            if told.states[due[place]].is_some() {
                self.idle_refused(round);
            }
        }
        Ok(told)
    }

    /// Asks for those that are not told yet, each by itself.
    async fn ask_each(
        &self,
        round: &mut Round<'_>,
        due: &[usize],
        told: &mut Told,
    ) -> Result<(), End> {
        let missing = due.iter().filter(|index| told.states[**index].is_none());
        let asks: Vec<Ask> = missing
            .map(|&index| {
                let name = quoted(&self.mailboxes[index].mailbox);
                Ask { command: format!("STATUS {name} {}", round.items()), of: Some(index) }
            })
            .collect();
        told.bad = false;
        self.ask_once(round, &asks, told).await
    }

    /// LIST with STATUS in it (RFC 5819), as often as its length demands. Names that it would take
    /// for patterns are left out.
    fn list_commands(&self, round: &Round<'_>, due: &[usize]) -> Vec<Ask> {
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
            let command = format!("LIST \"\" ({list}) RETURN (STATUS {})", round.items());
            asks.push(Ask { command, of: None });
        }
        asks
    }

    async fn ask_once(
        &self,
        round: &mut Round<'_>,
        asks: &[Ask],
        told: &mut Told,
    ) -> Result<(), End> {
        let commands: Vec<String> = asks.iter().map(|ask| ask.command.clone()).collect();
        let place = |mailbox: &Mailbox| self.place(mailbox);
        let mut unasked = Vec::new();
        let lists = &mut round.lists;
        let answered = |number: usize, answer, news: &mut super::news::News| {
            let of = asks[number].of;
            if of.is_none() && answer != Answer::Ok {
                *lists = false;
            }
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
            if let Some(index) = of
                && answer != Answer::Ok
            {
                told.bad |= answer == Answer::Bad;
                told.states[index] = None;
            }
        };
        round.connection.commands(&commands, answered).await?;
        for (mailbox, state) in unasked {
            round.connection.news.read_state(mailbox, state);
        }
        Ok(())
    }

    /// Compares what was known with what is. Whether that was news.
    async fn compare(
        &mut self,
        round: &Round<'_>,
        index: usize,
        now: Snapshot,
        look: Look,
    ) -> Result<bool, End> {
        let watched = &mut self.mailboxes[index];
        let new_number = renumbered(&watched.known, &now);
        let was_new = watched.renumbered.take();
        if watched.unnumbered {
            watched.known.uid_next = None;
        }
        let difference = difference(&watched.known, &now);
        watched.renumbered = new_number;
        watched.unnumbered = new_number.is_some() && (watched.unnumbered || was_new.is_some());
        let announced = watched.announced.take();
        watched.known = now;
        if let Some(kind) = difference {
            let (account, mailbox) = (&self.account, &watched.mailbox);
            tracing::debug!(%account, %mailbox, ?kind, "changed");
            if kind == ChangeKind::NewMail && announced.is_none() {
                self.missed(round, index, look);
            }
            let context = Arc::clone(&self.context);
            let room = context.room().await?;
            self.tell(index, kind, Some(now), room);
            return Ok(true);
        }
        // Where all that differs is a UIDVALIDITY that stays, the mailbox was made anew: there is
        // nothing to tell the devices, but the next start has to compare with this one. Some servers
        // (Mailutils imap4d) give a new one at each look.
        let moved = was_new.is_some() && was_new == now.uid_validity;
        let id = announced.or_else(|| moved.then(|| self.context.next_id()));
        if let Some(id) = id {
            let room = self.context.room().await?;
            let (account, mailbox) = (self.account.clone(), watched.mailbox.clone());
            let backend = self.backend.id().clone();
            room.send(WatchEvent::Confirmed { account, backend, mailbox, id, snapshot: now });
        }
        Ok(announced.is_some())
    }

    /// A look found new mail that nothing had told of.
    fn missed(&mut self, round: &Round<'_>, index: usize, look: Look) {
        let (idle, notify) = match look {
            Look::Check { idle, notify } => (idle, notify),
            Look::Poll => (round.idle_tells(), round.armed),
            Look::All | Look::News => return,
        };
        let (apart, account) = (self.context.config.idle_check, &self.account);
        let inbox = self.mailboxes[index].mailbox.is_inbox();
        let Upstream { idle: by_idle, notify: by_notify, .. } = round.upstream;
        let (way, caught) = match (inbox && idle, notify) {
            (true, _) => ("IDLE", self.ways.idle.missed(by_idle, account, apart)),
            (false, true) => ("NOTIFY", self.ways.notify.missed(by_notify, account, apart)),
            (false, false) => return,
        };
        self.given_up(round, way, "is accepted and tells nothing", caught);
    }

    /// Takes note of what was told unasked: announces new mail before it has been looked at, and
    /// marks what is to be looked at. The most urgent of it.
    pub(super) async fn hear(&mut self, round: &mut Round<'_>) -> Result<Option<ChangeKind>, End> {
        let context = Arc::clone(&self.context);
        let mut heard = None;
        self.hear_overflow(round);
        let news = &mut round.connection.news;
        let (grown, other, states) = (news.take_grown(), news.take_other(), news.take_states());
        if let Some(inbox) = self.place(&Mailbox::inbox()) {
            let watched = &mut self.mailboxes[inbox];
            if other {
                watched.due = true;
                heard = Some(ChangeKind::Quiet);
            }
            if let Some(count) = grown {
                watched.due = true;
                heard = Some(ChangeKind::NewMail);
                // Where messages went as well, only a look can tell.
                let arrived = watched.known.messages.and_then(|known| count.checked_sub(known));
                if let Some(arrived @ 1..) = arrived {
                    let thought = with_new_mail(&watched.known, arrived);
                    // What comes with the answer to something else is no sign that IDLE works.
                    if round.connection.idles() {
                        self.ways.idle.told(&round.upstream.idle);
                    }
                    let room = context.room().await?;
                    self.announce(inbox, thought, room);
                }
            }
        }
        for (mailbox, state) in states {
            let Some(index) = mailbox.as_ref().and_then(|mailbox| self.place(mailbox)) else {
                continue;
            };
            let watched = &mut self.mailboxes[index];
            // Where a server tells the number of messages alone, more of them are new ones.
            let arrived = match (state.uid_next, state.messages, watched.known.messages) {
                (None, Some(now), Some(known)) => now.saturating_sub(known),
                _ => 0,
            };
            let thought = match arrived {
                0 => merged(&watched.known, &state),
                _ => merged(&with_new_mail(&watched.known, arrived), &state),
            };
            let Some(kind) = difference(&watched.known, &thought) else { continue };
            watched.due = true;
            heard = heard.max(Some(kind));
            if kind == ChangeKind::NewMail {
                self.ways.notify.told(&round.upstream.notify);
                let room = context.room().await?;
                self.announce(index, thought, room);
            }
        }
        Ok(heard)
    }

    /// New mail was told of, which makes the mailbox what it is `thought` to be.
    fn announce(&mut self, index: usize, thought: Snapshot, room: Room<'_>) {
        self.mailboxes[index].known = thought;
        let id = self.tell(index, ChangeKind::NewMail, None, room);
        self.mailboxes[index].announced = Some(id);
    }

    /// Tells `push` of a change; its id.
    fn tell(
        &self,
        index: usize,
        kind: ChangeKind,
        snapshot: Option<Snapshot>,
        room: Room<'_>,
    ) -> u64 {
        let id = self.context.next_id();
        self.status.event(kind);
        room.send(WatchEvent::Changed(Change {
            account: self.account.clone(),
            backend: self.backend.id().clone(),
            mailbox: self.mailboxes[index].mailbox.clone(),
            kind,
            id,
            snapshot,
            seen_at: StdInstant::now(),
        }));
        id
    }

    pub(super) fn place(&self, mailbox: &Mailbox) -> Option<usize> {
        self.mailboxes.binary_search_by(|watched| in_order(&watched.mailbox, mailbox)).ok()
    }
}

impl Context {
    async fn room(&self) -> Result<Room<'_>, End> {
        self.events.reserve().await.map_err(|_| End::Stop)
    }
}

impl Round<'_> {
    /// The items of STATUS that the backend takes.
    fn items(&self) -> &'static str {
        if self.mod_seq { ITEMS_CONDSTORE } else { ITEMS }
    }
}
