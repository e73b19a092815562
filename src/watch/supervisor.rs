//! Who is watched: one task owns the table of watchers.
//!
//! Of several nodes each watches the accounts that the [`Division`] gives it. What a session of this
//! node tells of an account that another one watches reaches that one through the database.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch as cell};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Context;
use super::account::{Orders, Watcher};
use super::status::{Doing, Inquiries, Inquiry, Status};
use crate::model::{Account, Credentials, SessionEvent, Timestamp};
use crate::nodes::{Division, Neighbours};
use crate::store::{LiveAccount, News, StoreError};

/// Between two comparisons of the table with the store.
const REFRESH_INTERVAL: Duration = Duration::from_hours(1);

/// The same while the database does not answer.
const REFRESH_RETRY: Duration = Duration::from_secs(2);

/// Logins of users whom another node watches that may be looked into at once. Of more, the next
/// login counts.
const LOGINS: usize = 64;

/// Each watched account, and its watcher.
#[derive(Debug)]
struct Supervisor {
    context: Arc<Context>,
    division: cell::Receiver<Division>,
    /// As [`Division::joined`], when all was last read again.
    joined: u64,
    /// Logins that are being passed on. Each gives its user, and with what he logged in if he can be
    /// watched here alone.
    logins: JoinSet<(Account, Option<Credentials>)>,
    /// The users of `logins`, and with what each has logged in since: of one user's logins the last
    /// has to be passed on last.
    passing: HashMap<Account, Option<Credentials>>,
    watchers: HashMap<Account, Seat>,
    tasks: TaskTracker,
}

/// The way to speak to a watcher, and what it does. One that has ended has no receiver any more.
#[derive(Debug)]
struct Seat {
    orders: cell::Sender<Orders>,
    status: Status,
}

