//! Connections to a database that go from call to call. The driver's pool makes them, and has none back: it asks each
//! connection for a sign of life when it comes back, by a task and one or two trips to the database, which is as much as a
//! read. Here those alone are asked whose last statement did not end well: their thread or their server may still be busy,
//! or gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sqlx::any::AnyConnectOptions;
use sqlx::pool::PoolConnection;
use sqlx::{Any, AnyConnection, AnyPool, Connection, Executor, SqlStr};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::trust::ConnectionTrust;

/// For the sign of life of a connection to a server. The thread of a file may take its time.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// A connection to a server that is older, or has had nothing to do for longer, is not used again: what stands between may
/// have ended it.
const LONGEST: Duration = Duration::from_mins(30);
const LONGEST_IDLE: Duration = Duration::from_mins(10);

/// A connection to a server that has answered so lately is there.
const JUST_NOW: Duration = Duration::from_secs(1);

/// The connections of a pool, which makes and closes them.
pub(in crate::store) struct KeptConnections {
    pool: AnyPool,
    /// That which had something to do last comes last.
    idle: Mutex<Vec<IdleConnection>>,
    /// As many as there may be connections. Who waits first gets the next one.
    turns: Arc<Semaphore>,
    patience: Duration,
    /// Of those to a server. Those to a file do not grow old.
    trust: Option<ConnectionTrust>,
}

/// A connection with nothing to do.
struct IdleConnection {
    connection: PoolConnection<Any>,
    made: Instant,
    since: Instant,
}

/// One of them, which goes back when this is dropped. A transaction that it is in then is rolled back before that, and what
/// gives no sign of life then is closed.
pub(super) struct KeptConnection {
    /// `None` when it goes back.
    connection: Option<PoolConnection<Any>>,
    made: Instant,
    /// A transaction may be open.
    in_transaction: bool,
    /// A statement runs, or has failed.
    unsure: bool,
    /// It is closed in place of going back.
    alone: bool,
    kept: Arc<KeptConnections>,
    /// Goes back behind the connection.
    turn: Option<OwnedSemaphorePermit>,
}

impl KeptConnections {
    /// Those of this pool to a file, of which these are all that it may have. A call waits for so long for one. The pool
    /// keeps none open by itself, since that takes a task, and a database may be dropped outside a runtime.
    pub(super) fn of_file(
        pool: AnyPool,
        all: Vec<PoolConnection<Any>>,
        patience: Duration,
    ) -> Arc<Self> {
        let turns = Arc::new(Semaphore::new(all.len()));
        let (made, since) = (Instant::now(), Instant::now());
        let idle = all.into_iter().map(|connection| IdleConnection { connection, made, since });
        Arc::new(Self { pool, idle: Mutex::new(idle.collect()), turns, patience, trust: None })
    }

    /// Those of this pool to a server, `most` at a time, which come about when they have to.
    pub(super) fn of_server(
        pool: AnyPool,
        most: u32,
        patience: Duration,
        trust: ConnectionTrust,
    ) -> Arc<Self> {
        let turns = Arc::new(Semaphore::new(most as usize));
        Arc::new(Self { pool, idle: Mutex::default(), turns, patience, trust: Some(trust) })
    }

    /// How others of the kind are made.
    pub(super) fn options(&self) -> Arc<AnyConnectOptions> {
        self.pool.connect_options()
    }

    /// A connection that nobody else has.
    ///
    /// # Errors
    /// [`sqlx::Error`] when none is free in time, none can be opened, or all are closed.
    pub(super) async fn acquire(self: &Arc<Self>) -> sqlx::Result<KeptConnection> {
        let acquired = timeout(self.patience, async {
            let turn = Arc::clone(&self.turns).acquire_owned().await;
            let turn = turn.map_err(|_| sqlx::Error::PoolClosed)?;
            let (connection, made) = match self.take_idle() {
                Some(idle) => (idle.connection, idle.made),
                None => {
                    let made = Instant::now();
                    (self.pool.acquire().await?, made)
                }
            };
            Ok::<_, sqlx::Error>((connection, made, turn))
        });
        let (connection, made, turn) = acquired.await.map_err(|_| sqlx::Error::PoolTimedOut)??;
        Ok(self.lent(connection, made, turn))
    }

    /// A connection that nobody else has, which has answered just now; `None` where there is none at once.
    pub(super) fn acquire_lively(self: &Arc<Self>) -> Option<KeptConnection> {
        let turn = Arc::clone(&self.turns).try_acquire_owned().ok()?;
        let is_lively =
            |idle: &mut IdleConnection| idle.since.elapsed() < JUST_NOW && self.may_use(idle);
        let idle = self.idle.lock().pop_if(is_lively)?;
        Some(self.lent(idle.connection, idle.made, turn))
    }

    fn lent(
        self: &Arc<Self>,
        connection: PoolConnection<Any>,
        made: Instant,
        turn: OwnedSemaphorePermit,
    ) -> KeptConnection {
        KeptConnection {
            connection: Some(connection),
            made,
            in_transaction: false,
            unsure: false,
            alone: false,
            kept: Arc::clone(self),
            turn: Some(turn),
        }
    }

