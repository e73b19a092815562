//! The two pools of connections to a server, which may be away or fail over.

use std::sync::Arc;
use std::time::Duration;

use sqlx::any::AnyPoolOptions;
use sqlx::{AssertSqlSafe, Executor};

use super::kept::KeptConnections;
use super::trust::ConnectionTrust;

/// Connections of each pool. Reads do not wait for writes; few of either are ever in flight.
const CONNECTIONS: u32 = 4;

/// Those for reading and for writing, whose connections come about when they have to; each begins with
/// `settings`.
pub(super) fn pools(
    url: &str,
    busy_timeout: Duration,
    settings: Option<String>,
) -> sqlx::Result<(Arc<KeptConnections>, Arc<KeptConnections>, ConnectionTrust)> {
    sqlx::any::install_default_drivers();
    let trust = ConnectionTrust::default();
    let patience = busy_timeout.max(Duration::from_secs(1));
    let kept = || -> sqlx::Result<Arc<KeptConnections>> {
        let settings = settings.clone();
        let options = AnyPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(patience)
            // It makes and closes them. Those that are kept are older than it knows.
            .test_before_acquire(false)
            .max_lifetime(None)
            .idle_timeout(None)
            .after_connect(move |connection, _| {
                let settings = settings.clone();
                Box::pin(async move {
                    let Some(settings) = settings else { return Ok(()) };
                    connection.execute(AssertSqlSafe(settings)).await.map(drop)
                })
            });
        let pool = options.connect_lazy(url)?;
        Ok(KeptConnections::of_server(pool, CONNECTIONS, patience, trust.clone()))
    };
    Ok((kept()?, kept()?, trust))
}
