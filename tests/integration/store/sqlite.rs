//! What is peculiar to a SQLite file.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use mailchime::config::{self, DatabaseUrl};
use mailchime::model::{AcceptedLogin, Credentials};
use mailchime::store::{CredentialSource, Store, StoreError, Vault};
use sqlx::{AssertSqlSafe, Connection, Executor, Row, SqliteConnection};

use super::*;
use crate::support::limited;

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
        let expected =
            ["mailchime.db", "mailchime.db-lock", "mailchime.db-shm", "mailchime.db-wal"];
        assert_eq!(files(&folder), expected.map(|name| (name.to_owned(), 0o600)));

        // Opened to others by a careless copy, with a log that somebody holds open.
        let mut other = beside(&folder).await;
        assert_eq!(count(&mut other, "select count(*) from account").await, 1);
        store.close().await;
        for name in ["mailchime.db", "mailchime.db-shm", "mailchime.db-wal"] {
            let path = folder.path().join(name);
            fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
        }
        let again = open(&folder).await;
        assert_eq!(files(&folder), expected.map(|name| (name.to_owned(), 0o600)));
        other.close().await.unwrap();
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
            store.refused(&bob(), &imap(), 2, Some("nobody"), EVER).await.unwrap();
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
        let rows = "select (select count(*) from account) + (select count(*) from subscription) \
                    + (select count(*) from subscription_mailbox) + (select count(*) from mailbox)";
        assert_eq!(count(&mut connection, rows).await, 6);
        store.remove_account(&alice()).await.unwrap();
        assert_eq!(count(&mut connection, rows).await, 0);
        register(&store, device(&alice(), 'a'), &["INBOX", "Sent"], 5, 100).await;
        store.remove_subscription(&key(&alice(), 'a'), None).await.unwrap();
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
        assert!(matches!(refused, StoreError::Unusable { .. }), "{refused:?}");
        let shown = refused.to_string();
        assert!(shown.contains("mailchime.db") && shown.contains("backup"), "{shown}");
    })
    .await;
}

#[tokio::test]
async fn a_url_or_folder_at_fault_is_named_with_the_remedy() {
    limited(async {
        for url in ["", "sqlite://", "sqlite::memory:", "sqlite://:memory:", "sqlite://a?mode=ro"] {
            let refused = url.parse::<DatabaseUrl>().unwrap_err();
            assert!(refused.contains("allowed is \"sqlite://\" and the path"), "{refused}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("no/such.db");
        let url = format!("sqlite://{}", path.display());
        let refused = Store::open(&url.parse().unwrap(), Duration::from_secs(1))
            .await
            .unwrap_err()
            .to_string();
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
        let url = DatabaseUrl::sqlite(&path);
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
        let refused = store.refused(&alice(), &imap(), 2, Some("why"), EVER).await.unwrap_err();
        assert!(refused.is_temporary(), "{refused:?}");
        assert_eq!(store.accounts(EVER).await.unwrap(), [], "reading goes on");
        let refused = store.ping().await.unwrap_err();
        assert!(refused.is_temporary(), "it asks for what writing needs: {refused:?}");
        store.close().await;
        let refused = try_open(&folder, Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Unavailable { .. }), "{refused:?}");

        lock.rollback().await.unwrap();
        let store = try_open(&folder, Duration::from_millis(50)).await.unwrap();
        store.register(&registration, by(&imap(), None), 10, EVER).await.unwrap();
        only_target(&store, &alice()).await;
    })
    .await;
}

#[tokio::test]
async fn of_programs_that_start_at_once_one_has_a_new_database() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let opening = std::array::from_fn::<_, 3, _>(|_| try_open(&folder, Duration::from_secs(5)));
        let [one, two, three] = opening;
        let opened = tokio::join!(one, two, three);
        let (opened, refused): (Vec<_>, Vec<_>) =
            [opened.0, opened.1, opened.2].into_iter().partition(Result::is_ok);
        assert_eq!((opened.len(), refused.len()), (1, 2));
        for refused in refused.into_iter().map(Result::unwrap_err) {
            assert!(matches!(refused, StoreError::InUse { .. }), "{refused:?}");
            assert!(refused.is_temporary());
            let process = format!("process {}", std::process::id());
            assert!(refused.to_string().contains(&process), "{refused}");
        }
        let store = opened.into_iter().next().unwrap().unwrap();
        register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
        // Who only looks needs no lock; a clone that is closed leaves it.
        let url = format!("sqlite://{}", folder.path().join("mailchime.db").display());
        let looking =
            Store::open_existing(&url.parse().unwrap(), Duration::from_secs(5)).await.unwrap();
        only_target(&looking, &alice()).await;
        looking.close().await;
        try_open(&folder, Duration::from_secs(5)).await.unwrap_err();
        store.close().await;
        only_target(&open(&folder).await, &alice()).await;
    })
    .await;
}

