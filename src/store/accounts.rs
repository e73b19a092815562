//! Accounts: which are to be watched, with what credentials, and which are parked.

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use crate::metrics::Call;
use crate::model::{Account, BackendId, Timestamp};

use super::{Alive, LiveAccount, Registrant, Sealed, Store, StoreError, account, rows};

impl Store {
    /// The accounts with a live device, by name.
    pub async fn accounts(&self, alive: impl Into<Alive>) -> Result<Vec<LiveAccount>, StoreError> {
        let alive = alive.into();
        self.read(Call::Accounts, async {
            let query = sqlx::query(
                "select name, backend, parked from account where exists (select 1 from device \
                 where device.account = account.name \
                 and (device.heard_at is null or device.heard_at >= $1) \
                 and (device.outdated_since is null or device.outdated_at is null \
                 or device.outdated_at > $2)) order by name",
            )
            .bind(alive.registered_since.0)
            .bind(alive.outdated_after.0);
            self.rows(query, |row| {
                Ok(LiveAccount {
                    account: account(row, "name")?,
                    backend: row.try_get("backend")?,
                    parked: parked(row),
                })
            })
            .await
        })
        .await
    }

    /// One account, if it has a live device.
    pub async fn live_account(
        &self,
        account: &Account,
        alive: impl Into<Alive>,
    ) -> Result<Option<LiveAccount>, StoreError> {
        let alive = alive.into();
        self.read(Call::Account, async {
            let row = sqlx::query(
                "select backend, parked from account where name = $1 and exists (select 1 \
                 from device where device.account = account.name \
                 and (device.heard_at is null or device.heard_at >= $2) \
                 and (device.outdated_since is null or device.outdated_at is null \
                 or device.outdated_at > $3))",
            )
            .bind(account.as_str())
            .bind(alive.registered_since.0)
            .bind(alive.outdated_after.0)
            .fetch_optional(&self.reads)
            .await?;
            row.map(|row| {
                Ok(LiveAccount {
                    account: account.clone(),
                    backend: row.try_get("backend")?,
                    parked: parked(&row),
                })
            })
            .transpose()
        })
        .await
    }

    /// Records the backends of accounts that have none yet, or were recorded by the address that their
    /// backend has. Returns how many there were.
    pub async fn adopt(&self, accounts: &[(Account, BackendId)]) -> Result<u64, StoreError> {
        if accounts.is_empty() {
            return Ok(0);
        }
        self.write(Call::Adopt, || async {
            let mut transaction = self.begin().await?;
            let mut adopted = 0;
            for accounts in accounts.chunks(rows::MOST) {
                let mut query = rows::query(format!(
                    "with v (name, address, becomes) as (values {}) update account \
                     set backend = v.becomes from v where account.name = v.name \
                     and (account.backend is null or account.backend = v.address)",
                    rows::values(1, 3, accounts.len())
                ));
                for (account, backend) in accounts {
                    query =
                        query.bind(account.as_str()).bind(backend.address()).bind(backend.as_str());
                }
                adopted += query.execute(&mut *transaction).await?.rows_affected();
            }
            transaction.commit().await?;
            Ok(adopted)
        })
        .await
    }

    /// Whether the account is known and of this backend.
    pub async fn is_of(&self, account: &Account, backend: &BackendId) -> Result<bool, StoreError> {
        self.read(Call::Account, async {
            let row = sqlx::query(
                "select 1 as known from account \
                 where name = $1 and coalesce(backend, $2) in ($2, $3)",
            )
            .bind(account.as_str())
            .bind(backend.as_str())
            .bind(backend.address())
            .fetch_optional(&self.reads)
            .await?;
            Ok(row.is_some())
        })
        .await
    }

    /// The sealed credentials that this backend has accepted; `None` when the account is unknown or
    /// another backend's, and none are kept or can be read.
    pub async fn credentials(
        &self,
        account: &Account,
        backend: &BackendId,
    ) -> Result<Option<Sealed>, StoreError> {
        self.read(Call::Credentials, async {
            let query = sqlx::query(
                "select name, credentials, credentials_until from account where name = $1 \
                 and coalesce(backend, $2) in ($2, $3) and credentials is not null",
            )
            .bind(account.as_str())
            .bind(backend.as_str())
            .bind(backend.address());
            let found = self.rows(query, |row| {
                let until = row.try_get::<Option<i64>, _>("credentials_until")?.map(Timestamp);
                Ok(Sealed { text: row.try_get("credentials")?, until })
            });
            Ok(found.await?.pop())
        })
        .await
    }

