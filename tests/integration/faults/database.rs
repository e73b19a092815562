//! The database is locked, full, killed.

use std::path::PathBuf;
use std::process::Command;

use sqlx::Executor;

use super::scene::{Scene, push_logged, said};
use super::{Fault, fault};
use crate::support::program::Process;
use crate::support::servers::DatabaseServer;
use crate::support::servers::mariadb::MariaDb;
use crate::support::servers::postgres::Postgres;
use crate::support::world::registration_as;

pub(super) fn faults() -> Vec<Fault> {
    vec![
        fault!(
            locked_for_a_moment,
            "database: locked while a phone registers",
            "the phone waits and is answered OK"
        ),
        fault!(
            locked_for_long,
            "database: locked for longer than a phone waits",
            "NO, the session and the earlier registration are well, the next works"
        ),
        fault!(
            locked_while_mail_comes,
            "database: locked while mail comes",
            "it is pushed, sessions do not notice, the row moves afterwards"
        ),
        fault!(
            locked_at_the_start,
            "database: locked at the start",
            "exit code 1, and the next start pushes what came"
        ),
        fault!(
            full,
            "database: the disk is full, then SIGKILL",
            "mail is pushed, a registration gets NO, all is well with room again"
        ),
        fault!(
            postgres_killed,
            "database: PostgreSQL killed and started again",
            "mail that came meanwhile is pushed"
        ),
        fault!(
            mariadb_killed,
            "database: MariaDB killed and started again",
            "mail that came meanwhile is pushed"
        ),
    ]
}

async fn locked_for_a_moment(scene: Scene) {
    scene.configure("busy_timeout = \"5s\"", "busy_timeout = \"30s\"");
    let mut server = scene.serve().await;
    let mut database = scene.beside().await;
    scene.fault();
    database.execute("begin exclusive").await.unwrap();
    let registering = scene.register(server.address);
    let unlocking = async {
        said(&mut server, "a registration waits for the database").await;
        database.execute("commit").await.unwrap();
    };
    // The phone only sees that the answer takes a while.
    let (registered, ()) = tokio::join!(registering, unlocking);
    assert_eq!(registered.unwrap().mailboxes, ["INBOX"]);
    scene.watched().await;
    scene.deliver();
    scene.push().await;
}

async fn locked_for_long(scene: Scene) {
    let server = scene.registered().await;
    let mut database = scene.beside().await;
    scene.fault();
    database.execute("begin exclusive").await.unwrap();

    let mut client = scene.session(&server).await;
    client.send(format!("r {}\r\n", registration_as("refused")).as_bytes()).await;
    let answer = client.until("r ").await;
    assert!(answer.starts_with("r NO "), "{answer}");
    // The session is well, and what is asked behind a refusal is answered.
    client.send(b"n NOOP\r\n").await;
    client.until("n OK").await;

    database.execute("commit").await.unwrap();
    // The earlier registration is still there, and another one works.
    scene.deliver();
    scene.push().await;
    client.send(format!("s {}\r\n", registration_as("another")).as_bytes()).await;
    client.until("s OK").await;
}

async fn locked_while_mail_comes(scene: Scene) {
    let mut server = scene.registered().await;
    let mut database = scene.beside().await;
    scene.fault();
    database.execute("begin exclusive").await.unwrap();

    scene.deliver();
    // Reading goes on beside a writer, so the push need not wait.
    scene.push().await;
    // Mail is not harmed by a database that does not answer.
    let mut client = scene.session(&server).await;
    client.send(b"s SELECT INBOX\r\n").await;
    client.until("* 1 EXISTS").await;
    client.until("s OK").await;
    client.send(b"l LOGOUT\r\n").await;
    client.until("l OK").await;

    said(&mut server, "could not write the results of pushes; mailchime tries again").await;
    database.execute("commit").await.unwrap();
    said(&mut server, "change recorded").await;
    scene.deliver();
    scene.push().await;
}

