//! How many tasks of accounts on demand are asking their backends. One that waits, parked or after a failure,
//! does not count.

use tokio::sync::watch;

/// Counts them.
#[derive(Debug)]
pub(super) struct AskingTasks(watch::Sender<usize>);

/// One task. It counts as asking until it says otherwise or ends.
#[derive(Debug)]
pub(super) struct AskingTask {
    tasks: watch::Sender<usize>,
    asks: bool,
}

impl AskingTasks {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(0))
    }

    /// A task begins.
    pub(super) fn begin(&self) -> AskingTask {
        let mut task = AskingTask { tasks: self.0.clone(), asks: false };
        task.set(true);
        task
    }

    pub(super) fn count(&self) -> usize {
        *self.0.borrow()
    }

    /// Waits until fewer than these are asking. Cancel safe.
    pub(super) async fn below(&self, most: usize) {
        // The sender is here.
        let _ = self.0.subscribe().wait_for(|count| *count < most).await;
    }
}

impl AskingTask {
    /// Whether it asks now, or waits.
    pub(super) fn set(&mut self, asks: bool) {
        match (std::mem::replace(&mut self.asks, asks), asks) {
            (false, true) => self.tasks.send_modify(|count| *count += 1),
            (true, false) => self.tasks.send_modify(|count| *count -= 1),
            _ => {}
        }
    }
}

impl Drop for AskingTask {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_waits_or_has_ended_makes_room() {
        let tasks = AskingTasks::new();
        let (mut one, other) = (tasks.begin(), tasks.begin());
        assert_eq!(tasks.count(), 2);
        one.set(false);
        one.set(false);
        assert_eq!(tasks.count(), 1);
        tasks.below(2).await;
        one.set(true);
        tokio::join!(tasks.below(2), async { drop(other) });
        drop(one);
        assert_eq!(tasks.count(), 0);
    }
}
