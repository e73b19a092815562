//! The transactions of calls, and the connections that they run on.
//!
//! Nothing of a call outlives its transaction in the session of a PostgreSQL server. Behind a pooler (PgBouncer
//! with `pool_mode = transaction`) the session is another client's before and after it. So no call listens
//! (LISTEN) or holds a lock for a session; and unless the URL says that no pooler stands between, settings
//! are the transaction's own (`set local`), and statements have no name: a name that is kept would lead to another
//! client's statement. MariaDB has no such settings: a session is set once, when it begins, and
//! no pooler by transaction may stand before it.
//!
//! A server may fail over behind its address: the one that was the primary lives, is read-only, and
//! keeps its connections. So each transaction begins with the question whether it may write, reads
//! too: what a standby says may be out of date. Where it may not, or where the connection is broken or
//! says nothing, all connections that are as old are given up, and the call begins anew on another.
//! A read outside a transaction asks in its own statement; a write outside one fails there by itself.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AnyConnection, AssertSqlSafe, Executor, Row, SqlSafeStr, SqlStr};
use tokio::time::timeout;

use super::dialect::Dialect;
use super::fault::ConnectionFault;
use super::kept::{KeptConnection, KeptConnections};
use super::trust::ConnectionTrust;
use super::unbroken::Unbroken;
use crate::store::error::is_no_value;

/// For the first word of a connection that has been used before, and for the whole answer to a statement that stands alone.
/// After this time another one is made.
pub(in crate::store) const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

const READ_ONLY: &str = "the server at this address is read-only: it is a standby, or its \
                         default_transaction_read_only is on";

/// Begins a transaction that writes a SQLite file: it holds the write lock from the start.
pub(in crate::store) const BEGIN_WRITE: &str = "begin immediate";

/// A database's connections.
pub(in crate::store) struct Connections {
    pub(super) reads: Arc<KeptConnections>,
    pub(super) writes: Arc<KeptConnections>,
    pub(in crate::store) kind: TransactionKind,
}

/// How transactions begin.
pub(in crate::store) enum TransactionKind {
    /// A SQLite file. A transaction that writes holds the write lock from the start.
    File,
    Server {
        dialect: Dialect,
        /// Begins a transaction and makes its settings, in one message. Where the database can say so in it, the message
        /// fails on a server that takes no writes ([`Dialect::is_writable`]).
        begin: Arc<str>,
        /// Statements are kept prepared, by names: only for a server that no pooler stands before.
        named: bool,
        trust: ConnectionTrust,
        /// Why no connection comes about.
        fault: ConnectionFault,
        /// Where a connection can listen; `None` where the server knows no notifications.
        listens_at: Option<Arc<PgConnectOptions>>,
    },
}

/// One transaction, which is rolled back when it is dropped; or a statement that stands alone.
pub(in crate::store) struct Work {
    connection: KeptConnection,
    dialect: Dialect,
    named: bool,
    /// Its statement stands alone, and has to ask whether the server takes writes.
    asks: bool,
    /// What follows its commit.
    then: Option<Box<dyn FnOnce() + Send>>,
}

impl Connections {
    /// For one statement that reads. A SQLite file needs no transaction for it, which would take two more trips to
    /// the connection's thread.
    pub(in crate::store) async fn read_once(&self) -> sqlx::Result<Work> {
        match &self.kind {
            TransactionKind::File => Ok(Work::of_file(self.reads.acquire().await?)),
            TransactionKind::Server { .. } => self.begin_read().await,
        }
    }

    /// For one statement by [`select_by`](super::select_by) to a server, outside a transaction, which would take two more
    /// trips: the statement itself fails on a server that takes no writes. `None` where another server may answer the next
    /// statement, or the database cannot ask so.
    pub(in crate::store) async fn read_alone(&self) -> sqlx::Result<Option<Work>> {
        match &self.kind {
            TransactionKind::Server { dialect, named: true, .. }
                if dialect.is_writable().is_some() =>
            {
                let connection = self.acquire(&self.reads).await?;
                let (dialect, named, asks) = (*dialect, true, true);
                Ok(Some(Work { connection, dialect, named, asks, then: None }))
            }
            TransactionKind::Server { .. } | TransactionKind::File => Ok(None),
        }
    }

