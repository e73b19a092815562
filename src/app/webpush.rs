//! Web Push at the start and at a reload: its key, its route, and what the API offers of it.

use std::sync::Arc;

use super::StartError;
use crate::config::WebPushConfig;
use crate::net::guard::Guard;
use crate::net::resolve::NameResolver;
use crate::push::transport::enrol::{Enrol, Transports};
use crate::push::transport::webpush::vapid::VapidKey;
use crate::push::transport::webpush::{self, WebPush};
use crate::push::transport::{Route, Routes};
use crate::store::Store;

/// Web Push as a configuration has it, made and not yet published.
#[derive(Debug)]
pub(super) struct WebPushSetup {
    web_push: WebPush,
    name: Arc<str>,
    route: Route,
    made_key: bool,
    file: String,
}

impl WebPushSetup {
    /// Reads the key, or makes it where there is no file. `None` where Web Push is off.
    pub(super) fn new(
        config: Option<&WebPushConfig>,
        resolver: &NameResolver,
    ) -> Result<Option<Self>, StartError> {
        let Some(config) = config else { return Ok(None) };
        let (key, made_key) = VapidKey::open(&config.key_file, &config.contact)
            .map_err(|error| StartError::key("[webpush] key_file", error))?;
        let guard = Guard::new(&config.hosts, &config.allow_private);
        let web_push = WebPush::new(Arc::new(key), Arc::new(guard));
        let (name, route) = webpush::route(&web_push, config, resolver)
            .map_err(|error| StartError::Configuration(error.to_string()))?;
        let file = config.key_file.display().to_string();
        Ok(Some(Self { web_push, name, route, made_key, file }))
    }

    /// Says what is to be known of the key: that it is new, and that there are subscriptions of another one.
    pub(super) async fn tell(&self, store: &Store) {
        let (file, fingerprint) = (&self.file, &*self.name);
        if self.made_key {
            tracing::info!(
                target: "mailchime::push::vapid_key_made",
                %file, fingerprint,
                "made the key by which push services know mailchime; keep a copy of the file"
            );
        }
        let routes = match store.routes(&webpush::transport()).await {
            Ok(routes) => routes,
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
        for (other, subscriptions) in routes.into_iter().filter(|(route, _)| *route != *self.name) {
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
        Some(WebPushSetup { web_push, name, route, .. }) => {
            let enrol: Arc<dyn Enrol> = Arc::new(web_push);
            (Some((name, route)), Some(enrol))
        }
        None => (None, None),
    };
    routes.publish(&webpush::transport(), route);
    transports.set(webpush::transport(), enrol);
}
