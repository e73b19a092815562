//! Who is let in, and how: listeners, PROXY headers, certificates by name, routes, limits, and what
//! a configuration that is read again changes. Real sockets throughout.

mod backends;
mod greetings;
mod limits;
pub(crate) mod pinned;
mod proxy_protocol;
mod reload;
mod tls;
mod world;

use std::time::Duration;

/// For each test as a whole.
const LIMIT: Duration = Duration::from_secs(60);

/// For each thing that is waited for.
const SOON: Duration = Duration::from_secs(20);

async fn limited(test: impl Future<Output = ()>) {
    tokio::time::timeout(LIMIT, test).await.expect("the test takes too long");
}

async fn soon<T>(awaited: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("{awaited} does not come"))
}
