//! Accounts: which are to be watched, with what credentials, and which are parked.

use std::time::Duration;

use sqlx::Row;
use sqlx::any::AnyRow;

use crate::metrics::Call;
use crate::model::{Account, BackendId, Mailbox, Timestamp};

use super::records::{account, live, lock};
use super::sql::work::Work;
use super::sql::{self, UpdateFrom};
use super::{Alive, Store, StoreError};

/// An account with at least one live device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveAccount {
    /// Its name.
    pub account: Account,
    /// Which backend has accepted its user, see [`BackendId::is`]; `None` in rows of versions that did
    /// not record it.
    pub backend: Option<String>,
    /// Why its watcher gave up; `None` while it may try.
    pub parked: Option<String>,
    /// How many tries in a row its backend has refused, and when it refused the last one.
    pub refused: Option<(u32, Timestamp)>,
}

// === impl LiveAccount ===

impl LiveAccount {
    /// The backend that has accepted its user, if that is another one than `now`, the one that it has
    /// by the configuration.
    pub fn elsewhere(&self, now: &BackendId) -> Option<&str> {
        self.backend.as_deref().filter(|recorded| !now.is(recorded))
    }
}

const ADOPT: UpdateFrom<'_> = UpdateFrom {
    table: "account",
    columns: &["name", "address", "becomes"],
    account: "",
    joins: &[],
    on: "account.name = v.name and (account.backend is null or account.backend = v.address)",
    set: &[("backend", "v.becomes")],
};

// === impl Store ===

impl Store {
    /// The accounts with a live device, by name.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn accounts(&self, alive: impl Into<Alive>) -> Result<Vec<LiveAccount>, StoreError> {
        let alive = alive.into();
        self.read(Call::Accounts, async {
            let query = sql::query(concat!(
                "select name, backend, parked, refusals, refused_at from account where exists (\
                 select 1 from subscription s where s.account = account.id and ",
                live!("$1", "$2"),
                ") order by name"
            ))
            .bind(alive.registered_since.0)
            .bind(alive.outdated_after.0);
            self.rows(query, |row| {
                Ok(LiveAccount {
                    account: account(row, "name")?,
                    backend: row.try_get("backend")?,
                    parked: parked(row),
                    refused: refused(row),
                })
            })
            .await
        })
        .await
    }

    /// One account, if it has a live device.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn live_account(
        &self,
        account: &Account,
        alive: impl Into<Alive>,
    ) -> Result<Option<LiveAccount>, StoreError> {
        let alive = alive.into();
        self.read(Call::Account, async {
            let mut work = self.read_once().await?;
            let row = sql::query(concat!(
                "select backend, parked, refusals, refused_at from account where name = $1 and exists (\
                 select 1 from subscription s where s.account = account.id and ",
                live!("$2", "$3"),
                ")"
            ))
            .bind(account.as_str())
            .bind(alive.registered_since.0)
            .bind(alive.outdated_after.0)
            .fetch_optional_in(&mut work)
            .await?;
            row.map(|row| {
                Ok(LiveAccount {
                    account: account.clone(),
                    backend: row.try_get("backend")?,
                    parked: parked(&row),
                    refused: refused(&row),
                })
            })
            .transpose()
        })
        .await
    }

    /// Records the backends of accounts that have none yet, or were recorded by the address that their
    /// backend has. Returns how many there were.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn adopt(&self, accounts: &[(Account, BackendId)]) -> Result<u64, StoreError> {
        if accounts.is_empty() {
            return Ok(0);
        }
        self.write(Call::Adopt, || async {
            let mut transaction = self.begin().await?;
            let mut adopted = 0;
            for accounts in accounts.chunks(sql::MOST_ROWS) {
                let mut query = sql::update_from(&transaction, &ADOPT, accounts.len());
                for (account, backend) in accounts {
                    query =
                        query.bind(account.as_str()).bind(backend.address()).bind(backend.as_str());
                }
                adopted += query.execute_in(&mut transaction).await?.rows_affected();
            }
            transaction.commit().await?;
            Ok(adopted)
        })
        .await
    }

    /// Whether the account is known and of this backend.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn is_of(&self, account: &Account, backend: &BackendId) -> Result<bool, StoreError> {
        self.read(Call::Account, async {
            let mut work = self.read_once().await?;
            let row = sql::query(
                "select 1 as known from account \
                 where name = $1 and coalesce(backend, $2) in ($2, $3)",
            )
            .bind(account.as_str())
            .bind(backend.as_str())
            .bind(backend.address())
            .fetch_optional_in(&mut work)
            .await?;
            Ok(row.is_some())
        })
        .await
    }

    /// Notes how many tries in a row this backend has refused by now. With `parked`, the reason, the
    /// account waits for its user to log in; the newest reason counts, and the time of the first stays.
    /// Without it is not parked.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn refused(
        &self,
        account: &Account,
        backend: &BackendId,
        tries: u32,
        parked: Option<&str>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(Call::Park, || async {
            let mut transaction = self.begin().await?;
            sql::query(
                "update account set refusals = $2, refused_at = $3, parked = $4, \
                 parked_since = case when $7 = 0 then null else coalesce(parked_since, $3) end \
                 where name = $1 and coalesce(backend, $5) in ($5, $6)",
            )
            .bind(account.as_str())
            .bind(i64::from(tries))
            .bind(now.0)
            .bind(parked)
            .bind(backend.as_str())
            .bind(backend.address())
            .bind(i64::from(parked.is_some()))
            .execute_in(&mut transaction)
            .await?;
            transaction.commit().await
        })
        .await
    }

    /// Marks a push of INBOX as owed to each device of this backend's account, so that its user logs in;
    /// of a device that has not registered for INBOX, its first mailbox. That is done once while it is
    /// parked, and once in `distance`: else it returns when the next may be, which is the end of time if
    /// never. `Ok(Ok(()))`: they are marked.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn want_login(
        &self,
        account: &Account,
        backend: &BackendId,
        distance: Duration,
        now: Timestamp,
    ) -> Result<Result<(), Timestamp>, StoreError> {
        self.write(Call::Settle, || async {
            let mut transaction = self.begin().await?;
            lock(&mut transaction, account.as_str()).await?;
            let row = sql::query(
                "select login_wanted_at, parked_since from account \
                 where name = $1 and coalesce(backend, $2) in ($2, $3)",
            )
            .bind(account.as_str())
            .bind(backend.as_str())
            .bind(backend.address())
            .fetch_optional_in(&mut transaction)
            .await?;
            let Some(row) = row else { return Ok(Err(now.plus(distance))) };
            let last = row.try_get::<Option<i64>, _>("login_wanted_at").ok().flatten();
            // A clock that was ahead must not put it off for ever.
            let last = last.map(Timestamp).filter(|last| *last <= now);
            let parked_since = row.try_get::<Option<i64>, _>("parked_since").ok().flatten();
            if last.zip(parked_since).is_some_and(|(last, parked)| parked <= last.0) {
                return Ok(Err(Timestamp(i64::MAX)));
            }
            if let Some(next) = last.map(|last| last.plus(distance)).filter(|next| now < *next) {
                return Ok(Err(next));
            }
            sql::query("update account set login_wanted_at = $2 where name = $1")
                .bind(account.as_str())
                .bind(now.0)
                .execute_in(&mut transaction)
                .await?;
            want_login_of(&mut transaction, account, now).await?;
            transaction.commit().await?;
            Ok(Ok(()))
        })
        .await
    }

    /// Ends the parking of this backend's account, when its user or its watcher has logged in: no try was
    /// refused since.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn unpark(&self, account: &Account, backend: &BackendId) -> Result<(), StoreError> {
        self.write(Call::Unpark, || async {
            let mut transaction = self.begin().await?;
            let done = sql::query(
                "update account set parked = null, parked_since = null, refusals = null, \
                 refused_at = null where name = $1 and coalesce(backend, $2) in ($2, $3) \
                 and (parked is not null or refusals is not null)",
            )
            .bind(account.as_str())
            .bind(backend.as_str())
            .bind(backend.address())
            .execute_in(&mut transaction)
            .await?;
            if done.rows_affected() > 0 {
                self.tell(&mut transaction, account.as_str(), true).await?;
            }
            transaction.commit().await
        })
        .await
    }
}

