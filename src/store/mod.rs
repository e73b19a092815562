//! The database: who subscribed to which mailboxes, by which transport, what they were told,
//! and the credentials with which their users' watchers log in ([`CredentialSource`]).
//!
//! The store keeps and returns rows; it does not know why they change. It reads no clock: times are
//! arguments. Each call is one transaction, and when it has returned `Ok` the change is on disk.
//! Every error leaves the rows as they were, and dropping a call's future in its middle does too, but
//! for a registration, which is then made or not; only where the connection broke while the end of the
//! transaction was on its way may the change have been made. Each call may be repeated.
//!
//! An account belongs to the backend that has accepted its user. What is read or written on behalf of
//! another backend finds no account, and a registration there begins a new one in its place.
//!
//! What always holds between two calls:
//! - an account has at least one subscription; with its last one go its credentials and mailboxes;
//! - a mailbox has a row, with its state as last told, exactly while some subscription wants it.
//!
//! SQLite and PostgreSQL have one set of statements (`$1`, TEXT and BIGINT, `on conflict`,
//! `returning`), which is why they go through sqlx's `Any` driver. `work` says what a call has of a
//! connection: one transaction, and nothing beyond it. What SQLite does by having one
//! writer, PostgreSQL does by rows: whatever adds or removes a device first locks the row of its
//! account, so that "has no device" stays true until the account is deleted for it. Transactions
//! that got into each other's way all the same are run again here.

mod accounts;
mod batches;
mod credentials;
mod dialect;
mod error;
mod file;
mod keeping;
mod nodes;
mod postgres;
mod pushes;
mod registrations;
mod rotation;
mod rows;
mod schema;
mod service;
mod shares;
mod sqlite;
mod vault;
mod work;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, Row};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use self::file::DatabaseFile;
use self::rows::Readable;
use self::work::{Connections, Statement, Work};
use crate::config::{self, database_name};
use crate::metrics::{Call, Labels, Metrics};
use crate::model::{
    Account, BackendId, Mailbox, PushEndpoint, Snapshot, Subscription, SubscriptionKey, Timestamp,
    TransportId,
};

use batches::Batches;
pub use credentials::{CredentialSource, CredentialsError, unreadable};
pub use error::StoreError;
pub use keeping::Kept;
pub use nodes::{Invalidation, Node};
pub use rotation::{RotationError, rotate};
use service::Service;
pub use service::TICK;
pub use shares::{Full, MadeRoom, Shares};
pub use vault::{Vault, VaultError};

/// A handle to the database; clones share it.
#[derive(Clone)]
pub struct Store {
    /// How errors name the database.
    database: Arc<str>,
    connections: Arc<Connections>,
    /// No call takes longer.
    limit: Duration,
    /// A server may be away when the program starts.
    up_to_date: Arc<OnceCell<()>>,
    batches: Arc<Batches>,
    shares: Shares,
    /// Of a program that serves phones.
    service: Option<Arc<Service>>,
    /// Of SQLite: the files, and whether the log holds what was removed or replaced.
    file: Option<Arc<DatabaseFile>>,
    traces: Arc<AtomicBool>,
    stopping: Arc<Stopping>,
    metrics: Arc<Metrics>,
    /// When the log last said that a call took long.
    said_slow: Arc<Mutex<Option<Instant>>>,
    /// Of this process as a node; empty if it is none.
    incarnation: Arc<str>,
}

/// The end of the program, which does not wait for a database that is away.
#[derive(Default)]
struct Stopping {
    begun: CancellationToken,
    /// A call was late since: further ones fail at once.
    away: AtomicBool,
}

/// What a call may take from the moment in which the program gets the signal to stop.
const LAST: Duration = Duration::from_secs(2);

/// How long a start waits for a server to answer.
const FIRST: Duration = Duration::from_secs(3);

/// What a call may take beyond `busy_timeout`.
const GRACE: Duration = Duration::from_secs(5);

