//! What all watchers of one backend share: its turns, its places, and what it is believed to tell.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::sleep;

use super::keepalive::SharedKeepalive;
use super::login_breaker::LoginBreaker;
use super::master_login::MasterLogin;
use super::pacing::{LoginPacer, LoginSlot};
use super::reliability::Reliability;
use crate::config;
use crate::net::backend::Backend;
use crate::net::counters::LimitCounters;
use crate::watch::source::doveadm::DoveadmCalls;

/// Backends that are remembered; those of an earlier configuration go first.
const MOST_BACKENDS: usize = 1024;

/// The backends that are or were watched.
#[derive(Debug)]
pub(in crate::watch) struct BackendHealthTable {
    config: config::WatchConfig,
    counters: Arc<LimitCounters>,
    known: Mutex<HashMap<String, Arc<BackendHealth>>>,
    /// Says when one is at fault that logins are refused, and when one was.
    faults: watch::Sender<()>,
}

/// One backend, as all its watchers know it.
#[derive(Debug)]
pub(in crate::watch) struct BackendHealth {
    /// For logs.
    pub(in crate::watch) name: String,
    /// How it takes what users logged in with.
    pub(in crate::watch) logins: LoginBreaker,
    pacer: LoginPacer,
    places: Option<ConnectionSlots>,
    /// Several backends may have this address, each with a master user of its own.
    masters: Mutex<Vec<(Backend, Arc<MasterLogin>)>>,
    pub(in crate::watch) idle: Reliability,
    pub(in crate::watch) notify: Reliability,
    pub(in crate::watch) doveadm: DoveadmCalls,
    /// What is known of how long its connections last.
    pub(in crate::watch) keepalive: SharedKeepalive,
}

/// The connections that a backend may have, if there is a limit.
#[derive(Debug)]
struct ConnectionSlots {
    free: Arc<Semaphore>,
    /// One for each watcher that found none free.
    wanted: Semaphore,
    /// There was a watcher that found none free.
    short: AtomicBool,
    /// For how long a watcher may have its place although others wait.
    term: Duration,
    counters: Arc<LimitCounters>,
}

/// A watcher's place among the connections of its backend.
#[derive(Debug)]
pub(in crate::watch) struct ConnectionSlot(
    #[expect(dead_code, reason = "it counts")] Option<OwnedSemaphorePermit>,
);

impl BackendHealthTable {
    pub(in crate::watch) fn new(
        config: &config::WatchConfig,
        counters: Arc<LimitCounters>,
    ) -> Self {
        let (known, faults) = (Mutex::default(), watch::Sender::default());
        Self { config: config.clone(), counters, known, faults }
    }

    /// Tells when one is at fault that logins are refused, and when one was.
    pub(in crate::watch) fn faults(&self) -> watch::Receiver<()> {
        self.faults.subscribe()
    }

    pub(in crate::watch) fn of(&self, backend: &Backend) -> Arc<BackendHealth> {
        let mut known = self.known.lock();
        if known.len() >= MOST_BACKENDS {
            known.retain(|_, health| Arc::strong_count(health) > 1);
        }
        let health = known.entry(backend.name()).or_insert_with(|| {
            let config::WatchConfig { logins_per_second, connections, poll_interval, .. } =
                self.config;
            let places = (connections > 0).then(|| ConnectionSlots {
                free: Arc::new(Semaphore::new(connections)),
                wanted: Semaphore::new(0),
                short: AtomicBool::new(false),
                term: poll_interval,
                counters: Arc::clone(&self.counters),
            });
            let pacer = LoginPacer::new(logins_per_second);
            Arc::new(BackendHealth {
                name: backend.name(),
                logins: LoginBreaker::new(self.faults.clone()),
                pacer,
                places,
                masters: Mutex::default(),
                idle: Reliability::default(),
                notify: Reliability::default(),
                doveadm: DoveadmCalls::default(),
                keepalive: SharedKeepalive::default(),
            })
        });
        Arc::clone(health)
    }
}

