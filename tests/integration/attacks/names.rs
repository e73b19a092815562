//! A name server that says nothing, or something else than before: it costs those who need a name of
//! it their time, and nobody else anything.
//!
//! The name server is a real one on a UDP socket. What `/etc/hosts` and `/etc/resolv.conf` say is the
//! test's.

use std::collections::HashMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use mailchime::net::counters::LimitCounters;
use mailchime::net::resolve::{NameResolver, Sources};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;

use crate::support::world::World;
use crate::support::{limited, listener, reached, soon};

/// Of the waiters for one name, in the program as it comes.
const WAITING: usize = 4096;

/// For a test whose clock is ahead.
async fn in_days(test: impl Future<Output = ()>) {
    let limit = Duration::from_secs(7 * 24 * 3600);
    tokio::time::timeout(limit, test).await.expect("the test takes too long");
}

/// A name server. What it was told nothing about it does not answer.
pub(crate) struct NameServer {
    pub(crate) address: SocketAddr,
    says: Arc<Mutex<HashMap<String, Says>>>,
    /// Questions for IPv4 addresses, by name.
    asked: Arc<Mutex<HashMap<String, usize>>>,
}

#[derive(Clone)]
enum Says {
    /// Addresses, and for how many seconds they count.
    Addresses(Vec<IpAddr>, u32),
    NoSuchName,
    Refused,
}

impl NameServer {
    pub(crate) async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let server = Self { address, says: Arc::default(), asked: Arc::default() };
        let (says, asked) = (Arc::clone(&server.says), Arc::clone(&server.asked));
        tokio::spawn(async move {
            let mut bytes = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut bytes).await {
                let question = Message::from_vec(&bytes[..length]).unwrap();
                let query = question.queries[0].clone();
                let name = query.name().to_ascii().trim_end_matches('.').to_lowercase();
                if query.query_type() == RecordType::A {
                    *asked.lock().unwrap().entry(name.clone()).or_default() += 1;
                }
                let Some(says) = says.lock().unwrap().get(&name).cloned() else { continue };
                let mut answer = question.into_response();
                answer.metadata.recursion_available = true;
                match says {
                    Says::NoSuchName => answer.metadata.response_code = ResponseCode::NXDomain,
                    Says::Refused => answer.metadata.response_code = ResponseCode::Refused,
                    Says::Addresses(addresses, ttl) => {
                        for address in addresses {
                            let data = RData::from(address);
                            if data.record_type() == query.query_type() {
                                let record = Record::from_rdata(query.name().clone(), ttl, data);
                                answer.add_answer(record);
                            }
                        }
                    }
                }
                socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
            }
        });
        server
    }

    fn says(&self, name: &str, says: Says) {
        self.says.lock().unwrap().insert(name.to_owned(), says);
    }

    pub(crate) fn addresses(&self, name: &str, addresses: &[&str], ttl: u32) {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        self.says(name, Says::Addresses(addresses, ttl));
    }

    fn falls_silent(&self) {
        self.says.lock().unwrap().clear();
    }

    fn asked(&self, name: &str) -> usize {
        self.asked.lock().unwrap().get(name).copied().unwrap_or(0)
    }
}

/// A resolver that asks a name server of its own.
struct Asker {
    server: NameServer,
    folder: TempDir,
    counters: Arc<LimitCounters>,
    resolver: NameResolver,
}

impl Asker {
    async fn new(most_waiting: usize) -> Self {
        let server = NameServer::start().await;
        let folder = tempfile::tempdir().unwrap();
        let [hosts, resolv_conf] = ["hosts", "resolv.conf"].map(|name| folder.path().join(name));
        fs::write(&resolv_conf, "options timeout:1 attempts:2\n").unwrap();
        let sources = Sources { hosts, resolv_conf, name_servers: vec![server.address] };
        let counters = Arc::new(LimitCounters::default());
        let resolver = NameResolver::with_sources(sources, most_waiting, Arc::clone(&counters));
        Self { server, folder, counters, resolver }
    }

