//! SIGHUP, and what systemd and mailchime say to each other.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::Stdio;

use mailchime::demo::phone::PhoneError;
use mailchime::demo::pki::Pki;
use tokio::net::{TcpStream, UnixDatagram};

use crate::support::ports::own_listener;
use crate::support::program::{Process, mailchime, mailchime_after};
use crate::support::world::{Server, World, registration};
use crate::support::{limited, soon};

const READ: &str = "configuration reloaded";
const UNREAD: &str = "could not reload the configuration; mailchime keeps the previous one";

#[tokio::test]
async fn sighup_reads_the_configuration_again_and_touches_no_session() {
    limited(async {
        let world = World::new().await;
        world.configure("info,mailchime=debug", "info");
        let mut server = world.serve().await;
        let mut session = world.session(&server).await;
        drop(world.client(&server).await);

        world.configure("level = \"info\"", "level = \"info,mailchime=debug\"");
        server.process.signal("HUP");
        server.logged(READ).await;
        let seen = server.process.stderr.seen.join("\n");
        assert!(!seen.contains("without login"), "told below the level: {seen}");
        drop(world.client(&server).await);
        server.logged("connection ended without login").await;

        session.send(b"n NOOP\r\n").await;
        session.until("n OK").await;
    })
    .await;
}

#[tokio::test]
async fn a_configuration_that_is_wrong_changes_nothing_and_the_log_says_why() {
    limited(async {
        let world = World::new().await;
        let mut server = world.serve().await;
        let mut session = world.session(&server).await;
        for (old, new, why) in [
            ("[log]", "[lgo]", "proxy.toml: unknown key `lgo`"),
            ("[lgo]", "[log]", ""),
            ("\"server.pem\"", "\"apns.pem\"", "do not belong together"),
        ] {
            world.configure(old, new);
            server.process.signal("HUP");
            if why.is_empty() {
                server.logged(READ).await;
                continue;
            }
            let line = server.logged(UNREAD).await;
            let told = line["why"].as_str().unwrap();
            assert!(told.contains("proxy.toml: ") && told.contains(why), "{told}");
            assert_eq!(told.lines().count(), 1, "{told}");
            world.session(&server).await;
        }
        session.send(b"n NOOP\r\n").await;
        session.until("n OK").await;
    })
    .await;
}

#[tokio::test]
async fn a_reload_names_the_keys_that_need_a_restart() {
    limited(async {
        let world = World::new().await;
        let mut server = world.serve().await;
        world.configure("min_interval = \"10ms\"", "min_interval = \"20ms\"");
        server.process.signal("HUP");
        let line = server.logged("these tables changed, and the changes take effect at the next start; restart mailchime to apply them").await;
        assert_eq!(line["tables"], "[push]");
        server.logged(READ).await;
    })
    .await;
}

/// The socket that systemd listens on.
struct Systemd(UnixDatagram);

impl Systemd {
    /// The next notice but those of the watchdog.
    async fn told(&self) -> String {
        loop {
            let notice = self.notice().await;
            if notice != "WATCHDOG=1" {
                return notice;
            }
        }
    }

    async fn notice(&self) -> String {
        let mut notice = vec![0; 4096];
        let length = soon("a notice", self.0.recv(&mut notice)).await.unwrap();
        String::from_utf8(notice[..length].to_vec()).unwrap().trim_end().to_owned()
    }
}

#[tokio::test]
async fn systemd_gets_each_state_of_the_service() {
    limited(async {
        let world = World::new().await;
        let systemd = Systemd(UnixDatagram::bind(world.file("notify")).unwrap());
        let arguments = world.arguments();
        let mut command = mailchime(&arguments.each_ref().map(String::as_str));
        command.env("NOTIFY_SOCKET", world.file("notify")).env("WATCHDOG_USEC", "20000");
        let mut server = Server::of(Process::spawn(command)).await;
        assert_eq!(systemd.told().await, "READY=1");
        assert!(TcpStream::connect(server.address).await.is_ok());

        // It goes on and on.
        for _ in 0..3 {
            assert_eq!(systemd.notice().await, "WATCHDOG=1");
        }

        server.process.signal("HUP");
        let notice = systemd.told().await;
        let time = notice.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        assert!(time.is_some_and(|time| time.parse::<u64>().is_ok()), "{notice}");
        assert_eq!(systemd.told().await, "READY=1");

        server.process.signal("TERM");
        assert_eq!(systemd.told().await, "STOPPING=1");
        assert_eq!(server.process.end().await.code(), Some(0));
    })
    .await;
}

