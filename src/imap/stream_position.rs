//! Where in a stream a direction is: lines and literals, as far as they have come.

use memchr::memchr;

use super::literal::{Announcement, Tail};

/// Where in a stream a direction is.
#[derive(Clone, Copy, Debug)]
pub(super) enum StreamPosition {
    LineStart,
    Line {
        tail: Tail,
        /// Whether this line's end may announce a literal.
        literals: bool,
    },
    /// Behind a line that announced a synchronising literal of so many octets, which the backend may
    /// want or not.
    Announced(u64),
    /// Inside a literal, with so many octets to come.
    Literal(u64),
}

pub(super) enum LineEnd {
    /// The input ended first.
    None,
    Plain,
    Announces(Announcement),
}

impl StreamPosition {
    pub(super) fn line(literals: bool) -> Self {
        Self::Line { tail: Tail::default(), literals }
    }

    pub(super) fn literal(length: u64) -> Self {
        if length == 0 { Self::line(true) } else { Self::Literal(length) }
    }

    /// Follows the stream to the end of this literal or line; returns the bytes it has there. After
    /// a line without announcement the stream is at a line start.
    pub(super) fn follow(&mut self, input: &[u8]) -> (usize, LineEnd) {
        match self {
            Self::LineStart | Self::Announced(_) => (0, LineEnd::None),
            Self::Literal(left) => {
                let length = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *self = Self::literal(*left - length as u64);
                (length, LineEnd::None)
            }
            Self::Line { tail, literals } => {
                let Some(feed) = memchr(b'\n', input) else {
                    tail.push(input);
                    return (input.len(), LineEnd::None);
                };
                let announced = tail.announcement(&input[..feed]).filter(|_| *literals);
                *self = Self::LineStart;
                (feed + 1, announced.map_or(LineEnd::Plain, LineEnd::Announces))
            }
        }
    }
}
