//! HTTPS for users' programs: what a client asks for, and the web app's sessions.
//!
//! | request | answer |
//! | --- | --- |
//! | `POST /v1/session` | logs in and gives the web app's cookie |
//! | `GET /v1/session` | whose session it is |
//! | `DELETE /v1/session` | logs out |
//! | `GET /v1/mailboxes` | the mailboxes of the user |
//! | `GET /v1/changes` | what happens to them, as it happens |
//! | `GET /v1/vapid` | the key with which browsers subscribe |
//! | `GET /v1/subscriptions` | the user's subscriptions, whatever the transport |
//! | `POST /v1/subscriptions` | makes one |
//! | `DELETE /v1/subscriptions/{id}` | removes one |
//! | `POST /v1/subscriptions/{id}/confirm` | says the code that a push has brought |
//! | `POST /v1/subscriptions/{id}/test` | sends a test push |
//! | `GET /` | the web app, a page that does all of this |
//!
//! Each request proves who asks: by Basic or Bearer, with a login at the user's own backend through the
//! proxy's door inside this process, or by the cookie of such a login. `docs/api.yaml` describes every
//! request and answer. An error is `{"error":code,"message":sentence}`. No answer and no log line holds a
//! password or an endpoint in full.
//!
//! Nothing here knows the proxy or the transports: `app` gives what leads to them.

mod caller;
mod changes;
mod error;
mod live_side;
mod mail;
mod push_side;
mod request_body;
mod routes;
mod sends;
mod subscriptions;
mod web;
mod web_sessions;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper::body::Incoming;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use self::changes::OpenStreams;
pub use self::changes::{StreamInbox, StreamLimits};
use self::error::ApiError;
pub use self::live_side::{LiveGuard, LiveSide};
pub use self::push_side::{Delivered, Delivering, PushSide};
use self::sends::Sends;
use self::web_sessions::WebSessions;
use crate::config::PublicUrl;
use crate::metrics::Metrics;
use crate::model::Credentials;
use crate::net::counters::HttpCounters;
use crate::net::door::SessionDoor;
use crate::net::http::HttpServer;
use crate::net::proxy_protocol::Addresses;
use crate::registrar::Registrar;
use crate::store::Store;

/// Between two looks for sessions whose time is over.
const TIDY: Duration = Duration::from_secs(60);

/// For the streams that go over WebSockets to end when the server stops.
const FAREWELL: Duration = Duration::from_secs(2);

/// Says which names a server has, in lower case; `*.` stands for any first label. They may change at any time.
#[derive(Clone)]
pub struct ServerNames(Arc<dyn Fn() -> Arc<[String]> + Send + Sync>);

/// What the API is made of.
#[derive(Debug)]
pub struct ApiParts {
    /// Leads to the user's backend.
    pub door: Arc<dyn SessionDoor>,
    /// Stores subscriptions.
    pub registrar: Registrar,
    /// Has them.
    pub store: Store,
    /// Sends to them.
    pub push: Arc<dyn PushSide>,
    /// Follows mailboxes for streams.
    pub live: Arc<dyn LiveSide>,
    /// Most mailboxes of a subscription.
    pub most_mailboxes: usize,
    /// By which URL users reach it.
    pub public_url: Option<PublicUrl>,
    /// Where a tap on a notification of the web app leads.
    pub mail_url: Option<String>,
    /// Further names that it has.
    pub names: ServerNames,
    /// For a body of a request to come.
    pub request_timeout: Duration,
    /// Bytes of a request's body.
    pub body_size: usize,
    /// Most sessions of the web app.
    pub sessions: usize,
    /// Of streams.
    pub streams: StreamLimits,
    /// For a backend's answer to one question.
    pub answer_timeout: Duration,
    /// The limits that were reached.
    pub counters: Arc<HttpCounters>,
    /// Where answers are counted.
    pub metrics: Arc<Metrics>,
}

