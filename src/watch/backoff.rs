//! Pauses between tries that grow, with jitter.

use std::time::Duration;

/// Doubles from `min` to `max`; each pause is between half and the whole of its step.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    step: Duration,
}

impl Backoff {
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, step: min }
    }

    /// The next pause; `jitter` is in 0..1.
    pub(super) fn next(&mut self, jitter: f64) -> Duration {
        let pause = self.step.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
        self.step = (self.step * 2).min(self.max);
        pause
    }

    pub(super) fn reset(&mut self) {
        self.step = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_the_longest_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        let pauses: Vec<_> = (0..5).map(|_| backoff.next(1.0).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 5, 5]);
        assert_eq!(backoff.next(0.0), Duration::from_millis(2500));
        backoff.reset();
        assert_eq!(backoff.next(1.0).as_secs(), 1);
    }
}
