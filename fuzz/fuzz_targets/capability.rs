//! Capability lists: the edit touches the list alone, can be made twice, and hides what must not pass.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::imap::capability::{Capabilities, MOST_TOKENS, Own, edit_response, is_in};
use mailchime::imap::contract::{DomainRoute, Profile, PushOffer, ShownCapabilities};
use mailchime::imap::login::edited;
use mailchime_fuzz::oracle::is_status;

const HIDDEN: [&str; 4] = ["STARTTLS", "LOGIN-REFERRALS", "MAILBOX-REFERRALS", "UNAUTHENTICATE"];

fn is_hidden(token: &str) -> bool {
    let token = token.to_ascii_uppercase();
    HIDDEN.contains(&&token[..])
        || token == "AUTH=EXTERNAL"
        || (token.starts_with("AUTH=") && token.ends_with("-PLUS"))
}

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&options, data)) = data.split_first() else { return Corpus::Reject };
    let own = Own { push: options & 1 != 0, compress: options & 2 != 0 };
    let whole = |line: &&[u8]| line.ends_with(b"\n");
    for line in data.split_inclusive(|b| *b == b'\n').filter(whole) {
        let once = edit_response(line, own);
        assert_eq!(edit_response(&once, own), once, "edited twice: {}", line.escape_ascii());
        if !is_in(line) {
            assert_eq!(once, line);
            continue;
        }
        one_list(line, &once, own);
    }
    if data.ends_with(b"\n") && !data.contains(&b'{') {
        let apart: Vec<u8> = data
            .split_inclusive(|b| *b == b'\n')
            .flat_map(|line| edit_response(line, own))
            .collect();
        assert_eq!(edited(data, own), apart);
    }
    lists(data, own, options);
    Corpus::Keep
});

fn one_list(line: &[u8], once: &[u8], own: Own) {
    let (before, after) = (Capabilities::in_response(line), Capabilities::in_response(once));
    let (Some(before), Some(after)) = (before, after) else {
        assert_eq!(line, once, "without a list");
        return;
    };
    for token in after.iter() {
        assert!(!is_hidden(token), "{token} passes");
        let (push, compress) = ("XAPPLEPUSHSERVICE", "COMPRESS=DEFLATE");
        assert!(own.push || !token.eq_ignore_ascii_case(push), "{token} passes");
        assert!(own.compress || !token.eq_ignore_ascii_case(compress), "{token} passes");
        assert!(before.has(token) || token == push || token == compress, "{token} is new");
    }
    // Of a longer list the end does not count.
    let counts = MOST_TOKENS - 2;
    for token in before.iter().filter(|token| !is_hidden(token)).take(counts) {
        let ours =
            ["XAPPLEPUSHSERVICE", "COMPRESS=DEFLATE"].iter().any(|o| token.eq_ignore_ascii_case(o));
        assert!(ours || after.has(token), "{token} is lost");
    }
    assert!(!own.push || after.has("XAPPLEPUSHSERVICE"));
    assert!(!own.compress || after.has("COMPRESS=DEFLATE"));
    // The text before the list and behind it is as it was.
    let first = |bytes: &[u8]| bytes.split(|b| *b == b' ').next().map(<[u8]>::to_vec);
    assert_eq!(first(line), first(once));
    if is_status(line) {
        let behind = |bytes: &[u8]| {
            let end = bytes.iter().position(|b| *b == b']').expect("the end of a code");
            bytes[end..].to_vec()
        };
        // A tag may have a bracket.
        let bracket = line.split(|b| *b == b' ').next().is_some_and(|tag| tag.contains(&b']'));
        assert!(bracket || behind(line) == behind(once), "{}", once.escape_ascii());
    }
}

fn lists(data: &[u8], own: Own, options: u8) {
    let list = Capabilities::parse(data);
    let again = Capabilities::parse(list.to_string().as_bytes());
    assert_eq!(list, again);
    let shown = list.clone().edited(own);
    assert_eq!(shown.clone().edited(own), shown);
    let routes = vec![DomainRoute { domain: None, route: Some("t".into()) }];
    let push = PushOffer { routes, clients: Vec::new(), most_mailboxes: 1 };
    let profile = Profile {
        backend: Some(Arc::new(list.clone())),
        logins_elsewhere: Default::default(),
        push: own.push.then_some(push),
        relay_mechanisms: options & 4 != 0,
        master: options & 8 != 0,
        routed: Vec::new(),
        commands: 10_000,
        command_size: 100,
        capability_size: 100,
        compress: true,
        shown: ShownCapabilities::default(),
    };
    for secure in [false, true] {
        let shown = profile.before_login(secure);
        for token in shown.iter() {
            assert!(!is_hidden(token) || (!secure && token == "STARTTLS"), "{token}");
            assert!(!token.eq_ignore_ascii_case("COMPRESS=DEFLATE"), "not before login");
            let auth = token.to_ascii_uppercase().starts_with("AUTH=");
            assert!(secure || !auth, "{token} without TLS");
            assert!(!token.bytes().any(|b| b.is_ascii_control() || b == b' '));
        }
        assert_eq!(shown.has("LOGINDISABLED"), !secure);
        assert_eq!(shown.has("XAPPLEPUSHSERVICE"), secure && own.push);
    }
}
