//! Registrations coming and going. Whatever removes a device ends with [`sweep`], which keeps what
//! the module's head promises of accounts and snapshots.

use std::collections::{BTreeSet, HashSet};

use sqlx::{AnyConnection, Row};

use crate::model::{Account, Mailbox, Registration, Snapshot, Timestamp};

use super::{DeviceKey, Removed, Store, StoreError, account, bind_snapshot, device};

impl Store {
    /// Stores a registration. When this returns `Ok` it is on disk.
    ///
    /// - `sealed` credentials replace the old ones and end the account's parking; `None` leaves
    ///   both alone.
    /// - The device's newest account id, version and topic replace the older; when it was last
    ///   pushed stays.
    /// - Its mailboxes become those of the registration; what is owed of one that stays is still
    ///   owed.
    /// - A mailbox that no device was registered for begins with the registration's snapshot. An
    ///   existing snapshot stays: it says what the other devices were told.
    /// - Of the account's devices this one and the newest others remain, `max_devices` in all (at
    ///   least one).
    pub async fn register(
        &self,
        registration: &Registration,
        sealed: Option<&str>,
        max_devices: u32,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let account = &registration.device.account;
        let key = DeviceKey::from(&registration.device);
        let dropped = self
            .named(async {
                let mut transaction = self.begin().await?;
                upsert_account(&mut transaction, account, sealed, now).await?;
                upsert_device(&mut transaction, &key, registration, now).await?;
                replace_mailboxes(&mut transaction, &key, registration).await?;
                let dropped = drop_oldest(&mut transaction, &key, max_devices).await?;
                sweep(&mut transaction, account.as_str()).await?;
                transaction.commit().await?;
                Ok(dropped)
            })
            .await?;
        if dropped > 0 {
            tracing::info!(%account, dropped, max_devices, "the oldest devices made room");
        }
        Ok(())
    }

    /// Removes a registration, unless it is newer than `registered_not_after` (a device that
    /// registered since lives). `None` when there was nothing to remove.
    pub async fn remove_device(
        &self,
        key: &DeviceKey,
        registered_not_after: Option<Timestamp>,
    ) -> Result<Option<Removed>, StoreError> {
        self.named(async {
            let mut transaction = self.begin().await?;
            let row = key
                .bind(
                    "delete from device where account = $1 and token = $2 and subtopic = $3 \
                     and registered_at <= $4 \
                     returning account, token_given, subtopic, aps_account_id, version, topic",
                )
                .bind(registered_not_after.map_or(i64::MAX, |time| time.0))
                .fetch_optional(&mut *transaction)
                .await?;
            let Some(row) = row else { return Ok(None) };
            let account_left = sweep(&mut transaction, key.account.as_str()).await?;
            let removed = Removed { device: device(&row)?, account_left };
            transaction.commit().await?;
            Ok(Some(removed))
        })
        .await
    }

    /// Removes the devices that registered before `registered_before`; returns the accounts that
    /// lost their last one.
    pub async fn expire(&self, registered_before: Timestamp) -> Result<Vec<Account>, StoreError> {
        self.named(async {
            let mut transaction = self.begin().await?;
            let rows = sqlx::query("delete from device where registered_at < $1 returning account")
                .bind(registered_before.0)
                .fetch_all(&mut *transaction)
                .await?;
            let touched = rows
                .iter()
                .map(|row| account(row, "account"))
                .collect::<sqlx::Result<BTreeSet<Account>>>()?;
            let mut gone = Vec::new();
            for account in touched {
                if !sweep(&mut transaction, account.as_str()).await? {
                    gone.push(account);
                }
            }
            transaction.commit().await?;
            Ok(gone)
        })
        .await
    }

    /// Removes all that is known of an account; returns whether there was something.
    pub async fn remove_account(&self, account: &Account) -> Result<bool, StoreError> {
        self.named(async {
            let done = sqlx::query("delete from account where name = $1")
                .bind(account.as_str())
                .execute(&self.writes)
                .await?;
            Ok(done.rows_affected() > 0)
        })
        .await
    }
}

