//! The IMAP server restarts, goes away, says farewell, refuses.

use sqlx::SqliteConnection;

use super::scene::{Scene, said};
use super::{Fault, fault};
use crate::support::soon;
use crate::support::world::{LOGIN, PASSWORD, Server};

pub(super) fn faults() -> Vec<Fault> {
    vec![
        fault!(
            reset,
            "backend: connections reset, mail meanwhile",
            "the mail is pushed after the next login"
        ),
        fault!(
            away,
            "backend: connections reset, port closed for a while",
            "mail is pushed when it is back, a session hears of it and goes on"
        ),
        fault!(
            farewell,
            "backend: BYE in IDLE, mail meanwhile",
            "the mail is pushed after the next login"
        ),
        fault!(
            unavailable,
            "backend: every login NO [UNAVAILABLE] for a while",
            "nothing is parked, the mail is pushed"
        ),
        fault!(
            another_password,
            "password changed under us, SIGKILL after it was noticed",
            "the old one is tried twice in all, and the new one heals"
        ),
        fault!(
            another_password_and_killed,
            "password changed under us, SIGKILL between two tries",
            "the old one is tried twice in all, and the new one heals"
        ),
    ]
}

async fn reset(scene: Scene) {
    let _server = scene.registered().await;
    for _ in 0..3 {
        scene.fault();
        scene.backend.drop_connections();
        scene.deliver();
        scene.push().await;
        scene.watched().await;
    }
}

async fn away(scene: Scene) {
    let mut server = scene.registered().await;
    scene.fault();
    scene.backend.refuse().await;
    scene.backend.drop_connections();
    server.logged("watching is interrupted; mailchime tries again").await;
    scene.deliver();

    // A client hears so, and may try again on the same connection.
    let mut client = scene.client(&server).await;
    client.send(b"a LOGIN alice \"wonder land\"\r\n").await;
    assert!(client.line().await.starts_with("a NO [UNAVAILABLE] "));
    scene.backend.resume().await.unwrap();
    client.send(b"b LOGIN alice \"wonder land\"\r\n").await;
    client.until("b OK").await;
    scene.push().await;
}

async fn farewell(scene: Scene) {
    let mut server = scene.registered().await;
    scene.fault();
    scene.backend.say_bye();
    server.logged("watching is interrupted; mailchime tries again").await;
    scene.deliver();
    scene.push().await;
}

async fn unavailable(scene: Scene) {
    let _server = scene.registered().await;
    scene.fault();
    scene.backend.behave(|behaviour| behaviour.unavailable = true);
    scene.backend.drop_connections();
    scene.deliver();
    let refused = scene.backend.wait_until(|c| c.refused.get(LOGIN).is_some_and(|n| *n >= 4));
    soon("four refusals", refused).await;
    scene.backend.behave(|behaviour| behaviour.unavailable = false);
    scene.push().await;
}

async fn another_password(scene: Scene) {
    let mut server = scene.registered().await;
    scene.fault();
    scene.backend.set_password(LOGIN, b"changed").unwrap();
    scene.backend.drop_connections();
    said(&mut server, "not watched until its user logs in again: the backend refuses the stored password; mailchime pushes the devices so that they log in").await;
    scene.deliver();
    healed(&scene, server).await;
}

async fn another_password_and_killed(scene: Scene) {
    // Time to be killed in.
    scene.configure("retry_min = \"10ms\"\nretry_max = \"200ms\"", "retry_min = \"3s\"");
    let mut server = scene.registered().await;
    scene.fault();
    scene.backend.set_password(LOGIN, b"changed").unwrap();
    scene.backend.drop_connections();
    said(&mut server, "the backend refuses the stored password; mailchime tries again").await;
    scene.deliver();
    healed(&scene, server).await;
}

/// Killed, started and killed again, it does not try the old password more than twice in all; and
/// with the new one it pushes.
async fn healed(scene: &Scene, server: Server) {
    scene.kill(server);
    let server = scene.serve().await;
    // From the first moment on, or after one more try.
    parked_on_disk(scene.beside().await).await;
    scene.kill(server);
    let server = scene.serve().await;
    let mut client = scene.client(&server).await;
    client.send(format!("old LOGIN {LOGIN} changed\r\n").as_bytes()).await;
    client.until("old OK").await;
    scene.push().await;
    let tries = scene.backend.stale_tries(LOGIN).unwrap();
    assert!(tries[0] <= 2, "{PASSWORD:?} was tried {tries:?} times");
}

async fn parked_on_disk(mut database: SqliteConnection) {
    let parked = async {
        loop {
            let count: i64 = sqlx::query_scalar("select count(*) from account where parked <> ''")
                .fetch_one(&mut database)
                .await
                .unwrap();
            if count > 0 {
                return;
            }
        }
    };
    soon("a parked account", parked).await;
}
