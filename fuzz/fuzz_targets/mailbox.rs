//! Names of mailboxes: each has one spelling, and what is spelled is read again.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::imap::mailbox::{LONGEST_NAME, decode, encode};
use mailchime::model::Mailbox;

fuzz_target!(|data: &[u8]| -> Corpus {
    for utf8 in [false, true] {
        if let Some(mailbox) = decode(data, utf8) {
            let name = mailbox.as_str();
            assert!(!name.is_empty() && !name.chars().any(char::is_control));
            assert!(data.len() <= LONGEST_NAME);
            if mailbox.is_inbox() {
                assert!(data.eq_ignore_ascii_case(b"INBOX"), "{}", data.escape_ascii());
                continue;
            }
            if utf8 {
                assert_eq!(name.as_bytes(), data);
                continue;
            }
            assert_eq!(encode(&mailbox).as_bytes(), data, "another spelling");
            assert_eq!(simple(data).as_deref(), Some(name), "{}", data.escape_ascii());
        }
    }
    if let Ok(name) = std::str::from_utf8(data) {
        let wire = encode(&Mailbox::new(name));
        assert!(wire.bytes().all(|b| matches!(b, b' '..=b'~')), "{wire}");
        assert_eq!(simple(wire.as_bytes()).as_deref(), Some(Mailbox::new(name).as_str()));
        let fit =
            !name.is_empty() && wire.len() <= LONGEST_NAME && !name.chars().any(char::is_control);
        assert_eq!(decode(wire.as_bytes(), false), fit.then(|| Mailbox::new(name)));
    }
    Corpus::Keep
});

/// Modified UTF-7 bit by bit.
fn simple(wire: &[u8]) -> Option<String> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+,";
    let mut units = Vec::new();
    let mut bytes = wire.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte != b'&' {
            units.push(u16::from(byte));
            continue;
        }
        if bytes.next_if_eq(&b'-').is_some() {
            units.push(u16::from(b'&'));
            continue;
        }
        let (mut bits, mut count) = (0u32, 0);
        loop {
            let digit = bytes.next()?;
            if digit == b'-' {
                break;
            }
            bits = bits << 6 | DIGITS.iter().position(|known| *known == digit)? as u32;
            count += 6;
            if count >= 16 {
                count -= 16;
                units.push((bits >> count) as u16);
                bits &= (1 << count) - 1;
            }
        }
    }
    String::from_utf16(&units).ok()
}
