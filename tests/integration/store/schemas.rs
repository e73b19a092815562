//! Databases of earlier schemas, kept in `fixtures/schemas`, are brought up to date with all that is
//! in them.

mod eleventh;

use mailchime::config::PushConfig;
use mailchime::store::Alive;
use sqlx::{AnyConnection, AssertSqlSafe, Connection, Executor, Row};

use super::*;
use crate::support::limited;

const SQLITE: &str = include_str!("../../../fixtures/schemas/0001.sqlite.sql");
const POSTGRES: &str = include_str!("../../../fixtures/schemas/0001.postgres.sql");

/// Before accounts had a backend.
const THIRD_SQLITE: &str = include_str!("../../../fixtures/schemas/0003.sqlite.sql");
const THIRD_POSTGRES: &str = include_str!("../../../fixtures/schemas/0003.postgres.sql");

/// Before several credentials of an account were kept.
const SIXTH_SQLITE: &str = include_str!("../../../fixtures/schemas/0006.sqlite.sql");
const SIXTH_POSTGRES: &str = include_str!("../../../fixtures/schemas/0006.postgres.sql");

/// Before accounts were counted by domain and backend.
const FOURTH_SQLITE: &str = include_str!("../../../fixtures/schemas/0004.sqlite.sql");

/// A file with what a dump says.
async fn restored(folder: &TempDir, dump: &'static str) {
    let path = folder.path().join("mailchime.db");
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let mut connection = options.connect().await.unwrap();
    connection.execute(AssertSqlSafe(dump)).await.unwrap();
    connection.close().await.unwrap();
}

#[tokio::test]
async fn a_sqlite_database_of_the_fourth_schema_is_counted_as_a_new_one_is() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        restored(&folder, FOURTH_SQLITE).await;
        let store = open(&folder).await;
        let bob = only_target(&store, &Account::from_login("Bob")).await;
        assert_eq!(bob.outdated_since, Some(Timestamp(1_700_000_450_000)));
        assert_eq!(bob.backend.as_deref(), Some("imap.example.org:993"));

        let mut connection = beside(&folder).await;
        let query = sqlx::query("select name, folded, domain, backend from account order by name");
        let rows = query.fetch_all(&mut connection).await.unwrap();
        let rows: Vec<[String; 4]> =
            rows.iter().map(|row| std::array::from_fn(|column| row.get(column))).collect();
        let backend = "imap.example.org:993";
        let expected = [
            ["Bob", "bob", "", backend],
            ["alice@example.org", "alice@example.org", "example.org", backend],
        ];
        assert_eq!(rows, expected);
        let query =
            sqlx::query("select name from sqlite_master where type = 'index' order by name");
        let indexes = query.fetch_all(&mut connection).await.unwrap();
        let indexes: Vec<String> = indexes.iter().map(|row| row.get(0)).collect();
        for index in [
            "account_by_backend",
            "account_by_domain",
            "account_by_folded_name",
            "subscription_by_endpoint",
        ] {
            assert!(indexes.iter().any(|name| name == index), "{index} is not in {indexes:?}");
        }

        holds_what_it_held(&store).await;
    })
    .await;
}

#[tokio::test]
async fn the_sqlite_databases_of_before_are_brought_up_to_date() {
    limited(async {
        for dump in [SQLITE, THIRD_SQLITE, SIXTH_SQLITE] {
            let folder = tempfile::tempdir().unwrap();
            restored(&folder, dump).await;
            holds_what_it_held(&open(&folder).await).await;
        }
    })
    .await;
}

/// What no program has written: it is left behind, and the rest is brought up to date.
#[tokio::test]
async fn rows_of_before_that_cannot_be_read_are_left_behind() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        restored(&folder, SIXTH_SQLITE).await;
        let mut connection = beside(&folder).await;
        let others = "insert into device (account, token, subtopic, token_given, aps_account_id, \
                      version, topic, registered_at) \
                      select account, 'cd' || token, subtopic, token_given, {}, topic, registered_at \
                      from device";
        for columns in ["cast(x'fffe41' as text), version", "aps_account_id, 300"] {
            let others = others.replace("{}", columns).replace("cd", &columns[..2]);
            connection.execute(AssertSqlSafe(others)).await.unwrap();
        }
        connection.close().await.unwrap();
        holds_what_it_held(&open(&folder).await).await;
    })
    .await;
}

