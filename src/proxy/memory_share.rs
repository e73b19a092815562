//! How much memory all sessions together hold.

use std::sync::Arc;

use crate::metrics::{Metrics, Phase};
use crate::net::counters::Counter;

/// What one session adds to what all of them keep; nothing any more when it is dropped.
#[derive(Debug)]
pub(super) struct MemoryShare {
    metrics: Arc<Metrics>,
    phase: Phase,
    bytes: usize,
}

impl MemoryShare {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, phase: Phase::Login, bytes: 0 }
    }

    /// From now on it keeps so many bytes, in this phase. Counts a hit where all sessions in that
    /// phase come to more than `most` by it; whether it is time to say so.
    pub(super) fn set(&mut self, phase: Phase, bytes: usize, most: usize, hits: &Counter) -> bool {
        if (phase, bytes) == (self.phase, self.bytes) {
            return false;
        }
        let size = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
        let own = size(self.bytes);
        self.metrics.kept.of(self.phase).dec_by(own);
        let others = self.metrics.kept.of(phase).inc_by(size(bytes));
        let before = others + if phase == self.phase { own } else { 0 };
        (self.phase, self.bytes) = (phase, bytes);
        before <= size(most) && others + size(bytes) > size(most) && hits.hit()
    }

    /// Bytes that all sessions in this phase keep together.
    pub(super) fn all(&self, phase: Phase) -> usize {
        usize::try_from(self.metrics.kept.of(phase).get()).unwrap_or(0)
    }
}

impl Drop for MemoryShare {
    fn drop(&mut self) {
        let size = i64::try_from(self.bytes).unwrap_or(i64::MAX);
        self.metrics.kept.of(self.phase).dec_by(size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sessions_keep_is_summed_and_forgotten_with_them() {
        let metrics = Arc::new(Metrics::default());
        let hits = Counter::default();
        let of = |phase| metrics.kept.of(phase).get();
        let mut one = MemoryShare::new(Arc::clone(&metrics));
        let mut other = MemoryShare::new(Arc::clone(&metrics));
        assert!(!one.set(Phase::Login, 60, 100, &hits));
        assert!(other.set(Phase::Login, 60, 100, &hits), "one log line");
        other.set(Phase::Login, 70, 100, &hits);
        assert_eq!((of(Phase::Login), of(Phase::Session), hits.hits()), (130, 0, 1));
        assert_eq!((one.all(Phase::Login), other.all(Phase::Session)), (130, 0));
        one.set(Phase::Session, 50, 100, &hits);
        assert_eq!((of(Phase::Login), of(Phase::Session)), (70, 50));
        drop((one, other));
        assert_eq!((of(Phase::Login), of(Phase::Session)), (0, 0));
    }
}
