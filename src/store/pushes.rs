//! A change's way through the database: what the devices know, which devices there are, what
//! is owed to them, and what became of it (DESIGN.md, promise 2).

use std::collections::BTreeMap;

use sqlx::Row;
use sqlx::any::AnyRow;

use crate::metrics::Call;
use crate::model::{Account, BackendId, Mailbox, Snapshot, SubscriptionKey, Timestamp};

use super::registrations::bind_snapshot;
use super::work::{Statement, Work};
use super::{
    Alive, Settlement, Store, StoreError, Target, account, rows, snapshot, subscription, token,
};

impl Store {
    /// The mailboxes that this backend's account's live devices registered for, each with the state
    /// that they know; none if the account is another backend's.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn watched(
        &self,
        account: &Account,
        backend: &BackendId,
        alive: impl Into<Alive>,
    ) -> Result<Vec<(Mailbox, Snapshot)>, StoreError> {
        let alive = alive.into();
        self.read(Call::Watched, async {
            // A missing snapshot would read as "told of nothing", which pushes; a plain join would
            // stop watching.
            let query = sqlx::query(
                "select distinct d.account, m.mailbox, s.uid_validity, s.uid_next, s.messages, \
                 s.unseen, s.highest_mod_seq from account a join device d on d.account = a.name \
                 join device_mailbox m on m.account = d.account and m.token = d.token \
                 and m.subtopic = d.subtopic \
                 left join snapshot s on s.account = m.account and s.mailbox = m.mailbox \
                 where a.name = $1 and coalesce(a.backend, $2) in ($2, $3) \
                 and (d.heard_at is null or d.heard_at >= $4) \
                 and (d.outdated_since is null or d.outdated_at is null or d.outdated_at > $5) \
                 order by m.mailbox",
            )
            .bind(account.as_str())
            .bind(backend.as_str())
            .bind(backend.address())
            .bind(alive.registered_since.0)
            .bind(alive.outdated_after.0);
            self.rows(query, |row| Ok((Mailbox::new(row.try_get("mailbox")?), snapshot(row)))).await
        })
        .await
    }

    /// The account's live devices with their mailboxes, whichever backend it is on.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn targets(
        &self,
        account: &Account,
        alive: impl Into<Alive>,
    ) -> Result<Vec<Target>, StoreError> {
        let alive = alive.into();
        self.read(Call::Targets, async {
            let query = sqlx::query(
                "select d.account, a.backend, d.token_given, d.subtopic, d.aps_account_id, \
                 d.version, d.topic, d.registered_at, d.heard_at, d.outdated_since, d.outdated_at, \
                 d.pushed_at, m.mailbox, m.owed_since from account a join device d on d.account = a.name \
                 left join device_mailbox m on m.account = d.account and m.token = d.token \
                 and m.subtopic = d.subtopic \
                 where a.name = $1 and (d.heard_at is null or d.heard_at >= $2) \
                 and (d.outdated_since is null or d.outdated_at is null or d.outdated_at > $3) \
                 order by d.token, d.subtopic, m.mailbox",
            )
            .bind(account.as_str())
            .bind(alive.registered_since.0)
            .bind(alive.outdated_after.0);
            Ok(targets(self.rows(query, entry).await?))
        })
        .await
    }

    /// All devices, live or not, by account: those of the next `accounts` accounts behind `after`, with
    /// the last of these accounts. `None` is the end.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn subscriptions(
        &self,
        after: Option<&Account>,
        accounts: u32,
    ) -> Result<Option<(Account, Vec<Target>)>, StoreError> {
        self.read(Call::Devices, async {
            // No account has an empty name.
            let after = after.map_or("", Account::as_str);
            let page = "select name from account where name > $1 order by name limit $2";
            let page = sqlx::query(page).bind(after).bind(i64::from(accounts));
            let mut page = self.page(page, |row| account(row, "name")).await?;
            let Some(last) = page.pop() else { return Ok(None) };
            let query = sqlx::query(
                "select d.account, a.backend, d.token_given, d.subtopic, d.aps_account_id, \
                 d.version, d.topic, d.registered_at, d.heard_at, d.outdated_since, d.outdated_at, \
                 d.pushed_at, m.mailbox, m.owed_since from account a join device d on d.account = a.name \
                 left join device_mailbox m on m.account = d.account and m.token = d.token \
                 and m.subtopic = d.subtopic \
                 where d.account > $1 and d.account <= $2 \
                 order by d.account, d.token, d.subtopic, m.mailbox",
            )
            .bind(after)
            .bind(last.as_str());
            let targets = targets(self.rows(query, entry).await?);
            Ok(Some((last, targets)))
        })
        .await
    }

    /// The accounts with a device that is owed a push, live or not.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn owed_accounts(&self) -> Result<Vec<Account>, StoreError> {
        self.read(Call::Owed, async {
            let query = sqlx::query(
                "select distinct account from device_mailbox where owed_since is not null \
                 order by account",
            );
            self.rows(query, |row| account(row, "account")).await
        })
        .await
    }

    /// Writes what became of changes, in the order given, all or nothing.
    ///
    /// What names a device or mailbox that is no longer registered has no effect. A mark that is to
    /// outlive a push, because the mailbox changed again while it was on its way, must be settled
    /// after its [`Settlement::Accepted`].
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn settle(&self, settlements: &[Settlement]) -> Result<(), StoreError> {
        if settlements.is_empty() {
            return Ok(());
        }
        let outcome = Outcome::of(settlements);
        self.write(Call::Settle, || async {
            let mut transaction = self.begin().await?;
            outcome.write(&mut transaction).await?;
            transaction.commit().await
        })
        .await
    }
}

