//! What the devices of an account know of a mailbox, and what follows from what a source says of it.
//!
//! ```text
//!   known, announced ──┬── a hint: a part of the state, perhaps ──▶ Announced, a look is due, or nothing
//!                      ├── an event of another source ───────────▶ the same, or with enough numbers as a look
//!                      └── a look: the whole state ──────────────▶ Changed, Rebased, or nothing
//! ```
//!
//! Pure: no I/O and no clock. Each source uses it alike.

use std::ops::RangeInclusive;

use super::snapshot::{difference, first_seen, is_older, looked, merged, only_mod_seq_differs};
use super::snapshot::{renumbered, with_new_mail};
use crate::model::{ChangeKind, MailboxEvent, Snapshot};

/// The most new mail whose flags are asked for.
const MOST_ASKED: u64 = 1000;

/// Events of mail that looks have shown are waited for no longer if so many looks in a row show that as many are still to
/// come. While they are, new mail is not announced before a look.
const LONGEST_WAIT: u8 = 2;

/// One mailbox.
#[derive(Debug)]
pub(super) struct Ledger {
    /// Its state as the devices know it, or will by the last event that `push` got.
    known: Snapshot,
    /// How many messages were unread before the new mail that came last, with all that was announced and no look has
    /// confirmed.
    unread_before: Option<u64>,
    /// A look is due, so older mail may have been read that `known` has as unread.
    is_doubtful: bool,
    /// New mail in `known` that no look has confirmed yet.
    announced: Option<Unconfirmed>,
    /// The new UIDVALIDITY, if the last look showed one.
    renumbered: Option<u64>,
    /// UIDVALIDITY was another one at each of the last looks: the server makes its numbers up.
    unnumbered: bool,
    /// Mail that looks have shown and of which no event has told: the event may still come.
    untold: u64,
    /// Looks in a row after which there was no less of it.
    waited: u8,
    /// Events of new mail since the last look.
    told_of: u32,
}

/// New mail that `push` heard of before a look at it.
#[derive(Clone, Copy, Debug)]
struct Unconfirmed {
    /// Of the event.
    id: u64,
    /// Messages of which nothing but the count of messages says that they are unread.
    thought_unread: u64,
    /// By how much `known` is ahead of the last look.
    mails: u64,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Consequence {
    Nothing,
    /// Only a look can tell; how urgent it is.
    LookDue(ChangeKind),
    /// `push` gets word of new mail at once, and a look is due.
    Announced {
        id: u64,
    },
    /// The devices get a push for this state.
    Changed {
        kind: ChangeKind,
        id: u64,
        state: Snapshot,
    },
    /// The devices need no push for this state, beyond what was announced.
    Rebased {
        id: u64,
        state: Snapshot,
    },
}

/// What the numbers of a look leave open, and flags tell: whether a phone would show anything new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unclear {
    /// Some of the announced mail seems to have been read before it came.
    ArrivedRead(ArrivedRead),
    /// Only HIGHESTMODSEQ differs: flags have changed.
    Flags,
}

/// New mail of which some seems to have been read before it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ArrivedRead {
    /// The UIDs of all of it.
    pub(super) uids: RangeInclusive<u64>,
    /// How much of it was read.
    pub(super) read: u64,
}

impl Consequence {
    /// Whether a look is due, and how urgent it is.
    pub(super) fn urgency(&self) -> Option<ChangeKind> {
        match self {
            Self::LookDue(kind) => Some(*kind),
            Self::Announced { .. } => Some(ChangeKind::NewMail),
            Self::Nothing | Self::Changed { .. } | Self::Rebased { .. } => None,
        }
    }
}

impl Ledger {
    /// Of a mailbox whose devices know this state.
    pub(super) fn new(told: Snapshot) -> Self {
        Self {
            known: told,
            unread_before: None,
            is_doubtful: false,
            announced: None,
            renumbered: None,
            unnumbered: false,
            untold: 0,
            waited: 0,
            told_of: 0,
        }
    }

    /// Whether nobody has looked at it, and no registration has brought its state.
    pub(super) fn is_unknown(&self) -> bool {
        self.announced.is_none() && self.known == Snapshot::default()
    }

    /// A registration may have brought the state that the devices know. Where it was known, it stays.
    pub(super) fn registered(&mut self, told: Snapshot) {
        if self.is_unknown() {
            self.known = told;
        }
    }

    /// The state that the devices know, or will by the last event that `push` got.
    pub(super) fn known(&self) -> &Snapshot {
        &self.known
    }

    /// How many messages were unread before the new mail that came last, where that was known.
    pub(super) fn unread_before(&self) -> Option<u64> {
        self.unread_before
    }

    /// New mail comes on top of what is known, before a look.
    fn new_mail_comes(&mut self) {
        if self.announced.is_none() {
            self.unread_before = self.known.unseen.filter(|_| !self.is_doubtful);
        }
    }

