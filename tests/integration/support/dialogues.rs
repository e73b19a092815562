//! The dialogues in `fixtures/`, and mailchime's sessions as they need them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use mailchime::config::Config;
use mailchime::demo::dialogue::{Dialogue, Settings};
use mailchime::demo::pki::Pki;
pub(crate) use mailchime::demo::replay::push_offer;
use mailchime::demo::replay::{Proxy, TOPIC, push_offer_of};
use mailchime::imap::capability::Capabilities;
use mailchime::imap::contract::{Profile, PushOffer, ShownCapabilities};
use mailchime::imap::login::LoginKinds;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::soon;

pub(crate) static PKI: LazyLock<Pki> = LazyLock::new(|| Pki::generate(Some(TOPIC)).unwrap());

/// All of them, by their files.
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
pub(super) fn profile_for(settings: &Settings) -> Arc<Profile> {
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
        logins_elsewhere: LoginKinds::default(),
        push,
        relay_mechanisms: false,
        master: false,
        routed: Vec::new(),
        commands: 10_000,
        command_size: 64 * 1024,
        capability_size: 16 * 1024,
        compress: true,
        shown: ShownCapabilities::default(),
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
    let _ = soon("the end of the connection", stream.read_to_end(&mut rest)).await;
    rest
}