    /// For one statement that writes to PostgreSQL, outside a transaction, which would take two more trips. If its answer does
    /// not come it may take effect later, behind others: it must do no harm then. On a server that takes no writes it fails by
    /// itself. `None` of another database, where another server may answer it, or where no connection has answered just now.
    pub(in crate::store) fn write_alone(&self) -> Option<Work> {
        match &self.kind {
            TransactionKind::Server { dialect: Dialect::Postgres, named: true, .. } => {
                let connection = self.writes.acquire_lively()?;
                let (dialect, named, asks) = (Dialect::Postgres, true, false);
                Some(Work { connection, dialect, named, asks, then: None })
            }
            TransactionKind::Server { .. } | TransactionKind::File => None,
        }
    }

    /// Begins a transaction that reads.
    pub(in crate::store) async fn begin_read(&self) -> sqlx::Result<Work> {
        match &self.kind {
            TransactionKind::File => Work::begin_on(&self.reads, "begin").await,
            TransactionKind::Server { trust, .. } => self.begin(&self.reads, trust).await,
        }
    }

    /// Begins a transaction that writes.
    pub(in crate::store) async fn begin_write(&self) -> sqlx::Result<Work> {
        match &self.kind {
            // A transaction never finds in its middle that another process was faster.
            TransactionKind::File => Work::begin_on(&self.writes, BEGIN_WRITE).await,
            TransactionKind::Server { trust, .. } => self.begin(&self.writes, trust).await,
        }
    }

    /// Begins a transaction that writes to a server, on a connection that is closed behind it with all that was
    /// set for its session.
    pub(super) async fn begin_alone(&self) -> sqlx::Result<Work> {
        if !self.are_to_a_server() {
            return self.begin_write().await;
        }
        let mut connection = self.acquire(&self.writes).await?;
        connection.is_alone();
        self.begun(connection).await
    }

    /// Why no connection to the server comes about; `None` where one does, or nobody says why not.
    pub(in crate::store) async fn fault(&self) -> Option<sqlx::Error> {
        match &self.kind {
            TransactionKind::Server { fault, .. } => fault.of(&self.writes.options()).await,
            TransactionKind::File => None,
        }
    }

    /// Waits for the calls that read, and closes their connections.
    pub(in crate::store) async fn close_reads(&self) {
        self.reads.close().await;
    }

    /// The same of those that write.
    pub(in crate::store) async fn close_writes(&self) {
        self.writes.close().await;
    }

    /// The connection that writes a SQLite file, outside a transaction; `None` of a server.
    pub(in crate::store) async fn writer(&self) -> sqlx::Result<Option<Work>> {
        match &self.kind {
            TransactionKind::File => Ok(Some(Work::of_file(self.writes.acquire().await?))),
            TransactionKind::Server { .. } => Ok(None),
        }
    }

    /// One of these. Where none came about in time, the error says why.
    async fn acquire(&self, kept: &Arc<KeptConnections>) -> sqlx::Result<KeptConnection> {
        match kept.acquire().await {
            Err(late @ sqlx::Error::PoolTimedOut) => Err(self.fault().await.unwrap_or(late)),
            acquired => acquired,
        }
    }

    async fn begin(
        &self,
        kept: &Arc<KeptConnections>,
        trust: &ConnectionTrust,
    ) -> sqlx::Result<Work> {
        let first = self.begun(self.acquire(kept).await?);
        match timeout(SIGN_OF_LIFE, first).await {
            Ok(Ok(work)) => {
                trust.is_read_only(false);
                return Ok(work);
            }
            Ok(Err(error)) => tracing::debug!(
                target: "mailchime::store::connection_abandoned",
                %error, "closed a database connection that failed"
            ),
            Err(_) => tracing::debug!(
                target: "mailchime::store::connection_abandoned",
                "closed a database connection that did not answer"
            ),
        }
        self.distrust();
        let begun = self.begun(self.acquire(kept).await?).await;
        match &begun {
            Ok(_) => trust.is_read_only(false),
            Err(error) => {
                trust.is_read_only(is_standby(error));
                self.distrust();
            }
        }
        begun
    }

    /// Begins a transaction on this connection to a server.
    async fn begun(&self, connection: KeptConnection) -> sqlx::Result<Work> {
        let TransactionKind::Server { dialect, begin, named, trust, .. } = &self.kind else {
            return Err(sqlx::Error::BeginFailed);
        };
        let begun = begun(connection, *dialect, Arc::clone(begin), *named);
        Unbroken::begin(trust, begun).await
    }

