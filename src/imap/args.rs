//! Strings and lists as arguments (RFC 9051 section 9), parsed with nom, and quoting.
//!
//! Tolerant where it does no harm: quoted strings may hold 8-bit bytes, as users' passwords and
//! UTF8=ACCEPT names do. The input is one whole command, literals in place.

use std::borrow::Cow;

use nom::branch::alt;
use nom::bytes::complete::{tag, tag_no_case, take, take_while1};
use nom::character::complete::{char, digit1, line_ending, space1};
use nom::combinator::{all_consuming, map, map_res, opt};
use nom::multi::separated_list0;
use nom::sequence::{delimited, preceded, separated_pair, terminated, tuple};
use nom::{IResult, Parser};

/// An argument's bytes, borrowed from the command unless escapes had to be removed.
pub type Bytes<'a> = Cow<'a, [u8]>;

/// The most elements that a parenthesised list may have before it is refused as malformed.
pub const LONGEST_LIST: usize = 10_000;

/// `tag SP verb` at the start of a command; the rest begins with the space before its arguments or
/// is the line end.
///
/// # Errors
/// As parsers of `nom` fail: the input begins with something else, or ends too early.
pub fn tag_and_verb(input: &[u8]) -> IResult<&[u8], (&[u8], &[u8])> {
    separated_pair(take_while1(is_tag), space1, take_while1(is_atom)).parse(input)
}

/// A string of LOGIN: what it says, and how it was written.
#[derive(Debug)]
pub struct LoginString<'a> {
    /// What it says.
    pub bytes: Bytes<'a>,
    /// `None` where another server may read another string in it than mailchime does, and for a
    /// literal.
    pub written: Option<&'a [u8]>,
}

/// All of the arguments when they are LOGIN's: a name and a password.
///
/// Servers take more than an astring, and what one of Dovecot, Cyrus, Courier
/// and imap4d takes is taken: unquoted strings with `%`, `*`, `\`, `"` and 8-bit bytes, and escapes that need none, as in `"a\b"`.
pub fn login(arguments: &[u8]) -> Option<(LoginString<'_>, LoginString<'_>)> {
    let pair = preceded(space1, separated_pair(login_string, space1, login_string));
    whole(pair)(arguments)
}

fn login_string(input: &[u8]) -> IResult<&[u8], LoginString<'_>> {
    if input.starts_with(b"\"") {
        let (rest, bytes) = quoted(input, Escapes::Any)?;
        let strict = quoted(input, Escapes::Needed).is_ok();
        let written = &input[..input.len() - rest.len()];
        return Ok((rest, LoginString { bytes, written: strict.then_some(written) }));
    }
    let unquoted = map_res(take_while1(is_unquoted), |text: &[u8]| {
        let written = text.iter().all(|byte| is_astring(*byte)).then_some(text);
        let string = LoginString { bytes: Cow::Borrowed(text), written };
        if text.eq_ignore_ascii_case(b"NIL") { Err(()) } else { Ok(string) }
    });
    alt((map(literal, |bytes| LoginString { bytes, written: None }), unquoted))(input)
}

/// All of the arguments when they are an atom and perhaps another word: AUTHENTICATE's.
pub fn atom_and_word(arguments: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let word = take_while1(|b: u8| b.is_ascii_graphic());
    whole(tuple((preceded(space1, take_while1(is_atom)), opt(preceded(space1, word)))))(arguments)
}

/// All of the arguments when they are ID's (RFC 2971): fields and their values, `None` for NIL.
pub fn id_fields(arguments: &[u8]) -> Option<Vec<(Bytes<'_>, Option<Bytes<'_>>)>> {
    let nil = map(tag_no_case("NIL"), |_| None);
    let field = separated_pair(string, space1, alt((map(string, Some), nil)));
    let fields = delimited(char('('), separated_list0(space1, field), char(')'));
    whole(preceded(space1, fields))(arguments)
}

/// Runs `parser` over a whole command's arguments, line end included, optional spaces before it.
pub fn whole<'a, O>(
    parser: impl Parser<&'a [u8], O, nom::error::Error<&'a [u8]>>,
) -> impl FnOnce(&'a [u8]) -> Option<O> {
    move |input| {
        let mut parser =
            all_consuming(terminated(parser, preceded(opt(space1), line_ending::<&[u8], _>)));
        parser(input).ok().map(|(_, output)| output)
    }
}

/// `astring`: an atom (with `]`), a quoted string or a literal. NIL is not one: it is no string.
///
/// # Errors
/// As parsers of `nom` fail: the input begins with something else, or ends too early.
pub fn astring(input: &[u8]) -> IResult<&[u8], Bytes<'_>> {
    alt((
        string,
        map_res(take_while1(is_astring), |atom: &[u8]| {
            if atom.eq_ignore_ascii_case(b"NIL") { Err(()) } else { Ok(Cow::Borrowed(atom)) }
        }),
    ))(input)
}

/// `string`: quoted or literal.
///
/// # Errors
/// As parsers of `nom` fail: the input begins with something else, or ends too early.
pub fn string(input: &[u8]) -> IResult<&[u8], Bytes<'_>> {
    alt((|input| quoted(input, Escapes::Needed), literal))(input)
}

/// A parenthesised list of astrings, possibly empty.
///
/// # Errors
/// As parsers of `nom` fail: the input begins with something else, or ends too early.
pub fn astring_list(input: &[u8]) -> IResult<&[u8], Vec<Bytes<'_>>> {
    let spaces = || opt(space1);
    let list = separated_list0(space1, astring);
    let list = delimited(tuple((char('('), spaces())), list, tuple((spaces(), char(')'))));
    map_res(list, |items| if items.len() > LONGEST_LIST { Err(()) } else { Ok(items) })(input)
}