/// A call that takes longer is said in the log, at most once in this time.
const SLOW: Duration = Duration::from_secs(1);
const BETWEEN_LINES: Duration = Duration::from_mins(1);

/// Between the tries to empty SQLite's log for somebody who waits.
const SCRUB_PAUSES: [Duration; 5] = [Duration::from_millis(50); 5];
/// How often a transaction is run that others got into the way of.
const TRIES: u32 = 5;

/// Which devices live, by the time of service ([`Store::served`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alive {
    /// They registered then or later,
    pub registered_since: Timestamp,
    /// and their account got no other password up to then with which they have not registered.
    pub outdated_after: Timestamp,
}

/// An account with at least one live device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveAccount {
    /// Its name.
    pub account: Account,
    /// Which backend has accepted its user, see [`BackendId::is`]; `None` in rows of versions that did
    /// not record it.
    pub backend: Option<String>,
    /// Why its watcher gave up; `None` while it may try.
    pub parked: Option<String>,
    /// How many tries in a row its backend has refused, and when it refused the last one.
    pub refused: Option<(u32, Timestamp)>,
}

/// The login of a session that registers a device.
#[derive(Clone, Debug)]
pub struct Registrant {
    /// Which backend has accepted it.
    pub backend: BackendId,
    /// When the session that registers logged in.
    pub logged_in_at: Timestamp,
    /// What is to be kept of its credentials, in the place of all that is kept.
    pub sealed: Option<Sealed>,
    /// Its password is not the one that is kept.
    pub other_password: bool,
    /// Says what of its credentials is kept, and what of those that are; in the place of the above.
    keeper: Option<Keeper>,
    /// Accounts whose names differ from this one in nothing but case are the same user.
    pub names_ignore_case: bool,
}

/// Credentials as the database keeps them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Of the [`Vault`].
    pub text: String,
    /// They are not to be kept any longer; `None` while their account lives.
    pub until: Option<Timestamp>,
}

/// Credentials as the database keeps them, with what is known of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeptRow {
    sealed: Sealed,
    since: Timestamp,
    proved_at: Timestamp,
}

/// What becomes of the credentials of an account.
#[derive(Clone, Debug, Default)]
struct Keeping {
    /// All that are kept from now on, in the order of [`keeping::Accepted`]; `None` leaves them alone.
    rows: Option<Vec<KeptRow>>,
    other_password: bool,
}

/// Says what becomes of the credentials that are kept. It is asked within the transaction that changes
/// them, so of logins at the same time none undoes what another one brought.
#[derive(Clone)]
struct Keeper(Arc<Keep>);

/// Asked with what is kept, and whether the backend has refused all of it until the account was parked.
type Keep = dyn Fn(&[KeptRow], bool) -> Keeping + Send + Sync;

/// A live subscription with what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What gets the push.
    pub subscription: Subscription,
    /// By the time of day.
    pub registered_at: Timestamp,
    /// The same by the time of service.
    pub heard_at: Timestamp,
    /// Which backend has accepted its account's user, as [`LiveAccount::backend`].
    pub backend: Option<String>,
    /// When its account got another password, if it has not registered with that.
    pub outdated_since: Option<Timestamp>,
    /// The same by the time of service.
    pub outdated_at: Option<Timestamp>,
    /// When a push for it was last accepted.
    pub pushed_at: Option<Timestamp>,
    /// Each mailbox, and whether a push for it is still owed to this device.
    pub mailboxes: Vec<(Mailbox, bool)>,
}

/// What became of a change; see [`Store::settle`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Every device knows of this state or has the mailbox marked as due.
    Told {
        /// The account.
        account: Account,
        /// The mailbox.
        mailbox: Mailbox,
        /// The state that it has now.
        snapshot: Snapshot,
    },
    /// A push for the mailbox is due to the device. A mark that is there keeps its time.
    Owed {
        /// The subscription.
        subscription: SubscriptionKey,
        /// The mailbox.
        mailbox: Mailbox,
        /// Since when, in milliseconds since 1970.
        since: Timestamp,
    },
    /// A push for these mailboxes was accepted: they are no longer owed.
    Accepted {
        /// The subscription.
        subscription: SubscriptionKey,
        /// The mailboxes.
        mailboxes: Vec<Mailbox>,
        /// When.
        at: Timestamp,
    },
}

