//! What watchers share, for tests of single parts.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::mpsc;

use super::WatchContext;
use crate::config::{BackendConfig, BackendTls, Config, CredentialsMode, TlsConfig};
use crate::net::backends::{Backends, Table};
use crate::net::resolve::NameResolver;
use crate::store::{CredentialSource, Store};

/// Every account is of this host.
pub(super) fn one_backend(host: &str) -> Config {
    let backend = BackendConfig::new(host, 1, BackendTls::None);
    Config::new(TlsConfig::new("none", "none"), backend)
}

pub(super) fn table(config: &Config) -> Table {
    Table::new(config, &NameResolver::default()).unwrap()
}

/// Credentials are in memory, nobody has registered, and nobody hears of changes. The database is in the folder.
pub(super) async fn context(config: &Config) -> (TempDir, Arc<WatchContext>) {
    context_with(config, CredentialsMode::Memory).await
}

/// The same with credentials elsewhere.
pub(super) async fn context_with(
    config: &Config,
    credentials: CredentialsMode,
) -> (TempDir, Arc<WatchContext>) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("mailchime.db").display());
    let store = Store::open(&url.parse().unwrap(), Duration::from_secs(30)).await.unwrap();
    let key_file = folder.path().join("key");
    let source = CredentialSource::open(credentials, &key_file, store.clone()).unwrap();
    let backends = Backends::new(table(config), Arc::default());
    let (events, _) = mpsc::channel(1);
    (folder, Arc::new(WatchContext::new(config, backends, store, Arc::new(source), events)))
}
