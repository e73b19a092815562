//! Courier with its package's configuration, once it has taken the change that setup prints.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use super::{Machine, line};
use crate::support::limited;
use crate::support::program::{Process, mailchime};
use crate::support::servers::client::Client;
use crate::support::servers::courier::Packaged;
use crate::support::servers::{ALICE, mail, pki};
use crate::support::world::Server;

/// The real one, with its package's configuration and mailchime in front of it.
#[tokio::test]
async fn courier_takes_the_change_that_setup_prints_and_serves_behind_mailchime() {
    let test = "courier_takes_the_change_that_setup_prints_and_serves_behind_mailchime";
    let Some(before) = Packaged::start(test, &["ADDRESS=0"]) else { return };
    limited(async {
        // Another address of this machine, in place of that which others reach.
        let elsewhere = |port| TcpStream::connect((Ipv4Addr::new(127, 0, 0, 2), port));
        assert!(elsewhere(before.port).is_ok());
        let machine = Machine::new();
        machine.certbot("mail.example.org", pki());
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, before.port));
        let (code, said) = machine.setup_at(at, &["--port", "0"]).await;
        assert_eq!(code, Some(0), "{said}");

        let changed = ["ADDRESS=", "MAXPERIP=", "MAXDAEMONS="].map(|begin| line(&said, begin));
        let now = Packaged::start(test, &changed.each_ref().map(String::as_str)).unwrap();
        assert!(elsewhere(now.port).is_err());
        let config = machine.path("etc/mailchime/proxy.toml");
        let port = |port| format!(":{port}\"");
        let text = machine.written().replace(&port(before.port), &port(now.port));
        fs::write(&config, text + "\n[log]\nformat = \"json\"\n").unwrap();
        machine.check().await;
        let mut command = mailchime(&["serve", "--config"]);
        command.arg(config);
        let server = Server::of(Process::spawn(command)).await;
        let mut client = Client::connect_tls((Ipv4Addr::LOCALHOST, server.address.port()).into());
        assert!(client.login(ALICE).starts_with("x OK"));
        now.deliver(ALICE.0, &mail("through mailchime"));
        assert!(client.ask("SELECT INBOX").iter().any(|line| line == "* 1 EXISTS"));
        let fetched = client.ask("FETCH 1 BODY.PEEK[HEADER.FIELDS (SUBJECT)]");
        assert!(fetched.contains(&"Subject: through mailchime".to_owned()), "{fetched:?}");
        // More than Debian's Courier lets one address have, which all of them come from.
        let more = (0..45).map(|_| {
            let address = (Ipv4Addr::LOCALHOST, server.address.port()).into();
            let mut client = Client::connect_tls(address);
            assert!(client.login(ALICE).starts_with("x OK"));
            client
        });
        assert_eq!(more.collect::<Vec<_>>().len(), 45);
    })
    .await;
}
