//! Accounts, mailboxes and messages, and what a session has seen of its mailbox. No I/O.

use std::collections::{BTreeMap, HashMap};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use imap_codec::imap_types::flag::Flag;
use tokio::sync::watch;

/// All accounts, by login name.
#[derive(Default)]
pub(super) struct Accounts {
    accounts: HashMap<String, DemoAccount>,
    /// The last UIDVALIDITY that was given to a mailbox; each gets its own.
    uid_validity: u32,
}

pub(super) struct DemoAccount {
    pub(super) password: Vec<u8>,
    /// The passwords of before, and how often each was refused since.
    pub(super) stale: Vec<(Vec<u8>, u64)>,
    /// By name as on the wire; `INBOX` is there always.
    pub(super) mailboxes: BTreeMap<String, DemoMailbox>,
}

pub(super) struct DemoMailbox {
    pub(super) uid_validity: u32,
    pub(super) uid_next: u32,
    /// See [`super::DemoBackend::deny`].
    pub(super) denied: bool,
    pub(super) subscribed: bool,
    /// When [`uid_next`](Self::uid_next), the number of messages or that of unseen ones changed.
    pub(super) last_change: Option<Instant>,
    /// By rising UID.
    messages: Vec<Message>,
    /// Counts changes; idling sessions wait on it.
    revision: watch::Sender<u64>,
}

/// A message; cheap to clone.
#[derive(Clone)]
pub(super) struct Message {
    pub(super) uid: u32,
    pub(super) flags: Vec<Flag<'static>>,
    /// No session has selected the mailbox since it came (RFC 3501 section 2.3.2, \Recent).
    recent: bool,
    pub(super) date: SystemTime,
    pub(super) body: Bytes,
    /// The revision of the mailbox in which its flags changed last.
    touched: u64,
}

/// The mailbox that a session has selected, as the session's client knows it. Sequence numbers
/// are positions in `view` and move only when the client gets them (RFC 3501 section 7.4.1).
pub(super) struct Selected {
    pub(super) name: String,
    /// Tells whether the mailbox of that name is still the same.
    pub(super) uid_validity: u32,
    pub(super) read_only: bool,
    pub(super) view: Vec<Seen>,
    pub(super) changed: watch::Receiver<u64>,
    /// The revision that `view` shows; `None` if the client still has to get an expunge.
    revision: Option<u64>,
    highest_uid: u32,
}

pub(super) struct Seen {
    pub(super) uid: u32,
    /// This session was the first to hear of the message.
    pub(super) recent: bool,
    touched: u64,
}

/// One thing to tell a client about its mailbox.
#[derive(Debug, PartialEq)]
pub(super) enum News {
    Expunge(u32),
    Exists(u32),
    Recent(u32),
    Flags { sequence: u32, uid: u32, flags: Vec<Flag<'static>>, recent: bool },
}

/// Why a mailbox cannot be made.
#[derive(Debug, PartialEq)]
pub(super) enum CreateError {
    NoAccount,
    Exists,
    /// A name with a NUL, or none at all.
    BadName,
    TooMany,
}

/// A client cannot fill the memory with empty mailboxes.
const MAILBOXES: usize = 10_000;

// === impl State ===

impl Accounts {
    pub(super) fn add_account(&mut self, login: &str, password: &[u8]) {
        let (stale, mailboxes) = Default::default();
        let account = DemoAccount { password: password.into(), stale, mailboxes };
        self.accounts.insert(login.to_owned(), account);
        let made = self.create(login, "INBOX");
        debug_assert_eq!(made, Ok(()));
    }

    pub(super) fn account(&mut self, login: &str) -> Option<&mut DemoAccount> {
        self.accounts.get_mut(login)
    }

    pub(super) fn create(&mut self, login: &str, name: &str) -> Result<(), CreateError> {
        let account = self.accounts.get_mut(login).ok_or(CreateError::NoAccount)?;
        if name.is_empty() || name.contains('\0') {
            return Err(CreateError::BadName);
        }
        if account.mailbox(name).is_some() {
            return Err(CreateError::Exists);
        }
        if account.mailboxes.len() >= MAILBOXES {
            return Err(CreateError::TooMany);
        }
        self.uid_validity += 1;
        account.mailboxes.insert(canonical(name).to_owned(), DemoMailbox::new(self.uid_validity));
        Ok(())
    }
}

// === impl Account ===

impl DemoAccount {
    pub(super) fn set_password(&mut self, password: &[u8]) {
        let before = std::mem::replace(&mut self.password, password.into());
        self.stale.push((before, 0));
    }

