//! Accounts: which are to be watched, with what credentials, and which are parked.

use sqlx::Row;

use crate::model::{Account, Timestamp};

use super::{LiveAccount, Store, StoreError, account};

impl Store {
    /// The accounts with a device that registered at `registered_since` or later, by name.
    pub async fn accounts(
        &self,
        registered_since: Timestamp,
    ) -> Result<Vec<LiveAccount>, StoreError> {
        self.read(async {
            let rows = sqlx::query(
                "select name, parked from account where exists (select 1 from device \
                 where device.account = account.name and device.registered_at >= $1) order by name",
            )
            .bind(registered_since.0)
            .fetch_all(&self.reads)
            .await?;
            rows.iter()
                .map(|row| {
                    Ok(LiveAccount {
                        account: account(row, "name")?,
                        parked: row.try_get("parked")?,
                    })
                })
                .collect()
        })
        .await
    }

    /// The sealed credentials; `None` when the account is unknown or none are kept.
    pub async fn credentials(&self, account: &Account) -> Result<Option<String>, StoreError> {
        self.read(async {
            let row = sqlx::query("select credentials from account where name = $1")
                .bind(account.as_str())
                .fetch_optional(&self.reads)
                .await?;
            row.map_or(Ok(None), |row| row.try_get("credentials"))
        })
        .await
    }

    /// Replaces the sealed credentials and ends the parking. Returns whether the account is known:
    /// credentials of one that has no device are not kept.
    pub async fn save_credentials(
        &self,
        account: &Account,
        sealed: &str,
    ) -> Result<bool, StoreError> {
        self.write(|| async {
            let done = sqlx::query(
                "update account set credentials = $2, parked = null, parked_since = null \
                 where name = $1",
            )
            .bind(account.as_str())
            .bind(sealed)
            .execute(&self.writes)
            .await?;
            Ok(done.rows_affected() > 0)
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
        self.write(|| async {
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
}