#[tokio::test]
async fn a_replaced_file_refuses_writes_and_is_well_when_it_is_back() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder).await;
        register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
        let path = |name: &str| folder.path().join(name);
        fs::rename(path("mailchime.db"), path("aside.db")).unwrap();
        let registration = registration(device(&bob(), 'b'), &["INBOX"], 5);
        for file_there in [false, true] {
            if file_there {
                fs::copy(path("aside.db"), path("mailchime.db")).unwrap();
            }
            let what = if file_there { "was replaced" } else { "was removed" };
            let calls = [
                store.register(&registration, by(&imap(), None), 10, EVER).await.map(drop),
                store.refused(&alice(), &imap(), 2, Some("why"), EVER).await,
                store.remove_account(&alice()).await.map(drop),
                store.ping().await,
            ];
            for refused in calls.into_iter().map(Result::unwrap_err) {
                assert!(matches!(refused, StoreError::Replaced { .. }), "{refused:?}");
                let shown = refused.to_string();
                assert!(shown.contains(what) && shown.contains("start mailchime anew"), "{shown}");
                assert!(!refused.is_temporary());
            }
            only_target(&store, &alice()).await;
        }
        fs::rename(path("aside.db"), path("mailchime.db")).unwrap();
        store.ping().await.unwrap();
        store.register(&registration, by(&imap(), None), 10, EVER).await.unwrap();
        store.close().await;
        assert_eq!(open(&folder).await.accounts(EVER).await.unwrap().len(), 2);
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

/// A password that comes between the two outdates the registration. So it has to be read last: read first, it
/// would count as written with a password that came after it.
#[tokio::test]
async fn whether_a_registration_is_written_is_asked_of_the_credentials_first() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder).await;
        let (stored, key_file) = (config::CredentialsMode::Stored, folder.path().join("key"));
        let source = CredentialSource::open(stored, &key_file, store.clone()).unwrap();
        let registration = registration(device(&alice(), 'a'), &["INBOX"], 5);
        let now = Timestamp::now();
        let login = |password: &str| AcceptedLogin {
            backend: imap(),
            credentials: Some(Credentials::password("alice@Example.org", password.into())),
            at: now,
            names_ignore_case: false,
        };
        source.register(&registration, &login("first"), 10, now).await.unwrap();
        assert!(source.has_registered(&registration, &login("first"), now).await.unwrap());
        // Registrations cannot be read any more, and need not be where the password is another one.
        let mut other = beside(&folder).await;
        sqlx::query("drop table subscription_mailbox").execute(&mut other).await.unwrap();
        assert!(!source.has_registered(&registration, &login("second"), now).await.unwrap());
        assert!(source.has_registered(&registration, &login("first"), now).await.is_err());
        other.close().await.unwrap();
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn an_account_whose_devices_cannot_be_removed_does_not_keep_those_of_others() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder).await;
        register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
        register(&store, device(&bob(), 'b'), &["INBOX"], 5, 100).await;
        let trigger = "create trigger refuse before delete on subscription when old.account = \
                       (select id from account where name = 'alice@example.org') \
                       begin select raise(abort, 'no'); end";
        beside(&folder).await.execute(trigger).await.unwrap();
        let refused = store.expire(Timestamp(200)).await.unwrap_err();
        assert!(!refused.is_temporary(), "{refused:?}");
        assert_eq!(store.targets(&alice(), EVER).await.unwrap().len(), 1);
        assert!(store.targets(&bob(), EVER).await.unwrap().is_empty());
    })
    .await;
}

/// What of a row says that a mailbox is due may be damaged: the mailbox is watched, and looked at.
#[tokio::test]
async fn a_mailbox_stays_watched_where_its_marks_cannot_be_read() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder).await;
        register(&store, device(&alice(), 'a'), &["INBOX", "Team"], 5, 100).await;
        for damage in ["due_since = 'x'", "due_since = 1, due_marks = 'x'"] {
            let damage = format!("update mailbox set {damage} where name = 'INBOX'");
            beside(&folder).await.execute(AssertSqlSafe(damage)).await.unwrap();
            let (watched, due) = store.watched_and_due(&alice(), &imap(), EVER).await.unwrap();
            let watched: Vec<_> = watched.iter().map(|(mailbox, _)| mailbox.as_str()).collect();
            assert_eq!(watched, ["INBOX", "Team"]);
            let due: Vec<_> =
                due.iter().map(|due| (due.mailbox.as_str(), due.marks.count > 0)).collect();
            assert_eq!(due, [("INBOX", true)]);
        }
    })
    .await;
}
