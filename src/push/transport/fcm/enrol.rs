//! What an app asks for, as a subscription: its registration token, and which app it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::TRANSPORT;
use crate::model::{Account, PushEndpoint, Subscription, TransportId};
use crate::push::transport::enrol::{Enrol, Enrolled};

/// Tokens have about 160 characters.
const MAX_TOKEN: usize = 1024;

/// No store takes a longer name of an app, in bytes.
const MAX_APP: usize = 255;

/// Which project each app has.
#[derive(Clone, Debug, Default)]
pub(super) struct FcmEnrol {
    by_app: BTreeMap<String, Arc<str>>,
    /// The project of all other apps.
    others: Option<Arc<str>>,
}

impl FcmEnrol {
    /// `apps` as in the configuration: none stands for all others.
    pub(super) fn add(&mut self, project: &str, apps: &[String]) {
        let project: Arc<str> = project.into();
        if apps.is_empty() {
            self.others = Some(Arc::clone(&project));
        }
        self.by_app.extend(apps.iter().map(|app| (app.clone(), Arc::clone(&project))));
    }
}

impl Enrol for FcmEnrol {
    fn offer(&self) -> Value {
        json!({})
    }

    fn enrol(&self, account: &Account, request: &Value) -> Result<Enrolled, String> {
        let text = |key| request.get(key).and_then(Value::as_str);
        let in_tokens = |b: u8| b.is_ascii_alphanumeric() || b"-_:".contains(&b);
        let token = text("token")
            .filter(|token| (1..=MAX_TOKEN).contains(&token.len()) && token.bytes().all(in_tokens));
        let token = token.ok_or(
            "\"token\" is missing or no registration token: give what FirebaseMessaging.getToken() gives",
        )?;
        let app = text("app").ok_or("\"app\" is missing: give the package name of the app")?;
        let others = self.others.as_ref().filter(|_| is_name_of_app(app));
        let route = self.by_app.get(app).or(others);
        let route = route.ok_or("\"app\" is not an app of this server")?;
        let subscription = Subscription {
            account: account.clone(),
            transport: TransportId::new(TRANSPORT),
            endpoint: PushEndpoint::new(token, token),
            app: app.into(),
            route: Arc::clone(route),
            options: "{}".into(),
            secrets: None,
            expires_at: None,
        };
        Ok(Enrolled { subscription, answer: json!({}) })
    }
}

/// Whether this may be the package name of an app of Android, or the bundle identifier of one of iOS.
fn is_name_of_app(app: &str) -> bool {
    let in_names = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=MAX_APP).contains(&app.len()) && app.bytes().all(in_names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_sent_to_by_its_own_project_or_by_that_of_all_others() {
        let mut enrol = FcmEnrol::default();
        enrol.add("brand", &["org.example.brand".to_owned()]);
        let alice = Account::from_login("alice@example.org");
        let of = |enrol: &FcmEnrol, request: Value| enrol.enrol(&alice, &request);
        let brand = json!({ "token": "abc:DEF-1_2", "app": "org.example.brand", "x": 1 });
        let other = json!({ "token": "abc", "app": "org.example.other" });
        let subscription = of(&enrol, brand).unwrap().subscription;
        assert_eq!(subscription.endpoint.as_given(), "abc:DEF-1_2");
        assert_eq!((&*subscription.route, &*subscription.app), ("brand", "org.example.brand"));
        let refused = of(&enrol, other.clone()).unwrap_err();
        assert_eq!(refused, "\"app\" is not an app of this server");
        enrol.add("rest", &[]);
        assert_eq!(&*of(&enrol, other).unwrap().subscription.route, "rest");
        for app in ["", "a b", "a\0b", "\u{e9}.b", &"a".repeat(MAX_APP + 1)] {
            let refused = of(&enrol, json!({ "token": "abc", "app": app })).unwrap_err();
            assert_eq!(refused, "\"app\" is not an app of this server", "{app:?}");
        }
        let long = "a".repeat(MAX_TOKEN + 1);
        for (request, expected) in [
            (json!([]), "\"token\" is missing"),
            (json!({ "token": 1, "app": "a" }), "\"token\" is missing"),
            (json!({ "token": "a b", "app": "a" }), "\"token\" is missing"),
            (json!({ "token": long, "app": "a" }), "\"token\" is missing"),
            (json!({ "token": "a" }), "\"app\" is missing"),
        ] {
            let refused = of(&enrol, request).unwrap_err();
            assert!(refused.starts_with(expected), "{refused}");
        }
    }
}
