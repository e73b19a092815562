//! The watcher of one account: its logins, its failures, and what the supervisor tells it.
//!
//! ```text
//!   wait for a turn ──▶ read what was told ──▶ log in ──▶ rounds (see `rounds`)
//!     ▲     ▲                                    │            │
//!     │     └──── back-off ◀─────────────────────┼── lost ◀───┘
//!     └──── its user logs in ◀── parked ◀── refused
//! ```

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Context;
use super::connection::{Connection, Lost};
use super::lasting::{self, Lasting};
use super::master::{self, Master};
use super::pacer;
use super::refusal;
use super::status::{Doing, Status};
use super::upstream::{Place, Upstream};
use super::ways::Beliefs;
use crate::imap::capability::Capabilities;
use crate::imap::login::printable;
use crate::imap::refusal::Refusal;
use crate::model::{
    AcceptedLogin, Account, BackendId, Credentials, Mailbox, SecretKind, Snapshot, Timestamp,
};
use crate::net::backend::{Backend, LoginError};
use crate::net::backoff::Backoff;
use crate::store::{CredentialsError, StoreError};

const MASTER_REMEDY: &str = "see master_user, master_password_file and login_template of its [backend] \
    or [[route]], and what the server lets this user do; `mailchime check --login USER` tries it; send \
    SIGHUP when the configuration or the password file has changed";

/// Between attempts to store that a password is wrong.
const NOTE: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));

/// What the supervisor last told a watcher. Told again unchanged, other backends are in use.
#[derive(Clone, Debug, Default)]
pub(super) struct Orders {
    /// Counts registrations: another one means that other mailboxes may be wanted.
    pub(super) registrations: u64,
    /// What a backend last accepted here.
    pub(super) login: Option<AcceptedLogin>,
    /// Counts logins of which only that is known, at other nodes or where a master watches: after
    /// another one, what is stored is what was last accepted.
    pub(super) logins: u64,
    /// No device is left, or the program ends.
    pub(super) stop: bool,
}

/// One account's watcher.
#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) account: Account,
    pub(super) context: Arc<Context>,
    pub(super) orders: watch::Receiver<Orders>,
    pub(super) status: Status,
    /// Where it is connected, or last was.
    pub(super) backend: Backend,
    /// Which backend has accepted them, and the credentials.
    credentials: Option<(BackendId, Credentials)>,
    /// They are not in the store, as far as is known.
    unsaved: bool,
    /// In the order of [`in_order`], each once.
    pub(super) mailboxes: Vec<Watched>,
    /// The registrations that `mailboxes` takes in.
    registrations: u64,
    /// Those that `credentials` takes in.
    logins: u64,
    /// Since when it has watched on this connection.
    pub(super) watches_since: Option<Instant>,
    /// Nothing has shown yet that the password is right: whoever watched before, until it was killed
    /// perhaps, may have tried it and had no time to note what came of it.
    inherited: bool,
    /// Tries of the password, and connections, that failed in a row.
    refusals: u32,
    failures: u32,
    /// The store knows that the password was refused.
    noted: bool,
    pub(super) ways: Beliefs,
    pub(super) lasting: Lasting,
    /// What flags have changed was asked for and not answered, so far.
    pub(super) asked_for_flags: bool,
    /// The account was last found to be of another backend than it has by the configuration.
    elsewhere: bool,
}

/// How a watcher begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    AtOnce,
    /// When its user has logged in: the password was last found to be wrong, as this says.
    Login(String),
    /// When its account is its backend's again, or another one's: this backend has accepted it.
    Elsewhere(String),
}

/// A mailbox, and what `push` was last told of it.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) mailbox: Mailbox,
    pub(super) known: Snapshot,
    /// An announcement from untagged data that a look has yet to confirm.
    pub(super) announced: Option<Announced>,
    /// The new UIDVALIDITY, if the last look showed one.
    pub(super) renumbered: Option<u64>,
    /// UIDVALIDITY was another one at each of the last looks: the server makes its numbers up.
    pub(super) unnumbered: bool,
    /// It is to be looked at.
    pub(super) due: bool,
}

/// New mail of which `push` was told before it was looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Announced {
    /// Of the change.
    pub(super) id: u64,
    /// Messages that are only thought to be unread.
    pub(super) thought_unread: u64,
}

