//! Who keeps others out: by connections without a login, by wrong passwords, by hanging up before the
//! answer.

mod dials;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::support::line::{Client, Line};
use crate::support::servers::ALICE;
use crate::support::servers::dovecot::{Dovecot, Options};
use crate::support::world::{LOGIN, PASSWORD, Server, World};
use crate::support::{limited, listener, soon, until};

/// The address of a user who means no harm.
const HOME: [u8; 4] = [127, 0, 0, 1];

/// Connects to mailchime from addresses of this machine's own, 127.0.0.0/8. Cheap to clone.
#[derive(Clone)]
struct Network {
    server: SocketAddr,
    trust: Arc<ClientConfig>,
}

impl Network {
    fn of(world: &World, server: &Server) -> Self {
        let trust = Arc::new(world.pki.client_config(None).unwrap());
        Self { server: server.address, trust }
    }

    async fn connect(&self, from: [u8; 4]) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        soon("a connection", socket.connect(self.server)).await.unwrap()
    }

    async fn client(&self, from: [u8; 4]) -> Client {
        self.client_on(self.connect(from).await).await
    }

    async fn client_on(&self, stream: TcpStream) -> Client {
        let name = ServerName::try_from("localhost").unwrap();
        let secure = TlsConnector::from(Arc::clone(&self.trust)).connect(name, stream);
        let mut client = Line::of(soon("TLS", secure).await.unwrap());
        client.until("* OK").await;
        client
    }

    /// The user of the world logs in from there.
    async fn gets_in(&self, from: [u8; 4]) -> Client {
        let mut client = self.client(from).await;
        let answer = client.log_in(LOGIN, PASSWORD).await;
        assert!(answer.starts_with("in OK"), "{answer}");
        client
    }

    /// Tries a wrong password, and hangs up by a reset after `patience` without an answer.
    async fn try_in_passing(self, from: [u8; 4], patience: Duration) {
        let stream = self.connect(from).await;
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        let mut client = self.client_on(stream).await;
        client.send(format!("in LOGIN {LOGIN} guess\r\n")).await;
        let _ = tokio::time::timeout(patience, client.until("in ")).await;
    }
}

/// Whether mailchime has closed this connection.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut [0])).await;
    matches!(read, Ok(Ok(0) | Err(_)))
}

/// Waits until mailchime has closed all of these connections but so many.
async fn until_open(mut connections: Vec<TcpStream>, most: usize) -> Vec<TcpStream> {
    let closed = async {
        while connections.len() > most {
            let mut open = Vec::new();
            for mut stream in connections {
                if !is_closed(&mut stream).await {
                    open.push(stream);
                }
            }
            connections = open;
        }
        connections
    };
    soon(&format!("no more than {most} open connections"), closed).await
}

/// A backend that counts its connections, and tries with another password than the right one.
struct Counting {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    tries: Arc<AtomicUsize>,
    /// Until this is true it does not answer a wrong password.
    answers: watch::Sender<bool>,
}

impl Counting {
    async fn start(capabilities: &'static str, refusal: &'static str) -> Self {
        let listener = listener().await;
        let address = listener.local_addr().unwrap();
        let (connections, tries) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (Arc::clone(&connections), Arc::clone(&tries));
        let (answers, may_answer) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counts.0.fetch_add(1, Ordering::Relaxed);
                let (tries, mut may_answer) = (Arc::clone(&counts.1), may_answer.clone());
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    let greeting = format!("* OK [CAPABILITY IMAP4rev1 {capabilities}] ready\r\n");
                    stream.write_all(greeting.as_bytes()).await?;
                    let mut line = String::new();
                    while stream.read_line(&mut line).await? > 0 {
                        let tag = line.split(' ').next().unwrap_or_default().to_owned();
                        let tries_now = line.contains("LOGIN") || line.contains("AUTHENTICATE");
                        let right = line.contains(PASSWORD);
                        line.clear();
                        if tries_now && !right {
                            tries.fetch_add(1, Ordering::Relaxed);
                            let _ = may_answer.wait_for(|answers| *answers).await;
                            stream.write_all(format!("{tag} {refusal}\r\n").as_bytes()).await?;
                        } else {
                            stream.write_all(format!("{tag} OK done\r\n").as_bytes()).await?;
                        }
                    }
                    Ok::<_, std::io::Error>(())
                });
            }
        });
        Self { address, connections, tries, answers }
    }

    async fn refusing() -> Self {
        Self::start("", "NO [AUTHENTICATIONFAILED] no").await
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    fn tries(&self) -> usize {
        self.tries.load(Ordering::Relaxed)
    }
}

