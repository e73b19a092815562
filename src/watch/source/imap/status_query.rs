//! Asks for the states of several mailboxes in as few turns as the backend allows, and finds out at which of
//! them a connection ends.

use tokio::time::Instant;

use super::connection::{CommandRefused, ConnectionLost};
use super::session::{ImapSession, LONGEST_COMMAND, quoted};
use super::unsolicited::Unsolicited;
use crate::model::{Mailbox, Snapshot, Timestamp, seconds};
use crate::net::backoff::Backoff;
use crate::watch::snapshot::merged;
use crate::watch::watcher::Watcher;

/// What STATUS is asked for, with and without CONDSTORE (RFC 7162 section 3.1.7).
const ITEMS: &str = "(MESSAGES UIDNEXT UIDVALIDITY UNSEEN)";
const ITEMS_CONDSTORE: &str = "(MESSAGES UIDNEXT UIDVALIDITY UNSEEN HIGHESTMODSEQ)";

/// For how long a mailbox is left out at most, in times of the first: `[watch] poll_max`.
const LONGEST_LEFT_OUT: u32 = 64;

/// A command that asks for states.
struct StatusCommand {
    command: String,
    /// The only mailbox that it asks for, by its place.
    of: Option<usize>,
}

/// The states that were asked for, by place; `None` is what has not been told.
pub(super) struct StatusAnswers {
    pub(super) states: Vec<Option<Snapshot>>,
    /// STATUS was answered BAD.
    pub(super) bad: bool,
    /// What the backend said to those that it refused, by place.
    pub(super) refusals: Vec<(usize, Box<str>)>,
    /// The connection ended before all had an answer.
    pub(super) lost: Option<ConnectionLost>,
}

/// What STATUS is asked for, with HIGHESTMODSEQ where the backend has it.
pub(in crate::watch) fn items(mod_seq: bool) -> &'static str {
    if mod_seq { ITEMS_CONDSTORE } else { ITEMS }
}

impl Watcher {
    /// The states of these mailboxes, in as few turns as the backend allows. Those under suspicion are
    /// asked for behind the others, each by itself.
    pub(super) async fn ask(
        &mut self,
        session: &mut ImapSession<'_>,
        due: &[usize],
    ) -> StatusAnswers {
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
            let missing = due.iter().filter(|index| told.states[**index].is_none());
            self.faults.suspect(missing.map(|index| &self.mailboxes[*index].mailbox));
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
            %account, %mailbox, why, wait_seconds = seconds(wait),
            "the backend closes the connection, or does not answer, when asked for this mailbox; \
             mailchime leaves it out and watches the others. See the backend's log"
        );
    }
}

impl ImapSession<'_> {
    /// The items of STATUS that the backend takes.
    fn items(&self) -> &'static str {
        items(self.mod_seq)
    }
}
