//! What takes the place of what nobody else may read.
//!
//! The same value has the same stand-in throughout a recording, so that a dialogue still makes
//! sense. A stand-in is as long as what it stands for, but for passwords, whose length is given in
//! powers of two only.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::imap::sasl;

/// Names shorter than this are not looked for in texts: they would be found everywhere.
const SHORTEST_NAME: usize = 3;

/// Most stand-ins that are remembered; what comes then is not told apart.
const MOST_KNOWN: usize = 1000;

/// Most names that are looked for in texts.
const MOST_NAMES: usize = 20;

/// The stand-ins of one recording.
#[derive(Default)]
pub(super) struct Masks {
    known: HashMap<(MaskKind, Vec<u8>), Vec<u8>>,
    /// Login names, and their parts before an `@`: looked for in every text.
    names: Vec<Vec<u8>>,
    /// Who logged in first, and with which password.
    first: Option<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum MaskKind {
    Name,
    Secret,
    Hex,
    Uuid,
}

impl Masks {
    /// A login name or an address: `1xxxx@xxxxxxx.xxx`.
    pub(super) fn name(&mut self, name: &[u8]) -> Vec<u8> {
        self.stand_in(MaskKind::Name, name, |name, number| {
            let mut mask = shape(name);
            for (place, digit) in mask.iter_mut().zip(number.to_string().bytes()) {
                if *place == b'x' {
                    *place = digit;
                }
            }
            if !name.is_ascii() {
                accent(&mut mask);
            }
            mask
        })
    }

    /// A login name that is looked for from here on.
    pub(super) fn login_name(&mut self, name: &[u8]) -> Vec<u8> {
        let local = name.iter().rposition(|b| *b == b'@').map_or(name, |at| &name[..at]);
        for part in [name, local] {
            let fits = part.len() >= SHORTEST_NAME && self.names.len() < MOST_NAMES;
            if fits && !self.names.iter().any(|known| known == part) {
                self.names.push(part.to_vec());
            }
        }
        self.names.sort_by_key(|name| std::cmp::Reverse(name.len()));
        self.name(name)
    }

    /// A password; `exact` is as long as it is. Whether IMAP could write it as an atom, a quoted
    /// string or only as a literal stays, since that decides what is said.
    pub(super) fn secret(&mut self, secret: &[u8], exact: bool) -> Vec<u8> {
        self.stand_in(MaskKind::Secret, secret, |secret, _| {
            // Only a literal can tell the others (RFC 9051 section 9, quoted), with their length.
            let quotable = secret.is_ascii() && !secret.iter().any(|b| b"\0\r\n".contains(b));
            // An empty one hides nothing.
            let exact = exact || secret.is_empty() || !quotable;
            let length = if exact { secret.len() } else { length_class(secret.len()) };
            let mut mask = vec![b'x'; length];
            let atom = |b: &u8| b.is_ascii_graphic() && !b"(){%*\"\\".contains(b);
            if !quotable {
                accent(&mut mask);
            } else if !secret.iter().all(atom) && length >= 1 {
                // Without a blank it may have come unquoted.
                mask[length / 2] = if secret.contains(&b' ') { b' ' } else { b'%' };
            }
            mask
        })
    }

    /// An id in hex digits: a number in as many of them.
    pub(super) fn hex(&mut self, id: &[u8]) -> Vec<u8> {
        self.stand_in(MaskKind::Hex, id, |id, number| {
            if id.iter().all(u8::is_ascii_hexdigit) {
                format!("{number:0width$x}", width = id.len()).into_bytes()
            } else {
                shape(id)
            }
        })
    }

    /// A UUID: a number in its form.
    pub(super) fn uuid(&mut self, id: &[u8]) -> Vec<u8> {
        self.stand_in(MaskKind::Uuid, id, |id, number| {
            let dashes: Vec<_> = (0..id.len()).filter(|at| id[*at] == b'-').collect();
            if id.len() == 36 && dashes == [8, 13, 18, 23] {
                format!("00000000-0000-0000-0000-{number:012X}").into_bytes()
            } else {
                shape(id)
            }
        })
    }