#[tokio::test]
async fn the_postgres_databases_of_before_are_brought_up_to_date() {
    let test = "store::schemas::the_postgres_databases_of_before_are_brought_up_to_date";
    for dump in [POSTGRES, THIRD_POSTGRES, SIXTH_POSTGRES] {
        let Some(database) = postgres::Database::make(test).await else { return };
        limited(async {
            let mut connection = database.beside().await;
            connection.execute(AssertSqlSafe(dump)).await.unwrap();
            connection.close().await.unwrap();
            holds_what_it_held(&database.open().await).await;
        })
        .await;
    }
}

/// What a command that only reads the database of `url` gets as an error.
async fn refusal(url: &str) -> String {
    match Store::open_existing(&url.parse().unwrap(), Duration::from_secs(5)).await {
        Ok(_) => panic!("{url} is opened"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn a_reading_command_opens_an_sqlite_database_only_if_it_is_whole() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mailchime.db");
        let url = format!("sqlite://{}", path.display());
        assert!(refusal(&url).await.contains("at its first start"));
        assert!(!path.exists(), "it was made");

        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut connection = options.connect().await.unwrap();
        connection.execute("create table other (name text)").await.unwrap();
        assert!(refusal(&url).await.contains("is no database of mailchime"));
        connection.execute("drop table other").await.unwrap();
        connection.execute(AssertSqlSafe(SQLITE)).await.unwrap();
        assert!(refusal(&url).await.contains("has an older schema (1, "));
        open(&folder).await.close().await;
        let store =
            Store::open_existing(&url.parse().unwrap(), Duration::from_secs(5)).await.unwrap();
        holds_what_it_held(&store).await;
        connection
            .execute("update _sqlx_migrations set version = 9999 where version = 1")
            .await
            .unwrap();
        assert!(refusal(&url).await.contains("newer mailchime (schema 9999"));
    })
    .await;
}

#[tokio::test]
async fn a_reading_command_opens_a_postgres_database_only_if_it_is_whole() {
    let test = "store::schemas::a_reading_command_opens_a_postgres_database_only_if_it_is_whole";
    let Some(database) = postgres::Database::make(test).await else { return };
    limited(async {
        let url = &database.url;
        assert!(refusal(url).await.contains("is no database of mailchime"));
        let mut connection = database.beside().await;
        connection.execute(AssertSqlSafe(POSTGRES)).await.unwrap();
        assert!(refusal(url).await.contains("has an older schema (1, "));
        database.open().await.close().await;
        let store =
            Store::open_existing(&url.parse().unwrap(), Duration::from_secs(5)).await.unwrap();
        holds_what_it_held(&store).await;
        // The dump left the other one without a search path.
        let mut connection = database.beside().await;
        connection
            .execute("update _sqlx_migrations set version = 9999 where version = 1")
            .await
            .unwrap();
        assert!(refusal(url).await.contains("newer mailchime (schema 9999"));
    })
    .await;
}

