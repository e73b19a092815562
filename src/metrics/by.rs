//! One metric for each value of a set of labels.

use std::fmt::{self, Debug};
use std::marker::PhantomData;

use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry, Unit};

use super::labels::Labels;

/// One metric for each value of `L`.
pub struct By<L, M> {
    metrics: Box<[M]>,
    labels: PhantomData<L>,
}

/// A gauge that is one higher while this lives.
#[derive(Debug)]
pub struct Held(Gauge);

// === impl By ===

impl<L: Labels, M: Metric + TypedMetric + Clone + Default> By<L, M> {
    pub(super) fn new(registry: &mut Registry, name: &str, unit: Option<Unit>, help: &str) -> Self {
        Self::made(registry, name, unit, help, M::default)
    }
}

impl<L: Labels, M: Metric + TypedMetric + Clone> By<L, M> {
    pub(super) fn made(
        registry: &mut Registry,
        name: &str,
        unit: Option<Unit>,
        help: &str,
        make: fn() -> M,
    ) -> Self {
        let family = Family::<Vec<(&str, &str)>, M, _>::new_with_constructor(make);
        let metric = |labels: L| family.get_or_create_owned(&labels.pairs());
        let metrics = L::all().into_iter().map(metric).collect();
        match unit {
            Some(unit) => registry.register_with_unit(name, help, unit, family),
            None => registry.register(name, help, family),
        }
        Self { metrics, labels: PhantomData }
    }
}

impl<L: Labels, M> By<L, M> {
    /// The metric with these labels.
    pub fn of(&self, labels: L) -> &M {
        &self.metrics[labels.index()]
    }
}

impl<L: Labels> By<L, Gauge> {
    /// Counts one more, until what this returns is dropped.
    pub fn hold(&self, labels: L) -> Held {
        Held::new(self.of(labels))
    }
}

impl<L, M> Debug for By<L, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("By").finish_non_exhaustive()
    }
}

// === impl Held ===

impl Held {
    /// Counts one more in `gauge`, until this is dropped.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}
