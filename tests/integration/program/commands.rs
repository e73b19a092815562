//! Commands do what was asked and no more: an empty value selects nothing, what has to be there is not
//! made, and what is there is not overwritten.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::program::{Process, mailchime};
use crate::support::servers::DatabaseServer;
use crate::support::servers::postgres::Postgres;
use crate::support::world::{LOGIN, World};
use crate::support::{limited, soon};

#[tokio::test]
async fn an_empty_value_is_an_error_and_changes_nothing() {
    limited(async {
        let world = World::new().await;
        let server = world.serve_with_admin().await;
        world.register(server.address).await.unwrap();
        for arguments in [
            &["devices", "remove", LOGIN, "--endpoint", ""][..],
            &["devices", "remove", LOGIN, "--endpoint", "…"],
            &["devices", "remove", ""],
            &["devices", "list", "--user", ""],
            &["watchers", "--user", ""],
            &["push", ""],
            &["push", LOGIN, "--mailbox", ""],
            &["check", "--login", ""],
            &["check", "--login", LOGIN, "--password-file", ""],
        ] {
            let said = world.command(arguments).await;
            assert_eq!(said.code, 64, "{arguments:?}: {}", said.stdout);
            assert_eq!(said.stdout, "", "{arguments:?}");
        }
        for arguments in [
            &["serve", "--config", ""][..],
            &["certs", "dev", "--out", ""],
            &["certs", "dev", "--topic", ""],
            &["replay", ""],
            &["replay", "x.imap", "--to", ""],
            &["replay", "x.imap", "--to", "localhost:1", "--ca", ""],
            &["replay", "x.imap", "--to", "localhost:1", "--user", ""],
        ] {
            let mut command = mailchime(arguments);
            command.current_dir(world.folder());
            let mut process = Process::spawn(command);
            let code = process.end().await.code();
            assert_eq!(code, Some(64), "{arguments:?}: {:?}", process.stderr.seen);
            let said = process.stderr.seen.join("\n");
            assert!(said.contains("a value is required"), "{arguments:?}: {said}");
        }
        for path in ["/watchers?user=", "/explain?user=", "/explain?user=alice&mailbox="] {
            let answer = world.get(path).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{path}: {answer}");
        }
        assert!(!world.file("certs").exists(), "certificates were made");
        let said = world.command(&["devices", "list", "--json"]).await;
        assert_eq!(said.json()["subscriptions"].as_array().unwrap().len(), 1, "{}", said.stdout);
    })
    .await;
}

#[tokio::test]
async fn a_subscription_is_removed_by_the_endpoint_that_the_list_shows() {
    limited(async {
        let world = World::new().await;
        let server = world.serve_with_admin().await;
        world.register(server.address).await.unwrap();
        let said = world.command(&["subscriptions", "list"]).await;
        let row = said.stdout.lines().nth(1).unwrap().to_owned();
        let shown: Vec<_> = row.split_whitespace().take(3).collect();
        let [LOGIN, "apns", endpoint] = shown[..] else { panic!("{row}") };
        assert!(endpoint.ends_with('…'), "{row}");

        // The names of before still work.
        let said = world.command(&["devices", "remove", LOGIN, "--token", "ffffffff…"]).await;
        assert_eq!(said.code, 1, "{}{}", said.stdout, said.stderr);
        let said = world.command(&["devices", "remove", LOGIN, "--token", endpoint]).await;
        assert_eq!(said.code, 0, "{}{}", said.stdout, said.stderr);
        let said = world.command(&["subscriptions", "list", "--json"]).await;
        assert_eq!(said.json()["subscriptions"].as_array().unwrap().len(), 0, "{}", said.stdout);
    })
    .await;
}

/// The list shows endpoints in part, so that nobody can push to them who sees it.
#[tokio::test]
async fn of_subscriptions_that_are_shown_alike_none_is_removed_by_what_is_shown() {
    limited(async {
        let world = World::new().await;
        let server = world.serve_with_admin().await;
        for last in ["1", "2"] {
            let mut phone = world.phone();
            phone.device_token = format!("{:0<63}{last}", "abcdef01");
            let ca = &world.pki.ca.certificate;
            phone.register(server.address, "localhost", ca, |_, _| {}).await.unwrap();
        }
        let remove = async |endpoint: &str| {
            world.command(&["subscriptions", "remove", LOGIN, "--endpoint", endpoint]).await
        };
        let said = remove("ABCDEF01…").await;
        assert_eq!(said.code, 1, "{}", said.stdout);
        let expected = format!("2 subscriptions of {LOGIN} are shown so; without the … at the end");
        assert!(said.stderr.contains(&expected), "{}", said.stderr);
        let listed = world.command(&["subscriptions", "list", "--json"]).await;
        assert_eq!(listed.json()["subscriptions"].as_array().unwrap().len(), 2);
        let said = remove("abcdef01").await;
        assert_eq!(said.code, 0, "{}", said.stderr);
        assert_eq!(said.stdout.matches("removed abcdef01… ").count(), 2, "{}", said.stdout);
    })
    .await;
}

