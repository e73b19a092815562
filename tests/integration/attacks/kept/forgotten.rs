//! What was forgotten is in no file any more: neither in the database nor in what SQLite keeps beside it.

use std::fs;
use std::time::Duration;

use mailchime::imap::registration::xapple::{DeviceToken, XAppleRegistration};
use mailchime::model::{Account, BackendId, Mailbox, Registration, Snapshot, Timestamp};
use mailchime::store::{Registrant, Sealed, Store};
use sqlx::{Connection, Row, SqliteConnection};

use crate::support::world::{LOGIN, PASSWORD, World};
use crate::support::{limited, until};

/// In which files of the folder any part of the text is found.
fn places(folder: &std::path::Path, text: &str) -> Vec<String> {
    // Not the beginning, which is the same for all of one key.
    let parts = [&text[text.len() - 24..], &text[text.len() - 60..][..24]];
    let mut places = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        if parts.iter().any(|part| memchr::memmem::find(&bytes, part.as_bytes()).is_some()) {
            places.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        }
    }
    places
}

/// The sealed text of alice.
async fn sealed(world: &World) -> String {
    let url = format!("sqlite://{}", world.file("mailchime.db").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    let row = sqlx::query("select credentials from account where name = $1").bind(LOGIN);
    let text = row.fetch_one(&mut database).await.unwrap().get("credentials");
    database.close().await.unwrap();
    text
}

/// How many credentials are kept beside the last ones.
async fn beside(world: &World) -> i64 {
    let url = format!("sqlite://{}", world.file("mailchime.db").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    let count = sqlx::query("select count(*) as kept from credential");
    let count = count.fetch_one(&mut database).await.unwrap().get("kept");
    database.close().await.unwrap();
    count
}

async fn remove(world: &World) {
    let said = world.command(&["devices", "remove", LOGIN]).await;
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert!(said.stdout.contains("the password is forgotten, too"), "{}", said.stdout);
}

#[tokio::test]
async fn a_removed_password_is_in_no_file() {
    limited(async {
        let world = World::new().await;
        let mut server = world.serve().await;
        world.register(server.address).await.unwrap();
        let text = sealed(&world).await;
        assert_ne!(places(world.folder(), &text), [""; 0], "the search finds it while it is there");
        // A reader of a moment ago, such as a backup, must not keep it.
        world.command(&["devices", "list"]).await;
        remove(&world).await;
        let running = places(world.folder(), &text);
        server.process.signal("TERM");
        server.process.end().await;
        let stopped = places(world.folder(), &text);

        let server = world.serve().await;
        world.register(server.address).await.unwrap();
        let text = sealed(&world).await;
        assert_ne!(places(world.folder(), &text), [""; 0]);
        remove(&world).await;
        server.process.kill();
        let killed = places(world.folder(), &text);
        let server = world.serve().await;
        let again = places(world.folder(), &text);
        drop(server);
        let found = [running, stopped, killed, again];
        assert!(found.iter().all(Vec::is_empty), "running, stopped, killed, again: {found:?}");
    })
    .await;
}

/// Neither the texts of before nor the key that opened them.
#[tokio::test]
async fn a_rotation_leaves_neither_the_old_key_nor_what_it_sealed() {
    limited(async {
        let world = World::new().await;
        let mut server = world.serve().await;
        world.register(server.address).await.unwrap();
        let text = sealed(&world).await;
        let old = fs::read_to_string(world.file("mailchime.key")).unwrap();
        let old = old.lines().find(|line| !line.starts_with('#')).unwrap();
        let found = |what: &str| places(world.folder(), what);
        assert_ne!(found(&text), [""; 0]);
        let keys = || {
            let files = fs::read_dir(world.folder()).unwrap();
            let files = files.map(|entry| fs::read(entry.unwrap().path()).unwrap());
            files.filter(|bytes| memchr::memmem::find(bytes, old.as_bytes()).is_some()).count()
        };
        assert_eq!(keys(), 1);
        let said = world.command(&["credentials", "rotate"]).await;
        assert_eq!(said.code, 0, "{}", said.stderr);
        assert_eq!(keys(), 0);
        let running = found(&text);
        server.process.signal("TERM");
        server.process.end().await;
        let stopped = found(&text);
        assert!(running.is_empty() && stopped.is_empty(), "{running:?} {stopped:?}");
    })
    .await;
}

/// A new password takes the place of the old one when the backend has refused that.
#[tokio::test]
async fn a_password_that_was_replaced_is_in_no_file() {
    limited(async {
        let world = World::new().await;
        let server = world.serve().await;
        world.register(server.address).await.unwrap();
        let text = sealed(&world).await;
        world.backend.set_password(LOGIN, b"looking glass").unwrap();
        let mut client = world.client(&server).await;
        client.send(format!("in LOGIN {LOGIN} \"looking glass\"\r\n").as_bytes()).await;
        client.until("in OK").await;
        until(async || sealed(&world).await != text).await;
        world.backend.drop_connections();
        until(async || places(world.folder(), &text).is_empty() || beside(&world).await == 0).await;
        drop(client);
        server.process.kill();
        let server = world.serve().await;
        let again = places(world.folder(), &text);
        drop(server);
        assert!(again.is_empty(), "{PASSWORD}: {again:?}");
    })
    .await;
}

/// A file that an earlier version wrote, which overwrote nothing.
#[tokio::test]
async fn what_an_earlier_version_left_goes_at_the_next_start() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mailchime.db");
        let url = format!("sqlite://{}", path.display());
        let open = async || Store::open(&url.parse().unwrap(), Duration::from_secs(5)).await;
        open().await.unwrap().close().await;
        let mut database = SqliteConnection::connect(&url).await.unwrap();
        for statement in [
            "pragma user_version = 0",
            "pragma secure_delete = off",
            "insert into account (name, credentials, created_at) values ('a', '<left behind>', 1)",
            "delete from account",
            "pragma wal_checkpoint(truncate)",
        ] {
            sqlx::query(statement).fetch_all(&mut database).await.unwrap();
        }
        database.close().await.unwrap();
        let left = || memchr::memmem::find(&fs::read(&path).unwrap(), b"<left behind>").is_some();
        assert!(left(), "the search finds it while it is there");
        open().await.unwrap().close().await;
        assert!(!left());
    })
    .await;
}