/// Watches every account with a live registration, from those in the store to those that `sessions`
/// tells of, as far as they are this node's, until `stop` or until `sessions` is closed; then all
/// watchers log out. `unwatched` names accounts whose last device is gone; `inquiries` ask how
/// accounts are watched.
pub async fn run(
    context: Arc<Context>,
    mut sessions: mpsc::Receiver<SessionEvent>,
    mut unwatched: mpsc::Receiver<Account>,
    neighbours: Neighbours,
    mut inquiries: Inquiries,
    stop: CancellationToken,
) {
    let Neighbours { mut division, mut news } = neighbours;
    let mut supervisor = Supervisor {
        context,
        division: division.clone(),
        joined: 0,
        logins: JoinSet::new(),
        passing: HashMap::new(),
        watchers: HashMap::new(),
        tasks: TaskTracker::new(),
    };
    let mut replacements = supervisor.context.backends.replacements();
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
            Ok(()) = division.changed() => next_refresh = Instant::now(),
            Ok(()) = replacements.changed() => supervisor.backends_are_replaced(),
            Some(news) = news.recv() => if supervisor.look_again(news).await.is_err() {
                // What it was about is lost, so all is to be read again.
                supervisor.joined = 0;
                next_refresh = next_refresh.min(Instant::now() + REFRESH_RETRY);
            },
            Some(login) = supervisor.logins.join_next() => match login {
                Ok((account, here)) => supervisor.passed_on(account, here),
                // It is not known whose it was.
                Err(_) => supervisor.passing.clear(),
            },
            Some(account) = unwatched.recv() => supervisor.stop_unless_live(&account).await,
            Some(inquiry) = inquiries.next() => supervisor.answer(inquiry),
            event = sessions.recv() => match event {
                Some(SessionEvent::Registered { account, credentials }) => {
                    supervisor.registered(account, credentials);
                }
                Some(SessionEvent::LoggedIn { account, credentials }) => {
                    supervisor.logged_in(account, credentials);
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
    /// device and of accounts that another node watches. Where news of other nodes was missed, all
    /// watchers look again.
    async fn refresh(&mut self) -> Result<(), StoreError> {
        let since = self.context.alive_since();
        let joined = self.division.borrow().joined();
        self.context.store.expire(since).await?;
        let accounts = self.context.store.accounts(since).await?;
        let live: HashSet<&Account> = accounts.iter().map(|live| &live.account).collect();
        let (mut gone, mut elsewhere) = (Vec::new(), Vec::new());
        for account in self.watchers.keys() {
            match live.contains(account) {
                false => gone.push(account.clone()),
                true if !self.is_ours(account) => elsewhere.push(account.clone()),
                true => {}
            }
        }
        gone.iter().for_each(|account| self.stop(account));
        elsewhere.iter().for_each(|account| self.hand_over(account));
        let (all, mut missing) = (accounts.len(), 0);
        for LiveAccount { account, parked } in accounts {
            match self.watchers.get(&account).filter(|seat| !seat.orders.is_closed()) {
                Some(seat) if joined != self.joined => {
                    let login = parked.is_none() && self.context.credentials.are_shared();
                    seat.look_again(login);
                }
                Some(_) => {}
                None if self.is_ours(&account) => {
                    let parked = parked.filter(|_| self.context.credentials.are_of_users());
                    self.start(account, Orders::default(), parked);
                    missing += 1;
                }
                None => {}
            }
        }
        self.joined = joined;
        tracing::info!(
            accounts = all,
            here = self.watchers.len(),
            started = missing,
            handed_over = elsewhere.len(),
            "accounts are watched"
        );
        Ok(())
    }

    /// Whether this node is to watch the account.
    fn is_ours(&self, account: &Account) -> bool {
        self.division.borrow().is_mine(account) || self.context.credentials.holds(account)
    }

    /// Each watcher sees for itself whether its backend is another one now.
    fn backends_are_replaced(&self) {
        self.watchers.values().for_each(|seat| seat.orders.send_modify(|_| {}));
    }

    /// Another process has changed the account.
    async fn look_again(&mut self, News { account, login }: News) -> Result<(), StoreError> {
        if !self.is_ours(&account) {
            return Ok(());
        }
        let since = self.context.alive_since();
        let watched = self.context.store.watched(&account, since).await.inspect_err(
            |error| tracing::warn!(%account, %error, "an account could not be looked up"),
        )?;
        match self.watchers.get(&account).filter(|seat| !seat.orders.is_closed()) {
            _ if watched.is_empty() => self.stop(&account),
            Some(seat) => seat.look_again(login && self.context.credentials.are_shared()),
            None => self.start(account, Orders::default(), None),
        }
        Ok(())
    }

    fn registered(&mut self, account: Account, credentials: Option<Credentials>) {
        if !self.is_ours(&account) {
            // With the registration, news of it was written to the node that watches.
            return;
        }
        let of_users = self.context.credentials.are_of_users();
        let seat = self.watchers.get(&account).filter(|seat| !seat.orders.is_closed());
        let Some(Seat { orders, .. }) = seat else {
            let mut orders = Orders::default();
            orders.log_in(credentials, of_users);
            return self.start(account, orders, None);
        };
        orders.send_modify(|orders| {
            orders.registrations += 1;
            orders.log_in(credentials, of_users);
        });
    }

    fn logged_in(&mut self, account: Account, credentials: Option<Credentials>) {
        if let Some(Seat { orders, .. }) = self.watchers.get(&account) {
            let of_users = self.context.credentials.are_of_users();
            if credentials.is_some() || !of_users {
                orders.send_modify(|orders| orders.log_in(credentials, of_users));
            }
        } else if !self.is_ours(&account)
            && self.context.credentials.are_of_users()
            && let Some(credentials) = credentials
        {
            match self.passing.get_mut(&account) {
                Some(next) => *next = Some(credentials),
                None if self.logins.len() < LOGINS => self.pass_on(account, credentials),
                None => tracing::debug!(%account, "the database is busy: a login goes unnoticed"),
            }
        }
    }

    fn pass_on(&mut self, account: Account, credentials: Credentials) {
        self.passing.insert(account.clone(), None);
        let context = Arc::clone(&self.context);
        self.logins.spawn(async move {
            let here = pass_on(context, &account, credentials).await;
            (account, here)
        });
    }

    fn passed_on(&mut self, account: Account, here: Option<Credentials>) {
        if let Some(Some(next)) = self.passing.remove(&account) {
            self.pass_on(account.clone(), next);
        }
        if here.is_some() {
            self.registered(account, here);
        }
    }

    /// `parked` tells why the account's password was last found to be wrong, if it was.
    fn start(&mut self, account: Account, orders: Orders, parked: Option<String>) {
        let (sender, receiver) = cell::channel(orders);
        let is_parked = parked.is_some();
        let doing = parked.map_or(Doing::Starting, |why| Doing::Parked { why });
        let status = Status::new(&self.context.metrics, doing);
        let context = Arc::clone(&self.context);
        let mut watcher = Watcher::new(account.clone(), context, receiver, status.clone());
        self.tasks.spawn(async move { watcher.run(is_parked).await });
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
        match self.context.store.watched(account, self.context.alive_since()).await {
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

    /// Another node watches the account from now on.
    fn hand_over(&mut self, account: &Account) {
        if let Some(Seat { orders, .. }) = self.watchers.remove(account) {
            orders.send_modify(|orders| orders.stop = true);
        }
    }
}

impl Orders {
    /// The account's user has logged in, with these credentials if they are known. Where a master
    /// watches they are nobody's matter.
    fn log_in(&mut self, credentials: Option<Credentials>, of_users: bool) {
        match credentials.filter(|_| of_users) {
            None if of_users => {}
            None => self.logins += 1,
            fresh => self.credentials = fresh,
        }
    }
}

impl Seat {
    /// The rows of the account are others now; with `login` its stored credentials, too.
    fn look_again(&self, login: bool) {
        self.orders.send_modify(|orders| {
            orders.registrations += 1;
            if login {
                orders.credentials = None;
                orders.logins += 1;
            }
        });
    }
}

/// A user has logged in whom another node watches: if anybody is registered, stores a new password,
/// which is news to that node. Returns the credentials if this node alone can watch with them.
async fn pass_on(
    context: Arc<Context>,
    account: &Account,
    credentials: Credentials,
) -> Option<Credentials> {
    let (source, now) = (&context.credentials, Timestamp::now());
    let passing_on = async {
        let live = context.store.live_account(account, context.alive_since()).await?;
        let Some(LiveAccount { parked, .. }) = live else { return Ok(false) };
        let kept = source.of(account, now).await;
        if parked.is_some() || !kept.is_ok_and(|kept| kept.is_some_and(|k| k.same_as(&credentials)))
        {
            source.save(account, &credentials, now).await?;
        }
        Ok::<_, StoreError>(source.holds(account))
    };
    match passing_on.await {
        Ok(here) => here.then_some(credentials),
        Err(error) => {
            tracing::warn!(%account, %error, "a login could not be passed on");
            None
        }
    }
}