async fn holds_what_it_held(store: &Store) {
    // The devices of before have a whole time to register anew.
    let serving = store.clone().serving().await;
    let alive = Alive::at(serving.served(Timestamp::now()), &PushConfig::default());
    assert_eq!(serving.expire(alive).await.unwrap(), []);
    assert_eq!(serving.accounts(alive).await.unwrap().len(), 2);

    let bob = Account::from_login("Bob");
    let phone = DeviceToken::new(&"ab12".repeat(16)).unwrap();
    let accounts = store.accounts(EVER).await.unwrap();
    let parked: Vec<_> =
        accounts.iter().map(|live| (live.account.as_str(), live.parked.as_deref())).collect();
    let mut expected = vec![("Bob", Some("AUTHENTICATIONFAILED")), ("alice@example.org", None)];
    // In the order of the database.
    expected.sort_by_key(|(name, _)| parked.iter().position(|(found, _)| found == name));
    assert_eq!(parked, expected);
    assert_eq!(
        store.credentials(&alice(), &imap()).await.unwrap(),
        Some(sealed("v1.0a1b2c3d.c2VhbGVk"))
    );
    assert_eq!(store.credentials(&bob, &imap()).await.unwrap(), None);

    let target = only_target(store, &alice()).await;
    assert_eq!(target.subscription.endpoint.as_given(), "AB12".repeat(16));
    assert_eq!(target.subscription.options, options("0715A26B-CA09-4730-A419-793000CA982E", 2));
    assert_eq!(&*target.subscription.route, "com.apple.mail.XServer.1");
    assert_eq!(target.registered_at, Timestamp(1_700_000_000_000));
    assert_eq!(target.pushed_at, Some(Timestamp(1_700_000_100_000)));
    assert_eq!(mailboxes(&target), ["Entwürfe!", "INBOX"]);
    let other = only_target(store, &bob).await;
    assert_eq!(
        (
            other.subscription.endpoint,
            ApnsOptions::from_json(&other.subscription.options).unwrap().version,
            other.pushed_at
        ),
        (phone.endpoint(), 1, None)
    );

    let drafts = Snapshot {
        uid_validity: Some(2),
        uid_next: Some(9),
        messages: Some(1),
        unseen: None,
        highest_mod_seq: Some(u64::MAX),
    };
    assert_eq!(told(store, &alice(), "Entwürfe").await, Some(drafts));
    assert_eq!(told(store, &bob, "INBOX").await.unwrap().highest_mod_seq, Some(77));

    // And it goes on from there.
    let fresh = Sealed { text: "v1.fresh".into(), until: Some(Timestamp(5)) };
    let registration = registration(device(&alice(), 'c'), &["INBOX"], 30);
    store.register(&registration, by(&imap(), Some(&fresh)), 10, Timestamp::now()).await.unwrap();
    assert_eq!(store.credentials(&alice(), &imap()).await.unwrap(), Some(fresh));
    assert_eq!(told(store, &alice(), "INBOX").await.unwrap().uid_next, Some(5));
    assert_eq!(store.expire(Timestamp(1_700_000_300_000)).await.unwrap(), []);
    store.clone().of_node("1".into()).join("a").await.unwrap();
    assert!(store.remove_account(&bob).await.unwrap());
    let news = store.take_news("a", 10).await.unwrap();
    let removed = Invalidation { account: bob, login: false, event: false, named: false };
    assert_eq!(news, [NodeNews::Invalidation(removed)]);
}

// === everything that the eighth schema held ===

/// Before subscriptions, with names that are easily taken for each other.
const EIGHTH_SQLITE: &str = include_str!("../../../fixtures/schemas/0008.sqlite.sql");
const EIGHTH_POSTGRES: &str = include_str!("../../../fixtures/schemas/0008.postgres.sql");

/// The same rows as the tenth schema holds them, with subscriptions of iOS Mail alone.
const TENTH_SQLITE: &str = include_str!("../../../fixtures/schemas/0010.sqlite.sql");
const TENTH_POSTGRES: &str = include_str!("../../../fixtures/schemas/0010.postgres.sql");

/// One line for each row, of the eighth schema and of now.
const SAME: [[&str; 2]; 4] = [
    [
        "select account || '|' || token || '|' || token_given || '|' || subtopic || '|' || topic \
         || '|' || registered_at || '|' || coalesce(cast(heard_at as text), '-') \
         || '|' || coalesce(cast(pushed_at as text), '-') \
         || '|' || coalesce(cast(outdated_since as text), '-') \
         || '|' || coalesce(cast(outdated_at as text), '-') from device",
        "select a.name || '|' || lower(s.endpoint) || '|' || s.endpoint || '|' || s.app \
         || '|' || s.route || '|' || s.registered_at || '|' || coalesce(cast(heard_at as text), '-') \
         || '|' || coalesce(cast(pushed_at as text), '-') \
         || '|' || coalesce(cast(outdated_since as text), '-') \
         || '|' || coalesce(cast(outdated_at as text), '-') \
         from subscription s join account a on a.id = s.account where s.transport = 'apns'",
    ],
    [
        "select d.account || '|' || d.token || '|' || d.subtopic || '|' || d.mailbox \
         || '|' || coalesce(cast(owed_since as text), '-') \
         || '|' || coalesce(cast(uid_validity as text), '-') \
         || '|' || coalesce(cast(uid_next as text), '-') \
         || '|' || coalesce(cast(messages as text), '-') \
         || '|' || coalesce(cast(unseen as text), '-') \
         || '|' || coalesce(cast(highest_mod_seq as text), '-') from device_mailbox d \
         left join snapshot s on s.account = d.account and s.mailbox = d.mailbox",
        "select a.name || '|' || lower(s.endpoint) || '|' || s.app || '|' || m.name \
         || '|' || coalesce(cast(owed_since as text), '-') \
         || '|' || coalesce(cast(uid_validity as text), '-') \
         || '|' || coalesce(cast(uid_next as text), '-') \
         || '|' || coalesce(cast(messages as text), '-') \
         || '|' || coalesce(cast(unseen as text), '-') \
         || '|' || coalesce(cast(highest_mod_seq as text), '-') from subscription_mailbox w \
         join subscription s on s.id = w.subscription join mailbox m on m.id = w.mailbox \
         join account a on a.id = s.account where m.account = s.account",
    ],
    [ACCOUNTS, ACCOUNTS],
    [
        "select account || '|' || number || '|' || sealed || '|' \
         || coalesce(cast(until as text), '-') || '|' || since || '|' || proved_at from credential",
        "select a.name || '|' || number || '|' || sealed || '|' \
         || coalesce(cast(until as text), '-') || '|' || since || '|' || proved_at \
         from credential c join account a on a.id = c.account",
    ],
];

