//! What is counted of each source of events, by the name that the configuration gives it.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::labels::{EventRefusal, Labels};

type BySource<const LABELS: usize> = Family<[(&'static str, String); LABELS], Counter>;

/// The counters of all sources.
#[derive(Clone, Debug, Default)]
pub(super) struct SourceFamilies {
    events: BySource<2>,
    missed: BySource<1>,
    refused: BySource<2>,
}

/// The counters of one source; clones share them.
#[derive(Clone, Debug)]
pub struct SourceMetrics {
    recorded: Counter,
    unwatched: Counter,
    missed: Counter,
    refused: Arc<[Counter]>,
}

impl SourceFamilies {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let families = Self::default();
        registry.register(
            "events",
            "Events of sources that were taken, by whether somebody has registered for the mailbox",
            families.events.clone(),
        );
        registry.register(
            "events_missed",
            "Events of sources that were dropped, and are found by a sweep or by the next look",
            families.missed.clone(),
        );
        registry.register(
            "events_refused",
            "Requests of sources of events that were refused",
            families.refused.clone(),
        );
        // Those whose source is not known are there from the start.
        families.of("");
        families
    }

    pub(super) fn of(&self, source: &str) -> SourceMetrics {
        let events = |what: &str| {
            let labels = [("source", source.to_owned()), ("what", what.to_owned())];
            self.events.get_or_create(&labels).clone()
        };
        let refused = |why: EventRefusal| {
            let labels = [("source", source.to_owned()), ("why", why.word().to_owned())];
            self.refused.get_or_create(&labels).clone()
        };
        SourceMetrics {
            recorded: events("recorded"),
            unwatched: events("unwatched"),
            missed: self.missed.get_or_create(&[("source", source.to_owned())]).clone(),
            refused: EventRefusal::all().into_iter().map(refused).collect(),
        }
    }
}

impl SourceMetrics {
    /// Events were taken: of each, whether somebody has registered for its mailbox.
    pub fn recorded(&self, known: &[bool]) {
        for known in known {
            if *known { &self.recorded } else { &self.unwatched }.inc();
        }
    }

    /// So many events were as they should be, and were dropped.
    pub fn missed(&self, events: usize) {
        self.missed.inc_by(u64::try_from(events).unwrap_or(u64::MAX));
    }

    /// A request was refused.
    pub fn refused(&self, why: EventRefusal) {
        self.refused[why.index()].inc();
    }
}

impl EventRefusal {
    /// Its word, for labels and logs.
    pub fn word(self) -> &'static str {
        self.pairs().first().map_or("", |(_, word)| word)
    }
}
