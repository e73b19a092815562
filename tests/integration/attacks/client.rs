//! Clients that mean harm by how they send and read, before and after the login: what each costs is
//! bounded, in time and memory, and others are served.

use std::io::Write;

use flate2::Compression;
use flate2::write::DeflateEncoder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::line::Client;
use crate::support::world::{LOGIN, MAIL, PASSWORD, Server, World, registration};
use crate::support::{limited, listener, soon};

/// What the program may have grown by at its peak, in KiB, for one client: buffers of its threads, of which there is one for each
/// processor, are in it.
fn most_growth() -> u64 {
    let processors = std::thread::available_parallelism().map_or(2, |count| count.get() as u64);
    5 * 1024 + processors.saturating_sub(2) * 1536
}

/// Sends each byte in a TLS record of its own.
async fn drip(client: &mut Client, text: &str) {
    for byte in text.bytes() {
        client.send(&[byte]).await;
    }
}

#[tokio::test]
async fn a_session_of_single_bytes_is_like_any_other() {
    limited(async {
        let world = World::new().await;
        let server = world.serve().await;
        let mut client = world.client(&server).await;
        drip(&mut client, &format!("a LOGIN {LOGIN} {{{}}}\r\n", PASSWORD.len())).await;
        client.until("+ ").await;
        drip(&mut client, &format!("{PASSWORD}\r\n")).await;
        client.until("a OK").await;
        drip(&mut client, &format!("b {}\r\n", registration())).await;
        client.until("* XAPPLEPUSHSERVICE \"mailbox\" \"INBOX\"").await;
        client.until("b OK").await;
        drip(&mut client, &format!("c APPEND INBOX {{{}+}}\r\n{MAIL}\r\n", MAIL.len())).await;
        client.until("c OK").await;
        drip(&mut client, "d SELECT INBOX\r\ne IDLE\r\n").await;
        client.until("+ ").await;
        drip(&mut client, "DONE\r\nf LOGOUT\r\n").await;
        client.until("f OK").await;
        world.push().await;
    })
    .await;
}

/// However busy it looks: the time for the login counts from the beginning.
#[tokio::test]
async fn a_client_of_slow_bytes_must_log_in_in_time() {
    limited(async {
        let world = World::new().await;
        world.configure("[log]", "[limits]\nlogin_timeout = \"5s\"\n[log]");
        let server = world.serve().await;
        let mut clients = [world.client(&server).await, world.client(&server).await];
        // One within a command, and one that never stops to end some.
        clients[0].send(b"a LOGIN ").await;
        let [slow, busy] = clients;
        let noops = b"n NOOP\r\n".repeat(1_000_000);
        let (slow, busy) = tokio::join!(slow.force(b"x"), busy.force(&noops));
        assert!(slow.is_empty() || slow == "* BYE No login in time\r\n", "{slow}");
        assert!(busy.starts_with("n OK"));
        world.register(server.address).await.unwrap();
    })
    .await;
}

/// A backend that has no end of mail, and reads what it is sent or not.
async fn flooding(world: &World, reads: bool) {
    let listener = listener().await;
    let address = listener.local_addr().unwrap().to_string();
    world.configure(&world.backend.address().to_string(), &address);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(b"* OK [CAPABILITY IMAP4rev1] ready\r\n").await?;
                let mut heard = vec![0; 4096];
                if stream.read(&mut heard).await? == 0 {
                    return Ok(());
                }
                stream.write_all(b"m2 OK in\r\n").await?;
                if !reads {
                    loop {
                        stream.write_all(&[b"* 1 EXISTS\r\n".as_slice(); 1000].concat()).await?;
                    }
                }
                while stream.read(&mut heard).await? > 0 {}
                Ok::<_, std::io::Error>(())
            });
        }
    });
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_given_up() {
    limited(async {
        let world = World::new().await;
        let limits = "[limits]\nwrite_timeout = \"1s\"\ncommands_before_login = 1000000\n[log]";
        world.configure("[log]", limits);
        flooding(&world, false).await;
        let mut server = world.serve().await;
        let before = server.process.memory("VmHWM");
        // Before the login it does so with answers of ours.
        let mut deaf = world.client(&server).await;
        let asking = async { while deaf.try_send(&b"n NOOP\r\n".repeat(1000)).await {} };
        soon("the end of the deaf one before its login", asking).await;
        let ended = server.logged("connection ended without login").await;
        assert!(ended["ended"].to_string().contains("took no bytes for 1s"), "{ended}");

        let deaf = world.session(&server).await;
        let ended = server.logged("session broken off").await;
        assert!(ended["why"].to_string().contains("took no bytes for 1s"), "{ended}");
        drop(deaf);
        let grown = server.process.memory("VmHWM").saturating_sub(before);
        assert!(grown < most_growth(), "{grown} KiB more than before");
    })
    .await;
}

