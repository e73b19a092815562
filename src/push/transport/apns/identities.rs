//! Who we are to APNs, for whom: each identity with its client, chosen by the domain of a user who
//! registers and by the topic of a row that is pushed.
//!
//! The set can be replaced while everything runs: who holds a client of before finishes with it.
//! Nothing here reads a clock.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::watch;
use tracing::warn;

use super::{ApnsClient, Identity, IdentityError, SetupError, Validity};
use crate::config;
use crate::model::{Account, Timestamp};
use crate::net::resolve::NameResolver;

/// The identities of a configuration; clones share them.
#[derive(Clone, Debug)]
pub struct Identities {
    entries: Arc<watch::Sender<Arc<[Entry]>>>,
    resolver: NameResolver,
}

#[derive(Debug)]
struct Entry {
    identity: Identity,
    apns: ApnsClient,
    domains: Vec<String>,
}

/// What devices that register may be told.
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
    pub topic: String,
    /// The file of the certificate or key.
    pub file: PathBuf,
    pub endpoint: String,
    pub domains: Vec<String>,
    /// When the certificate ends, in milliseconds since 1970; `None` for a key.
    pub not_after: Option<i64>,
    pub valid: bool,
}

/// Why nobody can push to a topic at this moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoClient {
    #[error("no identity is for this topic")]
    OtherTopic,
    #[error("{}: is {validity}", .file.display())]
    Invalid { file: PathBuf, validity: Validity },
}

/// Why a configuration gives no identities. The text begins with the key at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    #[error("[apns] {key}: {why}")]
    Identity { key: &'static str, why: IdentityError },
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error("[[apns]]: two are for the topic {topic}; remove one")]
    SameTopic { topic: String },
}

// === impl Identities ===

impl Identities {
    /// Reads all files and opens no socket. `priority` and `resolver` as in [`ApnsClient::new`].
    pub fn load(
        config: &[config::Apns],
        priority: Option<u8>,
        resolver: &NameResolver,
    ) -> Result<Self, LoadError> {
        let entries = watch::Sender::new(entries(config, priority, resolver, &[])?);
        Ok(Self { entries: Arc::new(entries), resolver: resolver.clone() })
    }

    /// Replaces all identities, or none on an error. Requests under way end on their connections;
    /// new ones use new connections.
    pub fn reload(&self, config: &[config::Apns], priority: Option<u8>) -> Result<(), LoadError> {
        let new = entries(config, priority, &self.resolver, &self.entries())?;
        self.entries.send_replace(new);
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    /// Waits until there is one; for ever if there never is.
    pub async fn first(&self) {
        let _ = self.entries.subscribe().wait_for(|entries| !entries.is_empty()).await;
    }

    /// What devices may be told at `now`, one for each identity: its topic if it is valid.
    pub fn offers(&self, now: Timestamp) -> Vec<Offer> {
        let offer =
            |entry: &Entry| Offer { topic: entry.topic_at(now), domains: entry.domains.clone() };
        self.entries().iter().map(offer).collect()
    }

    /// What a device of this account is told when it registers at `now`; `None` where nobody could
    /// push to it.
    pub fn offer(&self, account: &Account, now: Timestamp) -> Option<String> {
        let entries = self.entries();
        let of = |domain: &str| {
            entries.iter().find(|entry| entry.domains.iter().any(|served| served == domain))
        };
        // A name that mentions a domain in another form than user@domain counts as of none of them.
        let domain = account.domain_among(|domain| of(domain).is_some()).unwrap_or_default();
        let own = domain.and_then(of);
        let entry = own.or_else(|| entries.iter().find(|entry| entry.domains.is_empty()))?;
        entry.topic_at(now)
    }

    /// Who pushes to devices of this topic at `now`.
    pub fn client_for(&self, topic: &str, now: Timestamp) -> Result<ApnsClient, NoClient> {
        let entries = self.entries();
        let entry = entries.iter().find(|entry| entry.identity.topic() == topic);
        let entry = entry.ok_or(NoClient::OtherTopic)?;
        match entry.validity(now) {
            Validity::Valid => Ok(entry.apns.clone()),
            validity => Err(NoClient::Invalid { file: entry.identity.file().to_owned(), validity }),
        }
    }

    /// All of them, in the order of the configuration.
    pub fn statuses(&self, now: Timestamp) -> Vec<IdentityStatus> {
        let entries = self.entries();
        let status = |entry: &Entry| IdentityStatus {
            topic: entry.identity.topic().to_owned(),
            file: entry.identity.file().to_owned(),
            endpoint: entry.apns.endpoint().to_string(),
            domains: entry.domains.clone(),
            not_after: entry.identity.not_after().map(|at| at.0),
            valid: entry.validity(now) == Validity::Valid,
        };
        entries.iter().map(status).collect()
    }

    /// The topics of all identities, valid or not, each with how many pushes may be under way.
    pub(in crate::push) fn topics(&self) -> Vec<(Arc<str>, usize)> {
        let entries = self.entries();
        entries
            .iter()
            .map(|entry| (entry.identity.topic().into(), entry.apns.in_flight()))
            .collect()
    }

    /// The next moment after `now` at which one begins or ceases to be valid.
    pub(in crate::push) fn turns_at(&self, now: Timestamp) -> Option<Timestamp> {
        self.entries().iter().filter_map(|entry| entry.identity.turns_at(now)).min()
    }

    /// As after a reload, though nothing is another one: what was refused may be taken now.
    pub(in crate::push) fn try_anew(&self) {
        self.entries.send_modify(|_| {});
    }

    /// Tells of each [`Identities::reload`] and [`Identities::try_anew`].
    pub(in crate::push) fn reloads(&self) -> Reloads {
        Reloads(self.entries.subscribe())
    }

    fn entries(&self) -> Arc<[Entry]> {
        self.entries.borrow().clone()
    }
}

/// Sees reloads.
pub(in crate::push) struct Reloads(watch::Receiver<Arc<[Entry]>>);

impl Reloads {
    /// Returns after a reload, or never again. Cancel safe.
    pub(in crate::push) async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

// === impl Entry ===

impl Entry {
    fn topic_at(&self, now: Timestamp) -> Option<String> {
        (self.validity(now) == Validity::Valid).then(|| self.identity.topic().to_owned())
    }

    fn validity(&self, now: Timestamp) -> Validity {
        self.identity.validity(now)
    }
}

/// `before` are those that run.
fn entries(
    config: &[config::Apns],
    priority: Option<u8>,
    resolver: &NameResolver,
    before: &[Entry],
) -> Result<Arc<[Entry]>, LoadError> {
    let mut entries: Vec<Entry> = Vec::new();
    for apns in config {
        let mut identity = Identity::load(&apns.identity)
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
        let client = ApnsClient::new(&identity, apns, priority, resolver)?;
        entries.push(Entry { identity, apns: client, domains: apns.domains.clone() });
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
