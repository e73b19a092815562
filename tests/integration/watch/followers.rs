//! Those who follow mailboxes: from whom they hear, and when mailchime logs in for them.

use std::time::Duration;

use mailchime::config::{PreviewContent, WatchConnection};
use mailchime::demo::backend::DemoBackend;
use mailchime::model::{
    Account, ChangeKind, FollowRequest, Mailbox, MailboxEvent, MailboxToFollow, Snapshot,
};
use mailchime::watch::{FollowEvent, FollowGuard, FollowListener};
use tokio::sync::mpsc;

use super::hints::hint;
use super::mail::{backend, idling, world};
use super::on_demand;
use crate::support::stage::{IDLE, QUIET, Stage, stop};
use crate::support::watching::{PASSWORD, WatchWorld, Watching, credentials, show, told};
use crate::support::{later, limited, patient, until};

const MAIL: &str = "Subject: hello\r\n\r\nHi there\r\n";

/// One that follows, and what it has heard.
struct Follower {
    heard: mpsc::UnboundedReceiver<String>,
    _guard: FollowGuard,
}

impl Watching {
    /// `user` follows these mailboxes, which are empty.
    fn follow(&self, user: &str, mailboxes: &[&str]) -> Follower {
        self.follow_from(user, mailboxes, told(1, 1, 0, 0))
    }

    /// The same of mailboxes that have this state.
    fn follow_from(&self, user: &str, mailboxes: &[&str], now: Snapshot) -> Follower {
        let account = Account::from_login(user);
        let of = |name: &&str| MailboxToFollow { mailbox: Mailbox::new(name), told: None, now };
        let request = FollowRequest {
            backend: self.backends.id_of(&account).unwrap(),
            account,
            credentials: credentials(user, PASSWORD),
            mailboxes: mailboxes.iter().map(of).collect(),
        };
        let (hears, heard) = mpsc::unbounded_channel();
        let listener = FollowListener::new(move |event| {
            let line = match event {
                FollowEvent::State { mailbox, kind: Some(ChangeKind::NewMail), state } => {
                    format!("{mailbox}: new mail, {}", show(&state))
                }
                FollowEvent::State { mailbox, kind: Some(ChangeKind::Quiet), state } => {
                    format!("{mailbox}: quiet, {}", show(&state))
                }
                FollowEvent::State { kind: None, .. } => return,
                FollowEvent::Refused => "refused".to_owned(),
            };
            // The test may have ended.
            let _ = hears.send(line);
        });
        Follower { heard, _guard: self.followers.follow(request, listener) }
    }

    /// Connections that followers have of their own.
    async fn until_own_connections(&self, count: i64) {
        until(async || self.metrics.stream_connections.get() == count).await;
    }
}

impl Follower {
    async fn expect(&mut self, line: &str) {
        assert_eq!(self.heard.recv().await.as_deref(), Some(line));
    }
}

/// Waits until the account's connection has looked at all of it and is in IDLE again.
async fn looked_at(backend: &DemoBackend, looks: u64) {
    let status = |commands: &std::collections::BTreeMap<String, u64>| {
        commands.get("STATUS").copied().unwrap_or(0)
    };
    backend.wait_until(|c| status(&c.commands) == looks && c.idling == 1).await;
}

