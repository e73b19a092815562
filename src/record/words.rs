//! The words of a line, and which of them may be read by others.
//!
//! What is not known to be harmless goes: strings and literals but in a few places, whole lines of
//! commands that are not known.

use super::mask::{Masks, shape};
use crate::imap::capability::XAPPLEPUSHSERVICE;
use crate::imap::literal::Announcement;
use crate::imap::registration::xapple::{self, RegistrationValue};

/// Longest literal that is a name or a value, in octets; a longer one is content.
const LONGEST_VALUE: u64 = 4096;

/// How the words of a command or response are dealt with, from its first to its last line.
#[derive(Debug)]
pub(super) enum Manner {
    /// Names of mailboxes, numbers, flags: stay.
    Keep,
    /// Strings go, and words that are no keywords of IMAP.
    Strict { labels: bool },
    /// As strict; of words only the names of search keys stay.
    Search,
    /// Everything goes.
    Whole,
    /// A name and a password.
    Login { name: Option<Vec<u8>> },
    /// APPEND: a mailbox, then content.
    Append { named: bool },
    /// Keys and values.
    Pairs { key: Option<Vec<u8>>, of: Pairs },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pairs {
    Registration,
    Id,
    /// An ID as mailchime sends it to the backend.
    OwnId,
}

/// In what form a word is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Atom,
    Quoted,
    Literal,
}

/// Commands whose arguments stay, those that are dealt with in a stricter manner, and no other.
const KEPT: [&str; 26] = [
    "CAPABILITY",
    "NOOP",
    "LOGOUT",
    "STARTTLS",
    "ENABLE",
    "SELECT",
    "EXAMINE",
    "CREATE",
    "DELETE",
    "RENAME",
    "SUBSCRIBE",
    "UNSUBSCRIBE",
    "LIST",
    "LSUB",
    "XLIST",
    "NAMESPACE",
    "STATUS",
    "CHECK",
    "CLOSE",
    "UNSELECT",
    "EXPUNGE",
    "STORE",
    "COPY",
    "MOVE",
    "IDLE",
    "COMPRESS",
];
const STRICT: [&str; 14] = [
    "FETCH",
    "NOTIFY",
    "GETQUOTA",
    "GETQUOTAROOT",
    "SETQUOTA",
    "GETACL",
    "SETACL",
    "DELETEACL",
    "LISTRIGHTS",
    "MYRIGHTS",
    "GETMETADATA",
    "SETMETADATA",
    "UNAUTHENTICATE",
    "CANCELUPDATE",
];
const SEARCHES: [&str; 4] = ["SEARCH", "SORT", "THREAD", "ESEARCH"];
const SEARCH_KEYS: [&str; 61] = [
    "ALL",
    "ANSWERED",
    "BCC",
    "BEFORE",
    "BODY",
    "CC",
    "CHARSET",
    "COUNT",
    "DATE",
    "ARRIVAL",
    "DELETED",
    "DISPLAY",
    "DISPLAYFROM",
    "DISPLAYTO",
    "DRAFT",
    "FLAGGED",
    "FROM",
    "HEADER",
    "IN",
    "KEYWORD",
    "LARGER",
    "MAX",
    "MAILBOXES",
    "MIN",
    "MODSEQ",
    "NEW",
    "NOT",
    "OLD",
    "OLDER",
    "ON",
    "OR",
    "ORDEREDSUBJECT",
    "PARTIAL",
    "RECENT",
    "REFERENCES",
    "REFS",
    "RETURN",
    "REVERSE",
    "SAVE",
    "SEEN",
    "SENTBEFORE",
    "SENTON",
    "SENTSINCE",
    "SINCE",
    "SIZE",
    "SMALLER",
    "SUBJECT",
    "TEXT",
    "TO",
    "UID",
    "UNANSWERED",
    "UNDELETED",
    "UNDRAFT",
    "UNFLAGGED",
    "UNKEYWORD",
    "UNSEEN",
    "UPDATE",
    "US-ASCII",
    "UTF-8",
    "YOUNGER",
    "FUZZY",
];
/// Responses that stay.
const KEPT_DATA: [&str; 16] = [
    "CAPABILITY",
    "ENABLED",
    "FLAGS",
    "LIST",
    "LSUB",
    "XLIST",
    "STATUS",
    "NAMESPACE",
    "SEARCH",
    "SORT",
    "THREAD",
    "ESEARCH",
    "VANISHED",
    "EXISTS",
    "RECENT",
    "EXPUNGE",
];
/// Fields of ID that tell of programs and not of people.
const ID_FIELDS: [&str; 5] = ["name", "version", "os", "os-version", "vendor"];

