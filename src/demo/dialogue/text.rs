//! What is said: bytes with placeholders, and how what was heard is compared with them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Settings;

/// Most bytes that one `${*n}` may stand for.
const LONGEST_FILL: usize = 16 * 1024 * 1024;

/// Bytes with placeholders, and where in the file they stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    bytes: Vec<u8>,
    /// For each line of the file, where it begins in `bytes`, and its number.
    starts: Vec<(usize, usize)>,
}

/// What the placeholders stood for so far.
#[derive(Clone, Default)]
pub struct Variables {
    known: HashMap<String, Vec<u8>>,
    /// `${name=value}` is any value, not this one, when it is heard.
    lenient: bool,
}

/// What was heard is not what was expected; in a form that can be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The line of the file.
    pub line: usize,
    /// What the dialogue says.
    pub expected: String,
    /// What was said.
    pub heard: String,
}

/// A placeholder in a text.
struct Placeholder<'a> {
    before: &'a [u8],
    name: &'a str,
    sample: Option<&'a str>,
    after: &'a [u8],
}

impl Text {
    /// Adds a line of the file: `\xHH` is a byte, a `\` at the end leaves out the CR LF.
    pub(super) fn add(&mut self, line: usize, said: &str) -> Result<(), String> {
        self.starts.push((self.bytes.len(), line));
        let (said, end) = match said.strip_suffix('\\') {
            Some(said) => (said, &b""[..]),
            None => (said, &b"\r\n"[..]),
        };
        let start = self.bytes.len();
        let mut rest = said;
        while let Some((before, after)) = rest.split_once("\\x") {
            self.bytes.extend_from_slice(before.as_bytes());
            let byte = after.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
            self.bytes.push(byte.ok_or("\\x wants two hex digits")?);
            rest = &after[2..];
        }
        self.bytes.extend_from_slice(rest.as_bytes());
        self.bytes.extend_from_slice(end);
        let mut rest = &self.bytes[start..];
        while let Some(Placeholder { name, after, .. }) = placeholder(rest) {
            if name.starts_with('*') && fill(name).is_none() {
                return Err(format!("${{{name}}}: a number up to {LONGEST_FILL} follows the *"));
            }
            rest = after;
        }
        Ok(())
    }

    /// As it stands in the file, placeholders included.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The line of the file where it begins.
    pub fn line(&self) -> usize {
        self.starts.first().map_or(0, |(_, line)| *line)
    }

    /// The lines that it is made of; the last may have no line end.
    pub fn lines(&self) -> impl Iterator<Item = Text> {
        let mut at = 0;
        self.bytes.split_inclusive(|b| *b == b'\n').map(move |bytes| {
            let before = self.starts.partition_point(|(start, _)| *start <= at);
            let line = self.starts[..before].last().map_or(0, |(_, line)| *line);
            at += bytes.len();
            Text { bytes: bytes.to_vec(), starts: vec![(0, line)] }
        })
    }

    /// Adds what stands behind it.
    pub fn join(&mut self, next: &Text) {
        self.starts
            .extend(next.starts.iter().map(|(start, line)| (start + self.bytes.len(), *line)));
        self.bytes.extend_from_slice(&next.bytes);
    }

    /// The bytes, with what the placeholders stand for.
    pub fn filled(&self, variables: &mut Variables) -> Vec<u8> {
        let mut out = Vec::new();
        let mut rest = &self.bytes[..];
        while let Some(Placeholder { before, name, sample, after }) = placeholder(rest) {
            out.extend_from_slice(before);
            if let Some(sample) = sample {
                variables.known.entry(name.to_owned()).or_insert_with(|| sample.into());
            }
            if let Some(value) = variables.value(name) {
                out.extend_from_slice(&value);
            }
            rest = after;
        }
        out.extend_from_slice(rest);
        out
    }

    /// How many bytes it matches, or `None` if that is for the next line end to say.
    pub fn length(&self, variables: &mut Variables) -> Option<usize> {
        (!self.bytes.ends_with(b"\n")).then(|| self.filled(variables).len())
    }

    /// Compares. A placeholder seen for the first time stands for what is there, up to what follows
    /// it; later it must be the same.
    ///
    /// # Errors
    /// [`Difference`] says what was expected and what was heard.
    pub fn compare(&self, heard: &[u8], variables: &mut Variables) -> Result<(), Difference> {
        let mut found = variables.clone();
        match self.matches(heard, &mut found) {
            Some(()) => {
                *variables = found;
                Ok(())
            }
            None => Err(self.unlike(heard.escape_ascii())),
        }
    }

    fn matches(&self, heard: &[u8], variables: &mut Variables) -> Option<()> {
        let mut left = heard;
        let mut rest = &self.bytes[..];
        while let Some(Placeholder { before, name, sample, after }) = placeholder(rest) {
            left = left.strip_prefix(before)?;
            let until = placeholder(after).map_or(after, |next| next.before);
            let sample = sample.filter(|_| !variables.lenient).map(str::as_bytes);
            let known = variables.value(name).or(sample.map(Cow::Borrowed));
            let length = match known {
                Some(known) if left.starts_with(&known) => known.len(),
                Some(_) => return None,
                None if until.is_empty() => left.len(),
                None => left.windows(until.len()).position(|w| w == until)?,
            };
            if !name.starts_with('*') {
                variables.known.insert(name.to_owned(), left[..length].to_vec());
            }
            left = &left[length..];
            rest = after;
        }
        (left == rest).then_some(())
    }

    /// The difference between this and something else.
    pub fn unlike(&self, heard: impl fmt::Display) -> Difference {
        Difference {
            line: self.line(),
            expected: self.bytes.escape_ascii().to_string(),
            heard: heard.to_string(),
        }
    }
}

