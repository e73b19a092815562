//! `docs/api.yaml` says what the server does: each path, method and answer of it is asked for here, and no
//! other answer comes.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::paper::Paper;
use super::{ALICE, ApiWorld, basic};
use crate::support::limited;

const DOCUMENT: &str = include_str!("../../../docs/api.yaml");

/// What a client of a WebSocket sends with its request.
const HANDSHAKE: &str = "Connection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";

/// A path, a method, and the status of an answer.
type Documented = BTreeSet<(String, String, u16)>;

/// What the document has below `paths`, by its indentation.
fn documented() -> Documented {
    let paths =
        DOCUMENT.split("\npaths:\n").nth(1).unwrap().split("\ncomponents:\n").next().unwrap();
    let (mut path, mut method) = (String::new(), String::new());
    let mut found = BTreeSet::new();
    for line in paths.lines() {
        let key = line.trim_end_matches(':').trim();
        match line.len() - line.trim_start().len() {
            2 => path = key.to_owned(),
            4 => method = key.to_uppercase(),
            8 if key.starts_with('"') => {
                let status = key.trim_matches('"').parse().unwrap();
                found.insert((path.clone(), method.clone(), status));
            }
            _ => {}
        }
    }
    found
}

/// The requests of a world, each with the path of the document that it is of.
struct Exercise<'a> {
    api: &'a ApiWorld,
    seen: &'a mut Documented,
}

