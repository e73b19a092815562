//! Who is let in, and what a login costs: as much as one by IMAP.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mailchime::net::proxy_protocol::{Addresses, header};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tracing::Level;

use super::{ALICE, ApiWorld, basic};
use crate::support::in_process::logins;
use crate::support::limited;
use crate::support::log::Log;
use crate::support::servers::dovecot::{Dovecot, Options, token};

#[tokio::test(flavor = "multi_thread")]
async fn a_password_proves_the_user_to_the_users_own_backend() {
    limited(async {
        let api = ApiWorld::start().await;
        let reply = api.ask(&format!("GET /v1/mailboxes\n{}", basic(ALICE, "secret"))).await;
        assert_eq!((reply.status, reply.json()["account"].clone()), (200, json!(ALICE)));
        assert_eq!(reply.json()["mailboxes"][0], json!({ "name": "INBOX", "role": null }));
        assert_eq!(reply.field("cache-control"), Some("no-store"));
        assert_eq!(logins(&api.backend, ALICE), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_access_token_proves_its_user_and_nobody_else_to_dovecot() {
    let test = "api::logins::an_access_token_proves_its_user_and_nobody_else_to_dovecot";
    let options = Options { tokens: true, ..Options::default() };
    let Some(dovecot) = Dovecot::start(test, &options) else { return };
    limited(async {
        let (alices, bobs) = (token("alice"), token("bob"));
        for checks_name in [false, true] {
            let api = ApiWorld::with(|config| {
                config.backend.port = dovecot.plain.port();
                config.backend.checks_token_name = checks_name;
            })
            .await;
            // Where the server is not known to check the name, its OK proves nobody.
            let good = if checks_name { 200 } else { 403 };
            for (login, token, status) in [
                ("alice", &alices, good),
                ("bob", &bobs, good),
                ("bob", &alices, 401),
                ("alice", &format!("{alices}x"), 401),
            ] {
                let fields = format!("Authorization: Bearer {token}\nMailchime-Login: {login}");
                let reply = api.ask(&format!("GET /v1/mailboxes\n{fields}")).await;
                assert_eq!(reply.status, status, "{login}: {}", reply.body);
                let account = reply.json()["account"].clone();
                assert_eq!(account == json!(login), status == 200, "{}", reply.body);
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_proves_nobody_is_answered_with_a_challenge() {
    limited(async {
        let api = ApiWorld::start().await;
        let bearer = "Bearer realm=\"mailchime\"";
        for fields in [
            String::new(),
            basic(ALICE, "wrong"),
            basic(ALICE, ""),
            "Authorization: Basic !".to_owned(),
            "Authorization: Digest x".to_owned(),
            "Authorization: Bearer x".to_owned(),
            "Cookie: __Host-mailchime=x".to_owned(),
        ] {
            let reply = api.ask(&format!("GET /v1/mailboxes\n{fields}")).await;
            assert_eq!(reply.error(), (401, "unauthorized".to_owned()), "{fields}");
            let basic = "Basic realm=\"mailchime\", charset=\"UTF-8\"";
            assert_eq!(reply.fields("www-authenticate"), [basic, bearer], "{fields}");
            assert!(!reply.body.contains("wrong"), "{}", reply.body);
        }
        // A browser would show a dialogue of its own for Basic.
        let reply = api.ask("GET /v1/mailboxes\nSec-Fetch-Mode: cors").await;
        assert_eq!(reply.fields("www-authenticate"), [bearer]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_counts_and_waits_as_one_by_imap() {
    limited(async {
        let delay = Duration::from_millis(700);
        let api = ApiWorld::with(|config| {
            config.limits.failure_delay = delay;
            config.limits.login_failures_per_minute = 2;
        })
        .await;
        let ask = format!("GET /v1/mailboxes\n{}", basic(ALICE, "wrong"));
        let began = Instant::now();
        assert_eq!(api.ask(&ask).await.status, 401);
        assert!(began.elapsed() >= delay, "{:?}", began.elapsed());
        let mut client = api.world.client().await;
        let answer = client.log_in(ALICE, "wrong").await;
        assert!(answer.starts_with("in NO"), "{answer}");
        // Both together are as many as there may be, by whichever way.
        let reply = api.ask(&ask).await;
        assert_eq!(reply.error(), (429, "too_many".to_owned()));
        assert!(reply.field("retry-after").is_some(), "{}", reply.head);
        let answer = client.log_in(ALICE, "secret").await;
        assert!(answer.starts_with("in NO [LIMIT]"), "{answer}");
    })
    .await;
}

/// One thread, which alone the log is of. What bans guessers reads these lines.
#[tokio::test]
async fn a_refused_login_makes_the_line_in_the_log_that_one_by_imap_makes() {
    limited(async {
        let log = Log::default();
        // While there is one subscriber alone, a thread that has none may turn a line off for all threads.
        let _second = tracing::Dispatch::new(log.subscriber(Level::INFO));
        let _logs = tracing::subscriber::set_default(log.subscriber(Level::INFO));
        let api = ApiWorld::with(|config| {
            config.limits.login_failures_per_minute = 3;
            config.api.proxy_protocol = vec!["127.0.0.1".parse().unwrap()];
        })
        .await;
        // A load balancer tells who asks.
        let guess = async |from: &str, request: &str| {
            let source = format!("{from}:4711").parse().unwrap();
            let balancer = header(Some(Addresses { source, destination: api.address() }));
            let mut stream = TcpStream::connect(api.address()).await.unwrap();
            stream.write_all(&balancer).await.unwrap();
            api.ask_on(api.secured(stream, &[]).await, request).await.status
        };
        // Behind the time.
        let lines = || -> Vec<String> {
            let text = log.text();
            let refused = text.lines().filter(|line| line.contains("login refused"));
            refused.map(|line| line.split_once(' ').unwrap().1.trim().to_owned()).collect()
        };
        let line = |peer: &str, account: &str| {
            format!("WARN mailchime::login: login refused peer={peer} account=\"{account}\"")
        };
        let body = json!({ "login": "mallory", "password": "guess" });
        let (wrong, post) = (basic(ALICE, "wrong"), format!("POST /v1/session\n\n{body}"));
        assert_eq!(guess("203.0.113.7", &format!("GET /v1/mailboxes\n{wrong}")).await, 401);
        assert_eq!(lines(), [line("203.0.113.7", ALICE)]);
        assert_eq!(guess("203.0.113.7", &post).await, 401);
        assert_eq!(guess("203.0.113.7", &format!("GET /v1/changes\n{wrong}")).await, 401);
        // Nobody was asked whether this one is right, and it is no line.
        assert_eq!(guess("203.0.113.7", &post).await, 429);
        assert_eq!(guess("203.0.113.8", &post).await, 401);
        let mut client = api.world.client().await;
        assert!(client.log_in(ALICE, "wrong").await.starts_with("in NO"));
        let all = [
            ("203.0.113.7", ALICE),
            ("203.0.113.7", "mallory"),
            ("203.0.113.7", ALICE),
            ("203.0.113.8", "mallory"),
            ("127.0.0.1", ALICE),
        ];
        assert_eq!(lines(), all.map(|(peer, account)| line(peer, account)));
        assert!(!log.text().contains("guess") && !log.text().contains("wrong"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_away_is_no_refusal() {
    limited(async {
        let api = ApiWorld::with(|config| config.backend.port = 1).await;
        let reply = api.ask(&format!("GET /v1/mailboxes\n{}", basic(ALICE, "secret"))).await;
        assert_eq!(reply.error(), (503, "unavailable".to_owned()));
        assert!(reply.field("retry-after").is_some(), "{}", reply.head);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_passwords_of_any_letters_arrive() {
    limited(async {
        let api = ApiWorld::start().await;
        let (login, password) = ("j\u{f6}rg \"x\"@example.org", "p\u{e4}ss:\\ \"w\u{f6}rd");
        api.backend.add_account(login, password.as_bytes());
        let reply = api.ask(&format!("GET /v1/session\n{}", basic(login, password))).await;
        assert_eq!((reply.status, reply.json()), (200, json!({ "account": login })));
        let basic = STANDARD.encode(b"alice@example.org:se\0cret");
        let reply = api.ask(&format!("GET /v1/session\nAuthorization: Basic {basic}")).await;
        assert_eq!(reply.status, 401);
    })
    .await;
}