    /// A look found new mail. The user may have read older mail meanwhile, so the lowest number counts that may be right.
    fn new_mail_is_seen(&mut self, now: &Snapshot, is_renumbered: bool) {
        let (before, announced) = match self.announced {
            Some(announced) => (self.unread_before, announced.thought_unread),
            None => (self.known.unseen, 0),
        };
        let older = now.unseen.zip(arrived(&self.known, now, 0)).filter(|_| !is_renumbered);
        let older =
            older.map(|(unseen, arrived)| unseen.saturating_sub(arrived.saturating_add(announced)));
        // What is not known is lower than any number.
        self.unread_before = before.min(older);
    }

    /// Only a look can tell what has happened.
    fn look_is_due(&mut self, kind: ChangeKind) -> Consequence {
        self.is_doubtful = true;
        Consequence::LookDue(kind)
    }

    /// Whether new mail would be a surprise: some state is known, and nothing was announced.
    pub(super) fn expects_nothing(&self) -> bool {
        self.announced.is_none() && self.known != Snapshot::default()
    }

    /// Whether there is an announcement that no look has confirmed.
    pub(super) fn has_announced(&self) -> bool {
        self.announced.is_some()
    }

    /// A source says that something happened, of this kind if it knows, and as much of the new state as it
    /// knows. Counts of messages that grew are new mail; `next_id` gives the event its number.
    pub(super) fn hint(
        &mut self,
        kind: Option<ChangeKind>,
        state: &Snapshot,
        next_id: impl FnOnce() -> u64,
    ) -> Consequence {
        // Where UIDNEXT is not told, or stands still, more messages are new ones.
        let arrived = match (state.messages, self.known.messages) {
            (None, _) => {
                let grown = state.uid_next.zip(self.known.uid_next);
                grown.map_or(0, |(now, known)| now.saturating_sub(known))
            }
            _ if state.uid_next > self.known.uid_next => 0,
            (Some(now), Some(known)) => now.saturating_sub(known),
            (Some(_), None) => 0,
        };
        let thought = match arrived {
            0 => merged(&self.known, state),
            _ => merged(&with_new_mail(&self.known, arrived), state),
        };
        let thought = looked(&self.known, &thought);
        let differs = difference(&self.known, &thought);
        if differs == Some(ChangeKind::NewMail) {
            let id = next_id();
            let unread = if state.unseen.is_some() { 0 } else { arrived };
            let before = self.announced.map_or(0, |before| before.thought_unread);
            self.announce(thought, id, before.saturating_add(unread));
            return Consequence::Announced { id };
        }
        differs.max(kind).map_or(Consequence::Nothing, |kind| self.look_is_due(kind))
    }

    /// The devices hear of new mail before a look, which is to find this state.
    fn announce(&mut self, thought: Snapshot, id: u64, thought_unread: u64) {
        self.new_mail_comes();
        let before = self.announced.map_or(0, |before| before.mails);
        let mails = arrived(&self.known, &thought, before).unwrap_or(before);
        self.known = thought;
        self.announced = Some(Unconfirmed { id, thought_unread, mails });
    }

    /// An event of this kind has come, also where it only has the mailbox looked at.
    pub(super) fn hears_of(&mut self, kind: ChangeKind) {
        self.told_of = self.told_of.saturating_add(u32::from(kind == ChangeKind::NewMail));
    }

    /// Events have told of all mail that looks have shown.
    pub(super) fn is_told(&mut self) {
        (self.untold, self.waited) = (0, 0);
    }

    /// A look shows which of the events had mail of their own. Whether more have come than mail, so that one of them
    /// may have told of mail that the devices knew: what was announced by it was not this mail.
    fn counts_events(&mut self, now: &Snapshot, is_renumbered: bool) -> bool {
        let told_of = u64::from(std::mem::take(&mut self.told_of));
        let before = self.announced.map_or(0, |before| before.mails);
        let Some(mails) = arrived(&self.known, now, before).filter(|_| !is_renumbered) else {
            self.is_told();
            return false;
        };
        let mails = self.untold.saturating_add(mails);
        let untold = mails.saturating_sub(told_of);
        self.waited = if untold == self.untold && untold > 0 { self.waited + 1 } else { 0 };
        self.untold = untold;
        if self.waited == LONGEST_WAIT {
            // Events were lost, or UIDNEXT has jumped.
            self.is_told();
        }
        told_of > mails
    }

