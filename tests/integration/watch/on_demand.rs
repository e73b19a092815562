//! Accounts without a connection, at the demo server.

use std::time::{Duration, Instant};

use mailchime::config::{BackendConfig, BackendTls, CredentialsMode, RouteConfig, WatchConnection};
use mailchime::demo::backend::{Counters, DemoBackend};
use mailchime::metrics::Watching as Mode;
use mailchime::model::{Account, Hint, Mailbox, MailboxEvent, SessionEvent, Snapshot, Timestamp};
use mailchime::store::DueMark;
use sqlx::{Connection, Executor, SqliteConnection};

use super::hints::hint;
use super::mail::backend;
use super::nodes::Others;
use crate::support::stage::{IDLE, Stage};
use crate::support::watching::{PASSWORD, WatchWorld, Watching, told};
use crate::support::{later, limited, until};

pub(super) const MAIL: &str = "Subject: hello\r\n\r\nHi there\r\n";

/// Alice's INBOX is empty, and her devices know it. Nothing is swept twice.
pub(super) async fn world(backend: &DemoBackend) -> WatchWorld {
    let mut world = WatchWorld::new(backend.address()).await;
    world.watch.connection = WatchConnection::OnDemand;
    world.register("alice", &[("INBOX", told(1, 1, 0, 0))]).await;
    world
}

/// A sweep that began then was to look at the account.
pub(super) async fn mark(world: &WatchWorld, user: &str, at: i64) {
    let account = Account::from_login(user);
    let (mailbox, state, shown_flags) = (None, None, false);
    let (is_due, for_another_node) = (true, false);
    let mark = DueMark { account, mailbox, state, shown_flags, is_due, for_another_node };
    world.store.mark_due(&[], &[mark], Timestamp(at)).await.unwrap();
}

/// The sweep after the start is over, and nobody is connected.
pub(super) async fn resting(world: &WatchWorld, backend: &DemoBackend) -> Watching {
    let watching = world.watch();
    backend.wait_until(|c| c.commands.contains_key("LOGOUT") && c.connections == 0).await;
    until_resting(world, &watching).await;
    watching
}

pub(super) async fn until_resting(world: &WatchWorld, watching: &Watching) {
    while !world.store.due_accounts().await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    let status = watching.until("watching").await;
    assert_eq!(status.mode, Some("on_demand"));
}

#[tokio::test]
async fn a_hint_with_numbers_is_told_without_a_login() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let mut watching = resting(&world, &backend).await;
        assert_eq!(watching.watched(Mode::OnDemand), 1);
        assert_eq!(watching.until("watching").await.last_hint_at, None);
        let inbox = || Some(Mailbox::inbox());
        hint(&watching, inbox(), MailboxEvent::MessageNew, told(1, 2, 1, 1)).await;
        watching.expect(&["INBOX: new mail, next 2 of 1 with 1 unseen"]).await;
        hint(&watching, inbox(), MailboxEvent::MessageRead, told(1, 2, 1, 0)).await;
        watching.expect(&["INBOX: quiet, next 2 of 1 with 0 unseen"]).await;
        until_resting(&world, &watching).await;
        assert_eq!(backend.counters().accepted, 1, "that of the sweep after the start");
        watching.stop().await;
    })
    .await;
}

