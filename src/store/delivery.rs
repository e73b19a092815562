//! A change's way through the database: what the devices know, which devices there are, what
//! is owed to them, and what became of it (DESIGN.md, promise 2).

use std::collections::BTreeMap;

use sqlx::Row;
use sqlx::any::AnyRow;

use crate::metrics::Call;
use crate::model::{
    Account, BackendId, LastingFailure, Mailbox, Snapshot, Subscription, SubscriptionKey,
    SubscriptionState, Timestamp, TransportId,
};

use super::due::{DueMailbox, due_mailbox};
use super::records::{
    ACCOUNT_MAILBOX_STATE, STATE_OF_V, account, bind_snapshot, failure, failure_columns, live,
    snapshot, state, subscription, subscription_columns,
};
use super::sql::statement::Statement;
use super::sql::work::Work;
use super::sql::{self, UpdateFrom, rows};
use super::{Alive, Store, StoreError};

/// A subscription with what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What gets the push.
    pub subscription: Subscription,
    /// Whether it counts.
    pub state: SubscriptionState,
    /// By the time of day.
    pub registered_at: Timestamp,
    /// The same by the time of service.
    pub heard_at: Timestamp,
    /// Its client registers it again by itself, or mailchime does, so its silence ends it. Those that users
    /// make by the API end by the word of their service or their user, or at the time that they say.
    pub renews: bool,
    /// Which backend has accepted its account's user, as [`super::LiveAccount::backend`].
    pub backend: Option<String>,
    /// When its account got another password, if it has not registered with that.
    pub outdated_since: Option<Timestamp>,
    /// The same by the time of service.
    pub outdated_at: Option<Timestamp>,
    /// When a push for it was last accepted.
    pub pushed_at: Option<Timestamp>,
    /// How its pushes fail for a reason that lasts; `None` if the last one did not.
    pub failing: Option<LastingFailure>,
    /// Each mailbox, and whether a push for it is still owed to this device.
    pub mailboxes: Vec<(Mailbox, bool)>,
}

/// What became of a change; see [`Store::settle`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Every device knows of this state or has the mailbox marked as due.
    Told {
        /// The account.
        account: Account,
        /// The mailbox.
        mailbox: Mailbox,
        /// The state that it has now.
        snapshot: Snapshot,
    },
    /// A push for the mailbox is due to the device. A mark that is there keeps its time.
    Owed {
        /// The subscription.
        subscription: SubscriptionKey,
        /// The mailbox.
        mailbox: Mailbox,
        /// Since when, in milliseconds since 1970.
        since: Timestamp,
    },
    /// Pushes of the subscription fail for a reason that lasts. The time of a failure that is there stays, and the rest
    /// is as it is now.
    Failing {
        /// The subscription.
        subscription: SubscriptionKey,
        /// How.
        failure: LastingFailure,
        /// When the subscription was registered, of which this is known. One that has registered since is as new.
        registered_at: Timestamp,
    },
    /// A push for these mailboxes was accepted: they are no longer owed, and the subscription fails no longer.
    Accepted {
        /// The subscription.
        subscription: SubscriptionKey,
        /// The mailboxes.
        mailboxes: Vec<Mailbox>,
        /// When.
        at: Timestamp,
    },
}

/// What [`entry`] reads, of each subscription `s` of an account `a`, and each of its mailboxes; conditions follow.
macro_rules! entries {
    () => {
        concat!(
            "select ",
            subscription_columns!(),
            ", ",
            failure_columns!(),
            ", a.backend, s.state, s.registered_at, s.heard_at, s.renews, s.outdated_since, s.outdated_at, \
             s.pushed_at, m.name as mailbox, wanted.owed_since from account a \
             join subscription s on s.account = a.id \
             left join subscription_mailbox wanted on wanted.subscription = s.id \
             left join mailbox m on m.id = wanted.mailbox "
        )
    };
}

// === impl Target ===

impl Target {
    /// As [`super::LiveAccount::elsewhere`].
    pub fn elsewhere(&self, now: &BackendId) -> Option<&str> {
        self.backend.as_deref().filter(|recorded| !now.is(recorded))
    }
}