/// What became of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegisterOutcome {
    /// It is on disk.
    Stored(MadeRoom),
    /// It is not, as this limit leaves no room for it.
    Full(Full),
}

/// A registration that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// What was removed.
    pub subscription: Subscription,
    /// Whether the account has other devices. If not, nothing of it is left.
    pub account_left: bool,
}

// === impl Alive ===

impl Alive {
    /// Those that live at this time of service.
    pub fn at(served: Timestamp, push: &config::PushConfig) -> Self {
        Self {
            registered_since: served.minus(push.registration_ttl),
            outdated_after: served.minus(push.outdated_for()),
        }
    }
}

impl From<Timestamp> for Alive {
    /// All that registered then or later.
    fn from(registered_since: Timestamp) -> Self {
        Self { registered_since, outdated_after: Timestamp(i64::MIN) }
    }
}

// === impl LiveAccount ===

impl LiveAccount {
    /// The backend that has accepted its user, if that is another one than `now`, the one that it has
    /// by the configuration.
    pub fn elsewhere(&self, now: &BackendId) -> Option<&str> {
        self.backend.as_deref().filter(|recorded| !now.is(recorded))
    }
}

// === impl Registrant ===

impl Registrant {
    /// One whose password is the one that is kept, as far as is known.
    pub fn new(backend: &BackendId, logged_in_at: Timestamp, sealed: Option<&Sealed>) -> Self {
        let (backend, sealed) = (backend.clone(), sealed.cloned());
        let (other_password, names_ignore_case, keeper) = Default::default();
        Self { backend, logged_in_at, sealed, other_password, keeper, names_ignore_case }
    }

    /// What becomes of the credentials that are kept; `refused`: as for [`Keep`].
    fn keeping(&self, kept: &[KeptRow], refused: bool) -> Keeping {
        if let Some(Keeper(keep)) = &self.keeper {
            return keep(kept, refused);
        }
        let rows = self.sealed.clone().map(|sealed| {
            let (since, proved_at) = (self.logged_in_at, self.logged_in_at);
            vec![KeptRow { sealed, since, proved_at }]
        });
        Keeping { rows, other_password: self.other_password }
    }

    /// Whether it may change credentials.
    fn brings_credentials(&self) -> bool {
        self.keeper.is_some() || self.sealed.is_some() || self.other_password
    }
}

// === impl Keeper ===

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keeper")
    }
}

// === impl Target ===

impl Target {
    /// As [`LiveAccount::elsewhere`].
    pub fn elsewhere(&self, now: &BackendId) -> Option<&str> {
        self.backend.as_deref().filter(|recorded| !now.is(recorded))
    }
}

// === impl Store ===

