//! A backend's greeting (RFC 9051 section 7.1), and what users and logs get to read of one that is no good.

use std::fmt;

use super::peek::{self, Response, Status};
use super::responses::printable;

/// Most of a backend's words that a client gets, in bytes.
const LONGEST_WORDS: usize = 200;

/// Codes of a BYE that a client gets. All others, such as those that speak of a password, do not fit:
/// nobody has tried one.
const CODES: [&str; 6] = ["ALERT", "CONTACTADMIN", "INUSE", "LIMIT", "SERVERBUG", "UNAVAILABLE"];

/// What the first response of a backend says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// An empty line, which says nothing: the greeting is yet to come.
    Blank,
    /// OK: it waits for a login.
    Ready,
    /// It serves nobody now.
    Bye,
    /// Somebody is logged in already, so it cannot tell users apart.
    Preauth,
    /// No greeting of IMAP.
    Other,
}

impl Greeting {
    /// `response` is a whole one, line end included.
    pub fn of(response: &[u8]) -> Self {
        match peek::response(response) {
            _ if response.trim_ascii().is_empty() => Self::Blank,
            Some(Response::Status { tag: None, status, .. }) => match status {
                Status::Ok => Self::Ready,
                Status::Bye => Self::Bye,
                Status::Preauth => Self::Preauth,
                Status::No | Status::Bad => Self::Other,
            },
            _ => Self::Other,
        }
    }
}

/// Why a greeting is no good, for a log: the backend's words are quoted and shortened.
#[derive(Clone, Copy, Debug)]
pub struct UnfitGreeting<'a>(pub &'a [u8]);

impl fmt::Display for UnfitGreeting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(response) = self;
        f.write_str(match Greeting::of(response) {
            Greeting::Bye => "the backend greets with BYE",
            Greeting::Preauth => "a backend that greets with PREAUTH cannot tell users apart",
            // What is good as far as it goes has no end.
            Greeting::Blank | Greeting::Ready => "the greeting is too long",
            Greeting::Other => "no IMAP greeting",
        })?;
        write!(f, ": \"{}\"", printable(response))
    }
}

/// What a client gets behind its tag where the backend greeted with this BYE; `None` where the backend gave no
/// reason. Control characters and what is not UTF-8 become spaces.
pub fn bye_answer(response: &[u8]) -> Option<String> {
    let line = String::from_utf8_lossy(response);
    let line: String = line
        .trim()
        .chars()
        .map(|c| if c.is_control() || c == char::REPLACEMENT_CHARACTER { ' ' } else { c })
        .collect();
    let words = line.strip_prefix('*')?.trim_start();
    let words = words.get(3..)?.trim_start();
    let coded = words.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (code, words) = coded.unwrap_or(("", words));
    let code = code.split(' ').next().unwrap_or_default();
    let code = CODES.into_iter().find(|known| known.eq_ignore_ascii_case(code));
    let words = words.trim_start();
    let words = &words[..words.floor_char_boundary(LONGEST_WORDS)];
    let code = code.unwrap_or("UNAVAILABLE");
    (!words.is_empty()).then(|| format!("NO [{code}] The mail server says: {words}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_what_its_first_words_say() {
        for (response, expected) in [
            ("\r\n", Greeting::Blank),
            (" \n", Greeting::Blank),
            ("* OK\r\n", Greeting::Ready),
            ("* ok [CAPABILITY IMAP4rev1] hi\r\n", Greeting::Ready),
            ("* BYE\r\n", Greeting::Bye),
            ("* PREAUTH x\r\n", Greeting::Preauth),
            ("* NO x\r\n", Greeting::Other),
            ("a OK x\r\n", Greeting::Other),
            ("+ x\r\n", Greeting::Other),
            ("HTTP/1.1 400 Bad Request\r\n", Greeting::Other),
        ] {
            assert_eq!(Greeting::of(response.as_bytes()), expected, "{response:?}");
        }
    }

    #[test]
    fn the_words_of_a_bye_are_one_line_that_is_short() {
        let says = |words: &str| Some(format!("NO [UNAVAILABLE] The mail server says: {words}"));
        for (response, expected) in [
            ("* BYE\r\n", None),
            ("* BYE  \r\n", None),
            ("* BYE [UNAVAILABLE]\r\n", None),
            ("* BYE busy\r\n", says("busy")),
            ("*  bye  busy ]\r\n", says("busy ]")),
            ("* BYE [half a code\r\n", says("[half a code")),
            ("* BYE [EXPIRED] new password\r\n", says("new password")),
            ("* BYE [unavailable] x\r\na NO y", says("x  a NO y")),
            ("* BYE Go\taway\0\x1b[31m später\u{85}\r\n", says("Go away  [31m später")),
        ] {
            assert_eq!(bye_answer(response.as_bytes()), expected, "{response:?}");
        }
        assert_eq!(bye_answer(b"* BYE a\xff\xc3b\r\n"), says("a  b"));
        let long = format!("* BYE [LIMIT] x{}\r\n", "ü".repeat(1000));
        let answer = bye_answer(long.as_bytes()).unwrap();
        assert_eq!(answer, format!("NO [LIMIT] The mail server says: x{}", "ü".repeat(99)));
        let shown = UnfitGreeting(long.as_bytes()).to_string();
        assert!(
            shown.starts_with("the backend greets with BYE: \"* BYE [LIMIT] x\\xc3"),
            "{shown}"
        );
        assert!(shown.len() < 1000, "{shown}");
    }
}