#[tokio::test]
async fn a_follower_hears_the_watcher_of_its_account_without_a_connection_of_its_own() {
    limited(async {
        let backend = backend().await;
        backend.add_account("bob", PASSWORD.as_bytes());
        let world = world(&backend).await;
        let mut watching = idling(&world, &backend).await;
        let mut alice = watching.follow("alice", &["INBOX"]);
        looked_at(&backend, 2).await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        alice.expect("INBOX: new mail, next 2 of 1 with 1 unseen").await;
        let confirmed = "INBOX: confirmed, next 2 of 1 with 1 unseen";
        watching.expect(&["INBOX: new mail, announced", confirmed]).await;
        let counters = backend.counters();
        assert_eq!((counters.logins["alice"], counters.connections), (1, 1), "that of the watcher");
        assert_eq!(watching.metrics.stream_connections.get(), 0);
        // Another one comes, and a look shows it what it does not know.
        let mut late = watching.follow("alice", &["INBOX"]);
        late.expect("INBOX: new mail, next 2 of 1 with 1 unseen").await;
        // Nobody hears of another's mail.
        let mut bob = watching.follow("bob", &["INBOX"]);
        watching.until_own_connections(1).await;
        backend.deliver("bob", "INBOX", MAIL).unwrap();
        bob.expect("INBOX: new mail, next 2 of 1 with 1 unseen").await;
        assert!(alice.heard.is_empty() && late.heard.is_empty() && bob.heard.is_empty());
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_mailbox_for_which_nobody_registered_has_a_connection_of_the_users_own() {
    limited(async {
        let backend = backend().await;
        backend.create_mailbox("alice", "Lists").unwrap();
        let mut world = world(&backend).await;
        world.watch.poll_interval = Duration::from_millis(300);
        let watching = idling(&world, &backend).await;
        let mut follower = watching.follow("alice", &["INBOX", "Lists"]);
        watching.until_own_connections(1).await;
        backend.deliver("alice", "Lists", MAIL).unwrap();
        follower.expect("Lists: new mail, next 2 of 1 with 1 unseen").await;
        assert_eq!(backend.counters().logins["alice"], 2);
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_follower_goes_over_to_a_watcher_that_begins_and_back_when_it_ends() {
    limited(async {
        let backend = backend().await;
        let world = WatchWorld::new(backend.address()).await;
        let watching = world.watch();
        let mut follower = watching.follow("alice", &["INBOX"]);
        watching.until_own_connections(1).await;
        backend.wait_until(|c| c.idling == 1).await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        follower.expect("INBOX: new mail, next 2 of 1 with 1 unseen").await;

        world.register("alice", &[("INBOX", told(1, 2, 1, 1))]).await;
        watching.registered("alice").await;
        watching.until_own_connections(0).await;
        backend.wait_until(|c| c.connections == 1 && c.idling == 1).await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        follower.expect("INBOX: new mail, next 3 of 2 with 2 unseen").await;

        world.unregister("alice").await;
        watching.unwatched.send(Account::from_login("alice")).await.unwrap();
        watching.until_own_connections(1).await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        follower.expect("INBOX: new mail, next 4 of 3 with 3 unseen").await;
        assert!(follower.heard.is_empty());
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn what_happens_while_the_watcher_has_lost_its_connection_is_heard_afterwards() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let watching = idling(&world, &backend).await;
        let mut follower = watching.follow("alice", &["INBOX"]);
        looked_at(&backend, 2).await;
        backend.refuse().await;
        backend.drop_connections();
        watching.until_of("alice", "backing_off").await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        backend.resume().await.unwrap();
        follower.expect("INBOX: new mail, next 2 of 1 with 1 unseen").await;
        // The watcher is there again, and the only one.
        watching.until_own_connections(0).await;
        backend.wait_until(|c| c.connections == 1 && c.idling == 1).await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        follower.expect("INBOX: new mail, next 3 of 2 with 2 unseen").await;
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_event_with_numbers_reaches_a_follower_of_an_account_on_demand_without_a_login() {
    limited(async {
        let backend = backend().await;
        let mut world = world(&backend).await;
        world.watch.connection = WatchConnection::OnDemand;
        let mut watching = world.watch();
        backend.wait_until(|c| c.commands.contains_key("LOGOUT") && c.connections == 0).await;
        let mut follower = watching.follow("alice", &["INBOX"]);
        let looked = |of: &mailchime::demo::backend::Counters| of.commands["LOGOUT"] == 2;
        backend.wait_until(|c| looked(c) && c.connections == 0).await;
        let inbox = || Some(Mailbox::inbox());
        hint(&watching, inbox(), MailboxEvent::MessageNew, told(1, 2, 1, 1)).await;
        follower.expect("INBOX: new mail, next 2 of 1 with 1 unseen").await;
        hint(&watching, inbox(), MailboxEvent::MessageRead, told(1, 2, 1, 0)).await;
        follower.expect("INBOX: quiet, next 2 of 1 with 0 unseen").await;
        watching.expect(&["INBOX: new mail, next 2 of 1 with 1 unseen"]).await;
        assert_eq!(backend.counters().accepted, 2, "the sweep, and the look for the follower");
        assert_eq!(watching.metrics.stream_connections.get(), 0);
        watching.stop().await;
    })
    .await;
}

/// Events come, and each has a task of its own.
#[tokio::test]
async fn a_follower_of_an_account_on_demand_stays_where_it_is_while_a_mailbox_is_refused() {
    limited(async {
        let backend = backend().await;
        backend.create_mailbox("alice", "Team").unwrap();
        backend.deny("alice", "Team", true).unwrap();
        let mut world = world(&backend).await;
        world.watch.connection = WatchConnection::OnDemand;
        let mailboxes = [("INBOX", told(1, 1, 0, 0)), ("Team", told(2, 1, 0, 0))];
        world.register("alice", &mailboxes).await;
        let mut watching = on_demand::resting(&world, &backend).await;
        let mut follower = watching.follow("alice", &["INBOX", "Team"]);
        watching.until_own_connections(1).await;
        backend.wait_until(|c| c.idling == 1 && c.connections == 1).await;
        let accepted = backend.counters().accepted;
        for count in 1..=3 {
            backend.deliver("alice", "INBOX", MAIL).unwrap();
            let (inbox, state) = (Some(Mailbox::inbox()), told(1, count + 1, count, count));
            hint(&watching, inbox, MailboxEvent::MessageNew, state).await;
            watching.expect(&[&format!("INBOX: new mail, {}", show(&state))]).await;
            on_demand::until_resting(&world, &watching).await;
            let shown = watching.until("watching").await.left_out;
            assert_eq!((shown.len(), shown[0].mailbox.as_str()), (1, "Team"));
            follower.expect(&format!("INBOX: new mail, {}", show(&state))).await;
        }
        assert_eq!(backend.counters().accepted, accepted);
        assert_eq!(watching.metrics.stream_connections.get(), 1);
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_follower_of_an_account_on_demand_hears_its_watcher_again_when_the_backend_is_back() {
    limited(async {
        let backend = backend().await;
        let mut world = world(&backend).await;
        world.watch.connection = WatchConnection::OnDemand;
        let watching = on_demand::resting(&world, &backend).await;
        let mut follower = watching.follow("alice", &["INBOX"]);
        backend.wait_until(|c| c.commands["LOGOUT"] == 2 && c.connections == 0).await;
        backend.refuse().await;
        let inbox = Some(Mailbox::inbox());
        hint(&watching, inbox, MailboxEvent::FlagsSet, Snapshot::default()).await;
        watching.until_of("alice", "backing_off").await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        backend.resume().await.unwrap();
        follower.expect("INBOX: new mail, next 2 of 1 with 1 unseen").await;
        watching.until_own_connections(0).await;
        backend.wait_until(|c| c.connections == 0).await;
        watching.until_of("alice", "watching").await;
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_event_hastens_the_look_on_a_connection_of_a_followers_own() {
    limited(async {
        let backend = backend().await;
        backend.create_mailbox("alice", "Lists").unwrap();
        // It is polled every hour.
        let world = WatchWorld::new(backend.address()).await;
        let watching = world.watch();
        let mut follower = watching.follow("alice", &["Lists"]);
        backend.wait_until(|c| c.commands.contains_key("STATUS")).await;
        backend.deliver("alice", "Lists", MAIL).unwrap();
        let lists = Some(Mailbox::new("Lists"));
        hint(&watching, lists, MailboxEvent::MessageNew, Snapshot::default()).await;
        follower.expect("Lists: new mail, next 2 of 1 with 1 unseen").await;
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn who_hears_a_watcher_proves_the_password_every_hour_all_the_same() {
    patient(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let watching = idling(&world, &backend).await;
        let mut follower = watching.follow("alice", &["INBOX"]);
        looked_at(&backend, 2).await;
        // What waits for an answer when the clock goes on has waited in vain.
        let idles = async || backend.wait_until(|c| c.idling == 1 && c.connections == 1).await;
        idles().await;
        let hour = Duration::from_mins(61);
        later(hour).await;
        backend.wait_until(|c| c.logins["alice"] == 2 && c.connections == 1).await;
        // It waits for the next one once it hears something else.
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        follower.expect("INBOX: new mail, next 2 of 1 with 1 unseen").await;
        // Where that cannot be done, it goes on.
        idles().await;
        backend.behave(|it| it.unavailable = true);
        later(hour).await;
        backend.wait_until(|c| c.refused.contains_key("alice")).await;
        backend.behave(|it| it.unavailable = false);
        backend.wait_until(|c| c.logins["alice"] == 3 && c.connections == 1).await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        follower.expect("INBOX: new mail, next 3 of 2 with 2 unseen").await;
        idles().await;
        backend.set_password("alice", b"other").unwrap();
        later(hour).await;
        follower.expect("refused").await;
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_backend_that_does_not_tell_who_wrote_keeps_nothing_from_a_follower() {
    limited(async {
        let mut stage = Stage::new().await;
        stage.world.preview = PreviewContent::Sender;
        stage.world.register_browser("alice", &[("INBOX", told(7, 10, 5, 2))]).await;
        let watching = stage.world.watch();
        let mut peer = stage.accept().await;
        peer.play(IDLE).await;
        peer.play(QUIET).await;
        let mut follower = watching.follow_from("alice", &["INBOX"], told(7, 10, 5, 2));
        // A look for the follower, and then new mail.
        peer.play(
            "\
C: DONE
S: w3 OK done
C: w4 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2)
S: w4 OK done
C: w5 IDLE
S: + idling
S: * 6 EXISTS
C: DONE
S: w5 OK done
C: w6 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 6 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 3)
S: w6 OK done
C: w7 UID FETCH * (UID BODY.PEEK[HEADER.FIELDS (FROM)]<0.8192>)
",
        )
        .await;
        // That is not answered, and the follower hears all the same.
        follower.expect("INBOX: new mail, next 11 of 6 with 3 unseen").await;
        peer.play(
            "S: w7 BAD what?\nC: w8 IDLE\nS: + idling\nS: * 7 EXISTS\nC: DONE\nS: w8 OK done\n",
        )
        .await;
        let asked = peer.line().await;
        assert!(asked.starts_with("w9 STATUS"), "{asked}");
        peer.play(
            "S: * STATUS INBOX (MESSAGES 7 UIDNEXT 12 UIDVALIDITY 7 UNSEEN 4)\nS: w9 OK done\n",
        )
        .await;
        follower.expect("INBOX: new mail, next 12 of 7 with 4 unseen").await;
        stop(watching, peer).await;
    })
    .await;
}
