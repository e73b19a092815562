//! The two forms in which Cyrus writes a notification to its `notifysocket`.
//!
//! ```text
//! method NUL class NUL priority NUL user NUL mailbox NUL nopt NUL {option NUL} message NUL [file]
//! NOTIFY %(METHOD m CLASS c PRIORITY p USER u MAILBOX m OPTIONS (…) MESSAGE {392+}… FILEPATH NIL)
//! ```
//!
//! The first is a datagram, the second goes over a connection (`dlist:`), where values come as atoms, quoted or
//! as literals. Both are Cyrus's own: imap/notify.c and imap/dlist.c.
//!
//! The message of the class `MAIL` is the sender and the subject of a mail. Of a class other than `EVENT` it is not
//! copied.

use nom::branch::alt;
use nom::bytes::streaming::{tag, tag_no_case, take, take_while1};
use nom::character::streaming::{char, u32 as number};
use nom::combinator::{map, opt, value};
use nom::error::{Error, ErrorKind};
use nom::multi::separated_list0;
use nom::sequence::{delimited, pair, preceded, separated_pair, terminated};
use nom::{Err, IResult, Needed};

/// The longest notification, in bytes. Cyrus sends at most 64 KiB.
pub(in crate::intake) const LONGEST: usize = 96 * 1024;

/// Most options of a notification.
const MOST_OPTIONS: usize = 64;

/// The class whose message is JSON.
pub(in crate::intake) const EVENT: &[u8] = b"EVENT";

/// What is kept of a notification.
#[derive(Default, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(in crate::intake) struct Notification {
    /// `EVENT`, whose message is JSON; `MAIL`, whose user and mailbox are set; or another one.
    pub(in crate::intake) class: Vec<u8>,
    pub(in crate::intake) user: Vec<u8>,
    pub(in crate::intake) mailbox: Vec<u8>,
    /// Of an `EVENT`; empty of any other class.
    pub(in crate::intake) message: Vec<u8>,
}

/// What bytes of a connection are.
#[cfg_attr(test, derive(Debug, PartialEq, Eq))]
pub(in crate::intake) enum Parsed {
    Whole(Notification),
    /// More is to come.
    Incomplete,
    /// It has more than [`LONGEST`] bytes, or says that it will have.
    TooLarge,
    Malformed,
}

/// What a datagram says; `None` if it is no notification.
pub(in crate::intake) fn of_datagram(datagram: &[u8]) -> Option<Notification> {
    let mut fields = datagram.split(|byte| *byte == 0);
    let [_method, class, _priority, user, mailbox] = std::array::from_fn(|_| fields.next());
    let options: usize = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    if options > MOST_OPTIONS {
        return None;
    }
    let message = fields.nth(options)?;
    // Without a NUL behind it the message may have been cut off.
    fields.next()?;
    let class = class?;
    Some(Notification {
        class: class.to_vec(),
        user: user?.to_vec(),
        mailbox: mailbox?.to_vec(),
        message: if class == EVENT { message.to_vec() } else { Vec::new() },
    })
}

/// What the bytes that a connection has brought so far say. How many came at once makes no difference: none behind
/// [`LONGEST`] is looked at.
pub(in crate::intake) fn of_stream(bytes: &[u8]) -> Parsed {
    let looked_at = &bytes[..bytes.len().min(LONGEST)];
    match notify(looked_at) {
        Ok((_, notification)) => Parsed::Whole(notification),
        Err(Err::Incomplete(_)) if bytes.len() < LONGEST => Parsed::Incomplete,
        Err(Err::Incomplete(_)) => Parsed::TooLarge,
        Err(Err::Failure(error)) if error.code == ErrorKind::TooLarge => Parsed::TooLarge,
        Err(_) => Parsed::Malformed,
    }
}

