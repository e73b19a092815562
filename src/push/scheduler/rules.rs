//! What of the configuration the scheduler goes by.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::schedule::Tenant;
use crate::config::Events;
use crate::model::{Account, ChangeKind};

/// What of the configuration the rules need; see [`crate::config::PushConfig`].
#[derive(Clone, Debug)]
pub(in super::super) struct Rules {
    pub(in super::super) quiet_delay: Duration,
    pub(in super::super) min_interval: Duration,
    pub(in super::super) max_delay: Duration,
    /// Pushes a second; 0 is no limit.
    pub(in super::super) per_domain: u32,
    pub(in super::super) per_backend: u32,
    pub(in super::super) events: Events,
    /// Chance, 0 to 1, for the jitter of waits.
    pub(in super::super) chance: fn() -> f64,
    /// The name of an account's backend.
    pub(in super::super) backend_of: BackendOf,
}

/// Tells the name of an account's backend.
#[derive(Clone)]
pub struct BackendOf(Arc<NameOf>);

type NameOf = dyn Fn(&Account) -> Arc<str> + Send + Sync;

impl BackendOf {
    /// Names the backends of accounts by `name`.
    pub fn new(name: impl Fn(&Account) -> Arc<str> + Send + Sync + 'static) -> Self {
        Self(Arc::new(name))
    }
}

impl fmt::Debug for BackendOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BackendOf")
    }
}

// === impl Rules ===

impl Rules {
    /// Whether any subscription gets a push for a change of this kind.
    pub(super) fn tells(&self, kind: ChangeKind) -> bool {
        match kind {
            ChangeKind::NewMail => self.events.new_mail,
            ChangeKind::Quiet => self.events.quiet,
        }
    }

    pub(super) fn share(&self, account: &Account) -> Tenant {
        let domain = account.domain().unwrap_or_default().into();
        Tenant { backend: (self.backend_of.0)(account), domain }
    }
}
