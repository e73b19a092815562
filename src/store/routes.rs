//! Which routes the subscriptions of a transport use.

use sqlx::Row;

use super::sql;
use super::{Store, StoreError};
use crate::metrics::Call;
use crate::model::{Timestamp, TransportId};

/// How the pushes of a subscription fail for which there is no route ([`crate::model::LastingFailure`]).
const OTHER_ROUTE: &str = "other-route";

impl Store {
    /// How many subscriptions of this transport each of its routes has, live or not, by the routes' names.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn routes(&self, transport: &TransportId) -> Result<Vec<(String, u64)>, StoreError> {
        self.read(Call::Devices, async {
            let query = sql::query(
                "select route, count(*) as subscriptions from subscription where transport = $1 \
                 group by route order by route",
            )
            .bind(transport.as_str());
            self.rows(query, |row| {
                let subscriptions: i64 = row.try_get("subscriptions")?;
                Ok((row.try_get("route")?, subscriptions.unsigned_abs()))
            })
            .await
        })
        .await
    }

    /// Of this transport there is one route now, `route`: subscriptions of any other fail from `now` on, as their users
    /// and operators can see, and those that failed for that reason and are of this route do so no longer.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn only_route(
        &self,
        transport: &TransportId,
        route: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(Call::Settle, || async {
            let mut transaction = self.begin().await?;
            sql::query(
                "update subscription set failing_since = coalesce(failing_since, $1), \
                 failing_kind = $2, own_fault = null where transport = $3 and route <> $4",
            )
            .bind(now.0)
            .bind(OTHER_ROUTE)
            .bind(transport.as_str())
            .bind(route)
            .execute_in(&mut transaction)
            .await?;
            sql::query(
                "update subscription set failing_since = null, failing_kind = null, own_fault = null \
                 where transport = $1 and route = $2 and failing_kind = $3",
            )
            .bind(transport.as_str())
            .bind(route)
            .bind(OTHER_ROUTE)
            .execute_in(&mut transaction)
            .await?;
            transaction.commit().await
        })
        .await
    }
}
