//! Two states of a mailbox compared: what the devices know, and what is.

use crate::model::{ChangeKind, Snapshot};

/// What has happened between `told` and `now`; `None` if nothing that a device must know.
///
/// UIDNEXT tells of new mail (RFC 9051 section 2.3.1.1): counts alone are wrong when mail comes and goes
/// between two looks. Where it stands still although there are more messages, the server is wrong. What
/// either state does not tell is not compared. HIGHESTMODSEQ is not compared either, for it rises with
/// every keyword: see [`only_mod_seq_differs`].
pub(super) fn difference(told: &Snapshot, now: &Snapshot) -> Option<ChangeKind> {
    let more =
        |told: Option<u64>, now: Option<u64>| matches!((told, now), (Some(t), Some(n)) if n > t);
    let differs =
        |told: Option<u64>, now: Option<u64>| matches!((told, now), (Some(t), Some(n)) if n != t);
    let counts_differ = differs(told.messages, now.messages) || differs(told.unseen, now.unseen);
    // With a new UIDVALIDITY the numbers mean nothing; and some servers (Mailutils imap4d) give a
    // new one at each look. Only the counts can be compared then.
    let renumbered = renumbered(told, now).is_some();
    let new_mail =
        (!renumbered && more(told.uid_next, now.uid_next)) || more(told.messages, now.messages);
    if new_mail {
        return Some(ChangeKind::NewMail);
    }
    counts_differ.then_some(ChangeKind::Quiet)
}

/// What the first look at a mailbox says that was registered with an unknown state. Which of its mail came
/// after the registration is not known. What is unread may have.
pub(super) fn first_seen(now: &Snapshot) -> ChangeKind {
    match now.may_have_unread() {
        true => ChangeKind::NewMail,
        false => ChangeKind::Quiet,
    }
}

/// Whether all that has happened is that flags have changed (RFC 7162): it depends on which whether a
/// device must know. They may have been keywords; or one message was read and another marked unread.
pub(super) fn only_mod_seq_differs(told: &Snapshot, now: &Snapshot) -> bool {
    let differs =
        matches!((told.highest_mod_seq, now.highest_mod_seq), (Some(t), Some(n)) if n != t);
    differs && renumbered(told, now).is_none() && difference(told, now).is_none()
}

/// Whether the only sign of new mail is UIDNEXT, although the number of messages is known. One may
/// have come while another went; but some servers make it up.
pub(super) fn only_uid_next_grew(told: &Snapshot, now: &Snapshot) -> bool {
    let counted = Snapshot { uid_next: None, ..*told };
    // A server that counts changes (RFC 7162) does not make up the rest.
    now.messages.is_some()
        && now.highest_mod_seq.is_none()
        && difference(told, now) == Some(ChangeKind::NewMail)
        && difference(&counted, now).is_none()
}

/// Whether `told`, which may be a part, is of an earlier moment than what is known: these numbers only grow
/// (RFC 9051 section 2.3.1.1, RFC 7162 section 3.1.2.1).
pub(super) fn is_older(known: &Snapshot, told: &Snapshot) -> bool {
    let fell = |known: Option<u64>, told: Option<u64>| matches!((known, told), (Some(known), Some(told)) if told < known);
    fell(known.uid_next, told.uid_next) || fell(known.highest_mod_seq, told.highest_mod_seq)
}

/// What is known once `told`, which may be a part, has been told too.
pub(super) fn merged(known: &Snapshot, told: &Snapshot) -> Snapshot {
    if renumbered(known, told).is_some() {
        return *told;
    }
    Snapshot {
        uid_validity: told.uid_validity.or(known.uid_validity),
        uid_next: told.uid_next.or(known.uid_next),
        messages: told.messages.or(known.messages),
        unseen: told.unseen.or(known.unseen),
        highest_mod_seq: told.highest_mod_seq.or(known.highest_mod_seq),
    }
}

