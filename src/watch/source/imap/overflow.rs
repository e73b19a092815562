//! The backend has ended NOTIFY since there was too much to tell (RFC 5465 section 5.8), and when it is asked
//! for anew.

use std::time::Duration;

use tokio::time::Instant;

use crate::config;

/// Overflows of NOTIFY that are so far apart have nothing to do with each other.
const CALM: Duration = Duration::from_hours(1);

/// The backend may end NOTIFY when there is too much to tell, and then tells nothing at all, not even of
/// the open mailbox, until NOTIFY is set anew (RFC 5465 section 5.8). Most never do, so this takes room from the first
/// time on.
#[derive(Debug, Default)]
pub(super) struct NotifyOverflow(Option<Box<Overflows>>);

/// How often the backend has ended NOTIFY on one connection, and what follows.
#[derive(Debug, Default)]
struct Overflows {
    /// Until NOTIFY is set anew, which is not done before this time.
    until: Option<Instant>,
    /// All is to be looked at meanwhile.
    look: bool,
    last: Option<Instant>,
    /// In a row, with no [`CALM`] in between.
    count: u32,
}

impl NotifyOverflow {
    /// Returns when NOTIFY is to be set anew.
    pub(super) fn begins(&mut self, config: &config::WatchConfig) -> Duration {
        let overflows = self.0.get_or_insert_default();
        let now = Instant::now();
        if overflows.last.replace(now).is_some_and(|last| now - last >= CALM) {
            overflows.count = 0;
        }
        let wait = match overflows.count {
            0 => Duration::ZERO,
            again => config.poll_interval.saturating_mul(1 << (again - 1).min(20)),
        };
        let wait = wait.min(config.idle_check);
        overflows.count = overflows.count.saturating_add(1);
        (overflows.until, overflows.look) = (Some(now + wait), true);
        wait
    }

    /// NOTIFY cannot be set anew for now.
    pub(super) fn goes_on(&mut self, config: &config::WatchConfig) {
        if let Some(until) = self.0.as_mut().and_then(|overflows| overflows.until.as_mut()) {
            *until = Instant::now() + config.idle_check;
        }
    }

    /// NOTIFY is set anew.
    pub(super) fn ends(&mut self) {
        if let Some(overflows) = &mut self.0 {
            (overflows.until, overflows.look) = (None, false);
        }
    }

    /// When NOTIFY is set anew, where it has ended; not before.
    pub(super) fn until(&self) -> Option<Instant> {
        self.0.as_ref().and_then(|overflows| overflows.until)
    }

    /// Whether all is to be looked at meanwhile. It says so once.
    pub(super) fn take_look(&mut self) -> bool {
        self.0.as_mut().is_some_and(|overflows| std::mem::take(&mut overflows.look))
    }

    pub(super) fn is_over(&self) -> bool {
        self.until().is_none_or(|until| Instant::now() >= until)
    }
}