impl Store {
    /// Opens the database of `url` (`sqlite://path`, relative or absolute, or `postgres://…`) and
    /// brings its schema up to date. A SQLite file is made when there is none, readable by its owner
    /// only, and is locked against other processes that serve until [`close`](Self::close). A PostgreSQL server that is out of reach is no error: calls fail until it is there.
    ///
    /// A call waits up to `busy_timeout` for others that hold a lock, and takes no longer than 5
    /// seconds more, whatever became of the database.
    ///
    /// # Errors
    /// [`StoreError::Newer`] when a newer program wrote it, [`StoreError::InUse`] when another process
    /// serves from the file, [`StoreError::Unusable`] when the URL, the folder, the file or the rights
    /// are at fault, else as any call.
    pub async fn open(url: &str, busy_timeout: Duration) -> Result<Self, StoreError> {
        if let Some(path) = Self::file(url)? {
            let database: Arc<str> = path.to_string_lossy().into();
            let opened = sqlite::open(&path, &database, busy_timeout).await?;
            return Ok(Self::of_file(database, opened, busy_timeout));
        }
        let store = Self::on_server(url, busy_timeout, OnceCell::new())?;
        // Mail does not wait for it. What is wrong with it is found here if it answers.
        let first = store.connections.begin_write();
        if tokio::time::timeout(FIRST, first).await.map(drop).is_err() {
            let database = &*store.database;
            tracing::error!(
                target: "mailchime::store::not_ready",
                database,
                "the database does not answer yet; mail goes on, and mailchime keeps trying"
            );
            return Ok(store);
        }
        match store.limited(store.ready()).await {
            Err(error) if error.is_temporary() => {
                tracing::error!(
                    target: "mailchime::store::not_ready",
                    %error,
                    "the database is not ready yet; mail goes on, and mailchime keeps trying"
                );
            }
            result => result?,
        }
        Ok(store)
    }

    /// Opens the database as [`Store::open`] does, but only one that is there and has the schema of
    /// this program: nothing is made or changed by opening it. For commands that look at it beside the
    /// program that serves.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] when there is none, or it has another schema, [`StoreError::Newer`] when a
    /// newer program wrote it, else as any call.
    pub async fn open_existing(url: &str, busy_timeout: Duration) -> Result<Self, StoreError> {
        let store = match Self::file(url)? {
            Some(path) => {
                let database: Arc<str> = path.to_string_lossy().into();
                let opened = sqlite::open_existing(&path, &database, busy_timeout).await?;
                Self::of_file(database, opened, busy_timeout)
            }
            None => Self::on_server(url, busy_timeout, OnceCell::new_with(Some(())))?,
        };
        store.limited(store.expect_schema()).await?;
        Ok(store)
    }

    /// The file of `sqlite://path`; `None` where the URL is that of a server.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] when it is no URL of a database.
    pub fn file(url: &str) -> Result<Option<PathBuf>, StoreError> {
        if postgres::is_url(url) { Ok(None) } else { sqlite::path_of(url).map(Some) }
    }

    fn of_file(database: Arc<str>, opened: sqlite::Opened, busy_timeout: Duration) -> Self {
        let sqlite::Opened { file, connections } = opened;
        let up_to_date = OnceCell::new_with(Some(()));
        let store = Self::new(database, connections, busy_timeout, up_to_date);
        Self { file: Some(file), ..store }
    }

    fn on_server(
        url: &str,
        busy_timeout: Duration,
        up_to_date: OnceCell<()>,
    ) -> Result<Self, StoreError> {
        let database: Arc<str> = database_name(url).into();
        let limit = busy_timeout + GRACE;
        let connections = postgres::connections(url, &database, busy_timeout, limit)?;
        Ok(Self::new(database, connections, busy_timeout, up_to_date))
    }

    /// `up_to_date` says whether the schema is.
    fn new(
        database: Arc<str>,
        connections: Connections,
        busy_timeout: Duration,
        up_to_date: OnceCell<()>,
    ) -> Self {
        let (connections, up_to_date) = (Arc::new(connections), Arc::new(up_to_date));
        // SQLite has one writer. A server has the disk to itself, and others may share it.
        let batches = Arc::new(Batches::new(if connections.are_to_a_server() { 2 } else { 1 }));
        let limit = busy_timeout + GRACE;
        let (metrics, incarnation, shares) = (Arc::default(), "".into(), Shares::default());
        let (service, file, traces) = (None, None, Arc::default());
        let stopping = Arc::default();
        Self {
            database,
            connections,
            limit,
            up_to_date,
            batches,
            shares,
            service,
            file,
            traces,
            stopping,
            metrics,
            said_slow: Arc::default(),
            incarnation,
        }
    }

    /// Keeps these limits from now on.
    #[must_use]
    pub fn sharing(self, shares: Shares) -> Self {
        Self { shares, ..self }
    }

