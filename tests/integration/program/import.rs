//! `mailchime import`: phones of xapsd and of a notifyd script come over, and are pushed to.

use std::fs;
use std::time::{Duration, SystemTime};

use mailchime::imap::registration::xapple::ApnsOptions;
use mailchime::model::Account;
use mailchime::store::Store;
use serde_json::json;
use sqlx::{Connection, Executor, MySqlConnection};

use crate::support::limited;
use crate::support::program::{Process, mailchime};
use crate::support::servers::mariadb::MariaDb;
use crate::support::world::{ACCOUNT_ID, LOGIN, TOKEN, World};
use crate::support::xapsd::{
    database_with_certificate, database_with_times, database_without_times, first_database,
};

const HOUR: u64 = 3600;

/// A time before now as xapsd writes it.
fn ago(seconds: u64) -> String {
    let time = SystemTime::now() - Duration::from_secs(seconds);
    humantime::format_rfc3339_nanos(time).to_string()
}

impl World {
    /// `mailchime import …`: its exit code and all that it says.
    async fn import(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = mailchime(&["import"]);
        command.args(arguments).arg("--config").arg(self.file("proxy.toml"));
        command.current_dir(self.folder());
        let mut process = Process::spawn(command);
        let code = process.end().await.code();
        (code, [&process.stdout.seen[..], &process.stderr.seen[..]].concat().join("\n"))
    }

    /// Makes the database, as a first start does.
    async fn first_start(&self) -> Store {
        let url = format!("sqlite://{}", self.file("mailchime.db").display());
        Store::open(&url.parse().unwrap(), Duration::from_secs(5)).await.unwrap()
    }

    /// What the account's devices have: the id of the account, the version and the mailboxes.
    async fn registered(&self, account: &str) -> Vec<(String, u8, Vec<String>)> {
        let store = self.first_start().await;
        let targets = store.all_targets(&Account::from_login(account)).await.unwrap();
        store.close().await;
        let device = |target: &mailchime::store::Target| {
            let options = ApnsOptions::from_json(&target.subscription.options).unwrap();
            let names = target.mailboxes.iter().map(|(name, _)| name.as_str().to_owned());
            (options.account_id, options.version, names.collect())
        };
        targets.iter().map(device).collect()
    }
}

/// Users of xapsd, in the form in which it writes them.
fn database_of_xapsd() -> String {
    let device = |token: &str, mailboxes: &[&str], at: String| json!({ "DeviceToken": token, "Mailboxes": mailboxes, "RegistrationTime": at });
    let upper = TOKEN.to_uppercase();
    let users = json!({
        LOGIN: { "Accounts": {
            "FORMER-ID": device(&upper, &["INBOX", "Sent Messages"], ago(HOUR)),
            "OLDER-ID": device(&upper, &["INBOX"], ago(30 * HOUR)),
        } },
        "bob@example.org": { "Accounts": {
            "BOB-ID": device(&"b0".repeat(32), &["INBOX"], ago(40 * 24 * HOUR)),
            "NO-INBOX": device(&"b1".repeat(32), &["Notes"], ago(HOUR)),
            "NO-TOKEN": device("abc", &["INBOX"], ago(HOUR)),
            "YEAR-ONE": device(&"b2".repeat(32), &["INBOX"], "0001-01-01T00:00:00Z".to_owned()),
        } },
    });
    serde_json::to_string_pretty(&json!({ "Users": users })).unwrap()
}

#[tokio::test]
async fn phones_of_xapsd_are_pushed_to_after_the_next_login_and_newer_registrations_stay() {
    limited(async {
        let world = World::new().await;
        fs::write(world.file("database.json"), database_of_xapsd()).unwrap();
        let topic = world.pki.topic.clone();
        let arguments = ["xapsd", "database.json", "--topic", &topic];
        let dry: Vec<&str> = arguments.iter().copied().chain(["--dry-run"]).collect();

        // There is nothing to fill yet.
        let (code, said) = world.import(&arguments).await;
        assert_eq!(code, Some(1), "{said}");
        world.first_start().await.close().await;

        let (code, said) =
            world.import(&["xapsd", "database.json", "--topic", "com.apple.mail.other"]).await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("no certificate is for the topic com.apple.mail.other"), "{said}");

        let (code, said) = world.import(&dry).await;
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("accounts: 2, devices: 1 would be taken over, 5 skipped"), "{said}");
        assert!(world.registered(LOGIN).await.is_empty());

        let (code, said) = world.import(&arguments).await;
        assert_eq!(code, Some(0), "{said}");
        for expected in [
            "alice: 1 taken over, 1 skipped",
            "  taken over  8DF2A4C1…  INBOX",
            "with another id",
            "bob@example.org: 0 taken over, 4 skipped",
            "longer than [push] registration_ttl (10days)",
            "it names no mailbox",
            "this is no registration",
            "when it registered is not known",
            "watched from its user's next login",
            "INBOX alone until they register anew",
        ] {
            assert!(said.contains(expected), "{expected}: {said}");
        }
        assert!(!said.to_lowercase().contains(TOKEN), "{said}");
        let former = ("FORMER-ID".to_owned(), 1, vec!["INBOX".to_owned()]);
        assert_eq!(world.registered(LOGIN).await, [former]);
        let (code, said) = world.import(&arguments).await;
        assert_eq!(code, Some(0), "{said}");
        assert!(
            said.contains("mailchime knows it already") && said.contains("devices: 0 taken"),
            "{said}"
        );

        // Nobody has the password until the user logs in.
        let server = world.serve().await;
        let (code, said) = world.import(&arguments).await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("in use by another mailchime"), "{said}");
        let _session = world.session(&server).await;
        world.watched().await;
        world.deliver();
        let push = crate::support::soon("a push", world.apns.next()).await;
        assert_eq!(push.json(), json!({ "aps": { "account-id": "FORMER-ID" } }));
        assert_eq!(push.header("apns-topic"), Some(&*topic));

        // What the phone registers itself is newer, and stays.
        world.register(server.address).await.unwrap();
        server.process.signal("TERM");
        let mut process = server.process;
        process.end().await;
        let (code, said) = world.import(&arguments).await;
        assert_eq!(code, Some(0), "{said}");
        let own = (ACCOUNT_ID.to_owned(), 2, vec!["INBOX".to_owned()]);
        assert_eq!(world.registered(LOGIN).await, [own]);
    })
    .await;
}