/// Why a connection ended, or never was.
#[derive(Debug)]
pub(super) enum End {
    /// The supervisor said so.
    Stop,
    /// Another watcher needs the place.
    Turn,
    /// No live registration is in the store.
    Nothing,
    /// There is no password to try, for this reason.
    NoPassword(&'static str),
    /// A master watches, and the account's backend has none.
    NoMaster,
    /// This backend has accepted the account's user, and the configuration names another one.
    Elsewhere(String),
    /// The configuration names another backend since a moment ago.
    Moved,
    /// The password was refused; the backend's answer behind the tag.
    Refused(Vec<u8>),
    /// The master user was, as this account. For so long nobody tries it if it is as all.
    MasterRefused {
        answer: Vec<u8>,
        rest: Option<Duration>,
    },
    Failed(String),
}

impl From<Lost> for End {
    fn from(lost: Lost) -> Self {
        Self::Failed(lost.to_string())
    }
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Where a watcher logs in, and what is shared with others who do.
#[derive(Clone, Copy)]
struct At<'a> {
    backend: &'a Backend,
    upstream: &'a Upstream,
    /// Where it logs in as a master user.
    master: Option<&'a Master>,
}

/// What comes after an end.
enum Next {
    Stop,
    /// Nothing, until its user has logged in.
    Login,
    /// Another try after this time, or when the supervisor has something to tell.
    Try(Duration),
    /// Another try after this time, whatever is told.
    Later(Duration),
}

impl Watcher {
    pub(super) fn new(
        account: Account,
        context: Arc<Context>,
        orders: watch::Receiver<Orders>,
        status: Status,
    ) -> Self {
        let inherited = orders.borrow().login.is_none();
        let backend = context.backends.of(&account).unwrap_or_else(|_| context.backends.default());
        Self {
            account,
            context,
            orders,
            status,
            backend,
            credentials: None,
            unsaved: false,
            mailboxes: Vec::new(),
            registrations: 0,
            logins: 0,
            watches_since: None,
            inherited,
            refusals: 0,
            failures: 0,
            noted: false,
            ways: Beliefs::default(),
            lasting: Lasting::default(),
            asked_for_flags: false,
            elsewhere: false,
        }
    }

    /// Watches until the supervisor says stop. What it does but seldom is boxed: it spends its life in
    /// a connection.
    pub(super) async fn run(&mut self, begin: Begin) {
        let mut next = match begin {
            Begin::AtOnce => Next::Try(Duration::ZERO),
            Begin::Login(_) => Next::Login,
            Begin::Elsewhere(recorded) => self.after(End::Elsewhere(recorded)).await,
        };
        // Its user has just registered or logged in.
        let mut user_is_there = {
            let orders = self.orders.borrow();
            orders.login.is_some() || orders.logins > 0
        };
        while let Some(told) = Box::pin(self.pause(next)).await {
            user_is_there |= told;
            let backend = match self.context.backends.of(&self.account) {
                Ok(backend) => backend,
                // Another configuration may tell.
                Err(error) => {
                    next = Box::pin(self.after(End::Failed(error.to_string()))).await;
                    continue;
                }
            };
            // Of a backend that is not the account's nothing is asked, not even a turn.
            if self.elsewhere
                && let Err(end) = self.reload(&backend).await
            {
                next = Box::pin(self.after(end)).await;
                continue;
            }
            let upstream = self.context.upstreams.of(&backend);
            let master = match self.acts_as_master() {
                false => None,
                true => match upstream.master(&backend) {
                    None => {
                        next = self.after(End::NoMaster).await;
                        continue;
                    }
                    master => master,
                },
            };
            self.status.set(Doing::Starting);
            let turns = Box::pin(self.turns(&upstream, master.as_deref(), user_is_there)).await;
            let Some((leave, place, turn)) = turns else { return };
            self.status.set(Doing::Starting);
            let at = At { backend: &backend, upstream: &upstream, master: master.as_deref() };
            let end = Box::pin(self.connection(at, (leave, turn))).await;
            drop(place);
            user_is_there = false;
            next = Box::pin(self.after(end)).await;
        }
    }

