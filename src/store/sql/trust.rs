//! Whether connections to a server of a database may still be used.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

/// Which connections to a server may be used. Clones share it.
#[derive(Clone, Debug, Default)]
pub(in crate::store) struct ConnectionTrust(Arc<Mutex<ConnectionTrustState>>);

#[derive(Debug, Default)]
struct ConnectionTrustState {
    /// A connection was found to be broken then. Those that are as old lead to the same server.
    distrusted: Option<Instant>,
    /// The last one that was looked at led to a server that is read-only.
    read_only: bool,
}

impl ConnectionTrust {
    /// Whether a connection of this age may be used.
    pub(in crate::store) fn has(&self, age: Duration) -> bool {
        self.seen().distrusted.is_none_or(|since| age < since.elapsed())
    }

    pub(super) fn distrust(&self) {
        self.seen().distrusted = Some(Instant::now());
    }

    /// Says it when that changes.
    pub(super) fn is_read_only(&self, is: bool) {
        let was = std::mem::replace(&mut self.seen().read_only, is);
        match (was, is) {
            (false, true) => tracing::error!(
                target: "mailchime::store::read_only",
                "the database server is read-only; mailchime can write nothing until the address \
                 leads to the primary"
            ),
            (true, false) => tracing::info!(
                target: "mailchime::store::writable_again",
                "the database is writable again"
            ),
            _ => {}
        }
    }

    fn seen(&self) -> MutexGuard<'_, ConnectionTrustState> {
        self.0.lock()
    }
}
