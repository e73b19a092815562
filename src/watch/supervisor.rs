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
use super::account::{Begin, Orders, Watcher};
use super::status::{Doing, Inquiries, Inquiry, Status};
use crate::model::{AcceptedLogin, Account, SessionEvent, Timestamp, WatchEvent};
use crate::nodes::{Division, Neighbours};
use crate::store::{LiveAccount, News, StoreError};

/// Between two comparisons of the table with the store.
const REFRESH_INTERVAL: Duration = Duration::from_hours(1);

/// The same while the database does not answer.
const REFRESH_RETRY: Duration = Duration::from_secs(2);

/// Logins of users whom another node watches that may be looked into at once. Of more, the next
/// login counts.
const LOGINS: usize = 64;

/// Accounts whose backends are recorded in one transaction.
const ADOPTED: usize = 2000;

/// Each watched account, and its watcher.
#[derive(Debug)]
struct Supervisor {
    context: Arc<Context>,
    division: cell::Receiver<Division>,
    /// As [`Division::joined`], when all was last read again.
    joined: u64,
    /// Logins that are being passed on. Each gives its user, and with what he logged in if he can be
    /// watched here alone.
    logins: JoinSet<(Account, Option<AcceptedLogin>)>,
    /// The users of `logins`, and with what each has logged in since: of one user's logins the last
    /// has to be passed on last.
    passing: HashMap<Account, Option<AcceptedLogin>>,
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
            Ok(()) = replacements.changed() => {
                supervisor.backends_are_replaced();
                // Backends may have got names.
                next_refresh = Instant::now();
            }
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
                Some(SessionEvent::Registered { account, login }) => {
                    supervisor.registered(account, login);
                }
                Some(SessionEvent::LoggedIn { account, login }) => {
                    supervisor.logged_in(account, login);
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
        let alive = self.context.alive();
        let joined = self.division.borrow().joined();
        self.context.store.expire(alive).await?;
        let accounts = self.context.store.accounts(alive).await?;
        self.adopt(&accounts).await?;
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
        for live in accounts {
            let begin = self.begin(&live);
            let LiveAccount { account, parked, .. } = live;
            match self.watchers.get(&account).filter(|seat| !seat.orders.is_closed()) {
                Some(seat) if joined != self.joined => {
                    let login = parked.is_none() && self.context.credentials.are_shared();
                    seat.look_again(login);
                }
                Some(_) => {}
                None if self.is_ours(&account) => {
                    self.start(account, Orders::default(), begin);
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

    /// Records the backends of accounts in rows of versions that did not, and the names of those that
    /// had none: their users registered at the backend that the configuration names.
    async fn adopt(&self, accounts: &[LiveAccount]) -> Result<(), StoreError> {
        let to_adopt = |live: &LiveAccount| {
            let (id, recorded) =
                (self.context.backends.id_of(&live.account)?, live.backend.as_deref());
            let adopts = recorded.is_none_or(|it| it == id.address() && it != id.as_str());
            adopts.then(|| (live.account.clone(), id))
        };
        let to_adopt: Vec<_> = accounts.iter().filter_map(to_adopt).collect();
        for accounts in to_adopt.chunks(ADOPTED) {
            let adopted = self.context.store.adopt(accounts).await?;
            tracing::info!(accounts = adopted, "the backends of accounts are recorded");
        }
        Ok(())
    }

    /// How the account's watcher begins.
    fn begin(&self, live: &LiveAccount) -> Begin {
        let id = self.context.backends.id_of(&live.account);
        match (id.as_ref().and_then(|id| live.elsewhere(id)), &live.parked) {
            (Some(recorded), _) => Begin::Elsewhere(recorded.to_owned()),
            (None, parked) if self.context.credentials.are_of_users() => {
                let (tries, at) = live.refused.map_or((0, None), |(tries, at)| (tries, Some(at)));
                match (parked, tries) {
                    (None, 0) => Begin::AtOnce,
                    _ => Begin::Refused { tries, at, parked: parked.clone() },
                }
            }
            (None, _) => Begin::AtOnce,
        }
    }

    /// Whether the account has a mailbox to be watched, now or when its backend is the one that has
    /// accepted it.
    async fn is_live(&self, account: &Account) -> Result<bool, StoreError> {
        let (store, alive) = (&self.context.store, self.context.alive());
        let id = self.context.backends.id_of(account);
        match (store.live_account(account, alive).await?, id) {
            (None, _) => Ok(false),
            (Some(live), Some(id)) if live.elsewhere(&id).is_none() => {
                Ok(!store.watched(account, &id, alive).await?.is_empty())
            }
            (Some(_), _) => Ok(true),
        }
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
        let live = self.is_live(&account).await.inspect_err(
            |error| tracing::warn!(%account, %error, "an account could not be looked up"),
        )?;
        self.tell_of_devices(account.clone());
        match self.watchers.get(&account).filter(|seat| !seat.orders.is_closed()) {
            _ if !live => self.stop(&account),
            Some(seat) => seat.look_again(login && self.context.credentials.are_shared()),
            None => self.start(account, Orders::default(), Begin::AtOnce),
        }
        Ok(())
    }

    fn registered(&mut self, account: Account, login: AcceptedLogin) {
        if !self.is_ours(&account) {
            // With the registration, news of it was written to the node that watches.
            return;
        }
        self.tell_of_devices(account.clone());
        let of_users = self.context.credentials.are_of_users();
        let seat = self.watchers.get(&account).filter(|seat| !seat.orders.is_closed());
        let Some(Seat { orders, .. }) = seat else {
            let mut orders = Orders::default();
            orders.log_in(login, of_users);
            return self.start(account, orders, Begin::AtOnce);
        };
        orders.send_modify(|orders| {
            orders.registrations += 1;
            orders.log_in(login, of_users);
        });
    }

    /// What waits to be pushed to the account's devices may not be for them any more. Where nobody takes
    /// it in, much waits, and each device is read before it is pushed.
    fn tell_of_devices(&self, account: Account) {
        let _ = self.context.events.try_send(WatchEvent::Registered { account });
    }

    fn logged_in(&mut self, account: Account, login: AcceptedLogin) {
        if let Some(Seat { orders, .. }) = self.watchers.get(&account) {
            let of_users = self.context.credentials.are_of_users();
            if login.credentials.is_some() || !of_users {
                orders.send_modify(|orders| orders.log_in(login, of_users));
            }
        } else if !self.is_ours(&account)
            && self.context.credentials.are_of_users()
            && login.credentials.is_some()
        {
            match self.passing.get_mut(&account) {
                Some(next) => *next = Some(login),
                None if self.logins.len() < LOGINS => self.pass_on(account, login),
                None => tracing::debug!(%account, "the database is busy: a login goes unnoticed"),
            }
        }
    }

    fn pass_on(&mut self, account: Account, login: AcceptedLogin) {
        self.passing.insert(account.clone(), None);
        let context = Arc::clone(&self.context);
        self.logins.spawn(async move {
            let here = pass_on(context, &account, login).await;
            (account, here)
        });
    }

    fn passed_on(&mut self, account: Account, here: Option<AcceptedLogin>) {
        if let Some(Some(next)) = self.passing.remove(&account) {
            self.pass_on(account.clone(), next);
        }
        if let Some(login) = here {
            self.registered(account, login);
        }
    }

    fn start(&mut self, account: Account, orders: Orders, begin: Begin) {
        let (sender, receiver) = cell::channel(orders);
        let doing = match &begin {
            Begin::Refused { parked: Some(why), .. } => Doing::Parked { why: why.clone() },
            Begin::AtOnce | Begin::Refused { .. } | Begin::Elsewhere(_) => Doing::Starting,
        };
        let status = Status::new(&self.context.metrics, doing);
        let context = Arc::clone(&self.context);
        let mut watcher = Watcher::new(account.clone(), context, receiver, status.clone());
        self.tasks.spawn(async move { watcher.run(begin).await });
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
        match self.is_live(account).await {
            Ok(false) => self.stop(account),
            Ok(true) => {}
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
    /// The account's user has logged in. Where a master watches, the credentials are nobody's matter.
    fn log_in(&mut self, login: AcceptedLogin, of_users: bool) {
        if of_users && login.credentials.is_none() {
            return;
        }
        self.logins += 1;
        self.login = of_users.then_some(login);
    }
}

impl Seat {
    /// The rows of the account are others now; with `login` its stored credentials, too.
    fn look_again(&self, login: bool) {
        self.orders.send_modify(|orders| {
            orders.registrations += 1;
            if login {
                orders.login = None;
                orders.logins += 1;
            }
        });
    }
}

/// A user has logged in whom another node watches: if anybody is registered, stores a new password,
/// which is news to that node. Returns the login if this node alone can watch with it.
async fn pass_on(
    context: Arc<Context>,
    account: &Account,
    login: AcceptedLogin,
) -> Option<AcceptedLogin> {
    let (source, now) = (&context.credentials, Timestamp::now());
    let id = &context.backends.id_of(account)?;
    let passing_on = async {
        let live = context.store.live_account(account, context.alive()).await?;
        let live = live.filter(|live| live.elsewhere(id).is_none());
        let Some(LiveAccount { parked, .. }) = live else { return Ok(false) };
        // Of the same it is noted now and then how long it has proved good.
        let kept = source.kept(account, id, now).await.unwrap_or_default();
        let is_kept = login
            .credentials
            .as_ref()
            .is_some_and(|credentials| kept.iter().any(|it| it.credentials.same_as(credentials)));
        if parked.is_some() || !is_kept || kept.len() > 1 {
            source.save(account, &login).await?;
        }
        Ok::<_, StoreError>(source.holds(account))
    };
    // A session may be older than the configuration.
    if !id.is(login.backend.as_str()) {
        return None;
    }
    match passing_on.await {
        Ok(here) => here.then_some(login),
        Err(error) => {
            tracing::warn!(%account, %error, "a login could not be passed on");
            None
        }
    }
}
