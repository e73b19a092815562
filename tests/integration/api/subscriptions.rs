//! Subscriptions by the API: pending until their client has proved itself, each account's own, and gone at
//! once.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mailchime::config::{FcmConfig, WebhookConfig};
use mailchime::demo::fcm::FcmStandIn;
use mailchime::model::Account;
use mailchime::store::Store;
use serde_json::{Value, json};
use sqlx::{Connection, Executor, SqliteConnection};
use tokio::task::JoinSet;

use super::paper::Paper;
use super::{ALICE, ApiReply, ApiWorld, BOB, basic};
use crate::support::pushing::fcm_project;
use crate::support::servers::pki;
use crate::support::world::MAIL;
use crate::support::{later, limited, listener, until};

/// The secret of a web hook.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

impl ApiWorld {
    /// A request of a user with a password.
    pub(super) async fn of(&self, login: &str, request: &str, body: Option<Value>) -> ApiReply {
        let body = body.map(|body| format!("\n\n{body}")).unwrap_or_default();
        self.ask(&format!("{request}\n{}{body}", basic(login, "secret"))).await
    }

    async fn subscribe(&self, login: &str, to: &str) -> ApiReply {
        let body = json!({ "transport": "paper", "to": to });
        self.of(login, "POST /v1/subscriptions", Some(body)).await
    }

    /// The subscription of this user to this endpoint, confirmed; its id.
    pub(super) async fn subscribed(&self, paper: &Paper, login: &str, to: &str) -> String {
        let made = self.subscribe(login, to).await;
        self.confirmed(paper, login, to, &made).await
    }

    /// Confirms what was `made`; its id.
    async fn confirmed(&self, paper: &Paper, login: &str, to: &str, made: &ApiReply) -> String {
        assert_eq!(made.status, 201, "{}", made.body);
        let id = made.json()["id"].as_str().unwrap().to_owned();
        let confirm = format!("POST /v1/subscriptions/{id}/confirm");
        let reply = self.of(login, &confirm, Some(json!({ "code": paper.code(to) }))).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        id
    }

