//! What is counted and measured, for Prometheus.
//!
//! One struct, made from a registry; each part gets a share of it and adds to what it knows. Nothing
//! here knows what a session, a watcher or a push is: labels are fixed sets of words, all of them
//! there from the beginning at zero, so that an alert on one that never happened yet works.
//!
//! Counting is an addition to an atomic number, found by an index. Histograms take a lock that is
//! held for as long, and measure only what does I/O anyway.

mod by;
mod labels;
#[cfg(target_os = "linux")]
mod process;
mod pushes;
mod sources;
mod text_format;

use std::fmt::{self, Debug};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, MutexGuard};
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::mpsc;

pub use self::by::{By, Held};
pub use self::labels::{
    Answer, ApiAnswer, Call, Direction, EventRefusal, Form, Kind, Labels, Parked, Phase,
    PushOutcome, Queue, SessionEnd, Verb, VisitBy, Watching,
};
use self::pushes::PushFamilies;
pub use self::pushes::TransportCounts;
use self::sources::SourceFamilies;
pub use self::sources::SourceMetrics;
pub use self::text_format::TextFormat;

/// Seconds of a call of the database: from a row in the cache to a lock that is waited for.
const DATABASE_TIME: [f64; 12] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.0, 10.0];

/// Everything that is counted. The names in brackets are those that Prometheus shows.
pub struct Metrics {
    /// Connections of clients that are open (`mailchime_sessions`).
    pub sessions: Gauge,
    /// `mailchime_sessions_ended_total`
    pub sessions_ended: By<SessionEnd, Counter>,
    /// Requests to `[api]` that were answered (`mailchime_api_requests_total`).
    pub api_requests: By<ApiAnswer, Counter>,
    /// Streams of `GET /v1/changes` that are open (`mailchime_api_streams`).
    pub api_streams: Gauge,
    /// Connections to backends that there are for streams (`mailchime_stream_connections`).
    pub stream_connections: Gauge,
    /// Memory that sessions hold beside what each of them needs (`mailchime_session_memory_bytes`).
    pub kept: By<Phase, Gauge>,
    /// Commands that mailchime itself answered (`mailchime_commands_total`).
    pub commands: By<(Verb, Answer), Counter>,
    /// What passed between clients and backends (`mailchime_relayed_bytes_total`).
    pub relayed: By<Direction, Counter>,
    /// Both forms of what COMPRESS sent or received (`mailchime_compression_bytes_total`).
    pub compression: By<(Direction, Form), Counter>,
    /// `mailchime_watchers`
    pub watchers: By<Watching, Gauge>,
    /// How often accounts were parked: `mailchime_parked_total`.
    pub parked: By<Parked, Counter>,
    /// How often an account's devices were pushed so that its user logs in
    /// (`mailchime_login_pushes_total`).
    pub login_pushes: Counter,
    /// Mailboxes that are not watched for now, although their account is
    /// (`mailchime_mailboxes_left_out`).
    pub mailboxes_left_out: Gauge,
    /// How often accounts without a connection were asked for (`mailchime_visits_total`).
    pub visits: By<VisitBy, Counter>,
    /// Accounts of a sweep, or found due, that wait for their turn (`mailchime_sweep_waiting`).
    pub sweep_waiting: Gauge,
    /// Mailboxes of all nodes that are due, without those of parked accounts (`mailchime_due_mailboxes`).
    pub due_mailboxes: Gauge,
    /// For how long the first of them has been (`mailchime_due_age_seconds`).
    pub due_age: Gauge<f64, AtomicU64>,
    /// Nodes that share the database, this one included (`mailchime_nodes`).
    pub nodes: Gauge,
    /// Accounts of all nodes that have registered (`mailchime_accounts`).
    pub accounts: Gauge,
    /// Files with secrets that others can use (`mailchime_exposed_files`).
    pub exposed_files: Gauge,
    /// `mailchime_changes_total`
    pub changes: By<Kind, Counter>,
    /// `mailchime_pushes_total`, and from a change seen to its push accepted: `mailchime_push_latency_seconds`.
    pushes: PushFamilies,
    /// `mailchime_queue_length`; [`Metrics::watch_channel`] takes those that are channels.
    pub queues: By<Queue, Gauge>,
    /// `mailchime_database_seconds`
    pub database: By<Call, Histogram>,
    /// `mailchime_database_errors_total`
    pub database_errors: By<Call, Counter>,
    /// Rows that could not be read and were left out (`mailchime_database_unreadable_rows_total`).
    pub unreadable_rows: Counter,
    /// `mailchime_limits_hit_total`, by the key of the limit.
    limits_hit: Family<[(&'static str, &'static str); 1], Counter>,
    certificates: Family<[(&'static str, String); 1], Gauge<f64, AtomicU64>>,
    server_certificates: Family<[(&'static str, String); 1], Gauge<f64, AtomicU64>>,
    unread_certificates: Gauge,
    sources: SourceFamilies,
    /// What is measured only when it is asked for.
    asked: Mutex<Asked>,
}

type Measure<T> = Box<dyn Fn() -> T + Send + Sync>;

#[derive(Default)]
struct Asked {
    channels: Vec<(Queue, Measure<usize>)>,
    limits: Vec<Measure<Vec<(&'static str, u64)>>>,
    certificates: Option<Measure<Vec<(String, SystemTime)>>>,
    /// Of certificates that clients are shown, by their files.
    server_certificates: Vec<(String, SystemTime)>,
    /// Of the configuration.
    notices: Vec<String>,
}

// === impl Metrics ===

impl Metrics {
    /// All of them, registered.
    #[expect(clippy::too_many_lines, reason = "one line or some for each metric")]
    pub fn new(registry: &mut Registry) -> Self {
        #[cfg(target_os = "linux")]
        registry.register_collector(Box::new(process::ProcessMetrics));
        let registry = registry.sub_registry_with_prefix("mailchime");
        let build = Family::<[(&str, &str); 1], Gauge>::default();
        build.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
        registry.register("build_info", "The program; always 1", build);
        let accounts = gauge(registry, "accounts", "Accounts in the database, of all nodes");
        let (certificates, server_certificates) = (Family::default(), Family::default());
        let unread_certificates = Gauge::default();
        let limits_hit = Family::default();
        let mailboxes_left_out = gauge(
            registry,
            "mailboxes_left_out",
            "Mailboxes that are not watched for now, although their account is",
        );
        let api_streams =
            gauge(registry, "api_streams", "Streams of changes that are open by [api]");
        let stream_connections = gauge(
            registry,
            "stream_connections",
            "Accounts with a connection to their backend for their streams",
        );
        let sweep_waiting = gauge(registry, "sweep_waiting", "Accounts that wait to be asked for");
        let due_mailboxes = gauge(registry, "due_mailboxes", "Mailboxes that are to be asked for");
        let due_age = Gauge::default();
        registry.register_with_unit(
            "due_age",
            "For how long the first mailbox has waited to be asked for",
            Unit::Seconds,
            due_age.clone(),
        );
        registry.register(
            "limits_hit",
            "How often a limit of the configuration was reached",
            limits_hit.clone(),
        );
        let sessions = gauge(registry, "sessions", "Client connections that are open");
        let nodes = gauge(
            registry,
            "nodes",
            "Nodes that share the database and divide the watching, this one included",
        );
        let (unreadable_rows, login_pushes) = <(Counter, Counter)>::default();
        registry.register(
            "login_pushes",
            "Accounts whose devices were pushed because watching had ended until their user logs in",
            login_pushes.clone(),
        );
        registry.register(
            "database_unreadable_rows",
            "Rows of the database that could not be read and were left out",
            unreadable_rows.clone(),
        );
        let exposed_files = gauge(
            registry,
            "exposed_files",
            "Files with secrets, named by the configuration, that others can use",
        );
        registry.register_with_unit(
            "certificate_expiry",
            "Time until the certificate of a route ends, negative afterwards",
            Unit::Seconds,
            certificates.clone(),
        );
        registry.register_with_unit(
            "server_certificate_expiry",
            "Time until a certificate that clients are shown ends, negative afterwards",
            Unit::Seconds,
            server_certificates.clone(),
        );
        registry.register(
            "certificates_unread",
            "Whether certificates for clients, and for routes, were changed on disk and cannot be read",
            unread_certificates.clone(),
        );
        Self {
            sessions,
            accounts,
            sweep_waiting,
            due_mailboxes,
            due_age,
            mailboxes_left_out,
            api_streams,
            stream_connections,
            nodes,
            exposed_files,
            unreadable_rows,
            login_pushes,
            limits_hit,
            certificates,
            server_certificates,
            unread_certificates,
            sources: SourceFamilies::new(registry),
            sessions_ended: By::new(
                registry,
                "sessions_ended",
                None,
                "Client connections by how they ended",
            ),
            api_requests: By::new(
                registry,
                "api_requests",
                None,
                "Requests to [api] by how they were answered",
            ),
            kept: By::new(
                registry,
                "session_memory",
                Some(Unit::Bytes),
                "What sessions hold of bytes not yet passed on, of logins under way, and for COMPRESS",
            ),
            commands: By::new(
                registry,
                "commands",
                None,
                "Commands that mailchime itself answered",
            ),
            relayed: By::new(
                registry,
                "relayed",
                Some(Unit::Bytes),
                "What passed between clients and backends, uncompressed",
            ),
            compression: By::new(
                registry,
                "compression",
                Some(Unit::Bytes),
                "What COMPRESS carried, in both its forms",
            ),
            watchers: By::new(registry, "watchers", None, "Accounts by what their watchers do"),
            visits: By::new(
                registry,
                "visits",
                None,
                "How often accounts without a connection were asked for",
            ),
            parked: By::new(
                registry,
                "parked",
                None,
                "Accounts that were not watched any more until their user logs in",
            ),
            changes: By::new(registry, "changes", None, "Changes of mailboxes that were seen"),
            pushes: PushFamilies::new(registry),
            queues: By::new(registry, "queue_length", None, "What waits for its turn"),
            database: By::made(
                registry,
                "database",
                Some(Unit::Seconds),
                "Time of calls of the database",
                || Histogram::new(DATABASE_TIME),
            ),
            database_errors: By::new(
                registry,
                "database_errors",
                None,
                "Calls of the database that failed",
            ),
            asked: Mutex::default(),
        }
    }

    /// From now on the length of `queue` is what waits in the channel of `sender`. The channel is not
    /// kept open by this.
    pub fn watch_channel<T: Send + 'static>(&self, queue: Queue, sender: &mpsc::Sender<T>) {
        let sender = sender.downgrade();
        let length =
            move || sender.upgrade().map_or(0, |sender| sender.max_capacity() - sender.capacity());
        self.asked().channels.push((queue, Box::new(length)));
    }

    /// From now on `hits` is asked how often limits were hit since the start, each by its key.
    pub fn watch_limits(
        &self,
        hits: impl Fn() -> Vec<(&'static str, u64)> + Send + Sync + 'static,
    ) {
        self.asked().limits.push(Box::new(hits));
    }

    /// From now on `ends` is asked for routes and when their certificates end.
    pub fn watch_certificates(
        &self,
        ends: impl Fn() -> Vec<(String, SystemTime)> + Send + Sync + 'static,
    ) {
        self.asked().certificates = Some(Box::new(ends));
    }

    /// Takes note of what the configuration in use warns of, in sentences for people.
    pub fn notice(&self, notices: Vec<String>) {
        self.asked().notices = notices;
    }

    /// What the configuration in use warns of.
    pub fn notices(&self) -> Vec<String> {
        self.asked().notices.clone()
    }

    /// Takes note of when the certificates that clients are shown end, each by its file, and of how many
    /// sets of certificates were changed on disk and could not be read.
    pub fn server_certificates(&self, ends: Vec<(String, SystemTime)>, unread: usize) {
        self.asked().server_certificates = ends;
        self.unread_certificates.set(i64::try_from(unread).unwrap_or(i64::MAX));
    }

    /// When certificates end: those that clients are shown, by their files, and those of routes.
    pub fn certificates(&self) -> [Vec<(String, SystemTime)>; 2] {
        let asked = self.asked();
        [
            asked.server_certificates.clone(),
            asked.certificates.iter().flat_map(|ends| ends()).collect(),
        ]
    }

    /// How many sets of certificates were changed on disk and cannot be read.
    pub fn unread_certificates(&self) -> i64 {
        self.unread_certificates.get()
    }

    /// What is known of each transport.
    pub fn transports(&self) -> Vec<TransportCounts> {
        self.pushes.counts()
    }

    /// The counters of a source of events of this name; an empty one is nobody's.
    pub fn source(&self, name: &str) -> SourceMetrics {
        self.sources.of(name)
    }

    /// Shows the counters of this transport from now on, at zero where nothing was counted.
    pub fn transport(&self, name: &str) {
        self.pushes.begin(name);
    }

    /// Takes note of how many accounts there are, and how many subscriptions by transport and state (`active`,
    /// `pending`).
    pub fn registered(&self, accounts: u64, subscriptions: &[(String, String, u64)]) {
        self.accounts.set(i64::try_from(accounts).unwrap_or(i64::MAX));
        self.pushes.registered(subscriptions);
    }

    /// Counts a push by this transport, and where it was accepted, how long ago its change was seen.
    pub fn pushed(&self, transport: &str, outcome: PushOutcome, since_seen: Duration) {
        self.pushes.count(transport, outcome);
        if outcome == PushOutcome::Accepted {
            self.pushes.took(transport, since_seen);
        }
    }

    /// Takes note of a call of the database.
    pub fn database_call<T, E>(&self, call: Call, time: Duration, result: &Result<T, E>) {
        self.database.of(call).observe(time.as_secs_f64());
        if result.is_err() {
            self.database_errors.of(call).inc();
        }
    }

    /// All that is in `registry`, in this form; what of these metrics depends on the moment is brought up
    /// to date first.
    pub fn text_as(&self, format: TextFormat, registry: &Registry) -> String {
        format.of(self.text(registry))
    }

    /// The same as [`TextFormat::OpenMetrics`].
    pub fn text(&self, registry: &Registry) -> String {
        let asked = self.asked();
        for (queue, length) in &asked.channels {
            self.queues.of(*queue).set(i64::try_from(length()).unwrap_or(i64::MAX));
        }
        for (limit, hits) in asked.limits.iter().flat_map(|hits| hits()) {
            let counter = self.limits_hit.get_or_create(&[("limit", limit)]);
            counter.inner().store(hits, Ordering::Relaxed);
        }
        drop(asked);
        let [of_clients, of_routes] = self.certificates();
        self.server_certificates.clear();
        for (file, end) in of_clients {
            self.server_certificates.get_or_create(&[("file", file)]).set(left(end));
        }
        self.certificates.clear();
        for (route, end) in of_routes {
            self.certificates.get_or_create(&[("route", route)]).set(left(end));
        }
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut text, registry);
        text
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock()
    }
}

/// Metrics that nobody reads.
impl Default for Metrics {
    fn default() -> Self {
        Self::new(&mut Registry::default())
    }
}

impl Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    let gauge = Gauge::default();
    registry.register(name, help, gauge.clone());
    gauge
}

/// Seconds until then, negative afterwards.
fn left(end: SystemTime) -> f64 {
    let left = match end.duration_since(SystemTime::now()) {
        Ok(left) => left.as_secs_f64(),
        Err(past) => -past.duration().as_secs_f64(),
    };
    left.round()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn world() -> (Registry, Metrics) {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        (registry, metrics)
    }

    fn has(text: &str, line: &str) {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }

    #[test]
    fn all_series_are_there_at_zero_and_the_text_ends_as_it_must() {
        let (registry, metrics) = world();
        metrics.transport("web");
        let text = metrics.text(&registry);
        for line in [
            "mailchime_sessions 0",
            "mailchime_sessions_ended_total{how=\"fault\"} 0",
            "mailchime_session_memory_bytes{phase=\"login\"} 0",
            "mailchime_commands_total{verb=\"xapplepushservice\",result=\"ok\"} 0",
            "mailchime_relayed_bytes_total{direction=\"to_client\"} 0",
            "mailchime_compression_bytes_total{direction=\"to_client\",form=\"plain\"} 0",
            "mailchime_watchers{state=\"watching\",mode=\"idle\"} 0",
            "mailchime_watchers{state=\"parked\",mode=\"\"} 0",
            "mailchime_changes_total{kind=\"new_mail\"} 0",
            "mailchime_pushes_total{transport=\"web\",outcome=\"bad_endpoint\"} 0",
            "mailchime_push_latency_seconds_bucket{le=\"0.001\",transport=\"web\"} 0",
            "mailchime_push_latency_seconds_bucket{le=\"60.0\",transport=\"web\"} 0",
            "mailchime_push_latency_seconds_bucket{le=\"+Inf\",transport=\"web\"} 0",
            "mailchime_queue_length{queue=\"settlements\"} 0",
            "mailchime_database_seconds_count{call=\"register\"} 0",
            "mailchime_database_errors_total{call=\"settle\"} 0",
            "# EOF",
        ] {
            has(&text, line);
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn each_value_has_a_place_of_its_own() {
        fn distinct<L: Labels>() {
            let all = L::all();
            assert_eq!(all.len(), L::COUNT);
            for (place, labels) in all.iter().enumerate() {
                assert_eq!(labels.index(), place, "{labels:?}");
                assert_eq!(all.iter().filter(|other| other.pairs() == labels.pairs()).count(), 1);
            }
        }
        distinct::<SessionEnd>();
        distinct::<Phase>();
        distinct::<(Verb, Answer)>();
        distinct::<(Direction, Form)>();
        distinct::<Kind>();
        distinct::<Watching>();
        distinct::<PushOutcome>();
        distinct::<Queue>();
        distinct::<Call>();
    }

    #[test]
    fn what_is_counted_is_shown() {
        let (registry, metrics) = world();
        metrics.commands.of((Verb::Register, Answer::Bad)).inc();
        metrics.relayed.of(Direction::ToBackend).inc_by(1234);
        metrics.pushed("web", PushOutcome::Accepted, Duration::from_millis(2));
        metrics.pushed("phone", PushOutcome::Refused, Duration::from_millis(2));
        metrics.database_call(Call::Park, Duration::from_millis(3), &Ok::<_, ()>(()));
        metrics.database_call(Call::Park, Duration::from_millis(3), &Err::<(), _>(()));
        let held = metrics.watchers.hold(Watching::Idle);
        let text = metrics.text(&registry);
        for line in [
            "mailchime_commands_total{verb=\"xapplepushservice\",result=\"bad\"} 1",
            "mailchime_relayed_bytes_total{direction=\"to_backend\"} 1234",
            "mailchime_pushes_total{transport=\"web\",outcome=\"accepted\"} 1",
            "mailchime_pushes_total{transport=\"phone\",outcome=\"refused\"} 1",
            "mailchime_push_latency_seconds_bucket{le=\"0.001\",transport=\"web\"} 0",
            "mailchime_push_latency_seconds_bucket{le=\"0.0025\",transport=\"web\"} 1",
            "mailchime_database_seconds_count{call=\"park\"} 2",
            "mailchime_database_errors_total{call=\"park\"} 1",
            "mailchime_watchers{state=\"watching\",mode=\"idle\"} 1",
        ] {
            has(&text, line);
        }
        drop(held);
        has(&metrics.text(&registry), "mailchime_watchers{state=\"watching\",mode=\"idle\"} 0");
    }

    #[test]
    fn a_channel_is_measured_and_not_kept_open() {
        let (registry, metrics) = world();
        let (sender, mut receiver) = mpsc::channel(4);
        metrics.watch_channel(Queue::ChangeEvents, &sender);
        sender.try_send(()).unwrap();
        has(&metrics.text(&registry), "mailchime_queue_length{queue=\"change_events\"} 1");
        drop(sender);
        receiver.try_recv().unwrap();
        assert!(receiver.is_closed());
        has(&metrics.text(&registry), "mailchime_queue_length{queue=\"change_events\"} 0");
    }

    #[test]
    fn limits_are_shown_as_they_were_counted() {
        let (registry, metrics) = world();
        metrics.watch_limits(|| vec![("sessions", 0), ("command_size", 7)]);
        let text = metrics.text(&registry);
        has(&text, "mailchime_limits_hit_total{limit=\"sessions\"} 0");
        has(&text, "mailchime_limits_hit_total{limit=\"command_size\"} 7");
    }

    #[test]
    fn certificates_are_shown_by_the_time_that_is_left_to_them() {
        let (registry, metrics) = world();
        let now = SystemTime::now();
        let day = Duration::from_secs(86_400);
        metrics
            .watch_certificates(move || vec![("old".into(), now - day), ("new".into(), now + day)]);
        let text = metrics.text(&registry);
        let left = |route: &str| {
            let start = format!("mailchime_certificate_expiry_seconds{{route=\"{route}\"}} ");
            let line = text.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or("none");
            line.parse::<f64>().unwrap_or_else(|_| panic!("{route}: {line}"))
        };
        assert!((left("old") + 86_400.0).abs() < 60.0 && (left("new") - 86_400.0).abs() < 60.0);
        metrics.watch_certificates(Vec::new);
        assert!(!metrics.text(&registry).contains("route="));
    }
}
