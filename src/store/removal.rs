//! Registrations that go, by the word of their users or their services or by themselves. Whatever removes a
//! subscription ends with [`sweep`], which keeps what the module's head promises of accounts and mailboxes.

use sqlx::Row;

use super::records::{account, delete, lock, subscription, subscription_columns};
use super::sql;
use super::sql::statement::Statement;
use super::sql::work::Work;
use super::{Alive, Store, StoreError};
use crate::metrics::Call;
use crate::model::{Account, Subscription, SubscriptionKey, Timestamp};

/// A registration that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// What was removed.
    pub subscription: Subscription,
    /// Whether the account has other devices. If not, nothing of it is left but what `entries` needs.
    pub account_left: bool,
}

/// So many accounts one after the other at which a removal fails say that the database is at fault.
const FAILURES: u32 = 3;

/// They have been silent since before `$1`, or outdated since `$2` (`live!`).
const SILENT: &str = "(heard_at < $1 and renews = 1) \
                      or (outdated_since is not null and outdated_at <= $2)";

/// They are pending since before `$1`, or have ended by `$2`.
const ENDED: &str = "(state = 'pending' and registered_at < $1) or expires_at <= $2";

/// Whole subscriptions, with their numbers.
const SUBSCRIPTIONS: &str = concat!(
    "select s.id, ",
    subscription_columns!(),
    " from account a join subscription s on s.account = a.id"
);

