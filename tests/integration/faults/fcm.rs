//! FCM is away, hangs, refuses. The phone of the same account hears of each mail at once all the same.

use std::fs;

use mailchime::demo::fcm::{FcmAnswer, FcmMessage, FcmStandIn, TokenAnswers};
use mailchime::model::PushEndpoint;

use super::scene::{Scene, push_logged, push_to, said};
use super::{Fault, fault};
use crate::support::world::Server;
use crate::support::{listener, soon};

pub(super) fn faults() -> Vec<Fault> {
    vec![
        fault!(
            refusing,
            "FCM: connections refused",
            "the message comes when it is back, the phone hears at once"
        ),
        fault!(
            hanging,
            "FCM: a message that is never answered",
            "it is sent again, the phone hears at once"
        ),
        fault!(
            late,
            "FCM: an answer that comes late, within request_timeout",
            "it counts, the app hears then of the mail of meanwhile, none twice, the phone at once"
        ),
        fault!(
            cut,
            "FCM: connection closed in the middle of a message",
            "it is sent again, the phone hears at once"
        ),
        fault!(
            farewell,
            "FCM: GOAWAY in the middle of a message",
            "the answer counts, the next goes by a new connection, none twice"
        ),
        fault!(
            endless,
            "FCM: an answer without an end",
            "its head counts, the next message comes, the phone hears at once"
        ),
        fault!(
            overloaded,
            "FCM: 503 to everything for a while",
            "the message comes afterwards, the phone hears at once"
        ),
        fault!(
            too_many,
            "FCM: 429 with Retry-After",
            "the app is left alone for so long, the phone hears at once"
        ),
        fault!(gone, "FCM: the app was removed", "its subscription goes, the phone stays"),
        fault!(
            wrong_key,
            "FCM: Google refuses the key",
            "an error says so, the message comes when the key is taken, the phone hears at once"
        ),
        fault!(
            left_out,
            "FCM: a start without its table, which SIGHUP adds",
            "the app hears of what comes after the reload, the phone at once"
        ),
    ]
}

/// The program with a phone and an app, whose service starts with these answers about tokens.
async fn with_app(scene: &Scene, tokens: TokenAnswers) -> (FcmStandIn, Server) {
    let service = FcmStandIn::start(listener().await, &scene.pki).unwrap();
    service.answer_tokens(tokens);
    fs::write(scene.file("firebase.json"), service.service_account().unwrap()).unwrap();
    scene.configure("[log]\n", &format!("{}[log]\n", table(&service)));
    let server = scene.registered().await;
    let mut database = scene.beside().await;
    let hash = PushEndpoint::new("token-a", "token-a").hash_hex();
    let app = "insert into subscription (account, transport, endpoint_hash, endpoint, app, route, options, \
               registered_at, heard_at, renews) select account, 'fcm', $1, 'token-a', 'org.example.mail', $2, \
               '{}', registered_at, heard_at, 0 from subscription";
    sqlx::query(app).bind(hash).bind(service.project()).execute(&mut database).await.unwrap();
    let mailboxes = "insert into subscription_mailbox (subscription, mailbox) select s.id, m.id \
                     from subscription s join mailbox m on m.account = s.account where s.transport = 'fcm'";
    sqlx::query(mailboxes).execute(&mut database).await.unwrap();
    (service, server)
}

/// The table of this service.
fn table(service: &FcmStandIn) -> String {
    format!(
        "[[fcm]]\nservice_account_file = \"firebase.json\"\nendpoint = \"{}\"\nca = \"ca.pem\"\n",
        service.endpoint()
    )
}

/// The next message that FCM takes.
async fn accepted(service: &FcmStandIn) -> FcmMessage {
    loop {
        let message = soon("a message", service.next()).await;
        if message.status == Some(200) {
            return message;
        }
    }
}

async fn refusing(scene: Scene) {
    let (service, mut server) = with_app(&scene, TokenAnswers::Give(3599)).await;
    scene.deliver();
    scene.push().await;
    assert_eq!(accepted(&service).await.token(), "token-a");
    scene.fault();
    service.refuse().await;
    scene.deliver();
    scene.push().await;
    push_logged(&mut server, "unavailable").await;
    service.resume().await.unwrap();
    accepted(&service).await;
}

async fn hanging(scene: Scene) {
    let (service, mut server) = with_app(&scene, TokenAnswers::Give(3599)).await;
    scene.fault();
    service.answer_next(1, FcmAnswer::Hang);
    scene.deliver();
    scene.push().await;
    assert_eq!(soon("a message", service.next()).await.status, None);
    scene.deliver();
    scene.push().await;
    push_logged(&mut server, "unavailable").await;
    accepted(&service).await;
}

