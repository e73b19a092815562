//! What is peculiar to PostgreSQL: its settings, which are each transaction's where a pooler may stand between, and its
//! migration.
//!
//! Each wait has its end on the server as well as here, so that neither a lock that nobody gives
//! back nor a node that vanished in the middle of a transaction holds up the others.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::MigrateError;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Row, SqlSafeStr};

use super::dialect::Dialect;
use super::fault::ConnectionFault;
use super::pool::pools;
use super::work::{Connections, TransactionKind};
use super::{schema, statement};
use crate::config::ServerUrl;
use crate::store::StoreError;
use crate::store::error::{is_no_right, is_refusal, unusable_server};

/// The connections to the server of `url`, which come about when they have to.
pub(in crate::store) fn connections(
    url: &ServerUrl,
    database: &Arc<str>,
    busy_timeout: Duration,
    limit: Duration,
) -> Result<Connections, StoreError> {
    let named = url.keeps_statements();
    let scope = if named { SettingsScope::Session } else { SettingsScope::Transaction };
    let settings = settings(scope, busy_timeout, limit);
    let is_writable = Dialect::Postgres.is_writable().unwrap_or("true");
    let (session, begin) = match scope {
        SettingsScope::Session => {
            let prepared = format!(
                "{settings}set default_transaction_isolation = 'read committed'; \
                 prepare {IS_WRITABLE} as select {is_writable}"
            );
            (Some(prepared), begin(&format!("execute {IS_WRITABLE}")))
        }
        SettingsScope::Transaction => (None, begin(&format!("{settings}select {is_writable}"))),
    };
    let (reads, writes, trust) = pools(url.as_str(), busy_timeout, session)
        .map_err(|error| unusable_server(database, error))?;
    let begin = begin.into();
    let listens_at = Some(Arc::new(
        PgConnectOptions::from_str(url.as_str())
            .map_err(|error| unusable_server(database, error))?,
    ));
    let dialect = Dialect::Postgres;
    let fault = ConnectionFault::default();
    let kind = TransactionKind::Server { dialect, begin, named, trust, fault, listens_at };
    Ok(Connections { reads, writes, kind })
}

/// By this name a session keeps the question prepared whether its server takes writes. Each transaction asks it, and the
/// server takes longer to read it than to answer.
const IS_WRITABLE: &str = "mailchime_is_writable";

/// What the settings are made for.
#[derive(Clone, Copy)]
enum SettingsScope {
    /// Nobody else has the session, so they are made once.
    Session,
    /// A pooler may give each transaction another session.
    Transaction,
}

/// Each wait has its end on the server as well, and what is committed is on disk.
fn settings(scope: SettingsScope, busy_timeout: Duration, limit: Duration) -> String {
    let (set, is_local) = match scope {
        SettingsScope::Session => ("set", false),
        SettingsScope::Transaction => ("set local", true),
    };
    format!(
        "{set} lock_timeout = {busy}; {set} statement_timeout = {limit}; \
         {set} idle_in_transaction_session_timeout = {limit}; \
         select set_config('synchronous_commit', 'on', {is_local}) \
         where current_setting('synchronous_commit') = 'off'; ",
        // 0 would mean without end.
        busy = busy_timeout.as_millis().max(1),
        limit = limit.as_millis().max(1),
    )
}

/// Begins a transaction, with what makes its settings and fails on a server that takes no writes. Its statements see what
/// others have committed before each of them.
fn begin(first: &str) -> String {
    format!("begin isolation level read committed; {first}")
}

/// Tries what the schema needs, and rolls it back: to make a table, and to change those that are there, for which the user
/// has to own them.
pub(in crate::store) async fn try_rights(
    connections: &Connections,
    database: &Arc<str>,
) -> Result<(), StoreError> {
    match tried(connections).await {
        Ok(()) => Ok(()),
        Err(error) => Err(without_right(connections, database, error).await),
    }
}

/// Names the tables of another user, where that is why.
async fn without_right(
    connections: &Connections,
    database: &Arc<str>,
    source: sqlx::Error,
) -> StoreError {
    if is_no_right(&source)
        && let Ok(remedies) = of_others(connections).await
        && !remedies.is_empty()
    {
        let (database, remedy) = (Arc::clone(database), remedies.join(" "));
        return StoreError::NotOwner { database, remedy, source };
    }
    StoreError::from_sqlx(database, source)
}

/// For each table of ours that another user owns, what gives it to this one.
async fn of_others(connections: &Connections) -> sqlx::Result<Vec<String>> {
    let there = "select cast(tablename as text) as name, cast(format('ALTER TABLE %I.%I OWNER TO %I;', schemaname, \
                 tablename, current_user) as text) as remedy from pg_catalog.pg_tables \
                 where schemaname = current_schema() \
                 and not pg_has_role(current_user, tableowner, 'USAGE') order by tablename";
    let ours = schema::tables();
    let mut remedies = Vec::new();
    for row in statement::query(there).fetch_all_in(&mut connections.begin_write().await?).await? {
        if ours.contains(&*row.try_get::<String, _>("name")?) {
            remedies.push(row.try_get("remedy")?);
        }
    }
    Ok(remedies)
}

async fn tried(connections: &Connections) -> sqlx::Result<()> {
    let mut work = connections.begin_write().await?;
    let sql = format!("create table {} (name text primary key)", schema::unused_name());
    work.run(AssertSqlSafe(sql).into_sql_str()).await?;
    let there = "select cast(tablename as text) as name from pg_catalog.pg_tables \
                 where schemaname = current_schema()";
    let ours = schema::tables();
    for row in statement::query(there).fetch_all_in(&mut work).await? {
        let name: String = row.try_get("name")?;
        if ours.contains(&*name) {
            let sql = format!("comment on table {name} is null");
            work.run(AssertSqlSafe(sql).into_sql_str()).await?;
        }
    }
    Ok(())
}

/// Applies what is missing of the schema, all or nothing. Of nodes that start at once one waits for
/// the other, `limit` at most; the work itself has no limit.
pub(in crate::store) async fn migrate(
    connections: &Connections,
    database: &Arc<str>,
    limit: Duration,
) -> Result<(), StoreError> {
    let refused = |error| match is_refusal(&error) {
        true => unusable_server(database, error),
        false => StoreError::from_sqlx(database, error),
    };
    let mut work = connections.begin_write().await.map_err(refused)?;
    // To write each row of a large database anew takes what it takes.
    let patience = format!(
        "set local lock_timeout = {}; set local statement_timeout = 0; \
         set local idle_in_transaction_session_timeout = 0",
        limit.as_millis().max(1)
    );
    work.run(AssertSqlSafe(patience).into_sql_str()).await.map_err(refused)?;
    match schema::update(&mut work).await {
        Ok(()) => work.commit().await.map_err(refused),
        Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => {
            drop(work);
            Err(without_right(connections, database, error).await)
        }
        Err(error) => Err(schema::error(database, error)),
    }
}
