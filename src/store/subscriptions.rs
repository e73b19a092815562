//! Registrations on their way to the disk. What has to go for them ends with [`sweep`].

use std::collections::{BTreeMap, BTreeSet};

use sqlx::Row;

use crate::metrics::Call;
use crate::model::{
    Account, BackendId, Registration, Snapshot, Subscription, SubscriptionKey, SubscriptionState,
    Timestamp,
};

use super::batches::NewRegistration;
use super::kept_rows::{kept, outdate_subscriptions, put};
use super::records::{
    ACCOUNT_MAILBOX_STATE, STATE_OF_V, bind_snapshot, delete, id_of, lock, snapshot, subscription,
    subscription_columns,
};
use super::removal::sweep;
use super::shares;
use super::sql::work::Work;
use super::sql::{self, Shaped, UpdateFrom, Upsert};
use super::{Full, MadeRoom, Registrant, Store, StoreError};

/// Most pending subscriptions of one account.
const PENDING: i64 = 5;

/// What became of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegisterOutcome {
    /// It is on disk.
    Stored(MadeRoom),
    /// It is not, as this limit leaves no room for it.
    Full(Full),
}

impl Store {
    /// Stores a registration, with those of others in one transaction. When this returns `Ok` it is on
    /// disk. Once the database works on it, dropping the call does not stop it.
    ///
    /// - Of an account that another backend has accepted before nothing stays: neither devices nor
    ///   credentials nor what devices know.
    /// - `login` says what of its credentials is kept, and what of those that are.
    /// - The account's parking ends: a session registers that has just logged in.
    /// - With another password, the other devices that registered before the login are outdated, but no web
    ///   hook of the operator.
    /// - A session that logged in before there was another password changes nothing but its device,
    ///   which is outdated.
    /// - Its newest route and options replace the older; when it was last pushed stays.
    /// - Its mailboxes become those of the registration; a push that is due of one that stays is still
    ///   owed.
    /// - A mailbox that no device was registered for begins with the registration's snapshot. An
    ///   existing snapshot stays: it says what the other devices know. Where it was unknown, the
    ///   registration's is taken, and a push is owed to the others if some of the mail may be unread.
    /// - Of the account's devices this one and the newest others remain, `max_subscriptions` in all (at
    ///   least one). Accounts whose names differ in nothing but case share this number: the one with
    ///   most devices makes room.
    /// - Where the backend ignores the case of names, the device's registrations for other spellings
    ///   of the account end: they are of a time before that was known.
    /// - The limits of `Shares` hold.
    /// - A pending one displaces nothing, and an account has five of them at most; room is made when it
    ///   is confirmed ([`Store::confirm`]).
    ///
    /// # Errors
    /// [`StoreError::Sealing`] when it has secrets and the key file cannot be used, else when the database
    /// cannot be used, or does not answer in time.
    pub async fn register(
        &self,
        registration: &Registration,
        login: Registrant,
        max_subscriptions: u32,
        now: Timestamp,
    ) -> Result<RegisterOutcome, StoreError> {
        let secrets = self.sealed_secrets(&registration.subscription)?;
        let new = NewRegistration {
            registration: registration.clone(),
            secrets,
            login,
            max_subscriptions,
            now,
        };
        let registered = Box::pin(self.measured(Call::Register, async {
            self.ready().await?;
            self.is_in_place()?;
            let registered = self.with_others(new).await?;
            self.is_in_place()?;
            Ok(registered)
        }))
        .await?;
        if let RegisterOutcome::Stored(made) = &registered {
            made.say(&registration.subscription.account, max_subscriptions);
        }
        Ok(registered)
    }

