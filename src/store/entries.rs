//! The entry of METADATA that has an account's mail server send events, as far as mailchime has written it: when
//! that was, and of which accounts it is to be removed because their last subscription is gone. These stay, with
//! their credentials, until [`Store::left`].

use sqlx::Row;

use super::records::{account, lock};
use super::removal::{has_subscription, sweep};
use super::sql;
use super::{Store, StoreError};
use crate::metrics::Call;
use crate::model::{Account, Timestamp};

/// An account without a subscription, whose entry is to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeavingAccount {
    /// Its name.
    pub account: Account,
    /// Since when it is known to have no subscription.
    pub since: Timestamp,
}

/// Most accounts that are removed from their backends in one go.
const MOST: i64 = 1000;

/// Of an account: it has an entry and no subscription.
macro_rules! is_leaving {
    () => {
        "entry_at is not null and not exists (\
         select 1 from subscription s where s.account = account.id)"
    };
}

impl Store {
    /// Whether the account is known, and its entry was neither written nor seen at `since` or later.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn lacks_entry(
        &self,
        account: &Account,
        since: Timestamp,
    ) -> Result<bool, StoreError> {
        self.read(Call::Entries, async {
            let mut work = self.read_once().await?;
            let query = sql::query(
                "select 1 as found from account where name = $1 and coalesce(entry_at, 0) < $2",
            );
            let query = query.bind(account.as_str()).bind(since.0);
            Ok(query.fetch_optional_in(&mut work).await?.is_some())
        })
        .await
    }

    /// Whether the account has a subscription, of whatever state.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn has_any(&self, account: &Account) -> Result<bool, StoreError> {
        self.read(Call::Entries, async {
            has_subscription(&mut self.read_once().await?, account.as_str()).await
        })
        .await
    }

    /// Notes that the account has its entry at `at`, at 0 perhaps, or has none. Returns whether the account is known: of
    /// any other nothing is noted.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn note_entry(
        &self,
        account: &Account,
        at: Option<Timestamp>,
    ) -> Result<bool, StoreError> {
        self.write(Call::Entries, || async {
            let mut transaction = self.begin().await?;
            lock(&mut transaction, account.as_str()).await?;
            let query = sql::query("update account set entry_at = $2 where name = $1");
            let query = query.bind(account.as_str()).bind(at.map(|at| at.0));
            let done = query.execute_in(&mut transaction).await?;
            // It may have waited for nothing but this.
            sweep(&mut transaction, account.as_str()).await?;
            transaction.commit().await?;
            Ok(done.rows_affected() > 0)
        })
        .await
    }

    /// The accounts whose entry is to be removed, at most a thousand; with `only` this one, if it is one of
    /// them. One that is new among them is so since `now`.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn leaving(
        &self,
        only: Option<&Account>,
        now: Timestamp,
    ) -> Result<Vec<LeavingAccount>, StoreError> {
        let found = self.read(Call::Entries, async {
            const ALL: &str = concat!("select name, left_at from account where ", is_leaving!());
            let query = match only {
                Some(account) => sql::query(format!("{ALL} and name = $1")).bind(account.as_str()),
                None => sql::query(format!("{ALL} order by left_at, name limit $1")).bind(MOST),
            };
            self.rows(query, |row| {
                let since = row.try_get::<Option<i64>, _>("left_at")?.map(Timestamp);
                Ok((account(row, "name")?, since))
            })
            .await
        });
        let found = found.await?;
        if found.iter().any(|(_, since)| since.is_none()) {
            self.write(Call::Entries, || async {
                let mut transaction = self.begin().await?;
                let query = sql::query(concat!(
                    "update account set left_at = $1 where left_at is null and ",
                    is_leaving!()
                ));
                query.bind(now.0).execute_in(&mut transaction).await?;
                transaction.commit().await
            })
            .await?;
        }
        let leaving = found
            .into_iter()
            .map(|(account, since)| LeavingAccount { account, since: since.unwrap_or(now) });
        Ok(leaving.collect())
    }

    /// The account's entry is gone, or nothing more is tried: what was kept for its removal goes, too. Returns
    /// whether the account has a subscription again: then it stays, and has no entry.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn left(&self, account: &Account) -> Result<bool, StoreError> {
        self.write(Call::Entries, || async {
            let mut transaction = self.begin().await?;
            lock(&mut transaction, account.as_str()).await?;
            let query =
                sql::query("update account set entry_at = null, left_at = null where name = $1");
            query.bind(account.as_str()).execute_in(&mut transaction).await?;
            sweep(&mut transaction, account.as_str()).await?;
            let is_back = has_subscription(&mut transaction, account.as_str()).await?;
            transaction.commit().await?;
            self.leaves_traces();
            Ok(is_back)
        })
        .await
    }
}
