//! What is peculiar to a SQLite file.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use mailchime::model::Credentials;
use mailchime::store::{Store, StoreError, Vault};
use sqlx::{Connection, Row, SqliteConnection};

use super::*;

async fn count(connection: &mut SqliteConnection, sql: &'static str) -> i64 {
    sqlx::query(sql).fetch_one(connection).await.unwrap().get(0)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn files(folder: &TempDir) -> Vec<(String, u32)> {
    let mut files: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), mode(&entry.path())))
        .collect();
    files.sort();
    files
}

#[tokio::test]
async fn the_files_are_their_owners_alone() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder).await;
        register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
        let expected = ["mailchime.db", "mailchime.db-shm", "mailchime.db-wal"];
        assert_eq!(files(&folder), expected.map(|name| (name.to_owned(), 0o600)));

        // Opened to others by a careless copy, while a killed program left its log behind.
        for name in expected {
            let path = folder.path().join(name);
            fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
        }
        let again = open(&folder).await;
        assert_eq!(files(&folder), expected.map(|name| (name.to_owned(), 0o600)));
        store.close().await;
        again.close().await;
        assert_eq!(files(&folder), [("mailchime.db".to_owned(), 0o600)], "nothing is left behind");
    })
    .await;
}

#[tokio::test]
async fn an_ok_is_on_disk() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder).await;
        register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
        owe(&store, key(&alice(), 'a'), "INBOX").await;
        // What a killed program leaves: the files as they are at this moment, nothing closed.
        let copy = tempfile::tempdir().unwrap();
        for (name, _) in files(&folder) {
            if !name.ends_with("-shm") {
                fs::copy(folder.path().join(&name), copy.path().join(&name)).unwrap();
            }
        }
        drop(store);
        for folder in [&copy, &folder] {
            let again = open(folder).await;
            assert_eq!(mailboxes(&only_target(&again, &alice()).await), ["INBOX!"]);
            assert_eq!(told(&again, &alice(), "INBOX").await, Some(state(5)));
        }
    })
    .await;
}

#[tokio::test]
async fn a_registration_that_was_dropped_is_there_whole_or_not_at_all() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder).await;
        let registration = registration(device(&alice(), 'a'), &["INBOX", "Sent"], 5);
        let dummy = sealed("sealed");
        for turns in 0..100 {
            let call = store.register(&registration, by(&imap(), Some(&dummy)), 10, EVER);
            let gone = async {
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
            };
            let returned = tokio::select! {
                biased;
                result = call => result.is_ok(),
                () = gone => false,
            };
            // The next writer is not held up, and once it is through so is what was dropped.
            store.park(&bob(), &imap(), "nobody", EVER).await.unwrap();
            let devices = store.targets(&alice(), EVER).await.unwrap();
            assert!(devices.iter().all(|target| target.mailboxes.len() == 2), "{devices:?}");
            // Nobody waited any more when its turn came.
            assert!(turns > 0 || devices.is_empty(), "{devices:?}");
            assert!(!returned || devices.len() == 1, "{devices:?}");
            assert_eq!(store.remove_account(&alice()).await.unwrap(), !devices.is_empty());
        }
    })
    .await;
}

#[tokio::test]
async fn nothing_dangles_when_an_account_goes() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder).await;
        register(&store, device(&alice(), 'a'), &["INBOX", "Sent"], 5, 100).await;
        let mut connection = beside(&folder).await;
        let rows = "select (select count(*) from account) + (select count(*) from device) \
                    + (select count(*) from device_mailbox) + (select count(*) from snapshot)";
        assert_eq!(count(&mut connection, rows).await, 6);
        store.remove_account(&alice()).await.unwrap();
        assert_eq!(count(&mut connection, rows).await, 0);
        register(&store, device(&alice(), 'a'), &["INBOX", "Sent"], 5, 100).await;
        store.remove_device(&key(&alice(), 'a'), None).await.unwrap();
        assert_eq!(count(&mut connection, rows).await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_newer_database_is_refused_untouched() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        open(&folder).await.close().await;
        let mut connection = beside(&folder).await;
        sqlx::query(
            "insert into _sqlx_migrations (version, description, success, checksum, \
             execution_time) values (9999, 'of tomorrow', 1, x'00', 0)",
        )
        .execute(&mut connection)
        .await
        .unwrap();
        let refused = try_open(&folder, Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Newer { found: 9999, .. }), "{refused:?}");
        let shown = refused.to_string();
        assert!(shown.contains("mailchime.db") && shown.contains("newer"), "{shown}");
    })
    .await;
}