impl Exercise<'_> {
    /// Asks for `target`, which is of `path`, and looks that the answer is this one, and of the form that
    /// the document gives to errors.
    async fn ask(&mut self, path: &str, request: &str, status: u16) -> Value {
        let reply = self.api.ask(request).await;
        assert_eq!(reply.status, status, "{request}\n{}", reply.body);
        let method = request.split(' ').next().unwrap().to_owned();
        self.seen.insert((path.to_owned(), method, status));
        let body = if reply.body.is_empty() { Value::Null } else { reply.json() };
        if status >= 400 {
            let text = |key: &str| body[key].as_str().is_some_and(|text| !text.is_empty());
            assert!(text("error") && text("message"), "{request}\n{body}");
            let later = reply.field("retry-after").is_some();
            assert_eq!(later, [429, 503].contains(&status), "{request}");
            let challenge = reply.field("www-authenticate").is_some();
            assert_eq!(challenge, status == 401, "{request}");
        }
        body
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_path_and_answer_of_the_document_is_the_servers() {
    limited(async {
        let mut seen = BTreeSet::new();
        let api = ApiWorld::with(|config| config.api.body_size = 8 * 1024).await;
        well(&mut Exercise { api: &api, seen: &mut seen }).await;
        let api = ApiWorld::with(|config| {
            config.limits.login_failures_per_minute = 1;
        })
        .await;
        limits(&mut Exercise { api: &api, seen: &mut seen }).await;
        let api = ApiWorld::with(|config| {
            config.push.subscriptions_per_domain = 1;
            config.api.body_size = 8 * 1024;
        })
        .await;
        subscriptions(&mut Exercise { api: &api, seen: &mut seen }).await;
        let api = ApiWorld::with(|config| config.backend.port = 1).await;
        away(&mut Exercise { api: &api, seen: &mut seen }).await;
        assert_eq!(seen, documented());
    })
    .await;
}

/// With everything in place.
async fn well(of: &mut Exercise<'_>) {
    let (session, mailboxes) = ("/v1/session", "/v1/mailboxes");
    let right = basic(ALICE, "secret");
    of.ask(session, &format!("GET {session}\n{right}"), 200).await;
    of.ask(session, &format!("GET {session}"), 401).await;
    of.ask(session, &format!("POST {session}\n{right}"), 201).await;
    of.ask(session, &format!("POST {session}\n\n{{"), 400).await;
    of.ask(session, &format!("POST {session}\n{}", basic(ALICE, "wrong")), 401).await;
    of.ask(session, &format!("POST {session}\n{right}\nOrigin: https://evil.example"), 403).await;
    let long = json!({ "login": "x".repeat(8 * 1024) });
    of.ask(session, &format!("POST {session}\n\n{long}"), 413).await;
    of.ask(session, &format!("POST {session}\nContent-Type: text/plain\n\n{{}}"), 415).await;
    of.ask(session, &format!("POST {session}\n\n{{}}"), 422).await;
    of.ask(session, &format!("DELETE {session}\nOrigin: https://localhost"), 204).await;
    of.ask(session, &format!("DELETE {session}"), 403).await;
    let found = of.ask(mailboxes, &format!("GET {mailboxes}\n{right}"), 200).await;
    assert_eq!(found["mailboxes"][0]["name"], "INBOX");
    of.ask(mailboxes, &format!("GET {mailboxes}"), 401).await;
    let changes = "/v1/changes";
    of.ask(changes, &format!("GET {changes}"), 401).await;
    of.ask(changes, &format!("GET {changes}?mailbox=None\n{right}"), 422).await;
    of.ask(changes, &format!("GET {changes}\n{right}\nUpgrade: websocket"), 400).await;
    let foreign = format!("{HANDSHAKE}\n{right}\nOrigin: https://evil.example");
    of.ask(changes, &format!("GET {changes}\n{foreign}"), 403).await;
    // These answers have no end.
    for (fields, status) in [("", 200), (HANDSHAKE, 101)] {
        let stream = of.api.stream(&format!("\n{right}\n{fields}")).await;
        assert!(stream.head.starts_with(&format!("HTTP/1.1 {status} ")), "{}", stream.head);
        of.seen.insert((changes.to_owned(), "GET".to_owned(), status));
    }
}

/// With a transport, and room for one subscription.
async fn subscriptions(of: &mut Exercise<'_>) {
    let (key, all) = ("/v1/vapid", "/v1/subscriptions");
    let (one, confirm, test) =
        ("/v1/subscriptions/{id}", "/v1/subscriptions/{id}/confirm", "/v1/subscriptions/{id}/test");
    of.ask(key, &format!("GET {key}"), 404).await;
    let paper = Paper::subscribable(of.api);
    of.ask(key, &format!("GET {key}"), 200).await;
    let (right, cookie) = (basic(ALICE, "secret"), of.api.cookie(ALICE).await);
    let foreign = format!("Cookie: {cookie}\nOrigin: https://evil.example");

    let add = |body: Value| format!("POST {all}\n{right}\n\n{body}");
    of.ask(all, &format!("GET {all}\n{right}"), 200).await;
    of.ask(all, &format!("GET {all}"), 401).await;
    of.ask(all, &format!("POST {all}"), 401).await;
    of.ask(all, &format!("POST {all}\n{right}\n\n{{"), 400).await;
    of.ask(all, &format!("POST {all}\n{foreign}\n\n{{}}"), 403).await;
    of.ask(all, &format!("POST {all}\n{right}\nContent-Type: text/plain\n\n{{}}"), 415).await;
    of.ask(all, &add(json!({ "transport": "x".repeat(8 * 1024) })), 413).await;
    of.ask(all, &add(json!({ "transport": "none" })), 422).await;
    let mine = json!({ "transport": "paper", "to": "well" });
    let made = of.ask(all, &add(mine.clone()), 201).await;
    let id = made["id"].as_str().unwrap().to_owned();
    let other = of.ask(all, &add(json!({ "transport": "paper", "to": "other" })), 201).await;

    let at = |method: &str, what: &str, fields: &str| {
        format!("{method} {all}/{id}{what}\n{fields}\n\n{{}}")
    };
    let nowhere = format!("{all}/999999");
    of.ask(test, &at("POST", "/test", &right), 409).await;
    of.ask(test, &at("POST", "/test", ""), 401).await;
    of.ask(test, &at("POST", "/test", &foreign), 403).await;
    of.ask(test, &format!("POST {nowhere}/test\n{right}"), 404).await;
    of.ask(confirm, &at("POST", "/confirm", &right), 422).await;
    of.ask(confirm, &format!("POST {all}/{id}/confirm\n{right}\n\n{{"), 400).await;
    let long = json!({ "code": "x".repeat(8 * 1024) });
    of.ask(confirm, &format!("POST {all}/{id}/confirm\n{right}\n\n{long}"), 413).await;
    let text = format!("{right}\nContent-Type: text/plain");
    of.ask(confirm, &at("POST", "/confirm", &text), 415).await;
    of.ask(confirm, &at("POST", "/confirm", ""), 401).await;
    of.ask(confirm, &at("POST", "/confirm", &foreign), 403).await;
    let code = json!({ "code": paper.code("well") });
    of.ask(confirm, &format!("POST {nowhere}/confirm\n{right}\n\n{code}"), 404).await;
    of.ask(confirm, &format!("POST {all}/{id}/confirm\n{right}\n\n{code}"), 200).await;
    of.ask(all, &add(mine), 200).await;
    // There is room for one that counts.
    let (other, code) = (other["id"].as_str().unwrap(), json!({ "code": paper.code("other") }));
    of.ask(confirm, &format!("POST {all}/{other}/confirm\n{right}\n\n{code}"), 409).await;
    of.ask(all, &add(json!({ "transport": "paper", "to": "third" })), 409).await;
    of.ask(test, &at("POST", "/test", &right), 204).await;
    paper.answers(410);
    of.ask(test, &at("POST", "/test", &right), 422).await;
    of.ask(one, &at("DELETE", "", ""), 401).await;
    of.ask(one, &at("DELETE", "", &foreign), 403).await;
    of.ask(one, &at("DELETE", "", &right), 204).await;
    of.ask(one, &at("DELETE", "", &right), 404).await;
}

/// The paths below the subscriptions, each with its method.
const OF_SUBSCRIPTIONS: [(&str, &str); 5] = [
    ("GET", "/v1/subscriptions"),
    ("POST", "/v1/subscriptions"),
    ("DELETE", "/v1/subscriptions/{id}"),
    ("POST", "/v1/subscriptions/{id}/confirm"),
    ("POST", "/v1/subscriptions/{id}/test"),
];

/// After a wrong password, where there may be no second one.
async fn limits(of: &mut Exercise<'_>) {
    let (session, mailboxes, wrong) = ("/v1/session", "/v1/mailboxes", basic(ALICE, "wrong"));
    of.ask(session, &format!("POST {session}\n{wrong}"), 401).await;
    of.ask(session, &format!("POST {session}\n{wrong}"), 429).await;
    of.ask(mailboxes, &format!("GET {mailboxes}\n{wrong}"), 429).await;
    of.ask("/v1/changes", &format!("GET /v1/changes\n{wrong}"), 429).await;
    for (method, path) in OF_SUBSCRIPTIONS {
        of.ask(path, &format!("{method} {}\n{wrong}", path.replace("{id}", "1")), 429).await;
    }
}

/// While the backend is away.
async fn away(of: &mut Exercise<'_>) {
    let (session, mailboxes, right) = ("/v1/session", "/v1/mailboxes", basic(ALICE, "secret"));
    of.ask(session, &format!("POST {session}\n{right}"), 503).await;
    of.ask(mailboxes, &format!("GET {mailboxes}\n{right}"), 503).await;
    of.ask("/v1/changes", &format!("GET /v1/changes\n{right}"), 503).await;
    for (method, path) in OF_SUBSCRIPTIONS {
        of.ask(path, &format!("{method} {}\n{right}", path.replace("{id}", "1")), 503).await;
    }
}