/// What requests share.
#[derive(Debug)]
struct ApiContext {
    door: Arc<dyn SessionDoor>,
    registrar: Registrar,
    store: Store,
    push: Arc<dyn PushSide>,
    live: Arc<dyn LiveSide>,
    streams: Arc<OpenStreams>,
    /// Cancelled when the server stops.
    stop: CancellationToken,
    most_mailboxes: usize,
    public_url: Option<PublicUrl>,
    names: ServerNames,
    request_timeout: Duration,
    body_size: usize,
    answer_timeout: Duration,
    sessions: WebSessions,
    sends: Sends,
    counters: Arc<HttpCounters>,
    metrics: Arc<Metrics>,
}

impl ServerNames {
    /// Asks `names` at each request.
    pub fn new(names: impl Fn() -> Arc<[String]> + Send + Sync + 'static) -> Self {
        Self(Arc::new(names))
    }

    fn now(&self) -> Arc<[String]> {
        (self.0)()
    }
}

impl fmt::Debug for ServerNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&*self.now()).finish()
    }
}

/// Answers requests until `stop`.
pub async fn serve(server: HttpServer, parts: ApiParts, stop: CancellationToken) {
    let sessions = WebSessions::new(parts.sessions, Arc::clone(&parts.counters));
    let streams = OpenStreams::new(
        parts.streams,
        Arc::clone(&parts.counters),
        parts.metrics.api_streams.clone(),
    );
    let ApiParts { door, registrar, store, push, live, most_mailboxes, public_url, names, .. } =
        parts;
    let ApiParts { request_timeout, body_size, answer_timeout, counters, metrics, .. } = parts;
    let context = Arc::new(ApiContext {
        door,
        registrar,
        store,
        push,
        live,
        streams,
        stop: stop.clone(),
        most_mailboxes,
        public_url,
        names,
        request_timeout,
        body_size,
        answer_timeout,
        sessions,
        sends: Sends::default(),
        counters,
        metrics,
    });
    let router = routes::router(Arc::clone(&context), parts.mail_url.as_deref());
    let answer = move |request: Request<Incoming>, addresses: Addresses| {
        let mut request: Request = request.map(Body::new);
        request.extensions_mut().insert(addresses);
        let answering = router.clone().call(request);
        async move {
            let answer: Response = answering.await.unwrap_or_else(|never| match never {});
            answer
        }
    };
    let tidying = async {
        loop {
            tokio::time::sleep(TIDY).await;
            context.sessions.tidy();
        }
    };
    let cutting_off = async {
        loop {
            tokio::time::sleep(context.streams.limits().write_timeout / 4).await;
            context.streams.cut_off();
        }
    };
    tokio::select! {
        () = server.serve(answer, stop) => {}
        () = tidying => {}
        () = cutting_off => {}
    }
    // Those that are no answers of the server say goodbye, too.
    let _ = timeout(FAREWELL, context.streams.ended()).await;
}

impl ApiContext {
    /// A session of the user whom these credentials prove.
    async fn log_in(
        &self,
        addresses: Addresses,
        credentials: &Credentials,
    ) -> Result<mail::MailClient, ApiError> {
        mail::log_in(&*self.door, addresses, credentials, self.answer_timeout).await
    }

    /// Whether this server is meant by that `Host` (RFC 9110 section 7.2): by the URL that users open, by a name that
    /// a certificate is for, and where that URL is not known by an address or `localhost`, which no other's page can
    /// be reached by.
    fn is_meant_by(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        if let Some(url) = &self.public_url
            && host.strip_suffix(":443").unwrap_or(&host) == url.authority()
        {
            return true;
        }
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host.as_str(),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        let address =
            name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        if self.public_url.is_none() && (name == "localhost" || address.parse::<IpAddr>().is_ok()) {
            return true;
        }
        let parent = name.split_once('.').map(|(_, parent)| parent);
        self.names.now().iter().any(|ours| match ours.strip_prefix("*.") {
            Some(domain) => parent == Some(domain),
            None => ours == name,
        })
    }
}
