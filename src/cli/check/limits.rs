//! Whether the system lets mailchime do what `[limits]` allows its clients.

use super::Report;
use crate::config::Config;
use crate::net::descriptors;

/// How many files may be open, of which sockets are some.
pub(super) fn open_files(config: &Config, report: &mut Report) {
    if let Some(shortage) = descriptors::shortage(&config.limits) {
        report.warning("[limits] sessions", shortage);
    }
}
