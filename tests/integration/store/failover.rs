//! A PostgreSQL that fails over behind one address: the server that was the primary is alive,
//! read-only, and keeps its connections.

use std::time::Instant;

use mailchime::store::DueMark;
use sqlx::{Connection, Executor, PgConnection, Row};

use super::postgres::KEPT;
use super::*;
use crate::support::servers::forwarder::Forwarder;
use crate::support::servers::postgres::Postgres;
use crate::support::{limited, until};

const BUSY: Duration = Duration::from_secs(15);

async fn beside(server: &Postgres) -> PgConnection {
    PgConnection::connect(&server.url()).await.unwrap()
}

/// Has each connection of the store in use at once, so that both of its pools are full.
async fn busy(store: &Store) {
    let calls = (0..8).map(|number| {
        let (reading, writing) = (store.clone(), store.clone());
        let account = Account::from_login(&format!("user{number}@example.org"));
        async move {
            tokio::join!(
                async { reading.targets(&account, EVER).await.map(drop).unwrap() },
                async { writing.remove_account(&account).await.map(drop).unwrap() },
            )
        }
    });
    let calls: Vec<_> = calls.map(tokio::spawn).collect();
    for call in calls {
        call.await.unwrap();
    }
}

/// Waits until the standby has all that the primary has written.
async fn caught_up(primary: &mut PgConnection, standby: &mut PgConnection) {
    let written: String =
        sqlx::query("select pg_current_wal_lsn()::text").fetch_one(primary).await.unwrap().get(0);
    let replayed = "select coalesce(pg_last_wal_replay_lsn() >= $1::pg_lsn, false)";
    until(async || {
        sqlx::query(replayed)
            .bind(&written)
            .fetch_one(&mut *standby)
            .await
            .unwrap()
            .get::<bool, _>(0)
    })
    .await;
}

/// Lets nobody write to the server any more; sessions that there are stay, and are read-only too.
async fn fence(primary: &mut PgConnection) {
    primary.execute("alter system set default_transaction_read_only = on").await.unwrap();
    primary.execute("select pg_reload_conf()").await.unwrap();
    let shown = "select setting from pg_settings where name = 'default_transaction_read_only'";
    until(async || {
        sqlx::query(shown).fetch_one(&mut *primary).await.unwrap().get::<String, _>(0) == "on"
    })
    .await;
}

