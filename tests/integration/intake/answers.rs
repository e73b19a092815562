//! What each request is answered.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mailchime::model::{Account, Timestamp};
use mailchime::net::webhook_signature::{WebhookSecret, signature};

use tracing::Level;

use super::{ALICE, CAROL, IntakeWorld, SIGNING, TOKEN};
use crate::support::limited;
use crate::support::log::Log;
use crate::support::servers::pki;
use crate::support::world::{ACCOUNT_ID, TOKEN as DEVICE};

const EVENT: &str = r#"{"user":"alice","changes":[{"mailbox":"INBOX","events":["MessageNew"]}]}"#;
const OX: &str = r#"{"user":"alice@example.org","event":"messageNew","folder":"INBOX","imap-uid":2,
    "imap-uidvalidity":1,"from":"Ann <ann@example.org>","subject":"private","snippet":"private"}"#;

#[tokio::test]
async fn each_request_has_its_answer() {
    limited(async {
        let intake = IntakeWorld::with(|config| config.events.body_size = 1024).await;
        let basic = |text: &str| format!("Authorization: Basic {}", STANDARD.encode(text));
        let (bearer, by_script) =
            (format!("Authorization: Bearer {TOKEN}"), format!("Authorization: Bearer {SIGNING}"));
        let dovecot = basic(&format!("dovecot:{TOKEN}"));
        let foreign = EVENT.replace("alice", "carol@example.com");
        let both = format!("[{EVENT},{foreign}]");
        let large = EVENT.replace("INBOX", &"x".repeat(1024));
        for (request, status, error) in [
            // Whether a user is registered, or exists, makes no difference.
            (format!("POST /v1/events\n{bearer}\n\n{EVENT}"), 204, ""),
            (format!("POST /v1/events\n{bearer}\n\n[{EVENT},{EVENT}]"), 204, ""),
            (format!("POST /v1/events\n{bearer}\n\n[]"), 204, ""),
            (format!("POST /v1/events\n{dovecot}\n\n{EVENT}"), 204, ""),
            (format!("PUT /v1/events/ox\n{dovecot}\n\n{OX}"), 204, ""),
            (format!("POST /v1/events\n{by_script}\n\n{foreign}"), 204, ""),
            (
                format!(
                    "PUT /v1/events/ox\n{dovecot}\nContent-Type: application/json; charset=utf-8\n\n{OX}"
                ),
                204,
                "",
            ),
            (format!("POST /v1/events\n\n{EVENT}"), 401, "unauthorized"),
            (format!("POST /v1/events\n{bearer}x\n\n{EVENT}"), 401, "unauthorized"),
            (
                format!("POST /v1/events\n{}\n\n{EVENT}", basic(&format!("script:{TOKEN}"))),
                401,
                "unauthorized",
            ),
            (format!("POST /v1/events\n{bearer}\n\n{foreign}"), 403, "foreign_domain"),
            (format!("POST /v1/events\n{bearer}\n\n{both}"), 403, "foreign_domain"),
            (format!("PUT /v1/events/ox\n{bearer}\n\n{}", OX.replace(".org", ".com")), 403, "foreign_domain"),
            (format!("POST /v1/events\n{bearer}\n\n{large}"), 413, "too_large"),
            (
                format!("POST /v1/events\n{bearer}\nContent-Type: text/plain\n\n{EVENT}"),
                415,
                "unsupported_media_type",
            ),
            (format!("POST /v1/events\n{bearer}\n\n{{\"user\":\"alice\"}}"), 422, "invalid"),
            (format!("POST /v1/events\n{bearer}\n\n{}", &EVENT[..40]), 422, "invalid"),
            (format!("POST /v1/events\n{bearer}\n\n{OX}"), 422, "invalid"),
            (format!("PUT /v1/events/ox\n{bearer}\n\n{EVENT}"), 422, "invalid"),
            (format!("PUT /v1/events\n{bearer}\n\n{EVENT}"), 405, "method_not_allowed"),
            (format!("GET /v1/events/ox\n{bearer}"), 405, "method_not_allowed"),
            (format!("POST /\n{bearer}\n\n{EVENT}"), 404, "not_found"),
        ] {
            let reply = intake.ask(&request).await;
            assert_eq!(reply.error(), (status, error.to_owned()), "{request}\n{reply:?}");
            assert!(!reply.body.contains("private") && !reply.body.contains("horse"), "{reply:?}");
            assert_eq!(reply.head.contains("www-authenticate: bearer"), status == 401, "{reply:?}");
        }
        assert_eq!(
            intake.counted().await,
            [
                // The one that was too large.
                r#"_missed_total{source="dovecot"} 1"#,
                r#"_refused_total{source="",why="unauthorized"} 3"#,
                r#"_refused_total{source="dovecot",why="foreign"} 3"#,
                r#"_refused_total{source="dovecot",why="malformed"} 4"#,
                r#"_refused_total{source="dovecot",why="media_type"} 1"#,
                r#"_refused_total{source="dovecot",why="too_large"} 1"#,
                r#"_total{source="dovecot",what="unwatched"} 6"#,
                r#"_total{source="script",what="unwatched"} 1"#,
            ]
        );
    })
    .await;
}

