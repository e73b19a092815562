//! Accounts without a connection that are parked: they wait without a task, and hear of events all the same.

use std::time::{Duration, Instant};

use mailchime::config::{CredentialsMode, WatchConnection};
use mailchime::demo::backend::DemoBackend;
use mailchime::metrics::Watching as Mode;
use mailchime::model::{
    AcceptedLogin, Account, BackendId, Hint, Mailbox, MailboxEvent, Snapshot, Timestamp,
};
use mailchime::store::{CredentialSource, DueMark};

use super::away::tasks;
use super::hints::hint;
use super::logins::{
    USERS, everybody_is_known, four, nobody_is_known, refused, until_all, until_quiet,
};
use super::mail::backend;
use super::nodes::{Others, store_password};
use super::on_demand::{inbox as state, resting, until_resting, world};
use crate::support::stage::{IDLE, Stage};
use crate::support::watching::{PASSWORD, WatchWorld, Watching, credentials, told};
use crate::support::{later, limited, patient, until};

const MAIL: &str = "Subject: hello\r\n\r\nHi there\r\n";

/// More of them than may be asked for at once.
const MANY: usize = 300;

/// The user's password was refused before the program starts.
async fn refused_before(world: &WatchWorld, user: &str) {
    let (account, now) = (Account::from_login(user), Timestamp::now());
    world.store.refused(&account, &world.id(), 10, Some("no"), now).await.unwrap();
}

#[tokio::test]
async fn what_events_say_is_told_while_the_account_waits_for_its_login() {
    for credentials in [CredentialsMode::Memory, CredentialsMode::Stored] {
        limited(async {
            let backend = backend().await;
            let mut world = world(&backend).await;
            world.credentials = credentials;
            let in_memory = credentials == CredentialsMode::Memory;
            if !in_memory {
                refused_before(&world, "alice").await;
            }
            let mut watching = world.watch();
            watching.until("parked").await;
            if in_memory {
                watching.expect(&["alice is to log in"]).await;
            }
            let inbox = || Some(Mailbox::inbox());
            hint(&watching, inbox(), MailboxEvent::MessageNew, told(1, 2, 1, 1)).await;
            watching.expect(&["INBOX: new mail, next 2 of 1 with 1 unseen"]).await;
            hint(&watching, inbox(), MailboxEvent::MessageRead, told(1, 2, 1, 0)).await;
            watching.expect(&["INBOX: quiet, next 2 of 1 with 0 unseen"]).await;
            hint(&watching, inbox(), MailboxEvent::MessageNew, Snapshot::default()).await;
            watching.expect(&["INBOX: new mail, announced"]).await;
            assert!(watching.until("parked").await.last_hint_at.is_some());
            let seen = backend.counters();
            assert_eq!((seen.accepted, seen.refused.len()), (0, 0), "nobody has tried to log in");
            for _ in 0..2 {
                backend.deliver("alice", "INBOX", MAIL).unwrap();
            }
            backend.set_flags("alice", "INBOX", 1, &["\\Seen"]).unwrap();
            watching.logged_in("alice", PASSWORD).await;
            watching.expect(&["INBOX: confirmed, next 3 of 2 with 1 unseen"]).await;
            watching.until("watching").await;
            watching.stop().await;
        })
        .await;
    }
}

#[tokio::test]
async fn a_parked_account_hears_of_events_and_logins_at_another_node() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        refused_before(&world, "alice").await;
        let (others, cluster) = Others::new(true);
        let mut watching = world.watch_beside(cluster);
        watching.until("parked").await;
        let mark = DueMark {
            account: Account::from_login("alice"),
            mailbox: Some(Mailbox::inbox()),
            state: Some(told(1, 2, 1, 1)),
            shown_flags: false,
            is_due: true,
            for_another_node: true,
        };
        world.store.mark_due(&[], &[mark], Timestamp::now()).await.unwrap();
        others.tell("alice", false).await;
        watching.expect(&["INBOX: new mail, next 2 of 1 with 1 unseen"]).await;
        watching.until("parked").await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        store_password(&world, "alice", PASSWORD).await;
        others.tell("alice", true).await;
        watching.expect(&["INBOX: new mail, next 3 of 2 with 2 unseen"]).await;
        assert_eq!(backend.counters().accepted, 1);
        world.until_parked("alice", false).await;
        watching.stop().await;
    })
    .await;
}

/// What was missed while the nodes were others is looked into, and is a login here.
#[tokio::test]
async fn a_login_at_another_node_of_which_no_word_came_ends_the_wait_of_a_parked_account() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        refused_before(&world, "alice").await;
        let (others, cluster) = Others::new(true);
        let watching = world.watch_beside(cluster);
        watching.until("parked").await;
        others.divide(true, 2);
        until(async || watching.watched(Mode::Parked) == 1).await;
        assert_eq!(backend.counters().accepted, 0, "nobody has logged in");
        store_password(&world, "alice", PASSWORD).await;
        others.divide(true, 3);
        watching.until("watching").await;
        backend.wait_until(|c| c.accepted == 1 && c.connections == 0).await;
        watching.stop().await;
    })
    .await;
}

