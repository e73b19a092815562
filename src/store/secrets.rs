//! The secrets of subscriptions: sealed in their rows, and opened for those who push.

use sqlx::Row;
use sqlx::any::AnyRow;

use super::records::{account, subscription, subscription_columns};
use super::sql::{self, UpdateFrom};
use super::{Store, StoreError, Target, VaultError, unreadable};
use crate::metrics::Call;
use crate::model::{Account, PushEndpoint, Subscription, SubscriptionKey, TransportId};

/// The sealed secrets of a subscription.
pub(super) struct SealedSecrets {
    pub(super) id: i64,
    pub(super) key: SubscriptionKey,
    pub(super) sealed: String,
}

const RESEAL_SECRETS: UpdateFrom<'_> = UpdateFrom {
    table: "subscription",
    columns: &["id", "was", "becomes"],
    account: "",
    joins: &[],
    on: "subscription.id = v.id and subscription.secrets = v.was",
    set: &[("secrets", "v.becomes")],
};

impl Store {
    /// The secrets of a subscription that is to be stored, sealed. The key file is made if there is none.
    pub(super) fn sealed_secrets(
        &self,
        subscription: &Subscription,
    ) -> Result<Option<String>, StoreError> {
        let Some(secrets) = &subscription.secrets else { return Ok(None) };
        let Some(file) = &self.vault else { return Err(VaultError::NoKeyFile.into()) };
        Ok(Some(file.made()?.seal_secrets(&subscription.into(), secrets)))
    }

    /// A subscription with what its row has of secrets; `None` if the key file does not open that, which is
    /// counted and said in the log.
    ///
    /// # Errors
    /// [`StoreError::Sealing`] when the key file cannot be read now, which says nothing of the row.
    pub(super) fn with_secrets(
        &self,
        mut subscription: Subscription,
        sealed: Option<&str>,
    ) -> Result<Option<Subscription>, StoreError> {
        let Some(sealed) = sealed else { return Ok(Some(subscription)) };
        let key = SubscriptionKey::from(&subscription);
        let vault = match &self.vault {
            Some(file) => file.existing()?,
            None => None,
        };
        match vault.ok_or(VaultError::NoKeyFile)?.unseal_secrets(&key, sealed) {
            Ok(secrets) => {
                subscription.secrets = Some(secrets);
                Ok(Some(subscription))
            }
            Err(error) => {
                self.metrics.unreadable_rows.inc();
                tracing::warn!(
                    target: "mailchime::store::secrets_unreadable",
                    account = %key.account, endpoint = %key.endpoint, %error,
                    "could not open the secrets of a subscription; mailchime leaves it out until its \
                     user subscribes again"
                );
                Ok(None)
            }
        }
    }

    /// Those whose secrets the key file opens, with them. While it cannot be read they come without: nothing
    /// can be sent to them, so what they are owed stays, and the others do not wait.
    pub(super) fn opened(&self, targets: Vec<(Target, Option<String>)>) -> Vec<Target> {
        let open = |(mut target, sealed): (Target, Option<String>)| {
            match self.with_secrets(target.subscription.clone(), sealed.as_deref()) {
                Ok(Some(subscription)) => target.subscription = subscription,
                Ok(None) => return None,
                Err(error) => tracing::error!(
                    target: "mailchime::store::secrets_sealed",
                    account = %target.subscription.account, endpoint = %target.subscription.endpoint, %error,
                    "could not open the secrets of a subscription; its pushes wait until the key file is \
                     there again"
                ),
            }
            Some(target)
        };
        targets.into_iter().filter_map(open).collect()
    }

    /// The subscriptions of the account whose secrets cannot be opened: by another key, or as the key file cannot be
    /// read. Nothing can be sent to them meanwhile.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn unopened(&self, whose: &Account) -> Result<Vec<SubscriptionKey>, StoreError> {
        let found = self.read(Call::Devices, async {
            let query = sql::query(concat!(
                "select ",
                subscription_columns!(),
                ", s.secrets from account a join subscription s on s.account = a.id \
                 where a.name = $1 and s.secrets is not null"
            ));
            let read =
                |row: &AnyRow| Ok((subscription(row)?, row.try_get::<String, _>("secrets")?));
            self.rows(query.bind(whose.as_str()), read).await
        });
        let is_shut = |(subscription, sealed): &(Subscription, String)| {
            !matches!(self.with_secrets(subscription.clone(), Some(sealed)), Ok(Some(_)))
        };
        let shut = found.await?.into_iter().filter(is_shut);
        Ok(shut.map(|(subscription, _)| SubscriptionKey::from(&subscription)).collect())
    }

    /// Of how many accounts subscriptions have secrets that the key file does not open.
    pub(super) async fn unreadable_secrets(&self) -> Result<u64, StoreError> {
        let vault = match &self.vault {
            Some(file) => file.existing()?,
            None => None,
        };
        unreadable(self, vault).await
    }

    /// The next sealed secrets by the ids of their subscriptions, `limit` at most. Rows that cannot be read
    /// are left out.
    pub(super) async fn secrets_after(
        &self,
        id: i64,
        limit: usize,
    ) -> Result<Vec<SealedSecrets>, StoreError> {
        self.read(Call::SealedAfter, async {
            let query = sql::query(
                "select s.id, a.name as account, s.transport, s.endpoint_hash, s.endpoint, s.app, \
                 s.secrets from subscription s join account a on a.id = s.account \
                 where s.secrets is not null and s.id > $1 order by s.id limit $2",
            )
            .bind(id)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX));
            self.page(query, |row| {
                let hash = row.try_get("endpoint_hash")?;
                let endpoint = PushEndpoint::from_row(row.try_get("endpoint")?, hash);
                let key = SubscriptionKey {
                    account: account(row, "account")?,
                    transport: TransportId::new(row.try_get("transport")?),
                    endpoint: endpoint.ok_or_else(|| sqlx::Error::Decode("no hash".into()))?,
                    app: row.try_get::<&str, _>("app")?.into(),
                };
                Ok(SealedSecrets { id: row.try_get("id")?, key, sealed: row.try_get("secrets")? })
            })
            .await
        })
        .await
    }

    /// Puts new texts in the place of old ones, each unless it has been replaced meanwhile. Returns how many
    /// it replaced.
    pub(super) async fn reseal_secrets(
        &self,
        texts: &[(SealedSecrets, String)],
    ) -> Result<u64, StoreError> {
        if texts.is_empty() {
            return Ok(0);
        }
        self.write(Call::Reseal, || async {
            let mut transaction = self.begin().await?;
            let mut query = sql::update_from(&transaction, &RESEAL_SECRETS, texts.len());
            for (SealedSecrets { id, sealed, .. }, new) in texts {
                query = query.bind(*id).bind(sealed.as_str()).bind(new.as_str());
            }
            let replaced = query.execute_in(&mut transaction).await?.rows_affected();
            transaction.commit().await?;
            if replaced > 0 {
                self.leaves_traces();
            }
            Ok(replaced)
        })
        .await
    }
}
