//! Every dialogue in `fixtures/`, played three ways: through the pure core in one piece, through
//! the pure core byte by byte, and over real TLS sockets.

pub(crate) mod core;

pub(crate) mod sockets;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mailchime::demo::dialogue::Dialogue;
use mailchime::imap::capability::Capabilities;
use mailchime::imap::session::{DomainTopic, Profile, PushOffer};

const TOPIC: &str = "com.apple.mail.XServer.11111111-2222-3333-4444-555555555555";

#[test]
fn dialogues_hold_in_one_piece() {
    for (path, dialogue) in all() {
        core::play(&path, &dialogue, false);
    }
}

#[test]
fn dialogues_hold_byte_by_byte() {
    for (path, dialogue) in all() {
        core::play(&path, &dialogue, true);
    }
}

#[tokio::test]
async fn dialogues_hold_over_tls_sockets() {
    for (path, dialogue) in all() {
        sockets::play(&path, &dialogue).await;
    }
}

fn all() -> Vec<(PathBuf, Dialogue)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut dialogues = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "imap") {
            let text = std::fs::read_to_string(&path).unwrap();
            let dialogue = Dialogue::parse(&text)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            dialogues.push((path, dialogue));
        }
    }
    assert!(dialogues.len() >= 10, "only {} dialogues were found", dialogues.len());
    dialogues.sort_by(|(a, _), (b, _)| a.cmp(b));
    dialogues
}

/// What the settings of a dialogue ask for.
fn offered(dialogue: &Dialogue) -> Option<Capabilities> {
    let backend = dialogue.settings.iter().find(|(name, _)| name == "backend")?;
    Some(Capabilities::parse(backend.1.as_bytes()))
}

fn push(dialogue: &Dialogue) -> Option<PushOffer> {
    let off = dialogue.settings.iter().any(|(name, value)| name == "push" && value == "off");
    (!off).then(push_offer)
}

pub(crate) fn push_offer() -> PushOffer {
    PushOffer {
        topics: vec![DomainTopic { domain: None, topic: Some(TOPIC.into()) }],
        clients: vec!["com.apple.mobilemail".into()],
        most_mailboxes: 64,
    }
}

pub(crate) fn profile(backend: Option<Capabilities>, push: Option<PushOffer>) -> Arc<Profile> {
    Arc::new(Profile {
        backend: backend.map(Arc::new),
        push,
        relay_mechanisms: false,
        command_size: 64 * 1024,
        capability_size: 16 * 1024,
    })
}
