//! What other sources say of an account, on its way to its watcher.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::model::{Hint, Mailbox, Snapshot};

/// Hints of one account that may wait. Of more, all mailboxes of the account are looked at.
const MOST: usize = 64;

/// The hints that wait for one watcher; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Hints(Arc<Mutex<Vec<Hint>>>);

impl Hints {
    pub(super) fn add(&self, hint: Hint) {
        let mut waiting = self.0.lock();
        if waiting.len() < MOST {
            waiting.push(hint);
        } else {
            *waiting = vec![Hint { mailbox: None, state: Snapshot::default(), ..hint }];
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// Whether one of them says something of this mailbox.
    pub(super) fn are_of(&self, mailbox: &Mailbox) -> bool {
        let is_of = |hint: &Hint| hint.mailbox.as_ref().is_none_or(|hinted| hinted == mailbox);
        self.0.lock().iter().any(is_of)
    }

    pub(super) fn take(&self) -> Vec<Hint> {
        std::mem::take(&mut self.0.lock())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::model::{Account, MailboxEvent};

    #[test]
    fn of_more_hints_than_may_wait_one_for_all_mailboxes_is_left() {
        let hints = Hints::default();
        for number in 0..=MOST {
            hints.add(Hint {
                account: Account::from_login("alice"),
                mailbox: Some(Mailbox::new(&format!("m{number}"))),
                event: MailboxEvent::MessageNew,
                state: Snapshot::default(),
                seen_at: Instant::now(),
            });
            assert_eq!(hints.0.lock().len(), if number < MOST { number + 1 } else { 1 });
        }
        assert_eq!(hints.take()[0].mailbox, None);
        assert!(hints.take().is_empty());
    }
}
