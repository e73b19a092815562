//! A watcher's life: starts, ends, passwords and broken connections.

use std::time::{Duration, Instant};

use mailchime::config::{self, BackendTls};
use mailchime::model::{Account, Timestamp};
use sqlx::{Connection, Executor, SqliteConnection};

use super::mail::{backend, idling, reconnected, world};
use crate::support::watching::{PASSWORD, WatchWorld, told};
use crate::support::{limited, soon, until};

const MAIL: &str = "Subject: hello\r\n\r\nHi there\r\n";

#[tokio::test]
async fn every_start_watches_every_account_with_a_device() {
    limited(async {
        let backend = backend().await;
        backend.add_account("bob@EXAMPLE.org", PASSWORD.as_bytes());
        let world = world(&backend).await;
        world.register("bob@EXAMPLE.org", &[("INBOX", told(2, 1, 0, 0))]).await;
        for start in 1..=2 {
            let watching = world.watch();
            let seen = backend.wait_until(|c| c.idling == 2 && c.connections == 2).await;
            assert_eq!((seen.logins["alice"], seen.logins["bob@EXAMPLE.org"]), (start, start));
            watching.stop().await;
            let seen = backend.wait_until(|c| c.connections == 0).await;
            assert_eq!(seen.commands["LOGOUT"], 2 * start, "an orderly end");
        }
    })
    .await;
}

#[tokio::test]
async fn an_account_that_registers_at_another_backend_is_watched_there_and_no_other_is_disturbed() {
    limited(async {
        let (before, after) = (backend().await, backend().await);
        for backend in [&before, &after] {
            backend.add_account("bob@example.org", PASSWORD.as_bytes());
        }
        let world = world(&before).await;
        world.register("bob@example.org", &[("INBOX", told(2, 1, 0, 0))]).await;
        let watching = world.watch();
        before.wait_until(|c| c.idling == 2).await;

        let mut config = world.config();
        let (host, port) = (after.address().ip().to_string(), after.address().port());
        let backend = config::BackendConfig::new(host, port, BackendTls::None);
        let id = backend.id();
        config.routes.push(config::RouteConfig { domain: "example.org".into(), backend });
        watching.reload(&config);
        let seen = before.wait_until(|c| c.connections == 1).await;
        assert_eq!((seen.commands["LOGOUT"], seen.idling), (1, 1));
        assert_eq!(after.counters().accepted, 0, "it is parked until its user registers there");
        world.register_at(&id, "bob@example.org", &[("INBOX", told(2, 1, 0, 0))]).await;
        watching.registered("bob@example.org").await;
        after.wait_until(|c| c.idling == 1).await;

        watching.reload(&config);
        watching.stop().await;
        assert_eq!(before.counters().logins["alice"], 1);
        assert_eq!(after.counters().logins["bob@example.org"], 1);
    })
    .await;
}

#[tokio::test]
async fn a_wrong_password_is_tried_twice_and_then_the_account_is_parked_until_its_user_logs_in() {
    limited(async {
        let backend = backend().await;
        backend.add_account("bob", PASSWORD.as_bytes());
        let world = world(&backend).await;
        world.register("bob", &[("INBOX", told(2, 1, 0, 0))]).await;
        let mut watching = world.watch();
        backend.wait_until(|c| c.idling == 2).await;
        backend.set_password("alice", b"changed").unwrap();
        backend.drop_connections();

        backend.wait_until(|c| c.refused.get("alice") == Some(&2)).await;
        world.until_parked("alice", true).await;
        let reason = world.parked("alice").await.unwrap();
        assert!(reason.contains("AUTHENTICATIONFAILED"), "{reason}");
        // In this time many more tries would have been made.
        backend.wait_until(|c| c.idling == 1 && c.connections == 1).await;
        for _ in 0..3 {
            reconnected(&backend).await;
        }
        backend.deliver("bob", "INBOX", MAIL).unwrap();
        while !watching.next().await.contains("next 2") {}
        assert_eq!(backend.counters().refused["alice"], 2);
        watching.stop().await;

        let watching = world.watch();
        backend.wait_until(|c| c.idling == 1).await;
        assert_eq!(backend.counters().refused["alice"], 2, "a restart does not try again");
        watching.logged_in("alice", "changed").await;
        backend.wait_until(|c| c.idling == 2).await;
        world.until_parked("alice", false).await;
        assert_eq!(world.stored_password("alice").await, b"changed");
        assert_eq!(backend.counters().refused["alice"], 2);
        watching.stop().await;
    })
    .await;
}

