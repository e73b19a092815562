//! What is counted of pushes, by their transport, whose name is the transport's own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::labels::{Labels, PushOutcome};

/// Seconds from a change to the acceptance of its push: new mail takes milliseconds, what is merged or
/// tried again takes up to a minute and more.
const LATENCY: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

type PushLatencies = Family<[(&'static str, String); 1], Histogram, fn() -> Histogram>;

/// What is counted of one transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportCounts {
    /// Its name.
    pub transport: String,
    /// Subscriptions that get pushes.
    pub active: u64,
    /// Subscriptions that have not answered yet.
    pub pending: u64,
    /// Pushes since the start that were accepted.
    pub accepted: u64,
    /// All other pushes since the start.
    pub failed: u64,
}

/// What is counted of all transports.
#[derive(Clone, Debug)]
pub(super) struct PushFamilies {
    outcomes: Family<[(&'static str, String); 2], Counter>,
    latency: PushLatencies,
    subscriptions: Family<[(&'static str, String); 2], Gauge>,
    /// Those that [`PushFamilies::begin`] knows.
    transports: Arc<Mutex<BTreeSet<String>>>,
}

/// Of a subscription.
const STATES: [&str; 2] = ["active", "pending"];

impl PushFamilies {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let outcomes = Family::default();
        registry.register(
            "pushes",
            "Pushes by transport and by what the push service made of them",
            outcomes.clone(),
        );
        let make: fn() -> Histogram = || Histogram::new(LATENCY);
        let latency = Family::new_with_constructor(make);
        registry.register_with_unit(
            "push_latency",
            "From a change seen to its push accepted, by transport",
            Unit::Seconds,
            latency.clone(),
        );
        let subscriptions = Family::default();
        registry.register(
            "subscriptions",
            "Subscriptions in the database, of all nodes, by transport and state",
            subscriptions.clone(),
        );
        Self { outcomes, latency, subscriptions, transports: Arc::default() }
    }

    /// Makes all series of a transport, at zero.
    pub(super) fn begin(&self, transport: &str) {
        for outcome in PushOutcome::all() {
            drop(self.outcomes.get_or_create(&labels(transport, outcome)));
        }
        drop(self.latency.get_or_create(&[("transport", transport.to_owned())]));
        self.transports.lock().insert(transport.to_owned());
        for state in STATES {
            drop(self.subscriptions.get_or_create(&of_state(transport, state)));
        }
    }

    /// There are so many subscriptions of these transports and states, and no others.
    pub(super) fn registered(&self, counted: &[(String, String, u64)]) {
        let mut transports = self.transports.lock();
        transports.extend(counted.iter().map(|(transport, ..)| transport.clone()));
        for transport in &*transports {
            for state in STATES {
                let of = |(of, is, _): &&(String, String, u64)| of == transport && is == state;
                let count = counted.iter().find(of).map_or(0, |(.., count)| *count);
                let gauge = self.subscriptions.get_or_create(&of_state(transport, state));
                gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
    }

    pub(super) fn counts(&self) -> Vec<TransportCounts> {
        let transports = self.transports.lock();
        let counts = transports.iter().map(|transport| {
            let [active, pending] = STATES.map(|state| {
                self.subscriptions.get_or_create(&of_state(transport, state)).get().unsigned_abs()
            });
            let of = |outcome| self.outcomes.get_or_create(&labels(transport, outcome)).get();
            let accepted = of(PushOutcome::Accepted);
            let pushes: u64 = PushOutcome::all().into_iter().map(of).sum();
            let failed = pushes - accepted;
            TransportCounts { transport: transport.clone(), active, pending, accepted, failed }
        });
        counts.collect()
    }

    pub(super) fn count(&self, transport: &str, outcome: PushOutcome) {
        self.outcomes.get_or_create(&labels(transport, outcome)).inc();
    }

    pub(super) fn took(&self, transport: &str, time: Duration) {
        let labels = [("transport", transport.to_owned())];
        self.latency.get_or_create(&labels).observe(time.as_secs_f64());
    }
}

fn of_state(transport: &str, state: &str) -> [(&'static str, String); 2] {
    [("transport", transport.to_owned()), ("state", state.to_owned())]
}

fn labels(transport: &str, outcome: PushOutcome) -> [(&'static str, String); 2] {
    let outcome = outcome.pairs().first().map_or("", |(_, word)| word);
    [("transport", transport.to_owned()), ("outcome", outcome.to_owned())]
}
