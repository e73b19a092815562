//! The end: everyone gets a BYE, everything is on disk, and nothing takes for ever.

use tokio::net::TcpStream;

use crate::support::world::{Server, World};
use crate::support::{limited, listener, soon};

/// It ends by itself, and no part of it is given up on the way.
async fn ends_whole(server: &mut Server) {
    let status = server.process.end().await;
    let log = server.process.stderr.seen.join("\n");
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("did not stop in time"), "{log}");
}

#[tokio::test]
async fn sigterm_ends_sessions_with_a_goodbye() {
    limited(async {
        let world = World::new().await;
        let mut server = world.serve().await;
        world.register(server.address).await.unwrap();
        world.watched().await;
        let stranger = world.client(&server).await;
        let session = world.session(&server).await;
        let mut idling = world.session(&server).await;
        idling.send(b"s SELECT INBOX\r\ni IDLE\r\n").await;
        idling.until("+ ").await;

        server.process.signal("TERM");
        for mut client in [stranger, session, idling] {
            let last = client.rest().await;
            assert!(last.starts_with("* BYE ") && last.lines().count() == 1, "{last:?}");
        }
        ends_whole(&mut server).await;
    })
    .await;
}

#[tokio::test]
async fn a_client_that_does_not_hang_up_cannot_delay_the_end() {
    limited(async {
        let world = World::new().await;
        // The end does not come from a limit of theirs.
        world.configure(
            "[log]",
            "[limits]\nhandshake_timeout = \"10m\"\nwrite_timeout = \"1d\"\n[log]",
        );
        let mut server = world.serve().await;
        // One that never begins with TLS, one that never reads.
        let _silent = TcpStream::connect(server.address).await.unwrap();
        let _deaf = world.session(&server).await;
        server.process.signal("TERM");
        ends_whole(&mut server).await;
    })
    .await;
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    limited(async {
        let world = World::new().await;
        let mut server = world.serve().await;
        // Goodbye would wait some seconds for this one.
        let _deaf = world.session(&server).await;
        server.process.signal("TERM");
        server.logged("stopping; a second signal ends mailchime at once").await;
        server.process.signal("INT");
        assert_eq!(server.process.end().await.code(), Some(1));
        assert!(server.process.stderr.seen.last().unwrap().contains("second signal"));
    })
    .await;
}

#[tokio::test]
async fn a_backend_that_says_nothing_cannot_hold_up_the_end() {
    limited(async {
        let world = World::new().await;
        // It stays the same backend at another address. No limit ends the wait for its greeting.
        world.configure("[backend]\n", "[backend]\nname = \"mail\"\n");
        world.configure("[log]", "[limits]\nconnect_timeout = \"10m\"\n[log]");
        let server = world.serve().await;
        world.register(server.address).await.unwrap();
        server.process.kill();

        let mute = listener().await;
        let (old, new) = (world.backend.address(), mute.local_addr().unwrap());
        world.configure(&old.to_string(), &new.to_string());
        let mut server = world.serve().await;
        // The watcher, and who asks what the backend offers.
        let one = soon("a connection", mute.accept()).await.unwrap();
        let two = soon("another", mute.accept()).await.unwrap();
        server.process.signal("TERM");
        ends_whole(&mut server).await;
        drop((one, two));
    })
    .await;
}
