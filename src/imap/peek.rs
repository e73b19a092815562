//! The first bytes of a line: enough to tell what is ours, and no more.
//!
//! Both functions answer [`None`] while the bytes at hand could still become something that
//! matters. A line that has ended is always decided, and so is one longer than [`LONGEST_HEAD`].

use memchr::memchr;

/// Longest tag that is recognised, in bytes.
pub const LONGEST_TAG: usize = 1024;

/// No line needs more than this many bytes to be recognised.
pub const LONGEST_HEAD: usize = LONGEST_TAG + 64;

/// What a backend's line is (RFC 9051 section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response<'a> {
    /// `+`
    Continuation,
    /// OK, NO, BAD, PREAUTH or BYE: its text is for people and announces no literal.
    Status {
        /// `None` when it is untagged.
        tag: Option<&'a [u8]>,
        /// OK, NO, BAD, PREAUTH or BYE.
        status: Status,
        /// Its response code is a capability list.
        capability: bool,
    },
    /// `* CAPABILITY`
    Capability,
    /// `* ENABLED`
    Enabled,
    /// `* STATUS`
    MailboxStatus,
    /// Anything else: data that is not looked at.
    Data,
}

/// The status of a response (RFC 9051 section 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// OK
    Ok,
    /// NO
    No,
    /// BAD
    Bad,
    /// PREAUTH
    Preauth,
    /// BYE
    Bye,
}

/// What a client's line is (RFC 9051 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// A command that mailchime knows.
    Known {
        /// The tag.
        tag: &'a [u8],
        /// The verb.
        verb: Verb,
    },
    /// A command that is not looked at.
    Other {
        /// The tag.
        tag: &'a [u8],
    },
    /// `DONE` (RFC 2177)
    Done,
    /// A tag that is longer than [`LONGEST_TAG`].
    Endless,
    /// Not of the form of a command.
    Garbage,
}

/// The commands that mailchime must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// AUTHENTICATE
    Authenticate,
    /// CAPABILITY
    Capability,
    /// CLOSE
    Close,
    /// COMPRESS (RFC 4978)
    Compress,
    /// EXAMINE
    Examine,
    /// ID (RFC 2971)
    Id,
    /// IDLE (RFC 2177)
    Idle,
    /// LOGIN
    Login,
    /// LOGOUT
    Logout,
    /// NOOP
    Noop,
    /// SELECT
    Select,
    /// STARTTLS
    StartTls,
    /// UNAUTHENTICATE (RFC 8437)
    Unauthenticate,
    /// UNSELECT (RFC 3691)
    Unselect,
    /// XAPPLEPUSHSERVICE
    Register,
}

const VERBS: [(&[u8], Verb); 15] = [
    (b"AUTHENTICATE", Verb::Authenticate),
    (b"CAPABILITY", Verb::Capability),
    (b"CLOSE", Verb::Close),
    (b"COMPRESS", Verb::Compress),
    (b"EXAMINE", Verb::Examine),
    (b"ID", Verb::Id),
    (b"IDLE", Verb::Idle),
    (b"LOGIN", Verb::Login),
    (b"LOGOUT", Verb::Logout),
    (b"NOOP", Verb::Noop),
    (b"SELECT", Verb::Select),
    (b"STARTTLS", Verb::StartTls),
    (b"UNAUTHENTICATE", Verb::Unauthenticate),
    (b"UNSELECT", Verb::Unselect),
    (b"XAPPLEPUSHSERVICE", Verb::Register),
];

const LONGEST_VERB: usize = 17;

const STATUSES: [(&[u8], Status); 5] = [
    (b"OK", Status::Ok),
    (b"NO", Status::No),
    (b"BAD", Status::Bad),
    (b"PREAUTH", Status::Preauth),
    (b"BYE", Status::Bye),
];

/// A word at the start of `rest`, and what follows it.
///
/// `None` while the word may go on beyond the bytes at hand, unless it is already longer than
/// `longest`.
fn word(head: Head<'_>, longest: usize) -> Option<(&[u8], Head<'_>)> {
    let bytes = head.bytes;
    match bytes.iter().take(longest + 1).position(|b| matches!(b, b' ' | b'\r')) {
        Some(end) => Some((&bytes[..end], Head { bytes: &bytes[end..], ..head })),
        None if head.ended => Some((bytes, Head { bytes: &[], ..head })),
        None if bytes.len() > longest => Some((bytes, Head { bytes: &[], ended: true })),
        None => None,
    }
}

