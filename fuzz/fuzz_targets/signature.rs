//! Who sends events proves it by headers: a secret, Basic, or a signature of Standard Webhooks. Nobody is known by
//! anything else, and no secret is shown.
#![no_main]

use std::fs;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::config::EventSourceConfig;
use mailchime::intake::fuzzing::FuzzedSenders;
use mailchime::model::Timestamp;
use mailchime::net::webhook_signature::{WebhookSecret, is_signed, signature};

/// The secrets of the two sources; the second one signs by its first.
const TOKEN: &str = "correct-horse-battery";
const SIGNING: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NAMES: [&str; 2] = ["dovecot", "script"];

/// Seconds since 1970.
const NOW: i64 = 1_700_000_000;

thread_local! {
    static SENDERS: FuzzedSenders = senders();
    static SECRET: WebhookSecret = WebhookSecret::parse(SIGNING).expect("a secret");
}

fn senders() -> FuzzedSenders {
    let folder = std::env::temp_dir().join(format!("mailchime-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let config = |(name, secret): (&str, &str)| {
        let file = folder.join(name);
        fs::write(&file, secret).expect("a file");
        EventSourceConfig::new(name, file)
    };
    let configs = [(NAMES[0], TOKEN), (NAMES[1], SIGNING)].map(config);
    let senders = FuzzedSenders::load(&configs).expect("secrets");
    fs::remove_dir_all(&folder).expect("a folder");
    let shown = format!("{senders:?}");
    assert!(!shown.contains("horse") && !shown.contains("MfKQ"), "{shown}");
    senders
}

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&which, data)) = data.split_first() else { return Corpus::Reject };
    match which % 4 {
        0 => secret(data),
        1 => authorization(data),
        2 => signed_headers(data),
        _ => signs(data),
    }
    Corpus::Keep
});

/// A secret is read again as it is written, and not shown.
fn secret(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some(secret) = WebhookSecret::parse(text) else { return };
    let written = secret.expose_text();
    let again = WebhookSecret::parse(&written).expect("a secret");
    assert_eq!(*again.expose_text(), *written);
    assert_eq!(text.trim().trim_end_matches('='), written.trim_end_matches('='));
    assert!(
        (24..=64).contains(&STANDARD.decode(&written["whsec_".len()..]).expect("base64").len())
    );
    assert_eq!(format!("{secret:?}"), "[redacted]");
}

/// A header names whose secret it has.
fn authorization(value: &[u8]) {
    let who = |headers: &[(&str, &[u8])]| {
        SENDERS.with(|senders| senders.sender(headers, b"{}", Timestamp(NOW * 1000)))
    };
    let Some(found) = who(&[("authorization", value)]) else { return };
    assert_eq!(found, authorized(value));
    // Twice it says nothing.
    assert_eq!(who(&[("authorization", value), ("authorization", value)]), Some(None));
}

fn authorized(value: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(value).ok()?;
    // The header's own reader takes visible ASCII and tabs.
    let space = text.find(' ').filter(|_| text.is_ascii())?;
    let (scheme, rest) = (text[..space].to_ascii_lowercase(), text[space..].trim());
    match &*scheme {
        "bearer" => [TOKEN, SIGNING].iter().position(|secret| *secret == rest),
        "basic" => {
            let known = |place: &usize| {
                let secret = [TOKEN, SIGNING][*place];
                STANDARD.encode(format!("{}:{secret}", NAMES[*place])) == rest
            };
            (0..2).find(known)
        }
        _ => None,
    }
}

/// The headers of a signature: id, time and signature, each in a line of its own, with the body behind them.
fn signed_headers(data: &[u8]) {
    let mut lines = data.splitn(4, |byte| *byte == b'\n');
    let [id, time, given, body] = std::array::from_fn(|_| lines.next().unwrap_or_default());
    let headers = [("webhook-id", id), ("webhook-timestamp", time), ("webhook-signature", given)];
    let now = Timestamp(NOW * 1000 + 999);
    let who = |headers: &[(&str, &[u8])], body: &[u8]| {
        SENDERS.with(|senders| senders.sender(headers, body, now))
    };
    let Some(found) = who(&headers, body) else { return };
    let expected = || {
        let text = |bytes: &[u8]| {
            let is_visible = bytes.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
            String::from_utf8(bytes.to_vec()).ok().filter(|_| is_visible)
        };
        let (id, time, given) = (text(id)?, text(time)?, text(given)?);
        let seconds: i64 = time.parse().ok()?;
        let is_known = id.len() <= 256
            && (NOW - 300..=NOW + 300).contains(&seconds)
            && has_signature(&given, &tag(&id, seconds, body));
        is_known.then_some(1)
    };
    assert_eq!(found, expected());
    // With the right signature, unless the rest is wrong.
    let (Ok(text), Ok(seconds)) =
        (std::str::from_utf8(id), String::from_utf8_lossy(time).parse::<i64>())
    else {
        return;
    };
    let tag = tag(text, seconds, body);
    let good = [headers[0], headers[1], ("webhook-signature", tag.as_bytes())];
    if let Some(Some(found)) = who(&good, body) {
        assert!(found == 1 && (seconds - NOW).abs() <= 300);
        assert_eq!(who(&good, &[body, b" "].concat()), Some(None));
        let twice = [good[0], good[1], good[2], good[2]];
        assert_eq!(who(&twice, body), Some(None));
    }
}

fn tag(id: &str, seconds: i64, body: &[u8]) -> String {
    SECRET.with(|secret| signature(std::slice::from_ref(secret), id, seconds, body))
}

/// Of so many of this version.
fn has_signature(given: &str, tag: &str) -> bool {
    given.split(' ').filter(|one| one.starts_with("v1,")).take(8).any(|one| one == tag)
}

/// What was signed is known, in whatever stands around it; and nothing else is.
fn signs(data: &[u8]) {
    let [time @ .., last] = data else { return };
    let mut parts = time.splitn(3, |byte| *byte == b'\n');
    let [id, given, body] = std::array::from_fn(|_| parts.next().unwrap_or_default());
    let (Ok(id), Ok(given)) = (std::str::from_utf8(id), std::str::from_utf8(given)) else { return };
    let seconds = i64::from(*last) << (last % 56);
    let tag = tag(id, seconds, body);
    SECRET.with(|secret| {
        let secrets = std::slice::from_ref(secret);
        let known =
            |given: &str, seconds: i64, body: &[u8]| is_signed(secrets, given, (id, seconds), body);
        assert_eq!(known(given, seconds, body), has_signature(given, &tag));
        let around = format!("{given} {tag} {given}");
        assert_eq!(known(&around, seconds, body), has_signature(&around, &tag));
        assert!(!known(&tag, seconds ^ 1, body));
        assert!(!known(&tag, seconds, &[body, b"\n"].concat()));
        let other = tag.replace(|c: char| c.is_ascii_lowercase(), "A");
        assert_eq!(known(&other, seconds, body), other == tag);
    });
}
