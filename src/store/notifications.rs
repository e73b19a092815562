//! Word that there is news for nodes, at once: PostgreSQL's LISTEN and NOTIFY. The news itself is in rows
//! (`nodes`), so a notification that is lost costs time and nothing else.
//!
//! NOTIFY is part of the transaction that writes the news. LISTEN is the session's, so it needs a connection
//! of its own that no pooler by transaction stands before. MariaDB and SQLite have neither.
//!
//! Source: <https://www.postgresql.org/docs/current/sql-notify.html>

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sqlx::Row;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::time::timeout;

use super::sql;
use super::sql::dialect::Dialect;
use super::sql::trust::ConnectionTrust;
use super::sql::work::Work;
use super::{Store, StoreError, error};
use crate::metrics::Call;

/// All nodes of a database listen to it. What somebody else sends there makes a node look once more.
const CHANNEL: &str = "mailchime_news";

/// What the notification begins with by which a node finds out whether they arrive. It is word of news, too: before
/// it the node has told the others of none.
const TRIAL: &str = "?";

/// For its arrival. PostgreSQL delivers at the end of the transaction.
const ARRIVAL: Duration = Duration::from_secs(2);

/// Between two looks whether the connection still leads to the server that takes writes.
const CHECK: Duration = Duration::from_secs(30);

/// For the answer to that.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

const PID: &str = "select pg_backend_pid()";

/// A connection on which notifications arrive.
pub struct NewsListener {
    listener: PgListener,
    database: Arc<str>,
    /// Of this process, which needs no word of its own news.
    incarnation: Arc<str>,
    trust: ConnectionTrust,
    connected: Instant,
    checked: Instant,
}

impl Store {
    /// Begins to hear at once when another process has written news for nodes. `None` where the database, or a
    /// pooler before it, does not carry notifications; that may be otherwise later. What was written before this
    /// returned may not be heard.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn listen(&self) -> Result<Option<NewsListener>, StoreError> {
        let Some((options, trust)) = self.connections.listens_at() else { return Ok(None) };
        self.read(Call::Nodes, async {
            match self.listen_at(&options, trust).await {
                Err(error) if error::is_unsupported(&error) => Ok(None),
                listening => listening,
            }
        })
        .await
    }

    async fn listen_at(
        &self,
        options: &PgConnectOptions,
        trust: ConnectionTrust,
    ) -> sqlx::Result<Option<NewsListener>> {
        let connected = Instant::now();
        // Of one connection: it ends with the listener.
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(self.limit)
            .connect_lazy_with(options.clone());
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        // Behind a pooler by transaction two clients have one session in turn, or one client has several. A
        // LISTEN would stay in a session of others.
        let before = pid(&mut listener).await?;
        let mut work = self.begin().await?;
        let row = sql::query("select cast(pg_backend_pid() as bigint) as pid");
        let other: i64 = row.fetch_one_in(&mut work).await?.try_get("pid")?;
        let is_pooled = other == before || pid(&mut listener).await? != before;
        let trial = format!("{TRIAL}{}", self.incarnation);
        if !is_pooled {
            listener.listen(CHANNEL).await?;
        }
        notify(&mut work, &trial).await?;
        work.commit().await?;
        // Others may hear although this process cannot.
        self.notifies.store(true, Ordering::Relaxed);
        if is_pooled {
            return Ok(None);
        }
        let arrival = async {
            while let Some(heard) = listener.try_recv().await? {
                if heard.payload() == trial {
                    return Ok::<_, sqlx::Error>(true);
                }
            }
            Ok(false)
        };
        if !timeout(ARRIVAL, arrival).await.unwrap_or(Ok(false))? {
            return Ok(None);
        }
        Ok(Some(NewsListener {
            listener,
            database: Arc::clone(&self.database),
            incarnation: Arc::clone(&self.incarnation),
            trust,
            connected,
            checked: Instant::now(),
        }))
    }

    /// Has the nodes that listen hear of news when this transaction ends.
    pub(super) async fn notify(&self, work: &mut Work) -> sqlx::Result<()> {
        // Databases that speak PostgreSQL's protocol may not know it, and would undo the transaction.
        match work.dialect() == Dialect::Postgres && self.notifies.load(Ordering::Relaxed) {
            true => notify(work, &self.incarnation).await,
            false => Ok(()),
        }
    }
}

impl NewsListener {
    /// Returns when another process has written news for nodes. Not cancel safe.
    ///
    /// # Errors
    /// [`StoreError`] when the connection is lost, or does not lead to the server that takes writes any more.
    pub async fn heard(&mut self) -> Result<(), StoreError> {
        self.next().await.map_err(|error| StoreError::from_sqlx(&self.database, error))
    }

    async fn next(&mut self) -> sqlx::Result<()> {
        loop {
            let left = CHECK.saturating_sub(self.checked.elapsed());
            let Ok(heard) = timeout(left, self.listener.try_recv()).await else {
                self.check().await?;
                continue;
            };
            let Some(heard) = heard? else { return Err(lost("the connection ended")) };
            let payload = heard.payload();
            if payload.strip_prefix(TRIAL).unwrap_or(payload) != &*self.incarnation {
                return Ok(());
            }
        }
    }

    /// A connection may be dead without a word, and a server that has failed over keeps its connections.
    async fn check(&mut self) -> sqlx::Result<()> {
        if !self.trust.has(self.connected.elapsed()) {
            return Err(lost("the database has failed over"));
        }
        let shown = sqlx::raw_sql(Dialect::Postgres.asks_read_only());
        let Ok(shown) = timeout(SIGN_OF_LIFE, shown.fetch_one(&mut self.listener)).await else {
            return Err(lost("the server says nothing"));
        };
        if shown?.try_get::<i32, _>(0)? != 0 {
            return Err(lost("the server is read-only"));
        }
        self.checked = Instant::now();
        Ok(())
    }
}

impl std::fmt::Debug for NewsListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NewsListener")
    }
}

async fn pid(listener: &mut PgListener) -> sqlx::Result<i64> {
    let row = sqlx::raw_sql(PID).fetch_one(listener).await?;
    row.try_get::<i32, _>(0).map(i64::from)
}

async fn notify(work: &mut Work, payload: &str) -> sqlx::Result<()> {
    // What is returned has no type that the driver knows.
    let query = sql::query("select cast(pg_notify($1, $2) as text) as told");
    query.bind(CHANNEL).bind(payload).execute_in(work).await.map(drop)
}

fn lost(why: &'static str) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::ConnectionAborted, why))
}
