//! A receiver of web hooks is away, hangs, refuses. The phone of the same account hears of each mail at once all the
//! same.

use std::fs;

use mailchime::demo::webhook::{ReceivedEvent, ReceiverAnswer, WebhookReceiver};

use super::scene::{Scene, push_logged, said};
use super::{Fault, fault};
use crate::support::world::Server;
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
            refused,
            "web hook: 401, as for a wrong secret",
            "an error says so, the row stays owed, the phone hears at once"
        ),
    ]
}

/// The program with a phone and a web hook, both of which the account has rows for.
async fn with_receiver(scene: &Scene) -> (WebhookReceiver, Server) {
    let receiver = WebhookReceiver::start(listener().await, None).unwrap();
    fs::write(scene.file("hook.secret"), SECRET).unwrap();
    let table = format!(
        "[[webhook]]\nurl = \"{}\"\nsecret_file = \"hook.secret\"\ntimeout = \"2s\"\n[log]\n",
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
    (receiver, server)
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
