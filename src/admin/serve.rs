//! The sockets: one task a connection, one request on each, and an end to everything.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Context, answer};

/// Connections at once; others wait in the system's queue.
const CONNECTIONS: usize = 32;

/// A request's head: nothing that is asked here comes near it. hyper allows no less.
const HEAD_SIZE: usize = 8 * 1024;
const HEADERS: usize = 64;

/// For a request's head to arrive.
const HEAD_TIME: Duration = Duration::from_secs(10);

/// For the whole of a connection: longer than any answer takes.
const CONNECTION_TIME: Duration = Duration::from_secs(90);

/// After a failure to accept, a shortage of descriptors for example.
const PAUSE: Duration = Duration::from_secs(1);

/// Answers requests until `stop`; those under way are broken off then.
pub async fn serve(listener: TcpListener, context: Arc<Context>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let connections = TaskTracker::new();
    let accepting = async {
        loop {
            // Nobody closes the semaphore.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "[admin] cannot accept");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let (context, stop) = (Arc::clone(&context), stop.clone());
            connections.spawn(async move {
                let _place = place;
                let connection = tokio::time::timeout(CONNECTION_TIME, connection(stream, context));
                stop.run_until_cancelled(connection).await;
            });
        }
    };
    stop.run_until_cancelled(accepting).await;
    connections.close();
    connections.wait().await;
}

async fn connection(stream: TcpStream, context: Arc<Context>) {
    let service = service_fn(|request| {
        let context = Arc::clone(&context);
        async move { Ok::<_, Infallible>(answer::to(&request, &context).await) }
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
