//! Web hooks of the operator, from a login to the event, with a receiver that checks each signature.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mailchime::app;
use mailchime::config::{
    self, ApnsConfig, BodyTemplate, Config, FcmConfig, WebPushConfig, WebhookConfig,
};
use mailchime::demo::backend::DemoBackend;
use mailchime::demo::webhook::{ReceivedEvent, ReceiverAnswer, WebhookReceiver};
use mailchime::model::{Account, Mailbox, Subscription, Timestamp};
use mailchime::net::guard::Guard;
use mailchime::net::resolve::NameResolver;
use mailchime::push::transport::apns::payload::mailbox_hash;
use mailchime::push::transport::enrol::Enrol;
use mailchime::push::transport::webhook::users::UserWebhooks;
use mailchime::push::transport::{Route, Routes};
use mailchime::store::Target;
use serde_json::{Value, json};

use crate::support::in_process::{InProcess, demo_backend};
use crate::support::pushing::{Disk, Running, alice};
use crate::support::servers::pki;
use crate::support::world::MAIL;
use crate::support::{LIMIT, limited, listener, soon, until};

const ALICE: &str = "alice@example.org";
const BOB: &str = "bob@example.com";
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OLD: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

async fn receiver() -> WebhookReceiver {
    WebhookReceiver::start(listener().await, Some(pki())).unwrap()
}

/// mailchime with these web hooks, and nothing else that pushes. Each signs with [`SECRET`].
async fn start(
    backend: &DemoBackend,
    webhooks: impl FnOnce(&WebhookFolder) -> Vec<WebhookConfig>,
) -> InProcess {
    InProcess::pushing(backend.address(), |config| {
        let folder = config.tls.certificates[0].certificate.parent().unwrap().to_owned();
        config.apns.clear();
        config.webhooks = webhooks(&WebhookFolder(folder));
    })
    .await
}

/// Where secrets are written to.
struct WebhookFolder(PathBuf);

impl WebhookFolder {
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn webhook(&self, name: &str, url: &str) -> WebhookConfig {
        let secret = self.write(&format!("{name}.secret"), SECRET);
        let mut webhook = WebhookConfig::new(name, url.parse().unwrap(), secret);
        webhook.ca = Some(self.0.join("ca.pem"));
        webhook
    }
}

/// The user logs in and out, and is watched after that.
async fn log_in(world: &InProcess, backend: &DemoBackend, user: &str) {
    world.session(user).await;
    soon("a watcher in IDLE", backend.wait_until(|counters| counters.idling > 0)).await;
}

/// The next event of new mail; those before it are passed over.
async fn new_mail(receiver: &WebhookReceiver) -> ReceivedEvent {
    loop {
        let event = soon("an event", receiver.next()).await;
        if event.json()["data"]["kind"] == "new" {
            return event;
        }
    }
}

async fn rows(world: &InProcess, user: &str) -> Vec<Target> {
    world.mailchime.store.targets(&Account::from_login(user), Timestamp(0)).await.unwrap()
}

