//! Hears that other nodes have written news, where the database carries that ([`Store::listen`]).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::net::backoff::Backoff;
use crate::store::Store;

/// Between two tries to listen that failed.
const RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_mins(1));

/// Between two tries where notifications do not arrive.
const UNSUPPORTED: Duration = Duration::from_mins(10);

/// Whether news is heard of, and word of it.
#[derive(Debug, Default)]
pub(super) struct NewsBell {
    rings: Notify,
    hears: AtomicBool,
}

impl NewsBell {
    /// Waits until there may be news. What was heard before counts. Cancel safe.
    pub(super) async fn rung(&self) {
        self.rings.notified().await;
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
                    let error = loop {
                        self.rings.notify_one();
                        if let Err(error) = listener.heard().await {
                            break error;
                        }
                    };
                    self.hears.store(false, Ordering::Relaxed);
                    tracing::debug!(
                        target: "mailchime::nodes::listening_ended",
                        %error, "the connection on which this node hears of news ended; mailchime makes another one"
                    );
                }
                Ok(None) => {
                    if !std::mem::replace(&mut has_said, true) {
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
