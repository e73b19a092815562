//! The PROXY protocol towards a real Dovecot.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream as Blocking};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::line::Line;
use crate::support::servers::ALICE;
use crate::support::servers::dovecot::{Dovecot, Options};
use crate::support::world::World;
use crate::support::{limited, soon};

/// As docs/install.md has it: passwords without TLS from nobody but mailchime itself and those who came to it with TLS.
const EXPECTS: &str = "disable_plaintext_auth = yes\nhaproxy_trusted_networks = 127.0.0.0/8\n\
                       login_trusted_networks = 127.0.0.0/8\n\
                       service imap-login {\n  inet_listener imap {\n    haproxy = yes\n  }\n}\n";

/// The same without a word for mailchime's own connections.
const TRUSTS_NOBODY: &str = "disable_plaintext_auth = yes\nhaproxy_trusted_networks = 127.0.0.0/8\n\
                             service imap-login {\n  inet_listener imap {\n    haproxy = yes\n  }\n}\n";

/// It has a listener for the header, and believes it from nobody.
const BELIEVES_NOBODY: &str = "disable_plaintext_auth = yes\nlogin_trusted_networks = 127.0.0.0/8\n\
                               service imap-login {\n  inet_listener imap {\n    haproxy = yes\n  }\n}\n";

/// A client elsewhere, of whom a load balancer tells.
const FROM_ELSEWHERE: &[u8] = b"PROXY TCP4 192.0.2.1 192.0.2.2 50000 993\r\n";

#[tokio::test]
async fn dovecot_takes_passwords_of_clients_that_came_with_tls() {
    const TEST: &str = "dovecot_takes_passwords_of_clients_that_came_with_tls";
    let options = Options { extra: EXPECTS, ..Options::default() };
    let Some(dovecot) = Dovecot::start(TEST, &options) else { return };
    limited(async {
        // What it says where the header does not speak of TLS.
        let mut plain = Blocking::connect(dovecot.plain).unwrap();
        plain.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        plain.write_all(FROM_ELSEWHERE).unwrap();
        let mut greeting = String::new();
        BufReader::new(plain).read_line(&mut greeting).unwrap();
        assert!(greeting.contains("LOGINDISABLED"), "{greeting}");

        let world = World::new().await;
        world.in_front_of(dovecot.plain);
        world.configure("tls = \"none\"", "tls = \"none\"\nproxy_protocol = true");
        world.configure("[tls]", "proxy_protocol = [\"127.0.0.0/8\"]\n[tls]");
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 0, "{}", said.stdout);
        assert!(
            said.stdout.contains("it takes a PROXY header, and lets clients log in"),
            "{}",
            said.stdout
        );

        let server = world.serve().await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(FROM_ELSEWHERE).await.unwrap();
        let connector = TlsConnector::from(Arc::new(world.pki.client_config(None).unwrap()));
        let name = ServerName::try_from("localhost").unwrap();
        let stream = soon("the handshake", connector.connect(name, stream)).await.unwrap();
        let mut client = Line::of(stream);
        assert!(client.line().await.starts_with("* OK "));
        let answer = client.log_in(ALICE.0, ALICE.1).await;
        assert!(answer.starts_with("in OK"), "{answer}");
    })
    .await;
}

/// What `check` says of a Dovecot there that is to get the PROXY header has these parts.
async fn is_not_ok(address: SocketAddr, tls: &str, parts: &[&str]) {
    let world = World::new().await;
    world.in_front_of(address);
    world.configure("tls = \"none\"", &format!("{tls}\nproxy_protocol = true"));
    let said = world.command(&["check"]).await;
    assert_eq!(said.code, 1, "{}", said.stdout);
    let line = said.line("FAILED   [backend]: ");
    for part in parts {
        assert!(line.contains(part), "{part:?} is not in {line}");
    }
}

#[tokio::test]
async fn a_dovecot_that_takes_no_passwords_of_mailchime_itself_is_not_ok() {
    const TEST: &str = "a_dovecot_that_takes_no_passwords_of_mailchime_itself_is_not_ok";
    let options = Options { extra: TRUSTS_NOBODY, ..Options::default() };
    let Some(dovecot) = Dovecot::start(TEST, &options) else { return };
    limited(async {
        let parts = ["LOGINDISABLED", "no account can be watched", "login_trusted_networks"];
        is_not_ok(dovecot.plain, "tls = \"none\"", &parts).await;
    })
    .await;
}

#[tokio::test]
async fn a_dovecot_that_does_not_expect_the_header_is_not_ok() {
    const TEST: &str = "a_dovecot_that_does_not_expect_the_header_is_not_ok";
    let Some(dovecot) = Dovecot::start(TEST, &Options::default()) else { return };
    limited(async {
        for (address, tls) in [
            (dovecot.plain, "tls = \"none\""),
            (dovecot.tls, "tls = \"implicit\"\nserver_name = \"localhost\""),
        ] {
            let parts =
                ["PROXY header", "haproxy = yes", "haproxy_trusted_networks", "send_id = true"];
            is_not_ok(address, tls, &parts).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_dovecot_that_believes_the_header_from_nobody_is_not_ok() {
    const TEST: &str = "a_dovecot_that_believes_the_header_from_nobody_is_not_ok";
    let options = Options { extra: BELIEVES_NOBODY, ..Options::default() };
    let Some(dovecot) = Dovecot::start(TEST, &options) else { return };
    limited(async {
        let parts = ["PROXY header", "haproxy_trusted_networks"];
        is_not_ok(dovecot.plain, "tls = \"none\"", &parts).await;
    })
    .await;
}

#[tokio::test]
async fn a_dovecot_that_expects_a_header_and_gets_none_is_not_ok() {
    const TEST: &str = "a_dovecot_that_expects_a_header_and_gets_none_is_not_ok";
    let options = Options { extra: EXPECTS, ..Options::default() };
    let Some(dovecot) = Dovecot::start(TEST, &options) else { return };
    limited(async {
        let world = World::new().await;
        world.in_front_of(dovecot.plain);
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 1, "{}", said.stdout);
        let line = said.line("FAILED   [backend]: ");
        assert!(line.contains("it may expect a PROXY header (proxy_protocol = true)"), "{line}");
    })
    .await;
}
