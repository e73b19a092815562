//! The answer to FETCH that holds sender and subject of one message, and what they say.
//!
//! The header is a stranger's: it is read by a library, at most so many bytes of it, and what is made of it
//! can be shown ([`Preview`]).

use encoding_rs::WINDOWS_1252;
use mail_parser::{HeaderName, MessageParser};
use nom::bytes::complete::{tag_no_case, take_till, take_while1};
use nom::character::complete::{char, digit1, space0, space1};
use nom::combinator::{opt, recognize};
use nom::sequence::{delimited, tuple};
use nom::{IResult, Parser};

use super::args::{Bytes, string};
use super::status::fetched;
use crate::model::Preview;

/// Most bytes of a header that are asked for, and read.
pub const HEADER_SIZE: usize = 8 * 1024;

/// What FETCH told of one message (RFC 9051 section 7.5.2).
#[derive(Debug, PartialEq, Eq)]
pub struct FetchedHeader<'a> {
    /// Its UID.
    pub uid: Option<u64>,
    /// The header, or the part of it that was asked for.
    pub header: Bytes<'a>,
}

/// The item of FETCH that asks for the sender, and with `subject` for that as well. It sets no flag, and
/// the backend tells at most [`HEADER_SIZE`] bytes (RFC 9051 section 6.4.5).
pub fn fetch_item(subject: bool) -> String {
    let fields = if subject { "FROM SUBJECT" } else { "FROM" };
    format!("BODY.PEEK[HEADER.FIELDS ({fields})]<0.{HEADER_SIZE}>")
}

/// The header in a whole response; `None` if it is another response, if there is none in it, or more than was
/// asked for.
pub fn fetched_header(response: &[u8]) -> Option<FetchedHeader<'_>> {
    let start = tuple((char('*'), space1, digit1, space1, tag_no_case("FETCH"), space1, char('(')));
    let (mut rest, _) = recognize::<_, _, nom::error::Error<_>, _>(start).parse(response).ok()?;
    let (mut uid, mut header) = (None, None);
    loop {
        rest = rest.trim_ascii_start();
        if rest.starts_with(b")") {
            break;
        }
        let (value, name) = item_name(rest).ok()?;
        let name = name.to_ascii_uppercase();
        let (after, value) = item_value(value.trim_ascii_start())?;
        match value {
            Some(text) if name.starts_with(b"BODY[HEADER") => header = Some(text),
            Some(number) if name == b"UID" => uid = std::str::from_utf8(&number).ok()?.parse().ok(),
            _ => {}
        }
        rest = after;
    }
    let header = header.filter(|header| header.len() <= HEADER_SIZE)?;
    Some(FetchedHeader { uid, header })
}

/// Whether a response is the answer to such a question, and says nothing of flags.
pub fn is_header(response: &[u8]) -> bool {
    const SECTION: &[u8] = b"BODY[HEADER";
    let line = response.split(|b| matches!(b, b'\r' | b'\n')).next().unwrap_or_default();
    fetched(response).is_some_and(|fetched| fetched.flags.is_none())
        && line.windows(SECTION.len()).any(|part| part.eq_ignore_ascii_case(SECTION))
}

/// What a header says of its message, the newest of so many `messages`: the name of the sender or else the
/// address, and with `with_subject` the subject. Words of RFC 2047 are decoded. `None` where neither can be shown.
pub fn preview(header: &[u8], with_subject: bool, messages: u64) -> Option<Preview> {
    let header = &header[..header.len().min(HEADER_SIZE)];
    let mut header = header.split_inclusive(|b| *b == b'\n').flat_map(utf8).collect::<Vec<u8>>();
    // It may have been cut.
    header.extend(b"\r\n\r\n");
    let parser = MessageParser::new().header_address(HeaderName::From);
    let parser = parser.header_text(HeaderName::Subject).default_header_ignore();
    let message = parser.parse_headers(&header)?;
    let sender = message.from().and_then(|from| from.first());
    let name = sender.and_then(|sender| sender.name()).filter(|name| !name.trim().is_empty());
    let address = sender.and_then(|sender| sender.address());
    let subject = message.subject().filter(|_| with_subject);
    Preview::new(name, subject, messages)
        .filter(|preview| preview.sender().is_some())
        .or_else(|| Preview::new(address, subject, messages))
}

