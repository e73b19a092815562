//! What the commands of operators show of subscriptions of each kind, and do with them.

use std::fs;

use mailchime::config::{AdminAddress, WebhookConfig};
use mailchime::demo::push_service::PushService;
use mailchime::demo::webhook::WebhookReceiver;
use serde_json::json;

use super::web_push::web_push;
use super::{ALICE, ApiWorld};
use crate::support::in_process::loopback;
use crate::support::program::{Process, mailchime};
use crate::support::servers::pki;
use crate::support::{limited, listener};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_and_a_web_hook_are_shown_and_tried_beside_an_iphone() {
    limited(async {
        let service = PushService::start(listener().await, pki()).unwrap();
        let receiver = WebhookReceiver::start(listener().await, None).unwrap();
        let api = ApiWorld::with(|config| {
            config.admin.address = Some(AdminAddress::Tcp(loopback()));
            web_push(config, &service);
            let folder = config.tls.certificates[0].certificate.parent().unwrap();
            let secret = folder.join("hook.secret");
            fs::write(&secret, SECRET).unwrap();
            let url = receiver.url("/mail").parse().unwrap();
            config.webhooks = vec![WebhookConfig::new("crm", url, secret)];
        })
        .await;
        api.write_config();
        api.world.register((ALICE, "secret"), &["INBOX"]).await;
        let key = api.ask("GET /v1/vapid").await.json()["applicationServerKey"].clone();
        let [browser, waiting] = [(); 2].map(|()| service.subscribe(key.as_str().unwrap()));
        let mut ids = Vec::new();
        for browser in [&browser, &waiting] {
            let mut body = browser.to_json();
            body["transport"] = json!("webpush");
            let made = api.of(ALICE, "POST /v1/subscriptions", Some(body)).await;
            ids.push(made.json()["id"].as_str().unwrap().to_owned());
            if ids.len() == 1 {
                let code = service.next().await.json()["data"]["code"].clone();
                let confirm = format!("POST /v1/subscriptions/{}/confirm", ids[0]);
                let reply = api.of(ALICE, &confirm, Some(json!({ "code": code }))).await;
                assert_eq!(reply.status, 200, "{}", reply.body);
            }
        }

        // The row of the web hook comes soon after the login.
        let listed = loop {
            let listed = api.command(&["subscriptions", "list", "--user", ALICE]).await;
            if listed.len() == 5 {
                break listed;
            }
        };
        let all = ["apns", "webhook", "webpush", "webpush"];
        assert_eq!(column(&listed, "TRANSPORT"), all);
        assert_eq!(column(&listed, "STATE"), ["active", "active", "active", "pending"]);
        let listed = api.command(&["subscriptions", "list"]).await;
        assert_eq!(column(&listed, "STATE"), ["active", "active", "active", "pending"]);

        // What is pending is sent nothing.
        let tried = api.command(&["push", ALICE]).await;
        assert_eq!(column(&tried, "TRANSPORT"), ["apns", "webhook", "webpush"]);
        assert_eq!(column(&tried, "OUTCOME"), ["accepted"; 3], "{tried:?}");
        api.world.apns.next().await;
        receiver.next().await;
        // One is pending.
        let explained = api.command_that_ends(&["push", ALICE, "--explain"], &[1]).await;
        let pending = explained.iter().filter(|line| line.join(" ").contains("it is pending"));
        assert_eq!(pending.count(), 1, "{explained:?}");
        for transport in &all {
            let shown = explained.iter().any(|line| line.first().is_some_and(|it| it == transport));
            assert!(shown, "{transport} is not in {explained:?}");
        }

        let endpoint = waiting.endpoint();
        api.command(&["subscriptions", "remove", ALICE, "--endpoint", endpoint]).await;
        let listed = api.command(&["subscriptions", "list", "--user", ALICE]).await;
        assert_eq!(column(&listed, "STATE"), ["active"; 3]);
    })
    .await;
}
