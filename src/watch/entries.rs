//! The entry of METADATA by which Dovecot's notification driver `ox` knows for whom to send events
//! (`imap::metadata`). Where a source of the configuration asks for it, mailchime writes the entry when a device of
//! the account registers, and removes it when the last one is gone. Both happen on a short connection of their own
//! as the user, which takes its turn among the logins of the watchers. No phone and no watcher waits for it.
//!
//! An entry with another value is that of another program, and stays as it is.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch as cell};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::WatchContext;
use super::source::imap::connection::{Completion, ConnectionLost, ImapConnection};
use super::source::imap::health::ConnectionSlot;
use crate::imap::metadata;
use crate::imap::refusal::Refusal;
use crate::model::{AcceptedLogin, Account, Credentials, Timestamp};
use crate::net::backend::{Backend, LoginError};
use crate::nodes::Assignment;
use crate::store::{CredentialsError, LeavingAccount, StoreError};

/// Accounts that may wait. Of more, the next registration or the next look at those that leave learns.
const WAITING: usize = 1024;

/// Connections at once.
const AT_ONCE: usize = 8;

/// Between two looks at the accounts whose entry is to be removed.
const LEAVING: Duration = Duration::from_mins(10);

/// So long an entry that was seen is not looked at again, and so long its removal is tried.
const DAY: Duration = Duration::from_hours(24);

/// The entry may have been written. It is looked for again.
const MAYBE: Timestamp = Timestamp(0);

/// Failures that are remembered, to be logged once.
const REMEMBERED: usize = 10_000;

/// The way to the task that writes and removes entries.
#[derive(Debug)]
pub(super) struct Entries {
    writer: Arc<EntryWriter>,
    accounts: mpsc::Sender<EntryOrder>,
}

/// Writes and removes entries.
#[derive(Debug)]
struct EntryWriter {
    context: Arc<WatchContext>,
    /// The accounts and backends of which the log has said what is wrong.
    said: Mutex<HashSet<String>>,
    /// The accounts of which the entry is to be removed as soon as their users log in: no password is in memory.
    awaited: Mutex<HashSet<Account>>,
}

/// The entry of this account is to be written or removed.
#[derive(Debug)]
struct EntryOrder {
    account: Account,
    /// What the user of an account that was awaited has logged in with.
    login: Option<AcceptedLogin>,
}

/// A connection as the user, at a backend that keeps entries.
struct EntrySession {
    connection: ImapConnection,
    _place: ConnectionSlot,
}

/// Why an entry is not as it should be.
#[derive(Debug)]
enum EntryFailure {
    /// Another try may help.
    ForNow(String),
    /// No password is in memory. Another node may have it, or this one when the user logs in.
    NoPassword,
    /// Another try with what is known does not help.
    ForGood(String),
    /// The backend keeps no entries.
    NoMetadata(Backend),
}

impl Entries {
    /// The way to a task, and the task, which ends with the way.
    pub(super) fn new(
        context: &Arc<WatchContext>,
        assignment: cell::Receiver<Assignment>,
    ) -> (Self, impl Future<Output = ()> + use<>) {
        let (accounts, asked) = mpsc::channel(WAITING);
        let writer = Arc::new(EntryWriter {
            context: Arc::clone(context),
            said: Mutex::default(),
            awaited: Mutex::default(),
        });
        let run = run(Arc::clone(&writer), assignment, asked);
        (Self { writer, accounts }, run)
    }

    /// A device of the account has registered, or the last one is gone. Whether that is taken in: then what is kept
    /// in memory of an account that is gone is forgotten when it is not needed any more.
    pub(super) fn look_after(&self, account: &Account) -> bool {
        let order = EntryOrder { account: account.clone(), login: None };
        self.writer.context.wants_entry(account) && self.accounts.try_send(order).is_ok()
    }

    /// The user of the account has logged in. That may be what the removal of its entry waits for.
    pub(super) fn logged_in(&self, account: &Account, login: &AcceptedLogin) {
        if self.writer.awaited.lock().contains(account) {
            let order = EntryOrder { account: account.clone(), login: Some(login.clone()) };
            // If there is no room, the next login is taken.
            let _ = self.accounts.try_send(order);
        }
    }
}

