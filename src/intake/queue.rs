//! Hints on their way to disk: while some are being written, the next ones gather.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{HintRecorder, NotRecorded};
use crate::model::Hint;

/// Most hints of one transaction, but for those of one request.
const MOST: usize = 500;

/// Where requests hand in their hints.
#[derive(Debug)]
pub(super) struct HintQueue {
    waiting: mpsc::UnboundedSender<WaitingHints>,
    /// One for each hint that may wait.
    places: Arc<Semaphore>,
    most: usize,
}

/// Writes what was handed in.
#[derive(Debug)]
pub(super) struct HintRecording {
    waiting: mpsc::UnboundedReceiver<WaitingHints>,
    recorder: Arc<dyn HintRecorder>,
}

/// The hints of one request, and whom to answer.
#[derive(Debug)]
struct WaitingHints {
    hints: Vec<Hint>,
    reply: oneshot::Sender<Result<Vec<bool>, NotRecorded>>,
    _places: OwnedSemaphorePermit,
}

/// Why hints were not recorded.
#[derive(Clone, Debug)]
pub(super) enum QueueError {
    /// As many wait as may.
    Full,
    NotRecorded(NotRecorded),
}

impl HintQueue {
    /// At most so many hints may wait.
    pub(super) fn new(recorder: Arc<dyn HintRecorder>, most: usize) -> (Self, HintRecording) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let places = Arc::new(Semaphore::new(most));
        (Self { waiting: sender, places, most }, HintRecording { waiting: receiver, recorder })
    }

    /// Returns when the hints are on disk, with whether somebody has registered for each mailbox. Where this
    /// is dropped they are recorded all the same.
    pub(super) async fn record(&self, hints: Vec<Hint>) -> Result<Vec<bool>, QueueError> {
        // More in one request than may wait take all places.
        let count = u32::try_from(hints.len().min(self.most)).unwrap_or(u32::MAX);
        let places = Arc::clone(&self.places).try_acquire_many_owned(count);
        let Ok(places) = places else { return Err(QueueError::Full) };
        let (reply, answer) = oneshot::channel();
        let ended = || QueueError::NotRecorded(NotRecorded("mailchime is stopping".to_owned()));
        self.waiting.send(WaitingHints { hints, reply, _places: places }).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?.map_err(QueueError::NotRecorded)
    }
}

impl HintRecording {
    /// Until all queues are gone.
    pub(super) async fn run(mut self) {
        while let Some(first) = self.waiting.recv().await {
            let (mut batch, mut hints) = (Vec::new(), Vec::new());
            let mut next = Some(first);
            while let Some(mut waiting) = next {
                let own = std::mem::take(&mut waiting.hints);
                batch.push((own.len(), waiting));
                hints.extend(own);
                next = if hints.len() < MOST { self.waiting.try_recv().ok() } else { None };
            }
            let mut recorded = self.recorder.record(hints).await.map(Vec::into_iter);
            for (count, waiting) in batch {
                let answer = match &mut recorded {
                    Ok(known) => Ok(known.by_ref().take(count).collect()),
                    Err(error) => Err(error.clone()),
                };
                // Who asked may have gone.
                let _ = waiting.reply.send(answer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use parking_lot::Mutex;

    use super::super::RecordingHints;
    use super::*;
    use crate::model::{Account, Mailbox, MailboxEvent, Snapshot};

    /// Knows alice alone, and writes what may be written.
    #[derive(Debug)]
    struct Disk {
        batches: Mutex<Vec<usize>>,
        may_write: Semaphore,
        fails: bool,
    }

    impl HintRecorder for Disk {
        fn record(&self, hints: Vec<Hint>) -> RecordingHints<'_> {
            Box::pin(async move {
                self.may_write.acquire().await.unwrap().forget();
                self.batches.lock().push(hints.len());
                let known = hints.iter().map(|hint| hint.account.as_str() == "alice").collect();
                if self.fails { Err(NotRecorded("the disk is full".to_owned())) } else { Ok(known) }
            })
        }
    }

    fn hints(users: &[&str]) -> Vec<Hint> {
        let hint = |user: &&str| Hint {
            account: Account::from_login(user),
            mailbox: Some(Mailbox::inbox()),
            event: MailboxEvent::MessageNew,
            state: Snapshot::default(),
            seen_at: Instant::now(),
        };
        users.iter().map(hint).collect()
    }

    fn queue(most: usize, fails: bool) -> (Arc<HintQueue>, Arc<Disk>) {
        let disk = Disk { batches: Mutex::default(), may_write: Semaphore::new(0), fails };
        let disk = Arc::new(disk);
        let (queue, recording) = HintQueue::new(disk.clone(), most);
        tokio::spawn(recording.run());
        (Arc::new(queue), disk)
    }

    /// Hands in, and waits until that has been taken in.
    async fn hand_in(
        queue: &Arc<HintQueue>,
        users: &'static [&'static str],
    ) -> tokio::task::JoinHandle<Result<Vec<bool>, QueueError>> {
        let before = queue.places.available_permits();
        let (to, hints) = (Arc::clone(queue), hints(users));
        let task = tokio::spawn(async move { to.record(hints).await });
        while queue.places.available_permits() == before {
            tokio::task::yield_now().await;
        }
        tokio::task::yield_now().await;
        task
    }

    #[tokio::test]
    async fn what_comes_while_the_disk_is_busy_is_written_together() {
        let (queue, disk) = queue(6, false);
        let first = hand_in(&queue, &["alice"]).await;
        let second = hand_in(&queue, &["bob", "alice"]).await;
        let third = hand_in(&queue, &["alice", "alice", "bob"]).await;
        // There is no place for more, and nobody waits for one.
        assert!(matches!(queue.record(hints(&["alice"])).await, Err(QueueError::Full)));
        disk.may_write.add_permits(2);
        assert_eq!(first.await.unwrap().unwrap(), [true]);
        assert_eq!(second.await.unwrap().unwrap(), [false, true]);
        assert_eq!(third.await.unwrap().unwrap(), [true, true, false]);
        assert_eq!(*disk.batches.lock(), [1, 5]);
        disk.may_write.add_permits(1);
        assert_eq!(queue.record(hints(&["alice"])).await.unwrap(), [true]);
    }

    #[tokio::test]
    async fn each_of_a_batch_hears_that_it_was_not_written() {
        let (queue, disk) = queue(9, true);
        let first = hand_in(&queue, &["alice"]).await;
        let second = hand_in(&queue, &["alice"]).await;
        let third = hand_in(&queue, &["alice"]).await;
        disk.may_write.add_permits(2);
        for task in [first, second, third] {
            let answer = task.await.unwrap();
            assert!(matches!(answer, Err(QueueError::NotRecorded(_))), "{answer:?}");
        }
    }
}