impl Manner {
    /// That of a command; `None` if it is not known.
    pub(super) fn of_command(verb: &str) -> Option<Self> {
        let known = |list: &[&str]| list.contains(&verb);
        Some(match verb {
            "LOGIN" => Self::Login { name: None },
            "APPEND" | "REPLACE" => Self::Append { named: false },
            "ID" => Self::Pairs { key: None, of: Pairs::Id },
            XAPPLEPUSHSERVICE => Self::Pairs { key: None, of: Pairs::Registration },
            _ if known(&KEPT) => Self::Keep,
            _ if known(&STRICT) => Self::Strict { labels: false },
            _ if known(&SEARCHES) => Self::Search,
            _ => return None,
        })
    }

    /// That of untagged data.
    pub(super) fn of_data(name: &str) -> Self {
        match name {
            "ID" => Self::Pairs { key: None, of: Pairs::Id },
            XAPPLEPUSHSERVICE => Self::Pairs { key: None, of: Pairs::Registration },
            _ if KEPT_DATA.contains(&name) => Self::Keep,
            _ => Self::Strict { labels: false },
        }
    }

    /// Whether a literal here is a value that is to be looked at as a whole.
    pub(super) fn wants(&self, literal: Announcement) -> bool {
        let content = match self {
            Self::Strict { .. } | Self::Search | Self::Whole => true,
            Self::Append { named } => *named,
            Self::Keep | Self::Login { .. } | Self::Pairs { .. } => false,
        };
        !content && literal.length <= LONGEST_VALUE
    }

    /// A word's stand-in, or the word itself. That of a literal is as long as it is.
    pub(super) fn word(&mut self, word: &[u8], form: Form, masks: &mut Masks) -> Vec<u8> {
        match self {
            Self::Keep => masks.text(word),
            // What is no text stays none.
            Self::Whole => word
                .iter()
                .map(|byte| match byte {
                    0x80.. => 0xff,
                    control if control.is_ascii_control() => *control,
                    _ => b'x',
                })
                .collect(),
            Self::Append { named } => {
                let flag = form == Form::Atom && (word.starts_with(b"\\") || is_keyword(word));
                match std::mem::replace(named, true) {
                    false => masks.text(word),
                    true if flag => word.to_vec(),
                    true => vec![b'x'; word.len()],
                }
            }
            Self::Strict { labels } => {
                let keyword = form == Form::Atom && is_keyword(word) && !*labels;
                *labels |= word.eq_ignore_ascii_case(b"X-GM-LABELS");
                if keyword { word.to_vec() } else { vec![b'x'; word.len()] }
            }
            Self::Search => {
                let stays = form == Form::Atom
                    && (is_number_set(word)
                        || SEARCH_KEYS.iter().any(|key| word.eq_ignore_ascii_case(key.as_bytes())));
                if stays { word.to_vec() } else { vec![b'x'; word.len()] }
            }
            Self::Login { name: Some(name) } => {
                let first = masks.is_first(name, word);
                let mask = masks.secret(word, form == Form::Literal);
                *self = Self::Whole;
                if first && form != Form::Literal { b"${password}".to_vec() } else { mask }
            }
            Self::Login { name } => {
                *name = Some(word.to_vec());
                let mask = masks.login_name(word);
                let first = masks.may_be_first(word) && form != Form::Literal;
                if first { b"${user}".to_vec() } else { mask }
            }
            Self::Pairs { key, of } => match (key.clone(), of) {
                (None, _) if word.eq_ignore_ascii_case(b"NIL") => word.to_vec(),
                (None, _) => {
                    let known = word.len() <= 40 && word.iter().all(u8::is_ascii_graphic);
                    *key = Some(word.to_ascii_lowercase());
                    if known { word.to_vec() } else { shape(word) }
                }
                (Some(name), of) => {
                    let value = value(&name, word, *of, masks);
                    // A list of mailboxes ends with its parenthesis.
                    if name != b"mailboxes" {
                        *key = None;
                    }
                    value
                }
            },
        }
    }

    fn closed(&mut self) {
        match self {
            Self::Strict { labels } => *labels = false,
            Self::Pairs { key, .. } => *key = None,
            _ => {}
        }
    }
}

fn value(key: &[u8], word: &[u8], of: Pairs, masks: &mut Masks) -> Vec<u8> {
    let is = |names: &[&str]| names.iter().any(|name| key == name.as_bytes());
    match of {
        Pairs::Registration => match RegistrationValue::of(key) {
            RegistrationValue::Account => masks.uuid(word),
            RegistrationValue::Endpoint => masks.hex(word),
            RegistrationValue::Route => xapple::EXAMPLE_ROUTE.into(),
            RegistrationValue::Harmless => masks.text(word),
            RegistrationValue::Unknown => vec![b'x'; word.len()],
        },
        _ if word.eq_ignore_ascii_case(b"NIL") => word.to_vec(),
        Pairs::Id | Pairs::OwnId if is(&ID_FIELDS) => masks.text(word),
        // mailchime's own fields tell where the client is, which is another place next time.
        Pairs::OwnId if key.starts_with(b"x-") => {
            format!("${{{}}}", String::from_utf8_lossy(key)).into_bytes()
        }
        Pairs::Id | Pairs::OwnId => vec![b'x'; word.len()],
    }
}

