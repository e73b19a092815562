//! Strangers who want to break it: floods, garbage, lines and literals without end.

use tokio::net::TcpStream;

use crate::support::limited;
use crate::support::program::{Process, mailchime_after};
use crate::support::world::{Server, World};

#[tokio::test]
async fn it_outlives_a_shortage_of_file_descriptors() {
    limited(async {
        let world = World::new().await;
        let arguments = world.arguments();
        let arguments = arguments.each_ref().map(String::as_str);
        let process = Process::spawn(mailchime_after("ulimit -n 64", &arguments));
        let mut server = Server::of(process).await;
        let mut flood = Vec::new();
        for _ in 0..100 {
            flood.push(TcpStream::connect(server.address).await.unwrap());
        }
        server.logged("could not accept connections; mailchime keeps trying. If too many files are open, raise the limit (LimitNOFILE)").await;
        drop(flood);
        world.register(server.address).await.unwrap();
        world.watched().await;
        world.deliver();
        world.push().await;
    })
    .await;
}

#[tokio::test]
async fn input_from_strangers_costs_little_and_harms_no_session() {
    limited(async {
        let world = World::new().await;
        let mut server = world.serve().await;
        let mut session = world.session(&server).await;
        let before = server.process.memory("VmRSS");

        let long = [b'a'; 64 * 1024].repeat(160);
        let mut zeros = vec![0; 4096];
        zeros.extend_from_slice(b"\r\n");
        let garbage: Vec<u8> = (0..=255).rev().cycle().take(100_000).collect();
        for (what, bytes) in [
            ("a line of 10 MB", &*long),
            ("NUL bytes", &zeros),
            ("garbage", &garbage),
            ("a huge literal", b"a LOGIN {4294967295}\r\n"),
            ("a huge literal that does not wait", b"a LOGIN alice {99999999+}\r\n"),
            ("a literal beyond all numbers", b"a LOGIN {99999999999999999999999999}\r\n"),
            ("NUL bytes in a command", b"a LOGIN \0\0 \0\r\n"),
            ("no tag", b"\r\n\r\n\r\n\r\n"),
        ] {
            let answer = world.client(&server).await.force(bytes).await;
            let refused =
                |line: &str| line.starts_with("* BYE ") || line.split(' ').nth(1) == Some("BAD");
            assert!(answer.lines().any(refused), "{what}: {answer:?}");
            session.send(b"n NOOP\r\n").await;
            session.until("n OK").await;
        }
        // The peak, a part of which is code that was read in meanwhile.
        let grown = server.process.memory("VmHWM").saturating_sub(before);
        assert!(grown < 4 * 1024, "{grown} KiB more than before");
        world.register(server.address).await.unwrap();
        server.process.signal("TERM");
        session.until("* BYE").await;
        drop(session);
        assert_eq!(server.process.end().await.code(), Some(0));
        let log = server.process.stderr.seen.join("\n");
        assert!(!log.contains("panicked"), "{log}");
    })
    .await;
}
