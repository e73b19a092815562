//! Word that there is news for nodes, at once: PostgreSQL's LISTEN and NOTIFY. The news itself is in rows
//! (`nodes`), so a notification that is lost costs time and nothing else.
//!
//! NOTIFY is a transaction of its own, behind the one that has written the news and beside all calls: at its end it
//! takes a lock that the whole server has once, so any program that notifies and ends slowly would hold up the
//! writes. LISTEN is the session's, so it needs a connection of its own that no pooler by transaction stands before.
//! MariaDB and SQLite have neither.
//!
//! Source: <https://www.postgresql.org/docs/current/sql-notify.html>, and `PreCommit_Notify` in PostgreSQL's
//! `src/backend/commands/async.c`

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sqlx::Row;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::time::{sleep, timeout};

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

/// Between two notifications. The next one tells of all that was written meanwhile.
const APART: Duration = Duration::from_millis(5);

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

/// Notifies the other processes, one notification at a time.
#[derive(Debug, Default)]
pub(super) struct Notifier {
    /// The database knows NOTIFY, by what [`Store::listen`] has seen.
    works: AtomicBool,
    /// A notification is under way; `true` if news was written since, which the next one tells.
    under_way: Mutex<Option<bool>>,
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
        let begun = self.read(Call::Nodes, async {
            match self.listen_at(&options, trust).await {
                Err(error) if error::is_unsupported(&error) => Ok(None),
                begun => begun,
            }
        });
        let Some(mut listener) = begun.await? else { return Ok(None) };
        // The database has answered. That nothing arrives is no call that takes long.
        match timeout(ARRIVAL, listener.hears_trial()).await {
            Ok(arrived) => self.named(arrived).map(|()| Some(listener)),
            Err(_) => Ok(None),
        }
    }

    /// Begins to listen, and has a trial notified.
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
        if !is_pooled {
            listener.listen(CHANNEL).await?;
        }
        notify(&mut work, &format!("{TRIAL}{}", self.incarnation)).await?;
        work.commit().await?;
        // Others may hear although this process cannot.
        self.notifier.works.store(true, Ordering::Relaxed);
        if is_pooled {
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

    /// Notifies the nodes that listen once this transaction has ended. The transaction neither waits for that nor
    /// depends on it.
    pub(super) fn notify_after(&self, work: &mut Work) {
        // Databases that speak PostgreSQL's protocol may not know it.
        if work.dialect() == Dialect::Postgres && self.notifier.works.load(Ordering::Relaxed) {
            let store = self.clone();
            work.when_ended(move || store.notify_beside());
        }
    }

    fn notify_beside(self) {
        let mut under_way = self.notifier.under_way.lock();
        match &mut *under_way {
            Some(again) => *again = true,
            None => {
                *under_way = Some(false);
                drop(under_way);
                drop(tokio::spawn(self.notifying()));
            }
        }
    }

    /// Notifies until there was no news since. Where that fails, each node finds the news with its next look.
    async fn notifying(self) {
        loop {
            let told = self.limited(async { self.named(self.notify_others().await) });
            if let Err(error) = told.await {
                tracing::debug!(
                    target: "mailchime::store::news_not_told",
                    %error, "could not tell the other nodes at once that there is news; they find it with their next look"
                );
            }
            sleep(APART).await;
            let mut under_way = self.notifier.under_way.lock();
            *under_way = under_way.filter(|again| *again).map(|_| false);
            if under_way.is_none() {
                return;
            }
        }
    }

    async fn notify_others(&self) -> sqlx::Result<()> {
        let mut work = self.begin().await?;
        notify(&mut work, &self.incarnation).await?;
        work.commit().await
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

    /// Returns when this process's trial has arrived.
    async fn hears_trial(&mut self) -> sqlx::Result<()> {
        while let Some(heard) = self.listener.try_recv().await? {
            if heard.payload().strip_prefix(TRIAL) == Some(&*self.incarnation) {
                return Ok(());
            }
        }
        Err(lost("the connection ended"))
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

/// The transaction then waits a second at its end for the lock, and fails.
async fn notify(work: &mut Work, payload: &str) -> sqlx::Result<()> {
    // What is returned has no type that the driver knows.
    let query = sql::query(
        "select set_config('lock_timeout', '1s', true) as patience, \
         cast(pg_notify($1, $2) as text) as told",
    );
    query.bind(CHANNEL).bind(payload).execute_in(work).await.map(drop)
}

fn lost(why: &'static str) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::ConnectionAborted, why))
}
