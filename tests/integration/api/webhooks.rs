//! Web hooks of users: subscribed, confirmed, signed and removed by the API.

use std::sync::Arc;

use mailchime::demo::webhook::{ReceivedEvent, WebhookReceiver};
use mailchime::model::TransportId;
use mailchime::net::guard::Guard;
use mailchime::net::resolve::NameResolver;
use mailchime::push::transport::webhook::USERS;
use mailchime::push::transport::webhook::users::UserWebhooks;
use serde_json::{Value, json};

use super::{ALICE, ApiWorld};
use crate::support::servers::pki;
use crate::support::world::MAIL;
use crate::support::{limited, listener, soon};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Users' web hooks may go to this receiver, which is at no public address.
pub(super) fn allow(api: &ApiWorld, receiver: &WebhookReceiver) {
    let host = format!("localhost:{}", receiver.address().port()).parse().unwrap();
    let private = ["127.0.0.0/8", "::1/128"].map(|network| network.parse().unwrap());
    let users = UserWebhooks::new(Guard::new(&[host], &private));
    let ca = api.world.file("ca.pem");
    let route = users.route(Some(&ca), &NameResolver::default()).unwrap();
    let (mailchime, webhook) = (&api.world.mailchime, TransportId::new("webhook"));
    mailchime.routes.publish(&webhook, [(USERS.into(), route)]);
    mailchime.transports.set(webhook, Some(Arc::new(users)));
}

/// The next event of new mail.
async fn new_mail(receiver: &WebhookReceiver) -> ReceivedEvent {
    loop {
        let event = soon("an event", receiver.next()).await;
        if event.json()["data"]["kind"] == "new" {
            return event;
        }
    }
}

fn signatures(event: &ReceivedEvent) -> usize {
    event.header("webhook-signature").unwrap().split(' ').count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_web_hook_is_confirmed_signed_by_two_secrets_and_removed() {
    limited(async {
        let receiver = WebhookReceiver::start(listener().await, Some(pki())).unwrap();
        let api = ApiWorld::start().await;
        allow(&api, &receiver);
        let url = receiver.url("/mail");
        let subscribe = async |more: &[(&str, &str)]| {
            let mut body = json!({ "transport": "webhook", "url": url });
            for (key, value) in more {
                body[*key] = json!(value);
            }
            api.of(ALICE, "POST /v1/subscriptions", Some(body)).await
        };
        let made = subscribe(&[]).await;
        assert_eq!(made.status, 201, "{}", made.body);
        let first = made.json()["secret"].as_str().unwrap().to_owned();
        let id = made.json()["id"].as_str().unwrap().to_owned();
        let verify = soon("an event", receiver.next()).await;
        assert_eq!(verify.json()["type"], "subscription.verify");
        assert!(verify.is_signed_by(&first) && signatures(&verify) == 1, "{verify:?}");
        let confirm = format!("POST /v1/subscriptions/{id}/confirm");
        let code = json!({ "code": verify.json()["data"]["code"] });
        let confirmed = api.of(ALICE, &confirm, Some(code)).await;
        assert_eq!(confirmed.status, 200, "{}", confirmed.body);
        assert!(!confirmed.body.contains("whsec") && !confirmed.body.contains("/mail"));
        api.backend.wait_until(|counters| counters.idling == 1).await;
        api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        let event = new_mail(&receiver).await;
        assert!(event.is_signed_by(&first) && signatures(&event) == 1, "{event:?}");
        assert_eq!(event.json()["data"]["account"], ALICE);

        // Another secret: both sign, until the old one is not named any more.
        let again = subscribe(&[("secret", SECRET), ("old_secret", &first)]).await;
        assert_eq!((again.status, &again.json()["id"]), (200, &json!(id)), "{}", again.body);
        assert_eq!(again.json()["secret"], Value::Null, "it was brought");
        api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        let event = new_mail(&receiver).await;
        assert_eq!(signatures(&event), 2, "{event:?}");
        assert!(event.is_signed_by(SECRET) && event.is_signed_by(&first), "{event:?}");
        assert_eq!(subscribe(&[("secret", SECRET)]).await.status, 200);
        api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        let event = new_mail(&receiver).await;
        assert!(event.is_signed_by(SECRET) && !event.is_signed_by(&first), "{event:?}");
        assert_eq!(signatures(&event), 1);

        let test = format!("POST /v1/subscriptions/{id}/test");
        assert_eq!(api.of(ALICE, &test, None).await.status, 204);
        assert!(soon("a test", receiver.next()).await.is_signed_by(SECRET));
        let remove = format!("DELETE /v1/subscriptions/{id}");
        assert_eq!(api.of(ALICE, &remove, None).await.status, 204);
        let heard = receiver.events().len();
        api.backend.wait_until(|counters| counters.connections == 0).await;
        api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        assert_eq!(api.of(ALICE, &test, None).await.status, 404);
        assert_eq!(receiver.events().len(), heard);
        assert!(api.listed(ALICE).await.is_empty());
    })
    .await;
}

/// The answer names the key that is at fault, as it does for the other transports.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_web_hook_is_named() {
    limited(async {
        let api = ApiWorld::start().await;
        let url = "https://hooks.example.org/";
        for (body, field) in [
            (json!({}), "url"),
            (json!({ "url": "http://hooks.example.org/" }), "url"),
            (json!({ "url": "https://192.168.1.1/" }), "url"),
            (json!({ "url": url, "secret": "short" }), "secret"),
            (json!({ "url": url, "secret": SECRET, "old_secret": 7 }), "old_secret"),
        ] {
            let mut body = body;
            body["transport"] = json!("webhook");
            let reply = api.of(ALICE, "POST /v1/subscriptions", Some(body.clone())).await;
            assert_eq!(reply.error(), (422, "invalid".to_owned()), "{body}");
            assert_eq!(reply.json()["field"], field, "{body}");
        }
    })
    .await;
}
