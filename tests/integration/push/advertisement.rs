//! Push is offered while there is somebody to send it.

use std::net::SocketAddr;
use std::sync::Arc;

use mailchime::app;
use mailchime::config::{self, Config};
use mailchime::demo::backend::DemoBackend;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::pushing::Certificates;
use crate::support::{limited, listener};

const OFFER: &str = "XAPPLEPUSHSERVICE";

/// Topics, and whose users have them.
const TOPICS: [(&str, &str); 2] =
    [("com.apple.mail.XServer.a", "a.example"), ("com.apple.mail.XServer.b", "b.example")];

/// Whether push is offered before login, and after that of this user.
async fn offered(certificates: &Certificates, to: SocketAddr, login: &str) -> [bool; 2] {
    let tls = certificates.pki.client_config(None).unwrap();
    let tcp = TcpStream::connect(to).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.unwrap();
    let mut lines = BufReader::new(stream);
    let mut greeting = String::new();
    lines.read_line(&mut greeting).await.unwrap();
    lines.write_all(format!("a LOGIN {login} secret\r\n").as_bytes()).await.unwrap();
    let mut after = String::new();
    while !after.contains("a OK") {
        assert!(lines.read_line(&mut after).await.unwrap() > 0 && !after.contains("a NO"));
    }
    [greeting, after].map(|text| text.contains(OFFER))
}

#[tokio::test]
async fn push_is_offered_to_accounts_that_have_a_valid_identity() {
    limited(async {
        let certificates = Certificates::new();
        let backend = DemoBackend::start(listener().await, None).unwrap();
        let users = ["alice@a.example", "bob@b.example"];
        for user in users {
            backend.add_account(user, b"secret");
        }
        let file = |name: &str| certificates.folder.path().join(name);
        let issue = |topic: &str, from: i64, to: i64| {
            let identity = certificates.pki.client(&[topic], from..to).unwrap();
            std::fs::write(file(&format!("{topic}.pem")), &identity.certificate).unwrap();
            std::fs::write(file(&format!("{topic}.key")), identity.expose_private_key()).unwrap();
        };
        issue(TOPICS[0].0, -60, 3600);
        issue(TOPICS[1].0, -3600, -60);
        let mut config = Config::new(
            config::TlsConfig::new(file("server.pem"), file("server.key")),
            config::BackendConfig::new(
                backend.address().ip().to_string(),
                backend.address().port(),
                config::BackendTls::None,
            ),
        );
        config.listeners[0].address = ([127, 0, 0, 1], 0).into();
        config.store.url = config::DatabaseUrl::sqlite(&file("mailchime.db"));
        let key_file = file("mailchime.key");
        config.key_file = key_file;
        config.apns = TOPICS
            .map(|(topic, domain)| {
                let files = [".pem", ".key"].map(|end| file(&format!("{topic}{end}")));
                let [certificate, private_key] = files;
                let mut apns = config::ApnsConfig::new(certificate, private_key);
                apns.domains = vec![domain.to_owned()];
                apns.ca = Some(file("ca.pem"));
                apns
            })
            .to_vec();
        let mut mailchime = app::start(&config).await.unwrap();
        let to = mailchime.addresses[0];
        let of = async |user: &str| offered(&certificates, to, user).await;
        assert_eq!((of(users[0]).await, of(users[1]).await), ([true, true], [true, false]));

        issue(TOPICS[1].0, -60, 3600);
        mailchime.reload(&config).await.unwrap();
        while of(users[1]).await != [true, true] {}

        for (topic, _) in TOPICS {
            issue(topic, -3600, -60);
        }
        mailchime.reload(&config).await.unwrap();
        while of(users[0]).await != [false, false] {}
        assert_eq!(of(users[1]).await, [false, false]);
        mailchime.stop().await;
    })
    .await;
}
