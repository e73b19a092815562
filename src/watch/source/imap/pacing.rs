//! LoginPermits: so many a second, and so many under way, so that thousands of watchers do not start at once.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// A turn that comes so late, since timers are no finer, is no reason to give fewer of them.
const LATE: Duration = Duration::from_millis(10);

/// LoginPermits that are under way at once, however many a second there may be. More logins than a backend
/// works on wait in its listen queue, which is 128 long where nobody has changed it, and what
/// overflows is tried again after seconds. And a login takes several times the memory of an account
/// that is watched, which the allocator does not give back when thousands of them were had at once.
const UNDER_WAY: usize = 64;

/// Gives each caller its moment, evenly spaced, in the order in which they came; but the urgent ones
/// go first.
#[derive(Debug)]
pub(in crate::watch) struct LoginPacer {
    spacing: Duration,
    next: Mutex<Option<Instant>>,
    /// Where those wait who are not urgent, but for the first of them.
    line: Semaphore,
    /// Where the urgent ones wait, and that first one.
    front: Semaphore,
    /// Those that are not under way.
    free: Semaphore,
}

/// A turn that is under way, until this is dropped.
#[derive(Debug)]
pub(in crate::watch) struct LoginSlot<'a>(
    #[expect(dead_code, reason = "it counts")] Option<SemaphorePermit<'a>>,
);

impl LoginPacer {
    pub(in crate::watch) fn new(per_second: u32) -> Self {
        Self {
            spacing: Duration::from_secs(1) / per_second.max(1),
            next: Mutex::new(None),
            line: Semaphore::new(1),
            front: Semaphore::new(1),
            free: Semaphore::new(UNDER_WAY),
        }
    }

    /// Waits for the caller's turn. One that is not waited for is another's.
    pub(in crate::watch) async fn turn(&self, urgent: bool) -> LoginSlot<'_> {
        // None of them is ever closed.
        let _line = match urgent {
            true => None,
            false => self.line.acquire().await.ok(),
        };
        let _front = self.front.acquire().await;
        let turn = LoginSlot(self.free.acquire().await.ok());
        let now = Instant::now();
        let next = *self.next.lock();
        let at = next.filter(|next| *next + LATE >= now).unwrap_or(now);
        // Timers are of whole milliseconds: one of a time that has come takes up to one.
        if at > now {
            tokio::time::sleep_until(at).await;
        }
        *self.next.lock() = Some(at + self.spacing);
        turn
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn turns_are_evenly_spaced() {
        let pacer = LoginPacer::new(10);
        let started = Instant::now();
        for turn in 0..30 {
            pacer.turn(turn % 3 == 0).await;
            assert_eq!(started.elapsed().as_millis(), turn * 100);
        }
        tokio::time::advance(Duration::from_secs(60)).await;
        let later = Instant::now();
        pacer.turn(false).await;
        assert_eq!(later.elapsed(), Duration::ZERO, "idle time is not saved up, nor waited for");
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_has_come_does_not_wait() {
        let pacer = LoginPacer::new(10);
        drop(pacer.turn(true).await);
        tokio::time::advance(Duration::from_micros(500_300)).await;
        assert!(pacer.turn(true).now_or_never().is_some());
        assert!(pacer.turn(true).now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn thousands_of_turns_a_second_are_not_fewer() {
        let pacer = LoginPacer::new(10_000);
        let started = Instant::now();
        for _ in 0..20_000 {
            pacer.turn(false).await;
        }
        let took = started.elapsed().as_millis();
        assert!((1990..2020).contains(&took), "{took} ms");
    }

    #[tokio::test(start_paused = true)]
    async fn an_urgent_account_does_not_wait_behind_thousands() {
        let pacer = Arc::new(LoginPacer::new(100));
        for _ in 0..12_000 {
            let pacer = Arc::clone(&pacer);
            tokio::spawn(async move { drop(pacer.turn(false).await) });
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let began = Instant::now();
        pacer.turn(true).await;
        assert!(began.elapsed() <= Duration::from_millis(20), "{:?}", began.elapsed());
        pacer.turn(false).await;
        assert_eq!(began.elapsed().as_secs(), 119, "the others have all had theirs");
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_are_under_way_than_a_backend_takes() {
        let pacer = Arc::new(LoginPacer::new(100_000));
        let under_way = Arc::new(Mutex::new((0, 0)));
        let count = |under_way: &Mutex<(usize, usize)>, change: isize| {
            let mut under_way = under_way.lock();
            under_way.0 = under_way.0.checked_add_signed(change).unwrap();
            under_way.1 = under_way.1.max(under_way.0);
        };
        let began = Instant::now();
        let mut logins = tokio::task::JoinSet::new();
        for _ in 0..10 * UNDER_WAY {
            let (pacer, under_way) = (Arc::clone(&pacer), Arc::clone(&under_way));
            logins.spawn(async move {
                let turn = pacer.turn(false).await;
                count(&under_way, 1);
                tokio::time::sleep(Duration::from_secs(1)).await;
                count(&under_way, -1);
                drop(turn);
            });
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        drop(pacer.turn(true).await);
        assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
        logins.join_all().await;
        assert_eq!(began.elapsed().as_secs(), 10);
        assert_eq!(*under_way.lock(), (0, UNDER_WAY));
    }
}
