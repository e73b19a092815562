//! One of several nodes: which accounts it watches, and what it hears of the others.

use std::time::{Duration, Instant};

use mailchime::model::{Account, Hint, Mailbox, MailboxEvent, SessionEvent, Snapshot, Timestamp};
use mailchime::nodes::{Assignment, ClusterView};
use mailchime::store::{DueMark, Invalidation, NodeNews, Registrant, Sealed};
use sqlx::{Connection, Executor, SqliteConnection};
use tokio::sync::{mpsc, watch};

use super::mail::{backend, world};
use super::{hints, on_demand};
use crate::support::stage::{IDLE, QUIET, Stage, stop};
use crate::support::watching::{PASSWORD, WatchWorld, Watching, credentials, told};
use crate::support::{limited, until};

const MAIL: &str = "Subject: hello\r\n\r\nHi there\r\n";

/// The hands of the nodes beside it.
pub(super) struct Others {
    assignment: watch::Sender<Assignment>,
    news: mpsc::Sender<NodeNews>,
}

/// Everything is this node's, or nothing is.
fn assignment(all: bool, joined: u64) -> Assignment {
    let owner = if all { "here" } else { "elsewhere" };
    Assignment::new("here".into(), true, [owner.into()], joined)
}

impl Others {
    pub(super) fn new(all: bool) -> (Self, ClusterView) {
        let (assignment, divided) = watch::channel(assignment(all, 1));
        let (news, told) = mpsc::channel(10);
        (Self { assignment, news }, ClusterView { assignment: divided, news: told })
    }

    pub(super) fn divide(&self, all: bool, joined: u64) {
        self.assignment.send_replace(assignment(all, joined));
    }

    pub(super) async fn tell(&self, user: &str, login: bool) {
        let account = Account::from_login(user);
        self.invalidate(Invalidation { account, login, event: false, named: false }).await;
    }

    async fn tell_of_event(&self, user: &str) {
        let account = Account::from_login(user);
        self.invalidate(Invalidation { account, login: false, event: true, named: false }).await;
    }

    /// By a row, which says that a notification has named the account.
    async fn tell_of_named_event(&self, user: &str) {
        let account = Account::from_login(user);
        self.invalidate(Invalidation { account, login: false, event: true, named: true }).await;
    }

    async fn name_event(&self, user: &str) {
        self.news.send(NodeNews::Events(vec![Account::from_login(user)])).await.unwrap();
    }

    async fn tell_of_missed_events(&self) {
        self.news.send(NodeNews::MissedEvents).await.unwrap();
    }

    async fn invalidate(&self, news: Invalidation) {
        self.news.send(NodeNews::Invalidation(news)).await.unwrap();
    }
}

/// What another node does when `user` has logged in there.
pub(super) async fn store_password(world: &WatchWorld, user: &str, password: &str) {
    let text = world.vault().seal(&Account::from_login(user), &credentials(user, password));
    let sealed = Sealed { text, until: None };
    let id = world.id();
    let login = Registrant::new(&id, Timestamp::now(), Some(&sealed));
    assert!(
        world
            .store
            .save_credentials(&Account::from_login(user), login, Timestamp::now())
            .await
            .unwrap()
    );
}

