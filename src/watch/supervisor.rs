//! Who is watched: one task owns the table of watchers.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Context;
use super::account::{Orders, Watcher};
use super::status::{Doing, Inquiries, Inquiry, Status};
use crate::model::{Account, Credentials, SessionEvent, Timestamp};
use crate::store::{LiveAccount, StoreError};

/// Between two comparisons of the table with the store.
const REFRESH_INTERVAL: Duration = Duration::from_hours(1);

/// The same while the database does not answer.
const REFRESH_RETRY: Duration = Duration::from_secs(2);

/// Each watched account, and its watcher.
#[derive(Debug)]
struct Supervisor {
    context: Arc<Context>,
    watchers: HashMap<Account, Seat>,
    tasks: TaskTracker,
}

/// The way to speak to a watcher, and what it does. One that has ended has no receiver any more.
#[derive(Debug)]
struct Seat {
    orders: watch::Sender<Orders>,
    status: Status,
}

/// Watches every account with a live registration, from those in the store to those that `sessions`
/// tells of, until `stop` or until `sessions` is closed; then all watchers log out. `unwatched`
/// names accounts whose last device is gone; `inquiries` ask how accounts are watched.
pub async fn run(
    context: Arc<Context>,
    mut sessions: mpsc::Receiver<SessionEvent>,
    mut unwatched: mpsc::Receiver<Account>,
    mut inquiries: Inquiries,
    stop: CancellationToken,
) {
    let mut supervisor =
        Supervisor { context, watchers: HashMap::new(), tasks: TaskTracker::new() };
    let mut next_refresh = Instant::now();
    loop {
        // Before anything else at the start: that a user logged in can only be told to a watcher.
        if Instant::now() >= next_refresh {
            let pause = match supervisor.refresh().await {
                Ok(()) => REFRESH_INTERVAL,
                Err(error) => {
                    tracing::error!(%error, "who is to be watched cannot be read; trying again");
                    REFRESH_RETRY
                }
            };
            next_refresh = Instant::now() + pause;
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = sleep_until(next_refresh) => {}
            Some(account) = unwatched.recv() => supervisor.stop_unless_live(&account).await,
            Some(inquiry) = inquiries.next() => supervisor.answer(inquiry),
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
    for Seat { orders, .. } in supervisor.watchers.values() {
        orders.send_modify(|orders| orders.stop = true);
    }
    supervisor.tasks.close();
    supervisor.tasks.wait().await;
}

impl Supervisor {
    /// Brings the table to what the store says: forgets devices that have not registered for long,
    /// starts a watcher for each account that lacks one, and stops those of accounts without any
    /// device.
    async fn refresh(&mut self) -> Result<(), StoreError> {
        let since = self.alive_since();
        self.context.store.expire(since).await?;
        let accounts = self.context.store.accounts(since).await?;
        let live: HashSet<&Account> = accounts.iter().map(|live| &live.account).collect();
        let gone: Vec<_> =
            self.watchers.keys().filter(|account| !live.contains(account)).cloned().collect();
        gone.iter().for_each(|account| self.stop(account));
        tracing::debug!(accounts = accounts.len(), "accounts are to be watched");
        for LiveAccount { account, parked } in accounts {
            if self.watchers.get(&account).is_none_or(|seat| seat.orders.is_closed()) {
                let parked = parked.filter(|_| self.context.credentials.heal_by_login());
                self.start(account, Orders::default(), parked);
            }
        }
        Ok(())
    }

    fn registered(&mut self, account: Account, credentials: Credentials) {
        let credentials = self.context.credentials.watching(&account, credentials);
        if let Some(Seat { orders, .. }) = self.watchers.get(&account)
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
        if let Some(Seat { orders, .. }) = self.watchers.get(account) {
            let credentials = self.context.credentials.watching(account, credentials);
            orders.send_modify(|orders| orders.credentials = Some(credentials));
        }
    }

    /// `parked` tells why the account's password was last found to be wrong, if it was.
    fn start(&mut self, account: Account, orders: Orders, parked: Option<String>) {
        let (sender, receiver) = watch::channel(orders);
        let is_parked = parked.is_some();
        let doing = parked.map_or(Doing::Starting, |why| Doing::Parked { why });
        let status = Status::new(&self.context.metrics, doing);
        let context = Arc::clone(&self.context);
        let watcher = Watcher::new(account.clone(), context, receiver, status.clone());
        self.tasks.spawn(watcher.run(is_parked));
        self.watchers.insert(account, Seat { orders: sender, status });
    }

    fn answer(&self, inquiry: Inquiry) {
        let live = self.watchers.iter().filter(|(_, seat)| !seat.orders.is_closed());
        let mut statuses: Vec<_> = match &inquiry.account {
            Some(account) => live
                .filter(|(watched, _)| *watched == account)
                .map(|(account, seat)| seat.status.of(account))
                .collect(),
            None => live.map(|(account, seat)| seat.status.of(account)).collect(),
        };
        statuses.sort_by(|a, b| a.account.cmp(&b.account));
        // Who asked may have gone.
        let _ = inquiry.reply.send(statuses);
    }

    /// The last device of the account is said to be gone; it may have registered again meanwhile.
    async fn stop_unless_live(&mut self, account: &Account) {
        match self.context.store.watched(account, self.alive_since()).await {
            Ok(mailboxes) if mailboxes.is_empty() => self.stop(account),
            Ok(_) => {}
            // It watches for nobody until the next refresh.
            Err(error) => tracing::warn!(%account, %error, "an account could not be looked up"),
        }
    }

    fn stop(&mut self, account: &Account) {
        if let Some(Seat { orders, .. }) = self.watchers.remove(account) {
            tracing::info!(%account, "no device is left: not watched any more");
            self.context.credentials.forget(account);
            orders.send_modify(|orders| orders.stop = true);
        }
    }

    fn alive_since(&self) -> Timestamp {
        Timestamp::now().minus(self.context.registration_ttl)
    }
}
