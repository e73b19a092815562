//! Every dialogue in `fixtures/`, played three ways: through the pure core in one piece, through
//! the pure core byte by byte, and over real TLS sockets.

pub(crate) mod core;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use mailchime::config::Config;
use mailchime::demo::dialogue::{Dialogue, Settings};
use mailchime::demo::pki::Pki;
pub(crate) use mailchime::demo::replay::push_offer;
use mailchime::demo::replay::{Proxy, TOPIC, against_mailchime, push_offer_of};
use mailchime::imap::capability::Capabilities;
use mailchime::imap::login::Logins;
use mailchime::imap::session::{Profile, PushOffer, Shown};
use tokio::io::{AsyncRead, AsyncReadExt};

const LIMIT: Duration = Duration::from_secs(10);

pub(crate) static PKI: LazyLock<Pki> = LazyLock::new(|| Pki::generate(Some(TOPIC)).unwrap());

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
        if let Err(failure) = against_mailchime(&dialogue, &PKI).await {
            panic!("{}: {failure:?}", path.display());
        }
    }
}

pub(crate) fn all() -> Vec<(PathBuf, Dialogue)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut dialogues = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "imap") {
            let text = std::fs::read_to_string(&path).unwrap();
            let dialogue = Dialogue::parse(&text)
                .unwrap_or_else(|e| panic!("{}:{}: {e}", path.display(), e.line));
            dialogues.push((path, dialogue));
        }
    }
    assert!(dialogues.len() >= 25, "only {} dialogues were found", dialogues.len());
    dialogues.sort_by(|(a, _), (b, _)| a.cmp(b));
    dialogues
}

/// What the settings of a dialogue ask for.
fn profile_for(settings: &Settings) -> Arc<Profile> {
    let backend = settings.backend.as_ref().map(|list| Capabilities::parse(list.as_bytes()));
    let push = settings.push.then(|| push_offer_of(settings));
    let mut profile = profile(backend, push);
    let changed = Arc::make_mut(&mut profile);
    (changed.relay_mechanisms, changed.master) = (settings.relay, settings.master);
    profile
}

pub(crate) fn profile(backend: Option<Capabilities>, push: Option<PushOffer>) -> Arc<Profile> {
    Arc::new(Profile {
        backend: backend.map(Arc::new),
        logins_elsewhere: Logins::default(),
        push,
        relay_mechanisms: false,
        master: false,
        routed: Vec::new(),
        commands: 10_000,
        command_size: 64 * 1024,
        capability_size: 16 * 1024,
        compress: true,
        shown: Shown::default(),
    })
}

/// mailchime's sessions in front of a listener, with a store in a temporary folder.
pub(crate) async fn proxy(
    backend: SocketAddr,
    push: Option<PushOffer>,
    change: impl FnOnce(&mut Config),
) -> Proxy {
    Proxy::start(backend, push, &PKI, change).await.unwrap()
}

/// What is heard to the end of a connection.
pub(crate) async fn read_to_end(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut rest = Vec::new();
    // How the end comes is no matter, that it comes is.
    let end = tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest)).await;
    assert!(end.is_ok(), "the connection was not closed");
    rest
}