async fn upsert_account(
    connection: &mut AnyConnection,
    account: &Account,
    sealed: Option<&str>,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "insert into account (name, credentials, created_at) values ($1, $2, $3) \
         on conflict (name) do update set \
         credentials = coalesce(excluded.credentials, account.credentials), \
         parked = case when excluded.credentials is null then account.parked end, \
         parked_since = case when excluded.credentials is null then account.parked_since end",
    )
    .bind(account.as_str())
    .bind(sealed)
    .bind(now.0)
    .execute(connection)
    .await
    .map(drop)
}

async fn upsert_device(
    connection: &mut AnyConnection,
    key: &DeviceKey,
    registration: &Registration,
    now: Timestamp,
) -> sqlx::Result<()> {
    let device = &registration.device;
    key.bind(
        "insert into device (account, token, subtopic, token_given, aps_account_id, version, \
         topic, registered_at) values ($1, $2, $3, $4, $5, $6, $7, $8) \
         on conflict (account, token, subtopic) do update set \
         token_given = excluded.token_given, aps_account_id = excluded.aps_account_id, \
         version = excluded.version, topic = excluded.topic, \
         registered_at = excluded.registered_at",
    )
    .bind(device.token.as_given())
    .bind(&device.account_id)
    .bind(i64::from(device.version))
    .bind(&device.topic)
    .bind(now.0)
    .execute(connection)
    .await
    .map(drop)
}

async fn replace_mailboxes(
    connection: &mut AnyConnection,
    key: &DeviceKey,
    registration: &Registration,
) -> sqlx::Result<()> {
    let wanted: HashSet<&str> =
        registration.mailboxes.iter().map(|(mailbox, _)| mailbox.as_str()).collect();
    let rows = key
        .bind(
            "select mailbox from device_mailbox \
             where account = $1 and token = $2 and subtopic = $3",
        )
        .fetch_all(&mut *connection)
        .await?;
    for row in &rows {
        let mailbox: &str = row.try_get("mailbox")?;
        if !wanted.contains(mailbox) {
            key.bind(
                "delete from device_mailbox \
                 where account = $1 and token = $2 and subtopic = $3 and mailbox = $4",
            )
            .bind(mailbox)
            .execute(&mut *connection)
            .await?;
        }
    }
    for (mailbox, state) in &registration.mailboxes {
        key.bind(
            "insert into device_mailbox (account, token, subtopic, mailbox) \
             values ($1, $2, $3, $4) on conflict do nothing",
        )
        .bind(mailbox.as_str())
        .execute(&mut *connection)
        .await?;
        insert_baseline(connection, &key.account, mailbox, state).await?;
    }
    Ok(())
}

async fn insert_baseline(
    connection: &mut AnyConnection,
    account: &Account,
    mailbox: &Mailbox,
    state: &Snapshot,
) -> sqlx::Result<()> {
    bind_snapshot(
        "insert into snapshot (account, mailbox, uid_validity, uid_next, messages, unseen, \
         highest_mod_seq) values ($1, $2, $3, $4, $5, $6, $7) on conflict do nothing",
        account,
        mailbox,
        state,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// Keeps the device of `key` first of all: a clock that was set back must not make a device that
/// was just told OK the oldest.
async fn drop_oldest(
    connection: &mut AnyConnection,
    key: &DeviceKey,
    max_devices: u32,
) -> sqlx::Result<u64> {
    let done = key
        .bind(
            "delete from device where account = $1 and (token, subtopic) not in (\
             select token, subtopic from device where account = $1 \
             order by case when token = $2 and subtopic = $3 then 0 else 1 end, \
             registered_at desc, token, subtopic limit $4)",
        )
        .bind(i64::from(max_devices.max(1)))
        .execute(connection)
        .await?;
    Ok(done.rows_affected())
}

/// Deletes the snapshots that no device is registered for any more, so that a mailbox that comes
/// back begins anew, and the account itself when it has no device. Returns whether it has one.
async fn sweep(connection: &mut AnyConnection, account: &str) -> sqlx::Result<bool> {
    sqlx::query(
        "delete from snapshot where account = $1 and mailbox not in \
         (select mailbox from device_mailbox where account = $1)",
    )
    .bind(account)
    .execute(&mut *connection)
    .await?;
    let done = sqlx::query(
        "delete from account where name = $1 \
         and not exists (select 1 from device where account = $1)",
    )
    .bind(account)
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 0)
}
