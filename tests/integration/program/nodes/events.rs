//! Events of mail servers come to any node, and the one that has the account acts. What was answered is on disk.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use mailchime::model::Account;
use mailchime::store::Store;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::*;
use crate::intake::{TOKEN, post, written};
use crate::support::until;

const EVENTS: &str = "[events]\naddress = \"127.0.0.1:0\"\n\
    [[events.source]]\nname = \"dovecot\"\nsecret_file = \"events.secret\"\n";

/// What a node says that asks for its accounts since a node has missed events.
const SWEEPS: &str = "events of mail servers may have been missed; mailchime asks for all accounts without a connection";

/// A node that takes events, and where.
struct EventNode {
    node: Node,
    events: SocketAddr,
}

/// Nodes that take events.
struct EventCluster {
    cluster: Cluster,
    /// The database, as another program sees it.
    store: Store,
}

impl EventCluster {
    /// With accounts that have no connection, unless the configuration says so.
    async fn on(database: Box<dyn DatabaseServer>, other: &[(&'static str, &'static str)]) -> Self {
        let mut cluster = Cluster::on(database).await;
        cluster.other = other.to_vec();
        let secret = cluster.world.file("events.secret");
        fs::write(&secret, TOKEN).unwrap();
        fs::set_permissions(secret, fs::Permissions::from_mode(0o600)).unwrap();
        let url = cluster.database.database_url().parse().unwrap();
        let store = Store::open(&url, Duration::from_secs(30)).await.unwrap();
        Self { cluster, store }
    }

    async fn start(&self, name: &'static str) -> EventNode {
        Self::taking_events(self.cluster.start(name, EVENTS).await).await
    }

    async fn start_without_push(&self, name: &'static str) -> EventNode {
        Self::taking_events(self.cluster.start_without_push(name, EVENTS).await).await
    }

    async fn taking_events(mut node: Node) -> EventNode {
        let line = node.server.logged("taking events of mail servers over HTTP").await;
        node.server.process.stderr.rewind();
        EventNode { node, events: line["address"].as_str().unwrap().parse().unwrap() }
    }

    /// Two nodes with accounts at each, of which nothing is due.
    async fn two(&mut self) -> [EventNode; 2] {
        let (mut a, mut b) = (self.start("a").await, self.start("b").await);
        a.node.sees("a b").await;
        b.node.sees("a b").await;
        loop {
            self.cluster.register(&a.node).await;
            let shares = [self.cluster.watched_by(&a.node), self.cluster.watched_by(&b.node)];
            let [of_a, of_b] = shares;
            if of_a.await.len() >= 2 && of_b.await.len() >= 2 {
                break;
            }
        }
        self.rest().await;
        [a, b]
    }

    /// A user who registers at this node, which is the only one that watches, and has looked.
    async fn user(&mut self, node: &EventNode) -> String {
        self.cluster.register(&node.node).await;
        let backend = &self.cluster.world.backend;
        backend.wait_until(|c| c.commands.contains_key("STATUS") && c.connections == 0).await;
        self.rest().await;
        self.cluster.users[0].login.clone()
    }

    /// Nothing is due, and nobody is connected.
    async fn rest(&self) {
        until(async || self.store.due_accounts().await.unwrap().is_empty()).await;
        self.cluster.world.backend.wait_until(|c| c.connections == 0).await;
    }

    /// A user whom this node watches.
    async fn user_of(&self, node: &EventNode) -> String {
        loop {
            if let Some(user) = self.cluster.watched_by(&node.node).await.first() {
                return user.clone();
            }
        }
    }

    /// Mail for this user, and what the mail server says to a node of it.
    async fn mail(&self, user: &str, to: &EventNode, numbers: bool) {
        let backend = &self.cluster.world.backend;
        backend.deliver(user, "INBOX", MAIL).unwrap();
        let messages = backend.messages(user, "INBOX").unwrap().len();
        let numbers = match numbers {
            true => format!(
                ",\"uidnext\":{},\"messages\":{messages},\"unseen\":{messages}",
                messages + 1
            ),
            false => String::new(),
        };
        self.event(user, to, "MessageNew", &numbers).await;
    }

    /// Mail for this user, of which the mail server tells nobody; since when it is there.
    fn mail_without_event(&self, user: &str) -> Instant {
        let since = Instant::now();
        self.cluster.world.backend.deliver(user, "INBOX", MAIL).unwrap();
        since
    }

    /// Waits until this node sweeps since a node has missed events, and the user's device has a push.
    async fn sweep_finds_mail(&self, node: &mut EventNode, user: &str, since: Instant) {
        node.node.server.logged(SWEEPS).await;
        self.told(user, since).await;
    }

    async fn event(&self, user: &str, to: &EventNode, event: &str, numbers: &str) {
        let change = format!("{{\"mailbox\":\"INBOX\",\"events\":[\"{event}\"]{numbers}}}");
        let reply =
            post(to.events, &format!("{{\"user\":\"{user}\",\"changes\":[{change}]}}")).await;
        assert_eq!(reply.status, 204, "{reply:?}");
    }