    /// Waits for what is next; `None` on stop. Returns whether the supervisor had something to tell.
    async fn pause(&mut self, next: Next) -> Option<bool> {
        let mut told = false;
        let pause = match next {
            Next::Stop => return None,
            Next::Login => {
                self.wait_for_login().await?;
                told = true;
                Duration::ZERO
            }
            Next::Try(pause) => pause,
            Next::Later(pause) => tokio::select! {
                () = tokio::time::sleep(pause) => Duration::ZERO,
                () = stopped(self.orders.clone()) => return None,
            },
        };
        tokio::select! {
            biased;
            changed = self.orders.changed() => {
                if changed.is_err() || self.orders.borrow().stop {
                    return None;
                }
                self.take_orders().await;
                told = true;
            }
            () = tokio::time::sleep(pause) => {}
        }
        Some(told)
    }

    /// Waits for leave to log in as the master user, if it does, for a place among the connections
    /// and for a turn; `None` on stop.
    async fn turns<'a>(
        &self,
        upstream: &'a Upstream,
        master: Option<&'a Master>,
        user_is_there: bool,
    ) -> Option<(Option<master::Turn<'a>>, Place, pacer::Turn<'a>)> {
        let turns = async {
            let leave = match master {
                Some(master) => Some(master.turn(|rest, why| self.rest(Some(rest), why)).await),
                None => None,
            };
            let (place, turn) = upstream.turn(user_is_there).await;
            (leave, place, turn)
        };
        tokio::select! {
            turns = turns => Some(turns),
            () = stopped(self.orders.clone()) => None,
        }
    }

    async fn after(&mut self, end: End) -> Next {
        let account = &self.account;
        let config = &self.context.config;
        let backoff = Backoff::new(config.retry_min, config.retry_max);
        // That a connection ended is a failure only if it was a short one.
        if self.watches_since.take().is_some_and(|since| since.elapsed() >= lasting::least(config))
        {
            self.failures = 0;
        }
        match end {
            End::Stop => Next::Stop,
            End::Turn | End::Moved => Next::Try(Duration::ZERO),
            // Another registration may be on its way: only the supervisor ends a watcher.
            End::Nothing => {
                self.rest(None, "no device is registered");
                Next::Try(Duration::MAX)
            }
            End::NoPassword(why) => {
                self.status.set(Doing::Parked { why: why.to_owned() });
                Next::Login
            }
            End::Elsewhere(recorded) => {
                let now = self.context.backends.id_of(account);
                let now = now.as_ref().map_or("unknown", BackendId::as_str);
                if !std::mem::replace(&mut self.elsewhere, true) {
                    tracing::warn!(
                        %account, recorded, now,
                        "parked: the account registered at another backend than the configuration names; \
                         it is watched again when its phone has registered there, or when the \
                         configuration names the former one"
                    );
                }
                let why = format!("it registered at {recorded}, and its backend is {now} now");
                self.status.set(Doing::Parked { why });
                Next::Try(Duration::MAX)
            }
            End::NoMaster => {
                let why = "its backend has no master_user";
                self.status.set(Doing::Parked { why: why.to_owned() });
                Next::Try(Duration::MAX)
            }
            End::Refused(answer) => {
                self.refusals += 1;
                let refusal = Refusal::of(&answer);
                let wrong = matches!(refusal, Refusal::Wrong | Refusal::Barred);
                let tried_before = self.inherited && wrong;
                let tries = self.refusals + u32::from(tried_before);
                let wait = refusal::wait(refusal, tries, backoff, rand::random());
                let reason = printable(&answer);
                match wait {
                    Some(wait) => {
                        tracing::warn!(%account, reason, ?wait, "the stored password is refused");
                        self.rest(Some(wait), &reason);
                        // Before the last try: who is killed after it must not count anew.
                        if wrong {
                            self.note(&reason).await;
                        }
                        Next::Try(wait)
                    }
                    None => {
                        tracing::warn!(%account, reason, "not watched until its user logs in again");
                        self.status.set(Doing::Parked { why: reason.clone() });
                        self.note(&reason).await;
                        Next::Login
                    }
                }
            }
            End::MasterRefused { answer, rest } => {
                self.refusals = self.refusals.saturating_add(1);
                let wait = refusal::master_wait(self.refusals, rand::random());
                let reason = printable(&answer);
                match rest {
                    Some(rest) => tracing::error!(
                        %account, reason, wait = ?rest, remedy = MASTER_REMEDY,
                        "the backend refuses the master user, whoever it acts as: nobody is watched \
                         anew"
                    ),
                    None => tracing::warn!(
                        %account, reason, ?wait,
                        "the backend refuses the master user as this account"
                    ),
                }
                self.rest(Some(wait), &format!("the master user is refused: {reason}"));
                Next::Later(wait)
            }
            End::Failed(why) => {
                self.failures = self.failures.saturating_add(1);
                let wait = backoff.wait(self.failures, rand::random());
                tracing::info!(%account, why, ?wait, "watching is interrupted");
                self.rest(Some(wait), &why);
                Next::Try(wait)
            }
        }
    }

