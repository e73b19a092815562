//! SIGKILL at each step on the way from a registration to a row that has moved.

use mailchime::demo::apns::Answer;
use mailchime::demo::backend::Counters;
use sqlx::Executor;

use super::scene::{Scene, push_logged, said};
use super::{Fault, fault};
use crate::support::world::registration;

pub(super) fn faults() -> Vec<Fault> {
    vec![
        fault!(
            after_the_registration,
            "SIGKILL when the registration's tagged OK was seen",
            "the phone is known, and pushed of what came meanwhile"
        ),
        fault!(
            before_the_change_is_read,
            "SIGKILL when EXISTS was sent and not read",
            "the next start finds the mail and pushes"
        ),
        fault!(
            after_the_change,
            "SIGKILL when the change was read, APNs being away",
            "the push is owed across starts, and made"
        ),
        fault!(
            after_the_send,
            "SIGKILL while APNs thinks about the push, the look done",
            "it is pushed again"
        ),
        fault!(
            before_the_row_moves,
            "SIGKILL after APNs' 200, before the row could move",
            "it is pushed again once, and no more when the row has moved"
        ),
        fault!(
            again_and_again,
            "SIGKILL five times, at each start a mail later",
            "every mail is pushed"
        ),
    ]
}

async fn after_the_registration(scene: Scene) {
    let server = scene.serve().await;
    let mut client = scene.session(&server).await;
    client.send(format!("r {}\r\n", registration()).as_bytes()).await;
    client.until("r OK").await;
    scene.kill(server);
    // What comes while nobody looks is found by comparison.
    scene.deliver();
    let _server = scene.serve().await;
    scene.push().await;
}

async fn before_the_change_is_read(scene: Scene) {
    let server = scene.registered().await;
    server.process.signal("STOP");
    scene.deliver();
    scene.kill(server);
    assert_eq!(scene.apns.received(), 0);
    let _server = scene.serve().await;
    scene.push().await;
}

async fn after_the_change(scene: Scene) {
    let mut server = scene.registered().await;
    scene.fault();
    scene.apns.refuse().await;
    scene.apns.drop_connections();
    scene.deliver();
    // It knows of the mail and has failed to say so; the row moves, since it is marked as owed.
    push_logged(&mut server, "unavailable").await;
    said(&mut server, "change recorded").await;
    scene.kill(server);
    let mut server = scene.serve().await;
    push_logged(&mut server, "unavailable").await;
    assert_eq!(scene.apns.received(), 0);
    scene.apns.resume().await.unwrap();
    scene.push().await;
}

async fn after_the_send(scene: Scene) {
    let server = scene.registered().await;
    scene.fault();
    scene.apns.answer_next(1, Answer::Hang);
    let looks = |counters: &Counters| counters.commands.get("STATUS").copied();
    let before = looks(&scene.backend.counters());
    scene.deliver();
    assert_eq!(scene.push().await.status, None);
    // The mailbox has been looked at, and what is written after that is on disk: a row that moved
    // too soon has moved.
    let looked = |counters: &Counters| looks(counters) > before && counters.idling > 0;
    scene.backend.wait_until(looked).await;
    scene.register(server.address).await.unwrap();
    scene.kill(server);
    let _server = scene.serve().await;
    assert_eq!(scene.push().await.status, Some(200));
}

async fn before_the_row_moves(scene: Scene) {
    let mut server = scene.registered().await;
    let mut database = scene.beside().await;
    scene.fault();
    database.execute("begin immediate").await.unwrap();
    scene.deliver();
    push_logged(&mut server, "accepted").await;
    scene.kill(server);
    database.execute("rollback").await.unwrap();
    let mut server = scene.serve().await;
    push_logged(&mut server, "accepted").await;
    said(&mut server, "change recorded").await;
    scene.kill(server);
    // The next start finds nothing to tell, but what comes then.
    let mut server = scene.serve().await;
    scene.watched().await;
    scene.deliver();
    push_logged(&mut server, "accepted").await;
    assert_eq!(scene.apns.received(), 3);
}

async fn again_and_again(scene: Scene) {
    let mut server = scene.registered().await;
    for _ in 0..5 {
        scene.kill(server);
        scene.deliver();
        server = scene.serve().await;
        scene.accepted().await;
    }
}
