//! What a session keeps in memory: bytes that were read and not dealt with, and how much of all that
//! is kept by all sessions together.

use std::sync::Arc;

use crate::metrics::{Metrics, Phase};
use crate::net::counters::Counter;

/// Bytes in their order, taken from the front as they are dealt with. What it costs is linear in the
/// bytes, in however small parts they come and go; empty it holds no memory.
#[derive(Debug, Default)]
pub(super) struct ReadBuffer {
    bytes: Vec<u8>,
    /// How many of `bytes` are dealt with.
    from: usize,
}

impl ReadBuffer {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.from..]
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.from
    }

    /// Memory that is held, in bytes.
    pub(super) fn held(&self) -> usize {
        self.bytes.capacity()
    }

    pub(super) fn append(&mut self, bytes: &[u8]) {
        // No more is moved than was dealt with since the last time.
        if self.from > self.len() {
            self.bytes.drain(..self.from);
            self.from = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The first `length` bytes are dealt with.
    pub(super) fn take(&mut self, length: usize) {
        self.from += length;
        if self.from >= self.bytes.len() {
            *self = Self::default();
        }
    }
}

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

    /// Whether all sessions in this phase together keep more than `most`.
    pub(super) fn is_over(&self, phase: Phase, most: usize) -> bool {
        usize::try_from(self.metrics.kept.of(phase).get()).is_ok_and(|kept| kept > most)
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
    fn bytes_come_out_as_they_went_in() {
        let (mut kept, mut taken) = (ReadBuffer::default(), Vec::new());
        for round in 0..100_u8 {
            kept.append(&[round; 7]);
            let part = kept.len().min(usize::from(round % 12));
            taken.extend_from_slice(&kept.as_slice()[..part]);
            kept.take(part);
        }
        taken.extend_from_slice(kept.as_slice());
        kept.take(kept.len());
        let all: Vec<u8> = (0..100).flat_map(|round| [round; 7]).collect();
        assert!(taken == all && kept.is_empty() && kept.held() == 0);
    }

    #[test]
    fn what_is_taken_and_added_byte_by_byte_is_not_moved_each_time() {
        let mut kept = ReadBuffer::default();
        kept.append(&[0; 64 * 1024]);
        let mut moved = 0;
        for _ in 0..64 * 1024 {
            kept.take(1);
            if kept.from > kept.len() {
                moved += kept.len();
            }
            kept.append(&[0]);
        }
        assert!(moved <= 64 * 1024, "{moved}");
        assert!(kept.held() <= 256 * 1024, "{}", kept.held());
    }

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
        assert!(one.is_over(Phase::Login, 100) && !one.is_over(Phase::Session, 100));
        one.set(Phase::Session, 50, 100, &hits);
        assert_eq!((of(Phase::Login), of(Phase::Session)), (70, 50));
        drop((one, other));
        assert_eq!((of(Phase::Login), of(Phase::Session)), (0, 0));
    }
}
