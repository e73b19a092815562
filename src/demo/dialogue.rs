//! Dialogue files (`fixtures/*.imap`): what client, mailchime and backend say, line by line.
//!
//! The format is described in `fixtures/README.md`. Here it is read, and a dialogue's lines are
//! compared with bytes; who plays it against what is the caller's.

use std::collections::HashMap;
use std::fmt;

/// A dialogue, ready to be played.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialogue {
    /// `@ name value` lines, in order.
    pub settings: Vec<(String, String)>,
    pub events: Vec<Event>,
}

/// Something that happens, and the line of the file where it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub line: usize,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A peer says this to mailchime, in one packet.
    Says(Peer, Text),
    /// A peer hears this from mailchime.
    Hears(Peer, Text),
    /// Something that mailchime does or that happens to it.
    Does(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    Client,
    Backend,
}

/// Bytes with placeholders `${name}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(Vec<u8>);

/// What the placeholders stood for so far.
#[derive(Clone, Debug, Default)]
pub struct Variables(HashMap<String, Vec<u8>>);

/// A line that is not of the format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct Malformed {
    pub line: usize,
    pub problem: String,
}

/// What was heard is not what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub expected: Vec<u8>,
    pub heard: Vec<u8>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  expected: {}", self.expected.escape_ascii())?;
        write!(f, "  heard:    {}", self.heard.escape_ascii())
    }
}

impl std::error::Error for Difference {}

const LANES: [&str; 7] = ["C", "S", "F", "B", "CF", "BS", "P"];

impl Dialogue {
    /// Reads a dialogue file.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let mut settings = Vec::new();
        // Neighbouring lines of a lane are one packet.
        let mut groups: Vec<(usize, &str, Vec<u8>)> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            let malformed = |problem: &str| Malformed { line: number, problem: problem.into() };
            if line.trim().is_empty() {
                // An empty line ends a packet, so that a pause can be shown.
                groups.push((number, "", Vec::new()));
                continue;
            }
            if line.starts_with('#') {
                continue;
            }
            if let Some(setting) = line.strip_prefix("@ ") {
                let (name, value) = setting.split_once(' ').unwrap_or((setting, ""));
                settings.push((name.to_owned(), value.trim().to_owned()));
                continue;
            }
            let (lane, said) = line
                .split_once(':')
                .filter(|(lane, _)| LANES.contains(lane))
                .ok_or_else(|| malformed("begins with none of C: S: F: B: CF: BS: P: @ #"))?;
            let said = said.strip_prefix(' ').unwrap_or(said);
            let bytes = match lane {
                "P" => said.as_bytes().to_vec(),
                _ => unescape(said).ok_or_else(|| malformed("\\x wants two hex digits"))?,
            };
            match groups.last_mut() {
                Some((_, last, packet)) if *last == lane && lane != "P" => packet.extend(bytes),
                _ => groups.push((number, lane, bytes)),
            }
        }
        let mut events = Vec::new();
        for (line, lane, bytes) in groups {
            let text = Text(bytes);
            let mut event = |what| events.push(Event { line, what });
            match lane {
                "C" => event(What::Says(Peer::Client, text)),
                "S" => event(What::Hears(Peer::Client, text)),
                "F" => event(What::Hears(Peer::Backend, text)),
                "B" => event(What::Says(Peer::Backend, text)),
                "CF" => {
                    event(What::Says(Peer::Client, text.clone()));
                    event(What::Hears(Peer::Backend, text));
                }
                "BS" => {
                    event(What::Says(Peer::Backend, text.clone()));
                    event(What::Hears(Peer::Client, text));
                }
                "P" => event(What::Does(String::from_utf8_lossy(&text.0).trim().to_owned())),
                _ => {}
            }
        }
        if events.is_empty() {
            return Err(Malformed { line: 1, problem: "nothing is said".into() });
        }
        Ok(Self { settings, events })
    }
}

