//! The sockets: one task a connection, one request on each, and an end to everything.
//!
//! A new connection always gets in: when there are too many, mailchime closes the oldest one for which no
//! part of the program works. So a client that says nothing, or reads nothing, keeps nobody out.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::{self, HttpResponse};
use super::listener::AdminStream;
use super::{AdminListener, Context};

/// Connections at once.
const CONNECTIONS: usize = 128;

/// Questions that parts of the program answer at once; others wait for them. `/readyz` has a number of its
/// own, and `/healthz` asks no part.
const QUESTIONS: usize = 32;
const READINESS: usize = 8;

/// A request's head: nothing that is asked here comes near it. hyper allows no less.
const HEAD_SIZE: usize = 8 * 1024;
const HEADERS: usize = 64;

/// For a request's head to arrive.
const HEAD_TIME: Duration = Duration::from_secs(3);

/// For the whole of a connection: longer than any answer takes.
const CONNECTION_TIME: Duration = Duration::from_secs(90);

/// After a failure to accept, a shortage of descriptors for example.
const PAUSE: Duration = Duration::from_secs(1);

/// What connections share.
struct HttpConnections {
    context: Arc<Context>,
    /// In the order in which they came.
    open: Mutex<BTreeMap<u64, Arc<Admitted>>>,
    questions: Semaphore,
    readiness: Semaphore,
}

/// What is known of one connection.
#[derive(Default)]
struct Admitted {
    /// A part of the program is being asked for it.
    is_answered: AtomicBool,
    leave: CancellationToken,
}

/// Answers requests until `stop`; those under way are broken off then.
pub async fn serve(
    listener: impl Into<AdminListener>,
    context: Arc<Context>,
    stop: CancellationToken,
) {
    let listener = listener.into();
    let shared = Arc::new(HttpConnections {
        context,
        open: Mutex::default(),
        questions: Semaphore::new(QUESTIONS),
        readiness: Semaphore::new(READINESS),
    });
    let connections = TaskTracker::new();
    let accepting = async {
        for number in 0.. {
            let (stream, local) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(
                        target: "mailchime::admin::accept_failed",
                        %error, "could not accept an [admin] connection; mailchime tries again"
                    );
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let admitted = shared.admit(number);
            let (shared, stop) = (Arc::clone(&shared), stop.clone());
            connections.spawn(async move {
                let served = connection(stream, local, &shared, &admitted);
                let served = tokio::time::timeout(CONNECTION_TIME, served);
                let served = admitted.leave.run_until_cancelled(served);
                stop.run_until_cancelled(served).await;
                shared.open().remove(&number);
            });
        }
    };
    stop.run_until_cancelled(accepting).await;
    connections.close();
    connections.wait().await;
}

impl HttpConnections {
    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Admitted>>> {
        self.open.lock()
    }

    /// Lets the connection of this number in, and closes another one if there are too many.
    fn admit(&self, number: u64) -> Arc<Admitted> {
        let mut open = self.open();
        if open.len() >= CONNECTIONS {
            // Fewer than all can be answered at once.
            let idle = |admitted: &Admitted| !admitted.is_answered.load(Ordering::Relaxed);
            let oldest =
                open.iter().find(|(_, admitted)| idle(admitted)).map(|(number, _)| *number);
            if let Some(admitted) = oldest.and_then(|number| open.remove(&number)) {
                admitted.leave.cancel();
            }
            if self.context.counters.admin_connections.hit() {
                tracing::warn!(
                    target: "mailchime::admin::too_many_connections",
                    limit = CONNECTIONS,
                    "[admin] has too many connections; mailchime closes the oldest ones that wait"
                );
            }
        }
        let admitted = Arc::<Admitted>::default();
        open.insert(number, Arc::clone(&admitted));
        admitted
    }

    async fn answer(
        &self,
        request: &Request<Incoming>,
        local: Option<IpAddr>,
        admitted: &Admitted,
    ) -> HttpResponse {
        if let Err((status, why)) = answer::is_meant(request, local, &self.context.hosts) {
            return answer::refusal(status, &why);
        }
        let questions = match request.uri().path() {
            "/healthz" => return answer::to(request, &self.context).await,
            "/readyz" => &self.readiness,
            _ => &self.questions,
        };
        // Nobody closes the semaphores.
        let _turn = questions.acquire().await.ok();
        admitted.is_answered.store(true, Ordering::Relaxed);
        let answer = answer::to(request, &self.context).await;
        admitted.is_answered.store(false, Ordering::Relaxed);
        answer
    }
}

async fn connection(
    stream: AdminStream,
    local: Option<IpAddr>,
    shared: &HttpConnections,
    admitted: &Admitted,
) {
    let service = service_fn(|request| async move {
        Ok::<Response<_>, Infallible>(shared.answer(&request, local, admitted).await)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_SIZE)
        .max_headers(HEADERS)
        // One request a connection, so that an idle one takes nobody's place.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(
            target: "mailchime::admin::connection_failed",
            %error, "an [admin] connection failed"
        );
    }
}
