//! What is read for pushes: what the subscriptions know, which there are, and what is owed to them.

use std::sync::Arc;

use sqlx::Row;
use sqlx::any::AnyRow;

use crate::metrics::Call;
use crate::model::{
    Account, BackendId, LastingFailure, Mailbox, Snapshot, Subscription, SubscriptionState,
    Timestamp, TransportId,
};

use super::due::{DueMailbox, NodeMarks, due_mailbox};
use super::gathering::Gathering;
use super::questions::{Asks, Question};
use super::records::{
    account, failure, failure_columns, live, snapshot, state, subscription, subscription_columns,
};
use super::sql::statement::{Argument, Statement};
use super::sql::{self, SelectBy};
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

/// What [`entry`] reads beside [`subscription_columns!`] and [`failure_columns!`], behind them.
macro_rules! entry_columns {
    () => {
        ", a.backend, s.state, s.registered_at, s.heard_at, s.renews, s.outdated_since, s.outdated_at, \
         s.pushed_at, m.name as mailbox, wanted.owed_since"
    };
}

/// What [`entry`] reads, of each subscription `s` of an account `a`, and each of its mailboxes; conditions follow.
macro_rules! entries {
    () => {
        concat!(
            "select ",
            subscription_columns!(),
            ", ",
            failure_columns!(),
            entry_columns!(),
            " from account a \
             join subscription s on s.account = a.id \
             left join subscription_mailbox wanted on wanted.subscription = s.id \
             left join mailbox m on m.id = wanted.mailbox "
        )
    };
}

/// A mailbox that subscriptions are for, with the state that they know, and what of it is due.
pub(super) type WatchedRow = ((Mailbox, Snapshot), Option<DueMailbox>);

/// Whose mailboxes are asked for, and by which backend.
pub(super) type WatchedQuestion = (Account, BackendId, Alive);

/// Whose subscriptions are asked for.
pub(super) type TargetsQuestion = (Account, Alive);

/// A subscription with one of its mailboxes, if it has any, and its sealed secrets.
pub(super) type TargetRow = (Target, Option<String>);

/// What [`Store::watched_and_due`] asks.
const WATCHED: SelectBy<'_> = SelectBy {
    columns: &["n", "account", "backend", "address", "since", "outdated"],
    select: "distinct v.n, a.name as account, m.name as mailbox, m.uid_validity, m.uid_next, m.messages, \
             m.unseen, m.highest_mod_seq, m.due_since, m.due_marks, m.due_state",
    of: concat!(
        "join account a on a.name = v.account join subscription s on s.account = a.id \
         join subscription_mailbox wanted on wanted.subscription = s.id \
         join mailbox m on m.id = wanted.mailbox \
         where coalesce(a.backend, v.backend) in (v.backend, v.address) and ",
        live!("v.since", "v.outdated"),
        " order by v.n, m.name"
    ),
};

/// What [`Store::targets`] asks.
const TARGETS: SelectBy<'_> = SelectBy {
    columns: &["n", "account", "since", "outdated"],
    select: concat!(
        "v.n, ",
        subscription_columns!(),
        ", ",
        failure_columns!(),
        entry_columns!(),
        ", s.secrets"
    ),
    of: concat!(
        "join account a on a.name = v.account join subscription s on s.account = a.id \
         left join subscription_mailbox wanted on wanted.subscription = s.id \
         left join mailbox m on m.id = wanted.mailbox where ",
        live!("v.since", "v.outdated"),
        " order by v.n, lower(s.endpoint), s.app, s.id, m.name"
    ),
};

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
        let what = (account.clone(), backend.clone(), alive.into());
        let (watched, due): (Vec<_>, Vec<_>) =
            self.ask(Call::Watched, what).await?.into_iter().unzip();
        Ok((watched, due.into_iter().flatten().collect()))
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
        let entries = self.ask(Call::Targets, (account.clone(), alive.into())).await?;
        Ok(self.opened(targets(entries)))
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
}

impl Asks for WatchedQuestion {
    const QUERY: SelectBy<'static> = WATCHED;

    type Row = WatchedRow;

    fn questions(store: &Store) -> &Arc<Gathering<Question<Self>>> {
        &store.asked_watched
    }

    fn arguments(&self) -> impl Iterator<Item = Argument<'_>> {
        let (account, backend, alive) = self;
        let texts = [account.as_str(), backend.as_str(), backend.address()].map(Argument::from);
        texts.into_iter().chain(alive_arguments(*alive))
    }

    fn read(row: &AnyRow) -> sqlx::Result<WatchedRow> {
        let mailbox = Mailbox::new(row.try_get("mailbox")?);
        // What cannot be read of what is due is looked at.
        let due = due_mailbox(row).unwrap_or_else(|_| {
            let marks = NodeMarks { count: 1, ..NodeMarks::default() };
            Some(DueMailbox { mailbox: mailbox.clone(), marks, state: None, shown_flags: false })
        });
        Ok(((mailbox, snapshot(row)), due))
    }
}

impl Asks for TargetsQuestion {
    const QUERY: SelectBy<'static> = TARGETS;

    type Row = TargetRow;

    fn questions(store: &Store) -> &Arc<Gathering<Question<Self>>> {
        &store.asked_targets
    }

    fn arguments(&self) -> impl Iterator<Item = Argument<'_>> {
        let (account, alive) = self;
        std::iter::once(account.as_str().into()).chain(alive_arguments(*alive))
    }

    fn read(row: &AnyRow) -> sqlx::Result<Self::Row> {
        Ok((entry(row)?, row.try_get("secrets")?))
    }
}

fn alive_arguments<'a>(alive: Alive) -> [Argument<'a>; 2] {
    [alive.registered_since.0.into(), alive.outdated_after.0.into()]
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