/// What is known once a look has told `now`. Each message that came makes UIDNEXT grow (RFC 9051 section
/// 2.3.1.1). Where it stands still, or comes late, it counts as grown: when it does grow, it is no second
/// sign of the same mail.
pub(super) fn looked(known: &Snapshot, now: &Snapshot) -> Snapshot {
    let arrived = now.messages.zip(known.messages).and_then(|(now, known)| now.checked_sub(known));
    let uid_next = match (known.uid_next, now.uid_next, arrived) {
        (Some(before), Some(told), Some(arrived)) if renumbered(known, now).is_none() => {
            Some(told.max(before.saturating_add(arrived)))
        }
        _ => now.uid_next,
    };
    Snapshot { uid_next, ..*now }
}

/// The UIDVALIDITY of `now`, if it is another one.
pub(super) fn renumbered(told: &Snapshot, now: &Snapshot) -> Option<u64> {
    now.uid_validity.filter(|now| told.uid_validity.is_some_and(|told| told != *now))
}

/// What a mailbox is thought to be once EXISTS told of `arrived` more messages, which nobody has seen.
/// One that has been, or is another that was read meanwhile, makes a difference to the next look.
pub(super) fn with_new_mail(told: &Snapshot, arrived: u64) -> Snapshot {
    let add = |number: Option<u64>| number.map(|number| number.saturating_add(arrived));
    Snapshot {
        uid_next: add(told.uid_next),
        messages: add(told.messages),
        unseen: add(told.unseen),
        highest_mod_seq: None,
        ..*told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(validity: u64, next: u64, messages: u64, unseen: u64) -> Snapshot {
        Snapshot {
            uid_validity: Some(validity),
            uid_next: Some(next),
            messages: Some(messages),
            unseen: Some(unseen),
            highest_mod_seq: None,
        }
    }

    #[test]
    fn what_counts_as_a_change() {
        let told = state(7, 10, 5, 2);
        let modseq = |snapshot, number| Snapshot { highest_mod_seq: Some(number), ..snapshot };
        for (now, expected, why) in [
            (told, None, "the same"),
            (state(7, 11, 6, 3), Some(ChangeKind::NewMail), "one came"),
            (state(7, 11, 5, 2), Some(ChangeKind::NewMail), "one came and one went"),
            (state(7, 11, 3, 0), Some(ChangeKind::NewMail), "one came and more went"),
            (state(7, 10, 4, 2), Some(ChangeKind::Quiet), "one went"),
            (state(7, 10, 5, 1), Some(ChangeKind::Quiet), "one was read"),
            (state(7, 10, 5, 3), Some(ChangeKind::Quiet), "one was unread"),
            (state(7, 9, 5, 2), None, "UIDNEXT fell: the server's lie"),
            (state(7, 10, 6, 3), Some(ChangeKind::NewMail), "UIDNEXT stands still, one came"),
            (state(7, 9, 6, 3), Some(ChangeKind::NewMail), "UIDNEXT fell, one came"),
            (modseq(told, 3), None, "a MODSEQ that was not known before"),
            (state(8, 1, 0, 0), Some(ChangeKind::Quiet), "made anew, empty"),
            (state(8, 7, 6, 6), Some(ChangeKind::NewMail), "made anew, with more"),
            (state(8, 14, 5, 2), None, "imap4d: only UIDVALIDITY and UIDNEXT move"),
            (Snapshot { uid_next: None, ..told }, None, "no UIDNEXT"),
            (
                Snapshot { uid_next: None, ..state(7, 0, 6, 3) },
                Some(ChangeKind::NewMail),
                "no UIDNEXT, more messages",
            ),
            (Snapshot::default(), None, "nothing told"),
        ] {
            assert_eq!(difference(&told, &now), expected, "{why}");
        }
        let (before, after) = (modseq(told, 3), modseq(told, 4));
        assert_eq!(difference(&before, &after), None, "a flag changed");
        assert!(only_mod_seq_differs(&before, &after) && only_mod_seq_differs(&after, &before));
        for (now, why) in [
            (before, "nothing changed"),
            (told, "it is not told"),
            (modseq(state(7, 10, 5, 1), 4), "more than flags changed"),
            (modseq(state(8, 10, 5, 2), 4), "made anew"),
        ] {
            assert!(!only_mod_seq_differs(&before, &now), "{why}");
        }
        assert_eq!(difference(&Snapshot::default(), &told), None, "nothing was told before");
    }

    #[test]
    fn of_a_mailbox_registered_with_an_unknown_state_unread_mail_counts_as_new() {
        let now = state(7, 10, 5, 2);
        for (now, expected) in [
            (now, ChangeKind::NewMail),
            (Snapshot { unseen: Some(0), ..now }, ChangeKind::Quiet),
            (Snapshot { unseen: None, ..now }, ChangeKind::NewMail),
            (Snapshot { unseen: None, ..state(7, 1, 0, 0) }, ChangeKind::Quiet),
            (Snapshot { unseen: None, messages: None, ..now }, ChangeKind::NewMail),
            (Snapshot::default(), ChangeKind::Quiet),
        ] {
            assert_eq!(first_seen(&now), expected, "{now:?}");
        }
    }

    #[test]
    fn a_uidnext_that_grows_alone_is_told_from_one_that_does_not() {
        let told = state(7, 10, 5, 2);
        let modseq = Snapshot { highest_mod_seq: Some(3), ..state(7, 12, 5, 2) };
        let uncounted = Snapshot { messages: None, ..state(7, 12, 5, 2) };
        for (now, expected) in [
            (state(7, 12, 5, 2), true),
            (state(7, 12, 6, 3), false),
            (state(7, 12, 5, 3), false),
            (state(8, 12, 5, 2), false),
            (told, false),
            (modseq, false),
            (uncounted, false),
        ] {
            assert_eq!(only_uid_next_grew(&told, &now), expected, "{now:?}");
        }
    }

    #[test]
    fn a_uidnext_that_comes_late_is_no_second_sign_of_the_same_mail() {
        let mut known = state(7, 10, 5, 2);
        let mut kinds = Vec::new();
        for now in [
            // It stands still while two come, one after the other, and then tells of both.
            state(7, 10, 6, 3),
            state(7, 10, 7, 4),
            state(7, 12, 7, 4),
            state(7, 13, 8, 5),
            // Two come at once, and one of them is late.
            state(7, 14, 10, 7),
            state(7, 15, 10, 7),
            // One comes and one goes.
            state(7, 16, 10, 7),
            state(7, 16, 9, 6),
        ] {
            kinds.push(difference(&known, &now));
            known = looked(&known, &now);
        }
        let (new, quiet) = (Some(ChangeKind::NewMail), Some(ChangeKind::Quiet));
        assert_eq!(kinds, [new, new, None, new, new, None, new, quiet]);
        // What was announced, and is as announced but for UIDNEXT.
        let thought = with_new_mail(&state(7, 10, 5, 2), 1);
        assert_eq!(looked(&thought, &state(7, 10, 6, 3)), state(7, 11, 6, 3));
        // More was announced than there is.
        let thought = with_new_mail(&state(7, 10, 5, 2), 2);
        assert_eq!(looked(&thought, &state(7, 11, 6, 3)), state(7, 11, 6, 3));
        let anew = state(8, 1, 6, 3);
        assert_eq!(looked(&state(7, 10, 5, 2), &anew), anew);
        assert_eq!(looked(&Snapshot::default(), &anew), anew);
    }

    #[test]
    fn a_part_changes_what_it_tells() {
        let known = state(7, 10, 5, 2);
        let unseen = Snapshot { unseen: Some(0), ..Snapshot::default() };
        assert_eq!(merged(&known, &unseen), state(7, 10, 5, 0));
        assert_eq!(merged(&known, &Snapshot::default()), known);
        let anew = Snapshot { uid_validity: Some(8), messages: Some(1), ..Snapshot::default() };
        assert_eq!(merged(&known, &anew), anew, "of another mailbox nothing is known");
    }

    #[test]
    fn announced_mail_is_no_difference_any_more() {
        let thought = with_new_mail(&state(7, 10, 5, 2), 2);
        assert_eq!(difference(&thought, &state(7, 12, 7, 4)), None);
        assert_eq!(difference(&thought, &state(7, 13, 8, 5)), Some(ChangeKind::NewMail));
        assert_eq!(difference(&thought, &state(7, 12, 7, 3)), Some(ChangeKind::Quiet), "read");
    }
}
