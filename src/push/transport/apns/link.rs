//! The one HTTP/2 connection to APNs: dialled on demand, kept alive, replaced when it ends.
//!
//! ```text
//!   Down ──someone wants to send──> Dialling ──> Up ──closed, GOAWAY, given up──> Down
//!    ^                                 │
//!    └────── failed: cool-down ────────┘
//! ```
//!
//! However many wait, one dial is under way. It knows nothing of what is sent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2::{Builder, Connection, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::client::TlsStream;
use tracing::{debug, info, warn};

use crate::config::{self, ApnsServer};
use crate::model::seconds;
use crate::net::backoff::Backoff;
use crate::net::dial::Dialer;
use crate::net::https::causes;

/// How long a PING may go unanswered.
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// After a failed dial nobody dials for so long.
const COOL_DOWN: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

pub(super) type Body = Full<Bytes>;
type Io = TokioIo<TlsStream<TcpStream>>;

/// A handle to the connection; clones share it.
#[derive(Clone)]
pub(super) struct Link {
    shared: Arc<LinkParts>,
}

/// A connection that was up when it was handed out.
#[derive(Clone)]
pub(super) struct Up {
    pub(super) sender: SendRequest<Body>,
    number: u64,
    /// Whether anything was ever answered here. A connection that ends without counts as a failed
    /// dial, or a server that accepts and closes would be dialled in a circle.
    answered: Arc<AtomicBool>,
}

/// There is no connection now.
#[derive(Clone, Debug)]
pub(super) struct Down {
    pub(super) why: Arc<str>,
    /// Before then nobody dials.
    pub(super) until: Instant,
}

struct LinkParts {
    state: watch::Sender<LinkState>,
    endpoint: ApnsServer,
    dialer: Dialer,
    connect_timeout: Duration,
    ping_interval: Duration,
}

struct LinkState {
    phase: LinkPhase,
    /// Of the connection that is up, or of the next.
    number: u64,
    /// Dials in a row that led to no answer.
    failures: u32,
}

enum LinkPhase {
    Down(Option<Down>),
    Dialling,
    Up(Up),
}

impl Link {
    pub(super) fn new(config: &config::ApnsConfig, dialer: Dialer) -> Self {
        let state = LinkState { phase: LinkPhase::Down(None), number: 0, failures: 0 };
        let shared = LinkParts {
            state: watch::Sender::new(state),
            endpoint: config.endpoint.clone(),
            dialer,
            connect_timeout: config.connect_timeout,
            ping_interval: config.ping_interval,
        };
        Self { shared: Arc::new(shared) }
    }

    /// The connection, dialled if there is none. Cancel safe: a dial that was begun goes on.
    pub(super) async fn up(&self) -> Result<Up, Down> {
        let mut waited = false;
        loop {
            let (mut found, mut dial) = (None, false);
            self.shared.state.send_if_modified(|state| {
                match &state.phase {
                    LinkPhase::Up(up) if !up.sender.is_closed() => found = Some(Ok(up.clone())),
                    // Who waited for a dial hears how it ended, however late that is.
                    LinkPhase::Down(Some(down)) if waited || Instant::now() < down.until => {
                        found = Some(Err(down.clone()));
                    }
                    LinkPhase::Dialling => {}
                    LinkPhase::Up(up) => {
                        let number = up.number;
                        state.lost(number, "it was closed");
                    }
                    LinkPhase::Down(_) => {
                        state.phase = LinkPhase::Dialling;
                        dial = true;
                    }
                }
                dial
            });
            if let Some(found) = found {
                return found;
            }
            if dial {
                tokio::spawn(dial_and_tell(self.shared.clone()));
            }
            let mut state = self.shared.state.subscribe();
            // The sender is in `self`, so this ends by the condition only.
            let _ = state.wait_for(|state| !matches!(state.phase, LinkPhase::Dialling)).await;
            waited = true;
        }
    }

    /// `up` answered a request.
    pub(super) fn answered(&self, up: &Up) {
        if !up.answered.swap(true, Ordering::Relaxed) {
            self.shared.state.send_if_modified(|state| {
                state.failures = 0;
                false
            });
        }
    }

    /// Sends nothing more over `up`; what is under way there may end.
    pub(super) fn give_up(&self, up: &Up, why: &str) {
        self.shared.state.send_if_modified(|state| {
            let news = state.lost(up.number, why);
            // A request often knows better than the connection why that ended.
            if let LinkPhase::Down(Some(down)) = &mut state.phase
                && state.number == up.number
            {
                down.why = why.into();
            }
            news
        });
    }
}

