//! APNs refuses, hangs, says farewell, is overloaded.

use mailchime::demo::apns::Answer;
use mailchime::demo::backend::Counters;
use mailchime::demo::phone::Phone;
use mailchime::imap::registration::xapple::DeviceToken;

use super::scene::{Scene, push_logged, said};
use super::{Fault, fault};
use crate::support::soon;
use crate::support::world::{MAIL, Server, TOKEN};

pub(super) fn faults() -> Vec<Fault> {
    vec![
        fault!(
            too_many,
            "APNs: 429 for one of two devices",
            "it is left alone and told later, the other at once"
        ),
        fault!(refusing, "APNs: connections refused", "the mail is pushed when it is back"),
        fault!(
            stalled,
            "APNs: connections accepted, and nothing said on them",
            "the mail is pushed when it speaks"
        ),
        fault!(
            hanging,
            "APNs: a request that is never answered",
            "it is sent again, on another connection"
        ),
        fault!(
            late,
            "APNs: an answer that comes late, within request_timeout",
            "it counts, and the device hears then of the mail of meanwhile, none twice"
        ),
        fault!(
            farewell,
            "APNs: GOAWAY in the middle of a request",
            "the answer counts, the next goes by a new connection, none twice"
        ),
        fault!(
            cut,
            "APNs: connection closed in the middle of a request",
            "it is sent again, on another connection"
        ),
        fault!(
            gone,
            "APNs: 410 for one of two devices",
            "its registration goes, the other hears at once"
        ),
        fault!(
            wrong_key,
            "APNs: 403, as for a wrong certificate",
            "an error says so, the mail is pushed when the certificate is taken"
        ),
        fault!(
            endless,
            "APNs: an answer without an end",
            "its head counts, the next push goes out"
        ),
        fault!(
            storm,
            "APNs: 503 to everything for a while",
            "sessions do not notice, and the mail is pushed afterwards"
        ),
    ]
}

/// The program with a second phone, whose token this is.
async fn with_another(scene: &Scene) -> (Server, String) {
    let server = scene.registered().await;
    let token = TOKEN.replace('8', "9");
    let other = Phone { device_token: token.clone(), ..scene.phone() };
    let ca = &scene.pki.ca.certificate;
    other.register(server.address, "localhost", ca, |_, _| {}).await.unwrap();
    (server, token)
}

async fn too_many(scene: Scene) {
    let (_server, token) = with_another(&scene).await;
    scene.fault();
    let busy = DeviceToken::new(TOKEN).unwrap();
    scene.apns.answer_token(&busy, Answer::refuse(429, "TooManyRequests"));
    scene.deliver();
    assert_eq!(scene.accepted().await.token, DeviceToken::new(&token));
    soon("both pushes", scene.apns.wait_for(2)).await;
    scene.apns.answer_token(&busy, Answer::Accept);
    assert_eq!(scene.accepted().await.token, Some(busy.clone()), "after some tens of seconds");
    let tries = scene.apns.pushes().iter().filter(|push| push.token == Some(busy.clone())).count();
    assert_eq!(tries, 2, "it was left alone");
}

async fn refusing(scene: Scene) {
    let mut server = scene.registered().await;
    scene.deliver();
    scene.push().await;
    scene.fault();
    scene.apns.refuse().await;
    scene.apns.drop_connections();
    scene.deliver();
    push_logged(&mut server, "unavailable").await;
    scene.apns.resume().await.unwrap();
    scene.push().await;
}

async fn stalled(scene: Scene) {
    scene.configure("[apns]\n", "[apns]\nconnect_timeout = \"1s\"\n");
    scene.fault();
    scene.apns.stall(true);
    let mut server = scene.registered().await;
    scene.deliver();
    push_logged(&mut server, "unavailable").await;
    scene.apns.stall(false);
    scene.push().await;
}

async fn hanging(scene: Scene) {
    scene.configure("[apns]\n", "[apns]\nrequest_timeout = \"1s\"\n");
    let _server = scene.registered().await;
    scene.fault();
    scene.apns.answer_next(1, Answer::Hang);
    scene.deliver();
    assert_eq!(scene.push().await.status, None);
    assert_eq!(scene.push().await.status, Some(200));
}