    /// Writes registrations in one transaction, all or none; what became of each.
    pub(super) async fn write_batch(
        &self,
        batch: &[NewRegistration],
    ) -> sqlx::Result<Vec<RegisterOutcome>> {
        self.repeated(|| async {
            let mut transaction = self.begin().await?;
            let mut registered = Vec::with_capacity(batch.len());
            for NewRegistration { registration, secrets, login, max_subscriptions, now } in batch {
                let account = &registration.subscription.account;
                let key = SubscriptionKey::from(&registration.subscription);
                leave(&mut transaction, account, &login.backend).await?;
                let pending = login.state == SubscriptionState::Pending;
                let mut full = None;
                if (pending || self.shares.has_limits())
                    && id_of(&mut transaction, &key).await?.is_none()
                {
                    full = self.shares.full(&mut transaction, account, &login.backend).await?;
                    if pending && shares::pending_of(&mut transaction, account).await? >= PENDING {
                        full = Some(Full::PendingPerAccount);
                    }
                }
                if let Some(full) = full {
                    self.tell(&mut transaction, account.as_str(), false).await?;
                    registered.push(RegisterOutcome::Full(full));
                    continue;
                }
                // By the time of day and of service.
                let times = (*now, self.served(*now));
                let login_at = (login.logged_in_at, self.served(login.logged_in_at));
                let became =
                    upsert_account(&mut transaction, account, login, login_at, *now).await?;
                let AccountRow { id: row, outdated, other_password } = became;
                let id = upsert_subscription(
                    &mut transaction,
                    row,
                    &registration.subscription,
                    (secrets.as_deref(), login.state),
                    outdated,
                    times,
                )
                .await?;
                if other_password && outdated.is_none() {
                    let name = account.as_str();
                    outdate_subscriptions(&mut transaction, name, Some(id), login_at).await?;
                }
                replace_mailboxes(&mut transaction, row, id, registration, *now).await?;
                let made = match pending {
                    true => MadeRoom::default(),
                    false => {
                        let folds = login.names_ignore_case;
                        self.displace(&mut transaction, &key, id, folds, *max_subscriptions).await?
                    }
                };
                sweep(&mut transaction, account.as_str()).await?;
                self.tell(&mut transaction, account.as_str(), true).await?;
                registered.push(RegisterOutcome::Stored(made));
            }
            transaction.commit().await?;
            self.leaves_traces();
            Ok(registered)
        })
        .await
    }

    /// Removes what has to go for the subscription `key`, which counts and has this id; of other spellings of
    /// the account too where its backend `folds` names.
    pub(super) async fn displace(
        &self,
        transaction: &mut Work,
        key: &SubscriptionKey,
        id: i64,
        folds: bool,
        max_subscriptions: u32,
    ) -> sqlx::Result<MadeRoom> {
        let mut losers = match folds {
            true => leave_spellings(transaction, key).await?,
            false => BTreeSet::new(),
        };
        let (made, others) = self.shares.make_room(transaction, key, id, max_subscriptions).await?;
        losers.extend(others);
        for loser in losers {
            sweep(transaction, &loser).await?;
            self.tell(transaction, &loser, false).await?;
        }
        Ok(made)
    }

    /// Whether the registration is stored as it is, since `since` or later, and its account is not
    /// parked.
    pub(super) async fn registered(
        &self,
        registration: &Registration,
        backend: &BackendId,
        since: Timestamp,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let key = SubscriptionKey::from(&registration.subscription);
        let rows = self
            .read(Call::Registered, async {
                let query = sql::query(concat!(
                    "select ",
                    subscription_columns!(),
                    ", s.secrets, m.name as mailbox from account a \
                     join subscription s on s.account = a.id \
                     join subscription_mailbox wanted on wanted.subscription = s.id \
                     join mailbox m on m.id = wanted.mailbox \
                     where a.name = $1 and s.transport = $2 and s.endpoint_hash = $3 and s.app = $4 \
                     and s.registered_at > $5 and s.registered_at <= $6 \
                     and s.outdated_since is null and s.state = 'active' and a.parked is null \
                     and a.backend = $7"
                ))
                .bind(key.account.as_str())
                .bind(key.transport.as_str())
                .bind(key.endpoint.hash_hex())
                .bind(&*key.app)
                .bind(since.0)
                .bind(now.0)
                .bind(backend.as_str());
                self.rows(query, |row| {
                    let sealed: Option<String> = row.try_get("secrets")?;
                    Ok((subscription(row)?, sealed, row.try_get::<String, _>("mailbox")?))
                })
                .await
            })
            .await?;
        // What cannot be read is not as it is, and is written anew.
        let Some((stored, sealed, _)) = rows.first() else { return Ok(false) };
        let Some(stored) = self.with_secrets(stored.clone(), sealed.as_deref())? else {
            return Ok(false);
        };
        let mailboxes: BTreeSet<&str> = rows.iter().map(|(_, _, mailbox)| &**mailbox).collect();
        let wanted = registration.mailboxes.iter().map(|(mailbox, _)| mailbox.as_str());
        let same = stored == registration.subscription && mailboxes == wanted.collect();
        self.is_in_place()?;
        Ok(same)
    }
}