/// A part of a line, and whether its line end has been seen.
#[derive(Clone, Copy)]
struct Head<'a> {
    bytes: &'a [u8],
    ended: bool,
}

impl<'a> Head<'a> {
    fn of_line(input: &'a [u8]) -> Self {
        let window = &input[..input.len().min(LONGEST_HEAD)];
        match memchr(b'\n', window) {
            Some(end) => Self { bytes: &window[..end], ended: true },
            None => Self { bytes: window, ended: input.len() > LONGEST_HEAD },
        }
    }

    /// Without leading spaces; `None` when all that is at hand is spaces.
    fn trimmed(self) -> Option<Self> {
        let spaces = self.bytes.iter().take_while(|b| **b == b' ').count();
        let bytes = &self.bytes[spaces..];
        (self.ended || !bytes.is_empty()).then_some(Self { bytes, ..self })
    }

    /// Whether it starts with a response code of this name (without regard to case): `[` and it.
    fn has_code(self, expected: &[u8]) -> Option<bool> {
        if self.bytes.len() > expected.len() {
            let (start, rest) = self.bytes.split_at(expected.len());
            let ends = matches!(rest[0], b' ' | b']' | b'\r');
            return Some(ends && start.eq_ignore_ascii_case(expected));
        }
        if self.ended || !expected[..self.bytes.len()].eq_ignore_ascii_case(self.bytes) {
            return Some(self.bytes.eq_ignore_ascii_case(expected));
        }
        None
    }
}

/// What the response that starts `input` is.
pub fn response(input: &[u8]) -> Option<Response<'_>> {
    let head = Head::of_line(input);
    match head.bytes.first() {
        None if head.ended => return Some(Response::Data),
        None => return None,
        Some(b'+') => return Some(Response::Continuation),
        Some(_) => {}
    }
    let (tag, rest) = word(head, LONGEST_TAG)?;
    let tag = (tag != b"*").then_some(tag);
    let rest = rest.trimmed()?;
    let (name, after) = match word(rest, LONGEST_VERB) {
        Some(found) => found,
        // A word that can become none of ours need not be waited for: a number, say.
        None if !rest.bytes[0].is_ascii_alphabetic() => return Some(Response::Data),
        None => return None,
    };
    if let Some((_, status)) = STATUSES.iter().find(|(word, _)| word.eq_ignore_ascii_case(name)) {
        let text = after.trimmed()?;
        let capability = text.has_code(b"[CAPABILITY")?;
        return Some(Response::Status { tag, status: *status, capability });
    }
    if tag.is_some() {
        return Some(Response::Data);
    }
    Some(match name {
        _ if name.eq_ignore_ascii_case(b"CAPABILITY") => Response::Capability,
        _ if name.eq_ignore_ascii_case(b"ENABLED") => Response::Enabled,
        _ if name.eq_ignore_ascii_case(b"STATUS") => Response::MailboxStatus,
        _ => Response::Data,
    })
}