    /// A text that stays, but for addresses and login names in it.
    pub(super) fn text(&mut self, text: &[u8]) -> Vec<u8> {
        let text = self.without_addresses(text);
        let mut masked = text;
        for name in self.names.clone() {
            let mask = self.name(&name);
            let mut at = 0;
            while let Some(found) = memchr::memmem::find(&masked[at..], &name) {
                let start = at + found;
                let end = start + name.len();
                let part = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
                let is_word = !part(start.checked_sub(1).and_then(|before| masked.get(before)))
                    && !part(masked.get(end));
                if is_word {
                    masked[start..end].copy_from_slice(&mask);
                }
                at = end;
            }
        }
        masked
    }

    /// Text for people: besides, whatever looks like an address of a machine or the number of a
    /// session goes.
    pub(super) fn human(&mut self, text: &[u8]) -> Vec<u8> {
        let text = self.text(text);
        let mut masked = Vec::with_capacity(text.len());
        for word in text.split_inclusive(|b| *b == b' ') {
            let core = word.trim_ascii();
            let odd = core.len() >= 6 && core.iter().any(u8::is_ascii_digit);
            let url = memchr::memmem::find(core, b"://").is_some();
            let host = core.windows(3).any(|part| {
                part[1] == b'.' && part[0].is_ascii_alphabetic() && part[2].is_ascii_alphabetic()
            });
            if ((odd || host) && !core.contains(&b'@')) || url {
                masked.extend(shape(word));
            } else {
                masked.extend_from_slice(word);
            }
        }
        masked
    }

    fn without_addresses(&mut self, text: &[u8]) -> Vec<u8> {
        let local = |b: &u8| b.is_ascii_alphanumeric() || *b >= 0x80 || b"._%+-='".contains(b);
        let domain = |b: &u8| b.is_ascii_alphanumeric() || *b >= 0x80 || b".-".contains(b);
        let mut masked = text.to_vec();
        let mut at = 0;
        while let Some(found) = memchr::memchr(b'@', &text[at..]) {
            let sign = at + found;
            let start = sign - text[..sign].iter().rev().take_while(|b| local(b)).count();
            let end = sign + 1 + text[sign + 1..].iter().take_while(|b| domain(b)).count();
            if start < sign && end > sign + 1 {
                let mask = self.name(&text[start..end]);
                masked[start..end].copy_from_slice(&mask);
            }
            at = end.max(sign + 1);
        }
        masked
    }

    /// Whether nobody but this one has logged in yet.
    pub(super) fn may_be_first(&self, name: &[u8]) -> bool {
        is_setting(name) && self.first.as_ref().is_none_or(|(first, _)| first == name)
    }

    /// Remembers who logs in first; `true` if it is they who do so now.
    pub(super) fn is_first(&mut self, name: &[u8], secret: &[u8]) -> bool {
        if !is_setting(name) || !is_setting(secret) {
            return false;
        }
        let first = self.first.get_or_insert_with(|| (name.to_vec(), secret.to_vec()));
        first.0 == name && first.1 == secret
    }

    /// The stand-ins of who logged in first.
    pub(super) fn first(&mut self) -> Option<(Vec<u8>, Vec<u8>)> {
        let (name, secret) = self.first.clone()?;
        Some((self.name(&name), self.secret(&secret, false)))
    }

