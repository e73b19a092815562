//! Peers that make mailchime work: whatever one of them sends, others have their turn, what is done for
//! it is linear in its bytes, and what is kept of it is bounded for all of them together.
//!
//! Nothing here measures time. Turns are counted: how often another task of the same thread went on
//! while what a peer had sent was dealt with.

use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;

use mailchime::config;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::yield_now;
use tokio_rustls::TlsConnector;

use crate::support::in_process::InProcess;
use crate::support::line::Client;
use crate::support::world::{LOGIN, MAIL, PASSWORD, Server, World};
use crate::support::{limited, listener, soon, watching};

/// A backend's side of a connection to this process. It never waits: while there is nothing to read or
/// no room to write, everything else has a turn, and that is counted.
struct Peer {
    stream: std::net::TcpStream,
    heard: Vec<u8>,
    turns: usize,
}

impl Peer {
    async fn accepted(listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().await.unwrap();
        Self { stream: stream.into_std().unwrap(), heard: Vec::new(), turns: 0 }
    }

    /// The next line; `None` at the end.
    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(feed) = self.heard.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.heard.drain(..=feed).collect();
                return Some(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece) {
                Ok(0) => return None,
                Ok(length) => self.heard.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.others().await,
                Err(_) => return None,
            }
        }
    }

    async fn say(&mut self, said: &[u8]) {
        let mut rest = said;
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(length) => rest = &rest[length..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.others().await,
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn others(&mut self) {
        self.turns += 1;
        yield_now().await;
    }

    /// Answers each command by `answer` of its tag and words, until that gives nothing; the tag then.
    async fn answers(&mut self, answer: impl Fn(&str, &str) -> Option<String>) -> Option<String> {
        loop {
            let line = self.line().await?;
            let (tag, words) = line.split_once(' ').unwrap_or((&line, ""));
            let Some(answer) = answer(tag, words) else { return Some(tag.to_owned()) };
            self.say(answer.as_bytes()).await;
        }
    }
}

/// The client says this much at once: less than a socket holds, so that it is all at hand.
const FLOOD: usize = 128 * 1024;

/// While it is dealt with others must have had so many turns. Without any care it is one or two.
const TURNS: usize = 50;

async fn a_watcher_hears(flood: &[u8]) -> usize {
    let listener = listener().await;
    let world = watching::WatchWorld::new(listener.local_addr().unwrap()).await;
    world.register("alice", &[("INBOX", Default::default())]).await;
    let watching = world.watch();
    let mut backend = Peer::accepted(&listener).await;
    backend.say(b"* OK [CAPABILITY IMAP4rev1 IDLE] ready\r\n").await;
    let answer = |tag: &str, words: &str| match words.split(' ').next() {
        Some("EXAMINE") => None,
        Some("LOGIN") => Some(format!("{tag} OK [CAPABILITY IMAP4rev1 IDLE] in\r\n")),
        _ => Some(format!("{tag} OK done\r\n")),
    };
    let tag = backend.answers(answer).await.unwrap();
    backend.turns = 0;
    backend.say(&[flood, format!("{tag} OK opened\r\n").as_bytes()].concat()).await;
    // What it does next it does when it has read all of that.
    let next = backend.line().await.unwrap();
    assert!(next.contains(" STATUS \"INBOX\""), "{next}");
    let turns = backend.turns;
    drop(backend);
    watching.stop().await;
    turns
}

#[tokio::test]
async fn a_watcher_lets_others_have_their_turn_whatever_its_backend_tells() {
    limited(async {
        for line in ["\n", "* 1 FETCH (FLAGS (\\Seen))\r\n", "* STATUS x (MESSAGES 1)\r\n", "x\r\n"]
        {
            let lines = FLOOD / line.len();
            let turns = a_watcher_hears(line.repeat(lines).as_bytes()).await;
            assert!(turns >= lines / 1500, "{line:?}: {turns} turns for {lines} lines");
        }
    })
    .await;
}

/// mailchime in this thread, in front of `backend`; what trusts it.
async fn in_this_thread(backend: &TcpListener) -> (InProcess, TlsConnector) {
    let world = InProcess::start(backend.local_addr().unwrap(), |_| {}).await;
    let tls = TlsConnector::from(Arc::new(world.client_config()));
    (world, tls)
}

/// The backend of a session that is logged in, whose client sends `commands` and reads all it gets.
/// Connections that only ask what the backend offers are left.
async fn a_session(
    listener: &TcpListener,
    client: TcpStream,
    tls: TlsConnector,
    commands: Vec<u8>,
) -> Peer {
    let name = ServerName::try_from("localhost").unwrap();
    tokio::spawn(async move {
        let mut client = tls.connect(name, client).await?;
        client.write_all(b"a LOGIN alice secret\r\n").await?;
        client.write_all(&commands).await?;
        client.flush().await?;
        let mut piece = vec![0; 64 * 1024];
        while client.read(&mut piece).await? > 0 {}
        Ok::<_, std::io::Error>(())
    });
    loop {
        let mut backend = Peer::accepted(listener).await;
        backend.say(b"* OK [CAPABILITY IMAP4rev1 IDLE] ready\r\n").await;
        let answer = |tag: &str, words: &str| {
            (!words.starts_with("LOGIN")).then(|| format!("{tag} OK done\r\n"))
        };
        let Some(tag) = backend.answers(answer).await else { continue };
        backend.say(format!("{tag} OK in\r\n").as_bytes()).await;
        return backend;
    }
}

#[tokio::test]
async fn a_session_lets_others_have_their_turn_whatever_its_backend_repeats() {
    limited(async {
        let listener = listener().await;
        let (world, tls) = in_this_thread(&listener).await;
        for (line, most) in [("\n", TURNS / 10), ("* CAPABILITY A\r\n", TURNS)] {
            let client = TcpStream::connect(world.address()).await.unwrap();
            // Both are mailchime's to answer, and it asks the backend first.
            let commands = b"x STARTTLS\r\ny STARTTLS\r\n".to_vec();
            let mut backend = a_session(&listener, client, tls.clone(), commands).await;
            let fence = backend.line().await.unwrap();
            assert!(fence.ends_with(" NOOP"), "{fence}");
            let tag = fence.split(' ').next().unwrap();
            backend.turns = 0;
            let flood = line.repeat(FLOOD / line.len());
            backend.say(format!("{flood}{tag} OK done\r\n").as_bytes()).await;
            let next = backend.line().await.unwrap();
            assert!(next.ends_with(" NOOP"), "{next}");
            assert!(backend.turns >= most, "{line:?}: {} turns", backend.turns);
        }
        world.mailchime.stop().await;
    })
    .await;
}

/// A client that means harm sends all it can at once; each is a fraction of a second of work.
#[tokio::test]
async fn a_session_lets_others_have_their_turn_whatever_its_client_pipelines() {
    limited(async {
        let listener = listener().await;
        let (world, tls) = in_this_thread(&listener).await;
        let client = TcpStream::connect(world.address()).await.unwrap();
        let mut commands = b"\n".repeat(FLOOD);
        commands.extend_from_slice(b"z NOOP\r\n");
        let mut backend = a_session(&listener, client, tls, commands).await;
        backend.turns = 0;
        let heard = backend.line().await;
        while let Some(line) = backend.line().await {
            if line == "z NOOP" {
                break;
            }
        }
        assert_eq!(heard.as_deref(), Some(""));
        assert!(backend.turns >= 4, "{} turns", backend.turns);
        world.mailchime.stop().await;
    })
    .await;
}

/// 16 KiB of tokens, each unlike the others: not all of them are looked at.
#[tokio::test]
async fn a_capability_list_has_a_bounded_number_of_tokens() {
    limited(async {
        let world = World::new().await;
        let listener = listener().await;
        world.in_front_of(listener.local_addr().unwrap());
        let tokens: String = (0..2500).map(|number| format!(" X{number}")).collect();
        tokio::spawn(async move {
            loop {
                let mut backend = Peer::accepted(&listener).await;
                let tokens = tokens.clone();
                tokio::spawn(async move {
                    backend.say(b"* OK [CAPABILITY IMAP4rev1] ready\r\n").await;
                    let answer = |tag: &str, words: &str| {
                        let list = match words {
                            "CAPABILITY" => format!("* CAPABILITY{tokens}\r\n"),
                            _ => String::new(),
                        };
                        Some(format!("{list}{tag} OK done\r\n"))
                    };
                    backend.answers(answer).await
                });
            }
        });
        let server = world.serve().await;
        let mut client = world.client(&server).await;
        client.send(format!("a LOGIN {LOGIN} \"{PASSWORD}\"\r\n").as_bytes()).await;
        client.until("a OK").await;
        client.send(b"b CAPABILITY\r\n").await;
        let list = client.until("* CAPABILITY").await;
        client.until("b OK").await;
        let count = list.split(' ').count();
        assert!(list.contains(" X0 X1 ") && count < 300, "{count} words");
    })
    .await;
}

/// With and without STARTTLS.
#[tokio::test]
async fn a_client_that_only_asks_is_sent_away() {
    const LIMIT: usize = 40;
    limited(async {
        for starttls in [false, true] {
            let world = World::new().await;
            if starttls {
                let address = "address = \"127.0.0.1:0\"";
                world.configure(address, &format!("{address}\ntls = \"starttls\""));
            }
            let limits = format!("[limits]\ncommands_before_login = {LIMIT}\n[log]");
            world.configure("[log]", &limits);
            let server = world.serve().await;
            let commands = b"c CAPABILITY\r\n".repeat(1000);
            let heard = match starttls {
                false => world.client(&server).await.force(&commands).await,
                true => {
                    let mut client = TcpStream::connect(server.address).await.unwrap();
                    let mut heard = Vec::new();
                    let _ = client.write_all(&commands).await;
                    let _ = soon("the end", client.read_to_end(&mut heard)).await;
                    String::from_utf8_lossy(&heard).into_owned()
                }
            };
            assert_eq!(heard.matches("c OK CAPABILITY").count(), LIMIT, "{heard}");
            let last = heard.lines().last().unwrap();
            assert_eq!(last, "* BYE Too many commands before a login");
            if !starttls {
                // After its login a client may ask as often as it likes.
                let mut session = world.session(&server).await;
                for _ in 0..2 * LIMIT {
                    session.send(b"z NOOP\r\n").await;
                    session.until("z OK").await;
                }
            }
        }
    })
    .await;
}

/// A backend that accepts and says nothing.
async fn silent(world: &World) {
    let listener = listener().await;
    world.in_front_of(listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok(accepted) = listener.accept().await {
            held.push(accepted);
        }
    });
}

