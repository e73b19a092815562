//! `mailchime store copy`: from one kind of database to another.

use std::path::Path;
use std::time::Duration;

use super::{CommandFailure, not_empty, runtime, say};
use crate::cli::logging;
use crate::config::{Config, DatabaseUrl, LogFormat, NodeConfig, StoreConfig};
use crate::store::{CopyError, StoreError, copy};

/// What `mailchime store copy` takes.
#[derive(Debug, clap::Args)]
pub(super) struct CopyOptions {
    /// The database to read: a URL as in the configuration, or a configuration that names it
    #[arg(value_parser = not_empty())]
    from: String,
    /// The empty database to fill, in the same way
    #[arg(value_parser = not_empty())]
    to: String,
}

pub(super) fn run(options: &CopyOptions) -> Result<(), CommandFailure> {
    // Rows that cannot be read are named there.
    logging::init(LogFormat::Text, "warn").map_err(CommandFailure::failed)?;
    let ((from, takeover), (to, _)) = (database(&options.from)?, database(&options.to)?);
    let patience = StoreConfig::default().busy_timeout;
    let copied =
        runtime()?.block_on(copy(&from, &to, patience, takeover)).map_err(|error| match error {
            CopyError::Store(
                StoreError::Unusable { .. }
                | StoreError::NoTables { .. }
                | StoreError::Older { .. }
                | StoreError::Newer { .. },
            )
            | CopyError::NotEmpty { .. } => CommandFailure::Usage(error.to_string()),
            error => CommandFailure::failed(error),
        })?;
    say(format_args!("copied from {from} to {to}:"));
    for rows in copied {
        let note = match rows.table {
            "account" => ", each with the password that is kept of it",
            "credential" => ", further passwords of accounts",
            _ => "",
        };
        say(format_args!("{:>9} {}{note}", rows.rows, rows.table));
    }
    say("Write its url to [store], keep the key file, and start mailchime.");
    Ok(())
}

/// The database of a URL without a password, or of a configuration; and the longest that its nodes may have as
/// `[node] takeover`.
fn database(given: &str) -> Result<(DatabaseUrl, Duration), CommandFailure> {
    if !given.contains("://") {
        let config = Config::load(Path::new(given));
        let config = config.map_err(|error| CommandFailure::Usage(error.to_string()))?;
        return Ok((config.store.url, config.node.takeover));
    }
    let url: DatabaseUrl = given.parse().map_err(CommandFailure::Usage)?;
    if url.holds_password() {
        return Err(CommandFailure::Usage(format!(
            "{url}: others on this machine can read a password in a command; write the url to a configuration \
             that only you can read, and name its file"
        )));
    }
    Ok((url, NodeConfig::LONGEST_TAKEOVER))
}
