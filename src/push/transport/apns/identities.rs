//! Who we are to APNs, and for whom: each identity is a route whose name is its topic, and serves the
//! users of some domains.
//!
//! The set can be replaced while everything runs: a push under way ends on the route of before.
//! Nothing here reads a clock.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use serde::Serialize;
use tracing::warn;

use super::message::MailMessages;
use super::{ApnsClient, ApnsIdentity, IdentityError, MessageStyle, SetupError, Validity};
use crate::config::{self, ApnsServer};
use crate::imap::registration::xapple::TRANSPORT;
use crate::model::{Timestamp, TransportId};
use crate::net::resolve::NameResolver;
use crate::push::transport::{Route, Routes};

/// The identities of a configuration; clones share them.
#[derive(Clone, Debug)]
pub struct Identities {
    entries: Arc<RwLock<Arc<[Entry]>>>,
    style: MessageStyle,
    resolver: NameResolver,
    routes: Routes,
}

#[derive(Debug)]
struct Entry {
    identity: ApnsIdentity,
    server: ApnsServer,
    domains: Vec<String>,
    route: Route,
}

/// Identities that were read and are not in use yet.
#[derive(Debug)]
pub struct NewIdentities(Arc<[Entry]>);

/// What devices get that register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// `None` where nobody could push to them at the moment.
    pub topic: Option<String>,
    /// Of whose users, in lower case; empty: of all whom no other offer names.
    pub domains: Vec<String>,
}

/// An identity as metrics and people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IdentityStatus {
    /// The topic that it pushes for.
    pub topic: String,
    /// The file of the certificate or key.
    pub file: PathBuf,
    /// The server that it pushes to.
    pub endpoint: String,
    /// The domains that it serves; empty for all.
    pub domains: Vec<String>,
    /// When the certificate ends, in milliseconds since 1970; `None` for a key.
    pub not_after: Option<i64>,
    /// Whether it can push now.
    pub valid: bool,
}

/// Why a configuration gives no identities. The text begins with the key at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The files of an identity cannot be used.
    #[error("[apns] {key}: {why}")]
    Identity {
        /// The key of the configuration that is at fault.
        key: &'static str,
        /// What is wrong with it.
        why: IdentityError,
    },
    /// There can be no client.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// Two identities have one topic.
    #[error("[[apns]]: two are for the topic {topic}; remove one")]
    SameTopic {
        /// The topic.
        topic: String,
    },
}

// === impl Identities ===

impl Identities {
    /// Reads all files, opens no socket, and publishes a route for each identity in `routes`.
    ///
    /// # Errors
    /// When a file cannot be read or is no identity, TLS cannot be set up, or two identities are for
    /// one topic.
    pub fn load(
        config: &[config::ApnsConfig],
        style: MessageStyle,
        resolver: &NameResolver,
        routes: &Routes,
    ) -> Result<Self, LoadError> {
        let entries = entries(config, style, resolver, &[])?;
        let identities = Self {
            entries: Arc::new(RwLock::new(entries)),
            style,
            resolver: resolver.clone(),
            routes: routes.clone(),
        };
        identities.publish();
        Ok(identities)
    }

    /// The identities of another configuration, or of renewed files, to [`Identities::replace`] those of now.
    ///
    /// # Errors
    /// As [`Identities::load`].
    pub fn prepare(
        &self,
        config: &[config::ApnsConfig],
        priority: Option<u8>,
    ) -> Result<NewIdentities, LoadError> {
        let style = MessageStyle { priority, ..self.style };
        entries(config, style, &self.resolver, &self.entries()).map(NewIdentities)
    }

    /// Replaces all identities and their routes. Requests under way end on their connections; new ones use new
    /// connections.
    pub fn replace(&self, NewIdentities(new): NewIdentities) {
        *self.entries.write() = new;
        self.publish();
    }

    fn publish(&self) {
        let entries = self.entries();
        let route = |entry: &Entry| (entry.identity.topic().into(), entry.route.clone());
        self.routes.publish(&TransportId::new(TRANSPORT), entries.iter().map(route));
    }

