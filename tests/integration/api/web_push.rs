//! From a browser's subscription to its notification: the API, the key, the code and the push, with a stand-in
//! for the browser and its push service.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mailchime::app;
use mailchime::config::{Config, PreviewContent, WebPushConfig, WebhookConfig};
use mailchime::demo::push_service::{Browser, PushService};
use mailchime::demo::webhook::WebhookReceiver;
use mailchime::model::{Account, BackendId, Mailbox, Registration, Snapshot, Timestamp};
use mailchime::push::transport::webhook::of_operator;
use mailchime::store::{Registrant, Store};
use serde_json::{Value, json};
use tracing::Level;

use super::commands::AllKinds;
use super::{ALICE, ApiWorld, basic};
use crate::support::log::Log;
use crate::support::servers::pki;
use crate::support::world::MAIL;
use crate::support::{limited, listener, soon, until};

/// Pushes go to browsers of this push service.
pub(super) fn web_push(config: &mut Config, service: &PushService) {
    let folder = config.tls.certificates[0].certificate.parent().unwrap();
    let mut web_push = WebPushConfig::new(folder.join("vapid.key"), "mailto:a@example.org");
    let host = format!("localhost:{}", service.address().port());
    web_push.hosts = vec![host.parse().unwrap()];
    web_push.allow_private = ["127.0.0.0/8", "::1"].map(|it| it.parse().unwrap()).to_vec();
    web_push.ca = Some(folder.join("ca.pem"));
    config.web_push = Some(web_push);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_subscribes_proves_itself_and_hears_of_new_mail() {
    limited(async {
        let service = PushService::start(listener().await, pki()).unwrap();
        let api = ApiWorld::with(|config| {
            web_push(config, &service);
            // Nobody needs a certificate of Apple's for this.
            config.apns.clear();
        })
        .await;
        let key = api.ask("GET /v1/vapid").await.json()["applicationServerKey"].clone();
        let browser = service.subscribe(key.as_str().unwrap());
        let mut body = browser.to_json();
        body["transport"] = json!("webpush");
        let made = api.of(ALICE, "POST /v1/subscriptions", Some(body.clone())).await;
        assert_eq!(made.status, 201, "{}", made.body);
        let code = service.next().await.json()["data"]["code"].clone();
        let id = made.json()["id"].as_str().unwrap().to_owned();
        let confirm = format!("POST /v1/subscriptions/{id}/confirm");
        let reply = api.of(ALICE, &confirm, Some(json!({ "code": code }))).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let endpoint = reply.json()["endpoint"].as_str().unwrap().to_owned();
        assert!(endpoint.starts_with("https://localhost"), "{endpoint}");
        assert!(!browser.endpoint().contains(&endpoint) && endpoint.len() < 40, "{endpoint}");

        api.backend.wait_until(|counters| counters.idling == 1).await;
        api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        let told = service.next().await.json();
        assert!(told.to_string().contains("INBOX"), "{told}");

        let test = format!("POST /v1/subscriptions/{id}/test");
        assert_eq!(api.of(ALICE, &test, None).await.status, 204);
        assert!(service.next().await.json() != Value::Null);

        // An address that no user may have pushes sent to.
        body["endpoint"] = json!("https://192.168.1.1/x");
        let refused = api.of(ALICE, "POST /v1/subscriptions", Some(body)).await;
        assert_eq!(refused.error(), (422, "invalid".to_owned()));
        assert_eq!(refused.json()["field"], json!("endpoint"));
    })
    .await;
}

/// RFC 8030 section 5.4: a message replaces one of the same topic that the push service has not delivered yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_replaces_one_of_the_same_mailboxes_and_kind_alone() {
    limited(async {
        let service = PushService::start(listener().await, pki()).unwrap();
        let api = ApiWorld::with(|config| {
            web_push(config, &service);
            config.watch.poll_interval = Duration::from_millis(300);
        })
        .await;
        api.backend.create_mailbox(ALICE, "Lists").unwrap();
        let key = api.ask("GET /v1/vapid").await.json()["applicationServerKey"].clone();
        let browser = service.subscribe(key.as_str().unwrap());
        let mut body = browser.to_json();
        body["quiet"] = json!(true);
        body["mailboxes"] = json!(["INBOX", "Lists"]);
        let id = api.subscribe_by("webpush", body).await;
        let code = service.next().await;
        assert_eq!(code.header("topic"), None, "nothing replaces a code");
        api.confirm(&id, code.json()["data"]["code"].clone()).await;
        api.backend.wait_until(|counters| counters.idling == 1).await;

        // The topic of the next message, which tells of this alone.
        let topic = async |mailbox: &str, kind: &str| {
            let told = soon("a message", service.next()).await;
            let mailboxes = told.json()["data"]["mailboxes"].clone();
            let told_of: Vec<_> = mailboxes.as_array().unwrap().iter().collect();
            assert_eq!(told_of.len(), 1, "{mailboxes}");
            assert_eq!(
                (&told_of[0]["mailbox"], &told_of[0]["kind"]),
                (&json!(mailbox), &json!(kind))
            );
            told.header("topic").expect("a topic").to_owned()
        };
        let uid = api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        let new = topic("INBOX", "new").await;
        api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        assert_eq!(topic("INBOX", "new").await, new);
        api.backend.set_flags(ALICE, "INBOX", uid, &["\\Seen"]).unwrap();
        let quiet = topic("INBOX", "quiet").await;
        api.backend.deliver(ALICE, "Lists", MAIL).unwrap();
        let lists = topic("Lists", "new").await;
        assert!(new != quiet && new != lists && quiet != lists, "{new} {quiet} {lists}");
        for topic in [new, quiet, lists] {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
            assert!(topic.len() <= 32 && topic.bytes().all(allowed), "{topic}");
            assert!(!topic.contains("INBOX") && !topic.contains("Lists"), "{topic}");
        }
    })
    .await;
}

