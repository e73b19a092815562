//! Word that there is news for nodes, at once: PostgreSQL's LISTEN and NOTIFY. The news itself is in rows
//! (`nodes`), so a notification that is lost costs time and nothing else.
//!
//! ```text
//!   a change of an account ──▶ "news" on the channel of all ──▶ each node looks for its rows
//!   marks as due ──▶ the accounts, on the channel of each node ──▶ it looks for what is due; the rows come later
//! ```
//!
//! Any role of the server may listen and notify, so nodes say nothing on the channel of all but that there is news. The
//! channel of a node has its incarnation in its name, which is chance and stands in a table that other roles cannot read.
//!
//! NOTIFY is a transaction of its own, behind the one that has written the news and beside all calls: at its end it
//! takes a lock that the whole server has once, so any program that notifies and ends slowly would hold up the
//! writes. LISTEN is the session's, so it needs a connection of its own that no pooler by transaction stands before.
//! MariaDB and SQLite have neither.
//!
//! Source: <https://www.postgresql.org/docs/current/sql-notify.html>, and `PreCommit_Notify` in PostgreSQL's
//! `src/backend/commands/async.c`

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::json;
use sqlx::Row;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::sql;
use super::sql::dialect::Dialect;
use super::sql::trust::ConnectionTrust;
use super::sql::work::Work;
use super::{Store, StoreError, error};
use crate::metrics::Call;
use crate::model::Account;

/// All nodes of a database listen to it. What somebody else sends there makes a node look once more.
const CHANNEL: &str = "mailchime_news";

/// What the name of a node's own channel begins with; its incarnation follows.
const OF_NODE: &str = "mailchime_events_";

/// What the notification begins with by which a node finds out whether they arrive. It is word of news, too: before
/// it the node has told the others of none.
const TRIAL: &str = "?";

/// Looks for a pooler by transaction. While other clients take sessions in between, one look can miss it.
const ROUNDS: usize = 6;

/// For its arrival. PostgreSQL delivers at the end of the transaction.
const ARRIVAL: Duration = Duration::from_secs(2);

/// Between two looks whether the connection still leads to the server that takes writes.
const CHECK: Duration = Duration::from_secs(30);

/// For the answer to that.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// Between two notifications. The next one tells of all that was written meanwhile.
const APART: Duration = Duration::from_millis(2);

/// Bytes of one notification. PostgreSQL refuses 8,000.
const PAYLOAD: usize = 7_900;

/// Bytes of a name in it. The nodes look for the row of an account with a longer one.
const LONGEST: usize = 2_000;

/// Names that may wait for the next notification. Of more accounts the nodes look for the rows.
const NAMED: usize = 2_000;

const PID: &str = "select pg_backend_pid()";

/// A connection on which notifications arrive.
pub struct NewsListener {
    listener: PgListener,
    database: Arc<str>,
    /// Of this process, which needs no word of its own news.
    notifier: Arc<Notifier>,
    trust: ConnectionTrust,
    connected: Instant,
    checked: Instant,
}

/// What another process has told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeNotification {
    /// There is news in rows.
    News,
    /// Mailboxes of these accounts are due.
    Events(Vec<Account>),
}

/// Notifies the other processes, one notification at a time.
pub(super) struct Notifier {
    /// This process knows its own notifications by it.
    name: String,
    /// The database knows NOTIFY, by what [`Store::listen`] has seen.
    works: AtomicBool,
    state: Mutex<NotifierState>,
}

#[derive(Default)]
struct NotifierState {
    /// A notification is under way.
    under_way: bool,
    untold: UntoldNews,
}

