//! Web Push: from a watcher's change to the message that a browser reads, over real sockets, and each answer
//! of a push service.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use mailchime::config::{self, HostPattern, ProxyConfig, WebPushConfig};
use mailchime::demo::push_service::{Browser, PushService, Reply};
use mailchime::model::{ChangeKind, Snapshot, Subscription};
use mailchime::net::guard::Guard;
use mailchime::net::resolve::{NameResolver, Sources};
use mailchime::push::transport::enrol::Enrol;
use mailchime::push::transport::webpush::vapid::VapidKey;
use mailchime::push::transport::webpush::{self, WebPush};
use mailchime::push::transport::{Routes, Verdict};
use mailchime::store::Target;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::tunnel::proxy;
use crate::support::pushing::{Disk, EVER, Running, alice, rows};
use crate::support::servers::pki;
use crate::support::{LIMIT, limited, listener, soon, until};

/// mailchime's side: a key, and the way out.
pub(super) struct Site {
    _folder: TempDir,
    config: WebPushConfig,
    pub(super) web_push: WebPush,
    pub(super) routes: Routes,
}

impl Site {
    /// Sends to these services, though they are not public.
    pub(super) fn to(services: &[&PushService]) -> Self {
        let hosts = services.iter().map(|service| service.address().port());
        Self::with(&hosts.collect::<Vec<_>>(), &NameResolver::default(), |_| {})
    }

