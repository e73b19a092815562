//! What the devices of an account know of a mailbox, and what follows from what a source says of it.
//!
//! ```text
//!   known, announced ──┬── a hint: a part of the state, perhaps ──▶ Announced, a look is due, or nothing
//!                      └── a look: the whole state ──────────────▶ Changed, Rebased, or nothing
//! ```
//!
//! Pure: no I/O and no clock. Each source uses it alike.

use std::ops::RangeInclusive;

use super::snapshot::{difference, first_seen, looked, merged, only_mod_seq_differs};
use super::snapshot::{renumbered, with_new_mail};
use crate::model::{ChangeKind, Snapshot};

/// The most new mail whose flags are asked for.
const MOST_ASKED: u64 = 1000;

/// One mailbox.
#[derive(Debug)]
pub(super) struct Ledger {
    /// Its state as the devices know it, or will by the last event that `push` got.
    known: Snapshot,
    /// New mail in `known` that no look has confirmed yet.
    announced: Option<Unconfirmed>,
    /// The new UIDVALIDITY, if the last look showed one.
    renumbered: Option<u64>,
    /// UIDVALIDITY was another one at each of the last looks: the server makes its numbers up.
    unnumbered: bool,
}

/// New mail that `push` heard of before a look at it.
#[derive(Clone, Copy, Debug)]
struct Unconfirmed {
    /// Of the event.
    id: u64,
    /// Messages of which nothing but the count of messages says that they are unread.
    thought_unread: u64,
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
        Self { known: told, announced: None, renumbered: None, unnumbered: false }
    }

    /// The state that the devices know, or will by the last event that `push` got.
    pub(super) fn known(&self) -> &Snapshot {
        &self.known
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
            _ if state.uid_next > self.known.uid_next => 0,
            (Some(now), Some(known)) => now.saturating_sub(known),
            _ => 0,
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
            let thought_unread = before.saturating_add(unread);
            self.known = thought;
            self.announced = Some(Unconfirmed { id, thought_unread });
            return Consequence::Announced { id };
        }
        differs.max(kind).map_or(Consequence::Nothing, Consequence::LookDue)
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
        let announced = self.announced.take();
        self.known = state;
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
mod tests {
    use super::*;

    use ChangeKind::{NewMail, Quiet};

    fn state(validity: u64, next: u64, messages: u64, unseen: u64) -> Snapshot {
        Snapshot {
            uid_validity: Some(validity),
            uid_next: Some(next),
            messages: Some(messages),
            unseen: Some(unseen),
            highest_mod_seq: None,
        }
    }

    fn modseq(state: Snapshot, number: u64) -> Snapshot {
        Snapshot { highest_mod_seq: Some(number), ..state }
    }

    fn messages(number: u64) -> Snapshot {
        Snapshot { messages: Some(number), ..Snapshot::default() }
    }

    /// One thing that a source says.
    enum Says {
        Hint(Option<ChangeKind>, Snapshot),
        Look(Snapshot),
        /// A look, after the flags were asked for.
        Flags(Snapshot, bool),
    }
    use Says::{Flags, Hint, Look};

