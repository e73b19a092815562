//! Mailbox names on the wire: modified UTF-7 (RFC 3501 section 5.1.3).

use base64::Engine;
use base64::alphabet::IMAP_MUTF7;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::model::Mailbox;

/// Longest name that is taken, in bytes on the wire.
pub const LONGEST_NAME: usize = 1024;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &IMAP_MUTF7,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// The mailbox that `wire` names: UTF-8 after ENABLE UTF8=ACCEPT (RFC 6855) or IMAP4rev2 (RFC 9051
/// section 5.1), modified UTF-7 otherwise.
///
/// `None` for a name that would not be spelled so again: a watcher could not ask for it, and two
/// spellings of one name must not become two mailboxes.
pub fn decode(wire: &[u8], utf8: bool) -> Option<Mailbox> {
    let wire = std::str::from_utf8(wire).ok()?;
    if wire.is_empty() || wire.len() > LONGEST_NAME || wire.chars().any(char::is_control) {
        return None;
    }
    if wire.eq_ignore_ascii_case(Mailbox::INBOX) {
        return Some(Mailbox::inbox());
    }
    if utf8 {
        return Some(Mailbox::new(wire));
    }
    let name = decode_utf7(wire)?;
    (encode_utf7(&name) == wire && !name.chars().any(char::is_control)).then(|| Mailbox::new(&name))
}

/// The mailbox's name in modified UTF-7.
pub fn encode(mailbox: &Mailbox) -> String {
    encode_utf7(mailbox.as_str())
}

fn decode_utf7(wire: &str) -> Option<String> {
    let mut name = String::with_capacity(wire.len());
    let mut rest = wire;
    while let Some((plain, shifted)) = rest.split_once('&') {
        name.push_str(plain);
        let (base64, after) = shifted.split_once('-')?;
        if base64.is_empty() {
            name.push('&');
        } else {
            let bytes = BASE64.decode(base64).ok()?;
            let (pairs, odd) = bytes.as_chunks::<2>();
            if !odd.is_empty() {
                return None;
            }
            let units = pairs.iter().map(|pair| u16::from_be_bytes(*pair));
            for unit in char::decode_utf16(units) {
                name.push(unit.ok()?);
            }
        }
        rest = after;
    }
    name.push_str(rest);
    Some(name)
}

fn encode_utf7(name: &str) -> String {
    let mut wire = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let printable = |c: char| matches!(c, ' '..='~');
        let end = rest.find(|c| printable(c) != printable(first)).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        if printable(first) {
            wire.push_str(&run.replace('&', "&-"));
        } else {
            let units: Vec<u8> = run.encode_utf16().flat_map(u16::to_be_bytes).collect();
            wire.push('&');
            BASE64.encode_string(units, &mut wire);
            wire.push('-');
        }
        rest = after;
    }
    wire
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_names() {
        for (wire, name) in [
            ("Notes", "Notes"),
            ("iNbOx", "INBOX"),
            ("Entw&APw-rfe", "Entwürfe"),
            ("~peter/mail/&U,BTFw-/&ZeVnLIqe-", "~peter/mail/台北/日本語"),
            ("A&-B", "A&B"),
            ("&2D3eAA-", "😀"),
            ("a \"b\\", "a \"b\\"),
        ] {
            assert_eq!(decode(wire.as_bytes(), false).unwrap().as_str(), name);
            if name != "INBOX" {
                assert_eq!(encode(&Mailbox::new(name)), wire);
            }
        }
    }

    #[test]
    fn names_that_have_no_single_spelling_are_refused() {
        for wire in [
            "",
            "A&B",
            "&",
            "A&AGI-",
            "&APw",
            "&!!!-",
            "&2D0-",
            "Entwürfe",
            "&AA-",
            "a\nb",
            "&AAo-",
            "&APw-&APw-",
        ] {
            assert_eq!(decode(wire.as_bytes(), false), None, "{wire}");
        }
        assert_eq!(decode(b"\xff", true), None);
        assert_eq!(decode(&[b'x'; LONGEST_NAME + 1], false), None);
    }

    #[test]
    fn utf8_names_are_taken_as_they_are() {
        assert_eq!(decode("Entwürfe & mehr".as_bytes(), true).unwrap().as_str(), "Entwürfe & mehr");
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(name in "\\PC{1,30}") {
            let mailbox = Mailbox::new(&name);
            prop_assert_eq!(decode(encode(&mailbox).as_bytes(), false), Some(mailbox));
        }
    }
}
