//! A backend that was taken over: whatever it says, the client gets an honest answer or end, the
//! program's memory stays bounded, and the next session is served. The same for a watcher.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;

use self::Act::{AnswerUntil, Endless, Hear, Reset, Say};
use crate::support::limited;
use crate::support::listener;
use crate::support::world::{LOGIN, PASSWORD, Server, World, registration};

/// How much comes where no end comes, in bytes. A program that kept it would be found out.
const ENDLESS: usize = 6 * 1024 * 1024;

/// What the program may have grown by at its peak, in KiB: buffers of a few sessions, and code that
/// was read in meanwhile.
const MOST_GROWTH: u64 = 5 * 1024;

/// What a backend does on a connection. It hangs up in the end.
#[derive(Clone, Copy)]
enum Act {
    /// `#` is the tag of what was heard last.
    Say(&'static str),
    /// This again and again, until so much was said or nobody listens.
    Endless(&'static str),
    /// Reads to a line with this.
    Hear(&'static str),
    /// Says OK to all commands before one with this, which has been heard then.
    AnswerUntil(&'static str),
    /// Hangs up with a reset, of which nothing but an error is heard at the other end.
    Reset,
}

const READY: Act = Say("* OK [CAPABILITY IMAP4rev1 IDLE LIST-STATUS] ready\r\n");
const IN: Act = Say("# OK [CAPABILITY IMAP4rev1 IDLE] in\r\n");

/// A relay to the good backend, or a backend that does what it was told.
struct Backend {
    manner: Arc<Mutex<Option<&'static [Act]>>>,
}

impl Backend {
    /// Comes between `world`'s program and its backend.
    async fn before(world: &World) -> Self {
        let listener = listener().await;
        let good = world.backend.address();
        world.configure(&good.to_string(), &listener.local_addr().unwrap().to_string());
        let manner = Arc::new(Mutex::new(None::<&'static [Act]>));
        let current = Arc::clone(&manner);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let manner = *current.lock().unwrap();
                tokio::spawn(async move {
                    match manner {
                        Some(acts) => drop(play(stream, acts).await),
                        None => {
                            let mut good = TcpStream::connect(good).await.unwrap();
                            let _ = tokio::io::copy_bidirectional(&mut stream, &mut good).await;
                        }
                    }
                });
            }
        });
        Self { manner }
    }

    fn becomes(&self, manner: Option<&'static [Act]>) {
        *self.manner.lock().unwrap() = manner;
    }
}

async fn play(stream: TcpStream, acts: &[Act]) -> std::io::Result<()> {
    let mut stream = BufStream::new(stream);
    let mut tag = String::new();
    for act in acts {
        match *act {
            Say(text) => stream.write_all(text.replace('#', &tag).as_bytes()).await?,
            Endless(text) => {
                let piece = text.repeat(64 * 1024 / text.len());
                // Each line that is kept takes more than its bytes.
                let most = if text.ends_with('\n') { ENDLESS / 3 } else { ENDLESS };
                for _ in 0..most / piece.len() {
                    stream.write_all(piece.as_bytes()).await?;
                }
            }
            Reset => {
                stream.flush().await?;
                stream.get_ref().set_zero_linger()?;
                return Ok(());
            }
            Hear(awaited) | AnswerUntil(awaited) => loop {
                stream.flush().await?;
                let mut line = Vec::new();
                if stream.read_until(b'\n', &mut line).await? == 0 {
                    return Ok(());
                }
                let line = String::from_utf8_lossy(&line);
                tag = line.split(' ').next().unwrap().to_owned();
                if line.contains(awaited) {
                    break;
                }
                if let AnswerUntil(_) = act {
                    stream.write_all(format!("{tag} OK done\r\n").as_bytes()).await?;
                }
            },
        }
    }
    stream.flush().await?;
    stream.shutdown().await
}

/// A program behind which a backend may turn hostile, and its peak before that.
async fn serving() -> (World, Backend, Server, u64) {
    let world = World::new().await;
    world.configure("[log]", "[limits]\nfailure_delay = \"1ms\"\nlogin_timeout = \"10m\"\n[log]");
    let backend = Backend::before(&world).await;
    let server = world.serve().await;
    is_served_as_ever(&world, &server).await;
    let before = peak(&server);
    (world, backend, server, before)
}

async fn is_served_as_ever(world: &World, server: &Server) {
    let mut session = world.session(server).await;
    session.send(b"z NOOP\r\n").await;
    session.until("z OK").await;
}

fn peak(server: &Server) -> u64 {
    server.process.memory("VmHWM")
}

/// Before a login is accepted all is `NO [UNAVAILABLE]`, on a connection that stays.
#[tokio::test]
async fn a_hostile_backend_before_and_in_the_login() {
    let manners: &[(&str, &'static [Act])] = &[
        ("not a word", &[]),
        ("BYE for a greeting", &[Say("* BYE go away\r\n")]),
        ("half a greeting", &[Say("* O")]),
        ("no greeting", &[Say("HTTP/1.1 400 Bad Request\r\n\r\n")]),
        ("PREAUTH", &[Say("* PREAUTH you are root\r\n"), Hear("LOGIN")]),
        ("a greeting without end", &[Say("* OK "), Endless("x")]),
        ("a literal for a greeting", &[Say("* X {18446744073709551615}\r\n"), Endless("x\r\n")]),
        ("a capability bomb in the greeting", &[Say("* OK [CAPABILITY "), Endless("AUTH=X ")]),
        ("BYE after the greeting", &[READY, Say("* BYE\r\n")]),
        ("hangs up after the greeting", &[READY]),
        ("resets the connection at once", &[Reset]),
        ("resets it after the greeting", &[READY, Reset]),
        ("resets it in the login", &[READY, Hear("LOGIN"), Reset]),
        ("BYE in the login", &[READY, Hear("LOGIN"), Say("* BYE\r\n")]),
        ("hangs up in the login", &[READY, Hear("LOGIN")]),
        ("BYE with the answer on its way", &[READY, Hear("LOGIN"), Say("* BYE\r\n"), IN]),
        ("a wrong tag", &[READY, Hear("LOGIN"), Say("zz OK in\r\nm1 OK in\r\n* OK in\r\n")]),
        ("half a tag", &[READY, Hear("LOGIN"), Say("m OK in\r\n")]),
        ("more than a tag", &[READY, Hear("LOGIN"), Say("#x OK in\r\n")]),
        (
            "the tag in a literal",
            &[READY, Hear("LOGIN"), Say("* X {10}\r\nm2 OK in\r\n\r\n* Y \"m2 OK in\"\r\n")],
        ),
        ("an answer without end", &[READY, Hear("LOGIN"), Say("# OK "), Endless("x")]),
        (
            "a literal without end",
            &[READY, Hear("LOGIN"), Say("* X {18446744073709551615}\r\n"), Endless("m2 OK in\r\n")],
        ),
        (
            "a literal beyond all numbers",
            &[READY, Hear("LOGIN"), Say("* X {99999999999999999999999}\r\n"), Endless("x")],
        ),
        (
            "capabilities again and again",
            &[
                READY,
                Hear("LOGIN"),
                Endless("* CAPABILITY IMAP4rev1 A B C D E F G H I J K L M N O P Q R S T\r\n"),
            ],
        ),
        ("untagged lines again and again", &[READY, Hear("LOGIN"), Endless("* 1 EXISTS\r\n")]),
        ("lines of no meaning again and again", &[READY, Hear("LOGIN"), Endless("\r\n")]),
    ];
    limited(async {
        let (world, backend, mut server, before) = serving().await;
        let mut client = world.client(&server).await;
        for (name, manner) in manners {
            backend.becomes(Some(manner));
            client.send(format!("a LOGIN {LOGIN} \"{PASSWORD}\"\r\n").as_bytes()).await;
            let answer = client.line().await;
            assert!(answer.starts_with("a NO [UNAVAILABLE] "), "{name}: {answer}");
            let why = match *name {
                "hangs up in the login" => "it hung up",
                "resets it in the login" => "reset",
                _ => "",
            };
            while !why.is_empty() {
                let line = server
                    .logged("the backend did not answer a login; see the backend's log")
                    .await;
                if line["why"].as_str().unwrap().contains(why) {
                    break;
                }
            }
            backend.becomes(None);
            is_served_as_ever(&world, &server).await;
        }
        client.send(format!("b LOGIN {LOGIN} \"{PASSWORD}\"\r\n").as_bytes()).await;
        client.until("b OK").await;
        let grown = peak(&server).saturating_sub(before);
        assert!(grown < MOST_GROWTH, "{grown} KiB more than before");
    })
    .await;
}

/// What a backend says when it sends somebody away with its greeting reaches the user and the log, in one
/// short line each, for sessions and watchers alike.
#[tokio::test]
async fn a_bye_for_a_greeting_is_shown_and_logged() {
    const MANNER: &[Act] = &[
        Say("* BYE [ALERT] Wartung\x1b[31m \"bis\" 18 Uhr "),
        Say(concat!(
            "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
        )),
        Say("\r\n"),
    ];
    limited(async {
        let (world, backend, mut server, _) = serving().await;
        world.register(server.address).await.unwrap();
        world.watched().await;
        backend.becomes(Some(MANNER));
        let mut client = world.client(&server).await;
        client.send(format!("a LOGIN {LOGIN} \"{PASSWORD}\"\r\n").as_bytes()).await;
        let answer = client.line().await;
        let expected = "a NO [ALERT] The mail server says: Wartung [31m \"bis\" 18 Uhr 0123";
        assert!(answer.starts_with(expected) && answer.len() < 300, "{answer}");
        let said = "* BYE [ALERT] Wartung\\x1b[31m \\\"bis\\\" 18 Uhr 0123";
        let line = server.logged("the backend did not answer a login; see the backend's log").await;
        let why = line["why"].as_str().unwrap();
        assert!(why.contains(said) && why.len() < 300, "{why}");

        world.backend.drop_connections();
        loop {
            let line = server.logged("watching is interrupted; mailchime tries again").await;
            let why = line["why"].as_str().unwrap();
            if why.contains(said) {
                assert!(why.len() < 300, "{why}");
                break;
            }
        }
        backend.becomes(None);
        world.watched().await;
        is_served_as_ever(&world, &server).await;
    })
    .await;
}

/// After the login all goes to the client as it is; what is asked of the backend for a registration
/// may be answered in any way.
#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one table of all attacks")]
async fn a_hostile_backend_after_the_login_and_in_a_registration() {
    const FENCE: Act = Hear("NOOP");
    const DONE: Act = Say("# OK done\r\n");
    const STATUS: Act = Hear("STATUS");
    // What the client must hear, if it does not hear the end of the connection.
    let manners: &[(&str, &str, &'static [Act])] = &[
        ("hangs up at once", "", &[]),
        ("BYE at once", "* BYE", &[Say("* BYE\r\n")]),
        ("a line without end", "", &[Say("* OK "), Endless("x")]),
        (
            "a literal without end",
            "",
            &[Say("* 1 FETCH (BODY[] {18446744073709551615}\r\n"), Endless("mc OK done\r\n")],
        ),
        ("a capability bomb", "", &[Say("* CAPABILITY "), Endless("X ")]),
        ("a capability bomb in a code", "", &[Say("* OK [CAPABILITY "), Endless("X ")]),
        ("no answer to the fence", "", &[FENCE]),
        ("BYE at the fence", "* BYE", &[FENCE, Say("* BYE\r\n")]),
        (
            "NO to the fence",
            "r OK",
            &[FENCE, Say("# NO never\r\n"), STATUS, Say("# NO never\r\n"), Hear("LOGOUT")],
        ),
        ("another's tag", "", &[FENCE, Say("mc0000000000000000x1 OK\r\nmcx1 OK\r\nx OK\r\n")]),
        ("the fence answered without end", "", &[FENCE, Say("# OK "), Endless("x")]),
        (
            "the fence answered twice, and the question before it is asked",
            "r OK",
            &[FENCE, Say("# OK\r\n# OK\r\n"), STATUS, DONE, Hear("LOGOUT")],
        ),
        (
            "a STATUS without end",
            "",
            &[
                FENCE,
                DONE,
                STATUS,
                Say("* STATUS {18446744073709551615}\r\n"),
                Endless("INBOX (MESSAGES 1)\r\n"),
            ],
        ),
        (
            "a list of a STATUS without end",
            "",
            &[FENCE, DONE, STATUS, Say("* STATUS INBOX (MESSAGES 1 "), Endless("X 1 ")],
        ),
        (
            "STATUS again and again",
            "",
            &[FENCE, DONE, STATUS, Endless("* STATUS Other (MESSAGES 1)\r\n")],
        ),
        (
            "numbers beyond all bounds",
            "r OK",
            &[
                FENCE,
                DONE,
                STATUS,
                Say(
                    "* STATUS INBOX (MESSAGES 18446744073709551615 UIDNEXT 99999999999999999999999 \
                 UIDVALIDITY 18446744073709551615 UNSEEN -1)\r\n",
                ),
                DONE,
                Hear("LOGOUT"),
            ],
        ),
        ("BYE at the question", "* BYE", &[FENCE, DONE, STATUS, Say("* BYE\r\n")]),
        ("hangs up at the question", "", &[FENCE, DONE, STATUS]),
    ];
    limited(async {
        for (name, expected, manner) in manners {
            // Shown where it fails.
            println!("{name}");
            // A mailbox at which the backend hangs up is not asked for again, until the next start.
            let (world, backend, server, before) = serving().await;
            let mut acts = vec![READY, Hear("LOGIN"), IN];
            acts.extend_from_slice(manner);
            backend.becomes(Some(acts.leak()));
            let mut client = world.session(&server).await;
            client.send(format!("r {}\r\n", registration()).as_bytes()).await;
            if expected.starts_with("r ") {
                client.until(expected).await;
                client.send(b"l LOGOUT\r\n").await;
            }
            let said = client.start_of_rest().await;
            assert!(!expected.starts_with('*') || said.starts_with(expected), "{name}: {said}");
            backend.becomes(None);
            is_served_as_ever(&world, &server).await;
            let grown = peak(&server).saturating_sub(before);
            assert!(grown < MOST_GROWTH, "{name}: {grown} KiB more than before");
        }
    })
    .await;
}

#[tokio::test]
async fn a_hostile_backend_toward_a_watcher() {
    const STATE: Act =
        Say("* STATUS INBOX (MESSAGES 1 UIDNEXT 2 UIDVALIDITY 1 UNSEEN 1)\r\n# OK done\r\n");
    const IDLE: [Act; 4] = [AnswerUntil("STATUS"), STATE, AnswerUntil("IDLE"), Say("+ idling\r\n")];
    let manners: &[(&str, &'static [Act])] = &[
        ("a line without end", &[Say("* OK "), Endless("x")]),
        ("a line of no meaning without end", &[Endless("x")]),
        (
            "a literal without end",
            &[Say("* 1 FETCH (X {18446744073709551615}\r\n"), Endless("* 9 EXISTS\r\n")],
        ),
        (
            "a literal beyond all numbers",
            &[Say("* 1 FETCH (X {99999999999999999999999}\r\n"), Endless("x")],
        ),
        ("a STATUS without end", &[Say("* STATUS INBOX ("), Endless("MESSAGES 1 ")]),
        ("EXISTS again and again", &[Endless("* 5 EXISTS\r\n")]),
        ("STATUS again and again", &[Endless("* STATUS INBOX (MESSAGES 7 UIDNEXT 8)\r\n")]),
        ("STATUS of others again and again", &[Endless("* STATUS Other (MESSAGES 7)\r\n")]),
        ("BYE again and again", &[Endless("* BYE\r\n")]),
        ("+ again and again", &[Endless("+ idling\r\n")]),
        ("answers to nothing", &[Endless("m3 OK\r\nm4 NO\r\nm5 BAD\r\n")]),
    ];
    limited(async {
        let world = World::new().await;
        world.configure("[watch]\n", "[watch]\nanswer_timeout = \"5s\"\n");
        let backend = Backend::before(&world).await;
        let mut server = world.serve().await;
        world.register(server.address).await.unwrap();
        // After more connections that end with IDLE, an account is polled; a start forgets that.
        for manners in manners.chunks(2) {
            server.process.kill();
            server = world.serve().await;
            world.watched().await;
            let before = peak(&server);
            for (_, manner) in manners {
                let mut acts = vec![READY, AnswerUntil("LOGIN"), IN];
                acts.extend_from_slice(&IDLE);
                acts.extend_from_slice(manner);
                backend.becomes(Some(acts.leak()));
                world.backend.drop_connections();
                world.backend.wait_until(|counters| counters.idling == 0).await;
                // The good connection, and the bad one.
                for _ in 0..2 {
                    server.logged("watching is interrupted; mailchime tries again").await;
                }
                backend.becomes(None);
                is_served_as_ever(&world, &server).await;
                world.watched().await;
            }
            let grown = peak(&server).saturating_sub(before);
            assert!(grown < MOST_GROWTH, "{grown} KiB more than before");
        }
        // And all the while mail is what counts.
        world.deliver();
        world.push().await;
    })
    .await;
}
