//! What the integration tests have for a process, of which not all is needed here.

use std::time::Duration;

#[allow(dead_code, reason = "the soak is told which program to run")]
#[path = "../integration/program/process.rs"]
pub(crate) mod process;
#[allow(dead_code, reason = "Dovecot is the backend")]
#[path = "../integration/program/world.rs"]
pub(crate) mod world;

/// How long a single thing may take to happen.
const SOON: Duration = Duration::from_secs(30);

async fn soon<T>(awaited: &str, event: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(SOON, event).await;
    waited.unwrap_or_else(|_| panic!("not within {SOON:?}: {awaited}"))
}
