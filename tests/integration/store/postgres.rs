//! What is peculiar to PostgreSQL: that it lets in whom it knows, over TLS, and by a password.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use mailchime::config;
use mailchime::demo::pki::Pki;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};

use super::*;
use crate::support::limited;
use crate::support::servers::postgres::Postgres;

/// What says in a URL that no pooler stands before the server.
pub(super) const KEPT: &str = "?statement-cache-capacity=100";

/// A database of its own for one test, on a server that the tests share.
pub(super) struct Database {
    pub(super) url: String,
    pub(super) address: SocketAddr,
}

impl Database {
    /// `None`, having said so, where there is no server.
    pub(super) async fn make(test: &str) -> Option<Self> {
        static SERVER: OnceLock<Option<Postgres>> = OnceLock::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let Some(server) = SERVER.get_or_init(|| Postgres::start(test)).as_ref() else {
            crate::support::skip::report(test, "there is no PostgreSQL");
            return None;
        };
        let name = format!("test{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut connection = PgConnection::connect(&server.url()).await.unwrap();
        connection.execute(AssertSqlSafe(format!("create database {name}"))).await.unwrap();
        connection.close().await.unwrap();
        let url = server.url().strip_suffix("postgres").unwrap().to_owned() + &name;
        Some(Self { url, address: server.address })
    }

    pub(super) async fn open(&self) -> Store {
        self.try_open(Duration::from_secs(30)).await.unwrap()
    }

    /// With statements that sessions keep prepared, and that stand alone where they can.
    pub(super) async fn kept(&self) -> Store {
        let url = format!("{}{KEPT}", self.url);
        Store::open(&url.parse().unwrap(), Duration::from_secs(30)).await.unwrap()
    }

    pub(super) async fn try_open(&self, busy_timeout: Duration) -> Result<Store, StoreError> {
        Store::open(&self.url.parse().unwrap(), busy_timeout).await
    }

    /// A connection beside the store's own.
    pub(super) async fn beside(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.unwrap()
    }
}

#[tokio::test]
async fn every_connection_is_durable_and_waits_with_an_end() {
    let test = "store::postgres::every_connection_is_durable_and_waits_with_an_end";
    let Some(database) = Database::make(test).await else { return };
    limited(async {
        let mut beside = database.beside().await;
        let careless = "do $$ begin execute format('alter database %I set synchronous_commit = \
                        off', current_database()); \
                        execute format('alter database %I set default_transaction_isolation = \
                        serializable', current_database()); end $$";
        beside.execute(careless).await.unwrap();
        // Where statements are kept, the session has the settings, else each transaction.
        for (device_of, of_statements) in [('a', ""), ('b', KEPT)] {
            let url = format!("{}{of_statements}", database.url).parse().unwrap();
            let store = Store::open(&url, Duration::from_millis(4321)).await.unwrap();
            // A trigger that looks at the connection that writes.
            beside
                .execute(
                    "drop table if exists seen; \
                     create table seen as select ''::text as name, ''::text as value where false; \
                     create or replace function see() returns trigger language plpgsql as $$ begin \
                     insert into seen select name, setting from pg_settings; return new; end $$; \
                     create or replace trigger see before insert on subscription \
                     for each row execute function see()",
                )
                .await
                .unwrap();
            register(&store, device(&alice(), device_of), &["INBOX"], 5, 100).await;
            for (name, expected) in [
                ("synchronous_commit", "on"),
                ("lock_timeout", "4321"),
                ("statement_timeout", "9321"),
                ("idle_in_transaction_session_timeout", "9321"),
                ("transaction_isolation", "read committed"),
                // Of a statement that stands alone.
                (
                    "default_transaction_isolation",
                    if of_statements == KEPT { "read committed" } else { "serializable" },
                ),
                ("application_name", "mailchime"),
            ] {
                let row = sqlx::query("select value from seen where name = $1").bind(name);
                let value: String = row.fetch_one(&mut beside).await.unwrap().get(0);
                assert_eq!(value, expected, "{name} with {of_statements:?}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn no_password_is_shown() {
    let test = "store::postgres::no_password_is_shown";
    let Some(database) = Database::make(test).await else { return };
    limited(async {
        let address = database.address;
        let store = database.open().await;
        let mut shown = vec![
            format!("{store:?} {store:#?}"),
            format!(
                "{:?}",
                config::StoreConfig { url: database.url.parse().unwrap(), ..Default::default() }
            ),
        ];
        assert!(database.url.contains("chime@"), "there is a password to be shown");
        assert!(shown[1].contains(&format!("postgres://{address}/")), "{shown:?}");
        for (url, is_unusable) in [
            (format!("postgres://mc:wr0ng@{address}/postgres"), true),
            (format!("postgres://{address}/postgres?user=mc&password=wr0ng"), true),
            (format!("postgres://mc:wr0ng@{address}/postgres?sslmode=never"), true),
            (format!("postgres://mc:wr0ng@{address}/postgres?sslmode=require"), true),
            ("postgres://mc:wr0ng@[::1/x".to_owned(), true),
            ("postgres://mc:wr0ng@127.0.0.1:1/x".to_owned(), false),
            ("mysql://mc:wr0ng@127.0.0.1:1/x".to_owned(), false),
            ("oracle://mc:wr0ng@127.0.0.1:1/x".to_owned(), true),
        ] {
            let url = match url.parse::<config::DatabaseUrl>() {
                Ok(url) => url,
                Err(refused) => {
                    assert!(is_unusable, "{refused}");
                    shown.push(refused);
                    continue;
                }
            };
            match Store::open(&url, Duration::from_millis(10)).await {
                Ok(store) => {
                    assert!(!is_unusable, "{url}");
                    let refused = store.ping().await.unwrap_err();
                    assert!(refused.is_temporary(), "{refused:?}");
                    shown.push(format!("{refused} {refused:?} {store:?}"));
                }
                Err(refused) => {
                    assert!(
                        is_unusable && matches!(refused, StoreError::Unusable { .. }),
                        "{url}: {refused:?}"
                    );
                    shown.push(format!("{refused} {refused:?}"));
                }
            }
        }
        for shown in shown {
            assert!(!shown.contains("wr0ng") && !shown.contains("mc:"), "{shown}");
            assert!(!shown.contains("chime@"), "{shown}");
        }
    })
    .await;
}

#[tokio::test]
async fn what_does_not_exist_is_named_with_the_remedy() {
    let test = "store::postgres::what_does_not_exist_is_named_with_the_remedy";
    let Some(database) = Database::make(test).await else { return };
    limited(async {
        let url = format!("{}-not", database.url);
        let refused = Store::open(&url.parse().unwrap(), Duration::from_secs(1)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Unusable { .. }), "{refused:?}");
        let shown = refused.to_string();
        assert!(shown.contains("does not exist") && shown.contains("PGPASSWORD"), "{shown}");
        // A user who may do nothing.
        let mut beside = database.beside().await;
        beside
            .execute("drop role if exists guest; create role guest login password 'guest'")
            .await
            .unwrap();
        let url = database.url.replace("mc:chime@", "guest:guest@");
        let refused = Store::open(&url.parse().unwrap(), Duration::from_secs(1))
            .await
            .unwrap_err()
            .to_string();
        assert!(refused.contains("permission denied") && refused.contains("own"), "{refused}");
    })
    .await;
}

/// Writes a file of the server's and closes it to others.
async fn place(connection: &mut PgConnection, path: &str, text: &str) {
    let lines = text.trim_end().replace('\n', "','");
    let copy = format!(
        "copy (select unnest(array['{lines}'])) to program 'cat > {path}; chmod 600 {path}'"
    );
    connection.execute(AssertSqlSafe(copy)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_spoken_to_over_tls() {
    let Some(server) = Postgres::start("store::postgres::a_server_is_spoken_to_over_tls") else {
        return;
    };
    limited(async {
        let pki = Pki::generate(None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        pki.write_to(folder.path()).unwrap();
        let read = |name| std::fs::read_to_string(folder.path().join(name)).unwrap();
        let mut beside = PgConnection::connect(&server.url()).await.unwrap();
        place(&mut beside, "server.crt", &read("server.pem")).await;
        place(&mut beside, "server.key", &read("server.key")).await;
        beside.execute("alter system set ssl = on").await.unwrap();
        beside.execute("select pg_reload_conf()").await.unwrap();
        let with = |ca: &str, host: &str| {
            let ca = folder.path().join(ca);
            let url = server.url().replace("127.0.0.1", host);
            format!("{url}?sslmode=verify-full&sslrootcert={}", ca.display())
        };
        // The server takes a moment to see its new settings.
        let store = loop {
            match Store::open(&with("ca.pem", "localhost").parse().unwrap(), Duration::from_secs(5))
                .await
            {
                Ok(store) => break store,
                Err(error) => assert!(error.to_string().contains("TLS"), "{error:?}"),
            }
        };
        register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
        let encrypted: bool = sqlx::query(
            "select bool_and(ssl) from pg_stat_ssl join pg_stat_activity using (pid) \
             where application_name = 'mailchime'",
        )
        .fetch_one(&mut beside)
        .await
        .unwrap()
        .get(0);
        assert!(encrypted);
        store.close().await;

        // Another authority.
        Pki::generate(None).unwrap().write_to(&folder.path().join("other")).unwrap();
        let url = with("other/ca.pem", "localhost");
        let refused = Store::open(&url.parse().unwrap(), Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Unusable { .. }), "{refused:?}");
    })
    .await;
}
