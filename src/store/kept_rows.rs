//! The rows of the credentials that are kept.

use sqlx::Row;

use super::accounts::{parked, refused};
use super::records::{account, lock};
use super::registrant::{Keeper, Keeping, KeptRow, Registrant, Sealed};
use super::sql::work::Work;
use super::sql::{self, UpdateFrom};
use super::{Store, StoreError};
use crate::metrics::Call;
use crate::model::{Account, BackendId, Subscription, Timestamp};

/// What is kept of an account.
pub(super) struct Found {
    pub(super) id: i64,
    /// In the order of [`super::keeping::Accepted`].
    pub(super) rows: Vec<KeptRow>,
    /// Or its tries were refused.
    pub(super) parked: bool,
    /// All of it was refused in so many tries, until the account was parked; 0 of one that is not.
    pub(super) refused: u32,
    /// When the password of now was brought, if there was another one before.
    pub(super) password_since: Option<Timestamp>,
    /// The same by the time of service.
    pub(super) password_at: Option<Timestamp>,
}

/// Credentials of an account that another key seals now.
pub(super) struct Resealed {
    pub(super) account: Account,
    /// 0 in the row of the account, else that of its row beside.
    pub(super) number: i64,
    pub(super) old: String,
    pub(super) new: String,
}

const RESEAL: UpdateFrom<'_> = UpdateFrom {
    table: "account",
    columns: &["name", "was", "becomes"],
    account: "",
    joins: &[],
    on: "account.name = v.name and account.credentials = v.was",
    set: &[("credentials", "v.becomes")],
};

const RESEAL_BESIDE: UpdateFrom<'_> = UpdateFrom {
    table: "credential",
    columns: &["name", "was", "becomes"],
    account: "name",
    joins: &[],
    on: "credential.account = v.a_id and credential.sealed = v.was",
    set: &[("sealed", "v.becomes")],
};

