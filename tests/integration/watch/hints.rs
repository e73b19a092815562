//! What other sources than an account's own connection say.

use std::time::{Duration, Instant};

use mailchime::demo::backend::Counters;
use mailchime::model::{Account, Hint, Mailbox, MailboxEvent, SessionEvent, Snapshot};
use mailchime::watch::HintError;
use sqlx::{Connection, Executor, SqliteConnection};

use super::mail::{backend, idling, world};
use super::on_demand;
use crate::support::limited;
use crate::support::stage::{Stage, stop};
use crate::support::watching::{PASSWORD, Watching, credentials, told};

const STATUS: &str = "STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)";

pub(super) async fn hint(
    watching: &Watching,
    mailbox: Option<Mailbox>,
    event: MailboxEvent,
    state: Snapshot,
) {
    hints(watching, 1, mailbox, event, state).await;
}

/// So many of them that come together.
pub(super) async fn hints(
    watching: &Watching,
    count: usize,
    mailbox: Option<Mailbox>,
    event: MailboxEvent,
    state: Snapshot,
) {
    let (account, seen_at) = (Account::from_login("alice"), Instant::now());
    let hint = Hint { account, mailbox, event, state, seen_at };
    watching.inquirer.hints(vec![hint; count]).await.unwrap();
}

/// All five numbers of a state.
fn numbers(uid_next: u64, messages: u64, unseen: u64) -> Snapshot {
    told(7, uid_next, messages, unseen)
}

/// Returns when all hints so far have been taken in.
pub(super) async fn taken_in(watching: &Watching) {
    watching.inquirer.watchers(None).await.unwrap();
}

/// A connection that is held needs no numbers of others, which may be wrong: the event has it look.
#[tokio::test]
async fn a_hint_with_numbers_has_a_connected_account_looked_at_and_is_not_believed() {
    limited(async {
        let stage = Stage::new().await;
        let (mut watching, mut peer) = stage.quiet().await;
        let inbox = || Some(Mailbox::inbox());
        hint(&watching, inbox(), MailboxEvent::MessageNew, numbers(99, 80, 77)).await;
        peer.play(&format!("C: DONE\nS: w3 OK done\nC: w4 {STATUS}\n")).await;
        watching.expect_nothing();
        peer.play(
            "\
S: * STATUS INBOX (MESSAGES 6 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 3)
S: w4 OK done
C: w5 IDLE
S: + idling
",
        )
        .await;
        watching.expect(&["INBOX: new mail, next 11 of 6 with 3 unseen"]).await;
        hint(&watching, inbox(), MailboxEvent::MessageRead, numbers(11, 6, 2)).await;
        peer.play(&format!(
            "\
C: DONE
S: w5 OK done
C: w6 {STATUS}
S: * STATUS INBOX (MESSAGES 6 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 2)
S: w6 OK done
C: w7 IDLE
S: + idling
"
        ))
        .await;
        watching.expect(&["INBOX: quiet, next 11 of 6 with 2 unseen"]).await;
        watching.expect_nothing();
        stop(watching, peer).await;
    })
    .await;
}

/// Two mails come and go while the backend is asked. The hint of the second waits meanwhile.
#[tokio::test]
async fn a_hint_from_before_a_look_announces_nothing_after_it() {
    limited(async {
        let stage = Stage::new().await;
        let (mut watching, mut peer) = stage.quiet().await;
        let inbox = || Some(Mailbox::inbox());
        hint(&watching, inbox(), MailboxEvent::MessageExpunge, Snapshot::default()).await;
        peer.play(&format!("C: DONE\nS: w3 OK done\nC: w4 {STATUS}\n")).await;
        let counted = Snapshot { messages: Some(7), ..Snapshot::default() };
        hint(&watching, inbox(), MailboxEvent::MessageNew, counted).await;
        taken_in(&watching).await;
        peer.play(
            "\
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 1)
S: w4 OK done
C: w5 IDLE
S: + idling
",
        )
        .await;
        watching.expect(&["INBOX: quiet, next 10 of 5 with 1 unseen"]).await;
        peer.play(&format!(
            "\
C: DONE
S: w5 OK done
C: w6 {STATUS}
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 1)
S: w6 OK done
C: w7 IDLE
S: + idling
"
        ))
        .await;
        watching.expect_nothing();
        stop(watching, peer).await;
    })
    .await;
}

