//! The status page: what it says, what it does with strangers' words, and the page itself in a real browser.

use std::time::{Duration, SystemTime};

use mailchime::config::AdminAddress;
use mailchime::demo::apns::Answer as ApnsAnswer;
use mailchime::demo::backend::DemoBackend;
use mailchime::metrics::Watching;

use super::http::Server;
use super::{Answer, get};
use crate::support::browser::BrowserScript;
use crate::support::in_process::{InProcess, demo_backend, loopback};
use crate::support::servers::pki;
use crate::support::world::{MAIL, World};
use crate::support::{limited, until};

const ALICE: &str = "alice@example.org";

/// Whose pushes are refused. One of each: after a refusal mailchime waits a minute with the next push of a user.
const REFUSED: [&str; 2] = ["bob@example.org", "carol@example.org"];

/// A name that a backend may allow, and that is markup.
const HOSTILE: &str = "<img src=x onerror=alert(1)>@example.org";

const MAILBOX: &str = "x<script>alert(2)</script>";

async fn start() -> (DemoBackend, InProcess) {
    let backend = demo_backend(&[ALICE, HOSTILE, REFUSED[0], REFUSED[1]]).await;
    let world = InProcess::pushing(backend.address(), |config| {
        config.admin.address = Some(AdminAddress::Tcp(loopback()));
        config.node.name = Some("mail1".to_owned());
        // Whatever this machine allows to be open.
        config.limits.sessions = 100;
        config.limits.waiting = 100;
    });
    let world = world.await;
    backend.create_mailbox(ALICE, "Lists").unwrap();
    backend.create_mailbox(HOSTILE, MAILBOX).unwrap();
    (backend, world)
}

impl InProcess {
    async fn page(&self, target: &str) -> Answer {
        let answer = get(self.mailchime.admin.unwrap(), target).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer
    }
}

/// Most of the last pushes fail, those of [`REFUSED`]. Alice is watched alone before.
async fn refuse_most(backend: &DemoBackend, world: &InProcess) {
    for (number, user) in (2..).zip(REFUSED) {
        world.register((user, "secret"), &["INBOX"]).await;
        backend.wait_until(|counters| counters.idling == number).await;
        world.apns.answer_next(1, ApnsAnswer::refuse(403, "BadCertificate"));
        backend.deliver(user, "INBOX", MAIL).unwrap();
        world.apns.next().await;
    }
}

/// The part of the page below this heading.
fn section<'a>(page: &'a Answer, id: &str) -> &'a str {
    let (_, rest) = page.body.split_once(&format!("<h2 id=\"{id}\">")).expect(id);
    rest.split("</section>").next().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_shows_what_is_watched_and_what_became_of_the_last_pushes() {
    limited(async {
        let (backend, world) = start().await;
        let page = world.page("/").await;
        assert!(page.head.contains("content-type: text/html; charset=utf-8"), "{}", page.head);
        assert!(section(&page, "warnings").contains("Nothing needs attention"), "{}", page.body);
        assert!(section(&page, "pushes").contains("None since the start"), "{}", page.body);

        world.register((ALICE, "secret"), &["INBOX", "Lists"]).await;
        backend.wait_until(|counters| counters.idling == 1).await;
        backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        world.apns.next().await;
        until(async || section(&world.page("/").await, "pushes").contains(">accepted<")).await;
        let page = world.page("/").await;
        let row = "<bdi>apns</bdi></div></td><td data-label=\"Subscriptions\"><div>1<";
        assert!(section(&page, "subscriptions").contains(row), "{}", page.body);
        assert!(section(&page, "watching").contains("<dt>IDLE</dt><dd>1</dd>"), "{}", page.body);
        for id in ["watching", "pushes"] {
            assert!(section(&page, id).contains("<bdi>alice@example.org</bdi>"), "{}", page.body);
        }
        assert!(section(&page, "certificates").contains(&world.pki.topic), "{}", page.body);
        assert!(section(&page, "certificates").contains("server.pem"), "{}", page.body);
        assert!(section(&page, "nodes").contains("<bdi>mail1</bdi> (this one)"), "{}", page.body);
        assert!(!page.body.contains(crate::support::world::TOKEN), "{}", page.body);

        // It is the first that one reads.
        refuse_most(&backend, &world).await;
        let failed = async || {
            let page = world.page("/").await;
            section(&page, "warnings").contains("pushes by apns were not accepted")
                && section(&page, "pushes").contains("403 BadCertificate")
        };
        until(failed).await;
        world.mailchime.stop().await;
    })
    .await;
}