    /// Replaces the sealed credentials by those of `login` and ends the parking. If their password is
    /// another one, the devices that registered before the login are outdated. Returns whether they
    /// are kept: those of an account that has no device or is another backend's are not, nor those of
    /// a login before the one that brought the password of now.
    pub async fn save_credentials(
        &self,
        account: &Account,
        login: Registrant,
    ) -> Result<bool, StoreError> {
        let Some(sealed) = &login.sealed else { return Ok(false) };
        self.write(Call::SaveCredentials, || async {
            let mut transaction = self.begin().await?;
            let done = sqlx::query(
                "update account set credentials = $2, credentials_until = $3, parked = null, \
                 parked_since = null, backend = $4, \
                 password_since = case when $7 = 1 then $6 else password_since end, \
                 password_at = case when $7 = 1 then $8 else password_at end \
                 where name = $1 and coalesce(backend, $4) in ($4, $5) \
                 and coalesce(password_since, $6) <= $6",
            )
            .bind(account.as_str())
            .bind(sealed.text.as_str())
            .bind(sealed.until.map(|until| until.0))
            .bind(login.backend.as_str())
            .bind(login.backend.address())
            .bind(login.logged_in_at.0)
            .bind(i64::from(login.other_password))
            .bind(self.served(login.logged_in_at).0)
            .execute(&mut *transaction)
            .await?;
            let kept = done.rows_affected() > 0;
            if kept {
                if login.other_password {
                    let (at, served) = (login.logged_in_at, self.served(login.logged_in_at));
                    outdate(&mut transaction, account.as_str(), at, served).await?;
                }
                self.tell(&mut transaction, account.as_str(), true).await?;
            }
            transaction.commit().await?;
            self.leaves_traces();
            Ok(kept)
        })
        .await
    }

    /// The account got another password, by a login at that time: its devices that registered before
    /// are outdated.
    pub async fn outdate(&self, account: &Account, at: Timestamp) -> Result<(), StoreError> {
        self.write(Call::SaveCredentials, || async {
            let mut transaction = self.begin().await?;
            outdate(&mut transaction, account.as_str(), at, self.served(at)).await?;
            transaction.commit().await
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

    /// Notes that this backend's account is not to be tried until its user logs in again. The newest
    /// `reason` counts; the time of the first stays.
    pub async fn park(
        &self,
        account: &Account,
        backend: &BackendId,
        reason: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(Call::Park, || async {
            sqlx::query(
                "update account set parked = $2, parked_since = coalesce(parked_since, $3) \
                 where name = $1 and coalesce(backend, $4) in ($4, $5)",
            )
            .bind(account.as_str())
            .bind(reason)
            .bind(now.0)
            .bind(backend.as_str())
            .bind(backend.address())
            .execute(&self.writes)
            .await
            .map(drop)
        })
        .await
    }

    /// Ends the parking of this backend's account, when its user has logged in.
    pub async fn unpark(&self, account: &Account, backend: &BackendId) -> Result<(), StoreError> {
        self.write(Call::Unpark, || async {
            let mut transaction = self.begin().await?;
            let done = sqlx::query(
                "update account set parked = null, parked_since = null where name = $1 \
                 and coalesce(backend, $2) in ($2, $3) and parked is not null",
            )
            .bind(account.as_str())
            .bind(backend.as_str())
            .bind(backend.address())
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

/// Marks the devices that registered before the account got another password, at this time of day and of
/// service.
async fn outdate(
    connection: &mut AnyConnection,
    account: &str,
    at: Timestamp,
    served: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "update account set password_since = $2, password_at = $3 \
         where name = $1 and coalesce(password_since, $2) <= $2",
    )
    .bind(account)
    .bind(at.0)
    .bind(served.0)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "update device set outdated_since = $2, outdated_at = $3 \
         where account = $1 and registered_at < $2 and outdated_since is null",
    )
    .bind(account)
    .bind(at.0)
    .bind(served.0)
    .execute(connection)
    .await
    .map(drop)
}

/// Credentials of an account that another key seals now.
pub(super) struct Resealed {
    pub(super) account: Account,
    pub(super) old: String,
    pub(super) new: String,
}
