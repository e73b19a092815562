//! Which messages are meant: sequence sets and SEARCH keys (RFC 3501 section 6.4.4).

use std::num::NonZeroU32;
use std::time::{Duration, UNIX_EPOCH};

use imap_codec::imap_types::datetime::NaiveDate;
use imap_codec::imap_types::flag::Flag;
use imap_codec::imap_types::search::SearchKey;
use imap_codec::imap_types::sequence::{SeqOrUid, Sequence, SequenceSet};

use super::header::{header_of, header_values};
use super::state::{DemoMailbox, Message, Seen, Selected};

/// The (sequence number, UID) of each message in the view that `set` names, in order.
pub(super) fn resolve<'a>(
    set: &'a SequenceSet,
    selected: &'a Selected,
    uid: bool,
) -> impl Iterator<Item = (u32, u32)> + use<'a> {
    let largest = largest(selected, uid);
    (1..)
        .zip(&selected.view)
        .map(|(sequence, seen): (u32, &Seen)| (sequence, seen.uid))
        .filter(move |(sequence, own)| contains(set, if uid { *own } else { *sequence }, largest))
}

/// The sequence numbers, or UIDs, of the messages that match all `keys`; `None` if one of the keys
/// is not supported.
pub(super) fn search(
    mailbox: &DemoMailbox,
    selected: &Selected,
    keys: &[SearchKey<'_>],
    uid: bool,
) -> Option<Vec<NonZeroU32>> {
    let mut found = Vec::new();
    for (sequence, seen) in (1..).zip(&selected.view) {
        let Some(message) = mailbox.message(seen.uid) else { continue };
        let candidate = SearchedMessage { selected, sequence, seen, message };
        if all(&candidate, keys)? {
            found.extend(NonZeroU32::new(if uid { seen.uid } else { sequence }));
        }
    }
    Some(found)
}

struct SearchedMessage<'a> {
    selected: &'a Selected,
    sequence: u32,
    seen: &'a Seen,
    message: &'a Message,
}

fn all(candidate: &SearchedMessage<'_>, keys: &[SearchKey<'_>]) -> Option<bool> {
    keys.iter().try_fold(true, |so_far, key| Some(candidate.matches(key)? && so_far))
}

impl SearchedMessage<'_> {
    fn matches(&self, key: &SearchKey<'_>) -> Option<bool> {
        use SearchKey::*;

        let has = |flag: Flag<'_>| self.message.flags.contains(&flag);
        let header = |name: &str, wanted: &[u8]| {
            let values = header_values(header_of(&self.message.body), name);
            values.iter().any(|value| found_in(value, wanted))
        };
        Some(match key {
            All => true,
            And(keys) => all(self, keys.as_ref())?,
            Not(key) => !self.matches(key)?,
            Or(one, other) => {
                let (one, other) = (self.matches(one)?, self.matches(other)?);
                one || other
            }
            SequenceSet(set) => contains(set, self.sequence, largest(self.selected, false)),
            Uid(set) => contains(set, self.seen.uid, largest(self.selected, true)),
            Answered => has(Flag::Answered),
            Unanswered => !has(Flag::Answered),
            Deleted => has(Flag::Deleted),
            Undeleted => !has(Flag::Deleted),
            Draft => has(Flag::Draft),
            Undraft => !has(Flag::Draft),
            Flagged => has(Flag::Flagged),
            Unflagged => !has(Flag::Flagged),
            Seen => has(Flag::Seen),
            Unseen => !has(Flag::Seen),
            Keyword(word) => has(Flag::keyword(word.clone())),
            Unkeyword(word) => !has(Flag::keyword(word.clone())),
            New => self.seen.recent && !has(Flag::Seen),
            Old => !self.seen.recent,
            Recent => self.seen.recent,
            Larger(size) => self.message.body.len() > *size as usize,
            Smaller(size) => self.message.body.len() < *size as usize,
            Before(date) => self.message.date < midnight(date),
            Since(date) => self.message.date >= midnight(date),
            On(date) => {
                let start = midnight(date);
                (start..start + Duration::from_secs(24 * 3600)).contains(&self.message.date)
            }
            From(text) => header("from", text.as_ref()),
            To(text) => header("to", text.as_ref()),
            Cc(text) => header("cc", text.as_ref()),
            Subject(text) => header("subject", text.as_ref()),
            Header(name, text) => header(&String::from_utf8_lossy(name.as_ref()), text.as_ref()),
            Text(text) => found_in(&self.message.body, text.as_ref()),
            Body(text) => {
                let body = &self.message.body[header_of(&self.message.body).len()..];
                found_in(body, text.as_ref())
            }
            _ => return None,
        })
    }
}

/// `*`: the highest number in the view.
fn largest(selected: &Selected, uid: bool) -> u32 {
    match uid {
        true => selected.view.last().map_or(0, |seen| seen.uid),
        false => selected.view.len() as u32,
    }
}

fn contains(set: &SequenceSet, number: u32, largest: u32) -> bool {
    let expand = |end: &SeqOrUid| match end {
        SeqOrUid::Value(value) => value.get(),
        SeqOrUid::Asterisk => largest,
    };
    set.0.as_ref().iter().any(|sequence| match sequence {
        Sequence::Single(one) => expand(one) == number,
        // The ends may stand in any order (RFC 3501 section 9, seq-range).
        Sequence::Range(a, b) => {
            let (a, b) = (expand(a), expand(b));
            (a.min(b)..=a.max(b)).contains(&number)
        }
    })
}

/// The start of a day, in UTC.
fn midnight(date: &NaiveDate) -> std::time::SystemTime {
    let midnight = date.as_ref().and_hms_opt(0, 0, 0).map_or(0, |at| at.and_utc().timestamp());
    UNIX_EPOCH + Duration::from_secs(u64::try_from(midnight).unwrap_or_default())
}

/// Whether `text` has `wanted` in it, without regard to ASCII case.
fn found_in(text: &[u8], wanted: &[u8]) -> bool {
    wanted.is_empty()
        || text.windows(wanted.len()).any(|window| window.eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_name_what_rfc_3501_says() {
        for (set, number, largest, expected) in [
            ("1:4294967294", 3, 5, true),
            ("5:*", 9, 9, true),
            // `559:*` names the last one even where that is lower.
            ("559:*", 9, 9, true),
            ("559:*", 8, 9, false),
            ("*", 9, 9, true),
            ("4:2", 3, 9, true),
            ("1,3", 2, 9, false),
            ("1", 1, 0, true),
        ] {
            let parsed = SequenceSet::try_from(set).unwrap();
            assert_eq!(contains(&parsed, number, largest), expected, "{set} {number}");
        }
    }
}
