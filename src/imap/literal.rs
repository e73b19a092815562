//! Literal announcements (RFC 9051 section 4.3, RFC 7888) and the ends of whole responses.

use memchr::{memchr, memrchr};

/// `{n}`, `{n+}`, `~{n}` or `~{n+}` at the end of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Octets that follow the line.
    pub length: u64,
    /// Whether the sender waits for a continuation before it sends them.
    pub synchronising: bool,
}

impl Announcement {
    /// The announcement at the end of `line`, which may still have its CR LF or bare LF.
    ///
    /// A number beyond 64 bits counts as the largest: no peer comes to the end of either.
    pub fn at_end_of(line: &[u8]) -> Option<Self> {
        Tail::default().announcement(line.strip_suffix(b"\n").unwrap_or(line))
    }
}

/// What the end of a line that arrives in pieces announces, as far as it has come. However long a
/// number is (zeros may stand ahead of it), nothing of the line is kept.
#[derive(Clone, Copy, Debug, Default)]
pub enum Tail {
    /// No part of an announcement.
    #[default]
    Text,
    /// Behind `{`, and the number so far.
    Open(Option<u64>),
    /// Behind the `+`.
    Plus(u64),
    /// Behind the `}`.
    Closed(Announcement),
    /// Behind the CR.
    Return(Announcement),
}

impl Tail {
    /// Takes in `piece`, a part of the line without its line feed.
    pub fn push(&mut self, piece: &[u8]) {
        let rest = match memrchr(b'{', piece) {
            Some(brace) => {
                *self = Self::Open(None);
                &piece[brace + 1..]
            }
            None => piece,
        };
        for byte in rest {
            if let Self::Text = self {
                return;
            }
            *self = self.then(*byte);
        }
    }

    /// The announcement at the end of the line whose last piece is `piece`.
    pub fn announcement(mut self, piece: &[u8]) -> Option<Announcement> {
        // Most lines end in text, and need no look at the rest of them.
        let text = piece.strip_suffix(b"\r").unwrap_or(piece);
        if text.last().is_some_and(|last| *last != b'}') {
            return None;
        }
        self.push(piece);
        match self {
            Self::Closed(announcement) | Self::Return(announcement) => Some(announcement),
            Self::Text | Self::Open(_) | Self::Plus(_) => None,
        }
    }

    /// Whether a synchronising literal is announced if the line ends here.
    pub fn waits(self) -> bool {
        matches!(self, Self::Closed(end) | Self::Return(end) if end.synchronising)
    }

    /// Behind one more byte, which is no `{`.
    fn then(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::Open(number), b'0'..=b'9') => {
                let number = number.unwrap_or(0).saturating_mul(10);
                Self::Open(Some(number.saturating_add(u64::from(byte - b'0'))))
            }
            (Self::Open(Some(length)), b'+') => Self::Plus(length),
            (Self::Open(Some(length)), b'}') => {
                Self::Closed(Announcement { length, synchronising: true })
            }
            (Self::Plus(length), b'}') => {
                Self::Closed(Announcement { length, synchronising: false })
            }
            (Self::Closed(announcement), b'\r') => Self::Return(announcement),
            _ => Self::Text,
        }
    }
}

/// Where the response that starts `input` ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseEnd {
    /// After this many bytes, line end included.
    At(usize),
    /// Not in `input`.
    Beyond,
}

/// The end of the line that starts `input`, without regard to literals.
pub fn end_of_line(input: &[u8]) -> ResponseEnd {
    Scan::default().end_of_line(input)
}

/// The end of the response that starts `input`, literals included.
pub fn end_of_response(input: &[u8]) -> ResponseEnd {
    Scan::default().end_of_response(input)
}

/// Looks for the end of what comes in pieces. It is asked again and again with the same bytes and
/// more behind them, and looks at none twice, however small the pieces are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scan {
    /// Where the line begins that is under way; inside a literal, where the next one will.
    line: usize,
    /// There is no line feed between its beginning and here.
    seen: usize,
}

impl Scan {
    /// The end of the line that starts `input`, as [`end_of_line`]. Where that is found the scan is
    /// as new.
    pub fn end_of_line(&mut self, input: &[u8]) -> ResponseEnd {
        match memchr(b'\n', &input[self.seen.min(input.len())..]) {
            Some(feed) => ResponseEnd::At(std::mem::take(self).seen + feed + 1),
            None => {
                self.seen = input.len();
                ResponseEnd::Beyond
            }
        }
    }

