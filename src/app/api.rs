//! The server of `[api]`: its socket, and what it is made of.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::StartError;
use crate::api::{self, ApiParts};
use crate::config::{self, Config};
use crate::metrics::Metrics;
use crate::net::counters::LimitCounters;
use crate::net::door::SessionDoor;
use crate::net::http::{HttpLimits, HttpServer, TlsSource};
use crate::net::listen;
use crate::proxy;

/// The socket of `[api]`, listening.
#[derive(Debug)]
pub(super) struct ApiSocket {
    listener: TcpListener,
    pub(super) address: SocketAddr,
}

/// What the API is joined to.
pub(super) struct ApiJoints {
    pub(super) door: Arc<dyn SessionDoor>,
    /// Has the certificates.
    pub(super) current: proxy::CurrentContext,
    pub(super) counters: Arc<LimitCounters>,
    pub(super) metrics: Arc<Metrics>,
}

impl ApiSocket {
    /// Listens, where the configuration has an address.
    pub(super) fn open(config: &config::ApiConfig) -> Result<Option<Self>, StartError> {
        let Some(wanted) = config.address else { return Ok(None) };
        let failed = |error| StartError::key("[api] address", format!("{wanted}: {error}"));
        let listener = listen::bind(wanted).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Some(Self { listener, address }))
    }

    /// Answers until `stop`.
    pub(super) fn serve(
        self,
        config: &Config,
        joints: ApiJoints,
        stop: CancellationToken,
    ) -> JoinHandle<()> {
        let Self { listener, address } = self;
        tracing::info!(
            target: "mailchime::api::listening",
            %address, "serving users' programs over HTTPS"
        );
        let ApiJoints { door, current, counters, metrics } = joints;
        let (api, limits) = (&config.api, &config.limits);
        let server = HttpServer {
            listener,
            tls: TlsSource::new(move || current.tls()),
            proxy_protocol: api.proxy_protocol.clone(),
            limits: HttpLimits {
                connections: api.connections,
                request_timeout: api.request_timeout,
                write_timeout: limits.write_timeout,
                shutdown_grace: limits.shutdown_grace,
            },
            table: "[api]",
            counters: Arc::clone(&counters.api),
        };
        let parts = ApiParts {
            door,
            public_url: api.public_url.clone(),
            names: config.tls.sni.iter().map(|sni| sni.name.clone()).collect(),
            request_timeout: api.request_timeout,
            body_size: api.body_size,
            sessions: api.sessions,
            answer_timeout: limits.answer_timeout,
            counters: Arc::clone(&counters.api),
            metrics,
        };
        tokio::spawn(api::serve(server, parts, stop))
    }
}
