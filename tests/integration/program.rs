//! The real binary between stand-ins, as an administrator meets it: what it says about bad input,
//! what it logs, how it ends.

pub(crate) mod admin;
mod certificates;
mod commands;
mod credentials;
mod database;
mod database_away;
mod demo;
mod hostile;
mod lenient;
mod logs;
mod master;
mod messages;
mod nodes;
pub(crate) mod process;
mod reload;
pub(crate) mod sasl;
mod stop;
mod tls;
pub(crate) mod world;

use std::time::Duration;

/// How long a test may take, on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(90);

/// How long a single thing may take to happen.
const SOON: Duration = Duration::from_secs(30);

async fn limited(test: impl Future<Output = ()>) {
    tokio::time::timeout(LIMIT, test).await.expect("the test takes too long");
}

/// What `event` gives, which is `awaited`.
pub(crate) async fn soon<T>(awaited: &str, event: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(SOON, event).await;
    waited.unwrap_or_else(|_| panic!("not within {SOON:?}: {awaited}"))
}
