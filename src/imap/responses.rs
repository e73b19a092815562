//! What a backend says, response by response.
//!
//! The work is linear in what comes, in whatever pieces it does: no byte is looked at twice for the
//! end of a response, and none is copied more than once behind the one in front of it. Of a response that
//! is longer than its reader keeps, the rest is skipped as it comes, whatever its length.

use super::literal::{Announcement, ResponseEnd, Scan};
use super::peek::{self, Response};
use super::stream_position::{LineEnd, StreamPosition};

/// Where the response that is under way ends. It is asked again and again with the same bytes and
/// more behind them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ending {
    /// Whether its text is for people, and announces no literal; once that is known.
    human: Option<bool>,
    scan: Scan,
}

impl Ending {
    /// The end of the response that starts `input`; the text of a status announces no literal. Where it
    /// is found this is as new.
    pub fn find(&mut self, input: &[u8]) -> ResponseEnd {
        let human = match self.human {
            Some(human) => human,
            None => match peek::response(input) {
                None => return ResponseEnd::Beyond,
                Some(response) => is_for_people(response),
            },
        };
        let end = match human {
            true => self.scan.end_of_line(input),
            false => self.scan.end_of_response(input),
        };
        self.human = (end == ResponseEnd::Beyond).then_some(human);
        end
    }

    /// Whether so much of the response was seen that it is known what it is.
    pub(super) fn is_known(&self) -> bool {
        self.human.is_some()
    }
}

/// The end of the response that starts `input`, as [`Ending::find`].
pub fn end_of_status_or_response(input: &[u8]) -> ResponseEnd {
    Ending::default().find(input)
}

/// Whether the text of this response announces no literal.
fn is_for_people(response: Response<'_>) -> bool {
    matches!(response, Response::Continuation | Response::Status { .. })
}

/// A response of which only the first bytes are kept, and the rest is skipped.
#[derive(Debug)]
pub struct Cut {
    kept: Vec<u8>,
    at: StreamPosition,
}

impl Cut {
    /// The response that starts `input`, of which `limit` bytes are kept. No byte of it is skipped yet.
    pub fn new(input: &[u8], limit: usize) -> Self {
        let literals = !peek::response(input).is_some_and(is_for_people);
        Self { kept: input[..input.len().min(limit)].to_vec(), at: StreamPosition::line(literals) }
    }

    /// Skips bytes of the response, from its first one on: how many of `input` are its own, and whether
    /// they are its last.
    pub fn skip(&mut self, input: &[u8]) -> (usize, bool) {
        let mut used = 0;
        while used < input.len() {
            let (length, end) = self.at.follow(&input[used..]);
            used += length;
            match end {
                LineEnd::None => {}
                LineEnd::Plain => return (used, true),
                LineEnd::Announces(Announcement { length, .. }) => {
                    self.at = StreamPosition::literal(length)
                }
            }
        }
        (used, false)
    }

    /// The bytes that are kept.
    pub fn kept(&self) -> &[u8] {
        &self.kept
    }

    /// Memory that is held, in bytes.
    pub fn held(&self) -> usize {
        self.kept.capacity()
    }
}

/// Bytes of a backend, as they come, and the responses in them. It holds no memory when all of them
/// were gone through.
#[derive(Debug)]
pub struct Responses {
    bytes: Vec<u8>,
    /// The current response.
    start: usize,
    end: usize,
    ending: Ending,
    /// The most bytes of a response that are kept.
    limit: usize,
    /// The response under way, or the current one, if it is longer.
    cut: Option<Box<Cut>>,
    /// The response of `cut` is the current one.
    whole: bool,
}

impl Responses {
    /// What came so far. Of a response that is longer than `limit` so many bytes are kept.
    pub fn new(bytes: Vec<u8>, limit: usize) -> Self {
        Self { bytes, start: 0, end: 0, ending: Ending::default(), limit, cut: None, whole: false }
    }

    /// Goes to the next response. `false` if not all of it is at hand.
    pub fn advance(&mut self) -> bool {
        self.start = self.end;
        if std::mem::take(&mut self.whole) {
            self.cut = None;
        }
        let rest = &self.bytes[self.start..];
        if self.cut.is_none() {
            match self.ending.find(rest) {
                // Whether its end is at hand already is chance, and makes no difference.
                ResponseEnd::At(length) if length <= self.limit => {
                    self.end += length;
                    return true;
                }
                ResponseEnd::Beyond if rest.len() <= self.limit || !self.ending.is_known() => {
                    return false;
                }
                ResponseEnd::At(_) | ResponseEnd::Beyond => {
                    self.ending = Ending::default();
                    self.cut = Some(Box::new(Cut::new(rest, self.limit)));
                }
            }
        }
        let Some(cut) = &mut self.cut else { return false };
        let (skipped, whole) = cut.skip(rest);
        self.end += skipped;
        self.start = self.end;
        self.whole = whole;
        whole
    }

    /// The response that was gone to; nothing where it is not whole. One that is cut has no line end.
    pub fn current(&self) -> &[u8] {
        match &self.cut {
            Some(cut) if self.whole => cut.kept(),
            _ => &self.bytes[self.start..self.end],
        }
    }

    /// Whether the current response was longer than what is kept of it.
    pub fn is_cut(&self) -> bool {
        self.whole
    }

    /// What came behind it.
    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.end..]
    }

    /// Forgets the current response; more bytes are to be put behind what this returns.
    pub fn more(&mut self) -> &mut Vec<u8> {
        if std::mem::take(&mut self.whole) {
            self.cut = None;
        }
        match self.rest().is_empty() {
            // What waits holds no memory.
            true => self.bytes = Vec::new(),
            false => drop(self.bytes.drain(..self.end)),
        }
        (self.start, self.end) = (0, 0);
        &mut self.bytes
    }

    /// What came behind the current response, without the memory of what came before.
    pub fn into_rest(mut self) -> Vec<u8> {
        std::mem::take(self.more())
    }
}

