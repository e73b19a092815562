//! The way of a change out, over real sockets: HTTP/2 and TLS with a client certificate to the
//! stand-in for APNs, and a database in a file.

use std::net::SocketAddr;
use std::sync::Arc;

use mailchime::config::{self, ApnsServer, Config};
pub(crate) use mailchime::demo::apns::Apns as StandIn;
use mailchime::demo::pki::Pki;
use mailchime::imap::registration::xapple::{ApnsOptions, DeviceToken, XAppleRegistration};
use mailchime::model::{Account, Registration, Subscription, Timestamp};
use mailchime::net::backends::{Backends, Table};
use mailchime::net::resolve::NameResolver;
use mailchime::push::transport::apns::ApnsIdentity;
use mailchime::push::transport::apns::identities::{Identities, LoadError, route};
use mailchime::push::transport::{Route, Routes};
use mailchime::store::{Registrant, Store};
use tempfile::TempDir;

use super::listener;

/// The backend of all accounts.
pub(crate) fn backends() -> Backends {
    let backend = config::BackendConfig::new("imap.example.org", 993, config::BackendTls::None);
    let config = Config::new(config::TlsConfig::new("", ""), backend);
    let table = Table::new(&config, &NameResolver::default()).unwrap();
    Backends::new(table, Arc::default())
}

/// The route of this identity, with the defaults of `[push]`.
pub(crate) fn route_of(identity: &ApnsIdentity, config: &config::ApnsConfig) -> Route {
    route(identity, config, (&config::PushConfig::default()).into(), &NameResolver::default())
        .unwrap()
}

/// The same for all identities of a configuration, with routes of their own.
pub(crate) fn load(config: &[config::ApnsConfig]) -> Identities {
    try_load(config, &config::PushConfig::default()).unwrap()
}

/// As [`load`], with this `[push]`.
pub(crate) fn try_load(
    config: &[config::ApnsConfig],
    push: &config::PushConfig,
) -> Result<Identities, LoadError> {
    Identities::load(config, push.into(), &NameResolver::default(), &Routes::default())
}

/// A registration in a session that has just logged in there.
pub(crate) async fn register(store: &Store, registration: &Registration, now: Timestamp) {
    let backend = backends().default();
    let login = Registrant::new(backend.id(), now, None);
    store.register(registration, login, 50, now).await.unwrap();
}

/// Certificates in memory and in a folder.
pub(crate) struct Certificates {
    pub(crate) pki: Pki,
    pub(crate) folder: TempDir,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let pki = Pki::generate(None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        pki.write_to(folder.path()).unwrap();
        Self { pki, folder }
    }

    pub(crate) async fn stand_in(&self) -> StandIn {
        StandIn::start(listener().await, &self.pki).unwrap()
    }

    pub(crate) fn identity(&self) -> ApnsIdentity {
        let file = |name| self.folder.path().join(name);
        let config = config::ApnsConfig::new(file("apns.pem"), file("apns.key"));
        ApnsIdentity::load(&config.identity).unwrap()
    }

    /// How to reach a server of these certificates.
    pub(crate) fn config(&self, address: SocketAddr) -> config::ApnsConfig {
        let file = |name| self.folder.path().join(name);
        let mut config = config::ApnsConfig::new(file("apns.pem"), file("apns.key"));
        config.endpoint = ApnsServer { host: address.ip().to_string(), port: address.port() };
        config.ca = Some(file("ca.pem"));
        config
    }

    pub(crate) fn route(&self, address: SocketAddr) -> Route {
        route_of(&self.identity(), &self.config(address))
    }

    /// The only identity, for everybody.
    pub(crate) fn identities(&self, address: SocketAddr) -> Identities {
        load(&[self.config(address)])
    }

    /// A device whose token begins with `name`.
    pub(crate) fn device(&self, name: &str) -> Subscription {
        XAppleRegistration {
            version: 2,
            account_id: "0715A26B-CA09-4730-A419-793000CA982E".into(),
            token: DeviceToken::new(&format!("{name:0<64}")).unwrap(),
            subtopic: "com.apple.mobilemail".into(),
            mailboxes: Vec::new(),
        }
        .subscription(Account::from_login("alice@example.org"), &self.pki.topic)
    }
}

/// The options of a device that is registered for a mail account by this name of its own.
pub(crate) fn options(account_id: &str) -> Arc<str> {
    ApnsOptions { account_id: account_id.to_owned(), version: 2 }.to_json().into()
}

/// The device's own name for its mail account.
pub(crate) fn account_id(device: &Subscription) -> String {
    ApnsOptions::from_json(&device.options).unwrap().account_id
}

/// The token of the device.
pub(crate) fn token(device: &Subscription) -> DeviceToken {
    DeviceToken::new(device.endpoint.as_given()).unwrap()
}
