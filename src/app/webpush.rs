//! Web Push at the start and at a reload: its key, its route, and what the API offers of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::StartError;
use crate::config::WebPushConfig;
use crate::files;
use crate::model::Timestamp;
use crate::net::guard::Guard;
use crate::net::resolve::NameResolver;
use crate::push::transport::enrol::{Enrol, Transports};
use crate::push::transport::webpush::vapid::VapidKey;
use crate::push::transport::webpush::{self, WebPush};
use crate::push::transport::{Route, Routes};
use crate::store::{Store, StoreError};

/// For the database to say whether browsers have subscribed.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// Web Push as a configuration has it, made and not yet published.
#[derive(Debug)]
pub(super) struct WebPushSetup {
    web_push: WebPush,
    route: Route,
    key: KeyNews,
}

/// What an operator has to know of the key.
#[derive(Clone, Debug)]
pub(super) struct KeyNews {
    name: Arc<str>,
    made_key: bool,
    file: String,
}

impl WebPushSetup {
    /// Reads the key, or makes it where there is no file. `None` where Web Push is off: in the configuration, or since there
    /// is no file and `browsers` have subscribed with the key that was in it, or may have. A new key would reach none of them,
    /// and would hide that the one of before is to be put back.
    pub(super) fn new(
        config: Option<&WebPushConfig>,
        resolver: &NameResolver,
        browsers: Browsers,
    ) -> Result<Option<Self>, StartError> {
        let Some(config) = config else { return Ok(None) };
        let file = config.key_file.display();
        match browsers {
            Browsers::None => return Self::with_key(config, resolver),
            Browsers::Subscribed => tracing::error!(
                target: "mailchime::push::vapid_key_missing",
                %file,
                "the VAPID key with which browsers have subscribed is missing; mail goes on, and nothing is pushed to \
                 browsers; put the file back and reload mailchime. Where there is no copy, make a new key as docs/webpush.md \
                 says, and browsers have to subscribe again"
            ),
            Browsers::NotKnown => tracing::error!(
                target: "mailchime::push::vapid_key_not_made",
                %file,
                "the file of the VAPID key is missing, and the database does not say whether browsers have subscribed with \
                 it; mail goes on, and nothing is pushed to browsers; mailchime asks again"
            ),
        }
        Ok(None)
    }

    fn with_key(
        config: &WebPushConfig,
        resolver: &NameResolver,
    ) -> Result<Option<Self>, StartError> {
        let (key, made_key) = VapidKey::open(&config.key_file, &config.contact)
            .map_err(|error| StartError::key("[webpush] key_file", error))?;
        let guard = Guard::new(&config.hosts, &config.allow_private);
        let web_push = WebPush::new(Arc::new(key), Arc::new(guard));
        let (name, route) = webpush::route(&web_push, config, resolver)
            .map_err(|error| StartError::Configuration(error.to_string()))?;
        let file = config.key_file.display().to_string();
        let key = KeyNews { name, made_key, file };
        Ok(Some(Self { web_push, route, key }))
    }

    /// What is to be known of the key.
    pub(super) fn news(&self) -> KeyNews {
        self.key.clone()
    }
}

/// Who has subscribed with the key of a file that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Browsers {
    /// Nobody, or the file is there.
    None,
    Subscribed,
    /// The database does not say.
    NotKnown,
}

impl Browsers {
    /// Asks the database where the key's file is missing. A start waits no longer than [`ANSWER_TIME`] for it.
    pub(super) async fn of(config: Option<&WebPushConfig>, store: &Store) -> Self {
        if config.is_none_or(|config| files::exists(&config.key_file)) {
            return Self::None;
        }
        match timeout(ANSWER_TIME, store.routes(&webpush::transport())).await {
            Ok(Ok(routes)) if routes.is_empty() => Self::None,
            Ok(Ok(_)) => Self::Subscribed,
            Ok(Err(_)) | Err(_) => Self::NotKnown,
        }
    }
}

impl KeyNews {
    /// The other keys with which browsers have subscribed, and how many.
    async fn strangers(&self, store: &Store) -> Result<Vec<(String, u64)>, StoreError> {
        let routes = store.routes(&webpush::transport()).await?.into_iter();
        Ok(routes.filter(|(route, _)| *route != *self.name).collect())
    }

