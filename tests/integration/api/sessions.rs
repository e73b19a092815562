//! The web app's cookie: what it opens, how it ends, and that no page of another site can use it.

use mailchime::config::PublicUrl;
use serde_json::json;

use super::paper::Paper;
use super::{ALICE, ApiWorld, basic};
use crate::support::in_process::{demo_backend, logins, plain};
use crate::support::{limited, reached};

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_opens_the_session_until_logout() {
    limited(async {
        let api = ApiWorld::start().await;
        let login = json!({ "login": ALICE, "password": "secret" });
        let reply = api.ask(&format!("POST /v1/session\n\n{login}")).await;
        assert_eq!((reply.status, reply.json()), (201, json!({ "account": ALICE })));
        let field = reply.field("set-cookie").unwrap();
        let (cookie, attributes) = field.split_once("; ").unwrap();
        assert_eq!(attributes, "Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=43200");
        assert!(cookie.starts_with("__Host-mailchime=") && cookie.len() == 17 + 43, "{cookie}");

        let show = format!("GET /v1/session\nCookie: {cookie}");
        assert_eq!(api.ask(&show).await.json(), json!({ "account": ALICE }));
        // The session knows whose it is without the backend, and shows mailboxes with it.
        assert_eq!(logins(&api.backend, ALICE), 1);
        let reply = api.ask(&format!("GET /v1/mailboxes\nCookie: {cookie}")).await;
        assert_eq!((reply.status, logins(&api.backend, ALICE)), (200, 2));

        let close = format!("DELETE /v1/session\nCookie: {cookie}\nOrigin: https://localhost");
        let reply = api.ask(&close).await;
        assert_eq!(reply.status, 204);
        assert!(reply.field("set-cookie").unwrap().contains("Max-Age=0"), "{}", reply.head);
        assert_eq!(api.ask(&show).await.error(), (401, "unauthorized".to_owned()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_site_changes_nothing() {
    limited(async {
        let api = ApiWorld::with(|config| {
            config.api.public_url = Some(PublicUrl::new("localhost", 443));
        })
        .await;
        let cookie = api.cookie(ALICE).await;
        for origin in [
            "",
            "Origin: https://evil.example",
            "Origin: https://localhost.evil.example",
            "Origin: http://localhost",
            "Origin: https://localhost:444",
            "Origin: null",
        ] {
            let close = format!("DELETE /v1/session\nCookie: {cookie}\n{origin}");
            let reply = api.ask(&close).await;
            assert_eq!(reply.error(), (403, "foreign_origin".to_owned()), "{origin}");
        }
        // Nor does it log anybody in.
        let login = json!({ "login": ALICE, "password": "secret" });
        let reply =
            api.ask(&format!("POST /v1/session\nOrigin: https://evil.example\n\n{login}")).await;
        assert_eq!(reply.error(), (403, "foreign_origin".to_owned()));
        assert!(reply.field("set-cookie").is_none(), "{}", reply.head);
        let show = format!("GET /v1/session\nCookie: {cookie}");
        assert_eq!(api.ask(&show).await.status, 200, "nothing of it has ended the session");
    })
    .await;
}

/// A browser sends the password that it remembers with what a page of any site asks for.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_site_gets_nothing_by_a_remembered_password() {
    limited(async {
        let api = ApiWorld::with(|config| config.limits.login_failures_per_minute = 1).await;
        let paper = Paper::subscribable(&api);
        let id = api.subscribed(&paper, ALICE, "well").await;
        let all = "/v1/subscriptions";
        let requests = [
            "POST /v1/session".to_owned(),
            "GET /v1/changes".to_owned(),
            format!("POST {all}"),
            format!("POST {all}/{id}/confirm"),
            format!("POST {all}/{id}/test"),
            format!("DELETE {all}/{id}"),
        ];
        api.backend.wait_until(|counters| counters.idling == 1).await;
        let logged_in = logins(&api.backend, ALICE);
        let body = json!({ "transport": "paper", "to": "evil", "code": "x" });
        for request in &requests {
            for from in [
                "Origin: https://evil.example",
                "Origin: null",
                "Sec-Fetch-Site: cross-site",
                "Sec-Fetch-Site: same-site",
                "Origin: https://localhost\nSec-Fetch-Site: cross-site",
            ] {
                for password in ["secret", "wrong"] {
                    let who = basic(ALICE, password);
                    let asked = format!("{request}\n{who}\n{from}\n\n{body}");
                    let reply = api.ask(&asked).await;
                    assert_eq!(reply.error(), (403, "foreign_origin".to_owned()), "{asked}");
                }
            }
        }
        // Nobody was logged in, and no wrong password counts.
        assert_eq!(logins(&api.backend, ALICE), logged_in);
        assert!(api.backend.counters().refused.is_empty());
        assert_eq!(api.listed(ALICE).await.len(), 1);
        assert_eq!(paper.sent("well").len(), 1, "the code alone");

        // A program, the page itself, and what a user types.
        for from in
            ["", "Origin: https://localhost\nSec-Fetch-Site: same-origin", "Sec-Fetch-Site: none"]
        {
            let test = format!("POST {all}/{id}/test\n{}\n{from}", basic(ALICE, "secret"));
            assert_eq!(api.ask(&test).await.status, 204, "{from}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_host_is_misdirected_where_the_public_url_is_known() {
    limited(async {
        let api = ApiWorld::with(|config| {
            config.api.public_url = Some(PublicUrl::new("push.example.org", 443));
        })
        .await;
        let show =
            |host: &str| format!("GET /v1/session\n{}\nHost: {host}", basic(ALICE, "secret"));
        for (host, status) in [
            ("push.example.org", 200),
            ("PUSH.example.org:443", 200),
            ("push.example.org:8443", 421),
            ("localhost", 421),
            ("push.example.org.evil.example", 421),
        ] {
            assert_eq!(api.ask(&show(host)).await.status, status, "{host}");
        }
        assert_eq!(logins(&api.backend, ALICE), 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_public_url_the_host_is_a_name_of_the_certificates_or_an_address() {
    limited(async {
        let api = ApiWorld::start().await;
        let port = api.address().port();
        for (host, status) in [
            ("localhost", 200),
            (&*format!("localhost:{port}"), 200),
            ("LOCALHOST.", 200),
            ("127.0.0.1", 200),
            ("[::1]:8443", 200),
            ("192.0.2.7", 200),
            ("push.example.org", 421),
            ("localhost.evil.example", 421),
            ("127.0.0.1.evil.example", 421),
            ("", 421),
        ] {
            let show = format!("GET /v1/session\n{}\nHost: {host}", basic(ALICE, "secret"));
            assert_eq!(api.ask(&show).await.status, status, "{host}");
        }
        assert_eq!(logins(&api.backend, ALICE), 6);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_when_the_password_is_another() {
    limited(async {
        let api = ApiWorld::start().await;
        let cookie = api.cookie(ALICE).await;
        api.backend.add_account(ALICE, b"new");
        let mailboxes = format!("GET /v1/mailboxes\nCookie: {cookie}");
        assert_eq!(api.ask(&mailboxes).await.status, 401);
        let show = format!("GET /v1/session\nCookie: {cookie}");
        assert_eq!(api.ask(&show).await.status, 401, "the cookie has ended");
    })
    .await;
}

/// A password for one mail server is no login at another, where somebody else may have the name.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_when_its_account_has_another_backend() {
    limited(async {
        let mut api = ApiWorld::start().await;
        let other = demo_backend(&[ALICE]).await;
        let cookie = api.cookie(ALICE).await;
        let requests = ["/v1/mailboxes", "/v1/subscriptions", "/v1/session"]
            .map(|path| format!("GET {path}\nCookie: {cookie}"));
        let first = api.world.config.clone();
        api.world.mailchime.reload(&first).await.unwrap();
        for request in &requests {
            assert_eq!(api.ask(request).await.status, 200, "{request}");
        }

        let mut moved = first.clone();
        moved.backend = plain(other.address());
        api.world.mailchime.reload(&moved).await.unwrap();
        for request in &requests {
            let reply = api.ask(request).await;
            assert_eq!(reply.error(), (401, "unauthorized".to_owned()), "{request}");
        }
        assert_eq!(logins(&other, ALICE), 0, "her password goes to no other server");
        let again = api.cookie(ALICE).await;
        assert_eq!(logins(&other, ALICE), 1);
        assert_eq!(api.ask(&format!("GET /v1/session\nCookie: {again}")).await.status, 200);

        // The way back does not bring the session back.
        api.world.mailchime.reload(&first).await.unwrap();
        for request in &requests {
            assert_eq!(api.ask(request).await.status, 401, "{request}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_password_that_was_accepted_since_has_a_session_proved_again() {
    limited(async {
        let api = ApiWorld::start().await;
        let phone = api.world.register((ALICE, "secret"), &["INBOX"]).await;
        // The watcher has logged in, too.
        api.backend.wait_until(|counters| counters.idling > 0).await;
        let cookie = api.cookie(ALICE).await;
        let list = format!("GET /v1/subscriptions\nCookie: {cookie}");
        let logged_in = logins(&api.backend, ALICE);
        assert_eq!(api.ask(&list).await.status, 200);
        assert_eq!(logins(&api.backend, ALICE), logged_in);
        drop(phone);
        api.backend.add_account(ALICE, b"new");
        let phone = api.world.register((ALICE, "new"), &["INBOX"]).await;
        assert_eq!(api.ask(&list).await.error(), (401, "unauthorized".to_owned()));
        drop(phone);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_request_has_a_code() {
    limited(async {
        let api = ApiWorld::with(|config| config.api.body_size = 8 * 1024).await;
        let long = json!({ "login": ALICE, "password": "x".repeat(8 * 1024) });
        for (request, status, code) in [
            ("GET /v1/nothing".to_owned(), 404, "not_found"),
            ("GET /index.html".to_owned(), 404, "not_found"),
            ("PUT /v1/session".to_owned(), 405, "method_not_allowed"),
            (
                "POST /v1/session\nContent-Type: text/plain\n\n{}".to_owned(),
                415,
                "unsupported_media_type",
            ),
            ("POST /v1/session\n\n{".to_owned(), 400, "not_json"),
            ("POST /v1/session\n\n{\"login\":\"x\"}".to_owned(), 422, "invalid"),
            ("POST /v1/session\n\n{\"login\":1,\"password\":\"x\"}".to_owned(), 422, "invalid"),
            (format!("POST /v1/session\n\n{long}"), 413, "too_large"),
        ] {
            assert_eq!(api.ask(&request).await.error(), (status, code.to_owned()), "{request}");
        }
        let reply = api.ask("POST /v1/session\n\n{\"login\":1,\"password\":\"x\"}").await;
        assert_eq!(reply.json()["field"], "login");
        assert_eq!(api.ask("PUT /v1/session").await.field("allow"), Some("POST,GET,HEAD,DELETE"));
        reached(&api.world.mailchime.counters().api.body_size, 1).await;
    })
    .await;
}