/// The new password may be old, too, by the time that it is tried.
#[tokio::test]
async fn a_password_that_was_refused_twice_is_not_tried_behind_a_new_one() {
    limited(async {
        let backend = backend().await;
        backend.add_account("bob", PASSWORD.as_bytes());
        let world = world(&backend).await;
        world.register("bob", &[("INBOX", told(2, 1, 0, 0))]).await;
        let watching = world.watch();
        backend.wait_until(|c| c.idling == 2).await;
        backend.set_password("alice", b"third").unwrap();
        backend.drop_connections();
        backend.wait_until(|c| c.refused.get("alice") == Some(&2)).await;
        world.until_parked("alice", true).await;

        watching.logged_in("alice", "second").await;
        backend.wait_until(|c| c.refused["alice"] > 2).await;
        watching.until_of("alice", "parked").await;
        watching.logged_in("alice", "third").await;
        backend.wait_until(|c| c.idling == 2).await;
        assert_eq!(backend.counters().refused["alice"], 4, "the second one twice as well");
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_login_with_the_same_password_ends_the_parking_for_good() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        backend.set_password("alice", b"changed").unwrap();
        let watching = world.watch();
        world.until_parked("alice", true).await;
        backend.set_password("alice", PASSWORD.as_bytes()).unwrap();
        watching.logged_in("alice", PASSWORD).await;
        backend.wait_until(|c| c.idling == 1).await;
        assert_eq!(world.parked("alice").await, None);
        watching.stop().await;
        idling(&world, &backend).await.stop().await;
        assert_eq!(backend.counters().refused["alice"], 1);
    })
    .await;
}

#[tokio::test]
async fn a_program_that_ends_between_two_tries_does_not_count_anew() {
    limited(async {
        let backend = backend().await;
        let mut world = world(&backend).await;
        let watching = idling(&world, &backend).await;
        backend.set_password("alice", b"changed").unwrap();
        watching.stop().await;
        // Killed before it could note anything, it may have tried already: once more and no more.
        let watching = world.watch();
        assert!(watching.until("parked").await.reason.is_some());
        world.until_parked("alice", true).await;
        assert_eq!(backend.stale_tries("alice").unwrap(), [1]);
        watching.logged_in("alice", "changed").await;
        backend.wait_until(|c| c.idling == 1).await;
        watching.stop().await;

        // What a first try has shown is known after an end before the second.
        (world.watch.retry_min, world.watch.retry_max) =
            (Duration::from_secs(8), Duration::from_secs(8));
        let watching = idling(&world, &backend).await;
        backend.set_password("alice", b"again").unwrap();
        backend.say_bye();
        world.until_parked("alice", true).await;
        watching.stop().await;
        let watching = world.watch();
        assert!(watching.until("parked").await.reason.is_some());
        watching.stop().await;
        assert_eq!(backend.stale_tries("alice").unwrap(), [1, 1]);
    })
    .await;
}

