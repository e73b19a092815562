//! The database: who registered which device for which mailboxes, what those devices were told,
//! and the sealed credentials of their users ([`Vault`]).
//!
//! The store keeps and returns rows; it does not know why they change. It reads no clock: times are
//! arguments. Each call is one transaction, and when it has returned `Ok` the change is on disk.
//! Every error leaves the rows as they were, and dropping a call's future in its middle does too.
//!
//! What always holds between two calls:
//! - an account has at least one device; with its last device go its credentials and snapshots;
//! - a mailbox has a snapshot row exactly while some device of the account is registered for it.
//!
//! SQLite today; the statements are such that PostgreSQL takes them too (`$1`, TEXT and BIGINT,
//! `on conflict`, `returning`), which is why they go through sqlx's `Any` driver.

mod accounts;
mod error;
mod pushes;
mod registrations;
mod sqlite;
mod vault;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, AnyPool, Row, Transaction};

use crate::model::{Account, Device, DeviceToken, Mailbox, Snapshot, Timestamp};

pub use error::StoreError;
pub use vault::{Vault, VaultError};

/// A handle to the database; clones share it.
#[derive(Clone)]
pub struct Store {
    /// How errors name the database.
    database: Arc<str>,
    reads: AnyPool,
    writes: AnyPool,
}

/// What identifies a registration (PROTOCOL.md section 1): the token is compared without case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeviceKey {
    pub account: Account,
    pub token: DeviceToken,
    pub subtopic: String,
}

/// An account with at least one live device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveAccount {
    pub account: Account,
    /// Why its watcher gave up; `None` while it may try.
    pub parked: Option<String>,
}

/// A live device with what it registered for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub device: Device,
    pub registered_at: Timestamp,
    /// When APNs last accepted a push for it.
    pub pushed_at: Option<Timestamp>,
    /// Each mailbox, and whether a push for it is still owed to this device.
    pub mailboxes: Vec<(Mailbox, bool)>,
}

/// What became of a change; see [`Store::settle`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Every device was told of this state or has the mailbox marked as owed.
    Told { account: Account, mailbox: Mailbox, snapshot: Snapshot },
    /// A push for the mailbox is due to the device. A mark that is there keeps its time.
    Owed { device: DeviceKey, mailbox: Mailbox, since: Timestamp },
    /// APNs accepted a push for these mailboxes: they are no longer owed.
    Accepted { device: DeviceKey, mailboxes: Vec<Mailbox>, at: Timestamp },
}

/// A registration that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    pub device: Device,
    /// Whether the account has other devices. If not, nothing of it is left.
    pub account_left: bool,
}

// === impl Store ===

impl Store {
    /// Opens the database of `url` (`sqlite://path`, relative or absolute), makes it when there is
    /// none and brings its schema up to date. The files are readable by their owner only.
    ///
    /// A call waits up to `busy_timeout` for another process that holds the write lock, and as long
    /// for calls before it.
    ///
    /// # Errors
    /// [`StoreError::Newer`] when a newer program wrote it, [`StoreError::Unusable`] when the URL,
    /// the folder or the file is at fault, else as any call.
    pub async fn open(url: &str, busy_timeout: Duration) -> Result<Self, StoreError> {
        let path = sqlite::path_of(url)?;
        let database: Arc<str> = path.to_string_lossy().into();
        let (reads, writes) = sqlite::open(&path, &database, busy_timeout).await?;
        Ok(Self { database, reads, writes })
    }

    /// Whether the database answers; changes nothing.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.named(async { sqlx::query("select 1").execute(&self.reads).await.map(drop) }).await
    }

    /// Waits for the calls in flight and closes the database; later calls fail.
    pub async fn close(&self) {
        self.reads.close().await;
        self.writes.close().await;
    }

    async fn begin(&self) -> sqlx::Result<Transaction<'static, Any>> {
        self.writes.begin_with(sqlite::BEGIN_WRITE).await
    }

    /// Runs the work of one call and gives its error the database's name.
    async fn named<T>(&self, work: impl Future<Output = sqlx::Result<T>>) -> Result<T, StoreError> {
        work.await.map_err(|error| StoreError::from_sqlx(&self.database, error))
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("database", &self.database).finish_non_exhaustive()
    }
}

// === impl DeviceKey ===

impl DeviceKey {
    /// `sql` with the key bound to `$1`, `$2` and `$3`.
    fn bind<'q>(&self, sql: &'static str) -> Query<'q, Any, AnyArguments> {
        sqlx::query(sql)
            .bind(self.account.as_str().to_owned())
            .bind(self.token.to_lowercase())
            .bind(self.subtopic.clone())
    }
}

impl From<&Device> for DeviceKey {
    fn from(device: &Device) -> Self {
        Self {
            account: device.account.clone(),
            token: device.token.clone(),
            subtopic: device.subtopic.clone(),
        }
    }
}

// === rows ===

fn account(row: &AnyRow, column: &str) -> sqlx::Result<Account> {
    // A canonical name is its own canonical form.
    Ok(Account::from_login(row.try_get(column)?))
}

fn device(row: &AnyRow) -> sqlx::Result<Device> {
    let token = DeviceToken::new(row.try_get("token_given")?)
        .ok_or_else(|| sqlx::Error::Decode("device.token_given is no device token".into()))?;
    let version = u8::try_from(row.try_get::<i64, _>("version")?)
        .map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok(Device {
        account: account(row, "account")?,
        account_id: row.try_get("aps_account_id")?,
        token,
        subtopic: row.try_get("subtopic")?,
        version,
        topic: row.try_get("topic")?,
    })
}

fn snapshot(row: &AnyRow) -> sqlx::Result<Snapshot> {
    let number = |column: &str| {
        row.try_get::<Option<i64>, _>(column).map(|value| value.map(i64::cast_unsigned))
    };
    Ok(Snapshot {
        uid_validity: number("uid_validity")?,
        uid_next: number("uid_next")?,
        messages: number("messages")?,
        unseen: number("unseen")?,
        highest_mod_seq: number("highest_mod_seq")?,
    })
}

/// `sql` with the row of a snapshot bound to `$1` to `$7`.
fn bind_snapshot<'q>(
    sql: &'static str,
    account: &Account,
    mailbox: &Mailbox,
    snapshot: &Snapshot,
) -> Query<'q, Any, AnyArguments> {
    // Bit for bit, not saturated: a value that came back smaller would differ from what the backend
    // says at every look, and every look would push.
    let number = |value: Option<u64>| value.map(u64::cast_signed);
    sqlx::query(sql)
        .bind(account.as_str().to_owned())
        .bind(mailbox.as_str().to_owned())
        .bind(number(snapshot.uid_validity))
        .bind(number(snapshot.uid_next))
        .bind(number(snapshot.messages))
        .bind(number(snapshot.unseen))
        .bind(number(snapshot.highest_mod_seq))
}