/// Its user has registered at another node, at the backend that the configuration names. With credentials in memory the
/// account waits for a login here then.
#[tokio::test]
async fn a_registration_at_another_node_of_which_no_word_came_ends_the_wait_for_it() {
    for credentials in [CredentialsMode::Memory, CredentialsMode::Stored] {
        limited(async {
            let backend = backend().await;
            let mut world = WatchWorld::new(backend.address()).await;
            world.watch.connection = WatchConnection::OnDemand;
            world.credentials = credentials;
            let elsewhere = BackendId::new(None, "mail.example.org", 143);
            let inbox = [("INBOX", told(1, 1, 0, 0))];
            world.register_at(&elsewhere, "alice", &inbox).await;
            let (others, cluster) = Others::new(true);
            let mut watching = world.watch_beside(cluster);
            watching.until("parked").await;
            world.register("alice", &inbox).await;
            others.divide(true, 2);
            if credentials == CredentialsMode::Memory {
                watching.expect(&["alice is to log in"]).await;
                watching.logged_in("alice", PASSWORD).await;
            }
            backend.wait_until(|c| c.accepted == 1 && c.connections == 0).await;
            watching.until("watching").await;
            watching.stop().await;
        })
        .await;
    }
}

/// The program that had it refused was killed since.
#[tokio::test]
async fn a_password_that_was_refused_twice_is_not_tried_behind_another_one() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let (alice, id, now) = (Account::from_login("alice"), world.id(), Timestamp::now());
        world.store.refused(&alice, &id, 2, Some("no"), now).await.unwrap();
        let source =
            CredentialSource::open(CredentialsMode::Stored, &world.key_file, world.store.clone());
        let login = AcceptedLogin {
            backend: id,
            credentials: Some(credentials("alice", "second")),
            at: now,
            names_ignore_case: false,
        };
        assert!(source.unwrap().save(&alice, &login, now).await.unwrap());
        for password in ["second", "third"] {
            backend.set_password("alice", password.as_bytes()).unwrap();
        }
        let watching = world.watch();
        watching.until("parked").await;
        assert_eq!(backend.stale_tries("alice").unwrap()[0], 0);
        watching.stop().await;
    })
    .await;
}

/// Numbers of an event that come with the refusal leave nothing to ask for.
#[tokio::test]
async fn a_first_refusal_counts_also_where_there_is_nothing_to_try_again_for() {
    const REFUSED: &str = "S: m2 NO [AUTHENTICATIONFAILED] no\n";
    limited(async {
        let mut stage = Stage::new().await;
        let watch = &mut stage.world.watch;
        watch.connection = WatchConnection::OnDemand;
        (watch.retry_min, watch.retry_max) = (Duration::ZERO, Duration::ZERO);
        let mut watching = stage.world.watch();
        let mut peer = stage.accept().await;
        peer.play(IDLE).await;
        peer.play(&(state(1) + "C: w2 LOGOUT\nS: * BYE\nS: w2 OK out\n")).await;
        until_resting(&stage.world, &watching).await;
        let (greeting_and_login, _) = IDLE.split_once("S: m2").unwrap();
        let inbox = || Some(Mailbox::inbox());
        let expunged = async |watching: &Watching| {
            hint(watching, inbox(), MailboxEvent::MessageExpunge, Snapshot::default()).await;
        };
        expunged(&watching).await;
        let mut peer = stage.accept().await;
        peer.play(greeting_and_login).await;
        hint(&watching, inbox(), MailboxEvent::MessageNew, told(7, 11, 6, 3)).await;
        peer.play(REFUSED).await;
        watching.expect(&["INBOX: new mail, next 11 of 6 with 3 unseen"]).await;
        until_resting(&stage.world, &watching).await;

        expunged(&watching).await;
        let mut peer = stage.accept().await;
        peer.play(greeting_and_login).await;
        peer.play(REFUSED).await;
        watching.until("parked").await;
        watching.stop().await;
    })
    .await;
}

/// Why accounts cannot be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Refused,
    NoPassword,
    Elsewhere,
    NoMaster,
}

