//! The two pools of connections to a server, which may be away or fail over.

use std::time::Duration;

use sqlx::any::AnyPoolOptions;
use sqlx::{AnyPool, AssertSqlSafe, Connection, Executor};
use tokio::time::timeout;

use super::trust::ConnectionTrust;

/// Connections of each pool. Reads do not wait for writes; few of either are ever in flight.
const CONNECTIONS: u32 = 4;

/// For the sign of life of a connection that goes back to its pool.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// Those for reading and for writing, whose connections come about when they have to; each begins with
/// `settings`.
pub(super) fn pools(
    url: &str,
    busy_timeout: Duration,
    settings: Option<String>,
) -> sqlx::Result<(AnyPool, AnyPool, ConnectionTrust)> {
    sqlx::any::install_default_drivers();
    let trust = ConnectionTrust::default();
    let pool = || -> sqlx::Result<AnyPool> {
        let (taken, returned) = (trust.clone(), trust.clone());
        let settings = settings.clone();
        let options = AnyPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(busy_timeout.max(Duration::from_secs(1)))
            // The first word of each transaction is the test.
            .test_before_acquire(false)
            .after_connect(move |connection, _| {
                let settings = settings.clone();
                Box::pin(async move {
                    let Some(settings) = settings else { return Ok(()) };
                    connection.execute(AssertSqlSafe(settings)).await.map(drop)
                })
            })
            .before_acquire(move |_, connection| {
                let trusted = taken.has(connection.age);
                Box::pin(async move { Ok(trusted) })
            })
            // A call that was given up leaves its connection waiting for an answer that may never
            // come. Without a limit such a connection would keep its place in the pool.
            .after_release(move |connection, meta| {
                let trusted = returned.has(meta.age);
                Box::pin(async move {
                    if !trusted {
                        return Ok(false);
                    }
                    match timeout(SIGN_OF_LIFE, connection.ping()).await {
                        Ok(result) => result.map(|()| true),
                        Err(_) => Err(sqlx::Error::Protocol("no sign of life".into())),
                    }
                })
            });
        options.connect_lazy(url)
    };
    Ok((pool()?, pool()?, trust))
}
