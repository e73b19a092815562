//! From a browser's subscription to its notification: the API, the key, the code and the push, with a stand-in
//! for the browser and its push service.

use mailchime::config::WebPushConfig;
use mailchime::demo::push_service::PushService;
use serde_json::{Value, json};

use super::{ALICE, ApiWorld};
use crate::support::servers::pki;
use crate::support::world::MAIL;
use crate::support::{limited, listener};

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_subscribes_proves_itself_and_hears_of_new_mail() {
    limited(async {
        let service = PushService::start(listener().await, pki()).unwrap();
        let api = ApiWorld::with(|config| {
            let folder = config.tls.certificates[0].certificate.parent().unwrap();
            let mut web_push = WebPushConfig::new(folder.join("vapid.key"), "mailto:a@example.org");
            let host = format!("localhost:{}", service.address().port());
            web_push.hosts = vec![host.parse().unwrap()];
            web_push.allow_private = ["127.0.0.0/8", "::1"].map(|it| it.parse().unwrap()).to_vec();
            web_push.ca = Some(folder.join("ca.pem"));
            config.web_push = Some(web_push);
            // Nobody needs a certificate of Apple's for this.
            config.apns.clear();
        })
        .await;
        let key = api.ask("GET /v1/vapid").await.json()["applicationServerKey"].clone();
        let browser = service.subscribe(key.as_str().unwrap());
        let mut body = browser.to_json();
        body["transport"] = json!("webpush");
        let made = api.of(ALICE, "POST /v1/subscriptions", Some(body.clone())).await;
        assert_eq!(made.status, 201, "{}", made.body);
        let code = service.next().await.json()["data"]["code"].clone();
        let id = made.json()["id"].as_str().unwrap().to_owned();
        let confirm = format!("POST /v1/subscriptions/{id}/confirm");
        let reply = api.of(ALICE, &confirm, Some(json!({ "code": code }))).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let endpoint = reply.json()["endpoint"].as_str().unwrap().to_owned();
        assert!(endpoint.starts_with("https://localhost"), "{endpoint}");
        assert!(!browser.endpoint().contains(&endpoint) && endpoint.len() < 40, "{endpoint}");

        api.backend.wait_until(|counters| counters.idling == 1).await;
        api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        let told = service.next().await.json();
        assert!(told.to_string().contains("INBOX"), "{told}");

        let test = format!("POST /v1/subscriptions/{id}/test");
        assert_eq!(api.of(ALICE, &test, None).await.status, 204);
        assert!(service.next().await.json() != Value::Null);

        // An address that no user may have pushes sent to.
        body["endpoint"] = json!("https://192.168.1.1/x");
        let refused = api.of(ALICE, "POST /v1/subscriptions", Some(body)).await;
        assert_eq!(refused.error(), (422, "invalid".to_owned()));
        assert_eq!(refused.json()["field"], json!("endpoint"));
    })
    .await;
}
