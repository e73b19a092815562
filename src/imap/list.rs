//! LIST responses: which mailboxes there are.

use std::borrow::Cow;

use nom::Parser;
use nom::branch::alt;
use nom::bytes::complete::{tag_no_case, take_while1};
use nom::character::complete::{char, space0, space1};
use nom::combinator::map;
use nom::multi::separated_list0;
use nom::sequence::{delimited, preceded, tuple};

use super::args::{Bytes, astring, string, whole};

/// A LIST response (RFC 9051 section 7.3.1).
#[derive(Debug, PartialEq, Eq)]
pub struct Listed<'a> {
    /// As they are spelled, with their backslashes.
    pub attributes: Vec<&'a [u8]>,
    /// The mailbox as it is spelled.
    pub name: Bytes<'a>,
}

impl Listed<'_> {
    /// Whether it has this attribute, whose name begins with a backslash, in any case.
    pub fn has(&self, attribute: &str) -> bool {
        self.attributes.iter().any(|it| it.eq_ignore_ascii_case(attribute.as_bytes()))
    }
}

/// What a whole response says, if it is a LIST response; what follows the name is not looked at.
pub fn listed(response: &[u8]) -> Option<Listed<'_>> {
    let attribute =
        || take_while1(|b: u8| b.is_ascii_graphic() && !matches!(b, b'(' | b')' | b'"'));
    let attributes = separated_list0(space1, attribute());
    let attributes = delimited(tuple((char('('), space0)), attributes, tuple((space0, char(')'))));
    let nil = map(tag_no_case("NIL"), |_| Cow::Borrowed(&b""[..]));
    let delimiter = alt((string, nil));
    let start = tuple((tag_no_case("*"), space1, tag_no_case("LIST"), space1));
    let list = tuple((attributes, space1, delimiter, space1, astring));
    let (rest, (attributes, _, _, _, name)) =
        preceded::<_, _, _, nom::error::Error<_>, _, _>(start, list).parse(response).ok()?;
    // RFC 5258 may add more.
    let ends = rest.first() == Some(&b' ') || whole(space0)(rest).is_some();
    ends.then_some(Listed { attributes, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_of_many_servers() {
        for (response, attributes, name) in [
            ("* LIST (\\HasNoChildren) \"/\" INBOX\r\n", &["\\HasNoChildren"][..], "INBOX"),
            ("* list () NIL \"a \\\"b\"\r\n", &[], "a \"b"),
            (
                "*  LIST  ( \\Noselect  \\Sent ) \".\" {3}\r\na b\r\n",
                &["\\Noselect", "\\Sent"],
                "a b",
            ),
            ("* LIST () \"/\" x (\"OLDNAME\" (\"y\"))\r\n", &[], "x"),
        ] {
            let listed = listed(response.as_bytes()).expect(response);
            let expected: Vec<_> = attributes.iter().map(|it| it.as_bytes()).collect();
            assert_eq!((listed.attributes, listed.name.as_ref()), (expected, name.as_bytes()));
        }
        for bad in
            ["* LIST\r\n", "* LSUB () \"/\" x\r\n", "* LIST () \"/\"\r\n", "* LIST () / x\r\n"]
        {
            assert_eq!(listed(bad.as_bytes()), None, "{bad}");
        }
        assert!(listed(b"* LIST (\\NOSELECT) \"/\" x\r\n").unwrap().has("\\Noselect"));
    }
}