/// What is resident, in KiB.
fn resident(server: &Server) -> u64 {
    server.process.memory("VmRSS")
}

/// Sends what it can within a moment, and stays.
async fn push_hard(client: &mut Client, bytes: &[u8]) {
    let moment = std::time::Duration::from_millis(200);
    let _ = tokio::time::timeout(moment, client.try_send(bytes)).await;
}

#[tokio::test]
async fn a_login_that_waits_keeps_little_of_what_is_sent_behind_it() {
    /// For each, TLS and the connection to the backend included, in KiB. It was 240.
    const MOST_EACH: u64 = 96;
    const CLIENTS: u64 = 60;
    limited(async {
        let world = World::new().await;
        silent(&world).await;
        world.configure("[log]", "[limits]\nconnect_timeout = \"1m\"\n[log]");
        let server = world.serve().await;
        let mut clients = Vec::new();
        // The first ones also bring in what all of them share.
        let mut before = 0;
        for at in 0..CLIENTS + 10 {
            if at == 10 {
                before = resident(&server);
            }
            let mut client = world.client(&server).await;
            client.send(b"a LOGIN alice secret\r\n").await;
            push_hard(&mut client, &vec![b'x'; 300 * 1024]).await;
            clients.push(client);
        }
        let each = resident(&server).saturating_sub(before) / CLIENTS;
        assert!(each < MOST_EACH, "{each} KiB for each");
    })
    .await;
}

