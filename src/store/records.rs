//! Single rows: finding, locking and removing them, and what their columns say.

use std::time::Duration;

use sqlx::Row;
use sqlx::any::AnyRow;

use super::sql;
use super::sql::statement::Statement;
use super::sql::work::Work;
use crate::model::{
    Account, LastingFailure, PushEndpoint, Snapshot, Subscription, SubscriptionKey,
    SubscriptionState, Timestamp, TransportId,
};

/// That a subscription `s` is live: it counts, is not silent for too long where silence counts
/// (`Target::renews`), and registered since its account got another password.
macro_rules! live {
    ($since:literal, $outdated:literal) => {
        concat!(
            "s.state = 'active' and (s.heard_at is null or s.heard_at >= ",
            $since,
            " or s.renews = 0) and (s.outdated_since is null or s.outdated_at is null \
             or s.outdated_at > ",
            $outdated,
            ")"
        )
    };
}
pub(super) use live;

/// What [`subscription`] reads, of an account `a` and its subscription `s`.
macro_rules! subscription_columns {
    () => {
        "a.name as account, s.transport, s.endpoint_hash, s.endpoint, s.app, s.route, s.options, \
         s.expires_at"
    };
}
pub(super) use subscription_columns;

/// What [`failure`] reads, of a subscription `s`.
macro_rules! failure_columns {
    () => {
        "s.failing_since, s.failing_kind, s.own_fault"
    };
}
pub(super) use failure_columns;

/// How the subscription's pushes fail, if they do. What cannot be read is none.
pub(super) fn failure(row: &AnyRow) -> Option<LastingFailure> {
    let number = |column| row.try_get::<Option<i64>, _>(column).ok().flatten();
    let kind = row.try_get::<Option<String>, _>("failing_kind").ok().flatten();
    Some(LastingFailure {
        since: Timestamp(number("failing_since")?),
        kind: kind.unwrap_or_default().into(),
        own_fault: Duration::from_millis(number("own_fault").unwrap_or_default().unsigned_abs()),
    })
}

/// Makes other transactions that add or remove devices of the account wait for this one.
pub(super) async fn lock(work: &mut Work, account: &str) -> sqlx::Result<()> {
    sql::query("update account set created_at = created_at where name = $1")
        .bind(account)
        .execute_in(work)
        .await
        .map(drop)
}

/// Removes a subscription of an account that is locked.
pub(super) async fn delete(work: &mut Work, id: i64) -> sqlx::Result<()> {
    let query = sql::query("delete from subscription where id = $1").bind(id);
    query.execute_in(work).await.map(drop)
}

/// The subscription's row.
pub(super) async fn id_of(work: &mut Work, key: &SubscriptionKey) -> sqlx::Result<Option<i64>> {
    let row = sql::query(
        "select s.id from subscription s join account a on a.id = s.account where a.name = $1 \
         and s.transport = $2 and s.endpoint_hash = $3 and s.app = $4",
    )
    .bind(key.account.as_str())
    .bind(key.transport.as_str())
    .bind(key.endpoint.hash_hex())
    .bind(&*key.app)
    .fetch_optional_in(work)
    .await?;
    row.map(|row| row.try_get("id")).transpose()
}

/// Has a mailbox take the state of a row `v` of [`super::sql::UpdateFrom`].
pub(super) const STATE_OF_V: &[(&str, &str)] = &[
    ("uid_validity", "v.uid_validity"),
    ("uid_next", "v.uid_next"),
    ("messages", "v.messages"),
    ("unseen", "v.unseen"),
    ("highest_mod_seq", "v.highest_mod_seq"),
];

/// The columns of such a row.
pub(super) const ACCOUNT_MAILBOX_STATE: &[&str] =
    &["account", "mailbox", "uid_validity", "uid_next", "messages", "unseen", "highest_mod_seq"];

/// Binds a mailbox's name and the five columns of its state.
pub(super) fn bind_snapshot<'q>(
    query: Statement<'q>,
    mailbox: &'q str,
    snapshot: &Snapshot,
) -> Statement<'q> {
    // Bit for bit, not saturated: a value that came back smaller would differ from what the backend
    // says at every look, and every look would push.
    let number = |value: Option<u64>| value.map(u64::cast_signed);
    query
        .bind(mailbox)
        .bind(number(snapshot.uid_validity))
        .bind(number(snapshot.uid_next))
        .bind(number(snapshot.messages))
        .bind(number(snapshot.unseen))
        .bind(number(snapshot.highest_mod_seq))
}

pub(super) fn account(row: &AnyRow, column: &str) -> sqlx::Result<Account> {
    // A canonical name is its own canonical form.
    Ok(Account::from_login(row.try_get(column)?))
}

/// The state of a row; what is no state that is known counts.
pub(super) fn state(row: &AnyRow) -> sqlx::Result<SubscriptionState> {
    let pending = row.try_get::<&str, _>("state")? == SubscriptionState::Pending.name();
    Ok(if pending { SubscriptionState::Pending } else { SubscriptionState::Active })
}

/// The subscription of a row with `subscription_columns!`, without its secrets, which the vault opens.
pub(super) fn subscription(row: &AnyRow) -> sqlx::Result<Subscription> {
    let hash = row.try_get("endpoint_hash")?;
    let endpoint = PushEndpoint::from_row(row.try_get("endpoint")?, hash);
    let endpoint = endpoint.ok_or_else(|| sqlx::Error::ColumnDecode {
        index: "\"endpoint_hash\"".to_owned(),
        source: "a value that cannot be".into(),
    })?;
    Ok(Subscription {
        account: account(row, "account")?,
        transport: TransportId::new(row.try_get("transport")?),
        endpoint,
        app: row.try_get::<&str, _>("app")?.into(),
        route: row.try_get::<&str, _>("route")?.into(),
        options: row.try_get::<&str, _>("options")?.into(),
        secrets: None,
        expires_at: row.try_get::<Option<i64>, _>("expires_at")?.map(Timestamp),
    })
}

/// What cannot be read was not told: the next look finds a difference, pushes and writes it anew.
pub(super) fn snapshot(row: &AnyRow) -> Snapshot {
    let number =
        |column: &str| row.try_get::<Option<i64>, _>(column).ok().flatten().map(i64::cast_unsigned);
    Snapshot {
        uid_validity: number("uid_validity"),
        uid_next: number("uid_next"),
        messages: number("messages"),
        unseen: number("unseen"),
        highest_mod_seq: number("highest_mod_seq"),
    }
}
