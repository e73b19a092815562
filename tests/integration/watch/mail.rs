//! What becomes of mail: the demo server, and the events that `push` gets.

use std::time::Duration;

use mailchime::demo::backend::DemoBackend;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;

use crate::support::limited;
use crate::support::listener;
use crate::support::watching::{PASSWORD, WatchWorld, Watching, told};

const MAIL: &str = "Subject: hello\r\n\r\nHi there\r\n";

/// A server with the empty INBOX of alice, UIDVALIDITY 1.
pub(super) async fn backend() -> DemoBackend {
    let backend = DemoBackend::start(listener().await, None).unwrap();
    backend.add_account("alice", PASSWORD.as_bytes());
    backend
}

/// A world in which alice registered for her INBOX when it was empty.
pub(super) async fn world(backend: &DemoBackend) -> WatchWorld {
    let world = WatchWorld::new(backend.address()).await;
    world.register("alice", &[("INBOX", told(1, 1, 0, 0))]).await;
    world
}

/// Watches until all is quiet: one connection, in IDLE.
pub(super) async fn idling(world: &WatchWorld, backend: &DemoBackend) -> Watching {
    let watching = world.watch();
    backend.wait_until(|c| c.idling == 1 && c.connections == 1).await;
    watching
}

/// Breaks the connections; returns when as many watchers are in IDLE again.
pub(super) async fn reconnected(backend: &DemoBackend) {
    let before = backend.counters();
    backend.drop_connections();
    let all = before.accepted + before.connections as u64;
    backend.wait_until(|c| c.accepted == all && c.idling == before.idling).await;
}

/// Says something to the backend as alice's own client, which then leaves.
async fn client(backend: &DemoBackend, commands: &[&str]) -> String {
    let mut stream = BufStream::new(TcpStream::connect(backend.address()).await.unwrap());
    let login = format!("LOGIN alice {PASSWORD}");
    for command in [&login].map(String::as_str).iter().chain(commands).chain(&["LOGOUT"]) {
        stream.write_all(format!("c {command}\r\n").as_bytes()).await.unwrap();
    }
    stream.flush().await.unwrap();
    let (mut heard, mut line) = (String::new(), String::new());
    while stream.read_line(&mut line).await.unwrap() > 0 {
        heard.push_str(&line);
        line.clear();
    }
    heard
}