/// A line of a header in UTF-8, which RFC 6532 has. Older programs write 8-bit headers in a charset that they do not name, mostly
/// Latin 1 or Windows-1252. A character that is cut at the end is none of those.
fn utf8(line: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(line) {
        Err(error) if error.error_len().is_some() => {
            WINDOWS_1252.decode_without_bom_handling(line).0.into_owned().into_bytes()
        }
        _ => line.to_vec(),
    }
}

/// As in `BODY[HEADER.FIELDS ("FROM" SUBJECT)]<0>`.
fn item_name(input: &[u8]) -> IResult<&[u8], &[u8]> {
    let word = take_while1(|b: u8| b.is_ascii_graphic() && !b"[]()<>{}\"".contains(&b));
    let section = delimited(char('['), take_till(|b| matches!(b, b']' | b'\r' | b'\n')), char(']'));
    let origin = delimited(char('<'), digit1, char('>'));
    recognize(tuple((word, opt(section), opt(origin)))).parse(input)
}

/// What follows a value, and the value if it is a string, an atom or a number. NIL and lists are none.
fn item_value(input: &[u8]) -> Option<(&[u8], Option<Bytes<'_>>)> {
    let (mut rest, mut depth, mut value) = (input, 0usize, None);
    loop {
        rest = match rest.first()? {
            b'(' => {
                depth += 1;
                &rest[1..]
            }
            b')' => {
                depth = depth.checked_sub(1)?;
                &rest[1..]
            }
            b'"' | b'{' | b'~' => {
                let (after, text) = string(rest).ok()?;
                value = Some(text);
                after
            }
            _ => {
                let (after, word) = atom(rest).ok()?;
                value = (!word.eq_ignore_ascii_case(b"NIL")).then_some(word.into());
                after
            }
        };
        if depth == 0 {
            return Some((rest, value.filter(|_| !input.starts_with(b"("))));
        }
        rest = space0::<_, nom::error::Error<_>>(rest).map_or(rest, |(after, _)| after);
    }
}