#[tokio::test]
async fn strangers_together_keep_no_more_than_is_allowed() {
    const CLIENTS: usize = 60;
    limited(async {
        let world = World::new().await;
        world.configure("[log]", "[limits]\nlogin_memory = \"1MiB\"\n[log]");
        let mut server = world.serve().await;
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let mut client = world.client(&server).await;
            // Half of a command that is as long as one may be.
            client.send(b"a LOGIN alice {60000+}\r\n").await;
            client.try_send(&vec![b'x'; 50_000]).await;
            clients.push(client);
        }
        server
            .logged("[limits] login_memory is reached; clients that send long commands before login get a BYE")
            .await;
        // A client that needs no more than most do is served all the same.
        world.register(server.address).await.unwrap();
        let mut ends = tokio::task::JoinSet::new();
        for mut client in clients {
            client.try_send(&[b'x'; 11_000]).await;
            ends.spawn(async move {
                // Who may stay hears nothing.
                let moment = std::time::Duration::from_secs(10);
                let line = tokio::time::timeout(moment, client.rest()).await;
                line.is_ok_and(|said| said.starts_with("* BYE There is no memory"))
            });
        }
        let sent_away = ends.join_all().await.into_iter().filter(|sent_away| *sent_away).count();
        // 1 MiB has room for about twenty of them.
        assert!((25..60).contains(&sent_away), "{sent_away}");
        world.deliver();
        world.push().await;
    })
    .await;
}

