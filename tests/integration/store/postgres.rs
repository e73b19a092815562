//! What is peculiar to PostgreSQL.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use super::*;
use crate::servers::postgres::Postgres;

/// A database of its own for one test, on a server that the tests share.
pub(super) struct Database {
    pub(super) url: String,
    name: String,
}

impl Database {
    /// `None`, having said so, where there is no server.
    pub(super) async fn make(test: &str) -> Option<Self> {
        static SERVER: OnceLock<Option<Postgres>> = OnceLock::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let server = SERVER.get_or_init(|| Postgres::start(test)).as_ref();
        let Some(server) = server else {
            crate::skip::report(test, "there is no PostgreSQL");
            return None;
        };
        let name = format!("test{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let url = server.url().replace("/postgres", &format!("/{name}"));
        let mut connection = PgConnection::connect(&server.url()).await.unwrap();
        // No other default than SQLite's order of names.
        let create = format!("create database {name}");
        sqlx::query(AssertSqlSafe(create)).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        Some(Self { url, name })
    }

    pub(super) async fn open(&self) -> Store {
        self.try_open(Duration::from_secs(5)).await.unwrap()
    }

    pub(super) async fn try_open(&self, busy_timeout: Duration) -> Result<Store, StoreError> {
        Store::open(&self.url, busy_timeout).await
    }

    /// A connection beside the store's own.
    pub(super) async fn beside(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.unwrap()
    }
}
