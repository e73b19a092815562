//! The server of `[events]`: its socket, who may send, and where hints go.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch as cell;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::StartError;
use crate::config::{self, Config};
use crate::imap::contract::PushOffer;
use crate::intake::{
    self, CyrusDevices, CyrusEvents, HintRecorder, IntakeParts, KnownSource, KnownSources,
    NotRecorded, RecordingHints, UdpEvents,
};
use crate::metrics::Metrics;
use crate::model::{Hint, Timestamp};
use crate::net::backends::Backends;
use crate::net::http::{HttpLimits, HttpServer, TlsSource};
use crate::net::listen;
use crate::proxy;
use crate::registrar::Registrar;
use crate::store::{DueMark, Store};
use crate::watch::{HintError, SupervisorHandle};

/// The sockets of `[events]`.
#[derive(Debug)]
pub(super) struct EventSockets {
    http: Option<(TcpListener, SocketAddr)>,
    udp: Option<(UdpEvents, SocketAddr)>,
    cyrus: Option<CyrusEvents>,
}

/// What the intake is joined to.
pub(super) struct IntakeJoints {
    /// Has the certificates.
    pub(super) current: proxy::CurrentContext,
    pub(super) sources: KnownSources,
    pub(super) backends: Backends,
    pub(super) marks: DueMarks,
    pub(super) metrics: Arc<Metrics>,
    /// For devices that register at the mail server.
    pub(super) registrar: Registrar,
    /// Push as it is offered at the moment.
    pub(super) offered: cell::Receiver<Option<PushOffer>>,
}

/// Marks mailboxes as due, and has their watchers know.
#[derive(Debug)]
pub(super) struct DueMarks {
    pub(super) store: Store,
    pub(super) watchers: SupervisorHandle,
    /// Which accounts have no connection.
    pub(super) config: config::WatchConfig,
}

/// The sources of the configuration, with their secrets.
///
/// # Errors
/// Which file is at fault, and what is wrong.
pub fn sources(
    config: &config::EventsConfig,
    metrics: &Metrics,
) -> Result<Vec<KnownSource>, String> {
    let mut sources: Vec<KnownSource> = Vec::new();
    for source in &config.sources {
        let source = KnownSource::load(source, metrics.source(&source.name))?;
        if let Some(other) = sources.iter().find(|other| other.shares_secret(&source)) {
            return Err(format!(
                "[[events.source]] secret_file: {:?} and {:?} have a secret in common; give each its own",
                other.name(),
                source.name()
            ));
        }
        sources.push(source);
    }
    Ok(sources)
}

impl EventSockets {
    /// Listens, where the configuration has addresses.
    pub(super) async fn open(
        config: &config::EventsConfig,
        metrics: &Metrics,
    ) -> Result<Self, StartError> {
        let mut sockets = Self { http: None, udp: None, cyrus: None };
        if let Some(wanted) = config.address {
            let failed = |error| StartError::address("[events] address", wanted, &error);
            let listener = listen::bind(wanted).map_err(failed)?;
            let address = listener.local_addr().map_err(failed)?;
            sockets.http = Some((listener, address));
        }
        if let Some(udp) = &config.udp {
            let wanted = udp.address;
            let failed = |error| StartError::address("[events] udp_address", wanted, &error);
            let socket = UdpEvents::bind(udp, metrics.source("udp")).await.map_err(failed)?;
            let address = socket.address().map_err(failed)?;
            sockets.udp = Some((socket, address));
        }
        if let Some(cyrus) = &config.cyrus {
            let bound = CyrusEvents::bind(cyrus, metrics.source(&cyrus.source.name));
            sockets.cyrus =
                Some(bound.map_err(|(key, path, error)| {
                    StartError::socket(key, path.display(), &error)
                })?);
        }
        Ok(sockets)
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.http.is_none() && self.udp.is_none() && self.cyrus.is_none()
    }

    /// Where it listens: for HTTP, and for datagrams.
    pub(super) fn addresses(&self) -> (Option<SocketAddr>, Option<SocketAddr>) {
        (self.http.as_ref().map(|(_, at)| *at), self.udp.as_ref().map(|(_, at)| *at))
    }

    /// Takes events until `stop`.
    pub(super) fn serve(
        self,
        config: &Config,
        joints: IntakeJoints,
        stop: CancellationToken,
    ) -> JoinHandle<()> {
        let Self { http, udp, cyrus } = self;
        if let Some((_, address)) = &http {
            tracing::info!(
                target: "mailchime::intake::listening",
                %address, "taking events of mail servers over HTTP"
            );
        }
        if let Some((_, address)) = &udp {
            tracing::info!(
                target: "mailchime::intake::listening_udp",
                %address, "taking datagrams of mail servers"
            );
        }
        let paths = config.events.cyrus.iter().flat_map(|cyrus| [&cyrus.socket, &cyrus.stream]);
        for path in paths.flatten() {
            tracing::info!(
                target: "mailchime::intake::listening_cyrus",
                path = %path.display(), "taking events of Cyrus"
            );
        }
        let IntakeJoints { current, sources, backends, marks, metrics, registrar, offered } =
            joints;
        let (events, limits) = (&config.events, &config.limits);
        let counters = backends.counters();
        let server = http.map(|(listener, _)| HttpServer {
            listener,
            tls: events.tls.then(|| TlsSource::new(move || current.tls())),
            proxy_protocol: Vec::new(),
            limits: HttpLimits {
                connections: events.connections,
                request_timeout: events.request_timeout,
                write_timeout: limits.write_timeout,
                shutdown_grace: limits.shutdown_grace,
            },
            table: "[events]",
            counters: Arc::clone(&counters.events),
        });
        let parts = IntakeParts {
            sources,
            udp: udp.map(|(socket, _)| socket),
            cyrus,
            devices: Some(CyrusDevices::new(registrar, offered, backends.clone())),
            backends,
            recorder: Arc::new(marks),
            request_timeout: events.request_timeout,
            body_size: events.body_size,
            counters,
            strangers: metrics.source(""),
        };
        tokio::spawn(intake::serve(server, parts, stop))
    }
}

impl HintRecorder for DueMarks {
    fn record(&self, hints: Vec<Hint>) -> RecordingHints<'_> {
        Box::pin(async move {
            if self.watchers.has_begun() {
                return self.watchers.hints(hints).await.map_err(|error| match error {
                    HintError::Busy => NotRecorded::Full,
                    error => NotRecorded::Failed(error.to_string()),
                });
            }
            let marks: Vec<_> = hints.into_iter().map(|hint| self.mark(hint)).collect();
            let recorded = self.store.mark_due(&[], &marks, Timestamp::now()).await;
            recorded.map_err(|error| NotRecorded::Failed(error.to_string()))
        })
    }

    fn missed(&self) {
        self.watchers.missed_events();
    }
}

impl DueMarks {
    /// Nobody watches here, so it is another node's account.
    fn mark(&self, hint: Hint) -> DueMark {
        let Hint { account, mailbox, .. } = hint;
        let is_due = self.config.is_on_demand(&account);
        let (state, shown_flags, for_another_node) = (None, false, true);
        DueMark { account, mailbox, state, shown_flags, is_due, for_another_node }
    }
}
