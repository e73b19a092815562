//! The change that setup prints for the day on which mailchime takes port 993, applied.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::documents::{dovecot_takes_the_limits_with_tls, trust_and_limits};
use super::{Machine, contains, printed};
use crate::support::line::{self, Line};
use crate::support::program::{Process, mailchime};
use crate::support::servers::client::Client;
use crate::support::servers::dovecot::{Dovecot, Options};
use crate::support::servers::{ALICE, pki};
use crate::support::world::Server;
use crate::support::{limited, soon};

/// It is found over TLS, and without it afterwards.
#[tokio::test]
async fn a_server_found_at_993_alone_keeps_all_lines_of_its_backend_that_still_count() {
    let test = "a_server_found_at_993_alone_keeps_all_lines_of_its_backend_that_still_count";
    let Some(dovecot) = Dovecot::start(test, &Options::default()) else { return };
    limited(async {
        let machine = Machine::new();
        machine.certbot("mail.example.org", pki());
        let ca = machine.path("ca.pem");
        fs::write(&ca, &pki().ca.certificate).unwrap();
        let (tls, ca) = (dovecot.tls.to_string(), ca.display().to_string());
        let places = ["--imap-at", "127.0.0.1:1", "--imaps-at", &tls, "--backend-ca", &ca];
        let others = ["--credentials", "master", "--port", "0"];
        let (code, said) = machine.setup(&[&places[..], &others].concat()).await;
        assert_eq!(code, Some(0), "{said}");
        contains(&machine.written(), &["tls = \"implicit\"", "ca = ", "server_name = "]);

        let written = machine.written();
        let (before, rest) = written.split_once("[backend]\n").unwrap();
        let (_, after) = rest.split_once("\n\n").unwrap();
        let block = printed(&said, "[backend]");
        contains(&block, &["\"127.0.0.1:143\"", "tls = \"none\"", "send_id = true"]);
        let block = block.replace("127.0.0.1:143", &dovecot.plain.to_string());
        let config = machine.path("etc/mailchime/proxy.toml");
        fs::write(config, format!("{before}{block}\n{after}")).unwrap();
        let said = machine.check().await;
        let expected = "accounts are watched as the master user mailchime";
        contains(&said, &["no TLS; before login it offers", expected]);
    })
    .await;
}

/// A connection of a client with that address, and the answer to its login.
async fn login_from(from: Ipv4Addr, mailchime: SocketAddr) -> (line::Client, String) {
    let mut stream = TcpStream::connect(mailchime).await.unwrap();
    let header = format!("PROXY TCP4 {from} 192.0.2.2 50000 993\r\n");
    stream.write_all(header.as_bytes()).await.unwrap();
    let connector = TlsConnector::from(Arc::new(pki().client_config(None).unwrap()));
    let name = ServerName::try_from("localhost").unwrap();
    let stream = soon("the handshake", connector.connect(name, stream)).await.unwrap();
    let mut client = Line::of(stream);
    assert!(client.line().await.starts_with("* OK "));
    let answer = client.log_in(ALICE.0, ALICE.1).await;
    (client, answer)
}

/// The real one, which has taken what setup prints.
#[tokio::test]
async fn dovecot_counts_connections_by_the_addresses_of_clients_and_not_by_that_of_mailchime() {
    let test =
        "dovecot_counts_connections_by_the_addresses_of_clients_and_not_by_that_of_mailchime";
    let Some(before) = Dovecot::start(test, &Options::default()) else { return };
    limited(async {
        let machine = Machine::new();
        machine.dovecot(pki());
        let (code, said) = machine.setup_at(before.plain, &["--port", "0"]).await;
        assert_eq!(code, Some(0), "{said}");
        contains(&said, &["Dovecot then counts mail_max_userip_connections by the addresses"]);
        // A user may have one from each address.
        let extra = trust_and_limits(&said).leak();
        let options = Options { sessions: Some(1), extra, ..Options::default() };
        let now = Dovecot::start(test, &options).unwrap();
        let config = machine.path("etc/mailchime/proxy.toml");
        let text = machine.written().replace(&before.plain.to_string(), &now.plain.to_string());
        let text = text.replace("\n[tls]", "proxy_protocol = [\"127.0.0.0/8\"]\n\n[tls]");
        fs::write(&config, text + "\n[log]\nformat = \"json\"\n").unwrap();
        let mut command = mailchime(&["serve", "--config"]);
        command.arg(config);
        let server = Server::of(Process::spawn(command)).await;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server.address.port()));

        // From where mailchime watches.
        let mut watching = Client::connect(now.plain);
        assert!(watching.login(ALICE).starts_with("x OK"));
        let mut open = Vec::new();
        for (last, expected) in [(7, "in OK"), (8, "in OK"), (7, "in NO [LIMIT]")] {
            let (client, answer) = login_from(Ipv4Addr::new(192, 0, 2, last), address).await;
            assert!(answer.starts_with(expected), "{last}: {answer}");
            open.push(client);
        }
        assert!(!now.log().contains("Warning"), "{}", now.log());
    })
    .await;
}

/// By another address of this machine than mailchime comes from, it takes passwords over TLS alone.
#[tokio::test]
async fn dovecot_takes_the_limits_that_setup_prints_for_connections_with_tls() {
    let test = "dovecot_takes_the_limits_that_setup_prints_for_connections_with_tls";
    let extra = "disable_plaintext_auth = yes\nlisten = 127.0.0.1, 127.0.0.2";
    let options = Options { extra, ..Options::default() };
    let Some(dovecot) = Dovecot::start(test, &options) else { return };
    limited(async {
        let machine = Machine::new();
        machine.certbot("mail.example.org", pki());
        let ca = machine.path("ca.pem");
        fs::write(&ca, &pki().ca.certificate).unwrap();
        let at = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), dovecot.plain.port()));
        let ca = ca.display().to_string();
        let (code, said) = machine.setup_at(at, &["--port", "0", "--backend-ca", &ca]).await;
        assert_eq!(code, Some(0), "{said}");
        contains(&machine.written(), &["tls = \"starttls\""]);
        dovecot_takes_the_limits_with_tls(test, &said);
    })
    .await;
}
