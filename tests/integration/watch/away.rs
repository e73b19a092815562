//! Accounts without a connection whose backend cannot be reached, or is asked for as many as it may be.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use mailchime::config::{DoveadmConfig, WatchConnection};
use mailchime::metrics::Watching as Mode;
use mailchime::model::{Account, Mailbox, MailboxEvent, SessionEvent, Snapshot, Timestamp};
use mailchime::store::DueMark;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpListener;
use tracing::Level;

use super::hints::hint;
use super::mail::backend;
use super::on_demand::{resting, until_resting, world};
use crate::support::log::Log;
use crate::support::stage::{IDLE, Stage};
use crate::support::watching::{PASSWORD, told};
use crate::support::{later, limited, patient, until};

const MAIL: &str = "Subject: hello\r\n\r\nHi there\r\n";

#[tokio::test]
async fn an_account_whose_backend_is_away_shows_that_until_it_is_back_and_numbers_are_told() {
    patient(async {
        let backend = backend().await;
        let mut world = world(&backend).await;
        let retry = Duration::from_mins(10);
        (world.watch.retry_min, world.watch.retry_max) = (retry, retry);
        let mut watching = resting(&world, &backend).await;
        backend.refuse().await;
        let inbox = || Some(Mailbox::inbox());
        hint(&watching, inbox(), MailboxEvent::FlagsSet, Snapshot::default()).await;
        let away = watching.until("backing_off").await;
        // They do not wait for the next try, nor is there one.
        hint(&watching, inbox(), MailboxEvent::MessageNew, told(1, 2, 1, 1)).await;
        watching.expect(&["INBOX: new mail, next 2 of 1 with 1 unseen"]).await;
        let still = watching.until("backing_off").await;
        assert_eq!((still.since, still.next_try_at), (away.since, away.next_try_at));
        backend.resume().await.unwrap();
        later(retry).await;
        until_resting(&world, &watching).await;
        watching.stop().await;
    })
    .await;
}

/// More of them than may be asked for at once.
const MANY: usize = 300;

#[tokio::test]
async fn the_accounts_of_a_backend_that_is_away_wait_together_in_a_sweep() {
    patient(async {
        let backend = backend().await;
        let mut world = world(&backend).await;
        let retry = Duration::from_mins(10);
        (world.watch.retry_min, world.watch.retry_max) = (retry, retry);
        for number in 1..MANY {
            let user = format!("user{number}");
            backend.add_account(&user, PASSWORD.as_bytes());
            world.register(&user, &[("INBOX", told(1, 1, 0, 0))]).await;
        }
        backend.refuse().await;
        let log = Log::default();
        let _logs = tracing::subscriber::set_default(log.subscriber(Level::INFO));
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let before = tasks();
        let mut watching = world.watch();
        let many = i64::try_from(MANY).unwrap();
        let wait = async || watching.metrics.sweep_waiting.get() == many && tasks() < before + 20;
        until(wait).await;
        let tries = async || {
            let all = watching.inquirer.watchers(None).await.unwrap();
            let away = all.into_iter().filter(|it| it.state == "backing_off");
            away.filter_map(|it| it.next_try_at).collect::<Vec<_>>()
        };
        let first = tries().await;
        assert!((1..MANY).contains(&first.len()), "{}", first.len());
        assert!(first.iter().all(|at| *at == first[0]), "{first:?}");
        // One tries for all of them.
        later(retry).await;
        until(async || tries().await.iter().filter(|at| **at != first[0]).count() == 1).await;
        until(wait).await;
        assert_eq!(log.count("the backend cannot be reached"), 1);
        assert_eq!(backend.counters().accepted, 0);
        backend.resume().await.unwrap();
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        later(retry).await;
        watching.expect(&["INBOX: new mail, next 2 of 1 with 1 unseen"]).await;
        until(async || world.store.due_accounts().await.unwrap().is_empty()).await;
        until(async || watching.watched(Mode::OnDemand) == MANY).await;
        assert_eq!(backend.counters().accepted, MANY as u64);
        assert_eq!(log.count("the backend can be reached again"), 1);
        watching.stop().await;
    })
    .await;
}

