//! A push service of browsers is away, hangs, refuses. The phone of the same account hears of each mail at once all
//! the same.

use std::fs;
use std::sync::Arc;

use mailchime::demo::push_service::{Browser, PushService, PushedMessage, Reply};
use mailchime::model::{Account, Subscription};
use mailchime::net::guard::Guard;
use mailchime::push::transport::enrol::Enrol;
use mailchime::push::transport::webpush::WebPush;
use mailchime::push::transport::webpush::vapid::VapidKey;

use super::scene::{Scene, push_logged, push_to, said};
use super::{Fault, fault};
use crate::support::world::{LOGIN, Server};
use crate::support::{listener, soon};

const CONTACT: &str = "mailto:postmaster@example.org";

/// The line of `proxy.toml` by which the push service of a test may be reached.
const ALLOWED: &str = "allow_private = [\"127.0.0.0/8\", \"::1/128\"]\n";

pub(super) fn faults() -> Vec<Fault> {
    vec![
        fault!(
            refusing,
            "Web Push: connections refused",
            "the message comes when it is back, the phone hears at once"
        ),
        fault!(
            hanging,
            "Web Push: a message that is never answered",
            "it is sent again, the phone hears at once"
        ),
        fault!(
            late,
            "Web Push: an answer that comes late, within request_timeout",
            "it counts, the browser hears then of the mail of meanwhile, none twice, the phone at once"
        ),
        fault!(
            overloaded,
            "Web Push: 503 to everything for a while",
            "the message comes afterwards, the phone hears at once"
        ),
        fault!(
            too_many,
            "Web Push: 429 with Retry-After",
            "the browser is left alone for so long, the phone hears at once"
        ),
        fault!(
            farewell,
            "Web Push: GOAWAY in the middle of a message",
            "the answer counts, the next goes by a new connection, none twice"
        ),
        fault!(
            gone,
            "Web Push: the browser's subscription is over",
            "its row goes, the phone stays"
        ),
        fault!(
            wrong_key,
            "Web Push: 403 for all browsers, as for a wrong contact",
            "a warning says so, the row stays owed after any time, the phone hears at once"
        ),
        fault!(
            one_refused,
            "Web Push: 403 for one browser, others are accepted",
            "its row goes after seven days, the others stay, the phone hears at once"
        ),
        fault!(
            lost_key,
            "Web Push: the file of the VAPID key is lost",
            "an error says so, the phone hears at once, the browser of what comes when it is back"
        ),
        fault!(
            private,
            "Web Push: the endpoint's name leads to a private address",
            "nothing connects to it, the row stays owed, the phone hears at once"
        ),
        fault!(
            endless,
            "Web Push: an answer without an end",
            "its head counts, the next message comes, the phone hears at once"
        ),
    ]
}

/// What the log says where a push service takes pushes of no browser.
const IDENTITY_REFUSED: &str = "the push service refuses mailchime's key or contact, and has accepted few other pushes lately, \
                                or none; check them and the clock; mailchime keeps the push and tries again";

/// The program with a phone and a browser that has subscribed.
async fn with_browser(scene: &Scene) -> (PushService, Arc<Browser>, Server) {
    with_browser_for(scene, "2s").await
}

/// The same, with this request_timeout.
async fn with_browser_for(scene: &Scene, timeout: &str) -> (PushService, Arc<Browser>, Server) {
    let service = PushService::start(listener().await, &scene.pki).unwrap();
    let host = format!("localhost:{}", service.address().port());
    let table = format!(
        "[webpush]\ncontact = \"{CONTACT}\"\nkey_file = \"vapid.key\"\nhosts = [\"{host}\"]\n{ALLOWED}\
         ca = \"ca.pem\"\nrequest_timeout = \"{timeout}\"\n[log]\n",
    );
    scene.configure("[log]\n", &table);
    let server = scene.registered().await;
    let (browser, _) = subscribed(scene, &service).await;
    (service, browser, server)
}

