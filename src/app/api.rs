//! The server of `[api]`: its socket, and what it is made of.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::StartError;
use super::background::SubscriptionNews;
use crate::api::{
    self, ApiParts, Delivered, Delivering, LiveGuard, LiveSide, PushSide, ServerNames, StreamInbox,
    StreamLimits,
};
use crate::config::{self, Config};
use crate::metrics::Metrics;
use crate::model::{Account, FollowRequest, Subscription, SubscriptionKey, Timestamp, TransportId};
use crate::net::counters::LimitCounters;
use crate::net::door::SessionDoor;
use crate::net::http::{HttpLimits, HttpServer, TlsSource};
use crate::net::listen;
use crate::proxy;
use crate::push::dispatcher;
use crate::push::transport::enrol::{Enrolled, Transports};
use crate::push::transport::{Routes, Verdict};
use crate::registrar::Registrar;
use crate::store::{Alive, Store};
use crate::watch::{FollowEvent, FollowListener, Followers};

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
    pub(super) registrar: Registrar,
    pub(super) store: Store,
    pub(super) push: Arc<dyn PushSide>,
    pub(super) live: Arc<dyn LiveSide>,
    pub(super) counters: Arc<LimitCounters>,
    pub(super) metrics: Arc<Metrics>,
}

/// The push side, joined to the API.
#[derive(Debug)]
pub(super) struct JoinedPushSide {
    pub(super) transports: Transports,
    pub(super) routes: Routes,
    pub(super) store: Store,
    pub(super) news: SubscriptionNews,
    pub(super) config: config::PushConfig,
}

/// The watching side, joined to the API.
#[derive(Debug)]
pub(super) struct JoinedLiveSide(pub(super) Followers);

impl ApiSocket {
    /// Listens, where the configuration has an address.
    pub(super) fn open(config: &config::ApiConfig) -> Result<Option<Self>, StartError> {
        let Some(wanted) = config.address else { return Ok(None) };
        let failed = |error| StartError::address("[api] address", wanted, &error);
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
        let ApiJoints { door, current, registrar, store, push, live, counters, metrics } = joints;
        let (api, limits) = (&config.api, &config.limits);
        let (names, has_url) = (current.clone(), api.public_url.is_some());
        let server = HttpServer {
            listener,
            tls: Some(TlsSource::new(move || current.tls())),
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
            registrar,
            store,
            push,
            live,
            most_mailboxes: config.push.mailboxes,
            public_url: api.public_url.clone(),
            mail_url: api.mail_url.clone(),
            names: ServerNames::new(move || if has_url { names.named() } else { names.names() }),
            request_timeout: api.request_timeout,
            body_size: api.body_size,
            sessions: api.sessions,
            streams: StreamLimits {
                streams: api.streams,
                streams_per_account: api.streams_per_account,
                keepalive: api.stream_keepalive,
                write_timeout: limits.write_timeout,
            },
            answer_timeout: limits.answer_timeout,
            counters: Arc::clone(&counters.api),
            metrics,
        };
        tokio::spawn(api::serve(server, parts, stop))
    }
}

impl PushSide for JoinedPushSide {
    fn offers(&self) -> Vec<(TransportId, Value)> {
        self.transports.all().into_iter().map(|(name, enrol)| (name, enrol.offer())).collect()
    }

    fn enrol(
        &self,
        transport: &TransportId,
        account: &Account,
        request: &Value,
    ) -> Option<Result<(Subscription, Value), String>> {
        let enrolled = self.transports.find(transport)?.enrol(account, request);
        Some(enrolled.map(|Enrolled { subscription, answer }| (subscription, answer)))
    }

    fn verify(&self, subscription: Subscription, code: String) -> Delivering {
        let routes = self.routes.clone();
        Box::pin(async move { delivered(routes.verify(&subscription, &code).await) })
    }

    fn test(&self, key: SubscriptionKey) -> Delivering {
        let (store, routes, config) =
            (self.store.clone(), self.routes.clone(), self.config.clone());
        Box::pin(async move {
            let alive = Alive::at(store.served(Timestamp::now()), &config);
            let targets = match store.targets(&key.account, alive).await {
                Ok(targets) => targets,
                Err(_) => return Delivered::Failed("the database cannot be asked".to_owned()),
            };
            let target = targets.into_iter().find(|target| target.subscription.is(&key));
            let Some(target) = target else {
                return Delivered::Failed("the subscription does not count any more".to_owned());
            };
            let mailboxes = target.mailboxes.into_iter().map(|(mailbox, _)| mailbox);
            let mailboxes = mailboxes.take(1).collect();
            let sent =
                dispatcher::send_now(&routes, config.expiration, target.subscription, mailboxes);
            delivered(sent.await)
        })
    }

    fn changed(&self, account: Account) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let news = self.news.clone();
        Box::pin(async move { news.of(account).await })
    }
}

impl LiveSide for JoinedLiveSide {
    fn follow(&self, wanted: FollowRequest, inbox: Arc<StreamInbox>) -> LiveGuard {
        let hears = FollowListener::new(move |event| match event {
            FollowEvent::State { mailbox, kind, state } => inbox.state(mailbox, kind, state),
            FollowEvent::Refused => inbox.refused(),
        });
        Box::new(self.0.follow(wanted, hears))
    }
}

fn delivered(verdict: Verdict) -> Delivered {
    match verdict {
        Verdict::Accepted { .. } => Delivered::Accepted,
        Verdict::Gone { .. } | Verdict::BadEndpoint => Delivered::BadEndpoint,
        Verdict::TooMany { .. } => Delivered::TooMany,
        // What it says of our side is for the operator, whom the log tells.
        other => Delivered::Failed(other.name().replace('_', " ")),
    }
}