#[tokio::test]
async fn an_account_is_watched_while_it_is_this_nodes() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let (others, cluster) = Others::new(false);
        let watching = world.watch_beside(cluster);
        // Whose sessions are here does not matter, nor news of what others watch.
        watching.registered("alice").await;
        watching.logged_in("alice", PASSWORD).await;
        others.tell("alice", true).await;
        for start in 1..=2 {
            others.divide(true, 1);
            let seen = backend.wait_until(|c| c.idling == 1).await;
            assert_eq!(seen.accepted, start);
            others.divide(false, 1);
            backend.wait_until(|c| c.connections == 0).await;
        }
        assert_eq!(world.parked("alice").await, None);
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_login_at_this_node_reaches_the_one_that_watches() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let alice = Account::from_login("alice");
        let other = world.store.clone().of_node("2".into());
        other.join("elsewhere").await.unwrap();
        let (_others, cluster) = Others::new(false);
        let watching = world.watch_beside(cluster);

        // The same password again is no news, and nobody is kept who is not registered.
        watching.logged_in("alice", PASSWORD).await;
        watching.logged_in("bob", "secret").await;
        watching.logged_in("alice", "changed").await;
        until(async || world.stored_password("alice").await == b"changed").await;
        let news = Invalidation { account: alice.clone(), login: true, event: false, named: false };
        let news = NodeNews::Invalidation(news);
        assert_eq!(other.take_news("elsewhere", 10).await.unwrap(), std::slice::from_ref(&news));
        // But it is for one that is parked.
        world.store.refused(&alice, &world.id(), 2, Some("no"), Timestamp(1)).await.unwrap();
        watching.logged_in("alice", "changed").await;
        world.until_parked("alice", false).await;
        assert_eq!(other.take_news("elsewhere", 10).await.unwrap(), [news]);
        assert_eq!(backend.counters().accepted, 0);
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_login_at_another_node_ends_the_parking_and_nothing_else_does() {
    limited(async {
        let backend = backend().await;
        backend.add_account("bob", PASSWORD.as_bytes());
        let world = world(&backend).await;
        backend.set_password("alice", b"changed").unwrap();
        let (others, cluster) = Others::new(true);
        let watching = world.watch_beside(cluster);
        world.until_parked("alice", true).await;

        // Another device of hers has gone, say. Bob is new, and heard of after that.
        others.tell("alice", false).await;
        world.register("bob", &[("INBOX", told(2, 1, 0, 0))]).await;
        others.tell("bob", true).await;
        backend.wait_until(|c| c.idling == 1 && c.logins.contains_key("bob")).await;
        assert_eq!(backend.counters().refused["alice"], 1);

        store_password(&world, "alice", "changed").await;
        // As the watcher does that was refused a moment ago.
        let alice = Account::from_login("alice");
        world.store.refused(&alice, &world.id(), 2, Some("no"), Timestamp(1)).await.unwrap();
        others.tell("alice", true).await;
        backend.wait_until(|c| c.idling == 2).await;
        world.until_parked("alice", false).await;
        assert_eq!(backend.counters().refused["alice"], 1);

        // Bob's last device goes.
        world.unregister("bob").await;
        others.tell("bob", false).await;
        backend.wait_until(|c| c.idling == 1 && c.connections == 1).await;
        watching.stop().await;
    })
    .await;
}

/// The database was away, say, and does not know of the refusal yet.
#[tokio::test]
async fn what_was_refused_here_is_not_tried_anew_because_all_is_read_again() {
    limited(async {
        let backend = backend().await;
        let mut world = world(&backend).await;
        let mut beside = SqliteConnection::connect(&world.reopened(Duration::from_secs(60)).await)
            .await
            .unwrap();
        let unknown = "create trigger unknown before update of refusals on account \
                       when new.refusals is not null begin select raise(abort, 'away'); end";
        beside.execute(unknown).await.unwrap();
        backend.set_password("alice", b"changed").unwrap();
        let (others, cluster) = Others::new(true);
        let watching = world.watch_beside(cluster);
        // The process before may have tried it, so it is not tried twice.
        backend.wait_until(|c| c.refused.contains_key("alice")).await;
        for (joined, bob) in [(2, "bob"), (3, "bill")] {
            // Of these the supervisor learns by reading alone.
            backend.add_account(bob, PASSWORD.as_bytes());
            world.register(bob, &[("INBOX", told(2, 1, 0, 0))]).await;
            others.divide(true, joined);
            backend.wait_until(|c| c.logins.contains_key(bob)).await;
        }
        backend.wait_until(|c| c.idling == 2).await;
        assert_eq!(backend.counters().refused["alice"], 1);

        // There is another password now.
        beside.execute("drop trigger unknown").await.unwrap();
        store_password(&world, "alice", "changed").await;
        others.divide(true, 4);
        backend.wait_until(|c| c.idling == 3).await;
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn the_push_side_gets_word_of_what_registers_or_goes_at_another_node() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let (others, cluster) = Others::new(true);
        let mut watching = world.watch_beside(cluster);
        backend.wait_until(|c| c.idling == 1).await;
        others.tell("alice", true).await;
        assert_eq!(watching.word_of_devices().await, Account::from_login("alice"));
        world.unregister("alice").await;
        others.tell("alice", false).await;
        assert_eq!(watching.word_of_devices().await, Account::from_login("alice"));
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_registration_at_another_node_is_watched_and_so_is_one_that_was_missed() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let (others, cluster) = Others::new(true);
        let mut watching = world.watch_beside(cluster);
        backend.wait_until(|c| c.idling == 1).await;
        for (mailbox, joined) in [("Notes", None), ("Sent", Some(2))] {
            backend.create_mailbox("alice", mailbox).unwrap();
            backend.deliver("alice", mailbox, MAIL).unwrap();
            world
                .register("alice", &[("INBOX", told(1, 1, 0, 0)), (mailbox, told(9, 1, 0, 0))])
                .await;
            match joined {
                None => others.tell("alice", true).await,
                Some(joined) => others.divide(true, joined),
            }
            let line = watching.next().await;
            assert!(line.starts_with(mailbox), "{line}");
        }
        assert_eq!(backend.counters().accepted, 1, "on the connection that there is");
        watching.stop().await;
    })
    .await;
}

