//! A change's way through the database: what the devices were told, which devices there are, what
//! is owed to them, and what became of it (DESIGN.md, promise 2).

use sqlx::{AnyConnection, Row};

use crate::model::{Account, Mailbox, Snapshot, Timestamp};

use super::{
    DeviceKey, Settlement, Store, StoreError, Target, account, bind_snapshot, device, snapshot,
};

impl Store {
    /// The mailboxes that the account's devices registered for, each with the state they were told
    /// of. Only devices that registered at `registered_since` or later count.
    pub async fn watched(
        &self,
        account: &Account,
        registered_since: Timestamp,
    ) -> Result<Vec<(Mailbox, Snapshot)>, StoreError> {
        self.named(async {
            // A missing snapshot would read as "told of nothing", which pushes; a plain join would
            // stop watching.
            let rows = sqlx::query(
                "select distinct m.mailbox, s.uid_validity, s.uid_next, s.messages, s.unseen, \
                 s.highest_mod_seq from device d \
                 join device_mailbox m on m.account = d.account and m.token = d.token \
                 and m.subtopic = d.subtopic \
                 left join snapshot s on s.account = m.account and s.mailbox = m.mailbox \
                 where d.account = $1 and d.registered_at >= $2 order by m.mailbox",
            )
            .bind(account.as_str())
            .bind(registered_since.0)
            .fetch_all(&self.reads)
            .await?;
            rows.iter()
                .map(|row| Ok((Mailbox::new(row.try_get("mailbox")?), snapshot(row)?)))
                .collect()
        })
        .await
    }

    /// The account's devices that registered at `registered_since` or later, with their mailboxes.
    pub async fn targets(
        &self,
        account: &Account,
        registered_since: Timestamp,
    ) -> Result<Vec<Target>, StoreError> {
        self.named(async {
            let rows = sqlx::query(
                "select d.account, d.token_given, d.subtopic, d.aps_account_id, d.version, \
                 d.topic, d.registered_at, d.pushed_at, m.mailbox, m.owed_since from device d \
                 left join device_mailbox m on m.account = d.account and m.token = d.token \
                 and m.subtopic = d.subtopic \
                 where d.account = $1 and d.registered_at >= $2 \
                 order by d.token, d.subtopic, m.mailbox",
            )
            .bind(account.as_str())
            .bind(registered_since.0)
            .fetch_all(&self.reads)
            .await?;
            let mut targets: Vec<Target> = Vec::new();
            for row in &rows {
                let device = device(row)?;
                if targets.last().is_none_or(|last| last.device != device) {
                    targets.push(Target {
                        device,
                        registered_at: Timestamp(row.try_get("registered_at")?),
                        pushed_at: row.try_get::<Option<i64>, _>("pushed_at")?.map(Timestamp),
                        mailboxes: Vec::new(),
                    });
                }
                let mailbox: Option<&str> = row.try_get("mailbox")?;
                if let (Some(mailbox), Some(target)) = (mailbox, targets.last_mut()) {
                    let owed = row.try_get::<Option<i64>, _>("owed_since")?.is_some();
                    target.mailboxes.push((Mailbox::new(mailbox), owed));
                }
            }
            Ok(targets)
        })
        .await
    }

    /// The accounts with a device that is owed a push, live or not.
    pub async fn owed_accounts(&self) -> Result<Vec<Account>, StoreError> {
        self.named(async {
            let rows = sqlx::query(
                "select distinct account from device_mailbox where owed_since is not null \
                 order by account",
            )
            .fetch_all(&self.reads)
            .await?;
            rows.iter().map(|row| account(row, "account")).collect()
        })
        .await
    }

    /// Writes what became of changes, in the order given, all or nothing.
    ///
    /// What names a device or mailbox that is no longer registered has no effect. A mark that is to
    /// outlive a push, because the mailbox changed again while it was on its way, must be settled
    /// after its [`Settlement::Accepted`].
    pub async fn settle(&self, settlements: &[Settlement]) -> Result<(), StoreError> {
        if settlements.is_empty() {
            return Ok(());
        }
        self.named(async {
            let mut transaction = self.begin().await?;
            for settlement in settlements {
                settle(&mut transaction, settlement).await?;
            }
            transaction.commit().await
        })
        .await
    }
}

async fn settle(connection: &mut AnyConnection, settlement: &Settlement) -> sqlx::Result<()> {
    match settlement {
        // A mailbox that nobody is registered for has no row, so this cannot bring one back.
        Settlement::Told { account, mailbox, snapshot } => bind_snapshot(
            "update snapshot set uid_validity = $3, uid_next = $4, messages = $5, unseen = $6, \
             highest_mod_seq = $7 where account = $1 and mailbox = $2",
            account,
            mailbox,
            snapshot,
        )
        .execute(connection)
        .await
        .map(drop),
        Settlement::Owed { device, mailbox, since } => device
            .bind(
                "update device_mailbox set owed_since = coalesce(owed_since, $5) \
                 where account = $1 and token = $2 and subtopic = $3 and mailbox = $4",
            )
            .bind(mailbox.as_str())
            .bind(since.0)
            .execute(connection)
            .await
            .map(drop),
        Settlement::Accepted { device, mailboxes, at } => {
            accepted(connection, device, mailboxes, *at).await
        }
    }
}

async fn accepted(
    connection: &mut AnyConnection,
    device: &DeviceKey,
    mailboxes: &[Mailbox],
    at: Timestamp,
) -> sqlx::Result<()> {
    for mailbox in mailboxes {
        device
            .bind(
                "update device_mailbox set owed_since = null \
                 where account = $1 and token = $2 and subtopic = $3 and mailbox = $4",
            )
            .bind(mailbox.as_str())
            .execute(&mut *connection)
            .await?;
    }
    device
        .bind(
            "update device set pushed_at = $4 \
             where account = $1 and token = $2 and subtopic = $3",
        )
        .bind(at.0)
        .execute(connection)
        .await
        .map(drop)
}