impl BackendHealth {
    /// Whether it takes the master user of `backend`, which has this address; `None` where there is
    /// none. Of one with another password nothing is known yet.
    pub(in crate::watch) fn master(&self, backend: &Backend) -> Option<Arc<MasterLogin>> {
        let user = backend.master()?;
        let mut masters = self.masters.lock();
        let known =
            |(of, _): &(Backend, Arc<MasterLogin>)| of.master().is_some_and(|it| it.same_as(user));
        if let Some((_, master)) = masters.iter().find(|known_as| known(known_as)) {
            return Some(Arc::clone(master));
        }
        // What nobody waits for is of an earlier configuration.
        masters.retain(|(_, master)| Arc::strong_count(master) > 1);
        let master = Arc::new(MasterLogin::new());
        masters.push((backend.clone(), Arc::clone(&master)));
        Some(master)
    }

    /// Waits for a place among the connections and then for a turn to log in. LoginPermits are for those
    /// whose user is there first, and are under way until it is known what came of the login.
    pub(in crate::watch) async fn turn(
        &self,
        user_is_there: bool,
    ) -> (ConnectionSlot, LoginSlot<'_>) {
        let place = match &self.places {
            Some(places) => places.take(&self.name).await,
            None => None,
        };
        let turn = self.pacer.turn(user_is_there).await;
        (ConnectionSlot(place), turn)
    }

    /// Waits for the turn of somebody who is to be asked to log in, as for a login of the caller's own.
    pub(in crate::watch) async fn push_turn(&self) -> LoginSlot<'_> {
        self.pacer.turn(false).await
    }

    /// Waits until another watcher has need of a place that the caller has had for its term. Each
    /// watcher waits for that all the time: where there is no limit it takes no room.
    pub(in crate::watch) async fn wanted(&self) {
        match &self.places {
            Some(places) => Box::pin(places.wanted()).await,
            None => std::future::pending().await,
        }
    }
}

impl ConnectionSlots {
    async fn wanted(&self) {
        sleep(self.term).await;
        if let Ok(wanted) = self.wanted.acquire().await {
            wanted.forget();
        }
    }

    async fn take(&self, backend: &str) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = Arc::clone(&self.free).try_acquire_owned() {
            return Some(place);
        }
        self.counters.watch_connections.add(1);
        if !self.short.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                target: "mailchime::watch::connections_reached",
                backend, "[watch] connections is reached; accounts take turns"
            );
        }
        self.wanted.add_permits(1);
        // In the order in which they came. It is never closed.
        Arc::clone(&self.free).acquire_owned().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BackendTls;
    use crate::net::resolve::NameResolver;

    fn backend(port: u16) -> Backend {
        let config = config::BackendConfig::new("localhost", port, BackendTls::None);
        Backend::new(&config, Duration::from_secs(1), &NameResolver::default()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn more_watchers_than_places_take_turns() {
        let term = Duration::from_secs(60);
        let config =
            config::WatchConfig { connections: 2, poll_interval: term, ..Default::default() };
        let backend_health = BackendHealthTable::new(&config, Arc::default());
        let health = backend_health.of(&backend(1));
        let watched = Arc::new(Mutex::new(Vec::new()));
        for account in 0..5 {
            let (health, watched) = (backend_health.of(&backend(1)), Arc::clone(&watched));
            tokio::spawn(async move {
                loop {
                    let (place, _) = health.turn(false).await;
                    watched.lock().push(account);
                    health.wanted().await;
                    drop(place);
                }
            });
        }
        sleep(term * 10).await;
        let watched = watched.lock().clone();
        assert_eq!(health.places.as_ref().unwrap().free.available_permits(), 0);
        let turns = |account| watched.iter().filter(|watched| **watched == account).count();
        assert!(backend_health.counters.watch_connections.hits() > 3);
        assert!((0..5).all(|account| (3..=5).contains(&turns(account))), "{watched:?}");
        // Another backend has places of its own.
        backend_health.of(&backend(2)).turn(false).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_without_waiters_keeps_its_place() {
        let config = config::WatchConfig { connections: 2, ..Default::default() };
        let health = BackendHealthTable::new(&config, Arc::default()).of(&backend(1));
        let _places = (health.turn(false).await.0, health.turn(false).await.0);
        let wanted = tokio::time::timeout(Duration::from_hours(9), health.wanted()).await;
        assert!(wanted.is_err());
    }
}