#[tokio::test]
async fn a_changed_migration_and_a_foreign_file_are_refused_by_name() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        open(&folder).await.close().await;
        let mut connection = beside(&folder).await;
        sqlx::query("update _sqlx_migrations set checksum = x'00'")
            .execute(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
        let refused = try_open(&folder, Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Unusable { .. }), "{refused:?}");

        fs::write(folder.path().join("mailchime.db"), "a text that is no database ".repeat(99))
            .unwrap();
        let refused = try_open(&folder, Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Other { .. }), "{refused:?}");
        let shown = refused.to_string();
        assert!(shown.contains("mailchime.db") && shown.contains("backup"), "{shown}");
    })
    .await;
}

#[tokio::test]
async fn a_url_or_folder_at_fault_is_named_with_the_remedy() {
    limited(async {
        for url in ["", "sqlite://", "sqlite::memory:", "sqlite://:memory:", "sqlite://a?mode=ro"] {
            let refused = Store::open(url, Duration::from_secs(1)).await.unwrap_err();
            assert!(refused.to_string().contains("sqlite://PATH"), "{refused}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("no/such.db");
        let url = format!("sqlite://{}", path.display());
        let refused = Store::open(&url, Duration::from_secs(1)).await.unwrap_err().to_string();
        assert!(refused.contains("no/such.db") && refused.contains("folder"), "{refused}");

        let path = folder.path().join("mailchime.db");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        let refused = try_open(&folder, Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Unusable { .. }), "{refused:?}");
        assert_eq!(mode(&path), 0o755, "a folder is left as it was");
    })
    .await;
}

#[tokio::test]
async fn a_path_may_hold_what_means_something_in_a_url() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a b%41#ü [x].db");
        let url = format!("sqlite://{}", path.display());
        let store = Store::open(&url, Duration::from_secs(5)).await.unwrap();
        register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
        store.close().await;
        assert_eq!(files(&folder), [("a b%41#ü [x].db".to_owned(), 0o600)]);
        assert!(fs::metadata(&path).unwrap().len() > 0);
    })
    .await;
}

#[tokio::test]
async fn a_locked_database_is_an_error_to_try_again_on() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        open(&folder).await.close().await;
        let store = try_open(&folder, Duration::from_millis(50)).await.unwrap();
        let mut other = beside(&folder).await;
        let lock = other.begin_with("begin immediate").await.unwrap();

        let registration = registration(device(&alice(), 'a'), &["INBOX"], 5);
        let refused = store.register(&registration, by(&imap(), None), 10, EVER).await.unwrap_err();
        assert!(refused.is_temporary(), "{refused:?}");
        assert!(refused.to_string().contains("mailchime.db"), "{refused}");
        let refused = store.park(&alice(), &imap(), "why", EVER).await.unwrap_err();
        assert!(refused.is_temporary(), "{refused:?}");
        assert_eq!(store.accounts(EVER).await.unwrap(), [], "reading goes on");
        store.ping().await.unwrap();
        let refused = try_open(&folder, Duration::from_millis(50)).await.unwrap_err();
        assert!(refused.is_temporary(), "{refused:?}");

        lock.rollback().await.unwrap();
        store.register(&registration, by(&imap(), None), 10, EVER).await.unwrap();
        only_target(&store, &alice()).await;
    })
    .await;
}

#[tokio::test]
async fn programs_that_start_at_once_share_a_new_database() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let (one, two, three) = tokio::join!(open(&folder), open(&folder), open(&folder));
        register(&one, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
        only_target(&two, &alice()).await;
        only_target(&three, &alice()).await;
    })
    .await;
}

#[tokio::test]
async fn no_secret_is_in_the_database_or_an_error() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder).await;
        let vault = Vault::open(&folder.path().join("credentials.key")).unwrap();
        let credentials = Credentials::password("alice@example.org", b"wonder land".to_vec());
        let sealed = Sealed { text: vault.seal(&alice(), &credentials), until: None };
        let registration = registration(device(&alice(), 'a'), &["INBOX"], 5);
        store.register(&registration, by(&imap(), Some(&sealed)), 10, EVER).await.unwrap();
        let stored = store.credentials(&alice(), &imap()).await.unwrap().unwrap();
        assert!(vault.unseal(&alice(), &stored.text).unwrap().same_as(&credentials));
        store.close().await;
        let bytes = fs::read(folder.path().join("mailchime.db")).unwrap();
        assert!(!bytes.windows(6).any(|window| window == b"wonder"));
        let shown = format!("{store:?} {:?}", store.ping().await);
        assert!(shown.contains("mailchime.db") && !shown.contains("aaaaaaaaa"), "{shown}");
        let shown = format!("{:?}", key(&alice(), 'a'));
        assert!(!shown.contains("aaaaaaaaa"), "{shown}");
    })
    .await;
}
