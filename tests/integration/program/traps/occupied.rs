//! `mailchime check` knows who is at an address or a file that is in use: this mailchime, another, or another program.

use std::fs::{self, Permissions};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;

use mailchime::demo::pki::Pki;

use super::checked::{free_address, server_that_says};
use crate::support::limited;
use crate::support::ports::own_listener;
use crate::support::program::{Process, mailchime};
use crate::support::servers::NOBODY;
use crate::support::skip;
use crate::support::world::World;

/// A source that may send events.
fn with_source(world: &World, address: &str) {
    fs::write(world.file("events.secret"), "a-secret-of-25-characters").unwrap();
    fs::set_permissions(world.file("events.secret"), Permissions::from_mode(0o600)).unwrap();
    let source = "[[events.source]]\nname = \"a\"\nsecret_file = \"events.secret\"\n";
    world.configure("[log]", &format!("[events]\n{address}\n{source}[log]"));
}

fn at_free_address(world: &World) {
    world.configure("address = \"127.0.0.1:0\"", &format!("address = \"{}\"", free_address()));
}

#[tokio::test]
async fn another_program_beside_a_running_mailchime_is_not_ok() {
    limited(async {
        let world = World::new().await;
        at_free_address(&world);
        let server = world.serve().await;
        let talks = server_that_says(&["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]).await;
        // It takes connections and says nothing.
        let [mute, other] = [(); 2].map(|()| own_listener());
        let socket = UnixListener::bind(world.file("other.sock")).unwrap();
        let [api, events] = [&mute, &other].map(|listener| listener.local_addr().unwrap());
        with_source(&world, &format!("address = \"{events}\"\ncyrus_stream = \"other.sock\""));
        world.configure("[log]", &format!("[admin]\naddress = \"{talks}\"\n[log]"));
        world.configure("[log]", &format!("[api]\naddress = \"{api}\"\n[log]"));
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 1, "{}{}", said.stdout, said.stderr);
        said.line(&format!("ok       [[listener]]: {}: mailchime serves there", server.address));
        // What answers is known to everybody, and the process of a port to root.
        let is_root = rustix::process::geteuid().is_root();
        let mut parts = vec!["[admin] address", "[events] cyrus_stream"];
        let of_root = ["[api]", "[events] address"];
        match is_root {
            true => parts.extend(of_root),
            false => of_root.iter().for_each(|part| {
                let line = said.line(&format!("warning  {part}: "));
                assert!(line.contains("it is not known which"), "{line}");
            }),
        }
        for part in parts {
            let line = said.line(&format!("FAILED   {part}: "));
            assert!(line.contains("another program listens there"), "{line}");
        }
        drop(socket);
    })
    .await;
}

#[tokio::test]
async fn a_program_that_speaks_no_tls_is_named_with_its_line() {
    limited(async {
        let world = World::new().await;
        let bye: &[&str] = &["* BYE [UNAVAILABLE] too many\r\n"];
        let ssh: &[&str] = &["SSH-2.0-OpenSSH_9.2p1\r\n"];
        let mut before = "127.0.0.1:0".to_owned();
        for (lines, expected) in
            [(bye, "says \"* BYE [UNAVAILABLE] too many"), (ssh, "says \"SSH-2.0-OpenSSH_9.2p1")]
        {
            let other = server_that_says(lines).await.to_string();
            world.configure(&format!("\"{before}\""), &format!("\"{other}\""));
            let said = world.command(&["check"]).await;
            assert_eq!(said.code, 1, "{}{}", said.stdout, said.stderr);
            let line = said.line(&format!("FAILED   [[listener]]: {other}: another program"));
            assert!(line.contains(expected), "{expected:?} is not in {line}");
            before = other;
        }
    })
    .await;
}

#[tokio::test]
async fn the_addresses_of_a_running_mailchime_are_ok_and_those_of_one_elsewhere_are_not() {
    limited(async {
        let world = World::new().await;
        at_free_address(&world);
        let [admin, api, events]: [SocketAddr; 3] = std::array::from_fn(|_| free_address());
        with_source(
            &world,
            &format!(
                "address = \"{events}\"\ncyrus_stream = \"cyrus.sock\"\ncyrus_socket = \"c.sock\""
            ),
        );
        world.configure("[log]", &format!("[admin]\naddress = \"{admin}\"\n[log]"));
        world.configure("[log]", &format!("[api]\naddress = \"{api}\"\n[log]"));
        let server = world.serve().await;
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 0, "{}{}", said.stdout, said.stderr);
        for part in ["[admin] address", "[api]", "[events] address", "[events] cyrus_stream"] {
            let line = said.line(&format!("ok       {part}: "));
            assert!(line.contains("mailchime serves there already"), "{line}");
        }
        // Its file tells the user of the service whose it is, and root nothing.
        assert!(!said.stdout.contains("FAILED"), "{}", said.stdout);

        // A mailchime that does not listen where this configuration says is another one, or is to be restarted.
        world.configure(&server.address.to_string(), &free_address().to_string());
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 1, "{}{}", said.stdout, said.stderr);
        for part in ["[admin] address", "[api]", "[events] address", "[events] cyrus_stream"] {
            let line = said.line(&format!("FAILED   {part}: "));
            assert!(line.contains("as it was before, restart it"), "{line}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_file_that_another_mailchime_serves_is_not_ok() {
    limited(async {
        let (world, other) = (World::new().await, World::new().await);
        let server = other.serve().await;
        at_free_address(&world);
        let database = other.file("mailchime.db");
        let url = format!("[store]\nurl = \"sqlite://{}\"\n", database.display());
        world.configure("[store]\n", &url);
        assert_eq!(world.command(&["serve"]).await.code, 1);
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 1, "{}{}", said.stdout, said.stderr);
        let line = said.line("FAILED   [store]: ");
        let process = format!("in use by another mailchime (process {}", server.process.id());
        assert!(line.contains(&process) && line.contains("stop that one"), "{line}");
        assert!(!said.stdout.contains("ok       [store]"), "{}", said.stdout);
        drop(server);
        let said = world.command(&["check"]).await;
        said.line("ok       [store]: ");
    })
    .await;
}

#[tokio::test]
async fn a_mailchime_that_shows_a_certificate_of_before_is_to_be_reloaded() {
    limited(async {
        let world = World::new().await;
        at_free_address(&world);
        let server = world.serve().await;
        Pki::generate(None).unwrap().write_to(&world.file("other")).unwrap();
        world.configure("\"server.pem\"", "\"other/server.pem\"");
        world.configure("\"server.key\"", "\"other/server.key\"");
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 0, "{}{}", said.stdout, said.stderr);
        let line = said.line("warning  [[listener]]: ");
        for part in ["mailchime serves there with another certificate", "reload it"] {
            assert!(line.contains(part), "{part:?} is not in {line}");
        }
        server.process.signal("HUP");
        let mut server = server;
        server.logged("configuration reloaded").await;
        let said = world.command(&["check"]).await;
        said.line("ok       [[listener]]: ");
    })
    .await;
}

#[tokio::test]
async fn a_mailchime_that_serves_otherwise_than_the_configuration_says_is_to_be_reloaded() {
    limited(async {
        let world = World::new().await;
        at_free_address(&world);
        let _server = world.serve().await;
        world.configure("[[listener]]\n", "[[listener]]\nproxy_protocol = [\"127.0.0.0/8\"]\n");
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 0, "{}{}", said.stdout, said.stderr);
        let line = said.line("warning  [[listener]]: ");
        for part in ["mailchime serves there otherwise", "reload it"] {
            assert!(line.contains(part), "{part:?} is not in {line}");
        }
    })
    .await;
}