/// `serve`, with a socket that is there before it is, as `count` of systemd's.
fn activated(world: &World, socket: &TcpListener, count: u32) -> Process {
    let descriptors: Vec<_> = (0..count).map(|at| format!("{}<&0", 3 + at)).collect();
    let first = format!(
        "exec {}; export LISTEN_PID=$$ LISTEN_FDS={count}; exec </dev/null",
        descriptors.join(" ")
    );
    let arguments = world.arguments();
    let mut command = mailchime_after(&first, &arguments.each_ref().map(String::as_str));
    command.stdin(Stdio::from(OwnedFd::from(socket.try_clone().unwrap())));
    Process::spawn(command)
}

#[tokio::test]
async fn a_socket_from_systemd_takes_the_place_of_an_address() {
    limited(async {
        let world = World::new().await;
        let socket = own_listener();
        let address = socket.local_addr().unwrap();
        // A client that connects before mailchime starts is served.
        let early = TcpStream::connect(address).await.unwrap();
        let mut server = Server::of(activated(&world, &socket, 1)).await;
        assert_eq!(server.address, address);
        let local = early.local_addr().unwrap().to_string();
        drop(early);
        server
            .process
            .stderr
            .find("the early one", |line| line.contains(&local).then_some(()))
            .await;
        world.session(&server).await;

        server.process.signal("HUP");
        server.logged(READ).await;
        world.session(&server).await;

        server.process.signal("TERM");
        assert_eq!(server.process.end().await.code(), Some(0));
        assert!(TcpStream::connect(address).await.is_ok(), "the socket stays systemd's");
    })
    .await;
}

#[tokio::test]
async fn a_socket_that_no_listener_is_for_is_an_error() {
    limited(async {
        let world = World::new().await;
        let socket = own_listener();
        let mut process = activated(&world, &socket, 2);
        assert_eq!(process.end().await.code(), Some(1));
        let last = process.stderr.seen.last().unwrap();
        assert!(last.contains("systemd hands over 2 sockets, and 1 [[listener]] tables"), "{last}");
    })
    .await;
}

#[tokio::test]
async fn sighup_switches_push_on_where_there_was_none() {
    limited(async {
        let world = World::new().await;
        let config = world.config();
        let apns = &config[config.find("[apns]").unwrap()..config.find("[log]").unwrap()];
        world.configure(apns, "");
        let mut server = world.serve().await;
        let refused = world.register(server.address).await.unwrap_err();
        assert!(matches!(refused, PhoneError::NotOffered), "{refused}");

        world.configure("[log]", &format!("{apns}[log]"));
        server.process.signal("HUP");
        server.logged(READ).await;
        world.register(server.address).await.unwrap();
        world.watched().await;
        world.deliver();
        world.push().await;
    })
    .await;
}

#[tokio::test]
async fn a_session_of_before_registers_for_the_topic_of_now() {
    limited(async {
        let world = World::new().await;
        let other = Pki::generate(Some("com.apple.mail.XServer.other")).unwrap();
        other.write_to(&world.file("other")).unwrap();
        let mut server = world.serve().await;
        let mut session = world.session(&server).await;
        world.configure("\"apns.pem\"", "\"other/apns.pem\"");
        world.configure("\"apns.key\"", "\"other/apns.key\"");
        server.process.signal("HUP");
        server.logged(READ).await;
        session.send(format!("r {}\r\n", registration()).as_bytes()).await;
        let answer = session.until("* XAPPLEPUSHSERVICE \"aps-version\"").await;
        assert!(answer.ends_with("\"com.apple.mail.XServer.other\""), "{answer}");
        session.until("r OK").await;
        let said = world.command(&["devices", "list", "--json"]).await.json();
        assert_eq!(said["subscriptions"][0]["route"], "com.apple.mail.XServer.other");
    })
    .await;
}
