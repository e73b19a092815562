//! `mailchime credentials rotate`: what it says and what becomes of the files.

use std::fs;
use std::path::Path;
use std::time::Duration;

use mailchime::config;
use mailchime::demo::pki::Pki;
use mailchime::imap::registration::xapple::{DeviceToken, XAppleRegistration};
use mailchime::model::{
    AcceptedLogin, BackendId, Credentials, Mailbox, Registration, Snapshot, Timestamp,
};
use mailchime::store::{CredentialSource, Store};
use sqlx::{Connection, Executor, SqliteConnection};

use crate::support::program::{Process, mailchime};
use crate::support::world::World;
use crate::support::{limited, until};

const CONFIG: &str = "[tls]\ncertificate = \"server.pem\"\nprivate_key = \"server.key\"\n\
    [backend]\naddress = \"127.0.0.1:1\"\ntls = \"none\"\n";

async fn rotate(folder: &Path, config: &str) -> (Option<i32>, String) {
    fs::write(folder.join("proxy.toml"), config).unwrap();
    let mut command = mailchime(&["credentials", "rotate", "--config", "proxy.toml"]);
    command.current_dir(folder);
    let mut process = Process::spawn(command);
    let code = process.end().await.code();
    (code, [&process.stdout.seen[..], &process.stderr.seen[..]].concat().join("\n"))
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one story")]
async fn a_rotation_says_what_it_did_and_changes_nothing_when_it_cannot() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        Pki::generate(None).unwrap().write_to(path).unwrap();

        let (code, said) = rotate(path, CONFIG).await;
        assert_eq!(code, Some(64), "{said}");
        assert!(said.contains("[credentials] key_file: mailchime.key does not exist"), "{said}");
        assert!(!path.join("mailchime.key").exists() && !path.join("mailchime.db").exists());
        let (code, said) = rotate(path, &format!("{CONFIG}[credentials]\nmode = \"memory\"")).await;
        assert_eq!(code, Some(64), "{said}");
        assert!(said.contains("[credentials] mode: no credentials are stored"), "{said}");

        let url = format!("sqlite://{}", path.join("mailchime.db").display());
        let store = Store::open(&url.parse().unwrap(), Duration::from_secs(5)).await.unwrap();
        let open = |name: &str| {
            CredentialSource::open(config::CredentialsMode::Stored, &path.join(name), store.clone())
        };
        // A server that runs meanwhile.
        let source = open("mailchime.key").unwrap();
        let alice = Credentials::password("alice", b"wonder land".to_vec());
        let device = XAppleRegistration {
            version: 2,
            account_id: "id".into(),
            token: DeviceToken::new(&"ab".repeat(32)).unwrap(),
            subtopic: "com.apple.mobilemail".into(),
            mailboxes: Vec::new(),
        }
        .subscription(alice.account(), "topic");
        let mailboxes = vec![(Mailbox::inbox(), Snapshot::default())];
        let registration = Registration { subscription: device, mailboxes };
        let (backend, now) = (BackendId::new(None, "localhost", 993), Timestamp::now());
        let login = AcceptedLogin {
            backend: backend.clone(),
            credentials: Some(alice.clone()),
            at: now,
            names_ignore_case: false,
        };
        source.register(&registration, &login, 10, now).await.unwrap();
        let before = fs::read_to_string(path.join("mailchime.key")).unwrap();
        let (code, said) = rotate(path, CONFIG).await;
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("a new key; 1 credentials are sealed with it"), "{said}");
        let after = fs::read_to_string(path.join("mailchime.key")).unwrap();
        assert!(before != after && before.lines().count() == after.lines().count(), "{after}");
        let known = source.of(&alice.account(), &backend, Timestamp::now()).await.unwrap().unwrap();
        assert!(known.same_as(&alice));

        // Another database is not the one that the key belongs to: none is made, and one that holds
        // nothing of the key does not have it replaced.
        let key = || fs::read_to_string(path.join("mailchime.key")).unwrap();
        let before = key();
        let mistyped = format!("{CONFIG}[store]\nurl = \"sqlite://mailchimes.db\"");
        let (code, said) = rotate(path, &mistyped).await;
        assert_eq!(code, Some(64), "{said}");
        assert!(said.contains("[store] url") && said.contains("mailchimes.db"), "{said}");
        assert!(!path.join("mailchimes.db").exists(), "a database was made");
        assert_eq!(key(), before);
        let other = format!("sqlite://{}", path.join("other.db").display());
        Store::open(&other.parse().unwrap(), Duration::from_secs(5)).await.unwrap().close().await;
        let other = format!("{CONFIG}[store]\nurl = \"sqlite://other.db\"");
        let (code, said) = rotate(path, &other).await;
        assert_eq!(code, Some(64), "{said}");
        assert!(said.contains("other.db") && said.contains("nothing was changed"), "{said}");
        assert_eq!(key(), before);

        // A row that the key does not open keeps it, too.
        let mut database = SqliteConnection::connect(&url).await.unwrap();
        let foreign = "insert into account (name, credentials, created_at) \
                       values ('zoe', 'v1.01234567.AAAA', 1)";
        database.execute(foreign).await.unwrap();
        let (code, said) = rotate(path, CONFIG).await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("zoe") && said.contains("nothing was changed"), "{said}");
        assert_eq!(key(), before);
        database.execute("delete from account where name = 'zoe'").await.unwrap();
        database.close().await.unwrap();
        let (code, said) = rotate(path, CONFIG).await;
        assert_eq!(code, Some(0), "{said}");
        assert_ne!(key(), before);

        let wrong = open("wrong.key").unwrap();
        drop(wrong);
        let config = format!("{CONFIG}[credentials]\nkey_file = \"wrong.key\"");
        let (code, said) = rotate(path, &config).await;
        assert_eq!(code, Some(64), "{said}");
        assert!(said.contains("put back the key file of that time"), "{said}");
        assert!(source.of(&alice.account(), &backend, Timestamp::now()).await.unwrap().is_some());
    })
    .await;
}

/// Passwords in memory are gone when the program starts anew: the phones are pushed, so that they log in,
/// once a day.
#[tokio::test]
async fn a_start_without_passwords_asks_the_phones_to_log_in() {
    limited(async {
        let world = World::new().await;
        world.configure("[log]\n", "[credentials]\nmode = \"memory\"\n[log]\n");
        let server = world.serve().await;
        world.register(server.address).await.unwrap();
        world.watched().await;
        drop(server);
        let mut server = world.serve().await;
        let pushed = world.push().await;
        assert!(pushed.json()["m"].is_null(), "{}", pushed.json());
        // The phone looks, and that heals it.
        let session = world.session(&server).await;
        world.watched().await;
        world.deliver();
        world.push().await;
        drop(session);
        // A stop before the mail's state is on disk would have it pushed again.
        server.logged("change recorded").await;
        server.process.signal("TERM");
        server.process.end().await;
        let server = world.serve_with_admin().await;
        let said = async || world.command(&["watchers", "--json"]).await.json();
        until(async || said().await["watchers"][0]["state"] == "parked").await;
        // It is known before anything else is done for her.
        let session = world.session(&server).await;
        world.watched().await;
        world.deliver();
        world.push().await;
        assert_eq!(world.apns.received(), 3, "one to log in, and one for each mail");
        drop(session);
    })
    .await;
}