/// What Cyrus says of a device that this user has registered there.
fn device(user: &str) -> String {
    format!(
        r#"{{"event":"ApplePushService","pid":20368,"user":"{user}","apsVersion":2,
        "apsAccountId":"{ACCOUNT_ID}","apsDeviceToken":"{DEVICE}","apsSubtopic":"com.apple.mobilemail",
        "mailboxes":["INBOX","Team"]}}"#
    )
}

/// A source that has no route of Cyrus, as most, may register nobody.
#[tokio::test]
async fn a_device_of_cyrus_is_registered_by_a_source_that_may_and_refused_to_others() {
    let log = Log::default();
    let _logs = tracing::subscriber::set_default(log.subscriber(Level::WARN));
    limited(async {
        let intake = IntakeWorld::with(|config| {
            config.events.sources[0].route = Some(pki().topic.clone());
            config.push.accounts_per_domain = 1;
        })
        .await;
        let (dovecot, script) = (TOKEN, SIGNING);
        let ask = async |secret: &str, body: &str| {
            let head = format!("POST /v1/events/cyrus\nAuthorization: Bearer {secret}");
            intake.ask(&format!("{head}\n\n{body}")).await.error()
        };
        let devices = async |login: &str| {
            let account = Account::from_login(login);
            intake.world.mailchime.store.all_targets(&account).await.unwrap().len()
        };
        let refused = (422, "device_refused".to_owned());
        assert_eq!(ask(script, &device(ALICE)).await, refused);
        let said = "mailchime does not push to it";
        assert_eq!(log.count(said), 1, "{}", log.text());
        assert!(log.text().contains("cyrus_route is not set"), "{}", log.text());
        let foreign = (403, "foreign_domain".to_owned());
        assert_eq!(ask(dovecot, &device(CAROL)).await, foreign);
        let other = device("alice").replace("com.apple.mobilemail", "org.example.other");
        assert_eq!(ask(dovecot, &other).await, refused);
        let none = device("alice").replace(r#"["INBOX","Team"]"#, "[]");
        assert_eq!(ask(dovecot, &none).await, refused);
        let broken = device("alice").replace(DEVICE, "private");
        assert_eq!(ask(dovecot, &broken).await, (422, "invalid".to_owned()));
        assert_eq!((devices(ALICE).await, devices(CAROL).await), (0, 0));
        assert_eq!(ask(dovecot, &device("alice")).await, (204, String::new()));
        assert_eq!(devices(ALICE).await, 1);
        // To try again does not help.
        assert_eq!(ask(dovecot, &device("bob")).await, refused);
        assert!(log.text().contains("accounts_per_domain"), "{}", log.text());
        assert_eq!(
            intake.counted().await,
            [
                r#"_refused_total{source="dovecot",why="foreign"} 3"#,
                r#"_refused_total{source="dovecot",why="malformed"} 2"#,
                r#"_refused_total{source="script",why="foreign"} 1"#,
            ]
        );
        assert!(!log.text().contains("private"), "{}", log.text());
    })
    .await;
}

#[tokio::test]
async fn an_event_of_cyrus_counts_once_whatever_names_its_mailbox_has() {
    limited(async {
        let intake = IntakeWorld::start().await;
        let event =
            r#"{"event":"MessageNew","uri":"imap://localhost/user/alice/Team;UIDVALIDITY=1/"}"#;
        let request = format!("POST /v1/events/cyrus\nAuthorization: Bearer {TOKEN}\n\n{event}");
        assert_eq!(intake.ask(&request).await.status, 204);
        let once = r#"_total{source="dovecot",what="unwatched"} 1"#;
        assert_eq!(intake.counted().await, [once]);
    })
    .await;
}

#[tokio::test]
async fn a_signature_counts_for_its_body_and_its_time() {
    limited(async {
        let intake = IntakeWorld::start().await;
        let secret = WebhookSecret::parse(SIGNING).unwrap();
        let now = Timestamp::now().0.div_euclid(1000);
        let signed = |body: &str, seconds: i64| {
            let signature =
                signature(std::slice::from_ref(&secret), "msg_1", seconds, body.as_bytes());
            format!(
                "POST /v1/events\nwebhook-id: msg_1\nwebhook-timestamp: {seconds}\n\
                 webhook-signature: {signature}"
            )
        };
        for (head, status) in [
            (signed(EVENT, now), 204),
            (signed(EVENT, now), 204),
            (signed(OX, now), 401),
            (signed(EVENT, now - 3600), 401),
            (signed(EVENT, now + 3600), 401),
            (signed(EVENT, now).replace("msg_1", "msg_2"), 401),
            (signed(EVENT, now).replace("timestamp", "time"), 401),
        ] {
            let reply = intake.ask(&format!("{head}\n\n{EVENT}")).await;
            assert_eq!(reply.status, status, "{head}\n{reply:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn with_tls_it_is_the_certificate_of_tls() {
    limited(async {
        let intake = IntakeWorld::with(|config| config.events.tls = true).await;
        let request = format!("POST /v1/events\nAuthorization: Bearer {TOKEN}\n\n{EVENT}");
        assert_eq!(intake.ask_by_tls(&request).await.status, 204);
        assert_eq!(intake.ask(&request).await.status, 0, "in the clear");
    })
    .await;
}
