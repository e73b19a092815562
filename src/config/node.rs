//! `[node]`: this process among those that share its database.

use std::time::Duration;

use super::check::{Check, CheckResult, HOUR, SECOND};

/// `[node]`: this process among those that share its database.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeConfig {
    /// Unlike that of any other; `None`: made of the machine's name and the first listener's port.
    pub name: Option<String>,
    /// A node that gives no sign of life for this time is dead.
    pub takeover: Duration,
}

impl NodeConfig {
    /// The longest `takeover`.
    pub const LONGEST_TAKEOVER: Duration = HOUR;
}

table!(RawNode {
    name: Option<String>,
    takeover: Option<String>,
});

impl Default for NodeConfig {
    fn default() -> Self {
        Self { name: None, takeover: Duration::from_secs(30) }
    }
}

impl Check<'_> {
    pub(super) fn node(&self, raw: RawNode) -> CheckResult<NodeConfig> {
        let mut node = NodeConfig { name: raw.name, ..NodeConfig::default() };
        if let Some(name) = &node.name
            && (name.is_empty() || name.len() > 64 || !name.bytes().all(|b| b.is_ascii_graphic()))
        {
            let allowed = "allowed are 1 to 64 characters of ASCII without blanks";
            return Err(self.refusal("[node] name", format!("{name:?} is no name; {allowed}")));
        }
        self.duration(
            "[node] takeover",
            raw.takeover,
            3 * SECOND..=NodeConfig::LONGEST_TAKEOVER,
            &mut node.takeover,
        )?;
        Ok(node)
    }
}
