//! METADATA of the server (RFC 5464), as far as a push entry needs it: by that entry Dovecot's notification driver
//! `ox` knows for whom to send events. It is the user's own, so that the user's own session can write it.

use nom::bytes::complete::tag_no_case;
use nom::character::complete::{char, space0, space1};
use nom::combinator::map;
use nom::multi::separated_list0;
use nom::sequence::{delimited, preceded, separated_pair, tuple};

use super::args::{Bytes, astring, quote, string, whole};
use super::capability::Capabilities;
use crate::model::Account;

/// The name of the push entry.
const PUSH_ENTRY: &str = "/private/vendor/vendor.dovecot/http-notify";

/// Asks for the push entry of the user who is logged in.
pub fn get_push_entry() -> String {
    format!("GETMETADATA \"\" {PUSH_ENTRY}")
}

/// Removes it.
pub fn unset_push_entry() -> String {
    format!("SETMETADATA \"\" ({PUSH_ENTRY} NIL)")
}

/// Writes it; `None` where no quoted string can carry the value.
pub fn set_push_entry(value: &str) -> Option<String> {
    let quoted = String::from_utf8(quote(value.as_bytes())?).ok()?;
    Some(format!("SETMETADATA \"\" ({PUSH_ENTRY} {quoted})"))
}

/// The value that has events name this account; `None` where its name has a control character, which would end
/// the name or the value.
pub fn push_entry_of(account: &Account) -> Option<String> {
    let name = account.as_str();
    (!name.contains(char::is_control)).then(|| format!("user={name}"))
}

/// Whether a server with these capabilities keeps such entries.
pub fn keeps_entries(capabilities: &Capabilities) -> bool {
    capabilities.has("METADATA") || capabilities.has("METADATA-SERVER")
}

/// What a whole `* METADATA` response says of the push entry: its value, or that there is none. `None` where it
/// says nothing of it.
pub fn push_entry_in(response: &[u8]) -> Option<Option<Bytes<'_>>> {
    let value = nom::branch::alt((map(string, Some), map(tag_no_case("NIL"), |_| None)));
    let entries = separated_list0(space1, separated_pair(astring, space1, value));
    let entries = delimited(tuple((char('('), space0)), entries, tuple((space0, char(')'))));
    let metadata = tuple((tag_no_case("*"), space1, tag_no_case("METADATA"), space1));
    let read = preceded(metadata, separated_pair(astring, space1, entries));
    let (mailbox, entries) = whole(read)(response)?;
    let is_ours = |name: &Bytes<'_>| name.eq_ignore_ascii_case(PUSH_ENTRY.as_bytes());
    let of_server = mailbox.is_empty();
    entries.into_iter().find(|(name, _)| of_server && is_ours(name)).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_the_value_of_the_entry_or_that_there_is_none() {
        let entry = PUSH_ENTRY;
        for (answer, expected) in [
            (format!("* METADATA \"\" ({entry} \"user=alice\")\r\n"), Some(Some("user=alice"))),
            (format!("* metadata \"\" ({entry} {{6}}\r\nuser=a)\r\n"), Some(Some("user=a"))),
            (format!("* METADATA \"\" ({entry} NIL)\r\n"), Some(None)),
            (format!("* METADATA \"\" (/private/x \"y\" {entry} \"z\")\r\n"), Some(Some("z"))),
            (format!("* METADATA \"\" ({} \"z\")\r\n", entry.to_uppercase()), Some(Some("z"))),
            ("* METADATA \"\" (/private/x \"y\")\r\n".to_owned(), None),
            ("* METADATA \"\" ()\r\n".to_owned(), None),
            (format!("* METADATA INBOX ({entry} \"user=alice\")\r\n"), None),
            (format!("* METADATA \"\" {entry}\r\n"), None),
            (format!("* METADATA \"\" ({entry} user=alice)\r\n"), None),
            ("* OK METADATA\r\n".to_owned(), None),
        ] {
            let value = push_entry_in(answer.as_bytes());
            let value = value.map(|value| value.map(|value| value.into_owned()));
            let expected = expected.map(|value| value.map(|value| value.as_bytes().to_vec()));
            assert_eq!(value, expected, "{answer}");
        }
    }

    #[test]
    fn a_name_stands_in_the_value_as_it_is() {
        let set = |login: &str| {
            push_entry_of(&Account::from_login(login)).and_then(|value| set_push_entry(&value))
        };
        let expected = |value: &str| Some(format!("SETMETADATA \"\" ({PUSH_ENTRY} {value})"));
        assert_eq!(set("alice@example.org"), expected("\"user=alice@example.org\""));
        assert_eq!(set("DOMAIN\\al \"x\""), expected("\"user=DOMAIN\\\\al \\\"x\\\"\""));
        assert_eq!(set("alice\tuser=bob"), None);
        assert_eq!(set("alice\r\nx LOGOUT"), None);
    }
}
