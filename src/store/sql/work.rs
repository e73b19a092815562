//! The transactions of calls, and the connections that they run on.
//!
//! Nothing of a call outlives its transaction in the session of a PostgreSQL server. Behind a pooler (PgBouncer
//! with `pool_mode = transaction`) the session is another client's before and after it. So settings
//! are the transaction's own (`set local`), no call listens (LISTEN) or holds a lock for a session, and
//! statements have no name, unless the URL says that no pooler stands between: a name that is kept would
//! lead to another client's statement. MariaDB has no such settings: a session is set once, when it begins, and
//! no pooler by transaction may stand before it.
//!
//! A server may fail over behind its address: the one that was the primary lives, is read-only, and
//! keeps its connections. So each transaction begins with the question whether it may write, reads
//! too: what a standby says may be out of date. Where it may not, or where the connection is broken or
//! says nothing, all connections that are as old are given up, and the call begins anew on another.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::PgConnectOptions;
use sqlx::{
    Any, AnyConnection, AnyPool, AssertSqlSafe, Executor, Row, SqlSafeStr, SqlStr, Transaction,
};
use tokio::time::timeout;

use super::dialect::Dialect;
use super::fault::ConnectionFault;
use super::kept::{KeptConnection, KeptConnections};
use super::trust::ConnectionTrust;
use super::unbroken::Unbroken;
use crate::store::error::is_no_value;

/// For the first word of a connection that has been used before. After this time another one is made.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

const READ_ONLY: &str = "the server at this address is read-only: it is a standby, or its \
                         default_transaction_read_only is on";

/// Begins a transaction that writes a SQLite file: it holds the write lock from the start.
pub(in crate::store) const BEGIN_WRITE: &str = "begin immediate";

/// A database's connections.
pub(in crate::store) struct Connections {
    pub(in crate::store) reads: AnyPool,
    pub(in crate::store) writes: AnyPool,
    pub(in crate::store) kind: TransactionKind,
}

/// How transactions begin.
pub(in crate::store) enum TransactionKind {
    /// A SQLite file. A transaction that writes holds the write lock from the start.
    File { reads: Arc<KeptConnections>, writes: Arc<KeptConnections> },
    Server {
        dialect: Dialect,
        /// Begins a transaction and makes its settings, in one message. Where the database can say so in it, the message
        /// fails on a server that takes no writes ([`Dialect::begins_on_writable_servers`]).
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
    on: WorkOn,
    dialect: Dialect,
    named: bool,
    /// Of a connection to a server.
    trust: Option<ConnectionTrust>,
    /// What follows its commit.
    then: Option<Box<dyn FnOnce() + Send>>,
}

/// What the statements of a call run on.
enum WorkOn {
    Transaction(Transaction<'static, Any>),
    /// A connection to a SQLite file, in a transaction or not: a statement that reads sees one state of the database.
    File(KeptConnection),
}

impl Connections {
    /// For one statement that reads. A SQLite file needs no transaction for it, which would take two more trips to
    /// the connection's thread.
    pub(in crate::store) async fn read_once(&self) -> sqlx::Result<Work> {
        match &self.kind {
            TransactionKind::File { reads, .. } => Ok(Work::of_file(reads.acquire().await?)),
            TransactionKind::Server { .. } => self.begin_read().await,
        }
    }

    /// Begins a transaction that reads.
    pub(in crate::store) async fn begin_read(&self) -> sqlx::Result<Work> {
        match &self.kind {
            TransactionKind::File { reads, .. } => Ok(Work::of_file(reads.begin("begin").await?)),
            TransactionKind::Server { trust, .. } => self.begin(&self.reads, trust).await,
        }
    }

