//! What is counted of pushes, by their transport, whose name is the transport's own.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::labels::{Labels, PushOutcome};

/// Seconds from a change to the acceptance of its push: new mail takes milliseconds, what is merged or
/// tried again takes up to a minute and more.
const LATENCY: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

type PushLatencies = Family<[(&'static str, String); 1], Histogram, fn() -> Histogram>;

/// What is counted of all transports.
#[derive(Clone, Debug)]
pub(super) struct PushFamilies {
    outcomes: Family<[(&'static str, String); 2], Counter>,
    latency: PushLatencies,
}

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
        Self { outcomes, latency }
    }

    /// Makes all series of a transport, at zero.
    pub(super) fn begin(&self, transport: &str) {
        for outcome in PushOutcome::all() {
            drop(self.outcomes.get_or_create(&labels(transport, outcome)));
        }
        drop(self.latency.get_or_create(&[("transport", transport.to_owned())]));
    }

    pub(super) fn count(&self, transport: &str, outcome: PushOutcome) {
        self.outcomes.get_or_create(&labels(transport, outcome)).inc();
    }

    pub(super) fn took(&self, transport: &str, time: Duration) {
        let labels = [("transport", transport.to_owned())];
        self.latency.get_or_create(&labels).observe(time.as_secs_f64());
    }
}

fn labels(transport: &str, outcome: PushOutcome) -> [(&'static str, String); 2] {
    let outcome = outcome.pairs().first().map_or("", |(_, word)| word);
    [("transport", transport.to_owned()), ("outcome", outcome.to_owned())]
}
