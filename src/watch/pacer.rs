//! Turns: so many a second, so that thousands of watchers do not start at once.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Gives each caller its moment, evenly spaced.
#[derive(Debug)]
pub(super) struct Pacer {
    spacing: Duration,
    next: Mutex<Option<Instant>>,
}

impl Pacer {
    pub(super) fn new(per_second: u32) -> Self {
        Self { spacing: Duration::from_secs(1) / per_second.max(1), next: Mutex::new(None) }
    }

    /// Waits for the caller's turn. A turn that is not waited for is lost.
    pub(super) async fn turn(&self) {
        let at = {
            let now = Instant::now();
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let at = next.map_or(now, |next| next.max(now));
            *next = Some(at + self.spacing);
            at
        };
        tokio::time::sleep_until(at).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn turns_are_evenly_spaced() {
        let pacer = Pacer::new(10);
        let started = Instant::now();
        for turn in 0..30 {
            pacer.turn().await;
            assert_eq!(started.elapsed().as_millis(), turn * 100);
        }
        tokio::time::advance(Duration::from_secs(60)).await;
        let later = Instant::now();
        pacer.turn().await;
        assert_eq!(later.elapsed(), Duration::ZERO, "idle time is not saved up, nor waited for");
    }
}