/// Nothing of it can be due while it is open whose mailboxes they are, so it is not well either.
#[tokio::test]
async fn an_account_whose_name_leaves_its_backend_open_since_a_reload_waits() {
    const NAME: &str = "alice@a.example\\shared";
    limited(async {
        let backend = backend().await;
        backend.add_account(NAME, PASSWORD.as_bytes());
        let mut world = WatchWorld::new(backend.address()).await;
        world.watch.connection = WatchConnection::OnDemand;
        world.register(NAME, &[("INBOX", told(1, 1, 0, 0))]).await;
        let watching = resting(&world, &backend).await;
        let mut config = world.config();
        let (host, port) = (backend.address().ip().to_string(), backend.address().port());
        let backend = BackendConfig::new(host, port, BackendTls::None);
        config.routes.push(RouteConfig { domain: "a.example".into(), backend });
        watching.reload(&config);
        let (account, seen_at) = (Account::from_login(NAME), Instant::now());
        let (mailbox, state) = (Some(Mailbox::inbox()), Snapshot::default());
        let hint = Hint { account, mailbox, event: MailboxEvent::MessageNew, state, seen_at };
        watching.inquirer.hints(vec![hint]).await.unwrap();
        let away = watching.until("backing_off").await;
        assert!(away.next_try_at.is_some(), "{away:?}");
        for _ in 0..50 {
            tokio::task::yield_now().await;
            assert_eq!(watching.until("backing_off").await.reason, away.reason);
            assert_eq!(watching.watched(Mode::BackingOff), 1);
        }
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn the_sweep_finds_what_was_missed_and_goes_on_where_it_stopped() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        for user in ["bob", "carol"] {
            backend.add_account(user, PASSWORD.as_bytes());
            world.register(user, &[("INBOX", told(1, 1, 0, 0))]).await;
        }
        // Carol was still to be asked for when the program last ended.
        mark(&world, "carol", 1).await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        let mut watching = world.watch();
        watching.expect(&["INBOX: new mail, next 2 of 1 with 1 unseen"]).await;
        let all = |c: &Counters| c.logins.len() == 3 && c.connections == 0;
        backend.wait_until(all).await;
        while !world.store.due_accounts().await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_sweep_comes_again() {
    limited(async {
        let backend = backend().await;
        let mut world = world(&backend).await;
        world.watch.sweep = Duration::from_secs(2);
        let mut watching = resting(&world, &backend).await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        watching.expect(&["INBOX: new mail, next 2 of 1 with 1 unseen"]).await;
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_account_is_asked_for_after_a_session_of_its_user_and_not_at_its_login() {
    limited(async {
        let backend = backend().await;
        let mut world = world(&backend).await;
        world.watch.poll_interval = Duration::from_secs(1);
        let mut watching = resting(&world, &backend).await;
        watching.logged_in("alice", PASSWORD).await;
        watching.logged_in("alice", "changed").await;
        while world.stored_password("alice").await != b"changed" {
            tokio::task::yield_now().await;
        }
        assert_eq!(backend.counters().accepted, 1, "that of the sweep after the start");
        backend.set_password("alice", b"changed").unwrap();
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        // Sessions that end within the same interval are one reason.
        for _ in 0..3 {
            let account = Account::from_login("alice");
            watching.sessions.send(SessionEvent::Ended { account }).await.unwrap();
        }
        watching.expect(&["INBOX: new mail, next 2 of 1 with 1 unseen"]).await;
        let seen = backend.wait_until(|c| c.connections == 0).await;
        assert_eq!(seen.logins["alice"], 2);
        watching.stop().await;
    })
    .await;
}

/// What the other node was told reaches this one with its numbers.
#[tokio::test]
async fn numbers_that_another_node_was_told_spare_the_login() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let (others, cluster) = Others::new(true);
        let mut watching = world.watch_beside(cluster);
        backend.wait_until(|c| c.commands.contains_key("LOGOUT") && c.connections == 0).await;
        until_resting(&world, &watching).await;
        let told_there = |state| DueMark {
            account: Account::from_login("alice"),
            mailbox: Some(Mailbox::inbox()),
            state,
            shown_flags: false,
            is_due: true,
            for_another_node: true,
        };
        let full = told_there(Some(told(1, 2, 1, 1)));
        world.store.mark_due(&[], &[full], Timestamp::now()).await.unwrap();
        others.tell("alice", false).await;
        watching.expect(&["INBOX: new mail, next 2 of 1 with 1 unseen"]).await;
        until_resting(&world, &watching).await;
        assert_eq!(backend.counters().accepted, 1, "that of the sweep after the start");
        // Without numbers it has to be asked for.
        for _ in 0..2 {
            backend.deliver("alice", "INBOX", MAIL).unwrap();
        }
        world.store.mark_due(&[], &[told_there(None)], Timestamp::now()).await.unwrap();
        others.tell("alice", false).await;
        watching.expect(&["INBOX: new mail, next 3 of 2 with 2 unseen"]).await;
        until_resting(&world, &watching).await;
        assert_eq!(backend.counters().accepted, 2);
        watching.stop().await;
    })
    .await;
}

/// While a node was away its events were lost.
#[tokio::test]
async fn all_are_asked_for_when_the_nodes_are_others() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let (others, cluster) = Others::new(true);
        let mut watching = world.watch_beside(cluster);
        backend.wait_until(|c| c.commands.contains_key("LOGOUT") && c.connections == 0).await;
        until_resting(&world, &watching).await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        others.divide(true, 1);
        watching.expect(&["INBOX: new mail, next 2 of 1 with 1 unseen"]).await;
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_account_is_asked_for_with_credentials_in_memory_and_as_a_master() {
    for mode in [CredentialsMode::Memory, CredentialsMode::Master] {
        limited(async {
            let backend = backend().await;
            let mut world = world(&backend).await;
            world.credentials = mode;
            let mut watching = match mode {
                CredentialsMode::Master => {
                    // As the demo server takes it: the master's name behind the user's.
                    backend.add_account("alice*master", PASSWORD.as_bytes());
                    backend.deliver("alice*master", "INBOX", MAIL).unwrap();
                    world.watch()
                }
                _ => {
                    backend.deliver("alice", "INBOX", MAIL).unwrap();
                    let watching = world.watch();
                    watching.until("parked").await;
                    assert_eq!(backend.counters().accepted, 0);
                    watching.logged_in("alice", PASSWORD).await;
                    watching
                }
            };
            let line = watching.next().await;
            assert!(line.starts_with("INBOX: new mail"), "{line}");
            backend.wait_until(|c| c.accepted == 1 && c.connections == 0).await;
            let status = watching.until("watching").await;
            assert_eq!(status.mode, Some("on_demand"));
            watching.stop().await;
        })
        .await;
    }
}

/// `[[route]] connection` decides for the accounts of its domain.
#[tokio::test]
async fn a_route_may_have_another_connection() {
    limited(async {
        let backend = backend().await;
        let mut world = WatchWorld::new(backend.address()).await;
        let routes = &mut world.watch.connection_of_routes;
        routes.insert("example.com".to_owned(), WatchConnection::OnDemand);
        for user in ["bob@example.com", "bob@example.org"] {
            backend.add_account(user, PASSWORD.as_bytes());
            world.register(user, &[("INBOX", told(1, 1, 0, 0))]).await;
        }
        let watching = world.watch();
        let held = |c: &Counters| {
            c.logins.contains_key("bob@example.com") && c.idling == 1 && c.connections == 1
        };
        backend.wait_until(held).await;
        watching.until_of("bob@example.com", "watching").await;
        watching.until_of("bob@example.org", "watching").await;
        let all = watching.inquirer.watchers(None).await.unwrap();
        let modes: Vec<_> = all.iter().map(|it| (it.account.as_str(), it.mode)).collect();
        let expected = [("bob@example.com", "on_demand"), ("bob@example.org", "idle")];
        assert_eq!(modes, expected.map(|(account, mode)| (account, Some(mode))));
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_refused_password_parks_the_account_until_its_user_logs_in() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let mut watching = resting(&world, &backend).await;
        backend.set_password("alice", b"changed").unwrap();
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        let inbox = Some(Mailbox::inbox());
        hint(&watching, inbox, MailboxEvent::MessageNew, Snapshot::default()).await;
        watching.expect(&["INBOX: new mail, announced"]).await;
        world.until_parked("alice", true).await;
        watching.logged_in("alice", "changed").await;
        watching.expect(&["INBOX: confirmed, next 2 of 1 with 1 unseen"]).await;
        world.until_parked("alice", false).await;
        watching.stop().await;
    })
    .await;
}

/// More of them than may be asked for at once take no place of the sweep while they wait.
#[tokio::test]
async fn a_sweep_goes_on_beside_many_accounts_that_are_parked() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        for number in 0..260 {
            let user = format!("parked{number}");
            world.register(&user, &[("INBOX", told(1, 1, 0, 0))]).await;
            let (account, now) = (Account::from_login(&user), Timestamp::now());
            world.store.refused(&account, &world.id(), 10, Some("no"), now).await.unwrap();
        }
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        let mut watching = world.watch();
        watching.expect(&["INBOX: new mail, next 2 of 1 with 1 unseen"]).await;
        watching.stop().await;
    })
    .await;
}

