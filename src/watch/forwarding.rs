//! Accounts of which a source has news and which another node watches: their mailboxes are marked as due in the
//! database, in batches. The supervisor does not wait for that.

use std::collections::HashSet;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::model::{Account, Mailbox, Timestamp};
use crate::store::Store;

/// Mailboxes that may wait. Of more, the next sign of one counts.
const WAITING: usize = 10_000;

/// Mailboxes that are written in one transaction.
const BATCH: usize = 500;

/// Between tries to write a batch.
const RETRY: Duration = Duration::from_secs(2);

/// What waits to be written, and the batch that is.
#[derive(Debug)]
pub(super) struct Forwarding {
    store: Store,
    waiting: HashSet<(Account, Option<Mailbox>)>,
    writing: JoinSet<()>,
}

impl Forwarding {
    pub(super) fn new(store: Store) -> Self {
        Self { store, waiting: HashSet::new(), writing: JoinSet::new() }
    }

    /// The node that watches the account is to look at the mailbox; without one, at all of the account.
    pub(super) fn add(&mut self, account: Account, mailbox: Option<Mailbox>) {
        let mailbox = (account, mailbox);
        if self.waiting.len() >= WAITING && !self.waiting.contains(&mailbox) {
            let account = mailbox.0;
            tracing::debug!(
                target: "mailchime::watch::hint_not_passed_on",
                %account,
                "the database is busy; the node that watches the account does not learn of this event"
            );
            return;
        }
        self.waiting.insert(mailbox);
        self.write();
    }

    /// A batch is written; the next one follows. Cancel safe.
    pub(super) async fn written(&mut self) {
        match self.writing.join_next().await {
            Some(_) => self.write(),
            None => std::future::pending().await,
        }
    }

    fn write(&mut self) {
        if !self.writing.is_empty() || self.waiting.is_empty() {
            return;
        }
        let batch: Vec<_> = self.waiting.iter().take(BATCH).cloned().collect();
        for mailbox in &batch {
            self.waiting.remove(mailbox);
        }
        let store = self.store.clone();
        self.writing.spawn(async move {
            while let Err(error) = store.mark_due(&batch, true, Timestamp::now()).await {
                tracing::warn!(
                    target: "mailchime::watch::hints_not_passed_on",
                    mailboxes = batch.len(), %error,
                    "could not pass events on to the nodes that watch these accounts; mailchime tries \
                     again"
                );
                tokio::time::sleep(RETRY).await;
            }
        });
    }
}
