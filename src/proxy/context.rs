//! What sessions share, and what they begin with.

use std::sync::Arc;

use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::sync::{mpsc, watch};

use super::admission::Admission;
use super::unanswered_mailboxes::UnansweredMailboxes;
use crate::config::{self, Config, RelayedLogins};
use crate::imap::contract::{DomainRoute, LimitHits, Profile, PushOffer, ShownCapabilities};
use crate::imap::tap::Taps;
use crate::metrics::Metrics;
use crate::model::{Account, SessionEvent};
use crate::net::backends::Backends;
use crate::net::counters::LimitCounters;
use crate::net::tls::ServerTls;
use crate::registrar::Registrar;
use crate::store::CredentialSource;

/// What all sessions share that began under one configuration. Its parts that outlive it are handles.
#[derive(Debug)]
pub struct SessionContext {
    pub(super) backends: Backends,
    /// Offered to clients; `None` when push is off. May change at any time.
    push: watch::Receiver<Option<PushOffer>>,
    pub(super) credentials: Arc<CredentialSource>,
    pub(super) events: mpsc::Sender<SessionEvent>,
    /// What clients are shown.
    pub(super) tls: Arc<ServerConfig>,
    /// By which names: those with a certificate of their own, and all.
    named: Arc<[String]>,
    names: Arc<[String]>,
    pub(super) admission: Arc<Admission>,
    pub(super) counters: Arc<LimitCounters>,
    pub(super) limits: config::LimitsConfig,
    /// Makes the taps of sessions.
    pub(super) taps: Option<Taps>,
    pub(super) registrar: Registrar,
    pub(super) unanswered: Arc<UnansweredMailboxes>,
    /// Mechanisms that hide the password pass.
    relay_mechanisms: bool,
    /// A master user watches; nobody's password is needed.
    master: bool,
    profile: Mutex<Option<Arc<Profile>>>,
    pub(super) metrics: Arc<Metrics>,
}

/// What sessions begin with, from the moment that it is set. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CurrentContext(Arc<Mutex<Arc<SessionContext>>>);

/// Whether mechanisms that hide the password pass; `master`: a master user watches.
fn relays(relay: RelayedLogins, master: bool) -> bool {
    match relay {
        RelayedLogins::Always => true,
        RelayedLogins::Master => master,
        RelayedLogins::Never => false,
    }
}

impl SessionContext {
    /// What sessions share.
    pub fn new(
        backends: Backends,
        push: watch::Receiver<Option<PushOffer>>,
        credentials: Arc<CredentialSource>,
        events: mpsc::Sender<SessionEvent>,
        registrar: Registrar,
        tls: ServerTls,
        config: &Config,
    ) -> Self {
        let master = config.credentials == config::CredentialsMode::Master;
        Self {
            counters: backends.counters(),
            backends,
            push,
            credentials,
            events,
            tls: tls.config,
            named: tls.named,
            names: tls.names,
            admission: Arc::default(),
            limits: config.limits.clone(),
            taps: None,
            registrar,
            unanswered: Arc::default(),
            relay_mechanisms: relays(config.auth.relay, master),
            master,
            profile: Mutex::new(None),
            metrics: Arc::default(),
        }
    }

    /// New sessions get the taps that `taps` makes.
    #[must_use]
    pub fn tapped(self, taps: Option<Taps>) -> Self {
        Self { taps, ..self }
    }

    /// Counts in `metrics` from now on.
    #[must_use]
    pub fn counting(self, metrics: Arc<Metrics>) -> Self {
        Self { metrics, ..self }
    }

    /// The same under other certificates, and the limits and `[auth]` of another configuration. What
    /// is counted stays counted.
    #[must_use]
    pub fn reloaded(&self, tls: ServerTls, config: &Config) -> Self {
        let relay_mechanisms = relays(config.auth.relay, self.master);
        let limits = config.limits.clone();
        Self { limits, relay_mechanisms, ..self.showing(tls) }
    }