/// A world whose mailchime stands before this backend, with these lines in `[limits]`.
async fn world_before(backend: SocketAddr, limits: &str) -> World {
    let world = World::new().await;
    world.in_front_of(backend);
    world.configure("[log]", &format!("[limits]\n{limits}\n[log]"));
    world
}

// === connections without a login ===

#[tokio::test]
async fn forty_networks_that_say_nothing_keep_nobody_out() {
    limited(async {
        let world = World::new().await;
        let limits = "sessions = 40\nhandshake_timeout = \"10m\"\nlogin_timeout = \"10m\"";
        world.configure("[log]", &format!("[limits]\n{limits}\n[log]"));
        let server = world.serve().await;
        let network = Network::of(&world, &server);
        let mut silent = Vec::new();
        for at in 1..=40 {
            silent.push(network.connect([127, 1, at, 1]).await);
        }
        network.gets_in(HOME).await;
    })
    .await;
}

/// Where there is no room for more of them, mailchime closes theirs, and nobody else's.
#[tokio::test]
async fn a_client_that_says_nothing_makes_room_for_others() {
    limited(async {
        let world = World::new().await;
        world.configure("[log]", "[limits]\nwaiting = 40\n[log]");
        let server = world.serve().await;
        let network = Network::of(&world, &server);
        let mut session = network.gets_in(HOME).await;
        let mut silent = Vec::new();
        for round in 1..=3 {
            for at in 1..=40 {
                silent.push(network.connect([127, 1, at, round]).await);
            }
            network.gets_in(HOME).await;
        }
        assert!(session.command("n NOOP").await.starts_with("n OK"));
        until_open(silent, 40).await;
    })
    .await;
}

#[tokio::test]
async fn the_network_with_most_connections_loses_its_oldest() {
    limited(async {
        let world = World::new().await;
        world.configure("[log]", "[limits]\nwaiting = 10\n[log]");
        let server = world.serve().await;
        let network = Network::of(&world, &server);
        // Slower than those who mean harm, and older than all of them.
        let mut slow = network.client(HOME).await;
        let mut flood = Vec::new();
        for _ in 0..40 {
            flood.push(network.connect([127, 2, 0, 1]).await);
        }
        let last = flood.pop().unwrap();
        until_open(flood, 9).await;
        let answer = slow.log_in(LOGIN, PASSWORD).await;
        assert!(answer.starts_with("in OK"), "{answer}");
        assert!(!is_closed(&mut { last }).await);
    })
    .await;
}

