//! What the commands of operators show of subscriptions of each kind, and do with them.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use mailchime::app;
use mailchime::config::{AdminAddress, Config, WebhookConfig};
use mailchime::demo::apns::Answer;
use mailchime::demo::fcm::{FcmAnswer, FcmStandIn};
use mailchime::demo::push_service::{Browser, PushService, Reply};
use mailchime::demo::webhook::{ReceiverAnswer, WebhookReceiver};
use mailchime::model::{Account, Timestamp};
use serde_json::{Value, json};

use super::web_push::web_push;
use super::{ALICE, ApiWorld, basic};
use crate::admin;
use crate::support::in_process::loopback;
use crate::support::program::{Process, mailchime};
use crate::support::pushing::fcm_project;
use crate::support::servers::pki;
use crate::support::world::MAIL;
use crate::support::{limited, listener, soon, until};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

impl ApiWorld {
    /// A configuration in a file, by which commands find this mailchime and its database.
    fn write_config(&self) {
        let admin = self.world.mailchime.admin.expect("[admin] is on");
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n\
             [tls]\ncertificate = \"server.pem\"\nprivate_key = \"server.key\"\n\
             [backend]\naddress = \"{}\"\ntls = \"none\"\n\
             [admin]\naddress = \"{admin}\"\n",
            self.backend.address()
        );
        fs::write(self.world.file("proxy.toml"), text).unwrap();
    }

    /// What a command that ends well says, by words.
    async fn command(&self, arguments: &[&str]) -> Vec<Vec<String>> {
        self.command_that_ends(arguments, &[0]).await
    }

    /// What a command says that ends with one of these codes, by words.
    async fn command_that_ends(&self, arguments: &[&str], codes: &[i32]) -> Vec<Vec<String>> {
        let config = self.world.file("proxy.toml").display().to_string();
        let mut process = Process::spawn(mailchime(&[arguments, &["--config", &config]].concat()));
        let code = process.end().await.code();
        let said = &process.stdout.seen;
        let well = code.is_some_and(|code| codes.contains(&code));
        assert!(well, "{arguments:?}: {code:?} {said:?} {:?}", process.stderr.seen);
        said.iter().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    }
}

/// The words below this head of a table, row by row, in alphabetical order. No cell before it is empty or has a blank.
fn column<'a>(table: &'a [Vec<String>], head: &str) -> Vec<&'a str> {
    let place = table[0].iter().position(|word| word == head);
    let place = place.unwrap_or_else(|| panic!("no {head} in {table:?}"));
    let mut column: Vec<_> = table[1..].iter().map(|row| row[place].as_str()).collect();
    column.sort_unstable();
    column
}

/// A user who has a subscription of every kind, and what they lead to: an iPhone where there is APNs, a web hook of the
/// operator's, an app by FCM, a browser, and another one that has not confirmed its own.
pub(super) struct AllKinds {
    pub(super) api: ApiWorld,
    fcm: FcmStandIn,
    push_service: PushService,
    receiver: WebhookReceiver,
    waiting: Arc<Browser>,
}

