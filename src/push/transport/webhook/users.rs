//! The web hooks of users: what a user asks for, and the one route on which all of them are sent.
//!
//! A user names the URL, so the guard says whether mailchime goes there. The secret is made here, and the
//! user learns it once; or the user brings one.

use std::sync::Arc;
use std::time::Duration;

use secrecy::zeroize::Zeroizing;
use serde_json::{Value, json};

use super::message::UserMessages;
use super::{TRANSPORT, USERS, WebhookSecret};
use crate::model::{Account, PushEndpoint, Subscription, SubscriptionSecrets, TransportId};
use crate::net::dial::Dialer;
use crate::net::guard::Guard;
use crate::net::https::{HttpsClient, client_tls};
use crate::net::resolve::NameResolver;
use crate::push::transport::Route;
use crate::push::transport::enrol::{Enrol, Enrolled};

/// For the answer to one event, connecting included.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Most events under way at once, to all receivers of users together.
const IN_FLIGHT: usize = 100;

/// Which URLs users may name, and where they lead. Clones share it.
#[derive(Clone, Debug)]
pub struct UserWebhooks {
    guard: Arc<Guard>,
}

impl UserWebhooks {
    /// Those that `guard` allows.
    pub fn new(guard: Guard) -> Self {
        Self { guard: Arc::new(guard) }
    }

    /// The route of all of them. Opens no socket; `ca` as in the configuration of others.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn route(
        &self,
        ca: Option<&std::path::Path>,
        resolver: &NameResolver,
    ) -> Result<Route, String> {
        let tls = client_tls(ca).map_err(|why| format!("web hooks of users: {why}"))?;
        let dialer = Dialer::new(resolver.clone(), None, tls).guarded(Arc::clone(&self.guard));
        let messages = UserMessages { guard: Arc::clone(&self.guard) };
        let sender = HttpsClient::new(dialer, TIMEOUT);
        Ok(Route::new(messages, sender, IN_FLIGHT))
    }
}

impl Enrol for UserWebhooks {
    fn offer(&self) -> Value {
        json!({})
    }

    /// `{"url": "https://…"}`, and perhaps `secret` and `old_secret`.
    fn enrol(&self, account: &Account, request: &Value) -> Result<Enrolled, String> {
        let text = |key| request.get(key).and_then(Value::as_str);
        let url =
            text("url").ok_or("\"url\" is missing: give the https:// URL of your receiver")?;
        self.guard.check(url).map_err(|why| format!("\"url\" {why}"))?;
        let brought = |key| match request.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(_) => text(key).and_then(WebhookSecret::parse).map(Some).ok_or_else(|| {
                format!("\"{key}\" is no secret: give \"whsec_\" and the base64 of 24 to 64 bytes")
            }),
        };
        let mut answer = json!({});
        let newest = match brought("secret")? {
            Some(secret) => secret,
            None => {
                let secret = WebhookSecret::generate().ok_or("no secret can be made now")?;
                answer["secret"] = secret.expose_text().as_str().into();
                secret
            }
        };
        let secrets = [Some(newest), brought("old_secret")?];
        let subscription = Subscription {
            account: account.clone(),
            transport: TransportId::new(TRANSPORT),
            endpoint: PushEndpoint::new(url, url),
            app: "webhook".into(),
            route: USERS.into(),
            options: "{}".into(),
            secrets: Some(kept(secrets.into_iter().flatten())),
            expires_at: None,
        };
        Ok(Enrolled { subscription, answer })
    }
}

/// One a line, the newest first.
fn kept(secrets: impl Iterator<Item = WebhookSecret>) -> SubscriptionSecrets {
    let mut text = Zeroizing::new(String::new());
    for secret in secrets {
        text.push_str(&secret.expose_text());
        text.push('\n');
    }
    SubscriptionSecrets::new(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::message;
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn a_user_learns_a_new_secret_once_or_brings_one() {
        let webhooks = UserWebhooks::new(Guard::new(&[], &[]));
        let alice = Account::from_login("alice@example.org");
        let enrol = |request: Value| webhooks.enrol(&alice, &request);
        let url = "https://hooks.example.org/mail?x=1";
        let Enrolled { subscription, answer } = enrol(json!({ "url": url })).unwrap();
        assert_eq!((subscription.endpoint.as_given(), &*subscription.route), (url, USERS));
        let given = answer["secret"].as_str().unwrap();
        let kept = message::secrets(&subscription);
        assert_eq!((kept.len(), kept[0].expose_text().as_str()), (1, given));
        assert!(!format!("{subscription:?}").contains("whsec"), "{subscription:?}");

        let own = json!({ "url": url, "secret": SECRET, "old_secret": given });
        let Enrolled { subscription, answer } = enrol(own).unwrap();
        let kept = message::secrets(&subscription);
        assert_eq!((answer, kept.len()), (json!({}), 2));
        assert_eq!(kept[1].expose_text().as_str(), given);

        for (request, expected) in [
            (json!({}), "\"url\" is missing"),
            (json!({ "url": "http://hooks.example.org/" }), "\"url\" is not an https://"),
            (json!({ "url": "https://127.0.0.1/" }), "\"url\" is at 127.0.0.1, which is no public"),
            (json!({ "url": url, "secret": "short" }), "\"secret\" is no secret"),
            (json!({ "url": url, "old_secret": 1 }), "\"old_secret\" is no secret"),
        ] {
            let refused = enrol(request).unwrap_err();
            assert!(refused.starts_with(expected), "{refused}");
        }
    }
}
