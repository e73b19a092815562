//! Registrations that another program took before mailchime, one after the other.

use sqlx::Row;

use super::records::{lock, state};
use super::removal::sweep;
use super::sql;
use super::sql::work::Work;
use super::subscriptions::{replace_mailboxes, upsert_account, upsert_subscription};
use super::{Full, Registrant, Store, StoreError};
use crate::metrics::Call;
use crate::model::{BackendId, Registration, SubscriptionKey, SubscriptionState, Timestamp};

/// A registration that another program took.
#[derive(Clone, Debug)]
pub struct ImportedRegistration {
    /// What is registered. The states of its mailboxes are not known.
    pub registration: Registration,
    /// When the device registered.
    pub registered_at: Timestamp,
    /// The backend of its account.
    pub backend: BackendId,
}

/// What became of an [`ImportedRegistration`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportOutcome {
    /// It is on disk, or would be after a dry run.
    TakenOver,
    /// The device has registered here, then or later.
    Known,
    /// Another backend has accepted the account.
    OtherBackend,
    /// The account has as many devices as it may have.
    TooManySubscriptions,
    /// The device has as many accounts as it may have.
    TooManyAccounts,
    /// This limit leaves no room for it.
    Full(Full),
}

impl Store {
    /// Stores a registration that another program took, as of the time at which that did. When this returns
    /// `Ok` it is on disk, unless it is a `dry_run`, which changes nothing.
    ///
    /// - What is here stays: no device, account or password goes for it, and a device that has registered here
    ///   since is left as it is, also under another spelling of the account's name.
    /// - A parked account stays parked.
    /// - A device that registered before its account got another password is outdated.
    /// - The account has `max_subscriptions` devices at most, and the limits of `Shares` hold.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn import(
        &self,
        imported: &ImportedRegistration,
        max_subscriptions: u32,
        dry_run: bool,
    ) -> Result<ImportOutcome, StoreError> {
        self.write(Call::Register, || async {
            let mut work = self.begin().await?;
            let outcome = self.import_in(&mut work, imported, max_subscriptions).await?;
            if outcome == ImportOutcome::TakenOver && !dry_run {
                work.commit().await?;
                self.leaves_traces();
            }
            Ok(outcome)
        })
        .await
    }

    async fn import_in(
        &self,
        work: &mut Work,
        imported: &ImportedRegistration,
        max_subscriptions: u32,
    ) -> sqlx::Result<ImportOutcome> {
        let ImportedRegistration { registration, registered_at, backend } = imported;
        let subscription = &registration.subscription;
        let (account, key) = (&subscription.account, SubscriptionKey::from(subscription));
        lock(work, account.as_str()).await?;
        let known = sql::query(
            "select id, backend, password_since, password_at from account where name = $1",
        );
        let known = known.bind(account.as_str()).fetch_optional_in(work).await?;
        let (mut row, mut outdated) = (None, None);
        if let Some(known) = known {
            let recorded: Option<String> = known.try_get("backend")?;
            if recorded.is_some_and(|recorded| !backend.is(&recorded)) {
                return Ok(ImportOutcome::OtherBackend);
            }
            let since: Option<i64> = known.try_get("password_since")?;
            let at: Option<i64> = known.try_get("password_at")?;
            outdated = since
                .filter(|since| *since > registered_at.0)
                .map(|since| (Timestamp(since), Timestamp(at.unwrap_or(since))));
            row = Some(known.try_get("id")?);
        }
        let device = devices_of(work, &key).await?;
        let is_known =
            |known: &KnownDevice| !known.same_name || known.registered_at >= *registered_at;
        if device.iter().any(is_known) {
            return Ok(ImportOutcome::Known);
        }
        if device.is_empty()
            && let Some(outcome) = self.no_room(work, &key, backend, max_subscriptions).await?
        {
            return Ok(outcome);
        }
        let times = (*registered_at, self.served(*registered_at));
        let row = match row {
            Some(row) => row,
            None => {
                let login = Registrant::new(backend, *registered_at, None);
                upsert_account(work, account, &login, times, *registered_at).await?.id
            }
        };
        let state = (None, SubscriptionState::Active);
        let id = upsert_subscription(work, row, subscription, state, outdated, times).await?;
        replace_mailboxes(work, row, id, registration, *registered_at).await?;
        sweep(work, account.as_str()).await?;
        self.tell(work, account.as_str(), false).await?;
        Ok(ImportOutcome::TakenOver)
    }

    /// Which limit leaves no room for one more device.
    async fn no_room(
        &self,
        work: &mut Work,
        key: &SubscriptionKey,
        backend: &BackendId,
        max_subscriptions: u32,
    ) -> sqlx::Result<Option<ImportOutcome>> {
        let of_account = sql::query(
            "select count(*) as others from subscription s join account a on a.id = s.account \
             where a.folded = $1 and s.state = 'active'",
        );
        let of_account = of_account.bind(key.account.case_folded()).fetch_one_in(work).await?;
        if of_account.try_get::<i64, _>("others")? >= i64::from(max_subscriptions.max(1)) {
            return Ok(Some(ImportOutcome::TooManySubscriptions));
        }
        let of_device = sql::query(
            "select count(*) as others from subscription s \
             where s.endpoint_hash = $1 and s.transport = $2 and s.state = 'active'",
        )
        .bind(key.endpoint.hash_hex())
        .bind(key.transport.as_str())
        .fetch_one_in(work)
        .await?;
        let most = i64::from(self.shares.accounts_per_device.max(1));
        if of_device.try_get::<i64, _>("others")? >= most {
            return Ok(Some(ImportOutcome::TooManyAccounts));
        }
        let full = match self.shares.has_limits() {
            true => self.shares.full(work, &key.account, backend).await?,
            false => None,
        };
        Ok(full.map(ImportOutcome::Full))
    }
}

/// A registration of the same device for the same user.
struct KnownDevice {
    /// The account is spelled the same.
    same_name: bool,
    registered_at: Timestamp,
}

/// The device's registrations for the account and for other spellings of its name.
async fn devices_of(work: &mut Work, key: &SubscriptionKey) -> sqlx::Result<Vec<KnownDevice>> {
    let rows = sql::query(
        "select a.name as account, s.registered_at, s.state from subscription s \
         join account a on a.id = s.account where s.endpoint_hash = $1 and s.transport = $2 \
         and s.app = $3 and a.folded = $4",
    )
    .bind(key.endpoint.hash_hex())
    .bind(key.transport.as_str())
    .bind(&*key.app)
    .bind(key.account.case_folded())
    .fetch_all_in(work)
    .await?;
    let mut devices = Vec::with_capacity(rows.len());
    for row in &rows {
        let same_name = row.try_get::<&str, _>("account")? == key.account.as_str();
        if same_name || state(row)? == SubscriptionState::Active {
            let registered_at = Timestamp(row.try_get("registered_at")?);
            devices.push(KnownDevice { same_name, registered_at });
        }
    }
    Ok(devices)
}
