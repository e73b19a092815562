//! All rows of one database into another, of whatever kind. Nobody may serve from either meanwhile.

use std::sync::Arc;
use std::time::Duration;

use sqlx::Row;
use sqlx::any::AnyRow;

use super::nodes::Node;
use super::sql::work::Work;
use super::sql::{self, rows};
use super::{Store, StoreError};
use crate::config::DatabaseUrl;

/// Rows that are read, and written, at a time.
const BATCH: usize = 50;

/// A node gives a sign of life in every such part of `[node] takeover`.
const SIGNS: u32 = 30;
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// Why nothing was copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A database cannot be used.
    #[error("{0}; nothing was copied")]
    Store(#[from] StoreError),
    /// It would be mixed with what is there.
    #[error("{database} is not empty: it has rows in {table}; nothing was copied")]
    NotEmpty {
        /// The database, without its password.
        database: Arc<str>,
        /// The first table that has rows.
        table: &'static str,
    },
    /// What it registers meanwhile would be lost.
    #[error(
        "the node {node} serves from {database}: stop mailchime on all machines first; nothing was copied"
    )]
    InService {
        /// The database, without its password.
        database: Arc<str>,
        /// The node that gave a sign of life.
        node: String,
    },
    /// The copy would lack them.
    #[error(
        "{rows} rows of {table} in {database} cannot be read, and the log names them: remove or mend them \
         first; nothing was copied"
    )]
    Unreadable {
        /// The database, without its password.
        database: Arc<str>,
        /// Where they are.
        table: &'static str,
        /// How many were found.
        rows: u64,
    },
}

/// How many rows of a table were copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopiedRows {
    /// The table.
    pub table: &'static str,
    /// Its rows.
    pub rows: u64,
}

/// A table to be copied.
struct CopiedTable {
    name: &'static str,
    /// Numbers that tell its rows apart. A single `id` is made by the database for new rows.
    key: &'static [&'static str],
    numbers: &'static [&'static str],
    texts: &'static [&'static str],
}

/// A value of a row.
enum Value {
    Number(Option<i64>),
    Text(Option<String>),
}

/// In the order in which rows refer to each other. What nodes tell each other is of no use to later ones.
const TABLES: [CopiedTable; 6] = [
    CopiedTable {
        name: "account",
        key: &["id"],
        numbers: &[
            "created_at",
            "credentials_until",
            "credentials_since",
            "credentials_proved_at",
            "parked_since",
            "refusals",
            "refused_at",
            "login_wanted_at",
            "password_since",
            "password_at",
            "entry_at",
            "left_at",
        ],
        texts: &["name", "backend", "folded", "domain", "credentials", "parked"],
    },
    CopiedTable {
        name: "credential",
        key: &["account", "number"],
        numbers: &["until", "since", "proved_at"],
        texts: &["sealed"],
    },
    CopiedTable {
        name: "mailbox",
        key: &["id"],
        numbers: &[
            "account",
            "uid_validity",
            "uid_next",
            "messages",
            "unseen",
            "highest_mod_seq",
            "due_since",
            "due_marks",
        ],
        texts: &["name", "due_state"],
    },
    CopiedTable {
        name: "subscription",
        key: &["id"],
        numbers: &[
            "account",
            "registered_at",
            "heard_at",
            "pushed_at",
            "outdated_since",
            "outdated_at",
            "renews",
            "expires_at",
            "failing_since",
            "own_fault",
        ],
        texts: &[
            "transport",
            "endpoint_hash",
            "endpoint",
            "app",
            "route",
            "options",
            "state",
            "secrets",
            "failing_kind",
        ],
    },
    CopiedTable {
        name: "subscription_mailbox",
        key: &["subscription", "mailbox"],
        numbers: &["owed_since"],
        texts: &[],
    },
    CopiedTable { name: "service", key: &["id"], numbers: &["served", "seen_at"], texts: &[] },
];

/// Tables whose rows are not copied, and which are empty in an empty database.
const OF_NODES: [&str; 2] = ["node", "invalidation"];

/// Copies all rows of the database of `from` into the empty one of `to`, which is made where it is a file. All
/// or nothing is there afterwards. `takeover` is the longest that the nodes of `from` may have as
/// `[node] takeover`: where one is on record, it is watched for twice the time between its signs of life. What the vault has sealed stays sealed: the same key file opens it.
///
/// # Errors
/// [`CopyError`], which says what is in the way.
pub async fn copy(
    from: &DatabaseUrl,
    to: &DatabaseUrl,
    busy_timeout: Duration,
    takeover: Duration,
) -> Result<Vec<CopiedRows>, CopyError> {
    // It is there, and has the schema of now. A file is then locked against programs that serve.
    Store::open_existing(from, busy_timeout).await?.close().await;
    let source = Store::open(from, busy_timeout).await?;
    let copied = copy_from(&source, to, busy_timeout, takeover).await;
    source.close().await;
    copied
}

async fn copy_from(
    source: &Store,
    to: &DatabaseUrl,
    busy_timeout: Duration,
    takeover: Duration,
) -> Result<Vec<CopiedRows>, CopyError> {
    if let Some(node) = source.live_node(takeover).await? {
        return Err(CopyError::InService { database: Arc::clone(&source.database), node });
    }
    let target = Store::open(to, busy_timeout).await?;
    let copied = async {
        target.ping().await?;
        let copied = fill(source, &target).await?;
        target.take_statistics().await;
        Ok(copied)
    };
    let copied = copied.await;
    target.close().await;
    copied
}