#[tokio::test]
async fn sessions_together_compress_no_more_than_is_allowed() {
    const SESSIONS: usize = 12;
    limited(async {
        let world = World::new().await;
        world.configure("[log]", "[limits]\nsession_memory = \"1MiB\"\n[log]");
        let mut server = world.serve().await;
        let mut refused = Vec::new();
        let mut compressed = Vec::new();
        for _ in 0..SESSIONS {
            let mut session = world.session(&server).await;
            session.send(b"c COMPRESS DEFLATE\r\n").await;
            let answer = session.until("c ").await;
            if answer.starts_with("c OK") {
                compressed.push(session);
            } else {
                assert_eq!(answer, "c NO [LIMIT] There is no memory for compression just now");
                refused.push(session);
            }
        }
        assert!((4..=5).contains(&compressed.len()), "{} are compressed", compressed.len());
        let line =
            "[limits] session_memory is reached; mailchime reads less at once and refuses COMPRESS";
        server.logged(line).await;
        // They go on without, and mail of any size passes.
        let mail = MAIL.repeat(10_000);
        let mut session = refused.pop().unwrap();
        session.send(format!("m APPEND INBOX {{{}+}}\r\n{mail}\r\n", mail.len()).as_bytes()).await;
        session.until("m OK").await;
        session.send(b"s SELECT INBOX\r\nf FETCH 1 BODY[]\r\n").await;
        session.until("f OK").await;
        // And with it, once there is room.
        drop(compressed);
        loop {
            session.send(b"c COMPRESS DEFLATE\r\n").await;
            if session.until("c ").await.starts_with("c OK") {
                break;
            }
        }
    })
    .await;
}

/// The manual says what the limits come to, and the unit leaves room for that.
#[test]
fn the_unit_leaves_room_for_all_that_the_limits_allow() {
    const KIB: usize = 1024;
    let limits = config::LimitsConfig::default();
    let connections = limits.sessions + limits.waiting;
    let most = 50 * KIB * KIB
        + 64 * 2 * KIB * KIB
        + limits.login_memory
        + limits.session_memory
        + connections * 64 * KIB
        + 10_000 * 16 * KIB;
    assert!(most < 3 * KIB * KIB * KIB, "the manual says less than 3 GiB: {most}");
    let unit = include_str!("../../../contrib/systemd/mailchime.service");
    let line = unit.lines().find_map(|line| line.strip_prefix("MemoryMax=")).unwrap();
    let gib: usize = line.strip_suffix('G').unwrap().parse().unwrap();
    assert!(gib * KIB * KIB * KIB > most, "{line}");
}
