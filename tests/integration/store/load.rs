//! What a thousand changes a second cost. The times are printed, the numbers of transactions and
//! statements are checked.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use mailchime::store::{DueMark, LookedAt, NodeMarks};
use sqlx::{Executor, Row};
use tracing::subscriber::DefaultGuard;
use tracing::{Dispatch, Event, Metadata, span};

use super::postgres::KEPT;
use super::*;
use crate::support::{limited, until};

const CHANGES: usize = 1000;

/// Counts what sqlx logs on this thread: one event for each statement.
#[derive(Clone, Default)]
struct Statements(Arc<AtomicUsize>);

impl Statements {
    fn count() -> (Self, (DefaultGuard, Dispatch)) {
        let counter = Self::default();
        let guard = tracing::subscriber::set_default(counter.clone());
        // While there is one subscriber, tracing asks only the thread that comes first to a place
        // whether its events are wanted, and that may be another test's. There are two, then.
        (counter, (guard, Dispatch::new(Self::default())))
    }

    fn take(&self) -> usize {
        self.0.swap(0, Ordering::Relaxed)
    }
}

impl tracing::Subscriber for Statements {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "sqlx::query"
    }
    fn event(&self, _: &Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

async fn filled(store: &Store) {
    // Many at once share a transaction.
    for hundred in 0..CHANGES / 100 {
        let mut registering = tokio::task::JoinSet::new();
        for number in 100 * hundred..100 * (hundred + 1) {
            let store = store.clone();
            registering
                .spawn(async move { register(&store, phone(number), &["INBOX"], 5, 100).await });
        }
        registering.join_all().await;
    }
}

fn account(number: usize) -> Account {
    Account::from_login(&format!("user{number}@example.org"))
}

/// Each account has a phone of its own.
fn phone(number: usize) -> Subscription {
    let token = DeviceToken::new(&format!("{number:064x}")).unwrap();
    Subscription { endpoint: token.endpoint(), ..device(&account(number), 'a') }
}

/// A change of each account, told to its device.
fn batch(uid_next: u64) -> Vec<Settlement> {
    let of = |number| {
        let account = account(number);
        let device = SubscriptionKey::from(&phone(number));
        let mailboxes = vec![Mailbox::inbox()];
        [
            Settlement::Accepted { subscription: device, mailboxes, at: Timestamp(200) },
            Settlement::Told { account, mailbox: Mailbox::inbox(), snapshot: state(uid_next) },
        ]
    };
    (0..CHANGES).flat_map(of).collect()
}

/// Writes the changes; how long that took.
async fn write(store: &Store) -> Duration {
    let began = Instant::now();
    store.settle(&batch(6)).await.unwrap();
    let took = began.elapsed();
    assert_eq!(told(store, &account(CHANGES - 1), "INBOX").await, Some(state(6)));
    took
}

#[tokio::test]
async fn a_second_of_changes_is_one_transaction_of_few_statements() {
    let test = "store::load::a_second_of_changes_is_one_transaction_of_few_statements";
    let Some(database) = postgres::Database::make(test).await else { return };
    limited(async {
        // No pooler stands between, so statements may be kept prepared.
        let store = database.kept().await;
        filled(&store).await;
        let (statements, _guard) = Statements::count();
        store.ping().await.unwrap();
        let of_a_ping = statements.take();
        assert!(of_a_ping >= 1, "statements are counted");
        let took = write(&store).await;
        // Marks, devices and snapshots, 100 rows each; one that begins and asks whether it may write, one to
        // commit, and what is read in the end. A connection that is made in between has its settings made, and one
        // whose transaction was dropped rolls back beside this.
        let counted = statements.take();
        println!("PostgreSQL: {CHANGES} changes: {counted} statements, {took:?}");
        assert!((30..=37).contains(&counted), "{counted}");

        // A registration costs the same for one mailbox as for many.
        let names: Vec<String> = (0..64).map(|number| format!("Folder {number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        register(&store, device(&alice(), 'a'), &names, 5, 100).await;
        let counted = statements.take();
        assert!(counted <= 13, "{counted}");
    })
    .await;
}

/// Of an event it stands alone, on a connection that has answered just before. What a late arrival would harm has a transaction:
/// a begin and a commit are two more.
#[tokio::test]
async fn an_event_a_look_and_a_push_are_written_by_a_statement_each() {
    let test = "store::load::an_event_a_look_and_a_push_are_written_by_a_statement_each";
    let Some(database) = postgres::Database::make(test).await else { return };
    limited(async {
        let (statements, _guard) = Statements::count();
        let store = database.kept().await;
        filled(&store).await;
        until(async || {
            statements.take();
            store.mark_due(&[], &due(100..200), Timestamp(200)).await.unwrap();
            statements.take() == 1
        })
        .await;
        // A connection that is made in between has its settings made.
        until(async || {
            statements.take();
            mark(&store).await;
            statements.take() == 3
        })
        .await;
        until(async || {
            statements.take();
            store.settle(&batch(7)[..2]).await.unwrap();
            statements.take() == 3
        })
        .await;
        assert_eq!(told(&store, &account(0), "INBOX").await, Some(state(7)));
    })
    .await;
}

#[tokio::test]
async fn a_second_of_changes_takes_a_sqlite_file_little_time() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder).await;
        filled(&store).await;
        println!("SQLite: {CHANGES} changes: {:?}", write(&store).await);
    })
    .await;
}