#[tokio::test]
async fn new_mail_is_announced_at_once_and_then_confirmed() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let mut watching = idling(&world, &backend).await;
        for (before, next) in [(0, 2), (1, 3)] {
            backend.wait_until(|c| c.idling == 1).await;
            backend.deliver("alice", "INBOX", MAIL).unwrap();
            let confirmed =
                format!("INBOX: confirmed, next {next} of {0} with {0} unseen", before + 1);
            watching.expect(&["INBOX: new mail, announced", &confirmed]).await;
        }
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_burst_ends_with_the_state_after_its_last_mail() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let mut watching = idling(&world, &backend).await;
        for _ in 0..5 {
            for _ in 0..10 {
                backend.deliver("alice", "INBOX", MAIL).unwrap();
            }
            tokio::task::yield_now().await;
        }
        let mut lines = vec![watching.next().await];
        while !lines.last().unwrap().ends_with("next 51 of 50 with 50 unseen") {
            lines.push(watching.next().await);
        }
        assert_eq!(lines[0], "INBOX: new mail, announced");
        assert!(lines.iter().all(|line| !line.contains("quiet")), "{lines:?}");
        backend.wait_until(|c| c.idling == 1).await;
        watching.expect_nothing();
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn read_unread_and_expunged_are_one_quiet_change_each_time_all_has_settled() {
    limited(async {
        let backend = backend().await;
        for _ in 0..3 {
            backend.deliver("alice", "INBOX", MAIL).unwrap();
        }
        let mut world = WatchWorld::new(backend.address()).await;
        world.watch.settle = Duration::from_secs(1);
        world.register("alice", &[("INBOX", told(1, 4, 3, 3))]).await;
        let mut watching = idling(&world, &backend).await;
        let looks = backend.counters().commands["STATUS"];
        for uid in 1..=3 {
            backend.set_flags("alice", "INBOX", uid, &["\\Seen"]).unwrap();
            tokio::task::yield_now().await;
        }
        watching.expect(&["INBOX: quiet, next 4 of 3 with 0 unseen"]).await;
        backend.wait_until(|c| c.idling == 1).await;
        backend.set_flags("alice", "INBOX", 1, &[]).unwrap();
        watching.expect(&["INBOX: quiet, next 4 of 3 with 1 unseen"]).await;
        backend.wait_until(|c| c.idling == 1).await;
        backend.expunge("alice", "INBOX", 1).unwrap();
        backend.expunge("alice", "INBOX", 2).unwrap();
        watching.expect(&["INBOX: quiet, next 4 of 1 with 0 unseen"]).await;
        backend.wait_until(|c| c.idling == 1).await;
        assert_eq!(backend.counters().commands["STATUS"], looks + 3, "one look at a time");
        watching.expect_nothing();
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn another_mailbox_is_polled_beside_idle() {
    limited(async {
        let backend = backend().await;
        backend.create_mailbox("alice", "Entw&APw-rfe").unwrap();
        let mut world = WatchWorld::new(backend.address()).await;
        world.watch.poll_interval = Duration::from_millis(50);
        let mailboxes = [("Entwürfe", told(2, 1, 0, 0)), ("INBOX", told(1, 1, 0, 0))];
        world.register("alice", &mailboxes).await;
        let mut watching = idling(&world, &backend).await;
        backend.deliver("alice", "Entw&APw-rfe", MAIL).unwrap();
        watching.expect(&["Entwürfe: new mail, next 2 of 1 with 1 unseen"]).await;
        backend.set_flags("alice", "Entw&APw-rfe", 1, &["\\Seen"]).unwrap();
        watching.expect(&["Entwürfe: quiet, next 2 of 1 with 0 unseen"]).await;
        assert_eq!(backend.counters().connections, 1);
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_backend_without_idle_is_polled_altogether() {
    limited(async {
        let backend = backend().await;
        backend.behave(|behaviour| behaviour.remove("IDLE"));
        backend.create_mailbox("alice", "Notes").unwrap();
        let mut world = WatchWorld::new(backend.address()).await;
        world.watch.poll_interval = Duration::from_millis(20);
        let mailboxes = [("INBOX", told(1, 1, 0, 0)), ("Notes", told(2, 1, 0, 0))];
        world.register("alice", &mailboxes).await;
        let mut watching = world.watch();
        for mailbox in ["INBOX", "Notes", "INBOX"] {
            backend.deliver("alice", mailbox, MAIL).unwrap();
            let line = watching.next().await;
            assert!(line.starts_with(&format!("{mailbox}: new mail, next")), "{line}");
        }
        let commands = backend.counters().commands;
        assert!(
            !commands.contains_key("IDLE") && !commands.contains_key("EXAMINE"),
            "{commands:?}"
        );
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn mail_that_came_while_nothing_was_connected_is_found() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let mut watching = idling(&world, &backend).await;
        backend.refuse().await;
        backend.drop_connections();
        backend.wait_until(|c| c.connections == 0).await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        backend.resume().await.unwrap();
        watching.expect(&["INBOX: new mail, next 2 of 1 with 1 unseen"]).await;
        watching.stop().await;
        // Nobody has told the devices, so the next start finds it too.
        let mut watching = world.watch();
        watching.expect(&["INBOX: new mail, next 2 of 1 with 1 unseen"]).await;
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_state_that_devices_know_is_not_pushed_again() {
    limited(async {
        let backend = backend().await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        let world = WatchWorld::new(backend.address()).await;
        world.register("alice", &[("INBOX", told(1, 2, 1, 1))]).await;
        let mut watching = idling(&world, &backend).await;
        watching.expect_nothing();
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_announcement_outlives_a_registration_and_a_broken_connection_finds_it_again() {
    limited(async {
        let backend = backend().await;
        backend.create_mailbox("alice", "Notes").unwrap();
        let world = world(&backend).await;
        let mut watching = idling(&world, &backend).await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        let mailboxes = [("INBOX", told(1, 1, 0, 0)), ("Notes", told(2, 1, 0, 0))];
        world.register("alice", &mailboxes).await;
        watching.registered("alice").await;
        let state = "next 2 of 1 with 1 unseen";
        let confirmed = format!("INBOX: confirmed, {state}");
        watching.expect(&["INBOX: new mail, announced", &confirmed]).await;
        backend.wait_until(|c| c.idling == 1).await;
        // The row in the store has not moved: nobody pushes here.
        backend.drop_connections();
        watching.expect(&[&format!("INBOX: new mail, {state}")]).await;
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_mailbox_that_is_registered_while_watching_is_watched() {
    limited(async {
        let backend = backend().await;
        backend.create_mailbox("alice", "Notes").unwrap();
        let world = WatchWorld::new(backend.address()).await;
        world.register("alice", &[("Notes", told(2, 1, 0, 0))]).await;
        let mut watching = world.watch();
        backend.wait_until(|c| c.commands.contains_key("STATUS")).await;
        let mailboxes = [("INBOX", told(1, 1, 0, 0)), ("Notes", told(2, 1, 0, 0))];
        world.register("alice", &mailboxes).await;
        watching.registered("alice").await;
        // Even if it is the INBOX, for which the connection has to change its ways.
        backend.wait_until(|c| c.idling == 1).await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        let confirmed = "INBOX: confirmed, next 2 of 1 with 1 unseen";
        watching.expect(&["INBOX: new mail, announced", confirmed]).await;
        assert_eq!(backend.counters().logins["alice"], 1, "on the same connection");
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_mailbox_that_is_deleted_disturbs_nothing_and_may_come_back() {
    limited(async {
        let backend = backend().await;
        backend.create_mailbox("alice", "Notes").unwrap();
        let mut world = WatchWorld::new(backend.address()).await;
        world.watch.poll_interval = Duration::from_millis(20);
        let mailboxes = [("INBOX", told(1, 1, 0, 0)), ("Notes", told(2, 1, 0, 0))];
        world.register("alice", &mailboxes).await;
        let mut watching = idling(&world, &backend).await;
        let heard = client(&backend, &["DELETE Notes"]).await;
        assert!(heard.contains("c OK DELETE"), "{heard}");
        let looks = backend.counters().commands["STATUS"];
        backend.wait_until(|c| c.commands["STATUS"] > looks + 4 && c.idling == 1).await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        let line = watching.next().await;
        assert!(line.starts_with("INBOX: new mail"), "{line}");
        backend.create_mailbox("alice", "Notes").unwrap();
        backend.deliver("alice", "Notes", MAIL).unwrap();
        let mut line = watching.next().await;
        if line.starts_with("INBOX: confirmed") {
            line = watching.next().await;
        }
        assert_eq!(line, "Notes: new mail, next 2 of 1 with 1 unseen");
        assert_eq!(backend.counters().logins["alice"], 2, "the watcher and the client, once each");
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_watcher_never_takes_recent_from_a_client() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        let mut watching = idling(&world, &backend).await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        let state = "next 3 of 2 with 2 unseen";
        while !watching.next().await.ends_with(state) {}
        backend.wait_until(|c| c.idling == 1).await;
        assert!(!backend.counters().commands.contains_key("SELECT"));
        let heard = client(&backend, &["SELECT INBOX"]).await;
        assert!(heard.contains("* 2 RECENT"), "{heard}");
        watching.stop().await;
    })
    .await;
}
