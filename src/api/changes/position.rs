//! The id of an event: the states of a stream's mailboxes, as its client knows them once it has the event. A
//! client that comes again with its last id hears what differs.
//!
//! Base64 of a version, and for each mailbox four bytes of the SHA-256 of its name, a byte that says which
//! numbers are known, and those numbers, seven bits a byte. It is no secret, and nothing is believed because of
//! it: a client that makes one up hears of changes that were none.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::model::{Mailbox, Snapshot};

const VERSION: u8 = 1;

/// Bytes of a mailbox's name.
const NAME: usize = 4;

/// Longest id that is read, in bytes: of as many mailboxes as a stream may have, with large numbers.
const LONGEST: usize = 8 * 1024;

/// What stands for a mailbox in an id.
pub(super) type MailboxName = [u8; NAME];

/// What a client says that it knows.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ClientPosition(Vec<(MailboxName, Snapshot)>);

impl ClientPosition {
    /// The position that this id is of; `None` where it is no id.
    pub(super) fn parse(id: &str) -> Option<Self> {
        if id.len() > LONGEST {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(id).ok()?;
        let (version, mut rest) = bytes.split_first()?;
        let mut states = Vec::new();
        while *version == VERSION && !rest.is_empty() {
            let (name, after) = rest.split_first_chunk::<NAME>()?;
            let (known, after) = after.split_first()?;
            rest = after;
            let mut number =
                |bit: u8| if known & bit == 0 { Some(None) } else { Some(Some(read(&mut rest)?)) };
            let state = Snapshot {
                uid_validity: number(1)?,
                uid_next: number(2)?,
                messages: number(4)?,
                unseen: number(8)?,
                highest_mod_seq: number(16)?,
            };
            states.push((*name, state));
        }
        (*version == VERSION).then_some(Self(states))
    }

    /// The state of this mailbox, where the client knows one.
    pub(super) fn state_of(&self, mailbox: &Mailbox) -> Option<Snapshot> {
        let name = name(mailbox);
        let state = self.0.iter().find(|(of, _)| *of == name).map(|(_, state)| *state);
        state.filter(|state| *state != Snapshot::default())
    }
}

/// The id of these states.
pub(super) fn id(states: impl Iterator<Item = (MailboxName, Snapshot)>) -> String {
    let mut bytes = vec![VERSION];
    for (name, state) in states {
        let Snapshot { uid_validity, uid_next, messages, unseen, highest_mod_seq } = state;
        let numbers = [uid_validity, uid_next, messages, unseen, highest_mod_seq];
        bytes.extend(name);
        let known = numbers.iter().zip(0..).map(|(number, bit)| u8::from(number.is_some()) << bit);
        bytes.push(known.sum());
        numbers.into_iter().flatten().for_each(|number| write(&mut bytes, number));
    }
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The name of this mailbox in ids: the start of a hash.
pub(super) fn name(mailbox: &Mailbox) -> MailboxName {
    let mut name = [0; NAME];
    name.copy_from_slice(&digest(&SHA256, mailbox.as_str().as_bytes()).as_ref()[..NAME]);
    name
}

fn write(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(0x80 | (number & 0x7f) as u8);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn read(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_id_holds_the_states_of_mailboxes() {
        let inbox = Snapshot {
            uid_validity: Some(1_795_692_578),
            uid_next: Some(39),
            messages: Some(34),
            unseen: Some(0),
            highest_mod_seq: Some(u64::MAX),
        };
        let part = Snapshot { messages: Some(7), ..Snapshot::default() };
        let (one, other) = (Mailbox::inbox(), Mailbox::new("Entw\u{fc}rfe"));
        let text = id([(name(&one), inbox), (name(&other), part)].into_iter());
        assert!(text.len() < 60, "{text}");
        let read = ClientPosition::parse(&text).unwrap();
        assert_eq!((read.state_of(&one), read.state_of(&other)), (Some(inbox), Some(part)));
        assert_eq!(read.state_of(&Mailbox::new("Other")), None);
        let unknown = id([(name(&one), Snapshot::default())].into_iter());
        assert_eq!(ClientPosition::parse(&unknown).unwrap().state_of(&one), None);
    }

    #[test]
    fn what_is_no_id_is_none() {
        for text in ["", "1", "17", "AQ==", "Ag", "AQAA", "AQAAAAA_", "\u{fc}", &"A".repeat(8193)] {
            assert_eq!(ClientPosition::parse(text), None, "{text}");
        }
        assert_eq!(ClientPosition::parse("AQ"), Some(ClientPosition::default()));
    }

    proptest! {
        #[test]
        fn whatever_it_is_reading_it_ends(text in "[A-Za-z0-9_-]{0,80}") {
            let _ = ClientPosition::parse(&text);
        }

        #[test]
        fn each_number_comes_back(number: u64) {
            let state = Snapshot { unseen: Some(number), ..Snapshot::default() };
            let text = id([(name(&Mailbox::inbox()), state)].into_iter());
            prop_assert_eq!(ClientPosition::parse(&text).unwrap().state_of(&Mailbox::inbox()), Some(state));
        }
    }
}
