//! A statement that nobody may leave in its middle.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};

use super::trust::ConnectionTrust;

/// For the answer to the begin of a transaction, and to an end whose caller has left.
const ANSWER: Duration = Duration::from_secs(2);

/// The begin or the end of a transaction, which its caller may drop at any time: it goes on by itself then. What is
/// left in its middle would leave the session in a transaction that the driver does not know of, or have it end one
/// that has ended.
pub(super) struct Unbroken<T: 'static> {
    future: Option<Pin<Box<dyn Future<Output = sqlx::Result<T>> + Send>>>,
    trust: ConnectionTrust,
    began: Instant,
    is_begin: bool,
}

impl<T: 'static> Unbroken<T> {
    /// The begin of a transaction. `trust` is that of the connection that the future uses.
    pub(super) fn begin(
        trust: &ConnectionTrust,
        future: impl Future<Output = sqlx::Result<T>> + Send + 'static,
    ) -> Self {
        Self::new(trust, future, true)
    }

    /// The end of one.
    pub(super) fn end(
        trust: &ConnectionTrust,
        future: impl Future<Output = sqlx::Result<T>> + Send + 'static,
    ) -> Self {
        Self::new(trust, future, false)
    }

    fn new(
        trust: &ConnectionTrust,
        future: impl Future<Output = sqlx::Result<T>> + Send + 'static,
        is_begin: bool,
    ) -> Self {
        let (trust, began) = (trust.clone(), Instant::now());
        Self { future: Some(Box::pin(future)), trust, began, is_begin }
    }

    /// How long it goes on after its caller has left. It keeps a place in the pool, so the time for which its caller
    /// has waited counts for a begin. An end may take its time at the disk.
    fn goes_on_for(&self) -> Duration {
        match self.is_begin {
            true => ANSWER.saturating_sub(self.began.elapsed()),
            false => ANSWER,
        }
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
        let goes_on_for = self.goes_on_for();
        let (Some(mut future), Ok(runtime)) = (self.future.take(), Handle::try_current()) else {
            return;
        };
        let (trust, began) = (self.trust.clone(), self.began);
        let going_on = async move {
            let answered = timeout(goes_on_for, &mut future).await.is_ok();
            // Its pool closes a connection that is not trusted.
            if !answered && trust.has(began.elapsed()) {
                trust.distrust();
            }
        };
        // The result is nobody's. A transaction that has begun is rolled back with it, and so is what of one that failed has.
        drop(runtime.spawn(going_on));
    }
}

impl<T: 'static> fmt::Debug for Unbroken<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unbroken")
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// After how long a statement that says nothing gives its connection back, whose caller waits for so long.
    async fn keeps_its_place(
        statement: impl FnOnce(&ConnectionTrust, oneshot::Sender<()>) -> Unbroken<()>,
        caller: Duration,
    ) -> Duration {
        let ((place, given_back), trust) = (oneshot::channel(), ConnectionTrust::default());
        let began = Instant::now();
        timeout(caller, statement(&trust, place)).await.unwrap_err();
        given_back.await.unwrap_err();
        began.elapsed()
    }

    async fn says_nothing(_place: oneshot::Sender<()>) -> sqlx::Result<()> {
        std::future::pending().await
    }

    #[tokio::test(start_paused = true)]
    async fn a_begin_that_says_nothing_keeps_its_place_no_longer_than_it_may_take() {
        for (caller, begin, end) in [(0, 2, 2), (1, 2, 3), (2, 2, 4), (5, 5, 7)] {
            let caller = Duration::from_secs(caller);
            let kept =
                keeps_its_place(|trust, it| Unbroken::begin(trust, says_nothing(it)), caller).await;
            assert_eq!(kept.as_secs(), begin, "the begin of one who waits for {caller:?}");
            let kept =
                keeps_its_place(|trust, it| Unbroken::end(trust, says_nothing(it)), caller).await;
            assert_eq!(kept.as_secs(), end, "the end of one who waits for {caller:?}");
        }
    }
}