/// It is asked for again by the next sweep.
#[tokio::test]
async fn a_mailbox_that_is_gone_does_not_stay_due() {
    limited(async {
        let backend = backend().await;
        let mut world = world(&backend).await;
        world.watch.sweep = Duration::from_secs(2);
        let inbox = ("INBOX", told(1, 1, 0, 0));
        world.register("alice", &[inbox, ("Gone", told(1, 1, 0, 0))]).await;
        let mut watching = resting(&world, &backend).await;
        backend.create_mailbox("alice", "Gone").unwrap();
        backend.deliver("alice", "Gone", MAIL).unwrap();
        let line = watching.next().await;
        assert!(line.starts_with("Gone: new mail"), "{line}");
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_mailbox_whose_state_is_refused_for_now_stays_due_on_disk_and_is_asked_for_again_in_a_minute()
 {
    limited(async {
        let mut stage = Stage::new().await;
        stage.world.watch.connection = WatchConnection::OnDemand;
        stage.world.watch.poll_interval = Duration::from_mins(1);
        let told_of = [("INBOX", told(7, 10, 5, 2)), ("Team", told(1, 1, 0, 0))];
        stage.world.register("alice", &told_of).await;
        let mut watching = stage.world.watch();
        let mut peer = stage.accept().await;
        peer.play(IDLE).await;
        peer.play(
            "\
C: w1 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
C: w2 STATUS \"Team\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2)
S: w1 OK done
S: w2 NO [INUSE] later
C: w3 LOGOUT
S: * BYE
S: w3 OK out
",
        )
        .await;
        let alice = Account::from_login("alice");
        let home = watching.backends.id_of(&alice).unwrap();
        let due = async || {
            let watched = stage.world.store.watched_and_due(&alice, &home, Timestamp(0));
            watched.await.unwrap().1
        };
        let team_alone = async || {
            until(async || due().await.iter().all(|due| !due.mailbox.is_inbox())).await;
            let due: Vec<_> = due().await.into_iter().map(|due| due.mailbox).collect();
            assert_eq!(due, [Mailbox::new("Team")]);
        };
        team_alone().await;
        let reason = watching.until("watching").await.reason.unwrap();
        assert!(reason.starts_with("it is asked for again soon"), "{reason}");

        // News of another mailbox neither takes its mark away nor puts the visit off.
        let inbox = Some(Mailbox::inbox());
        hint(&watching, inbox, MailboxEvent::MessageNew, told(7, 11, 6, 3)).await;
        watching.expect(&["INBOX: new mail, next 11 of 6 with 3 unseen"]).await;
        team_alone().await;

        later(Duration::from_mins(1)).await;
        let mut peer = stage.accept().await;
        peer.play(IDLE).await;
        peer.play(
            "\
C: w1 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
C: w2 STATUS \"Team\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 6 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 3)
S: w1 OK done
S: * STATUS Team (MESSAGES 1 UIDNEXT 2 UIDVALIDITY 1 UNSEEN 1)
S: w2 OK done
C: w3 LOGOUT
S: * BYE
S: w3 OK out
",
        )
        .await;
        watching.expect(&["Team: new mail, next 2 of 1 with 1 unseen"]).await;
        until(async || due().await.is_empty()).await;
        assert_eq!(watching.until("watching").await.reason, None);
        watching.stop().await;
    })
    .await;
}

/// What they told of is found without them.
#[tokio::test]
async fn events_that_were_missed_have_all_accounts_asked_for() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let mut watching = resting(&world, &backend).await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        for _ in 0..3 {
            watching.inquirer.missed_events();
        }
        watching.expect(&["INBOX: new mail, next 2 of 1 with 1 unseen"]).await;
        let seen = backend.wait_until(|c| c.connections == 0).await;
        assert_eq!(seen.accepted, 2, "they are one reason");
        watching.stop().await;
    })
    .await;
}