/// One more browser of the same user.
async fn subscribed(scene: &Scene, service: &PushService) -> (Arc<Browser>, Subscription) {
    let host = format!("localhost:{}", service.address().port());
    let key = VapidKey::open_existing(&scene.file("vapid.key"), CONTACT).unwrap();
    let guard = Guard::new(&[host.parse().unwrap()], &[]);
    let web_push = WebPush::new(Arc::new(key), Arc::new(guard));
    let browser = service.subscribe(web_push.public_key());
    let enrolled = web_push.enrol(&Account::from_login(LOGIN), &browser.to_json()).unwrap();
    scene.subscribe(&enrolled.subscription).await;
    (browser, enrolled.subscription)
}

/// The next message that the push service takes; those that it does not take are passed over.
async fn accepted(service: &PushService) -> PushedMessage {
    loop {
        let message = soon("a message", service.next()).await;
        if message.status == Some(201) {
            return message;
        }
    }
}

/// A mail, of which the phone hears at once.
async fn mail(scene: &Scene) {
    scene.deliver();
    scene.push().await;
}

async fn refusing(scene: Scene) {
    let (service, _browser, mut server) = with_browser(&scene).await;
    mail(&scene).await;
    accepted(&service).await;
    scene.fault();
    service.refuse().await;
    service.drop_connections();
    mail(&scene).await;
    push_logged(&mut server, "unavailable").await;
    service.resume().await.unwrap();
    let message = accepted(&service).await;
    assert_eq!(message.json()["data"]["mailboxes"][0]["mailbox"], "INBOX");
}

async fn hanging(scene: Scene) {
    let (service, _browser, mut server) = with_browser(&scene).await;
    scene.fault();
    service.reply_to_all(Reply::Hang);
    mail(&scene).await;
    assert_eq!(soon("a message", service.next()).await.status, None);
    push_logged(&mut server, "unavailable").await;
    service.reply_to_all(Reply::Created);
    accepted(&service).await;
}

async fn late(scene: Scene) {
    let (service, _browser, mut server) = with_browser_for(&scene, "60s").await;
    scene.fault();
    service.hold_answers(true);
    mail(&scene).await;
    accepted(&service).await;
    mail(&scene).await;
    assert_eq!(service.received(), 1);
    service.hold_answers(false);
    push_to(&mut server, "https://localhost", "accepted").await;
    accepted(&service).await;
    push_to(&mut server, "https://localhost", "accepted").await;
    assert_eq!(service.received(), 2);
}

async fn overloaded(scene: Scene) {
    let (service, _browser, mut server) = with_browser(&scene).await;
    scene.fault();
    service.reply_to_all(Reply::Status(503, Some(1)));
    mail(&scene).await;
    assert_eq!(soon("a message", service.next()).await.status, Some(503));
    push_to(&mut server, "https://localhost", "unavailable").await;
    mail(&scene).await;
    service.reply_to_all(Reply::Created);
    accepted(&service).await;
}

async fn too_many(scene: Scene) {
    let (service, _browser, mut server) = with_browser(&scene).await;
    scene.fault();
    service.reply_to_all(Reply::Status(429, Some(3600)));
    mail(&scene).await;
    push_logged(&mut server, "too-many").await;
    service.reply_to_all(Reply::Created);
    mail(&scene).await;
    push_logged(&mut server, "accepted").await;
    assert_eq!(service.received(), 1, "it is left alone");
}

async fn farewell(scene: Scene) {
    let (service, _browser, mut server) = with_browser(&scene).await;
    service.reply_to_all(Reply::Farewell);
    for count in 1..=3 {
        scene.fault();
        mail(&scene).await;
        assert!(accepted(&service).await.is_http2);
        push_to(&mut server, "https://localhost", "accepted").await;
        assert_eq!((service.connections(), service.received()), (count, count));
    }
}

