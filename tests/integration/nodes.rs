//! Nodes on one database see each other come, go and die.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mailchime::imap::registration::xapple::{DeviceToken, XAppleRegistration};
use mailchime::metrics::Metrics;
use mailchime::model::{Account, Mailbox, Registration, Snapshot, Timestamp};
use mailchime::nodes::{Assignment, ClusterView, Membership};
use mailchime::store::{DueMark, Invalidation, NodeNews, Store};
use prometheus_client::registry::Registry;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};
use tempfile::TempDir;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::support::log::Log;
use crate::support::pushing::register;
use crate::support::servers::DatabaseServer;
use crate::support::servers::mariadb::MariaDb;
use crate::support::servers::pgbouncer::{IGNORES, PgBouncer};
use crate::support::servers::postgres::Postgres;
use crate::support::{limited, until};

mod names;

/// A database that nodes share. In an SQLite file they share it as one process does.
struct NodesWorld {
    store: Store,
    _folder: TempDir,
}

struct Node {
    store: Store,
    cluster: ClusterView,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl NodesWorld {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("mailchime.db").display());
        let store = Store::open(&url.parse().unwrap(), Duration::from_secs(5)).await.unwrap();
        Self { store, _folder: folder }
    }

    /// Finds others dead after 300 ms.
    async fn node(&self, name: &str, incarnation: &str) -> Node {
        Node::start(&self.store, name, incarnation, Duration::from_millis(300))
    }
}

/// Sessions of such a URL keep their statements prepared.
const KEPT: &str = "?statement-cache-capacity=100";

/// Tries to listen, of which one in some dozens meets sessions in turn as if they were its own.
const TRIES: usize = 100;

/// So long a node takes to look for news by itself that a test ends before it does.
const SELDOM: Duration = Duration::from_hours(10);

/// What opens a database on a server.
async fn opened(url: &str) -> Store {
    Store::open(&url.parse().unwrap(), Duration::from_secs(30)).await.unwrap()
}

impl Node {
    fn start(store: &Store, name: &str, incarnation: &str, takeover: Duration) -> Self {
        let store = store.clone().of_node(incarnation.into());
        let (membership, cluster) =
            Membership::new(name.into(), store.clone(), takeover, Arc::default());
        let stop = CancellationToken::new();
        let task = tokio::spawn(membership.run(stop.clone()));
        Self { store, cluster, stop, task }
    }

    /// Takes news until that of this user.
    async fn hears_of(&mut self, user: &str) {
        while self.hears().await.account.as_str() != user {}
    }

    /// The next account that another process has changed.
    async fn hears(&mut self) -> Invalidation {
        loop {
            match self.cluster.news.recv().await.unwrap() {
                NodeNews::Invalidation(news) => return news,
                NodeNews::Events(_) => {}
                NodeNews::MissedEvents => panic!("no events were missed"),
            }
        }
    }

    /// The next accounts with events that another process names.
    async fn hears_of_events(&mut self) -> Vec<Account> {
        loop {
            if let Some(accounts) = named(self.cluster.news.recv().await.unwrap()) {
                return accounts;
            }
        }
    }

    /// Waits until the assignment is such.
    async fn until(&mut self, reached: impl FnMut(&Assignment) -> bool) -> Assignment {
        self.cluster.assignment.wait_for(reached).await.unwrap().clone()
    }

    async fn sees(&mut self, nodes: &[&str]) -> Assignment {
        self.until(|assignment| assignment.nodes().eq(nodes.iter().copied())).await
    }