/// Copies in one transaction of the target.
async fn fill(source: &Store, target: &Store) -> Result<Vec<CopiedRows>, CopyError> {
    let mut reading = source.named(source.begin_read().await)?;
    let mut writing = target.named(target.begin().await)?;
    for table in TABLES.iter().map(|table| table.name).chain(OF_NODES) {
        let row = sql::query(format!("select 1 as found from {table} limit 1"))
            .fetch_optional_in(&mut writing)
            .await;
        if target.named(row)?.is_some() {
            return Err(CopyError::NotEmpty { database: Arc::clone(&target.database), table });
        }
    }
    let mut copied = Vec::with_capacity(TABLES.len());
    for table in &TABLES {
        copied.push(table.copy((source, &mut reading), (target, &mut writing)).await?);
    }
    target.named(writing.commit().await)?;
    Ok(copied)
}

impl Store {
    /// A node that gives signs of life.
    async fn live_node(&self, takeover: Duration) -> Result<Option<String>, StoreError> {
        let before = self.nodes().await?;
        let mut looks = if before.is_empty() { 0 } else { looks(takeover) };
        while looks > 0 {
            tokio::time::sleep(BETWEEN_LOOKS).await;
            looks -= 1;
            let moved = |node: &Node| !before.contains(node);
            if let Some(node) = self.nodes().await?.into_iter().find(moved) {
                return Ok(Some(node.name));
            }
        }
        Ok(None)
    }
}

/// How often the nodes are looked at, so that a sign of life falls between two looks.
fn looks(takeover: Duration) -> u64 {
    (2 * takeover / SIGNS).as_secs() / BETWEEN_LOOKS.as_secs() + 2
}

impl CopiedTable {
    fn columns(&self) -> Vec<&'static str> {
        [self.key, self.numbers, self.texts].concat()
    }

    async fn copy(
        &self,
        (source, reading): (&Store, &mut Work),
        (target, writing): (&Store, &mut Work),
    ) -> Result<CopiedRows, CopyError> {
        let mut copied = CopiedRows { table: self.name, rows: 0 };
        let mut behind = vec![i64::MIN; self.key.len()];
        loop {
            let mut query = sql::query(self.page());
            for number in &behind {
                query = query.bind(*number);
            }
            let read = |row: &AnyRow| self.read(row);
            let page = rows::readable(reading, &source.metrics, query, read).await;
            let page = source.named(page)?;
            if page.left_out > 0 {
                let (database, rows) = (Arc::clone(&source.database), page.left_out);
                return Err(CopyError::Unreadable { database, table: self.name, rows });
            }
            let Some(last) = page.rows.last() else { break };
            let key = last.iter().take(self.key.len());
            behind = key.map(|value| value.number().unwrap_or_default()).collect();
            let insert = writing.dialect().insert_with_keys(
                self.name,
                &self.columns().join(", "),
                &sql::values(1, self.columns().len(), page.rows.len()),
            );
            let mut query = sql::query(insert);
            for value in page.rows.iter().flatten() {
                query = match value {
                    Value::Number(number) => query.bind(*number),
                    Value::Text(text) => query.bind(text.as_deref()),
                };
            }
            target.named(query.execute_in(writing).await)?;
            copied.rows += u64::try_from(page.rows.len()).unwrap_or(u64::MAX);
        }
        if let Some(continues) = writing.dialect().continue_ids(self.name)
            && self.key == ["id"]
            && self.name != "service"
        {
            target.named(sql::query(continues).fetch_one_in(writing).await)?;
        }
        Ok(copied)
    }

    /// The next rows by their keys, of which those of the last one stand for the arguments.
    fn page(&self) -> String {
        let columns = self.columns().join(", ");
        let (table, order) = (self.name, self.key.join(", "));
        let behind = match self.key {
            [first, second] => format!("{first} > $1 or ({first} = $1 and {second} > $2)"),
            key => format!("{} > $1", key.concat()),
        };
        format!("select {columns} from {table} where {behind} order by {order} limit {BATCH}")
    }

    fn read(&self, row: &AnyRow) -> sqlx::Result<Vec<Value>> {
        let numbers = self.key.iter().chain(self.numbers);
        let numbers = numbers.map(|column| row.try_get(*column).map(Value::Number));
        numbers.chain(self.texts.iter().map(|it| row.try_get(*it).map(Value::Text))).collect()
    }
}

impl Value {
    fn number(&self) -> Option<i64> {
        match self {
            Self::Number(number) => *number,
            Self::Text(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_watched_for_longer_than_two_of_its_signs_of_life() {
        for takeover in [3, 30, 45, 3600].map(Duration::from_secs) {
            let watched = BETWEEN_LOOKS * u32::try_from(looks(takeover)).unwrap();
            assert!(watched > 2 * takeover / SIGNS, "{takeover:?}: {watched:?}");
        }
    }

    /// A column that a migration adds is copied, too.
    #[tokio::test]
    async fn every_column_of_every_table_is_copied() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("test.db").display());
        let store = Store::open(&url.parse().unwrap(), Duration::from_secs(5)).await.unwrap();
        let query = sql::query(
            "select m.name as of_table, c.name as of_column from sqlite_master m \
             join pragma_table_info(m.name) c where m.type = 'table' and m.name not like 'sqlite%' \
             and m.name <> '_sqlx_migrations'",
        );
        let read = |row: &AnyRow| Ok((row.try_get("of_table")?, row.try_get("of_column")?));
        let mut found: Vec<(String, String)> = store.rows(query, read).await.unwrap();
        found.retain(|(table, _)| !OF_NODES.contains(&table.as_str()));
        found.sort();
        let mut copied: Vec<(String, String)> = Vec::new();
        for table in &TABLES {
            let columns = table.columns().into_iter();
            copied.extend(columns.map(|column| (table.name.to_owned(), column.to_owned())));
        }
        copied.sort();
        assert_eq!(copied, found);
    }
}