    /// Closes those that have nothing to do.
    pub(super) fn close_idle(&self) {
        self.idle.lock().drain(..).for_each(|idle| close(idle.connection));
    }

    /// Waits for those that are in use, and closes all; later calls fail.
    pub(super) async fn close(&self) {
        self.turns.close();
        self.close_idle();
        self.pool.close().await;
    }

    /// One that has nothing to do and may still be used.
    fn take_idle(&self) -> Option<IdleConnection> {
        loop {
            let idle = self.idle.lock().pop()?;
            if self.may_use(&idle) {
                return Some(idle);
            }
            close(idle.connection);
        }
    }

    fn may_use(&self, idle: &IdleConnection) -> bool {
        let age = idle.made.elapsed();
        self.trust.as_ref().is_none_or(|trust| {
            trust.has(age) && age < LONGEST && idle.since.elapsed() < LONGEST_IDLE
        })
    }

    fn give_back(&self, connection: PoolConnection<Any>, made: Instant) {
        let mut idle = self.idle.lock();
        idle.push(IdleConnection { connection, made, since: Instant::now() });
        // Those that had nothing to do for longest come first.
        let fit = match self.turns.is_closed() {
            true => None,
            false => idle.iter().position(|idle| self.may_use(idle)),
        };
        let unfit = fit.unwrap_or(idle.len());
        idle.drain(..unfit).for_each(|idle| close(idle.connection));
    }

    /// Whether a connection that was left in some state may be used again; rolls a transaction back.
    async fn lives(&self, connection: &mut AnyConnection, made: Instant, rolls_back: bool) -> bool {
        let is_to_a_file = self.trust.is_none();
        let answers = async {
            if rolls_back {
                let rolled_back = connection.execute("rollback").await.is_ok();
                // SQLite ends a transaction by itself when the disk is full. Then there is none to roll back. What a server
                // says may be its answer to the statement before, which the driver read in place of sending this one.
                if rolled_back || !is_to_a_file {
                    return rolled_back;
                }
            }
            connection.ping().await.is_ok()
        };
        match &self.trust {
            None => answers.await,
            Some(trust) => {
                trust.has(made.elapsed()) && timeout(SIGN_OF_LIFE, answers).await == Ok(true)
            }
        }
    }
}

/// Closes a connection, by a task where there is a runtime.
fn close(mut connection: PoolConnection<Any>) {
    match Handle::try_current() {
        Ok(_) => connection.close_on_drop(),
        Err(_) => drop(connection.detach()),
    }
}

impl Drop for KeptConnections {
    fn drop(&mut self) {
        // The pool would take them back by a task, which may have no runtime.
        self.close_idle();
    }
}

impl KeptConnection {
    /// Begins a transaction.
    ///
    /// # Errors
    /// When `begin` fails. What of it has begun is rolled back.
    pub(super) async fn begin(&mut self, begin: SqlStr) -> sqlx::Result<()> {
        self.in_transaction = true;
        self.get().execute(begin).await?;
        self.unsure = false;
        Ok(())
    }

    /// Where statements run. Who has seen one end [says so](Self::is_well).
    ///
    /// # Panics
    /// Never: the connection leaves when this is dropped.
    #[expect(clippy::expect_used, reason = "the connection leaves when this is dropped")]
    pub(super) fn get(&mut self) -> &mut AnyConnection {
        self.unsure = true;
        self.connection.as_deref_mut().expect("the connection is here")
    }

    /// The last statement has ended well.
    pub(super) fn is_well(&mut self) {
        self.unsure = false;
    }

    /// It is closed behind this call, with all that is set for its session.
    pub(super) fn is_alone(&mut self) {
        self.alone = true;
    }

    /// Of a connection to a server.
    pub(super) fn trust(&self) -> Option<ConnectionTrust> {
        self.kept.trust.clone()
    }

    /// Commits the transaction, if it is in one.
    ///
    /// # Errors
    /// [`sqlx::Error`] when the database does not take it; it is rolled back.
    pub(super) async fn commit(mut self) -> sqlx::Result<()> {
        if self.in_transaction {
            self.get().execute("commit").await?;
            (self.in_transaction, self.unsure) = (false, false);
        }
        Ok(())
    }
}

impl Drop for KeptConnection {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        let made = self.made;
        if !self.in_transaction && !self.unsure && !self.alone {
            self.kept.give_back(connection, made);
            return;
        }
        let runtime = match Handle::try_current() {
            Ok(runtime) if !self.alone => runtime,
            Ok(_) | Err(_) => return close(connection),
        };
        let (kept, turn, rolls_back) =
            (Arc::clone(&self.kept), self.turn.take(), self.in_transaction);
        runtime.spawn(async move {
            if kept.lives(&mut connection, made, rolls_back).await {
                kept.give_back(connection, made);
            } else {
                close(connection);
            }
            drop(turn);
        });
    }
}

#[cfg(test)]
mod tests {
    use sqlx::any::AnyPoolOptions;
    use sqlx::{Row, SqlSafeStr};

