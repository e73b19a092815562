//! Registrations of many sessions in one transaction, so that all of them wait for the disk once.

use std::cmp::Ordering;
use std::sync::Arc;

use super::gathering::{Gathered, Gathering};
use super::{RegisterOutcome, Registrant, Store};
use crate::model::{Registration, Timestamp};

/// A registration that is to be written.
pub(super) struct NewRegistration {
    pub(super) registration: Registration,
    /// Of its subscription, sealed.
    pub(super) secrets: Option<String>,
    pub(super) login: Registrant,
    pub(super) max_subscriptions: u32,
    pub(super) now: Timestamp,
}

impl Gathered for NewRegistration {
    type Answer = RegisterOutcome;

    fn gathering(store: &Store) -> &Arc<Gathering<Self>> {
        &store.registrations
    }

    /// By account: two transactions that meet in the database then wait for each other in one direction.
    fn compare(&self, other: &Self) -> Ordering {
        let [one, other] = [self, other].map(|it| &it.registration.subscription.account);
        one.cmp(other)
    }

    async fn answers(store: &Store, together: &[Self]) -> sqlx::Result<Vec<RegisterOutcome>> {
        store.write_batch(together).await
    }
}

#[cfg(test)]
mod tests {
    use sqlx::Connection;
    use std::time::Duration;
    use tempfile::TempDir;

    use super::super::gathering;
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

    fn by(now: Timestamp) -> Registrant {
        Registrant::new(&BackendId::new(None, "imap", 993), now, None)
    }

    /// Starts to register, with nothing being written before the only turn runs. What waits learns of it.
    async fn start(store: &Store, logins: &[&str]) -> Vec<tokio::task::JoinHandle<bool>> {
        let mut tasks = Vec::new();
        for login in logins {
            let (store, registration) = (store.clone(), registration(login));
            let waiting = Arc::clone(&store.registrations);
            let (before, _) = waiting.waiting();
            tasks.push(tokio::spawn(async move {
                store.register(&registration, by(Timestamp(1)), 5, Timestamp(1)).await.is_ok()
            }));
            while waiting.waiting().0 == before {
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
        let mut turn = store.registrations.hold();
        let mut tasks = start(&store, &["carol", "alice", "bob", "alice"]).await;
        tasks.remove(2).abort();
        while store.registrations.waiting().1 == 0 {
            tokio::task::yield_now().await;
        }
        let taken = turn.take().unwrap();
        let order: Vec<_> = taken
            .iter()
            .map(|waiting| waiting.what.registration.subscription.account.to_string())
            .collect();
        assert_eq!(order, ["alice", "alice", "carol"]);
        gathering::ask(&store, taken).await;
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
        let turn = store.registrations.hold();
        let tasks = start(&store, &["alice", "mallory", "bob"]).await;
        turn.run(store.clone()).await;
        let mut written = Vec::new();
        for task in tasks {
            written.push(task.await.unwrap());
        }
        assert_eq!(written, [true, false, true]);
        assert_eq!((devices(&store, "alice").await, devices(&store, "bob").await), (1, 1));
    }

    /// What is registered at one is news to the other.
    #[tokio::test]
    async fn a_node_does_not_write_what_another_one_registers() {
        let (_folder, store, _) = open().await;
        let [one, other] = ["1", "2"].map(|name| store.clone().of_node(name.into()));
        let _held = one.registrations.hold();
        let (registration, login) = (registration("alice"), by(Timestamp(1)));
        let registering = other.register(&registration, login, 5, Timestamp(1));
        tokio::time::timeout(Duration::from_secs(60), registering).await.unwrap().unwrap();
    }
}
