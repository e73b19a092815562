//! Nodes hear by name of which accounts have had events, where the database carries that.

use sqlx::postgres::PgListener;

use super::*;

/// Two nodes that hear of news, and users who have registered: of what is in their rows so far they have heard.
async fn hearing(server: &Postgres) -> (Node, Node) {
    let mut a = Node::start(&opened(&server.url()).await, "a", "incarnation of a", SELDOM);
    a.sees(&["a"]).await;
    let b = Node::start(&opened(&server.url()).await, "b", "incarnation of b", SELDOM);
    assert!(b.store.listen().await.unwrap().is_some(), "b notifies");
    for user in ["user1", "user2"] {
        registers(&b.store, user).await;
        a.hears_of(user).await;
    }
    (a, b)
}

#[tokio::test]
async fn a_node_hears_of_events_by_name_and_drops_the_rows_that_say_no_more() {
    let test = "nodes::names::a_node_hears_of_events_by_name_and_drops_the_rows_that_say_no_more";
    let Some(server) = Postgres::start(test) else { return };
    limited(async {
        let (mut a, b) = hearing(&server).await;
        let named = ["user1", "user2"].map(Account::from_login);
        marks(&b.store, &["user1", "user2"]).await;
        let mut told = BTreeSet::new();
        while told.len() < 2 {
            told.extend(a.hears_of_events().await);
        }
        assert_eq!(told, BTreeSet::from(named));
        // A login is news all the same, and has the node look for it. The row of the other one says no more than the name.
        registers(&b.store, "user2").await;
        registers(&b.store, "user3").await;
        let mut news = Vec::new();
        while news.last().is_none_or(|it: &Invalidation| it.account.as_str() != "user3") {
            news.push(a.hears().await);
        }
        let news: Vec<_> =
            news.iter().map(|it| (it.account.as_str(), it.login, it.event)).collect();
        assert_eq!(news[0], ("user2", true, true), "{news:?}");
        assert!(news[1..].iter().all(|it| *it == ("user3", true, false)), "{news:?}");
        a.stop().await;
        b.stop().await;
    })
    .await;
}

/// It may have taken the row of one that it did not hear of for that of another.
#[tokio::test]
async fn a_node_that_may_not_have_heard_of_events_reads_all_again() {
    let test = "nodes::names::a_node_that_may_not_have_heard_of_events_reads_all_again";
    let Some(server) = Postgres::start(test) else { return };
    limited(async {
        let stop = CancellationToken::new();
        let store = opened(&server.url()).await.of_node("incarnation of a".into());
        let metrics = Arc::default();
        let (membership, mut cluster) =
            Membership::new("a".into(), store, Duration::from_secs(3), metrics);
        let task = tokio::spawn(membership.run(stop.clone()));
        let other = opened(&server.url()).await.of_node("incarnation of b".into());
        registers(&other, "user1").await;
        let mut beside = PgConnection::connect(&server.url()).await.unwrap();
        let listening = "select count(*) from pg_stat_activity where query like 'LISTEN %'";
        until(async || {
            sqlx::query(listening).fetch_one(&mut beside).await.unwrap().get::<i64, _>(0) == 1
        })
        .await;
        // Behind what it reads once more since it has joined.
        let told_from = Instant::now() + Duration::from_secs(30);
        assert!(other.listen().await.unwrap().is_some());
        let reads_again = async |cluster: &mut ClusterView, before: u64| {
            let reads = cluster.assignment.wait_for(|it| it.joined() > before);
            reads.await.unwrap();
        };
        // There are more than can be named.
        let joined = cluster.assignment.borrow().joined();
        beside.execute("notify \"mailchime_events_incarnation of a\", 'more'").await.unwrap();
        reads_again(&mut cluster, joined).await;
        // A connection ends on which it has heard a name.
        let joined = cluster.assignment.borrow().joined();
        let name = "notify \"mailchime_events_incarnation of a\", '[\"user1\"]'";
        beside.execute(name).await.unwrap();
        let named = NodeNews::Events(vec![Account::from_login("user1")]);
        while cluster.news.recv().await.unwrap() != named {}
        assert_eq!(end_listeners(&mut beside).await, 1);
        reads_again(&mut cluster, joined).await;
        assert!(Instant::now() < told_from, "not for that");
        stop.cancel();
        task.await.unwrap();
    })
    .await;
}

/// Any role of the server may listen to what all nodes hear.
#[tokio::test]
async fn what_any_role_can_hear_names_neither_an_account_nor_a_node() {
    let test = "nodes::names::what_any_role_can_hear_names_neither_an_account_nor_a_node";
    let Some(server) = Postgres::start(test) else { return };
    limited(async {
        let mut foreign = PgListener::connect(&server.url()).await.unwrap();
        foreign.listen("mailchime_news").await.unwrap();
        let (mut a, b) = hearing(&server).await;
        marks(&b.store, &["user1"]).await;
        assert_eq!(a.hears_of_events().await, [Account::from_login("user1")]);
        foreign.execute("notify mailchime_news, 'end'").await.unwrap();
        let mut heard = Vec::new();
        while heard.last().is_none_or(|it| it != "end") {
            heard.push(foreign.recv().await.unwrap().payload().to_owned());
        }
        assert!(heard.len() > 2, "trials, and word of news");
        assert!(
            !heard.iter().any(|it| it.contains("user") || it.contains("incarnation")),
            "{heard:?}"
        );
        a.stop().await;
        b.stop().await;
    })
    .await;
}
