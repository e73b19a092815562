//! The commands that look into mailchime: `devices`, `watchers`, `push` and `check`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use mailchime::demo::apns::Answer;
use serde_json::Value;
use sqlx::{Connection, Executor, SqliteConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::program::{Process, mailchime};
use crate::support::world::{LOGIN, PASSWORD, Server, TOKEN, World};
use crate::support::{limited, soon};

/// What a command said, and how it ended.
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("no JSON: {}", self.stdout))
    }

    /// The line that begins so.
    pub(crate) fn line(&self, start: &str) -> &str {
        let line = self.stdout.lines().find(|line| line.starts_with(start));
        line.unwrap_or_else(|| panic!("no line {start:?} in\n{}\n{}", self.stdout, self.stderr))
    }
}

impl World {
    /// A command with `--config`.
    pub(crate) async fn command(&self, arguments: &[&str]) -> Said {
        self.command_with(arguments, &[]).await
    }

    pub(crate) async fn command_with(
        &self,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Said {
        let config = self.file("proxy.toml").display().to_string();
        let arguments = [arguments, &["--config", &config]].concat();
        let mut command = mailchime(&arguments);
        command.env_remove("MAILCHIME_PASSWORD").envs(variables.iter().copied());
        let mut process = Process::spawn(command);
        let code = process.end().await.code().unwrap();
        let [stdout, stderr] =
            [&process.stdout, &process.stderr].map(|lines| lines.seen.join("\n"));
        for said in [&stdout, &stderr] {
            assert!(!said.contains(TOKEN) && !said.contains(PASSWORD), "{arguments:?}: {said}");
        }
        Said { code, stdout, stderr }
    }

    /// What `[admin]` of the configuration answers to a GET, head and body.
    pub(crate) async fn get(&self, path: &str) -> String {
        let config = fs::read_to_string(self.file("proxy.toml")).unwrap();
        let address = config.split("[admin]\naddress = \"").nth(1).unwrap().split('"').next();
        let mut stream = TcpStream::connect(address.unwrap()).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon("an answer", stream.read_to_string(&mut answer)).await.unwrap();
        answer
    }

    /// `mailchime serve` with `[admin]`, which the commands find from then on.
    pub(crate) async fn serve_with_admin(&self) -> Server {
        let any = "[admin]\naddress = \"127.0.0.1:0\"\n";
        self.configure("[log]", &format!("{any}[log]"));
        let mut server = self.serve().await;
        let address = server.admin_address().await;
        self.configure(any, &format!("[admin]\naddress = \"{address}\"\n"));
        server
    }
}

#[tokio::test]
async fn devices_are_listed_and_removed() {
    limited(async {
        let world = World::new().await;
        let said = world.command(&["devices", "list"]).await;
        assert_eq!(said.code, 1, "{}", said.stdout);
        assert!(said.stderr.contains("mailchime.db"), "{}", said.stderr);
        assert!(!world.file("mailchime.db").exists(), "looking makes no database");

        let server = world.serve().await;
        world.register(server.address).await.unwrap();
        let said = world.command(&["devices", "list"]).await;
        assert_eq!(said.code, 0, "{}", said.stderr);
        assert!(said.line("USER").contains("MAILBOXES"));
        let row = said.line(LOGIN);
        for part in ["8df2a4c1…", "com.apple.mobilemail", &world.pki.topic, "s ago", "-", "INBOX"]
        {
            assert!(row.contains(part), "{row} lacks {part}");
        }
        assert_eq!(said.stdout.lines().count(), 2, "{}", said.stdout);

        let said = world.command(&["devices", "list", "--user", LOGIN, "--json"]).await;
        let device = &said.json()["subscriptions"][0];
        assert_eq!((&device["account"], &device["endpoint"]), (&LOGIN.into(), &"8df2a4c1…".into()));
        assert_eq!(device["mailboxes"], serde_json::json!(["INBOX"]));
        assert!(device["registered_at"].is_i64() && device["pushed_at"].is_null(), "{device}");
        let said = world.command(&["devices", "list", "--user", "bob", "--json"]).await;
        assert_eq!(said.json()["subscriptions"], serde_json::json!([]));

        let said = world.command(&["devices", "remove", LOGIN, "--endpoint", "ffff"]).await;
        assert_eq!(said.code, 1, "{}", said.stdout);
        assert!(
            said.stderr.contains("no device whose endpoint begins with \"ffff\""),
            "{}",
            said.stderr
        );
        let said = world.command(&["devices", "remove", "bob"]).await;
        assert_eq!((said.code, said.stderr.contains("bob has no device")), (1, true));
        let said = world.command(&["devices", "remove", LOGIN, "--endpoint", "8DF2A4c1"]).await;
        assert_eq!(said.code, 0, "{}", said.stderr);
        assert!(said.line("removed").contains("8df2a4c1…"));
        said.line("it was the last one");
        said.line("could not tell a running mailchime, as [admin] address is not set");
        let said = world.command(&["devices", "list", "--json"]).await;
        assert_eq!(said.json()["subscriptions"], serde_json::json!([]));
    })
    .await;
}

#[tokio::test]
async fn the_one_that_runs_is_asked_for_watchers_and_test_pushes() {
    limited(async {
        let world = World::new().await;
        let server = world.serve_with_admin().await;
        let said = world.command(&["push", LOGIN]).await;
        assert_eq!(said.code, 1);
        assert!(said.stderr.contains("alice has no subscription that counts"), "{}", said.stderr);

        world.register(server.address).await.unwrap();
        world.watched().await;
        let said = world.command(&["watchers"]).await;
        assert_eq!(said.code, 0, "{}", said.stderr);
        let row = said.line(LOGIN);
        assert!(row.contains("watching") && row.contains("idle"), "{row}");
        let said = world.command(&["watchers", "--user", LOGIN, "--json"]).await;
        assert_eq!(said.json()["watchers"][0]["state"], "watching");

        let said = world.command(&["push", LOGIN]).await;
        assert_eq!(said.code, 0, "{}", said.stderr);
        let push = world.push().await;
        let row = said.line("apns       8df2a4c1…");
        assert!(row.contains("accepted") && row.contains(push.header("apns-id").unwrap()), "{row}");

        let said = world.command(&["push", LOGIN, "--explain"]).await;
        assert_eq!(said.code, 0, "{}", said.stderr);
        said.line("watcher: watching (idle) since");
        said.line("apns 8df2a4c1… com.apple.mobilemail: registered");
        said.line("    new mail would be pushed now");
        let said = world.command(&["push", LOGIN, "--explain", "--mailbox", "Notes"]).await;
        assert_eq!(said.code, 1);
        said.line("    not now: it did not register for");

        world.apns.answer_next(1, Answer::refuse(403, "BadCertificate"));
        let said = world.command(&["push", LOGIN, "--json"]).await;
        assert_eq!(said.code, 1, "{}", said.stdout);
        assert_eq!(said.json()["subscriptions"][0]["detail"], "403 BadCertificate");
        assert!(said.stderr.contains("1 of 1 got no push"), "{}", said.stderr);
    })
    .await;
}

#[tokio::test]
async fn a_mailchime_that_cannot_be_asked_is_reported_with_the_reason() {
    limited(async {
        let world = World::new().await;
        for arguments in [&["watchers"][..], &["push", LOGIN]] {
            let said = world.command(arguments).await;
            assert_eq!(said.code, 64, "{}", said.stdout);
            let expected = "proxy.toml: [admin] address: not set";
            assert!(said.stderr.contains(expected), "{}", said.stderr);
        }
        let server = world.serve_with_admin().await;
        server.process.kill();
        for arguments in [&["watchers"][..], &["push", LOGIN]] {
            let said = world.command(arguments).await;
            assert_eq!(said.code, 1, "{}", said.stdout);
            assert!(said.stderr.contains("is mailchime running"), "{}", said.stderr);
        }
    })
    .await;
}

#[tokio::test]
async fn a_good_world_is_found_good() {
    limited(async {
        let world = World::new().await;
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 0, "{}\n{}", said.stdout, said.stderr);
        for (part, text) in [
            ("[tls]", "for localhost"),
            ("[credentials]", "is made at the first start"),
            ("[store]", "is made at the first start"),
            ("[backend]", "IDLE"),
        ] {
            let line = said.line(&format!("ok       {part}: "));
            assert!(line.contains(text), "{line}");
        }
        let apns = format!("ok       [apns] {}: ", world.pki.topic);
        let mut lines = said.stdout.lines().filter(|line| line.starts_with(&apns));
        assert!(lines.any(|line| line.contains("BadDeviceToken")), "{}", said.stdout);
        for file in ["mailchime.db", "mailchime.key"] {
            assert!(!world.file(file).exists(), "checking makes no {file}");
        }

        // Beside the program that it is about, and with a login.
        let server = world.serve().await;
        world.register(server.address).await.unwrap();
        let variables = [("MAILCHIME_PASSWORD", PASSWORD)];
        let said = world.command_with(&["check", "--login", LOGIN], &variables).await;
        assert_eq!(said.code, 0, "{}\n{}", said.stdout, said.stderr);
        assert!(said.line("ok       login alice: ").contains("IDLE"));
        assert!(said.line("ok       [store]: ").contains("1 account"));
        said.line("ok       [credentials]: ");
        fs::write(world.file("password"), format!("{PASSWORD}\n")).unwrap();
        let file = world.file("password").display().to_string();
        let said = world.command(&["check", "--login", LOGIN, "--password-file", &file]).await;
        assert_eq!(said.code, 0, "{}\n{}", said.stdout, said.stderr);
    })
    .await;
}