    /// Where their routes are published.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// What phones that register get at `now`, one offer for each identity that is for mail: its topic
    /// while its route is open.
    pub fn offers(&self, now: Timestamp) -> Vec<Offer> {
        let entries = self.entries();
        let for_mail = entries.iter().filter(|entry| entry.identity.is_for_mail());
        for_mail
            .map(|Entry { identity, domains, route, .. }| Offer {
                topic: route.closed(now).is_none().then(|| identity.topic().to_owned()),
                domains: domains.clone(),
            })
            .collect()
    }

    /// All of them, in the order of the configuration.
    pub fn statuses(&self, now: Timestamp) -> Vec<IdentityStatus> {
        let entries = self.entries();
        let status = |entry: &Entry| IdentityStatus {
            topic: entry.identity.topic().to_owned(),
            file: entry.identity.file().to_owned(),
            endpoint: entry.server.to_string(),
            domains: entry.domains.clone(),
            not_after: entry.identity.not_after().map(|at| at.0),
            valid: entry.identity.validity(now) == Validity::Valid,
        };
        entries.iter().map(status).collect()
    }

    /// The next moment after `now` at which one begins or ceases to be valid.
    pub(in crate::push) fn turns_at(&self, now: Timestamp) -> Option<Timestamp> {
        self.entries().iter().filter_map(|entry| entry.identity.turns_at(now)).min()
    }

    fn entries(&self) -> Arc<[Entry]> {
        Arc::clone(&self.entries.read())
    }
}

/// The route of this identity. `resolver` as in [`ApnsClient::new`].
///
/// # Errors
/// As [`ApnsClient::new`].
pub fn route(
    identity: &ApnsIdentity,
    config: &config::ApnsConfig,
    style: MessageStyle,
    resolver: &NameResolver,
) -> Result<Route, SetupError> {
    let client = ApnsClient::new(identity, config, resolver)?;
    let messages = MailMessages { server: config.endpoint.clone(), style };
    Ok(Route::new(messages, client, config.in_flight))
}

/// `before` are those that run.
fn entries(
    config: &[config::ApnsConfig],
    style: MessageStyle,
    resolver: &NameResolver,
    before: &[Entry],
) -> Result<Arc<[Entry]>, LoadError> {
    let mut entries: Vec<Entry> = Vec::new();
    for apns in config {
        let mut identity = ApnsIdentity::load(&apns.identity)
            .map_err(|why| LoadError::Identity { key: key(&apns.identity, &why), why })?;
        for other in entries.iter().chain(before) {
            identity.share_token(&other.identity);
        }
        if entries.iter().any(|other| other.identity.topic() == identity.topic()) {
            return Err(LoadError::SameTopic { topic: identity.topic().to_owned() });
        }
        if !identity.is_for_mail() {
            warn!(
                target: "mailchime::push::topic_not_for_mail",
                topic = identity.topic(),
                "iOS Mail ignores pushes of this topic; it takes topics that begin with \
                 com.apple.mobilemail.push. or com.apple.mail."
            );
        }
        let server = apns.endpoint.clone();
        let route = route(&identity, apns, style, resolver)?;
        entries.push(Entry { identity, server, domains: apns.domains.clone(), route });
    }
    Ok(entries.into())
}

/// The key of the configuration that is at fault.
fn key(config: &config::ProviderFiles, why: &IdentityError) -> &'static str {
    let at_fault = why.file();
    let is = |file: &Path| at_fault == Some(file);
    match (config, why) {
        (_, IdentityError::OtherTopic { .. }) => "topic",
        (_, IdentityError::Password { .. } | IdentityError::Secret { .. }) => "password_file",
        (config::ProviderFiles::Key { .. }, _) => "key",
        (config::ProviderFiles::Pkcs12 { .. }, _) => "certificate",
        (config::ProviderFiles::Pem { certificate, private_key, .. }, _) => {
            match [certificate, private_key].map(|file| is(file)) {
                [true, false] => "certificate",
                [false, true] => "private_key",
                _ => "certificate, private_key",
            }
        }
    }
}