    /// The addresses of a name, in words.
    async fn ask(&self, name: &str) -> io::Result<String> {
        let addresses = soon("an answer", self.resolver.resolve(name, 143)).await?;
        let addresses: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
        Ok(addresses.join(" "))
    }

    async fn failure(&self, name: &str) -> ErrorKind {
        self.ask(name).await.unwrap_err().kind()
    }

    /// Lets so much time pass, and what is due in it happen.
    async fn later(&self, seconds: u64) {
        let passed =
            tokio::time::timeout(Duration::from_secs(seconds), std::future::pending::<()>());
        passed.await.unwrap_err();
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.folder.path().join(file), text).unwrap();
    }
}

#[tokio::test]
async fn logins_and_pushes_go_on_while_the_name_server_of_a_tenant_is_silent() {
    /// More than the threads that tokio has for look-ups of the system.
    const LOGINS: usize = 600;
    limited(async {
        let world = World::new().await;
        let server = NameServer::start().await;
        server.addresses("imap.good.example", &["127.0.0.1"], 60);
        server.addresses("proxy.good.example", &["127.0.0.1"], 60);
        let port = world.backend.address().port();
        let tunnel = tunnel_to(world.apns.address()).await;
        world.configure(
            &format!("address = \"127.0.0.1:{port}\""),
            &format!("address = \"imap.good.example:{port}\""),
        );
        world.configure(
            "[store]",
            &format!(
                "[[route]]\ndomain = \"tenant.example\"\naddress = \"imap.silent.example:{port}\"\n\
                 tls = \"none\"\n[limits]\nsessions_per_ip = 10000\n\
                 login_failures_per_minute = 1000000\n[resolver]\nname_servers = [\"{}\"]\n[store]",
                server.address
            ),
        );
        world.configure(
            "[apns]",
            &format!("[apns]\nproxy = \"http://proxy.good.example:{}\"", tunnel.port()),
        );
        let program = world.serve().await;

        // Each has its name server asked, and waits.
        let answered = Arc::new(AtomicUsize::new(0));
        let mut tenants = JoinSet::new();
        for number in 0..LOGINS {
            let mut client = world.client(&program).await;
            let answered = Arc::clone(&answered);
            client.send(format!("t LOGIN user{number}@tenant.example x\r\n").as_bytes()).await;
            tenants.spawn(async move {
                let answer = client.until("t ").await;
                answered.fetch_add(1, Ordering::Relaxed);
                answer
            });
        }
        // While they do, another one's name is looked up, and so is the way to APNs.
        let mut ended = 0;
        for _ in 0..5 {
            let before = answered.load(Ordering::Relaxed);
            let registered = soon("a registration", world.register(program.address)).await;
            registered.unwrap();
            ended = answered.load(Ordering::Relaxed).max(ended);
            assert!(ended < LOGINS, "{before} had their answer; nothing is shown");
        }
        world.watched().await;
        world.deliver();
        world.push().await;
        assert!(server.asked("imap.good.example") > 0 && server.asked("proxy.good.example") > 0);
        let threads = program.process.threads();
        assert!(threads < 60, "{threads} threads");

        while let Some(answer) = tenants.join_next().await {
            let answer = answer.unwrap();
            assert!(answer.starts_with("t NO [UNAVAILABLE]"), "{answer}");
        }
        let asked = server.asked("imap.silent.example");
        assert!((1..100).contains(&asked), "{asked} questions for {LOGINS} logins");
    })
    .await;
}

/// A proxy that leads everybody there.
async fn tunnel_to(apns: SocketAddr) -> SocketAddr {
    let listening = listener().await;
    let address = listening.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listening.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(near.read_u8().await.unwrap());
                }
                near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let mut far = TcpStream::connect(apns).await.unwrap();
                let _ = copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_name_that_everybody_asks_for_is_one_question() {
    limited(async {
        let asker = Asker::new(WAITING).await;
        asker.server.addresses("imap.example", &["192.0.2.1"], 60);
        let mut asking = JoinSet::new();
        for _ in 0..1000 {
            let resolver = asker.resolver.clone();
            asking.spawn(async move { resolver.resolve("imap.example", 143).await.unwrap() });
        }
        for addresses in asking.join_all().await {
            assert_eq!(addresses, ["192.0.2.1:143".parse().unwrap()]);
        }
        let asked = asker.server.asked("imap.example");
        assert!((1..10).contains(&asked), "{asked}");
    })
    .await;
}