impl AllKinds {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(super) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let push_service = PushService::start(listener().await, pki()).unwrap();
        let fcm = FcmStandIn::start(listener().await, pki()).unwrap();
        let receiver = WebhookReceiver::start(listener().await, None).unwrap();
        let api = ApiWorld::with(|config| {
            config.admin.address = Some(AdminAddress::Tcp(loopback()));
            // What is asked right behind a push finds nothing that waits for its time.
            config.push.min_interval = Duration::ZERO;
            web_push(config, &push_service);
            let folder = config.tls.certificates[0].certificate.parent().unwrap();
            config.fcm = vec![fcm_project(&fcm, folder)];
            let secret = folder.join("hook.secret");
            fs::write(&secret, SECRET).unwrap();
            let url = receiver.url("/mail").parse().unwrap();
            config.webhooks = vec![WebhookConfig::new("crm", url, secret)];
            change(config);
        })
        .await;
        api.write_config();
        let has_apns = !api.world.config.apns.is_empty();
        if has_apns {
            api.world.register((ALICE, "secret"), &["INBOX"]).await;
        }
        let key = api.ask("GET /v1/vapid").await.json()["applicationServerKey"].clone();
        let [browser, waiting] = [(); 2].map(|()| push_service.subscribe(key.as_str().unwrap()));
        let id = api.subscribe_by("webpush", browser.to_json()).await;
        api.confirm(&id, push_service.next().await.json()["data"]["code"].clone()).await;
        let app = json!({ "token": "token-a", "app": "org.example.mail" });
        let id = api.subscribe_by("fcm", app).await;
        api.confirm(&id, json!(fcm.next().await.data()["code"])).await;
        api.subscribe_by("webpush", waiting.to_json()).await;
        push_service.next().await;
        // The row of the web hook comes soon after the login.
        let store = &api.world.mailchime.store;
        let alice = Account::from_login(ALICE);
        let active = 3 + usize::from(has_apns);
        until(async || store.targets(&alice, Timestamp(0)).await.unwrap().len() == active).await;
        Self { api, fcm, push_service, receiver, waiting }
    }

    /// The next messages of new mail to the browser, the app by FCM and the web hook, as each reads them.
    pub(super) async fn new_mail(&self) -> [Value; 3] {
        let browser = async {
            loop {
                let told = self.push_service.next().await.json();
                if told["data"]["mailboxes"][0]["kind"] == "new" {
                    return told;
                }
            }
        };
        let app = async {
            loop {
                let told = self.fcm.next().await;
                if told.data().get("kind").is_some_and(|kind| kind == "new") {
                    return told.message;
                }
            }
        };
        let hook = async {
            loop {
                let told = self.receiver.next().await.json();
                if told["data"]["kind"] == "new" {
                    return told;
                }
            }
        };
        let (browser, app) = (soon("the browser", browser).await, soon("the app", app).await);
        [browser, app, soon("the web hook", hook).await]
    }

    /// What these series of `/metrics` say.
    async fn metrics(&self, name: &str, label: &str, words: &[&str]) -> Vec<f64> {
        let text = admin::get(self.api.world.mailchime.admin.unwrap(), "/metrics").await.body;
        let value = |(transport, word): (&str, &str)| -> f64 {
            let label =
                if word.is_empty() { String::new() } else { format!(",{label}=\"{word}\"") };
            let start = format!("mailchime_{name}{{transport=\"{transport}\"{label}}} ");
            let line = text.lines().find_map(|line| line.strip_prefix(&start));
            line.unwrap_or_else(|| panic!("no {start} in\n{text}")).parse().unwrap()
        };
        let all =
            KINDS.iter().flat_map(|transport| words.iter().map(move |word| (*transport, *word)));
        all.map(value).collect()
    }
}

/// The transports, in alphabetical order.
const KINDS: [&str; 4] = ["apns", "fcm", "webhook", "webpush"];

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_of_every_kind_are_shown_tried_and_removed() {
    limited(async {
        let all = AllKinds::start().await;
        let api = &all.api;
        for arguments in
            [&["subscriptions", "list"][..], &["subscriptions", "list", "--user", ALICE]]
        {
            let listed = api.command(arguments).await;
            let kinds = ["apns", "fcm", "webhook", "webpush", "webpush"];
            assert_eq!(column(&listed, "TRANSPORT"), kinds);
            let states = ["active", "active", "active", "active", "pending"];
            assert_eq!(column(&listed, "STATE"), states);
        }

        // What is pending is sent nothing.
        let tried = api.command(&["push", ALICE]).await;
        assert_eq!(column(&tried, "TRANSPORT"), KINDS);
        assert_eq!(column(&tried, "OUTCOME"), ["accepted"; 4], "{tried:?}");
        let row = tried.iter().find(|row| row[0] == "fcm").unwrap();
        assert!(row.join(" ").contains("token-a… org.example.mail accepted"), "{row:?}");
        api.world.apns.next().await;
        all.receiver.next().await;
        all.push_service.next().await;
        let message = all.fcm.next().await;
        assert_eq!((message.token(), &*message.data()["type"]), ("token-a", "mailbox.changed"));
        assert!(!message.validate_only);

        // One is pending.
        let explained = api.command_that_ends(&["push", ALICE, "--explain"], &[1]).await;
        let pending = explained.iter().filter(|line| line.join(" ").contains("it is pending"));
        assert_eq!(pending.count(), 1, "{explained:?}");
        let well = explained.iter().filter(|line| line.join(" ") == "new mail would be pushed now");
        assert_eq!(well.count(), 4, "{explained:?}");
        for transport in KINDS {
            let shown = explained.iter().any(|line| line.first().is_some_and(|it| it == transport));
            assert!(shown, "{transport} is not in {explained:?}");
        }
        let app = "fcm token-a… org.example.mail: registered";
        assert!(explained.iter().any(|line| line.join(" ").starts_with(app)), "{explained:?}");

        // Where one is refused, the others are tried all the same.
        all.fcm.answer_next(1, FcmAnswer::refuse(404, "NOT_FOUND", "UNREGISTERED"));
        let tried = api.command_that_ends(&["push", ALICE], &[1]).await;
        let outcomes = ["accepted", "accepted", "accepted", "gone"];
        assert_eq!(column(&tried, "OUTCOME"), outcomes, "{tried:?}");

        let waiting = all.waiting.endpoint();
        for (endpoint, left) in [(waiting, 4), ("token-a", 3)] {
            api.command(&["subscriptions", "remove", ALICE, "--endpoint", endpoint]).await;
            let listed = api.command(&["subscriptions", "list", "--user", ALICE]).await;
            assert_eq!(column(&listed, "STATE"), vec!["active"; left]);
        }
        let tried = api.command(&["push", ALICE]).await;
        assert_eq!(column(&tried, "TRANSPORT"), ["apns", "webhook", "webpush"]);
    })
    .await;
}

