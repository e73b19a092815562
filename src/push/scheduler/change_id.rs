//! The number of a change, by which its way can be followed in the log.

use std::fmt;

use crate::model::Change;

/// [`Change::id`] as logs show it: `#17`, the same in each line on the way of the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChangeId(pub(super) u64);

// === impl ChangeId ===

impl ChangeId {
    pub(crate) fn of(change: &Change) -> Self {
        Self(change.id)
    }
}

impl fmt::Display for ChangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}
