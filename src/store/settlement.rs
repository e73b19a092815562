//! What became of changes, written in batches: what the subscriptions know, what is owed to them, and how their
//! pushes go (DESIGN.md, promise 2).

use std::collections::BTreeMap;

use crate::metrics::Call;
use crate::model::{Account, LastingFailure, Mailbox, Snapshot, SubscriptionKey, Timestamp};

use super::records::{ACCOUNT_MAILBOX_STATE, STATE_OF_V, bind_snapshot};
use super::sql::statement::Statement;
use super::sql::work::Work;
use super::sql::{self, TableChange, UpdateFrom};
use super::{Store, StoreError};

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

// === impl Store ===

impl Store {
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
    account: "account",
    joins: &[
        "subscription s on s.account = v.a_id and s.transport = v.transport \
         and s.endpoint_hash = v.hash and s.app = v.app",
        "mailbox m on m.account = v.a_id and m.name = v.mailbox",
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
    account: "account",
    joins: &[],
    on: "subscription.account = v.a_id and subscription.transport = v.transport \
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
    account: "account",
    joins: &[],
    on: "subscription.account = v.a_id and subscription.transport = v.transport \
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
    account: "account",
    joins: &[],
    on: "mailbox.account = v.a_id and mailbox.name = v.mailbox",
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

    /// One statement for what accepted pushes come to, which spares trips to a server. `None` where pushes fail as well, as no
    /// row may change twice; where there is too much or nothing of something; and where the database has no such statement.
    fn at_once(&self, work: &Work) -> Option<Statement<'_>> {
        let counts = [self.pushed.len(), self.marks.len(), self.told.len()];
        let fits = counts.iter().all(|count| (1..=sql::MOST_ROWS).contains(count));
        if !fits || !self.failing.is_empty() {
            return None;
        }
        let changes = [&PUSHED, &MARKS, &TOLD].map(TableChange::Update);
        let query = sql::together(work, &changes, None, counts.into_iter().max()?)?;
        let query = self.pushed.iter().fold(query, bind_pushed).then(MARKS.columns);
        let query = self.marks.iter().fold(query, bind_mark).then(TOLD.columns);
        Some(self.told.iter().fold(query, bind_told))
    }

    /// Rows that are not there stay so: a mailbox that nobody is registered for has none, and a late
    /// word about it cannot bring one back.
    async fn write(&self, work: &mut Work) -> sqlx::Result<()> {
        if let Some(query) = self.at_once(work) {
            return query.execute_in(work).await.map(drop);
        }
        for times in chunks(&self.pushed) {
            let query = sql::update_from(work, &PUSHED, times.len());
            times.into_iter().fold(query, bind_pushed).execute_in(work).await?;
        }
        // One that was accepted and has failed since fails since then.
        for failing in chunks(&self.failing) {
            let mut query = sql::update_from(work, &FAILING, failing.len());
            for (subscription, (failure, registered_at)) in failing {
                let own_fault = i64::try_from(failure.own_fault.as_millis()).unwrap_or(i64::MAX);
                query = bind_key(query, subscription).bind(failure.since.0);
                query = query.bind(&*failure.kind).bind(own_fault).bind(registered_at.0);
            }
            query.execute_in(work).await?;
        }
        for marks in chunks(&self.marks) {
            let query = sql::update_from(work, &MARKS, marks.len());
            marks.into_iter().fold(query, bind_mark).execute_in(work).await?;
        }
        for told in chunks(&self.told) {
            let query = sql::update_from(work, &TOLD, told.len());
            told.into_iter().fold(query, bind_told).execute_in(work).await?;
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

/// A row of [`MARKS`].
fn bind_mark<'q>(
    query: Statement<'q>,
    ((subscription, mailbox), mark): (&'q (NaturalKey<'_>, &str), &Mark),
) -> Statement<'q> {
    let query = bind_key(query, subscription).bind(*mailbox).bind(i64::from(mark.cleared));
    query.bind(mark.since.map(|since| since.0))
}

/// A row of [`PUSHED`].
fn bind_pushed<'q>(
    query: Statement<'q>,
    (subscription, at): (&'q NaturalKey<'_>, &Timestamp),
) -> Statement<'q> {
    bind_key(query, subscription).bind(at.0)
}

/// A row of [`TOLD`].
fn bind_told<'q>(
    query: Statement<'q>,
    ((account, mailbox), snapshot): (&'q (&str, &str), &&Snapshot),
) -> Statement<'q> {
    bind_snapshot(query.bind(*account), mailbox, snapshot)
}

/// What is written by one statement at a time.
fn chunks<K, V>(map: &BTreeMap<K, V>) -> impl Iterator<Item = Vec<(&K, &V)>> {
    let mut entries = map.iter();
    std::iter::from_fn(move || {
        let chunk: Vec<_> = entries.by_ref().take(sql::MOST_ROWS).collect();
        (!chunk.is_empty()).then_some(chunk)
    })
}