/// A port below 1024 of an address that no other test uses; `None` where everybody may have such a port, or nobody.
fn port_of_root() -> Option<TcpListener> {
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").ok()?;
    let is_forbidden = first.trim().parse::<u16>().is_ok_and(|first| first > 993);
    let is_root = rustix::process::geteuid().is_root();
    (is_forbidden && is_root).then(|| TcpListener::bind("127.77.3.2:993").ok())?
}

#[tokio::test]
async fn who_may_not_listen_at_a_port_asks_who_does() {
    const TEST: &str = "who_may_not_listen_at_a_port_asks_who_does";
    limited(async {
        let Some(listener) = port_of_root() else {
            return skip::report(TEST, "needs root, and ports that others may not have");
        };
        let address = listener.local_addr().unwrap();
        let world = World::new().await;
        world.configure("127.0.0.1:0", &address.to_string());
        fs::set_permissions(world.folder(), Permissions::from_mode(0o755)).unwrap();
        chown(world.folder(), Some(NOBODY), Some(NOBODY)).unwrap();
        for name in ["server.key", "apns.key"] {
            chown(world.file(name), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let check = async || {
            let config = world.file("proxy.toml").display().to_string();
            let mut command = mailchime(&["check", "--config", &config]);
            command.uid(NOBODY).gid(NOBODY);
            let mut process = Process::spawn(command);
            let code = process.end().await.code();
            (code, process.stdout.seen.join("\n"))
        };
        let (code, said) = check().await;
        assert_eq!(code, Some(1), "{said}");
        let expected = "FAILED   [[listener]]: 127.77.3.2:993: another program listens there";
        assert!(said.contains(expected), "{said}");

        drop(listener);
        let (code, said) = check().await;
        assert_eq!(code, Some(0), "{said}");
        let expected =
            "warning  [[listener]]: 127.77.3.2:993: nobody listens there, nor may this user";
        assert!(said.contains(expected) && said.contains("which the unit gives"), "{said}");

        let server = world.serve().await;
        let (code, said) = check().await;
        assert_eq!(code, Some(0), "{said}");
        let expected = "ok       [[listener]]: 127.77.3.2:993: mailchime serves there already";
        assert!(said.contains(expected), "{said}");
        drop(server);
    })
    .await;
}
