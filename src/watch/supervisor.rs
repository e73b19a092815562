//! Who is watched: one task owns the table of watchers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Context;
use super::account::{Orders, Watcher};
use crate::model::{Account, Credentials, SessionEvent, Timestamp};
use crate::store::LiveAccount;

/// Between two tries to read who is to be watched, while the database does not answer.
const STORE_RETRY: Duration = Duration::from_secs(2);

/// Between two looks for registrations that have expired.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(3600);

/// Each watched account, and the way to speak to its watcher. A watcher that has ended has no
/// receiver any more.
#[derive(Debug)]
struct Supervisor {
    context: Arc<Context>,
    watchers: HashMap<Account, watch::Sender<Orders>>,
    tasks: TaskTracker,
}

/// Watches every account with a live registration, from those in the store to those that `sessions`
/// tells of, until `stop`. `unwatched` names accounts whose last device is gone.
pub async fn run(
    context: Arc<Context>,
    mut sessions: mpsc::Receiver<SessionEvent>,
    mut unwatched: mpsc::Receiver<Account>,
    stop: CancellationToken,
) {
    let mut supervisor =
        Supervisor { context, watchers: HashMap::new(), tasks: TaskTracker::new() };
    let mut start = tokio::time::interval(STORE_RETRY);
    let mut expiry = tokio::time::interval(EXPIRY_INTERVAL);
    let mut started = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = start.tick(), if !started => started = supervisor.start_all().await,
            _ = expiry.tick() => supervisor.expire().await,
            Some(account) = unwatched.recv() => supervisor.stop_unless_live(&account).await,
            event = sessions.recv() => match event {
                Some(SessionEvent::Registered { account, credentials }) => {
                    supervisor.registered(account, credentials);
                }
                Some(SessionEvent::LoggedIn { account, credentials }) => {
                    supervisor.logged_in(&account, credentials);
                }
                // No session is left to speak: the program is ending.
                None => break,
            },
        }
    }
    for orders in supervisor.watchers.values() {
        orders.send_modify(|orders| orders.stop = true);
    }
    supervisor.tasks.close();
    supervisor.tasks.wait().await;
}

impl Supervisor {
    /// Starts a watcher for each account in the store; returns whether the store could tell.
    async fn start_all(&mut self) -> bool {
        match self.context.store.accounts(self.alive_since()).await {
            Ok(accounts) => {
                tracing::info!(accounts = accounts.len(), "watching starts");
                for LiveAccount { account, parked } in accounts {
                    if !self.is_watched(&account) {
                        self.start(account, Orders::default(), parked);
                    }
                }
                true
            }
            Err(error) => {
                tracing::error!(%error, "who is to be watched cannot be read; trying again");
                false
            }
        }
    }

    fn registered(&mut self, account: Account, credentials: Credentials) {
        if let Some(orders) = self.watchers.get(&account)
            && !orders.is_closed()
        {
            orders.send_modify(|orders| {
                orders.registrations += 1;
                orders.credentials = Some(credentials);
            });
            return;
        }
        let orders = Orders { credentials: Some(credentials), ..Orders::default() };
        self.start(account, orders, None);
    }

    fn logged_in(&mut self, account: &Account, credentials: Credentials) {
        if let Some(orders) = self.watchers.get(account) {
            orders.send_modify(|orders| orders.credentials = Some(credentials));
        }
    }

    fn start(&mut self, account: Account, orders: Orders, parked: Option<String>) {
        let (sender, receiver) = watch::channel(orders);
        let watcher = Watcher::new(account.clone(), Arc::clone(&self.context), receiver);
        self.tasks.spawn(watcher.run(parked));
        self.watchers.insert(account, sender);
    }

    /// The last device of the account is said to be gone; it may have registered again meanwhile.
    async fn stop_unless_live(&mut self, account: &Account) {
        match self.context.store.watched(account, self.alive_since()).await {
            Ok(mailboxes) if mailboxes.is_empty() => self.stop(account),
            Ok(_) => {}
            // It watches for nobody until the next expiry.
            Err(error) => tracing::warn!(%account, %error, "an account could not be looked up"),
        }
    }

    fn stop(&mut self, account: &Account) {
        if let Some(orders) = self.watchers.remove(account) {
            tracing::info!(%account, "no device is left: not watched any more");
            orders.send_modify(|orders| orders.stop = true);
        }
    }

    fn is_watched(&self, account: &Account) -> bool {
        self.watchers.get(account).is_some_and(|orders| !orders.is_closed())
    }

    /// Forgets devices that have not registered for long, and accounts without any.
    async fn expire(&mut self) {
        match self.context.store.expire(self.alive_since()).await {
            Ok(accounts) => {
                for account in accounts {
                    self.stop_unless_live(&account).await;
                }
            }
            Err(error) => tracing::warn!(%error, "expired registrations could not be removed"),
        }
        self.watchers.retain(|_, orders| !orders.is_closed());
    }

    fn alive_since(&self) -> Timestamp {
        Timestamp::now().minus(self.context.registration_ttl)
    }
}