    /// As SIGKILL does.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// A user whose events come before those that a test is about.
const TRIAL: &str = "user0";

/// The accounts that an event names, but the user of the trial.
fn named(news: NodeNews) -> Option<Vec<Account>> {
    let NodeNews::Events(mut accounts) = news else { return None };
    accounts.retain(|account| account.as_str() != TRIAL);
    (!accounts.is_empty()).then_some(accounts)
}

/// Returns when `hearing` hears by name of what `marking` marks. Before that there are rows alone.
async fn is_heard_by_name(marking: &Node, hearing: &mut Node) {
    registers(&marking.store, TRIAL).await;
    until(async || {
        marks(&marking.store, &[TRIAL]).await;
        let mut is_heard = false;
        while let Ok(news) = hearing.cluster.news.try_recv() {
            is_heard |= matches!(news, NodeNews::Events(_));
        }
        is_heard
    })
    .await;
}

/// A device of this user registers.
async fn registers(store: &Store, user: &str) {
    let device = XAppleRegistration {
        version: 2,
        account_id: "0715A26B-CA09-4730-A419-793000CA982E".into(),
        token: DeviceToken::new(&format!("{:0>64}", hex(user))).unwrap(),
        subtopic: "com.apple.mobilemail".into(),
        mailboxes: Vec::new(),
    }
    .subscription(Account::from_login(user), "com.apple.mail.XServer.1");
    let mailboxes = vec![(Mailbox::new("INBOX"), Snapshot::default())];
    let registration = Registration { subscription: device, mailboxes };
    register(store, &registration, Timestamp::now()).await;
}

/// Mailboxes of these users are due, by word of this node.
async fn marks(store: &Store, users: &[&str]) {
    let mark = |user: &&str| DueMark {
        account: Account::from_login(user),
        mailbox: Some(Mailbox::inbox()),
        state: None,
        shown_flags: false,
        is_due: true,
        for_another_node: true,
    };
    let marks: Vec<_> = users.iter().map(mark).collect();
    let known = store.mark_due(&[], &marks, Timestamp::now()).await.unwrap();
    assert!(known.iter().all(|known| *known), "all are registered");
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// Whose the accounts are, by the assignment of each node: each must be of one.
fn shares(assignments: &[&Assignment]) -> Vec<usize> {
    let accounts = (0..3000).map(|number| Account::from_login(&format!("user{number}")));
    let mut shares = vec![0; assignments.len()];
    for account in accounts {
        let owners: Vec<_> =
            (0..assignments.len()).filter(|at| assignments[*at].is_mine(&account)).collect();
        assert_eq!(owners.len(), 1, "{account} is watched by {owners:?}");
        shares[owners[0]] += 1;
    }
    shares
}

#[tokio::test]
async fn nodes_that_join_or_leave_are_seen_and_the_accounts_are_divided_anew() {
    limited(async {
        let world = NodesWorld::new().await;
        let mut a = world.node("a", "1").await;
        assert_eq!(shares(&[&a.sees(&["a"]).await]), [3000]);
        let mut b = world.node("b", "2").await;
        let mut c = world.node("c", "3").await;
        let all = ["a", "b", "c"];
        let assignments = [a.sees(&all).await, b.sees(&all).await, c.sees(&all).await];
        let even = shares(&assignments.each_ref());
        assert!(even.iter().all(|share| (900..1100).contains(share)), "{even:?}");

        // Killed: it takes a while. Stopped: its row goes with it.
        b.kill().await;
        shares(&[&a.sees(&["a", "c"]).await, &c.sees(&["a", "c"]).await]);
        c.stop().await;
        assert_eq!(a.store.nodes().await.unwrap().len(), 1);
        assert_eq!(shares(&[&a.sees(&["a"]).await]), [3000]);
    })
    .await;
}

#[tokio::test]
async fn a_name_that_two_have_is_of_the_later_until_that_one_dies() {
    limited(async {
        let world = NodesWorld::new().await;
        let mut earlier = world.node("a", "1").await;
        earlier.until(|assignment| assignment.is_mine(&Account::from_login("alice"))).await;
        let mut later = world.node("a", "2").await;
        let alice = Account::from_login("alice");
        later.until(|assignment| assignment.is_mine(&alice)).await;
        let displaced = earlier.until(|assignment| !assignment.is_mine(&alice)).await;
        assert_eq!(displaced.owner(&alice), Some("a"));
        later.kill().await;
        earlier.until(|assignment| assignment.is_mine(&alice)).await;
    })
    .await;
}

#[tokio::test]
async fn a_node_taken_for_dead_comes_back_and_reads_everything_again() {
    limited(async {
        let world = NodesWorld::new().await;
        let mut a = world.node("a", "1").await;
        let before = a.sees(&["a"]).await.joined();
        // As another node does that has not seen it beat for long.
        a.store.leave("a").await.unwrap();
        let back = a.until(|assignment| assignment.joined() > before).await;
        assert!(back.is_mine(&Account::from_login("alice")), "it has watched all the while");
        // And again when whatever began while it was away has ended.
        a.until(|assignment| assignment.joined() > back.joined()).await;
    })
    .await;
}

#[tokio::test]
async fn a_change_by_another_session_is_announced() {
    limited(async {
        let world = NodesWorld::new().await;
        let mut a = world.node("a", "1").await;
        a.sees(&["a"]).await;
        // More than is taken at a time.
        let other = world.store.clone();
        let users: BTreeSet<_> =
            (0..300).map(|number| Account::from_login(&format!("user{number}"))).collect();
        for account in &users {
            registers(&other, account.as_str()).await;
        }
        let mut told = BTreeSet::new();
        while told != users {
            let Invalidation { account, login, .. } = a.hears().await;
            assert!(login);
            told.insert(account);
        }
        a.stop().await;
    })
    .await;
}

/// News for which there is no room is not asked for.
#[tokio::test]
async fn a_database_that_stays_away_is_said_once_although_no_news_is_asked_for() {
    let log = Log::default();
    let _logged = tracing::subscriber::set_default(log.subscriber(tracing::Level::INFO));
    limited(async {
        let world = NodesWorld::new().await;
        let mut a = world.node("a", "1").await;
        a.sees(&["a"]).await;
        let room = a.cluster.news.max_capacity();
        for number in 0..=room {
            registers(&world.store, &format!("user{number}")).await;
        }
        until(async || a.cluster.news.len() == room).await;
        world.store.close().await;
        until(async || log.count("cluster state unreadable") > 0).await;
        // Many turns, and many looks for news between them.
        tokio::time::pause();
        tokio::time::sleep(Duration::from_secs(5)).await;
        tokio::time::resume();
        assert_eq!(log.count("cluster state unreadable"), 1, "{}", log.text());
        assert_eq!(log.count("cluster state readable again"), 0, "{}", log.text());
        a.kill().await;
    })
    .await;
}

/// The value of this line of `mailchime_database_seconds`.
fn value(metrics: &Metrics, registry: &Registry, line: &str) -> f64 {
    let (text, line) = (metrics.text(registry), format!("mailchime_database_seconds_{line} "));
    text.lines().find_map(|it| it.strip_prefix(&line)).unwrap().parse().unwrap()
}

/// Ends the connections on which nodes hear of news; how many there were.
async fn end_listeners(beside: &mut PgConnection) -> i64 {
    let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
               where query = 'select pg_backend_pid()' and state = 'idle'";
    sqlx::query(end).fetch_one(beside).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_tells_a_node_of_news_at_once() {
    let test = "nodes::postgresql_tells_a_node_of_news_at_once";
    let Some(server) = Postgres::start(test) else { return };
    limited(async {
        let mut a = Node::start(&opened(&server.url()).await, "a", "1", SELDOM);
        a.sees(&["a"]).await;
        let mut b = Node::start(&opened(&server.url()).await, "b", "2", SELDOM);
        b.sees(&["a", "b"]).await;
        let mut beside = PgConnection::connect(&server.url()).await.unwrap();
        // What a node writes before it notifies the others find when it does.
        for user in ["user1", "user2"] {
            registers(&b.store, user).await;
            a.hears_of(user).await;
        }
        // An event of a mail server.
        is_heard_by_name(&a, &mut b).await;
        marks(&a.store, &["user1"]).await;
        assert_eq!(b.hears_of_events().await, [Account::from_login("user1")]);

        // A connection that is lost is made anew, and what came meanwhile is found then.
        for user in ["user3", "user4", "user5"] {
            until(async || end_listeners(&mut beside).await > 0).await;
            registers(&b.store, user).await;
            a.hears_of(user).await;
        }
        a.stop().await;
        b.stop().await;
    })
    .await;
}

/// Each look for news is a transaction that writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn news_that_comes_often_is_looked_for_seldom() {
    let test = "nodes::news_that_comes_often_is_looked_for_seldom";
    let Some(server) = Postgres::start(test) else { return };
    limited(async {
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::new(&mut registry));
        let looks = || value(&metrics, &registry, "count{call=\"news\"}");
        let store = opened(&server.url()).await.counting(Arc::clone(&metrics));
        let mut a = Node::start(&store, "a", "1", SELDOM);
        a.sees(&["a"]).await;
        let b = Node::start(&opened(&server.url()).await, "b", "2", SELDOM);
        registers(&b.store, "user1").await;
        a.hears_of("user1").await;
        let mut beside = PgConnection::connect(&server.url()).await.unwrap();
        let (before, began) = (looks(), Instant::now());
        for number in 0..200 {
            let word = format!("notify mailchime_news, '{number}'");
            sqlx::raw_sql(AssertSqlSafe(word)).execute(&mut beside).await.unwrap();
        }
        registers(&b.store, "user2").await;
        a.hears_of("user2").await;
        // One may have begun before, and one begins at once.
        let most = began.elapsed().as_secs_f64() / 0.002 + 2.0;
        let looked = looks() - before;
        assert!(looked <= most, "{looked}, and {most} at most");
        a.stop().await;
        b.stop().await;
    })
    .await;
}

/// A program that notifies and does not end, in this database: it waits for a standby that is not there, with the lock
/// that a server has once for all that notify. Others wait for no standby.
struct StuckNotifier {
    beside: PgConnection,
    task: JoinHandle<()>,
}

impl StuckNotifier {
    /// Before mailchime connects.
    async fn prepare(url: &str) -> PgConnection {
        let mut beside = PgConnection::connect(url).await.unwrap();
        let alone = "set synchronous_commit = local; create table written (number bigint); \
                     alter database postgres set synchronous_commit = local";
        beside.execute(alone).await.unwrap();
        beside
    }