/// A device with one of its mailboxes, if it has any.
fn entry(row: &AnyRow) -> sqlx::Result<Target> {
    let mailbox: Option<&str> = row.try_get("mailbox")?;
    // What is there and cannot be read is owed: twice is allowed, never is not.
    let owed = row.try_get::<Option<i64>, _>("owed_since").map_or(true, |since| since.is_some());
    Ok(Target {
        subscription: subscription(row)?,
        registered_at: Timestamp(row.try_get("registered_at")?),
        heard_at: Timestamp(row.try_get::<Option<i64>, _>("heard_at")?.unwrap_or(i64::MAX)),
        backend: row.try_get("backend")?,
        outdated_since: row.try_get::<Option<i64>, _>("outdated_since")?.map(Timestamp),
        outdated_at: row.try_get::<Option<i64>, _>("outdated_at")?.map(Timestamp),
        pushed_at: row.try_get::<Option<i64>, _>("pushed_at").ok().flatten().map(Timestamp),
        mailboxes: mailbox.map(|mailbox| (Mailbox::new(mailbox), owed)).into_iter().collect(),
    })
}

/// Devices from an entry for each of their mailboxes; those of one device follow each other.
fn targets(entries: Vec<Target>) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::new();
    for entry in entries {
        match targets.last_mut() {
            Some(last) if last.subscription == entry.subscription => {
                last.mailboxes.extend(entry.mailboxes)
            }
            _ => targets.push(entry),
        }
    }
    targets
}

/// What a batch comes to: one row for each that it changes. Sorted, so that two batches meet their
/// rows in the same order.
struct Outcome<'a> {
    told: BTreeMap<(&'a str, &'a str), &'a Snapshot>,
    marks: BTreeMap<(Key<'a>, &'a str), Mark>,
    pushed: BTreeMap<Key<'a>, Timestamp>,
}

/// Account, token in lower case, subtopic.
type Key<'a> = (&'a str, String, &'a str);

/// What becomes of the mark that a mailbox is owed.
#[derive(Default)]
struct Mark {
    /// A mark from before the batch does not stay.
    cleared: bool,
    /// The time of a mark that the batch sets, unless there is one.
    since: Option<Timestamp>,
}