    /// Counts in `metrics` from now on.
    #[must_use]
    pub fn counting(self, metrics: Arc<Metrics>) -> Self {
        Self { metrics, ..self }
    }

    /// The same for a process that is to be a node ([`Store::join`]), by a name that no other process
    /// has or had.
    #[must_use]
    pub fn of_node(self, incarnation: Arc<str>) -> Self {
        Self { incarnation, ..self }
    }

    /// By what it [joins](Store::of_node); empty if it does not.
    pub fn incarnation(&self) -> &str {
        &self.incarnation
    }

    /// Whether processes on other machines may serve from the same database.
    pub fn is_shared(&self) -> bool {
        self.connections.are_to_a_server()
    }

    /// No call takes longer.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// The program ends: from now on a call takes two seconds at most, and when one has taken that long,
    /// further ones fail at once.
    pub fn stop(&self) {
        self.stopping.begun.cancel();
    }

    /// Whether it does.
    pub fn is_stopping(&self) -> bool {
        self.stopping.begun.is_cancelled()
    }

    /// The schema is that of this program.
    async fn expect_schema(&self) -> Result<(), StoreError> {
        let unusable = |problem: String, remedy| StoreError::Unusable {
            database: Arc::clone(&self.database),
            problem,
            remedy,
        };
        let newest = async {
            let sql = "select max(version) as version from _sqlx_migrations";
            sqlx::query(sql).fetch_one_in(&mut self.begin_read().await?).await
        };
        let row = newest.await.map_err(|error| {
            if error::is_no_table(&error) {
                let remedy = "name the one that mailchime uses, or start mailchime to have it made";
                return unusable("is no database of mailchime".to_owned(), remedy);
            }
            match error::is_refusal(&error) {
                true => error::unusable_server(&self.database, error),
                false => StoreError::from_sqlx(&self.database, error),
            }
        })?;
        let version = row.try_get::<Option<i64>, _>("version");
        let found = self.named(version)?.unwrap_or_default();
        match (found, schema::known()) {
            (found, known) if found > known => {
                Err(StoreError::Newer { database: Arc::clone(&self.database), found, known })
            }
            (found, known) if found < known => Err(unusable(
                format!("has an older schema ({found}, this program's is {known})"),
                "mailchime brings it up to date when it is started, after a backup say",
            )),
            _ => Ok(()),
        }
    }