impl Store {
    /// The sealed credentials that this backend has accepted; `None` when the account is unknown or
    /// another backend's, and none are kept or can be read.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn credentials(
        &self,
        account: &Account,
        backend: &BackendId,
    ) -> Result<Option<Sealed>, StoreError> {
        self.read(Call::Credentials, async {
            let query = sql::query(
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

    /// All credentials that this backend has accepted, in the order of [`keeping::Accepted`], and whether
    /// the account is parked. `None` when the account is unknown or another backend's. What cannot be
    /// read is left out.
    ///
    /// [`keeping::Accepted`]: super::keeping::Accepted
    pub(super) async fn kept(
        &self,
        account: &Account,
        backend: &BackendId,
    ) -> Result<Option<(Vec<KeptRow>, bool)>, StoreError> {
        self.read(Call::Credentials, async {
            let mut work = self.begin_read().await?;
            let found = kept(&mut work, account.as_str(), backend).await?;
            Ok(found.map(|found| (found.rows, found.parked)))
        })
        .await
    }

    /// Keeps what is to be kept of the credentials of `login` and ends the parking. If their password is
    /// another one, the devices that registered before the login are outdated. Returns whether they
    /// are kept: those of an account that has no device or is another backend's are not, nor those of
    /// a login before the one that brought the password of now. A time later than `now` is of a clock that
    /// was ahead, and does not count.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn save_credentials(
        &self,
        account: &Account,
        login: Registrant,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        if !login.brings_credentials() {
            return Ok(false);
        }
        self.write(Call::SaveCredentials, || async {
            let mut transaction = self.begin().await?;
            lock(&mut transaction, account.as_str()).await?;
            let Some(found) = kept(&mut transaction, account.as_str(), &login.backend).await?
            else {
                return Ok(false);
            };
            let Keeping { rows, other_password } = login.keeping(&found.rows, found.refused);
            let at = login.logged_in_at;
            let is_later = |since: Timestamp| at < since && since <= now;
            if rows.is_some() && found.password_since.is_some_and(is_later) {
                return Ok(false);
            }
            sql::query(
                "update account set parked = null, parked_since = null, refusals = null, \
                 refused_at = null, backend = $2 where name = $1",
            )
            .bind(account.as_str())
            .bind(login.backend.as_str())
            .execute_in(&mut transaction)
            .await?;
            if let Some(rows) = &rows {
                put(&mut transaction, account.as_str(), rows).await?;
            }
            if other_password {
                let times = (at, self.served(at));
                outdate(&mut transaction, account.as_str(), times, now).await?;
            }
            self.tell(&mut transaction, account.as_str(), true).await?;
            transaction.commit().await?;
            self.leaves_traces();
            Ok(true)
        })
        .await
    }

    /// Has `keeper` say what is kept from now on of what this backend has accepted. No login has brought
    /// anything, so nothing else changes.
    pub(super) async fn sort_out(
        &self,
        account: &Account,
        backend: &BackendId,
        keeper: &Keeper,
    ) -> Result<(), StoreError> {
        self.write(Call::SaveCredentials, || async {
            let mut transaction = self.begin().await?;
            lock(&mut transaction, account.as_str()).await?;
            let Some(found) = kept(&mut transaction, account.as_str(), backend).await? else {
                return Ok(());
            };
            let Keeping { rows: Some(rows), .. } = (keeper.0)(&found.rows, found.refused) else {
                return Ok(());
            };
            put(&mut transaction, account.as_str(), &rows).await?;
            transaction.commit().await?;
            self.leaves_traces();
            Ok(())
        })
        .await
    }

    /// The account got another password, by a login at that time: its devices that registered before
    /// are outdated.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn outdate(
        &self,
        account: &Account,
        at: Timestamp,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(Call::SaveCredentials, || async {
            let mut transaction = self.begin().await?;
            let times = (at, self.served(at));
            outdate(&mut transaction, account.as_str(), times, now).await?;
            transaction.commit().await
        })
        .await
    }

    /// Removes sealed credentials: those that are not to be kept beyond `expired_at`, or all.
    /// Returns how many there were.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn erase_credentials(
        &self,
        expired_at: Option<Timestamp>,
    ) -> Result<u64, StoreError> {
        self.write(Call::EraseCredentials, || async {
            let statements = match expired_at {
                Some(now) => [
                    sql::query(
                        "update account set credentials = null, credentials_until = null \
                         where credentials_until <= $1",
                    )
                    .bind(now.0),
                    sql::query("delete from credential where until <= $1").bind(now.0),
                ],
                None => [
                    sql::query(
                        "update account set credentials = null, credentials_until = null \
                         where credentials is not null",
                    ),
                    sql::query("delete from credential"),
                ],
            };
            let (mut transaction, mut erased) = (self.begin().await?, 0);
            for statement in statements {
                erased += statement.execute_in(&mut transaction).await?.rows_affected();
            }
            transaction.commit().await?;
            if erased > 0 {
                self.leaves_traces();
            }
            Ok(erased)
        })
        .await
    }

    /// Of how many accounts sealed credentials or secrets of subscriptions begin with each text of `length`
    /// characters: by which keys.
    pub(super) async fn seals(&self, length: usize) -> Result<Vec<(String, u64)>, StoreError> {
        self.read(Call::Seals, async {
            // Few seals are sorted, and not one row for each account.
            let query = sql::query(
                "select seal, (select count(*) from account a where substr(a.credentials, 1, $1) = seal \
                 or exists (select 1 from credential c where c.account = a.id and substr(c.sealed, 1, $1) = seal) \
                 or exists (select 1 from subscription s where s.account = a.id and substr(s.secrets, 1, $1) = seal)\
                 ) as accounts from (\
                 select substr(credentials, 1, $1) as seal from account where credentials is not null \
                 union select substr(sealed, 1, $1) from credential \
                 union select substr(secrets, 1, $1) from subscription where secrets is not null) seals \
                 order by seal",
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

    /// The next sealed credentials in the database's order of accounts, `limit` at most, each by its account
    /// and its number there; `None` for those that cannot be read.
    pub(super) async fn sealed_after(
        &self,
        (account_of, number): (&str, i64),
        limit: usize,
    ) -> Result<Vec<((Account, i64), Option<String>)>, StoreError> {
        self.read(Call::SealedAfter, async {
            let query = sql::query(
                "select name, number, credentials from (\
                 select name, 0 as number, credentials from account \
                 where credentials is not null and name >= $1 \
                 union all select a.name, c.number, c.sealed from credential c \
                 join account a on a.id = c.account where a.name >= $1) kept \
                 where name > $1 or number > $2 order by name, number limit $3",
            )
            .bind(account_of)
            .bind(number)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX));
            self.page(query, |row| {
                let place = (account(row, "name")?, row.try_get("number")?);
                Ok((place, row.try_get("credentials").ok()))
            })
            .await
        })
        .await
    }

    /// Puts new texts in the place of old ones, each unless it has been replaced meanwhile. Returns
    /// how many it replaced.
    pub(super) async fn reseal(&self, texts: &[Resealed]) -> Result<u64, StoreError> {
        self.write(Call::Reseal, || async {
            let (mut transaction, mut replaced) = (self.begin().await?, 0);
            let (own, beside): (Vec<_>, Vec<_>) = texts.iter().partition(|it| it.number == 0);
            if !own.is_empty() {
                let mut query = sql::update_from(&transaction, &RESEAL, own.len());
                for Resealed { account, old, new, .. } in own {
                    query = query.bind(account.as_str()).bind(old.as_str()).bind(new.as_str());
                }
                replaced += query.execute_in(&mut transaction).await?.rows_affected();
            }
            if !beside.is_empty() {
                let mut query = sql::update_from(&transaction, &RESEAL_BESIDE, beside.len());
                for Resealed { account, old, new, .. } in beside {
                    query = query.bind(account.as_str()).bind(old.as_str()).bind(new.as_str());
                }
                replaced += query.execute_in(&mut transaction).await?.rows_affected();
            }
            transaction.commit().await?;
            if replaced > 0 {
                self.leaves_traces();
            }
            Ok(replaced)
        })
        .await
    }
}

/// Reads what is kept of an account; `None` when it is unknown or another backend's. Credentials that
/// cannot be read are left out.
pub(super) async fn kept(
    work: &mut Work,
    account: &str,
    backend: &BackendId,
) -> sqlx::Result<Option<Found>> {
    let row = sql::query(
        "select id, credentials, credentials_until, credentials_since, credentials_proved_at, \
         created_at, parked, refusals, refused_at, password_since, \
         password_at from account \
         where name = $1 and coalesce(backend, $2) in ($2, $3)",
    )
    .bind(account)
    .bind(backend.as_str())
    .bind(backend.address())
    .fetch_optional_in(work)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let number = |column| row.try_get::<Option<i64>, _>(column);
    let own = || -> sqlx::Result<Option<KeptRow>> {
        let Some(text) = row.try_get::<Option<String>, _>("credentials")? else { return Ok(None) };
        let until = number("credentials_until")?.map(Timestamp);
        // Of rows from before it is known since when there is the account.
        let since = match number("credentials_since")? {
            Some(since) => since,
            None => row.try_get("created_at")?,
        };
        let proved_at = number("credentials_proved_at")?.unwrap_or(since);
        let (since, proved_at) = (Timestamp(since), Timestamp(proved_at));
        Ok(Some(KeptRow { sealed: Sealed { text, until }, since, proved_at }))
    };
    let beside = sql::query(
        "select sealed, until, since, proved_at from credential where account = $1 order by number",
    )
    .bind(row.try_get::<i64, _>("id")?)
    .fetch_all_in(work)
    .await?;
    let beside = beside.iter().map(|row| -> sqlx::Result<_> {
        let until = row.try_get::<Option<i64>, _>("until")?.map(Timestamp);
        let sealed = Sealed { text: row.try_get("sealed")?, until };
        let [since, proved_at] = [row.try_get("since")?, row.try_get("proved_at")?].map(Timestamp);
        Ok(Some(KeptRow { sealed, since, proved_at }))
    });
    let all = std::iter::once(own()).chain(beside);
    Ok(Some(Found {
        id: row.try_get("id")?,
        rows: all.filter_map(|row| row.ok().flatten()).collect(),
        parked: parked(&row).is_some() || refused(&row).is_some(),
        refused: parked(&row).map_or(0, |_| refused(&row).map_or(1, |(tries, _)| tries.max(1))),
        password_since: number("password_since")?.map(Timestamp),
        password_at: number("password_at")?.map(Timestamp),
    }))
}

/// Puts these in the place of all credentials of an account that is locked.
pub(super) async fn put(work: &mut Work, account: &str, rows: &[KeptRow]) -> sqlx::Result<()> {
    let own = rows.first();
    sql::query(
        "update account set credentials = $2, credentials_until = $3, credentials_since = $4, \
         credentials_proved_at = $5 where name = $1",
    )
    .bind(account)
    .bind(own.map(|own| own.sealed.text.as_str()))
    .bind(own.and_then(|own| own.sealed.until).map(|until| until.0))
    .bind(own.map(|own| own.since.0))
    .bind(own.map(|own| own.proved_at.0))
    .execute_in(work)
    .await?;
    sql::query("delete from credential where account = (select id from account where name = $1)")
        .bind(account)
        .execute_in(work)
        .await?;
    for (number, KeptRow { sealed, since, proved_at }) in (1_i64..).zip(rows.iter().skip(1)) {
        sql::query(
            "insert into credential (account, number, sealed, until, since, proved_at) \
             select id, $2, $3, $4, $5, $6 from account where name = $1",
        )
        .bind(account)
        .bind(number)
        .bind(sealed.text.as_str())
        .bind(sealed.until.map(|until| until.0))
        .bind(since.0)
        .bind(proved_at.0)
        .execute_in(work)
        .await?;
    }
    Ok(())
}

/// Marks the devices that registered before the account got another password, at this time of day and of
/// service.
async fn outdate(
    work: &mut Work,
    account: &str,
    (at, served): (Timestamp, Timestamp),
    now: Timestamp,
) -> sqlx::Result<()> {
    sql::query(
        "update account set password_since = $2, password_at = $3 \
         where name = $1 and (coalesce(password_since, $2) <= $2 or password_since > $4)",
    )
    .bind(account)
    .bind(at.0)
    .bind(served.0)
    .bind(now.0)
    .execute_in(work)
    .await?;
    outdate_subscriptions(work, account, None, (at, served)).await
}

/// Marks the subscriptions of users that registered before the account got another password, at this time of day
/// and of service; all but one, which has registered with it. Of the web hooks of the operator a password says
/// nothing.
pub(super) async fn outdate_subscriptions(
    work: &mut Work,
    account: &str,
    but: Option<i64>,
    (at, served): (Timestamp, Timestamp),
) -> sqlx::Result<()> {
    // No subscription has the number 0.
    let (transport, app) = Subscription::OF_OPERATOR;
    sql::query(
        "update subscription set outdated_since = $2, outdated_at = $3 \
         where account = (select id from account where name = $1) and registered_at < $2 \
         and outdated_since is null and id <> $4 and not (transport = $5 and app = $6)",
    )
    .bind(account)
    .bind(at.0)
    .bind(served.0)
    .bind(but.unwrap_or_default())
    .bind(transport)
    .bind(app)
    .execute_in(work)
    .await
    .map(drop)
}