#[tokio::test]
async fn a_removal_reaches_the_mailchime_that_runs() {
    limited(async {
        let world = World::new().await;
        let server = world.serve_with_admin().await;
        world.register(server.address).await.unwrap();
        world.watched().await;
        let said = world.command(&["devices", "remove", LOGIN]).await;
        assert_eq!(said.code, 0, "{}", said.stderr);
        said.line("the mailchime that runs has been told");
        // Of the hour that it would take otherwise this is a small part.
        let gone = world.backend.wait_until(|counters| counters.connections == 0);
        soon("the end of the watcher", gone).await;
        let nobody = async {
            while world.command(&["watchers", "--json"]).await.json()["watchers"]
                != serde_json::json!([])
            {}
        };
        soon("nobody is watched", nobody).await;

        world.register(server.address).await.unwrap();
        server.process.kill();
        let said = world.command(&["devices", "remove", LOGIN]).await;
        assert_eq!(said.code, 0, "{}", said.stderr);
        said.line("could not tell a running mailchime: [admin] address 127.0.0.1:");
    })
    .await;
}

#[tokio::test]
async fn what_is_wrong_is_found_and_named_with_what_to_do() {
    limited(async {
        let world = World::new().await;
        let server = world.serve().await;
        world.register(server.address).await.unwrap();
        server.process.kill();

        let variables = [("MAILCHIME_PASSWORD", "wrong")];
        let said = world.command_with(&["check", "--login", LOGIN], &variables).await;
        assert_eq!(said.code, 1, "{}", said.stdout);
        assert!(said.line("FAILED   login alice: ").contains("AUTHENTICATIONFAILED"));
        assert!(said.stderr.contains("one check failed"), "{}", said.stderr);
        let said = world.command(&["check", "--login", LOGIN]).await;
        assert_eq!((said.code, said.stderr.contains("MAILCHIME_PASSWORD")), (64, true));

        // Everything at once.
        world.backend.refuse().await;
        world.apns.refuse().await;
        fs::set_permissions(world.file("mailchime.key"), fs::Permissions::from_mode(0o644))
            .unwrap();
        fs::set_permissions(world.file("server.key"), fs::Permissions::from_mode(0o644)).unwrap();
        let url = format!("sqlite://{}", world.file("mailchime.db").display());
        let mut database = SqliteConnection::connect(&url).await.unwrap();
        let newer = "update _sqlx_migrations set version = 9999 where version = 1";
        database.execute(newer).await.unwrap();
        database.close().await.unwrap();
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 64, "{}", said.stdout);
        for (start, text) in [
            ("FAILED   [tls] private_key: ", "chmod o="),
            ("FAILED   [credentials]: ", "chmod 600"),
            ("FAILED   [store]: ", "newer mailchime"),
            ("FAILED   [backend]: ", "is it running"),
        ] {
            let line = said.line(start);
            assert!(line.contains(text), "{line}");
        }
        let line = said.line(&format!("FAILED   [apns] {}: ", world.pki.topic));
        assert!(line.contains("2197"), "{line}");
        assert!(said.stderr.contains("5 checks failed"), "{}", said.stderr);
    })
    .await;
}