const ACCOUNTS: &str = "select name || '|' || created_at || '|' || coalesce(backend, '-') \
    || '|' || folded || '|' || domain || '|' || coalesce(credentials, '-') \
    || '|' || coalesce(cast(credentials_until as text), '-') \
    || '|' || coalesce(cast(credentials_since as text), '-') \
    || '|' || coalesce(cast(credentials_proved_at as text), '-') || '|' || coalesce(parked, '-') \
    || '|' || coalesce(cast(parked_since as text), '-') \
    || '|' || coalesce(cast(refusals as text), '-') \
    || '|' || coalesce(cast(refused_at as text), '-') \
    || '|' || coalesce(cast(login_wanted_at as text), '-') \
    || '|' || coalesce(cast(password_since as text), '-') \
    || '|' || coalesce(cast(password_at as text), '-') from account";

/// What only the transport has: of which token, app and account it is the options.
const OPTIONS: &str = "select account || '|' || token || '|' || subtopic || '|' || version \
                       || '|' || aps_account_id from device";

async fn lines(connection: &mut AnyConnection, sql: &'static str) -> Vec<String> {
    let rows = sqlx::query(sql).fetch_all(connection).await.unwrap();
    let mut lines: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    lines.sort();
    lines
}

/// A database of the eighth schema at `url` is brought up to date, and has all rows that it had.
async fn has_all_rows(url: &str) {
    sqlx::any::install_default_drivers();
    let mut connection = AnyConnection::connect(url).await.unwrap();
    let mut before = Vec::new();
    for [before_sql, _] in SAME {
        before.push(lines(&mut connection, before_sql).await);
    }
    assert_eq!(before.iter().map(Vec::len).collect::<Vec<_>>(), [7, 12, 6, 2]);
    let options = lines(&mut connection, OPTIONS).await;

    // What is in the way of the last step undoes the first ones.
    connection.execute("create table mailbox (other bigint)").await.unwrap();
    assert!(Store::open(&url.parse().unwrap(), Duration::from_secs(5)).await.is_err());
    for ([before_sql, _], before) in SAME.iter().zip(&before) {
        assert_eq!(lines(&mut connection, before_sql).await, *before);
    }
    connection.execute("drop table mailbox").await.unwrap();

    for _ in 0..2 {
        let store = Store::open(&url.parse().unwrap(), Duration::from_secs(5)).await.unwrap();
        for ([_, sql], before) in SAME.iter().zip(&before) {
            assert_eq!(lines(&mut connection, sql).await, *before);
        }
        let targets = store.subscriptions(None, 100).await.unwrap().unwrap().1;
        let mut kept = Vec::new();
        for Target { subscription, .. } in &targets {
            let token = DeviceToken::new(subscription.endpoint.as_given()).unwrap();
            assert_eq!(subscription.endpoint, token.endpoint(), "by its hash");
            let ApnsOptions { account_id, version } =
                ApnsOptions::from_json(&subscription.options).unwrap();
            let Subscription { account, app, .. } = subscription;
            let token = token.to_lowercase();
            kept.push(format!("{account}|{token}|{app}|{version}|{account_id}"));
        }
        kept.sort();
        assert_eq!(kept, options);
        assert_eq!(
            lines(&mut connection, "select node || account || login from invalidation").await,
            ["mail1Bob1"]
        );
        store.close().await;
    }
}