async fn run(
    writer: Arc<EntryWriter>,
    assignment: cell::Receiver<Assignment>,
    mut asked: mpsc::Receiver<EntryOrder>,
) {
    let (mut waiting, mut under_way) = (VecDeque::new(), JoinSet::new());
    let mut next_look = interval(LEAVING);
    next_look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        while under_way.len() < AT_ONCE
            && let Some(order) = waiting.pop_front()
        {
            let writer = Arc::clone(&writer);
            under_way.spawn(async move { writer.carry_out(order).await });
        }
        tokio::select! {
            Some(_) = under_way.join_next() => {}
            order = asked.recv() => match order {
                Some(order) if waiting.len() < WAITING => waiting.push_back(order),
                // Its next registration asks again, and the next look finds those that leave.
                Some(_) => {}
                None => return,
            },
            _ = next_look.tick(), if waiting.is_empty() => {
                let leaving = writer.context.store.leaving(None, Timestamp::now()).await;
                // An error is counted, and the database says it elsewhere.
                let leaving = leaving.into_iter().flatten().map(|leaving| leaving.account);
                let (assignment, credentials) =
                    (assignment.borrow().clone(), &writer.context.credentials);
                let is_ours =
                    |account: &Account| assignment.is_mine(account) || credentials.holds(account);
                let ours = leaving.filter(is_ours);
                waiting.extend(ours.map(|account| EntryOrder { account, login: None }));
            }
        }
    }
}

impl EntryWriter {
    async fn carry_out(&self, EntryOrder { account, login }: EntryOrder) {
        if let Some(login) = login {
            let saved = self.context.credentials.save(&account, &login, Timestamp::now()).await;
            if saved.is_err() {
                // The next login is taken, or the next look at those that leave says what is wrong.
                return;
            }
        }
        self.look_after(&account).await;
    }

    /// Writes the account's entry or removes it, if either is to be done.
    async fn look_after(&self, account: &Account) {
        let now = Timestamp::now();
        let leaving = self.context.store.leaving(Some(account), now).await;
        let leaving = leaving.map(|leaving| leaving.into_iter().next());
        match leaving {
            Ok(Some(leaving)) => self.leave(&leaving, now).await,
            Ok(None) => {
                self.awaited.lock().remove(account);
                self.enter(account, now).await;
                self.forget(account).await;
            }
            Err(error) => self.not_written(account, error.into()),
        }
    }

    /// Forgets what is in memory of an account without a subscription.
    async fn forget(&self, account: &Account) {
        let WatchContext { store, credentials, .. } = &*self.context;
        let has_gone = async || {
            // In this order: an account that has none at the first question is found by the second if its entry is still to
            // be removed. That takes the password.
            matches!(store.has_any(account).await, Ok(false))
                && store
                    .leaving(Some(account), Timestamp::now())
                    .await
                    .is_ok_and(|it| it.is_empty())
        };
        if credentials.holds(account) && has_gone().await {
            credentials.forget(account);
        }
    }

    /// Writes the entry, if it is wanted.
    async fn enter(&self, account: &Account, now: Timestamp) {
        if !self.context.wants_entry(account) {
            return;
        }
        match self.write(account, now).await {
            Ok(()) => drop(self.said.lock().remove(account.as_str())),
            Err(failure) => self.not_written(account, failure),
        }
    }

