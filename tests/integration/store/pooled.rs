//! PgBouncer with pooling by transaction: a session of the server is another client's after each
//! transaction, so nothing of a call may outlive it there, nor be expected to.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};

use super::*;
use crate::support::limited;
use crate::support::servers::pgbouncer::{IGNORES, PgBouncer};
use crate::support::servers::postgres::Postgres;

/// A database of its own for one test, behind a PgBouncer that the tests share.
pub(super) struct Database {
    /// Through PgBouncer.
    url: String,
    direct: String,
}

impl Database {
    /// `None`, having said so, where there is none.
    pub(super) async fn make(test: &str) -> Option<Self> {
        static SERVERS: OnceLock<Option<(Postgres, PgBouncer)>> = OnceLock::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let servers = SERVERS.get_or_init(|| {
            let server = Postgres::start(test)?;
            let bouncer = PgBouncer::start(test, &server, "transaction", IGNORES)?;
            Some((server, bouncer))
        });
        let Some((server, bouncer)) = servers.as_ref() else {
            crate::support::skip::report(test, "there is no PgBouncer");
            return None;
        };
        let name = format!("test{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut connection = PgConnection::connect(&server.url()).await.unwrap();
        connection.execute(AssertSqlSafe(format!("create database {name}"))).await.unwrap();
        connection.close().await.unwrap();
        let direct = server.url().strip_suffix("postgres").unwrap().to_owned() + &name;
        Some(Self { url: bouncer.url(&direct, server.address), direct })
    }

    pub(super) async fn open(&self) -> Store {
        Store::open(&self.url.parse().unwrap(), Duration::from_secs(10)).await.unwrap()
    }
}

/// What a client of PgBouncer's finds in whatever session of the server it gets.
async fn found(connection: &mut PgConnection, what: &str) -> String {
    let sql = format!("select ({what})::text");
    sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(connection).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_the_server_are_left_as_they_were() {
    let test = "store::pooled::sessions_of_the_server_are_left_as_they_were";
    let Some(database) = Database::make(test).await else { return };
    limited(async {
        let mut direct = PgConnection::connect(&database.direct).await.unwrap();
        let careless = "do $$ begin execute format('alter database %I set synchronous_commit = \
                        off', current_database()); end $$";
        direct.execute(careless).await.unwrap();
        let store = database.open().await;
        let settings = ["lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"];
        // A trigger that looks at the session that writes.
        direct
            .execute(
                "create table seen as select ''::text as name, ''::text as value where false; \
                 create function see() returns trigger language plpgsql as $$ begin \
                 insert into seen select name, setting from pg_settings; return new; end $$; \
                 create trigger see before insert on account for each row execute function see()",
            )
            .await
            .unwrap();
        register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
        for (name, expected) in [
            (settings[0], "10000"),
            (settings[1], "15000"),
            (settings[2], "15000"),
            ("synchronous_commit", "on"),
        ] {
            let row = sqlx::query("select value from seen where name = $1").bind(name);
            let value: String = row.fetch_one(&mut direct).await.unwrap().get(0);
            assert_eq!(value, expected, "{name}");
        }
        // All sessions at once, so that each is looked at.
        let mut others = Vec::new();
        for _ in 0..3 {
            let mut other = PgConnection::connect(&database.url).await.unwrap();
            sqlx::raw_sql("begin").execute(&mut other).await.unwrap();
            others.push(other);
        }
        for other in &mut others {
            for name in settings {
                let what = format!("current_setting('{name}')");
                assert_eq!(found(other, &what).await, "0", "{name}");
            }
            let prepared = "select count(*) from pg_prepared_statements";
            assert_eq!(found(other, prepared).await, "0");
            let locks = "select count(*) from pg_locks \
                         where locktype = 'advisory' and pid = pg_backend_pid()";
            assert_eq!(found(other, locks).await, "0");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_clients_with_statements_of_the_same_names_do_not_matter() {
    let test = "store::pooled::other_clients_with_statements_of_the_same_names_do_not_matter";
    let Some(database) = Database::make(test).await else { return };
    limited(async {
        // As another program with this driver leaves them in all sessions of the server.
        let mut others = Vec::new();
        for _ in 0..3 {
            let mut other = PgConnection::connect(&database.url).await.unwrap();
            sqlx::raw_sql("begin").execute(&mut other).await.unwrap();
            others.push(other);
        }
        for other in &mut others {
            for number in 1..40 {
                let prepare = format!("prepare sqlx_s_{number} as select {number}");
                sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut *other).await.unwrap();
            }
        }
        for other in &mut others {
            sqlx::raw_sql("commit").execute(&mut *other).await.unwrap();
        }
        let store = database.open().await;
        for number in 0..10 {
            let account = Account::from_login(&format!("user{number}@example.org"));
            register(&store, device(&account, 'a'), &["INBOX"], 5, 100).await;
            only_target(&store, &account).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_at_once_share_few_sessions() {
    let test = "store::pooled::many_calls_at_once_share_few_sessions";
    let Some(database) = Database::make(test).await else { return };
    limited(async {
        let stores = [database.open().await, database.open().await];
        let calls = (0..60_u64).map(|number| {
            let store = stores[usize::from(number % 2 == 0)].clone();
            tokio::spawn(async move {
                let account = Account::from_login(&format!("user{number}@example.org"));
                let token = DeviceToken::new(&format!("{number:064x}")).unwrap();
                let device = Subscription { endpoint: token.endpoint(), ..device(&account, 'a') };
                let key = SubscriptionKey::from(&device);
                register(&store, device, &["INBOX", "Sent"], number + 2, 100).await;
                owe(&store, key, "Sent").await;
                assert_eq!(mailboxes(&only_target(&store, &account).await), ["INBOX", "Sent!"]);
                assert_eq!(told(&store, &account, "INBOX").await, Some(state(number + 2)));
            })
        });
        let calls: Vec<_> = calls.collect();
        for call in calls {
            call.await.unwrap();
        }
        assert_eq!(stores[0].owed_accounts().await.unwrap().len(), 60);
    })
    .await;
}

/// Why the store cannot be opened, which no later try would change.
async fn refused(bouncer: &PgBouncer, url: &str, server: SocketAddr) -> String {
    let url = bouncer.url(url, server);
    let refused = Store::open(&url.parse().unwrap(), Duration::from_secs(5)).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unusable { .. }), "{refused:?}");
    refused.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_start_names_the_setting_that_pgbouncer_lacks() {
    let test = "store::pooled::the_start_names_the_setting_that_pgbouncer_lacks";
    let Some(server) = Postgres::start(test) else { return };
    let Some(by_statement) = PgBouncer::start(test, &server, "statement", IGNORES) else { return };
    let Some(strict) = PgBouncer::start(test, &server, "transaction", "") else { return };
    limited(async {
        let said = refused(&by_statement, &server.url(), server.address).await;
        assert!(said.contains("PgBouncer") && said.contains("pool_mode"), "{said}");
        let said = refused(&strict, &server.url(), server.address).await;
        assert!(said.contains("ignore_startup_parameters"), "{said}");
    })
    .await;
}
