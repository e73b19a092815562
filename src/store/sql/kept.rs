//! Connections to a SQLite file that go from call to call. The driver's pool asks each connection for a sign of life
//! when it comes back, by a task and a trip to the connection's thread: for a file that is as much as a read. Here those
//! alone are asked whose last statement did not end well: their thread may still be busy, or gone.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::pool::PoolConnection;
use sqlx::{Any, AnyConnection, AnyPool, Connection, Executor};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// The connections of a pool, which makes and closes them.
pub(in crate::store) struct KeptConnections {
    pool: AnyPool,
    idle: Mutex<Vec<PoolConnection<Any>>>,
    /// As many as the pool may have connections. Who waits first gets the next one.
    turns: Arc<Semaphore>,
    patience: Duration,
}

/// One of them, which goes back when this is dropped. A transaction that it is in then is rolled back before that, and what
/// gives no sign of life then is closed.
pub(super) struct KeptConnection {
    /// `None` when it goes back.
    connection: Option<PoolConnection<Any>>,
    /// A transaction may be open.
    in_transaction: bool,
    /// A statement runs, or has failed.
    unsure: bool,
    kept: Arc<KeptConnections>,
    /// Goes back behind the connection.
    turn: Option<OwnedSemaphorePermit>,
}

impl KeptConnections {
    /// Those of this pool, of which these are all that it may have. A call waits for so long for one. The pool keeps none open
    /// by itself, since that takes a task, and a database may be dropped outside a runtime.
    pub(super) fn new(
        pool: AnyPool,
        all: Vec<PoolConnection<Any>>,
        patience: Duration,
    ) -> Arc<Self> {
        let turns = Arc::new(Semaphore::new(all.len()));
        Arc::new(Self { pool, idle: Mutex::new(all), turns, patience })
    }

    /// A connection that nobody else has.
    ///
    /// # Errors
    /// [`sqlx::Error`] when none is free in time, none can be opened, or all are closed.
    pub(super) async fn acquire(self: &Arc<Self>) -> sqlx::Result<KeptConnection> {
        let acquired = timeout(self.patience, async {
            let turn = Arc::clone(&self.turns).acquire_owned().await;
            let turn = turn.map_err(|_| sqlx::Error::PoolClosed)?;
            let idle = self.idle.lock().pop();
            let connection = match idle {
                Some(connection) => connection,
                None => self.pool.acquire().await?,
            };
            Ok::<_, sqlx::Error>((connection, turn))
        });
        let (connection, turn) = acquired.await.map_err(|_| sqlx::Error::PoolTimedOut)??;
        let (connection, kept, turn) = (Some(connection), Arc::clone(self), Some(turn));
        Ok(KeptConnection { connection, in_transaction: false, unsure: false, kept, turn })
    }

    /// The same in a transaction.
    ///
    /// # Errors
    /// As [`Self::acquire`], and when `begin` fails.
    pub(super) async fn begin(
        self: &Arc<Self>,
        begin: &'static str,
    ) -> sqlx::Result<KeptConnection> {
        let mut connection = self.acquire().await?;
        connection.in_transaction = true;
        match connection.get().execute(begin).await {
            Ok(_) => connection.unsure = false,
            Err(error) => {
                // What the database refuses has not begun.
                connection.in_transaction = !matches!(error, sqlx::Error::Database(_));
                return Err(error);
            }
        }
        Ok(connection)
    }

    /// Waits for those that are in use, and closes all; later calls fail.
    pub(super) async fn close(&self) {
        self.turns.close();
        self.idle.lock().clear();
        self.pool.close().await;
    }

    fn give_back(&self, connection: PoolConnection<Any>) {
        let mut idle = self.idle.lock();
        idle.push(connection);
        if self.turns.is_closed() {
            idle.clear();
        }
    }
}

impl Drop for KeptConnections {
    fn drop(&mut self) {
        if Handle::try_current().is_err() {
            // The pool takes connections back by a task.
            self.idle.get_mut().drain(..).for_each(|connection| drop(connection.detach()));
        }
    }
}

impl KeptConnection {
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
        if !self.in_transaction && !self.unsure {
            self.kept.give_back(connection);
            return;
        }
        let Ok(runtime) = Handle::try_current() else {
            drop(connection.detach());
            return;
        };
        let (kept, turn, rolls_back) =
            (Arc::clone(&self.kept), self.turn.take(), self.in_transaction);
        runtime.spawn(async move {
            if rolls_back {
                // SQLite ends a transaction by itself when the disk is full. Then there is none to roll back.
                let _ = connection.execute("rollback").await;
            }
            match connection.ping().await {
                Ok(()) => kept.give_back(connection),
                Err(_) => connection.close_on_drop(),
            }
            drop(turn);
        });
    }
}

#[cfg(test)]
mod tests {
    use sqlx::Row;
    use sqlx::any::AnyPoolOptions;

    use super::*;

    /// A database in memory, by one connection.
    async fn one_connection() -> Arc<KeptConnections> {
        sqlx::any::install_default_drivers();
        let pool = AnyPoolOptions::new().max_connections(1).connect("sqlite::memory:").await;
        let pool = pool.unwrap();
        let all = vec![pool.acquire().await.unwrap()];
        let kept = KeptConnections::new(pool, all, Duration::from_secs(60));
        let mut work = kept.begin("begin immediate").await.unwrap();
        work.get().execute("create table t (n integer)").await.unwrap();
        work.commit().await.unwrap();
        kept
    }

    async fn rows(kept: &Arc<KeptConnections>) -> i64 {
        let mut work = kept.acquire().await.unwrap();
        work.get().fetch_one("select count(*) from t").await.unwrap().get(0)
    }

    #[tokio::test]
    async fn a_transaction_that_is_dropped_is_rolled_back_before_the_next_one_begins() {
        let kept = one_connection().await;
        for (commits, count) in [(false, 0), (true, 1), (false, 1)] {
            let mut work = kept.begin("begin immediate").await.unwrap();
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
        let mut work = kept.begin("begin immediate").await.unwrap();
        work.get().execute("rollback").await.unwrap();
        assert!(work.commit().await.is_err());
        kept.begin("begin immediate").await.unwrap().commit().await.unwrap();
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

    /// As where a program ends without closing its database.
    #[test]
    fn they_may_be_dropped_behind_the_runtime() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let kept = runtime.block_on(one_connection());
        let other = runtime.block_on(one_connection());
        let work = runtime.block_on(other.begin("begin immediate")).unwrap();
        drop(runtime);
        drop((kept, work, other));
    }

    #[tokio::test]
    async fn closing_waits_for_those_that_are_in_use() {
        let kept = one_connection().await;
        let work = kept.begin("begin immediate").await.unwrap();
        let closing = kept.close();
        tokio::pin!(closing);
        assert!(timeout(Duration::ZERO, &mut closing).await.is_err());
        assert!(matches!(kept.acquire().await, Err(sqlx::Error::PoolClosed)));
        work.commit().await.unwrap();
        closing.await;
    }
}
