//! Sender and subject of a message, in the answer to FETCH and in its header: what is shown is short and harmless,
//! and a header is found in whatever stands around it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mailchime::imap::preview::{HEADER_SIZE, fetched_header, is_header, preview};
use mailchime::model::PREVIEW_CHARACTERS;

fuzz_target!(|data: &[u8]| {
    if let Some(told) = fetched_header(data) {
        assert!(told.header.len() <= HEADER_SIZE);
        is_harmless(&told.header);
    }
    is_header(data);
    is_harmless(data);
    let head = format!("* 1 FETCH (UID 2 BODY[HEADER.FIELDS (FROM)]<0> {{{}}}\r\n", data.len());
    let response = [head.as_bytes(), data, b" FLAGS ())\r\n"].concat();
    let told = fetched_header(&response);
    assert_eq!(told.is_some(), data.len() <= HEADER_SIZE);
    if let Some(told) = told {
        assert_eq!((told.uid, &*told.header), (Some(2), data));
    }
});

fn is_harmless(header: &[u8]) {
    for with_subject in [false, true] {
        let Some(shown) = preview(header, with_subject, 1) else { continue };
        assert!(with_subject || shown.subject().is_none());
        assert_eq!(format!("{shown:?}"), "Preview { messages: 1, .. }");
        for text in [shown.sender(), shown.subject()].into_iter().flatten() {
            assert!((1..=PREVIEW_CHARACTERS).contains(&text.chars().count()), "{text:?}");
            let turns = |c: char| {
                c.is_control()
                    || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            };
            assert!(!text.chars().any(turns), "{text:?}");
        }
    }
}
