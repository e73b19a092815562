//! `mailchime store copy`: everything from one database into another, in all six ways.

use std::collections::BTreeMap;

use mailchime::config::DatabaseUrl;
use mailchime::model::{SubscriptionSecrets, TransportId};
use mailchime::store::{CopyError, Shares, copy};
use sqlx::{AnyConnection, AssertSqlSafe, Column, Connection, Executor, Row};

use super::*;
use crate::support::limited;

const BUSY: Duration = Duration::from_secs(15);

const TAKEOVER: Duration = Duration::from_secs(30);

const TABLES: [&str; 8] = [
    "account",
    "credential",
    "mailbox",
    "subscription",
    "subscription_mailbox",
    "service",
    "node",
    "invalidation",
];

fn file(folder: &TempDir, name: &str) -> DatabaseUrl {
    format!("sqlite://{}", folder.path().join(name).display()).parse().unwrap()
}

/// All rows, each as its columns by name.
async fn dump(url: &str) -> BTreeMap<&'static str, Vec<String>> {
    sqlx::any::install_default_drivers();
    let mut connection = AnyConnection::connect(url).await.unwrap();
    let mut dump = BTreeMap::new();
    for table in TABLES {
        let select = AssertSqlSafe(format!("select * from {table}"));
        let mut lines = Vec::new();
        for row in connection.fetch_all(select).await.unwrap() {
            let mut values = Vec::new();
            // MariaDB works the hash of a name out by itself.
            for column in row.columns().iter().filter(|it| it.name() != "name_hash") {
                let value = match row.try_get::<Option<i64>, _>(column.ordinal()) {
                    Ok(number) => format!("{number:?}"),
                    Err(_) => format!("{:?}", row.get::<Option<String>, _>(column.ordinal())),
                };
                values.push(format!("{}={value}", column.name()));
            }
            values.sort();
            lines.push(values.join(" "));
        }
        lines.sort();
        dump.insert(table, lines);
    }
    dump
}

/// A database of many accounts, whose names are easily taken for each other.
async fn furnish(url: &DatabaseUrl, folder: &TempDir) {
    let store = Store::open(url, BUSY).await.unwrap().sealing(&folder.path().join("key"));
    let store = store.sharing(Shares { accounts_per_device: 1000, ..Shares::default() });
    let store = store.serving().await;
    sqlx::any::install_default_drivers();
    let long = "m".repeat(1000);
    let names = ["Alice", "alice", "alice ", "o'hara\\\"@example.org", "\u{1f514}@example.org"];
    let many: Vec<String> = (0..120).map(|number| format!("user{number}@example.org")).collect();
    for (number, name) in (1..).zip(names.into_iter().chain(many.iter().map(String::as_str))) {
        let account = Account::from_login(name);
        let mailboxes = ["INBOX", "Work", "work", "work ", "\u{1f4ec}", &long];
        let registration = registration(device(&account, 'a'), &mailboxes, number);
        let sealed = (number % 3 == 0).then(|| sealed(&format!("v1.sealed {number}")));
        let login = by(&imap(), sealed.as_ref());
        store.register(&registration, login, 10, Timestamp(100)).await.unwrap();
        owe(&store, key(&account, 'a'), "work ").await;
        if number % 5 == 0 {
            store.refused(&account, &imap(), 2, Some("NO"), Timestamp(1)).await.unwrap();
        }
        // Gaps in the numbers, and the last ones are gone.
        if number % 7 == 0 || number > 110 {
            assert!(store.remove_account(&account).await.unwrap());
        }
    }
    let browser = Subscription {
        transport: TransportId::new("web"),
        secrets: Some(SubscriptionSecrets::new("keys".to_owned())),
        expires_at: Some(Timestamp(i64::MAX)),
        ..device(&alice(), 'b')
    };
    let odd = Snapshot { highest_mod_seq: Some(u64::MAX), ..Snapshot::default() };
    let registration =
        Registration { subscription: browser, mailboxes: vec![(Mailbox::new("INBOX"), odd)] };
    store.register(&registration, by(&imap(), None), 10, Timestamp(100)).await.unwrap();
    store.count_service(Timestamp::now(), true).await.unwrap();
    store.close().await;
    // What calls leave only now and then.
    let mut beside = AnyConnection::connect(&url.to_string()).await.unwrap();
    for statement in [
        "insert into credential (account, number, sealed, until, since, proved_at) \
         select id, 1, 'v1.beside', null, 5, 6 from account where name like 'user1%'",
        "update mailbox set due_since = 7, due_marks = 2, due_state = '1 2 3 - -' \
         where name = 'Work'",
    ] {
        beside.execute(statement).await.unwrap();
    }
}

/// What was copied is a database that works, with the same key file.
async fn works(url: &DatabaseUrl, folder: &TempDir) {
    let store = Store::open(url, BUSY).await.unwrap().sealing(&folder.path().join("key"));
    let target = only_target(&store, &alice()).await;
    assert_eq!(target.subscription.secrets, Some(SubscriptionSecrets::new("keys".to_owned())));
    assert_eq!(
        store.credentials(&Account::from_login("alice "), &imap()).await.unwrap(),
        Some(sealed("v1.sealed 3"))
    );
    register(&store, device(&bob(), 'c'), &["INBOX", "Sent"], 5, 100).await;
    assert_eq!(mailboxes(&only_target(&store, &bob()).await), ["INBOX", "Sent"]);
    assert!(store.remove_account(&bob()).await.unwrap());
    store.close().await;
}

