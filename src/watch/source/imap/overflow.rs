//! The backend has ended NOTIFY since there was too much to tell (RFC 5465 section 5.8), and when it is asked
//! for anew.

use std::time::Duration;

use tokio::time::Instant;

use crate::config;

/// Overflows of NOTIFY that are so far apart have nothing to do with each other.
const CALM: Duration = Duration::from_hours(1);

/// The backend may end NOTIFY when there is too much to tell, and then tells nothing at all, not even of
/// the open mailbox, until NOTIFY is set anew (RFC 5465 section 5.8).
#[derive(Debug, Default)]
pub(super) struct NotifyOverflow {
    /// Until NOTIFY is set anew, which is not done before this time.
    pub(super) until: Option<Instant>,
    /// All is to be looked at meanwhile.
    pub(super) look: bool,
    last: Option<Instant>,
    /// In a row, with no [`CALM`] in between.
    count: u32,
}

impl NotifyOverflow {
    /// Returns when NOTIFY is to be set anew.
    pub(super) fn begins(&mut self, config: &config::WatchConfig) -> Duration {
        let now = Instant::now();
        if self.last.replace(now).is_some_and(|last| now - last >= CALM) {
            self.count = 0;
        }
        let wait = match self.count {
            0 => Duration::ZERO,
            again => config.poll_interval.saturating_mul(1 << (again - 1).min(20)),
        };
        let wait = wait.min(config.idle_check);
        self.count = self.count.saturating_add(1);
        (self.until, self.look) = (Some(now + wait), true);
        wait
    }

    /// NOTIFY cannot be set anew for now.
    pub(super) fn goes_on(&mut self, config: &config::WatchConfig) {
        self.until = self.until.map(|_| Instant::now() + config.idle_check);
    }

    /// NOTIFY is set anew.
    pub(super) fn ends(&mut self) {
        (self.until, self.look) = (None, false);
    }

    pub(super) fn is_over(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() >= until)
    }
}
