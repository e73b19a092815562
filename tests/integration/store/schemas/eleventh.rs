//! Databases of the eleventh schema, which has subscriptions of users. MariaDB begins with it.

use super::*;

/// Before accounts had entries of METADATA, with subscriptions of users.
const ELEVENTH_SQLITE: &str = include_str!("../../../../fixtures/schemas/0011.sqlite.sql");
const ELEVENTH_POSTGRES: &str = include_str!("../../../../fixtures/schemas/0011.postgres.sql");

/// What the eleventh schema brought.
const OF_THE_ELEVENTH: [&str; 2] = [
    "select id || '|' || account || '|' || transport || '|' || endpoint_hash || '|' || endpoint \
     || '|' || route || '|' || options || '|' || state || '|' || renews \
     || '|' || coalesce(secrets, '-') || '|' || coalesce(cast(expires_at as text), '-') \
     || '|' || coalesce(cast(failing_since as text), '-') || '|' || coalesce(failing_kind, '-') \
     || '|' || coalesce(cast(own_fault as text), '-') from subscription",
    "select id || '|' || account || '|' || name || '|' || coalesce(cast(due_since as text), '-') \
     || '|' || due_marks || '|' || coalesce(due_state, '-') from mailbox",
];

/// A database of the eleventh schema at `url` is brought up to date, and has all rows that it had.
async fn has_all_rows_of_the_eleventh(url: &str) {
    sqlx::any::install_default_drivers();
    let mut connection = AnyConnection::connect(url).await.unwrap();
    let every: Vec<_> = SAME.iter().map(|[_, now]| *now).chain(OF_THE_ELEVENTH).collect();
    let mut before = Vec::new();
    for sql in &every {
        before.push(lines(&mut connection, sql).await);
    }
    assert_eq!(before.iter().map(Vec::len).collect::<Vec<_>>(), [7, 16, 6, 2, 10, 11]);
    let store = Store::open(&url.parse().unwrap(), Duration::from_secs(5)).await.unwrap();
    for (sql, before) in every.iter().zip(&before) {
        assert_eq!(lines(&mut connection, sql).await, *before);
    }
    assert_eq!(store.subscriptions(None, 100).await.unwrap().unwrap().1.len(), 10);
    store.close().await;
}

#[tokio::test]
async fn a_sqlite_database_of_the_eleventh_schema_keeps_every_row() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        restored(&folder, ELEVENTH_SQLITE).await;
        let url = format!("sqlite://{}", folder.path().join("mailchime.db").display());
        has_all_rows_of_the_eleventh(&url).await;
    })
    .await;
}

#[tokio::test]
async fn a_postgres_database_of_the_eleventh_schema_keeps_every_row() {
    let test =
        "store::schemas::eleventh::a_postgres_database_of_the_eleventh_schema_keeps_every_row";
    let Some(database) = postgres::Database::make(test).await else { return };
    limited(async {
        let mut connection = database.beside().await;
        connection.execute(AssertSqlSafe(ELEVENTH_POSTGRES)).await.unwrap();
        connection.close().await.unwrap();
        has_all_rows_of_the_eleventh(&database.url).await;
    })
    .await;
}

// === MariaDB, which begins with the eleventh schema ===

/// Its first schema, before accounts had entries of METADATA.
const ELEVENTH_MARIADB: &str = include_str!("../../../../fixtures/schemas/0011.mariadb.sql");

/// Gives a statement that gives one line for each row of each table, with all columns that there are now.
const ALL_COLUMNS: &str = "select group_concat('select concat_ws(''|'', ''', t.table_name, ''', ', \
    (select group_concat('quote(`', c.column_name, '`)' order by c.ordinal_position separator ', ') \
     from information_schema.columns c \
     where c.table_schema = t.table_schema and c.table_name = t.table_name), \
    ') as line from `', t.table_name, '`' order by t.table_name separator ' union all ') as text \
    from information_schema.tables t \
    where t.table_schema = database() and t.table_name <> '_sqlx_migrations'";

#[tokio::test]
async fn a_mariadb_database_of_the_eleventh_schema_keeps_every_row() {
    let test =
        "store::schemas::eleventh::a_mariadb_database_of_the_eleventh_schema_keeps_every_row";
    let Some(database) = mariadb::Database::make(test).await else { return };
    limited(async {
        let mut connection = database.beside().await;
        connection.execute(AssertSqlSafe(ELEVENTH_MARIADB)).await.unwrap();
        connection.execute("set session group_concat_max_len = 1000000").await.unwrap();
        let every = sqlx::query(ALL_COLUMNS).fetch_one(&mut connection).await.unwrap();
        let every: String = every.get(0);
        let mut rows_of_all = async || {
            let rows = sqlx::query(AssertSqlSafe(every.clone())).fetch_all(&mut connection).await;
            let mut rows: Vec<String> = rows.unwrap().iter().map(|row| row.get(0)).collect();
            rows.sort();
            rows
        };
        let before = rows_of_all().await;
        // Accounts, credentials, mailboxes, subscriptions, their mailboxes, and one each of what nodes share.
        assert_eq!(before.len(), 6 + 2 + 11 + 10 + 16 + 3, "{before:#?}");
        let refused = refusal(&database.url).await;
        assert!(refused.contains("has an older schema (11, "), "{refused}");

        for _ in 0..2 {
            let store = database.open().await;
            assert_eq!(rows_of_all().await, before);
            let (_, targets) = store.subscriptions(None, 100).await.unwrap().unwrap();
            let of = |target: &Target| {
                let Subscription { account, transport, .. } = &target.subscription;
                (account.as_str().to_owned(), transport.to_string(), target.mailboxes.len())
            };
            let mut kept: Vec<_> = targets.iter().map(of).collect();
            kept.sort();
            let expected = [
                ("Bob", "apns", 1),
                ("alice@example.org", "apns", 2),
                ("alice@example.org", "webpush", 2),
                ("bob", "apns", 2),
                ("bob", "apns", 4),
                ("bob", "webpush", 1),
                ("bob ", "apns", 1),
                ("bob ", "webhook", 1),
                ("o'hara\\\"@example.org", "apns", 1),
                ("🔔@example.org", "apns", 1),
            ];
            let owned = |(account, by, count): (&str, &str, _)| (account.into(), by.into(), count);
            assert_eq!(kept, expected.map(owned));
            store.close().await;
        }
    })
    .await;
}
