//! One whole command, lines and literals, put together from pieces within a bound.

use memchr::memchr;

use super::literal::{Announcement, Tail};

/// Puts a command together. Its buffer never holds more than `limit` bytes.
///
/// ```text
///            announcement            all of it
///   Line ────────────────▶ Literal ───────────▶ Line ──▶ … ──▶ Whole
///     │ limit                 │ limit
///     ▼                       ▼
///   Refused, or the same without keeping any byte ──▶ TooLong
/// ```
#[derive(Debug)]
pub struct Collector {
    kept: Vec<u8>,
    limit: usize,
    tail: Tail,
    /// Octets of the current literal still to come.
    literal: u64,
    /// Whether a line may announce a literal; false for the lines of AUTHENTICATE.
    literals: bool,
    too_long: bool,
}

/// What a [`Collector`] knows after some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The command goes on.
    More,
    /// The command goes on, and its sender waits for a continuation (`+`) first.
    Continue,
    /// The command is whole: [`Collector::take`] gives it.
    Whole,
    /// It would be longer than the limit with the literal that it announces, and waits for a
    /// continuation that it must not get; [`Collector::take`] gives what it said.
    Refused,
    /// It ended, or waits likewise, and was longer than the limit already; [`Collector::take`] gives
    /// its first bytes.
    TooLong,
}

impl Collector {
    /// For commands of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            kept: Vec::new(),
            limit,
            tail: Tail::default(),
            literal: 0,
            literals: true,
            too_long: false,
        }
    }

    /// The next command is a single line in which nothing announces a literal.
    pub fn expect_plain_line(&mut self) {
        self.literals = false;
    }

    /// Whether the command has grown over the limit, before its end is known.
    pub fn is_too_long(&self) -> bool {
        self.too_long
    }

    /// Whether no byte of a command is at hand.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Memory that is held, in bytes.
    pub fn held(&self) -> usize {
        self.kept.capacity()
    }

    /// Takes in bytes of the command; returns how many of `input` belong to it, and what is known.
    pub fn push(&mut self, input: &[u8]) -> (usize, Progress) {
        let mut at = 0;
        loop {
            if self.literal > 0 {
                let take = usize::try_from(self.literal).map_or(usize::MAX, |left| left);
                let take = take.min(input.len() - at);
                self.keep(&input[at..at + take]);
                self.literal -= take as u64;
                at += take;
                if self.literal > 0 {
                    return (at, Progress::More);
                }
            }
            let rest = &input[at..];
            let Some(feed) = memchr(b'\n', rest) else {
                self.tail.push(rest);
                self.keep(rest);
                return (input.len(), Progress::More);
            };
            let announced = self.tail.announcement(&rest[..feed]).filter(|_| self.literals);
            self.tail = Tail::default();
            self.keep(&rest[..=feed]);
            at += feed + 1;
            let Some(Announcement { length, synchronising }) = announced else {
                return (at, if self.too_long { Progress::TooLong } else { Progress::Whole });
            };
            let room = self.limit - self.kept.len();
            let was_too_long = self.too_long;
            self.too_long |= length > room as u64;
            if self.too_long && synchronising {
                // Nothing of it has been sent: a refusal ends the command here.
                return (at, if was_too_long { Progress::TooLong } else { Progress::Refused });
            }
            self.literal = length;
            if synchronising {
                return (at, Progress::Continue);
            }
        }
    }

    /// The command that was collected, and a fresh start for the next.
    pub fn take(&mut self) -> Vec<u8> {
        let limit = self.limit;
        std::mem::replace(self, Self::new(limit)).kept
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = self.limit - self.kept.len();
        if bytes.len() > room {
            self.too_long = true;
        }
        let bytes = &bytes[..bytes.len().min(room)];
        let needed = self.kept.len() + bytes.len();
        if needed > self.kept.capacity() {
            // Twice as much each time, so that the work is linear, but no more than may ever be needed.
            let capacity = needed.max((2 * self.kept.capacity()).min(self.limit));
            self.kept.reserve_exact(capacity - self.kept.len());
        }
        self.kept.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_command_ends_after_its_last_literal() {
        let mut collector = Collector::new(100);
        let input = b"a LOGIN {5}\r\nal\nce {2+}\r\n\r\n\r\nb NOOP\r\n";
        assert_eq!(collector.push(input), (13, Progress::Continue));
        assert_eq!(collector.push(&input[13..]), (16, Progress::Whole));
        assert_eq!(collector.take(), &input[..29]);
        assert_eq!(collector.push(&input[29..]), (8, Progress::Whole));
        assert_eq!(collector.take(), b"b NOOP\r\n");
    }

    #[test]
    fn a_literal_of_no_octets_has_a_rest_of_line() {
        let mut collector = Collector::new(100);
        assert_eq!(collector.push(b"a X {0+}\r\n y\r\n"), (14, Progress::Whole));
    }

    #[test]
    fn too_long_is_skipped_to_its_end_without_being_kept() {
        let mut collector = Collector::new(16);
        let line = [b'x'; 1000];
        for _ in 0..1000 {
            assert_eq!(collector.push(&line), (1000, Progress::More));
        }
        assert!(collector.is_too_long());
        assert!(collector.held() <= 16);
        assert_eq!(collector.push(b"\r\nb NOOP\r\n"), (2, Progress::TooLong));
        assert_eq!(collector.take().len(), 16);
        assert_eq!(collector.push(b"b NOOP\r\n"), (8, Progress::Whole));
    }

    #[test]
    fn a_literal_over_the_limit_is_refused_or_skipped() {
        let mut collector = Collector::new(64);
        assert_eq!(collector.push(b"a LOGIN {4294967295}\r\n"), (22, Progress::Refused));
        collector.take();
        assert_eq!(collector.push(b"a LOGIN {99+}\r\n"), (15, Progress::More));
        assert_eq!(collector.push(&[b'\n'; 99]), (99, Progress::More));
        assert_eq!(collector.push(b"\r\nx"), (2, Progress::TooLong));
        assert_eq!(collector.take(), b"a LOGIN {99+}\r\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n");
    }

    #[test]
    fn an_authentication_line_announces_nothing() {
        let mut collector = Collector::new(64);
        collector.expect_plain_line();
        assert_eq!(collector.push(b"{5}\r\n"), (5, Progress::Whole));
        collector.take();
        assert_eq!(collector.push(b"a X {5}\r\n").1, Progress::Continue);
    }

    proptest! {
        #[test]
        fn pieces_say_what_the_whole_says(
            input in "(a|b|\r\n|\\{[0-9]{1,2}\\+\\}\r\n){0,40}",
            cuts in prop::collection::vec(0usize..200, 0..8),
        ) {
            let input = input.as_bytes();
            let whole = drive(&[input]);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(input.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut last = 0;
            for cut in cuts.into_iter().chain([input.len()]) {
                pieces.push(&input[last..cut]);
                last = cut;
            }
            prop_assert_eq!(drive(&pieces), whole);
        }
    }

    fn drive(pieces: &[&[u8]]) -> Vec<(Vec<u8>, Progress)> {
        let mut collector = Collector::new(40);
        let mut commands = Vec::new();
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                let (used, progress) = collector.push(rest);
                rest = &rest[used..];
                if matches!(progress, Progress::Whole | Progress::TooLong | Progress::Refused) {
                    commands.push((collector.take(), progress));
                }
            }
        }
        commands
    }
}
