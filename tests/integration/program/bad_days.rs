//! Killed, cut off, locked out: no registration is lost, and the push comes in the end.

use mailchime::demo::apns::Answer;
use sqlx::{Connection, Executor, SqliteConnection};

use super::limited;
use super::process::{Process, mailchime};
use super::world::{World, registration};

/// The database as another program sees it.
async fn beside(world: &World) -> SqliteConnection {
    let url = format!("sqlite://{}", world.file("mailchime.db").display());
    SqliteConnection::connect(&url).await.unwrap()
}

#[tokio::test]
async fn killed_right_after_the_ok_it_still_knows_the_phone() {
    limited(async {
        let world = World::new().await;
        let server = world.serve().await;
        let mut client = world.session(&server).await;
        client.send(format!("r {}\r\n", registration()).as_bytes()).await;
        client.until("r OK").await;
        server.process.kill();
        // What comes while nobody looks is found by comparison.
        world.deliver();
        let _server = world.serve().await;
        world.push().await;
    })
    .await;
}

#[tokio::test]
async fn killed_between_mail_and_push_it_pushes_after_the_next_start() {
    limited(async {
        let world = World::new().await;
        let mut server = world.serve().await;
        world.register(server.address).await.unwrap();
        world.watched().await;
        world.apns.refuse().await;
        world.apns.drop_connections();
        world.deliver();
        // It knows of the mail and has failed to say so.
        assert_eq!(server.logged("push").await["outcome"], "unavailable");
        server.process.kill();
        let mut server = world.serve().await;
        assert_eq!(server.logged("push").await["outcome"], "unavailable");
        assert_eq!(world.apns.received(), 0);
        world.apns.resume().await.unwrap();
        world.push().await;
    })
    .await;
}

#[tokio::test]
async fn killed_while_apns_thinks_it_pushes_again_after_the_next_start() {
    limited(async {
        let world = World::new().await;
        let server = world.serve().await;
        world.register(server.address).await.unwrap();
        world.watched().await;
        world.apns.answer_next(1, Answer::Hang);
        world.deliver();
        assert_eq!(world.push().await.status, None);
        server.process.kill();
        let _server = world.serve().await;
        assert_eq!(world.push().await.status, Some(200));
    })
    .await;
}

#[tokio::test]
async fn mail_that_comes_while_apns_is_down_is_pushed_when_it_is_back() {
    limited(async {
        let world = World::new().await;
        let mut server = world.serve().await;
        world.register(server.address).await.unwrap();
        world.watched().await;
        world.deliver();
        world.push().await;
        world.apns.refuse().await;
        world.apns.drop_connections();
        world.deliver();
        while server.logged("push").await["outcome"] != "unavailable" {}
        world.apns.resume().await.unwrap();
        world.push().await;
    })
    .await;
}

#[tokio::test]
async fn mail_that_comes_while_the_backend_is_down_is_pushed_when_it_is_back() {
    limited(async {
        let world = World::new().await;
        let mut server = world.serve().await;
        world.register(server.address).await.unwrap();
        world.watched().await;
        world.backend.refuse().await;
        world.backend.drop_connections();
        server.logged("watching is interrupted").await;
        world.deliver();

        // A client is told so, and may try again on the same connection.
        let mut client = world.client(&server).await;
        client.send(b"a LOGIN alice \"wonder land\"\r\n").await;
        assert!(client.line().await.starts_with("a NO [UNAVAILABLE] "));
        world.backend.resume().await.unwrap();
        client.send(b"b LOGIN alice \"wonder land\"\r\n").await;
        client.until("b OK").await;
        world.push().await;
    })
    .await;
}

#[tokio::test]
async fn a_registration_waits_for_a_locked_database() {
    limited(async {
        let world = World::new().await;
        let mut server = world.serve().await;
        let mut database = beside(&world).await;
        database.execute("begin immediate").await.unwrap();
        let registering = world.register(server.address);
        let unlocking = async {
            server
                .process
                .stderr
                .find("the wait", |line| {
                    line.contains("a registration waits for the database").then_some(())
                })
                .await;
            database.execute("commit").await.unwrap();
        };
        // The phone only sees that the answer takes a while.
        let (registered, ()) = tokio::join!(registering, unlocking);
        assert_eq!(registered.unwrap().mailboxes, ["INBOX"]);
        world.watched().await;
        world.deliver();
        world.push().await;
    })
    .await;
}

#[tokio::test]
async fn a_registration_that_cannot_be_stored_is_refused_and_works_later() {
    limited(async {
        let world = World::new().await;
        let server = world.serve().await;
        world.register(server.address).await.unwrap();
        world.watched().await;
        let mut database = beside(&world).await;
        database.execute("begin immediate").await.unwrap();

        let mut client = world.session(&server).await;
        client.send(format!("r {}\r\n", registration()).as_bytes()).await;
        let answer = client.until("r ").await;
        assert!(answer.starts_with("r NO "), "{answer}");
        // The session is well, and what is asked behind a refusal is answered.
        client.send(b"n NOOP\r\n").await;
        client.until("n OK").await;

        database.execute("commit").await.unwrap();
        // The earlier registration is still there, and another one works.
        world.deliver();
        world.push().await;
        client.send(format!("s {}\r\n", registration()).as_bytes()).await;
        client.until("s OK").await;
    })
    .await;
}

#[tokio::test]
async fn mail_that_comes_while_the_database_is_locked_is_pushed() {
    limited(async {
        let world = World::new().await;
        let mut server = world.serve().await;
        world.register(server.address).await.unwrap();
        world.watched().await;
        let mut database = beside(&world).await;
        database.execute("begin immediate").await.unwrap();

        world.deliver();
        // Reading goes on beside a writer, so the push need not wait.
        world.push().await;
        // Mail is not harmed by a database that does not answer.
        let mut client = world.session(&server).await;
        client.send(b"s SELECT INBOX\r\n").await;
        client.until("* 1 EXISTS").await;
        client.until("s OK").await;
        client.send(b"l LOGOUT\r\n").await;
        client.until("l OK").await;

        server
            .process
            .stderr
            .find("the failed write", |line| {
                line.contains("what was pushed cannot be written").then_some(())
            })
            .await;
        database.execute("commit").await.unwrap();
        world.deliver();
        world.push().await;
    })
    .await;
}

#[tokio::test]
async fn a_database_that_stays_locked_at_the_start_is_an_error_that_passes() {
    limited(async {
        let world = World::new().await;
        let server = world.serve().await;
        world.register(server.address).await.unwrap();
        server.process.kill();
        let mut database = beside(&world).await;
        database.execute("begin immediate").await.unwrap();
        world.deliver();

        // Whoever starts it, a service manager say, is to try again; so it is no 64.
        let arguments = world.arguments();
        let mut process = Process::spawn(mailchime(&arguments.each_ref().map(String::as_str)));
        let status = process.end().await;
        let message = process.stderr.seen.join("\n");
        assert_eq!(status.code(), Some(1), "{message}");
        assert!(message.contains("mailchime.db cannot be used at the moment"), "{message}");

        database.execute("commit").await.unwrap();
        let _server = world.serve().await;
        world.push().await;
    })
    .await;
}