#[tokio::test]
async fn one_large_ipv6_network_is_one_origin() {
    limited(async {
        let world = World::new().await;
        world.configure("[tls]", "proxy_protocol = [\"127.0.0.0/8\"]\n[tls]");
        world.configure("[log]", "[limits]\nwaiting = 20\n[log]");
        let server = world.serve().await;
        let network = Network::of(&world, &server);
        let balanced = async |header: String| {
            let mut stream = network.connect(HOME).await;
            stream.write_all(header.as_bytes()).await.unwrap();
            stream
        };
        let from_home = "PROXY TCP4 192.0.2.1 192.0.2.2 5000 993\r\n".to_owned();
        let mut slow = network.client_on(balanced(from_home).await).await;
        let mut flood = Vec::new();
        for at in 0..100 {
            // Each comes from another /64, and half of them from another /56.
            let network = if at < 50 { at } else { at << 8 };
            let header = format!("PROXY TCP6 2001:db8:0:{network:x}::1 2001:db8::2 5000 993\r\n");
            flood.push(balanced(header).await);
        }
        let answer = slow.log_in(LOGIN, PASSWORD).await;
        assert!(answer.starts_with("in OK"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn a_login_is_answered_no_where_all_sessions_are_taken() {
    limited(async {
        let world = World::new().await;
        world.configure("[log]", "[limits]\nsessions = 1\nfailure_delay = \"1ms\"\n[log]");
        let mut server = world.serve().await;
        let network = Network::of(&world, &server);
        let mut first = network.gets_in(HOME).await;
        let mut second = network.client(HOME).await;
        let answer = second.log_in(LOGIN, PASSWORD).await;
        assert_eq!(answer, "in NO [UNAVAILABLE] The server has no room, try again later");
        server.logged("[limits] sessions is reached; further logins get NO [UNAVAILABLE]").await;
        assert!(first.command("b LOGOUT").await.starts_with("b OK"));
        drop(first);
        let place = async { while !second.log_in(LOGIN, PASSWORD).await.starts_with("in OK") {} };
        soon("a place", place).await;
    })
    .await;
}

// === tries ===

/// Dovecot answers a wrong password after two seconds, and a right one at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_try_counts_even_if_the_client_hangs_up_before_the_answer() {
    const LIMIT: usize = 10;
    let test = "attacks::admission::a_try_counts_even_if_the_client_hangs_up_before_the_answer";
    let options = Options { extra: "auth_failure_delay = 2 secs\n", ..Options::default() };
    let Some(dovecot) = Dovecot::start(test, &options) else { return };
    limited(async {
        let world = world_before(dovecot.plain, "login_failures_per_minute = 10").await;
        let mut server = world.serve().await;
        let network = Network::of(&world, &server);
        for _ in 0..3 {
            let mut guesses = JoinSet::new();
            for _ in 0..20 {
                let guess = network.clone();
                guesses.spawn(guess.try_in_passing([127, 4, 0, 1], Duration::from_millis(1200)));
            }
            guesses.join_all().await;
        }
        for _ in 0..LIMIT {
            server.logged("login refused").await;
        }
        let answer = network.client([127, 4, 0, 1]).await.log_in(ALICE.0, "guess").await;
        assert!(answer.starts_with("in NO [LIMIT] Too many failed logins"), "{answer}");
        assert_eq!(server.warned("login refused").await, LIMIT);
        network.gets_in(HOME).await;
    })
    .await;
}

#[tokio::test]
async fn two_hundred_tries_at_once_do_not_overrun_the_limit() {
    limited(async {
        let backend = Counting::refusing().await;
        backend.answers.send_replace(false);
        let world = world_before(backend.address, "failure_delay = \"1ms\"").await;
        let mut server = world.serve().await;
        let network = Network::of(&world, &server);
        let mut guesses = Vec::new();
        for _ in 0..200 {
            let mut client = network.client([127, 4, 0, 2]).await;
            client.send(format!("in LOGIN {LOGIN} guess\r\n")).await;
            guesses.push(client);
        }
        until(async || backend.tries() >= 30).await;
        backend.answers.send_replace(true);
        let mut answers = Vec::new();
        for client in &mut guesses {
            answers.push(client.until("in ").await);
        }
        let limited = answers.iter().filter(|answer| answer.starts_with("in NO [LIMIT]")).count();
        assert_eq!((backend.tries(), limited), (30, 170));
        assert_eq!(server.warned("login refused").await, 30);
    })
    .await;
}

/// All of them at once, as after a break of the network: who has the right password waits for others at
/// most.
#[tokio::test]
async fn an_office_that_logs_in_at_once_gets_in() {
    limited(async {
        let backend = Counting::refusing().await;
        let world = world_before(backend.address, "failure_delay = \"1ms\"").await;
        let server = world.serve().await;
        let network = Network::of(&world, &server);
        let mut users = JoinSet::new();
        for at in 0..200 {
            let network = network.clone();
            users.spawn(async move {
                let mut client = network.client(HOME).await;
                (client.log_in(&format!("user{at}"), PASSWORD).await, client)
            });
        }
        let answers = users.join_all().await;
        assert!(answers.iter().all(|(answer, _)| answer.starts_with("in OK")));
    })
    .await;
}

#[tokio::test]
async fn a_guesser_behind_the_same_address_keeps_no_known_user_out() {
    limited(async {
        let backend = Counting::refusing().await;
        let limits = "failure_delay = \"1ms\"\naccount_failures_per_minute = 5";
        let world = world_before(backend.address, limits).await;
        let server = world.serve().await;
        let network = Network::of(&world, &server);
        network.gets_in(HOME).await;
        let mut guesser = network.client(HOME).await;
        for at in 0..30 {
            guesser.log_in(&format!("user{at}"), "guess").await;
        }
        let answer = guesser.log_in("user", "guess").await;
        assert!(answer.starts_with("in NO [LIMIT]"), "{answer}");
        network.gets_in(HOME).await;
        // Nor do guesses at the user's own account, from wherever they come.
        for at in 1..=10 {
            network.client([127, 5, at, 1]).await.log_in(LOGIN, "guess").await;
            network.client(HOME).await.log_in(LOGIN, "guess").await;
        }
        network.gets_in(HOME).await;
    })
    .await;
}

#[tokio::test]
async fn an_account_that_is_tried_from_everywhere_is_slowed_down_and_its_user_is_not() {
    limited(async {
        let backend = Counting::refusing().await;
        let limits = "failure_delay = \"1ms\"\naccount_failures_per_minute = 5";
        let world = world_before(backend.address, limits).await;
        let server = world.serve().await;
        let network = Network::of(&world, &server);
        let began = Instant::now();
        network.gets_in(HOME).await;
        let mut guesses = JoinSet::new();
        for at in 1..=100 {
            let network = network.clone();
            guesses.spawn(async move {
                network.client([127, 5, at, 1]).await.log_in(LOGIN, "guess").await
            });
        }
        let turned_away = async {
            let mut times = 0;
            while times < 80 {
                let answer = guesses.join_next().await.unwrap().unwrap();
                times +=
                    u32::from(answer.starts_with("in NO [LIMIT] Too many failed logins of this"));
            }
        };
        soon("the others to be turned away", turned_away).await;
        let started = Instant::now();
        network.gets_in(HOME).await;
        // The last of those that wait is to wait for 20 seconds.
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
        // Five, and one for each two seconds.
        let most = 5 + began.elapsed().as_secs() / 2 + 1;
        assert!(backend.tries() as u64 <= most, "{} tries", backend.tries());
    })
    .await;
}

#[tokio::test]
async fn wrong_passwords_take_no_connection_of_the_account() {
    limited(async {
        let backend = Counting::refusing().await;
        backend.answers.send_replace(false);
        let world = world_before(backend.address, "connections_per_account = 10").await;
        let server = world.serve().await;
        let network = Network::of(&world, &server);
        let mut wrong = Vec::new();
        for _ in 0..10 {
            let mut client = network.client([127, 6, 0, 1]).await;
            client.send(format!("w LOGIN {LOGIN} guess\r\n")).await;
            wrong.push(client);
        }
        until(async || backend.tries() >= 10).await;
        network.gets_in(HOME).await;
    })
    .await;
}

#[tokio::test]
async fn refusals_that_say_nothing_of_the_password_are_no_guesses() {
    limited(async {
        let refusal = "NO [UNAVAILABLE] Temporary authentication failure";
        let backend = Counting::start("", refusal).await;
        let limits = "failure_delay = \"1ms\"\nlogin_failures_per_minute = 3";
        let world = world_before(backend.address, limits).await;
        let mut server = world.serve().await;
        let network = Network::of(&world, &server);
        let mut client = network.client(HOME).await;
        for _ in 0..10 {
            assert_eq!(client.log_in(LOGIN, "guess").await, format!("in {refusal}"));
        }
        network.gets_in(HOME).await;
        assert_eq!(server.warned("login refused").await, 0);
        let message =
            "the backend refused a login, and not for its name or password; see the backend's log";
        assert_eq!(server.warned(message).await, 1);
    })
    .await;
}