    /// The end of the response that starts `input`, as [`end_of_response`]. Where that is found the
    /// scan is as new.
    pub fn end_of_response(&mut self, input: &[u8]) -> ResponseEnd {
        loop {
            let from = self.line.max(self.seen);
            if from > input.len() {
                return ResponseEnd::Beyond;
            }
            let Some(feed) = memchr(b'\n', &input[from..]) else {
                self.seen = input.len();
                return ResponseEnd::Beyond;
            };
            let line_end = from + feed + 1;
            match Announcement::at_end_of(&input[self.line..line_end]) {
                None => {
                    *self = Self::default();
                    return ResponseEnd::At(line_end);
                }
                Some(Announcement { length, .. }) => {
                    let length = usize::try_from(length).unwrap_or(usize::MAX);
                    self.line = line_end.saturating_add(length);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_and_what_only_looks_like_one() {
        let at = |length, synchronising| Some(Announcement { length, synchronising });
        for (line, expected) in [
            (&b"a LOGIN {5}\r\n"[..], at(5, true)),
            (b"a LOGIN {5+}\r\n", at(5, false)),
            (b"a APPEND x ~{5}\r\n", at(5, true)),
            (b"a APPEND x ~{007+}\n", at(7, false)),
            (b"{0}", at(0, true)),
            (b"{18446744073709551615}", at(u64::MAX, true)),
            (b"{18446744073709551616}", at(u64::MAX, true)),
            (b"{99999999999999999999+}\r\n", at(u64::MAX, false)),
            (b"{}\r\n", None),
            (b"{+}\r\n", None),
            (b"{-1}\r\n", None),
            (b"{5-}\r\n", None),
            (b"{5} \r\n", None),
            (b"{5}\r\r\n", None),
            (b"{5++}\r\n", None),
            (b"{{5}\r\n", at(5, true)),
            (b"5}\r\n", None),
            (b"", None),
        ] {
            assert_eq!(Announcement::at_end_of(line), expected, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn a_tail_of_any_pieces_finds_what_the_whole_line_has() {
        for line in [
            &b"a1 APPEND INBOX (\\Seen) ~{12345678901234567890+}\r"[..],
            b"{3}\r",
            b"a",
            b"{3}{5",
            b"{99999999999999999999}",
            // More digits than a number of 64 bits has.
            b"a {0000000000000000000000000000005}\r",
        ] {
            let whole = Announcement::at_end_of(line);
            for first in 0..=line.len() {
                for second in first..=line.len() {
                    let mut tail = Tail::default();
                    tail.push(&line[..first]);
                    tail.push(&line[first..second]);
                    assert_eq!(tail.announcement(&line[second..]), whole, "{first} {second}");
                }
            }
        }
    }

    #[test]
    fn the_end_of_a_response_is_after_its_literals() {
        let response = b"* 1 FETCH (A {3}\r\n)\r\n B {2}\r\nxy)\r\nrest";
        assert_eq!(end_of_response(response), ResponseEnd::At(response.len() - 4));
        for cut in 0..response.len() - 4 {
            assert_eq!(end_of_response(&response[..cut]), ResponseEnd::Beyond, "{cut}");
        }
        assert_eq!(end_of_response(b"* x {18446744073709551615}\r\nabc"), ResponseEnd::Beyond);
    }

    #[test]
    fn a_scan_finds_in_any_pieces_what_it_finds_in_the_whole() {
        let response = b"* 1 FETCH (A {3}\r\n)\r\n B {0}\r\n{2}\r\nxy)\r\n* rest\r\n";
        let ResponseEnd::At(line) = end_of_line(response) else { panic!() };
        let ResponseEnd::At(whole) = end_of_response(response) else { panic!() };
        for first in 0..=response.len() {
            let pieces = [&response[..first], &response[..response.len()]];
            for (expected, literals) in [(line, false), (whole, true)] {
                let mut scan = Scan::default();
                let mut find = |piece| match literals {
                    true => scan.end_of_response(piece),
                    false => scan.end_of_line(piece),
                };
                let found = pieces.map(&mut find);
                let early =
                    if first >= expected { ResponseEnd::At(expected) } else { ResponseEnd::Beyond };
                assert_eq!(found, [early, ResponseEnd::At(expected)], "{first}");
                let mut scan = Scan::default();
                let mut byte_by_byte = (0..=response.len()).map(|end| match literals {
                    true => scan.end_of_response(&response[..end]),
                    false => scan.end_of_line(&response[..end]),
                });
                assert_eq!(byte_by_byte.position(|end| end != ResponseEnd::Beyond), Some(expected));
            }
        }
    }
}