impl LinkState {
    /// The connection of this number is of no more use. Whether that was news.
    fn lost(&mut self, number: u64, why: &str) -> bool {
        let answered = match &self.phase {
            LinkPhase::Up(up) if up.number == number => up.answered.load(Ordering::Relaxed),
            _ => return false,
        };
        self.phase = LinkPhase::Down(None);
        if !answered {
            self.failures = self.failures.saturating_add(1);
            // The first may be a restart at the other end, just as we came.
            if self.failures > 1 {
                self.cool_down(why);
            }
        }
        true
    }

    fn cool_down(&mut self, why: &str) {
        let until = Instant::now() + COOL_DOWN.wait(self.failures, rand::random());
        self.phase = LinkPhase::Down(Some(Down { why: why.into(), until }));
    }
}

async fn dial_and_tell(shared: Arc<LinkParts>) {
    let start = Instant::now();
    let dialled = shared.dial().await;
    let seconds = seconds(start.elapsed());
    match dialled {
        Ok((sender, connection)) => {
            info!(
                target: "mailchime::push::connected",
                endpoint = %shared.endpoint, seconds, "connected to APNs"
            );
            shared.state.send_modify(|state| {
                state.number += 1;
                let number = state.number;
                state.phase = LinkPhase::Up(Up { sender, number, answered: Arc::default() });
                tokio::spawn(run(connection, number, Arc::downgrade(&shared)));
            });
        }
        Err(why) => {
            warn!(
                target: "mailchime::push::connect_failed",
                endpoint = %shared.endpoint, seconds, why,
                "could not connect to APNs; mailchime tries again"
            );
            shared.state.send_modify(|state| {
                state.failures = state.failures.saturating_add(1);
                state.cool_down(&why);
            });
        }
    }
}

/// Drives the connection to its end. `shared` is weak: what is in there holds the sender, and the
/// connection is to end when the last sender is gone.
async fn run(
    connection: Connection<Io, Body, TokioExecutor>,
    number: u64,
    shared: Weak<LinkParts>,
) {
    let why = match connection.await {
        Ok(()) => "it was closed".to_owned(),
        Err(error) => causes(&error),
    };
    let Some(shared) = shared.upgrade() else { return };
    if shared.state.send_if_modified(|state| state.lost(number, &why)) {
        info!(
            target: "mailchime::push::connection_ended",
            endpoint = %shared.endpoint, why, "the connection to APNs ended"
        );
    } else {
        debug!(
            target: "mailchime::push::abandoned_connection_ended",
            endpoint = %shared.endpoint, why, "a connection to APNs ended that was no longer in use"
        );
    }
}

impl LinkParts {
    /// Name, TCP, tunnel, TLS and HTTP/2 under one deadline.
    async fn dial(
        &self,
    ) -> Result<(SendRequest<Body>, Connection<Io, Body, TokioExecutor>), String> {
        let deadline = Instant::now() + self.connect_timeout;
        let ApnsServer { host, port } = &self.endpoint;
        let tls = self.dialer.connect(host, *port, deadline).await;
        let tls = tls.map_err(|error| causes(&error))?;
        // A server that chose no protocol would be spoken to all the same; one that chose another
        // cannot have been meant.
        if tls.get_ref().1.alpn_protocol().is_some_and(|protocol| protocol != b"h2") {
            return Err("TLS: the server does not speak HTTP/2".into());
        }
        let handshake = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(self.ping_interval)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            // Until the server has said how many streams it takes at once.
            .initial_max_send_streams(1)
            .handshake(TokioIo::new(tls));
        timeout_at(deadline, handshake)
            .await
            .map_err(|_| "HTTP/2: no answer in time".to_owned())?
            .map_err(|error| format!("HTTP/2: {}", causes(&error)))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;

    use super::*;
    use crate::net::resolve::NameResolver;
    use crate::net::tls;

    /// A machine so busy that the cool-down is over when the request has its turn again.
    #[tokio::test(start_paused = true)]
    async fn who_waited_for_a_dial_hears_how_it_ended_after_the_cool_down() {
        let config = config::ApnsConfig::new("apns.pem", "apns.key");
        let resolver = NameResolver::new(&Default::default(), Arc::default());
        let tls = tls::client_with(tls::any_verifier()).unwrap();
        let link = Link::new(&config, Dialer::new(resolver, None, tls));
        let state = &link.shared.state;
        state.send_modify(|state| state.phase = LinkPhase::Dialling);
        let mut up = pin!(link.up());
        assert!(poll_fn(|context| Poll::Ready(up.as_mut().poll(context))).await.is_pending());
        state.send_modify(|state| {
            state.failures = 1;
            state.cool_down("it was refused");
        });
        tokio::time::advance(COOL_DOWN.wait(1, 1.0)).await;
        let heard = poll_fn(|context| Poll::Ready(up.as_mut().poll(context))).await;
        let Poll::Ready(Err(down)) = heard else { panic!("it dials again") };
        assert_eq!(&*down.why, "it was refused");
    }
}