/// It is what this node knows from the database, not what it has tried itself.
#[tokio::test]
async fn a_parked_account_of_which_news_comes_is_not_tried_at_once() {
    limited(async {
        let backend = backend().await;
        backend.add_account("bob", b"changed");
        let world = world(&backend).await;
        let (others, neighbours) = Others::new(true);
        let watching = world.watch_beside(neighbours);
        backend.wait_until(|c| c.idling == 1).await;
        world.register("bob", &[("INBOX", told(2, 1, 0, 0))]).await;
        let bob = Account::from_login("bob");
        world.store.refused(&bob, &world.id(), 2, Some("no"), Timestamp::now()).await.unwrap();
        others.tell("bob", false).await;
        watching.until_of("bob", "parked").await;
        assert_eq!(backend.counters().refused.get("bob"), None);
        watching.stop().await;
    })
    .await;
}

/// The watcher waits for the backend meanwhile, and takes neither.
#[tokio::test]
async fn a_login_here_is_not_lost_when_all_is_read_again_for_what_other_nodes_did() {
    limited(async {
        let stage = Stage::new().await;
        let (others, cluster) = Others::new(true);
        let mut watching = stage.world.watch_beside(cluster);
        let mut peer = stage.accept().await;
        peer.play(IDLE).await;
        peer.play(QUIET).await;
        hint(&watching, "alice").await;
        peer.play("C: DONE\nS: w3 OK done\n").await;
        let status = peer.line().await;
        assert!(status.starts_with("w4 STATUS"), "{status}");
        let login = watching.login(credentials("alice", "changed"));
        let account = Account::from_login("alice");
        watching.sessions.send(SessionEvent::Registered { account, login }).await.unwrap();
        watching.word_of_devices().await;
        // Of bob the supervisor learns by reading alone.
        stage.world.register("bob", &[("INBOX", told(2, 1, 0, 0))]).await;
        others.divide(true, 2);
        watching.until_of("bob", "starting").await;
        peer.play(
            "\
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2)
S: w4 OK done
C: w5 IDLE
S: + idling
",
        )
        .await;
        until(async || stage.world.stored_password("alice").await == b"changed").await;
        stop(watching, peer).await;
    })
    .await;
}

async fn hint(watching: &Watching, user: &str) {
    let hint = Hint {
        account: Account::from_login(user),
        mailbox: Some(Mailbox::inbox()),
        event: MailboxEvent::MessageRead,
        state: Snapshot::default(),
        seen_at: Instant::now(),
    };
    watching.inquirer.hints(vec![hint]).await.unwrap();
}

#[tokio::test]
async fn an_event_of_an_account_that_another_node_watches_reaches_that_node() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let other = world.store.clone().of_node("2".into());
        other.join("elsewhere").await.unwrap();
        let (_others, cluster) = Others::new(false);
        let watching = world.watch_beside(cluster);
        // Nobody has registered bob.
        hint(&watching, "bob").await;
        hint(&watching, "alice").await;
        // It is on disk when the source has its answer.
        let news = other.take_news("elsewhere", 10).await.unwrap();
        let account = Account::from_login("alice");
        let invalidation = Invalidation { account, login: false, event: true, named: false };
        assert_eq!(news, [NodeNews::Invalidation(invalidation)]);
        assert_eq!(backend.counters().accepted, 0);
        watching.stop().await;
    })
    .await;
}

