//! The answers that tell a mailbox's state: STATUS, EXISTS and their like.
//!
//! Tolerant by need: servers put two spaces, no UIDNEXT, negative numbers or unknown items.

use nom::bytes::complete::{tag_no_case, take_while1};
use nom::character::complete::{char, space0, space1};
use nom::multi::separated_list0;
use nom::sequence::{delimited, preceded, separated_pair, tuple};
use nom::{IResult, Parser};

use super::args::{Bytes, astring, whole};
use crate::model::Snapshot;

/// An untagged response that a watcher cares for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// `* n EXISTS`
    Exists(u32),
    /// `* n EXPUNGE`, `* VANISHED`, `* n FETCH`: the mailbox may have changed.
    Other,
}

/// A whole `* STATUS` response: the mailbox as it is spelled, and the numbers.
pub fn mailbox_status(response: &[u8]) -> Option<(Bytes<'_>, Snapshot)> {
    let items = separated_list0(space1, separated_pair(atom, space1, atom));
    let items = delimited(tuple((char('('), space0)), items, tuple((space0, char(')'))));
    let status = tuple((tag_no_case("*"), space1, tag_no_case("STATUS"), space1));
    let (name, items) = whole(preceded(status, separated_pair(astring, space1, items)))(response)?;
    let mut snapshot = Snapshot::default();
    for (item, value) in items {
        // What is no number, or a negative one, is as if it were not told.
        let value = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
        match item.to_ascii_uppercase().as_slice() {
            b"MESSAGES" => snapshot.messages = value,
            // Some servers say 0, which is none (RFC 9051 section 9, uniqueid).
            b"UIDNEXT" => snapshot.uid_next = value.filter(|next| *next > 0),
            b"UIDVALIDITY" => snapshot.uid_validity = value,
            b"UNSEEN" => snapshot.unseen = value,
            b"HIGHESTMODSEQ" => snapshot.highest_mod_seq = value,
            _ => {}
        }
    }
    Some((name, snapshot))
}

/// What an untagged response says of the selected mailbox; `None` if nothing.
pub fn activity(response: &[u8]) -> Option<Activity> {
    let mut words = response
        .split(|b| matches!(b, b' ' | b'\r' | b'\n'))
        .filter(|word| !word.is_empty())
        .skip_while(|word| *word == b"*");
    let (first, second) = (words.next()?, words.next());
    if first.eq_ignore_ascii_case(b"VANISHED") {
        return Some(Activity::Other);
    }
    let number: u64 = std::str::from_utf8(first).ok()?.parse().ok()?;
    match second?.to_ascii_uppercase().as_slice() {
        // No number has more than 32 bits (RFC 9051 section 9, `number`).
        b"EXISTS" => Some(u32::try_from(number).map_or(Activity::Other, Activity::Exists)),
        b"EXPUNGE" | b"FETCH" => Some(Activity::Other),
        _ => None,
    }
}

/// What a FETCH response tells of one message (RFC 9051 section 7.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Its UID.
    pub uid: Option<u64>,
    /// `None` where the response has no flags.
    pub flags: Option<Flags>,
}

/// The flags that decide what a user sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags {
    /// `\Seen`
    pub seen: bool,
    /// `\Deleted`
    pub deleted: bool,
}

/// The `* n FETCH` response as far as it goes without literals; `None` if it is another response.
pub fn fetched(response: &[u8]) -> Option<Fetched> {
    let line = response.split(|b| matches!(b, b'\r' | b'\n')).next()?.to_ascii_uppercase();
    let (head, items) = line.split_at(line.iter().position(|b| *b == b'(')?);
    if !head.starts_with(b"*") || !head.trim_ascii_end().ends_with(b" FETCH") {
        return None;
    }
    let mut words =
        items.split(|b| matches!(b, b' ' | b'(' | b')')).filter(|word| !word.is_empty());
    let uid = words.find(|word| *word == b"UID").and_then(|_| words.next());
    let uid = uid.and_then(|uid| std::str::from_utf8(uid).ok()?.parse().ok());
    let mut lists = items.split(|b| matches!(b, b'(' | b')'));
    let flags = lists.find(|before| before.trim_ascii_end().ends_with(b"FLAGS"));
    let flags = flags.and_then(|_| lists.next()).map(|flags| {
        let has = |flag: &[u8]| flags.split(|b| *b == b' ').any(|word| word == flag);
        Flags { seen: has(b"\\SEEN"), deleted: has(b"\\DELETED") }
    });
    Some(Fetched { uid, flags })
}

/// Whether the backend ends NOTIFY with this response, or refuses it, as there is too much to tell
/// (RFC 5465 section 5.8).
pub fn is_overflow(response: &[u8]) -> bool {
    const CODE: &[u8] = b"[NOTIFICATIONOVERFLOW]";
    let mut words = response.split(|b| matches!(b, b' ' | b'\r' | b'\n'));
    let mut words = words.by_ref().filter(|word| !word.is_empty()).skip(1);
    let is_status = words.next().is_some_and(|word| {
        [&b"OK"[..], b"NO", b"BAD"].iter().any(|status| word.eq_ignore_ascii_case(status))
    });
    is_status && words.next().is_some_and(|word| word.eq_ignore_ascii_case(CODE))
}

