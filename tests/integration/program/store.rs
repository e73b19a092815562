//! `mailchime store copy`: what it takes, and what it says.

use std::fs;
use std::path::Path;
use std::time::Duration;

use mailchime::demo::pki::Pki;
use mailchime::imap::registration::xapple::{DeviceToken, XAppleRegistration};
use mailchime::model::{Account, Mailbox, Registration, Snapshot, Timestamp};
use mailchime::store::Store;

use crate::support::limited;
use crate::support::program::{Process, mailchime};
use crate::support::pushing::register;

async fn copy(folder: &Path, from: &str, to: &str) -> (Option<i32>, String) {
    let mut command = mailchime(&["store", "copy", from, to]);
    command.current_dir(folder);
    let mut process = Process::spawn(command);
    let code = process.end().await.code();
    (code, [&process.stdout.seen[..], &process.stderr.seen[..]].concat().join("\n"))
}

#[tokio::test]
async fn a_database_is_copied_by_its_url_or_its_configuration() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        Pki::generate(None).unwrap().write_to(path).unwrap();
        let config = "[tls]\ncertificate = \"server.pem\"\nprivate_key = \"server.key\"\n\
                      [backend]\naddress = \"127.0.0.1:1\"\ntls = \"none\"\n\
                      [store]\nurl = \"sqlite://new.db\"\n";
        fs::write(path.join("new.toml"), config).unwrap();
        let (code, said) = copy(path, "sqlite://old.db", "new.toml").await;
        assert_eq!(code, Some(64), "{said}");
        assert!(said.contains("old.db") && said.contains("nothing was copied"), "{said}");
        assert!(!path.join("old.db").exists() && !path.join("new.db").exists());

        let url = format!("sqlite://{}", path.join("old.db").display());
        let store = Store::open(&url.parse().unwrap(), Duration::from_secs(5)).await.unwrap();
        let device = XAppleRegistration {
            version: 2,
            account_id: "id".into(),
            token: DeviceToken::new(&"ab".repeat(32)).unwrap(),
            subtopic: "com.apple.mobilemail".into(),
            mailboxes: Vec::new(),
        };
        let mailboxes = ["INBOX", "Sent"].map(|name| (Mailbox::new(name), Snapshot::default()));
        let subscription = device.subscription(Account::from_login("alice"), "topic");
        let registration = Registration { subscription, mailboxes: mailboxes.into() };
        register(&store, &registration, Timestamp::now()).await;
        let (code, said) = copy(path, "sqlite://old.db", "new.toml").await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("is in use by another mailchime"), "{said}");
        store.close().await;
        let (code, said) = copy(path, "sqlite://old.db", "new.toml").await;
        assert_eq!(code, Some(0), "{said}");
        for expected in ["1 account", "2 mailbox", "1 subscription", "keep the key file"] {
            assert!(said.contains(expected), "{expected}: {said}");
        }
        let (code, said) = copy(path, "sqlite://old.db", "new.toml").await;
        assert_eq!(code, Some(64), "{said}");
        assert!(said.contains("new.db is not empty"), "{said}");
        let (code, said) = copy(path, "sqlite://old.db", "postgres://mc:secret@localhost/db").await;
        assert_eq!(code, Some(64), "{said}");
        assert!(said.contains("name its file") && !said.contains("secret"), "{said}");
    })
    .await;
}
