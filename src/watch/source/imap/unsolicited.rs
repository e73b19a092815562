//! What a backend says of mailboxes, asked or not. Pure.

use std::collections::HashMap;

use crate::imap::mailbox;
use crate::imap::preview::is_header;
use crate::imap::status::{Activity, activity, fetched, is_overflow, mailbox_status};
use crate::model::{Mailbox, Snapshot};
use crate::watch::snapshot::merged;

/// The most mailboxes whose state is kept until it is taken. What the backend says beyond that has to be
/// looked at.
const MOST_STATES: usize = 1000;

/// What was said since it was last asked.
#[derive(Debug, Default)]
pub(in crate::watch) struct Unsolicited {
    /// How many messages there are, as last told; `None` when that no longer holds.
    count: Option<u32>,
    /// The number to which it rose.
    grown: Option<u32>,
    other: bool,
    /// A message may have been read since the number last rose.
    read: bool,
    /// Another mailbox than INBOX is open for a moment.
    elsewhere: bool,
    /// The backend has ended NOTIFY.
    overflow: bool,
    /// What STATUS told, if it did. Boxed: there is a connection for each account.
    states: Option<Box<ToldStates>>,
}

#[derive(Debug, Default)]
struct ToldStates {
    /// `None` is a mailbox whose name cannot be read.
    all: Vec<(Option<Mailbox>, Snapshot)>,
    /// The place of each in `all`.
    places: HashMap<Option<Mailbox>, usize>,
}

impl Unsolicited {
    /// Takes note of a whole response.
    pub(in crate::watch) fn read(&mut self, response: &[u8]) {
        // Only we ask for headers.
        if is_header(response) {
            return;
        }
        match activity(response) {
            Some(_) if self.elsewhere => {}
            Some(Activity::Exists(count)) => self.exists(count),
            Some(Activity::Other) => {
                (self.count, self.other) = (None, true);
                let flags = fetched(response).map(|fetched| fetched.flags);
                // What goes is no longer unread, either.
                self.read |= flags.is_none_or(|flags| flags.is_none_or(|flags| flags.seen));
            }
            None => {
                if let Some((name, told)) = mailbox_status(response) {
                    self.read_state(mailbox::decode(&name, false), told);
                } else {
                    self.overflow |= is_overflow(response);
                }
            }
        }
    }

    /// INBOX has so many messages.
    fn exists(&mut self, count: u32) {
        match self.count.replace(count) {
            // Some servers repeat the number at each IDLE: that is no news, or it would be for ever.
            Some(before) if count == before => {}
            Some(before) if count < before => self.other = true,
            // After an expunge the same number is a message more.
            _ => (self.grown, self.read) = (Some(count), false),
        }
    }

    /// Another mailbox is opened: what is said of the open one is not said of INBOX.
    pub(in crate::watch) fn leave_inbox(&mut self) {
        self.elsewhere = true;
    }

    /// INBOX, if any mailbox, is open again, with so many messages where the backend said so.
    pub(in crate::watch) fn back_in_inbox(&mut self, count: Option<u32>) {
        self.elsewhere = false;
        if let Some(count) = count {
            self.exists(count);
        }
    }

    /// What the backend says of one mailbox piece by piece becomes one state.
    pub(in crate::watch) fn read_state(&mut self, mailbox: Option<Mailbox>, told: Snapshot) {
        let ToldStates { all, places } = &mut **self.states.get_or_insert_default();
        if let Some(place) = places.get(&mailbox) {
            let state = &mut all[*place].1;
            *state = merged(state, &told);
        } else if all.len() < MOST_STATES {
            places.insert(mailbox.clone(), all.len());
            all.push((mailbox, told));
        }
    }

    /// The states that the backend sent.
    pub(in crate::watch) fn take_states(&mut self) -> Vec<(Option<Mailbox>, Snapshot)> {
        self.states.take().map(|states| states.all).unwrap_or_default()
    }

    /// The number of messages, if it rose.
    pub(in crate::watch) fn take_grown(&mut self) -> Option<u64> {
        self.grown.take().map(u64::from)
    }

    /// Whether anything but that changed.
    pub(in crate::watch) fn take_other(&mut self) -> bool {
        std::mem::take(&mut self.other)
    }

