//! The tasks of the program, each with a name, in the order in which they are stopped.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::model::seconds;

/// When a task is stopped. The stages are stopped in this order, in which bytes flow, so that what is
/// under way arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopStage {
    /// Serves clients, and what that needs: no more clients, and sessions say goodbye.
    Serving,
    /// Watchers log out.
    Watching,
    /// Pushes under way end, or are marked as owed.
    Pushing,
    /// This node gives up its share when all that the others need of it is on disk.
    Membership,
    /// Last, so that the end can be seen from outside.
    Admin,
}

const STAGES: [StopStage; 5] = [
    StopStage::Serving,
    StopStage::Watching,
    StopStage::Pushing,
    StopStage::Membership,
    StopStage::Admin,
];

/// All tasks at work.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    stops: [CancellationToken; STAGES.len()],
    tasks: Vec<Task>,
}

#[derive(Debug)]
struct Task {
    stage: StopStage,
    name: &'static str,
    handle: JoinHandle<()>,
}

impl Tasks {
    /// Cancelled when the tasks of this stage are to end.
    pub(super) fn stop_of(&self, stage: StopStage) -> CancellationToken {
        self.stops[stage as usize].clone()
    }

    /// Starts a task, which is to end when [`Tasks::stop_of`] its stage is cancelled.
    pub(super) fn start(
        &mut self,
        stage: StopStage,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.add(stage, name, tokio::spawn(task));
    }

    /// Takes a task that was started elsewhere.
    pub(super) fn add(&mut self, stage: StopStage, name: &'static str, handle: JoinHandle<()>) {
        self.tasks.push(Task { stage, name, handle });
    }

    /// Lets go of the tasks that have ended.
    pub(super) fn forget_ended(&mut self) {
        self.tasks.retain(|task| !task.handle.is_finished());
    }

    /// Stops stage after stage; each task has `limit` of its stage to end, and is given up then.
    pub(super) async fn stop(self, limit: impl Fn(StopStage) -> Duration) {
        let mut tasks = self.tasks;
        for (stage, stop) in STAGES.into_iter().zip(self.stops) {
            stop.cancel();
            for task in tasks.extract_if(.., |task| task.stage == stage) {
                ended(task.name, task.handle, limit(stage)).await;
            }
        }
    }
}

/// Waits for a part of the program, but not for ever.
async fn ended(part: &'static str, task: JoinHandle<()>, limit: Duration) {
    let abort = task.abort_handle();
    match tokio::time::timeout(limit, task).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(
            target: "mailchime::app::task_failed",
            part, %error, "a part of mailchime failed; please report it with this line"
        ),
        Err(_) => {
            tracing::warn!(
                target: "mailchime::app::task_abandoned",
                part,
                limit_seconds = seconds(limit),
                "a part of mailchime did not stop in time; mailchime exits without it"
            );
            abort.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stages_end_in_their_order_and_a_task_that_hangs_is_given_up() {
        let (mut tasks, ends) = (Tasks::default(), Arc::new(Mutex::new(Vec::new())));
        // Started in another order than they end in.
        for (stage, name) in [
            (StopStage::Admin, "admin"),
            (StopStage::Pushing, "pushing"),
            (StopStage::Serving, "sessions"),
            (StopStage::Membership, "membership"),
            (StopStage::Watching, "watching"),
        ] {
            let (stop, ends) = (tasks.stop_of(stage), Arc::clone(&ends));
            tasks.start(stage, name, async move {
                stop.cancelled().await;
                ends.lock().push(name);
            });
        }
        tasks.start(StopStage::Serving, "hangs", std::future::pending());
        tasks.stop(|_| Duration::from_secs(1)).await;
        assert_eq!(*ends.lock(), ["sessions", "watching", "pushing", "membership", "admin"]);
    }
}