    async fn write(&self, account: &Account, now: Timestamp) -> Result<(), EntryFailure> {
        let store = &self.context.store;
        if !store.lacks_entry(account, now.minus(DAY)).await? {
            return Ok(());
        }
        let unfit = || EntryFailure::ForGood("the account's name cannot stand in it".to_owned());
        let value = metadata::push_entry_of(account).ok_or_else(unfit)?;
        let mut session = self.log_in(account, now).await?;
        let written = async {
            match session.value().await? {
                Some(found) if found == value.as_bytes() => {}
                Some(_) => {
                    store.note_entry(account, None).await?;
                    let why =
                        "it has the value of another program, which mailchime leaves as it is";
                    return Err(EntryFailure::ForGood(why.to_owned()));
                }
                None => {
                    // First: what may be there is removed one day, whatever happens meanwhile.
                    if !store.note_entry(account, Some(MAYBE)).await? {
                        return Ok(());
                    }
                    let set = metadata::set_push_entry(&value).ok_or_else(unfit)?;
                    if let Err(failure) = session.change(&set).await {
                        if let EntryFailure::ForGood(_) = failure {
                            store.note_entry(account, None).await?;
                        }
                        return Err(failure);
                    }
                    tracing::info!(
                        target: "mailchime::watch::entry_written",
                        %account,
                        "wrote the METADATA entry by which the mail server sends events of this account"
                    );
                }
            }
            if !store.note_entry(account, Some(now)).await? {
                // The last device has gone meanwhile, and nobody knows of the entry any more.
                session.change(&metadata::unset_push_entry()).await?;
            }
            Ok(())
        };
        let written = written.await;
        session.connection.log_out().await;
        written
    }

    /// Removes the entry, and what was kept for that.
    async fn leave(&self, LeavingAccount { account, since }: &LeavingAccount, now: Timestamp) {
        match self.remove(account, now).await {
            Ok(()) => {}
            Err(failure) if failure.passes() && now < since.plus(DAY) => {
                if matches!(failure, EntryFailure::NoPassword) {
                    self.await_login(account);
                }
                let why = failure.why();
                tracing::debug!(
                    target: "mailchime::watch::entry_not_removed",
                    %account, why,
                    "could not remove the METADATA entry of an account that has no device; mailchime \
                     tries again in 10 minutes"
                );
                return;
            }
            Err(failure) => {
                let why = failure.why();
                tracing::warn!(
                    target: "mailchime::watch::entry_left_behind",
                    %account, why,
                    "could not remove the METADATA entry of an account that has no device; mailchime \
                     forgets the account. The mail server goes on sending events of it, which do \
                     nothing. Remove the entry with doveadm"
                );
            }
        }
        self.said.lock().remove(account.as_str());
        self.awaited.lock().remove(account);
        match self.context.store.left(account).await {
            // Its user has come back meanwhile.
            Ok(true) => self.enter(account, now).await,
            Ok(false) => self.forget(account).await,
            // The next look finds it again.
            Err(_) => {}
        }
    }

    fn await_login(&self, account: &Account) {
        let mut awaited = self.awaited.lock();
        if awaited.len() < REMEMBERED {
            awaited.insert(account.clone());
        }
    }

    async fn remove(&self, account: &Account, now: Timestamp) -> Result<(), EntryFailure> {
        let mut session = self.log_in(account, now).await?;
        let removed = async {
            let ours = metadata::push_entry_of(account).map(String::into_bytes);
            let found = session.value().await?;
            if found.is_some() && found == ours {
                // First: its user may come back, and this may be the end of the program.
                self.context.store.note_entry(account, Some(MAYBE)).await?;
                session.change(&metadata::unset_push_entry()).await?;
                tracing::info!(
                    target: "mailchime::watch::entry_removed",
                    %account,
                    "removed the METADATA entry by which the mail server sent events of this account"
                );
            }
            Ok(())
        };
        let removed = removed.await;
        session.connection.log_out().await;
        removed
    }

    async fn log_in(
        &self,
        account: &Account,
        now: Timestamp,
    ) -> Result<EntrySession, EntryFailure> {
        let context = &self.context;
        let backend = context.backends.of(account);
        let backend = backend.map_err(|error| EntryFailure::ForNow(error.to_string()))?;
        let credentials = self.credentials(account, &backend, now).await?;
        let health = context.backend_health.of(&backend);
        let (_place, _turn) = health.turn(false).await;
        let (timeout, longest) = (context.config.answer_timeout, context.response_size);
        let logged_in = context.backends.log_in(&backend, account, credentials, timeout, longest);
        let logged_in = logged_in.await?;
        let mut connection = ImapConnection::new(logged_in, timeout, longest);
        if !metadata::keeps_entries(&connection.capabilities().await?) {
            connection.log_out().await;
            return Err(EntryFailure::NoMetadata(backend));
        }
        Ok(EntrySession { connection, _place })
    }