#[tokio::test]
async fn without_admin_a_removed_phone_gets_no_push_and_its_account_is_left() {
    limited(async {
        let world = World::new().await;
        let server = world.serve().await;
        world.register(server.address).await.unwrap();
        world.watched().await;
        world.deliver();
        world.push().await;
        let said = world.command(&["subscriptions", "remove", LOGIN]).await;
        assert_eq!(said.code, 0, "{}{}", said.stdout, said.stderr);
        assert!(said.stdout.contains("from the database within seconds"), "{}", said.stdout);
        // Its watcher may still be there, and see the mail.
        world.deliver();
        let left = world.backend.wait_until(|counters| counters.connections == 0);
        soon("the end of watching", left).await;
        assert_eq!(world.apns.received(), 1);
    })
    .await;
}

#[tokio::test]
async fn without_admin_a_node_learns_from_the_database_of_a_removed_phone() {
    let test =
        "program::commands::without_admin_a_node_learns_from_the_database_of_a_removed_phone";
    let Some(postgres) = Postgres::start(test) else { return };
    limited(async {
        let world = World::new().await;
        let url = format!("[store]\nurl = \"{}\"\n", postgres.database_url());
        world.configure("[store]\n", &url);
        let server = world.serve().await;
        world.register(server.address).await.unwrap();
        world.watched().await;
        let said = world.command(&["subscriptions", "remove", LOGIN]).await;
        assert_eq!(said.code, 0, "{}{}", said.stdout, said.stderr);
        assert!(said.stdout.contains("from the database within seconds"), "{}", said.stdout);
        let left = world.backend.wait_until(|counters| counters.connections == 0);
        soon("the end of watching", left).await;
        assert_eq!(world.apns.received(), 0);
    })
    .await;
}

#[tokio::test]
async fn an_empty_value_in_the_configuration_is_an_error() {
    limited(async {
        let world = World::new().await;
        for (key, table) in [
            ("[record] folder", "[record]\nfolder = \"\"\n[log]"),
            ("[credentials] key_file", "[credentials]\nkey_file = \"\"\n[log]"),
            ("[admin] group", "[admin]\naddress = \"unix:a.sock\"\ngroup = \"\"\n[log]"),
            ("[apns] ca", "ca = \"\""),
        ] {
            let old = if key == "[apns] ca" { "ca = \"ca.pem\"" } else { "[log]" };
            world.configure(old, table);
            let mut process = Process::spawn(world.program());
            let code = process.end().await.code();
            let said = process.stderr.seen.join("\n");
            assert_eq!(code, Some(64), "{key}: {said}");
            assert!(said.contains(key), "{key}: {said}");
            world.configure(table, old);
        }
        assert!(!world.file("mailchime.db").exists());
    })
    .await;
}

#[tokio::test]
async fn certificates_for_development_overwrite_nothing() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let certs = folder.path().join("certs");
        fs::create_dir(&certs).unwrap();
        let run = async |arguments: &[&str]| {
            let mut command = mailchime(&[&["certs", "dev"], arguments].concat());
            command.current_dir(folder.path());
            let mut process = Process::spawn(command);
            let code = process.end().await.code();
            (code, process.stdout.seen.join("\n"), process.stderr.seen.join("\n"))
        };
        // The real ones of a server, one of them through a link as certbot makes them.
        fs::write(certs.join("server.pem"), "a real certificate").unwrap();
        fs::write(folder.path().join("live.key"), "a real key").unwrap();
        std::os::unix::fs::symlink("../live.key", certs.join("server.key")).unwrap();
        let (code, out, said) = run(&[]).await;
        assert_eq!((code, &*out), (Some(1), ""), "{said}");
        assert!(said.contains("certs/server.key") && said.contains("--out"), "{said}");
        assert_eq!(fs::read_to_string(certs.join("server.pem")).unwrap(), "a real certificate");
        assert_eq!(fs::read_to_string(certs.join("server.key")).unwrap(), "a real key");
        assert_eq!(fs::read_dir(&certs).unwrap().count(), 2, "something was written");

        // A link that leads nowhere is there, too.
        fs::remove_file(certs.join("server.pem")).unwrap();
        fs::remove_file(folder.path().join("live.key")).unwrap();
        let (code, _, said) = run(&[]).await;
        assert_eq!(code, Some(1), "{said}");
        assert_eq!(fs::read_dir(&certs).unwrap().count(), 1, "something was written");

        let (code, out, said) = run(&["--out", "other"]).await;
        assert_eq!(code, Some(0), "{said}");
        assert!(out.contains("other/server.key") && out.contains("Push topic: "), "{out}");
        for entry in fs::read_dir(folder.path().join("other")).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            let is_key = entry.path().extension().unwrap() == "key";
            assert_eq!(mode, if is_key { 0o600 } else { 0o644 }, "{}", entry.path().display());
        }
        let (code, _, said) = run(&["--out", "other"]).await;
        assert_eq!(code, Some(1), "{said}");
    })
    .await;
}
