//! What a client of Web Push has asked for: the options of its subscription.

use serde::{Deserialize, Serialize};
use serde_json::json;

/// What a client has asked for besides. Stored as JSON beside what the API keeps there.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct WebPushOptions {
    /// It hears of quiet changes, too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) quiet: bool,
}

impl WebPushOptions {
    /// What cannot be read counts as not asked for.
    pub(super) fn from_json(options: &str) -> Self {
        serde_json::from_str(options).unwrap_or_default()
    }

    pub(super) fn to_json(&self) -> String {
        json!(self).to_string()
    }
}