/// Marks one mailbox as owed to each active subscription of the account: INBOX, or its first one.
async fn want_login_of(work: &mut Work, account: &Account, now: Timestamp) -> sqlx::Result<()> {
    let rows = sql::query(
        "select wanted.subscription, wanted.mailbox from account a \
         join subscription s on s.account = a.id \
         join subscription_mailbox wanted on wanted.subscription = s.id \
         join mailbox m on m.id = wanted.mailbox where a.name = $1 and s.state = 'active' \
         order by wanted.subscription, case when m.name = $2 then 0 else 1 end, m.name",
    )
    .bind(account.as_str())
    .bind(Mailbox::INBOX)
    .fetch_all_in(work)
    .await?;
    let mut last = None;
    for row in rows {
        let subscription: i64 = row.try_get("subscription")?;
        if last.replace(subscription) == Some(subscription) {
            continue;
        }
        sql::query(
            "update subscription_mailbox set owed_since = $3 \
             where subscription = $1 and mailbox = $2 and owed_since is null",
        )
        .bind(subscription)
        .bind(row.try_get::<i64, _>("mailbox")?)
        .bind(now.0)
        .execute_in(work)
        .await?;
    }
    Ok(())
}

/// Why the account's watcher gave up. What cannot be read is a reason as well: the user's next login
/// heals it, and until then nobody tries a password that may be wrong.
pub(super) fn parked(row: &AnyRow) -> Option<String> {
    row.try_get("parked").unwrap_or_else(|_| Some("the reason cannot be read".to_owned()))
}

/// How many tries in a row were refused, and when the last was.
pub(super) fn refused(row: &AnyRow) -> Option<(u32, Timestamp)> {
    let number = |column| row.try_get::<Option<i64>, _>(column).ok().flatten();
    let tries = u32::try_from(number("refusals")?).unwrap_or(u32::MAX);
    Some((tries, Timestamp(number("refused_at")?)))
}
