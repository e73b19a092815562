//! How many accounts and subscriptions there are, for operators.

use sqlx::Row;

use super::{Store, StoreError, sql};
use crate::metrics::Call;

/// What is in the database, of all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Accounts that have a subscription.
    pub accounts: u64,
    /// How many subscriptions there are, by transport and state (`active`, `pending`).
    pub subscriptions: Vec<(String, String, u64)>,
}

impl Store {
    /// Counts what is in the database.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn census(&self) -> Result<Census, StoreError> {
        self.read(Call::Counted, async {
            let query = sql::query("select count(distinct account) as total from subscription");
            let read = |row: &sqlx::any::AnyRow| row.try_get::<i64, _>("total");
            let accounts = self.rows(query, read).await?.pop().unwrap_or_default().unsigned_abs();
            let query = sql::query(
                "select transport, state, count(*) as total from subscription \
                 group by transport, state order by transport, state",
            );
            let subscriptions = self.rows(query, |row| {
                let total = row.try_get::<i64, _>("total")?.unsigned_abs();
                Ok((row.try_get("transport")?, row.try_get("state")?, total))
            });
            Ok(Census { accounts, subscriptions: subscriptions.await? })
        })
        .await
    }
}
