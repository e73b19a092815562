//! Hears that other nodes have written news, and of which accounts they have marked mailboxes as due, where the
//! database carries that ([`Store::listen`]).

use std::collections::HashSet;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::model::Account;
use crate::net::backoff::Backoff;
use crate::store::{NodeNotification, Store};

/// Between two tries to listen that failed.
const RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_mins(1));

/// Between two tries where notifications do not arrive.
const UNSUPPORTED: Duration = Duration::from_mins(10);

/// Accounts that may wait for the node. The rows of more are news soon.
const NAMED: usize = 10_000;

/// Whether news is heard of, and word of it.
#[derive(Debug, Default)]
pub(super) struct NewsBell {
    rings: Notify,
    hears: AtomicBool,
    /// Accounts of whose events it has heard.
    events: Mutex<HashSet<Account>>,
    has_events: Notify,
}

impl NewsBell {
    /// Waits until there may be news. What was heard before counts. Cancel safe.
    pub(super) async fn rung(&self) {
        self.rings.notified().await;
    }

    /// Waits until events were heard of. Cancel safe.
    pub(super) async fn events(&self) {
        self.has_events.notified().await;
    }

    /// Their accounts, each once.
    pub(super) fn take_events(&self) -> Vec<Account> {
        mem::take(&mut *self.events.lock()).into_iter().collect()
    }

    fn heard_of(&self, accounts: Vec<Account>) {
        let mut events = self.events.lock();
        let room = NAMED.saturating_sub(events.len());
        events.extend(accounts.into_iter().take(room));
        drop(events);
        self.has_events.notify_one();
    }

    /// Whether each piece of news is heard of at once.
    pub(super) fn hears(&self) -> bool {
        self.hears.load(Ordering::Relaxed)
    }

    /// Listens for ever. A connection that is lost is made anew; what came meanwhile is looked for.
    pub(super) async fn listen(&self, store: &Store) {
        let (mut failures, mut has_said) = (0, false);
        loop {
            match store.listen().await {
                Ok(Some(mut listener)) => {
                    failures = 0;
                    tracing::debug!(
                        target: "mailchime::nodes::listening",
                        "the database tells this node at once when another node has news"
                    );
                    self.hears.store(true, Ordering::Relaxed);
                    self.rings.notify_one();
                    let error = loop {
                        match listener.heard().await {
                            Ok(NodeNotification::News) => self.rings.notify_one(),
                            Ok(NodeNotification::Events(accounts)) => self.heard_of(accounts),
                            Err(error) => break error,
                        }
                    };
                    self.hears.store(false, Ordering::Relaxed);
                    tracing::debug!(
                        target: "mailchime::nodes::listening_ended",
                        %error, "the connection on which this node hears of news ended; mailchime makes another one"
                    );
                }
                Ok(None) => {
                    if !mem::replace(&mut has_said, true) {
                        tracing::info!(
                            target: "mailchime::nodes::not_listening",
                            "the database tells this node of no news: it knows no LISTEN, or a pooler by \
                             transaction stands before it; mailchime looks for news instead"
                        );
                    }
                    sleep(UNSUPPORTED).await;
                    continue;
                }
                Err(error) => tracing::debug!(
                    target: "mailchime::nodes::listening_failed",
                    %error, "this node could not begin to hear of news; mailchime tries again"
                ),
            }
            failures += 1;
            sleep(RETRY.wait(failures, rand::random())).await;
        }
    }
}