async fn is_served(world: &World, server: &Server) {
    let mut session = world.session(server).await;
    session.send(b"z NOOP\r\n").await;
    session.until("z OK").await;
}

#[tokio::test]
async fn thousands_of_half_logins_leave_room_for_others() {
    /// For one that has begun a login, TLS included, in KiB.
    const MOST_EACH: u64 = 48;
    const CLIENTS: usize = 1500;
    limited(async {
        let world = World::new().await;
        world.configure(
            "[log]",
            &format!("[limits]\nwaiting = {CLIENTS}\nlogin_timeout = \"10m\"\n[log]"),
        );
        let server = world.serve().await;
        let before = server.process.memory("VmRSS");
        let mut half = Vec::new();
        for at in 0..CLIENTS - 1 {
            let mut client = world.client(&server).await;
            let command: &[u8] = [
                b"a LOGIN alice {11}\r\n".as_slice(),
                b"a LOGIN alice {11+}\r\nwonder",
                b"a AUTHENTICATE PLAIN\r\n",
                b"a AUTHENTICATE LOGIN\r\nYWxpY2U=\r\n",
                b"a LOG",
            ][at % 5];
            client.send(command).await;
            half.push(client);
        }
        let each = server.process.memory("VmRSS").saturating_sub(before) / half.len() as u64;
        assert!(each < MOST_EACH, "{each} KiB for each");
        // There is one place left. The connections after that take the oldest one's.
        let mut session = world.session(&server).await;
        session.send(b"z NOOP\r\n").await;
        session.until("z OK").await;
        let _more = [world.client(&server).await, world.client(&server).await];
        let oldest = half.swap_remove(0).rest().await;
        assert_eq!(oldest, "+ OK\r\n* BYE [UNAVAILABLE] Too many connections without a login\r\n");
        drop(half);
        session.send(b"y NOOP\r\n").await;
        session.until("y OK").await;
    })
    .await;
}

/// 16 MiB in 16 KiB, in one line.
fn bomb(start: &str) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(start.as_bytes()).unwrap();
    for _ in 0..16 {
        encoder.write_all(&[b'a'; 1024 * 1024]).unwrap();
    }
    encoder.finish().unwrap()
}

#[tokio::test]
async fn a_decompression_bomb_fills_no_memory() {
    limited(async {
        for reads in [true, false] {
            let world = World::new().await;
            world.configure("[log]", "[limits]\nwrite_timeout = \"1s\"\n[log]");
            let server = world.serve().await;
            // As a command of ours, which is put together, and as one that passes.
            for start in ["b XAPPLEPUSHSERVICE \"", "b NOOP ", ""] {
                let before = server.process.memory("VmHWM");
                let mut client = world.session(&server).await;
                client.send(b"c COMPRESS DEFLATE\r\n").await;
                client.until("c OK").await;
                let bomb = bomb(start);
                if reads {
                    client.force(&bomb).await;
                } else {
                    client.try_send(&bomb).await;
                }
                let grown = server.process.memory("VmHWM").saturating_sub(before);
                assert!(grown < most_growth(), "{start}: {grown} KiB more than before");
            }
            is_served(&world, &server).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_huge_pipeline_is_answered_in_order() {
    const COMMANDS: usize = 20_000;
    limited(async {
        let world = World::new().await;
        let server = world.serve().await;
        let mut session = world.session(&server).await;
        // One that has to be written may be answered behind what is asked after it.
        session.send(format!("first {}\r\n", registration()).as_bytes()).await;
        session.until("first OK").await;
        let before = server.process.memory("VmHWM");
        let mut commands = String::new();
        let mut tags = Vec::new();
        for at in 0..COMMANDS {
            match at % 1000 {
                // Of ours, in between.
                999 => commands.push_str(&format!("p{at} {}\r\n", registration())),
                500 => commands.push_str(&format!("p{at} STARTTLS\r\n")),
                _ => commands.push_str(&format!("p{at} NOOP\r\n")),
            }
            tags.push(format!("p{at}"));
        }
        commands.push_str("end LOGOUT\r\n");
        let heard = session.force(commands.as_bytes()).await;
        let answered: Vec<_> = heard
            .lines()
            .filter(|line| line.starts_with('p'))
            .map(|line| line.split(' ').next().unwrap())
            .collect();
        assert!(answered == tags, "{} answers", answered.len());
        let grown = server.process.memory("VmHWM").saturating_sub(before);
        assert!(grown < most_growth(), "{grown} KiB more than before");
    })
    .await;
}