impl<'a> Outcome<'a> {
    fn of(settlements: &'a [Settlement]) -> Self {
        let mut outcome =
            Self { told: BTreeMap::new(), marks: BTreeMap::new(), pushed: BTreeMap::new() };
        for settlement in settlements {
            match settlement {
                Settlement::Told { account, mailbox, snapshot } => {
                    outcome.told.insert((account.as_str(), mailbox.as_str()), snapshot);
                }
                Settlement::Owed { subscription, mailbox, since } => {
                    let mark =
                        outcome.marks.entry((key(subscription), mailbox.as_str())).or_default();
                    mark.since.get_or_insert(*since);
                }
                Settlement::Accepted { subscription, mailboxes, at } => {
                    outcome.pushed.insert(key(subscription), *at);
                    for mailbox in mailboxes {
                        let cleared = Mark { cleared: true, since: None };
                        outcome.marks.insert((key(subscription), mailbox.as_str()), cleared);
                    }
                }
            }
        }
        outcome
    }

    /// Rows that are not there stay so: a mailbox that nobody is registered for has none, and a late
    /// word about it cannot bring one back.
    async fn write(&self, work: &mut Work) -> sqlx::Result<()> {
        for marks in chunks(&self.marks) {
            let mut query = rows::query(format!(
                "with v (account, token, subtopic, mailbox, cleared, since) as (values {}) \
                 update device_mailbox set owed_since = case when v.cleared = 1 then v.since \
                 else coalesce(owed_since, v.since) end \
                 from v where device_mailbox.account = v.account \
                 and device_mailbox.token = v.token and device_mailbox.subtopic = v.subtopic \
                 and device_mailbox.mailbox = v.mailbox",
                rows::values(1, 6, marks.len())
            ));
            for (((account, token, subtopic), mailbox), mark) in marks {
                query = query
                    .bind(*account)
                    .bind(token.as_str())
                    .bind(*subtopic)
                    .bind(*mailbox)
                    .bind(i64::from(mark.cleared))
                    .bind(mark.since.map(|since| since.0));
            }
            query.execute_in(work).await?;
        }
        for devices in chunks(&self.pushed) {
            let mut query = rows::query(format!(
                "with v (account, token, subtopic, pushed_at) as (values {}) \
                 update device set pushed_at = v.pushed_at \
                 from v where device.account = v.account and device.token = v.token \
                 and device.subtopic = v.subtopic",
                rows::values(1, 4, devices.len())
            ));
            for ((account, token, subtopic), at) in devices {
                query = query.bind(*account).bind(token.as_str()).bind(*subtopic).bind(at.0);
            }
            query.execute_in(work).await?;
        }
        for told in chunks(&self.told) {
            let mut query = rows::query(format!(
                "with v (account, mailbox, uid_validity, uid_next, messages, unseen, \
                 highest_mod_seq) as (values {}) \
                 update snapshot set uid_validity = v.uid_validity, uid_next = v.uid_next, \
                 messages = v.messages, unseen = v.unseen, highest_mod_seq = v.highest_mod_seq \
                 from v where snapshot.account = v.account and snapshot.mailbox = v.mailbox",
                rows::values(1, 7, told.len())
            ));
            for ((account, mailbox), snapshot) in told {
                query = bind_snapshot(query, account, mailbox, snapshot);
            }
            query.execute_in(work).await?;
        }
        Ok(())
    }
}

fn key(key: &SubscriptionKey) -> Key<'_> {
    (key.account.as_str(), token(key), &key.app)
}

/// What is written by one statement at a time.
fn chunks<K, V>(map: &BTreeMap<K, V>) -> impl Iterator<Item = Vec<(&K, &V)>> {
    let mut entries = map.iter();
    std::iter::from_fn(move || {
        let chunk: Vec<_> = entries.by_ref().take(rows::MOST).collect();
        (!chunk.is_empty()).then_some(chunk)
    })
}