/// A phone, a browser and web hooks of the operator on one mailbox, which join one after another, with a restart in
/// between. Each hears of later mail once, and the phone of nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_phone_hears_nothing_of_those_that_join_its_mailbox() {
    limited(async {
        let service = PushService::start(listener().await, pki()).unwrap();
        let hooks = WebhookReceiver::start(listener().await, Some(pki())).unwrap();
        let mut api = ApiWorld::with(|config| {
            web_push(config, &service);
            config.webhooks = vec![webhook(config, "a", &hooks)];
        })
        .await;
        let (alice, at) = (Account::from_login(ALICE), api.backend.address());
        let home = BackendId::new(None, &at.ip().to_string(), at.port());
        // The web hook has its row, and nobody has looked at the mailbox yet.
        let mailboxes = vec![(Mailbox::inbox(), Snapshot::default())];
        let joined = Registration { subscription: of_operator("a", &alice), mailboxes };
        let login = Registrant::new(&home, Timestamp(0), None);
        api.world.mailchime.store.register(&joined, login, 5, Timestamp::now()).await.unwrap();
        api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        api.world.register((ALICE, "secret"), &["INBOX"]).await;
        let first = soon("an event of what came before", hooks.next()).await.json();
        assert_eq!(first["data"]["mailbox"], "INBOX", "{first}");
        let (_browser, _) = subscribed(&api, &service).await;
        let mail = async |store: &Store, number: u64| {
            soon("a watcher in IDLE", api.backend.wait_until(|counters| counters.idling == 1))
                .await;
            api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
            // The row moves when all have been pushed, and what is owed is marked.
            until(async || {
                let known = store.watched(&alice, &home, Timestamp(0)).await.unwrap();
                let targets = store.targets(&alice, Timestamp(0)).await.unwrap();
                let owed = targets.iter().flat_map(|it| &it.mailboxes).any(|(_, owed)| *owed);
                known[0].1.messages == Some(number) && !owed
            })
            .await;
        };
        mail(&api.world.mailchime.store, 2).await;
        let heard = || (api.world.apns.received(), service.received(), hooks.events().len());
        // The browser was sent a code, too.
        assert_eq!(heard(), (1, 2, 2));

        api.world.mailchime.stop().await;
        api.world.config.webhooks.push(webhook(&api.world.config, "b", &hooks));
        let again = app::start(&api.world.config).await.unwrap();
        let rows = async || again.store.targets(&alice, Timestamp(0)).await.unwrap().len();
        until(async || rows().await == 4).await;
        mail(&again.store, 3).await;
        assert_eq!(heard(), (2, 3, 4));
        again.stop().await;
    })
    .await;
}

