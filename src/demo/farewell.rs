//! Connections of stand-ins, and their farewell: GOAWAY of HTTP/2 (RFC 9113 section 6.8), `Connection: close` of
//! HTTP/1.1.

use std::convert::Infallible;
use std::pin::{Pin, pin};

use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::reply_body::ReplyBody;

/// Serves a connection by HTTP/2 or HTTP/1.1 to its end. `answer` gets each request, with the farewell: once it cancels
/// that, what is under way is answered, and nothing else is taken.
pub(super) async fn serve<F>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    is_http2: bool,
    answer: impl Fn(Request<Incoming>, CancellationToken) -> F,
) where
    F: Future<Output = Response<ReplyBody>> + Send + 'static,
{
    let farewell = CancellationToken::new();
    let said = farewell.clone();
    let service = service_fn(move |request| {
        let answered = answer(request, said.clone());
        async move { Ok::<_, Infallible>(answered.await) }
    });
    let io = TokioIo::new(stream);
    if is_http2 {
        let connection = http2::Builder::new(TokioExecutor::new()).serve_connection(io, service);
        serve_until(connection, |connection| connection.graceful_shutdown(), &farewell).await;
    } else {
        let connection = http1::Builder::new().serve_connection(io, service);
        serve_until(connection, |connection| connection.graceful_shutdown(), &farewell).await;
    }
}

/// Serves a connection to its end. Once `farewell` is cancelled, `shut_down` begins that.
async fn serve_until<C: Future>(
    connection: C,
    shut_down: impl FnOnce(Pin<&mut C>),
    farewell: &CancellationToken,
) {
    let mut connection = pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = farewell.cancelled() => shut_down(connection.as_mut()),
    }
    // How it ends is the client's matter.
    let _ = connection.await;
}