impl Variables {
    /// Those that stand for who logs in: `${user}`, `${password}` (as the inside of a quoted
    /// string) and `${plain}` (the message of SASL PLAIN, in base64).
    pub fn of_login(user: &str, password: &[u8]) -> Self {
        let quoted = |text: &[u8]| {
            text.iter()
                .flat_map(|byte| match byte {
                    b'"' | b'\\' => vec![b'\\', *byte],
                    other => vec![*other],
                })
                .collect()
        };
        let plain = STANDARD.encode([b"\0", user.as_bytes(), b"\0", password].concat());
        let mut variables = Self::default();
        for (name, value) in [
            ("user", quoted(user.as_bytes())),
            ("password", quoted(password)),
            ("plain", plain.into_bytes()),
        ] {
            variables.known.insert(name.to_owned(), value);
        }
        variables
    }

    /// Those of a dialogue that is played for whom its settings name.
    pub fn of(settings: &Settings) -> Self {
        Self::of_login(&settings.user, settings.password.as_bytes())
    }

    /// Takes the value of `${name=value}` for a sample that what is heard may differ from.
    pub fn lenient(mut self) -> Self {
        self.lenient = true;
        self
    }

    fn value(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        match fill(name) {
            Some(length) => Some(Cow::Owned(vec![b'x'; length])),
            None => self.known.get(name).map(|value| Cow::Borrowed(&value[..])),
        }
    }
}

/// One of them may be a password.
impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.known.keys()).finish()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  expected: {}\n  heard:    {}", self.expected, self.heard)
    }
}

impl std::error::Error for Difference {}

fn placeholder(text: &[u8]) -> Option<Placeholder<'_>> {
    let start = text.windows(2).position(|w| w == b"${")?;
    let length = text[start..].iter().position(|b| *b == b'}')?;
    let inside = std::str::from_utf8(&text[start + 2..start + length]).ok()?;
    let (name, sample) = match inside.split_once('=') {
        Some((name, sample)) => (name, Some(sample)),
        None => (inside, None),
    };
    Some(Placeholder { before: &text[..start], name, sample, after: &text[start + length + 1..] })
}

/// How many bytes `*n` stands for.
fn fill(name: &str) -> Option<usize> {
    name.strip_prefix('*')?.parse().ok().filter(|length| *length <= LONGEST_FILL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(said: &str) -> Text {
        let mut text = Text::default();
        text.add(7, said).unwrap();
        text
    }

    #[test]
    fn placeholders_are_bound_once() {
        let mut variables = Variables::default();
        text("${a} NOOP ${b}").compare(b"x1 NOOP y\r\n", &mut variables).unwrap();
        assert_eq!(text("${a}-${b}\\").filled(&mut variables), b"x1-y");
        text("${a} x").compare(b"x1 x\r\n", &mut variables).unwrap();
        assert!(text("${a} x").compare(b"x2 x\r\n", &mut variables).is_err());
        assert_eq!(text("a").compare(b"a\r\nb", &mut variables).unwrap_err().line, 7);
    }

    #[test]
    fn what_did_not_match_binds_nothing() {
        let mut variables = Variables::default();
        assert!(text("${a} NOOP").compare(b"x IDLE\r\n", &mut variables).is_err());
        text("${a} NOOP").compare(b"y NOOP\r\n", &mut variables).unwrap();
    }

    #[test]
    fn a_sample_is_said_and_expected_but_not_of_a_live_server() {
        let exists = text("* ${n=3} EXISTS");
        let mut variables = Variables::default();
        assert_eq!(exists.filled(&mut variables), b"* 3 EXISTS\r\n");
        exists.compare(b"* 3 EXISTS\r\n", &mut variables).unwrap();
        assert!(exists.compare(b"* 4 EXISTS\r\n", &mut Variables::default()).is_err());
        let mut live = Variables::default().lenient();
        exists.compare(b"* 4 EXISTS\r\n", &mut live).unwrap();
        assert!(exists.compare(b"* 3 EXISTS\r\n", &mut live).is_err(), "it is 4 now");
    }

    #[test]
    fn a_fill_is_as_long_as_it_says() {
        let mut variables = Variables::default();
        assert_eq!(text("${*5})").filled(&mut variables), b"xxxxx)\r\n");
        text("${*5})").compare(b"xxxxx)\r\n", &mut variables).unwrap();
        assert!(text("${*5})").compare(b"xxxxy)\r\n", &mut variables).is_err());
        assert_eq!(text("${*5}\\").length(&mut variables), Some(5));
    }

    #[test]
    fn a_login_is_quoted_and_never_shown() {
        let mut variables = Variables::of_login("alice", b"q\"uo\\te");
        let login = text("a LOGIN \"${user}\" \"${password}\"").filled(&mut variables);
        assert_eq!(login, b"a LOGIN \"alice\" \"q\\\"uo\\\\te\"\r\n");
        assert_eq!(text("${plain}\\").filled(&mut variables), b"AGFsaWNlAHEidW9cdGU=");
        assert!(!format!("{variables:?}").contains("uo"), "{variables:?}");
    }

    #[test]
    fn each_wire_line_knows_its_line_of_the_file() {
        let mut packet = Text::default();
        for (line, said) in [(3, "a"), (4, "b\\"), (5, "c"), (9, "d\\")] {
            packet.add(line, said).unwrap();
        }
        let lines: Vec<_> = packet.lines().map(|l| (l.line(), l.bytes().to_vec())).collect();
        let expected = [(3, &b"a\r\n"[..]), (4, b"bc\r\n"), (9, b"d")];
        assert_eq!(lines, expected.map(|(line, bytes)| (line, bytes.to_vec())));
    }
}