    async fn begin(url: &str, mut beside: PgConnection) -> Self {
        beside.execute("alter system set synchronous_standby_names = 'nobody'").await.unwrap();
        beside.execute("select pg_reload_conf()").await.unwrap();
        let mut foreign = PgConnection::connect(url).await.unwrap();
        let task = tokio::spawn(async move {
            foreign.execute("set synchronous_commit = on").await.unwrap();
            // It does not wait before the server has its new setting.
            let notifies = "begin; insert into written values (1); notify elsewhere; commit";
            while foreign.execute(notifies).await.is_ok() {}
        });
        let holds = "select count(*) from pg_stat_activity join pg_locks using (pid) \
                     where wait_event = 'SyncRep' and locktype = 'object' \
                     and classid = 'pg_database'::regclass and objid = 0 and granted";
        let mut held = 0;
        until(async || {
            held = sqlx::query(holds).fetch_one(&mut beside).await.unwrap().get::<i64, _>(0);
            held > 0
        })
        .await;
        Self { beside, task }
    }

    /// The program ends.
    async fn end(mut self) {
        self.task.abort();
        self.beside.execute("alter system reset synchronous_standby_names").await.unwrap();
        self.beside.execute("select pg_reload_conf()").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_notifies_slowly_holds_up_neither_registrations_nor_events() {
    let test = "nodes::a_program_that_notifies_slowly_holds_up_neither_registrations_nor_events";
    beside_a_program_that_notifies_slowly(test, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_does_it_where_sessions_keep_their_statements() {
    let test = "nodes::nor_does_it_where_sessions_keep_their_statements";
    beside_a_program_that_notifies_slowly(test, KEPT).await;
}

async fn beside_a_program_that_notifies_slowly(test: &str, sessions: &str) {
    let Some(server) = Postgres::start(test) else { return };
    let url = format!("{}{sessions}", server.url());
    limited(async {
        let beside = StuckNotifier::prepare(&server.url()).await;
        let mut a = Node::start(&opened(&url).await, "a", "1", SELDOM);
        a.sees(&["a"]).await;
        let b = Node::start(&opened(&url).await, "b", "2", SELDOM);
        registers(&b.store, "user1").await;
        a.hears_of("user1").await;
        assert!(b.store.listen().await.unwrap().is_some(), "b notifies");

        let stuck = StuckNotifier::begin(&server.url(), beside).await;
        registers(&b.store, "user2").await;
        marks(&b.store, &["user2"]).await;
        assert!(!stuck.task.is_finished(), "it holds the lock all the while");
        stuck.end().await;
        // Node a hears of the next one, and finds with it what it did not hear of.
        registers(&b.store, "user3").await;
        let mut told = BTreeSet::new();
        while told.len() < 2 {
            told.insert(a.hears().await.account);
        }
        assert_eq!(told, BTreeSet::from(["user2", "user3"].map(Account::from_login)));
        a.stop().await;
        b.stop().await;
    })
    .await;
}

/// Word that does not come is not the database's answer.
#[tokio::test]
async fn what_was_waited_for_a_notification_is_no_time_of_a_call() {
    let test = "nodes::what_was_waited_for_a_notification_is_no_time_of_a_call";
    let Some(server) = Postgres::start(test) else { return };
    limited(async {
        let mut beside = PgConnection::connect(&server.url()).await.unwrap();
        let tells_nobody = "create function public.pg_notify(text, text) returns void \
                            language sql as ''; \
                            alter database postgres set search_path = public, pg_catalog";
        beside.execute(tells_nobody).await.unwrap();
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::new(&mut registry));
        let store = opened(&server.url()).await.of_node("1".into()).counting(Arc::clone(&metrics));
        let began = Instant::now();
        assert!(store.listen().await.unwrap().is_none());
        let waited =
            began.elapsed().as_secs_f64() - value(&metrics, &registry, "sum{call=\"nodes\"}");
        assert!(waited >= 1.9, "{waited}");
    })
    .await;
}

/// Nothing tells of news there: each node looks for it, soon again where there was some.
async fn news_is_looked_for(url: &str) {
    let log = Log::default();
    let _logged = tracing::subscriber::set_default(log.subscriber(tracing::Level::INFO));
    let mut a = Node::start(&opened(url).await, "a", "1", Duration::from_mins(1));
    a.sees(&["a"]).await;
    let other = opened(url).await.of_node("2".into());
    registers(&other, "user0").await;
    a.hears_of("user0").await;
    let began = Instant::now();
    for number in 1..=20 {
        let user = format!("user{number}");
        registers(&other, &user).await;
        a.hears_of(&user).await;
    }
    // Each would have to wait for the next of the looks that come every 2 s.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    until(async || log.count("the database tells this node of no news") == 1).await;
    a.stop().await;
    assert_eq!(log.count("the database tells this node of no news"), 1);
    // A machine with more to do may take its time for a call.
    let took_long = log.count("a database call took long");
    assert_eq!(log.count("WARN") + log.count("ERROR"), took_long, "{}", log.text());
}

/// A server, a PgBouncer before it in this mode with further settings, and the URL that leads through it.
fn pooled(test: &str, mode: &str, settings: &str) -> Option<(Postgres, PgBouncer, String)> {
    let server = Postgres::start(test)?;
    let bouncer = PgBouncer::start(test, &server, mode, &format!("{IGNORES}{settings}"))?;
    let url = bouncer.url(&server.url(), server.address);
    Some((server, bouncer, url))
}

#[tokio::test]
async fn behind_pgbouncer_news_is_looked_for_and_no_session_listens() {
    let test = "nodes::behind_pgbouncer_news_is_looked_for_and_no_session_listens";
    let Some((_server, _bouncer, url)) = pooled(test, "transaction", "") else { return };
    limited(async {
        news_is_looked_for(&url).await;
        let mut sessions = Vec::new();
        for _ in 0..3 {
            let mut session = PgConnection::connect(&url).await.unwrap();
            sqlx::raw_sql("begin").execute(&mut session).await.unwrap();
            sessions.push(session);
        }
        for session in &mut sessions {
            let listening = sqlx::raw_sql("select count(*) from pg_listening_channels()");
            assert_eq!(listening.fetch_one(session).await.unwrap().get::<i64, _>(0), 0);
        }
    })
    .await;
}

/// What a session of the server hears comes to each client that has it: drivers take it for a broken protocol.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_pooler_is_not_taken_for_a_server() {
    let test = "nodes::a_busy_pooler_is_not_taken_for_a_server";
    let kept = "server_idle_timeout = 0\n";
    let Some((_server, _bouncer, url)) = pooled(test, "transaction", kept) else { return };
    limited(async {
        let store = opened(&url).await.of_node("1".into());
        let mut others = JoinSet::new();
        for _ in 0..4 {
            let mut session = PgConnection::connect(&url).await.unwrap();
            others.spawn(async move {
                loop {
                    session.execute("select 1").await.unwrap();
                }
            });
        }
        for _ in 0..TRIES {
            assert!(store.listen().await.unwrap().is_none());
        }
        others.abort_all();
        while let Some(other) = others.join_next().await {
            assert!(other.unwrap_err().is_cancelled(), "its session heard what was not for it");
        }
    })
    .await;
}

#[tokio::test]
async fn a_pooler_by_session_passes_notifications_on() {
    let test = "nodes::a_pooler_by_session_passes_notifications_on";
    let many = "default_pool_size = 20\n";
    let Some((server, _bouncer, url)) = pooled(test, "session", many) else { return };
    limited(async {
        let mut a = Node::start(&opened(&url).await, "a", "1", SELDOM);
        a.sees(&["a"]).await;
        let other = opened(&server.url()).await.of_node("2".into());
        assert!(other.listen().await.unwrap().is_some());
        for user in ["user1", "user2"] {
            registers(&other, user).await;
            a.hears_of(user).await;
        }
        a.stop().await;
    })
    .await;
}

#[tokio::test]
async fn on_mariadb_news_is_looked_for() {
    let Some(server) = MariaDb::start("nodes::on_mariadb_news_is_looked_for") else { return };
    limited(news_is_looked_for(&server.database_url())).await;
}
