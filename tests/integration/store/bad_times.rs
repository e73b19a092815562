//! A database that is slow, locked, full or gone: each call ends in time with an error to try again
//! on, and the store is well again by itself when the database is.

use std::future::poll_fn;
use std::path::Path;
use std::pin::pin;
use std::process::Command;
use std::task::Poll;
use std::time::Instant;

use super::postgres::Database;
use super::*;
use crate::support::servers::DatabaseServer;
use crate::support::servers::forwarder::Forwarder;
use crate::support::servers::mariadb::MariaDb;
use crate::support::servers::postgres::Postgres;
use crate::support::{limited, until};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};

const BUSY: Duration = Duration::from_secs(2);

/// What a call may take beyond `busy_timeout`, and some time for a machine that is busy.
const BOUND: Duration = Duration::from_secs(30);

/// Each kind of call says that it may succeed later, and in time.
async fn unavailable(store: &Store) {
    let registration = registration(device(&alice(), 'a'), &["INBOX"], 5);
    let owed = Settlement::Owed {
        subscription: key(&alice(), 'a'),
        mailbox: Mailbox::inbox(),
        since: Timestamp(1),
    };
    let began = Instant::now();
    let backend = imap();
    let calls = tokio::join!(
        store.register(&registration, by(&backend, None), 10, EVER),
        store.settle(std::slice::from_ref(&owed)),
        async { store.targets(&alice(), EVER).await.map(drop) },
        store.ping(),
    );
    for refused in [calls.0.map(drop), calls.1, calls.2, calls.3].map(Result::unwrap_err) {
        assert!(refused.is_temporary(), "{refused:?}");
        assert!(matches!(refused, StoreError::Unavailable { .. }), "{refused:?}");
    }
    let took = began.elapsed();
    assert!(took < BUSY + BOUND, "{took:?}");
}

/// It is well again by itself: a call that comes while the last connections are replaced may still
/// have to be made anew.
async fn well_again(store: &Store) {
    let registration = registration(device(&alice(), 'a'), &["INBOX"], 5);
    while let Err(error) =
        store.register(&registration, by(&imap(), None), 10, Timestamp(100)).await
    {
        assert!(error.is_temporary(), "{error:?}");
    }
    let targets = loop {
        match store.targets(&alice(), EVER).await {
            Ok(targets) => break targets,
            Err(error) => assert!(error.is_temporary(), "{error:?}"),
        }
    };
    assert_eq!(targets.iter().map(mailboxes).collect::<Vec<_>>(), [["INBOX"]]);
}

/// The same on a server of each kind.
macro_rules! on_each_server {
    ($($case:ident,)+) => {
        mod postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let test = concat!("store::bad_times::postgres::", stringify!($case));
                    let Some(server) = super::Postgres::start(test) else { return };
                    crate::support::limited(super::$case(server)).await;
                }
            )+
        }

        mod mariadb {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let test = concat!("store::bad_times::mariadb::", stringify!($case));
                    let Some(server) = super::MariaDb::start(test) else { return };
                    crate::support::limited(super::$case(server)).await;
                }
            )+
        }
    };
}

// The server is stopped without the runtime, so the tests' own tasks need another thread.
on_each_server! {
    a_server_that_crashes_and_comes_back,
    a_server_that_comes_after_us,
}

async fn a_server_that_crashes_and_comes_back(mut server: impl DatabaseServer) {
    let store = Store::open(&server.database_url().parse().unwrap(), BUSY).await.unwrap();
    well_again(&store).await;
    server.crash();
    unavailable(&store).await;
    server.restart();
    well_again(&store).await;
    store.close().await;
}

async fn a_server_that_comes_after_us(mut server: impl DatabaseServer) {
    server.stop();
    let store = Store::open(&server.database_url().parse().unwrap(), BUSY).await.unwrap();
    unavailable(&store).await;
    server.restart();
    well_again(&store).await;
    store.close().await;
}

#[tokio::test]
async fn connections_that_the_server_ends_are_replaced() {
    let test = "store::bad_times::connections_that_the_server_ends_are_replaced";
    let Some(database) = Database::make(test).await else { return };
    limited(async {
        let store = database.open().await;
        well_again(&store).await;
        let mut beside = database.beside().await;
        let ended: i64 = sqlx::query(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity \
             where application_name = 'mailchime' and datname = current_database()",
        )
        .fetch_one(&mut beside)
        .await
        .unwrap()
        .get(0);
        assert!(ended >= 2, "{ended}");
        well_again(&store).await;
    })
    .await;
}