    /// Notes that `password` is wrong.
    pub(super) fn refuse(&mut self, password: &[u8]) {
        // One that was given twice counts for the last time.
        let stale = self.stale.iter_mut().rev().find(|(stale, _)| stale == password);
        if let Some((_, tries)) = stale {
            *tries += 1;
        }
    }

    /// Any spelling of `inbox` is INBOX (RFC 3501 section 5.1).
    pub(super) fn mailbox(&mut self, name: &str) -> Option<&mut DemoMailbox> {
        self.mailboxes.get_mut(canonical(name))
    }
}

fn canonical(name: &str) -> &str {
    if name.eq_ignore_ascii_case("INBOX") { "INBOX" } else { name }
}

// === impl Mailbox ===

impl DemoMailbox {
    fn new(uid_validity: u32) -> Self {
        Self {
            uid_validity,
            uid_next: 1,
            denied: false,
            subscribed: true,
            last_change: None,
            messages: Vec::new(),
            revision: watch::Sender::new(1),
        }
    }

    pub(super) fn messages(&self) -> &[Message] {
        &self.messages
    }

    pub(super) fn message(&self, uid: u32) -> Option<&Message> {
        self.messages.binary_search_by_key(&uid, |m| m.uid).ok().map(|at| &self.messages[at])
    }

    /// Adds a message and returns its UID.
    pub(super) fn append(
        &mut self,
        body: Bytes,
        flags: Vec<Flag<'static>>,
        date: SystemTime,
    ) -> u32 {
        let uid = self.uid_next;
        self.uid_next += 1;
        self.messages.push(Message { uid, flags, recent: true, date, body, touched: 0 });
        self.last_change = Some(Instant::now());
        self.touch();
        uid
    }

    /// Removes the messages that `which` names and returns their UIDs.
    pub(super) fn remove(&mut self, mut which: impl FnMut(&Message) -> bool) -> Vec<u32> {
        let mut removed = Vec::new();
        self.messages.retain(|message| {
            let remove = which(message);
            if remove {
                removed.push(message.uid);
            }
            !remove
        });
        if !removed.is_empty() {
            self.last_change = Some(Instant::now());
            self.touch();
        }
        removed
    }

    /// Changes the flags of a message; `None` if there is none with that UID.
    pub(super) fn change_flags(
        &mut self,
        uid: u32,
        change: impl FnOnce(&mut Vec<Flag<'static>>),
    ) -> Option<()> {
        let at = self.messages.binary_search_by_key(&uid, |m| m.uid).ok()?;
        let (before, seen) = (self.messages[at].flags.clone(), self.messages[at].seen());
        change(&mut self.messages[at].flags);
        if self.messages[at].seen() != seen {
            self.last_change = Some(Instant::now());
        }
        if self.messages[at].flags != before {
            self.messages[at].touched = *self.revision.borrow() + 1;
            self.touch();
        }
        Some(())
    }

    pub(super) fn recent(&self) -> usize {
        self.messages.iter().filter(|m| m.recent).count()
    }

    pub(super) fn unseen(&self) -> usize {
        self.messages.iter().filter(|m| !m.seen()).count()
    }

    fn touch(&mut self) {
        self.revision.send_modify(|revision| *revision += 1);
    }
}

impl Message {
    pub(super) fn seen(&self) -> bool {
        self.flags.contains(&Flag::Seen)
    }
}

// === impl Selected ===

impl Selected {
    /// Opens a mailbox. Unless `read_only`, its \Recent messages are this session's from now on.
    pub(super) fn open(name: &str, mailbox: &mut DemoMailbox, read_only: bool) -> Self {
        let mut selected = Self {
            name: canonical(name).to_owned(),
            uid_validity: mailbox.uid_validity,
            read_only,
            view: Vec::with_capacity(mailbox.messages.len()),
            changed: mailbox.revision.subscribe(),
            revision: None,
            highest_uid: 0,
        };
        selected.update(mailbox, true);
        selected
    }

