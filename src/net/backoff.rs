//! How long to leave alone what failed. Pure: chance is an argument.

use std::time::Duration;

/// A wait that doubles with each failure in a row, up to a cap. Half of it is chance, so that many
/// who failed together do not come back together.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
}

impl Backoff {
    /// Waits from `first` to `most`.
    pub const fn new(first: Duration, most: Duration) -> Self {
        Self { first, most }
    }

    /// The wait after `failures` in a row (1 or more); `chance` is 0 to 1.
    pub fn wait(self, failures: u32, chance: f64) -> Duration {
        let step = self.first.saturating_mul(1 << failures.saturating_sub(1).min(20));
        step.min(self.most).mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_to_a_cap_and_is_never_nothing() {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        let seconds = |failures, chance| backoff.wait(failures, chance).as_secs_f64();
        assert_eq!((seconds(1, 0.0), seconds(1, 1.0)), (0.5, 1.0));
        assert_eq!((seconds(2, 0.0), seconds(2, 1.0)), (1.0, 2.0));
        assert_eq!((seconds(9, 0.0), seconds(u32::MAX, 1.0)), (15.0, 30.0));
    }
}
