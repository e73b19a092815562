//! Which of the mailboxes that a registration names can its user read? The backend is asked for each by
//! STATUS.

use std::collections::HashSet;

use super::super::selection::Selection;
use crate::imap::args::quote;
use crate::imap::contract::Output;
use crate::imap::mailbox;
use crate::imap::registration::xapple;
use crate::imap::status::mailbox_status;
use crate::model::{Mailbox, Snapshot};

/// Most STATUS responses that are looked at for one question, and most bytes of them but for the last.
const MOST_STATUSES: usize = 64;
const MOST_STATUSES_SIZE: usize = 16 * 1024;

/// What a STATUS for a registration asks. HIGHESTMODSEQ is not in it: asking would switch the
/// client's session to CONDSTORE (RFC 7162 section 3.1).
const STATUS_ITEMS: &str = "(MESSAGES UIDNEXT UIDVALIDITY UNSEEN)";

/// A mailbox as the client spells it, and as it is.
type Named = (Vec<u8>, Mailbox);

/// Which of the mailboxes asked for can this user read?
#[derive(Debug)]
pub(super) struct MailboxCheck {
    /// As the client spells them.
    names: Vec<Vec<u8>>,
    /// Memory that the names take.
    names_size: usize,
    /// Index of the next name to look at.
    next: usize,
    asked: Option<Named>,
    /// The backend did not answer in time.
    gave_up: bool,
    found: Vec<(Vec<u8>, Mailbox, Snapshot)>,
    /// Those that were asked for.
    known: HashSet<Mailbox>,
    /// STATUS responses since the question was put, and their size.
    statuses: Vec<Vec<u8>>,
    statuses_size: usize,
}

impl MailboxCheck {
    /// Of the mailboxes of these names, of which no more than `most` are registered. Returns how many are
    /// left out beside it. `utf8`: names are UTF-8, not modified UTF-7.
    pub(super) fn new(mut names: Vec<Vec<u8>>, most: usize, utf8: bool) -> (Self, usize) {
        // A phone that gets a NO comes back in a day; one that gets less can use that.
        let left_out = keep_first(&mut names, most, utf8);
        let check = Self {
            names_size: names_size(&names),
            names,
            next: 0,
            asked: None,
            gave_up: false,
            found: Vec::new(),
            known: HashSet::new(),
            statuses: Vec::new(),
            statuses_size: 0,
        };
        (check, left_out)
    }

    /// Memory that is held, in bytes, about.
    pub(super) fn held(&self) -> usize {
        // A name is held as it was written, as a mailbox, and where it was found.
        2 * self.names_size + self.statuses_size
    }

    /// The mailbox that the backend is asked for.
    pub(super) fn asked(&self) -> Option<&Mailbox> {
        self.asked.as_ref().map(|(_, mailbox)| mailbox)
    }

    /// Whether a STATUS response may be the answer to a question of ours.
    pub(super) fn takes_statuses(&self) -> bool {
        self.asked.is_some()
            && self.statuses.len() < MOST_STATUSES
            && self.statuses_size < MOST_STATUSES_SIZE
    }

    /// A response that may be the answer.
    pub(super) fn keep(&mut self, response: &[u8]) {
        self.statuses_size += response.len();
        self.statuses.push(response.to_vec());
    }

    /// The next question, of a mailbox whose name one can ask for and that is none of `unasked`; `None` when
    /// the check is at its end.
    pub(super) fn next_question(&mut self, unasked: &[Mailbox], utf8: bool) -> Option<Vec<u8>> {
        while let Some(name) = self.names.get(self.next).cloned() {
            self.next += 1;
            let (Some(mailbox), Some(quoted)) = (mailbox::decode(&name, utf8), quote(&name)) else {
                continue;
            };
            if !self.known.insert(mailbox.clone()) {
                continue;
            }
            if self.gave_up || unasked.contains(&mailbox) {
                self.found.push(unknown((name, mailbox)));
                continue;
            }
            self.asked = Some((name, mailbox));
            return Some([b"STATUS ", &quoted[..], b" ", STATUS_ITEMS.as_bytes()].concat());
        }
        None
    }

