//! Nodes that share a database, and what they have to know of each other's changes.

use std::collections::BTreeSet;

use sqlx::{Executor, Row};
use tokio::task::JoinHandle;

use super::*;
use crate::support::limited;

/// The store of a process that has joined.
async fn node(store: &Store, name: &str, incarnation: &str) -> Store {
    let store = store.clone().of_node(incarnation.into());
    store.join(name).await.unwrap();
    store
}

/// The rows, as `name incarnation beats`.
async fn rows(store: &Store) -> Vec<String> {
    let shown = |node: Node| format!("{} {} {}", node.name, node.incarnation, node.heartbeat);
    store.nodes().await.unwrap().into_iter().map(shown).collect()
}

/// What is news to a node; with a `!` where somebody has logged in, and a `?` where an event told of it.
async fn news(store: &Store, name: &str) -> Vec<String> {
    let news = store.take_news(name, 100).await.unwrap();
    let shown = |news: NodeNews| match news {
        NodeNews::Invalidation(Invalidation { account, login, event, .. }) => {
            let (login, event) = (if login { "!" } else { "" }, if event { "?" } else { "" });
            format!("{account}{login}{event}")
        }
        NodeNews::Events(accounts) => panic!("{accounts:?} are in no row"),
        NodeNews::MissedEvents => "events were missed".to_owned(),
    };
    let mut news: Vec<_> = news.into_iter().map(shown).collect();
    news.sort();
    news
}

pub(super) async fn a_node_comes_and_goes(store: Store) {
    assert_eq!(rows(&store).await, [""; 0]);
    let b = node(&store, "b", "1").await;
    let a = node(&store, "a", "2").await;
    b.heartbeat("b").await.unwrap();
    b.heartbeat("b").await.unwrap();
    assert_eq!(rows(&store).await, ["a 2 0", "b 1 2"]);

    // Who has given a sign of life since is not removed.
    let [_, last] = &store.nodes().await.unwrap()[..] else { panic!("two") };
    b.heartbeat("b").await.unwrap();
    assert!(!a.evict(last).await.unwrap());
    let [_, last] = &store.nodes().await.unwrap()[..] else { panic!("two") };
    assert!(a.evict(last).await.unwrap());
    assert!(!a.evict(last).await.unwrap(), "it is gone already");
    b.heartbeat("b").await.unwrap();
    assert_eq!(rows(&store).await, ["a 2 0"], "a beat brings nobody back");
    a.leave("a").await.unwrap();
    assert_eq!(rows(&store).await, [""; 0]);
}