    /// Says what is to be known of the key: that it is new, and that there are subscriptions of another one. Users and
    /// operators see of each whether it is.
    pub(super) async fn tell(&self, store: &Store) {
        let (file, fingerprint) = (&self.file, &*self.name);
        if self.made_key {
            tracing::info!(
                target: "mailchime::push::vapid_key_made",
                %file, fingerprint,
                "made the key by which push services know mailchime; keep a copy of the file"
            );
        }
        let strangers = match self.strangers(store).await {
            Ok(strangers) => strangers,
            Err(error) => {
                tracing::warn!(
                    target: "mailchime::push::vapid_key_not_compared",
                    %error,
                    "could not read from the database with which key browsers have subscribed; \
                     mailchime pushes with the one that it has"
                );
                return;
            }
        };
        if let Err(error) =
            store.only_route(&webpush::transport(), &self.name, Timestamp::now()).await
        {
            tracing::warn!(
                target: "mailchime::push::vapid_key_not_noted",
                %error,
                "could not write to the database which browsers have subscribed with another VAPID key; lists do not \
                 show it; mailchime pushes with the key that it has"
            );
        }
        for (other, subscriptions) in strangers {
            tracing::error!(
                target: "mailchime::push::vapid_key_changed",
                %file, fingerprint, other, subscriptions,
                "browsers have subscribed with another VAPID key than the one in the file, and get nothing \
                 until they subscribe again; put back the file of that key and restart mailchime"
            );
        }
    }
}

/// Sends by `setup` from now on, and has the API offer it; with `None` Web Push is off.
pub(super) fn publish(setup: Option<WebPushSetup>, routes: &Routes, transports: &Transports) {
    let (route, enrol) = match setup {
        Some(WebPushSetup { web_push, route, key: KeyNews { name, .. } }) => {
            let enrol: Arc<dyn Enrol> = Arc::new(web_push);
            (Some((name, route)), Some(enrol))
        }
        None => (None, None),
    };
    routes.publish(&webpush::transport(), route);
    transports.set(webpush::transport(), enrol);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::{Account, BackendId, Registration};
    use crate::store::Registrant;

    const BROWSER: &str =
        "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";

    #[tokio::test]
    async fn a_lost_key_is_seen_by_the_subscriptions_that_it_leaves_behind() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("mailchime.db").display());
        let store = Store::open(&url.parse().unwrap(), Duration::from_secs(5)).await.unwrap();
        let store = store.sealing(&folder.path().join("mailchime.key"));
        let config = WebPushConfig::new(folder.path().join("vapid.key"), "mailto:a@example.org");
        let start = |browsers| {
            let resolver = NameResolver::default();
            WebPushSetup::new(Some(&config), &resolver, browsers).unwrap()
        };
        let browsers = Browsers::of(Some(&config), &store).await;
        assert_eq!(browsers, Browsers::None);
        let first = start(browsers).unwrap();
        assert!(first.key.made_key && first.key.strangers(&store).await.unwrap().is_empty());
        let alice = Account::from_login("alice@example.org");
        let request = json!({
            "endpoint": "https://push.example.net/1",
            "keys": { "p256dh": BROWSER, "auth": "BTBZMqHH6r4Tts7J_aSIgg" },
        });
        let subscription = first.web_push.enrol(&alice, &request).unwrap().subscription;
        let registration = Registration { subscription, mailboxes: Vec::new() };
        let (backend, now) = (BackendId::new(None, "imap", 993), Timestamp::now());
        let login = Registrant::new(&backend, now, None);
        store.register(&registration, login, 10, now).await.unwrap();
        let again = start(Browsers::of(Some(&config), &store).await).unwrap();
        assert!(!again.key.made_key && again.key.strangers(&store).await.unwrap().is_empty());

        std::fs::remove_file(&config.key_file).unwrap();
        let browsers = Browsers::of(Some(&config), &store).await;
        assert_eq!(browsers, Browsers::Subscribed);
        for browsers in [browsers, Browsers::NotKnown] {
            assert!(start(browsers).is_none() && !config.key_file.exists(), "a key was made");
        }
        // As an administrator makes one who has no copy.
        let other = start(Browsers::None).unwrap();
        assert!(other.key.made_key);
        let strangers = other.key.strangers(&store).await.unwrap();
        assert_eq!(strangers, [(first.key.name.to_string(), 1)]);

        let kind = async || {
            let [listed] = &store.subscriptions_of(&alice).await.unwrap()[..] else { panic!() };
            listed.failing.as_ref().map(|failing| failing.kind.to_string())
        };
        for (key, expected) in [(&first, None), (&other, Some("other-route")), (&first, None)] {
            key.news().tell(&store).await;
            assert_eq!(kind().await.as_deref(), expected);
        }
        let off = WebPushSetup::new(None, &NameResolver::default(), Browsers::None);
        assert!(off.unwrap().is_none());
        store.close().await;
        assert_eq!(Browsers::of(Some(&config), &store).await, Browsers::None);
        std::fs::remove_file(&config.key_file).unwrap();
        assert_eq!(Browsers::of(Some(&config), &store).await, Browsers::NotKnown);
    }
}
