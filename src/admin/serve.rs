//! The sockets: one task a connection, one request on each, and an end to everything.
//!
//! Connections are few, and whoever comes gets in: when there are too many, the oldest goes that is not
//! being answered by a part of the program. So who says nothing, or reads nothing, takes nobody's place.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::{self, Answer};
use super::listener::Stream;
use super::{Context, Listener};

/// Connections at once.
const CONNECTIONS: usize = 128;

/// Questions that are put to parts of the program at once; others wait for them. Health is apart, and
/// whether the process answers at all is nobody's to ask but its own.
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
struct Room {
    context: Arc<Context>,
    /// In the order in which they came.
    open: Mutex<BTreeMap<u64, Arc<Seat>>>,
    questions: Semaphore,
    readiness: Semaphore,
}

/// What is known of one connection.
#[derive(Default)]
struct Seat {
    /// A part of the program is being asked for it.
    is_answered: AtomicBool,
    leave: CancellationToken,
}

/// Answers requests until `stop`; those under way are broken off then.
pub async fn serve(listener: impl Into<Listener>, context: Arc<Context>, stop: CancellationToken) {
    let listener = listener.into();
    let room = Arc::new(Room {
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
                    tracing::warn!(%error, "[admin] cannot accept");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let seat = room.admit(number);
            let (room, stop) = (Arc::clone(&room), stop.clone());
            connections.spawn(async move {
                let served = connection(stream, local, &room, &seat);
                let served = tokio::time::timeout(CONNECTION_TIME, served);
                let served = seat.leave.run_until_cancelled(served);
                stop.run_until_cancelled(served).await;
                room.open().remove(&number);
            });
        }
    };
    stop.run_until_cancelled(accepting).await;
    connections.close();
    connections.wait().await;
}

impl Room {
    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Seat>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seat for the connection of this number, which may be that of another.
    fn admit(&self, number: u64) -> Arc<Seat> {
        let mut open = self.open();
        if open.len() >= CONNECTIONS {
            // Fewer than all can be answered at once.
            let idle = |seat: &Seat| !seat.is_answered.load(Ordering::Relaxed);
            let oldest = open.iter().find(|(_, seat)| idle(seat)).map(|(number, _)| *number);
            if let Some(seat) = oldest.and_then(|number| open.remove(&number)) {
                seat.leave.cancel();
            }
            if self.context.counters.admin_connections.hit() {
                tracing::warn!(
                    limit = CONNECTIONS,
                    "[admin] has too many connections: the oldest that is not being answered goes"
                );
            }
        }
        let seat = Arc::<Seat>::default();
        open.insert(number, Arc::clone(&seat));
        seat
    }

    async fn answer(
        &self,
        request: &Request<Incoming>,
        local: Option<IpAddr>,
        seat: &Seat,
    ) -> Answer {
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
        seat.is_answered.store(true, Ordering::Relaxed);
        let answer = answer::to(request, &self.context).await;
        seat.is_answered.store(false, Ordering::Relaxed);
        answer
    }
}

async fn connection(stream: Stream, local: Option<IpAddr>, room: &Room, seat: &Seat) {
    let service = service_fn(|request| async move {
        Ok::<Response<_>, Infallible>(room.answer(&request, local, seat).await)
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
        tracing::debug!(%error, "an [admin] connection broke");
    }
}