fn about(event: &ReceivedEvent) -> (Value, Value) {
    let json = event.json();
    (json["data"]["account"].clone(), json["data"]["mailbox"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_web_hook_alone_each_mail_becomes_a_signed_event() {
    limited(async {
        let (backend, receiver) = (demo_backend(&[ALICE, BOB]).await, receiver().await);
        let world = start(&backend, |folder| {
            let mut webhook = folder.webhook("tickets", &receiver.url("/mail?x=1"));
            webhook.accounts = vec!["example.org".into()];
            vec![webhook]
        })
        .await;
        world.session(BOB).await;
        log_in(&world, &backend, ALICE).await;
        backend.deliver(ALICE, "INBOX", MAIL).unwrap();

        let event = new_mail(&receiver).await;
        assert_eq!((event.method.as_str(), event.path.as_str()), ("POST", "/mail?x=1"));
        assert!(event.is_signed_by(SECRET) && !event.is_signed_by(OLD), "{event:?}");
        assert_eq!(event.header("content-type"), Some("application/json"));
        assert_eq!(event.json()["type"], "mailbox.changed");
        assert_eq!(about(&event), (json!(ALICE), json!("INBOX")));
        let text = String::from_utf8_lossy(&event.body).into_owned();
        assert!(!text.contains("hello") && !text.contains("Subject"), "{text}");

        assert_eq!(rows(&world, ALICE).await.len(), 1);
        assert!(rows(&world, BOB).await.is_empty(), "the web hook is not for bob");
        world.mailchime.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_fails_comes_again_with_its_id_and_one_that_was_due_comes_after_a_restart() {
    limited(async {
        let (backend, receiver) = (demo_backend(&[ALICE]).await, receiver().await);
        let world = start(&backend, |folder| vec![folder.webhook("a", &receiver.url("/"))]).await;
        log_in(&world, &backend, ALICE).await;
        receiver.answer_all(Some(ReceiverAnswer::Status(503, None)));
        backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        let first = new_mail(&receiver).await;
        let second = new_mail(&receiver).await;
        let id = |event: &ReceivedEvent| event.header("webhook-id").unwrap().to_owned();
        assert_eq!(id(&first), id(&second));
        assert!(id(&first).starts_with("msg_") && !id(&first).contains('.'));
        assert!(second.is_signed_by(SECRET));

        world.mailchime.stop().await;
        receiver.answer_all(None);
        let again = app::start(&world.config).await.unwrap();
        // One more may have failed before the stop.
        let accepted = loop {
            let event = new_mail(&receiver).await;
            if event.status == Some(204) {
                break event;
            }
        };
        assert_eq!(about(&accepted), (json!(ALICE), json!("INBOX")));
        again.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_secrets_sign_while_one_is_replaced_and_a_token_is_sent() {
    limited(async {
        let (backend, receiver) = (demo_backend(&[ALICE]).await, receiver().await);
        let world = start(&backend, |folder| {
            let mut webhook = folder.webhook("a", &receiver.url("/"));
            webhook.secret_file = Some(folder.write("two", &format!("{SECRET}\n\n{OLD}\n")));
            webhook.token_file = Some(folder.write("token", "tk_abc\nnot this\n"));
            vec![webhook]
        })
        .await;
        log_in(&world, &backend, ALICE).await;
        backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        let event = new_mail(&receiver).await;
        assert!(event.is_signed_by(SECRET) && event.is_signed_by(OLD));
        assert_eq!(event.header("authorization"), Some("Bearer tk_abc"));
        world.mailchime.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_replaced_by_reloads_and_a_file_with_none_changes_nothing() {
    limited(async {
        let (backend, receiver) = (demo_backend(&[ALICE]).await, receiver().await);
        let mut world = start(&backend, |folder| {
            let mut webhook = folder.webhook("a", &receiver.url("/"));
            webhook.secret_file = Some(folder.write("hook.secret", OLD));
            vec![webhook]
        })
        .await;
        log_in(&world, &backend, ALICE).await;
        let (config, file) = (world.config.clone(), world.file("hook.secret"));
        for (secrets, signed) in [
            (OLD, [false, true]),
            (&*format!("{SECRET}\n{OLD}\n"), [true, true]),
            (SECRET, [true, false]),
            ("whsec_short\n", [true, false]),
        ] {
            std::fs::write(&file, secrets).unwrap();
            let reloaded = world.mailchime.reload(&config).await.map_err(|error| error.to_string());
            assert_eq!(reloaded.is_ok(), !secrets.contains("short"), "{reloaded:?}");
            backend.deliver(ALICE, "INBOX", MAIL).unwrap();
            let event = new_mail(&receiver).await;
            let by = [SECRET, OLD].map(|secret| event.is_signed_by(secret));
            assert_eq!(by, signed, "{secrets}");
        }
        world.mailchime.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_hangs_or_is_no_longer_wanted_holds_up_no_other() {
    limited(async {
        let backend = demo_backend(&[ALICE]).await;
        let (hanging, well) = (receiver().await, receiver().await);
        hanging.answer_all(Some(ReceiverAnswer::Hang));
        let mut world = start(&backend, |folder| {
            ["hanging", "well"]
                .map(|name| {
                    let to = if name == "well" { &well } else { &hanging };
                    let mut webhook = folder.webhook(name, &to.url("/"));
                    // Longer than the test.
                    webhook.timeout = 4 * LIMIT;
                    webhook
                })
                .into()
        })
        .await;
        log_in(&world, &backend, ALICE).await;
        until(async || rows(&world, ALICE).await.len() >= 2).await;
        backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        new_mail(&well).await;
        soon("an event for the one that hangs", hanging.next()).await;
        for _ in 0..3 {
            backend.deliver(ALICE, "INBOX", MAIL).unwrap();
            new_mail(&well).await;
        }
        assert_eq!(hanging.events().len(), 1, "one is under way, and nothing answers it");
        world.mailchime.stop().await;

        // Taken out of the configuration, it hears no more.
        world.config.webhooks.remove(0);
        let again = app::start(&world.config).await.unwrap();
        let store = again.store.clone();
        let alice = Account::from_login(ALICE);
        until(async || store.targets(&alice, Timestamp(0)).await.unwrap().len() <= 1).await;
        backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        new_mail(&well).await;
        again.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_hook_hears_of_the_mailboxes_that_a_phone_has_registered() {
    limited(async {
        let backend = demo_backend(&[ALICE]).await;
        backend.create_mailbox(ALICE, "Notes").unwrap();
        let receiver = receiver().await;
        let world = InProcess::pushing(backend.address(), |config| {
            let folder = config.tls.certificates[0].certificate.parent().unwrap().to_owned();
            config.webhooks = vec![WebhookFolder(folder).webhook("a", &receiver.url("/"))];
            // Mailboxes other than INBOX are asked for so often.
            config.watch.poll_interval = Duration::from_secs(1);
        })
        .await;
        world.register((ALICE, "secret"), &["INBOX", "Notes"]).await;
        let has_both = |targets: &[Target]| targets.iter().all(|it| it.mailboxes.len() == 2);
        until(async || {
            let rows = rows(&world, ALICE).await;
            rows.len() == 2 && has_both(&rows)
        })
        .await;
        soon("a watcher in IDLE", backend.wait_until(|counters| counters.idling > 0)).await;
        backend.deliver(ALICE, "Notes", MAIL).unwrap();
        while about(&soon("an event", receiver.next()).await) != (json!(ALICE), json!("Notes")) {}
        // It may name INBOX, too: the first look at it may come then.
        let notes = mailbox_hash(&Mailbox::new("Notes"));
        loop {
            let push = soon("a push", world.apns.next()).await.json();
            let named = push["aps"]["m"].as_array().is_some_and(|m| m.contains(&json!(notes)));
            if named {
                break;
            }
        }
        world.mailchime.stop().await;
    })
    .await;
}

/// The route of users' web hooks, to which private addresses are allowed or not, and alice's subscription for
/// `url` with the secret that she learns.
fn of_a_user(url: &str, private: bool) -> (Route, Subscription, String) {
    let port = url.parse::<hyper::Uri>().unwrap().port_u16().unwrap();
    let hosts = [format!("localhost:{port}").parse().unwrap()];
    let private: &[_] =
        if private { &["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()] } else { &[] };
    let users = UserWebhooks::new(Guard::new(&hosts, private));
    let enrolled = users.enrol(&alice(), &json!({ "url": url })).unwrap();
    let folder = tempfile::tempdir().unwrap();
    pki().write_to(folder.path()).unwrap();
    let ca = folder.path().join("ca.pem");
    let route = users.route(Some(&ca), &NameResolver::default()).unwrap();
    (route, enrolled.subscription, enrolled.answer["secret"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_users_web_hook_gets_a_code_and_then_events_until_it_says_that_it_is_gone() {
    limited(async {
        let receiver = receiver().await;
        let (route, subscription, secret) = of_a_user(&receiver.url("/mail"), true);
        let verdict = route.verify(&subscription, "code-1", Timestamp::now()).await;
        assert_eq!(verdict.name(), "accepted");
        let event = soon("an event", receiver.next()).await;
        assert!(event.is_signed_by(&secret), "{event:?}");
        let expected = (json!("subscription.verify"), json!({ "code": "code-1" }));
        assert_eq!((event.json()["type"].clone(), event.json()["data"].clone()), expected);

        let disk = Disk::with(std::slice::from_ref(&subscription)).await;
        let routes = Routes::default();
        routes.publish(&subscription.transport, [(Arc::clone(&subscription.route), route)]);
        let mut running = Running::over(&disk, &routes, config::PushConfig::default());
        running.mail("INBOX", 2).await;
        let event = soon("an event", receiver.next()).await;
        assert!(event.is_signed_by(&secret), "the secret comes back from the database");
        assert_eq!(event.json()["data"]["uidnext"], 2);
        receiver.answer_all(Some(ReceiverAnswer::Status(410, None)));
        running.mail("INBOX", 3).await;
        soon("an event", receiver.next()).await;
        until(async || disk.store.targets(&alice(), Timestamp(0)).await.unwrap().is_empty()).await;
        running.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_users_web_hook_reaches_no_private_address_whatever_its_name_says() {
    limited(async {
        let receiver = receiver().await;
        let (route, subscription, _) = of_a_user(&receiver.url("/"), false);
        let verdict = route.verify(&subscription, "code-1", Timestamp::now()).await;
        let why = verdict.detail().unwrap_or_default();
        assert!(why.contains("no public address"), "{verdict:?}");
        assert!(receiver.events().is_empty());
    })
    .await;
}

/// What a service documents of the requests that it takes: 200, or what it answers to others.
type Service = fn(&ReceivedEvent) -> u16;

/// ntfy, "Publishing": the body is the message, the path the topic; access tokens are bearer tokens that
/// begin with `tk_`. <https://docs.ntfy.sh/publish/>
fn ntfy(request: &ReceivedEvent) -> u16 {
    let token = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let topic = request.path.strip_prefix('/').unwrap_or_default();
    let is_text = request.header("content-type").is_some_and(|kind| kind.starts_with("text/plain"));
    match () {
        () if !token.is_some_and(|token| token.starts_with("tk_")) => 401,
        () if topic.is_empty() || topic.contains('/') || !is_text => 400,
        () if request.body.is_empty() || request.body.len() > 4096 => 400,
        () => 200,
    }
}

/// Gotify, `POST /message`: JSON with `message`, and maybe `title` and a whole `priority`; the token of an
/// application as `X-Gotify-Key` or as bearer token. <https://gotify.net/api-docs>
fn gotify(request: &ReceivedEvent) -> u16 {
    let json = request.json();
    let priority = &json["priority"];
    match () {
        () if request.path != "/message" => 404,
        () if request.header("authorization") != Some("Bearer AbCdEf123") => 401,
        () if request.header("content-type") != Some("application/json") => 400,
        () if json["message"].as_str().is_none_or(str::is_empty) => 400,
        () if !(priority.is_null() || priority.is_i64()) => 400,
        () => 200,
    }
}

/// Home Assistant, webhook triggers: `POST /api/webhook/ID`, JSON if `content-type` says so; who knows
/// the ID may. <https://www.home-assistant.io/docs/automation/trigger/#webhook-trigger>
fn home_assistant(request: &ReceivedEvent) -> u16 {
    let is_json = request.header("content-type") == Some("application/json");
    match request.path.as_str() {
        "/api/webhook/mail-a1b2c3" if is_json && request.json().is_object() => 200,
        "/api/webhook/mail-a1b2c3" => 400,
        _ => 404,
    }
}

/// The examples of `docs/webhooks.md`, as they stand there.
#[tokio::test(flavor = "multi_thread")]
async fn the_examples_of_the_documentation_are_what_their_services_take() {
    const DOCS: &str = include_str!("../../../docs/webhooks.md");
    let services: [(&str, Service, &str, &str); 3] = [
        (
            "https://ntfy.example.org/mail",
            ntfy,
            "tk_AgQdq7mVBoFD37zQVN29RhuMzNIz2",
            "New mail in INBOX of alice@example.org",
        ),
        (
            "https://gotify.example.org/message",
            gotify,
            "AbCdEf123",
            r#"{"message":"New mail in INBOX","priority":5,"title":"alice@example.org"}"#,
        ),
        (
            "http://127.0.0.1:8123/api/webhook/mail-a1b2c3",
            home_assistant,
            "",
            r#"{"account":"alice@example.org","mailbox":"INBOX"}"#,
        ),
    ];
    limited(async move {
        for (url, service, token, body) in services {
            let table = DOCS.split("```toml\n").find(|block| block.contains(&format!("\"{url}\"")));
            let table = table.unwrap_or_else(|| panic!("no example with {url}"));
            let table: toml::Table = table.split("```").next().unwrap().parse().unwrap();
            let table = table["webhook"][0].as_table().unwrap();
            let template = table["template"].as_str().unwrap();
            assert_eq!(table.contains_key("token_file"), !token.is_empty(), "{url}");

            let backend = demo_backend(&[ALICE]).await;
            let tls = url.starts_with("https").then(pki);
            let answer =
                move |request: &ReceivedEvent| ReceiverAnswer::Status(service(request), None);
            let receiver =
                Arc::new(WebhookReceiver::deciding(listener().await, tls, answer).unwrap());
            let path = &url[url.match_indices('/').nth(2).unwrap().0..];
            let world = start(&backend, |folder| {
                let mut webhook = folder.webhook("a", &receiver.url(path));
                webhook.secret_file = None;
                webhook.template = Some(BodyTemplate::parse(template).unwrap());
                let file = (!token.is_empty()).then(|| folder.write("token", token));
                webhook.token_file = file;
                vec![webhook]
            })
            .await;
            log_in(&world, &backend, ALICE).await;
            backend.deliver(ALICE, "INBOX", MAIL).unwrap();
            let event = soon("a notification", receiver.next()).await;
            assert_eq!((event.status, &*String::from_utf8_lossy(&event.body)), (Some(200), body));
            assert!(event.header("webhook-signature").is_none());
            world.mailchime.stop().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_adds_a_web_hook_and_takes_it_away_and_one_that_fails_changes_nothing() {
    limited(async {
        let (backend, receiver) = (demo_backend(&[ALICE]).await, receiver().await);
        let mut world = start(&backend, |_| Vec::new()).await;
        let mut config = world.config.clone();
        let folder = config.tls.certificates[0].certificate.parent().unwrap().to_owned();
        let folder = WebhookFolder(folder);
        config.webhooks = vec![folder.webhook("a", &receiver.url("/"))];
        world.mailchime.reload(&config).await.unwrap();
        log_in(&world, &backend, ALICE).await;
        backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        new_mail(&receiver).await;

        let mut broken = config.clone();
        broken.webhooks.clear();
        let key = folder.0.join("vapid.key");
        broken.web_push = Some(WebPushConfig::new(&key, "mailto:a@example.org"));
        let missing = folder.0.join("missing.pem");
        for (key, change) in [
            (
                "[[fcm]]",
                &(|config: &mut Config| config.fcm = vec![FcmConfig::new(&missing)])
                    as &dyn Fn(&mut Config),
            ),
            ("[apns]", &|config: &mut Config| {
                config.apns = vec![ApnsConfig::new(&missing, &missing)]
            }),
        ] {
            let mut broken = broken.clone();
            change(&mut broken);
            let error = world.mailchime.reload(&broken).await.unwrap_err().to_string();
            assert!(error.starts_with(key), "{error}");
        }
        assert!(!key.exists(), "a key that nothing uses");
        backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        new_mail(&receiver).await;

        config.webhooks.clear();
        world.mailchime.reload(&config).await.unwrap();
        // A watcher that looks for new mail is in no IDLE either.
        soon("the end of watching", backend.wait_until(|counters| counters.connections == 0)).await;
        assert!(rows(&world, ALICE).await.is_empty());
        world.mailchime.stop().await;
    })
    .await;
}
