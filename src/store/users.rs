//! What users see of their subscriptions, and do with them.

use sqlx::Row;

use super::records::{
    failure, failure_columns, id_of, lock, state, subscription, subscription_columns,
};
use super::removal::sweep;
use super::sql;
use super::{MadeRoom, RegisterOutcome, Store, StoreError};
use crate::metrics::Call;
use crate::model::{
    AcceptedLogin, Account, LastingFailure, Mailbox, Subscription, SubscriptionKey,
    SubscriptionState, Timestamp,
};

/// A subscription as its user sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedSubscription {
    /// Its number, made by the database: no other subscription of any account has or had it.
    pub id: i64,
    /// What it is, without its secrets.
    pub subscription: Subscription,
    /// Whether it counts.
    pub state: SubscriptionState,
    /// When it was last made anew, by the time of day.
    pub registered_at: Timestamp,
    /// When a push for it was last accepted.
    pub pushed_at: Option<Timestamp>,
    /// How pushes for it fail, if they do.
    pub failing: Option<LastingFailure>,
    /// Its mailboxes, by name.
    pub mailboxes: Vec<Mailbox>,
}

impl Store {
    /// All subscriptions of an account, by any transport and in any state, in the order in which they first
    /// came. Those that cannot be read are left out.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn subscriptions_of(
        &self,
        account: &Account,
    ) -> Result<Vec<ListedSubscription>, StoreError> {
        self.read(Call::Listed, async {
            let query = sql::query(concat!(
                "select s.id, ",
                subscription_columns!(),
                ", ",
                failure_columns!(),
                ", s.state, s.registered_at, s.pushed_at, m.name as mailbox \
                 from account a join subscription s on s.account = a.id \
                 left join subscription_mailbox wanted on wanted.subscription = s.id \
                 left join mailbox m on m.id = wanted.mailbox \
                 where a.name = $1 order by s.id, m.name"
            ))
            .bind(account.as_str());
            let entries = self.rows(query, |row| {
                let time =
                    |column| row.try_get::<Option<i64>, _>(column).map(|it| it.map(Timestamp));
                let mailbox: Option<&str> = row.try_get("mailbox")?;
                Ok(ListedSubscription {
                    id: row.try_get("id")?,
                    subscription: subscription(row)?,
                    state: state(row)?,
                    registered_at: Timestamp(row.try_get("registered_at")?),
                    pushed_at: time("pushed_at")?,
                    failing: failure(row),
                    mailboxes: mailbox.map(Mailbox::new).into_iter().collect(),
                })
            });
            let mut listed: Vec<ListedSubscription> = Vec::new();
            for entry in entries.await? {
                match listed.last_mut() {
                    Some(last) if last.id == entry.id => last.mailboxes.extend(entry.mailboxes),
                    _ => listed.push(entry),
                }
            }
            Ok(listed)
        })
        .await
    }

    /// When the login was that first brought the password that the account has now, if it had another one before.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn password_since(&self, account: &Account) -> Result<Option<Timestamp>, StoreError> {
        self.read(Call::Account, async {
            let query = sql::query("select password_since from account where name = $1");
            let query = query.bind(account.as_str());
            let row = query.fetch_optional_in(&mut self.read_once().await?).await?;
            let since = row.map(|row| row.try_get::<Option<i64>, _>("password_since"));
            Ok(since.transpose()?.flatten().map(Timestamp))
        })
        .await
    }

    /// The number of a subscription ([`ListedSubscription::id`]); `None` if there is none.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn subscription_id(&self, key: &SubscriptionKey) -> Result<Option<i64>, StoreError> {
        self.read(Call::Listed, async { id_of(&mut self.read_once().await?, key).await }).await
    }

    /// The endpoint of a pending subscription has answered: it counts from now on, and others make room for it as
    /// for one that registers ([`Store::register`]). `login` proves the account. One that counts already goes on
    /// doing so. `None` when the account has no such subscription.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn confirm(
        &self,
        account: &Account,
        id: i64,
        login: &AcceptedLogin,
        max_subscriptions: u32,
    ) -> Result<Option<RegisterOutcome>, StoreError> {
        let confirmed = self.write(Call::Confirm, || async {
            let mut transaction = self.begin().await?;
            lock(&mut transaction, account.as_str()).await?;
            let row = sql::query(concat!(
                "select ",
                subscription_columns!(),
                ", s.state from account a join subscription s on s.account = a.id \
                 where a.name = $1 and s.id = $2"
            ))
            .bind(account.as_str())
            .bind(id)
            .fetch_optional_in(&mut transaction)
            .await?;
            let Some(row) = row else { return Ok(None) };
            if state(&row)? != SubscriptionState::Pending {
                return Ok(Some(RegisterOutcome::Stored(MadeRoom::default())));
            }
            if let Some(full) = self.shares.full(&mut transaction, account, &login.backend).await? {
                return Ok(Some(RegisterOutcome::Full(full)));
            }
            let active = sql::query("update subscription set state = 'active' where id = $1");
            active.bind(id).execute_in(&mut transaction).await?;
            let key = SubscriptionKey::from(&subscription(&row)?);
            let made = self
                .displace(&mut transaction, &key, id, login.names_ignore_case, max_subscriptions)
                .await?;
            sweep(&mut transaction, account.as_str()).await?;
            self.tell(&mut transaction, account.as_str(), true).await?;
            transaction.commit().await?;
            self.leaves_traces();
            Ok(Some(RegisterOutcome::Stored(made)))
        });
        let confirmed = confirmed.await?;
        if let Some(RegisterOutcome::Stored(made)) = &confirmed {
            made.say(account, max_subscriptions);
        }
        Ok(confirmed)
    }
}