#[tokio::test]
async fn a_file_that_xapsd_did_not_write_is_named_and_not_quoted() {
    limited(async {
        let world = World::new().await;
        world.first_start().await.close().await;
        for text in
            ["{}", "[]", "{\"Users\": {\"secret\": 5}}", "{\"Users\": {\"a\": {\"Accounts\": []}}}"]
        {
            fs::write(world.file("database.json"), text).unwrap();
            let topic = world.pki.topic.clone();
            let (code, said) = world.import(&["xapsd", "database.json", "--topic", &topic]).await;
            assert_eq!(code, Some(64), "{text}: {said}");
            assert!(said.contains("database.json: is no database of xapsd"), "{said}");
            assert!(!said.contains("secret"), "{said}");
        }
    })
    .await;
}

#[tokio::test]
async fn each_form_that_xapsd_has_written_is_read_or_named() {
    limited(async {
        let world = World::new().await;
        world.first_start().await.close().await;
        let upper = TOKEN.to_uppercase();
        let topic = world.pki.topic.clone();
        let east = SystemTime::now() + Duration::from_secs(HOUR);
        let east = humantime::format_rfc3339_nanos(east).to_string().replace('Z', "+02:00");
        let with_certificate = database_with_certificate(&world.pki, "carol", &upper, &ago(HOUR));
        for (text, code, expected) in [
            // A file that was made by `touch`, and one that a new version wrote when it had an old one.
            (String::new(), 0, "accounts: 0, devices: 0 taken over, 0 skipped"),
            ("{\n  \"Users\": {}\n}".to_owned(), 0, "accounts: 0, devices: 0 taken over"),
            ("{\n  \"Users\": null\n}".to_owned(), 0, "accounts: 0, devices: 0 taken over"),
            (first_database(LOGIN, &upper), 64, "is of xapsd's first version, which kept no times"),
            (database_without_times(LOGIN, &upper), 0, "when it registered is not known"),
            (
                database_with_times(LOGIN, "ZERO", &upper, "0001-01-01T00:00:00Z"),
                0,
                "when it registered is not known",
            ),
            (database_with_times("bob", "EAST", &upper, &east), 0, "bob: 1 taken over, 0 skipped"),
            (with_certificate, 0, "carol: 1 taken over, 0 skipped"),
        ] {
            fs::write(world.file("database.json"), &text).unwrap();
            let (ended, said) = world.import(&["xapsd", "database.json", "--topic", &topic]).await;
            assert_eq!(ended, Some(code), "{text}: {said}");
            assert!(said.contains(expected), "{expected}: {said}");
            assert!(!said.to_uppercase().contains(&upper), "{said}");
        }
        assert!(world.registered(LOGIN).await.is_empty());
        for (user, id) in [("bob", "EAST"), ("carol", "ID")] {
            let expected = (id.to_owned(), 1, vec!["INBOX".to_owned()]);
            assert_eq!(world.registered(user).await, [expected]);
        }
    })
    .await;
}

/// A database as a notifyd script has it: who, which devices, and which mailboxes.
const TABLES: &str = "\
    create table users (id int unsigned primary key, name varchar(255) not null);
    create table devices (id int unsigned primary key, user int unsigned not null,
        device_token varchar(200) not null, account_id varchar(128) not null,
        subtopic varchar(128) not null, version tinyint unsigned not null,
        registered_at timestamp not null);
    create table mailboxes (id int unsigned primary key auto_increment, device int unsigned not null,
        name varchar(1024) not null);
    insert into users values (1, 'alice'), (2, 'bob');
    insert into devices values
        (1, 1, repeat('a1', 32), 'ALICE-ID', 'com.apple.mobilemail', 2, now() - interval 1 hour),
        (2, 2, repeat('b0', 32), 'BOB-ID', 'com.apple.mobilemail', 1, now() - interval 2 hour),
        (3, 2, repeat('b1', 32), 'BOB-ID', 'com.example.other', 2, now()),
        (4, 2, repeat('b2', 32), 'BOB-ID', 'com.apple.mobilemail', 2, now() - interval 20 day);
    insert into mailboxes (device, name) values
        (1, 'INBOX'), (1, 'Entw&APw-rfe'), (2, 'INBOX'), (3, 'INBOX'), (4, 'INBOX');";