#[tokio::test]
async fn a_key_file_that_did_not_seal_what_is_stored_is_named() {
    limited(async {
        let world = World::new().await;
        let server = world.serve().await;
        world.register(server.address).await.unwrap();
        server.process.kill();
        let (key, aside) = (world.file("mailchime.key"), world.file("aside.key"));
        fs::rename(&key, &aside).unwrap();
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 64, "{}", said.stdout);
        let line = said.line("FAILED   [credentials]: ");
        for part in ["mailchime.key", "is not there", "of 1 accounts", "put back"] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        assert!(!key.exists(), "checking makes no key");

        // What a start without the key would make.
        drop(mailchime::store::Vault::open(&key).unwrap());
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 1, "{}", said.stdout);
        let line = said.line("FAILED   [credentials]: ");
        for part in ["mailchime.key", "is not the one that sealed", "of 1 accounts", "put back"] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        fs::rename(&aside, &key).unwrap();
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 0, "{}", said.stdout);
        said.line("ok       [credentials]: ");
    })
    .await;
}

#[tokio::test]
async fn a_topic_that_ios_drops_and_a_certificate_of_another_are_named() {
    limited(async {
        let world = World::new().await;
        let other = mailchime::demo::pki::Pki::generate(Some("com.example.other")).unwrap();
        let folder = world.file("other");
        other.write_to(&folder).unwrap();
        world.configure("certificate = \"apns.pem\"", "certificate = \"other/apns.pem\"");
        world.configure("private_key = \"apns.key\"", "private_key = \"other/apns.key\"");
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 1, "{}", said.stdout);
        let line = said.line("warning  [apns] com.example.other: ");
        assert!(line.contains("iOS drops pushes of this topic"), "{line}");
        // The service trusts another authority.
        said.line("FAILED   [apns] com.example.other: ");
    })
    .await;
}
