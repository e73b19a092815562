//! The farewell of a stand-in: GOAWAY of HTTP/2 (RFC 9113 section 6.8), `Connection: close` of HTTP/1.1.

use std::pin::{Pin, pin};

use tokio_util::sync::CancellationToken;

/// Serves a connection to its end. Once `farewell` is cancelled, `shut_down` begins its end: what is under way is
/// answered, and nothing else is taken.
pub(super) async fn serve_until<C: Future>(
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
