//! How many events a source may send.

use std::time::Instant;

/// What a source has left: so many events a second, and ten times as many at once.
#[derive(Debug)]
pub(super) struct SourcePace {
    per_second: f64,
    /// Below zero after a request with more events than were left.
    left: f64,
    at: Instant,
}

/// Seconds' worth that may come at once.
const BURST: f64 = 10.0;

impl SourcePace {
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, left: per_second * BURST, at: now }
    }

    /// Takes so many events, if there is any left.
    pub(super) fn take(&mut self, events: usize, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + passed * self.per_second).min(self.per_second * BURST);
        if self.left <= 0.0 {
            return false;
        }
        self.left -= f64::from(u32::try_from(events).unwrap_or(u32::MAX));
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_is_taken_and_then_so_many_a_second() {
        let began = Instant::now();
        let mut pace = SourcePace::new(2, began);
        let taken = |pace: &mut SourcePace, now| (0..100).filter(|_| pace.take(1, now)).count();
        assert_eq!(taken(&mut pace, began), 20);
        assert_eq!(taken(&mut pace, began + Duration::from_secs(3)), 6);
        // However long nothing came.
        let later = began + Duration::from_secs(3600);
        assert_eq!(taken(&mut pace, later), 20);
        // One request with many events is taken whole, and the next one waits for it.
        let later = later + Duration::from_secs(1);
        assert!(pace.take(22, later) && !pace.take(1, later));
        assert!(!pace.take(1, later + Duration::from_secs(10)));
        assert!(pace.take(1, later + Duration::from_secs(11)));
    }
}
