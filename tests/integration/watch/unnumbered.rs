//! Events without numbers, of accounts without a connection, at the demo server.

use std::time::Duration;

use mailchime::model::{Account, Mailbox, MailboxEvent, Snapshot, Timestamp};
use mailchime::store::DueMark;

use super::hints::{hint, hints, taken_in};
use super::mail::backend;
use super::nodes::Others;
use super::on_demand::{MAIL, resting, until_resting, world};
use crate::support::watching::Watching;
use crate::support::{limited, stop_clock};

/// The mail server says that there is new mail, and no number.
async fn new_mail(watching: &Watching) {
    new_mails(watching, 1).await;
}

/// The same so many times, all before the visit.
async fn new_mails(watching: &Watching, count: usize) {
    let inbox = Some(Mailbox::inbox());
    hints(watching, count, inbox, MailboxEvent::MessageNew, Snapshot::default()).await;
}

#[tokio::test]
async fn a_hint_without_numbers_is_announced_and_makes_one_short_visit() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let mut watching = resting(&world, &backend).await;
        for _ in 0..3 {
            backend.deliver("alice", "INBOX", MAIL).unwrap();
        }
        new_mail(&watching).await;
        watching.expect(&["INBOX: new mail, announced"]).await;
        // The visit waits for what comes within a second, in which the clock stands.
        let stopped = stop_clock();
        new_mails(&watching, 2).await;
        taken_in(&watching).await;
        assert_eq!(backend.counters().accepted, 1);
        tokio::time::advance(Duration::from_secs(1)).await;
        drop(stopped);
        tokio::time::resume();
        watching.expect(&["INBOX: new mail, next 4 of 3 with 3 unseen"]).await;
        let seen = backend.wait_until(|c| c.connections == 0).await;
        assert_eq!((seen.accepted, seen.commands["STATUS"], seen.commands["LOGOUT"]), (2, 2, 2));
        assert!(!seen.commands.contains_key("IDLE") && !seen.commands.contains_key("EXAMINE"));
        watching.stop().await;
    })
    .await;
}

/// A visit that something else has caused was quicker than the event. Another mail comes before the look that the event
/// asks for, and nobody tells of that mail.
#[tokio::test]
async fn an_event_that_comes_behind_the_look_at_its_mail_hides_no_other_mail() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let mut watching = resting(&world, &backend).await;
        let inbox = || Some(Mailbox::inbox());
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        hint(&watching, inbox(), MailboxEvent::FlagsSet, Snapshot::default()).await;
        watching.expect(&["INBOX: new mail, next 2 of 1 with 1 unseen"]).await;
        until_resting(&world, &watching).await;
        new_mail(&watching).await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        watching.expect(&["INBOX: new mail, next 3 of 2 with 2 unseen"]).await;
        watching.stop().await;
    })
    .await;
}

/// Another node had the event of the first mail, and has marked the mailbox for it. So none is on its way to this node.
#[tokio::test]
async fn mail_that_comes_after_mail_of_which_another_node_was_told_is_announced() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let (others, cluster) = Others::new(true);
        let mut watching = world.watch_beside(cluster);
        backend.wait_until(|c| c.commands.contains_key("LOGOUT") && c.connections == 0).await;
        until_resting(&world, &watching).await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        let mark = DueMark {
            account: Account::from_login("alice"),
            mailbox: Some(Mailbox::inbox()),
            state: None,
            shown_flags: false,
            is_due: true,
            for_another_node: true,
        };
        world.store.mark_due(&[], &[mark], Timestamp::now()).await.unwrap();
        others.tell("alice", false).await;
        watching.expect(&["INBOX: new mail, next 2 of 1 with 1 unseen"]).await;
        until_resting(&world, &watching).await;
        new_mail(&watching).await;
        watching.expect(&["INBOX: new mail, announced"]).await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        watching.expect(&["INBOX: confirmed, next 3 of 2 with 2 unseen"]).await;
        watching.stop().await;
    })
    .await;
}

/// The source repeats the event of the first mail, whose push is as good as its own to the second.
#[tokio::test]
async fn an_event_that_comes_twice_hides_no_other_mail() {
    limited(async {
        let backend = backend().await;
        let world = world(&backend).await;
        let mut watching = resting(&world, &backend).await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        new_mail(&watching).await;
        let announced = "INBOX: new mail, announced";
        watching.expect(&[announced, "INBOX: confirmed, next 2 of 1 with 1 unseen"]).await;
        until_resting(&world, &watching).await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        new_mails(&watching, 2).await;
        watching.expect(&[announced, "INBOX: new mail, next 3 of 2 with 2 unseen"]).await;
        watching.stop().await;
    })
    .await;
}