    fn written(consequence: Consequence, look: bool) -> String {
        let word = |kind| if kind == NewMail { "new mail" } else { "quiet" };
        let show = |state: Snapshot| {
            let [next, messages, unseen] = [state.uid_next, state.messages, state.unseen]
                .map(|number| number.map_or("?".to_owned(), |number| number.to_string()));
            format!("next {next} of {messages} with {unseen}")
        };
        match consequence {
            Consequence::Nothing => "nothing".to_owned(),
            Consequence::LookDue(kind) => format!("look due, {}", word(kind)),
            Consequence::Announced { id } => format!("{id} announced"),
            Consequence::Changed { kind, id, state } => {
                assert!(look, "a hint is no look");
                format!("{id} changed: {}, {}", word(kind), show(state))
            }
            Consequence::Rebased { id, state } => format!("{id} rebased, {}", show(state)),
        }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "one table of all cases")]
    fn what_follows_from_hints_and_looks() {
        let told = state(7, 10, 5, 2);
        let nothing = Snapshot::default();
        let new = |next, messages, unseen| state(7, next, messages, unseen);
        for (case, told, says) in [
            ("nothing happened", told, vec![(Look(told), "nothing")]),
            (
                "one came, told by a look alone",
                told,
                vec![(Look(new(11, 6, 3)), "1 changed: new mail, next 11 of 6 with 3")],
            ),
            (
                "one was read",
                told,
                vec![(Look(new(10, 5, 1)), "1 changed: quiet, next 10 of 5 with 1")],
            ),
            (
                "EXISTS announces, the look confirms",
                told,
                vec![
                    (Hint(Some(NewMail), messages(6)), "1 announced"),
                    (Look(new(11, 6, 3)), "1 rebased, next 11 of 6 with 3"),
                    (Look(new(11, 6, 3)), "nothing"),
                ],
            ),
            (
                "EXISTS twice before the look: the last announcement is confirmed",
                told,
                vec![
                    (Hint(Some(NewMail), messages(6)), "1 announced"),
                    (Hint(Some(NewMail), messages(8)), "2 announced"),
                    (Look(new(13, 8, 5)), "2 rebased, next 13 of 8 with 5"),
                ],
            ),
            (
                "more came than was announced",
                told,
                vec![
                    (Hint(Some(NewMail), messages(6)), "1 announced"),
                    (Look(new(12, 7, 4)), "2 changed: new mail, next 12 of 7 with 4"),
                ],
            ),
            (
                "other mail was read meanwhile",
                told,
                vec![
                    (Hint(Some(NewMail), messages(6)), "1 announced"),
                    (Look(new(11, 6, 1)), "2 changed: quiet, next 11 of 6 with 1"),
                ],
            ),
            (
                "an expunge beside EXISTS: only a look can tell",
                told,
                vec![
                    (Hint(Some(Quiet), nothing), "look due, quiet"),
                    (Hint(Some(NewMail), messages(5)), "look due, new mail"),
                    (Look(new(11, 5, 2)), "1 changed: new mail, next 11 of 5 with 2"),
                ],
            ),
            (
                "EXISTS where no count is known",
                nothing,
                vec![(Hint(Some(NewMail), messages(6)), "look due, new mail")],
            ),
            (
                "an event without numbers",
                told,
                vec![
                    (Hint(None, nothing), "nothing"),
                    (Hint(Some(Quiet), nothing), "look due, quiet"),
                    (Hint(Some(NewMail), nothing), "look due, new mail"),
                    (Look(told), "nothing"),
                ],
            ),
            (
                "NOTIFY's STATUS with all numbers",
                told,
                vec![
                    (Hint(None, new(11, 6, 3)), "1 announced"),
                    (Hint(None, new(11, 6, 3)), "nothing"),
                    (Hint(None, new(11, 6, 2)), "look due, quiet"),
                    (Look(new(11, 6, 3)), "1 rebased, next 11 of 6 with 3"),
                ],
            ),
            (
                "NOTIFY's STATUS with UIDNEXT alone, and with fewer messages",
                told,
                vec![
                    (Hint(None, Snapshot { uid_next: Some(11), ..nothing }), "1 announced"),
                    (Hint(None, messages(4)), "look due, quiet"),
                ],
            ),
            (
                "an event that says what is known",
                told,
                vec![(Hint(None, told), "nothing"), (Hint(None, messages(5)), "nothing")],
            ),
            (
                "an unknown state with unread mail, and with none",
                nothing,
                vec![
                    (Look(nothing), "nothing"),
                    (Look(new(10, 5, 2)), "1 changed: new mail, next 10 of 5 with 2"),
                    (Look(new(10, 5, 2)), "nothing"),
                ],
            ),
            (
                "an unknown state without unread mail",
                nothing,
                vec![(Look(new(10, 5, 0)), "1 changed: quiet, next 10 of 5 with 0")],
            ),
            (
                "a keyword: flags that no phone shows",
                modseq(told, 3),
                vec![
                    (Flags(modseq(told, 4), false), "1 rebased, next 10 of 5 with 2"),
                    (Flags(modseq(told, 5), true), "2 changed: quiet, next 10 of 5 with 2"),
                ],
            ),
            (
                "announced mail that arrived read",
                told,
                vec![
                    (Hint(Some(NewMail), messages(6)), "1 announced"),
                    (Flags(new(11, 6, 2), false), "1 rebased, next 11 of 6 with 2"),
                ],
            ),
            (
                "made anew: a UIDVALIDITY that stays",
                told,
                vec![
                    (Look(state(8, 1, 5, 2)), "nothing"),
                    (Look(state(8, 1, 5, 2)), "1 rebased, next 1 of 5 with 2"),
                    (Look(state(8, 2, 6, 3)), "2 changed: new mail, next 2 of 6 with 3"),
                ],
            ),
            (
                "imap4d: UIDVALIDITY and UIDNEXT move at each look",
                told,
                vec![
                    (Look(state(8, 11, 5, 2)), "nothing"),
                    (Look(state(9, 12, 5, 2)), "nothing"),
                    // The same second.
                    (Look(state(9, 13, 5, 2)), "1 rebased, next 13 of 5 with 2"),
                    (Look(state(10, 14, 6, 3)), "2 changed: new mail, next 14 of 6 with 3"),
                ],
            ),
        ] {
            let mut ledger = Ledger::new(told);
            let mut ids = 0;
            for (says, expected) in says {
                let next_id = || {
                    ids += 1;
                    ids
                };
                let (consequence, look) = match says {
                    Hint(kind, state) => (ledger.hint(kind, &state, next_id), false),
                    Look(state) => (ledger.look(&state, None, next_id), true),
                    Flags(state, shown) => {
                        assert!(ledger.unclear(&state, true).is_some(), "{case}");
                        (ledger.look(&state, Some(shown), next_id), true)
                    }
                };
                assert_eq!(written(consequence, look), expected, "{case}");
            }
        }
    }

    #[test]
    fn what_the_numbers_leave_open() {
        let told = modseq(state(7, 10, 5, 2), 3);
        let announced = |counts: &[u64]| {
            let mut ledger = Ledger::new(told);
            for count in counts {
                ledger.hint(Some(NewMail), &messages(*count), || 1);
            }
            ledger
        };
        let read = |uids, read| Some(Unclear::ArrivedRead(ArrivedRead { uids, read }));
        let now = |next, messages, unseen| modseq(state(7, next, messages, unseen), 4);
        for (counts, now, flags_told, expected, case) in [
            (&[][..], now(10, 5, 2), true, Some(Unclear::Flags), "flags have changed"),
            (&[], now(10, 5, 1), true, None, "one was read"),
            (&[], told, true, None, "nothing happened"),
            (&[6], now(11, 6, 3), true, None, "one came"),
            (&[6], now(11, 6, 2), true, read(10..=10, 1), "one came and is read, or another is"),
            (&[6], now(11, 6, 2), false, None, "its flags are not told"),
            (&[6, 8], now(13, 8, 3), true, read(10..=12, 2), "of three two are read"),
            (&[6], now(11, 6, 1), true, None, "more were read than came"),
            (&[6], now(12, 7, 3), true, None, "more came than was announced"),
        ] {
            assert_eq!(announced(counts).unclear(&now, flags_told), expected, "{case}");
        }
        let ledger = announced(&[5 + MOST_ASKED + 1]);
        let now = now(10 + MOST_ASKED + 1, 5 + MOST_ASKED + 1, MOST_ASKED);
        assert_eq!(ledger.unclear(&now, true), None, "too much to ask for");
    }

    #[test]
    fn new_mail_is_a_surprise_only_where_a_state_was_known_and_nothing_announced() {
        let mut ledger = Ledger::new(state(7, 10, 5, 2));
        assert!(ledger.expects_nothing() && !Ledger::new(Snapshot::default()).expects_nothing());
        ledger.hint(Some(NewMail), &messages(6), || 1);
        assert!(!ledger.expects_nothing() && ledger.has_announced());
    }
}
