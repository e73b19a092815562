//! The ledger as tables: what is said of a mailbox, and what follows.

use super::*;

use ChangeKind::{NewMail, Quiet};
use MailboxEvent::{FlagsClear, FlagsSet, MessageNew, MessageRead, MessageTrash, Unnamed};

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
    /// Of another source than the account's connection.
    Event(MailboxEvent, Snapshot),
    Look(Snapshot),
    /// A look, after the flags were asked for.
    Flags(Snapshot, bool),
}
use Says::{Event, Flags, Hint, Look};

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
            "a hint of a mailbox that was made anew",
            told,
            vec![
                (Hint(None, state(8, 10, 5, 2)), "nothing"),
                (Look(state(8, 10, 5, 2)), "nothing"),
            ],
        ),
        (
            "EXISTS announces, and a phone would show the flags",
            told,
            vec![
                (Hint(Some(NewMail), messages(6)), "1 announced"),
                (Flags(new(11, 6, 2), true), "2 changed: quiet, next 11 of 6 with 2"),
            ],
        ),
        (
            "the hint is of new mail, the numbers show that one was read",
            told,
            vec![(Hint(Some(NewMail), new(10, 5, 1)), "look due, new mail")],
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
        follows(case, told, says);
    }
}

/// What is not told of is kept, and what an event tells is compared with what is known.
#[test]
#[expect(clippy::too_many_lines, reason = "one table of all cases")]
fn what_follows_from_events_of_other_sources() {
    let told = state(7, 10, 5, 2);
    let nothing = Snapshot::default();
    let new = |next, messages, unseen| state(7, next, messages, unseen);
    let without_validity = |state| Snapshot { uid_validity: None, ..state };
    for (case, told, says) in [
        (
            "new mail with all numbers is the look",
            told,
            vec![
                (Event(MessageNew, new(11, 6, 3)), "1 changed: new mail, next 11 of 6 with 3"),
                (Event(MessageNew, new(11, 6, 3)), "nothing"),
                (Look(new(11, 6, 3)), "nothing"),
                (Hint(None, new(11, 6, 3)), "nothing"),
            ],
        ),
        (
            "UIDVALIDITY and HIGHESTMODSEQ are kept where they are not told",
            modseq(told, 3),
            vec![
                (
                    Event(MessageNew, without_validity(new(11, 6, 3))),
                    "1 changed: new mail, next 11 of 6 with 3",
                ),
                (Look(modseq(state(7, 11, 6, 3), 3)), "nothing"),
            ],
        ),
        (
            "one was read, one is gone",
            told,
            vec![
                (Event(FlagsSet, new(10, 5, 1)), "1 changed: quiet, next 10 of 5 with 1"),
                (Event(FlagsSet, new(10, 4, 1)), "2 changed: quiet, next 10 of 4 with 1"),
                (Event(FlagsSet, new(10, 4, 1)), "nothing"),
            ],
        ),
        (
            "all numbers confirm what the connection announced",
            told,
            vec![
                (Hint(Some(NewMail), messages(6)), "1 announced"),
                (Event(MessageNew, new(11, 6, 3)), "1 rebased, next 11 of 6 with 3"),
            ],
        ),
        (
            "all numbers, and more than was announced",
            told,
            vec![
                (Hint(Some(NewMail), messages(6)), "1 announced"),
                (Event(MessageNew, new(12, 7, 4)), "2 changed: new mail, next 12 of 7 with 4"),
            ],
        ),
        (
            "without numbers: announced, and the look confirms",
            told,
            vec![
                (Event(MessageNew, nothing), "1 announced"),
                (Event(MessageNew, nothing), "look due, new mail"),
                (Hint(Some(NewMail), messages(6)), "look due, new mail"),
                (Look(new(12, 7, 4)), "2 changed: new mail, next 12 of 7 with 4"),
                (Event(MessageNew, nothing), "3 announced"),
                (Look(new(13, 8, 5)), "3 rebased, next 13 of 8 with 5"),
            ],
        ),
        (
            "without numbers: of two events one may be of mail that is known, and was announced in place of the other",
            told,
            vec![
                (Event(MessageNew, nothing), "1 announced"),
                (Event(MessageNew, nothing), "look due, new mail"),
                (Look(new(11, 6, 3)), "2 changed: new mail, next 11 of 6 with 3"),
                (Look(new(11, 6, 3)), "nothing"),
                (Event(MessageNew, nothing), "3 announced"),
            ],
        ),
        (
            "without numbers: an event behind the look at its mail foretells nothing",
            told,
            vec![
                (Look(new(12, 7, 4)), "1 changed: new mail, next 12 of 7 with 4"),
                (Event(MessageNew, nothing), "look due, new mail"),
                (Look(new(13, 8, 5)), "2 changed: new mail, next 13 of 8 with 5"),
                (Event(MessageNew, nothing), "look due, new mail"),
                (Event(MessageNew, nothing), "look due, new mail"),
                (Look(new(13, 8, 5)), "nothing"),
                (Event(MessageNew, nothing), "3 announced"),
                (Look(new(14, 9, 6)), "3 rebased, next 14 of 9 with 6"),
            ],
        ),
        (
            "without numbers: an event that was lost is not waited for any more after two looks",
            told,
            vec![
                (Look(new(11, 6, 3)), "1 changed: new mail, next 11 of 6 with 3"),
                (Event(MessageNew, nothing), "look due, new mail"),
                (Look(new(12, 7, 4)), "2 changed: new mail, next 12 of 7 with 4"),
                (Event(MessageNew, nothing), "look due, new mail"),
                (Look(new(13, 8, 5)), "3 changed: new mail, next 13 of 8 with 5"),
                (Event(MessageNew, nothing), "4 announced"),
                (Look(new(14, 9, 6)), "4 rebased, next 14 of 9 with 6"),
            ],
        ),
        (
            "without numbers: events that come behind looks at more mail each are waited for",
            told,
            vec![
                (Look(new(11, 6, 3)), "1 changed: new mail, next 11 of 6 with 3"),
                (Look(new(12, 7, 4)), "2 changed: new mail, next 12 of 7 with 4"),
                (Look(new(13, 8, 5)), "3 changed: new mail, next 13 of 8 with 5"),
                (Event(MessageNew, nothing), "look due, new mail"),
                (Look(new(13, 8, 5)), "nothing"),
                (Event(MessageNew, nothing), "look due, new mail"),
                (Look(new(13, 8, 5)), "nothing"),
                (Event(MessageNew, nothing), "look due, new mail"),
                (Look(new(13, 8, 5)), "nothing"),
                (Event(MessageNew, nothing), "4 announced"),
            ],
        ),
        (
            "without numbers: where UIDNEXT has jumped there are no events of all that",
            told,
            vec![
                (Event(MessageNew, nothing), "1 announced"),
                (Look(new(1000, 6, 3)), "2 changed: new mail, next 1000 of 6 with 3"),
                (Event(MessageNew, nothing), "look due, new mail"),
                (Look(new(1001, 7, 4)), "3 changed: new mail, next 1001 of 7 with 4"),
                (Event(FlagsSet, nothing), "look due, quiet"),
                (Look(new(1001, 7, 3)), "4 changed: quiet, next 1001 of 7 with 3"),
                (Event(MessageNew, nothing), "5 announced"),
            ],
        ),
        (
            "without numbers: events that come one by one behind the look at their mail are waited for",
            told,
            vec![
                (Look(new(14, 9, 6)), "1 changed: new mail, next 14 of 9 with 6"),
                (Event(MessageNew, nothing), "look due, new mail"),
                (Look(new(14, 9, 6)), "nothing"),
                (Event(MessageNew, nothing), "look due, new mail"),
                (Look(new(14, 9, 6)), "nothing"),
                (Event(MessageNew, nothing), "look due, new mail"),
                (Look(new(14, 9, 6)), "nothing"),
                (Event(MessageNew, nothing), "look due, new mail"),
                (Look(new(14, 9, 6)), "nothing"),
                (Event(MessageNew, nothing), "2 announced"),
            ],
        ),
        (
            "without numbers: the event of mail that another one foretold is announced itself",
            told,
            vec![
                (Event(MessageNew, nothing), "1 announced"),
                (Look(new(11, 6, 3)), "1 rebased, next 11 of 6 with 3"),
                (Event(MessageNew, nothing), "2 announced"),
                (Look(new(11, 6, 3)), "3 changed: quiet, next 11 of 6 with 3"),
            ],
        ),
        (
            "without numbers: the look finds two",
            told,
            vec![
                (Event(MessageNew, nothing), "1 announced"),
                (Look(new(12, 7, 4)), "2 changed: new mail, next 12 of 7 with 4"),
            ],
        ),
        (
            "without numbers: the look finds none",
            told,
            vec![
                (Event(MessageNew, nothing), "1 announced"),
                (Look(told), "2 changed: quiet, next 10 of 5 with 2"),
            ],
        ),
        ("read, without numbers", told, vec![(Event(FlagsSet, nothing), "look due, quiet")]),
        (
            "Dovecot's OX driver: UIDNEXT and UNSEEN announce",
            told,
            vec![
                (Event(MessageNew, Snapshot { messages: None, ..new(11, 0, 3) }), "1 announced"),
                (Look(new(11, 6, 3)), "1 rebased, next 11 of 6 with 3"),
            ],
        ),
        (
            "an event that was overtaken",
            modseq(told, 3),
            vec![
                (Event(MessageNew, new(12, 7, 4)), "1 changed: new mail, next 12 of 7 with 4"),
                (Event(MessageNew, new(11, 6, 3)), "look due, new mail"),
                (Event(FlagsSet, modseq(new(12, 7, 3), 2)), "look due, quiet"),
                (Look(modseq(new(12, 7, 4), 5)), "nothing"),
            ],
        ),
        (
            "made anew: only looks can tell",
            told,
            vec![
                (Event(MessageNew, state(8, 2, 1, 1)), "look due, new mail"),
                (Look(state(8, 2, 1, 1)), "1 changed: quiet, next 2 of 1 with 1"),
            ],
        ),
        (
            "only flags have changed: which ones, only a look can tell",
            modseq(told, 3),
            vec![
                (Event(FlagsSet, modseq(told, 4)), "look due, quiet"),
                (Event(Unnamed, modseq(told, 4)), "look due, quiet"),
            ],
        ),
        (
            "only flags have changed: the event says that phones show them",
            modseq(told, 3),
            vec![
                (Event(MessageTrash, modseq(told, 4)), "1 changed: quiet, next 10 of 5 with 2"),
                (Event(MessageTrash, modseq(told, 4)), "nothing"),
                (Event(FlagsClear, modseq(told, 5)), "2 changed: quiet, next 10 of 5 with 2"),
                (Event(MessageRead, modseq(told, 6)), "3 changed: quiet, next 10 of 5 with 2"),
                (Look(modseq(told, 6)), "nothing"),
            ],
        ),
        (
            "an unknown state",
            nothing,
            vec![
                (Event(MessageNew, nothing), "look due, new mail"),
                (Event(MessageNew, new(11, 6, 3)), "1 changed: new mail, next 11 of 6 with 3"),
            ],
        ),
    ] {
        follows(case, told, says);
    }
}

