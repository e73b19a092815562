//! What is peculiar to MariaDB: its settings, which are the session's, and that it commits each change of the
//! schema by itself.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{AnyConnection, AssertSqlSafe, Connection, Row, SqlSafeStr};

use super::dialect::Dialect;
use super::fault::ConnectionFault;
use super::pool::pools;
use super::work::{Connections, TransactionKind};
use super::{schema, statement};
use crate::config::ServerUrl;
use crate::store::StoreError;
use crate::store::error::{is_no_right, is_refusal, is_temporary, unusable_server};

/// Begins a transaction; the session's settings say the rest.
const BEGIN: &str = "start transaction";

/// The connections to the server of `url`, which come about when they have to.
pub(in crate::store) fn connections(
    url: &ServerUrl,
    database: &Arc<str>,
    busy_timeout: Duration,
    limit: Duration,
) -> Result<Connections, StoreError> {
    let settings = Some(settings(busy_timeout, limit));
    let (reads, writes, trust) = pools(url.as_str(), busy_timeout, settings)
        .map_err(|error| unusable_server(database, error))?;
    let kind = TransactionKind::Server {
        dialect: Dialect::MariaDb,
        begin: BEGIN.into(),
        named: true,
        trust,
        fault: ConnectionFault::default(),
        listens_at: None,
    };
    Ok(Connections { reads, writes, kind })
}

/// What a session is set to. Statements see what others have committed before each of them, waits have an end
/// on the server as well, and what does not fit is refused rather than cut off.
fn settings(busy_timeout: Duration, limit: Duration) -> String {
    // Whole seconds, and 0 would mean without end.
    let seconds = |time: Duration| time.as_millis().div_ceil(1000).max(1);
    format!(
        "set session transaction isolation level read committed; \
         set session innodb_lock_wait_timeout = {busy}, lock_wait_timeout = {busy}, \
         max_statement_time = {limit}, idle_transaction_timeout = {limit}, \
         sql_mode = concat(@@sql_mode, ',STRICT_TRANS_TABLES')",
        busy = seconds(busy_timeout),
        limit = seconds(limit),
    )
}

/// The oldest version of MariaDB that has what the calls need.
const OLDEST: (u32, u32) = (10, 6);

/// Most characters of a server's version that are shown.
const SHOWN: usize = 60;

/// That the server is a MariaDB that mailchime can use. Of one that does not answer nothing is said.
pub(in crate::store) async fn expect_version(
    connections: &Connections,
    database: &Arc<str>,
) -> Result<(), StoreError> {
    // Another server does not know the settings with which the pool's connections begin.
    let options = connections.writes.options();
    let asked = async {
        let mut connection = AnyConnection::connect_with(&options).await?;
        let row = sqlx::query("select version() as version").fetch_one(&mut connection).await?;
        connection.close().await?;
        row.try_get::<String, _>("version")
    };
    let problem = asked.await.ok().and_then(|said| unfit(&said));
    problem.map_or(Ok(()), |problem| {
        Err(StoreError::Unusable {
            database: Arc::clone(database),
            problem,
            remedy: "use such a server, or PostgreSQL, or a file of SQLite",
        })
    })
}

/// What is wrong with a server of this version.
fn unfit(said: &str) -> Option<String> {
    // Some say an older version of MySQL first, for its replicas.
    let version = said.strip_prefix("5.5.5-").unwrap_or(said);
    let mut numbers = version.split(|char: char| !char.is_ascii_digit()).map(str::parse);
    let is_mariadb = version.to_ascii_lowercase().contains("mariadb");
    let is_fit = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => is_mariadb && (major, minor) >= OLDEST,
        _ => is_mariadb,
    };
    let product = if is_mariadb { "MariaDB" } else { "MySQL" };
    let shown: String = version.chars().take(SHOWN).collect();
    let (major, minor) = OLDEST;
    (!is_fit).then(|| {
        format!(
            "mailchime needs MariaDB {major}.{minor} or later, and this server is {product} {}",
            shown.escape_debug()
        )
    })
}