/// A keyword, a flag or a number: nothing that a person wrote.
fn is_keyword(word: &[u8]) -> bool {
    let shape = |b: &u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b"$\\.-<>:*,+".contains(b);
    word.len() <= 40 && (word.starts_with(b"\\") || word.iter().all(shape))
}

fn is_number_set(word: &[u8]) -> bool {
    word.iter().all(|b| b.is_ascii_digit() || b":*,$".contains(b))
}

/// Masks the words of `line`, which has no line end and no announcement at its end.
pub(super) fn words(line: &[u8], manner: &mut Manner, masks: &mut Masks) -> Vec<u8> {
    let mut out = Vec::with_capacity(line.len());
    let mut at = 0;
    while let Some(&byte) = line.get(at) {
        match byte {
            b'"' => {
                let (text, end) = quoted(&line[at + 1..]);
                out.push(b'"');
                for byte in manner.word(&text, Form::Quoted, masks) {
                    if matches!(byte, b'"' | b'\\') {
                        out.push(b'\\');
                    }
                    out.push(byte);
                }
                at += 1 + end;
                if line[..at].ends_with(b"\"") {
                    out.push(b'"');
                }
            }
            b' ' | b'(' | b')' | b'[' | b']' => {
                if byte == b')' {
                    manner.closed();
                }
                out.push(byte);
                at += 1;
            }
            _ => {
                let rest = &line[at..];
                let end = rest.iter().position(|b| b" ()[]\"".contains(b)).unwrap_or(rest.len());
                out.extend(manner.word(&rest[..end], Form::Atom, masks));
                at += end;
            }
        }
    }
    out
}

/// The text of a quoted string behind its first quote, and how many bytes it and its end take.
fn quoted(rest: &[u8]) -> (Vec<u8>, usize) {
    let mut text = Vec::new();
    let mut bytes = rest.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return (text, at + 1),
            b'\\' => text.extend(bytes.next().map(|(_, escaped)| *escaped)),
            other => text.push(*other),
        }
    }
    (text, rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_wrote_goes_and_what_programs_say_stays() {
        for (verb, line, expected) in [
            ("FETCH", r#"1:* (UID BODY.PEEK[HEADER.FIELDS (SUBJECT)])"#, None),
            (
                "SEARCH",
                r#"SUBJECT secret TEXT "a b" OR FROM SECRET 1:5"#,
                Some(r#"SUBJECT xxxxxx TEXT "xxx" OR FROM xxxxxx 1:5"#),
            ),
            ("STATUS", r#""My Folder" (MESSAGES)"#, None),
            ("APPEND", r#"INBOX (\Seen) "17-Jul-1996""#, Some(r#"INBOX (\Seen) "xxxxxxxxxxx""#)),
            (
                "ID",
                r#"("name" "iPhone Mail" "x-y" "secret" "os" NIL)"#,
                Some(r#"("name" "iPhone Mail" "x-y" "xxxxxx" "os" NIL)"#),
            ),
            ("SETACL", r#"INBOX bob lrs"#, Some("INBOX xxx xxx")),
        ] {
            let mut manner = Manner::of_command(verb).unwrap();
            let masked = words(line.as_bytes(), &mut manner, &mut Masks::default());
            assert_eq!(String::from_utf8(masked).unwrap(), expected.unwrap_or(line));
        }
        for (name, line, expected) in [
            (
                "FETCH",
                r#"1 (FLAGS (\Seen $Junk) X-GM-LABELS (WORK "a") ENVELOPE ("x" NIL))"#,
                r#"1 (FLAGS (\Seen xxxxx) X-GM-LABELS (xxxx "x") ENVELOPE ("x" NIL))"#,
            ),
            ("LIST", r#"() "/" "a@b.de""#, r#"() "/" "1@x.xx""#),
            (
                "METADATA",
                r#"INBOX (/private/comment "hello")"#,
                r#"INBOX (xxxxxxxxxxxxxxxx "xxxxx")"#,
            ),
        ] {
            let mut manner = Manner::of_data(name);
            let masked = words(line.as_bytes(), &mut manner, &mut Masks::default());
            assert_eq!(String::from_utf8(masked).unwrap(), expected);
        }
        assert!(Manner::of_command("Dear").is_none());
    }
}
