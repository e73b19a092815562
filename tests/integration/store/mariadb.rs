//! What is peculiar to MariaDB.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use mailchime::config::DatabaseUrl;
use mailchime::demo::pki::Pki;
use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection, Row};

use super::*;
use crate::support::log::Log;
use crate::support::servers::forwarder::Forwarder;
use crate::support::servers::mariadb::MariaDb;
use crate::support::servers::{DatabaseServer, pki};
use crate::support::{limited, until};

/// A database of its own for one test, on a server that the tests share.
pub(super) struct Database {
    pub(super) url: String,
}

impl Database {
    /// `None`, having said so, where there is no server.
    pub(super) async fn make(test: &str) -> Option<Self> {
        static SERVER: OnceLock<Option<MariaDb>> = OnceLock::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let Some(server) = SERVER.get_or_init(|| MariaDb::start(test)).as_ref() else {
            crate::support::skip::report(test, "there is no MariaDB");
            return None;
        };
        let name = format!("test{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut connection = MySqlConnection::connect(&server.url("mysql")).await.unwrap();
        connection.execute(AssertSqlSafe(format!("create database {name}"))).await.unwrap();
        connection.close().await.unwrap();
        Some(Self { url: server.url(&name) })
    }

    fn url(&self) -> DatabaseUrl {
        self.url.parse().unwrap()
    }

    pub(super) async fn open(&self) -> Store {
        Store::open(&self.url(), Duration::from_secs(30)).await.unwrap()
    }

    /// A connection beside the store's own.
    pub(super) async fn beside(&self) -> MySqlConnection {
        MySqlConnection::connect(&self.url).await.unwrap()
    }
}

#[tokio::test]
async fn every_session_reads_what_is_committed_and_waits_with_an_end() {
    let test = "store::mariadb::every_session_reads_what_is_committed_and_waits_with_an_end";
    let Some(database) = Database::make(test).await else { return };
    limited(async {
        let store = Store::open(&database.url(), Duration::from_millis(4321)).await.unwrap();
        let mut beside = database.beside().await;
        // A trigger that looks at the session that writes.
        for statement in [
            "create table seen (name varchar(64), value text)",
            "create trigger see before insert on account for each row insert into seen values \
             ('isolation', @@tx_isolation), ('wait', @@innodb_lock_wait_timeout), \
             ('lock', @@lock_wait_timeout), ('statement', @@max_statement_time), \
             ('idle', @@idle_transaction_timeout)",
        ] {
            beside.execute(statement).await.unwrap();
        }
        register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
        for (name, expected) in [
            ("isolation", "READ-COMMITTED"),
            ("wait", "5"),
            ("lock", "5"),
            ("statement", "10"),
            ("idle", "10"),
        ] {
            let row = sqlx::query("select value from seen where name = ?").bind(name);
            let value: String = row.fetch_one(&mut beside).await.unwrap().get(0);
            let value = value.trim_end_matches('0').trim_end_matches('.');
            assert_eq!(value, expected.trim_end_matches('0'), "{name}");
        }
    })
    .await;
}

/// To close one is a packet without an answer, after which the driver's next one waits.
#[tokio::test]
async fn a_session_that_writes_closes_no_statement() {
    let test = "store::mariadb::a_session_that_writes_closes_no_statement";
    let Some(database) = Database::make(test).await else { return };
    limited(async {
        let store = database.open().await;
        let mut beside = database.beside().await;
        for statement in [
            "create table seen (closed bigint)",
            "create trigger see before insert on account for each row insert into seen \
             select variable_value from information_schema.session_status \
             where variable_name = 'com_stmt_close'",
        ] {
            beside.execute(statement).await.unwrap();
        }
        for user in ["alice", "bob", "carol", "dave"] {
            let account = Account::from_login(user);
            register(&store, device(&account, 'a'), &["INBOX", "Sent"], 5, 100).await;
            owe(&store, key(&account, 'a'), "INBOX").await;
        }
        let seen = sqlx::query("select cast(count(*) as signed), max(closed) from seen");
        let row = seen.fetch_one(&mut beside).await.unwrap();
        assert_eq!((row.get::<i64, _>(0), row.get::<i64, _>(1)), (4, 0));
    })
    .await;
}

#[tokio::test]
async fn a_server_that_does_not_write_each_transaction_at_once_is_reported() {
    let test = "store::mariadb::a_server_that_does_not_write_each_transaction_at_once_is_reported";
    let options = ["--innodb-flush-log-at-trx-commit=2"];
    let Some(server) = MariaDb::start_with_options(test, &options) else { return };
    limited(async {
        let log = Log::default();
        let _logged = tracing::subscriber::set_default(log.subscriber(tracing::Level::WARN));
        let url: DatabaseUrl = server.database_url().parse().unwrap();
        Store::open(&url, Duration::from_secs(30)).await.unwrap();
        assert_eq!(log.count("mailchime::store::not_durable"), 1, "{}", log.text());
        assert!(log.text().contains("set innodb_flush_log_at_trx_commit = 1"), "{}", log.text());
    })
    .await;
}

#[tokio::test]
async fn a_server_that_writes_each_transaction_at_once_is_not_reported() {
    let test = "store::mariadb::a_server_that_writes_each_transaction_at_once_is_not_reported";
    let Some(database) = Database::make(test).await else { return };
    limited(async {
        let log = Log::default();
        let _logged = tracing::subscriber::set_default(log.subscriber(tracing::Level::WARN));
        database.open().await;
        assert_eq!(log.count("mailchime::store::not_durable"), 0, "{}", log.text());
    })
    .await;
}

/// By their numbers, as several have the SQLSTATE of all others.
#[tokio::test]
async fn what_may_pass_is_told_from_what_stays() {
    let test = "store::mariadb::what_may_pass_is_told_from_what_stays";
    let Some(database) = Database::make(test).await else { return };
    limited(async {
        let store = database.open().await;
        let mut beside = database.beside().await;
        // A lock wait, a deadlock, a record that has changed; too long, too many connections, shutdown, killed; a
        // disk and a table that are full; a server that became a replica.
        let pass = [1205, 1213, 1020, 1969, 3024, 1040, 1203, 1226, 1053, 1927, 1317, 1021, 1114];
        let pass = pass.into_iter().chain([1041, 1047, 1105, 1152, 1637, 1290, 1792, 1836]);
        // A duplicate, a foreign key, no right, no column, no such syntax.
        let stay = [1062, 1452, 1142, 1054, 1064];
        for (number, temporary) in
            pass.map(|number| (number, true)).chain(stay.map(|number| (number, false)))
        {
            let failing = format!(
                "create or replace trigger fail before insert on subscription for each row \
                 signal sqlstate 'HY000' set mysql_errno = {number}, message_text = 'as if'"
            );
            beside.execute(AssertSqlSafe(failing)).await.unwrap();
            let registration = registration(device(&alice(), 'a'), &["INBOX"], 5);
            let refused =
                store.register(&registration, by(&imap(), None), 10, EVER).await.unwrap_err();
            assert_eq!(refused.is_temporary(), temporary, "{number}: {refused:?}");
            assert!(refused.to_string().contains("as if"), "{number}: {refused}");
        }
        beside.execute("drop trigger fail").await.unwrap();
        register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
    })
    .await;
}

/// A number of the server's status.
async fn number(name: &str, watching: &mut MySqlConnection) -> i64 {
    let status = "select cast(variable_value as signed) from information_schema.global_status \
                  where variable_name = ?";
    sqlx::query(status).bind(name).fetch_one(watching).await.unwrap().get(0)
}

/// How many calls wait for a row.
const WAITS: &str = "innodb_row_lock_current_waits";

/// Writes to a subscription of alice's, and then to her mailbox.
fn settling(store: &Store) -> tokio::task::JoinHandle<Result<(), StoreError>> {
    let store = store.clone();
    tokio::spawn(async move {
        let (subscription, mailboxes) = (key(&alice(), 'a'), Vec::new());
        let accepted = Settlement::Accepted { subscription, mailboxes, at: Timestamp(7) };
        let mailbox = Mailbox::inbox();
        let told = Settlement::Told { account: alice(), mailbox, snapshot: state(6) };
        store.settle(&[accepted, told]).await
    })
}

#[tokio::test]
async fn a_transaction_that_the_server_ended_for_a_deadlock_is_run_again() {
    let test = "store::mariadb::a_transaction_that_the_server_ended_for_a_deadlock_is_run_again";
    // Nobody else waits there.
    let Some(server) = MariaDb::start(test) else { return };
    limited(async {
        let url = server.database_url();
        let store = Store::open(&url.parse().unwrap(), Duration::from_secs(30)).await.unwrap();
        register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
        let mut watching = MySqlConnection::connect(&url).await.unwrap();
        watching.execute("create table heavy (n int)").await.unwrap();
        let mut beside = MySqlConnection::connect(&url).await.unwrap();
        // Of two transactions the server ends the one that has written less.
        let mut other = beside.begin().await.unwrap();
        other.execute("insert into heavy select seq from seq_1_to_1000").await.unwrap();
        other.execute("update mailbox set messages = 1").await.unwrap();
        let settling = settling(&store);
        until(async || number(WAITS, &mut watching).await > 0).await;
        // Now each waits for the other.
        other.execute("update subscription set pushed_at = 1").await.unwrap();
        other.commit().await.unwrap();
        settling.await.unwrap().unwrap();
        assert_eq!(number("innodb_deadlocks", &mut watching).await, 1);
        assert_eq!(told(&store, &alice(), "INBOX").await, Some(state(6)));
    })
    .await;
}

#[tokio::test]
async fn a_user_who_can_make_no_tables_gets_the_remedy() {
    let test = "store::mariadb::a_user_who_can_make_no_tables_gets_the_remedy";
    let Some(database) = Database::make(test).await else { return };
    limited(async {
        let (rest, name) = database.url.rsplit_once('/').unwrap();
        let mut beside = database.beside().await;
        let user = format!("poor_{name}");
        for statement in [
            format!("create user {user}@'127.0.0.1' identified by 'chime'"),
            format!("grant select, insert, update, delete on {name}.* to {user}@'127.0.0.1'"),
        ] {
            beside.execute(AssertSqlSafe(statement)).await.unwrap();
        }
        let url = format!("{}/{name}", rest.replace("//mc:", &format!("//{user}:")));
        let refused = Store::open(&url.parse().unwrap(), Duration::from_secs(5)).await.unwrap_err();
        assert!(!refused.is_temporary(), "{refused:?}");
        let said = refused.to_string();
        assert!(said.contains("grant it all privileges on the database"), "{said}");
    })
    .await;
}

/// Each change of the schema is on disk by itself: what was made is there, and the rest comes at the next start.
#[tokio::test]
async fn a_schema_that_was_half_made_is_made_whole() {
    let test = "store::mariadb::a_schema_that_was_half_made_is_made_whole";
    let Some(database) = Database::make(test).await else { return };
    limited(async {
        database.open().await.close().await;
        let mut beside = database.beside().await;
        beside
            .execute("drop table invalidation, node, service, subscription_mailbox")
            .await
            .unwrap();
        beside.execute("delete from _sqlx_migrations").await.unwrap();
        let store = database.open().await;
        register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
        store.close().await;
        let store = Store::open_existing(&database.url(), Duration::from_secs(5)).await.unwrap();
        only_target(&store, &alice()).await;
    })
    .await;
}

/// A name that no key can hold is no reason to try again.
#[tokio::test]
async fn an_account_whose_name_is_too_long_is_refused_with_the_remedy() {
    let test = "store::mariadb::an_account_whose_name_is_too_long_is_refused_with_the_remedy";
    let Some(database) = Database::make(test).await else { return };
    limited(async {
        let store = database.open().await;
        let long = Account::from_login(&"a".repeat(513));
        let registration = registration(device(&long, 'a'), &["INBOX"], 5);
        let refused = store.register(&registration, by(&imap(), None), 10, EVER).await.unwrap_err();
        assert!(!refused.is_temporary() && refused.to_string().contains("512"), "{refused}");
    })
    .await;
}

/// MariaDB cuts off what does not fit where its `sql_mode` says nothing else.
#[tokio::test]
async fn a_server_that_cuts_names_off_refuses_them_to_mailchime() {
    let test = "store::mariadb::a_server_that_cuts_names_off_refuses_them_to_mailchime";
    let Some(server) = MariaDb::start_with_options(test, &["--sql-mode="]) else { return };
    limited(async {
        let url = server.database_url().parse().unwrap();
        let store = Store::open(&url, Duration::from_secs(30)).await.unwrap();
        let long = Account::from_login(&"a".repeat(513));
        let registration = registration(device(&long, 'a'), &["INBOX"], 5);
        let refused = store.register(&registration, by(&imap(), None), 10, EVER).await.unwrap_err();
        assert!(refused.to_string().contains("512"), "{refused}");
    })
    .await;
}

/// MariaDB undoes the statement that has waited for too long, and the transaction goes on. The driver hears of it when the
/// next statement is to be sent.
#[tokio::test]
async fn of_a_call_that_was_left_while_it_waited_nothing_is_written_later() {
    let test = "store::mariadb::of_a_call_that_was_left_while_it_waited_nothing_is_written_later";
    // Nobody else waits there.
    let Some(server) = MariaDb::start(test) else { return };
    limited(async {
        let url = server.database_url();
        let store = Store::open(&url.parse().unwrap(), Duration::from_secs(1)).await.unwrap();
        register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
        let mut watching = MySqlConnection::connect(&url).await.unwrap();
        let mut beside = MySqlConnection::connect(&url).await.unwrap();
        let mut other = beside.begin().await.unwrap();
        other.execute("update mailbox set messages = 1").await.unwrap();
        let settling = settling(&store);
        until(async || number(WAITS, &mut watching).await > 0).await;
        settling.abort();
        until(async || number(WAITS, &mut watching).await == 0).await;
        other.rollback().await.unwrap();
        // Whatever connection these get.
        for _ in 0..20 {
            register(&store, device(&bob(), 'b'), &["INBOX"], 5, 100).await;
        }
        let pushed = "select count(*) from subscription where pushed_at = 7";
        let pushed: i64 = sqlx::query(pushed).fetch_one(&mut watching).await.unwrap().get(0);
        assert_eq!(pushed, 0, "a part of the call was written");
    })
    .await;
}

#[tokio::test]
async fn a_row_that_is_locked_costs_a_call_its_wait_once() {
    let test = "store::mariadb::a_row_that_is_locked_costs_a_call_its_wait_once";
    let Some(database) = Database::make(test).await else { return };
    limited(async {
        let store = Store::open(&database.url(), Duration::from_secs(2)).await.unwrap();
        register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
        let mut beside = database.beside().await;
        let mut lock = beside.begin().await.unwrap();
        lock.execute("select * from account for update").await.unwrap();
        let registration = registration(device(&alice(), 'a'), &["Sent"], 5);
        let refused = store.register(&registration, by(&imap(), None), 10, EVER).await.unwrap_err();
        assert!(refused.is_temporary(), "{refused:?}");
        assert!(refused.to_string().contains("Lock wait timeout"), "not tried on: {refused}");
        lock.rollback().await.unwrap();
        store.register(&registration, by(&imap(), None), 10, EVER).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_spoken_to_over_tls() {
    let test = "store::mariadb::a_server_is_spoken_to_over_tls";
    let Some(server) = MariaDb::start_with_tls(test) else { return };
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let (ca, other) = (folder.path().join("ca.pem"), folder.path().join("other.pem"));
        std::fs::write(&ca, &*pki().ca.certificate).unwrap();
        std::fs::write(&other, &*Pki::generate(None).unwrap().ca.certificate).unwrap();
        let with = |host: &str, ca: &Path| -> DatabaseUrl {
            let url = server.url("mail").replace("127.0.0.1", host);
            let ca = ca.display();
            format!("{url}?ssl-mode=verify_identity&ssl-ca={ca}").parse().unwrap()
        };
        let store = Store::open(&with("localhost", &ca), Duration::from_secs(5)).await.unwrap();
        register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
        let mut beside = MySqlConnection::connect(&server.url("mail")).await.unwrap();
        only_target(&store, &alice()).await;
        store.close().await;
        let refused = Store::open(&with("localhost", &other), Duration::from_secs(5)).await;
        let refused = refused.unwrap_err();
        assert!(matches!(refused, StoreError::Unusable { .. }), "another authority: {refused:?}");
        beside
            .execute("create user tls@'127.0.0.1' identified by 'chime' require ssl")
            .await
            .unwrap();
        beside.execute("grant all privileges on mail.* to tls@'127.0.0.1'").await.unwrap();
        let url = |mode: &str| -> DatabaseUrl {
            let url = server.url("mail").replace("mc:", "tls:");
            format!("{url}?ssl-mode={mode}").parse().unwrap()
        };
        let store = Store::open(&url("required"), Duration::from_secs(5)).await.unwrap();
        only_target(&store, &alice()).await;
        let refused = Store::open(&url("disabled"), Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Unusable { .. }), "in the clear: {refused:?}");
    })
    .await;
}

/// The server that was the primary lives, is read-only, and keeps its connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_switchover_behind_one_address_nothing_is_asked_of_the_old_server() {
    let test =
        "store::mariadb::after_a_switchover_behind_one_address_nothing_is_asked_of_the_old_server";
    let (Some(old), Some(new)) = (MariaDb::start(test), MariaDb::start(test)) else { return };
    limited(async {
        let address = Forwarder::start(old.address).await;
        let url: DatabaseUrl = address.url(&old.url("mail"), old.address).parse().unwrap();
        let store = Store::open(&url, Duration::from_secs(15)).await.unwrap();
        // What a replica would have.
        let replica = Store::open(&new.url("mail").parse().unwrap(), Duration::from_secs(15)).await;
        for store in [&store, &replica.unwrap()] {
            register(store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
        }
        let mut beside = MySqlConnection::connect(&old.url("mail")).await.unwrap();
        beside.execute("set global read_only = on").await.unwrap();
        let registration = registration(device(&bob(), 'b'), &["INBOX"], 5);
        for refused in [
            store.register(&registration, by(&imap(), None), 10, EVER).await.map(drop),
            store.targets(&alice(), EVER).await.map(drop),
            store.ping().await,
        ] {
            let refused = refused.unwrap_err();
            assert!(refused.is_temporary(), "{refused:?}");
            assert!(refused.to_string().contains("read-only"), "{refused:?}");
        }
        address.move_to(new.address);
        store.register(&registration, by(&imap(), None), 10, Timestamp(200)).await.unwrap();
        only_target(&store, &alice()).await;
        let mut beside = MySqlConnection::connect(&new.url("mail")).await.unwrap();
        let row = sqlx::query("select count(*) from account").fetch_one(&mut beside).await.unwrap();
        assert_eq!(row.get::<i64, _>(0), 2);
    })
    .await;
}