/// Removes the same subscriptions for accounts whose names differ from this one in nothing but case; returns
/// their names.
async fn leave_spellings(work: &mut Work, key: &SubscriptionKey) -> sqlx::Result<BTreeSet<String>> {
    let rows = sql::query(
        "select s.id, a.name as account from subscription s join account a on a.id = s.account \
         where s.endpoint_hash = $1 and s.transport = $2 and s.app = $3",
    )
    .bind(key.endpoint.hash_hex())
    .bind(key.transport.as_str())
    .bind(&*key.app)
    .fetch_all_in(work)
    .await?;
    // Databases fold letters beyond ASCII in different ways, so it is not theirs to say.
    let own = key.account.as_str();
    let mut names = BTreeSet::new();
    for row in &rows {
        let (Ok(id), Ok(name)) = (row.try_get("id"), row.try_get::<String, _>("account")) else {
            continue;
        };
        if name != own && name.eq_ignore_ascii_case(own) {
            lock(work, &name).await?;
            delete(work, id).await?;
            names.insert(name);
        }
    }
    Ok(names)
}

/// Removes what is kept of the account if another backend has accepted it.
async fn leave(work: &mut Work, account: &Account, backend: &BackendId) -> sqlx::Result<()> {
    let query = sql::query(
        "select id, entry_at from account where name = $1 and coalesce(backend, $2) not in ($2, $3)",
    )
    .bind(account.as_str())
    .bind(backend.as_str())
    .bind(backend.address());
    let Some(former) = query.fetch_optional_in(work).await? else { return Ok(()) };
    let delete = sql::query("delete from account where id = $1");
    delete.bind(former.try_get::<i64, _>("id")?).execute_in(work).await?;
    tracing::info!(
        target: "mailchime::store::account_changed_backend",
        %account, %backend,
        "an account registered at another backend; mailchime removes what it kept of the \
         account for the former one"
    );
    if former.try_get::<Option<i64>, _>("entry_at")?.is_some() {
        tracing::warn!(
            target: "mailchime::store::entry_left_at_former_backend",
            %account,
            "the METADATA entry of an account stays at its former backend, for which mailchime keeps no password \
             any more; that mail server goes on sending events of the account, which make mailchime look at the \
             new one. Remove the entry with doveadm"
        );
    }
    Ok(())
}

/// An account's row as a registration leaves it. Pairs of times here and below are those of the day and of
/// service.
pub(super) struct AccountRow {
    pub(super) id: i64,
    /// Since when it has another password than that of the login, if that is of before.
    outdated: Option<(Timestamp, Timestamp)>,
    /// The password of the login is another one than the last.
    other_password: bool,
}

static UPSERT_ACCOUNT: Shaped = Shaped::new(|dialect| {
    dialect.upsert(&Upsert {
        table: "account",
        columns: "name, backend, created_at, folded, domain",
        rows: "values ($1, $2, $3, $6, $7)",
        key: "name",
        set: &[
            ("backend", "new.backend"),
            ("folded", "new.folded"),
            ("domain", "new.domain"),
            ("password_since", "case when $4 = 1 then $5 else old.password_since end"),
            ("password_at", "case when $4 = 1 then $8 else old.password_at end"),
            ("parked", "null"),
            ("parked_since", "null"),
            ("refusals", "null"),
            ("refused_at", "null"),
            ("left_at", "null"),
        ],
        returning: "id",
    })
});

/// The state of mailboxes of which nobody hears yet, as only pending subscriptions want them or nobody has looked at
/// them. A later state is no news for a subscription that registers with it.
const UNHEARD_OF: UpdateFrom<'_> = UpdateFrom {
    table: "mailbox",
    columns: ACCOUNT_MAILBOX_STATE,
    account: "",
    joins: &[],
    on: "mailbox.account = v.account and mailbox.name = v.mailbox and (mailbox.uid_validity is null \
         and mailbox.uid_next is null and mailbox.messages is null and mailbox.unseen is null \
         and mailbox.highest_mod_seq is null or not exists (select 1 from \
         subscription_mailbox wanted join subscription s on s.id = wanted.subscription \
         where wanted.mailbox = mailbox.id and s.state = 'active'))",
    set: STATE_OF_V,
};

