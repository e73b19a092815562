//! The processes that share the database: who is there, and what each is to read again.
//!
//! A change of an account that its watcher has to know of is news for every node but the one that
//! made it, written in the same transaction: when the change is on disk so is the news. It goes to
//! all, and not to the one that is thought to watch the account, so that nobody's idea of who that
//! is can be out of date.

use sqlx::Row;
use sqlx::any::AnyRow;

use crate::metrics::Call;
use crate::model::Account;

use super::records::account;
use super::sql::work::Work;
use super::sql::{self, Shaped, Take, Upsert, rows};
use super::{Store, StoreError};

/// A node's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Of the process that has the name now.
    pub incarnation: String,
    /// Another number with each sign of life.
    pub heartbeat: i64,
}

/// An account that another process has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalidation {
    /// What account it is about.
    pub account: Account,
    /// Its user has just logged in: what is stored is good.
    pub login: bool,
    /// A mail server, or another source, has told of it.
    pub event: bool,
    /// Nothing else has happened, and a notification names it, too ([`NodeNews::Events`]).
    pub named: bool,
}

/// What other processes tell a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeNews {
    /// One has changed this account, or marked mailboxes of it as due.
    Invalidation(Invalidation),
    /// One has marked mailboxes of these accounts as due, and told of them by name ([`NewsListener`](super::NewsListener)).
    Events(Vec<Account>),
    /// One has missed events of mail servers, or may have. They may be of any account.
    MissedEvents,
}

/// A node comes in the place of one that had its name.
static JOIN: Shaped = Shaped::new(|dialect| {
    dialect.upsert(&Upsert {
        table: "node",
        columns: "name, incarnation, beats",
        rows: "values ($1, $2, 0)",
        key: "name",
        set: &[("incarnation", "new.incarnation"), ("beats", "0")],
        returning: "",
    })
});

static TAKE: Shaped = Shaped::new(|dialect| {
    dialect.take(&Take {
        table: "invalidation",
        fitting: "node = $1",
        by: "account",
        most: "$2",
        returning: "account, login",
    })
});

/// What the column `login` is the sum of. The last one is of what no notification names.
const LOGIN: i64 = 1;
const EVENT: i64 = 2;
const UNNAMED: i64 = 4;

/// News that comes to rows; what is there already stays. What is news differs.
pub(super) const NEWS: Upsert<'_> = Upsert {
    table: "invalidation",
    columns: "node, account, login",
    rows: "",
    key: "node, account",
    set: &[("login", "old.login | new.login")],
    returning: "",
};

/// No account has this name. A row with it says that events were missed.
const ANY_ACCOUNT: &str = "";

/// One for each node but the one that tells.
static TELL: Shaped = Shaped::new(|dialect| {
    let rows = "select name, $1, $2 from node where incarnation <> $3 order by name";
    dialect.upsert(&Upsert { rows, ..NEWS })
});

/// The sum for an event, whose account a notification names or not.
pub(super) fn of_event(named: bool) -> i64 {
    if named { EVENT } else { EVENT | UNNAMED }
}