fn atom(input: &[u8]) -> IResult<&[u8], &[u8]> {
    take_while1(|b: u8| b.is_ascii_graphic() && !b"()\"{".contains(&b)).parse(input)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_header_in_the_answers_of_many_servers() {
        let header = "Subject: Hi\r\n\r\n";
        for (response, uid) in [
            // Dovecot, Cyrus.
            ("* 7 FETCH (UID 12 BODY[HEADER.FIELDS (FROM SUBJECT)]<0> {15}\r\n@@)\r\n", Some(12)),
            ("* 7 FETCH (UID 12 BODY[HEADER.FIELDS (FROM SUBJECT)] {15}\r\n@@)\r\n", Some(12)),
            // Courier.
            (
                "* 7 FETCH (UID 12 BODY[HEADER.FIELDS (\"FROM\" \"SUBJECT\")]<0> {15}\r\n@@)\r\n",
                Some(12),
            ),
            ("* 7 fetch (body[header.fields (from)] {15}\r\n@@ uid 4)\r\n", Some(4)),
            (
                "*  7  FETCH  ( MODSEQ (9) FLAGS (\\Seen $x) ENVELOPE (\"(\" NIL ((\"a\" {1}\r\n( ))) \
                 BODY[HEADER.FIELDS (FROM)] {15}\r\n@@ UID x )\n",
                None,
            ),
        ] {
            let response = response.replace("@@", header);
            let told = fetched_header(response.as_bytes()).expect(&response);
            assert_eq!((told.uid, told.header.as_ref()), (uid, header.as_bytes()), "{response}");
        }
        let quoted = fetched_header(b"* 1 FETCH (BODY[HEADER.FIELDS (FROM)] \"From: a\")\r\n");
        assert_eq!(quoted.unwrap().header.as_ref(), b"From: a");
        let large = "x".repeat(HEADER_SIZE + 1);
        for other in [
            "* 7 FETCH (UID 12)\r\n",
            "* 7 FETCH (UID 12 BODY[HEADER.FIELDS (FROM)] NIL)\r\n",
            "* 7 FETCH (UID 12 BODY[TEXT] {2}\r\nhi)\r\n",
            "* 7 FETCH (UID 12 BODY[HEADER.FIELDS (FROM)] {20}\r\nhi)\r\n",
            "* 7 FETCH (BODY[HEADER.FIELDS (FROM)] {2}\r\nhi",
            "* 7 FETCH (X (\r\n",
            "* 7 FETCH (X ))\r\n",
            "* 7 EXPUNGE\r\n",
            "w7 OK FETCH (done)\r\n",
            "",
            &format!("* 7 FETCH (BODY[HEADER] {{{}}}\r\n{large})\r\n", large.len()),
        ] {
            assert_eq!(fetched_header(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn an_answer_is_no_news_unless_it_has_flags() {
        for (response, expected) in [
            ("* 7 FETCH (UID 12 BODY[HEADER.FIELDS (FROM)]<0> {2}\r\nhi)\r\n", true),
            ("* 7 fetch (body[header.fields (from)] nil)\r\n", true),
            ("* 7 FETCH (FLAGS (\\Seen) BODY[HEADER.FIELDS (FROM)] {2}\r\nhi)\r\n", false),
            ("* 7 FETCH (FLAGS (\\Seen))\r\n", false),
            ("* 7 FETCH (X {11}\r\nBODY[HEADER)\r\n", false),
            ("* 7 EXISTS\r\n", false),
        ] {
            assert_eq!(is_header(response.as_bytes()), expected, "{response}");
        }
    }

    /// Sender and subject.
    fn shown(header: &[u8]) -> [Option<String>; 2] {
        let Some(preview) = preview(header, true, 1) else { return [None, None] };
        [preview.sender(), preview.subject()].map(|text| text.map(str::to_owned))
    }

    #[test]
    fn senders_and_subjects_are_decoded() {
        for (header, sender, subject) in [
            ("From: Bob <bob@b.example>\r\nSubject: Hello\r\n\r\n", "Bob", "Hello"),
            ("subject: Hello\r\nFROM: bob@b.example\r\n\r\n", "bob@b.example", "Hello"),
            ("From: \"Doe, Jane\" <j@x>\nSubject: a\n b\n\n", "Doe, Jane", "a b"),
            ("From: <bob@b.example>\r\nSubject: x", "bob@b.example", "x"),
            ("From: bob@b.example (Bob B.)\r\nSubject: x\r\n", "Bob B.", "x"),
            ("From: \"\u{200b}\" <bob@b.example>\r\nSubject: x\r\n", "bob@b.example", "x"),
            ("From: a@x, b@x\r\nSubject: x\r\n", "a@x", "x"),
            (
                "From: =?UTF-8?B?SsO8cmdlbg==?= =?iso-8859-1?q?M=FCller?= <j@x>\r\n\
                 Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe_?=\r\n =?utf-8?b?8J+YgA==?=\r\n",
                "JürgenMüller",
                "Grüße 😀",
            ),
            (
                "From: =?ISO-2022-JP?B?GyRCOzNFREJATzobKEI=?= <y@x>\r\nSubject: =?gb2312?B?xOO6ww==?=\r\n",
                "山田太郎",
                "你好",
            ),
            // Eight bits as they are.
            ("From: Jürgen <j@x>\r\nSubject: Grüße\r\n", "Jürgen", "Grüße"),
            // Words that are none, and a set of characters that nobody knows.
            ("From: x <j@x>\r\nSubject: =?utf-8?q?open\r\n", "x", "=?utf-8?q?open"),
            ("From: x <j@x>\r\nSubject: =?klingon?q?Qapla?=\r\n", "x", "Qapla"),
            // What would turn, end or hide what stands around it.
            (
                "From: x <j@x>\r\nSubject: =?utf-8?q?=E2=80=AEtpircs=00=0D=0ABcc:=E2=81=A6?=\r\n",
                "x",
                "tpircs Bcc:",
            ),
        ] {
            let told = shown(header.as_bytes());
            assert_eq!(told, [Some(sender.to_owned()), Some(subject.to_owned())], "{header}");
        }
        // One line is not in UTF-8, and another one is, or was cut in its last character.
        assert_eq!(
            shown(b"From: J\xfcrgen <j@x>\r\nSubject: \xe2\x82\xac 5 f\xc3\xbcr\r\n\r\n"),
            [Some("J\u{fc}rgen".into()), Some("\u{20ac} 5 f\u{fc}r".into())]
        );
        assert_eq!(
            shown(b"From: \x80 5 <j@x>\r\nSubject: f\xc3"),
            [Some("\u{20ac} 5".into()), Some("f\u{fffd}".into())]
        );
        assert_eq!(shown(b"Subject: x\r\n\r\n"), [None, Some("x".into())]);
        for nothing in [&b""[..], b"\r\n", b"From:\r\nSubject: \r\n\r\n", b"X: y\r\n\r\n"] {
            assert_eq!(shown(nothing), [None, None]);
        }
        let only_sender = preview(b"From: Bob <b@x>\r\nSubject: Hello\r\n\r\n", false, 3).unwrap();
        assert_eq!((only_sender.sender(), only_sender.subject()), (Some("Bob"), None));
        assert_eq!(only_sender.messages, 3);
    }

    #[test]
    fn a_header_of_any_length_is_read_as_far_as_it_may_be() {
        let many = "a@x, ".repeat(1 << 16);
        let header = format!("From: Bob <b@x>, {many}\r\nSubject: x\r\n\r\n");
        assert_eq!(shown(header.as_bytes()), [Some("Bob".into()), None]);
        let long = format!("From: Bob <b@x>\r\nSubject: {}\r\n\r\n", "ä".repeat(1 << 16));
        let subject = shown(long.as_bytes())[1].clone().unwrap();
        assert_eq!((subject.chars().count(), subject.ends_with('…')), (200, true));
    }

    proptest! {
        #[test]
        fn no_header_does_harm(
            parts in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..9),
                    prop::sample::select(vec![
                        "From:", "Subject:", "\r\n", "\n ", "\t", "<", ">", "@", "(", ")", "\"", "\\", ",", ";",
                        ":", "=?", "?=", "?b?", "?q?", "=?utf-8?q?=", "=?utf-8?b?", "=?iso-2022-jp?b?", "=E2=80=AE",
                    ])
                    .prop_map(|text| text.as_bytes().to_vec()),
                ],
                0..200,
            ),
        ) {
            let header = parts.concat();
            for text in shown(&header).into_iter().chain(shown(&[b"From: ", &header[..]].concat())).flatten() {
                prop_assert!((1..=200).contains(&text.chars().count()));
                prop_assert!(!text.chars().any(char::is_control));
            }
            let head = format!("* 1 FETCH (UID 2 BODY[HEADER.FIELDS (FROM)] {{{}}}\r\n", header.len());
            let response = [head.as_bytes(), &header, b")\r\n"].concat();
            let told = fetched_header(&response).expect("a header");
            prop_assert_eq!((told.uid, told.header.as_ref()), (Some(2), &header[..]));
            fetched_header(&header);
            fetched_header(&[b"* 1 FETCH (", &header[..]].concat());
        }
    }
}
