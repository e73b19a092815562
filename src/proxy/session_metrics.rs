//! What of a session goes into the metrics.
//!
//! Bytes are counted in the session itself, and what has come since the last time is added here
//! whenever the session has nothing more to do.

use crate::imap::peek::{Status, Verb};
use crate::metrics::{self, Answer, Direction, Form, Metrics};

/// What of a session was counted already.
#[derive(Debug, Default)]
pub(super) struct CountedBytes {
    relayed: [u64; 2],
    compressed: [u64; 4],
}

impl CountedBytes {
    /// Bytes that went from the client to the backend, and the other way, since the beginning.
    pub(super) fn relayed(&mut self, metrics: &Metrics, relayed: [u64; 2]) {
        let fresh = fresh(&mut self.relayed, relayed);
        for (direction, bytes) in [Direction::ToBackend, Direction::ToClient].into_iter().zip(fresh)
        {
            if bytes > 0 {
                metrics.relayed.of(direction).inc_by(bytes);
            }
        }
    }

    /// Plain and compressed bytes from the client, then to it, since the beginning.
    pub(super) fn compressed(&mut self, metrics: &Metrics, totals: [u64; 4]) {
        let labels = [
            (Direction::ToBackend, Form::Plain),
            (Direction::ToBackend, Form::Compressed),
            (Direction::ToClient, Form::Plain),
            (Direction::ToClient, Form::Compressed),
        ];
        for (labels, bytes) in labels.into_iter().zip(fresh(&mut self.compressed, totals)) {
            metrics.compression.of(labels).inc_by(bytes);
        }
    }
}

/// What has come since the last time. A connection that was replaced begins at zero again.
fn fresh<const N: usize>(counted: &mut [u64; N], now: [u64; N]) -> [u64; N] {
    let before = std::mem::replace(counted, now);
    std::array::from_fn(|index| now[index].saturating_sub(before[index]))
}

/// Counts commands that mailchime answered.
pub(super) fn answered(metrics: &Metrics, answered: impl IntoIterator<Item = (Verb, Status)>) {
    for (verb, status) in answered {
        let verb = match verb {
            Verb::Login | Verb::Authenticate => metrics::Verb::Login,
            Verb::Register => metrics::Verb::Register,
            Verb::Compress => metrics::Verb::Compress,
            Verb::StartTls => metrics::Verb::StartTls,
            _ => metrics::Verb::Other,
        };
        let answer = match status {
            Status::Ok => Answer::Ok,
            Status::No => Answer::No,
            _ => Answer::Bad,
        };
        metrics.commands.of((verb, answer)).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_added_once() {
        let metrics = Metrics::default();
        let mut counted = CountedBytes::default();
        for relayed in [[5, 0], [5, 0], [7, 100], [0, 0], [1, 1]] {
            counted.relayed(&metrics, relayed);
        }
        assert_eq!(metrics.relayed.of(Direction::ToBackend).get(), 8);
        assert_eq!(metrics.relayed.of(Direction::ToClient).get(), 101);
        counted.compressed(&metrics, [10, 5, 0, 0]);
        counted.compressed(&metrics, [10, 5, 60, 7]);
        assert_eq!(metrics.compression.of((Direction::ToBackend, Form::Compressed)).get(), 5);
        assert_eq!(metrics.compression.of((Direction::ToClient, Form::Plain)).get(), 60);
    }
}
