//! A backend that a test plays by hand: each watcher's connection is a dialogue, `S: ` the backend's lines, `C: `
//! the watcher's.

use mailchime::model::Snapshot;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};

use super::watching::{WatchWorld, Watching, told};
use crate::support::listener;

pub(crate) const IDLE: &str = "\
S: * OK [CAPABILITY IMAP4rev1] hi
C: m2 LOGIN \"alice\" \"wonderland\"
S: m2 OK [CAPABILITY IMAP4rev1 IDLE] in
";

/// After [`IDLE`]: INBOX is as the devices were told, and waited for.
pub(crate) const QUIET: &str = "\
C: w1 EXAMINE INBOX
S: * 5 EXISTS
S: w1 OK [READ-ONLY] open
C: w2 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2)
S: w2 OK done
C: w3 IDLE
S: + idling
";

pub(crate) struct Stage {
    listener: TcpListener,
    pub(crate) world: WatchWorld,
}

impl Stage {
    /// Alice's devices were told of 5 messages in INBOX.
    pub(crate) async fn new() -> Self {
        Self::told(told(7, 10, 5, 2)).await
    }

    /// Alice's devices were told of this state of INBOX.
    pub(crate) async fn told(inbox: Snapshot) -> Self {
        let listener = listener().await;
        let world = WatchWorld::new(listener.local_addr().unwrap()).await;
        world.register("alice", &[("INBOX", inbox)]).await;
        Self { listener, world }
    }

    /// A watcher that is in IDLE, and has found INBOX as the devices were told.
    pub(crate) async fn quiet(&self) -> (Watching, Peer) {
        let watching = self.world.watch();
        let mut peer = self.accept().await;
        peer.play(IDLE).await;
        peer.play(QUIET).await;
        (watching, peer)
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> Peer {
        Peer(BufStream::new(self.listener.accept().await.unwrap().0))
    }
}

/// The watcher, as the backend sees it.
pub(crate) struct Peer(BufStream<TcpStream>);

impl Peer {
    pub(crate) async fn play(&mut self, dialogue: &str) {
        for line in dialogue.lines() {
            if let Some(says) = line.strip_prefix("S: ") {
                self.0.write_all(format!("{says}\r\n").as_bytes()).await.unwrap();
                continue;
            }
            self.0.flush().await.unwrap();
            let expected = line.strip_prefix("C: ").expect("a line has a speaker");
            let mut heard = String::new();
            self.0.read_line(&mut heard).await.unwrap();
            assert_eq!(heard, format!("{expected}\r\n"), "in:\n{dialogue}");
        }
        self.0.flush().await.unwrap();
    }

    /// Says these bytes in a packet of their own.
    pub(crate) async fn say(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
        self.0.flush().await.unwrap();
    }

    /// What the watcher says next.
    pub(crate) async fn line(&mut self) -> String {
        let mut heard = String::new();
        self.0.flush().await.unwrap();
        self.0.read_line(&mut heard).await.unwrap();
        heard.trim_end().to_owned()
    }

    /// Says these bytes again and again until the watcher hangs up.
    pub(crate) async fn says_without_end(mut self, bytes: &[u8]) {
        while self.0.write_all(bytes).await.is_ok() && self.0.flush().await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    /// Waits until the watcher has closed the connection, saying nothing.
    pub(crate) async fn left(mut self) {
        let mut heard = Vec::new();
        // A reset closes as well.
        let _ = self.0.read_to_end(&mut heard).await;
        assert_eq!(String::from_utf8_lossy(&heard), "");
    }
}

pub(crate) async fn stop(watching: Watching, peer: Peer) {
    drop(peer);
    watching.stop().await;
}
