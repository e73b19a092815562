//! COMPRESS, which lets the length of what is sent tell something of it (CRIME, BREACH), can be left
//! out: clients see nothing of it before login or after, and the backend's own stays hidden.

use crate::support::limited;
use crate::support::world::{LOGIN, PASSWORD, World};

#[tokio::test]
async fn where_compression_is_off_no_client_is_offered_it_or_gets_it() {
    limited(async {
        let world = World::new().await;
        world.backend.behave(|behaviour| behaviour.add("COMPRESS=DEFLATE"));
        world.configure("[log]", "[limits]\ncompress = false\n[log]");
        let server = world.serve().await;
        for _ in 0..2 {
            let mut client = world.client(&server).await;
            client.send(b"a CAPABILITY\r\n").await;
            let before = client.line().await;
            assert!(
                before.starts_with("* CAPABILITY ") && !before.contains("COMPRESS"),
                "{before}"
            );
            client.until("a OK").await;
            client.send(b"b COMPRESS DEFLATE\r\n").await;
            let refused = client.until("b ").await;
            assert!(refused.starts_with("b NO") || refused.starts_with("b BAD"), "{refused}");
            client.send(format!("c LOGIN {LOGIN} \"{PASSWORD}\"\r\n").as_bytes()).await;
            let granted = client.until("c OK").await;
            assert!(!granted.contains("COMPRESS"), "{granted}");
            client.send(b"d CAPABILITY\r\n").await;
            let after = client.until("* CAPABILITY ").await;
            assert!(after.contains("IDLE") && !after.contains("COMPRESS"), "{after}");
            client.until("d OK").await;
            client.send(b"e COMPRESS DEFLATE\r\n").await;
            assert_eq!(client.line().await, "e NO COMPRESS is switched off");
            // The connection goes on as it is, and the backend has seen nothing.
            client.send(b"f NOOP\r\n").await;
            client.until("f OK").await;
        }
    })
    .await;
}

#[tokio::test]
async fn compression_that_is_switched_off_is_off_for_new_sessions_at_once() {
    limited(async {
        let world = World::new().await;
        let mut server = world.serve().await;
        let mut client = world.session(&server).await;
        client.send(b"a CAPABILITY\r\n").await;
        let offered = client.until("* CAPABILITY ").await;
        assert!(offered.contains("COMPRESS=DEFLATE"), "{offered}");
        world.configure("[log]", "[limits]\ncompress = false\n[log]");
        server.process.signal("HUP");
        server.logged("configuration reloaded").await;
        let mut client = world.session(&server).await;
        client.send(b"a CAPABILITY\r\n").await;
        let offered = client.until("* CAPABILITY ").await;
        assert!(!offered.contains("COMPRESS"), "{offered}");
    })
    .await;
}