/// Lets a call go on until it has waited so often, and drops it then. Whether it had ended.
async fn dropped_after(waits: usize, call: impl Future) -> bool {
    let (mut call, mut left) = (pin!(call), waits);
    poll_fn(|cx| match (call.as_mut().poll(cx), left) {
        (Poll::Ready(_), _) => Poll::Ready(true),
        (Poll::Pending, 1) => Poll::Ready(false),
        (Poll::Pending, _) => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_dropped_in_its_middle_leaves_no_transaction_in_its_session() {
    let test = "store::bad_times::a_call_that_is_dropped_in_its_middle_leaves_no_transaction_in_its_session";
    let Some(server) = Postgres::start(test) else { return };
    limited(async {
        let store = Store::open(&server.url().parse().unwrap(), BUSY).await.unwrap();
        well_again(&store).await;
        let registration = registration(device(&alice(), 'a'), &["INBOX"], 5);
        let backend = imap();
        // How often a call waits depends on how quick the server is.
        let mut dropped = 0;
        while dropped < 12 {
            for waits in 1.. {
                let write = store.register(&registration, by(&backend, None), 10, Timestamp(100));
                let ended = [
                    dropped_after(waits, store.all_targets(&alice())).await,
                    dropped_after(waits, store.remove_account(&bob())).await,
                    dropped_after(waits, write).await,
                ];
                // Those that come behind it have its session.
                well_again(&store).await;
                if ended == [true; 3] {
                    break;
                }
                dropped += ended.iter().filter(|ended| !**ended).count();
            }
        }
        store.close().await;
        let log = server.log();
        assert!(!log.contains("transaction in progress"), "{log}");
    })
    .await;
}

#[tokio::test]
async fn a_table_that_is_locked() {
    let Some(database) = Database::make("store::bad_times::a_table_that_is_locked").await else {
        return;
    };
    limited(async {
        let store = database.try_open(BUSY).await.unwrap();
        let mut beside = database.beside().await;
        let mut lock = beside.begin().await.unwrap();
        lock.execute("lock table account, subscription in access exclusive mode").await.unwrap();
        let registration = registration(device(&alice(), 'a'), &["INBOX"], 5);
        let began = Instant::now();
        let refused = store.register(&registration, by(&imap(), None), 10, EVER).await.unwrap_err();
        assert!(refused.is_temporary(), "{refused:?}");
        let refused = store.targets(&alice(), EVER).await.unwrap_err();
        assert!(refused.is_temporary(), "{refused:?}");
        assert!(began.elapsed() >= 2 * BUSY && began.elapsed() < BOUND, "{:?}", began.elapsed());
        let refused = store.ping().await.unwrap_err();
        assert!(refused.is_temporary(), "it asks for what writing needs: {refused:?}");
        lock.rollback().await.unwrap();
        well_again(&store).await;
    })
    .await;
}

/// How many connections wait for a lock.
async fn waiting(connection: &mut PgConnection) -> i64 {
    let waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' \
                   and datname = current_database()";
    sqlx::query(waiting).fetch_one(connection).await.unwrap().get(0)
}

#[tokio::test]
async fn transactions_in_each_others_way() {
    let test = "store::bad_times::transactions_in_each_others_way";
    let Some(database) = Database::make(test).await else { return };
    limited(async {
        // The server looks for a deadlock once for each wait, and ends the transaction for which it
        // looks: that of the store, also where the other one begins to wait seconds later.
        let mut watching = database.beside().await;
        let patience = "do $$ begin execute format('alter database %I set deadlock_timeout = 4000', \
                        current_database()); end $$";
        watching.execute(patience).await.unwrap();
        let store = database.open().await;
        well_again(&store).await;
        let mut beside = database.beside().await;
        let mut other = beside.begin().await.unwrap();
        other.execute("set local deadlock_timeout = '1h'").await.unwrap();
        other.execute("update mailbox set messages = 1").await.unwrap();
        let settling = tokio::spawn({
            let store = store.clone();
            async move {
                let owed = Settlement::Owed {
                    subscription: key(&alice(), 'a'),
                    mailbox: Mailbox::inbox(),
                    since: Timestamp(1),
                };
                let mailbox = Mailbox::inbox();
                let told = Settlement::Told { account: alice(), mailbox, snapshot: state(6) };
                store.settle(&[owed, told]).await
            }
        });
        until(async || waiting(&mut watching).await > 0).await;
        // Now each waits for the other.
        other.execute("update subscription_mailbox set owed_since = null").await.unwrap();
        other.commit().await.unwrap();
        settling.await.unwrap().unwrap();
        assert_eq!(mailboxes(&only_target(&store, &alice()).await), ["INBOX!"]);
        assert_eq!(told(&store, &alice(), "INBOX").await, Some(state(6)));
    })
    .await;
}

#[tokio::test]
async fn a_server_with_a_full_disk_or_too_many_clients() {
    let test = "store::bad_times::a_server_with_a_full_disk_or_too_many_clients";
    let Some(database) = Database::make(test).await else { return };
    limited(async {
        let store = database.open().await;
        let mut beside = database.beside().await;
        let codes = ["53100", "53300", "58030", "57014", "25006", "40001", "08006"];
        for (code, temporary) in
            codes.map(|code| (code, true)).into_iter().chain([("22000", false)])
        {
            let failing = format!(
                "create or replace function fail() returns trigger language plpgsql as $$ begin \
                 raise exception 'as if' using errcode = '{code}'; end $$; \
                 create or replace trigger fail before insert on subscription execute function fail()"
            );
            beside.execute(AssertSqlSafe(failing)).await.unwrap();
            let registration = registration(device(&alice(), 'a'), &["INBOX"], 5);
            let refused =
                store.register(&registration, by(&imap(), None), 10, EVER).await.unwrap_err();
            assert_eq!(refused.is_temporary(), temporary, "{code}: {refused:?}");
            beside.execute("drop trigger fail on subscription").await.unwrap();
            well_again(&store).await;
            store.remove_account(&alice()).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_that_says_nothing_any_more() {
    let test = "store::bad_times::a_server_that_says_nothing_any_more";
    let Some(database) = Database::make(test).await else { return };
    limited(async {
        let network = Forwarder::start(database.address).await;
        let url = network.url(&database.url, database.address);
        let patience = Duration::from_secs(15);
        let store = Store::open(&url.parse().unwrap(), patience).await.unwrap();
        well_again(&store).await;
        // As many calls as there are connections are waiting for a lock when it happens.
        let mut beside = database.beside().await;
        let mut watching = database.beside().await;
        let mut lock = beside.begin().await.unwrap();
        lock.execute("lock table account, subscription in access exclusive mode").await.unwrap();
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let (reading, writing) = (store.clone(), store.clone());
            calls.spawn(async move { reading.all_targets(&alice()).await.map(drop) });
            calls.spawn(async move { writing.remove_account(&bob()).await.map(drop) });
        }
        until(async || waiting(&mut watching).await >= 8).await;
        // Those of several callers in one statement wait for a connection.
        for _ in 0..4 {
            let reading = store.clone();
            calls.spawn(async move { reading.targets(&alice(), EVER).await.map(drop) });
        }
        network.freeze();
        let began = Instant::now();
        while let Some(refused) = calls.join_next().await {
            let refused = refused.unwrap().unwrap_err();
            assert!(refused.is_temporary(), "{refused:?}");
        }
        assert!(began.elapsed() < patience + BOUND, "{:?}", began.elapsed());
        lock.rollback().await.unwrap();
        network.thaw();
        // The connections from before are given up; nobody waits for them.
        while store.ping().await.is_err() {}
        well_again(&store).await;
    })
    .await;
}

#[tokio::test]
async fn a_sqlite_file_on_a_full_disk() {
    let test = "store::bad_times::a_sqlite_file_on_a_full_disk";
    let folder = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=600k", "tmpfs"])
        .arg(folder.path())
        .output()
        .is_ok_and(|output| output.status.success());
    if !mounted {
        crate::support::skip::report(test, "no file system can be mounted");
        return;
    }
    let _unmounting = Unmounting(folder.path());
    limited(async {
        let store = open(&folder).await;
        well_again(&store).await;
        let filler = folder.path().join("filler");
        // Whatever is left of it.
        let _ = std::fs::write(&filler, vec![0; 1024 * 1024]);
        let mut stored = 1;
        let refused = loop {
            let account = Account::from_login(&format!("user{stored}@example.org"));
            let registration = registration(device(&account, 'b'), &["INBOX"; 1], 5);
            match store.register(&registration, by(&imap(), None), 10, EVER).await {
                Ok(_) => stored += 1,
                Err(error) => break error,
            }
            assert!(stored < 10_000, "it is never full");
        };
        assert!(refused.is_temporary(), "{refused:?}");
        assert_eq!(store.accounts(EVER).await.unwrap().len(), stored, "reading goes on");
        std::fs::remove_file(&filler).unwrap();
        well_again(&store).await;
        register(&store, device(&bob(), 'c'), &["INBOX"], 5, 100).await;
        assert_eq!(store.accounts(EVER).await.unwrap().len(), stored + 1);
        store.close().await;
    })
    .await;
}

/// Unmounts a file system, however the test ends.
struct Unmounting<'a>(&'a Path);

impl Drop for Unmounting<'_> {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}