fn notify(bytes: &[u8]) -> IResult<&[u8], Notification> {
    let field = separated_pair(atom, char(' '), field_value);
    let fields = delimited(tag("%("), separated_list0(char(' '), field), tag(")"));
    let line = terminated(fields, pair(opt(char('\r')), char('\n')));
    map(preceded(tag_no_case("NOTIFY "), line), |fields| {
        let mut notification = Notification::default();
        let mut message = FieldValue::None;
        for (key, value) in fields {
            match key {
                b"CLASS" => notification.class = value.copied(),
                b"USER" => notification.user = value.copied(),
                b"MAILBOX" => notification.mailbox = value.copied(),
                b"MESSAGE" => message = value,
                _ => {}
            }
        }
        if notification.class == EVENT {
            notification.message = message.copied();
        }
        notification
    })(bytes)
}

/// A value where it was written.
#[derive(Clone, Copy)]
enum FieldValue<'a> {
    /// NIL, or a list.
    None,
    Plain(&'a [u8]),
    /// What stands between the quotes.
    Quoted(&'a [u8]),
}

impl FieldValue<'_> {
    fn copied(self) -> Vec<u8> {
        match self {
            Self::None => Vec::new(),
            Self::Plain(text) => text.to_vec(),
            Self::Quoted(text) => {
                let (mut copied, mut bytes) = (Vec::new(), text.iter());
                while let Some(byte) = bytes.next() {
                    copied.extend(if *byte == b'\\' { bytes.next() } else { Some(byte) });
                }
                copied
            }
        }
    }
}

fn field_value(bytes: &[u8]) -> IResult<&[u8], FieldValue<'_>> {
    let list = delimited(char('('), separated_list0(char(' '), string), char(')'));
    alt((string, value(FieldValue::None, list)))(bytes)
}

fn string(bytes: &[u8]) -> IResult<&[u8], FieldValue<'_>> {
    alt((map(literal, FieldValue::Plain), map(quoted, FieldValue::Quoted), map(atom, of_atom)))(
        bytes,
    )
}

fn of_atom(atom: &[u8]) -> FieldValue<'_> {
    if atom == b"NIL" { FieldValue::None } else { FieldValue::Plain(atom) }
}

fn atom(bytes: &[u8]) -> IResult<&[u8], &[u8]> {
    take_while1(|byte: u8| byte.is_ascii_graphic() && !b"()\"{%".contains(&byte))(bytes)
}

fn literal(bytes: &[u8]) -> IResult<&[u8], &[u8]> {
    let most = u32::try_from(LONGEST).unwrap_or(u32::MAX);
    let mut head = delimited(char('{'), number, tag("+}\r\n"));
    let (rest, length) = head(bytes)?;
    if length >= most {
        return Err(Err::Failure(Error::new(bytes, ErrorKind::TooLarge)));
    }
    take(length)(rest)
}