/// Nothing is said on the connection, and no look would be due for an hour.
#[tokio::test]
async fn a_hint_has_a_connected_account_looked_at_at_once() {
    limited(async {
        let stage = Stage::new().await;
        let (mut watching, mut peer) = stage.quiet().await;
        let none = Snapshot::default();
        // Without numbers, and of an account or a mailbox that is not watched.
        hint(&watching, Some(Mailbox::new("Other")), MailboxEvent::MessageNew, none).await;
        hint(&watching, Some(Mailbox::inbox()), MailboxEvent::MessageNew, none).await;
        peer.play(&format!(
            "\
C: DONE
S: w3 OK done
C: w4 {STATUS}
S: * STATUS INBOX (MESSAGES 6 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 3)
S: w4 OK done
C: w5 IDLE
S: + idling
"
        ))
        .await;
        watching.expect(&["INBOX: new mail, next 11 of 6 with 3 unseen"]).await;
        // Nor does the number of messages announce anything, as EXISTS does.
        let counted = Snapshot { messages: Some(7), ..none };
        hint(&watching, Some(Mailbox::inbox()), MailboxEvent::MessageNew, counted).await;
        peer.play(&format!(
            "\
C: DONE
S: w5 OK done
C: w6 {STATUS}
"
        ))
        .await;
        watching.expect_nothing();
        peer.play(
            "\
S: * STATUS INBOX (MESSAGES 7 UIDNEXT 12 UIDVALIDITY 7 UNSEEN 4)
S: w6 OK done
C: w7 IDLE
S: + idling
",
        )
        .await;
        watching.expect(&["INBOX: new mail, next 12 of 7 with 4 unseen"]).await;
        // Of which mailbox is not said.
        hint(&watching, None, MailboxEvent::MessageRead, none).await;
        peer.play(&format!("C: DONE\nS: w7 OK done\nC: w8 {STATUS}\n")).await;
        watching.expect_nothing();
        stop(watching, peer).await;
    })
    .await;
}

/// The database does not answer while all accounts are read again, and logins of others come first.
async fn logged_in_while_accounts_are_read(others: usize) -> Vec<u8> {
    let backend = backend().await;
    backend.add_account("bob", PASSWORD.as_bytes());
    let mut world = world(&backend).await;
    let url = world.reopened(Duration::from_secs(60)).await;
    let mut watching = idling(&world, &backend).await;
    // Of him the supervisor learns by reading alone.
    world.register("bob", &[("INBOX", told(2, 1, 0, 0))]).await;
    let mut beside = SqliteConnection::connect(&url).await.unwrap();
    // As in rows of earlier versions: the backend is recorded when accounts are read, which is a write.
    beside.execute("update account set backend = null where name = 'bob'").await.unwrap();
    beside.execute("begin immediate").await.unwrap();
    watching.reload(&world.config());
    // What brings nothing takes no place, and neither does one user twice.
    let mut empty = watching.login(credentials("nobody", PASSWORD));
    empty.credentials = None;
    let nobody = SessionEvent::LoggedIn { account: Account::from_login("nobody"), login: empty };
    watching.sessions.send(nobody).await.unwrap();
    for other in (0..others).chain(0..others) {
        watching.logged_in(&format!("user{other}"), PASSWORD).await;
    }
    backend.set_password("bob", b"changed").unwrap();
    watching.logged_in("bob", "changed").await;
    // All that was said before this has been heard.
    watching.registered("alice").await;
    watching.word_of_devices().await;
    beside.execute("rollback").await.unwrap();
    let tries = |c: &Counters| c.refused.contains_key("bob") || c.logins.contains_key("bob");
    backend.wait_until(tries).await;
    let stored = world.stored_password("bob").await;
    watching.stop().await;
    stored
}