/// A web hook of the operator for all accounts.
fn webhook(config: &Config, name: &str, receiver: &WebhookReceiver) -> WebhookConfig {
    let folder = config.tls.certificates[0].certificate.parent().unwrap();
    let secret = folder.join("hook.secret");
    std::fs::write(&secret, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    let mut webhook = WebhookConfig::new(name, receiver.url("/").parse().unwrap(), secret);
    webhook.ca = Some(folder.join("ca.pem"));
    webhook
}

/// Alice's browser subscribes and proves itself. Returns it and the id.
async fn subscribed(api: &ApiWorld, service: &PushService) -> (Arc<Browser>, String) {
    let key = api.ask("GET /v1/vapid").await.json()["applicationServerKey"].clone();
    let browser = service.subscribe(key.as_str().unwrap());
    let id = api.subscribe_by("webpush", browser.to_json()).await;
    api.confirm(&id, service.next().await.json()["data"]["code"].clone()).await;
    (browser, id)
}

/// By somebody whose name and subject need RFC 2047.
const GREETINGS: &str = "From: =?utf-8?q?J=C3=BCrgen_M=C3=BCller?= <j@b.example>\r\n\
                         Subject: =?iso-8859-1?q?Gr=FC=DFe?= from\r\n =?utf-8?b?8J+Pnw==?=\r\n\r\nHi\r\n";

/// Nobody but the browser can read what a push service carries to it. One thread, which alone the log is of.
#[tokio::test]
async fn a_browser_hears_who_wrote_about_what_and_nobody_else_no_log_and_no_file_does() {
    limited(async {
        let log = Log::default();
        // While there is one subscriber alone, a thread that has none may turn a line off for all threads.
        let _second = tracing::Dispatch::new(log.subscriber(Level::TRACE));
        let _logs = tracing::subscriber::set_default(log.subscriber(Level::TRACE));
        let all = AllKinds::with(|config| config.push.preview = PreviewContent::Subject).await;
        let api = &all.api;
        api.backend.wait_until(|counters| counters.idling == 1).await;
        let (mut stream, _) = api.opened(&format!("\n{}", basic(ALICE, "secret"))).await;
        api.backend.wait_until(|counters| counters.idling == 1).await;
        api.backend.deliver(ALICE, "INBOX", GREETINGS).unwrap();
        let [told, by_fcm, by_hook] = all.new_mail().await;
        let preview = json!({
            "mailbox": "INBOX",
            "sender": "J\u{fc}rgen M\u{fc}ller",
            "subject": "Gr\u{fc}\u{df}e from \u{1f3df}",
            "messages": 1,
        });
        assert_eq!(told["data"]["preview"], preview, "{told}");
        let messages = api.backend.messages(ALICE, "INBOX").unwrap();
        assert!(messages.iter().all(|(_, flags, _)| !flags.contains(&"\\Seen".to_owned())));

        // The phone, the browser, the app and the web hook.
        until(async || log.count("push attempted") >= 4).await;
        let event = stream.event().await;
        assert_eq!(event.change(), ("INBOX", "new", 1));
        let pushes = api.world.apns.pushes();
        assert!(!pushes.is_empty());
        let mut others: Vec<_> = pushes.iter().map(|push| push.json().to_string()).collect();
        others.extend([by_fcm, by_hook, event.data].map(|told| told.to_string()));
        for told in others {
            for part in ["J\u{fc}rgen", "rgen", "M\u{fc}ller", "j@b.example", "Gr\u{fc}", "e from"]
            {
                assert!(!told.contains(part), "{part} in {told}");
            }
        }
        let kept = [log.text().into_bytes(), everything(&api.world.file(""))].concat();
        for secret in ["J\u{fc}rgen", "J=C3=BCrgen", "Gr\u{fc}\u{df}e", "Gr=FC=DFe"] {
            let found = kept.windows(secret.len()).any(|part| part == secret.as_bytes());
            assert!(!found, "{secret} is kept");
        }
    })
    .await;
}

/// What is in the files of a folder.
fn everything(folder: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(everything(&path));
        } else if let Ok(bytes) = std::fs::read(&path) {
            all.extend(bytes);
        }
    }
    all
}
