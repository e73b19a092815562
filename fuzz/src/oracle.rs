//! Readers of IMAP streams that owe nothing to mailchime's own: slow, simple, on whole buffers.

/// Follows a stream of responses line by line.
#[derive(Debug, Default)]
pub struct Responses {
    line: Vec<u8>,
    literal: u64,
    /// The line goes on behind a literal.
    continued: bool,
}

impl Responses {
    pub fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.literal > 0 {
                self.literal -= 1;
                continue;
            }
            self.line.push(byte);
            if byte != b'\n' {
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let human = !self.continued && (line.starts_with(b"+") || is_status(&line));
            self.continued = false;
            if let Some((length, _)) = announcement(&line).filter(|_| !human) {
                self.literal = length;
                self.continued = true;
            }
        }
    }

    /// Whether a response may begin here.
    pub fn at_boundary(&self) -> bool {
        self.line.is_empty() && self.literal == 0 && !self.continued
    }
}

/// The length that the end of a line announces, and whether its sender waits.
pub fn announcement(line: &[u8]) -> Option<(u64, bool)> {
    let text = String::from_utf8_lossy(line);
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    let inner = text.strip_suffix('}')?;
    let (inner, waits) = inner.strip_suffix('+').map_or((inner, true), |inner| (inner, false));
    let digits = &inner[inner.rfind('{')? + 1..];
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // What is too large for a number is more than anybody says.
    Some((digits.parse().unwrap_or(u64::MAX), waits))
}

/// A status response, tagged or not.
pub fn is_status(line: &[u8]) -> bool {
    second_word(line).is_some_and(|word| {
        ["OK", "NO", "BAD", "BYE", "PREAUTH"]
            .iter()
            .any(|status| word.eq_ignore_ascii_case(status.as_bytes()))
    })
}

pub fn first_word(line: &[u8]) -> &[u8] {
    let end = line.iter().position(|b| b" \r\n".contains(b)).unwrap_or(line.len());
    &line[..end]
}

pub fn second_word(line: &[u8]) -> Option<&[u8]> {
    let rest = &line[first_word(line).len()..];
    let spaces = rest.iter().take_while(|b| **b == b' ').count();
    (spaces > 0).then(|| first_word(&rest[spaces..]))
}

/// Whether `needle` is anywhere in `hay`, whatever its case.
pub fn contains(hay: &[u8], needle: &str) -> bool {
    hay.windows(needle.len()).any(|part| part.eq_ignore_ascii_case(needle.as_bytes()))
}

/// Follows a stream of commands in which no literal waits for a go-ahead.
#[derive(Debug, Default)]
pub struct Commands {
    line: Vec<u8>,
    literal: u64,
    continued: bool,
}

impl Commands {
    pub fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.literal > 0 {
                self.literal -= 1;
                continue;
            }
            self.line.push(byte);
            if byte != b'\n' {
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let verb = second_word(&line).is_some_and(|verb| !verb.is_empty());
            let whole = self.continued || (verb && !first_word(&line).is_empty());
            self.continued = false;
            if let Some((length, _)) = announcement(&line).filter(|_| whole) {
                self.literal = length;
                self.continued = true;
            }
        }
    }

    pub fn at_boundary(&self) -> bool {
        self.line.is_empty() && self.literal == 0 && !self.continued
    }
}