    /// What the database speaks.
    pub(in crate::store) fn dialect(&self) -> Dialect {
        match &self.kind {
            TransactionKind::File => Dialect::Sqlite,
            TransactionKind::Server { dialect, .. } => *dialect,
        }
    }

    /// Whether they lead to a server, which others may share.
    pub(in crate::store) fn are_to_a_server(&self) -> bool {
        matches!(self.kind, TransactionKind::Server { .. })
    }

    /// Where a connection can listen, and which of them may be used.
    pub(in crate::store) fn listens_at(&self) -> Option<(Arc<PgConnectOptions>, ConnectionTrust)> {
        match &self.kind {
            TransactionKind::Server { listens_at: Some(options), trust, .. } => {
                Some((Arc::clone(options), trust.clone()))
            }
            TransactionKind::Server { .. } | TransactionKind::File => None,
        }
    }

    /// A connection is broken, or its server became a standby: neither it nor any that is as old is
    /// used again.
    pub(in crate::store) fn distrust(&self) {
        let TransactionKind::Server { trust, .. } = &self.kind else { return };
        trust.distrust();
        self.reads.close_idle();
        self.writes.close_idle();
    }
}

/// Begins a transaction on a server that takes writes.
async fn begun(
    mut connection: KeptConnection,
    dialect: Dialect,
    begin: Arc<str>,
    named: bool,
) -> sqlx::Result<Work> {
    let begun = connection.begin(AssertSqlSafe(begin).into_sql_str()).await;
    begun.map_err(|error| if is_no_value(&error) { standby() } else { error })?;
    if dialect.is_writable().is_none() {
        let shown = connection.get().fetch_one(dialect.asks_read_only()).await?;
        connection.is_well();
        if shown.try_get::<i64, _>(0)? != 0 {
            return Err(standby());
        }
    }
    Ok(Work { connection, dialect, named, asks: false, then: None })
}

fn standby() -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, READ_ONLY))
}

fn is_standby(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem)
}

impl Work {
    /// Begins a transaction on a SQLite file.
    pub(super) async fn begin_on(
        kept: &Arc<KeptConnections>,
        begin: &'static str,
    ) -> sqlx::Result<Self> {
        let mut connection = kept.acquire().await?;
        connection.begin(begin.into_sql_str()).await?;
        Ok(Self::of_file(connection))
    }

    fn of_file(connection: KeptConnection) -> Self {
        Self { connection, dialect: Dialect::Sqlite, named: true, asks: false, then: None }
    }

    pub(in crate::store) async fn commit(self) -> sqlx::Result<()> {
        let Self { connection, then, .. } = self;
        let trust = connection.trust();
        let committing = async move {
            let committed = connection.commit().await;
            // An error may mean that only the answer is lost.
            if let Some(then) = then {
                then();
            }
            committed
        };
        match trust {
            Some(trust) => Unbroken::end(&trust, committing).await,
            None => committing.await,
        }
    }

    /// Runs `then` when the transaction is committed, or may be, also where the caller of the commit has left. It
    /// replaces what an earlier call gave. A transaction that is rolled back drops it.
    pub(in crate::store) fn when_ended(&mut self, then: impl FnOnce() + Send + 'static) {
        self.then = Some(Box::new(then));
    }

    /// Runs statements that take no parameters.
    pub(in crate::store) async fn run(&mut self, sql: SqlStr) -> sqlx::Result<()> {
        let ran = self.connection().execute(sql).await;
        self.ended(ran).map(drop)
    }

    /// What the database speaks.
    pub(in crate::store) fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The condition of a statement that stands alone.
    pub(super) fn asks_if_writable(&self) -> Option<&'static str> {
        self.asks.then(|| self.dialect.is_writable()).flatten()
    }

    /// Whether statements may be kept prepared.
    pub(super) fn keeps_statements(&self) -> bool {
        self.named
    }

    /// Takes note that a statement has ended.
    pub(super) fn ended<T>(&mut self, ran: sqlx::Result<T>) -> sqlx::Result<T> {
        if ran.is_ok() {
            self.connection.is_well();
        }
        ran
    }

    /// Where its statements run. [`Self::ended`] hears how each has ended.
    pub(super) fn connection(&mut self) -> &mut AnyConnection {
        self.connection.get()
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Work")
    }
}
