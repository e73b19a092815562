//! A session from its greeting on: whole against split input, bounded answers, no secret told.
#![no_main]

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::{Corpus, fuzz_target};
use mailchime::imap::contract::{Action, Authenticated, ProvenIdentity};
use mailchime::imap::session::Session;
use mailchime::model::Account;
use mailchime_fuzz::drive::{Happened, Log, assert_same, play};
use mailchime_fuzz::oracle::contains;
use mailchime_fuzz::script::{Cut, Event, Script, Side};
use mailchime_fuzz::sessions::{connection, profile};

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some(script) = Script::parse(data) else { return Corpus::Reject };
    let client = script.said(Side::Client);
    if contains(&client, "mc7x") || client.len() > 40_000 {
        return Corpus::Reject;
    }
    let backend = script.said(Side::Backend);
    let session = || Session::new(Arc::new(profile(&script)), connection(&script));
    let whole = play(&mut session(), &script, Cut::Whole);
    // Byte by byte each is looked at again with what is kept.
    let few = client.len() + backend.len() < 4_000;
    for cut in [Cut::Pieces, Cut::Bytes].into_iter().take(1 + usize::from(few)) {
        assert_same(&whole, &play(&mut session(), &script, cut), cut);
    }
    // Answers are no longer than some lines for the shortest command, and lists of capabilities.
    let most = 4_000 + 400 * lines(&client) + 2 * client.len() + 40 * lines(&backend);
    assert!(whole.to_client.len() <= most + 2 * backend.len(), "{} bytes", whole.to_client.len());
    let most = 4_000 + 4 * client.len() + 300 * lines(&client);
    assert!(whole.to_backend.len() <= most, "{} bytes", whole.to_backend.len());
    before_tls(&script, &whole);
    secrets(&whole, &client, &backend);
    Corpus::Keep
});

fn lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|b| **b == b'\n').count()
}

/// Without TLS nobody logs in.
fn before_tls(script: &Script, log: &Log) {
    let handshakes = script.events.contains(&Event::Done(true));
    if script.option(1) && !handshakes {
        assert_eq!(log.to_backend, b"");
        assert!(!log.happened.iter().any(|h| matches!(h, Happened::Did(Action::Connect(_)))));
    }
}

/// The backend alone gets what proves a user's identity, and nothing shows it.
fn secrets(log: &Log, client: &[u8], backend: &[u8]) {
    let mut places = 0;
    for happened in &log.happened {
        let Happened::Did(Action::LoggedIn(Authenticated { claimed, proven })) = happened else {
            continue;
        };
        places += 1;
        let Some(ProvenIdentity { account, credentials }) = proven else { continue };
        assert_eq!(claimed.as_ref(), Some(account), "another is proven than was claimed");
        let Some(credentials) = credentials else {
            named_itself(client, account);
            continue;
        };
        let secret = credentials.expose_secret();
        let count = |bytes: &[u8]| bytes.windows(secret.len()).filter(|w| *w == secret).count();
        let said = count(client) + in_base64(client).filter(|said| count(said) > 0).count();
        // Said elsewhere, too, it may be heard elsewhere; other words mailchime says by itself.
        if !contains(secret, "Zq7") || said > 1 || count(backend) > 0 {
            continue;
        }
        assert_eq!(count(&log.to_client), 0, "the client gets a secret");
        let shown = log.actions.iter().map(|(_, _, action)| action.as_str()).collect::<String>();
        assert_eq!(count(shown.as_bytes()), 0, "a secret is shown");
        let numbers = format!("{secret:?}");
        assert!(!shown.contains(numbers.trim_matches(['[', ']'])), "a secret is shown");
        assert!(count(&log.to_backend) <= 1, "the backend gets a secret twice");
    }
    assert!(places <= 1, "two logins");
}

/// Who hides the password is known by a name of their own saying, in base64.
fn named_itself(client: &[u8], account: &Account) {
    let name = account.as_str().to_ascii_lowercase();
    let mut said =
        in_base64(client).map(|message| String::from_utf8_lossy(&message).replace("=2C", ","));
    assert!(
        said.any(|message| message.replace("=3D", "=").to_ascii_lowercase().contains(&name)),
        "{account} came from nowhere"
    );
}

/// What the words that are base64 say.
fn in_base64(text: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    text.split(|b| b" \r\n".contains(b)).filter_map(|word| STANDARD.decode(word).ok())
}