/// Their mailboxes become due, of which other nodes get word.
fn due(accounts: Range<usize>) -> Vec<DueMark> {
    let due = |number| DueMark {
        account: account(number),
        mailbox: Some(Mailbox::inbox()),
        state: None,
        shown_flags: false,
        is_due: true,
        for_another_node: true,
    };
    accounts.map(due).collect()
}

/// A hundred mailboxes that were looked at, and a hundred others that become due.
async fn mark(store: &Store) {
    let looked_at = |number| LookedAt {
        account: account(number),
        mailbox: Mailbox::inbox(),
        marks: NodeMarks::default(),
    };
    let looked_at: Vec<_> = (0..100).map(looked_at).collect();
    store.mark_due(&looked_at, &due(100..200), Timestamp(200)).await.unwrap();
}

/// How often the server has looked into an index. A session that ends says what it has counted.
async fn looks(store: Store, beside: &mut sqlx::PgConnection) -> i64 {
    store.close().await;
    let sessions = "select count(*) from pg_stat_activity \
                    where datname = current_database() and application_name = 'mailchime'";
    until(async || {
        sqlx::query(sessions).fetch_one(&mut *beside).await.unwrap().get::<i64, _>(0) == 0
    })
    .await;
    let looks = "select cast(coalesce(sum(idx_scan), 0) as bigint) from pg_stat_user_tables";
    sqlx::query(looks).fetch_one(beside).await.unwrap().get(0)
}

/// All accounts have a mailbox of this name. As long as the server does not know that, it must not join each of
/// them with each row of a statement.
#[tokio::test]
async fn statements_meet_the_rows_of_their_accounts_where_the_server_has_no_statistics() {
    let test = "store::load::statements_meet_the_rows_of_their_accounts_where_the_server_has_no_statistics";
    let Some(database) = postgres::Database::make(test).await else { return };
    limited(async {
        let mut beside = database.beside().await;
        let store = database.open().await;
        for table in ["account", "mailbox", "subscription", "subscription_mailbox"] {
            let sql = format!("alter table {table} set (autovacuum_enabled = off)");
            beside.execute(sqlx::AssertSqlSafe(sql)).await.unwrap();
        }
        filled(&store).await;
        store.clone().of_node("2".into()).join("b").await.unwrap();
        let mut before = looks(store, &mut beside).await;
        for of_statements in ["", KEPT] {
            let url = format!("{}{of_statements}", database.url).parse().unwrap();
            let store = Store::open(&url, Duration::from_secs(30)).await.unwrap();
            mark(&store).await;
            write(&store).await;
            let after = looks(store, &mut beside).await;
            let (looks, most) = (after - before, 20 * i64::try_from(CHANGES).unwrap());
            println!("PostgreSQL without statistics: {looks} looks into indexes{of_statements}");
            assert!(looks < most, "{looks} looks for {CHANGES} changes with {of_statements:?}");
            before = after;
        }
    })
    .await;
}