pub(super) async fn a_name_is_taken_over(store: Store) {
    let earlier = node(&store, "a", "1").await;
    earlier.heartbeat("a").await.unwrap();
    let later = node(&store, "a", "2").await;
    earlier.heartbeat("a").await.unwrap();
    assert_eq!(rows(&store).await, ["a 2 0"]);
    earlier.leave("a").await.unwrap();
    later.heartbeat("a").await.unwrap();
    assert_eq!(rows(&store).await, ["a 2 1"]);
    // What one process of the name writes is news to the other.
    register(&earlier, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
    assert_eq!(news(&store, "a").await, ["alice@example.org!"]);
}

pub(super) async fn a_change_is_an_invalidation_for_the_other_nodes(store: Store) {
    let (a, b, c) = (node(&store, "a", "1").await, node(&store, "b", "2").await, &store);
    node(&store, "c", "3").await;
    register(&a, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
    assert_eq!(news(&store, "a").await, [""; 0], "it knows");
    assert_eq!(news(&store, "b").await, ["alice@example.org!"]);
    assert_eq!(news(&store, "b").await, [""; 0], "it was taken");
    // Not taken yet: a login is not forgotten over what comes later.
    register(c, device(&alice(), 'b'), &["INBOX"], 5, 100).await;
    c.remove_subscription(&key(&alice(), 'b'), None).await.unwrap().unwrap();
    assert_eq!(news(&store, "c").await, ["alice@example.org!"]);
    assert_eq!(news(&store, "a").await, ["alice@example.org!"]);
    assert_eq!(news(&store, "b").await, ["alice@example.org!"]);
    // Nor over what came before.
    register(&b, device(&alice(), 'b'), &["INBOX"], 5, 100).await;
    a.remove_subscription(&key(&alice(), 'b'), None).await.unwrap().unwrap();
    register(&a, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
    assert_eq!(news(&store, "b").await, ["alice@example.org!"]);

    // Each change of one kind, as b learns of it.
    a.refused(&alice(), &imap(), 2, Some("no"), Timestamp(1)).await.unwrap();
    assert_eq!(news(&store, "b").await, [""; 0]);
    a.unpark(&alice(), &imap()).await.unwrap();
    assert_eq!(news(&store, "b").await, ["alice@example.org!"]);
    a.unpark(&alice(), &imap()).await.unwrap();
    assert_eq!(news(&store, "b").await, [""; 0], "it was not parked");
    let sealed = sealed("v1.new");
    assert!(
        a.save_credentials(&alice(), by(&imap(), Some(&sealed)), Timestamp::now()).await.unwrap()
    );
    assert!(
        !a.save_credentials(&bob(), by(&imap(), Some(&sealed)), Timestamp::now()).await.unwrap()
    );
    assert_eq!(news(&store, "b").await, ["alice@example.org!"]);
    register(&b, device(&bob(), 'a'), &["INBOX"], 5, 100).await;
    a.expire(Timestamp(200)).await.unwrap();
    assert_eq!(news(&store, "b").await, ["alice@example.org", "bob@example.org"]);
    register(&b, device(&bob(), 'a'), &["INBOX"], 5, 100).await;
    assert!(a.remove_account(&bob()).await.unwrap());
    assert!(!a.remove_account(&bob()).await.unwrap());
    assert_eq!(news(&store, "b").await, ["bob@example.org"]);

    register(&b, device(&bob(), 'a'), &["INBOX"], 5, 100).await;
    let listed = a.subscriptions_of(&bob()).await.unwrap().remove(0);
    assert!(a.remove_by_id(&bob(), listed.id).await.unwrap().is_some());
    assert!(a.remove_by_id(&bob(), listed.id).await.unwrap().is_none());
    assert_eq!(news(&store, "b").await, ["bob@example.org"]);

    // Missed events may be of any account.
    news(&store, "a").await;
    for _ in 0..2 {
        a.tell_missed_events().await.unwrap();
    }
    assert_eq!(news(&store, "a").await, [""; 0]);
    assert_eq!(news(&store, "b").await, ["events were missed"]);

    // As much as is asked for.
    for user in ["u1", "u2", "u3"] {
        register(&a, device(&Account::from_login(user), 'a'), &["INBOX"], 5, 100).await;
    }
    assert_eq!(b.take_news("b", 2).await.unwrap().len(), 2);
    assert_eq!(news(&store, "b").await, ["u3!"]);
}

pub(super) async fn news_goes_with_its_node(store: Store) {
    let a = node(&store, "a", "1").await;
    let b = node(&store, "b", "2").await;
    register(&a, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
    b.leave("b").await.unwrap();
    assert_eq!(news(&store, "b").await, [""; 0]);
    register(&a, device(&alice(), 'b'), &["INBOX"], 5, 100).await;
    let b = node(&store, "b", "3").await;
    assert_eq!(news(&store, "b").await, [""; 0], "it is not there, so it gets no news");
    register(&a, device(&alice(), 'c'), &["INBOX"], 5, 100).await;
    b.join("b").await.unwrap();
    assert_eq!(news(&store, "b").await, [""; 0], "who joins reads everything anyway");
}

pub(super) async fn no_invalidation_is_lost_while_it_is_taken(store: Store) {
    const ROUNDS: i64 = 40;
    let a = node(&store, "a", "1").await;
    let c = node(&store, "c", "3").await;
    node(&store, "b", "2").await;
    let registering = |store: Store, digit| async move {
        for round in 1..=ROUNDS {
            register(&store, device(&alice(), digit), &["INBOX"], 5, round).await;
        }
    };
    let writing =
        [(a, 'a'), (c, 'b')].map(|(store, digit)| tokio::spawn(registering(store, digit)));
    // A node that takes its news reads the accounts they name; after the last news that is all there is.
    let mut last = BTreeSet::new();
    loop {
        let ended = writing.iter().all(JoinHandle::is_finished);
        if !store.take_news("b", 1).await.unwrap().is_empty() {
            let targets = store.targets(&alice(), EVER).await.unwrap();
            last = targets.iter().map(|target| target.registered_at.0).collect();
        } else if ended {
            break;
        }
        tokio::task::yield_now().await;
    }
    for writing in writing {
        writing.await.unwrap();
    }
    assert_eq!(last, BTreeSet::from([ROUNDS]));
}

pub(super) async fn one_account_is_looked_up(store: Store) {
    register(&store, device(&alice(), 'a'), &["INBOX"], 5, 100).await;
    let live = LiveAccount {
        account: alice(),
        backend: Some(imap().as_str().to_owned()),
        parked: None,
        refused: None,
    };
    assert_eq!(store.live_account(&alice(), Timestamp(100)).await.unwrap(), Some(live));
    assert_eq!(store.live_account(&alice(), Timestamp(101)).await.unwrap(), None);
    assert_eq!(store.live_account(&bob(), EVER).await.unwrap(), None);
    store.refused(&alice(), &imap(), 2, Some("no"), Timestamp(1)).await.unwrap();
    let parked = store.live_account(&alice(), EVER).await.unwrap().unwrap().parked;
    assert_eq!(parked.as_deref(), Some("no"));
}

#[tokio::test]
async fn taking_invalidations_waits_for_those_being_written() {
    let test = "store::nodes::taking_invalidations_waits_for_those_being_written";
    let Some(database) = postgres::Database::make(test).await else { return };
    limited(async {
        let (a, b) = (database.open().await, database.open().await);
        let a = node(&a, "a", "1").await;
        let b = node(&b, "b", "2").await;
        register(&a, device(&alice(), 'a'), &["INBOX"], 5, 1).await;
        // From now on a registration stops at its commit while the lock is held.
        let mut beside = database.beside().await;
        beside
            .execute(
                "select pg_advisory_lock(1); \
                 create function hold() returns trigger language plpgsql as $$ begin \
                 perform pg_advisory_xact_lock_shared(1); return null; end $$; \
                 create constraint trigger hold after update on subscription deferrable \
                 initially deferred for each row execute function hold()",
            )
            .await
            .unwrap();
        let writing = tokio::spawn(async move {
            register(&a, device(&alice(), 'a'), &["INBOX"], 5, 2).await;
        });
        let mut waiting = async |most: i64, done: &dyn Fn() -> bool| {
            let count = "select count(*) as count from pg_stat_activity \
                         where wait_event_type = 'Lock' and datname = current_database()";
            while !done() {
                let row = sqlx::query(count).fetch_one(&mut beside).await.unwrap();
                if row.get::<i64, _>("count") == most {
                    return;
                }
            }
        };
        waiting(1, &|| false).await;
        let taking = tokio::spawn(async move {
            assert_eq!(news(&b, "b").await, ["alice@example.org!"]);
            let seen = only_target(&b, &alice()).await.registered_at;
            (seen, news(&b, "b").await.len())
        });
        waiting(2, &|| taking.is_finished()).await;
        beside.execute("select pg_advisory_unlock(1)").await.unwrap();
        writing.await.unwrap();
        assert_eq!(taking.await.unwrap(), (Timestamp(2), 0));
    })
    .await;
}