impl Store {
    /// Makes this process the node of that name, even if another had it. Until it [leaves](Store::leave),
    /// others write it news; what was written for an earlier one is gone.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn join(&self, name: &str) -> Result<(), StoreError> {
        self.write(Call::Beat, || async {
            let mut transaction = self.begin().await?;
            sql::query("delete from invalidation where node = $1")
                .bind(name)
                .execute_in(&mut transaction)
                .await?;
            sql::query(JOIN.of(transaction.dialect()))
                .bind(name)
                .bind(&*self.incarnation)
                .execute_in(&mut transaction)
                .await?;
            transaction.commit().await
        })
        .await
    }

    /// Gives a sign of life, while the name is this process's.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn heartbeat(&self, name: &str) -> Result<(), StoreError> {
        self.write(Call::Beat, || async {
            let mut transaction = self.begin().await?;
            sql::query("update node set beats = beats + 1 where name = $1 and incarnation = $2")
                .bind(name)
                .bind(&*self.incarnation)
                .execute_in(&mut transaction)
                .await?;
            transaction.commit().await
        })
        .await
    }

    /// Gives the name up, if it is this process's.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn leave(&self, name: &str) -> Result<(), StoreError> {
        self.remove_node(name, &self.incarnation, None).await.map(drop)
    }

    /// Removes a node that gives no sign of life, unless it has given one since `last` was read.
    /// Returns whether it was removed.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn evict(&self, last: &Node) -> Result<bool, StoreError> {
        self.remove_node(&last.name, &last.incarnation, Some(last.heartbeat)).await
    }

    async fn remove_node(
        &self,
        name: &str,
        incarnation: &str,
        heartbeat: Option<i64>,
    ) -> Result<bool, StoreError> {
        self.write(Call::Beat, || async {
            let mut transaction = self.begin().await?;
            let done = sql::query(
                "delete from node where name = $1 and incarnation = $2 \
                 and beats = coalesce($3, beats)",
            )
            .bind(name)
            .bind(incarnation)
            .bind(heartbeat)
            .execute_in(&mut transaction)
            .await?;
            // Of all that are gone: news may have been on its way when its node was removed.
            sql::query("delete from invalidation where node not in (select name from node)")
                .execute_in(&mut transaction)
                .await?;
            transaction.commit().await?;
            Ok(done.rows_affected() > 0)
        })
        .await
    }

    /// The nodes, by name.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn nodes(&self) -> Result<Vec<Node>, StoreError> {
        self.read(Call::Nodes, async {
            let query = sql::query("select name, incarnation, beats from node order by name");
            self.rows(query, |row| {
                Ok(Node {
                    name: row.try_get("name")?,
                    incarnation: row.try_get("incarnation")?,
                    heartbeat: row.try_get("beats")?,
                })
            })
            .await
        })
        .await
    }

    /// Takes what is news to the node of that name, `most` of it. It is gone then: if this fails,
    /// it may be too. What it is about was on disk before this returned.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn take_news(&self, name: &str, most: usize) -> Result<Vec<NodeNews>, StoreError> {
        self.write(Call::News, || async {
            let query = sql::query(TAKE.of(self.dialect()))
                .bind(name)
                .bind(i64::try_from(most).unwrap_or(i64::MAX));
            let read = |row: &AnyRow| {
                let what = row.try_get::<i64, _>("login")?;
                let (login, event) = (what & LOGIN != 0, what & EVENT != 0);
                let (named, account) = (what == EVENT, account(row, "account")?);
                Ok(match account.as_str() {
                    ANY_ACCOUNT => NodeNews::MissedEvents,
                    _ => NodeNews::Invalidation(Invalidation { account, login, event, named }),
                })
            };
            let mut transaction = self.begin().await?;
            let taken = rows::readable(&mut transaction, &self.metrics, query, read).await?.rows;
            transaction.commit().await?;
            Ok(taken)
        })
        .await
    }

    /// Tells all other nodes that this one may have missed events of mail servers.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn tell_missed_events(&self) -> Result<(), StoreError> {
        self.write(Call::News, || async {
            let mut transaction = self.begin().await?;
            self.tell_of(&mut transaction, ANY_ACCOUNT, of_event(false)).await?;
            transaction.commit().await
        })
        .await
    }

    /// Writes news of an account to all nodes but this one.
    ///
    /// News that is there already is locked by this: a node that takes it meanwhile waits until the
    /// transaction has ended, and then reads what it has changed.
    pub(super) async fn tell(
        &self,
        work: &mut Work,
        account: &str,
        login: bool,
    ) -> sqlx::Result<()> {
        self.tell_of(work, account, if login { LOGIN | UNNAMED } else { UNNAMED }).await
    }

    /// The same, with the sum of what it is.
    async fn tell_of(&self, work: &mut Work, account: &str, what: i64) -> sqlx::Result<()> {
        let told = sql::query(TELL.of(work.dialect()))
            .bind(account)
            .bind(what)
            .bind(&*self.incarnation)
            .execute_in(work)
            .await?;
        if told.rows_affected() > 0 {
            self.notify_after(work);
        }
        Ok(())
    }
}
