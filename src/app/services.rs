//! The push services that need no more than their routes, FCM and web hooks, at the start and at a reload.

use super::StartError;
use crate::config::Config;
use crate::net::guard::Guard;
use crate::net::resolve::NameResolver;
use crate::push::transport::Routes;
use crate::push::transport::enrol::Transports;
use crate::push::transport::fcm::FcmSetup;
use crate::push::transport::webhook::WebhookSetup;
use crate::push::transport::webhook::users::UserWebhooks;

/// FCM and web hooks as a configuration has them, made and not yet published.
#[derive(Debug)]
pub(super) struct ServicesSetup {
    fcm: FcmSetup,
    webhooks: WebhookSetup,
}

impl ServicesSetup {
    /// Reads all files. `users` says whether users can subscribe web hooks of their own.
    pub(super) fn load(
        config: &Config,
        users: bool,
        resolver: &NameResolver,
    ) -> Result<Self, StartError> {
        let users = users.then(|| UserWebhooks::new(Guard::new(&[], &[])));
        let webhooks = WebhookSetup::load(&config.webhooks, users, resolver);
        let fcm = FcmSetup::load(&config.fcm, resolver);
        let both = webhooks.and_then(|webhooks| Ok(Self { fcm: fcm?, webhooks }));
        both.map_err(StartError::Configuration)
    }

    /// Sends by these from now on, and has the API offer them.
    pub(super) fn publish(self, routes: &Routes, transports: &Transports) {
        self.webhooks.publish(routes, transports);
        self.fcm.publish(routes, transports);
    }
}
