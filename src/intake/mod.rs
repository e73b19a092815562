//! News of mailboxes from outside: mail servers and scripts say over HTTP that something happened.
//!
//! | request | body |
//! | --- | --- |
//! | `POST /v1/events` | mailchime's own: a user, mailboxes, and as many of their numbers as are known |
//! | `PUT /v1/events/ox` | what Dovecot's `ox` driver says of a delivery |
//! | `POST /v1/events/cyrus` | what Cyrus says of a mailbox, or of a device that has registered there |
//!
//! An event becomes a [`Hint`], and is answered 204 once it is on disk that the mailbox has
//! to be looked at. Of an account with a held connection on this node nothing is written: the connection looks at
//! all mailboxes when it begins. Many events go to disk in one transaction. Whether anybody has registered for the mailbox
//! makes no difference to the answer: who sends events learns nothing of mailchime's users.
//!
//! A source proves who it is by a secret, and may speak for its domains only. A sender, a subject or a snippet
//! in a body is not kept, not even in memory: the types that are parsed have no field for them.
//!
//! [`CyrusEvents`] are the sockets to which Cyrus writes by itself.
//!
//! [`UdpEvents`] hears datagrams, which anybody can forge, so they are signs to look and nothing more.
//!
//! Nothing here knows the database or the watchers: `app` gives what leads to them.

mod answer;
mod cyrus;
mod cyrus_sockets;
mod device;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod ox;
mod pace;
mod refusal;
mod report;
mod source;
mod udp;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

use self::answer::IntakeContext;
pub use self::cyrus_sockets::CyrusEvents;
pub use self::device::CyrusDevices;
pub use self::source::{KnownSource, KnownSources, first_secret};
pub use self::udp::UdpEvents;
use crate::metrics::SourceMetrics;
use crate::model::Hint;
use crate::net::backends::Backends;
use crate::net::counters::LimitCounters;
use crate::net::http::HttpServer;
use crate::net::proxy_protocol::Addresses;

/// Puts hints on disk, and has those hear of them who watch the mailboxes.
pub trait HintRecorder: std::fmt::Debug + Send + Sync {
    /// Marks the mailboxes of these hints as due, in one transaction, which calls at the same time share. When this
    /// returns, the marks are on disk. A connection that is held here needs none: it looks at all mailboxes when it
    /// begins. Where the future is dropped once the hints are taken in, they are made all the same.
    /// Says of each hint whether somebody has registered for its mailbox, or why none was recorded.
    fn record(&self, hints: Vec<Hint>) -> RecordingHints<'_>;

    /// Events are refused, or were, and not handed in: what they told of is to be found without them. Does not wait.
    fn missed(&self);
}

/// What [`HintRecorder::record`] returns.
pub type RecordingHints<'a> =
    Pin<Box<dyn Future<Output = Result<Vec<bool>, NotRecorded>> + Send + 'a>>;

/// Why hints were not recorded, for the log.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotRecorded {
    /// As many wait as may.
    #[error("as many events wait as may")]
    Full,
    /// They cannot be written, for this reason.
    #[error("{0}")]
    Failed(String),
}

impl NotRecorded {
    /// Nobody waits for them any longer.
    fn late() -> Self {
        Self::Failed("the database has not answered in time".to_owned())
    }
}

/// What the intake is made of.
#[derive(Debug)]
pub struct IntakeParts {
    /// Who may send events.
    pub sources: KnownSources,
    /// Where datagrams come in.
    pub udp: Option<UdpEvents>,
    /// The sockets for Cyrus.
    pub cyrus: Option<CyrusEvents>,
    /// Registers devices of which Cyrus tells, by sources that have a route. `None`: nobody does.
    pub devices: Option<CyrusDevices>,
    /// Know under which one name an account is known.
    pub backends: Backends,
    /// Takes what came.
    pub recorder: Arc<dyn HintRecorder>,
    /// For a body of a request to come.
    pub request_timeout: Duration,
    /// Bytes of a request's body.
    pub body_size: usize,
    /// The limits that were reached.
    pub counters: Arc<LimitCounters>,
    /// Where requests are counted of which nobody knows whose they are.
    pub strangers: SourceMetrics,
}

/// Takes events until `stop`.
pub async fn serve(server: Option<HttpServer>, parts: IntakeParts, stop: CancellationToken) {
    let context = Arc::new(IntakeContext {
        sources: parts.sources,
        backends: parts.backends,
        recorder: parts.recorder,
        request_timeout: parts.request_timeout,
        body_size: parts.body_size,
        counters: parts.counters,
        devices: parts.devices.map(Arc::new),
        strangers: parts.strangers,
    });
    let udp = parts.udp.map(|udp| udp.run(Arc::clone(&context), stop.clone()));
    let cyrus = parts.cyrus.map(|cyrus| cyrus.run(Arc::clone(&context), stop.clone()));
    let answer = move |request: Request<Incoming>, _: Addresses| {
        let context = Arc::clone(&context);
        async move { context.answer(request).await }
    };
    // What is under way when the server stops is recorded before that ends.
    let http = async {
        match server {
            Some(server) => server.serve(answer, stop).await,
            None => stop.cancelled().await,
        }
    };
    let udp = async {
        if let Some(udp) = udp {
            udp.await;
        }
    };
    let cyrus = async {
        if let Some(cyrus) = cyrus {
            cyrus.await;
        }
    };
    tokio::join!(http, udp, cyrus);
}