/// Its calls are for many accounts: where one fails, nothing is known of any of them.
#[tokio::test]
async fn the_accounts_wait_together_where_doveadm_is_away_too() {
    patient(async {
        let backend = backend().await;
        let mut world = world(&backend).await;
        let retry = Duration::from_mins(10);
        (world.watch.retry_min, world.watch.retry_max) = (retry, retry);
        let doveadm = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let key_file = world.folder.path().join("doveadm.key");
        std::fs::write(&key_file, "sesame\n").unwrap();
        std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let url = format!("http://{}/doveadm/v1", doveadm.local_addr().unwrap()).parse().unwrap();
        world.doveadm = Some(DoveadmConfig { url, key_file });
        let mut watching = world.watch();
        let away = loop {
            tokio::select! {
                call = doveadm.accept() => drop(call.unwrap()),
                away = watching.until("backing_off") => break away,
            }
        };
        assert!(away.next_try_at.is_some() && away.reason.unwrap().starts_with("doveadm: "));
        until(async || watching.metrics.sweep_waiting.get() == 1).await;
        later(retry).await;
        let mut asks = BufStream::new(doveadm.accept().await.unwrap().0);
        let mut line = String::new();
        // To the end of the one command.
        while !line.ends_with(",\"0\"]]") {
            line.push(char::from(asks.read_u8().await.unwrap()));
        }
        let body = r#"[["doveadmResponse",[{"mailbox":"INBOX","uidvalidity":"1","uidnext":"2","messages":"1","unseen":"1"}],"0"]]"#;
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        asks.write_all(answer.as_bytes()).await.unwrap();
        asks.flush().await.unwrap();
        watching.expect(&["INBOX: new mail, next 2 of 1 with 1 unseen"]).await;
        until_resting(&world, &watching).await;
        assert_eq!(backend.counters().accepted, 0);
        watching.stop().await;
    })
    .await;
}

/// So do those that are to be asked for once more, after a session or since a mailbox was left due.
#[tokio::test]
async fn an_account_that_is_to_be_asked_for_again_waits_until_its_backend_has_room() {
    limited(async {
        let mut stage = Stage::new().await;
        let watch = &mut stage.world.watch;
        (watch.connection, watch.poll_interval) =
            (WatchConnection::OnDemand, Duration::from_secs(1));
        stage.world.connect_timeout = Duration::from_hours(1);
        let watching = stage.world.watch();
        let mut peer = stage.accept().await;
        peer.play(IDLE).await;
        peer.play(
            "\
C: w1 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2)
S: w1 OK done
C: w2 LOGOUT
S: * BYE
S: w2 OK out
",
        )
        .await;
        until_resting(&stage.world, &watching).await;

        // From now on the backend answers nobody.
        let users: Vec<_> = (1..MANY).map(|number| format!("user{number}")).collect();
        let mut marks = Vec::new();
        for user in &users {
            stage.world.register(user, &[("INBOX", told(1, 1, 0, 0))]).await;
            let (account, mailbox) = (Account::from_login(user), None);
            let (state, is_due, for_another_node) = (None, true, true);
            marks.push(DueMark { account, mailbox, state, is_due, for_another_node });
        }
        stage.world.store.mark_due(&[], &marks, Timestamp::now()).await.unwrap();
        for user in &users {
            watching.registered(user).await;
        }
        let account = Account::from_login("alice");
        watching.sessions.send(SessionEvent::Ended { account: account.clone() }).await.unwrap();
        let waits = async || {
            let told = watching.inquirer.watchers(Some(account.clone())).await.unwrap();
            let reason = told[0].reason.as_deref().unwrap_or_default();
            assert_eq!(told[0].state, "watching", "it has a task: {reason}");
            reason == "it waits for its turn to be asked for"
        };
        until(waits).await;
        watching.stop().await;
    })
    .await;
}
