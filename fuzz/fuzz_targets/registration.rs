//! The arguments of XAPPLEPUSHSERVICE, and its answer.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::imap::args::quote;
use mailchime::imap::registration::xapple::{XAppleRegistration, answer, parse};
use mailchime_fuzz::oracle::{Responses, contains};

fn string(text: &[u8]) -> Vec<u8> {
    quote(text).unwrap_or_else(|| [format!("{{{}}}\r\n", text.len()).as_bytes(), text].concat())
}

/// The same request as mailchime would write it, with its keys in another order and case.
fn written(request: &XAppleRegistration) -> Vec<u8> {
    let version = request.version.to_string();
    let mut out = Vec::new();
    if request.version >= 2 {
        let names: Vec<_> = request.mailboxes.iter().map(|name| string(name)).collect();
        out.extend([b" MAILBOXES (", &names.join(&b" "[..])[..], b")"].concat());
    }
    for (key, value) in [
        ("aps-Subtopic", request.subtopic.as_bytes()),
        ("APS-device-token", request.token.as_given().as_bytes()),
        ("\"aps-account-id\"", request.account_id.as_bytes()),
        ("aps-version", version.as_bytes()),
        ("unknown", b"x"),
    ] {
        out.extend([b" ", key.as_bytes(), b" ", &string(value)[..]].concat());
    }
    out.extend(b"\r\n");
    out
}

fuzz_target!(|data: &[u8]| -> Corpus {
    let request = match parse(data) {
        Ok(request) => request,
        Err(why) => {
            let text = why.to_string();
            assert!(text.bytes().all(|b| matches!(b, b' '..=b'~')) && text.len() < 100);
            return Corpus::Keep;
        }
    };
    for key in ["aps-version", "aps-account-id", "aps-device-token", "aps-subtopic"] {
        assert!(contains(data, key), "{key} came from nowhere");
    }
    let printable = |text: &str| text.bytes().all(|b| matches!(b, b' '..=b'~'));
    assert!(matches!(request.version, 1 | 2));
    assert!((1..=128).contains(&request.account_id.len()) && printable(&request.account_id));
    assert!((1..=128).contains(&request.subtopic.len()) && printable(&request.subtopic));
    let token = request.token.as_given();
    assert!((64..=200).contains(&token.len()) && token.len() % 2 == 0);
    assert!(token.bytes().all(|b| b.is_ascii_hexdigit()) && contains(data, token));
    // Another value may spell the same.
    let once = data.windows(token.len()).filter(|part| *part == token.as_bytes()).count() == 1;
    assert!(!once || !format!("{request:?}").contains(token), "a token is shown in full");
    assert!(request.version == 2 || request.mailboxes.is_empty());
    assert!(request.mailboxes.iter().map(Vec::len).sum::<usize>() <= data.len());
    assert_eq!(parse(&written(&request)).as_ref(), Ok(&request));

    let said = answer(request.version, "topic", request.mailboxes.iter().map(Vec::as_slice));
    let mut responses = Responses::default();
    let mut count = 0;
    for &byte in &said {
        let before = responses.at_boundary();
        responses.feed(&[byte]);
        count += usize::from(!before && responses.at_boundary());
    }
    assert!(responses.at_boundary());
    assert_eq!(count, request.mailboxes.len() + 1, "{}", said.escape_ascii());
    Corpus::Keep
});