#[tokio::test]
async fn a_second_try_that_succeeds_ends_the_parking() {
    limited(async {
        let backend = backend().await;
        let mut world = world(&backend).await;
        (world.watch.retry_min, world.watch.retry_max) =
            (Duration::from_secs(8), Duration::from_secs(8));
        let watching = idling(&world, &backend).await;
        backend.set_password("alice", b"changed").unwrap();
        backend.drop_connections();
        world.until_parked("alice", true).await;
        backend.set_password("alice", PASSWORD.as_bytes()).unwrap();
        backend.wait_until(|c| c.idling == 1).await;
        assert_eq!(world.parked("alice").await, None);
        assert_eq!(backend.counters().refused["alice"], 1);
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_new_password_that_could_not_be_stored_is_stored_at_the_next_login() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let watching = idling(&world, &backend).await;
        let file = world.folder.path().join("mailchime.db");
        let mut beside =
            SqliteConnection::connect(&format!("sqlite://{}", file.display())).await.unwrap();
        let failing = "create trigger fail before update on account begin \
                       select raise(abort, 'as if'); end";
        beside.execute(failing).await.unwrap();
        backend.set_password("alice", b"changed").unwrap();
        watching.logged_in("alice", "changed").await;
        backend.drop_connections();
        // By now it has been taken, and not stored.
        backend.wait_until(|c| c.logins["alice"] == 2 && c.idling == 1).await;
        assert_eq!(world.stored_password("alice").await, PASSWORD.as_bytes());
        beside.execute("drop trigger fail").await.unwrap();
        watching.logged_in("alice", "changed").await;
        until(async || world.stored_password("alice").await == b"changed").await;
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_account_that_cannot_be_removed_keeps_no_other_from_being_watched() {
    limited(async {
        let backend = backend().await;
        backend.add_account("bob", PASSWORD.as_bytes());
        let world = world(&backend).await;
        world.register("bob", &[("INBOX", told(2, 1, 0, 0))]).await;
        let file = world.folder.path().join("mailchime.db");
        let mut beside =
            SqliteConnection::connect(&format!("sqlite://{}", file.display())).await.unwrap();
        let silent = "update subscription set heard_at = 1 where account = \
                      (select id from account where name = 'bob')";
        let failing = "create trigger refuse before delete on subscription begin \
                       select raise(abort, 'as if'); end";
        beside.execute(silent).await.unwrap();
        beside.execute(failing).await.unwrap();
        let watching = world.watch();
        backend.wait_until(|c| c.idling == 1).await;
        assert_eq!(backend.counters().logins.get("bob"), None, "it is over all the same");
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_backend_in_trouble_does_not_park_an_account() {
    limited(async {
        let backend = backend().await;
        backend.behave(|behaviour| behaviour.unavailable = true);
        let world = world(&backend).await;
        let watching = world.watch();
        backend.wait_until(|c| c.refused.get("alice").is_some_and(|refused| *refused >= 5)).await;
        assert_eq!(world.parked("alice").await, None);
        backend.behave(|behaviour| behaviour.unavailable = false);
        backend.wait_until(|c| c.idling == 1).await;
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_broken_connection_between_two_refusals_does_not_make_them_first_ones() {
    limited(async {
        let backend = backend().await;
        let mut world = world(&backend).await;
        // Time for trouble after the first refusal, and none after that.
        (world.watch.retry_min, world.watch.retry_max) =
            (Duration::from_secs(3), Duration::from_secs(3));
        let watching = idling(&world, &backend).await;
        backend.set_password("alice", b"changed").unwrap();
        backend.drop_connections();
        backend.wait_until(|c| c.refused.get("alice") == Some(&1)).await;
        backend.behave(|behaviour| behaviour.unavailable = true);
        backend.wait_until(|c| c.refused.get("alice") == Some(&2)).await;
        backend.behave(|behaviour| behaviour.unavailable = false);
        watching.until("parked").await;
        assert_eq!(backend.counters().refused["alice"], 3, "wrong, unavailable, wrong");
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_new_password_is_kept_while_the_connection_goes_on_undisturbed() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let watching = idling(&world, &backend).await;
        let before = backend.counters().commands;
        // When the second is stored, whatever the first had caused has been done.
        for password in ["another", "changed"] {
            backend.set_password("alice", password.as_bytes()).unwrap();
            watching.logged_in("alice", password).await;
            until(async || world.stored_password("alice").await == password.as_bytes()).await;
        }
        assert_eq!(backend.counters().commands, before, "a login is no reason to look");
        backend.drop_connections();
        let seen = backend.wait_until(|c| c.logins["alice"] == 2 && c.idling == 1).await;
        assert_eq!(seen.refused["alice"], 1, "what worked so far is tried once: {seen:?}");
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_password_that_cannot_be_read_is_waited_for_and_not_parked() {
    limited(async {
        let backend = backend().await;
        backend.add_account("bob", PASSWORD.as_bytes());
        let mut world = world(&backend).await;
        let key = world.folder.path().join("another key");
        let right = std::mem::replace(&mut world.key_file, key.clone());
        world.register("bob", &[("INBOX", told(2, 1, 0, 0))]).await;
        let watching = world.watch();
        backend.wait_until(|c| c.idling == 1).await;
        for _ in 0..3 {
            reconnected(&backend).await;
        }
        assert!(!backend.counters().logins.contains_key("alice"));
        watching.stop().await;
        // With the key of that time in its place nothing is lost.
        assert_eq!(world.parked("alice").await, None);
        world.key_file = right;
        let watching = world.watch();
        backend.wait_until(|c| c.logins.contains_key("alice")).await;
        watching.stop().await;
        // And a login heals it without.
        world.key_file = key;
        let watching = world.watch();
        watching.logged_in("alice", PASSWORD).await;
        backend.wait_until(|c| c.idling == 2).await;
        assert_eq!(world.stored_password("alice").await, PASSWORD.as_bytes());
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_lost_connection_is_replaced_by_one_and_ever_more_slowly() {
    limited(async {
        let backend = backend().await;
        let mut world = world(&backend).await;
        (world.watch.retry_min, world.watch.retry_max) =
            (Duration::from_millis(40), Duration::from_secs(1));
        let watching = idling(&world, &backend).await;
        let began = Instant::now();
        for _ in 0..3 {
            reconnected(&backend).await;
            assert_eq!(backend.counters().connections, 1);
        }
        // At least half of 40, 80 and 160.
        assert!(began.elapsed() >= Duration::from_millis(140), "{:?}", began.elapsed());
        assert_eq!(backend.counters().accepted, 4);
        watching.stop().await;
        backend.wait_until(|c| c.connections == 0).await;
    })
    .await;
}

#[tokio::test]
async fn a_watcher_tells_what_it_does() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let mut watching = idling(&world, &backend).await;
        let told = watching.until("watching").await;
        assert_eq!((told.account.as_str(), told.mode), ("alice", Some("idle")));
        assert_eq!((told.last_event_at, told.next_try_at, told.reason), (None, None, None));
        let bob = Some(Account::from_login("bob"));
        assert_eq!(watching.inquirer.watchers(bob).await.unwrap(), []);

        backend.deliver("alice", "INBOX", MAIL).unwrap();
        watching.next().await;
        assert!(watching.until("watching").await.last_event_at.is_some());

        backend.refuse().await;
        let before = Timestamp::now();
        backend.drop_connections();
        let told = watching.until("backing_off").await;
        let now = Timestamp::now();
        assert!((before.0..=now.0).contains(&told.since), "{told:?}");
        let latest = now.plus(world.watch.retry_max);
        assert!((before.0..=latest.0).contains(&told.next_try_at.unwrap()), "{told:?}");
        assert!(told.reason.is_some() && told.mode.is_none(), "{told:?}");

        backend.set_password("alice", b"changed").unwrap();
        backend.resume().await.unwrap();
        let told = watching.until("parked").await;
        assert!(told.reason.as_ref().unwrap().contains("AUTHENTICATIONFAILED"), "{told:?}");
        watching.stop().await;

        // The reason is still known when the program starts anew.
        let watching = world.watch();
        assert_eq!(watching.until("parked").await.reason, told.reason);
        backend.behave(|b| b.remove("IDLE"));
        watching.logged_in("alice", "changed").await;
        assert_eq!(watching.until("watching").await.mode, Some("poll"));
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_account_without_a_device_is_not_watched() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let mut watching = idling(&world, &backend).await;
        // A rumour is checked.
        watching.unwatched.send(Account::from_login("alice")).await.unwrap();
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        while !watching.next().await.contains("confirmed") {}
        assert_eq!(backend.counters().logins["alice"], 1);

        backend.wait_until(|c| c.idling == 1).await;
        world.unregister("alice").await;
        watching.unwatched.send(Account::from_login("alice")).await.unwrap();
        let seen = backend.wait_until(|c| c.connections == 0).await;
        assert_eq!(seen.commands["LOGOUT"], 1);

        world.register("alice", &[("INBOX", told(1, 2, 1, 1))]).await;
        watching.registered("alice").await;
        backend.wait_until(|c| c.idling == 1).await;
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_watcher_that_finds_no_device_logs_out_and_waits_for_one() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let watching = idling(&world, &backend).await;
        world.unregister("alice").await;
        // Nobody has told the supervisor.
        backend.drop_connections();
        backend.wait_until(|c| c.connections == 0).await;
        world.register("alice", &[("INBOX", told(1, 1, 0, 0))]).await;
        watching.registered("alice").await;
        backend.wait_until(|c| c.idling == 1).await;
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn the_end_does_not_wait_for_a_push_side_that_takes_nothing() {
    limited(async {
        let backend = backend().await;
        backend.create_mailbox("alice", "Notes").unwrap();
        backend.create_mailbox("alice", "Sent").unwrap();
        for mailbox in ["INBOX", "Notes", "Sent"] {
            backend.deliver("alice", mailbox, MAIL).unwrap();
        }
        let mut world = WatchWorld::new(backend.address()).await;
        world.queue = 1;
        let mailboxes =
            [("INBOX", told(1, 1, 0, 0)), ("Notes", told(2, 1, 0, 0)), ("Sent", told(3, 1, 0, 0))];
        world.register("alice", &mailboxes).await;
        let watching = world.watch();
        // The second of three changes finds the queue full.
        backend.wait_until(|c| c.commands.get("STATUS") == Some(&3)).await;
        watching.stop().await;
        backend.wait_until(|c| c.connections == 0).await;
    })
    .await;
}

#[tokio::test]
async fn the_push_side_gets_word_of_each_registration() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let mut watching = idling(&world, &backend).await;
        watching.registered("alice").await;
        assert_eq!(watching.word_of_devices().await, Account::from_login("alice"));
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_push_side_that_is_busy_gets_word_of_each_registration_later_and_no_session_waits() {
    limited(async {
        let backend = backend().await;
        let mut world = world(&backend).await;
        world.queue = 1;
        let mut watching = world.watch();
        let users = ["alice", "bob", "carol", "dave"];
        for user in users {
            watching.registered(user).await;
        }
        let all = async || watching.inquirer.watchers(None).await.unwrap().len() == users.len();
        until(all).await;
        let mut told = Vec::new();
        for _ in users {
            let word = soon("word of a registration", watching.word_of_devices()).await;
            told.push(word.as_str().to_owned());
        }
        assert_eq!(told, users);
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn without_the_database_nobody_is_logged_in_and_the_end_comes_all_the_same() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let watching = idling(&world, &backend).await;
        world.store.close().await;
        backend.drop_connections();
        backend.wait_until(|c| c.connections == 0).await;
        watching.registered("alice").await;
        watching.stop().await;
        assert_eq!(backend.counters().accepted, 1);
    })
    .await;
}