async fn late(scene: Scene) {
    let (service, mut server) = with_app(&scene, TokenAnswers::Give(3599)).await;
    // The first waits for a token as well.
    scene.deliver();
    scene.push().await;
    accepted(&service).await;
    push_to(&mut server, "token-a", "accepted").await;
    scene.fault();
    service.hold_answers(true);
    scene.deliver();
    scene.push().await;
    accepted(&service).await;
    scene.deliver();
    scene.push().await;
    assert_eq!(service.messages().len(), 2);
    service.hold_answers(false);
    push_to(&mut server, "token-a", "accepted").await;
    accepted(&service).await;
    push_to(&mut server, "token-a", "accepted").await;
    assert_eq!(service.messages().len(), 3);
}

async fn cut(scene: Scene) {
    let (service, _server) = with_app(&scene, TokenAnswers::Give(3599)).await;
    scene.fault();
    service.answer_next(1, FcmAnswer::Hang);
    scene.deliver();
    scene.push().await;
    assert_eq!(soon("a message", service.next()).await.status, None);
    service.refuse().await;
    service.resume().await.unwrap();
    accepted(&service).await;
}

async fn farewell(scene: Scene) {
    let (service, mut server) = with_app(&scene, TokenAnswers::Give(3599)).await;
    service.answer_all(FcmAnswer::Farewell);
    let mut before = None;
    for count in 1..=3 {
        scene.fault();
        scene.deliver();
        scene.push().await;
        accepted(&service).await;
        push_to(&mut server, "token-a", "accepted").await;
        assert_eq!(service.messages().len(), count);
        let made = service.connections();
        assert!(before.is_none_or(|before| made == before + 1), "{before:?} {made}");
        before = Some(made);
    }
}

async fn endless(scene: Scene) {
    let (service, mut server) = with_app(&scene, TokenAnswers::Give(3599)).await;
    service.answer_all(FcmAnswer::Endless);
    for _ in 0..2 {
        scene.fault();
        scene.deliver();
        scene.push().await;
        accepted(&service).await;
        push_to(&mut server, "token-a", "accepted").await;
    }
}

async fn overloaded(scene: Scene) {
    let (service, mut server) = with_app(&scene, TokenAnswers::Give(3599)).await;
    scene.fault();
    service.answer_all(FcmAnswer::refuse(503, "UNAVAILABLE", "UNAVAILABLE").later(1));
    scene.deliver();
    scene.push().await;
    assert_eq!(soon("a message", service.next()).await.status, Some(503));
    push_to(&mut server, "token-a", "unavailable").await;
    scene.deliver();
    scene.push().await;
    service.answer_all(FcmAnswer::Accept);
    accepted(&service).await;
}

async fn too_many(scene: Scene) {
    let (service, mut server) = with_app(&scene, TokenAnswers::Give(3599)).await;
    scene.fault();
    let quota = FcmAnswer::refuse(429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED").later(3600);
    service.answer_next(1, quota);
    scene.deliver();
    scene.push().await;
    push_logged(&mut server, "too-many").await;
    scene.deliver();
    scene.push().await;
    push_logged(&mut server, "accepted").await;
    assert_eq!(service.messages().len(), 1, "it is left alone");
}

async fn gone(scene: Scene) {
    let (service, _server) = with_app(&scene, TokenAnswers::Give(3599)).await;
    scene.fault();
    service.answer_next(1, FcmAnswer::refuse(404, "NOT_FOUND", "UNREGISTERED"));
    scene.deliver();
    scene.push().await;
    let mut database = scene.beside().await;
    loop {
        let left = sqlx::query_scalar("select transport from subscription");
        let left: Vec<String> = left.fetch_all(&mut database).await.unwrap();
        if left == ["apns"] {
            break;
        }
        tokio::task::yield_now().await;
    }
    scene.deliver();
    scene.push().await;
    assert_eq!(service.messages().len(), 1);
}

async fn wrong_key(scene: Scene) {
    let (service, mut server) = with_app(&scene, TokenAnswers::Refuse).await;
    scene.fault();
    scene.deliver();
    scene.push().await;
    said(&mut server, "Google refuses an access token for FCM").await;
    assert!(service.messages().is_empty());
    service.answer_tokens(TokenAnswers::Give(3599));
    accepted(&service).await;
    scene.deliver();
    scene.push().await;
    accepted(&service).await;
}

async fn left_out(scene: Scene) {
    let (service, server) = with_app(&scene, TokenAnswers::Give(3599)).await;
    scene.kill(server);
    scene.configure(&table(&service), "");
    let mut server = scene.serve().await;
    scene.watched().await;
    scene.deliver();
    scene.push().await;
    assert!(service.messages().is_empty());
    scene.configure("[log]\n", &format!("{}[log]\n", table(&service)));
    server.process.signal("HUP");
    said(&mut server, "configuration reloaded").await;
    scene.deliver();
    scene.push().await;
    accepted(&service).await;
}