// === impl Store ===

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
        Ok(self.watched_and_due(account, backend, alive).await?.0)
    }

    /// The same, and those of them that are due.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn watched_and_due(
        &self,
        account: &Account,
        backend: &BackendId,
        alive: impl Into<Alive>,
    ) -> Result<(Vec<(Mailbox, Snapshot)>, Vec<DueMailbox>), StoreError> {
        let alive = alive.into();
        self.read(Call::Watched, async {
            let query = sql::query(concat!(
                "select distinct a.name as account, m.name as mailbox, m.uid_validity, m.uid_next, \
                 m.messages, m.unseen, m.highest_mod_seq, m.due_since, m.due_marks, m.due_state \
                 from account a join subscription s on s.account = a.id \
                 join subscription_mailbox wanted on wanted.subscription = s.id \
                 join mailbox m on m.id = wanted.mailbox \
                 where a.name = $1 and coalesce(a.backend, $2) in ($2, $3) and ",
                live!("$4", "$5"),
                " order by m.name"
            ))
            .bind(account.as_str())
            .bind(backend.as_str())
            .bind(backend.address())
            .bind(alive.registered_since.0)
            .bind(alive.outdated_after.0);
            let read = |row: &AnyRow| {
                let mailbox = Mailbox::new(row.try_get("mailbox")?);
                // What cannot be read of what is due is looked at.
                let due = due_mailbox(row).unwrap_or_else(|_| {
                    Some(DueMailbox { mailbox: mailbox.clone(), marks: 1, state: None })
                });
                Ok(((mailbox, snapshot(row)), due))
            };
            let (watched, due): (Vec<_>, Vec<_>) =
                self.rows(query, read).await?.into_iter().unzip();
            Ok((watched, due.into_iter().flatten().collect()))
        })
        .await
    }

    /// Each mailbox that live subscriptions of the account are for, with the transport of each of them.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn mailboxes_by_transport(
        &self,
        account: &Account,
        alive: impl Into<Alive>,
    ) -> Result<Vec<(Mailbox, TransportId)>, StoreError> {
        let alive = alive.into();
        self.read(Call::Watched, async {
            let query = sql::query(concat!(
                "select distinct m.name as mailbox, s.transport from account a \
                 join subscription s on s.account = a.id \
                 join subscription_mailbox wanted on wanted.subscription = s.id \
                 join mailbox m on m.id = wanted.mailbox \
                 where a.name = $1 and ",
                live!("$2", "$3"),
                " order by m.name, s.transport"
            ))
            .bind(account.as_str())
            .bind(alive.registered_since.0)
            .bind(alive.outdated_after.0);
            self.rows(query, |row| {
                let transport: String = row.try_get("transport")?;
                Ok((Mailbox::new(row.try_get("mailbox")?), TransportId::new(&transport)))
            })
            .await
        })
        .await
    }

    /// The account's live devices with their mailboxes, whichever backend it is on. Those whose secrets the key
    /// file does not open are left out; while that cannot be read, they come without their secrets.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn targets(
        &self,
        account: &Account,
        alive: impl Into<Alive>,
    ) -> Result<Vec<Target>, StoreError> {
        let alive = alive.into();
        let found = self.read(Call::Targets, async {
            let query = sql::query(concat!(
                "select ",
                subscription_columns!(),
                ", ",
                failure_columns!(),
                ", a.backend, s.secrets, s.state, s.registered_at, s.heard_at, s.renews, s.outdated_since, \
                 s.outdated_at, s.pushed_at, m.name as mailbox, wanted.owed_since from account a \
                 join subscription s on s.account = a.id \
                 left join subscription_mailbox wanted on wanted.subscription = s.id \
                 left join mailbox m on m.id = wanted.mailbox \
                 where a.name = $1 and ",
                live!("$2", "$3"),
                " order by lower(s.endpoint), s.app, s.id, m.name"
            ))
            .bind(account.as_str())
            .bind(alive.registered_since.0)
            .bind(alive.outdated_after.0);
            let entries = self.rows(query, |row| Ok((entry(row)?, row.try_get("secrets")?)));
            Ok(targets(entries.await?))
        });
        Ok(self.opened(found.await?))
    }

    /// All subscriptions, in any state, live or not, without secrets, by account: those of the next `accounts` accounts behind
    /// `after`, with the last of these accounts. `None` is the end.
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
            let page = sql::query(page).bind(after).bind(i64::from(accounts));
            let mut page = self.page(page, |row| account(row, "name")).await?;
            let Some(last) = page.pop() else { return Ok(None) };
            let query = sql::query(concat!(
                entries!(),
                "where a.name > $1 and a.name <= $2 \
                 order by a.name, lower(s.endpoint), s.app, s.id, m.name"
            ));
            let query = query.bind(after).bind(last.as_str());
            let targets = self.entries(query).await?;
            Ok(Some((last, targets)))
        })
        .await
    }

    /// All subscriptions of an account, in any state, live or not, without secrets.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn all_targets(&self, account: &Account) -> Result<Vec<Target>, StoreError> {
        self.read(Call::Devices, async {
            let query = sql::query(concat!(
                entries!(),
                "where a.name = $1 order by lower(s.endpoint), s.app, s.id, m.name"
            ));
            self.entries(query.bind(account.as_str())).await
        })
        .await
    }

    /// What a query of `entries!` finds.
    async fn entries(&self, query: Statement<'_>) -> sqlx::Result<Vec<Target>> {
        let targets = targets(self.rows(query, |row| Ok((entry(row)?, None))).await?);
        Ok(targets.into_iter().map(|(target, _)| target).collect())
    }

    /// The accounts with a device that is owed a push, live or not.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn owed_accounts(&self) -> Result<Vec<Account>, StoreError> {
        self.read(Call::Owed, async {
            let query = sql::query(
                "select distinct a.name as account from subscription_mailbox wanted \
                 join subscription s on s.id = wanted.subscription \
                 join account a on a.id = s.account where wanted.owed_since is not null \
                 and s.state = 'active' \
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
        state: state(row)?,
        registered_at: Timestamp(row.try_get("registered_at")?),
        heard_at: Timestamp(row.try_get::<Option<i64>, _>("heard_at")?.unwrap_or(i64::MAX)),
        renews: row.try_get::<i64, _>("renews")? != 0,
        backend: row.try_get("backend")?,
        outdated_since: row.try_get::<Option<i64>, _>("outdated_since")?.map(Timestamp),
        outdated_at: row.try_get::<Option<i64>, _>("outdated_at")?.map(Timestamp),
        pushed_at: row.try_get::<Option<i64>, _>("pushed_at").ok().flatten().map(Timestamp),
        failing: failure(row),
        mailboxes: mailbox.map(|mailbox| (Mailbox::new(mailbox), owed)).into_iter().collect(),
    })
}