static UPSERT_SUBSCRIPTION: Shaped = Shaped::new(|dialect| {
    dialect.upsert(&Upsert {
        table: "subscription",
        columns: "account, transport, endpoint_hash, app, endpoint, route, options, registered_at, \
                  heard_at, outdated_since, outdated_at, secrets, expires_at, state, renews",
        rows: "values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        key: "account, transport, endpoint_hash, app",
        set: &[
            ("endpoint", "new.endpoint"),
            ("route", "new.route"),
            ("options", "new.options"),
            ("registered_at", "new.registered_at"),
            ("heard_at", "new.heard_at"),
            ("secrets", "new.secrets"),
            ("expires_at", "new.expires_at"),
            ("renews", "new.renews"),
            // What failed was the registration before.
            ("failing_since", "null"),
            ("failing_kind", "null"),
            ("own_fault", "null"),
            ("state", "case when old.state = 'active' then 'active' else new.state end"),
            (
                "outdated_at",
                "case when new.outdated_since is null then null \
                 else coalesce(old.outdated_at, new.outdated_at) end",
            ),
            (
                "outdated_since",
                "case when new.outdated_since is null then null \
                 else coalesce(old.outdated_since, new.outdated_since) end",
            ),
        ],
        returning: "id",
    })
});

/// Locks the account, too.
pub(super) async fn upsert_account(
    work: &mut Work,
    account: &Account,
    login: &Registrant,
    login_at: (Timestamp, Timestamp),
    now: Timestamp,
) -> sqlx::Result<AccountRow> {
    let mut keeping = login.keeping(&[], 0);
    if login.brings_credentials() {
        lock(work, account.as_str()).await?;
        if let Some(found) = kept(work, account.as_str(), &login.backend).await? {
            keeping = login.keeping(&found.rows, found.refused);
            // One of the future was noted by a clock that was wrong.
            let is_later = |since: &Timestamp| (login_at.0.0 + 1..=now.0).contains(&since.0);
            if let Some(since) = found.password_since.filter(is_later)
                && keeping.other_password
            {
                let at = found.password_at.unwrap_or(login_at.1);
                let outdated = Some((since, at));
                return Ok(AccountRow { id: found.id, outdated, other_password: true });
            }
        }
    }
    let row = sql::query(UPSERT_ACCOUNT.of(work.dialect()))
        .bind(account.as_str())
        .bind(login.backend.as_str())
        .bind(now.0)
        .bind(i64::from(keeping.other_password))
        .bind(login_at.0.0)
        .bind(account.case_folded())
        .bind(shares::domain(account))
        .bind(login_at.1.0)
        .fetch_one_in(work)
        .await?;
    if let Some(rows) = &keeping.rows {
        put(work, account.as_str(), rows).await?;
    }
    let id = row.try_get("id")?;
    Ok(AccountRow { id, outdated: None, other_password: keeping.other_password })
}

/// With `outdated` the subscription stays outdated, or is so from then on, unless it is the operator's. Returns
/// its id.
pub(super) async fn upsert_subscription(
    work: &mut Work,
    account: i64,
    subscription: &Subscription,
    (secrets, state): (Option<&str>, SubscriptionState),
    outdated: Option<(Timestamp, Timestamp)>,
    (now, served): (Timestamp, Timestamp),
) -> sqlx::Result<i64> {
    let outdated = outdated.filter(|_| !subscription.is_of_operator());
    let row = sql::query(UPSERT_SUBSCRIPTION.of(work.dialect()))
        .bind(account)
        .bind(subscription.transport.as_str())
        .bind(subscription.endpoint.hash_hex())
        .bind(&*subscription.app)
        .bind(subscription.endpoint.as_given())
        .bind(&*subscription.route)
        .bind(&*subscription.options)
        .bind(now.0)
        .bind(served.0)
        .bind(outdated.map(|(since, _)| since.0))
        .bind(outdated.map(|(_, at)| at.0))
        .bind(secrets)
        .bind(subscription.expires_at.map(|at| at.0))
        .bind(state.name())
        // Nothing registers what a user has made by the API again: its silence says nothing.
        .bind(i64::from(state == SubscriptionState::Active))
        .fetch_one_in(work)
        .await?;
    row.try_get("id")
}

