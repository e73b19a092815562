//! FCM: proofs, access tokens, messages and each answer, against the stand-in over TLS and HTTP/2.

use std::sync::Arc;
use std::time::Duration;

use mailchime::config::{self, FcmConfig};
use mailchime::demo::fcm::{FcmAnswer, FcmStandIn, TokenAnswers};
use mailchime::model::{ChangeKind, Mailbox, Snapshot, Subscription, Timestamp, TransportId};
use mailchime::net::resolve::NameResolver;
use mailchime::push::transport::enrol::Transports;
use mailchime::push::transport::fcm::{FcmProject, FcmSetup};
use mailchime::push::transport::{MailboxChange, Notice, Route, RouteId, Routes, Verdict};
use serde_json::json;
use tempfile::TempDir;

use crate::support::pushing::{Disk, Running, alice, rows};
use crate::support::servers::pki;
use crate::support::{limited, listener, soon, until};

/// A project whose service is the stand-in.
struct Project {
    _folder: TempDir,
    service: FcmStandIn,
    config: FcmConfig,
    routes: Routes,
    transports: Transports,
}

impl Project {
    async fn new() -> Self {
        let service = FcmStandIn::start(listener().await, pki()).unwrap();
        let account = service.service_account().unwrap();
        Self::with(service, &account)
    }

    /// With this file in place of the right one.
    fn with(service: FcmStandIn, account: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        pki().write_to(folder.path()).unwrap();
        let file = folder.path().join("firebase.json");
        std::fs::write(&file, account).unwrap();
        let mut config = FcmConfig::new(file);
        config.endpoint = service.endpoint().parse().unwrap();
        config.ca = Some(folder.path().join("ca.pem"));
        let (routes, transports) = (Routes::default(), Transports::default());
        let resolver = NameResolver::default();
        let setup = FcmSetup::load(std::slice::from_ref(&config), &resolver).unwrap();
        setup.publish(&routes, &transports);
        Self { _folder: folder, service, config, routes, transports }
    }

    fn reload(&self) {
        let setup = FcmSetup::load(std::slice::from_ref(&self.config), &NameResolver::default());
        setup.unwrap().publish(&self.routes, &self.transports);
    }

    fn subscription(&self, token: &str) -> Subscription {
        let fcm = self.transports.find(&TransportId::new("fcm")).unwrap();
        let request = json!({ "token": token, "app": "org.example.mail" });
        fcm.enrol(&alice(), &request).unwrap().subscription
    }

    fn route(&self) -> Route {
        self.routes.find(&RouteId::of(&self.subscription("a"))).unwrap()
    }

    /// What becomes of a push of new mail.
    async fn send(&self) -> Verdict {
        self.tell(ChangeKind::NewMail).await
    }

    async fn tell(&self, kind: ChangeKind) -> Verdict {
        let state = Snapshot { unseen: Some(7), ..Snapshot::default() };
        let mailboxes =
            [MailboxChange { mailbox: Mailbox::inbox(), kind, state, unread_before: None }];
        let (at, ttl) = (Timestamp(1_795_693_140_287), Duration::from_hours(24));
        let notice = Notice { id: "id", mailboxes: &mailboxes, preview: None, at, ttl };
        self.route().send(&self.subscription("token-a"), &notice).await
    }
}

#[tokio::test]
async fn a_change_becomes_a_data_message_of_strings_under_one_access_token() {
    limited(async {
        let project = Project::new().await;
        let disk = Disk::with(&[project.subscription("token-a")]).await;
        let mut running = Running::over(&disk, &project.routes, config::PushConfig::default());
        running.mail("INBOX", 2).await;
        let message = soon("a message", project.service.next()).await;
        assert_eq!(message.status, Some(200));
        assert_eq!(message.token(), "token-a");
        assert!(message.message.get("notification").is_none() && !message.validate_only);
        let android = &message.message["android"];
        assert_eq!((&android["priority"], &android["ttl"]), (&json!("high"), &json!("86400s")));
        assert_eq!(android["collapse_key"].as_str().map(str::len), Some(16));
        let mut data = message.data();
        assert!(data.remove("timestamp").unwrap().ends_with('Z'));
        let expected = [
            ("account", "alice@example.org"),
            ("kind", "new"),
            ("mailbox", "INBOX"),
            ("type", "mailbox.changed"),
            ("uidnext", "2"),
        ];
        assert!(data.iter().map(|(k, v)| (k.as_str(), v.as_str())).eq(expected), "{data:?}");

        running.mail("Notes", 2).await;
        let second = soon("a message", project.service.next()).await;
        assert_eq!(second.data()["mailbox"], "Notes");
        assert_eq!(project.service.tokens(), (1, 1));
        running.end().await;
        assert_eq!(disk.told().await, rows(2, 2));
        assert_eq!(project.tell(ChangeKind::Quiet).await.name(), "accepted");
        let quiet = soon("a message", project.service.next()).await;
        assert_eq!(quiet.message["android"]["priority"], "normal");
        assert_eq!(quiet.data()["unseen"], "7");
    })
    .await;
}