/// Subscriptions from an entry for each of their mailboxes, each with its sealed secrets; those of one
/// subscription follow each other.
fn targets(entries: Vec<(Target, Option<String>)>) -> Vec<(Target, Option<String>)> {
    let mut targets: Vec<(Target, Option<String>)> = Vec::new();
    for (entry, sealed) in entries {
        match targets.last_mut() {
            Some((last, _)) if last.subscription == entry.subscription => {
                last.mailboxes.extend(entry.mailboxes);
            }
            _ => targets.push((entry, sealed)),
        }
    }
    targets
}

/// What a batch comes to: one row for each that it changes. Sorted, so that two batches meet their
/// rows in the same order.
#[derive(Default)]
struct Outcome<'a> {
    told: BTreeMap<(&'a str, &'a str), &'a Snapshot>,
    marks: BTreeMap<(NaturalKey<'a>, &'a str), Mark>,
    pushed: BTreeMap<NaturalKey<'a>, Timestamp>,
    failing: BTreeMap<NaturalKey<'a>, (&'a LastingFailure, Timestamp)>,
}

/// Account, transport, hash of the endpoint, app.
type NaturalKey<'a> = (&'a str, &'a str, String, &'a str);

/// What becomes of the mark that a mailbox is owed.
#[derive(Default)]
struct Mark {
    /// A mark from before the batch does not stay.
    cleared: bool,
    /// The time of a mark that the batch sets, unless there is one.
    since: Option<Timestamp>,
}

const MARKS: UpdateFrom<'_> = UpdateFrom {
    table: "subscription_mailbox",
    columns: &["account", "transport", "hash", "app", "mailbox", "cleared", "since"],
    joins: &[
        "account a on a.name = v.account",
        "subscription s on s.account = a.id and s.transport = v.transport \
         and s.endpoint_hash = v.hash and s.app = v.app",
        "mailbox m on m.account = a.id and m.name = v.mailbox",
    ],
    on: "subscription_mailbox.subscription = s.id and subscription_mailbox.mailbox = m.id",
    set: &[(
        "owed_since",
        "case when v.cleared = 1 then v.since \
         else coalesce(subscription_mailbox.owed_since, v.since) end",
    )],
};