/// The numbers of an event say nothing of what came before somebody registered.
#[tokio::test]
async fn numbers_do_not_spare_the_first_look_at_a_mailbox() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let watching = resting(&world, &backend).await;
        backend.create_mailbox("alice", "Work").unwrap();
        let inbox = ("INBOX", told(1, 1, 0, 0));
        world.register("alice", &[inbox, ("Work", Snapshot::default())]).await;
        let work = Some(Mailbox::new("Work"));
        hint(&watching, work, MailboxEvent::FlagsSet, told(2, 1, 0, 0)).await;
        backend.wait_until(|c| c.accepted == 2 && c.connections == 0).await;
        watching.stop().await;
    })
    .await;
}

/// Word of another node that comes while an account is asked for is read after that.
#[tokio::test]
async fn word_of_another_node_during_a_visit_is_not_lost() {
    limited(async {
        let mut stage = Stage::new().await;
        stage.world.watch.connection = WatchConnection::OnDemand;
        let (others, cluster) = Others::new(true);
        let mut watching = stage.world.watch_beside(cluster);
        let mut peer = stage.accept().await;
        peer.play(IDLE).await;
        let status = peer.line().await;
        assert!(status.starts_with("w1 STATUS"), "{status}");
        let mark = DueMark {
            account: Account::from_login("alice"),
            mailbox: Some(Mailbox::inbox()),
            state: Some(told(7, 11, 6, 3)),
            shown_flags: false,
            is_due: true,
            for_another_node: true,
        };
        stage.world.store.mark_due(&[], &[mark], Timestamp::now()).await.unwrap();
        others.tell("alice", false).await;
        watching.word_of_devices().await;
        peer.play(
            "\
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2)
S: w1 OK done
C: w2 LOGOUT
S: * BYE
S: w2 OK out
",
        )
        .await;
        watching.expect(&["INBOX: new mail, next 11 of 6 with 3 unseen"]).await;
        assert!(watching.until("watching").await.last_hint_at.is_some());
        watching.stop().await;
    })
    .await;
}

