//! The two forms in which Cyrus writes a notification to its `notifysocket`.
//!
//! ```text
//! method NUL class NUL priority NUL user NUL mailbox NUL nopt NUL {option NUL} message NUL [file]
//! NOTIFY %(METHOD m CLASS c PRIORITY p USER u MAILBOX m OPTIONS (…) MESSAGE {392+}… FILEPATH NIL)
//! ```
//!
//! The first is a datagram, the second goes over a connection (`dlist:`), where values come as atoms, quoted or
//! as literals. Both are Cyrus's own: imap/notify.c and imap/dlist.c.

use nom::branch::alt;
use nom::bytes::streaming::{tag, tag_no_case, take, take_while1};
use nom::character::streaming::{char, u32 as number};
use nom::combinator::{map, opt, value};
use nom::error::{Error, ErrorKind};
use nom::multi::separated_list0;
use nom::sequence::{delimited, pair, preceded, separated_pair, terminated};
use nom::{Err, IResult};

/// The longest notification, in bytes. Cyrus sends at most 64 KiB.
pub(in crate::intake) const LONGEST: usize = 96 * 1024;

/// Most options of a notification.
const MOST_OPTIONS: usize = 64;

/// What is kept of a notification.
#[derive(Default, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(in crate::intake) struct Notification {
    /// `EVENT`, whose message is JSON; `MAIL`, whose user and mailbox are set; or another one.
    pub(in crate::intake) class: Vec<u8>,
    pub(in crate::intake) user: Vec<u8>,
    pub(in crate::intake) mailbox: Vec<u8>,
    pub(in crate::intake) message: Vec<u8>,
}

/// What bytes of a connection are.
#[cfg_attr(test, derive(Debug, PartialEq, Eq))]
pub(in crate::intake) enum Parsed {
    Whole(Notification),
    /// More is to come.
    Incomplete,
    /// It has at least [`LONGEST`] bytes, or says that it will have.
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
    Some(Notification {
        class: class?.to_vec(),
        user: user?.to_vec(),
        mailbox: mailbox?.to_vec(),
        message: message.to_vec(),
    })
}

/// What the bytes that a connection has brought so far say.
pub(in crate::intake) fn of_stream(bytes: &[u8]) -> Parsed {
    match notify(bytes) {
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
        for (key, value) in fields {
            let place = match key {
                b"CLASS" => &mut notification.class,
                b"USER" => &mut notification.user,
                b"MAILBOX" => &mut notification.mailbox,
                b"MESSAGE" => &mut notification.message,
                _ => continue,
            };
            *place = value;
        }
        notification
    })(bytes)
}

/// A string, or a list, of which nothing is kept. NIL is empty.
fn field_value(bytes: &[u8]) -> IResult<&[u8], Vec<u8>> {
    let list = delimited(char('('), separated_list0(char(' '), string), char(')'));
    alt((string, value(Vec::new(), list)))(bytes)
}

fn string(bytes: &[u8]) -> IResult<&[u8], Vec<u8>> {
    let of_atom = |atom: &[u8]| if atom == b"NIL" { Vec::new() } else { atom.to_vec() };
    alt((map(literal, <[u8]>::to_vec), quoted, map(atom, of_atom)))(bytes)
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

fn quoted(bytes: &[u8]) -> IResult<&[u8], Vec<u8>> {
    let (mut rest, _) = char('"')(bytes)?;
    let mut text = Vec::new();
    loop {
        let (after, byte) = take(1_usize)(rest)?;
        rest = after;
        match byte {
            b"\"" => return Ok((rest, text)),
            b"\\" => {
                let (after, escaped) = take(1_usize)(rest)?;
                rest = after;
                text.extend_from_slice(escaped);
            }
            plain => text.extend_from_slice(plain),
        }
    }
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
}