const PUSHED: UpdateFrom<'_> = UpdateFrom {
    table: "subscription",
    columns: &["account", "transport", "hash", "app", "pushed_at"],
    joins: &["account a on a.name = v.account"],
    on: "subscription.account = a.id and subscription.transport = v.transport \
         and subscription.endpoint_hash = v.hash and subscription.app = v.app",
    set: &[
        ("pushed_at", "v.pushed_at"),
        ("failing_since", "null"),
        ("failing_kind", "null"),
        ("own_fault", "null"),
    ],
};

const FAILING: UpdateFrom<'_> = UpdateFrom {
    table: "subscription",
    columns: &[
        "account",
        "transport",
        "hash",
        "app",
        "since",
        "kind",
        "own_fault",
        "registered_at",
    ],
    joins: PUSHED.joins,
    on: "subscription.account = a.id and subscription.transport = v.transport \
         and subscription.endpoint_hash = v.hash and subscription.app = v.app \
         and subscription.registered_at <= v.registered_at",
    set: &[
        ("failing_since", "coalesce(subscription.failing_since, v.since)"),
        ("failing_kind", "v.kind"),
        ("own_fault", "v.own_fault"),
    ],
};

const TOLD: UpdateFrom<'_> = UpdateFrom {
    table: "mailbox",
    columns: ACCOUNT_MAILBOX_STATE,
    joins: &["account a on a.name = v.account"],
    on: "mailbox.account = a.id and mailbox.name = v.mailbox",
    set: STATE_OF_V,
};

impl<'a> Outcome<'a> {
    fn of(settlements: &'a [Settlement]) -> Self {
        let mut outcome = Self::default();
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
                Settlement::Failing { subscription, failure, registered_at } => {
                    outcome.failing.insert(key(subscription), (failure, *registered_at));
                }
                Settlement::Accepted { subscription, mailboxes, at } => {
                    outcome.pushed.insert(key(subscription), *at);
                    outcome.failing.remove(&key(subscription));
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
            let mut query = sql::query(work.dialect().update_from(&MARKS, marks.len()));
            for ((subscription, mailbox), mark) in marks {
                query = bind_key(query, subscription)
                    .bind(*mailbox)
                    .bind(i64::from(mark.cleared))
                    .bind(mark.since.map(|since| since.0));
            }
            query.execute_in(work).await?;
        }
        for times in chunks(&self.pushed) {
            let mut query = sql::query(work.dialect().update_from(&PUSHED, times.len()));
            for (subscription, at) in times {
                query = bind_key(query, subscription).bind(at.0);
            }
            query.execute_in(work).await?;
        }
        // One that was accepted and has failed since fails since then.
        for failing in chunks(&self.failing) {
            let mut query = sql::query(work.dialect().update_from(&FAILING, failing.len()));
            for (subscription, (failure, registered_at)) in failing {
                let own_fault = i64::try_from(failure.own_fault.as_millis()).unwrap_or(i64::MAX);
                query = bind_key(query, subscription).bind(failure.since.0);
                query = query.bind(&*failure.kind).bind(own_fault).bind(registered_at.0);
            }
            query.execute_in(work).await?;
        }
        for told in chunks(&self.told) {
            let mut query = sql::query(work.dialect().update_from(&TOLD, told.len()));
            for ((account, mailbox), snapshot) in told {
                query = bind_snapshot(query.bind(*account), mailbox, snapshot);
            }
            query.execute_in(work).await?;
        }
        Ok(())
    }
}

fn key(key: &SubscriptionKey) -> NaturalKey<'_> {
    (key.account.as_str(), key.transport.as_str(), key.endpoint.hash_hex(), &key.app)
}

fn bind_key<'q>(query: Statement<'q>, key: &'q NaturalKey<'_>) -> Statement<'q> {
    let (account, transport, hash, app) = key;
    query.bind(*account).bind(*transport).bind(hash.as_str()).bind(*app)
}

/// What is written by one statement at a time.
fn chunks<K, V>(map: &BTreeMap<K, V>) -> impl Iterator<Item = Vec<(&K, &V)>> {
    let mut entries = map.iter();
    std::iter::from_fn(move || {
        let chunk: Vec<_> = entries.by_ref().take(rows::MOST).collect();
        (!chunk.is_empty()).then_some(chunk)
    })
}
