//! Web hooks: a signed POST for each change, in the form of Standard Webhooks.
//!
//! Those of users are subscriptions as all others are. One of the operator's has a subscription of each
//! account that it is for; `app` keeps these rows. What both send is in `message`, what answers mean in
//! `judge`.

pub(super) mod check;
pub(super) mod judge;
mod message;
pub mod operator;
pub mod users;

use std::sync::Arc;

use self::users::UserWebhooks;
use super::enrol::{Enrol, Transports};
use super::{Route, Routes};
use crate::config::WebhookConfig;
use crate::model::{Account, PushEndpoint, Subscription, TransportId};
use crate::net::resolve::NameResolver;
pub use crate::net::webhook_signature::WebhookSecret;

/// The name of the transport.
pub const TRANSPORT: &str = Subscription::OF_OPERATOR.0;

/// The route of all web hooks of users. No web hook of the operator has this name.
pub const USERS: &str = "users";

/// Whose web hook it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebhookOwner {
    /// A user gave its URL.
    User,
    /// The configuration gave its URL.
    Operator,
}

/// The subscription of one account for the web hook of the operator that has this name. Its URL is the
/// configuration's, so the endpoint is none but tells it from that of any other account: what one account
/// is sent is no reason for another to wait.
pub fn of_operator(name: &str, account: &Account) -> Subscription {
    Subscription {
        account: account.clone(),
        transport: TransportId::new(TRANSPORT),
        endpoint: PushEndpoint::new(name, &format!("{name}\0{account}")),
        app: Subscription::OF_OPERATOR.1.into(),
        route: name.into(),
        options: "{}".into(),
        secrets: None,
        expires_at: None,
    }
}

/// The web hooks of a configuration, and those of users where there may be any, made and not yet published.
#[derive(Debug)]
pub struct WebhookSetup {
    routes: Vec<(Arc<str>, Route)>,
    users: Option<UserWebhooks>,
}

impl WebhookSetup {
    /// Reads the files of all web hooks.
    ///
    /// # Errors
    /// Which key is at fault, and what is wrong.
    pub fn load(
        config: &[WebhookConfig],
        users: Option<UserWebhooks>,
        resolver: &NameResolver,
    ) -> Result<Self, String> {
        let mut routes = operator::all(config, resolver)?;
        if let Some(users) = &users {
            routes.push((USERS.into(), users.route(None, resolver)?));
        }
        Ok(Self { routes, users })
    }

    /// Publishes a route for each web hook of the operator, and one for those of users, in place of those of
    /// before.
    pub fn publish(self, routes: &Routes, transports: &Transports) {
        let id = TransportId::new(TRANSPORT);
        transports.set(id.clone(), self.users.map(|users| Arc::new(users) as Arc<dyn Enrol>));
        routes.publish(&id, self.routes);
    }
}