/// Tries what the schema and the calls need. MariaDB rolls no table back, so each of these is at fault in another way
/// as well, which it finds when it has looked at the rights.
pub(in crate::store) async fn try_rights(connections: &Connections) -> sqlx::Result<()> {
    let mut work = connections.begin_alone().await?;
    // No table has this name, so none is changed.
    let table = schema::unused_name();
    for sql in [
        format!("create table {table} (name int, name int)"),
        format!("alter table {table} drop column name"),
        format!("create index name on {table} (name)"),
        format!("drop table {table}"),
        format!("select name from {table}"),
        format!("insert into {table} (name) values (1)"),
        format!("update {table} set name = 1"),
        format!("delete from {table}"),
    ] {
        if let Err(error) = work.run(AssertSqlSafe(sql).into_sql_str()).await
            && (is_no_right(&error) || is_temporary(&error))
        {
            return Err(error);
        }
    }
    Ok(())
}

/// Applies what is missing of the schema. Of nodes that start at once one waits for the other, `limit` at most;
/// the work itself has no limit. One that is killed in between is done again by the next.
pub(in crate::store) async fn migrate(
    connections: &Connections,
    database: &Arc<str>,
    limit: Duration,
) -> Result<(), StoreError> {
    let refused = |error| match is_refusal(&error) {
        true => unusable_server(database, error),
        false => StoreError::from_sqlx(database, error),
    };
    // The lock and the patience go with the session.
    let mut work = connections.begin_alone().await.map_err(refused)?;
    let patience = statement::query(
        "set session max_statement_time = 0, idle_transaction_timeout = 0, lock_wait_timeout = 3600",
    );
    patience.execute_in(&mut work).await.map_err(refused)?;
    let row = statement::query(
        "select coalesce(get_lock(concat('mailchime ', left(database(), 50)), $1), 0) as taken, \
         @@innodb_flush_log_at_trx_commit as flushes",
    )
    .bind(i64::try_from(limit.as_secs()).unwrap_or(i64::MAX))
    .fetch_one_in(&mut work)
    .await
    .map_err(refused)?;
    let taken: i64 = row.try_get("taken").map_err(refused)?;
    if taken != 1 {
        let waits = std::io::Error::new(std::io::ErrorKind::TimedOut, "another node upgrades it");
        return Err(refused(sqlx::Error::Io(waits)));
    }
    if row.try_get::<i64, _>("flushes").is_ok_and(|flushes| flushes != 1) {
        tracing::warn!(
            target: "mailchime::store::not_durable",
            database = &**database,
            "the database server does not write each transaction to disk at once; a crash of its \
             machine may lose registrations: set innodb_flush_log_at_trx_commit = 1"
        );
    }
    schema::update(&mut work).await.map_err(|error| schema::error(database, error))?;
    work.commit().await.map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mysql_and_older_versions_of_mariadb_are_unfit() {
        for fit in [
            "10.6.0-MariaDB",
            "5.5.5-10.6.12-MariaDB",
            "10.11.6-MariaDB-0+deb12u1-log",
            "11.4.2-MariaDB",
            "MariaDB",
        ] {
            assert_eq!(unfit(fit), None, "{fit}");
        }
        for (said, is) in [
            ("10.5.23-MariaDB-0+deb11u1", "MariaDB 10.5.23-MariaDB-0+deb11u1"),
            ("5.5.5-10.3.39-MariaDB", "MariaDB 10.3.39-MariaDB"),
            ("8.0.36", "MySQL 8.0.36"),
            ("5.5.62", "MySQL 5.5.62"),
            ("11.0\n", "MySQL 11.0\\n"),
            ("", "MySQL "),
        ] {
            let expected =
                format!("mailchime needs MariaDB 10.6 or later, and this server is {is}");
            assert_eq!(unfit(said), Some(expected));
        }
    }
}
