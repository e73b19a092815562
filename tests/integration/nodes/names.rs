//! Nodes hear by name of which accounts have had events, where the database carries that.

use std::collections::BTreeMap;

use sqlx::postgres::PgListener;

use super::*;

/// Two nodes that hear of news, and users who have registered: of what is in their rows so far they have heard.
async fn hearing(url: &str) -> (Node, Node) {
    let mut a = Node::start(&opened(url).await, "a", "incarnation of a", SELDOM);
    a.sees(&["a"]).await;
    let b = Node::start(&opened(url).await, "b", "incarnation of b", SELDOM);
    is_heard_by_name(&b, &mut a).await;
    for user in ["user1", "user2"] {
        registers(&b.store, user).await;
        a.hears_of(user).await;
    }
    (a, b)
}

#[tokio::test]
async fn a_node_hears_of_events_by_name_and_their_rows_say_that_they_were_named() {
    names_and_rows(
        "nodes::names::a_node_hears_of_events_by_name_and_their_rows_say_that_they_were_named",
        "",
    )
    .await;
}

/// One statement notifies then, without a transaction.
#[tokio::test]
async fn it_does_where_sessions_keep_their_statements() {
    names_and_rows("nodes::names::it_does_where_sessions_keep_their_statements", KEPT).await;
}

async fn names_and_rows(test: &str, sessions: &str) {
    let Some(server) = Postgres::start(test) else { return };
    limited(async {
        let (mut a, b) = hearing(&format!("{}{sessions}", server.url())).await;
        marks(&b.store, &["user1", "user2"]).await;
        let mut heard = Heard::default();
        while heard.told.len() < 2 {
            heard.takes(a.cluster.news.recv().await.unwrap());
        }
        assert_eq!(heard.told, BTreeSet::from(["user1", "user2"].map(Account::from_login)));
        // What else happens is no less news for that, and has the node look for all of it.
        registers(&b.store, "user2").await;
        while heard.shown.len() < 2 || !heard.has_logged_in {
            heard.takes(a.cluster.news.recv().await.unwrap());
        }
        let shown = heard.shown;
        let shown: Vec<_> = shown.iter().map(|(account, news)| (account.as_str(), *news)).collect();
        assert_eq!(shown, [("user1", (false, true, true)), ("user2", (true, true, false))]);
        a.stop().await;
        b.stop().await;
    })
    .await;
}

/// What a node hears of users but that of the trial.
#[derive(Default)]
struct Heard {
    /// By name.
    told: BTreeSet<Account>,
    /// By rows: each with a login, with an event, and with nothing that no name has told.
    shown: BTreeMap<Account, (bool, bool, bool)>,
    has_logged_in: bool,
}

impl Heard {
    /// A row may come before the name, and more than one of an account.
    fn takes(&mut self, news: NodeNews) {
        if let NodeNews::Invalidation(Invalidation { account, login, event, named }) = &news {
            if account.as_str() != TRIAL {
                self.has_logged_in |= login;
                let before = self.shown.entry(account.clone()).or_insert((false, false, true));
                *before = (before.0 | login, before.1 | event, before.2 & named);
            }
        } else {
            self.told.extend(named(news).unwrap_or_default());
        }
    }
}

/// Any role of the server may listen to what all nodes hear.
#[tokio::test]
async fn what_any_role_can_hear_names_neither_an_account_nor_a_node() {
    let test = "nodes::names::what_any_role_can_hear_names_neither_an_account_nor_a_node";
    let Some(server) = Postgres::start(test) else { return };
    limited(async {
        let mut foreign = PgListener::connect(&server.url()).await.unwrap();
        foreign.listen("mailchime_news").await.unwrap();
        let (mut a, b) = hearing(&server.url()).await;
        marks(&b.store, &["user1"]).await;
        assert_eq!(a.hears_of_events().await, [Account::from_login("user1")]);
        // Nor does the last statement of a session, which some roles may see.
        let shown = "select count(*) from pg_stat_activity where query like '%incarnation of %'";
        let shown: i64 = sqlx::query_scalar(shown).fetch_one(&mut foreign).await.unwrap();
        assert_eq!(shown, 1, "that of the question");
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