    /// Brings the view up to date and returns what the client has to get, in order. Expunged
    /// messages keep their places unless `expunge`: no client expects them in the middle of a
    /// FETCH, STORE or SEARCH (RFC 3501 section 7.4.1).
    pub(super) fn update(&mut self, mailbox: &mut DemoMailbox, expunge: bool) -> Vec<News> {
        let revision = *mailbox.revision.borrow();
        let mut news = Vec::new();
        if self.revision == Some(revision) {
            return news;
        }

        let mut all_told = true;
        if expunge {
            let mut position = 0;
            self.view.retain(|seen| {
                let there = mailbox.message(seen.uid).is_some();
                if there {
                    position += 1;
                } else {
                    news.push(News::Expunge(position + 1));
                }
                there
            });
        } else {
            all_told = self.view.iter().all(|seen| mailbox.message(seen.uid).is_some());
        }

        for (seen, sequence) in self.view.iter_mut().zip(1..) {
            let Some(message) = mailbox.message(seen.uid) else { continue };
            if message.touched != seen.touched {
                seen.touched = message.touched;
                let (uid, flags, recent) = (seen.uid, message.flags.clone(), seen.recent);
                news.push(News::Flags { sequence, uid, flags, recent });
            }
        }

        let first_new = mailbox.messages.partition_point(|m| m.uid <= self.highest_uid);
        for message in &mut mailbox.messages[first_new..] {
            let (uid, recent, touched) = (message.uid, message.recent, message.touched);
            message.recent &= self.read_only;
            self.view.push(Seen { uid, recent, touched });
            self.highest_uid = uid;
        }
        if first_new < mailbox.messages.len() {
            news.push(News::Exists(self.view.len() as u32));
            news.push(News::Recent(self.recent()));
        }

        self.revision = all_told.then_some(revision);
        news
    }

    pub(super) fn recent(&self) -> u32 {
        self.view.iter().filter(|seen| seen.recent).count() as u32
    }

    /// The client has just been told the flags of this message, or asked not to be.
    pub(super) fn told_flags(&mut self, mailbox: &DemoMailbox, sequence: u32) {
        if let Some(seen) = self.view.get_mut(sequence as usize - 1)
            && let Some(message) = mailbox.message(seen.uid)
        {
            seen.touched = message.touched;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expunge_waits_until_it_may_be_sent() {
        let mut mailbox = DemoMailbox::new(1);
        for _ in 0..3 {
            mailbox.append(Bytes::new(), Vec::new(), SystemTime::now());
        }
        let mut selected = Selected::open("INBOX", &mut mailbox, false);
        assert_eq!(mailbox.recent(), 0, "SELECT takes \\Recent");

        mailbox.remove(|m| m.uid < 3);
        mailbox.append(Bytes::new(), Vec::new(), SystemTime::now());
        // The message that came has its place behind those that are gone.
        let news = selected.update(&mut mailbox, false);
        assert_eq!(news, [News::Exists(4), News::Recent(4)]);
        let news = selected.update(&mut mailbox, true);
        assert_eq!(news, [News::Expunge(1), News::Expunge(1)]);
        assert_eq!(selected.update(&mut mailbox, true), []);
        let uids: Vec<_> = selected.view.iter().map(|seen| seen.uid).collect();
        assert_eq!(uids, [3, 4]);
    }

    #[test]
    fn only_what_status_tells_is_a_change() {
        let mut mailbox = DemoMailbox::new(1);
        assert_eq!(mailbox.last_change, None);
        let mut changes = |change: &mut dyn FnMut(&mut DemoMailbox)| {
            mailbox.last_change = None;
            change(&mut mailbox);
            mailbox.last_change.is_some()
        };
        assert!(changes(&mut |m| assert_eq!(
            m.append(Bytes::new(), Vec::new(), SystemTime::now()),
            1
        )));
        assert!(!changes(&mut |m| m.change_flags(1, |own| *own = vec![Flag::Flagged]).unwrap()));
        assert!(changes(&mut |m| m.change_flags(1, |own| *own = vec![Flag::Seen]).unwrap()));
        assert!(!changes(&mut |m| m.change_flags(1, |own| *own = vec![Flag::Seen]).unwrap()));
        assert!(!changes(&mut |m| drop(m.remove(|message| message.uid == 2))));
        assert!(changes(&mut |m| drop(m.remove(|message| message.uid == 1))));
    }

    #[test]
    fn examine_leaves_recent_to_others() {
        let mut mailbox = DemoMailbox::new(1);
        mailbox.append(Bytes::new(), Vec::new(), SystemTime::now());
        assert_eq!(Selected::open("INBOX", &mut mailbox, true).recent(), 1);
        assert_eq!(Selected::open("INBOX", &mut mailbox, false).recent(), 1);
        assert_eq!(Selected::open("INBOX", &mut mailbox, false).recent(), 0);
    }
}
