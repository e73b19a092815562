//! A receiver of web hooks is away, hangs, refuses. The phone of the same account hears of each mail at once all the
//! same.

use std::collections::HashSet;
use std::fs;

use mailchime::demo::webhook::{ReceivedEvent, ReceiverAnswer, WebhookReceiver};
use mailchime::model::Account;
use mailchime::net::guard::Guard;
use mailchime::push::transport::enrol::Enrol;
use mailchime::push::transport::webhook::users::UserWebhooks;
use serde_json::json;

use super::scene::{Scene, push_logged, push_to, said};
use super::{Fault, fault};
use crate::support::world::{LOGIN, Server};
use crate::support::{listener, soon};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

pub(super) fn faults() -> Vec<Fault> {
    vec![
        fault!(
            refusing,
            "web hook: connections refused",
            "the event comes when it is back, the phone hears at once"
        ),
        fault!(
            hanging,
            "web hook: an event that is never answered",
            "it comes again with its id, the phone hears at once"
        ),
        fault!(
            late,
            "web hook: an answer that comes late, within timeout",
            "it counts, the receiver hears then of the mail of meanwhile, none twice, the phone at once"
        ),
        fault!(
            overloaded,
            "web hook: 503 to everything for a while",
            "the event comes afterwards with its id, the phone hears at once"
        ),
        fault!(
            endless,
            "web hook: an answer without an end",
            "its head counts, the next event comes, the phone hears at once"
        ),
        fault!(
            too_many,
            "web hook: 429 with Retry-After",
            "it is left alone for so long, the phone hears at once"
        ),
        fault!(
            farewell,
            "web hook: GOAWAY in the middle of an event",
            "the answer counts, the next goes by a new connection, none twice"
        ),
        fault!(
            gone,
            "web hook: 410 of the operator's",
            "an error says so, the row stays owed, the phone hears at once"
        ),
        fault!(
            private,
            "web hook: the name of a user's leads to a private address",
            "nothing connects to it, the row stays owed, the phone hears at once"
        ),
        fault!(
            refused,
            "web hook: 401, as for a wrong secret",
            "an error says so, the row stays owed, the phone hears at once"
        ),
    ]
}

/// The program with a phone and a web hook, both of which the account has rows for.
async fn with_receiver(scene: &Scene) -> (WebhookReceiver, Server) {
    let receiver = WebhookReceiver::start(listener().await, None).unwrap();
    let server = with(scene, &receiver, "", "2s").await;
    (receiver, server)
}

/// The program with this web hook, of whose table there is `more`.
async fn with(scene: &Scene, receiver: &WebhookReceiver, more: &str, timeout: &str) -> Server {
    fs::write(scene.file("hook.secret"), SECRET).unwrap();
    let table = format!(
        "[[webhook]]\nurl = \"{}\"\nsecret_file = \"hook.secret\"\ntimeout = \"{timeout}\"\n{more}[log]\n",
        receiver.url("/mail")
    );
    scene.configure("[log]\n", &table);
    let server = scene.registered().await;
    let mut database = scene.beside().await;
    loop {
        let rows = sqlx::query_scalar("select count(*) from subscription_mailbox");
        let rows: i64 = rows.fetch_one(&mut database).await.unwrap();
        if rows == 2 {
            break;
        }
        tokio::task::yield_now().await;
    }
    server
}

/// The next event of new mail that was answered so; those before it are passed over.
async fn new_mail(receiver: &WebhookReceiver, status: Option<u16>) -> ReceivedEvent {
    loop {
        let event = soon("an event", receiver.next()).await;
        if event.status == status && event.json()["data"]["kind"] == "new" {
            assert!(event.is_signed_by(SECRET), "{event:?}");
            return event;
        }
    }
}

fn id(event: &ReceivedEvent) -> &str {
    event.header("webhook-id").unwrap()
}

async fn refusing(scene: Scene) {
    let (receiver, mut server) = with_receiver(&scene).await;
    scene.fault();
    receiver.refuse().await;
    scene.deliver();
    scene.push().await;
    push_logged(&mut server, "unavailable").await;
    receiver.resume().await.unwrap();
    new_mail(&receiver, Some(204)).await;
}

async fn hanging(scene: Scene) {
    let (receiver, _server) = with_receiver(&scene).await;
    scene.fault();
    receiver.answer_all(Some(ReceiverAnswer::Hang));
    scene.deliver();
    scene.push().await;
    let first = new_mail(&receiver, None).await;
    receiver.answer_all(None);
    assert_eq!(id(&new_mail(&receiver, Some(204)).await), id(&first));
}