/// Rows of the third schema with names that are easily taken for each other, or long.
const AWKWARD_ACCOUNTS: &str = "insert into account (name, created_at, parked, parked_since) values \
    ('bob', 1, null, null), ('bob ', 2, 'AUTHENTICATIONFAILED', 3), ('🔔@example.org', 4, null, null)";
const AWKWARD_DEVICES: &str = "insert into device (account, token, subtopic, token_given, \
    aps_account_id, version, topic, registered_at) \
    select name, 'cd34cd34cd34cd34cd34cd34cd34cd34cd34cd34cd34cd34cd34cd34cd34cd34', \
    'com.apple.mobilemail', 'CD34cd34cd34cd34cd34cd34cd34cd34cd34cd34cd34cd34cd34cd34cd34cd34', \
    'ID', 2, 'com.apple.mail.XServer.1', created_at from account \
    where name in ('bob', 'bob ', '🔔@example.org')";
const AWKWARD_MAILBOXES: &str = "insert into device_mailbox \
    (account, token, subtopic, mailbox, owed_since) \
    select d.account, d.token, d.subtopic, m.name, m.owed from device d, \
    (select 'Work' as name, 5 as owed union all select 'work', null union all \
     select 'work ', 6 union all select '📎', null union all select 'LONG', 7) m \
    where d.account in ('bob', 'bob ', '🔔@example.org')";
const AWKWARD_SNAPSHOTS: &str = "insert into snapshot \
    (account, mailbox, uid_validity, uid_next, messages) \
    select account, mailbox, 1, length(mailbox), 3 from device_mailbox \
    where account in ('bob', 'bob ', '🔔@example.org')";

/// Accounts and mailboxes of the third schema come through with what is owed, however they are called.
async fn keeps_awkward_names_of_the_third(url: &str) {
    sqlx::any::install_default_drivers();
    let mut connection = AnyConnection::connect(url).await.unwrap();
    let long = "é".repeat(700);
    for rows in [AWKWARD_ACCOUNTS, AWKWARD_DEVICES, AWKWARD_MAILBOXES, AWKWARD_SNAPSHOTS] {
        let rows = rows.replace("LONG", &long);
        connection.execute(AssertSqlSafe(rows)).await.unwrap();
    }
    let [before, now] = SAME[1];
    let before = lines(&mut connection, before).await;
    assert_eq!(before.len(), 3 + 3 * 5, "{before:?}");
    let parked = "select name || '|' || created_at || '|' || coalesce(parked, '-') from account";
    let accounts = lines(&mut connection, parked).await;
    let store = Store::open(&url.parse().unwrap(), Duration::from_secs(5)).await.unwrap();
    assert_eq!(lines(&mut connection, now).await, before);
    assert_eq!(lines(&mut connection, parked).await, accounts);
    store.close().await;
}

#[tokio::test]
async fn awkward_names_of_the_third_schema_come_through_in_sqlite() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        restored(&folder, THIRD_SQLITE).await;
        let url = format!("sqlite://{}", folder.path().join("mailchime.db").display());
        keeps_awkward_names_of_the_third(&url).await;
    })
    .await;
}

#[tokio::test]
async fn awkward_names_of_the_third_schema_come_through_in_postgres() {
    let test = "store::schemas::awkward_names_of_the_third_schema_come_through_in_postgres";
    let Some(database) = postgres::Database::make(test).await else { return };
    limited(async {
        let mut connection = database.beside().await;
        connection.execute(AssertSqlSafe(THIRD_POSTGRES)).await.unwrap();
        connection.close().await.unwrap();
        keeps_awkward_names_of_the_third(&database.url).await;
    })
    .await;
}

#[tokio::test]
async fn a_sqlite_database_of_the_eighth_schema_keeps_every_row() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        restored(&folder, EIGHTH_SQLITE).await;
        has_all_rows(&format!("sqlite://{}", folder.path().join("mailchime.db").display())).await;
    })
    .await;
}