/// Where the database fails when it is to note that a mailbox was looked at, the mailbox is due no longer than it fails.
#[tokio::test]
async fn a_mark_that_the_database_does_not_take_away_has_its_mailbox_looked_at_once_more() {
    limited(async {
        let mut stage = Stage::new().await;
        stage.world.watch.connection = WatchConnection::OnDemand;
        let url = stage.world.reopened(Duration::from_millis(100)).await;
        let watching = stage.world.watch();
        let mut beside = SqliteConnection::connect(&url).await.unwrap();
        let visit = inbox(1) + "C: w2 LOGOUT\nS: * BYE\nS: w2 OK out\n";
        let mut peer = stage.accept().await;
        peer.play(IDLE).await;
        beside.execute("begin immediate").await.unwrap();
        peer.play(&visit).await;
        let mut peer = stage.accept().await;
        beside.execute("rollback").await.unwrap();
        peer.play(IDLE).await;
        peer.play(&visit).await;
        until(async || stage.world.store.due_accounts().await.unwrap().is_empty()).await;
        watching.stop().await;
    })
    .await;
}

/// The dialogue of one visit, whose command for INBOX has this tag and is answered.
pub(super) fn inbox(tag: u32) -> String {
    format!(
        "\
C: w{tag} STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2)
S: w{tag} OK done
"
    )
}

/// Each visit has a task of its own.
#[tokio::test]
async fn a_mailbox_that_ends_connections_is_left_out_of_later_visits_too() {
    limited(async {
        let mut stage = Stage::new().await;
        stage.world.watch.connection = WatchConnection::OnDemand;
        let told_of = [("INBOX", told(7, 10, 5, 2)), ("Team", told(8, 8, 3, 0))];
        stage.world.register("alice", &told_of).await;
        let watching = stage.world.watch();
        let team = "STATUS \"Team\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)";
        let both = inbox(1).replacen("\nS:", &format!("\nC: w2 {team}\nS:"), 1);
        let alone = format!("{}C: w2 {team}\n", inbox(1));
        for dialogue in [both, alone] {
            let mut peer = stage.accept().await;
            peer.play(IDLE).await;
            peer.play(&dialogue).await;
        }
        let left_out = async || {
            let shown = watching.until("watching").await.left_out;
            shown.into_iter().map(|it| it.mailbox).collect::<Vec<_>>()
        };
        until(async || left_out().await == ["Team"]).await;
        for _ in 0..2 {
            let mailbox = Some(Mailbox::inbox());
            hint(&watching, mailbox, MailboxEvent::MessageExpunge, Snapshot::default()).await;
            let mut peer = stage.accept().await;
            peer.play(IDLE).await;
            peer.play(&inbox(1)).await;
            peer.play("C: w2 LOGOUT\nS: * BYE\nS: w2 OK out\n").await;
            assert_eq!(left_out().await, ["Team"]);
        }
        // Nobody logs in for what is left out.
        let team = Some(Mailbox::new("Team"));
        hint(&watching, team, MailboxEvent::MessageNew, Snapshot::default()).await;
        let inbox = Some(Mailbox::inbox());
        hint(&watching, inbox, MailboxEvent::MessageExpunge, Snapshot::default()).await;
        let mut peer = stage.accept().await;
        peer.play(IDLE).await;
        peer.play(&self::inbox(1)).await;
        watching.stop().await;
    })
    .await;
}