/// Whether what is said has these consequences, one after the other.
fn follows(case: &str, told: Snapshot, says: Vec<(Says, &str)>) {
    let mut ledger = Ledger::new(told);
    let mut ids = 0;
    for (says, expected) in says {
        let next_id = || {
            ids += 1;
            ids
        };
        let (consequence, look) = match says {
            Hint(kind, state) => (ledger.hint(kind, &state, next_id), false),
            Event(event, state) => (ledger.event(event, &state, next_id), true),
            Look(state) => (ledger.look(&state, None, next_id), true),
            Flags(state, shown) => {
                assert!(ledger.unclear(&state, true).is_some(), "{case}");
                (ledger.look(&state, Some(shown), next_id), true)
            }
        };
        assert_eq!(written(consequence, look), expected, "{case}");
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

#[test]
fn a_look_is_urgent_as_what_asks_for_it() {
    let state = state(7, 10, 5, 2);
    for (consequence, expected) in [
        (Consequence::Nothing, None),
        (Consequence::LookDue(Quiet), Some(Quiet)),
        (Consequence::LookDue(NewMail), Some(NewMail)),
        (Consequence::Announced { id: 1 }, Some(NewMail)),
        (Consequence::Changed { kind: NewMail, id: 1, state }, None),
        (Consequence::Rebased { id: 1, state }, None),
    ] {
        assert_eq!(consequence.urgency(), expected, "{consequence:?}");
    }
}

#[test]
fn a_forgotten_uidnext_is_not_compared_with_the_next_look() {
    let mut ledger = Ledger::new(state(7, 10, 5, 2));
    ledger.forget_uid_next();
    assert_eq!(ledger.look(&state(7, 99, 5, 2), None, || 1), Consequence::Nothing);
    let changed = ledger.look(&state(7, 100, 6, 3), None, || 1);
    assert_eq!(written(changed, true), "1 changed: new mail, next 100 of 6 with 3");
}

#[test]
fn new_mail_comes_on_top_of_what_was_unread() {
    let new = |next, messages, unseen| state(7, next, messages, unseen);
    let mut ledger = Ledger::new(new(10, 5, 2));
    assert_eq!(ledger.unread_before(), None);
    ledger.hint(None, &Snapshot { messages: Some(6), ..Snapshot::default() }, || 1);
    // Before a look at the first, another one comes.
    ledger.hint(None, &Snapshot { messages: Some(7), ..Snapshot::default() }, || 2);
    assert_eq!(ledger.unread_before(), Some(2));
    ledger.look(&new(12, 7, 4), None, || 3);
    ledger.look(&new(13, 8, 5), None, || 4);
    assert_eq!(ledger.unread_before(), Some(4));
    ledger.hint(None, &Snapshot { messages: Some(9), ..Snapshot::default() }, || 5);
    assert_eq!(ledger.unread_before(), Some(5));
    let mut ledger = Ledger::new(new(10, 5, 2));
    ledger.event(MessageNew, &Snapshot::default(), || 1);
    assert_eq!(ledger.unread_before(), Some(2));
}

#[test]
fn where_older_mail_may_have_been_read_no_more_is_said_to_be_unread_than_is() {
    let new = |next, messages, unseen| state(7, next, messages, unseen);
    let counted = |messages| Snapshot { messages: Some(messages), ..Snapshot::default() };
    // All of it was read between two looks, or some.
    for (now, before) in [(new(11, 6, 1), 0), (new(11, 6, 4), 3), (new(12, 7, 7), 5)] {
        let mut ledger = Ledger::new(new(10, 5, 5));
        ledger.look(&now, None, || 1);
        assert_eq!(ledger.unread_before(), Some(before), "{now:?}");
    }
    // Flags have changed, and the next mail comes before the look at them.
    let mut ledger = Ledger::new(new(10, 5, 5));
    ledger.hint(Some(Quiet), &Snapshot::default(), || 1);
    ledger.hint(None, &counted(6), || 2);
    assert_eq!(ledger.unread_before(), None);
    // More of it has come than was announced.
    let mut ledger = Ledger::new(new(10, 5, 5));
    ledger.hint(None, &counted(6), || 1);
    ledger.look(&new(12, 7, 3), None, || 2);
    assert_eq!(ledger.unread_before(), Some(1));
    // It was made anew.
    let mut ledger = Ledger::new(new(10, 5, 5));
    ledger.look(&state(8, 11, 6, 6), None, || 1);
    assert_eq!(ledger.unread_before(), None);
}