    /// The same under other certificates.
    #[must_use]
    pub fn showing(&self, tls: ServerTls) -> Self {
        Self {
            backends: self.backends.clone(),
            push: self.push.clone(),
            credentials: Arc::clone(&self.credentials),
            events: self.events.clone(),
            tls: tls.config,
            named: tls.named,
            names: tls.names,
            admission: Arc::clone(&self.admission),
            counters: Arc::clone(&self.counters),
            limits: self.limits.clone(),
            taps: self.taps.clone(),
            registrar: self.registrar.clone(),
            unanswered: Arc::clone(&self.unanswered),
            relay_mechanisms: self.relay_mechanisms,
            master: self.master,
            profile: Mutex::new(None),
            metrics: Arc::clone(&self.metrics),
        }
    }

    /// What is offered where a master watches: nothing to users on a backend that has none.
    fn to_be_watched(&self, offer: &PushOffer) -> Option<PushOffer> {
        let (domains, default) = self.backends.masters();
        let mut routes: Vec<_> = domains
            .into_iter()
            .map(|(domain, has_master)| {
                let route = offer.of_domain(Some(&domain)).filter(|_| has_master);
                DomainRoute { route: route.map(str::to_owned), domain: Some(domain) }
            })
            .collect();
        for DomainRoute { domain, route } in &offer.routes {
            if domain.is_none() || routes.iter().all(|routed| routed.domain != *domain) {
                let route = route.clone().filter(|_| default);
                routes.push(DomainRoute { domain: domain.clone(), route });
            }
        }
        let offer = PushOffer { routes, ..offer.clone() };
        offer.is_open().then_some(offer)
    }

    /// Counts what a session, of this account if that is known, hit since the last time.
    pub(super) fn count(&self, over: LimitHits, account: Option<&Account>) {
        self.counters.commands_before_login.add(over.commands);
        self.counters.command_size.add(over.command);
        self.counters.capability_size.add(over.capability);
        if over.mailboxes > 0 && self.counters.mailboxes.hit() {
            let account = account.map(Account::as_str);
            let limit = self.push.borrow().as_ref().map(|offer| offer.most_mailboxes);
            tracing::warn!(
                target: "mailchime::proxy::registration_shortened",
                account,
                limit,
                left_out = over.mailboxes,
                "[push] mailboxes is reached; mailchime registers the first mailboxes and leaves \
                 out the others"
            );
        }
    }

    /// What a session that starts now may offer; shared by all sessions while it stays the same.
    pub(super) fn profile(&self) -> Arc<Profile> {
        // Nobody knows yet whose session it will be.
        let seen = self.backends.default().seen();
        let logins_elsewhere = self.backends.routed_logins();
        let mut push = self.push.borrow().clone();
        if self.master {
            push = push.and_then(|offer| self.to_be_watched(&offer));
        }
        let mut profile = self.profile.lock();
        if let Some(profile) = &*profile
            && profile.backend.as_ref().map(Arc::as_ptr) == seen.as_ref().map(Arc::as_ptr)
            && profile.logins_elsewhere == logins_elsewhere
            && profile.push == push
        {
            return Arc::clone(profile);
        }
        Arc::clone(profile.insert(Arc::new(Profile {
            backend: seen,
            logins_elsewhere,
            push,
            relay_mechanisms: self.relay_mechanisms,
            master: self.master,
            routed: self.backends.routed(),
            commands: self.limits.commands_before_login,
            command_size: self.limits.command_size,
            capability_size: self.limits.capability_size,
            compress: self.limits.compress,
            shown: ShownCapabilities::default(),
        })))
    }
}

impl CurrentContext {
    /// What sessions share.
    pub fn new(context: SessionContext) -> Self {
        Self(Arc::new(Mutex::new(Arc::new(context))))
    }

    /// Sessions that begin from now on have this.
    pub fn set(&self, context: SessionContext) {
        *self.0.lock() = Arc::new(context);
    }

    /// What a client that connects now is shown.
    pub fn tls(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.get().tls)
    }

    /// The names of certificates that are shown for a name, as [`ServerTls::named`].
    pub fn named(&self) -> Arc<[String]> {
        Arc::clone(&self.get().named)
    }

    /// The names that all certificates are for, as [`ServerTls::names`].
    pub fn names(&self) -> Arc<[String]> {
        Arc::clone(&self.get().names)
    }

    /// What a session that begins now has.
    pub fn get(&self) -> Arc<SessionContext> {
        Arc::clone(&self.0.lock())
    }
}