async fn parked_world(backend: &DemoBackend, trouble: Trouble) -> WatchWorld {
    let mut world = WatchWorld::new(backend.address()).await;
    world.watch.connection = WatchConnection::OnDemand;
    world.queue = 10 * MANY;
    let elsewhere = BackendId::new(None, "mail.example.org", 143);
    let id = if trouble == Trouble::Elsewhere { elsewhere } else { world.id() };
    for number in 0..MANY {
        let user = format!("user{number}");
        world.register_at(&id, &user, &[("INBOX", told(1, 1, 0, 0))]).await;
        if trouble == Trouble::Refused {
            refused_before(&world, &user).await;
        }
    }
    match trouble {
        Trouble::NoPassword => drop(world.store.erase_credentials(None).await.unwrap()),
        Trouble::NoMaster => {
            (world.credentials, world.has_master) = (CredentialsMode::Master, false);
        }
        Trouble::Refused | Trouble::Elsewhere => {}
    }
    world
}

/// Each device is pushed once, so that its user logs in.
async fn all_are_to_log_in(watching: &mut Watching) {
    for _ in 0..MANY {
        let line = watching.next().await;
        assert!(line.ends_with(" is to log in"), "{line}");
    }
}

#[tokio::test]
async fn parked_accounts_wait_without_a_task() {
    use Trouble::*;
    for trouble in [Refused, NoPassword, Elsewhere, NoMaster] {
        patient(async {
            let backend = backend().await;
            let mut world = parked_world(&backend, trouble).await;
            let before = tasks();
            let mut watching = world.watch();
            let all_wait = async |watching: &Watching| {
                watching.watched(Mode::Parked) == MANY && tasks() < before + 20
            };
            until(async || all_wait(&watching).await).await;
            match trouble {
                Refused => {
                    watching.expect_nothing();
                    later(Duration::from_mins(6)).await;
                    all_are_to_log_in(&mut watching).await;
                }
                NoPassword => all_are_to_log_in(&mut watching).await,
                Elsewhere | NoMaster => watching.expect_nothing(),
            }
            // A sweep begins none either.
            later(Duration::from_hours(7)).await;
            until(async || all_wait(&watching).await).await;
            watching.expect_nothing();
            assert_eq!(backend.counters().connections, 0);
            backend.add_account("user1", PASSWORD.as_bytes());
            let back = match trouble {
                Refused | NoPassword => {
                    watching.logged_in("user1", PASSWORD).await;
                    1
                }
                Elsewhere => {
                    world.register("user1", &[("INBOX", told(1, 1, 0, 0))]).await;
                    watching.registered("user1").await;
                    1
                }
                NoMaster => {
                    for number in 0..MANY {
                        backend.add_account(&format!("user{number}*master"), PASSWORD.as_bytes());
                    }
                    world.has_master = true;
                    watching.reload(&world.config());
                    MANY
                }
            };
            until(async || watching.watched(Mode::OnDemand) == back).await;
            until(async || tasks() < before + 20).await;
            assert_eq!(watching.watched(Mode::Parked), MANY - back);
            // The sweep may have asked for some before, and ask once more.
            let (asked, back) = (backend.counters().accepted, back as u64);
            let most = if trouble == NoMaster { 2 * back } else { back };
            assert!((back..=most).contains(&asked), "{asked}");
            watching.stop().await;
        })
        .await;
    }
}

/// A sweep or a reload has tasks look up at any moment, also between the database's word and the push.
#[tokio::test]
async fn accounts_whose_tasks_are_told_something_are_all_to_log_in() {
    patient(async {
        let backend = backend().await;
        let world = parked_world(&backend, Trouble::NoPassword).await;
        let (mut watching, config) = (world.watch(), world.config());
        until(async || {
            watching.reload(&config);
            for _ in 0..rand::random::<u8>() {
                tokio::task::yield_now().await;
            }
            watching.metrics.login_pushes.get() == MANY as u64
        })
        .await;
        all_are_to_log_in(&mut watching).await;
        watching.stop().await;
    })
    .await;
}

/// While they come back, all that is due is read.
#[tokio::test]
async fn accounts_that_a_reload_brings_back_together_are_visited_once() {
    patient(async {
        let backend = backend().await;
        let mut world = parked_world(&backend, Trouble::NoMaster).await;
        let watching = world.watch();
        until(async || watching.watched(Mode::Parked) == MANY).await;
        for number in 0..MANY {
            backend.add_account(&format!("user{number}*master"), PASSWORD.as_bytes());
        }
        world.has_master = true;
        watching.reload(&world.config());
        until(async || watching.watched(Mode::OnDemand) == MANY).await;
        until(async || world.store.due_accounts().await.unwrap().is_empty()).await;
        assert_eq!(backend.counters().accepted, MANY as u64);
        watching.stop().await;
    })
    .await;
}

