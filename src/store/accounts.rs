//! Accounts: which are to be watched, with what credentials, and which are parked.

use sqlx::Row;
use sqlx::any::AnyRow;

use crate::metrics::Call;
use crate::model::{Account, Timestamp};

use super::{LiveAccount, Sealed, Store, StoreError, account, rows};

impl Store {
    /// The accounts with a device that registered at `registered_since` or later, by name.
    pub async fn accounts(
        &self,
        registered_since: Timestamp,
    ) -> Result<Vec<LiveAccount>, StoreError> {
        self.read(Call::Accounts, async {
            let query = sqlx::query(
                "select name, parked from account where exists (select 1 from device \
                 where device.account = account.name and device.registered_at >= $1) order by name",
            )
            .bind(registered_since.0);
            self.rows(query, |row| {
                Ok(LiveAccount { account: account(row, "name")?, parked: parked(row) })
            })
            .await
        })
        .await
    }

    /// One account, if it has a device that registered at `registered_since` or later.
    pub async fn live_account(
        &self,
        account: &Account,
        registered_since: Timestamp,
    ) -> Result<Option<LiveAccount>, StoreError> {
        self.read(Call::Account, async {
            let row = sqlx::query(
                "select parked from account where name = $1 and exists (select 1 from device \
                 where device.account = account.name and device.registered_at >= $2)",
            )
            .bind(account.as_str())
            .bind(registered_since.0)
            .fetch_optional(&self.reads)
            .await?;
            Ok(row.map(|row| LiveAccount { account: account.clone(), parked: parked(&row) }))
        })
        .await
    }

    /// The sealed credentials; `None` when the account is unknown, and none are kept or can be read.
    pub async fn credentials(&self, account: &Account) -> Result<Option<Sealed>, StoreError> {
        self.read(Call::Credentials, async {
            let query = sqlx::query(
                "select name, credentials, credentials_until from account \
                 where name = $1 and credentials is not null",
            )
            .bind(account.as_str());
            let found = self.rows(query, |row| {
                let until = row.try_get::<Option<i64>, _>("credentials_until")?.map(Timestamp);
                Ok(Sealed { text: row.try_get("credentials")?, until })
            });
            Ok(found.await?.pop())
        })
        .await
    }

    /// Replaces the sealed credentials and ends the parking. Returns whether the account is known:
    /// credentials of one that has no device are not kept.
    pub async fn save_credentials(
        &self,
        account: &Account,
        sealed: &Sealed,
    ) -> Result<bool, StoreError> {
        self.write(Call::SaveCredentials, || async {
            let mut transaction = self.begin().await?;
            let done = sqlx::query(
                "update account set credentials = $2, credentials_until = $3, parked = null, \
                 parked_since = null where name = $1",
            )
            .bind(account.as_str())
            .bind(sealed.text.as_str())
            .bind(sealed.until.map(|until| until.0))
            .execute(&mut *transaction)
            .await?;
            let known = done.rows_affected() > 0;
            if known {
                self.tell(&mut transaction, account.as_str(), true).await?;
            }
            transaction.commit().await?;
            self.leaves_traces();
            Ok(known)
        })
        .await
    }

    /// Removes sealed credentials: those that are not to be kept beyond `expired_at`, or all.
    /// Returns how many there were.
    pub async fn erase_credentials(
        &self,
        expired_at: Option<Timestamp>,
    ) -> Result<u64, StoreError> {
        self.write(Call::EraseCredentials, || async {
            let erase = match expired_at {
                Some(now) => sqlx::query(
                    "update account set credentials = null, credentials_until = null \
                     where credentials_until <= $1",
                )
                .bind(now.0),
                None => sqlx::query(
                    "update account set credentials = null, credentials_until = null \
                     where credentials is not null",
                ),
            };
            let erased = erase.execute(&self.writes).await?.rows_affected();
            if erased > 0 {
                self.leaves_traces();
            }
            Ok(erased)
        })
        .await
    }