#[tokio::test]
async fn a_login_of_an_account_that_is_being_read_is_kept_for_its_watcher() {
    limited(async {
        assert_eq!(logged_in_while_accounts_are_read(1023).await, b"changed");
        // So many are kept, and the next login counts.
        assert_eq!(logged_in_while_accounts_are_read(1024).await, PASSWORD.as_bytes());
    })
    .await;
}

/// All accounts are being read again, and the database does not answer.
#[tokio::test]
async fn a_database_that_hangs_holds_up_nothing_else_that_the_supervisor_does() {
    limited(async {
        let backend = backend().await;
        let mut world = world(&backend).await;
        let url = world.reopened(Duration::from_secs(60)).await;
        let mut watching = idling(&world, &backend).await;
        // What she logs in with is known by then.
        watching.registered("alice").await;
        watching.word_of_devices().await;
        backend.wait_until(|c| c.commands["STATUS"] == 2 && c.idling == 1).await;
        let mut beside = SqliteConnection::connect(&url).await.unwrap();
        beside.execute("begin immediate").await.unwrap();
        // Other backends are in use, so all is read again, which begins with a write.
        watching.reload(&world.config());
        let looks = backend.counters().commands["STATUS"];
        for _ in 0..10 {
            watching.registered("alice").await;
            watching.word_of_devices().await;
        }
        assert_eq!(watching.until("watching").await.account, "alice");
        hint(&watching, None, MailboxEvent::MessageNew, Snapshot::default()).await;
        backend.wait_until(|c| c.commands["STATUS"] > looks).await;
        beside.execute("rollback").await.unwrap();
        watching.stop().await;
    })
    .await;
}

/// The database is busy meanwhile.
#[tokio::test]
async fn as_many_hints_wait_as_may_and_each_call_has_its_own_answer() {
    limited(async {
        let backend = backend().await;
        let mut world = on_demand::world(&backend).await;
        world.most_hints = 6;
        let url = world.reopened(Duration::from_secs(60)).await;
        let watching = on_demand::resting(&world, &backend).await;
        let mut beside = SqliteConnection::connect(&url).await.unwrap();
        beside.execute("begin immediate").await.unwrap();
        let hand_in = |users: &[&str]| {
            let hint = |user: &&str| Hint {
                account: Account::from_login(user),
                mailbox: Some(Mailbox::inbox()),
                event: MailboxEvent::MessageExpunge,
                state: Snapshot::default(),
                seen_at: Instant::now(),
            };
            let (hints, to) = (users.iter().map(hint).collect(), watching.inquirer.clone());
            tokio::spawn(async move { to.hints(hints).await })
        };
        let mut calls = Vec::new();
        for users in [&["alice"][..], &["bob", "alice"], &["alice", "alice", "bob"]] {
            calls.push(hand_in(users));
            tokio::task::yield_now().await;
        }
        taken_in(&watching).await;
        let refused = hand_in(&["alice"]).await.unwrap();
        assert!(matches!(refused, Err(HintError::Busy)), "{refused:?}");
        beside.execute("rollback").await.unwrap();
        for (call, known) in
            calls.into_iter().zip([&[true][..], &[false, true], &[true, true, false]])
        {
            assert_eq!(call.await.unwrap().unwrap(), known);
        }
        watching.stop().await;
    })
    .await;
}

/// A registration that was refused as too late may be on disk all the same, and the next one changes nothing there.
#[tokio::test]
async fn an_account_whose_registration_was_on_disk_already_is_watched_from_then_on() {
    limited(async {
        let backend = backend().await;
        backend.add_account("bob", PASSWORD.as_bytes());
        let world = world(&backend).await;
        let watching = idling(&world, &backend).await;
        // Nobody has told the supervisor.
        world.register("bob", &[("INBOX", told(2, 1, 0, 0))]).await;
        let (account, login) =
            (Account::from_login("bob"), watching.login(credentials("bob", PASSWORD)));
        let again = SessionEvent::RegisteredAgain { account, login };
        watching.sessions.send(again.clone()).await.unwrap();
        backend.wait_until(|c| c.idling == 2).await;
        watching.sessions.send(again).await.unwrap();
        taken_in(&watching).await;
        assert_eq!(backend.counters().accepted, 2, "it is watched already");
        watching.stop().await;
    })
    .await;
}