/// Nobody needs a certificate of Apple's for all the rest.
#[tokio::test(flavor = "multi_thread")]
async fn without_apns_all_other_kinds_are_shown_tried_and_told() {
    limited(async {
        let all = AllKinds::with(|config| config.apns.clear()).await;
        let api = &all.api;
        let page = api.ask("GET /").await;
        assert_eq!(page.status, 200);
        assert!(page.body.contains("app.js"), "{}", page.body);
        let cookie = api.cookie(ALICE).await;
        let of_page = api.ask(&format!("GET /v1/subscriptions\nCookie: {cookie}")).await.json();
        let of_user = of_page["subscriptions"].as_array().unwrap().iter();
        let of_user: Vec<_> = of_user.map(|it| it["transport"].as_str().unwrap()).collect();
        assert_eq!(of_user, ["webpush", "fcm", "webpush"]);

        let listed = api.command(&["subscriptions", "list"]).await;
        assert_eq!(column(&listed, "TRANSPORT"), ["fcm", "webhook", "webpush", "webpush"]);
        let tried = api.command(&["push", ALICE]).await;
        assert_eq!(column(&tried, "TRANSPORT"), KINDS[1..]);
        assert_eq!(column(&tried, "OUTCOME"), ["accepted"; 3], "{tried:?}");
        all.receiver.next().await;
        all.push_service.next().await;
        all.fcm.next().await;
        // One is pending. The last push was a moment ago, and the next may go soon.
        let explained = async {
            loop {
                let explained = api.command_that_ends(&["push", ALICE, "--explain"], &[1]).await;
                let is_well =
                    |line: &&Vec<String>| line.join(" ") == "new mail would be pushed now";
                if explained.iter().filter(is_well).count() == 3 {
                    return;
                }
            }
        };
        soon("three that would be pushed", explained).await;

        soon("a watcher in IDLE", api.backend.wait_until(|counters| counters.idling > 0)).await;
        let who = basic(ALICE, "secret");
        let (mut stream, _) = api.opened(&format!("\n{who}")).await;
        let mut socket = api.socket("", &who).await;
        assert_eq!(socket.event().await["type"], "stream.opened");
        api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        assert_eq!(stream.event().await.change(), ("INBOX", "new", 1));
        assert_eq!(socket.event().await["data"]["kind"], "new");
        all.new_mail().await;
        assert_eq!(api.world.apns.received(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_of_every_transport_move() {
    const FAILURES: [&str; 8] = [
        "bad_endpoint",
        "gone",
        "other_route",
        "refused",
        "too_large",
        "too_many",
        "unavailable",
        "unrenderable",
    ];
    limited(async {
        let mut all = AllKinds::start().await;
        let accepted =
            async |all: &AllKinds| all.metrics("pushes_total", "outcome", &["accepted"]).await;
        let before = accepted(&all).await;
        soon("a watcher in IDLE", all.api.backend.wait_until(|counters| counters.idling > 0)).await;
        all.api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        // Each gets one more, and perhaps one of what the first look has found.
        until(async || {
            let now = accepted(&all).await;
            now.iter().zip(&before).all(|(now, before)| now > before)
        })
        .await;
        assert_eq!(all.metrics("pushes_total", "outcome", &FAILURES).await, [0.0; 4 * 8]);
        until(async || {
            let measured = all.metrics("push_latency_seconds_count", "", &[""]).await;
            measured == accepted(&all).await
        })
        .await;

        // What no service takes any more.
        all.api.world.apns.answer_all(Answer::refuse(413, "PayloadTooLarge"));
        all.fcm.answer_all(FcmAnswer::error(403, "PERMISSION_DENIED", None, "API off"));
        all.receiver.answer_all(Some(ReceiverAnswer::Status(503, None)));
        all.push_service.reply_to_all(Reply::Status(429, Some(3600)));
        all.api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        let failed = ["too_large", "refused", "unavailable", "too_many"];
        until(async || {
            let now = all.metrics("pushes_total", "outcome", &failed).await;
            now.chunks(4).enumerate().all(|(kind, of_kind)| of_kind[kind] > 0.0)
        })
        .await;

        // A start counts what is stored.
        let config = all.api.world.config.clone();
        all.api.world.mailchime.stop().await;
        all.api.world.mailchime = app::start(&config).await.unwrap();
        let stored = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0];
        until(async || {
            all.metrics("subscriptions", "state", &["active", "pending"]).await == stored
        })
        .await;
    })
    .await;
}
