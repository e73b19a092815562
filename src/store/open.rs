//! Opening a database, and bringing its schema up to date.

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Row;
use tokio::sync::OnceCell;

use super::gathering::Gathering;
use super::shares::Shares;
use super::sql::dialect::Dialect;
use super::sql::work::Connections;
use super::sql::{self, file, mariadb, postgres, schema, sqlite};
use super::{Store, StoreError, error};
use crate::config::{DatabaseKind, DatabaseUrl, ServerUrl};

/// How long a start waits for a server to answer.
const FIRST: Duration = Duration::from_secs(3);

/// What a call may take beyond `busy_timeout`.
const GRACE: Duration = Duration::from_secs(5);

/// Makes the connections to the server of a URL: how errors name the database, how long a call waits for
/// locks, and how long it takes at most.
type Connect = fn(&ServerUrl, &Arc<str>, Duration, Duration) -> Result<Connections, StoreError>;

impl Store {
    /// Opens the database of `url` and brings its schema up to date. A SQLite file is made when there is none,
    /// readable by its owner only, and is locked against other processes that serve until
    /// [`close`](Self::close). A server that is out of reach is no error: calls fail until it is there.
    ///
    /// A call waits up to `busy_timeout` for others that hold a lock, and takes no longer than 5
    /// seconds more, whatever became of the database.
    ///
    /// # Errors
    /// [`StoreError::Newer`] when a newer program wrote it, [`StoreError::InUse`] when another process
    /// serves from the file, [`StoreError::Unusable`] when the folder, the file or the rights
    /// are at fault, else as any call.
    pub async fn open(url: &DatabaseUrl, busy_timeout: Duration) -> Result<Self, StoreError> {
        let store = match url.kind() {
            DatabaseKind::Sqlite(path) => {
                let database: Arc<str> = path.to_string_lossy().into();
                let opened = sqlite::open(path, &database, busy_timeout).await?;
                return Ok(Self::of_file(database, opened, busy_timeout));
            }
            DatabaseKind::Postgres(server) => {
                Self::of_server(url, postgres::connections, server, busy_timeout, OnceCell::new())?
            }
            DatabaseKind::MariaDb(server) => {
                Self::of_server(url, mariadb::connections, server, busy_timeout, OnceCell::new())?
            }
        };
        // Mail does not wait for it. What is wrong with it is found here if it answers.
        let first = async {
            store.expect_server().await?;
            let _ = store.connections.begin_write().await;
            Ok::<_, StoreError>(())
        };
        let answered = tokio::time::timeout(FIRST, first).await;
        let Ok(fit) = answered else {
            let database = &*store.database;
            let error = store.connections.fault().await.map(|error| error.to_string());
            tracing::error!(
                target: "mailchime::store::not_ready",
                database,
                error,
                "the database does not answer yet; mail goes on, and mailchime keeps trying"
            );
            return Ok(store);
        };
        fit?;
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
    /// [`StoreError::Unusable`] when there is none, [`StoreError::NoTables`] when it is empty or another's,
    /// [`StoreError::Older`] and [`StoreError::Newer`] when another version wrote it, else as any call.
    pub async fn open_existing(
        url: &DatabaseUrl,
        busy_timeout: Duration,
    ) -> Result<Self, StoreError> {
        let store = match url.kind() {
            DatabaseKind::Sqlite(path) => {
                let database: Arc<str> = path.to_string_lossy().into();
                let opened = sqlite::open_existing(path, &database, busy_timeout).await?;
                Self::of_file(database, opened, busy_timeout)
            }
            DatabaseKind::Postgres(server) => {
                let up_to_date = OnceCell::new_with(Some(()));
                Self::of_server(url, postgres::connections, server, busy_timeout, up_to_date)?
            }
            DatabaseKind::MariaDb(server) => {
                let up_to_date = OnceCell::new_with(Some(()));
                Self::of_server(url, mariadb::connections, server, busy_timeout, up_to_date)?
            }
        };
        let fit = async {
            store.expect_server().await?;
            store.expect_schema().await
        };
        store.limited(fit).await?;
        Ok(store)
    }

    /// That a process serves from the SQLite file of `url`; `None` where none does, or it is no such file.
    pub fn in_use(url: &DatabaseUrl) -> Option<StoreError> {
        let DatabaseKind::Sqlite(path) = url.kind() else { return None };
        let by = file::locked_by(&fs::canonicalize(path).ok()?)?;
        Some(StoreError::InUse { database: path.to_string_lossy().into(), by })
    }

    /// Whether a start may make the schema in the database of a server, or bring it up to date: the statements of that
    /// kind are tried, and nothing of them stays. A file of SQLite is not asked.
    ///
    /// # Errors
    /// Says which right is missing, and what to do; else as any call.
    pub async fn may_migrate(url: &DatabaseUrl, busy_timeout: Duration) -> Result<(), StoreError> {
        let up_to_date = OnceCell::new_with(Some(()));
        let (connect, server): (Connect, _) = match url.kind() {
            DatabaseKind::Sqlite(_) => return Ok(()),
            DatabaseKind::Postgres(server) => (postgres::connections, server),
            DatabaseKind::MariaDb(server) => (mariadb::connections, server),
        };
        let store = Self::of_server(url, connect, server, busy_timeout, up_to_date)?;
        let tried = async {
            match store.connections.dialect() {
                Dialect::MariaDb => store.named(mariadb::try_rights(&store.connections).await),
                _ => postgres::try_rights(&store.connections, &store.database).await,
            }
        };
        let tried = store.limited(tried).await;
        store.close().await;
        tried
    }

    pub(super) fn of_file(
        database: Arc<str>,
        opened: sqlite::Opened,
        busy_timeout: Duration,
    ) -> Self {
        let sqlite::Opened { file, connections } = opened;
        let up_to_date = OnceCell::new_with(Some(()));
        let store = Self::new(database, connections, busy_timeout, up_to_date);
        Self { file: Some(file), ..store }
    }

    /// A server comes about when it is first asked.
    pub(super) fn of_server(
        url: &DatabaseUrl,
        connect: Connect,
        server: &ServerUrl,
        busy_timeout: Duration,
        up_to_date: OnceCell<()>,
    ) -> Result<Self, StoreError> {
        let database: Arc<str> = url.to_string().into();
        let connections = connect(server, &database, busy_timeout, busy_timeout + GRACE)?;
        Ok(Self::new(database, connections, busy_timeout, up_to_date))
    }

    /// `up_to_date` says whether the schema is.
    pub(super) fn new(
        database: Arc<str>,
        connections: Connections,
        busy_timeout: Duration,
        up_to_date: OnceCell<()>,
    ) -> Self {
        let (connections, up_to_date) = (Arc::new(connections), Arc::new(up_to_date));
        // SQLite has one writer, and a read takes less time than waking the thread of another connection. A server has the
        // disk to itself, and others may share it.
        let turns = if connections.are_to_a_server() { 2 } else { 1 };
        let limit = busy_timeout + GRACE;
        let (metrics, incarnation, shares) = (Arc::default(), "".into(), Shares::default());
        let (service, vault, file, traces) = (None, None, None, Arc::default());
        let stopping = Arc::default();
        Self {
            database,
            connections,
            limit,
            up_to_date,
            registrations: Arc::new(Gathering::new(turns)),
            asked_watched: Arc::new(Gathering::new(turns)),
            asked_targets: Arc::new(Gathering::new(turns)),
            shares,
            service,
            vault,
            file,
            traces,
            stopping,
            metrics,
            said_slow: Arc::default(),
            incarnation,
            notifier: Arc::default(),
        }
    }

    /// A server that answers is one that mailchime can use.
    async fn expect_server(&self) -> Result<(), StoreError> {
        match self.connections.dialect() {
            Dialect::MariaDb => mariadb::expect_version(&self.connections, &self.database).await,
            Dialect::Sqlite | Dialect::Postgres => Ok(()),
        }
    }

    /// The schema is that of this program.
    pub(super) async fn expect_schema(&self) -> Result<(), StoreError> {
        let database = || Arc::clone(&self.database);
        let newest = async {
            let sql = "select max(version) as version from _sqlx_migrations";
            sql::query(sql).fetch_one_in(&mut self.read_once().await?).await
        };
        let row = newest.await.map_err(|error| {
            if error::is_no_table(&error) {
                return StoreError::NoTables { database: database() };
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
                Err(StoreError::Newer { database: database(), found, known })
            }
            (found, known) if found < known => {
                Err(StoreError::Older { database: database(), found, known })
            }
            _ => Ok(()),
        }
    }

    /// Brings the schema up to date, and reads the time of service, unless that has been done.
    pub(super) async fn ready(&self) -> Result<(), StoreError> {
        // A task of its own: a large database takes longer than a call may, and its caller goes away.
        let update = async || {
            let (connections, database) =
                (Arc::clone(&self.connections), Arc::clone(&self.database));
            let limit = self.limit;
            let update = tokio::spawn(async move {
                match connections.dialect() {
                    Dialect::MariaDb => mariadb::migrate(&connections, &database, limit).await,
                    _ => postgres::migrate(&connections, &database, limit).await,
                }
            });
            update
                .await
                .unwrap_or_else(|error| self.named(Err(sqlx::Error::Io(io::Error::other(error)))))
        };
        self.up_to_date.get_or_try_init(update).await?;
        self.named(self.know_service().await)
    }
}