/// What the command that starts `input` is.
pub fn command(input: &[u8]) -> Option<Command<'_>> {
    let head = Head::of_line(input);
    let (tag, rest) = word(head, LONGEST_TAG)?;
    if tag.len() > LONGEST_TAG {
        return Some(Command::Endless);
    }
    if tag.is_empty() {
        return Some(Command::Garbage);
    }
    if rest.bytes.is_empty() || rest.bytes[0] == b'\r' {
        if !head.ended {
            return None;
        }
        let done = tag.eq_ignore_ascii_case(b"DONE");
        return Some(if done { Command::Done } else { Command::Garbage });
    }
    let (verb, _) = word(rest.trimmed()?, LONGEST_VERB)?;
    if verb.is_empty() {
        return Some(Command::Garbage);
    }
    Some(match VERBS.iter().find(|(name, _)| name.eq_ignore_ascii_case(verb)) {
        Some((_, verb)) => Command::Known { tag, verb: *verb },
        None => Command::Other { tag },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever has been decided early is what the whole line says.
    fn agrees<T: PartialEq + std::fmt::Debug>(line: &[u8], peek: impl Fn(&[u8]) -> Option<T>) -> T {
        let whole = peek(line).expect("a whole line is always decided");
        for cut in 0..line.len() {
            if let Some(early) = peek(&line[..cut]) {
                assert_eq!(early, whole, "after {cut} bytes of {}", line.escape_ascii());
            }
        }
        whole
    }

    #[test]
    fn responses_are_told_by_their_first_bytes() {
        let status = |tag: Option<&'static str>, status, capability| Response::Status {
            tag: tag.map(str::as_bytes),
            status,
            capability,
        };
        for (line, expected) in [
            ("+ idling\r\n", Response::Continuation),
            ("+\r\n", Response::Continuation),
            ("* CAPABILITY IMAP4rev1\r\n", Response::Capability),
            ("* capability imap4rev1 \r\n", Response::Capability),
            ("*  CAPABILITY X\n", Response::Capability),
            ("* CAPABILITY\r\n", Response::Capability),
            ("* CAPABILITYX\r\n", Response::Data),
            ("* OK [CAPABILITY IMAP4rev1] hi\r\n", status(None, Status::Ok, true)),
            ("* OK [CAPABILITYX] hi\r\n", status(None, Status::Ok, false)),
            ("* OK [CAPABILITY-X Y] hi\r\n", status(None, Status::Ok, false)),
            ("* OK [CAPABILITY] hi\r\n", status(None, Status::Ok, true)),
            ("* OK\r\n", status(None, Status::Ok, false)),
            ("* ok [capability x] hi\r\n", status(None, Status::Ok, true)),
            ("* OK [UIDVALIDITY 3] x\r\n", status(None, Status::Ok, false)),
            ("* PREAUTH [CAPABILITY X] x\r\n", status(None, Status::Preauth, true)),
            ("* BYE gone {5}\r\n", status(None, Status::Bye, false)),
            ("a1 OK [CAPABILITY X] in\r\n", status(Some("a1"), Status::Ok, true)),
            ("a1 NO [ALERT] x\r\n", status(Some("a1"), Status::No, false)),
            ("a1 BAD\r\n", status(Some("a1"), Status::Bad, false)),
            ("* OKAY\r\n", Response::Data),
            ("* ENABLED UTF8=ACCEPT\r\n", Response::Enabled),
            ("* STATUS INBOX (MESSAGES 1)\r\n", Response::MailboxStatus),
            ("*  22279 EXISTS\r\n", Response::Data),
            ("* 1 FETCH (FLAGS ())\r\n", Response::Data),
            ("* SEARCH 1 2\r\n", Response::Data),
            ("\r\n", Response::Data),
            ("* \r\n", Response::Data),
            ("*\r\n", Response::Data),
            ("garbage\r\n", Response::Data),
        ] {
            assert_eq!(agrees(line.as_bytes(), |b| response(b).map(own)), own(expected), "{line}");
        }
    }

    #[test]
    fn numbers_are_answered_without_waiting() {
        assert_eq!(response(b"* 1"), Some(Response::Data));
        assert_eq!(response(b"* "), None);
        assert_eq!(response(b"* CAP"), None);
        assert_eq!(response(b"a1 OK [CAP"), None);
        assert_eq!(response(&[b'x'; LONGEST_HEAD + 1]), Some(Response::Data));
    }

    #[test]
    fn commands_are_told_by_tag_and_verb() {
        let known = |verb| Command::Known { tag: b"t1", verb };
        for (line, expected) in [
            ("t1 XAPPLEPUSHSERVICE \"a\"\r\n", known(Verb::Register)),
            ("t1 xApplePushService\r\n", known(Verb::Register)),
            ("t1 IDLE\r\n", known(Verb::Idle)),
            ("t1  IDLE\r\n", known(Verb::Idle)),
            ("t1 IDLE\n", known(Verb::Idle)),
            ("t1 ID NIL\r\n", known(Verb::Id)),
            ("t1 IDLER\r\n", Command::Other { tag: b"t1" }),
            ("t1 UID FETCH 1 FLAGS\r\n", Command::Other { tag: b"t1" }),
            ("t1 XAPPLEPUSHSERVICEXXXXXXXXXXX\r\n", Command::Other { tag: b"t1" }),
            ("DONE\r\n", Command::Done),
            ("done\n", Command::Done),
            ("DONE \r\n", Command::Garbage),
            ("DONE x\r\n", Command::Other { tag: b"DONE" }),
            ("\r\n", Command::Garbage),
            (" x\r\n", Command::Garbage),
            ("x\r\n", Command::Garbage),
        ] {
            let peeked = agrees(line.as_bytes(), |b| command(b).map(own_command));
            assert_eq!(peeked, own_command(expected), "{line}");
        }
        assert_eq!(command(&[b'x'; LONGEST_TAG + 1]), Some(Command::Endless));
        assert_eq!(command(&[b'x'; LONGEST_TAG]), None);
    }

    fn own(response: Response<'_>) -> String {
        format!("{response:?}")
    }

    fn own_command(command: Command<'_>) -> String {
        format!("{command:?}")
    }
}