    /// A message of a SASL mechanism, in base64.
    pub(super) fn sasl(&mut self, mechanism: &str, message: &[u8], index: usize) -> Vec<u8> {
        if matches!(message, b"" | b"=" | b"*" | b"VXNlcm5hbWU6" | b"UGFzc3dvcmQ6" | b"AQ==") {
            return message.to_vec();
        }
        let Some(message) = sasl::decode(message) else {
            // What is no base64 stays none.
            return [b"!", &vec![b'x'; length_class(message.len())][..]].concat();
        };
        let masked = match mechanism {
            "PLAIN" => match message.splitn(3, |b| *b == 0).collect::<Vec<_>>()[..] {
                [b"", login, password] if self.is_first(login, password) => {
                    self.login_name(login);
                    return b"${plain}".to_vec();
                }
                [authorization, login, password] => {
                    let authorization = match authorization {
                        b"" => Vec::new(),
                        name => self.login_name(name),
                    };
                    let login = self.login_name(login);
                    [&authorization[..], b"\0", &login, b"\0", &self.secret(password, false)]
                        .concat()
                }
                _ => vec![b'x'; length_class(message.len())],
            },
            "LOGIN" if index == 0 => self.login_name(&message),
            "LOGIN" => self.secret(&message, false),
            "XOAUTH2" | "OAUTHBEARER" => {
                let fields = message.split(|b| *b == 1).map(|field| self.oauth(field));
                fields.collect::<Vec<_>>().join(&1)
            }
            // These two have to say who it is in the recording, too.
            "CRAM-MD5" => match message.iter().rposition(|b| *b == b' ') {
                Some(blank) => {
                    [&self.login_name(&message[..blank])[..], b" ", &[b'0'; 32]].concat()
                }
                None => vec![b'x'; length_class(message.len())],
            },
            name if name.starts_with("SCRAM-") => {
                let fields = message.split(|b| *b == b',').map(|field| self.scram(field));
                fields.collect::<Vec<_>>().join(&b',')
            }
            _ => vec![b'x'; length_class(message.len())],
        };
        STANDARD.encode(masked).into_bytes()
    }

    /// A field of RFC 5802 section 7. What one begins another still begins, as nonces do.
    fn scram(&mut self, field: &[u8]) -> Vec<u8> {
        match field {
            b"" | b"n" | b"y" => field.to_vec(),
            [b'n' | b'a', b'=', name @ ..] => {
                let name = String::from_utf8_lossy(name).replace("=2C", ",").replace("=3D", "=");
                [&field[..2], &self.login_name(name.as_bytes())].concat()
            }
            [_, b'=', value @ ..] => [&field[..2], &vec![b'x'; value.len()]].concat(),
            other => vec![b'x'; other.len()],
        }
    }

    fn oauth(&mut self, field: &[u8]) -> Vec<u8> {
        if matches!(field, b"n,," | b"y,,") {
            return field.to_vec();
        }
        if let Some(name) = field.strip_prefix(b"user=") {
            return [b"user=", &self.login_name(name)[..]].concat();
        }
        for header in [b"n,a=", b"y,a="] {
            if let Some(name) = field.strip_prefix(header).and_then(|f| f.strip_suffix(b",")) {
                let name = String::from_utf8_lossy(name).replace("=2C", ",").replace("=3D", "=");
                return [header, &self.login_name(name.as_bytes())[..], b","].concat();
            }
        }
        if let Some((b"auth=Bearer ", token)) = field.split_at_checked(12) {
            return [b"auth=Bearer ", &self.secret(token, false)[..]].concat();
        }
        shape(field)
    }

