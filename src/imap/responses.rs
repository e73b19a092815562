//! What a backend says, response by response.
//!
//! The work is linear in what comes, in whatever pieces it does: no byte is looked at twice for the
//! end of a response, and none is copied more than once behind the one in front of it.

use super::literal::{End, Scan};
use super::peek::{self, Response};

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
    pub fn find(&mut self, input: &[u8]) -> End {
        let human = match self.human {
            Some(human) => human,
            None => match peek::response(input) {
                None => return End::Beyond,
                Some(response) => {
                    matches!(response, Response::Continuation | Response::Status { .. })
                }
            },
        };
        let end = match human {
            true => self.scan.end_of_line(input),
            false => self.scan.end_of_response(input),
        };
        self.human = (end == End::Beyond).then_some(human);
        end
    }
}

/// The end of the response that starts `input`, as [`Ending::find`].
pub fn end_of_status_or_response(input: &[u8]) -> End {
    Ending::default().find(input)
}

/// Bytes of a backend, as they come, and the responses in them. It holds no memory when all of them
/// were gone through.
#[derive(Debug, Default)]
pub struct Responses {
    bytes: Vec<u8>,
    /// The current response.
    start: usize,
    end: usize,
    ending: Ending,
}

impl Responses {
    /// What came so far.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, ..Self::default() }
    }

    /// Goes to the next response. `false` if not all of it is at hand.
    pub fn advance(&mut self) -> bool {
        self.start = self.end;
        match self.ending.find(&self.bytes[self.start..]) {
            End::At(length) => {
                self.end += length;
                true
            }
            End::Beyond => false,
        }
    }

    /// The response that was gone to; nothing where it is not whole.
    pub fn current(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// What came behind it.
    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.end..]
    }

    /// Forgets the current response; more bytes are to be put behind what this returns.
    pub fn more(&mut self) -> &mut Vec<u8> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that have to be moved for `piece` by `piece` of `bytes`, and the responses.
    fn read(bytes: &[u8], piece: usize) -> (usize, Vec<Vec<u8>>) {
        let mut responses = Responses::default();
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
        let mut responses = Responses::new(b"* OK\r\n".repeat(100));
        while responses.advance() {}
        assert_eq!(responses.more().capacity(), 0);
    }
}
