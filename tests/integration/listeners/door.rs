//! Clients in this process: they come without a socket, and are served as all others.

use std::net::SocketAddr;

use mailchime::model::{AcceptedLogin, Account};
use mailchime::net::proxy_protocol::Addresses;
use tokio::io::DuplexStream;
use tokio::sync::oneshot;

use crate::support::in_process::{InProcess, demo_backend, logins};
use crate::support::line::Line;
use crate::support::{limited, soon};

type Login = oneshot::Receiver<(Account, AcceptedLogin)>;

/// A client at this address that has heard the greeting.
async fn client(world: &InProcess, from: &str) -> (Line<DuplexStream>, Login) {
    let source: SocketAddr = from.parse().unwrap();
    let destination = "192.0.2.1:443".parse().unwrap();
    let opened = world.mailchime.door.open(Addresses { source, destination });
    let mut client = Line::of(opened.stream);
    let greeting = client.line().await;
    // As behind TLS.
    assert!(
        greeting.starts_with("* OK [CAPABILITY ") && greeting.contains("AUTH=PLAIN"),
        "{greeting}"
    );
    assert!(!greeting.contains("STARTTLS"), "{greeting}");
    (client, opened.login)
}

#[tokio::test]
async fn a_client_in_this_process_logs_in_and_reads_the_state_of_its_mailboxes() {
    limited(async {
        let backend = demo_backend(&["alice@example.org"]).await;
        backend.deliver("alice@example.org", "INBOX", "Subject: hello\r\n\r\nHi\r\n").unwrap();
        let world = InProcess::start(backend.address(), |_| {}).await;
        let (mut client, login) = client(&world, "203.0.113.5:4000").await;
        let answer = client.log_in("alice@example.org", "secret").await;
        assert!(answer.starts_with("in OK"), "{answer}");
        let (account, login) = soon("the login", login).await.unwrap();
        assert_eq!(account, Account::from_login("alice@example.org"));
        assert!(login.credentials.is_some());
        client.send("s STATUS INBOX (MESSAGES UNSEEN)\r\n").await;
        assert_eq!(client.line().await, "* STATUS INBOX (MESSAGES 1 UNSEEN 1)");
        assert!(client.line().await.starts_with("s OK"));

        // A stop ends it with a word, and waits for it.
        let ((), rest) = tokio::join!(world.mailchime.stop(), client.rest());
        assert_eq!(rest, "* BYE The server is shutting down\r\n");
    })
    .await;
}

#[tokio::test]
async fn its_logins_count_among_those_of_its_address() {
    limited(async {
        let backend = demo_backend(&["alice"]).await;
        let world = InProcess::start(backend.address(), |config| {
            config.limits.login_failures_per_minute = 3;
        })
        .await;
        let (mut inner, login) = client(&world, "127.0.0.1:4000").await;
        for _ in 0..2 {
            let refusal = inner.log_in("alice", "wrong").await;
            assert!(refusal.starts_with("in NO [AUTHENTICATIONFAILED]"), "{refusal}");
        }
        let mut outer = world.client().await;
        let refusal = outer.log_in("alice", "wrong").await;
        assert!(refusal.starts_with("in NO [AUTHENTICATIONFAILED]"), "{refusal}");
        for refusal in
            [inner.log_in("alice", "secret").await, outer.log_in("alice", "secret").await]
        {
            assert!(refusal.starts_with("in NO [LIMIT] Too many failed logins"), "{refusal}");
        }
        assert_eq!((backend.counters().refused["alice"], logins(&backend, "alice")), (3, 0));
        // The opener learns of no login.
        drop(inner);
        assert!(soon("its end", login).await.is_err());

        // Another address has failed nowhere.
        let (mut other, _login) = client(&world, "203.0.113.5:4000").await;
        assert!(other.log_in("alice", "secret").await.starts_with("in OK"));
    })
    .await;
}

#[tokio::test]
async fn its_sessions_count_among_those_of_its_address() {
    limited(async {
        let backend = demo_backend(&["alice"]).await;
        let world =
            InProcess::start(backend.address(), |config| config.limits.sessions_per_ip = 1).await;
        let _session = world.session("alice").await;
        let (mut second, login) = client(&world, "127.0.0.1:4000").await;
        let refusal = second.log_in("alice", "secret").await;
        assert_eq!(refusal, "in NO [LIMIT] Too many sessions from your address");
        drop(second);
        assert!(soon("its end", login).await.is_err());
    })
    .await;
}
