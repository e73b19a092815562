//! A backend that is mailchime itself: sessions would go round in it.

use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};

use super::checked::free_address;
use crate::support::limited;
use crate::support::program::Process;
use crate::support::skip;
use crate::support::world::World;

/// The address of each listener: for TLS from the first byte, and for STARTTLS. Both are addresses of `localhost`, which is
/// known to `check` alone.
fn with_two_listeners(world: &World) -> [SocketAddr; 2] {
    // What the system chooses for others is above.
    let first = 20_000 + u16::try_from(std::process::id() % 5000).unwrap();
    let mut free = (first..30_000).filter_map(|port| TcpListener::bind(("127.0.0.1", port)).ok());
    let [implicit, starttls] = [(); 2].map(|()| free.next().unwrap().local_addr().unwrap());
    let listeners = format!(
        "address = \"{implicit}\"\n[[listener]]\naddress = \"{starttls}\"\ntls = \"starttls\"\n\
         proxy_protocol = [\"127.0.0.0/8\"]\n"
    );
    world.configure("address = \"127.0.0.1:0\"\n", &listeners);
    [implicit, starttls]
}

#[tokio::test]
async fn a_backend_whose_name_leads_to_a_listener_is_not_ok_whatever_its_tls() {
    limited(async {
        let (world, other) = (World::new().await, World::new().await);
        let [implicit, starttls] = with_two_listeners(&world);
        let backend = world.backend.address().to_string();
        let not_itself = async |part: &str| {
            let said = world.command(&["check"]).await;
            assert!(!said.stdout.contains("mailchime itself"), "{part}: {}", said.stdout);
        };
        not_itself("another program").await;
        let mut before = format!("\"{backend}\"\ntls = \"none\"");
        let mut lead_to = |address: String, tls: &str| {
            let now = format!("\"{address}\"\ntls = \"{tls}\"");
            if now != before {
                world.configure(&before, &now);
            }
            before = now;
        };
        // It is not started yet, and then it is.
        for is_served in [false, true] {
            lead_to(backend.clone(), "none");
            let server = if is_served { Some(world.serve().await) } else { None };
            for listener in [implicit, starttls] {
                for tls in ["implicit", "starttls", "none"] {
                    lead_to(format!("localhost:{}", listener.port()), tls);
                    let said = world.command(&["check"]).await;
                    assert_eq!(said.code, 1, "{}{}", said.stdout, said.stderr);
                    let line = said.line("FAILED   [backend]: ");
                    let expected = format!(
                        "that is mailchime itself ([[listener]] address {listener}); name the port of the IMAP server"
                    );
                    assert!(line.contains(&expected), "{tls}: {line}");
                }
            }
            drop(server);
        }
        lead_to(backend, "none");
        let route = format!(
            "[[route]]\ndomain = \"a.example\"\naddress = \"localhost:{}\"\ntls = \"none\"\n[log]",
            implicit.port()
        );
        world.configure("[log]", &route);
        let said = world.command(&["check"]).await;
        let line = said.line("FAILED   [[route]] a.example: ");
        assert!(line.contains("that is mailchime itself"), "{line}");
        assert!(said.line("ok       [backend]: ").contains("no TLS"));

        // One mailchime before another.
        other.configure("127.0.0.1:0", &free_address().to_string());
        let server = other.serve().await;
        let port = |at: SocketAddr| format!("localhost:{}", at.port());
        world.configure(&port(implicit), &server.address.to_string());
        world.configure("tls = \"none\"\n[log]", "ca = \"ca.pem\"\nserver_name = \"localhost\"\n[log]");
        std::fs::copy(other.file("ca.pem"), world.file("ca.pem")).unwrap();
        let said = world.command(&["check"]).await;
        let line = said.line("ok       [[route]] a.example: ");
        assert!(line.contains("its certificate is good"), "{line}");
    })
    .await;
}

/// A kernel without IPv6 has neither `::1` nor, where it does not know the family, `::`.
#[tokio::test]
async fn an_address_that_a_machine_without_ipv6_lacks_is_named_with_what_to_write() {
    const TEST: &str = "an_address_that_a_machine_without_ipv6_lacks_is_named_with_what_to_write";
    // The network of this process alone.
    let script =
        "ip link set lo up && echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 && exec \"$@\"";
    let inside = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["-n", "sh", "-c", script, "sh"]).args(arguments).stdin(Stdio::null());
        command
    };
    let can = || {
        let tried = inside(&["true"]).stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    };
    if !can() {
        return skip::report(TEST, "only root makes a network without IPv6");
    }
    limited(async {
        let world = World::new().await;
        world.configure("\"127.0.0.1:0\"", "\"[::1]:993\"");
        let config = world.file("proxy.toml").display().to_string();
        for command in ["check", "serve"] {
            let program = env!("CARGO_BIN_EXE_mailchime");
            let mut process = Process::spawn(inside(&[program, command, "--config", &config]));
            assert_eq!(process.end().await.code(), Some(1));
            let said = [process.stdout.seen.join("\n"), process.stderr.seen.join("\n")].concat();
            let expected = "[::1]:993: cannot listen: ";
            let remedy = "; this machine has no IPv6: write 127.0.0.1:993";
            assert!(said.contains(expected) && said.contains(remedy), "{command}: {said}");
        }
    })
    .await;
}