fn registration(name: &str) -> Registration {
    // Each has a phone of their own.
    let hex: String = name.bytes().take(32).map(|byte| format!("{byte:02x}")).collect();
    let device = XAppleRegistration {
        version: 2,
        account_id: "0715A26B-CA09-4730-A419-793000CA982E".into(),
        token: DeviceToken::new(&format!("{hex:0<64}")).unwrap(),
        subtopic: "com.apple.mobilemail".into(),
        mailboxes: Vec::new(),
    }
    .subscription(Account::from_login(name), "com.apple.mail.XServer.1");
    Registration { subscription: device, mailboxes: vec![(Mailbox::inbox(), Snapshot::default())] }
}

/// Pages that are split and merged leave copies of rows behind.
#[tokio::test]
async fn of_many_that_came_and_went_nothing_is_left() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("mailchime.db").display());
        let store = Store::open(&url.parse().unwrap(), Duration::from_secs(5)).await.unwrap();
        let backend = BackendId::new(None, "imap.example.org", 993);
        const ACCOUNTS: usize = 600;
        let name = |number: usize| format!("user{:04}@example.org", (number * 37) % ACCOUNTS);
        let text = |number: usize, round: usize| {
            let mark = format!("<gone {round} {number:04}>");
            let sealed = format!("v1.01234567.{}{mark}", "x".repeat(40 + number % 150));
            Sealed { text: sealed, until: None }
        };
        for round in 0..2 {
            for number in 0..ACCOUNTS {
                let registration = registration(&name(number));
                let sealed = text(number, round);
                let login = Registrant::new(&backend, Timestamp(1), Some(&sealed));
                store.register(&registration, login, 10, Timestamp(1)).await.unwrap();
                if number % 3 == 0 && number > 0 {
                    let gone = Account::from_login(&name(number / 2));
                    store.remove_account(&gone).await.unwrap();
                }
            }
        }
        let seen = |what: &str| {
            let files = fs::read_dir(folder.path()).unwrap();
            let files = files.map(|entry| fs::read(entry.unwrap().path()).unwrap());
            files.map(|bytes| memchr::memmem::find_iter(&bytes, what).count()).sum::<usize>()
        };
        assert!(seen("<gone 1") > ACCOUNTS / 2);
        for number in 0..ACCOUNTS {
            store.remove_account(&Account::from_login(&name(number))).await.unwrap();
        }
        store.scrub().await.unwrap();
        let running = seen("<gone ");
        store.close().await;
        assert_eq!((running, seen("<gone ")), (0, 0));
    })
    .await;
}