fn atom(input: &[u8]) -> IResult<&[u8], &[u8]> {
    take_while1(|b: u8| b.is_ascii_graphic() && !matches!(b, b'(' | b')')).parse(input)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_of_many_servers() {
        let told = |uid_validity, uid_next, messages, unseen| Snapshot {
            uid_validity,
            uid_next,
            messages,
            unseen,
            highest_mod_seq: None,
        };
        for (response, name, expected) in [
            (
                "* STATUS INBOX (MESSAGES 3 UIDNEXT 9 UIDVALIDITY 7 UNSEEN 1)\r\n",
                "INBOX",
                told(Some(7), Some(9), Some(3), Some(1)),
            ),
            (
                "* status {6}\r\na \"b\\c (messages 3 )\r\n",
                "a \"b\\c",
                told(None, None, Some(3), None),
            ),
            ("*  STATUS \"a b\"  ( UNSEEN -1  X 3) \n", "a b", told(None, None, None, None)),
            ("* STATUS x (UIDNEXT 0 MESSAGES 0)\n", "x", told(None, None, Some(0), None)),
            ("* STATUS x ()\r\n", "x", told(None, None, None, None)),
        ] {
            let (mailbox, snapshot) = mailbox_status(response.as_bytes()).expect(response);
            assert_eq!((mailbox.as_ref(), snapshot), (name.as_bytes(), expected));
        }
        let modseq = mailbox_status(b"* STATUS x (HIGHESTMODSEQ 18446744073709551615)\r\n");
        assert_eq!(modseq.unwrap().1.highest_mod_seq, Some(u64::MAX));
        for bad in ["* STATUS\r\n", "* STATUS x\r\n", "* STATUS x (A)\r\n", "* STATUS x (A 1\r\n"] {
            assert_eq!(mailbox_status(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn what_fetch_tells_of_a_message() {
        let told = |uid, flags: Option<(bool, bool)>| Fetched {
            uid,
            flags: flags.map(|(seen, deleted)| Flags { seen, deleted }),
        };
        for (response, expected) in [
            (
                "* 6 FETCH (FLAGS (\\Seen \\Recent) UID 10)\r\n",
                Some(told(Some(10), Some((true, false)))),
            ),
            (
                "* 6 fetch (uid 10 modseq (9) flags ())\r\n",
                Some(told(Some(10), Some((false, false)))),
            ),
            ("*  6  FETCH  (FLAGS (\\deleted $x \\SEEN))\n", Some(told(None, Some((true, true))))),
            ("* 6 FETCH (FLAGS (\\SeenNot Seen))\r\n", Some(told(None, Some((false, false))))),
            ("* 6 FETCH (MODSEQ (9) UID x)\r\n", Some(told(None, None))),
            ("* 6 FETCH (X {9}\r\nFLAGS (\\Seen))\r\n", Some(told(None, None))),
            ("* 6 FETCH\r\n", None),
            ("* 6 EXPUNGE (FETCH)\r\n", None),
            ("w6 OK FETCH (done)\r\n", None),
            ("\r\n", None),
        ] {
            assert_eq!(fetched(response.as_bytes()), expected, "{response}");
        }
    }

    #[test]
    fn an_overflow_is_a_code_and_no_text() {
        for (response, expected) in [
            ("* OK [NOTIFICATIONOVERFLOW] too much\r\n", true),
            ("*  ok  [NotificationOverflow]\r\n", true),
            ("w5 NO [NOTIFICATIONOVERFLOW] too much\r\n", true),
            ("* OK not [NOTIFICATIONOVERFLOW]\r\n", false),
            ("* OK NOTIFICATIONOVERFLOW\r\n", false),
            ("* X [NOTIFICATIONOVERFLOW]\r\n", false),
            ("\r\n", false),
        ] {
            assert_eq!(is_overflow(response.as_bytes()), expected, "{response}");
        }
    }

    #[test]
    fn activity_in_the_selected_mailbox() {
        for (response, expected) in [
            ("* 23 EXISTS\r\n", Some(Activity::Exists(23))),
            ("*  22279 EXISTS\r\n", Some(Activity::Exists(22279))),
            ("* 23 exists\n", Some(Activity::Exists(23))),
            ("* 4294967295 EXISTS\r\n", Some(Activity::Exists(u32::MAX))),
            ("* 4294967296 EXISTS\r\n", Some(Activity::Other)),
            ("* 1 EXPUNGE\r\n", Some(Activity::Other)),
            ("* VANISHED 3:5\r\n", Some(Activity::Other)),
            ("* 1 FETCH (FLAGS (\\Seen))\r\n", Some(Activity::Other)),
            ("* 1 RECENT\r\n", None),
            ("* OK Still here\r\n", None),
            ("* FLAGS (x)\r\n", None),
            ("*\r\n", None),
        ] {
            assert_eq!(activity(response.as_bytes()), expected, "{response}");
        }
    }
}
