//! What is wrong with a configuration.

use std::path::PathBuf;

/// What is wrong with a configuration. `Display` is the one message that its author needs: file,
/// key, what is wrong, and what is allowed or to be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {}{problem}", file.display(), key.as_deref().map(|key| format!("{key}: ")).unwrap_or_default())]
pub struct ConfigError {
    /// The configuration file, as it was named.
    pub file: PathBuf,
    /// As `[push] quiet_delay`; `None` when no single key is at fault.
    pub key: Option<String>,
    /// What is wrong, and what is allowed.
    pub problem: String,
}