    /// The question is not answered in time: returns the responses that came since, which are the client's.
    pub(super) fn give_up(&mut self) -> Vec<u8> {
        // The backend is at work on this one, and is not asked for those behind it.
        self.found.extend(self.asked.take().map(unknown));
        self.gave_up = true;
        self.statuses_size = 0;
        std::mem::take(&mut self.statuses).concat()
    }

    /// The names of the mailboxes that are registered, and they themselves.
    pub(super) fn into_found(self) -> (Vec<Vec<u8>>, Vec<(Mailbox, Snapshot)>) {
        let found = self.found.into_iter();
        found.map(|(name, mailbox, state)| (name, (mailbox, state))).unzip()
    }

    /// Our question was answered: one of the responses since is the answer, the others are the client's
    /// (NOTIFY sends them unasked).
    pub(super) fn conclude(
        &mut self,
        refusal: Option<&[u8]>,
        selection: &Selection,
        out: &mut Output,
    ) {
        let Some(asked) = self.asked.take() else { return };
        let (name, mailbox) = &asked;
        let mut responses = std::mem::take(&mut self.statuses);
        self.statuses_size = 0;
        let names_it = |told: &[u8]| {
            *told == **name || (mailbox.is_inbox() && told.eq_ignore_ascii_case(b"INBOX"))
        };
        let answer = match refusal {
            Some(_) => None,
            None => {
                let named =
                    |line: &Vec<u8>| mailbox_status(line).is_some_and(|(told, _)| names_it(&told));
                responses.iter().rposition(named).or(responses.len().checked_sub(1))
            }
        };
        let answer = answer.map(|answer| responses.remove(answer));
        for response in responses {
            out.to_client.extend_from_slice(&response);
        }
        match (answer, refusal) {
            (Some(status), _) if let Some((_, state)) = mailbox_status(&status) => {
                let (name, mailbox) = asked;
                self.found.push((name, mailbox, state));
            }
            // There is always one.
            _ if mailbox.is_inbox() => self.found.push(unknown(asked)),
            // What it says cannot be read, or nothing: it does not refuse.
            (_, None) => self.found.push(unknown(asked)),
            (_, Some(refusal)) if xapple::is_unreadable_for_now(refusal) => {
                self.found.push(unknown(asked));
            }
            // The client has it open; some servers refuse STATUS of just that one (RFC 3501 section 6.3.10).
            (_, Some(refusal)) if selection.is(mailbox) && !xapple::is_unreadable(refusal) => {
                self.found.push(unknown(asked));
            }
            _ => {}
        }
    }
}

/// A mailbox that is registered although its state is not known.
fn unknown((name, mailbox): (Vec<u8>, Mailbox)) -> (Vec<u8>, Mailbox, Snapshot) {
    (name, mailbox, Snapshot::default())
}

/// Leaves the first `most` of these names, each of another mailbox, with INBOX in the last place if it is
/// none of them but comes behind them. Returns how many mailboxes are left out.
fn keep_first(names: &mut Vec<Vec<u8>>, most: usize, utf8: bool) -> usize {
    let (mut known, mut kept, mut has_inbox, mut left_out) = (HashSet::new(), Vec::new(), false, 0);
    for name in std::mem::take(names) {
        let mailbox = mailbox::decode(&name, utf8).filter(|_| quote(&name).is_some());
        let Some(mailbox) = mailbox.filter(|mailbox| !known.contains(mailbox)) else { continue };
        let is_inbox = mailbox.is_inbox();
        if kept.len() < most {
            has_inbox |= is_inbox;
            kept.push(name);
        } else {
            left_out += 1;
            if is_inbox && !has_inbox {
                kept.pop();
                kept.push(name);
                has_inbox = true;
            }
        }
        known.insert(mailbox);
    }
    *names = kept;
    left_out
}

/// Memory that these take, about.
pub(super) fn names_size(names: &[Vec<u8>]) -> usize {
    names.iter().map(|name| name.len() + 64).sum()
}
