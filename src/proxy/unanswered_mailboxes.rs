//! Mailboxes for which a backend is not asked in sessions.
//!
//! A registration asks for each mailbox on the connection of its user's own session. A backend that does
//! not answer for one, or hangs up, takes the session with it, so that is found out once: for a day
//! the mailbox is registered unseen, and its watcher finds out what is the matter.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::model::{Account, Mailbox};

const KEPT: Duration = Duration::from_hours(24);

/// The most that are kept of an account, and the most accounts. What is beyond is asked for.
const MOST: usize = 16;
const MOST_ACCOUNTS: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct UnansweredMailboxes(Mutex<HashMap<Account, Vec<(Mailbox, Instant)>>>);

impl UnansweredMailboxes {
    /// The backend did not answer when it was asked for this mailbox.
    pub(super) fn add(&self, account: &Account, mailbox: &Mailbox, now: Instant) {
        let mut accounts = self.lock();
        if accounts.len() >= MOST_ACCOUNTS && !accounts.contains_key(account) {
            accounts.retain(|_, mailboxes| mailboxes.iter().any(|(_, since)| is_kept(*since, now)));
            if accounts.len() >= MOST_ACCOUNTS {
                return;
            }
        }
        let mailboxes = accounts.entry(account.clone()).or_default();
        mailboxes.retain(|(known, since)| known != mailbox && is_kept(*since, now));
        if mailboxes.len() < MOST {
            mailboxes.push((mailbox.clone(), now));
        }
    }

    /// Those of this account.
    pub(super) fn of(&self, account: &Account, now: Instant) -> Vec<Mailbox> {
        let accounts = self.lock();
        let kept = accounts.get(account).into_iter().flatten();
        let kept = kept.filter(|(_, since)| is_kept(*since, now));
        kept.map(|(mailbox, _)| mailbox.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Account, Vec<(Mailbox, Instant)>>> {
        self.0.lock()
    }
}

fn is_kept(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) < KEPT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mailbox_is_not_asked_for_a_day_and_the_room_is_bounded() {
        let (unanswered, now) = (UnansweredMailboxes::default(), Instant::now());
        let alice = Account::from_login("alice");
        for number in 0..2 * MOST {
            unanswered.add(&alice, &Mailbox::new(&number.to_string()), now);
            unanswered.add(&alice, &Mailbox::new("0"), now);
        }
        assert_eq!(unanswered.of(&alice, now).len(), MOST);
        assert_eq!(unanswered.of(&Account::from_login("bob"), now), []);
        assert_eq!(unanswered.of(&alice, now + KEPT), []);
        for number in 0..2 * MOST_ACCOUNTS {
            let account = Account::from_login(&number.to_string());
            unanswered.add(&account, &Mailbox::inbox(), now);
        }
        assert_eq!(unanswered.lock().len(), MOST_ACCOUNTS);
        let late = Account::from_login("late");
        unanswered.add(&late, &Mailbox::inbox(), now + KEPT);
        assert_eq!(unanswered.of(&late, now + KEPT), [Mailbox::inbox()]);
    }
}