    /// Begins a transaction that writes.
    pub(in crate::store) async fn begin_write(&self) -> sqlx::Result<Work> {
        match &self.kind {
            // A transaction never finds in its middle that another process was faster.
            TransactionKind::File { writes, .. } => {
                Ok(Work::of_file(writes.begin(BEGIN_WRITE).await?))
            }
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
        connection.close_on_drop();
        self.begun(connection).await
    }

    /// Why no connection to the server comes about; `None` where one does, or nobody says why not.
    pub(in crate::store) async fn fault(&self) -> Option<sqlx::Error> {
        match &self.kind {
            TransactionKind::Server { fault, .. } => fault.of(&self.writes).await,
            TransactionKind::File { .. } => None,
        }
    }

    /// Waits for the calls that read, and closes their connections.
    pub(in crate::store) async fn close_reads(&self) {
        match &self.kind {
            TransactionKind::File { reads, .. } => reads.close().await,
            TransactionKind::Server { .. } => self.reads.close().await,
        }
    }

    /// The same of those that write.
    pub(in crate::store) async fn close_writes(&self) {
        match &self.kind {
            TransactionKind::File { writes, .. } => writes.close().await,
            TransactionKind::Server { .. } => self.writes.close().await,
        }
    }

    /// The connection that writes a SQLite file, outside a transaction; `None` of a server.
    pub(in crate::store) async fn writer(&self) -> sqlx::Result<Option<Work>> {
        match &self.kind {
            TransactionKind::File { writes, .. } => {
                Ok(Some(Work::of_file(writes.acquire().await?)))
            }
            TransactionKind::Server { .. } => Ok(None),
        }
    }

    /// A connection of the pool. Where none came about in time, the error says why.
    async fn acquire(&self, pool: &AnyPool) -> sqlx::Result<PoolConnection<Any>> {
        match pool.acquire().await {
            Err(late @ sqlx::Error::PoolTimedOut) => Err(self.fault().await.unwrap_or(late)),
            acquired => acquired,
        }
    }

    async fn begin(&self, pool: &AnyPool, trust: &ConnectionTrust) -> sqlx::Result<Work> {
        let first = self.begun(self.acquire(pool).await?);
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
        let begun = self.begun(self.acquire(pool).await?).await;
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
    async fn begun(&self, connection: PoolConnection<Any>) -> sqlx::Result<Work> {
        let TransactionKind::Server { dialect, begin, named, trust, .. } = &self.kind else {
            return Err(sqlx::Error::BeginFailed);
        };
        let begun = begun(connection, *dialect, Arc::clone(begin), *named, trust.clone());
        Unbroken::begin(trust, begun).await
    }

    /// What the database speaks.
    pub(in crate::store) fn dialect(&self) -> Dialect {
        match &self.kind {
            TransactionKind::File { .. } => Dialect::Sqlite,
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
            TransactionKind::Server { .. } | TransactionKind::File { .. } => None,
        }
    }

    /// A connection is broken, or its server became a standby: neither it nor any that is as old is
    /// used again.
    pub(in crate::store) fn distrust(&self) {
        let TransactionKind::Server { trust, .. } = &self.kind else { return };
        trust.distrust();
        for pool in [&self.reads, &self.writes] {
            while let Some(mut idle) = pool.try_acquire() {
                idle.close_on_drop();
            }
        }
    }
}

/// Begins a transaction on a server that takes writes.
async fn begun(
    connection: PoolConnection<Any>,
    dialect: Dialect,
    begin: Arc<str>,
    named: bool,
    trust: ConnectionTrust,
) -> sqlx::Result<Work> {
    let begin = AssertSqlSafe(begin).into_sql_str();
    let mut transaction = match Transaction::begin(connection, Some(begin)).await {
        Ok(transaction) => transaction,
        Err(error) => {
            // The session may be in a transaction that the driver does not know of.
            trust.distrust();
            return Err(if is_no_value(&error) { standby() } else { error });
        }
    };
    if !dialect.begins_on_writable_servers() {
        let shown = transaction.fetch_one(dialect.asks_read_only()).await?;
        if shown.try_get::<i64, _>(0)? != 0 {
            return Err(standby());
        }
    }
    let on = WorkOn::Transaction(transaction);
    Ok(Work { on, dialect, named, trust: Some(trust), then: None })
}

fn standby() -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, READ_ONLY))
}

fn is_standby(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem)
}

impl Work {
    /// Begins a transaction on a SQLite file.
    pub(in crate::store) async fn begin_on(
        pool: &AnyPool,
        begin: &'static str,
    ) -> sqlx::Result<Self> {
        let on = WorkOn::Transaction(pool.begin_with(begin).await?);
        Ok(Self { on, dialect: Dialect::Sqlite, named: true, trust: None, then: None })
    }

    fn of_file(connection: KeptConnection) -> Self {
        let on = WorkOn::File(connection);
        Self { on, dialect: Dialect::Sqlite, named: true, trust: None, then: None }
    }

    pub(in crate::store) async fn commit(self) -> sqlx::Result<()> {
        let Self { on, trust, then, .. } = self;
        let committing = async move {
            let committed = match on {
                WorkOn::Transaction(transaction) => transaction.commit().await,
                WorkOn::File(connection) => connection.commit().await,
            };
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

    /// Whether statements may be kept prepared.
    pub(super) fn keeps_statements(&self) -> bool {
        self.named
    }

    /// Takes note that a statement has ended.
    pub(super) fn ended<T>(&mut self, ran: sqlx::Result<T>) -> sqlx::Result<T> {
        if let (WorkOn::File(connection), Ok(_)) = (&mut self.on, &ran) {
            connection.is_well();
        }
        ran
    }

    /// Where its statements run. [`Self::ended`] hears how each has ended.
    pub(super) fn connection(&mut self) -> &mut AnyConnection {
        match &mut self.on {
            WorkOn::Transaction(transaction) => transaction,
            WorkOn::File(connection) => connection.get(),
        }
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Work")
    }
}