/// How many connections of mailchime the server has.
async fn connections(server: &mut PgConnection) -> i64 {
    let count = "select count(*) from pg_stat_activity where application_name = 'mailchime'";
    sqlx::query(count).fetch_one(server).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_switchover_behind_one_address_nothing_stays_at_the_old_server() {
    let test =
        "store::failover::after_a_switchover_behind_one_address_nothing_stays_at_the_old_server";
    switched_over(test, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_switchover_nothing_stays_at_the_old_server_where_statements_are_kept() {
    let test = "store::failover::after_a_switchover_nothing_stays_at_the_old_server_where_statements_are_kept";
    switched_over(test, KEPT).await;
}

async fn switched_over(test: &str, of_statements: &str) {
    let Some(primary) = Postgres::start(test) else { return };
    limited(async {
        let standby = primary.standby();
        let address = Forwarder::start(primary.address).await;
        let url = address.url(&primary.url(), primary.address) + of_statements;
        let store = Store::open(&url.parse().unwrap(), BUSY).await.unwrap().of_node("one".into());
        store.join("one").await.unwrap();
        register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
        busy(&store).await;
        let pushed = [
            Settlement::Accepted {
                subscription: key(&alice(), 'a'),
                mailboxes: vec![Mailbox::inbox()],
                at: Timestamp(150),
            },
            Settlement::Told { account: alice(), mailbox: Mailbox::inbox(), snapshot: state(6) },
        ];
        let (mut old, mut new) = (beside(&primary).await, beside(&standby).await);
        assert!(connections(&mut old).await >= 4);
        caught_up(&mut old, &mut new).await;
        store.settle(&pushed).await.unwrap();
        fence(&mut old).await;
        standby.promote();

        // The address has not moved yet. What is read there may be out of date, and is not read.
        let registration = registration(device(&bob(), 'b'), &["INBOX"], 5);
        for refused in [
            store.settle(&pushed).await,
            store.register(&registration, by(&imap(), None), 10, EVER).await.map(drop),
            store.targets(&alice(), EVER).await.map(drop),
            store.take_news("one", 10).await.map(drop),
            store.settle(&pushed).await,
            store.ping().await,
        ] {
            let refused = refused.unwrap_err();
            assert!(refused.is_temporary(), "{refused:?}");
            assert!(refused.to_string().contains("read-only"), "{refused:?}");
        }

        address.move_to(standby.address);
        store.settle(&pushed).await.unwrap();
        store.register(&registration, by(&imap(), None), 10, Timestamp(200)).await.unwrap();
        store.ping().await.unwrap();
        only_target(&store, &alice()).await;
        busy(&store).await;
        // News that another node writes there arrives.
        let other =
            Store::open(&standby.url().parse().unwrap(), BUSY).await.unwrap().of_node("two".into());
        register(&other, device(&bob(), 'c'), &["INBOX"], 5, 300).await;
        let news = store.take_news("one", 10).await.unwrap();
        let registered = Invalidation { account: bob(), login: true, event: false, named: false };
        assert!(news.contains(&NodeNews::Invalidation(registered)), "{news:?}");
        until(async || connections(&mut old).await == 0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_no_database_until_it_is_promoted() {
    let test = "store::failover::a_standby_is_no_database_until_it_is_promoted";
    let Some(primary) = Postgres::start(test) else { return };
    limited(async {
        let at_primary = Store::open(&primary.url().parse().unwrap(), BUSY).await.unwrap();
        register(&at_primary, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
        let standby = primary.standby();
        caught_up(&mut beside(&primary).await, &mut beside(&standby).await).await;
        // The program starts, and waits for it.
        let store = Store::open(&standby.url().parse().unwrap(), BUSY).await.unwrap();
        for refused in [store.ping().await, store.targets(&alice(), EVER).await.map(drop)] {
            let refused = refused.unwrap_err();
            assert!(refused.is_temporary(), "{refused:?}");
            assert!(refused.to_string().contains("read-only"), "{refused:?}");
        }
        standby.promote();
        store.ping().await.unwrap();
        only_target(&store, &alice()).await;
        register(&store, device(&bob(), 'b'), &["INBOX"], 5, 100).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_server_that_says_nothing_any_more_costs_one_call_its_time() {
    let test = "store::failover::an_old_server_that_says_nothing_any_more_costs_one_call_its_time";
    fell_silent(test, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_server_that_says_nothing_costs_one_call_its_time_where_statements_are_kept() {
    let test = "store::failover::an_old_server_that_says_nothing_costs_one_call_its_time_where_statements_are_kept";
    fell_silent(test, KEPT).await;
}

async fn fell_silent(test: &str, of_statements: &str) {
    let Some(primary) = Postgres::start(test) else { return };
    limited(async {
        let standby = primary.standby();
        let address = Forwarder::start(primary.address).await;
        let url = address.url(&primary.url(), primary.address) + of_statements;
        let store = Store::open(&url.parse().unwrap(), BUSY).await.unwrap();
        register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
        busy(&store).await;
        caught_up(&mut beside(&primary).await, &mut beside(&standby).await).await;
        standby.promote();
        let mark = DueMark {
            account: alice(),
            mailbox: Some(Mailbox::inbox()),
            state: None,
            shown_flags: false,
            is_due: true,
            for_another_node: true,
        };
        store.mark_due(&[], std::slice::from_ref(&mark), Timestamp(150)).await.unwrap();
        // The machine is gone: its connections are, and nobody says so.
        address.freeze();
        address.move_to(standby.address);
        address.thaw();
        if of_statements == KEPT {
            // A statement that stands alone finds it out as well.
            assert_eq!(store.mark_due(&[], &[mark], Timestamp(160)).await.unwrap(), [true]);
            only_target(&store, &alice()).await;
        }
        register(&store, device(&bob(), 'b'), &["INBOX"], 5, 200).await;
        let began = Instant::now();
        only_target(&store, &alice()).await;
        busy(&store).await;
        let took = began.elapsed();
        assert!(took < BUSY, "each connection costs a call its time: {took:?}");
    })
    .await;
}