    /// How many sealed credentials begin with each text of `length` characters: by which keys.
    pub(super) async fn seals(&self, length: usize) -> Result<Vec<(String, u64)>, StoreError> {
        self.read(Call::Seals, async {
            let query = sqlx::query(
                "select seal, count(*) as accounts from (select substr(credentials, 1, $1) as seal \
                 from account where credentials is not null) seals group by seal order by seal",
            )
            // PostgreSQL's substr() takes no bigint.
            .bind(i32::try_from(length).unwrap_or(i32::MAX));
            self.rows(query, |row| {
                let accounts: i64 = row.try_get("accounts")?;
                Ok((row.try_get("seal")?, accounts.unsigned_abs()))
            })
            .await
        })
        .await
    }

    /// The next accounts with sealed credentials in the database's order, `limit` at most; `None` for
    /// those that cannot be read.
    pub(super) async fn sealed_after(
        &self,
        after: &str,
        limit: usize,
    ) -> Result<Vec<(Account, Option<String>)>, StoreError> {
        self.read(Call::SealedAfter, async {
            let query = sqlx::query(
                "select name, credentials from account \
                 where credentials is not null and name > $1 order by name limit $2",
            )
            .bind(after)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX));
            self.page(query, |row| Ok((account(row, "name")?, row.try_get("credentials").ok())))
                .await
        })
        .await
    }

    /// Puts new texts in the place of old ones, each unless it has been replaced meanwhile. Returns
    /// how many it replaced.
    pub(super) async fn reseal(&self, texts: &[Resealed]) -> Result<u64, StoreError> {
        if texts.is_empty() {
            return Ok(0);
        }
        self.write(Call::Reseal, || async {
            let mut query = rows::query(format!(
                "with v (name, was, becomes) as (values {}) update account \
                 set credentials = v.becomes from v \
                 where account.name = v.name and account.credentials = v.was",
                rows::values(1, 3, texts.len())
            ));
            for Resealed { account, old, new } in texts {
                query = query.bind(account.as_str()).bind(old.as_str()).bind(new.as_str());
            }
            let replaced = query.execute(&self.writes).await?.rows_affected();
            self.leaves_traces();
            Ok(replaced)
        })
        .await
    }

    /// Notes that the account is not to be tried until its user logs in again. The newest `reason`
    /// counts; the time of the first stays.
    pub async fn park(
        &self,
        account: &Account,
        reason: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(Call::Park, || async {
            sqlx::query(
                "update account set parked = $2, parked_since = coalesce(parked_since, $3) \
                 where name = $1",
            )
            .bind(account.as_str())
            .bind(reason)
            .bind(now.0)
            .execute(&self.writes)
            .await
            .map(drop)
        })
        .await
    }

    /// Ends the parking, when the account's user has logged in.
    pub async fn unpark(&self, account: &Account) -> Result<(), StoreError> {
        self.write(Call::Unpark, || async {
            let mut transaction = self.begin().await?;
            let done = sqlx::query(
                "update account set parked = null, parked_since = null \
                 where name = $1 and parked is not null",
            )
            .bind(account.as_str())
            .execute(&mut *transaction)
            .await?;
            if done.rows_affected() > 0 {
                self.tell(&mut transaction, account.as_str(), true).await?;
            }
            transaction.commit().await
        })
        .await
    }
}

/// Why the account's watcher gave up. What cannot be read is a reason as well: the user's next login
/// heals it, and until then nobody tries a password that may be wrong.
fn parked(row: &AnyRow) -> Option<String> {
    row.try_get("parked").unwrap_or_else(|_| Some("the reason cannot be read".to_owned()))
}

/// Credentials of an account that another key seals now.
pub(super) struct Resealed {
    pub(super) account: Account,
    pub(super) old: String,
    pub(super) new: String,
}