    /// Notes that nothing is done for some time, or until something happens.
    fn rest(&self, pause: Option<Duration>, why: &str) {
        let next_try = pause.map(|pause| Timestamp::now().plus(pause));
        self.status.set(Doing::BackingOff { next_try, why: why.to_owned() });
    }

    /// Notes that the password is wrong, for the next start of the program too: the account is
    /// parked then. While the store does not take it, nothing else is done, until the supervisor has
    /// something to tell.
    async fn note(&mut self, reason: &str) {
        let backend = self.backend.clone();
        let mut failures = 0;
        while let Err(error) =
            self.context.store.park(&self.account, backend.id(), reason, Timestamp::now()).await
        {
            tracing::warn!(account = %self.account, %error, "that a password is wrong is not stored");
            failures += 1;
            let pause = NOTE.wait(failures, rand::random());
            // Left for `run` to see.
            let mut orders = self.orders.clone();
            tokio::select! {
                _ = orders.changed() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.noted = true;
    }

    /// Waits until the account's user has logged in; `None` on stop. Even the same password counts:
    /// the backend has just accepted it.
    async fn wait_for_login(&mut self) -> Option<()> {
        // Forgotten, so that whatever comes is taken as new, stored, and ends the parking there.
        self.credentials = None;
        let logins = self.logins;
        while self.credentials.is_none() && self.logins == logins {
            self.orders.changed().await.ok()?;
            if self.orders.borrow().stop {
                return None;
            }
            self.take_orders().await;
        }
        if self.credentials.is_none() {
            self.refusals = 0;
            // The other node has done so, but this one may have parked the account since.
            let id = self.backend.id();
            if let Err(error) = self.context.store.unpark(&self.account, id).await {
                tracing::warn!(account = %self.account, %error, "the parking is still stored");
            }
        }
        tracing::info!(account = %self.account, "its user logged in: watched again");
        Some(())
    }

    /// Takes over what the supervisor told; keeps a new password.
    pub(super) async fn take_orders(&mut self) {
        let Orders { login, logins, .. } = self.orders.borrow_and_update().clone();
        if logins != self.logins {
            self.logins = logins;
            self.credentials = None;
        }
        let Some(login) = login else { return };
        let Some(fresh) = &login.credentials else { return };
        let known = self.credentials.as_ref().is_some_and(|(backend, known)| {
            backend.is(login.backend.as_str()) && known.same_as(fresh)
        });
        // A session may be older than the configuration.
        let id = self.context.backends.id_of(&self.account);
        let at_home = id.is_some_and(|id| id.is(login.backend.as_str()));
        if known && !self.unsaved || !at_home {
            return;
        }
        let saved = self.context.credentials.save(&self.account, &login).await;
        match &saved {
            Ok(true) => {}
            // Another backend has the account, or it has another password since.
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(account = %self.account, %error, "a new password could not be stored");
            }
        }
        // The next login brings it again.
        self.unsaved = saved.is_err();
        self.noted &= self.unsaved;
        self.credentials = Some((login.backend.clone(), fresh.clone()));
        self.inherited = false;
        (self.refusals, self.failures) = (0, 0);
    }

    /// Whether it logs in as the master user, whom no user's login can help.
    fn acts_as_master(&self) -> bool {
        !self.context.credentials.are_of_users()
    }

    /// One connection from login to its end. Whatever it waits for, it ends when it is to stop.
    async fn connection(
        &mut self,
        at: At<'_>,
        turns: (Option<master::Turn<'_>>, pacer::Turn<'_>),
    ) -> End {
        let At { backend, upstream, .. } = at;
        let mut orders = self.orders.clone();
        let (backends, account) = (self.context.backends.clone(), self.account.clone());
        let moved = || !backends.is_of(&account, backend);
        // Boxed: it is the largest part, and soon over.
        let logged_in = Box::pin(async {
            tokio::select! {
                logged_in = self.log_in(at) => logged_in,
                () = stopped(orders.clone()) => Err(End::Stop),
            }
        });
        let (mut connection, granted) = match logged_in.await {
            Ok(logged_in) => logged_in,
            Err(end) => return end,
        };
        drop(turns);
        self.lasting.begin(&upstream.lasting, rand::random());
        let (end, orderly) = tokio::select! {
            Err(end) = self.rounds(&mut connection, upstream, granted) => {
                let orderly = matches!(end, End::Stop | End::Nothing);
                (end, orderly)
            }
            () = upstream.wanted() => (End::Turn, true),
            told = orders.wait_for(|orders| orders.stop || moved()) => match told {
                Ok(orders) if !orders.stop => {
                    (End::Failed("the configuration names another backend".to_owned()), true)
                }
                _ => (End::Stop, true),
            },
        };
        match end {
            End::Failed(_) if !orderly => self.learn_from(&connection, upstream),
            _ if orderly => Box::pin(connection.log_out()).await,
            _ => {}
        }
        end
    }

    /// The connection was lost.
    fn learn_from(&mut self, connection: &Connection, upstream: &Upstream) {
        let (account, least) = (&self.account, lasting::least(&self.context.config));
        if connection.idles_for().is_some_and(|time| time < least) && self.ways.idle.lost() {
            tracing::info!(
                %account,
                "connections end as soon as IDLE begins: this account is polled for an hour"
            );
        }
        let shared = &upstream.lasting;
        let logins = self.context.config.logins_per_second;
        if self.watches_since.is_none()
            || shared.lost(usize::try_from(logins).unwrap_or(usize::MAX))
        {
            return;
        }
        let loss = connection.loss();
        let learnt = self.lasting.lost(loss, account, shared, least, rand::random());
        if let Some(renewal) = learnt {
            tracing::info!(
                %account, quiet = ?loss.quiet, ?renewal,
                "something on the way to the backend ends quiet connections: they are used more often"
            );
        }
    }

    async fn log_in(
        &mut self,
        At { backend, master, .. }: At<'_>,
    ) -> Result<(Connection, Option<Capabilities>), End> {
        // After a break nothing counts but what the devices were told.
        self.mailboxes.clear();
        if self.backend.name() != backend.name() {
            (self.ways, self.lasting) = Default::default();
        }
        self.backend = backend.clone();
        // Credentials that are used without being taken would not be stored.
        if self.orders.has_changed().unwrap_or_default() {
            self.take_orders().await;
        }
        self.reload(backend).await?;
        let credentials = match master {
            Some(_) => {
                let user = backend.master().ok_or(End::NoMaster)?;
                user.acting_as(&self.account)
            }
            None => {
                let known = self.credentials.take();
                let known =
                    known.filter(|(by, known)| backend.id().is(by.as_str()) && lasts(known));
                let credentials = match known {
                    Some((_, credentials)) => credentials,
                    None => self.kept_credentials(backend.id()).await?,
                };
                self.credentials.insert((backend.id().clone(), credentials)).1.clone()
            }
        };
        // What was stored under another configuration, or by an earlier version, may be a claim.
        if master.is_none() && !credentials.prove_account(backend.checks_token_name()) {
            tracing::warn!(
                account = %self.account,
                "not watched until its user logs in: what is kept does not prove whose it is"
            );
            return Err(End::NoPassword("what is kept does not prove whose it is"));
        }
        let context = &self.context;
        let timeout = context.config.answer_timeout;
        let backends = &context.backends;
        // It took its time to come here.
        if !backends.is_of(&self.account, backend) {
            return Err(End::Moved);
        }
        let longest = context.response_size;
        let account = &self.account;
        match backends.log_in(backend, account, credentials, timeout, longest).await {
            Ok(mut logged_in) => {
                (self.inherited, self.refusals) = (false, 0);
                master.inspect(|master| master.accepted());
                if std::mem::take(&mut self.noted) {
                    let unparked = context.store.unpark(&self.account, backend.id()).await;
                    unparked.inspect_err(|_| self.noted = true)?;
                }
                let granted = logged_in.capabilities.take();
                Ok((Connection::new(logged_in, timeout, longest), granted))
            }
            Err(LoginError::Refused { answer }) if Refusal::of(&answer) != Refusal::Temporary => {
                let Some(master) = master else { return Err(End::Refused(answer)) };
                let why = format!("the master user is refused: {}", printable(&answer));
                let rest = master.refused(account, &why);
                Err(End::MasterRefused { answer, rest })
            }
            Err(error) => Err(End::Failed(error.to_string())),
        }
    }

    /// The password that a session brought to this backend, else the stored one.
    async fn kept_credentials(&self, backend: &BackendId) -> Result<Credentials, End> {
        let login = self.orders.borrow().login.clone();
        let login = login.filter(|login| backend.is(login.backend.as_str()));
        if let Some(credentials) = login.and_then(|login| login.credentials).filter(lasts) {
            return Ok(credentials);
        }
        let account = &self.account;
        match self.context.credentials.of(account, backend, Timestamp::now()).await {
            Ok(Some(credentials)) => Ok(credentials),
            Ok(None) => {
                tracing::warn!(%account, "not watched until its user logs in: no password is kept");
                Err(End::NoPassword("no password is kept"))
            }
            // It stays as it is: with the right key file the next start can read it.
            Err(CredentialsError::Vault(error)) => {
                tracing::error!(%account, %error, "not watched until its user logs in");
                Err(End::NoPassword("the stored password cannot be read"))
            }
            Err(CredentialsError::Store(error)) => Err(error.into()),
        }
    }

    /// Reads which mailboxes are registered and what their devices were told.
    async fn reload(&mut self, backend: &Backend) -> Result<(), End> {
        let (context, account, id) = (&self.context, &self.account, backend.id());
        // Before the rows are read: a registration that comes meanwhile has them read again.
        let registrations = self.orders.borrow().registrations;
        let mut rows = context.store.watched(account, id, context.alive()).await?;
        if rows.is_empty() {
            let live = context.store.live_account(account, context.alive()).await?;
            let elsewhere = live.as_ref().and_then(|live| live.elsewhere(id));
            return Err(elsewhere.map_or(End::Nothing, |it| End::Elsewhere(it.to_owned())));
        }
        self.elsewhere = false;
        rows.sort_by(|(one, _), (other, _)| in_order(one, other));
        let before = std::mem::take(&mut self.mailboxes).into_iter();
        let mut before: HashMap<_, _> =
            before.map(|watched| (watched.mailbox.clone(), watched)).collect();
        for (mailbox, told) in rows {
            // What was announced and not yet told is still known; the rest is as it was told.
            let known = before.remove(&mailbox);
            self.mailboxes.push(known.unwrap_or_else(|| Watched::new(mailbox, told)));
        }
        self.registrations = registrations;
        Ok(())
    }

    /// After a change of the orders while connected: takes them; returns whether the list of
    /// mailboxes was read again. A user's login alone is no reason to disturb the backend.
    pub(super) async fn obey(&mut self) -> Result<bool, End> {
        self.take_orders().await;
        let wanted = self.orders.borrow().registrations != self.registrations;
        if wanted {
            let backend = self.backend.clone();
            self.reload(&backend).await?;
        }
        Ok(wanted)
    }
}

/// The order in which mailboxes are looked at. INBOX first: a long list must not make new mail wait.
pub(super) fn in_order(one: &Mailbox, other: &Mailbox) -> Ordering {
    other.is_inbox().cmp(&one.is_inbox()).then_with(|| one.cmp(other))
}

/// Whether credentials can be used again. A token expires, and the source knows when.
fn lasts(credentials: &Credentials) -> bool {
    credentials.kind == SecretKind::Password
}

impl Watched {
    fn new(mailbox: Mailbox, told: Snapshot) -> Self {
        Self {
            mailbox,
            known: told,
            announced: None,
            renumbered: None,
            unnumbered: false,
            due: true,
        }
    }
}

async fn stopped(mut orders: watch::Receiver<Orders>) {
    // A supervisor that is gone is the end, too.
    let _ = orders.wait_for(|orders| orders.stop).await;
}
