//! `mailchime credentials rotate`: a new key for the stored credentials, while mailchime runs or not.

use std::path::Path;

use super::{CommandFailure, runtime, say};
use crate::config::{Config, CredentialsMode};
use crate::store::{RotationError, Store, StoreError, Vault, VaultError, rotate};

pub(super) fn run(path: &Path) -> Result<(), CommandFailure> {
    let config = Config::load(path).map_err(|error| CommandFailure::Usage(error.to_string()))?;
    let key_file = &config.key_file;
    if config.credentials != CredentialsMode::Stored && !key_file.exists() {
        let problem = "no credentials are stored, so there is nothing to rotate";
        return Err(CommandFailure::Usage(format!(
            "{}: [credentials] mode: {problem}",
            path.display()
        )));
    }
    let usage = |key: &str, error: &dyn std::fmt::Display| {
        CommandFailure::Usage(format!("{}: {key}: {error}", path.display()))
    };
    // A misspelt path is no key to make, and neither is it a database.
    if !key_file.exists() {
        let problem = format!("{} does not exist; nothing was changed", key_file.display());
        return Err(usage("[credentials] key_file", &problem));
    }
    let vault =
        Vault::open_existing(key_file).map_err(|error| usage("[credentials] key_file", &error))?;
    let rotated = runtime()?.block_on(async {
        let store = Store::open_existing(&config.store.url, config.store.busy_timeout).await?;
        let rotated = rotate(&store, &vault).await;
        store.close().await;
        rotated
    });
    let rotated = rotated.map_err(|error| match error {
        RotationError::Store(
            StoreError::Unusable { .. }
            | StoreError::NoTables { .. }
            | StoreError::Older { .. }
            | StoreError::Newer { .. },
        )
        | RotationError::NothingSealed { .. } => usage("[store] url", &error),
        RotationError::Vault(VaultError::KeyFile { .. } | VaultError::WrongKeyFile { .. }) => {
            usage("[credentials] key_file", &error)
        }
        RotationError::Unreadable { .. } => CommandFailure::failed(error),
        error => CommandFailure::Failed(format!("{error}. Run it again to go on where it stopped")),
    })?;
    say(format_args!(
        "{} has a new key; {rotated} credentials are sealed with it.",
        key_file.display()
    ));
    Ok(())
}