/// Nothing of it can be told, and no visit helps, so one task for an event is enough.
#[tokio::test]
async fn an_event_of_an_account_that_waits_for_a_change_begins_no_task_after_task() {
    use Trouble::*;
    for trouble in [Elsewhere, NoMaster] {
        patient(async {
            let backend = backend().await;
            let world = parked_world(&backend, trouble).await;
            let before = tasks();
            let mut watching = world.watch();
            let all_wait = || watching.watched(Mode::Parked) == MANY && tasks() < before + 20;
            until(async || all_wait()).await;
            let hints = (0..MANY).map(|number| Hint {
                account: Account::from_login(&format!("user{number}")),
                mailbox: Some(Mailbox::inbox()),
                event: MailboxEvent::MessageNew,
                state: Snapshot::default(),
                seen_at: Instant::now(),
            });
            watching.inquirer.hints(hints.collect()).await.unwrap();
            until(async || all_wait()).await;
            let told = watching.inquirer.watchers(None).await.unwrap();
            assert!(told.iter().all(|it| it.last_hint_at.is_some()), "they have had tasks");
            assert_eq!(backend.counters().connections, 0);
            if trouble == Elsewhere {
                watching.expect_nothing();
            }
            watching.stop().await;
        })
        .await;
    }
}

/// An event without numbers has each of the four asked for.
async fn all_have_events(watching: &Watching) {
    let hints = USERS.map(|user| Hint {
        account: Account::from_login(user),
        mailbox: Some(Mailbox::inbox()),
        event: MailboxEvent::MessageExpunge,
        state: Snapshot::default(),
        seen_at: Instant::now(),
    });
    watching.inquirer.hints(hints.into()).await.unwrap();
}

/// Everybody is refused, until few try any more. They wait without tasks.
async fn outage(backend: &DemoBackend, world: &mut WatchWorld) -> Watching {
    world.watch.connection = WatchConnection::OnDemand;
    let before = tasks();
    let watching = world.watch();
    backend.wait_until(|c| c.accepted == 4 && c.connections == 0).await;
    until_all(&watching, "watching").await;
    nobody_is_known(backend);
    all_have_events(&watching).await;
    until(async || refused(backend) >= 3).await;
    until_quiet(&watching).await;
    until(async || tasks() < before + 15).await;
    watching
}

#[tokio::test]
async fn while_the_backend_refuses_everybody_nobody_is_parked_and_all_come_back_with_the_first() {
    patient(async {
        let (backend, mut world) = four().await;
        let watching = outage(&backend, &mut world).await;
        until_all(&watching, "backing_off").await;
        for user in USERS {
            assert_eq!(world.parked(user).await, None, "{user}");
        }
        let tries = refused(&backend);
        assert!(tries <= 5, "{tries}");
        later(Duration::from_mins(9)).await;
        until_all(&watching, "backing_off").await;
        assert_eq!(refused(&backend), tries, "{:?}", backend.counters().refused);
        everybody_is_known(&backend);
        later(Duration::from_mins(75)).await;
        until_all(&watching, "watching").await;
        backend.wait_until(|c| c.accepted >= 8 && c.connections == 0).await;
        assert_eq!(refused(&backend), tries);
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn what_was_refused_and_is_accepted_again_brings_all_back_without_a_connection_too() {
    patient(async {
        let (backend, mut world) = four().await;
        let watching = outage(&backend, &mut world).await;
        everybody_is_known(&backend);
        // Until one comes who was refused before.
        for user in USERS {
            watching.logged_in(user, PASSWORD).await;
        }
        until_all(&watching, "watching").await;
        for user in USERS {
            assert_eq!(world.parked(user).await, None, "{user}");
        }
        watching.stop().await;
    })
    .await;
}

/// As often as that of one that has a connection, whatever sweeps and events there are.
#[tokio::test]
async fn a_password_that_is_refused_for_days_is_tried_four_times_without_a_connection() {
    patient(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let mut watching = resting(&world, &backend).await;
        backend.set_password("alice", b"changed").unwrap();
        let inbox = || Some(Mailbox::inbox());
        let quiet = MailboxEvent::MessageExpunge;
        hint(&watching, inbox(), quiet, Snapshot::default()).await;
        watching.until("parked").await;
        let tries = || backend.counters().refused["alice"];
        until(async || tries() == 2).await;
        watching.until("parked").await;
        later(Duration::from_mins(4)).await;
        watching.expect_nothing();
        later(Duration::from_mins(2)).await;
        assert_eq!(watching.next().await, "alice is to log in");
        for expected in [3, 4] {
            later(Duration::from_hours(26)).await;
            until(async || tries() >= expected).await;
            hint(&watching, inbox(), quiet, Snapshot::default()).await;
            watching.until("parked").await;
        }
        later(Duration::from_hours(200)).await;
        hint(&watching, inbox(), quiet, Snapshot::default()).await;
        watching.until("parked").await;
        assert_eq!(tries(), 4);
        watching.expect_nothing();
        watching.stop().await;
    })
    .await;
}