/// They may be of accounts that the other nodes watch.
#[tokio::test]
async fn each_node_asks_for_its_accounts_when_one_has_missed_events_and_only_that_one_tells() {
    limited(async {
        let backend = backend().await;
        let world = on_demand::world(&backend).await;
        let other = world.store.clone().of_node("2".into());
        other.join("elsewhere").await.unwrap();
        let told = async || other.take_news("elsewhere", 10).await.unwrap();
        let (others, cluster) = Others::new(true);
        let mut watching = world.watch_beside(cluster);
        on_demand::until_resting(&world, &watching).await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        others.tell_of_missed_events().await;
        watching.expect(&["INBOX: new mail, next 2 of 1 with 1 unseen"]).await;
        on_demand::until_resting(&world, &watching).await;
        assert_eq!(told().await, [], "the other one knows");
        watching.stop().await;

        let (_others, cluster) = Others::new(true);
        let watching = world.watch_beside(cluster);
        on_demand::until_resting(&world, &watching).await;
        watching.inquirer.missed_events();
        until(async || told().await == [NodeNews::MissedEvents]).await;
        watching.stop().await;
    })
    .await;
}

/// Another node tells of an event, in this way.
async fn another_node_tells_of_an_event(tells: impl AsyncFnOnce(&Others)) {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let (others, cluster) = Others::new(true);
        let mut watching = world.watch_beside(cluster);
        backend.wait_until(|c| c.idling == 1).await;
        // Not every word of another node is one, and a connection that is held needs none twice.
        others.tell_of_named_event("alice").await;
        others.tell("alice", false).await;
        watching.word_of_devices().await;
        assert_eq!(watching.until("watching").await.last_hint_at, None);
        tells(&others).await;
        until(async || watching.until("watching").await.last_hint_at.is_some()).await;
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_event_of_which_another_node_was_told_is_the_last_one_of_a_connected_account_too() {
    another_node_tells_of_an_event(async |others| others.tell_of_event("alice").await).await;
    another_node_tells_of_an_event(async |others| others.name_event("alice").await).await;
}

/// Another node tells of flags, in this way. All that it knows of them spares the login.
async fn another_node_tells_of_flags(tells: impl AsyncFnOnce(&Others)) {
    limited(async {
        let backend = backend().await;
        let world = on_demand::world(&backend).await;
        let (others, cluster) = Others::new(true);
        let mut watching = world.watch_beside(cluster);
        backend.wait_until(|c| c.commands.contains_key("LOGOUT") && c.connections == 0).await;
        on_demand::until_resting(&world, &watching).await;
        let numbers = |mod_seq| Snapshot { highest_mod_seq: Some(mod_seq), ..told(1, 2, 1, 1) };
        let new_mail = (MailboxEvent::MessageNew, numbers(95));
        hints::hint(&watching, Some(Mailbox::inbox()), new_mail.0, new_mail.1).await;
        watching.expect(&["INBOX: new mail, next 2 of 1 with 1 unseen"]).await;
        let mark = DueMark {
            account: Account::from_login("alice"),
            mailbox: Some(Mailbox::inbox()),
            state: Some(numbers(96)),
            shown_flags: true,
            is_due: true,
            for_another_node: true,
        };
        world.store.mark_due(&[], &[mark], Timestamp::now()).await.unwrap();
        tells(&others).await;
        watching.expect(&["INBOX: quiet, next 2 of 1 with 1 unseen"]).await;
        on_demand::until_resting(&world, &watching).await;
        assert_eq!(backend.counters().accepted, 1, "that of the sweep after the start");
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_change_of_flags_alone_of_which_another_node_was_told_spares_the_login() {
    another_node_tells_of_flags(async |others| others.tell_of_event("alice").await).await;
}

#[tokio::test]
async fn a_change_of_flags_alone_whose_account_another_node_names_spares_the_login() {
    another_node_tells_of_flags(async |others| others.name_event("alice").await).await;
    // The name may be lost.
    another_node_tells_of_flags(async |others| others.tell_of_named_event("alice").await).await;
}