    use super::*;

    /// A database in memory, by one connection.
    async fn one_connection() -> Arc<KeptConnections> {
        sqlx::any::install_default_drivers();
        let pool = AnyPoolOptions::new().max_connections(1).connect("sqlite::memory:").await;
        let pool = pool.unwrap();
        let all = vec![pool.acquire().await.unwrap()];
        let kept = KeptConnections::of_file(pool, all, Duration::from_secs(60));
        let mut work = begun(&kept).await;
        work.get().execute("create table t (n integer)").await.unwrap();
        work.commit().await.unwrap();
        kept
    }

    async fn begun(kept: &Arc<KeptConnections>) -> KeptConnection {
        let mut connection = kept.acquire().await.unwrap();
        connection.begin("begin immediate".into_sql_str()).await.unwrap();
        connection
    }

    async fn rows(kept: &Arc<KeptConnections>) -> i64 {
        let mut work = kept.acquire().await.unwrap();
        work.get().fetch_one("select count(*) from t").await.unwrap().get(0)
    }

    #[tokio::test]
    async fn a_transaction_that_is_dropped_is_rolled_back_before_the_next_one_begins() {
        let kept = one_connection().await;
        for (commits, count) in [(false, 0), (true, 1), (false, 1)] {
            let mut work = begun(&kept).await;
            work.get().execute("insert into t values (1)").await.unwrap();
            match commits {
                true => work.commit().await.unwrap(),
                false => drop(work),
            }
            assert_eq!(rows(&kept).await, count);
        }
    }

    /// As SQLite does when the disk is full.
    #[tokio::test]
    async fn after_a_transaction_that_ended_by_itself_calls_go_on() {
        let kept = one_connection().await;
        let mut work = begun(&kept).await;
        work.get().execute("rollback").await.unwrap();
        assert!(work.commit().await.is_err());
        begun(&kept).await.commit().await.unwrap();
        assert_eq!(rows(&kept).await, 0);
    }

    /// Its thread goes on with the statement, and others have a turn when that has ended.
    #[tokio::test]
    async fn a_connection_whose_caller_has_left_comes_back_when_its_statement_has_ended() {
        let kept = one_connection().await;
        let mut work = kept.acquire().await.unwrap();
        let long = "with recursive n(x) as (select 1 union all select x + 1 from n limit 300000) \
                    insert into t select x from n";
        assert!(timeout(Duration::ZERO, work.get().execute(long)).await.is_err());
        drop(work);
        assert!(kept.idle.lock().is_empty());
        assert_eq!(rows(&kept).await, 300_000);
    }

    /// A database in memory is gone with its connection.
    #[tokio::test]
    async fn a_connection_to_a_server_that_is_not_trusted_any_more_is_closed() {
        let (trust, rows) = (ConnectionTrust::default(), "select count(*) from t");
        sqlx::any::install_default_drivers();
        let pool = AnyPoolOptions::new().max_connections(1).connect_lazy("sqlite::memory:");
        let kept =
            KeptConnections::of_server(pool.unwrap(), 1, Duration::from_secs(60), trust.clone());
        for in_use in [false, true] {
            let mut first = kept.acquire().await.unwrap();
            first.get().execute("create table t (n integer)").await.unwrap();
            first.is_well();
            drop(first);
            let mut again = kept.acquire().await.unwrap();
            again.get().fetch_one(rows).await.unwrap();
            again.is_well();
            let again = in_use.then_some(again);
            trust.distrust();
            if !in_use {
                kept.close_idle();
            }
            drop(again);
            let mut other = kept.acquire().await.unwrap();
            assert!(other.get().fetch_one(rows).await.is_err(), "in use: {in_use}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_is_alone_does_not_come_back() {
        sqlx::any::install_default_drivers();
        let pool = AnyPoolOptions::new().max_connections(1).connect_lazy("sqlite::memory:");
        let trust = ConnectionTrust::default();
        let kept = KeptConnections::of_server(pool.unwrap(), 1, Duration::from_secs(60), trust);
        let mut alone = begun(&kept).await;
        alone.is_alone();
        alone.get().execute("create table t (n integer)").await.unwrap();
        alone.commit().await.unwrap();
        let mut other = kept.acquire().await.unwrap();
        assert!(other.get().fetch_one("select count(*) from t").await.is_err());
    }

    /// As where a program ends without closing its database.
    #[test]
    fn they_may_be_dropped_behind_the_runtime() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let kept = runtime.block_on(one_connection());
        let other = runtime.block_on(one_connection());
        let work = runtime.block_on(begun(&other));
        drop(runtime);
        drop((kept, work, other));
    }

    #[tokio::test]
    async fn closing_waits_for_those_that_are_in_use() {
        let kept = one_connection().await;
        let work = begun(&kept).await;
        let closing = kept.close();
        tokio::pin!(closing);
        assert!(timeout(Duration::ZERO, &mut closing).await.is_err());
        assert!(matches!(kept.acquire().await, Err(sqlx::Error::PoolClosed)));
        work.commit().await.unwrap();
        closing.await;
    }
}
