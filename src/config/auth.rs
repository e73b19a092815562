//! `[auth]`: how clients may prove who they are.

use serde::Deserialize;

/// `[auth]`: how clients may prove who they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AuthConfig {
    /// Whether mechanisms that hide the password pass.
    pub relay: RelayedLogins,
}

/// When mechanisms of the backend that hide the password are relayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "lowercase")]
pub enum RelayedLogins {
    /// In master mode only, where nobody's password is needed for watching.
    #[default]
    Master,
    /// They do.
    Always,
    /// They do not.
    Never,
}

table!(RawAuth {
    relay: Option<RelayedLogins>,
});