impl Store {
    /// Removes a registration, unless it is newer than `registered_not_after` (a device that
    /// registered since lives). `None` when there was nothing to remove.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn remove_subscription(
        &self,
        key: &SubscriptionKey,
        registered_not_after: Option<Timestamp>,
    ) -> Result<Option<Removed>, StoreError> {
        let hash = key.endpoint.hash_hex();
        let which =
            "s.transport = $2 and s.endpoint_hash = $3 and s.app = $4 and s.registered_at <= $5";
        self.remove(&key.account, which, |query| {
            query
                .bind(key.transport.as_str())
                .bind(hash.as_str())
                .bind(&*key.app)
                .bind(registered_not_after.map_or(i64::MAX, |time| time.0))
        })
        .await
    }

    /// Removes a subscription of an account that is still pending with these options, which hold the code that
    /// was to confirm it. `None` when there is no such one.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn remove_pending(
        &self,
        account: &Account,
        id: i64,
        options: &str,
    ) -> Result<Option<Removed>, StoreError> {
        let which = "s.id = $2 and s.state = 'pending' and s.options = $3";
        self.remove(account, which, |query| query.bind(id).bind(options)).await
    }

    /// Removes a subscription of an account by its number, whatever its state. `None` when the account has
    /// none with this number.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn remove_by_id(
        &self,
        account: &Account,
        id: i64,
    ) -> Result<Option<Removed>, StoreError> {
        self.remove(account, "s.id = $2", |query| query.bind(id)).await
    }

    /// Removes the subscription `s` of the account of which this is true; `bind` gives the arguments from `$2` on.
    async fn remove<'a>(
        &'a self,
        account: &'a Account,
        which: &'static str,
        bind: impl Fn(Statement<'a>) -> Statement<'a> + Send + Sync + 'a,
    ) -> Result<Option<Removed>, StoreError> {
        let (bind, select) = (&bind, format!("{SUBSCRIPTIONS} where a.name = $1 and {which}"));
        self.write(Call::RemoveDevice, || async {
            let mut transaction = self.begin().await?;
            lock(&mut transaction, account.as_str()).await?;
            let query = bind(sql::query(select.clone()).bind(account.as_str()));
            let Some(row) = query.fetch_optional_in(&mut transaction).await? else {
                return Ok(None);
            };
            let subscription = subscription(&row)?;
            delete(&mut transaction, row.try_get("id")?).await?;
            sweep(&mut transaction, account.as_str()).await?;
            let account_left = has_subscription(&mut transaction, account.as_str()).await?;
            self.tell(&mut transaction, account.as_str(), false).await?;
            transaction.commit().await?;
            self.leaves_traces();
            Ok(Some(Removed { subscription, account_left }))
        })
        .await
    }

    /// Removes the devices that do not live; returns the accounts that lost their last one. What fails at one
    /// account does not stop those behind it.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn expire(&self, alive: impl Into<Alive>) -> Result<Vec<Account>, StoreError> {
        let Alive { registered_since, outdated_after } = alive.into();
        self.hear_of_all(self.served(registered_since)).await?;
        let (gone, done) =
            self.remove_all(Call::Expire, SILENT, [registered_since, outdated_after]).await;
        done.map(|()| gone)
    }

    /// Devices of versions that did not count the time of service have registered now.
    async fn hear_of_all(&self, served: Timestamp) -> Result<(), StoreError> {
        const UNHEARD: &str =
            "heard_at is null or (outdated_since is not null and outdated_at is null)";
        let unheard = self.read(Call::Expire, async {
            let query = sql::query(format!(
                "select 1 as unheard from subscription where {UNHEARD} limit 1"
            ));
            Ok(query.fetch_optional_in(&mut self.read_once().await?).await?.is_some())
        });
        if !unheard.await? {
            return Ok(());
        }
        self.write(Call::Expire, || async {
            let mut transaction = self.begin().await?;
            sql::query(format!(
                "update subscription set heard_at = coalesce(heard_at, $1), outdated_at = \
                 case when outdated_since is null then null else coalesce(outdated_at, $1) end \
                 where {UNHEARD}"
            ))
            .bind(served.0)
            .execute_in(&mut transaction)
            .await?;
            transaction.commit().await
        })
        .await
    }

    /// Removes all that is known of an account but what [`Store::leaving`] is about; returns whether there was
    /// something.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn remove_account(&self, account: &Account) -> Result<bool, StoreError> {
        self.write(Call::RemoveAccount, || async {
            let mut transaction = self.begin().await?;
            lock(&mut transaction, account.as_str()).await?;
            let mut known = false;
            for statement in [
                "delete from subscription where account = (select id from account where name = $1)",
                "delete from account where name = $1 and entry_at is null",
            ] {
                let query = sql::query(statement).bind(account.as_str());
                known |= query.execute_in(&mut transaction).await?.rows_affected() > 0;
            }
            sweep(&mut transaction, account.as_str()).await?;
            if known {
                self.tell(&mut transaction, account.as_str(), false).await?;
            }
            transaction.commit().await?;
            self.leaves_traces();
            Ok(known)
        })
        .await
    }

    /// Removes the pending subscriptions that were made before `pending_before`, and those that had ended by
    /// `now`. Returns the accounts that lost their last one, and the last error: what fails at one account does
    /// not stop those behind it.
    pub async fn drop_ended(
        &self,
        pending_before: Timestamp,
        now: Timestamp,
    ) -> (Vec<Account>, Result<(), StoreError>) {
        self.remove_all(Call::DropEnded, ENDED, [pending_before, now]).await
    }

    /// Removes the subscriptions of which this is true, of the times `$1` and `$2`. One transaction for each
    /// account, so that nobody waits for long. Returns the accounts that lost their last one, and the last error.
    async fn remove_all(
        &self,
        call: Call,
        which: &'static str,
        [first, second]: [Timestamp; 2],
    ) -> (Vec<Account>, Result<(), StoreError>) {
        let accounts = format!(
            "select name from account where id in (select account from subscription where {which}) \
             order by name"
        );
        let delete = format!(
            "delete from subscription where ({which}) \
             and account = (select id from account where name = $3)"
        );
        let mut gone = Vec::new();
        let touched = self.read(call, async {
            let query = sql::query(accounts).bind(first.0).bind(second.0);
            self.rows(query, |row| account(row, "name")).await
        });
        let touched = match touched.await {
            Ok(touched) => touched,
            Err(error) => return (gone, Err(error)),
        };
        let (mut done, mut in_a_row) = (Ok(()), 0);
        for account in touched {
            let left = self.write(call, || async {
                let mut transaction = self.begin().await?;
                lock(&mut transaction, account.as_str()).await?;
                sql::query(delete.clone())
                    .bind(first.0)
                    .bind(second.0)
                    .bind(account.as_str())
                    .execute_in(&mut transaction)
                    .await?;
                sweep(&mut transaction, account.as_str()).await?;
                let left = has_subscription(&mut transaction, account.as_str()).await?;
                self.tell(&mut transaction, account.as_str(), false).await?;
                transaction.commit().await?;
                self.leaves_traces();
                Ok(left)
            });
            let left = left.await;
            in_a_row = if left.is_ok() { 0 } else { in_a_row + 1 };
            match left {
                Ok(true) => {}
                Ok(false) => gone.push(account),
                Err(error) => done = Err(error),
            }
            if in_a_row >= FAILURES {
                break;
            }
        }
        (gone, done)
    }
}

/// Deletes the mailboxes that no subscription wants any more, so that one that comes back begins anew, and
/// the account itself when it has no subscription, unless its backend has an entry that is to be removed first.
pub(super) async fn sweep(work: &mut Work, account: &str) -> sqlx::Result<()> {
    sql::query(
        "delete from mailbox where account = (select id from account where name = $1) and not exists (\
         select 1 from subscription_mailbox wanted where wanted.mailbox = mailbox.id)",
    )
    .bind(account)
    .execute_in(work)
    .await?;
    sql::query(
        "delete from account where name = $1 and entry_at is null and not exists (\
         select 1 from subscription s where s.account = account.id)",
    )
    .bind(account)
    .execute_in(work)
    .await
    .map(drop)
}

/// Whether the account has a subscription.
pub(super) async fn has_subscription(work: &mut Work, account: &str) -> sqlx::Result<bool> {
    let row = sql::query(
        "select 1 as found from account a join subscription s on s.account = a.id \
         where a.name = $1 limit 1",
    )
    .bind(account)
    .fetch_optional_in(work)
    .await?;
    Ok(row.is_some())
}