/// What the next notification tells.
#[derive(Debug, Default)]
struct UntoldNews {
    /// There is news in rows.
    news: bool,
    /// The names of accounts with mailboxes that are due, in JSON.
    events: BTreeSet<String>,
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
        let is_pooled = self.is_pooled(&mut listener).await?;
        if !is_pooled {
            let own = format!("{OF_NODE}{}", self.incarnation);
            listener.listen_all([CHANNEL, &*own]).await?;
            // Who may see the sessions of others sees the last statement of each: it names the channel no longer.
            pid(&mut listener).await?;
        }
        let mut work = self.begin().await?;
        notify(&mut work, &format!("{TRIAL}{}", self.notifier.name)).await?;
        work.commit().await?;
        // Others may hear although this process cannot.
        self.notifier.works.store(true, Ordering::Relaxed);
        if is_pooled {
            return Ok(None);
        }
        Ok(Some(NewsListener {
            listener,
            database: Arc::clone(&self.database),
            notifier: Arc::clone(&self.notifier),
            trust,
            connected,
            checked: Instant::now(),
        }))
    }

    /// Whether a pooler by transaction stands before the server: two clients have one session in turn there, or one
    /// client has several. A LISTEN would stay in a session of others.
    async fn is_pooled(&self, listener: &mut PgListener) -> sqlx::Result<bool> {
        let session = pid(listener).await?;
        for _ in 0..ROUNDS {
            let mut work = self.begin().await?;
            let row = sql::query("select cast(pg_backend_pid() as bigint) as pid");
            let other: i64 = row.fetch_one_in(&mut work).await?.try_get("pid")?;
            let has_moved = pid(listener).await? != session;
            work.commit().await?;
            // The session that was used last is the one that most poolers give next.
            if other == session || has_moved || pid(listener).await? != session {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Notifies the nodes that listen that there is news once this transaction has ended. The transaction neither
    /// waits for that nor depends on it.
    pub(super) fn notify_after(&self, work: &mut Work) {
        if self.can_notify(work) {
            self.tell_after(work, |untold| untold.news = true);
        }
    }

    /// Whether the database carries notifications to the nodes that listen.
    pub(super) fn can_notify(&self, work: &Work) -> bool {
        // Databases that speak PostgreSQL's protocol may not know it.
        work.dialect() == Dialect::Postgres && self.notifier.works.load(Ordering::Relaxed)
    }

    /// The same of events, by the names of their accounts. Only where [`Self::can_notify`].
    pub(super) fn notify_events_after(&self, work: &mut Work, accounts: &BTreeSet<&str>) {
        let names: Vec<_> = accounts.iter().map(|account| json!(account).to_string()).collect();
        self.tell_after(work, |untold| untold.add(names));
    }

    fn tell_after(&self, work: &mut Work, add: impl FnOnce(&mut UntoldNews) + Send + 'static) {
        let store = self.clone();
        work.when_ended(move || {
            let mut state = store.notifier.state.lock();
            add(&mut state.untold);
            let is_first = !std::mem::replace(&mut state.under_way, true);
            drop(state);
            if is_first {
                drop(tokio::spawn(store.notifying()));
            }
        });
    }

    /// Notifies until there is nothing to tell. Where that fails, each node finds the news with its next look.
    async fn notifying(self) {
        loop {
            let untold = {
                let mut state = self.notifier.state.lock();
                if state.untold.is_nothing() {
                    state.under_way = false;
                    return;
                }
                std::mem::take(&mut state.untold)
            };
            let told = self.limited(async { self.named(self.notify_others(&untold).await) });
            if let Err(error) = told.await {
                tracing::debug!(
                    target: "mailchime::store::news_not_told",
                    %error, "could not tell the other nodes at once that there is news; they find it with their next look"
                );
            }
            sleep(APART).await;
        }
    }

    async fn notify_others(&self, untold: &UntoldNews) -> sqlx::Result<()> {
        let payloads = untold.payloads();
        // A statement alone needs no transaction around it, which takes two more trips. The begin of one finds out what is
        // wrong with the server, if anything is.
        if payloads.len() + usize::from(untold.news) == 1
            && let Some(mut work) = self.connections.read_alone().await?
        {
            let told = self.notify_in(&mut work, untold.news, &payloads);
            if let Ok(Ok(())) = timeout(SIGN_OF_LIFE, told).await {
                return Ok(());
            }
        }
        let mut work = self.begin().await?;
        self.notify_in(&mut work, untold.news, &payloads).await?;
        work.commit().await
    }

    async fn notify_in(
        &self,
        work: &mut Work,
        news: bool,
        payloads: &[String],
    ) -> sqlx::Result<()> {
        if news {
            notify(work, &self.notifier.name).await?;
        }
        for payload in payloads {
            let query = sql::query(
                "select set_config('lock_timeout', '1s', true) as patience, \
                 cast(pg_notify($1 || incarnation, $2) as text) as told from node where incarnation <> $3",
            );
            let query = query.bind(OF_NODE).bind(&**payload).bind(&*self.incarnation);
            query.execute_in(work).await?;
        }
        Ok(())
    }
}

impl Default for Notifier {
    fn default() -> Self {
        let name = Uuid::new_v4().simple().to_string();
        Self { name, works: AtomicBool::default(), state: Mutex::default() }
    }
}

impl UntoldNews {
    fn is_nothing(&self) -> bool {
        !self.news && self.events.is_empty()
    }

    fn add(&mut self, names: Vec<String>) {
        for name in names {
            if self.events.len() < NAMED && name.len() < LONGEST {
                self.events.insert(name);
            } else {
                self.news = true;
            }
        }
    }

    /// Lists of names in JSON, each short enough.
    fn payloads(&self) -> Vec<String> {
        let (mut payloads, mut list) = (Vec::new(), String::new());
        for name in &self.events {
            if list.len() + name.len() + ",]".len() > PAYLOAD {
                payloads.push(std::mem::take(&mut list) + "]");
            }
            list.push(if list.is_empty() { '[' } else { ',' });
            list.push_str(name);
        }
        payloads.extend((!list.is_empty()).then(|| list + "]"));
        payloads
    }
}

impl NewsListener {
    /// The next word of another process. Not cancel safe.
    ///
    /// # Errors
    /// [`StoreError`] when the connection is lost, or does not lead to the server that takes writes any more.
    pub async fn heard(&mut self) -> Result<NodeNotification, StoreError> {
        self.next().await.map_err(|error| StoreError::from_sqlx(&self.database, error))
    }

    /// Returns when this process's trial has arrived.
    async fn hears_trial(&mut self) -> sqlx::Result<()> {
        while let Some(heard) = self.listener.try_recv().await? {
            if heard.payload().strip_prefix(TRIAL) == Some(&*self.notifier.name) {
                return Ok(());
            }
        }
        Err(lost("the connection ended"))
    }

    async fn next(&mut self) -> sqlx::Result<NodeNotification> {
        loop {
            let left = CHECK.saturating_sub(self.checked.elapsed());
            let Ok(heard) = timeout(left, self.listener.try_recv()).await else {
                self.check().await?;
                continue;
            };
            let Some(heard) = heard? else { return Err(lost("the connection ended")) };
            let payload = heard.payload();
            if heard.channel() != CHANNEL {
                return Ok(NodeNotification::Events(accounts(payload)));
            }
            if payload.strip_prefix(TRIAL).unwrap_or(payload) != self.notifier.name {
                return Ok(NodeNotification::News);
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

impl fmt::Debug for NewsListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NewsListener")
    }
}

/// What is no list names nobody.
fn accounts(payload: &str) -> Vec<Account> {
    let names: Vec<String> = serde_json::from_str(payload).unwrap_or_default();
    // A canonical name is its own canonical form.
    names.iter().map(|name| Account::from_login(name)).collect()
}

async fn pid(listener: &mut PgListener) -> sqlx::Result<i64> {
    let row = sqlx::raw_sql(PID).fetch_one(listener).await?;
    row.try_get::<i32, _>(0).map(i64::from)
}

/// The transaction waits for the lock at its end, and fails after a second.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn named(untold: &UntoldNews) -> Vec<Account> {
        let payloads = untold.payloads();
        assert!(payloads.iter().all(|payload| payload.len() <= PAYLOAD));
        payloads.iter().flat_map(|payload| accounts(payload)).collect()
    }

    #[test]
    fn every_account_is_named_once_in_notifications_that_postgresql_takes() {
        let logins = || (0..NAMED).map(|number| format!("user\"{number}@exämple.org"));
        let mut untold = UntoldNews::default();
        assert!(untold.is_nothing());
        for _ in 0..2 {
            untold.add(logins().map(|login| json!(login).to_string()).collect());
        }
        let mut told = named(&untold);
        told.sort();
        let mut expected: Vec<_> = logins().map(|login| Account::from_login(&login)).collect();
        expected.sort();
        assert_eq!(told, expected);
        assert_eq!(accounts("?"), []);
    }

    #[test]
    fn nodes_hear_of_rows_where_more_is_told_than_can_be_named() {
        let mut untold = UntoldNews::default();
        untold.add((0..=NAMED).map(|number| format!("\"{number}\"")).collect());
        assert_eq!((named(&untold).len(), untold.news), (NAMED, true));
        let mut untold = UntoldNews::default();
        untold.add(vec![format!("\"{}\"", "a".repeat(LONGEST)), "\"alice\"".to_owned()]);
        assert_eq!((named(&untold), untold.news), (vec![Account::from_login("alice")], true));
    }
}
