//! Registrations of many sessions in one transaction, so that all of them wait for the disk once.
//!
//! While one batch is being written the next one gathers. Each registration starts a task that waits
//! for a turn and then writes all that wait: a session that goes away takes nobody's write with it.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Semaphore, oneshot};

use super::{RegisterOutcome, Registrant, Store, StoreError, error};
use crate::model::{Registration, Timestamp};

/// Most registrations of one transaction, so that it does not hold up other writes for long.
const MOST: usize = 64;

/// What waits to be written.
pub(super) struct Batches {
    waiting: Mutex<Vec<Waiting>>,
    /// As many as there are batches that may be written at once.
    turns: Semaphore,
}

/// A registration, and whom to answer.
pub(super) struct Waiting {
    pub(super) registration: Registration,
    /// Of its subscription, sealed.
    pub(super) secrets: Option<String>,
    pub(super) login: Registrant,
    pub(super) max_subscriptions: u32,
    pub(super) now: Timestamp,
    reply: oneshot::Sender<Written>,
}

/// What became of it, or why nothing was written.
pub(super) type Written = Result<RegisterOutcome, Arc<sqlx::Error>>;

impl Batches {
    pub(super) fn new(at_once: usize) -> Self {
        Self { waiting: Mutex::default(), turns: Semaphore::new(at_once) }
    }

    /// Those that have waited for longest and whose sessions still wait, in the order of their
    /// accounts: two batches that meet in the database then wait for each other in one direction.
    fn take(&self) -> Vec<Waiting> {
        let mut waiting = self.waiting();
        waiting.retain(|waiting| !waiting.reply.is_closed());
        let most = waiting.len().min(MOST);
        let mut batch: Vec<_> = waiting.drain(..most).collect();
        drop(waiting);
        batch.sort_by(|one, other| {
            one.registration.subscription.account.cmp(&other.registration.subscription.account)
        });
        batch
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock()
    }
}

impl Store {
    /// Writes a registration together with others.
    pub(super) async fn write_with_others(
        &self,
        registration: &Registration,
        secrets: Option<String>,
        login: Registrant,
        max_subscriptions: u32,
        now: Timestamp,
    ) -> Result<RegisterOutcome, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.batches.waiting().push(Waiting {
            registration: registration.clone(),
            secrets,
            login,
            max_subscriptions,
            now,
            reply,
        });
        let store = self.clone();
        tokio::spawn(async move {
            let Ok(_turn) = store.batches.turns.acquire().await else { return };
            // As with what is asked: what takes longer than a call may is given up.
            let written = async {
                store.write_waiting().await;
                Ok(())
            };
            let _ = store.limited(written).await;
        });
        match answer.await {
            Ok(Ok(registered)) => Ok(registered),
            Ok(Err(error)) => Err(StoreError::from_shared(&self.database, error)),
            Err(_) => self.named(Err(sqlx::Error::WorkerCrashed)),
        }
    }

    /// Writes all that wait, and answers.
    async fn write_waiting(&self) {
        let batch = self.batches.take();
        match self.write_batch(&batch).await {
            Ok(registered) => {
                for (waiting, registered) in batch.into_iter().zip(registered) {
                    let _ = waiting.reply.send(Ok(registered));
                }
            }
            Err(error) if batch.len() > 1 && !error::is_temporary(&error) => {
                // One of them cannot be written, which is not the fault of the others.
                for waiting in batch {
                    let alone = self.write_batch(std::slice::from_ref(&waiting)).await;
                    let written = alone.and_then(|mut registered| {
                        registered.pop().ok_or(sqlx::Error::WorkerCrashed)
                    });
                    let _ = waiting.reply.send(written.map_err(Arc::new));
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for waiting in batch {
                    let _ = waiting.reply.send(Err(Arc::clone(&error)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use sqlx::Connection;
    use std::time::Duration;
    use tempfile::TempDir;

    use super::*;
    use crate::imap::registration::xapple::{DeviceToken, XAppleRegistration};
    use crate::model::{Account, BackendId, Mailbox, Snapshot};

    async fn open() -> (TempDir, Store, String) {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("test.db").display());
        let store = Store::open(&url.parse().unwrap(), Duration::from_secs(30)).await.unwrap();
        (folder, store, url)
    }

    fn registration(login: &str) -> Registration {
        let subscription = XAppleRegistration {
            version: 2,
            account_id: "ID".into(),
            token: DeviceToken::new(&"ab".repeat(32)).unwrap(),
            subtopic: "com.apple.mobilemail".into(),
            mailboxes: Vec::new(),
        }
        .subscription(Account::from_login(login), "com.apple.mail.XServer.1");
        Registration { subscription, mailboxes: vec![(Mailbox::inbox(), Snapshot::default())] }
    }

    /// Starts to register, with no batch being written before this is dropped. What waits learns of it.
    async fn start(store: &Store, logins: &[&str]) -> Vec<tokio::task::JoinHandle<bool>> {
        let mut tasks = Vec::new();
        for login in logins {
            let (store, registration) = (store.clone(), registration(login));
            let before = store.batches.waiting().len();
            let batches = Arc::clone(&store.batches);
            tasks.push(tokio::spawn(async move {
                let login = Registrant::new(&BackendId::new(None, "imap", 993), Timestamp(1), None);
                store.register(&registration, login, 5, Timestamp(1)).await.is_ok()
            }));
            while batches.waiting().len() == before {
                tokio::task::yield_now().await;
            }
        }
        tasks
    }

    async fn devices(store: &Store, login: &str) -> usize {
        let account = Account::from_login(login);
        store.targets(&account, Timestamp(0)).await.unwrap().len()
    }

    #[tokio::test]
    async fn what_waits_together_is_written_together_without_what_is_given_up() {
        let (_folder, store, _) = open().await;
        let turn = store.batches.turns.acquire().await.unwrap();
        let mut tasks = start(&store, &["carol", "alice", "bob", "alice"]).await;
        tasks.remove(2).abort();
        while store.batches.waiting().iter().all(|waiting| !waiting.reply.is_closed()) {
            tokio::task::yield_now().await;
        }
        let batch = store.batches.take();
        let order: Vec<_> = batch
            .iter()
            .map(|waiting| waiting.registration.subscription.account.to_string())
            .collect();
        assert_eq!(order, ["alice", "alice", "carol"]);
        *store.batches.waiting() = batch;
        drop(turn);
        for task in tasks {
            assert!(task.await.unwrap());
        }
        assert_eq!((devices(&store, "alice").await, devices(&store, "bob").await), (1, 0));
    }

    #[tokio::test]
    async fn one_that_cannot_be_written_fails_alone() {
        let (_folder, store, url) = open().await;
        let mut beside = sqlx::SqliteConnection::connect(&url).await.unwrap();
        let trigger = "create trigger refuse before insert on account when new.name = 'mallory' \
                       begin select raise(abort, 'no'); end";
        sqlx::query(trigger).execute(&mut beside).await.unwrap();
        let turn = store.batches.turns.acquire().await.unwrap();
        let tasks = start(&store, &["alice", "mallory", "bob"]).await;
        drop(turn);
        let mut written = Vec::new();
        for task in tasks {
            written.push(task.await.unwrap());
        }
        assert_eq!(written, [true, false, true]);
        assert_eq!((devices(&store, "alice").await, devices(&store, "bob").await), (1, 1));
    }
}