    /// The mail server begins to say that there is new mail for this user, and goes.
    async fn breaks_off(&self, user: &str, to: &EventNode) {
        let body = format!("{{\"user\":\"{user}\",\"changes\":[{{\"mailbox\":\"INBOX\"}}]}}");
        let request = format!("POST /v1/events\nAuthorization: Bearer {TOKEN}\n\n{body}");
        let whole = written(&request);
        let mut stream = TcpStream::connect(to.events).await.unwrap();
        stream.write_all(&whole.as_bytes()[..whole.len() - 1]).await.unwrap();
    }

    /// Waits until the device of this user has had a push since then.
    async fn told(&self, user: &str, since: Instant) {
        let world = &self.cluster.world;
        let phone = self.cluster.users.iter().find(|phone| phone.login == user).unwrap();
        loop {
            let received = world.apns.received();
            let pushes = world.apns.pushes();
            let is_it = |push: &mailchime::demo::apns::Push| {
                let token = push.token.as_ref().map(|token| token.to_lowercase());
                push.received >= since && token.as_ref() == Some(&phone.device_token)
            };
            if pushes.iter().any(is_it) {
                return;
            }
            soon(user, world.apns.wait_for(received + 1)).await;
        }
    }

    /// When a mail server last told of this user, as the node that watches says.
    async fn last_hint_at(&self, user: &str, node: &EventNode) -> Option<i64> {
        let told = self.cluster.ask(&node.node, &["watchers", "--json"]).await;
        let told: Value = serde_json::from_str(&told).unwrap();
        let mut watchers = told["watchers"].as_array().unwrap().iter();
        watchers.find(|watcher| watcher["account"] == user)?["last_hint_at"].as_i64()
    }

    async fn is_due(&self, user: &str) -> bool {
        let due = self.store.due_accounts().await.unwrap();
        due.iter().any(|(account, _)| *account == Account::from_login(user))
    }
}

/// Nobody asks for an account since a session of its user has ended a minute ago.
const ON_DEMAND: &[(&str, &str)] = &[(
    "[watch]\n",
    "[watch]\nconnection = \"on_demand\"\npoll_interval = \"1h\"\npoll_max = \"1h\"\n",
)];