    /// Whether the database has all that writing needs, and is the one that was opened; changes nothing.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.write(Call::Ping, || async {
            // No account has an empty name. It is rolled back.
            registrations::lock(&mut self.begin().await?, "").await
        })
        .await
    }

    /// Takes what was removed or replaced out of SQLite's log, too, if there is any: it is overwritten
    /// in the database itself, but stays in the log until that is emptied. Returns whether nothing is
    /// left; if not, somebody reads what was there before, or writes. To be called again then.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn scrub(&self) -> Result<bool, StoreError> {
        let Some(file) = &self.file else { return Ok(true) };
        if !self.traces.swap(false, Ordering::Relaxed) {
            return Ok(true);
        }
        let emptied = self.write(Call::Scrub, || sqlite::empty_log(file.path())).await;
        if !matches!(emptied, Ok(true)) {
            self.traces.store(true, Ordering::Relaxed);
        }
        emptied
    }

    /// The same, for somebody who waits until it is done, but not for long.
    pub(crate) async fn scrub_soon(&self) {
        for pause in SCRUB_PAUSES {
            match self.scrub().await {
                Ok(true) => return,
                Ok(false) => tokio::time::sleep(pause).await,
                Err(error) => {
                    return tracing::warn!(
                        target: "mailchime::store::traces_remain",
                        %error,
                        "what was removed may stay in the database's log until mailchime stops"
                    );
                }
            }
        }
        tracing::warn!(
            target: "mailchime::store::traces_remain",
            "what was removed may stay in the database's log until mailchime stops"
        );
    }

    /// From now on there is something to [`scrub`](Self::scrub).
    fn leaves_traces(&self) {
        self.traces.store(true, Ordering::Relaxed);
    }

    /// Waits for the calls in flight and closes the database; later calls fail.
    pub async fn close(&self) {
        self.connections.reads.close().await;
        match self.is_in_place() {
            Ok(()) => self.scrub_soon().await,
            Err(_) => self.look_at_file().await,
        }
        self.connections.writes.close().await;
        if let Some(file) = &self.file {
            file.release();
        }
    }

    /// The same for a page of rows behind the last one's: an error if there are some, and none can be
    /// read, so that nobody takes it for the end.
    async fn page<T>(
        &self,
        query: Query<'_, Any, AnyArguments>,
        read: impl Fn(&AnyRow) -> sqlx::Result<T>,
    ) -> sqlx::Result<Vec<T>> {
        let mut work = self.begin_read().await?;
        let Readable { rows, left_out } =
            rows::readable(&mut work, &self.metrics, query, read).await?;
        match left_out {
            1.. if rows.is_empty() => {
                Err(sqlx::Error::Decode("no row of a page can be read".into()))
            }
            _ => Ok(rows),
        }
    }

    /// What `read` makes of the rows of a query that can be read.
    async fn rows<T>(
        &self,
        query: Query<'_, Any, AnyArguments>,
        read: impl Fn(&AnyRow) -> sqlx::Result<T>,
    ) -> sqlx::Result<Vec<T>> {
        let mut work = self.begin_read().await?;
        Ok(rows::readable(&mut work, &self.metrics, query, read).await?.rows)
    }

    /// Runs the work of a call that only reads.
    ///
    /// Calls are boxed: there are thousands of tasks that make one now and then, and each would have
    /// room for the largest all the time.
    fn read<'a, T: Send + 'a>(
        &'a self,
        call: Call,
        work: impl Future<Output = sqlx::Result<T>> + Send + 'a,
    ) -> impl Future<Output = Result<T, StoreError>> + Send + 'a {
        Box::pin(self.measured(call, async {
            self.ready().await?;
            self.named(work.await)
        }))
    }

    /// Runs the work of a call that writes: one transaction, which is run again when another one got
    /// into its way.
    fn write<'a, T: Send + 'a, F: Future<Output = sqlx::Result<T>> + Send + 'a>(
        &'a self,
        call: Call,
        work: impl Fn() -> F + Send + Sync + 'a,
    ) -> impl Future<Output = Result<T, StoreError>> + Send + 'a {
        Box::pin(self.measured(call, async move {
            self.ready().await?;
            self.is_in_place()?;
            let written = self.named(self.repeated(work).await)?;
            self.is_in_place()?;
            Ok(written)
        }))
    }

    /// Runs a transaction, and again when another one got into its way.
    async fn repeated<T, F: Future<Output = sqlx::Result<T>>>(
        &self,
        work: impl Fn() -> F,
    ) -> sqlx::Result<T> {
        for _ in 1..TRIES {
            match work().await {
                Err(error) if error::is_conflict(&error) => {}
                // Its server has just become a standby.
                Err(error) if error::is_read_only(&error) => self.connections.distrust(),
                result => return result,
            }
        }
        work().await
    }

    async fn measured<T>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let began = Instant::now();
        let result = self.limited(work).await;
        let took = began.elapsed();
        self.metrics.database_call(call, took, &result);
        if took >= SLOW {
            self.took_long(call, took);
        }
        result
    }

    /// Says so, once a minute.
    fn took_long(&self, call: Call, took: Duration) {
        let mut said = self.said_slow.lock();
        if said.is_some_and(|said| said.elapsed() < BETWEEN_LINES) {
            return;
        }
        *said = Some(Instant::now());
        let call = call.pairs().first().map_or("", |(_, name)| name);
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(
            target: "mailchime::store::slow_call",
            call, milliseconds, "a database call took long"
        );
    }

    /// Begins a transaction that writes.
    async fn begin(&self) -> sqlx::Result<Work> {
        self.connections.begin_write().await
    }

    /// Begins a transaction that reads.
    async fn begin_read(&self) -> sqlx::Result<Work> {
        self.connections.begin_read().await
    }

    /// Brings the schema up to date, and reads the time of service, unless that has been done.
    async fn ready(&self) -> Result<(), StoreError> {
        // A task of its own: a large database takes longer than a call may, and its caller goes away.
        let update = async || {
            let (connections, database) =
                (Arc::clone(&self.connections), Arc::clone(&self.database));
            let limit = self.limit;
            let update =
                tokio::spawn(
                    async move { postgres::migrate(&connections, &database, limit).await },
                );
            update
                .await
                .unwrap_or_else(|error| self.named(Err(sqlx::Error::Io(io::Error::other(error)))))
        };
        self.up_to_date.get_or_try_init(update).await?;
        self.named(self.know_service().await)
    }

    async fn limited<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let late = |limit: Duration| {
            let late = format!("no answer within {limit:?}");
            self.named(Err(sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, late))))
        };
        let Stopping { begun, away } = &*self.stopping;
        if away.load(Ordering::Relaxed) {
            return late(LAST);
        }
        let stopping = async {
            begun.cancelled().await;
            tokio::time::sleep(LAST).await;
        };
        tokio::select! {
            result = tokio::time::timeout(self.limit, call) => {
                result.unwrap_or_else(|_| late(self.limit))
            }
            () = stopping => {
                away.store(true, Ordering::Relaxed);
                late(LAST)
            }
        }
    }

    /// Gives an error the database's name.
    fn named<T>(&self, result: sqlx::Result<T>) -> Result<T, StoreError> {
        result.map_err(|error| StoreError::from_sqlx(&self.database, error))
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("database", &self.database).finish_non_exhaustive()
    }
}