async fn late(scene: Scene) {
    let mut server = scene.registered().await;
    scene.fault();
    scene.apns.hold_answers(true);
    scene.deliver();
    scene.push().await;
    // The mailbox is looked at all the same, and the device left alone until the answer is there.
    let looks = |counters: &Counters| counters.commands.get("STATUS").copied();
    let before = looks(&scene.backend.counters());
    scene.deliver();
    let looked = |counters: &Counters| looks(counters) > before && counters.idling > 0;
    soon("a look", scene.backend.wait_until(looked)).await;
    assert_eq!(scene.apns.received(), 1);
    scene.apns.hold_answers(false);
    push_logged(&mut server, "accepted").await;
    scene.push().await;
    push_logged(&mut server, "accepted").await;
    scene.deliver();
    scene.push().await;
    push_logged(&mut server, "accepted").await;
    assert_eq!(scene.apns.received(), 3);
}

async fn farewell(scene: Scene) {
    let mut server = scene.registered().await;
    scene.fault();
    scene.apns.hold_answers(true);
    scene.deliver();
    let first = scene.push().await;
    scene.apns.go_away();
    scene.apns.hold_answers(false);
    push_logged(&mut server, "accepted").await;
    scene.deliver();
    let second = scene.push().await;
    assert_eq!((first.connection, second.connection), (1, 2));
    push_logged(&mut server, "accepted").await;
    assert_eq!(scene.apns.received(), 2);
}

async fn cut(scene: Scene) {
    let _server = scene.registered().await;
    scene.fault();
    scene.apns.answer_next(1, Answer::Disconnect);
    scene.deliver();
    assert_eq!(scene.push().await.status, None);
    assert_eq!(scene.push().await.status, Some(200));
}

async fn gone(scene: Scene) {
    let (_server, token) = with_another(&scene).await;
    scene.fault();
    let dead = DeviceToken::new(TOKEN).unwrap();
    scene.apns.answer_token(&dead, Answer::refuse(410, "Unregistered"));
    scene.deliver();
    assert_eq!(scene.accepted().await.token, DeviceToken::new(&token));
    scene.left_with(1, "apns").await;
    scene.deliver();
    assert_eq!(scene.accepted().await.token, DeviceToken::new(&token));
    let tries = scene.apns.pushes().iter().filter(|push| push.token == Some(dead.clone())).count();
    assert_eq!(tries, 1);
}

async fn wrong_key(scene: Scene) {
    let mut server = scene.registered().await;
    scene.fault();
    scene.apns.answer_all(Answer::refuse(403, "BadCertificate"));
    scene.deliver();
    said(&mut server, "the push service refuses a push for a reason that an operator has to fix")
        .await;
    scene.owed("apns").await;
    scene.apns.answer_all(Answer::Accept);
    scene.accepted().await;
}

async fn endless(scene: Scene) {
    let mut server = scene.registered().await;
    scene.fault();
    scene.apns.answer_next(1, Answer::Endless(503));
    scene.deliver();
    push_logged(&mut server, "unavailable").await;
    scene.accepted().await;
    scene.fault();
    scene.apns.answer_next(1, Answer::Endless(200));
    scene.deliver();
    push_logged(&mut server, "accepted").await;
    push_logged(&mut server, "accepted").await;
    assert_eq!(scene.apns.received(), 3);
}

async fn storm(scene: Scene) {
    let server = scene.registered().await;
    scene.fault();
    scene.apns.answer_all(Answer::refuse(503, "ServiceUnavailable"));
    for _ in 0..20 {
        scene.deliver();
    }
    soon("two tries", scene.apns.wait_for(2)).await;
    let mut client = scene.session(&server).await;
    client.send(b"s SELECT INBOX\r\nf FETCH 20 BODY.PEEK[]\r\n").await;
    client.until(&format!("* 20 FETCH (BODY[] {{{}}}", MAIL.len())).await;
    client.until("f OK").await;
    scene.apns.answer_all(Answer::Accept);
    scene.accepted().await;
}