/// Each node takes events of its own accounts and of the other's; then one is killed that has taken one, and then
/// one that was to act.
async fn any_node_takes_any_event(database: Box<dyn DatabaseServer>) {
    let mut nodes = EventCluster::on(database, ON_DEMAND).await;
    let [mut a, b] = nodes.two().await;
    let users = [nodes.user_of(&a).await, nodes.user_of(&b).await];
    // Her session ended at this node lately.
    loop {
        let told = nodes.cluster.ask(&a.node, &["push", &users[0], "--explain"]).await;
        if told.contains("a look at the account waits: it is asked for soon") {
            assert!(told.contains("new mail would be pushed when it is seen"), "{told}");
            break;
        }
    }
    for (to_b, user) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
        let to = if to_b { &b } else { &a };
        let (user, since) = (&users[user], Instant::now());
        nodes.mail(user, to, false).await;
        nodes.told(user, since).await;
        nodes.rest().await;
        // Whichever node took it.
        let of = if *user == users[0] { &a } else { &b };
        assert!(nodes.last_hint_at(user, of).await.is_some());
        // With numbers nobody logs in, once no sweep asks for all accounts any more: a node has started, or a machine
        // has let one of them wait for seconds and a share has changed hands.
        loop {
            let (visits, since) = (nodes.cluster.world.backend.counters().accepted, Instant::now());
            nodes.mail(user, to, true).await;
            nodes.told(user, since).await;
            nodes.rest().await;
            if nodes.cluster.world.backend.counters().accepted == visits {
                break;
            }
        }
    }

    // What b takes for a's account outlives b. Nobody can look yet.
    let backend = &nodes.cluster.world.backend;
    let quiet = async |user: &str, to: &EventNode| {
        backend.behave(|behaviour| behaviour.unavailable = true);
        backend.deliver(user, "INBOX", MAIL).unwrap();
        nodes.event(user, to, "MessageExpunge", "").await;
    };
    quiet(&users[0], &b).await;
    b.node.server.process.kill();
    assert!(nodes.is_due(&users[0]).await);
    let since = Instant::now();
    backend.behave(|behaviour| behaviour.unavailable = false);
    nodes.told(&users[0], since).await;

    // What a takes for b's account is b's to do, which is started again and killed before it can.
    let mut b = nodes.start("b").await;
    a.node.sees("a b").await;
    b.node.sees("a b").await;
    nodes.rest().await;
    let of_b = nodes.user_of(&b).await;
    quiet(&of_b, &a).await;
    b.node.server.process.kill();
    assert!(nodes.is_due(&of_b).await);
    let since = Instant::now();
    backend.behave(|behaviour| behaviour.unavailable = false);
    nodes.told(&of_b, since).await;
    nodes.rest().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_takes_any_event_on_postgresql() {
    let test = "program::nodes::events::any_node_takes_any_event_on_postgresql";
    let Some(database) = Postgres::start(test) else { return };
    limited(any_node_takes_any_event(Box::new(database))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_takes_any_event_on_mariadb() {
    let test = "program::nodes::events::any_node_takes_any_event_on_mariadb";
    let Some(database) = MariaDb::start(test) else { return };
    limited(any_node_takes_any_event(Box::new(database))).await;
}

/// The other one sees the same nodes as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_for_a_user_of_another_node_while_a_node_started_anew_is_found() {
    let test = "program::nodes::events::what_came_for_a_user_of_another_node_while_a_node_started_anew_is_found";
    let Some(database) = Postgres::start(test) else { return };
    limited(async {
        let mut nodes = EventCluster::on(Box::new(database), ON_DEMAND).await;
        let [a, mut b] = nodes.two().await;
        let user = nodes.user_of(&b).await;
        a.node.server.process.kill();
        let since = nodes.mail_without_event(&user);
        let _a = nodes.start("a").await;
        nodes.sweep_finds_mail(&mut b, &user, since).await;
    })
    .await;
}

/// MariaDB does not tell the other one at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_did_not_record_for_a_user_of_another_is_found() {
    let test = "program::nodes::events::what_a_node_did_not_record_for_a_user_of_another_is_found";
    let Some(database) = MariaDb::start(test) else { return };
    limited(async {
        let mut nodes = EventCluster::on(Box::new(database), ON_DEMAND).await;
        let [a, mut b] = nodes.two().await;
        let user = nodes.user_of(&b).await;
        let since = nodes.mail_without_event(&user);
        nodes.breaks_off(&user, &a).await;
        nodes.sweep_finds_mail(&mut b, &user, since).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_while_a_node_was_away_that_watches_nobody_is_found() {
    let test =
        "program::nodes::events::what_came_while_a_node_was_away_that_watches_nobody_is_found";
    let Some(database) = Postgres::start(test) else { return };
    limited(async {
        let mut nodes = EventCluster::on(Box::new(database), ON_DEMAND).await;
        let mut a = nodes.start("a").await;
        let user = nodes.user(&a).await;
        let since = nodes.mail_without_event(&user);
        let b = nodes.start_without_push("b").await;
        nodes.sweep_finds_mail(&mut a, &user, since).await;
        nodes.rest().await;
        // It passes an event on to the node that watches.
        let since = Instant::now();
        nodes.mail(&user, &b, false).await;
        nodes.told(&user, since).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_that_watches_nobody_did_not_record_is_found() {
    let test = "program::nodes::events::what_a_node_that_watches_nobody_did_not_record_is_found";
    let Some(database) = Postgres::start(test) else { return };
    limited(async {
        let mut nodes = EventCluster::on(Box::new(database), ON_DEMAND).await;
        let b = nodes.start_without_push("b").await;
        let mut a = nodes.start("a").await;
        let user = nodes.user(&a).await;
        let since = nodes.mail_without_event(&user);
        nodes.breaks_off(&user, &b).await;
        nodes.sweep_finds_mail(&mut a, &user, since).await;
    })
    .await;
}

/// Nothing of it is on disk: the next look at the mailbox finds it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_change_of_a_held_account_outlives_the_node_that_was_told_of_it() {
    let test = "program::nodes::events::a_quiet_change_of_a_held_account_outlives_the_node_that_was_told_of_it";
    let Some(database) = Postgres::start(test) else { return };
    limited(async {
        let slow = ("quiet_delay = \"100ms\"", "quiet_delay = \"5s\"");
        let mut nodes = EventCluster::on(Box::new(database), &[slow]).await;
        let (mut a, mut b) = (nodes.start("a").await, nodes.start("b").await);
        a.node.sees("a b").await;
        b.node.sees("a b").await;
        while nodes.cluster.watched_by(&b.node).await.is_empty() {
            nodes.cluster.register(&a.node).await;
            nodes.cluster.divided(&[&a.node, &b.node]).await;
        }
        let user = nodes.user_of(&b).await;
        let backend = &nodes.cluster.world.backend;
        let since = Instant::now();
        backend.deliver(&user, "INBOX", MAIL).unwrap();
        nodes.told(&user, since).await;
        b.node.settled(1).await;
        let (uid, ..) = backend.messages(&user, "INBOX").unwrap()[0];
        let since = Instant::now();
        backend.set_flags(&user, "INBOX", uid, &["\\Seen"]).unwrap();
        let read = ",\"uidnext\":2,\"messages\":1,\"unseen\":0";
        nodes.event(&user, &b, "MessageRead", read).await;
        b.node.server.process.kill();
        nodes.told(&user, since).await;
    })
    .await;
}