async fn gone(scene: Scene) {
    let (service, browser, _server) = with_browser(&scene).await;
    scene.fault();
    service.expire(&browser);
    mail(&scene).await;
    scene.left_with(1, "apns").await;
    mail(&scene).await;
    assert_eq!(service.received(), 1);
}

async fn wrong_key(scene: Scene) {
    let (service, _browser, mut server) = with_browser(&scene).await;
    has_failed_for_seven_days(&scene, "webpush").await;
    scene.fault();
    service.reply_to_all(Reply::Status(403, None));
    mail(&scene).await;
    let line = server.logged(IDENTITY_REFUSED).await;
    assert_eq!(line["level"], "WARN", "{line}");
    assert!(line["why"].as_str().unwrap().contains("403 Forbidden to the VAPID key"), "{line}");
    scene.owed("webpush").await;
}

/// The subscription whose transport or endpoint this is, by its own fault, as far as the database knows.
async fn has_failed_for_seven_days(scene: &Scene, which: &str) {
    let failing = "update subscription set failing_since = 1, failing_kind = 'refused', own_fault = 604800000 \
                   where transport = $1 or endpoint = $1";
    let failing = sqlx::query(failing).bind(which);
    assert_eq!(failing.execute(&mut scene.beside().await).await.unwrap().rows_affected(), 1);
}

async fn one_refused(scene: Scene) {
    let (service, _well, mut server) = with_browser(&scene).await;
    mail(&scene).await;
    push_to(&mut server, "https://localhost", "accepted").await;
    let (ill, subscription) = subscribed(&scene, &service).await;
    has_failed_for_seven_days(&scene, subscription.endpoint.as_given()).await;
    scene.fault();
    service.reply_to(&ill, Reply::Status(403, None));
    mail(&scene).await;
    said(&mut server, "mailchime removes the subscription").await;
    let mut database = scene.beside().await;
    loop {
        let left = sqlx::query_scalar("select transport from subscription order by transport");
        let left: Vec<String> = left.fetch_all(&mut database).await.unwrap();
        if left == ["apns", "webpush"] {
            break;
        }
        tokio::task::yield_now().await;
    }
    mail(&scene).await;
    push_to(&mut server, "https://localhost", "accepted").await;
}

async fn lost_key(scene: Scene) {
    let (service, _browser, server) = with_browser(&scene).await;
    mail(&scene).await;
    accepted(&service).await;
    scene.kill(server);
    let (file, kept) = (scene.file("vapid.key"), scene.file("vapid.kept"));
    fs::rename(&file, &kept).unwrap();
    let mut server = scene.serve().await;
    said(&mut server, "the VAPID key with which browsers have subscribed is missing").await;
    scene.watched().await;
    mail(&scene).await;
    push_logged(&mut server, "accepted").await;
    assert_eq!(service.received(), 1);
    assert!(!file.exists(), "a key was made");
    // A reload says the same, and takes the key once it is back. What is owed is sent.
    server.process.signal("HUP");
    said(&mut server, "the VAPID key with which browsers have subscribed is missing").await;
    said(&mut server, "configuration reloaded").await;
    fs::rename(&kept, &file).unwrap();
    server.process.signal("HUP");
    said(&mut server, "configuration reloaded").await;
    accepted(&service).await;
    mail(&scene).await;
    accepted(&service).await;
}

async fn private(scene: Scene) {
    let (service, _browser, server) = with_browser(&scene).await;
    scene.kill(server);
    scene.configure(ALLOWED, "");
    let mut server = scene.serve().await;
    scene.watched().await;
    mail(&scene).await;
    said(&mut server, "which is no public address").await;
    scene.owed("webpush").await;
    assert_eq!(service.connections(), 0);
}

async fn endless(scene: Scene) {
    let (service, _browser, mut server) = with_browser(&scene).await;
    service.reply_to_all(Reply::Endless(201));
    for _ in 0..2 {
        scene.fault();
        mail(&scene).await;
        accepted(&service).await;
        push_to(&mut server, "https://localhost", "accepted").await;
    }
}
