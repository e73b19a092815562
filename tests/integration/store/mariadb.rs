//! What is peculiar to MariaDB.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use mailchime::config::DatabaseUrl;
use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection, Row};

use super::*;
use crate::support::limited;
use crate::support::servers::mariadb::MariaDb;

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
    async fn beside(&self) -> MySqlConnection {
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
            assert!(value.contains(expected), "{name}: {value}");
        }
    })
    .await;
}

#[tokio::test]
async fn nodes_that_start_at_once_share_a_new_database() {
    let test = "store::mariadb::nodes_that_start_at_once_share_a_new_database";
    let Some(database) = Database::make(test).await else { return };
    limited(async {
        let (one, two, three) = tokio::join!(database.open(), database.open(), database.open());
        register(&one, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
        only_target(&two, &alice()).await;
        only_target(&three, &alice()).await;
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

#[tokio::test]
async fn a_newer_or_foreign_database_is_refused_untouched() {
    let test = "store::mariadb::a_newer_or_foreign_database_is_refused_untouched";
    let Some(database) = Database::make(test).await else { return };
    limited(async {
        let refused = Store::open_existing(&database.url(), Duration::from_secs(5)).await;
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("is no database of mailchime"), "{refused}");
        database.open().await.close().await;
        let mut beside = database.beside().await;
        let newer = "insert into _sqlx_migrations (version, description, success, checksum, \
                     execution_time) values (9999, 'of tomorrow', true, '', 0)";
        beside.execute(newer).await.unwrap();
        let refused = Store::open(&database.url(), Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Newer { found: 9999, .. }), "{refused:?}");
        beside.execute("delete from _sqlx_migrations where version = 9999").await.unwrap();
        beside.execute("update _sqlx_migrations set checksum = ''").await.unwrap();
        let refused = Store::open(&database.url(), Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Unusable { .. }), "{refused:?}");
    })
    .await;
}

#[tokio::test]
async fn what_is_refused_is_named_with_the_remedy_and_without_the_password() {
    let test = "store::mariadb::what_is_refused_is_named_with_the_remedy_and_without_the_password";
    let Some(database) = Database::make(test).await else { return };
    limited(async {
        let wrong = database.url.replace("chime@", "wr0ng@");
        for url in [wrong, format!("{}-not", database.url)] {
            let url: DatabaseUrl = url.parse().unwrap();
            let refused = Store::open(&url, Duration::from_secs(5)).await.unwrap_err();
            assert!(matches!(refused, StoreError::Unusable { .. }), "{refused:?}");
            let shown = format!("{refused} {refused:?} {url} {url:?}");
            assert!(shown.contains("password"), "{shown}");
            assert!(!shown.contains("wr0ng") && !shown.contains("chime@"), "{shown}");
        }
        // A name that no key can hold is no reason to try again.
        let store = database.open().await;
        let long = Account::from_login(&"a".repeat(513));
        let registration = registration(device(&long, 'a'), &["INBOX"], 5);
        let refused = store.register(&registration, by(&imap(), None), 10, EVER).await.unwrap_err();
        assert!(!refused.is_temporary() && refused.to_string().contains("512"), "{refused}");
    })
    .await;
}

// The server is stopped without the runtime, so the tests' own tasks need another thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_crashes_and_comes_back() {
    let Some(mut server) = MariaDb::start("store::mariadb::a_server_that_crashes") else { return };
    limited(async {
        let mut connection = MySqlConnection::connect(&server.url("mysql")).await.unwrap();
        connection.execute("create database mail").await.unwrap();
        let url: DatabaseUrl = server.url("mail").parse().unwrap();
        let store = Store::open(&url, Duration::from_secs(2)).await.unwrap();
        register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
        server.crash();
        let refused = store.ping().await.unwrap_err();
        assert!(refused.is_temporary(), "{refused:?}");
        server.restart();
        while let Err(error) = store.ping().await {
            assert!(error.is_temporary(), "{error:?}");
        }
        only_target(&store, &alice()).await;
    })
    .await;
}