/// The first part of a backend's line for a log.
pub fn printable(line: &[u8]) -> String {
    line[..line.len().min(200)].trim_ascii().escape_ascii().to_string()
}

/// Whether `line`, a whole response, names `code` as its response code (RFC 5530), as in
/// `NO [AUTHENTICATIONFAILED] …`.
pub fn has_code(line: &[u8], code: &str) -> bool {
    let Some(start) = line.iter().position(|b| *b == b'[') else { return false };
    let before = line[..start].trim_ascii();
    // The code stands right behind the status word, not somewhere in the text.
    let status = before.rsplit(|b| *b == b' ').next().unwrap_or_default();
    let is_status = [&b"OK"[..], b"NO", b"BAD", b"BYE", b"PREAUTH"]
        .iter()
        .any(|word| word.eq_ignore_ascii_case(status));
    let rest = &line[start + 1..];
    let end = rest.iter().position(|b| matches!(b, b']' | b' ')).unwrap_or(rest.len());
    is_status && rest[..end].eq_ignore_ascii_case(code.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that have to be moved for `piece` by `piece` of `bytes`, and the responses.
    fn read(bytes: &[u8], piece: usize) -> (usize, Vec<Vec<u8>>) {
        let mut responses = Responses::new(Vec::new(), 1 << 16);
        let (mut moved, mut found) = (0, Vec::new());
        for piece in bytes.chunks(piece) {
            moved += match responses.end {
                0 => 0,
                _ => responses.rest().len(),
            };
            responses.more().extend_from_slice(piece);
            while responses.advance() {
                found.push(responses.current().to_vec());
            }
        }
        assert_eq!(responses.into_rest(), b"");
        (moved, found)
    }

    #[test]
    fn responses_are_the_same_in_any_pieces() {
        let said = b"* OK {5}\r\n* 1 FETCH (X {7}\r\n* OK\r\n)\r\n\n+ go {3}\r\nw1 OK\r\n";
        let expected = ["* OK {5}", "* 1 FETCH (X {7}\r\n* OK\r\n)", "", "+ go {3}", "w1 OK"];
        for piece in 1..=said.len() {
            let found: Vec<String> = read(said, piece)
                .1
                .iter()
                .map(|response| String::from_utf8_lossy(response).trim_end().to_owned())
                .collect();
            assert_eq!(found, expected, "{piece}");
        }
    }

    #[test]
    fn what_is_moved_is_no_more_than_what_comes() {
        for said in [vec![b'\n'; 1 << 16], b"* 1 FETCH (FLAGS (\\Seen))\r\n".repeat(1 << 10)] {
            for piece in [1, 100, 1 << 12, 1 << 16] {
                let moved = read(&said, piece).0;
                assert!(moved <= said.len(), "{moved} of {} in {piece}", said.len());
            }
        }
    }

    #[test]
    fn nothing_is_held_when_all_was_gone_through() {
        let mut responses = Responses::new(b"* OK\r\n".repeat(100), 100);
        while responses.advance() {}
        assert_eq!(responses.more().capacity(), 0);
    }

    #[test]
    fn of_a_long_response_the_first_bytes_are_kept_whatever_the_pieces() {
        let literal =
            [&b"* 1 FETCH (X {3000}\r\n"[..], &b"w1 OK\r\n".repeat(429)[..2998], b"\r\n)\r\n"];
        let said = [
            &b"* FLAGS ("[..],
            &b"keyword ".repeat(300),
            b")\r\n* 5 EXISTS\r\n* OK ",
            &[b'x'; 200],
            b" {5}\r\nw1 OK done\r\n",
            &literal.concat(),
            b"w2 NO\r\n",
        ]
        .concat();
        for piece in [1, 7, 63, 64, 65, 1000, said.len()] {
            let mut responses = Responses::new(Vec::new(), 64);
            let (mut found, mut most) = (Vec::new(), 0);
            for bytes in said.chunks(piece) {
                responses.more().extend_from_slice(bytes);
                while responses.advance() {
                    let current = String::from_utf8_lossy(responses.current()).into_owned();
                    found.push((current.chars().take(12).collect(), responses.is_cut()));
                    assert!(responses.current().len() <= 64, "{current}");
                }
                most = most.max(responses.bytes.len());
            }
            let expected: [(String, bool); 6] = [
                ("* FLAGS (key".into(), true),
                ("* 5 EXISTS\r\n".into(), false),
                ("* OK xxxxxxx".into(), true),
                ("w1 OK done\r\n".into(), false),
                ("* 1 FETCH (X".into(), true),
                ("w2 NO\r\n".into(), false),
            ];
            assert_eq!(found, expected, "{piece}");
            assert!(most <= 64 + piece, "{most} bytes are held in pieces of {piece}");
            assert_eq!(responses.more().capacity(), 0);
        }
    }

    #[test]
    fn codes_are_read_where_they_stand() {
        assert!(has_code(b" NO [AUTHENTICATIONFAILED] x\r\n", "AuthenticationFailed"));
        assert!(has_code(b"* BYE [UNAVAILABLE]\r\n", "UNAVAILABLE"));
        assert!(has_code(b"a NO [LIMIT x] y", "LIMIT"));
        assert!(!has_code(b"a NO see [LIMIT] y", "LIMIT"));
        assert!(!has_code(b"a NO [LIMITS]", "LIMIT"));
        assert!(!has_code(b"a NO", "LIMIT"));
    }
}
