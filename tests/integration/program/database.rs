//! The file of the database: one program writes it, and a file that was replaced under the program is
//! noticed before a client gets an OK.

use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;
use sqlx::{Connection, Executor, Row, SqliteConnection};

use crate::support::program::Process;
use crate::support::world::{LOGIN, Server, TOKEN, World, registration_as};
use crate::support::{limited, soon};

async fn open(path: &Path) -> SqliteConnection {
    SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap()
}

/// A whole copy of the database, as a backup program makes it.
async fn back_up(world: &World, name: &str) {
    let mut database = open(&world.file("mailchime.db")).await;
    let copy = format!("vacuum into '{}'", world.file(name).display());
    database.execute(sqlx::AssertSqlSafe(copy)).await.unwrap();
    database.close().await.unwrap();
}

/// The account ids that are registered, of a database that is whole.
async fn registered(path: &Path) -> Vec<String> {
    let mut database = open(path).await;
    let check = sqlx::query("pragma integrity_check").fetch_all(&mut database).await.unwrap();
    let check: Vec<String> = check.iter().map(|row| row.get(0)).collect();
    assert_eq!(check, ["ok"], "the file is damaged");
    let query = sqlx::query("select options ->> 'account_id' from subscription order by 1");
    let rows = query.fetch_all(&mut database).await.unwrap();
    database.close().await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// Of the program with `[admin]`: the verdict of `/readyz` on the database.
async fn ready(world: &World) -> Value {
    let answer = world.get("/readyz").await;
    let body = answer.lines().find(|line| line.starts_with('{'));
    let body = body.unwrap_or_else(|| panic!("no JSON in {answer}"));
    serde_json::from_str::<Value>(body).unwrap()["parts"]["database"].clone()
}

/// The answer to another registration than the one of the phone.
async fn answer(world: &World, server: &Server, account_id: &str) -> String {
    let mut client = world.session(server).await;
    client.send(format!("r {}\r\n", registration_as(account_id)).as_bytes()).await;
    client.until("r ").await
}

async fn stopped(mut server: Server) -> String {
    server.process.signal("TERM");
    assert_eq!(server.process.end().await.code(), Some(0));
    server.process.stderr.seen.join("\n")
}

async fn register(world: &World, address: SocketAddr) {
    world.register(address).await.unwrap();
}

#[tokio::test]
async fn a_second_program_on_one_file_is_refused_and_named_the_first() {
    limited(async {
        let world = World::new().await;
        let first = world.serve().await;
        register(&world, first.address).await;

        let mut second = Process::spawn(world.program());
        let ended = second.end().await.code();
        let said = second.stderr.seen.join("\n");
        assert_eq!(ended, Some(1), "{said}");
        for part in ["mailchime.db", &format!("process {}", first.process.id()), "since 20", "stop"]
        {
            assert!(said.contains(part), "{part:?} is not in {said}");
        }

        // What works on the database beside the program still does.
        for command in [
            &["check"][..],
            &["devices", "list"],
            &["credentials", "rotate"],
            &["devices", "remove", LOGIN],
        ] {
            let said = world.command(command).await;
            assert_eq!(said.code, 0, "{command:?}: {}{}", said.stdout, said.stderr);
        }
        register(&world, first.address).await;
        stopped(first).await;
        assert!(!world.file("mailchime.db-lock").exists(), "a program that stops leaves no lock");

        // One that is killed leaves a lock that nobody holds.
        let killed = world.serve().await;
        killed.process.kill();
        let third = world.serve().await;
        register(&world, third.address).await;
    })
    .await;
}

#[tokio::test]
async fn a_backup_moved_over_the_database_is_noticed_before_an_ok_and_nothing_is_damaged() {
    limited(async {
        let world = World::new().await;
        let mut server = world.serve_with_admin().await;
        register(&world, server.address).await;
        back_up(&world, "backup.db").await;
        assert!(answer(&world, &server, "after-the-backup").await.starts_with("r OK"));
        assert_eq!(ready(&world).await["ok"], true);

        fs::rename(world.file("backup.db"), world.file("mailchime.db")).unwrap();
        let refused = answer(&world, &server, "lost").await;
        assert!(refused.starts_with("r NO "), "an OK was said: {refused}");
        // Nor is an OK said to a registration that stands in the file of before.
        let refused = answer(&world, &server, "after-the-backup").await;
        assert!(refused.starts_with("r NO "), "an OK was said: {refused}");
        let verdict = ready(&world).await;
        assert_eq!(verdict["ok"], false, "{verdict}");
        assert!(verdict["why"].as_str().unwrap().contains("was replaced"), "{verdict}");
        let line = server.logged("the database was replaced while mailchime uses it; mailchime writes nothing more to it until it is back or mailchime is restarted").await;
        assert_eq!(line["level"], "ERROR", "{line}");
        server.logged("the database was replaced; mailchime moved its write-ahead log into the former file").await;

        // Who opens the new file now does not get the log of the old one with it.
        let said = world.command(&["devices", "list"]).await;
        assert_eq!(said.code, 0, "{}", said.stderr);
        assert!(said.stdout.contains(LOGIN), "{}", said.stdout);

        // Mail goes on.
        let mut client = world.session(&server).await;
        client.send(b"s SELECT INBOX\r\n").await;
        client.until("s OK").await;
        drop(client);

        stopped(server).await;
        let server = world.serve().await;
        let ids = registered(&world.file("mailchime.db")).await;
        assert_eq!(ids, [crate::support::world::ACCOUNT_ID], "not what the backup holds");
        assert!(answer(&world, &server, "anew").await.starts_with("r OK"));
        stopped(server).await;
        assert_eq!(registered(&world.file("mailchime.db")).await, ["anew"]);
    })
    .await;
}

/// Every OK stands in the file that was the database then, whichever moment another one takes its place.
#[tokio::test]
async fn of_many_that_register_while_a_backup_takes_the_place_none_has_a_false_ok() {
    limited(async {
        let world = World::new().await;
        world.configure("[push]\n", "[push]\ndevices = 10000\n");
        world.configure("[log]", "[limits]\nregistrations_per_minute = 100000\n[log]");
        let server = world.serve().await;
        register(&world, server.address).await;
        back_up(&world, "backup.db").await;
        let mut sessions = Vec::new();
        for _ in 0..6 {
            sessions.push(world.session(&server).await);
        }
        let (counted, mut count) = tokio::sync::mpsc::unbounded_channel();
        let registering = sessions.into_iter().enumerate().map(|(session, mut client)| {
            let counted = counted.clone();
            tokio::spawn(async move {
                let mut taken = Vec::new();
                for number in 0.. {
                    let token = format!("{session:02x}{number:062x}");
                    let command = registration_as("many").replace(TOKEN, &token);
                    client.send(format!("r {command}\r\n").as_bytes()).await;
                    let answer = client.until("r ").await;
                    if !answer.starts_with("r OK") {
                        assert!(answer.starts_with("r NO "), "{answer}");
                        break;
                    }
                    taken.push(token);
                    let _ = counted.send(());
                }
                taken
            })
        });
        let registering: Vec<_> = registering.collect();
        for _ in 0..60 {
            soon("a registration", count.recv()).await.unwrap();
        }
        fs::rename(world.file("mailchime.db"), world.file("before.db")).unwrap();
        fs::rename(world.file("backup.db"), world.file("mailchime.db")).unwrap();
        let mut taken = Vec::new();
        for session in registering {
            taken.extend(soon("a NO", session).await.unwrap());
        }
        assert!(taken.len() >= 60, "{}", taken.len());
        stopped(server).await;

        assert_eq!(
            registered(&world.file("mailchime.db")).await,
            [crate::support::world::ACCOUNT_ID]
        );
        registered(&world.file("before.db")).await;
        let mut database = open(&world.file("before.db")).await;
        let rows = sqlx::query("select lower(endpoint) from subscription")
            .fetch_all(&mut database)
            .await
            .unwrap();
        let stored: HashSet<String> = rows.iter().map(|row| row.get(0)).collect();
        let lost: Vec<_> = taken.iter().filter(|token| !stored.contains(*token)).collect();
        assert!(lost.is_empty(), "{} of {} are lost: {lost:?}", lost.len(), taken.len());
    })
    .await;
}

#[tokio::test]
async fn a_database_that_was_moved_away_or_removed_is_noticed_and_is_whole_where_it_went() {
    limited(async {
        let world = World::new().await;
        let server = world.serve().await;
        register(&world, server.address).await;
        assert!(answer(&world, &server, "written").await.starts_with("r OK"));
        fs::rename(world.file("mailchime.db"), world.file("moved.db")).unwrap();
        let refused = answer(&world, &server, "lost").await;
        assert!(refused.starts_with("r NO "), "an OK was said: {refused}");
        let log = stopped(server).await;
        assert!(log.contains("was removed"), "{log}");
        // What its log held is in it.
        assert_eq!(registered(&world.file("moved.db")).await, ["written"]);

        fs::rename(world.file("moved.db"), world.file("mailchime.db")).unwrap();
        let mut server = world.serve().await;
        fs::remove_file(world.file("mailchime.db-wal")).unwrap();
        let refused = answer(&world, &server, "without-a-log").await;
        assert!(refused.starts_with("r NO "), "an OK was said: {refused}");
        server.logged("the database was replaced; mailchime moved its write-ahead log into the former file").await;
        server.process.kill();
        let server = world.serve().await;
        assert!(answer(&world, &server, "again").await.starts_with("r OK"));
        stopped(server).await;
        assert_eq!(registered(&world.file("mailchime.db")).await, ["again"]);
    })
    .await;
}

#[tokio::test]
async fn the_log_of_a_killed_program_is_not_mixed_into_a_backup() {
    limited(async {
        let world = World::new().await;
        let server = world.serve().await;
        register(&world, server.address).await;
        back_up(&world, "backup.db").await;
        assert!(answer(&world, &server, "after-the-backup").await.starts_with("r OK"));
        server.process.kill();
        fs::rename(world.file("backup.db"), world.file("mailchime.db")).unwrap();

        for _ in 0..2 {
            let mut refused = Process::spawn(world.program());
            let ended = refused.end().await.code();
            let said = refused.stderr.seen.join("\n");
            assert_eq!(ended, Some(64), "{said}");
            assert!(said.contains("mailchime.db-wal") && said.contains("move"), "{said}");
            let said = world.command(&["devices", "list"]).await;
            assert_eq!(said.code, 1, "{}", said.stdout);
        }
        fs::rename(world.file("mailchime.db-wal"), world.file("aside")).unwrap();
        let server = world.serve().await;
        let ids = registered(&world.file("mailchime.db")).await;
        assert_eq!(ids, [crate::support::world::ACCOUNT_ID]);
        soon("the end", stopped(server)).await;
    })
    .await;
}