    async fn credentials(
        &self,
        account: &Account,
        backend: &Backend,
        now: Timestamp,
    ) -> Result<Credentials, EntryFailure> {
        let source = &self.context.credentials;
        let none = || match source.are_shared() {
            true => EntryFailure::ForGood("no password is kept".to_owned()),
            false => EntryFailure::NoPassword,
        };
        if !source.are_of_users() {
            return Ok(backend.master().ok_or_else(none)?.acting_as(account));
        }
        let kept = source.kept(account, backend.id(), now).await.map_err(|error| match error {
            CredentialsError::Store(error) => EntryFailure::from(error),
            CredentialsError::Vault(error) => EntryFailure::ForGood(error.to_string()),
        })?;
        let mut kept = kept.into_iter().map(|kept| kept.credentials);
        kept.find(|it| it.prove_account(backend.checks_token_name())).ok_or_else(none)
    }

    /// Says what is wrong, once for each account, or for a backend that has no entries.
    fn not_written(&self, account: &Account, failure: EntryFailure) {
        let about = match &failure {
            EntryFailure::NoMetadata(backend) => format!("backend {}", backend.name()),
            _ => account.as_str().to_owned(),
        };
        let new = {
            let mut said = self.said.lock();
            said.len() < REMEMBERED && said.insert(about)
        };
        if new {
            let why = failure.why();
            tracing::warn!(
                target: "mailchime::watch::entry_not_written",
                %account, why,
                "could not write the METADATA entry by which the mail server sends events of this \
                 account; mailchime tries again when a device of it next registers"
            );
        }
    }
}

impl EntrySession {
    /// The value of the entry, if there is one.
    async fn value(&mut self) -> Result<Option<Vec<u8>>, EntryFailure> {
        let (mut value, get) = (None, metadata::get_push_entry());
        let answer = self.connection.command(&get, |response| {
            if let Some(found) = metadata::push_entry_in(response) {
                value = found.map(|found| found.into_owned());
            }
        });
        match answer.await? {
            Completion::Ok => Ok(value),
            Completion::No | Completion::Bad => {
                let refusal = self.connection.take_refusal();
                Err(EntryFailure::ForGood(format!("the backend refuses GETMETADATA: {refusal}")))
            }
        }
    }

    /// Sets or unsets it.
    async fn change(&mut self, command: &str) -> Result<(), EntryFailure> {
        match self.connection.command(command, |_| {}).await? {
            Completion::Ok => Ok(()),
            Completion::No | Completion::Bad => {
                let refusal = self.connection.take_refusal();
                Err(EntryFailure::ForGood(format!("the backend refuses SETMETADATA: {refusal}")))
            }
        }
    }
}

impl EntryFailure {
    /// Whether another try may help.
    fn passes(&self) -> bool {
        matches!(self, Self::ForNow(_) | Self::NoPassword)
    }

    fn why(&self) -> String {
        match self {
            Self::ForNow(why) | Self::ForGood(why) => why.clone(),
            Self::NoPassword => "no password is in memory until the user logs in".to_owned(),
            Self::NoMetadata(backend) => {
                format!("{} does not offer METADATA (imap_metadata in Dovecot)", backend.name())
            }
        }
    }
}

impl From<StoreError> for EntryFailure {
    fn from(error: StoreError) -> Self {
        Self::ForNow(error.to_string())
    }
}

impl From<ConnectionLost> for EntryFailure {
    fn from(lost: ConnectionLost) -> Self {
        Self::ForNow(lost.to_string())
    }
}

impl From<LoginError> for EntryFailure {
    fn from(error: LoginError) -> Self {
        match &error {
            LoginError::Refused { refusal, .. } if *refusal != Refusal::Temporary => {
                Self::ForGood(error.to_string())
            }
            _ => Self::ForNow(error.to_string()),
        }
    }
}