async fn late(scene: Scene) {
    let receiver = WebhookReceiver::start(listener().await, None).unwrap();
    let mut server = with(&scene, &receiver, "", "30s").await;
    scene.fault();
    receiver.hold_answers(true);
    scene.deliver();
    scene.push().await;
    let first = new_mail(&receiver, Some(204)).await;
    scene.deliver();
    scene.push().await;
    assert_eq!(receiver.events().len(), 1);
    receiver.hold_answers(false);
    push_to(&mut server, "127.0.0.", "accepted").await;
    let second = new_mail(&receiver, Some(204)).await;
    push_to(&mut server, "127.0.0.", "accepted").await;
    assert_ne!(id(&second), id(&first));
    assert_eq!(receiver.events().len(), 2);
}

async fn overloaded(scene: Scene) {
    let (receiver, _server) = with_receiver(&scene).await;
    scene.fault();
    receiver.answer_all(Some(ReceiverAnswer::Status(503, Some(1))));
    scene.deliver();
    scene.push().await;
    let first = new_mail(&receiver, Some(503)).await;
    receiver.answer_all(None);
    assert_eq!(id(&new_mail(&receiver, Some(204)).await), id(&first));
}

async fn endless(scene: Scene) {
    let (receiver, mut server) = with_receiver(&scene).await;
    scene.fault();
    receiver.answer_all(Some(ReceiverAnswer::Endless(200)));
    for _ in 0..2 {
        scene.deliver();
        scene.push().await;
        new_mail(&receiver, Some(200)).await;
    }
    push_logged(&mut server, "accepted").await;
}

async fn too_many(scene: Scene) {
    let (receiver, mut server) = with_receiver(&scene).await;
    scene.fault();
    receiver.answer_all(Some(ReceiverAnswer::Status(429, Some(3600))));
    scene.deliver();
    scene.push().await;
    push_logged(&mut server, "too-many").await;
    receiver.answer_all(None);
    let events = receiver.events().len();
    scene.deliver();
    scene.push().await;
    push_logged(&mut server, "accepted").await;
    assert_eq!(receiver.events().len(), events, "it is left alone");
}

async fn farewell(scene: Scene) {
    let receiver = WebhookReceiver::start_http2(listener().await, &scene.pki).unwrap();
    receiver.answer_all(Some(ReceiverAnswer::Farewell));
    let mut server = with(&scene, &receiver, "ca = \"ca.pem\"\n", "2s").await;
    for _ in 0..3 {
        scene.fault();
        scene.deliver();
        scene.push().await;
        new_mail(&receiver, Some(204)).await;
        push_to(&mut server, "localhos", "accepted").await;
    }
    let events = receiver.events();
    assert_eq!(receiver.connections(), events.len() as u64, "one for each");
    let ids: HashSet<_> = events.iter().map(id).collect();
    assert_eq!(ids.len(), events.len(), "none twice");
}

async fn gone(scene: Scene) {
    let (receiver, mut server) = with_receiver(&scene).await;
    scene.fault();
    receiver.answer_all(Some(ReceiverAnswer::Status(410, None)));
    scene.deliver();
    scene.push().await;
    new_mail(&receiver, Some(410)).await;
    said(&mut server, "the push service refuses a push for a reason that an operator has to fix")
        .await;
    scene.owed("webhook").await;
}

/// At port 443, as users' web hooks are, where nothing may listen.
async fn private(scene: Scene) {
    scene.configure("[log]\n", "[api]\naddress = \"127.0.0.1:0\"\n[log]\n");
    let mut server = scene.registered().await;
    let users = UserWebhooks::new(Guard::new(&[], &[]));
    let url = json!({ "url": "https://localhost/mail", "secret": SECRET });
    let enrolled = users.enrol(&Account::from_login(LOGIN), &url).unwrap();
    scene.subscribe(&enrolled.subscription).await;
    scene.fault();
    scene.deliver();
    scene.push().await;
    said(&mut server, "which is no public address").await;
    scene.owed("webhook").await;
}

async fn refused(scene: Scene) {
    let (receiver, mut server) = with_receiver(&scene).await;
    scene.fault();
    receiver.answer_all(Some(ReceiverAnswer::Status(401, None)));
    scene.deliver();
    scene.push().await;
    new_mail(&receiver, Some(401)).await;
    said(&mut server, "the push service refuses a push for a reason that an operator has to fix")
        .await;
    let mut database = scene.beside().await;
    loop {
        let owed = "select count(*) from subscription s join subscription_mailbox m on m.subscription = s.id \
                    where s.transport = 'webhook' and m.owed_since is not null and s.failing_since is not null";
        let owed: i64 = sqlx::query_scalar(owed).fetch_one(&mut database).await.unwrap();
        if owed == 1 {
            break;
        }
        tokio::task::yield_now().await;
    }
}