    /// Another source than the account's connection says that this happened, and as much of the state after it as it
    /// knows. Enough numbers are a look: those in `state` are compared, the others are kept. Where only flags have
    /// changed, and the event does not say that phones show one of them, a look has to tell. New mail without numbers is
    /// announced.
    pub(super) fn event(
        &mut self,
        event: MailboxEvent,
        state: &Snapshot,
        next_id: impl FnOnce() -> u64,
    ) -> Consequence {
        let kind = event.kind();
        self.hears_of(kind);
        // Events may overtake each other, and a mailbox that was made anew has to be seen twice.
        if renumbered(&self.known, state).is_some() || is_older(&self.known, state) {
            return self.look_is_due(kind);
        }
        let counts = [state.uid_next, state.messages, state.unseen];
        let now = merged(&self.known, state);
        let shown = only_mod_seq_differs(&self.known, &now).then(|| event.changes_shown_flags());
        if counts.iter().all(Option::is_some) && shown != Some(false) {
            return self.look(&now, shown, next_id);
        }
        let uncounted = counts.iter().all(Option::is_none);
        // Where a look has shown its mail already it foretells nothing: the next mail would be taken for it.
        let is_news = kind == ChangeKind::NewMail && u64::from(self.told_of) > self.untold;
        if uncounted && is_news && self.expects_nothing() {
            let id = next_id();
            self.announce(with_new_mail(&self.known, 1), id, 1);
            return Consequence::Announced { id };
        }
        self.hint(Some(kind), state, next_id)
    }

    /// Whether the numbers of a look leave open if a phone would show anything new. `flags_told`: the
    /// source tells flags of this mailbox unasked, so arrived mail can be asked for.
    pub(super) fn unclear(&self, now: &Snapshot, flags_told: bool) -> Option<Unclear> {
        let arrived = match &self.announced {
            Some(announced) if flags_told => {
                arrived_read(&self.known, now, announced.thought_unread)
            }
            _ => None,
        };
        match arrived {
            Some(arrived) => Some(Unclear::ArrivedRead(arrived)),
            None => only_mod_seq_differs(&self.known, now).then_some(Unclear::Flags),
        }
    }

    /// The server makes UIDNEXT up: it is not compared with the next look.
    pub(super) fn forget_uid_next(&mut self) {
        self.known.uid_next = None;
    }

    /// A look found this state. `shown` answers what was [unclear](Self::unclear): whether a phone would
    /// show anything new.
    pub(super) fn look(
        &mut self,
        now: &Snapshot,
        shown: Option<bool>,
        next_id: impl FnOnce() -> u64,
    ) -> Consequence {
        let state = looked(&self.known, now);
        let new_number = renumbered(&self.known, &state);
        let was_new = self.renumbered.take();
        if self.unnumbered {
            self.forget_uid_next();
        }
        // The state was unknown at the registration.
        let unknown = self.known == Snapshot::default() && state != Snapshot::default();
        let differs = match shown {
            Some(shown) => shown.then_some(ChangeKind::Quiet),
            None => difference(&self.known, &state).or(unknown.then(|| first_seen(&state))),
        };
        self.renumbered = new_number;
        self.unnumbered = new_number.is_some() && (self.unnumbered || was_new.is_some());
        if differs == Some(ChangeKind::NewMail) {
            self.new_mail_is_seen(&state, new_number.is_some());
        }
        let is_doubled = self.counts_events(&state, new_number.is_some());
        let announced = self.announced.take();
        self.is_doubtful = false;
        self.known = state;
        let differs =
            differs.or((is_doubled && announced.is_some()).then_some(ChangeKind::NewMail));
        if let Some(kind) = differs {
            return Consequence::Changed { kind, id: next_id(), state };
        }
        // Where all that differs is a UIDVALIDITY that stays, the mailbox was made anew: the devices need
        // no push, but the next start has to compare with this state. Some servers (Mailutils imap4d)
        // give a new one at each look. So it is with flags that no phone shows.
        let moved = was_new.is_some() && was_new == state.uid_validity || shown.is_some();
        match announced {
            Some(Unconfirmed { id, .. }) => Consequence::Rebased { id, state },
            None if moved => Consequence::Rebased { id: next_id(), state },
            None => Consequence::Nothing,
        }
    }
}

/// How many messages have come since that state without the last `foretold` of it, as far as the numbers say.
fn arrived(before: &Snapshot, now: &Snapshot, foretold: u64) -> Option<u64> {
    let numbers = [(before.uid_next, now.uid_next), (before.messages, now.messages)];
    let arrived = |now: u64, before| now.saturating_add(foretold).saturating_sub(before);
    numbers.into_iter().find_map(|(before, now)| Some(arrived(now?, before?)))
}

/// Whether all that differs from what was `thought` is that some of the new mail is not unread.
fn arrived_read(thought: &Snapshot, now: &Snapshot, thought_unread: u64) -> Option<ArrivedRead> {
    let as_thought = Snapshot { unseen: thought.unseen, ..*now };
    let read = thought.unseen?.checked_sub(now.unseen?)?;
    let next = now.uid_next?;
    let uids = next.checked_sub(thought_unread)?.max(1)..=next.checked_sub(1)?;
    let is_it = thought_unread <= MOST_ASKED
        && (1..=thought_unread).contains(&read)
        && thought.uid_next == now.uid_next
        && thought.messages == now.messages
        && difference(thought, &as_thought).is_none();
    is_it.then_some(ArrivedRead { uids, read })
}

#[cfg(test)]
mod tests;