    fn stand_in(
        &mut self,
        kind: MaskKind,
        value: &[u8],
        make: impl FnOnce(&[u8], usize) -> Vec<u8>,
    ) -> Vec<u8> {
        if let Some(known) = self.known.get(&(kind, value.to_vec())) {
            return known.clone();
        }
        let number = 1 + self.known.keys().filter(|(other, _)| *other == kind).count();
        let mask = make(value, number);
        if self.known.len() < MOST_KNOWN {
            self.known.insert((kind, value.to_vec()), mask.clone());
        }
        mask
    }
}

/// A stand-in of the same form: letters, digits and what is beyond ASCII become `x`.
pub(super) fn shape(value: &[u8]) -> Vec<u8> {
    value
        .iter()
        .map(|byte| match byte {
            b' ' | b'@' | b'.' | b'-' | b'_' | b'(' | b')' | b'"' | b'\\' => *byte,
            _ => b'x',
        })
        .collect()
}

/// Whether a stand-in for it can be the value of a setting, which has no space at its ends.
fn is_setting(value: &[u8]) -> bool {
    value.len() >= 3 && value.trim_ascii().len() == value.len()
}

/// Puts something beyond ASCII at the end.
fn accent(mask: &mut [u8]) {
    if let Some(end) = mask.last_chunk_mut::<2>() {
        *end = [0xc3, 0xa9];
    }
}

/// The next power of two, from 8 on.
fn length_class(length: usize) -> usize {
    length.next_power_of_two().max(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(masked: Vec<u8>) -> String {
        String::from_utf8(masked).unwrap()
    }

    #[test]
    fn names_are_found_wherever_they_stand() {
        let mut masks = Masks::default();
        let login = text(masks.login_name(b"alice@example.org"));
        assert_eq!(login, "1xxxx@xxxxxxx.xxx");
        let shown = text(masks.text(b"user/alice/Sent of alice@example.org, malice, b@c.de"));
        assert_eq!(shown, "user/3xxxx/Sent of 1xxxx@xxxxxxx.xxx, malice, 2@x.xx");
        let shown = text(
            masks.human(b"Logged in at a.example from 192.0.2.17 SESSIONID=<cyrus-17> in 3 s."),
        );
        let expected = "Logged in at x.xxxxxxx from xxx.x.x.xx xxxxxxxxxxxxxxxx-xxx in 3 s.";
        assert_eq!(shown, expected);
    }

    #[test]
    fn passwords_keep_their_form_and_not_their_length() {
        let mut masks = Masks::default();
        for (password, expected) in [
            (&b"short"[..], "xxxxxxxx"),
            (b"wonder land", "xxxxxxxx xxxxxxx"),
            (b"q\"uote", "xxxx%xxx"),
            ("pässwört".as_bytes(), "xxxxxxxxé"),
            (b"two\r\nlines", "xxxxxxxxé"),
        ] {
            assert_eq!(text(masks.secret(password, false)), expected);
            assert_eq!(text(masks.secret(password, true)), expected, "known already");
        }
        assert_eq!(text(Masks::default().secret(b"short", true)), "xxxxx");
    }

    #[test]
    fn ids_can_be_distinguished_and_no_more() {
        let mut masks = Masks::default();
        let ids = ["AB".repeat(32), "CD".repeat(32), "AB".repeat(32)];
        let [a, b, again] = ids.map(|id| text(masks.hex(id.as_bytes())));
        assert!(a.len() == 64 && a.ends_with("01") && b.ends_with("02") && a == again);
        let id = text(masks.uuid(b"0715A26B-CA09-4730-A419-793000CA982E"));
        assert_eq!(id, "00000000-0000-0000-0000-000000000001");
    }

    #[test]
    fn sasl_messages_are_still_of_their_mechanism() {
        let mut masks = Masks::default();
        let mut masked = |mechanism: &str, message: &[u8]| {
            let line = masks.sasl(mechanism, STANDARD.encode(message).as_bytes(), 0);
            text(STANDARD.decode(line).unwrap())
        };
        assert_eq!(masked("PLAIN", b"bob\0alice\0wonder land"), "1xx\x002xxxx\0xxxxxxxx xxxxxxx");
        assert_eq!(
            masked("XOAUTH2", b"user=alice\x01auth=Bearer ya29.x\x01\x01"),
            "user=2xxxx\x01auth=Bearer xxxxxxxx\x01\x01"
        );
        assert_eq!(
            masked("OAUTHBEARER", b"n,,\x01auth=Bearer ya29.x\x01\x01"),
            "n,,\x01auth=Bearer xxxxxxxx\x01\x01"
        );
        assert_eq!(masked("SCRAM-SHA-256", b"n,,n=alice,r=abc"), "n,,n=2xxxx,r=xxx");
        assert_eq!(masked("SCRAM-SHA-256", b"r=abcd,s=QQ==,i=1"), "r=xxxx,s=xxxx,i=x");
        assert_eq!(masked("CRAM-MD5", b"alice 01ab"), format!("2xxxx {}", "0".repeat(32)));
        assert_eq!(masked("NTLM", b"n,,n=alice,r=abc"), "xxxxxxxxxxxxxxxx");
        let plain = STANDARD.encode(b"\0alice\0wonder land");
        assert_eq!(masks.sasl("PLAIN", plain.as_bytes(), 0), b"${plain}");
        let (name, secret) = masks.first().unwrap();
        assert_eq!((text(name), text(secret)), ("2xxxx".into(), "xxxxxxxx xxxxxxx".into()));
        assert!(Masks::default().sasl("PLAIN", b"secret!", 0).starts_with(b"!"));
    }
}
