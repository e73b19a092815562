//! Push to iOS Mail, as it is composed: the identities of `[apns]`, the calendar of their certificates, and
//! what sessions offer meanwhile. No other file of this folder knows what iOS Mail's push service needs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use tokio::sync::watch as cell;

use super::StartError;
use super::admin::PUSH_OFF;
use super::tasks::{StopStage, Tasks};
use crate::admin::Part;
use crate::config::{self, Config, ProviderFiles};
use crate::imap::contract::{DomainRoute, PushOffer};
use crate::metrics::Metrics;
use crate::model::Timestamp;
use crate::net::resolve::NameResolver;
use crate::push::transport::Routes;
use crate::push::transport::apns::certificate_watch;
use crate::push::transport::apns::identities::{Identities, NewIdentities, Offer};

/// Push to iOS Mail. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct MailPushSetup {
    identities: Identities,
    offer: Arc<SessionOffer>,
}

/// What sessions offer, which follows the identities and the calendar of their certificates.
#[derive(Debug)]
struct SessionOffer {
    /// `[push]` of the start.
    push: config::PushConfig,
    current: cell::Sender<Option<PushOffer>>,
}

impl SessionOffer {
    fn publish(&self, offers: Vec<Offer>) {
        self.current.send_replace(push_offer(offers, &self.push));
    }
}

impl MailPushSetup {
    /// Reads all files of `config`, and publishes its routes.
    pub(super) fn load(
        config: &Config,
        resolver: &NameResolver,
        routes: &Routes,
    ) -> Result<Self, StartError> {
        let loaded = Identities::load(&config.apns, (&config.push).into(), resolver, routes);
        let identities = loaded.map_err(|error| StartError::Configuration(error.to_string()))?;
        let offer = SessionOffer { push: config.push.clone(), current: cell::Sender::new(None) };
        offer.publish(identities.offers(Timestamp::now()));
        Ok(Self { identities, offer: Arc::new(offer) })
    }

    /// Reads all files of `config`, for [`MailPushSetup::replace`].
    pub(super) fn prepare(&self, config: &Config) -> Result<NewIdentities, StartError> {
        let prepared = self.identities.prepare(&config.apns, config.push.priority);
        prepared.map_err(|error| StartError::Configuration(error.to_string()))
    }

    /// Goes by these from now on; sessions offer them as soon as this has returned.
    pub(super) fn replace(&self, new: NewIdentities) {
        self.identities.replace(new);
        self.offer.publish(self.identities.offers(Timestamp::now()));
    }

    /// Goes by `config`, or reads renewed files; on an error all stays as it was.
    pub(super) fn reload(&self, config: &Config) -> Result<(), StartError> {
        self.prepare(config).map(|new| self.replace(new))
    }

    /// The files that it reads.
    pub(super) fn files(config: &Config) -> Vec<PathBuf> {
        config.apns.iter().flat_map(|apns| files(&apns.identity)).cloned().collect()
    }

    /// What sessions offer, which follows the certificates.
    pub(super) fn start_offer(&self, tasks: &mut Tasks) -> cell::Receiver<Option<PushOffer>> {
        let Self { identities, offer } = self.clone();
        let offered = offer.current.subscribe();
        let publish = move |offers| offer.publish(offers);
        let stop = tasks.stop_of(StopStage::Serving);
        let watched = certificate_watch::run(identities, Timestamp::now, publish, stop);
        tasks.start(StopStage::Serving, "certificate watch", watched);
        offered
    }

    /// Shows in the metrics when the certificates end.
    pub(super) fn watch_certificates(&self, metrics: &Arc<Metrics>) {
        let identities = self.identities.clone();
        metrics.watch_certificates(move || {
            let ends = identities.statuses(Timestamp::now()).into_iter();
            let at = |millis: i64| UNIX_EPOCH + Duration::from_millis(millis.unsigned_abs());
            ends.filter_map(|status| Some((status.topic, at(status.not_after?)))).collect()
        });
    }

    /// Whether all identities can be used. Without any, push is off because it was not wanted, and nothing
    /// is missing.
    pub(super) fn health(self, routes: Routes) -> Part {
        let Self { identities, .. } = self;
        Part::with_note("push", move || {
            let statuses = identities.statuses(Timestamp::now());
            let note = routes.is_empty().then_some(PUSH_OFF);
            async move {
                match statuses.iter().find(|status| !status.valid) {
                    None => Ok(note),
                    Some(first) => Err(format!(
                        "{}: has expired or is not valid yet; nothing is pushed under {}",
                        first.file.display(),
                        first.topic
                    )),
                }
            }
        })
    }
}

/// What sessions offer: `None` while nobody could be pushed, for then a phone that registers would
/// leave Fetch and get nothing.
pub fn push_offer(offers: Vec<Offer>, config: &config::PushConfig) -> Option<PushOffer> {
    let mut routes = Vec::new();
    for Offer { topic, domains } in offers {
        let all_others = domains.is_empty().then_some(None);
        let domains = domains.into_iter().map(Some).chain(all_others);
        routes.extend(domains.map(|domain| DomainRoute { domain, route: topic.clone() }));
    }
    let clients = config.clients.clone();
    let offer = PushOffer { routes, clients, most_mailboxes: config.mailboxes };
    offer.is_open().then_some(offer)
}

fn files(identity: &ProviderFiles) -> Vec<&PathBuf> {
    match identity {
        ProviderFiles::Pem { certificate, private_key, .. } => vec![certificate, private_key],
        ProviderFiles::Pkcs12 { file, password_file, .. } => {
            std::iter::once(file).chain(password_file).collect()
        }
        ProviderFiles::Key { key, .. } => vec![key],
    }
}