    pub(super) async fn listed(&self, login: &str) -> Vec<Value> {
        let reply = self.of(login, "GET /v1/subscriptions", None).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.json()["subscriptions"].as_array().unwrap().clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_counts_when_its_client_says_the_code() {
    limited(async {
        let api = ApiWorld::start().await;
        let paper = Paper::subscribable(&api);
        let made = api.subscribe(ALICE, "well").await;
        let id = made.json()["id"].as_str().unwrap().to_owned();
        assert_eq!(
            (made.status, made.json()),
            (
                201,
                json!({
                    "id": id, "state": "pending", "mailboxes": ["INBOX"], "unreadable": [], "stamp": "80c",
                    "expires_at": null,
                })
            )
        );
        let code = paper.code("well");
        assert!(!made.body.contains(&code), "the code comes by the push alone");
        let listed = api.listed(ALICE).await;
        let shown = (&listed[0]["state"], &listed[0]["endpoint"], &listed[0]["pushed_at"]);
        assert_eq!(shown, (&json!("pending"), &json!("well\u{2026}"), &Value::Null));

        let confirm = format!("POST /v1/subscriptions/{id}/confirm");
        let reply = api.of(ALICE, &confirm, Some(json!({ "code": "wrong" }))).await;
        assert_eq!(reply.error(), (403, "wrong_code".to_owned()));
        let reply = api.of(ALICE, &confirm, Some(json!({ "code": code }))).await;
        assert_eq!((reply.status, &reply.json()["state"]), (200, &json!("active")));

        // A mail from now on is pushed.
        api.backend.wait_until(|counters| counters.idling == 1).await;
        api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        until(async || paper.sent("well").last().map(String::as_str) == Some("mail INBOX")).await;

        // Made anew it goes on counting, without another code.
        let again = api.subscribe(ALICE, "well").await;
        assert_eq!((again.status, &again.json()["state"]), (200, &json!("active")));
        assert_eq!(again.json()["id"], json!(id));
        let codes = paper.sent("well").iter().filter(|text| text.starts_with("code")).count();
        assert_eq!(codes, 1);
    })
    .await;
}

/// Two projects of Firebase, one of which is of a brand's app, and the other of all other apps.
#[tokio::test(flavor = "multi_thread")]
async fn each_app_subscribes_and_hears_by_its_own_project() {
    limited(async {
        let brand = FcmStandIn::of_project(listener().await, pki(), "brand").unwrap();
        let others = FcmStandIn::of_project(listener().await, pki(), "others").unwrap();
        let api = ApiWorld::with(|config| {
            let project = |service: &FcmStandIn, apps: &[&str]| {
                let folder = config.tls.certificates[0].certificate.parent().unwrap();
                let apps = apps.iter().map(|app| (*app).to_owned()).collect();
                FcmConfig { apps, ..fcm_project(service, folder) }
            };
            config.fcm = vec![project(&brand, &["org.example.brand"]), project(&others, &[])];
        })
        .await;
        for (service, app) in [(&brand, "org.example.brand"), (&others, "org.example.mail")] {
            let body = json!({ "transport": "fcm", "app": app, "token": service.project() });
            let made = api.of(ALICE, "POST /v1/subscriptions", Some(body)).await;
            assert_eq!(made.status, 201, "{}", made.body);
            let code = service.next().await;
            assert_eq!(code.token(), service.project());
            let confirm =
                format!("POST /v1/subscriptions/{}/confirm", made.json()["id"].as_str().unwrap());
            let reply = api.of(ALICE, &confirm, Some(json!({ "code": code.data()["code"] }))).await;
            assert_eq!(reply.status, 200, "{}", reply.body);
        }
        api.backend.wait_until(|counters| counters.idling == 1).await;
        api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        for service in [&brand, &others] {
            let message = service.next().await;
            assert_eq!(message.token(), service.project());
            assert_eq!((&*message.data()["account"], &*message.data()["kind"]), (ALICE, "new"));
        }
        assert_eq!((brand.messages().len(), others.messages().len()), (2, 2));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_ends_when_its_client_wants_it_to_or_not_by_itself() {
    limited(async {
        let api = ApiWorld::start().await;
        let paper = Paper::subscribable(&api);
        api.subscribed(&paper, ALICE, "lasting").await;
        let asks =
            |expires: &str| json!({ "transport": "paper", "to": "ends", "expires": expires });
        for bad in ["2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z", "soon"] {
            let reply = api.of(ALICE, "POST /v1/subscriptions", Some(asks(bad))).await;
            assert_eq!(reply.error(), (422, "invalid".to_owned()), "{bad}");
            assert_eq!(reply.json()["field"], "expires");
        }
        let tomorrow = SystemTime::now() + Duration::from_hours(24);
        let tomorrow = humantime::format_rfc3339_seconds(tomorrow).to_string();
        let made = api.of(ALICE, "POST /v1/subscriptions", Some(asks(&tomorrow))).await;
        assert_eq!((made.status, &made.json()["expires_at"]), (201, &json!(tomorrow)));
        let listed = api.listed(ALICE).await;
        let ends: Vec<_> = listed.iter().map(|it| it["expires_at"].clone()).collect();
        assert_eq!(ends, [Value::Null, json!(tomorrow)]);
    })
    .await;
}

/// One thread, for whose time to pass.
#[tokio::test]
async fn a_subscription_that_is_over_goes_within_a_minute_and_is_pushed_no_more() {
    limited(async {
        let api = ApiWorld::start().await;
        let paper = Paper::subscribable(&api);
        let tomorrow = SystemTime::now() + Duration::from_hours(24);
        let tomorrow = humantime::format_rfc3339_seconds(tomorrow).to_string();
        for (login, to) in [(ALICE, "alice-day"), (BOB, "bob-day")] {
            let body = json!({ "transport": "paper", "to": to, "expires": tomorrow });
            let made = api.of(login, "POST /v1/subscriptions", Some(body)).await;
            api.confirmed(&paper, login, to, &made).await;
        }
        let lasting = api.subscribed(&paper, ALICE, "alice-good").await;
        api.backend.wait_until(|counters| counters.idling == 2).await;
        let mail = |login| api.backend.deliver(login, "INBOX", MAIL).unwrap();
        mail(ALICE);
        mail(BOB);
        let mails = |to: &str| paper.sent(to).iter().filter(|text| *text == "mail INBOX").count();
        until(async || ["alice-day", "bob-day", "alice-good"].iter().all(|to| mails(to) > 0)).await;

        // A minute passes, and nothing is over yet.
        later(Duration::from_secs(61)).await;
        assert_eq!((api.listed(ALICE).await.len(), api.listed(BOB).await.len()), (2, 1));
        let url = format!("sqlite://{}", api.world.file("mailchime.db").display());
        let mut beside = SqliteConnection::connect(&url).await.unwrap();
        let over = "update subscription set expires_at = 1 where expires_at is not null";
        assert_eq!(beside.execute(over).await.unwrap().rows_affected(), 2);
        later(Duration::from_secs(61)).await;
        until(async || api.listed(BOB).await.is_empty()).await;
        until(async || api.listed(ALICE).await.len() == 1).await;
        assert_eq!(api.listed(ALICE).await[0]["id"], json!(lasting));
        // He has no subscription any more, so mailchime stops watching him.
        api.backend.wait_until(|counters| counters.idling == 1).await;

        let heard = ["alice-day", "bob-day"].map(mails);
        let before = mails("alice-good");
        mail(ALICE);
        mail(BOB);
        until(async || mails("alice-good") > before).await;
        assert_eq!(["alice-day", "bob-day"].map(mails), heard);
    })
    .await;
}

/// An account has five at most that are not confirmed.
#[tokio::test(flavor = "multi_thread")]
async fn a_sixth_subscription_that_is_not_confirmed_is_too_many() {
    limited(async {
        let api = ApiWorld::start().await;
        let paper = Paper::subscribable(&api);
        let mut made = Vec::new();
        for number in 1..=5 {
            let reply = api.subscribe(ALICE, &format!("reader{number}")).await;
            assert_eq!(reply.status, 201, "{}", reply.body);
            made.push(reply);
        }
        let reply = api.subscribe(ALICE, "reader6").await;
        assert_eq!(reply.error(), (429, "too_many".to_owned()));
        assert!(reply.field("retry-after").is_some(), "{}", reply.head);
        assert!(paper.sent("reader6").is_empty(), "no code for what is not stored");
        assert_eq!(api.listed(ALICE).await.len(), 5);
        // One of the five may be made anew, and another user has five of his own.
        assert_eq!(api.subscribe(ALICE, "reader5").await.status, 201);
        assert_eq!(api.subscribe(BOB, "reader6").await.status, 201);

        // One that counts is pending no more, and neither is one that is removed.
        api.confirmed(&paper, ALICE, "reader1", &made[0]).await;
        assert_eq!(api.subscribe(ALICE, "reader6").await.status, 201);
        let remove = format!("DELETE /v1/subscriptions/{}", made[1].json()["id"].as_str().unwrap());
        assert_eq!(api.of(ALICE, &remove, None).await.status, 204);
        assert_eq!(api.subscribe(ALICE, "reader7").await.status, 201);
        let mut states: Vec<_> =
            api.listed(ALICE).await.iter().map(|it| it["state"].clone()).collect();
        states.sort_by_key(Value::to_string);
        assert_eq!(states, ["active", "pending", "pending", "pending", "pending", "pending"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_confirmed_displaces_the_oldest_and_one_that_is_pending_none() {
    limited(async {
        let api = ApiWorld::with(|config| config.push.subscriptions = 1).await;
        let paper = Paper::subscribable(&api);
        let old = api.subscribed(&paper, ALICE, "old").await;
        let of_bob = api.subscribed(&paper, BOB, "bob's").await;
        let made = api.subscribe(ALICE, "new").await;
        let states: Vec<_> = api.listed(ALICE).await.iter().map(|it| it["state"].clone()).collect();
        assert_eq!(states, ["active", "pending"]);
        let test = format!("POST /v1/subscriptions/{old}/test");
        assert_eq!(api.of(ALICE, &test, None).await.status, 204);

        let new = api.confirmed(&paper, ALICE, "new", &made).await;
        let ids = |listed: Vec<Value>| -> Vec<Value> {
            listed.iter().map(|it| it["id"].clone()).collect()
        };
        assert_eq!(ids(api.listed(ALICE).await), [json!(new)]);
        assert_eq!(ids(api.listed(BOB).await), [json!(of_bob)]);
        assert_eq!(api.of(ALICE, &test, None).await.error(), (404, "not_found".to_owned()));
        let heard = paper.sent("old").len();
        api.backend.wait_until(|counters| counters.idling == 2).await;
        api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        until(async || paper.sent("new").last().map(String::as_str) == Some("mail INBOX")).await;
        assert_eq!(paper.sent("old").len(), heard);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_sees_confirms_tries_or_removes_anothers_subscription() {
    limited(async {
        let api = ApiWorld::start().await;
        let paper = Paper::subscribable(&api);
        let made = api.subscribe(ALICE, "pending").await.json();
        let pending = made["id"].as_str().unwrap();
        let active = api.subscribed(&paper, ALICE, "well").await;
        assert!(api.listed(BOB).await.is_empty());
        let code = json!({ "code": paper.code("pending") });
        for request in [
            format!("POST /v1/subscriptions/{pending}/confirm"),
            format!("POST /v1/subscriptions/{active}/test"),
            format!("DELETE /v1/subscriptions/{active}"),
            format!("DELETE /v1/subscriptions/{pending}"),
            "DELETE /v1/subscriptions/0".to_owned(),
            "DELETE /v1/subscriptions/x".to_owned(),
        ] {
            let reply = api.of(BOB, &request, Some(code.clone())).await;
            assert_eq!(reply.error(), (404, "not_found".to_owned()), "{request}");
        }
        let states: Vec<_> = api.listed(ALICE).await.iter().map(|it| it["state"].clone()).collect();
        assert_eq!(states, ["pending", "active"]);
        assert!(!paper.sent("well").iter().any(|text| text.starts_with("mail")));
        // An endpoint that two accounts have is a subscription of each.
        assert_eq!(api.subscribe(BOB, "well").await.status, 201);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_ends_a_subscription_at_once_also_that_of_an_iphone() {
    limited(async {
        let api = ApiWorld::start().await;
        let phone = api.world.register((ALICE, "secret"), &["INBOX"]).await;
        api.backend.wait_until(|counters| counters.idling == 1).await;
        let listed = api.listed(ALICE).await;
        assert_eq!(listed[0]["transport"], json!("apns"));
        assert_eq!(listed[0]["mailboxes"], json!(["INBOX"]));
        let endpoint = listed[0]["endpoint"].as_str().unwrap();
        assert_eq!(endpoint.chars().count(), 9, "{endpoint}");
        drop(phone);

        let test = format!("POST /v1/subscriptions/{}/test", listed[0]["id"].as_str().unwrap());
        assert_eq!(api.of(ALICE, &test, None).await.status, 204);
        api.world.push_of(&["INBOX"]).await;

        let remove = format!("DELETE /v1/subscriptions/{}", listed[0]["id"].as_str().unwrap());
        assert_eq!(api.of(ALICE, &remove, None).await.status, 204);
        assert!(api.listed(ALICE).await.is_empty());
        // Nobody is left to be told, so nobody watches.
        api.backend.wait_until(|counters| counters.connections == 0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_hook_of_the_operator_is_no_subscription_of_the_user() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        fs::write(&secret, SECRET).unwrap();
        pki().write_to(folder.path()).unwrap();
        let api = ApiWorld::with(|config| {
            let url = "https://localhost:1/".parse().unwrap();
            let mut webhook = WebhookConfig::new("crm", url, secret);
            webhook.ca = Some(folder.path().join("ca.pem"));
            config.webhooks = vec![webhook];
        })
        .await;
        let paper = Paper::subscribable(&api);
        let id = api.subscribed(&paper, ALICE, "well").await;
        let store = Store::open_existing(&api.world.config.store.url, Duration::from_secs(5))
            .await
            .unwrap();
        let alice = Account::from_login(ALICE);
        let hook = loop {
            let all = store.subscriptions_of(&alice).await.unwrap();
            if let Some(hook) = all.iter().find(|it| it.subscription.is_of_operator()) {
                break hook.id;
            }
            tokio::task::yield_now().await;
        };
        let ids: Vec<_> = api.listed(ALICE).await.iter().map(|it| it["id"].clone()).collect();
        assert_eq!(ids, [json!(id)]);
        for request in [
            format!("POST /v1/subscriptions/{hook}/test"),
            format!("DELETE /v1/subscriptions/{hook}"),
        ] {
            let reply = api.of(ALICE, &request, None).await;
            assert_eq!(reply.error(), (404, "not_found".to_owned()), "{request}");
        }
        // Ten pushes a minute.
        let test = format!("POST /v1/subscriptions/{id}/test");
        for _ in 0..9 {
            assert_eq!(api.of(ALICE, &test, None).await.status, 204);
        }
        assert_eq!(api.of(ALICE, &test, None).await.error(), (429, "too_many".to_owned()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mailboxes_are_those_that_the_user_can_read() {
    limited(async {
        let api = ApiWorld::start().await;
        let paper = Paper::subscribable(&api);
        // By its name on the wire.
        api.backend.create_mailbox(ALICE, "L&AO8-sts").unwrap();
        api.backend.create_mailbox(ALICE, "Secret").unwrap();
        api.backend.deny(ALICE, "Secret", true).unwrap();
        let wanted = json!(["L\u{ef}sts", "Secret", "Bob's", "inbox"]);
        let body = json!({ "transport": "paper", "to": "well", "mailboxes": wanted });
        let made = api.of(ALICE, "POST /v1/subscriptions", Some(body)).await;
        assert_eq!(made.status, 201, "{}", made.body);
        assert_eq!(made.json()["mailboxes"], json!(["L\u{ef}sts", "INBOX"]));
        assert_eq!(made.json()["unreadable"], json!(["Secret", "Bob's"]));
        for (body, field) in [
            (
                json!({ "transport": "paper", "to": "b", "mailboxes": ["Bob's"] }),
                json!("mailboxes"),
            ),
            (json!({ "transport": "paper", "to": "b", "mailboxes": [] }), json!("mailboxes")),
            (
                json!({ "transport": "paper", "to": "b", "mailboxes": ["a\u{0}"] }),
                json!("mailboxes[0]"),
            ),
            (json!({ "transport": "paper", "to": "b", "mailboxes": [7] }), json!("mailboxes[0]")),
            (json!({ "transport": "paper" }), json!("to")),
            (json!({ "transport": "apns" }), json!("transport")),
            (json!({}), Value::Null),
            (json!([]), Value::Null),
        ] {
            let reply = api.of(ALICE, "POST /v1/subscriptions", Some(body.clone())).await;
            assert_eq!(reply.error(), (422, "invalid".to_owned()), "{body}");
            assert_eq!(reply.json()["field"], field, "{body}");
        }
        // One whose service does not know it could never be confirmed, and does not stay.
        paper.answers(410);
        assert_eq!(api.subscribe(ALICE, "gone").await.error(), (422, "invalid".to_owned()));
        paper.answers(500);
        assert_eq!(api.subscribe(ALICE, "gone").await.error(), (503, "unavailable".to_owned()));
        assert_eq!(api.listed(ALICE).await.len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_cannot_be_confirmed_goes_also_when_its_client_has_hung_up() {
    limited(async {
        let api = ApiWorld::start().await;
        let paper = Paper::subscribable(&api);
        paper.answers(410);
        let held = paper.hold().await;
        {
            let asking = api.subscribe(ALICE, "gone");
            let mut asking = std::pin::pin!(asking);
            tokio::select! {
                reply = &mut asking => panic!("{}", reply.body),
                () = paper.has(1) => {}
            }
        }
        assert_eq!(api.listed(ALICE).await.len(), 1);
        drop(held);
        until(async || api.listed(ALICE).await.is_empty()).await;
    })
    .await;
}

/// mailchime sends two pushes of a user at once, and the next one waits for ten seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_for_whose_code_there_is_no_place_is_to_come_again_later() {
    limited(async {
        let api = Arc::new(ApiWorld::start().await);
        let paper = Paper::subscribable(&api);
        let (alices, bobs) =
            (api.subscribed(&paper, ALICE, "a").await, api.subscribed(&paper, BOB, "b").await);
        let held = paper.hold().await;
        let mut trying = JoinSet::new();
        for (login, id) in [(ALICE, &alices), (ALICE, &alices), (BOB, &bobs)] {
            let (api, test) = (Arc::clone(&api), format!("POST /v1/subscriptions/{id}/test"));
            trying.spawn(async move { api.of(login, &test, None).await.status });
        }
        paper.has(2 + 3).await;
        let reply = api.subscribe(ALICE, "c").await;
        assert_eq!(reply.error(), (503, "unavailable".to_owned()));
        assert_eq!(reply.field("retry-after"), Some("60"));
        assert_eq!(api.listed(ALICE).await.len(), 1, "it could never be confirmed");
        drop(held);
        while let Some(status) = trying.join_next().await {
            assert_eq!(status.unwrap(), 204);
        }
        // Ten pushes a minute; some more may go, since the wait for a place has taken its time.
        let mut more = 0;
        while api.subscribe(ALICE, "c").await.status != 429 {
            more += 1;
            assert!(more < 10, "as many as she likes");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_subscribes_for_a_page_of_this_server_alone() {
    limited(async {
        let api = ApiWorld::start().await;
        let paper = Paper::subscribable(&api);
        let cookie = api.cookie(ALICE).await;
        let body = json!({ "transport": "paper", "to": "well" });
        let post = |origin: &str| {
            format!("POST /v1/subscriptions\nCookie: {cookie}\nOrigin: {origin}\n\n{body}")
        };
        let reply = api.ask(&post("https://evil.example")).await;
        assert_eq!(reply.error(), (403, "foreign_origin".to_owned()));
        let reply = api.ask(&post("https://localhost")).await;
        assert_eq!(reply.status, 201, "{}", reply.body);
        let id = reply.json()["id"].as_str().unwrap().to_owned();
        let confirm = format!(
            "POST /v1/subscriptions/{id}/confirm\nCookie: {cookie}\nOrigin: https://localhost\n\n{}",
            json!({ "code": paper.code("well") })
        );
        assert_eq!(api.ask(&confirm).await.status, 200);
        api.backend.wait_until(|counters| counters.idling == 1).await;
    })
    .await;
}
