//! What a server is where its greeting does not say it.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::{Machine, contains};
use crate::support::program::Process;
use crate::support::servers::dovecot::{Dovecot, Options};
use crate::support::servers::pki;
use crate::support::{limited, skip};

#[tokio::test]
async fn a_dovecot_with_a_greeting_of_its_own_is_known_by_its_answer_to_id() {
    let test = "a_dovecot_with_a_greeting_of_its_own_is_known_by_its_answer_to_id";
    let options = Options { extra: "login_greeting = Welcome", ..Options::default() };
    let Some(dovecot) = Dovecot::start(test, &options) else { return };
    limited(async {
        let machine = Machine::new();
        machine.certbot("mail.example.org", pki());
        let (code, said) = machine.setup_at(dovecot.plain, &["--dry-run"]).await;
        assert_eq!(code, Some(0), "{said}");
        contains(&said, &["IMAP server: Dovecot of an unknown version at", "greets: * OK Welcome"]);
        contains(&said, &["send_id = true", "login_trusted_networks"]);
    })
    .await;
}

/// A server that is reached as localhost may be so by IPv6.
#[tokio::test]
async fn the_printed_master_user_may_come_by_either_address_of_loopback_and_by_no_other() {
    let test = "the_printed_master_user_may_come_by_either_address_of_loopback_and_by_no_other";
    let Some(before) = Dovecot::start(test, &Options::default()) else { return };
    limited(async {
        let machine = Machine::new();
        machine.dovecot(pki());
        let arguments = ["--credentials", "master", "--port", "0"];
        let (code, said) = machine.setup_at(before.plain, &arguments).await;
        assert_eq!(code, Some(0), "{said}");
        let (_, options) = machine.printed_master(&said);
        let dovecot = Dovecot::start(test, &options).unwrap();
        let password = machine.master_password();
        for (from, expected) in [("127.0.0.1", true), ("::1", true), ("192.0.2.1", false)] {
            let takes = dovecot.takes("alice*mailchime", &password, from);
            assert_eq!(takes, expected, "from {from}");
        }
    })
    .await;
}

/// Passes on what comes to its port, as the program of that name does for a container.
const FORWARD: &str = "\
import socket, sys, threading
def copy(a, b):
    try:
        while data := a.recv(65536): b.sendall(data)
        b.shutdown(socket.SHUT_WR)
    except OSError: pass
listener = socket.create_server((\"127.0.0.1\", 0))
print(listener.getsockname()[1], flush=True)
while True:
    client, _ = listener.accept()
    server = socket.create_connection((\"127.0.0.1\", int(sys.argv[1])))
    for pair in ((client, server), (server, client)): threading.Thread(target=copy, args=pair, daemon=True).start()
";

#[tokio::test]
async fn a_dovecot_behind_the_proxy_of_docker_is_told_nothing_of_this_machines_files() {
    let test = "a_dovecot_behind_the_proxy_of_docker_is_told_nothing_of_this_machines_files";
    if !Path::new("/usr/bin/python3").exists() {
        return skip::report(test, "python3 is not on this machine");
    }
    let Some(dovecot) = Dovecot::start(test, &Options::default()) else { return };
    limited(async {
        let machine = Machine::new();
        machine.certbot("mail.example.org", pki());
        symlink("/usr/sbin/dovecot", machine.path("usr/sbin/dovecot")).unwrap();
        symlink("/usr/bin/python3", machine.path("docker-proxy")).unwrap();
        let mut command = Command::new(machine.path("docker-proxy"));
        command.args(["-c", FORWARD, &dovecot.plain.port().to_string()]);
        let mut proxy = Process::spawn(command);
        let port = proxy.stdout.find("a port", |line| line.parse::<u16>().ok()).await;
        let at = format!("127.0.0.1:{port}");
        let (code, said) = machine.setup(&["--dry-run", "--backend", &at]).await;
        assert_eq!(code, Some(0), "{said}");
        contains(&said, &["Dovecot of an unknown version in a container at", "docker-proxy"]);
        contains(&said, &["containers.md", "docker compose up -d"]);
        assert!(!said.contains("10-master.conf") && !said.contains("restart dovecot"), "{said}");
    })
    .await;
}