#[tokio::test]
async fn every_row_comes_through_all_six_ways() {
    let test = "store::copy::every_row_comes_through_all_six_ways";
    let [first, second] =
        [postgres::Database::make(test).await, postgres::Database::make(test).await];
    let (Some(postgres_1), Some(postgres_2)) = (first, second) else { return };
    let [first, second] =
        [mariadb::Database::make(test).await, mariadb::Database::make(test).await];
    let (Some(mariadb_1), Some(mariadb_2)) = (first, second) else { return };
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| format!("sqlite://{}", folder.path().join(name).display());
        let (start, between, end) = (path("start.db"), path("between.db"), path("end.db"));
        furnish(&start.parse().unwrap(), &folder).await;
        let original = dump(&start).await;
        for table in &TABLES[..6] {
            assert!(!original[table].is_empty(), "{table}");
        }
        assert!(original["account"].len() > 60, "more than one batch");
        let way = [
            &start,
            &postgres_1.url,
            &mariadb_1.url,
            &between,
            &mariadb_2.url,
            &postgres_2.url,
            &end,
        ];
        for step in way.windows(2) {
            let [from, to] = [step[0], step[1]].map(|url| url.parse::<DatabaseUrl>().unwrap());
            let copied = copy(&from, &to, BUSY, TAKEOVER).await.unwrap();
            let dumped = dump(step[1]).await;
            assert_eq!(dumped, original, "{from} to {to}");
            for rows in &copied {
                assert_eq!(rows.rows, dumped[rows.table].len() as u64, "{copied:?}");
            }
        }
        // PostgreSQL plans its statements for what is there now.
        for database in [&postgres_1, &postgres_2] {
            let rows = "select reltuples::bigint from pg_class where oid = 'account'::regclass";
            let mut beside = database.beside().await;
            let rows: i64 = sqlx::query_scalar(rows).fetch_one(&mut beside).await.unwrap();
            assert_eq!(usize::try_from(rows), Ok(original["account"].len()));
        }
        for url in way {
            works(&url.parse().unwrap(), &folder).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_in_service_or_holds_something_is_left_alone() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (file(&folder, "from.db"), file(&folder, "to.db"));
        let missing = copy(&from, &to, BUSY, TAKEOVER).await.unwrap_err();
        assert!(matches!(missing, CopyError::Store(StoreError::Unusable { .. })), "{missing}");
        assert!(!folder.path().join("from.db").exists() && !folder.path().join("to.db").exists());
        let store = Store::open(&from, BUSY).await.unwrap();
        register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
        let served = copy(&from, &to, BUSY, TAKEOVER).await.unwrap_err();
        assert!(matches!(served, CopyError::Store(StoreError::InUse { .. })), "{served}");
        store.close().await;
        copy(&from, &to, BUSY, TAKEOVER).await.unwrap();
        let before = dump(&to.to_string()).await;
        let full = copy(&from, &to, BUSY, TAKEOVER).await.unwrap_err();
        assert!(matches!(full, CopyError::NotEmpty { table: "account", .. }), "{full}");
        assert_eq!(dump(&to.to_string()).await, before);
    })
    .await;
}

#[tokio::test]
async fn nodes_that_live_are_named_and_one_that_was_killed_is_in_nobodys_way() {
    let test = "store::copy::nodes_that_live_are_named_and_one_that_was_killed_is_in_nobodys_way";
    let Some(database) = postgres::Database::make(test).await else { return };
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let store = database.open().await.of_node("1".into());
        store.join("mail1").await.unwrap();
        register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
        let (from, to) = (database.url.parse().unwrap(), file(&folder, "to.db"));
        let living = async {
            loop {
                store.heartbeat("mail1").await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let copied = tokio::select! {
            copied = copy(&from, &to, BUSY, TAKEOVER) => copied.unwrap_err(),
            () = living => unreachable!("it lives on"),
        };
        assert!(copied.to_string().contains("the node mail1 serves from postgres://"), "{copied}");
        copy(&from, &to, BUSY, TAKEOVER).await.unwrap();
        let copied = dump(&to.to_string()).await;
        assert_eq!((copied["account"].len(), copied["node"].len()), (1, 0));
    })
    .await;
}

/// All or nothing: what one database cannot hold keeps the whole back.
#[tokio::test]
async fn a_row_that_does_not_fit_leaves_the_target_empty() {
    let test = "store::copy::a_row_that_does_not_fit_leaves_the_target_empty";
    let Some(database) = mariadb::Database::make(test).await else { return };
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (file(&folder, "from.db"), database.url.parse().unwrap());
        let store = Store::open(&from, BUSY).await.unwrap();
        register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
        let long = Account::from_login(&"a".repeat(513));
        register(&store, device(&long, 'a'), &["INBOX"], 5, 100).await;
        store.close().await;
        let refused = copy(&from, &to, BUSY, TAKEOVER).await.unwrap_err();
        assert!(refused.to_string().contains("512 characters"), "{refused}");
        let store = Store::open(&from, BUSY).await.unwrap();
        assert!(store.remove_account(&long).await.unwrap());
        store.close().await;
        copy(&from, &to, BUSY, TAKEOVER).await.unwrap();
        assert_eq!(dump(&database.url).await["account"].len(), 1);
    })
    .await;
}