#[tokio::test]
async fn phones_of_a_notifyd_script_come_with_their_mailboxes() {
    let test = "phones_of_a_notifyd_script_come_with_their_mailboxes";
    let Some(server) = MariaDb::start(test) else { return };
    limited(async {
        let world = World::new().await;
        world.first_start().await.close().await;
        let with_password = server.url("mail");
        let mut connection = MySqlConnection::connect(&with_password).await.unwrap();
        for statement in TABLES.split(';').filter(|statement| !statement.trim().is_empty()) {
            connection.execute(sqlx::AssertSqlSafe(statement.to_owned())).await.unwrap();
        }
        let topic = world.pki.topic.clone();
        let (code, said) =
            world.import(&["notifyd-mysql", &with_password, "--topic", &topic]).await;
        assert_eq!(code, Some(64), "{said}");
        assert!(said.contains("--password-file") && !said.contains("chime@"), "{said}");

        let url = with_password.replace(":chime@", "@");
        fs::write(world.file("password"), "chime\n").unwrap();
        let arguments = ["notifyd-mysql", &url, "--password-file", "password", "--topic", &topic];
        let (code, said) = world.import(&arguments).await;
        assert_eq!(code, Some(0), "{said}");
        for expected in [
            "alice: 1 taken over, 0 skipped",
            "  taken over  a1a1a1a1…  INBOX, Entwürfe",
            "bob: 1 taken over, 2 skipped",
            "[push] clients does not name its mail client",
            "longer than [push] registration_ttl",
        ] {
            assert!(said.contains(expected), "{expected}: {said}");
        }
        let mailboxes = ["Entwürfe", "INBOX"].map(str::to_owned);
        assert_eq!(world.registered("alice").await, [("ALICE-ID".to_owned(), 2, mailboxes.into())]);
        assert_eq!(world.registered("bob").await.len(), 1);

        // Tables of other names, by a statement for them.
        connection.execute("rename table devices to push_devices").await.unwrap();
        let (code, said) = world.import(&arguments).await;
        assert_eq!(code, Some(1), "{said}");
        for expected in [
            "--query",
            "  mailboxes: id, device, name",
            "  push_devices: id, user, device_token, account_id, subtopic, version, registered_at",
            "  users: id, name",
        ] {
            assert!(said.contains(expected), "{expected}: {said}");
        }
        assert!(!said.contains("a1a1"), "{said}");
        fs::write(
            world.file("query.sql"),
            "select u.name as user, d.device_token, 'NEW-ID' as account_id, d.subtopic, \
             2 as version, 'INBOX' as mailbox, now() as registered_at \
             from push_devices d join users u on u.id = d.user where d.id = 2;\n",
        )
        .unwrap();
        let by_query: Vec<&str> = arguments.into_iter().chain(["--query", "query.sql"]).collect();
        let (code, said) = world.import(&by_query).await;
        assert_eq!(code, Some(0), "{said}");
        let newer = ("NEW-ID".to_owned(), 2, vec!["INBOX".to_owned()]);
        assert_eq!(world.registered("bob").await, [newer]);
    })
    .await;
}

#[tokio::test]
async fn an_import_displaces_nothing() {
    limited(async {
        let world = World::new().await;
        world.configure("[push]\n", "[push]\ndevices = 1\n");
        let server = world.serve().await;
        world.register(server.address).await.unwrap();
        server.process.signal("TERM");
        let mut process = server.process;
        process.end().await;
        let users = json!({ LOGIN: { "Accounts": { "OTHER": {
            "DeviceToken": "b0".repeat(32), "Mailboxes": ["INBOX"], "RegistrationTime": ago(0),
        } } }, "Alice": { "Accounts": { "FORMER": {
            "DeviceToken": TOKEN, "Mailboxes": ["INBOX"], "RegistrationTime": ago(0),
        } } } });
        fs::write(world.file("database.json"), json!({ "Users": users }).to_string()).unwrap();
        let topic = world.pki.topic.clone();
        let (code, said) = world.import(&["xapsd", "database.json", "--topic", &topic]).await;
        assert_eq!(code, Some(0), "{said}");
        assert!(
            said.contains("the account has as many subscriptions as [push] subscriptions allows"),
            "{said}"
        );
        assert!(said.contains("mailchime knows it already"), "{said}");
        let own = (ACCOUNT_ID.to_owned(), 2, vec!["INBOX".to_owned()]);
        assert_eq!(world.registered(LOGIN).await, [own]);
        assert!(world.registered("Alice").await.is_empty());
    })
    .await;
}
