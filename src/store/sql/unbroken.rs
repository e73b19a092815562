//! A statement that nobody may leave in its middle.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::time::timeout;

use super::trust::ConnectionTrust;

/// For the answer to a statement that nobody waits for any more.
const ANSWER: Duration = Duration::from_secs(2);

/// The begin or the end of a transaction, which its caller may drop at any time: it goes on by itself then. What is
/// left in its middle would leave the session in a transaction that the driver does not know of, or have it end one
/// that has ended.
pub(super) struct Unbroken<T: 'static> {
    future: Option<Pin<Box<dyn Future<Output = sqlx::Result<T>> + Send>>>,
    trust: ConnectionTrust,
    began: Instant,
}

impl<T: 'static> Unbroken<T> {
    /// `trust` is that of the connection that the future uses.
    pub(super) fn new(
        trust: &ConnectionTrust,
        future: impl Future<Output = sqlx::Result<T>> + Send + 'static,
    ) -> Self {
        Self { future: Some(Box::pin(future)), trust: trust.clone(), began: Instant::now() }
    }
}

impl<T: 'static> Future for Unbroken<T> {
    type Output = sqlx::Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(future) = self.future.as_mut() else { return Poll::Pending };
        let polled = future.as_mut().poll(cx);
        if polled.is_ready() {
            self.future = None;
        }
        polled
    }
}

impl<T: 'static> Drop for Unbroken<T> {
    fn drop(&mut self) {
        let (Some(mut future), Ok(runtime)) = (self.future.take(), Handle::try_current()) else {
            return;
        };
        let (trust, began) = (self.trust.clone(), self.began);
        let going_on = async move {
            let answered = timeout(ANSWER, &mut future).await.is_ok();
            // Its pool closes a connection that is not trusted.
            if !answered && trust.has(began.elapsed()) {
                trust.distrust();
            }
        };
        // The result is nobody's. A transaction that has begun is rolled back with it.
        drop(runtime.spawn(going_on));
    }
}

impl<T: 'static> fmt::Debug for Unbroken<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unbroken")
    }
}
