//! The phone, against a server of a few scripted lines.

use std::net::SocketAddr;

use mailchime::demo::backend::DemoBackend;
use mailchime::demo::phone::{self, Direction, Phone, PhoneError};
use mailchime::demo::pki::Pki;
use tokio::io::{AsyncWriteExt, BufStream};
use tokio_rustls::TlsAcceptor;

use super::{Client, TOKEN, TOPIC, backend};
use crate::support::{limited, listener};

#[tokio::test]
async fn the_phone_registers_as_ios_does() {
    limited(async {
        let pki = Pki::generate(Some(TOPIC)).unwrap();
        let (address, server) = scripted(
            &pki,
            r#"
S: * OK [CAPABILITY IMAP4rev1] ready
C: t1 LOGIN "alice" "se\"cret"
S: t1 OK logged in
C: t2 CAPABILITY
S: * CAPABILITY IMAP4rev1 XAPPLEPUSHSERVICE
S: t2 OK done
C: t3 XAPPLEPUSHSERVICE "aps-version" "2" "aps-account-id" "0715A26B" "aps-device-token" "ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12" "aps-subtopic" "com.apple.mobilemail" "mailboxes" ("INBOX" "a b")
S: * XAPPLEPUSHSERVICE "mailbox" "INBOX"
S: * XAPPLEPUSHSERVICE "mailbox" {3}
S: a b
S: * XAPPLEPUSHSERVICE "aps-version" "2" "aps-topic" "com.apple.mail.XServer.test"
S: t3 OK XAPPLEPUSHSERVICE completed
C: t4 LOGOUT
S: * BYE
S: t4 OK bye
"#,
        )
        .await;
        let mut heard = Vec::new();
        let registered = phone()
            .register(address, "localhost", &pki.ca.certificate, |who, line| {
                heard.push((who, line.to_owned()));
            })
            .await
            .unwrap();
        server.await.unwrap();
        assert_eq!(registered.topic, TOPIC);
        assert_eq!(registered.version, "2");
        assert_eq!(registered.mailboxes, ["INBOX", "a b"]);
        assert_eq!(heard.len(), 14);
        assert_eq!(heard[1].0, Direction::Client);
        assert_eq!(heard[13], (Direction::Server, "t4 OK bye".to_owned()));
    })
    .await;
}

#[tokio::test]
async fn the_phone_says_what_went_wrong() {
    limited(async {
        let pki = Pki::generate(Some(TOPIC)).unwrap();
        let quiet = |_: Direction, _: &str| {};
        let greeted = "S: * OK ready\nC: t1 LOGIN \"alice\" \"se\\\"cret\"\n";
        for (rest, expected) in [
            ("S: t1 NO [AUTHENTICATIONFAILED] no", "login: refused: NO [AUTHENTICATIONFAILED] no"),
            (
                "S: t1 OK\nC: t2 CAPABILITY\nS: * CAPABILITY IMAP4rev1\nS: t2 OK",
                "the server does not offer XAPPLEPUSHSERVICE",
            ),
            ("", "login: the server closed the connection"),
        ] {
            let (address, server) = scripted(&pki, &format!("{greeted}{rest}")).await;
            let ca = &pki.ca.certificate;
            let error = phone().register(address, "localhost", ca, quiet).await.unwrap_err();
            assert_eq!(error.to_string(), expected);
            server.await.unwrap();
        }
        // A server of another CA.
        let other = Pki::generate(None).unwrap();
        let backend =
            DemoBackend::start(listener().await, Some(pki.server_config().unwrap())).unwrap();
        let ca = &other.ca.certificate;
        let error = phone().register(backend.address(), "localhost", ca, quiet).await.unwrap_err();
        assert!(matches!(error, PhoneError::Io { step: "TLS handshake", .. }), "{error}");
    })
    .await;
}

#[tokio::test]
async fn mail_is_delivered_over_imap() {
    limited(async {
        let backend = backend().await;
        backend.create_mailbox("alice", "Notes").unwrap();
        let address = backend.address();
        let password = "wonder \"land\\";
        phone::deliver(address, "alice", password, "Notes", "Hello").await.unwrap();
        let messages = backend.messages("alice", "Notes").unwrap();
        let (uid, flags, body) = &messages[0];
        assert_eq!((messages.len(), *uid, flags.len()), (1, 1, 0));
        let text = std::str::from_utf8(body).unwrap();
        assert!(text.contains("\r\nSubject: Hello\r\n") && text.ends_with("demo.\r\n"), "{text}");

        let error = phone::deliver(address, "alice", password, "None", "x").await.unwrap_err();
        assert!(error.to_string().contains("TRYCREATE"), "{error}");
        let forged = phone::deliver(address, "alice", password, "Notes", "x\r\nBcc: y").await;
        assert!(matches!(forged, Err(PhoneError::Unquotable("subject"))));
    })
    .await;
}

/// A TLS server that plays the server's side of a script to one client and hangs up.
async fn scripted(pki: &Pki, script: &str) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    let tls = TlsAcceptor::from(pki.server_config().unwrap());
    let script = script.to_owned();
    let server = tokio::spawn(async move {
        let stream = tls.accept(listener.accept().await.unwrap().0).await.unwrap();
        let mut server = Client(BufStream::new(stream));
        server.act("S: ", "C: ", &script).await;
        let _ = server.0.shutdown().await;
    });
    (address, server)
}

fn phone() -> Phone {
    Phone {
        login: "alice".to_owned(),
        password: "se\"cret".to_owned(),
        account_id: "0715A26B".to_owned(),
        device_token: TOKEN.to_owned(),
        mailboxes: vec!["INBOX".to_owned(), "a b".to_owned()],
    }
}
