//! Events that were not recorded. What they told of is found by a sweep of all accounts, which waits until none is
//! missed any more, and begins two minutes after the last one at the soonest. The node that has missed them tells the
//! others, for they may be of any account.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::status::SupervisorRequests;
use crate::store::Store;

/// The sweep begins when none was missed for this time.
const CALM: Duration = Duration::from_secs(5);

/// It begins after this time although some are.
const LONGEST: Duration = Duration::from_mins(1);

/// Between the beginnings of two such sweeps.
const APART: Duration = Duration::from_mins(2);

/// While the database does not answer.
const RETRY: Duration = Duration::from_secs(30);

/// Who has missed events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MissedAt {
    ThisNode,
    /// It has told all others.
    AnotherNode,
}

/// What was missed since the last sweep for it began.
#[derive(Debug, Default)]
pub(super) struct MissedEvents {
    /// When the first one was, and the last one.
    missed: Option<(Instant, Instant)>,
    /// When that sweep began.
    swept: Option<Instant>,
    /// This node has missed some, and has not told the others yet.
    untold: bool,
}

/// Of a node that watches nobody: has the other nodes ask for all accounts without a connection at its start, as events
/// may have come while it was away, and some time after it has missed some. Cancel safe: what watches then begins
/// with a sweep, and so do the other nodes, which this one joins.
pub async fn tell_missed_events(store: &Store, requests: &SupervisorRequests) -> Infallible {
    tell(store).await;
    let mut missed = MissedEvents::default();
    loop {
        let due = missed.sweep_at();
        tokio::select! {
            () = requests.missed_events() => missed.note(Instant::now(), MissedAt::ThisNode),
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                missed.begin_sweep(Instant::now());
                tell(store).await;
            }
        }
    }
}

/// Tries until it is done.
async fn tell(store: &Store) {
    while let Err(error) = store.tell_missed_events().await {
        tracing::warn!(
            target: "mailchime::watch::missed_events_not_told",
            %error,
            "could not tell the other nodes that events of mail servers may have been missed; mailchime tries again"
        );
        sleep(RETRY).await;
    }
    tracing::info!(
        target: "mailchime::watch::missed_events_told",
        "events of mail servers may have been missed, and this node watches nobody; the other \
         nodes ask for all accounts without a connection"
    );
}

impl MissedEvents {
    /// One was.
    pub(super) fn note(&mut self, now: Instant, at: MissedAt) {
        self.untold |= at == MissedAt::ThisNode;
        let first = self.missed.map_or(now, |(first, _)| first);
        self.missed = Some((first, now));
    }

    /// When a sweep for them is due, if any was missed.
    pub(super) fn sweep_at(&self) -> Option<Instant> {
        let (first, last) = self.missed?;
        let calm = (last + CALM).min(first + LONGEST);
        Some(self.swept.map_or(calm, |swept| calm.max(swept + APART)))
    }

    /// Whether a sweep for them begins now.
    pub(super) fn begin_sweep(&mut self, now: Instant) -> bool {
        let begins = self.sweep_at().is_some_and(|at| at <= now);
        if begins {
            (self.missed, self.swept) = (None, Some(now));
        }
        begins
    }

    /// Whether this node has still to tell the others. From now on it counts as having told them.
    pub(super) fn take_untold(&mut self) -> bool {
        std::mem::take(&mut self.untold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds after the start at which sweeps begin, where one is missed at each of these seconds.
    fn sweeps(missed: impl Iterator<Item = u64>, until: u64) -> Vec<u64> {
        let (mut events, start, mut sweeps) = (MissedEvents::default(), Instant::now(), Vec::new());
        let mut missed = missed.peekable();
        for second in 0..until {
            let now = start + Duration::from_secs(second);
            if missed.next_if_eq(&second).is_some() {
                events.note(now, MissedAt::ThisNode);
            }
            if events.begin_sweep(now) {
                sweeps.push(second);
            }
        }
        sweeps
    }

    #[test]
    fn a_sweep_comes_once_when_it_is_calm() {
        assert_eq!(sweeps([].into_iter(), 1000), [0; 0]);
        assert_eq!(sweeps([10].into_iter(), 1000), [15]);
        assert_eq!(sweeps(10..=30, 1000), [35]);
        // What is missed later is for another one.
        assert_eq!(sweeps([10, 16, 200].into_iter(), 1000), [15, 135, 255]);
    }

    #[test]
    fn where_events_are_missed_all_the_time_sweeps_come_seldom() {
        assert_eq!(sweeps(10..2000, 500), [70, 190, 310, 430]);
    }
}