    /// Sends to these ports of loopback, after `change` to the configuration.
    pub(super) fn with(
        ports: &[u16],
        resolver: &NameResolver,
        change: impl FnOnce(&mut WebPushConfig),
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        pki().write_to(folder.path()).unwrap();
        let file = |name| folder.path().join(name);
        let mut config = WebPushConfig::new(file("vapid.key"), "mailto:admin@example.org");
        config.hosts = ports.iter().map(|port| host(&format!("localhost:{port}"))).collect();
        config.allow_private = vec!["127.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()];
        config.ca = Some(file("ca.pem"));
        change(&mut config);
        let (key, _) = VapidKey::open(&config.key_file, &config.contact).unwrap();
        let guard = Guard::new(&config.hosts, &config.allow_private);
        let web_push = WebPush::new(Arc::new(key), Arc::new(guard));
        let routes = Routes::default();
        let route = webpush::route(&web_push, &config, resolver).unwrap();
        routes.publish(&webpush::transport(), [route]);
        Self { _folder: folder, config, web_push, routes }
    }

    pub(super) fn browser(&self, service: &PushService) -> (Arc<Browser>, Subscription) {
        let browser = service.subscribe(self.web_push.public_key());
        let enrolled = self.web_push.enrol(&alice(), &browser.to_json()).unwrap();
        (browser, enrolled.subscription)
    }

    pub(super) async fn verify(&self, subscription: &Subscription) -> Verdict {
        self.routes.verify(subscription, "7f3a").await
    }
}

fn host(text: &str) -> HostPattern {
    text.parse().unwrap()
}

async fn service() -> PushService {
    PushService::start(listener().await, pki()).unwrap()
}

fn why(verdict: Verdict) -> String {
    verdict.detail().unwrap_or_else(|| panic!("{verdict:?}")).to_owned()
}

#[tokio::test]
async fn a_browser_reads_what_has_changed_and_its_push_service_nothing() {
    limited(async {
        let service = service().await;
        let site = Site::to(&[&service]);
        let (_browser, alices) = site.browser(&service);
        let disk = Disk::with(std::slice::from_ref(&alices)).await;
        let mut running = Running::over(&disk, &site.routes, config::PushConfig::default());
        let state = Snapshot {
            uid_validity: Some(7),
            uid_next: Some(2),
            messages: Some(5),
            unseen: Some(1),
            highest_mod_seq: None,
        };
        running.changed("INBOX", ChangeKind::NewMail, Some(state)).await;
        let message = service.next().await;
        running.end().await;

        assert_eq!((message.status, message.is_http2), (Some(201), true));
        let read = message.json();
        assert_eq!(read["type"], "mailbox.changed");
        let expected = json!({
            "account": "alice@example.org",
            "mailboxes": [{
                "mailbox": "INBOX",
                "kind": "new",
                "uidvalidity": 7,
                "uidnext": 2,
                "messages": 5,
                "unseen": 1,
            }],
        });
        assert_eq!(read["data"], expected);
        assert_eq!(
            (message.header("urgency"), message.header("ttl")),
            (Some("high"), Some("86400"))
        );
        let seen = format!("{:?} {}", message.headers, message.path);
        assert!(!seen.contains("alice") && !seen.contains("INBOX"), "{seen}");
        assert_eq!(disk.told().await, rows(2, 1));
        assert_eq!(disk.owed().await, <[String; 0]>::default());
    })
    .await;
}

/// The table of what push services answer, in both versions of HTTP.
#[tokio::test]
async fn each_answer_of_a_push_service_moves_or_marks_or_removes() {
    limited(async {
        for http1 in [false, true] {
            let service = match http1 {
                true => PushService::start_http1(listener().await, pki()).unwrap(),
                false => service().await,
            };
            let elsewhere = self::service().await;
            let site = Site::to(&[&service, &elsewhere]);
            let later = Some(3600);
            let away = format!("{}/push/1", elsewhere.origin());
            let answers = [
                ("201", Reply::Created),
                ("200", Reply::Status(200, None)),
                ("202", Reply::Status(202, None)),
                ("204", Reply::Status(204, None)),
                ("endless 201", Reply::Endless(201)),
                ("404", Reply::Status(404, None)),
                ("410", Reply::Status(410, None)),
                ("400", Reply::Status(400, None)),
                ("401", Reply::Status(401, None)),
                ("403", Reply::Status(403, None)),
                ("413", Reply::Status(413, None)),
                ("429", Reply::Status(429, later)),
                ("307", Reply::Redirect(away)),
                ("500", Reply::Status(500, None)),
                ("503", Reply::Status(503, later)),
                ("endless 500", Reply::Endless(500)),
            ];
            let keeps_owed =
                ["400", "401", "403", "413", "429", "307", "500", "503", "endless 500"];
            for (name, reply) in answers {
                // Beside one that is well: where each is unknown, it may be the service.
                let (browser, subscription) = site.browser(&service);
                let (_other, well) = site.browser(&service);
                let disk = Disk::with(&[subscription.clone(), well]).await;
                let push = config::PushConfig::default();
                let mut running = Running::over(&disk, &site.routes, push);
                let before = service.received();
                running.mail("INBOX", 2).await;
                service.wait_for(before + 2).await;
                service.reply_to(&browser, reply);
                running.mail("Notes", 2).await;
                service.wait_for(before + 4).await;
                running.end().await;
                let targets = disk.store.targets(&alice(), EVER).await.unwrap();
                let is_it =
                    |target: &&Target| target.subscription.endpoint == subscription.endpoint;
                let left = targets.iter().find(is_it);
                assert_eq!(left.is_none(), ["404", "410"].contains(&name), "{name}");
                let owed = left.is_some_and(|it| it.mailboxes.iter().any(|(_, owed)| *owed));
                assert_eq!(owed, keeps_owed.contains(&name), "{name}");
            }
            assert_eq!(elsewhere.received(), 0, "a redirect is not followed");
        }
    })
    .await;
}

#[tokio::test]
async fn what_a_push_service_finds_too_large_goes_in_short_and_rests_where_that_is_too_large() {
    limited(async {
        let service = service().await;
        let site = Site::to(&[&service]);
        let (browser, alices) = site.browser(&service);
        service.reply_to(&browser, Reply::UpTo(1000));
        assert_eq!(site.verify(&alices).await.name(), "accepted");
        let code = [service.next().await, service.next().await];
        let disk = Disk::with(std::slice::from_ref(&alices)).await;
        let mut running = Running::over(&disk, &site.routes, config::PushConfig::default());
        running.mail("INBOX", 2).await;
        let notice = [service.next().await, service.next().await];
        for [long, short] in [&code, &notice] {
            assert_eq!((long.status, short.status), (Some(413), Some(201)));
            assert!(long.size > 2048 && short.size < 700, "{} {}", long.size, short.size);
        }
        assert_eq!(code[1].size, notice[1].size, "nobody sees which it is");
        assert_eq!(notice[1].header("topic"), notice[0].header("topic"));
        assert_eq!(notice[1].json()["data"]["mailboxes"][0]["mailbox"], "INBOX");
        until(async || disk.told().await == rows(2, 1)).await;
        assert_eq!(disk.owed().await, <[String; 0]>::default());

        service.reply_to(&browser, Reply::UpTo(0));
        running.mail("INBOX", 3).await;
        until(async || disk.told().await == rows(3, 1)).await;
        assert_eq!(disk.owed().await, ["ht INBOX"]);
        assert_eq!(service.received(), 6);
        let explained = running.inquirer.explain(alice(), None).await.unwrap().unwrap();
        let said: Vec<_> = explained[0].reasons.iter().map(ToString::to_string).collect();
        assert!(said[0].contains("rejected its last push (too-large); it rests"), "{said:?}");
        assert_eq!(explained[0].due_in, None);
        running.end().await;
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_that_expires_is_removed_and_one_of_another_key_is_kept() {
    limited(async {
        let service = service().await;
        let site = Site::to(&[&service]);
        let (browser, subscription) = site.browser(&service);
        assert!(matches!(site.verify(&subscription).await, Verdict::Accepted { .. }));
        let message = service.next().await.json();
        assert_eq!(message["type"], "subscription.verify");
        assert_eq!(message["data"], json!({ "code": "7f3a" }));
        service.expire(&browser);
        assert_eq!(site.verify(&subscription).await, Verdict::Gone { since: None });

        let other = Site::to(&[&service]);
        let stranger = service.subscribe(other.web_push.public_key());
        let with_our_key = site.web_push.enrol(&alice(), &stranger.to_json()).unwrap().subscription;
        let why = why(site.verify(&with_our_key).await);
        assert!(why.contains("403") && why.contains("VapidPkHashMismatch"), "{why}");
        let theirs = other.web_push.enrol(&alice(), &stranger.to_json()).unwrap().subscription;
        assert_ne!(theirs.route, with_our_key.route);
        assert!(matches!(site.verify(&theirs).await, Verdict::RouteClosed { .. }));
        assert!(matches!(other.verify(&theirs).await, Verdict::Accepted { .. }));
    })
    .await;
}

/// Whatever its browsers are, and however many. That it delays no other transport either is in `transports`.
#[tokio::test]
async fn a_push_service_that_hangs_delays_no_other() {
    limited(async {
        let (hanging, well) = (service().await, service().await);
        let ports = [&hanging, &well].map(|service| service.address().port());
        let site = Site::with(&ports, &NameResolver::default(), |config| {
            // Longer than the test.
            config.request_timeout = 4 * LIMIT;
        });
        hanging.reply_to_all(Reply::Hang);
        let mut all: Vec<_> = (0..20).map(|_| site.browser(&hanging).1).collect();
        let (_browser, alices) = site.browser(&well);
        all.push(alices);
        let disk = Disk::with(&all).await;
        let mut running = Running::over(&disk, &site.routes, config::PushConfig::default());
        running.mail("INBOX", 2).await;
        soon("a message for the one that hangs", hanging.wait_for(1)).await;
        assert_eq!(soon("a message", well.next()).await.status, Some(201));
        running.mail("Notes", 2).await;
        let second = soon("a message", well.next()).await.json();
        assert_eq!(second["data"]["mailboxes"][0]["mailbox"], "Notes");
        hanging.refuse().await;
        hanging.drop_connections();
        running.end().await;
        assert_eq!(disk.owed().await.iter().filter(|owed| owed.ends_with("INBOX")).count(), 20);
    })
    .await;
}

/// A name that leads to an address that is allowed when its browser subscribes, and to another one later.
#[tokio::test]
async fn a_name_that_is_bound_anew_leads_to_no_private_address() {
    limited(async {
        // One port of both addresses.
        let (allowed, private, port) = loop {
            let allowed = TcpListener::bind("127.0.0.2:0").await.unwrap();
            let port = allowed.local_addr().unwrap().port();
            if let Ok(private) = TcpListener::bind(("127.0.0.1", port)).await {
                break (allowed, private, port);
            }
        };
        let allowed = PushService::start(allowed, pki()).unwrap();
        let private = PushService::start(private, pki()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let hosts = folder.path().join("hosts");
        fs::write(&hosts, "127.0.0.2 localhost\n").unwrap();
        let sources = Sources { hosts: hosts.clone(), ..Sources::default() };
        let resolver = NameResolver::with_sources(sources, 10, Arc::default());
        let site = Site::with(&[port], &resolver, |config| {
            config.allow_private = vec!["127.0.0.2".parse().unwrap()];
        });
        let (_browser, subscription) = site.browser(&allowed);
        assert!(matches!(site.verify(&subscription).await, Verdict::Accepted { .. }));

        allowed.drop_connections();
        for address in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.0.1"] {
            // Another length, so that the change is seen whatever the time is.
            fs::write(&hosts, format!("{address} localhost # {}\n", address.repeat(3))).unwrap();
            // The file is looked at now and then, and until then the name has the address of before.
            let verdict = loop {
                match site.verify(&subscription).await {
                    Verdict::Accepted { .. } => allowed.drop_connections(),
                    verdict => break verdict,
                }
            };
            let why = why(verdict);
            assert!(why.contains("which is no public address"), "{address}: {why}");
        }
        // Of several the one that is allowed is taken.
        fs::write(&hosts, "127.0.0.1 localhost\n127.0.0.2 localhost\n").unwrap();
        while !matches!(site.verify(&subscription).await, Verdict::Accepted { .. }) {}
        assert_eq!(private.connections(), 0);
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_does_not_come_ends_in_time() {
    limited(async {
        let service = service().await;
        let ports = [service.address().port()];
        let site = Site::with(&ports, &NameResolver::default(), |config| {
            config.request_timeout = Duration::from_secs(5);
        });
        let (browser, subscription) = site.browser(&service);
        service.reply_to(&browser, Reply::Hang);
        assert_eq!(why(site.verify(&subscription).await), "no answer within 5s");
        service.refuse().await;
        service.drop_connections();
        let refused = why(site.verify(&subscription).await);
        assert!(refused.contains("TCP: "), "{refused}");
        service.resume().await.unwrap();
        service.reply_to(&browser, Reply::Created);
        assert!(matches!(site.verify(&subscription).await, Verdict::Accepted { .. }));
    })
    .await;
}

#[tokio::test]
async fn connections_are_used_again() {
    limited(async {
        let service = service().await;
        let site = Site::to(&[&service]);
        let (_browser, subscription) = site.browser(&service);
        for _ in 0..10 {
            assert!(matches!(site.verify(&subscription).await, Verdict::Accepted { .. }));
        }
        assert_eq!((service.received(), service.connections()), (10, 1));
    })
    .await;
}

#[tokio::test]
async fn a_proxy_leads_to_the_push_service() {
    limited(async {
        let service = service().await;
        let way = listener().await;
        let address = way.local_addr().unwrap();
        let heads = proxy(way, "HTTP/1.1 200 Connection established\r\n\r\n");
        let ports = [service.address().port()];
        let site = Site::with(&ports, &NameResolver::default(), |config| {
            let (host, port) = (address.ip().to_string(), address.port());
            config.proxy = Some(ProxyConfig { host, port, login_file: None });
        });
        let (_browser, subscription) = site.browser(&service);
        assert!(matches!(site.verify(&subscription).await, Verdict::Accepted { .. }));
        let to = format!("localhost:{}", ports[0]);
        assert_eq!(
            *heads.lock().unwrap(),
            [format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n")]
        );
        assert!(site.config.proxy.is_some());
    })
    .await;
}
