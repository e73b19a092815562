//! What is peculiar to PostgreSQL: its settings, its two pools, and that it may be away.
//!
//! Each wait has its end on the server as well as here, so that neither a lock that nobody gives
//! back nor a node that vanished in the middle of a transaction holds up the others.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::any::AnyPoolOptions;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AnyPool, AssertSqlSafe, Connection, Executor};
use tokio::time::timeout;

use super::error::{is_refusal, unusable_server};
use super::{StoreError, schema};

/// Begins a transaction. Statements see what others have committed before each of them.
pub(super) const BEGIN_WRITE: &str = "begin isolation level read committed";

/// Connections of each pool. Reads do not wait for writes; few of either are ever in flight.
const CONNECTIONS: u32 = 4;

/// For the sign of life of a connection that goes back to its pool.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

pub(super) fn is_url(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}

/// The server of `url` and the pools for reading and writing, which connect when they have to.
pub(super) fn pools(
    url: &str,
    database: &Arc<str>,
    busy_timeout: Duration,
    limit: Duration,
) -> Result<(PgConnectOptions, AnyPool, AnyPool), StoreError> {
    let malformed = |error| unusable_server(database, error);
    let settings = settings(busy_timeout, limit);
    let server = PgConnectOptions::from_str(url).map_err(malformed)?;
    sqlx::any::install_default_drivers();
    let options = AnyPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(connecting(busy_timeout))
        .after_connect(move |connection, _| {
            let settings = settings.clone();
            Box::pin(async move { connection.execute(AssertSqlSafe(settings)).await.map(drop) })
        })
        // A call that was given up leaves its connection waiting for an answer that may never come.
        // Without a limit such a connection would keep its place in the pool.
        .after_release(|connection, _| {
            Box::pin(async move {
                match timeout(SIGN_OF_LIFE, connection.ping()).await {
                    Ok(result) => result.map(|()| true),
                    Err(_) => Err(sqlx::Error::Protocol("no sign of life".into())),
                }
            })
        });
    let reads = options.clone().connect_lazy(url).map_err(malformed)?;
    let writes = options.connect_lazy(url).map_err(malformed)?;
    Ok((server, reads, writes))
}

/// How long a call waits for a connection.
fn connecting(busy_timeout: Duration) -> Duration {
    busy_timeout.max(Duration::from_secs(1))
}

/// What every session of the server begins with.
fn settings(busy_timeout: Duration, limit: Duration) -> String {
    format!(
        "set lock_timeout = {busy}; set statement_timeout = {limit}; \
         set idle_in_transaction_session_timeout = {limit}; \
         select set_config('application_name', 'mailchime', false) \
         where current_setting('application_name') = ''; \
         select set_config('synchronous_commit', 'on', false) \
         where current_setting('synchronous_commit') = 'off'",
        // 0 would mean without end.
        busy = busy_timeout.as_millis().max(1),
        limit = limit.as_millis().max(1),
    )
}

/// Applies what is missing of the schema, each migration whole or not at all. Of nodes that start at
/// once one waits for the other, `limit` at most.
pub(super) async fn migrate(
    server: &PgConnectOptions,
    database: &Arc<str>,
    busy_timeout: Duration,
    limit: Duration,
) -> Result<(), StoreError> {
    // A pool of its own: should something fail, the lock on the schema goes with its connection.
    let options = PgPoolOptions::new().max_connections(1);
    let options = options.acquire_timeout(connecting(busy_timeout));
    let options = options.after_connect(move |connection, _| {
        let settings = settings(limit, limit);
        Box::pin(async move { connection.execute(AssertSqlSafe(settings)).await.map(drop) })
    });
    let pool = options.connect_with(server.clone()).await.map_err(|error| {
        if is_refusal(&error) {
            return unusable_server(database, error);
        }
        StoreError::from_sqlx(database, error)
    })?;
    let done = schema::MIGRATOR.run(&pool).await;
    pool.close().await;
    done.map_err(|error| schema::error(database, error))
}