#[tokio::test]
async fn each_answer_of_the_service_has_its_verdict() {
    const NO_TOKEN: &str = "The registration token is not a valid FCM registration token";
    let later = Some(Duration::from_secs(9));
    let refused = |why: &str| Verdict::Rejected { why: format!("FCM answered {why}") };
    let unavailable =
        |why: &str| Verdict::Unavailable { why: format!("FCM answered {why}"), retry_after: later };
    let answers = [
        (FcmAnswer::refuse(404, "NOT_FOUND", "UNREGISTERED"), Verdict::Gone { since: None }),
        (FcmAnswer::refuse(403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH"), Verdict::BadEndpoint),
        (
            FcmAnswer::error(400, "INVALID_ARGUMENT", Some("INVALID_ARGUMENT"), NO_TOKEN),
            Verdict::BadEndpoint,
        ),
        (
            FcmAnswer::refuse(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
            refused("400 INVALID_ARGUMENT"),
        ),
        (
            FcmAnswer::refuse(429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED").later(9),
            Verdict::TooMany { retry_after: later },
        ),
        (
            FcmAnswer::refuse(503, "UNAVAILABLE", "UNAVAILABLE").later(9),
            unavailable("503 UNAVAILABLE"),
        ),
        (FcmAnswer::refuse(500, "INTERNAL", "INTERNAL").later(9), unavailable("500 INTERNAL")),
        (
            FcmAnswer::refuse(401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR"),
            refused("401 THIRD_PARTY_AUTH_ERROR"),
        ),
        (
            FcmAnswer::error(403, "PERMISSION_DENIED", None, "API off"),
            refused("403 PERMISSION_DENIED"),
        ),
        (FcmAnswer::error(404, "NOT_FOUND", None, "no project"), refused("404 NOT_FOUND")),
    ];
    limited(async {
        let project = Project::new().await;
        for (answer, expected) in answers {
            project.service.answer_next(1, answer.clone());
            assert_eq!(project.send().await, expected, "{answer:?}");
        }
        assert_eq!(project.service.tokens().1, 1, "none of them is about the access token");
    })
    .await;
}

#[tokio::test]
async fn what_fcm_rejects_rests_until_a_change_or_a_reload() {
    limited(async {
        let project = Project::new().await;
        let disk = Disk::with(&[project.subscription("token-a")]).await;
        let mut running = Running::over(&disk, &project.routes, config::PushConfig::default());
        project.service.answer_next(1, FcmAnswer::error(403, "PERMISSION_DENIED", None, "API off"));
        running.mail("INBOX", 2).await;
        until(async || disk.told().await == rows(2, 1)).await;
        assert_eq!(disk.owed().await, ["to INBOX"]);
        let explained = running.inquirer.explain(alice(), None).await.unwrap().unwrap();
        let said: Vec<_> = explained[0].reasons.iter().map(ToString::to_string).collect();
        assert!(said[0].contains("(FCM answered 403 PERMISSION_DENIED); it rests"), "{said:?}");
        assert_eq!(explained[0].failing_kind.as_deref(), Some("rejected"));
        assert_eq!((explained[0].due_in, project.service.messages().len()), (None, 1));

        // The API is on again, and the operator reloads.
        project.service.answer_all(FcmAnswer::Accept);
        project.reload();
        until(async || disk.owed().await.is_empty()).await;
        assert_eq!(project.service.messages().len(), 2);
        running.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_change_while_the_table_is_away_is_pushed_when_it_is_back() {
    limited(async {
        let project = Project::new().await;
        let subscription = project.subscription("token-a");
        let disk = Disk::with(std::slice::from_ref(&subscription)).await;
        let none: [(Arc<str>, Route); 0] = [];
        project.routes.publish(&subscription.transport, none);
        let mut running = Running::over(&disk, &project.routes, config::PushConfig::default());
        running.mail("INBOX", 2).await;
        until(async || disk.told().await == rows(2, 1)).await;
        assert_eq!(disk.owed().await, ["to INBOX"]);
        assert!(project.service.messages().is_empty());
        project.reload();
        until(async || disk.owed().await.is_empty()).await;
        assert_eq!(project.service.messages().len(), 1);
        running.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_refused_access_token_is_replaced_once() {
    limited(async {
        let project = Project::new().await;
        assert_eq!(project.send().await.name(), "accepted");
        project.service.revoke_tokens();
        assert_eq!(project.send().await.name(), "accepted", "a new one was taken at once");
        assert_eq!(project.service.tokens(), (2, 2));

        let unauthenticated = FcmAnswer::error(401, "UNAUTHENTICATED", None, "");
        project.service.answer_next(2, unauthenticated);
        let why = "FCM answered 401 UNAUTHENTICATED".to_owned();
        assert_eq!(project.send().await, Verdict::Rejected { why });
        assert_eq!(project.service.tokens(), (3, 3), "not a third time");
        assert_eq!(project.send().await.name(), "accepted");
    })
    .await;
}

#[tokio::test]
async fn a_token_is_renewed_before_its_end_and_used_while_renewing_fails() {
    limited(async {
        let project = Project::new().await;
        // It ends within the minutes in which mailchime renews.
        project.service.answer_tokens(TokenAnswers::Give(120));
        assert_eq!(project.send().await.name(), "accepted");
        assert_eq!(project.send().await.name(), "accepted");
        assert_eq!(project.service.tokens(), (2, 2));
        project.service.answer_tokens(TokenAnswers::Fail);
        assert_eq!(project.send().await.name(), "accepted", "the one of before counts");
        assert_eq!(project.send().await.name(), "accepted");
        assert_eq!(project.service.tokens(), (3, 2), "nobody asks again at once");
    })
    .await;
}

#[tokio::test]
async fn with_the_wrong_key_nothing_is_sent_and_google_is_not_asked_again_and_again() {
    limited(async {
        let service = FcmStandIn::start(listener().await, pki()).unwrap();
        let other = FcmStandIn::start(listener().await, pki()).unwrap();
        // The account of another service, whose key this one does not know.
        let account = other.service_account().unwrap();
        let account = account.replace(&other.endpoint(), &service.endpoint());
        let project = Project::with(service, &account);
        for _ in 0..5 {
            let Verdict::RouteClosed { why, retry_after: Some(wait) } = project.send().await else {
                panic!("not closed");
            };
            assert!(why.starts_with("no access token: 400 invalid_grant Invalid JWT"), "{why}");
            assert!(wait > Duration::from_secs(20), "{wait:?}");
        }
        assert_eq!(project.service.tokens(), (1, 0));
        assert!(project.service.messages().is_empty());
    })
    .await;
}

#[tokio::test]
async fn many_pushes_share_one_renewal() {
    limited(async {
        let project = Arc::new(Project::new().await);
        let pushes: Vec<_> = (0..20)
            .map(|_| {
                let project = Arc::clone(&project);
                tokio::spawn(async move { project.send().await.name() })
            })
            .collect();
        for push in pushes {
            assert_eq!(push.await.unwrap(), "accepted");
        }
        assert_eq!(project.service.tokens(), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn a_check_delivers_nothing_and_a_code_reaches_the_app() {
    limited(async {
        let project = Project::new().await;
        let loaded = FcmProject::load(&project.config, &NameResolver::default()).unwrap();
        assert_eq!(loaded.probe().await.name(), "accepted");
        assert!(soon("a message", project.service.next()).await.validate_only);

        let verdict = project.routes.verify(&project.subscription("token-a"), "code-1").await;
        assert_eq!(verdict.name(), "accepted");
        let message = soon("a message", project.service.next()).await;
        assert_eq!(message.data()["type"], "subscription.verify");
        assert_eq!(message.data()["code"], "code-1");
        assert!(!message.validate_only && message.message["android"].get("collapse_key").is_none());
    })
    .await;
}