/// What a backslash may stand before in a quoted string.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Escapes {
    /// A quote or a backslash.
    Needed,
    /// Any byte of the string.
    Any,
}

fn quoted(input: &[u8], escapes: Escapes) -> IResult<&[u8], Bytes<'_>> {
    let (body, _) = char('"')(input)?;
    let mut unescaped: Option<Vec<u8>> = None;
    let mut at = 0;
    loop {
        match body.get(at) {
            Some(b'"') => {
                let rest = &body[at + 1..];
                let text = match unescaped {
                    Some(bytes) => Cow::Owned(bytes),
                    None => Cow::Borrowed(&body[..at]),
                };
                return Ok((rest, text));
            }
            Some(b'\\') => {
                let escaped = match body.get(at + 1) {
                    Some(escaped @ (b'"' | b'\\')) => escaped,
                    None | Some(b'\r' | b'\n' | 0) => break,
                    Some(escaped) if escapes == Escapes::Any => escaped,
                    Some(_) => break,
                };
                unescaped.get_or_insert_with(|| body[..at].to_vec()).push(*escaped);
                at += 2;
            }
            None | Some(b'\r' | b'\n' | 0) => break,
            Some(byte) => {
                if let Some(bytes) = &mut unescaped {
                    bytes.push(*byte);
                }
                at += 1;
            }
        }
    }
    Err(nom::Err::Error(nom::error::make_error(input, nom::error::ErrorKind::Escaped)))
}

fn literal(input: &[u8]) -> IResult<&[u8], Bytes<'_>> {
    let digits = map_res(digit1, |digits: &[u8]| {
        std::str::from_utf8(digits).map_err(drop).and_then(|d| d.parse::<u32>().map_err(drop))
    });
    let announced =
        delimited(tuple((opt(char('~')), char('{'))), digits, tuple((opt(tag("+")), tag("}"))));
    let (rest, length) = terminated(announced, line_ending)(input)?;
    map(take(length), Cow::Borrowed)(rest)
}

/// Any CHAR except `(){ %*"\]`, controls and 8-bit (RFC 9051 `ATOM-CHAR`).
fn is_atom(byte: u8) -> bool {
    byte.is_ascii_graphic()
        && !matches!(byte, b'(' | b')' | b'{' | b'%' | b'*' | b'"' | b'\\' | b']')
}

/// What may stand in a string of LOGIN that is neither quoted nor a literal.
fn is_unquoted(byte: u8) -> bool {
    (byte.is_ascii_graphic() || !byte.is_ascii()) && !matches!(byte, b'(' | b')' | b'{')
}

fn is_astring(byte: u8) -> bool {
    is_atom(byte) || byte == b']'
}

fn is_tag(byte: u8) -> bool {
    is_astring(byte) && byte != b'+'
}

/// `text` as a quoted string; `None` when only a literal could carry it (CR, LF, NUL).
pub fn quote(text: &[u8]) -> Option<Vec<u8>> {
    if text.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)) {
        return None;
    }
    let mut quoted = Vec::with_capacity(text.len() + 2);
    quoted.push(b'"');
    for byte in text {
        if matches!(byte, b'"' | b'\\') {
            quoted.push(b'\\');
        }
        quoted.push(*byte);
    }
    quoted.push(b'"');
    Some(quoted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn login_takes_every_form_of_string() {
        // What they say, and whether they go on as they were written.
        let both = |a: &str, b: &str, written: [bool; 2]| {
            Some(([a, b].map(|text| text.as_bytes().to_vec()), written))
        };
        let pair = |a, b| both(a, b, [true, true]);
        for (arguments, expected) in [
            (" alice secret\r\n", pair("alice", "secret")),
            (" alice secret \n", pair("alice", "secret")),
            (" \"alice\" \"wonder land\"\r\n", pair("alice", "wonder land")),
            (" bob \"q\\\"uo\\\\te\"\r\n", pair("bob", "q\"uo\\te")),
            (" \"ü\" \"pässwörd\"\r\n", pair("ü", "pässwörd")),
            (" {5}\r\nalice {3+}\r\na\r\nb\r\n", None),
            (" {5}\r\nalice {4+}\r\na\r\nb\r\n", both("alice", "a\r\nb", [false, false])),
            (" \"\" \"\"\r\n", pair("", "")),
            (" a]b x~\r\n", pair("a]b", "x~")),
            (" alice\r\n", None),
            (" alice \r\n", None),
            (" alice b c\r\n", None),
            (" \"alice b\r\n", None),
            // What is beyond the grammar.
            (" alice \"a\\b\\\"\"\r\n", both("alice", "ab\"", [true, false])),
            (" DOMAIN\\bob x%y*\r\n", both("DOMAIN\\bob", "x%y*", [false, false])),
            (" rené pä\\\r\n", both("rené", "pä\\", [false, false])),
            (" alice \"a\\\r\n", None),
            (" alice a\"b\r\n", both("alice", "a\"b", [true, false])),
            (" alice \"a\"b\r\n", None),
            (" alice NIL\r\n", None),
            (" a(b c\r\n", None),
            (" a\u{7f} c\r\n", None),
            ("\r\n", None),
        ] {
            let read = login(arguments.as_bytes()).map(|(name, password)| {
                let written = [&name, &password].map(|string| string.written.is_some());
                ([name, password].map(|string| string.bytes.into_owned()), written)
            });
            assert_eq!(read, expected, "{arguments:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_quoted_is_read_again(text in prop::collection::vec(any::<u8>(), 0..50)) {
            if let Some(quoted) = quote(&text) {
                let (rest, read) = string(&quoted).unwrap();
                prop_assert!(rest.is_empty());
                prop_assert_eq!(read.as_ref(), &text[..]);
            }
        }
    }
}
