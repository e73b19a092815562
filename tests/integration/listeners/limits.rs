//! Sessions by address, and addresses whose logins fail.

use mailchime::config::{BackendTls, TrustConfig};

use crate::support::in_process::{InProcess, demo_backend, logins};
use crate::support::line::Line;
use crate::support::world::registration_as;
use crate::support::{limited, listener, reached, soon, until};

#[tokio::test]
async fn one_address_has_so_many_sessions_and_no_more() {
    limited(async {
        let backend = demo_backend(&["alice"]).await;
        let world =
            InProcess::start(backend.address(), |config| config.limits.sessions_per_ip = 2).await;
        let first = world.session("alice").await;
        let _second = world.session("alice").await;
        // Who is not logged in takes none.
        let _not_yet = world.client().await;
        let mut third = world.client().await;
        let refusal = third.log_in("alice", "secret").await;
        assert_eq!(refusal, "in NO [LIMIT] Too many sessions from your address");
        reached(&world.mailchime.counters().sessions_per_ip, 1).await;
        // The place comes back with the end of a session, which takes its time.
        drop(first);
        let served = async { while !third.log_in("alice", "secret").await.starts_with("in OK") {} };
        soon("a place", served).await;
    })
    .await;
}

/// Its second registration waits for the pace of its account, so it is written after the session's end.
#[tokio::test]
async fn a_session_that_ended_has_its_place_until_its_registrations_are_written() {
    limited(async {
        let backend = demo_backend(&["alice"]).await;
        let world = InProcess::pushing(backend.address(), |config| {
            config.limits.sessions_per_ip = 1;
            config.limits.registrations_per_minute = 1;
        })
        .await;
        let mut session = world.session("alice").await;
        let answer = session.command(&format!("r {}", registration_as("one"))).await;
        assert!(answer.starts_with("r OK"), "{answer}");
        session.send(format!("s {}\r\nn NOOP\r\n", registration_as("two"))).await;
        assert!(session.until("n ").await.starts_with("n OK"));
        reached(&world.mailchime.counters().registrations_per_minute, 1).await;
        session.send("l LOGOUT\r\n").await;
        session.rest().await;
        drop(session);
        let mut next = world.client().await;
        for _ in 0..50 {
            let refusal = next.log_in("alice", "secret").await;
            assert_eq!(refusal, "in NO [LIMIT] Too many sessions from your address");
        }
    })
    .await;
}

#[tokio::test]
async fn an_address_that_guesses_passwords_is_refused_for_a_while() {
    limited(async {
        let backend = demo_backend(&["alice"]).await;
        let world = InProcess::start(backend.address(), |config| {
            config.limits.login_failures_per_minute = 3;
        })
        .await;
        let mut client = world.client().await;
        for tries in 1..=3 {
            let refusal = client.command("x LOGIN alice wrong").await;
            assert!(refusal.starts_with("x NO [AUTHENTICATIONFAILED]"), "{refusal}");
            assert_eq!(backend.counters().refused["alice"], tries);
        }
        // Neither on this connection nor on another, and be the password right.
        for mut client in [client, world.client().await] {
            let refusal = client.log_in("alice", "secret").await;
            assert!(refusal.starts_with("in NO [LIMIT] Too many failed logins"), "{refusal}");
        }
        assert_eq!((backend.counters().refused["alice"], logins(&backend, "alice")), (3, 0));
        reached(&world.mailchime.counters().login_failures_per_minute, 2).await;
    })
    .await;
}

#[tokio::test]
async fn a_client_that_does_not_log_in_is_disconnected_and_counted() {
    limited(async {
        let backend = demo_backend(&[]).await;
        let world = InProcess::start(backend.address(), |config| {
            config.limits.login_timeout = std::time::Duration::from_millis(50);
        })
        .await;
        let mut client = world.client().await;
        assert_eq!(client.rest().await, "* BYE No login in time\r\n");
        drop(client);
        let counters = world.mailchime.counters();
        until(async || counters.login_timeout.hits() > 0).await;
    })
    .await;
}

#[tokio::test]
async fn what_is_too_long_is_counted() {
    limited(async {
        let backend = demo_backend(&["alice"]).await;
        let world =
            InProcess::start(backend.address(), |config| config.limits.command_size = 1024).await;
        let mut client = world.client().await;
        assert_eq!(client.command("x LOGIN {2000}").await, "x BAD Command is too long");
        reached(&world.mailchime.counters().command_size, 1).await;
        client.send(&"x".repeat(2000)).await;
        assert!(client.rest().await.starts_with("* BYE Command is too long"));
        reached(&world.mailchime.counters().command_size, 2).await;

        // Nothing else was hit, and each limit has its counter.
        let counters = world.mailchime.counters();
        let hit = counters.all().into_iter().filter(|(_, counter)| counter.hits() > 0);
        assert_eq!(hit.map(|(key, _)| key).collect::<Vec<_>>(), ["command_size"]);
    })
    .await;
}

#[tokio::test]
async fn an_answer_of_the_backend_that_is_too_long_is_counted() {
    limited(async {
        let backend = listener().await;
        let world = InProcess::start(backend.local_addr().unwrap(), |config| {
            config.limits.capability_size = 1024;
        })
        .await;
        let script = tokio::spawn(async move {
            loop {
                let (stream, _) = backend.accept().await.unwrap();
                let mut line = Line::of(stream);
                line.send(&format!("* OK [CAPABILITY IMAP4rev1 {}] x\r\n", "X".repeat(2000))).await;
                line.rest().await;
            }
        });
        let refusal = world.client().await.log_in("alice", "secret").await;
        assert!(refusal.starts_with("in NO [UNAVAILABLE]"), "{refusal}");
        reached(&world.mailchime.counters().capability_size, 1).await;
        script.abort();
    })
    .await;
}

#[tokio::test]
async fn a_backend_that_says_nothing_is_given_up_and_counted() {
    limited(async {
        // The system accepts connections for it, and that is all.
        let mute = listener().await;
        let world = InProcess::start(mute.local_addr().unwrap(), |config| {
            let ca = Some(config.tls.certificates[0].certificate.with_file_name("ca.pem"));
            config.backend.tls = BackendTls::StartTls(TrustConfig { ca, server_name: "x".into() });
            config.limits.connect_timeout = std::time::Duration::from_millis(50);
        })
        .await;
        let refusal = world.client().await.log_in("alice", "secret").await;
        assert!(refusal.starts_with("in NO [UNAVAILABLE]"), "{refusal}");
        reached(&world.mailchime.counters().connect_timeout, 1).await;
    })
    .await;
}