    /// Whether anything that the backend said since the number of messages last rose may make for fewer unread
    /// ones.
    pub(in crate::watch) fn has_read(&self) -> bool {
        self.read
    }

    /// Whether the backend has ended NOTIFY.
    pub(in crate::watch) fn take_overflow(&mut self) -> bool {
        std::mem::take(&mut self.overflow)
    }

    /// The open mailbox is about to be looked at, which tells all that was said of it so far.
    pub(in crate::watch) fn clear(&mut self) {
        (self.grown, self.other) = (None, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_number_is_a_change_and_a_repeated_one_is_not() {
        let mut news = Unsolicited::default();
        for (said, grown, other) in [
            ("* 5 EXISTS", Some(5), false),
            ("* 5 EXISTS", None, false),
            ("* 7 EXISTS", Some(7), false),
            ("* 2 FETCH (FLAGS (\\Seen))", None, true),
            ("* 1 EXPUNGE|* 7 EXISTS", Some(7), true),
            ("* 7 EXISTS|* 1 RECENT|* OK Still here", None, false),
            ("* 8 EXISTS|* 1 EXPUNGE", Some(8), true),
            ("* 8 EXISTS", Some(8), false),
            ("* 6 EXISTS", None, true),
            ("* VANISHED (EARLIER) 1:3", None, true),
            ("* VANISHED 2|* 6 EXISTS", Some(6), true),
            ("* 3 FETCH (UID 9 MODSEQ (17) FLAGS ())", None, true),
            ("* OK [HIGHESTMODSEQ 17] Highest|* OK [CLOSED] x|* OK [NOMODSEQ] x", None, false),
            ("* 3 FETCH (UID 9 BODY[HEADER.FIELDS (FROM)]<0> {9}|From: x\r\n)", None, false),
            ("w1 OK done", None, false),
        ] {
            said.split('|').for_each(|line| news.read(format!("{line}\r\n").as_bytes()));
            assert_eq!((news.take_grown(), news.take_other()), (grown, other), "{said}");
        }
        for (said, read) in [
            ("* 9 EXISTS|* 9 FETCH (FLAGS ($Label))", false),
            ("* 9 FETCH (FLAGS (\\Seen))", true),
            ("* 9 EXISTS", false),
            ("* 9 FETCH (UID 12)", true),
            ("* 10 EXISTS", false),
            ("* 1 EXPUNGE", true),
        ] {
            said.split('|').for_each(|line| news.read(format!("{line}\r\n").as_bytes()));
            assert_eq!(news.has_read(), read, "{said}");
        }
        news.read(b"* 9 EXISTS\r\n");
        news.clear();
        news.leave_inbox();
        for line in ["* 40 EXISTS\r\n", "* 1 FETCH (FLAGS (\\Seen))\r\n"] {
            news.read(line.as_bytes());
        }
        news.back_in_inbox(Some(9));
        assert_eq!(
            (news.take_grown(), news.take_other()),
            (None, false),
            "it was of another mailbox"
        );
        news.leave_inbox();
        news.back_in_inbox(Some(10));
        assert_eq!(news.take_grown(), Some(10));
        assert_eq!((news.take_grown(), news.take_other()), (None, false));
    }

    #[test]
    fn states_come_in_pieces_and_are_bounded() {
        let mut news = Unsolicited::default();
        for said in [
            "* STATUS Team (MESSAGES 3 UIDNEXT 9 UIDVALIDITY 7 UNSEEN 1)",
            "* STATUS inbox (MESSAGES 1)",
            "* STATUS Team (UNSEEN 0)",
        ] {
            news.read(format!("{said}\r\n").as_bytes());
        }
        let team = Snapshot {
            uid_validity: Some(7),
            uid_next: Some(9),
            messages: Some(3),
            unseen: Some(0),
            highest_mod_seq: None,
        };
        let inbox = Snapshot { messages: Some(1), ..Snapshot::default() };
        let states = [(Some(Mailbox::new("Team")), team), (Some(Mailbox::inbox()), inbox)];
        assert_eq!(news.take_states(), states);
        for number in 0..2 * MOST_STATES {
            news.read(format!("* STATUS m{number} (MESSAGES 1)\r\n").as_bytes());
        }
        assert_eq!(news.take_states().len(), MOST_STATES);
        assert_eq!(news.take_states(), []);
    }
}
