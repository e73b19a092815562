//! Recordings of sessions: what is secret never comes out, and what comes out is a dialogue.
#![no_main]

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::demo::dialogue::Dialogue;
use mailchime::imap::contract::Action;
use mailchime::imap::session::Session;
use mailchime::record::fuzzing::{FuzzedTranscript, Said};
use mailchime_fuzz::drive::{Happened, play};
use mailchime_fuzz::oracle::contains;
use mailchime_fuzz::script::{Cut, Script, Side};
use mailchime_fuzz::sessions::{connection, profile};

/// Stands for a password, in scripts and dictionaries.
const PASSWORD: &str = "Zq7secret";
/// Stands for what a person wrote in a message.
const CONTENT: &str = "Zq8content";

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some(script) = Script::parse(data) else { return Corpus::Reject };
    let (client, backend) = (script.said(Side::Client), script.said(Side::Backend));
    if contains(&client, "mc7x") || client.len() + backend.len() > 60_000 {
        return Corpus::Reject;
    }
    let recorded = [Cut::Whole, Cut::Pieces].map(|cut| record(&script, cut));
    let tokens = device_tokens(&client);
    for (text, logins) in &recorded {
        let says = text.lines().any(|line| !line.starts_with(['#', '@']) && !line.is_empty());
        if let Err(malformed) = Dialogue::parse(text)
            && says
        {
            panic!("{malformed} at {:?}", text.lines().nth(malformed.line - 1));
        }
        if password_is_secret(&client, &backend) {
            assert!(!contains(text.as_bytes(), PASSWORD), "{text}");
            assert!(!text.split([' ', '\n', '"']).any(in_base64), "{text}");
        }
        if content_is_secret(&client, &backend) && *logins > 0 {
            assert!(!contains(text.as_bytes(), CONTENT), "{text}");
        }
        for token in &tokens {
            assert!(!text.contains(token), "{text}");
        }
    }
    Corpus::Keep
});

fn record(script: &Script, cut: Cut) -> (String, usize) {
    let profile = profile(script);
    let mut transcript = FuzzedTranscript::new(&profile, !script.option(1));
    let mut session = Session::new(Arc::new(profile), connection(script));
    let mut logins = 0;
    for happened in play(&mut session, script, cut).happened {
        let (said, bytes) = match happened {
            Happened::Forwarded(Side::Client, bytes) => (Said::ByClient { passed: true }, bytes),
            Happened::Forwarded(Side::Backend, bytes) => (Said::ByBackend { passed: true }, bytes),
            Happened::Taken(Side::Client, bytes) => (Said::ByClient { passed: false }, bytes),
            Happened::Taken(Side::Backend, bytes) => (Said::ByBackend { passed: false }, bytes),
            Happened::Said(Side::Client, bytes) => (Said::ToClient, bytes),
            Happened::Said(Side::Backend, bytes) => (Said::ToBackend, bytes),
            Happened::Did(action) => {
                match action {
                    Action::Compress => transcript.happens("compress"),
                    Action::Close => transcript.happens("close"),
                    Action::Connect(_) => transcript.happens("connect"),
                    Action::Register(registration) => {
                        let names = registration.mailboxes.iter().map(|(name, _)| name.to_string());
                        transcript
                            .happens(&format!("store {}", names.collect::<Vec<_>>().join(", ")));
                    }
                    Action::LoggedIn(..) => logins += 1,
                    _ => {}
                }
                continue;
            }
        };
        transcript.said(said, &bytes);
    }
    (transcript.end(), logins)
}

/// The password is in a LOGIN alone, which is a command for everybody who reads.
fn password_is_secret(client: &[u8], backend: &[u8]) -> bool {
    let text = String::from_utf8_lossy(client);
    let mut said = text.match_indices(PASSWORD);
    let (Some((at, _)), None) = (said.next(), said.next()) else { return false };
    let start = text[..at].rfind('\n').map_or(0, |feed| feed + 1);
    let (before, line) = (&text[..start], &text[start..at]);
    let Some((tag, rest)) = line.split_once(' ') else { return false };
    let Some(name) = rest.strip_prefix("LOGIN ") else { return false };
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric());
    let name = name.strip_suffix('"').unwrap_or(name);
    name.strip_suffix(' ').is_some_and(plain)
        && plain(tag)
        && before.bytes().all(|b| matches!(b, b' '..=b'~' | b'\r' | b'\n'))
        && !before.contains('{')
        && !contains(before.as_bytes(), "AUTHENTICATE")
        && !contains(backend, PASSWORD)
}

fn in_base64(word: &str) -> bool {
    STANDARD.decode(word).is_ok_and(|message| contains(&message, PASSWORD))
}

/// The content is in a FETCH response alone, which is one for everybody who reads.
fn content_is_secret(client: &[u8], backend: &[u8]) -> bool {
    let text = String::from_utf8_lossy(backend);
    let mut said = text.match_indices(CONTENT);
    let (Some((at, _)), None) = (said.next(), said.next()) else { return false };
    let start = text[..at].rfind('\n').map_or(0, |feed| feed + 1);
    !contains(client, CONTENT)
        && text[start..].starts_with("* 1 FETCH (")
        && !text[..at].contains('{')
        && !text[start..at].contains(|c: char| c.is_control())
}

/// Tokens of registrations that no server of this world may take for anything else.
fn device_tokens(client: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(client);
    if text.contains('{') {
        return Vec::new();
    }
    let mut tokens = Vec::new();
    for line in text.split("\r\n") {
        let mut words = line.split(' ');
        let registers =
            words.next().is_some_and(|tag| tag.bytes().all(|b| b.is_ascii_alphanumeric()))
                && words.next() == Some("XAPPLEPUSHSERVICE");
        let key = words.next() == Some("\"aps-device-token\"");
        let token = words.next().unwrap_or_default().trim_matches('"');
        let fits = token.len() >= 64 && token.bytes().all(|b| b.is_ascii_hexdigit());
        if registers && key && fits && text.matches(token).count() == 1 && !token.starts_with("00")
        {
            tokens.push(token.to_owned());
        }
    }
    tokens
}
