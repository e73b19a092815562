//! What holds for a database of each kind of server.

use mailchime::config::DatabaseUrl;
use sqlx::{AnyConnection, Connection, Executor};

use super::*;

macro_rules! on_each_server {
    ($($case:ident,)+) => {
        mod on_postgres {
            $(
                #[tokio::test]
                async fn $case() {
                    let test = concat!("store::servers::on_postgres::", stringify!($case));
                    let made = crate::store::postgres::Database::make(test).await;
                    let Some(database) = made else { return };
                    crate::support::limited(super::$case(&database.url)).await;
                }
            )+
        }

        mod on_mariadb {
            $(
                #[tokio::test]
                async fn $case() {
                    let test = concat!("store::servers::on_mariadb::", stringify!($case));
                    let made = crate::store::mariadb::Database::make(test).await;
                    let Some(database) = made else { return };
                    crate::support::limited(super::$case(&database.url)).await;
                }
            )+
        }
    };
}

on_each_server! {
    nodes_that_start_at_once_share_a_new_database,
    a_newer_or_foreign_database_is_refused_untouched,
    what_is_refused_is_named_with_the_remedy_and_without_the_password,
}

async fn opened(url: &str) -> Result<Store, StoreError> {
    Store::open(&url.parse().unwrap(), Duration::from_secs(5)).await
}

async fn nodes_that_start_at_once_share_a_new_database(url: &str) {
    let (one, two, three) = tokio::join!(opened(url), opened(url), opened(url));
    register(&one.unwrap(), device(&alice(), 'a'), &["INBOX"], 5, 100).await;
    only_target(&two.unwrap(), &alice()).await;
    only_target(&three.unwrap(), &alice()).await;
}

async fn a_newer_or_foreign_database_is_refused_untouched(url: &str) {
    let refused = Store::open_existing(&url.parse().unwrap(), Duration::from_secs(5)).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("is no database of mailchime"), "{refused}");
    opened(url).await.unwrap().close().await;
    sqlx::any::install_default_drivers();
    let mut beside = AnyConnection::connect(url).await.unwrap();
    let newer = "insert into _sqlx_migrations (version, description, success, checksum, \
                 execution_time) values (9999, 'of tomorrow', true, '', 0)";
    beside.execute(newer).await.unwrap();
    let refused = opened(url).await.unwrap_err();
    assert!(matches!(refused, StoreError::Newer { found: 9999, .. }), "{refused:?}");
    beside.execute("delete from _sqlx_migrations where version = 9999").await.unwrap();
    beside.execute("update _sqlx_migrations set checksum = ''").await.unwrap();
    let refused = opened(url).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unusable { .. }), "{refused:?}");
}

async fn what_is_refused_is_named_with_the_remedy_and_without_the_password(url: &str) {
    for url in [url.replace("chime@", "wr0ng@"), format!("{url}-not")] {
        let url: DatabaseUrl = url.parse().unwrap();
        let refused = Store::open(&url, Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Unusable { .. }), "{refused:?}");
        let shown = format!("{refused} {refused:?} {url} {url:?}");
        assert!(shown.contains("password"), "{shown}");
        assert!(!shown.contains("wr0ng") && !shown.contains("chime@"), "{shown}");
    }
}
