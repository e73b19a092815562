//! What tests share: time limits, sockets, mailchime as a process and inside the test, real servers
//! and what is written down once. It holds no test but those of itself.
//!
//! The soak uses it, too (`tests/soak/main.rs`).

use std::panic::Location;
use std::sync::mpsc::{RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use mailchime::net::counters::Counter;
use tokio::net::TcpListener;

pub(crate) mod apart;
pub(crate) mod browser;
pub(crate) mod chance;
pub(crate) mod core;
pub(crate) mod dialogues;
pub(crate) mod in_process;
pub(crate) mod line;
pub(crate) mod log;
pub(crate) mod ports;
pub(crate) mod program;
pub(crate) mod pushing;
pub(crate) mod sasl;
pub(crate) mod servers;
pub(crate) mod skip;
pub(crate) mod stage;
pub(crate) mod watching;
pub(crate) mod world;
pub(crate) mod xapsd;

/// How long a test may take, on a machine that is busy.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);

/// How long a single thing may take to happen.
pub(crate) const SOON: Duration = Duration::from_secs(90);

/// What `test` gives, within [`LIMIT`].
pub(crate) async fn limited<T>(test: impl Future<Output = T>) -> T {
    within(LIMIT, test).await
}

/// The same for a test of another length.
pub(crate) async fn within<T>(limit: Duration, test: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(limit, test).await;
    ended.unwrap_or_else(|_| panic!("the test takes longer than {limit:?}"))
}

/// What `event` gives, which is `awaited`, within [`SOON`].
pub(crate) async fn soon<T>(awaited: &str, event: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(SOON, event).await;
    waited.unwrap_or_else(|_| panic!("not within {SOON:?}: {awaited}"))
}

/// Asks again and again until it `holds`, while others go on; at most for [`SOON`], by the real clock.
#[track_caller]
pub(crate) fn until(mut holds: impl AsyncFnMut() -> bool) -> impl Future<Output = ()> {
    let (place, began) = (Location::caller(), Instant::now());
    async move {
        while !holds().await {
            assert!(began.elapsed() < SOON, "not within {SOON:?}: what {place} waits for");
            tokio::task::yield_now().await;
        }
    }
}

/// Waits until a limit was reached this often: the answer to a client may come before it is counted. Then checks that
/// it was reached no more often.
#[track_caller]
pub(crate) fn reached(counter: &Counter, times: u64) -> impl Future<Output = ()> {
    let place = Location::caller();
    let all = until(async move || counter.hits() >= times);
    async move {
        all.await;
        assert_eq!(counter.hits(), times, "at {place}");
    }
}

/// Lets time pass at once: for what waits, while nothing else is under way; in a runtime of one thread.
pub(crate) async fn later(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// [`limited`] for tests in which days pass.
pub(crate) async fn patient(test: impl Future<Output = ()>) {
    let (done, waiting) = std::sync::mpsc::channel::<()>();
    let late = tokio::task::spawn_blocking(move || {
        waiting.recv_timeout(Duration::from_secs(180)) == Err(RecvTimeoutError::Timeout)
    });
    tokio::select! {
        () = test => drop(done),
        late = late => assert!(!late.unwrap(), "the test takes too long"),
    }
}

/// Stops tokio's clock while it lives, at the latest for [`LIMIT`]. Sockets go on, so that what happens
/// on them takes no time, however busy the machine is.
#[derive(Debug)]
pub(crate) struct StoppedClock(#[expect(dead_code, reason = "its end is the signal")] Sender<()>);

/// Begins a [`StoppedClock`]; in a runtime of one thread.
pub(crate) fn stop_clock() -> StoppedClock {
    let (sender, ended) = std::sync::mpsc::channel();
    // A clock that is paused does not jump ahead while a thread of this kind is at work.
    tokio::task::spawn_blocking(move || {
        let _ = ended.recv_timeout(LIMIT);
    });
    tokio::time::pause();
    StoppedClock(sender)
}

/// A listener at a port of its own ([`ports`]).
pub(crate) async fn listener() -> TcpListener {
    let listener = ports::own_listener();
    listener.set_nonblocking(true).unwrap();
    TcpListener::from_std(listener).unwrap()
}