/// `since` is the time of what it finds to be owed to other subscriptions.
pub(super) async fn replace_mailboxes(
    work: &mut Work,
    account: i64,
    subscription: i64,
    registration: &Registration,
    since: Timestamp,
) -> sqlx::Result<()> {
    // A name that is given twice is one mailbox.
    let wanted: BTreeMap<&str, &Snapshot> =
        registration.mailboxes.iter().map(|(name, state)| (name.as_str(), state)).collect();
    let mut unknown = leave_mailboxes(work, account, subscription, &wanted).await?;
    unknown.retain(|(_, name)| wanted.get(&**name).is_some_and(|it| it.may_have_unread()));
    owe_to_others(work, subscription, &unknown, since).await?;
    let wanted: Vec<_> = wanted.into_iter().collect();
    for wanted in wanted.chunks(sql::MOST_ROWS) {
        let insert = format!(
            "insert into mailbox (account, name, uid_validity, uid_next, messages, unseen, \
             highest_mod_seq) values {}",
            sql::values(1, 7, wanted.len())
        );
        let mut query = sql::query(work.dialect().insert_new(&insert, "mailbox.name"));
        for (mailbox, state) in wanted {
            query = bind_snapshot(query.bind(account), mailbox, state);
        }
        query.execute_in(work).await?;
        let known: Vec<_> =
            wanted.iter().filter(|(_, state)| **state != Snapshot::default()).collect();
        if !known.is_empty() {
            let mut query = sql::update_from(work, &UNHEARD_OF, known.len());
            for (mailbox, state) in known {
                query = bind_snapshot(query.bind(account), mailbox, state);
            }
            query.execute_in(work).await?;
        }
        let insert = format!(
            "insert into subscription_mailbox (subscription, mailbox) select $1, m.id \
             from mailbox m where m.account = $2 and m.name in {}",
            sql::values(3, wanted.len(), 1)
        );
        let query = sql::query(work.dialect().insert_new(&insert, "subscription_mailbox.mailbox"));
        let mut query = query.bind(subscription).bind(account);
        for (mailbox, _) in wanted {
            query = query.bind(*mailbox);
        }
        query.execute_in(work).await?;
    }
    Ok(())
}

/// The subscription leaves its mailboxes that are not `wanted`. Returns the mailboxes of the account, wanted or not,
/// whose state nobody knows: their ids and names.
async fn leave_mailboxes(
    work: &mut Work,
    account: i64,
    subscription: i64,
    wanted: &BTreeMap<&str, &Snapshot>,
) -> sqlx::Result<Vec<(i64, String)>> {
    let rows = sql::query(
        "select m.id, m.name as mailbox, m.uid_validity, m.uid_next, m.messages, m.unseen, \
         m.highest_mod_seq, wanted.subscription from mailbox m left join subscription_mailbox wanted \
         on wanted.mailbox = m.id and wanted.subscription = $1 where m.account = $2 \
         and (wanted.subscription is not null or m.uid_validity is null and m.uid_next is null \
         and m.messages is null and m.unseen is null and m.highest_mod_seq is null)",
    )
    .bind(subscription)
    .bind(account)
    .fetch_all_in(work)
    .await?;
    let mut unknown = Vec::new();
    for row in &rows {
        // One that cannot be read stays, and is left out wherever it is read.
        let Ok(mailbox) = row.try_get::<&str, _>("mailbox") else { continue };
        let id = row.try_get::<i64, _>("id")?;
        let is_its_own = row.try_get::<Option<i64>, _>("subscription")?.is_some();
        if is_its_own && !wanted.contains_key(mailbox) {
            sql::query("delete from subscription_mailbox where subscription = $1 and mailbox = $2")
                .bind(subscription)
                .bind(id)
                .execute_in(work)
                .await?;
        }
        if snapshot(row) == Snapshot::default() {
            unknown.push((id, mailbox.to_owned()));
        }
    }
    Ok(unknown)
}

/// The state of these mailboxes is known from now on. Which of their mail came after the other active subscriptions
/// registered is not known, so a push is owed to each of them.
async fn owe_to_others(
    work: &mut Work,
    subscription: i64,
    mailboxes: &[(i64, String)],
    since: Timestamp,
) -> sqlx::Result<()> {
    for mailboxes in mailboxes.chunks(sql::MOST_ROWS) {
        let owe = format!(
            "update subscription_mailbox set owed_since = coalesce(owed_since, $1) \
             where subscription <> $2 and mailbox in {} and exists (select 1 from subscription s \
             where s.id = subscription_mailbox.subscription and s.state = 'active')",
            sql::values(3, mailboxes.len(), 1)
        );
        let mut query = sql::query(owe).bind(since.0).bind(subscription);
        for (id, _) in mailboxes {
            query = query.bind(*id);
        }
        query.execute_in(work).await?;
    }
    Ok(())
}