#[tokio::test]
async fn no_more_wait_for_a_name_than_may() {
    limited(async {
        let asker = Asker::new(3).await;
        let mut asking = JoinSet::new();
        for _ in 0..5 {
            let resolver = asker.resolver.clone();
            asking.spawn(
                async move { resolver.resolve("imap.silent", 143).await.unwrap_err().kind() },
            );
        }
        let mut failures = Vec::new();
        while let Some(failure) = asking.join_next().await {
            failures.push(failure.unwrap());
        }
        use ErrorKind::{ResourceBusy, TimedOut};
        assert_eq!(failures, [ResourceBusy, ResourceBusy, TimedOut, TimedOut, TimedOut]);
        reached(&asker.counters.resolver_waiting, 2).await;
        // Of another name nobody waits.
        asker.server.addresses("imap.example", &["192.0.2.1"], 60);
        assert_eq!(asker.ask("imap.example").await.unwrap(), "192.0.2.1:143");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_counts_for_its_time_and_then_the_new_one() {
    in_days(async {
        let asker = Asker::new(WAITING).await;
        asker.server.addresses("short.example", &["192.0.2.1"], 5);
        asker.server.addresses("long.example", &["192.0.2.1"], 3600);
        for name in ["short.example", "long.example"] {
            assert_eq!(asker.ask(name).await.unwrap(), "192.0.2.1:143");
            asker.server.addresses(name, &["192.0.2.2"], 3600);
        }
        // More than once only where the first question was thought lost.
        let asked = asker.server.asked("long.example");
        asker.later(4).await;
        assert_eq!(asker.ask("short.example").await.unwrap(), "192.0.2.1:143");
        asker.later(2).await;
        assert_eq!(asker.ask("short.example").await.unwrap(), "192.0.2.2:143");
        assert_eq!(asker.ask("long.example").await.unwrap(), "192.0.2.1:143");
        assert_eq!(asker.server.asked("long.example"), asked);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_was_known_is_used_while_the_name_server_is_silent() {
    in_days(async {
        let asker = Asker::new(WAITING).await;
        asker.server.addresses("imap.example", &["192.0.2.1"], 5);
        assert_eq!(asker.ask("imap.example").await.unwrap(), "192.0.2.1:143");
        asker.server.falls_silent();
        for _ in 0..10 {
            asker.later(600).await;
            let before = asker.server.asked("imap.example");
            assert_eq!(asker.ask("imap.example").await.unwrap(), "192.0.2.1:143");
            assert!(asker.server.asked("imap.example") > before, "it asks again");
        }
        asker.server.says("imap.example", Says::Refused);
        asker.later(60).await;
        assert_eq!(asker.ask("imap.example").await.unwrap(), "192.0.2.1:143");
        // What the owner of the name says counts: it is somewhere else, or gone.
        asker.server.addresses("imap.example", &["192.0.2.3"], 5);
        asker.later(60).await;
        assert_eq!(asker.ask("imap.example").await.unwrap(), "192.0.2.3:143");
        asker.server.says("imap.example", Says::NoSuchName);
        asker.later(60).await;
        assert_eq!(asker.failure("imap.example").await, ErrorKind::NotFound);
        // After a day an old answer is worth nothing.
        asker.server.addresses("imap.example", &["192.0.2.4"], 5);
        asker.later(60).await;
        assert_eq!(asker.ask("imap.example").await.unwrap(), "192.0.2.4:143");
        asker.server.falls_silent();
        asker.later(25 * 3600).await;
        assert_eq!(asker.failure("imap.example").await, ErrorKind::TimedOut);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_name_that_was_missing_is_found_seconds_later() {
    in_days(async {
        let asker = Asker::new(WAITING).await;
        asker.server.says("imap.example", Says::NoSuchName);
        assert_eq!(asker.failure("imap.example").await, ErrorKind::NotFound);
        asker.server.addresses("imap.example", &["192.0.2.1"], 60);
        assert_eq!(asker.failure("imap.example").await, ErrorKind::NotFound, "kept for seconds");
        asker.later(6).await;
        assert_eq!(asker.ask("imap.example").await.unwrap(), "192.0.2.1:143");

        assert_eq!(asker.failure("mx.example").await, ErrorKind::TimedOut);
        asker.server.addresses("mx.example", &["192.0.2.2"], 60);
        asker.later(3).await;
        assert_eq!(asker.ask("mx.example").await.unwrap(), "192.0.2.2:143");
    })
    .await;
}

#[tokio::test]
async fn the_next_name_server_is_asked_when_one_says_nothing() {
    limited(async {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let asker = Asker::new(WAITING).await;
        asker.server.addresses("imap.example", &["192.0.2.1"], 60);
        let name_servers = vec![silent.local_addr().unwrap(), asker.server.address];
        let resolv_conf = asker.folder.path().join("resolv.conf");
        let hosts = asker.folder.path().join("hosts");
        let sources = Sources { hosts, resolv_conf, name_servers };
        let resolver = NameResolver::with_sources(sources, WAITING, Arc::default());
        let addresses = soon("an answer", resolver.resolve("imap.example", 143)).await.unwrap();
        assert_eq!(addresses, ["192.0.2.1:143".parse().unwrap()]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_files_of_the_system_count_and_so_do_their_changes() {
    in_days(async {
        let asker = Asker::new(WAITING).await;
        asker.server.addresses("imap.a.example", &["192.0.2.1"], 3600);
        asker.server.addresses("imap.b.example", &["192.0.2.2"], 3600);
        asker.server.says("imap", Says::NoSuchName);
        let resolv_conf = |domain: &str| format!("search {domain}\noptions timeout:1\n");
        asker.write("resolv.conf", &resolv_conf("a.example"));
        assert_eq!(asker.ask("imap").await.unwrap(), "192.0.2.1:143");
        for (file, text, address) in [
            ("resolv.conf", &*resolv_conf("other.b.example b.example"), "192.0.2.2:143"),
            ("hosts", "192.0.2.3 imap # here\n", "192.0.2.3:143"),
            ("hosts", "192.0.2.4 IMAP others\n", "192.0.2.4:143"),
            ("hosts", "", "192.0.2.2:143"),
        ] {
            asker.server.says("imap.other.b.example", Says::NoSuchName);
            asker.write(file, text);
            asker.later(2).await;
            assert_eq!(asker.ask("imap").await.unwrap(), address, "{file}: {text}");
        }
    })
    .await;
}

#[tokio::test]
async fn what_needs_no_name_server_is_not_asked_for() {
    limited(async {
        let asker = Asker::new(WAITING).await;
        assert_eq!(asker.ask("192.0.2.1").await.unwrap(), "192.0.2.1:143");
        assert_eq!(asker.ask("2001:db8::1").await.unwrap(), "[2001:db8::1]:143");
        assert_eq!(asker.ask("fe80::1%1").await.unwrap(), "[fe80::1%1]:143");
        assert!(asker.ask("localhost").await.unwrap().contains("127.0.0.1:143"));
        assert!(asker.server.asked.lock().unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn addresses_of_both_kinds_are_found_and_the_first_take_turns() {
    limited(async {
        let asker = Asker::new(WAITING).await;
        asker.server.addresses("imap.example", &["127.0.0.1", "127.0.0.2"], 60);
        let one = asker.ask("imap.example").await.unwrap();
        let other = asker.ask("imap.example").await.unwrap();
        let turns = ["127.0.0.1:143 127.0.0.2:143", "127.0.0.2:143 127.0.0.1:143"];
        assert!(
            turns.contains(&&*one) && turns.contains(&&*other) && one != other,
            "{one}, {other}"
        );
        asker.server.addresses("both.example", &["192.0.2.1", "2001:db8::1"], 60);
        let both = asker.ask("both.example").await.unwrap();
        assert!(both.contains("192.0.2.1:143") && both.contains("[2001:db8::1]:143"), "{both}");
    })
    .await;
}
