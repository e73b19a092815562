//! A browser's subscription, as `PushSubscription.toJSON()` gives it (Push API section 8).

use serde_json::{Value, json};

use super::encrypt::ClientKeys;
use super::message::WebPush;
use super::options::WebPushOptions;
use super::transport;
use crate::model::{Account, PushEndpoint, Subscription, SubscriptionSecrets};
use crate::push::transport::enrol::{Enrol, Enrolled};

/// One browser has one subscription for mailchime's page, whatever runs in it.
const APP: &str = "web";

impl Enrol for WebPush {
    /// `{"applicationServerKey": …}`
    fn offer(&self) -> Value {
        json!({ "applicationServerKey": self.public_key() })
    }

    /// `{"endpoint": "https://…", "keys": {"p256dh": …, "auth": …}}`, and perhaps `"quiet": true`.
    fn enrol(&self, account: &Account, request: &Value) -> Result<Enrolled, String> {
        let endpoint = request.get("endpoint").and_then(Value::as_str);
        let endpoint = endpoint
            .ok_or("endpoint is missing; send the browser's subscription as JSON".to_owned())?;
        self.guard.check(endpoint).map_err(|why| format!("endpoint: {why}"))?;
        let quiet = match request.get("quiet") {
            None | Some(Value::Null) => false,
            Some(quiet) => quiet.as_bool().ok_or("quiet is neither true nor false")?,
        };
        let options = WebPushOptions { quiet };
        let keys = ClientKeys::given(request.get("keys").unwrap_or(&Value::Null))?;
        let subscription = Subscription {
            account: account.clone(),
            transport: transport(),
            endpoint: PushEndpoint::new(endpoint, endpoint),
            app: APP.into(),
            route: self.route(),
            options: options.to_json().into(),
            secrets: Some(SubscriptionSecrets::new(keys.to_json().to_string())),
            expires_at: None,
        };
        Ok(Enrolled { subscription, answer: json!({}) })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::ChangeKind;
    use crate::net::guard::Guard;
    use crate::push::transport::webpush::message::keys_of;
    use crate::push::transport::webpush::vapid::VapidKey;
    use crate::push::transport::{Transport, Verdict};

    const P256DH: &str =
        "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";

    #[test]
    fn a_browsers_subscription_is_taken_and_what_is_wrong_with_it_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (key, _) = VapidKey::open(&folder.path().join("key"), "mailto:a@example.org").unwrap();
        let guard = Guard::new(&[], &[]);
        let web_push = WebPush::new(Arc::new(key), Arc::new(guard));
        assert_eq!(web_push.offer(), json!({ "applicationServerKey": web_push.public_key() }));
        let alice = Account::from_login("alice@example.org");
        let keys = json!({ "p256dh": P256DH, "auth": "BTBZMqHH6r4Tts7J_aSIgg" });
        let endpoint = "https://updates.push.services.mozilla.com/wpush/v2/gAAAA";
        let given = json!({ "endpoint": endpoint, "expirationTime": null, "keys": keys });
        let Enrolled { subscription, answer } = web_push.enrol(&alice, &given).unwrap();
        assert_eq!(answer, json!({}));
        assert_eq!(subscription.endpoint.as_given(), endpoint);
        assert_eq!((&subscription.account, &subscription.transport), (&alice, &transport()));
        assert_eq!(subscription.route, web_push.route());
        let found = keys_of(&subscription).unwrap();
        assert_eq!(found, ClientKeys::from_json(&keys).unwrap());
        let shown = format!("{subscription:?}");
        assert!(!shown.contains("BTBZ") && !shown.contains("gAAAA"), "{shown}");

        for (given, problem) in [
            (json!([]), "endpoint is missing"),
            (json!({ "endpoint": 1, "keys": keys }), "endpoint is missing"),
            (json!({ "endpoint": "http://a.example/", "keys": keys }), "endpoint: "),
            (json!({ "endpoint": "https://127.0.0.1/", "keys": keys }), "endpoint: "),
            (json!({ "endpoint": endpoint }), "keys.p256dh is missing"),
        ] {
            let why = web_push.enrol(&alice, &given).unwrap_err();
            assert!(why.starts_with(problem), "{given}: {why}");
        }
        let asked = |endpoint: &str, quiet: Value| {
            let given = json!({ "endpoint": endpoint, "keys": keys, "quiet": quiet });
            web_push.enrol(&alice, &given).map(|enrolled| enrolled.subscription)
        };
        assert!(!web_push.tells(&subscription, ChangeKind::Quiet));
        assert!(web_push.tells(&subscription, ChangeKind::NewMail));
        assert!(asked(endpoint, json!("yes")).unwrap_err().starts_with("quiet is neither"));
        // Some browsers end a subscription whose pushes show nothing.
        for (host, tells) in [
            ("web.push.apple.com", false),
            ("push.apple.com.example", true),
            ("updates.push.services.mozilla.com", false),
            ("push.services.mozilla.com", false),
            ("mypush.services.mozilla.com", true),
        ] {
            let asked = asked(&format!("https://{host}/Q"), json!(true)).unwrap();
            assert_eq!(web_push.tells(&asked, ChangeKind::Quiet), tells, "{host}");
            assert!(web_push.tells(&asked, ChangeKind::NewMail));
        }

        let broken = Subscription { secrets: None, ..subscription };
        assert!(matches!(keys_of(&broken), Err(Verdict::Unrenderable { .. })));
    }
}