async fn locked_at_the_start(scene: Scene) {
    let server = scene.serve().await;
    scene.register(server.address).await.unwrap();
    scene.kill(server);
    let mut database = scene.beside().await;
    scene.fault();
    database.execute("begin immediate").await.unwrap();
    scene.deliver();

    // A service manager is to start it again; so it is no 64.
    let mut process = Process::spawn(scene.program());
    let status = process.end().await;
    let message = process.stderr.seen.join("\n");
    assert_eq!(status.code(), Some(1), "{message}");
    assert!(message.contains("mailchime.db cannot be used at the moment"), "{message}");

    database.execute("commit").await.unwrap();
    let _server = scene.serve().await;
    scene.push().await;
}

async fn full(scene: Scene) {
    let folder = scene.file("small");
    std::fs::create_dir(&folder).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=600k", "tmpfs"])
        .arg(&folder)
        .output()
        .is_ok_and(|output| output.status.success());
    if !mounted {
        return scene.skip("no file system can be mounted");
    }
    let _unmounting = Unmounting(folder.clone());
    // Each registration is another one, since one that changes nothing is not written.
    let tables = "[limits]\nregistrations_per_minute = 1000\n[store]\n\
                  url = \"sqlite://small/mailchime.db\"\n";
    scene.configure("[store]\n", tables);
    let mut server = scene.registered().await;
    scene.fault();
    let filler = folder.join("filler");
    // Whatever is left of it.
    let _ = std::fs::write(&filler, vec![0; 1024 * 1024]);
    // What is in the log of the database already may be written over; more than that cannot be.
    let mut refused = false;
    for time in 0..200 {
        scene.deliver();
        push_logged(&mut server, "accepted").await;
        let mut client = scene.session(&server).await;
        client.send(format!("r {}\r\n", registration_as(&format!("time-{time}"))).as_bytes()).await;
        refused = client.until("r ").await.starts_with("r NO ");
        client.send(b"n NOOP\r\n").await;
        client.until("n OK").await;
        if refused {
            break;
        }
    }
    assert!(refused, "the disk is never full");
    scene.deliver();
    push_logged(&mut server, "accepted").await;
    scene.kill(server);
    std::fs::remove_file(&filler).unwrap();
    let mut server = scene.serve().await;
    scene.register(server.address).await.unwrap();
    scene.watched().await;
    scene.deliver();
    push_logged(&mut server, "accepted").await;
    said(&mut server, "change recorded").await;
    drop(server);
}

/// Unmounts a file system, however the row ends.
struct Unmounting(PathBuf);

impl Drop for Unmounting {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

async fn postgres_killed(scene: Scene) {
    if scene.lacks("postgres") {
        return;
    }
    let started = tokio::task::spawn_blocking(|| Postgres::start("faults: PostgreSQL killed"));
    let Some(database) = started.await.unwrap() else {
        return scene.skip("PostgreSQL cannot be started");
    };
    killed(scene, database).await;
}

async fn mariadb_killed(scene: Scene) {
    if scene.lacks("mariadb") {
        return;
    }
    let started = tokio::task::spawn_blocking(|| MariaDb::start("faults: MariaDB killed"));
    let Some(database) = started.await.unwrap() else {
        return scene.skip("MariaDB cannot be started");
    };
    killed(scene, database).await;
}

async fn killed(scene: Scene, mut database: impl DatabaseServer + 'static) {
    let url = format!("[store]\nurl = \"{}\"\n", database.database_url());
    scene.configure("[store]\n", &url);
    let _server = scene.registered().await;
    scene.fault();
    database = tokio::task::spawn_blocking(|| {
        database.crash();
        database
    })
    .await
    .unwrap();
    scene.deliver();
    let restarted = tokio::task::spawn_blocking(|| {
        database.restart();
        database
    });
    let _database = restarted.await.unwrap();
    scene.accepted().await;
    scene.deliver();
    scene.accepted().await;
}