/// Nobody is pushed, and what the log says at the start is easily missed.
#[tokio::test(flavor = "multi_thread")]
async fn push_that_is_off_and_warnings_of_the_configuration_need_attention() {
    limited(async {
        let world = World::new().await;
        world.configure(
            "busy_timeout = \"5s\"",
            "busy_timeout = \"5s\"\n[limits]\nsessions = 1000000",
        );
        let text = std::fs::read_to_string(world.file("proxy.toml")).unwrap();
        let table = text.split("[apns]").nth(1).unwrap().split("\n[").next().unwrap();
        std::fs::write(world.file("proxy.toml"), text.replace(&format!("[apns]{table}"), ""))
            .unwrap();
        let _server = world.serve_with_admin().await;
        let page = world.get("/").await;
        let warnings = page.split("<h2 id=\"warnings\">").nth(1).unwrap();
        let warnings = warnings.split("</section>").next().unwrap();
        for part in
            ["push: push is off: no way to push is configured", "raise the limit (LimitNOFILE"]
        {
            assert!(warnings.contains(part), "{part:?} is not in {warnings}");
        }
        let said = world.command(&["health", "--ready"]).await;
        assert_eq!(said.code, 0, "{}", said.stdout);
        let line = "push: ok, but push is off: no way to push is configured";
        assert!(said.stdout.contains(line), "{}", said.stdout);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_looked_up_and_strangers_words_are_text() {
    limited(async {
        let (backend, world) = start().await;
        let page = world.page("/?user=nobody").await;
        assert!(section(&page, "account").contains("Nobody watches it"), "{}", page.body);
        world.register((HOSTILE, "secret"), &["INBOX", MAILBOX]).await;
        backend.wait_until(|counters| counters.idling == 1).await;
        let query: String = form_urlencoded::byte_serialize(HOSTILE.as_bytes()).collect();
        let page = world.page(&format!("/?user={query}")).await;
        let found = section(&page, "account");
        assert!(found.contains("watching (idle)") && found.contains("is pushed"), "{found}");
        assert!(found.contains("x&lt;script&gt;alert(2)&lt;/script&gt;"), "{found}");
        assert!(found.contains("&lt;img src=x onerror=alert(1)&gt;@example.org"), "{found}");
        for markup in ["<script", "<img src=x", "onerror=\"", "javascript:"] {
            assert!(!page.body.contains(markup), "{markup}: {}", page.body);
        }
        // What ends an attribute, and what turns the direction of writing.
        let page = world.page("/?user=%22%3E%3Cb%3E%E2%80%AEx").await;
        assert!(page.body.contains("value=\"&quot;&gt;&lt;b&gt;"), "{}", page.body);
        assert!(section(&page, "account").starts_with("Account <bdi>&quot;&gt;&lt;b&gt;x</bdi>"));
        world.mailchime.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_hundred_thousand_accounts_are_counted_and_not_listed() {
    limited(async {
        let server = Server::start().await;
        server.metrics.watchers.of(Watching::OnDemand).set(100_000);
        let page = get(server.address, "/").await;
        assert_eq!(page.status, 200);
        assert!(section(&page, "watching").contains("<dt>on demand</dt><dd>100000</dd>"));
        assert!(section(&page, "watching").contains("Too many to list"), "{}", page.body);
        assert!(page.body.len() < 50_000, "{}", page.body.len());
        assert_eq!(server.watchers_asked(), 0);
        server.metrics.watchers.of(Watching::OnDemand).set(3);
        get(server.address, "/").await;
        assert_eq!(server.watchers_asked(), 1);
    })
    .await;
}

#[tokio::test]
async fn what_needs_somebody_comes_first() {
    limited(async {
        let server = Server::start().await;
        let now = SystemTime::now();
        let day = Duration::from_secs(86_400);
        let ends =
            vec![("new.pem".to_owned(), now + 90 * day), ("old.pem".to_owned(), now - day / 2)];
        server.metrics.server_certificates(ends, 1);
        server.metrics.watch_certificates(move || vec![("topic".into(), now + 3 * day + day / 2)]);
        server.metrics.watchers.of(Watching::Parked).set(2);
        server.counters.sessions.hit();
        server.backend.store(false, std::sync::atomic::Ordering::Relaxed);
        let page = get(server.address, "/").await;
        let first = page.body.split("<h2 ").nth(1).unwrap();
        assert!(first.starts_with("id=\"warnings\""), "{}", page.body);
        let warnings = section(&page, "warnings");
        let mut at = 0;
        for warning in [
            "backend is not ready: it is gone",
            "The certificate old.pem has expired. Renew it.",
            "The certificate topic ends in less than 4 days. Renew it.",
            "cannot be read (the log says why): 1.",
            "Parked accounts, which are not watched until their users log in: 2.",
        ] {
            let found = warnings[at..].find(warning);
            at += found.unwrap_or_else(|| panic!("{warning} is not in its place in {warnings}"));
        }
        assert!(!warnings.contains("new.pem"), "{warnings}");
        let certificates = section(&page, "certificates");
        assert!(
            certificates.contains("89 days") || certificates.contains("90 days"),
            "{certificates}"
        );
        assert!(certificates.contains("has expired") && certificates.contains("3 days"));
        assert!(section(&page, "limits").contains("sessions"), "{}", page.body);
        assert!(page.body.contains("<title>(5) mailchime</title>"), "{}", page.body);
    })
    .await;
}

#[tokio::test]
async fn it_is_read_only_has_no_script_and_is_not_for_other_sites() {
    limited(async {
        let server = Server::start().await;
        let page = get(server.address, "/").await;
        let policy = "content-security-policy: default-src 'none'; style-src 'self'; img-src 'self'; \
                      form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
        assert!(page.head.contains(policy), "{}", page.head);
        for header in ["x-content-type-options: nosniff", "referrer-policy: no-referrer"] {
            assert!(page.head.contains(header), "{}", page.head);
        }
        for markup in ["<script", " style=", " onclick", "http://", "https://", "method=\"post\""] {
            assert!(!page.body.contains(markup), "{markup}: {}", page.body);
        }
        for (path, kind) in [("/status.css", "text/css"), ("/icon.svg", "image/svg+xml")] {
            let file = get(server.address, path).await;
            assert!(file.status == 200 && file.head.contains(kind), "{}", file.head);
        }
        assert_eq!(super::request(server.address, "POST", "/").await.status, 405);
        assert_eq!(get(server.address, "/?usr=alice").await.status, 400);
        let foreign = [("Sec-Fetch-Site", "cross-site")];
        let answer = super::request_with(server.address, "GET", "/", &foreign).await;
        assert_eq!(answer.status, 403);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_fits_each_width_and_is_usable_by_all() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        pki().write_to(folder.path()).unwrap();
        let test = "admin::page::the_page_fits_each_width_and_is_usable_by_all";
        let script = BrowserScript::start(test, "status.mjs", "chromium", folder.path());
        let Some(mut script) = script else { return };
        let (backend, world) = start().await;
        world.register((ALICE, "secret"), &["INBOX", "Lists"]).await;
        backend.wait_until(|counters| counters.idling == 1).await;
        backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        world.apns.next().await;
        until(async || section(&world.page("/").await, "pushes").contains(">accepted<")).await;
        // A day on which something is wrong, for the picture.
        refuse_most(&backend, &world).await;
        until(async || !section(&world.page("/").await, "warnings").contains("Nothing")).await;
        script.tell(&format!("http://localhost:{}", world.mailchime.admin.unwrap().port()));
        assert_eq!(script.next().await.as_deref(), Some("hostile"));
        world.register((HOSTILE, "secret"), &["INBOX", MAILBOX]).await;
        let query: String = form_urlencoded::byte_serialize(HOSTILE.as_bytes()).collect();
        let target = format!("/?user={query}");
        until(async || world.page(&target).await.body.contains("is pushed")).await;
        script.tell(HOSTILE);
        assert_eq!(script.next().await, None);
        world.mailchime.stop().await;
    })
    .await;
}
