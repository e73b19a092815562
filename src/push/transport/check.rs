//! What `mailchime check` says of push: each transport checks its own configuration and its service.

use super::apns;
use crate::config::Config;
use crate::net::resolve::NameResolver;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckLine {
    /// Where in the configuration it is.
    pub part: String,
    /// How it is.
    pub result: CheckOutcome,
    /// What was found, and where it is not well, what to do: a sentence without its end.
    pub text: String,
}

/// How something is that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckOutcome {
    /// It is well.
    Ok,
    /// It works, and may not be what is wanted.
    Warning,
    /// It does not work.
    Failed,
}

/// Checks all transports. `report` gets each line as soon as it is known. Nothing is pushed to anybody.
pub async fn run(config: &Config, resolver: &NameResolver, mut report: impl FnMut(CheckLine)) {
    apns::check::run(config, resolver, &mut report).await;
}