/// A line's bytes: `\xHH` is a byte, a `\` at the end leaves out the CR LF.
fn unescape(said: &str) -> Option<Vec<u8>> {
    let (said, end) = match said.strip_suffix('\\') {
        Some(said) => (said, &b""[..]),
        None => (said, &b"\r\n"[..]),
    };
    let mut bytes = Vec::new();
    let mut rest = said;
    while let Some((before, after)) = rest.split_once("\\x") {
        bytes.extend_from_slice(before.as_bytes());
        bytes.push(u8::from_str_radix(after.get(..2)?, 16).ok()?);
        rest = &after[2..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes.extend_from_slice(end);
    Some(bytes)
}

impl Text {
    /// The bytes, with what the placeholders stand for.
    pub fn filled(&self, variables: &Variables) -> Vec<u8> {
        let mut out = Vec::new();
        let mut rest = &self.0[..];
        while let Some((before, name, after)) = placeholder(rest) {
            out.extend_from_slice(before);
            out.extend_from_slice(variables.0.get(name).map_or(&[][..], Vec::as_slice));
            rest = after;
        }
        out.extend_from_slice(rest);
        out
    }

    /// The lines that this text is made of; the last may have no line end.
    pub fn lines(&self) -> impl Iterator<Item = Text> {
        self.0.split_inclusive(|b| *b == b'\n').map(|line| Text(line.to_vec()))
    }

    /// How many bytes it matches, or `None` if that is for the next line end to say.
    pub fn length(&self) -> Option<usize> {
        (!self.0.ends_with(b"\n")).then_some(self.0.len())
    }

    /// Compares one line. A placeholder seen for the first time stands for what is there, up to
    /// what follows it; later it must be the same.
    pub fn compare(&self, heard: &[u8], variables: &mut Variables) -> Result<(), Difference> {
        let mut left = heard;
        let mut rest = &self.0[..];
        let difference = || Difference { expected: self.0.clone(), heard: heard.to_vec() };
        while let Some((before, name, after)) = placeholder(rest) {
            left = left.strip_prefix(before).ok_or_else(difference)?;
            let until = match placeholder(after) {
                Some((next, _, _)) => next,
                None => after,
            };
            let length = match variables.0.get(name) {
                Some(known) if left.starts_with(known) => known.len(),
                Some(_) => return Err(difference()),
                None if until.is_empty() => left.len(),
                None => {
                    left.windows(until.len()).position(|w| w == until).ok_or_else(difference)?
                }
            };
            variables.0.insert(name.to_owned(), left[..length].to_vec());
            left = &left[length..];
            rest = after;
        }
        if left == rest { Ok(()) } else { Err(difference()) }
    }
}

fn placeholder(text: &[u8]) -> Option<(&[u8], &str, &[u8])> {
    let start = text.windows(2).position(|w| w == b"${")?;
    let length = text[start..].iter().position(|b| *b == b'}')?;
    let name = std::str::from_utf8(&text[start + 2..start + length]).ok()?;
    Some((&text[..start], name, &text[start + length + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Text {
        Text(text.as_bytes().to_vec())
    }

    #[test]
    fn lanes_become_events() {
        let dialogue = Dialogue::parse(
            "# a comment\n@ backend IDLE\nC: a NOOP\nC: b {3}\nS: x\\x00y\\\nCF: c\n\nC: d\nC: \n\nC: e\nP: connect",
        )
        .unwrap();
        assert_eq!(dialogue.settings, [("backend".into(), "IDLE".into())]);
        let expected = [
            (3, What::Says(Peer::Client, text("a NOOP\r\nb {3}\r\n"))),
            (5, What::Hears(Peer::Client, text("x\0y"))),
            (6, What::Says(Peer::Client, text("c\r\n"))),
            (6, What::Hears(Peer::Backend, text("c\r\n"))),
            (8, What::Says(Peer::Client, text("d\r\n\r\n"))),
            (11, What::Says(Peer::Client, text("e\r\n"))),
            (12, What::Does("connect".into())),
        ];
        let events: Vec<_> = dialogue.events.into_iter().map(|e| (e.line, e.what)).collect();
        assert_eq!(events, expected);
        assert_eq!(Dialogue::parse("C: x\nX: y\n").unwrap_err().line, 2);
        assert_eq!(Dialogue::parse("C: \\xg0").unwrap_err().line, 1);
        assert!(Dialogue::parse("# nothing").is_err());
    }

    #[test]
    fn placeholders_are_bound_once() {
        let mut variables = Variables::default();
        text("${a} NOOP ${b}\r\n").compare(b"x1 NOOP y\r\n", &mut variables).unwrap();
        assert_eq!(text("${a}-${b}").filled(&variables), b"x1-y");
        text("${a} x\r\n").compare(b"x1 x\r\n", &mut variables).unwrap();
        assert!(text("${a} x\r\n").compare(b"x2 x\r\n", &mut variables).is_err());
        assert!(text("a\r\n").compare(b"a\r\nb", &mut variables).is_err());
    }
}