/// A database of the tenth schema at `url` is brought up to date: all of its subscriptions count, and end by
/// silence as before.
async fn has_all_rows_of_the_tenth(url: &str) {
    sqlx::any::install_default_drivers();
    let mut connection = AnyConnection::connect(url).await.unwrap();
    let mut before = Vec::new();
    for [_, sql] in SAME {
        before.push(lines(&mut connection, sql).await);
    }
    assert_eq!(before.iter().map(Vec::len).collect::<Vec<_>>(), [7, 12, 6, 2]);
    let store = Store::open(&url.parse().unwrap(), Duration::from_secs(5)).await.unwrap();
    for ([_, sql], before) in SAME.iter().zip(&before) {
        assert_eq!(lines(&mut connection, sql).await, *before);
    }
    let new = "select distinct state || cast(renews as text) || coalesce(secrets, '-') \
               || coalesce(cast(expires_at as text), '-') \
               || coalesce(cast(failing_since as text), '-') || coalesce(failing_kind, '-') \
               || coalesce(cast(own_fault as text), '-') from subscription";
    assert_eq!(lines(&mut connection, new).await, ["active1-----"]);
    assert_eq!(store.subscriptions(None, 100).await.unwrap().unwrap().1.len(), 7);
    store.close().await;
}

#[tokio::test]
async fn a_sqlite_database_of_the_tenth_schema_keeps_every_row_and_all_subscriptions_count() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        restored(&folder, TENTH_SQLITE).await;
        let url = format!("sqlite://{}", folder.path().join("mailchime.db").display());
        has_all_rows_of_the_tenth(&url).await;
    })
    .await;
}

#[tokio::test]
async fn a_postgres_database_of_the_tenth_schema_keeps_every_row_and_all_subscriptions_count() {
    let test = "store::schemas::a_postgres_database_of_the_tenth_schema_keeps_every_row";
    let Some(database) = postgres::Database::make(test).await else { return };
    limited(async {
        let mut connection = database.beside().await;
        connection.execute(AssertSqlSafe(TENTH_POSTGRES)).await.unwrap();
        connection.close().await.unwrap();
        has_all_rows_of_the_tenth(&database.url).await;
    })
    .await;
}

#[tokio::test]
async fn a_postgres_database_of_the_eighth_schema_keeps_every_row() {
    let test = "store::schemas::a_postgres_database_of_the_eighth_schema_keeps_every_row";
    let Some(database) = postgres::Database::make(test).await else { return };
    limited(async {
        let mut connection = database.beside().await;
        connection.execute(AssertSqlSafe(EIGHTH_POSTGRES)).await.unwrap();
        connection.close().await.unwrap();
        has_all_rows(&database.url).await;
    })
    .await;
}

/// A statement of the upgrade takes longer than one of a call may, and so does the upgrade.
#[tokio::test]
async fn an_upgrade_may_take_longer_than_a_call() {
    let test = "store::schemas::an_upgrade_may_take_longer_than_a_call";
    let Some(database) = postgres::Database::make(test).await else { return };
    limited(async {
        let mut connection = database.beside().await;
        connection.execute(AssertSqlSafe(EIGHTH_POSTGRES)).await.unwrap();
        connection.close().await.unwrap();
        // The dump leaves a connection without a search path. What a sequence gives is not rolled back.
        let mut connection = database.beside().await;
        let slow = "create sequence tries; \
                    create function wait() returns trigger language plpgsql as $$ begin \
                    perform nextval('tries'); perform pg_sleep(6); return null; end $$; \
                    create trigger wait after update on device for each statement \
                    execute function wait()";
        connection.execute(slow).await.unwrap();
        // A call takes 5 seconds and this.
        let store = database.try_open(Duration::from_millis(10)).await.unwrap();
        while let Err(error) = store.accounts(EVER).await {
            assert!(error.is_temporary(), "{error}");
        }
        assert_eq!(store.subscriptions(None, 100).await.unwrap().unwrap().1.len(), 7);
        let tries = sqlx::query("select last_value from tries").fetch_one(&mut connection);
        assert_eq!(tries.await.unwrap().get::<i64, _>(0), 1);
    })
    .await;
}