// === rows ===

/// The subscription's row.
async fn id_of(work: &mut Work, key: &SubscriptionKey) -> sqlx::Result<Option<i64>> {
    let row = sqlx::query(
        "select s.id from subscription s join account a on a.id = s.account where a.name = $1 \
         and s.transport = $2 and s.endpoint_hash = $3 and s.app = $4",
    )
    .bind(key.account.as_str())
    .bind(key.transport.as_str())
    .bind(key.endpoint.hash_hex())
    .bind(&*key.app)
    .fetch_optional_in(work)
    .await?;
    row.map(|row| row.try_get("id")).transpose()
}

fn account(row: &AnyRow, column: &str) -> sqlx::Result<Account> {
    // A canonical name is its own canonical form.
    Ok(Account::from_login(row.try_get(column)?))
}

fn subscription(row: &AnyRow) -> sqlx::Result<Subscription> {
    let hash = row.try_get("endpoint_hash")?;
    let endpoint = PushEndpoint::from_row(row.try_get("endpoint")?, hash);
    let endpoint = endpoint.ok_or_else(|| sqlx::Error::ColumnDecode {
        index: "\"endpoint_hash\"".to_owned(),
        source: "a value that cannot be".into(),
    })?;
    Ok(Subscription {
        account: account(row, "account")?,
        transport: TransportId::new(row.try_get("transport")?),
        endpoint,
        app: row.try_get::<&str, _>("app")?.into(),
        route: row.try_get::<&str, _>("route")?.into(),
        options: row.try_get::<&str, _>("options")?.into(),
    })
}

/// What cannot be read was not told: the next look finds a difference, pushes and writes it anew.
fn snapshot(row: &AnyRow) -> Snapshot {
    let number =
        |column: &str| row.try_get::<Option<i64>, _>(column).ok().flatten().map(i64::cast_unsigned);
    Snapshot {
        uid_validity: number("uid_validity"),
        uid_next: number("uid_next"),
        messages: number("messages"),
        unseen: number("unseen"),
        highest_mod_seq: number("highest_mod_seq"),
    }
}