/// What stands between quotes, with the backslashes.
fn quoted(bytes: &[u8]) -> IResult<&[u8], &[u8]> {
    let (text, _) = char('"')(bytes)?;
    let mut escaped = false;
    for (at, byte) in text.iter().enumerate() {
        match byte {
            b'"' if !escaped => return Ok((&text[at + 1..], &text[..at])),
            byte => escaped = !escaped && *byte == b'\\',
        }
    }
    Err(Err::Incomplete(Needed::new(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(message: &str) -> Notification {
        Notification { class: b"EVENT".into(), message: message.into(), ..Notification::default() }
    }

    #[test]
    fn a_datagram_is_a_notification() {
        // As Cyrus 3.6.1 has sent them.
        assert_eq!(of_datagram(b"external\0EVENT\0\0\0\x000\0{}\0"), Some(event("{}")));
        let mail = of_datagram(b"log\0MAIL\0\0alice\0INBOX\x000\0From: private\n\0").unwrap();
        assert_eq!(
            (&*mail.class, &*mail.user, &*mail.mailbox),
            (&b"MAIL"[..], &b"alice"[..], &b"INBOX"[..])
        );
        assert_eq!(of_datagram(b"external\0EVENT\0\0\0\x002\0a\0b\0{}\0file"), Some(event("{}")));
        for bad in [
            &b""[..],
            b"\0\0\0\0\0\0\0",
            b"external\0EVENT\0\0\0\x000\0{}",
            b"external\0EVENT\0\0\0\0-1\0{}\0",
            b"external\0EVENT\0\0\0\x002\0{}\0",
            b"external\0EVENT\0\0\0\x0099999999999\0{}\0",
            b"external\0EVENT\0\0\0\0\xff\0{}\0",
        ] {
            assert_eq!(of_datagram(bad), None, "{bad:?}");
        }
    }

    /// It is the sender and the subject of a mail.
    #[test]
    fn the_message_of_another_class_is_not_kept() {
        let mail = Notification {
            class: b"MAIL".into(),
            user: b"alice".into(),
            mailbox: b"INBOX".into(),
            message: Vec::new(),
        };
        let of_datagram = of_datagram(b"log\0MAIL\0\0alice\0INBOX\x000\0From: private\n\0");
        assert_eq!(of_datagram.as_ref(), Some(&mail));
        for message in ["{15+}\r\nFrom: private\r\n", "\"From: \\\"private\\\"\"", "private"] {
            // Whichever comes first.
            for fields in [
                format!("CLASS MAIL USER alice MAILBOX INBOX MESSAGE {message}"),
                format!("MESSAGE {message} USER alice MAILBOX INBOX CLASS MAIL"),
            ] {
                let Parsed::Whole(notification) =
                    of_stream(format!("NOTIFY %({fields})\r\n").as_bytes())
                else {
                    panic!("{fields}")
                };
                assert_eq!(notification, mail, "{fields}");
            }
        }
    }

    #[test]
    fn a_connection_brings_a_notification_whole_or_not_yet() {
        // As Cyrus 3.6.1 has sent it.
        let whole =
            b"NOTIFY %(METHOD mailchime CLASS EVENT PRIORITY NIL USER NIL MAILBOX NIL OPTIONS () \
                      MESSAGE {15+}\r\n{\"event\":\"(\\r\"} FILEPATH NIL)\r\n";
        assert_eq!(of_stream(whole), Parsed::Whole(event("{\"event\":\"(\\r\"}")));
        for end in 0..whole.len() {
            assert_eq!(of_stream(&whole[..end]), Parsed::Incomplete, "{end}");
        }
        let other =
            b"NOTIFY %(CLASS {4+}\r\nMAIL USER \"a\\\"b\" MAILBOX INBOX OPTIONS (x \"y\"))\n";
        let expected = Notification {
            class: b"MAIL".into(),
            user: b"a\"b".into(),
            mailbox: b"INBOX".into(),
            message: Vec::new(),
        };
        assert_eq!(of_stream(other), Parsed::Whole(expected));
    }

    #[test]
    fn what_is_no_notification_is_malformed_and_what_is_too_long_is_known_by_then() {
        for bad in [
            "GET / HTTP/1.1\r\n",
            "\u{16}\u{3}\u{1}",
            "NOTIFY (CLASS EVENT)\r\n",
            "NOTIFY %(CLASS)\r\n",
            "NOTIFY %(CLASS ((((((a",
            "NOTIFY %(MESSAGE {99999999999+}\r\n",
            "NOTIFY %(CLASS EVENT)x",
        ] {
            assert_eq!(of_stream(bad.as_bytes()), Parsed::Malformed, "{bad}");
        }
        let endless = [&b"NOTIFY %(CLASS "[..], &vec![b'a'; LONGEST]].concat();
        assert_eq!(of_stream(&endless), Parsed::TooLarge);
        assert_eq!(of_stream(b"NOTIFY %(MESSAGE {99999+}\r\n"), Parsed::TooLarge);
    }

    #[test]
    fn what_is_too_long_is_so_whole_and_in_pieces() {
        let of = |length: usize| {
            let (head, tail) = ("NOTIFY %(CLASS EVENT OPTIONS (\"", "\"))\r\n");
            [head, &"a".repeat(length - head.len() - tail.len()), tail].concat()
        };
        assert_eq!(of_stream(of(LONGEST).as_bytes()), Parsed::Whole(event("")));
        let long = of(LONGEST + 1);
        assert_eq!(of_stream(&long.as_bytes()[..LONGEST]), Parsed::TooLarge);
        assert_eq!(of_stream(long.as_bytes()), Parsed::TooLarge);
    }
}
