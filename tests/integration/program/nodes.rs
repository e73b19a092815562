//! Three processes on one PostgreSQL or MariaDB: they divide the watching, take over from one that is killed,
//! and lose no push by it.

mod events;
mod page;

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::{Method, Request, Response};
use mailchime::demo::phone::Phone;
use mailchime::demo::push_service::PushService;
use mailchime::net::dial::Dialer;
use mailchime::net::https::{HttpsClient, client_tls};
use mailchime::net::resolve::NameResolver;
use serde_json::{Value, json};

use crate::support::program::{Process, mailchime};
use crate::support::servers::DatabaseServer;
use crate::support::servers::mariadb::MariaDb;
use crate::support::servers::postgres::Postgres;
use crate::support::world::{MAIL, Server, World};
use crate::support::{SOON, limited, listener, soon};

const PASSWORD: &str = "of everyone";

struct Cluster {
    world: World,
    database: Box<dyn DatabaseServer>,
    users: Vec<Phone>,
    delivered: usize,
    /// What the nodes' configuration has otherwise than that of the world.
    other: Vec<(&'static str, &'static str)>,
}

/// A node that runs.
struct Node {
    name: &'static str,
    server: Server,
}

impl Cluster {
    async fn new(test: &str) -> Option<Self> {
        Some(Self::on(Box::new(Postgres::start(test)?)).await)
    }

    async fn on(database: Box<dyn DatabaseServer>) -> Self {
        let (world, other) = (World::new().await, Vec::new());
        Self { world, database, users: Vec::new(), delivered: 0, other }
    }

    /// Nodes find each other dead after 8 s, not 30: none that lives says nothing for so long, on a
    /// machine that is busy.
    ///
    /// `more` goes before `[log]`.
    async fn start(&self, name: &'static str, more: &str) -> Node {
        self.start_with(name, more, self.world.config()).await
    }

    /// The same of a node that has no way to push, and so watches nobody.
    async fn start_without_push(&self, name: &'static str, more: &str) -> Node {
        let config = self.world.config();
        let (before, apns) = config.split_once("[apns]").unwrap();
        let (_, log) = apns.split_once("[log]").unwrap();
        self.start_with(name, more, format!("{before}[log]{log}")).await
    }

    async fn start_with(&self, name: &'static str, more: &str, mut config: String) -> Node {
        let any = "[admin]\naddress = \"127.0.0.1:0\"\n";
        let node = format!("[node]\nname = \"{name}\"\ntakeover = \"8s\"\n{more}");
        for (old, new) in &self.other {
            config = config.replace(old, new);
        }
        let config = config.replace("[log]", &format!("{any}{node}[log]"));
        let config = config.replace(
            "[store]\n",
            &format!("[store]\nurl = \"{}\"\n", self.database.database_url()),
        );
        let file = self.world.file(&format!("{name}.toml"));
        fs::write(&file, &config).unwrap();
        let file = file.display().to_string();
        let process = Process::spawn(mailchime(&["serve", "--config", &file]));
        let mut server = Server::of(process).await;
        let address = server.admin_address().await;
        let known = any.replace("127.0.0.1:0", &address.to_string());
        fs::write(file, config.replace(any, &known)).unwrap();
        Node { name, server }
    }

    /// A new user's phone registers at `node`.
    async fn register(&mut self, node: &Node) {
        let number = self.users.len() + 1;
        let login = format!("user{number}@example.org");
        self.world.backend.add_account(&login, PASSWORD.as_bytes());
        let phone = Phone {
            login,
            password: PASSWORD.into(),
            account_id: crate::support::world::ACCOUNT_ID.into(),
            device_token: format!("{number:064x}"),
            mailboxes: vec!["INBOX".into()],
        };
        let ca = &self.world.pki.ca.certificate;
        phone.register(node.server.address, "localhost", ca, |_, _| {}).await.unwrap();
        self.users.push(phone);
    }

    /// What a command says about the node that it asks.
    async fn ask(&self, node: &Node, arguments: &[&str]) -> String {
        let config = self.world.file(&format!("{}.toml", node.name)).display().to_string();
        let arguments = [arguments, &["--config", &config]].concat();
        let mut process = Process::spawn(mailchime(&arguments));
        process.end().await;
        process.stdout.seen.join("\n")
    }

    /// What the API answers to a request of this user, with a body unless it is null.
    async fn of_user(
        &self,
        login: &str,
        method: Method,
        url: &str,
        body: &Value,
    ) -> Response<Bytes> {
        let tls = client_tls(Some(&self.world.file("ca.pem"))).unwrap();
        let dialer = Dialer::new(NameResolver::default(), None, tls);
        let login = STANDARD.encode(format!("{login}:{PASSWORD}"));
        let request = Request::builder().method(method).uri(url);
        let request = request.header("authorization", format!("Basic {login}"));
        let request = request.header("content-type", "application/json");
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let client = HttpsClient::new(dialer, SOON);
        client.send(request.body(body.into()).unwrap()).await.unwrap()
    }

    /// A browser of this user subscribes by the API at `url` and proves itself; the subscription's id.
    async fn subscribe_browser(&self, login: &str, url: &str, service: &PushService) -> String {
        let ask = async |method, path: &str, body: &Value| -> Value {
            let reply = self.of_user(login, method, &format!("{url}{path}"), body).await;
            assert!(reply.status().is_success(), "{path}: {reply:?}");
            serde_json::from_slice(reply.body()).unwrap()
        };
        let key = ask(Method::GET, "/vapid", &Value::Null).await["applicationServerKey"].clone();
        let mut body = service.subscribe(key.as_str().unwrap()).to_json();
        body["transport"] = json!("webpush");
        let made = ask(Method::POST, "/subscriptions", &body).await;
        let code = soon("a code", service.next()).await.json()["data"]["code"].clone();
        let id = made["id"].as_str().unwrap();
        let confirm = format!("/subscriptions/{id}/confirm");
        ask(Method::POST, &confirm, &json!({ "code": code })).await;
        id.to_owned()
    }

    /// This user removes the subscription at `url`.
    async fn remove(&self, login: &str, url: &str) {
        let removed = self.of_user(login, Method::DELETE, url, &Value::Null).await;
        assert_eq!(removed.status(), 204);
    }

    async fn watched_by(&self, node: &Node) -> BTreeSet<String> {
        let told: Value =
            serde_json::from_str(&self.ask(node, &["watchers", "--json"]).await).unwrap();
        assert_eq!(told["node"], node.name);
        let watchers = told["watchers"].as_array().unwrap().iter();
        watchers.map(|watcher| watcher["account"].as_str().unwrap().to_owned()).collect()
    }

    /// Waits until each account is watched by one of these nodes, all in IDLE; how many by each.
    async fn divided(&self, nodes: &[&Node]) -> Vec<usize> {
        let all: BTreeSet<_> = self.users.iter().map(|user| user.login.clone()).collect();
        loop {
            let mut shares = Vec::new();
            for node in nodes {
                shares.push(self.watched_by(node).await);
            }
            let sizes: Vec<_> = shares.iter().map(BTreeSet::len).collect();
            let together: BTreeSet<_> = shares.into_iter().flatten().collect();
            if together == all && sizes.iter().sum::<usize>() == all.len() {
                let idling = self.world.backend.wait_until(|now| now.idling == all.len());
                soon("all in IDLE", idling).await;
                return sizes;
            }
        }
    }

    /// A mail to each user; since when.
    fn mail_to_all(&mut self) -> Instant {
        let since = Instant::now();
        for user in &self.users {
            self.world.backend.deliver(&user.login, "INBOX", MAIL).unwrap();
        }
        self.delivered += self.users.len();
        since
    }

    /// Waits until each device has got a push since then.
    async fn all_told(&self, since: Instant) {
        let all: BTreeSet<_> = self.users.iter().map(|user| user.device_token.clone()).collect();
        loop {
            let received = self.world.apns.received();
            let pushes = self.world.apns.pushes();
            let told = pushes.iter().filter(|push| push.received >= since);
            let told: BTreeSet<_> =
                told.map(|push| push.token.as_ref().unwrap().to_lowercase()).collect();
            if told == all {
                return;
            }
            let missing = format!("{} of {} devices told", told.len(), all.len());
            soon(&missing, self.world.apns.wait_for(received + 1)).await;
        }
    }
}

impl Node {
    /// Waits until these nodes are the last that the log has as living.
    async fn sees(&mut self, nodes: &str) {
        loop {
            let lines = self.server.process.stderr.so_far().iter().rev();
            let mut lines = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let last = lines.find(|line| line["message"] == "the list of live nodes changed");
            if last.is_some_and(|line| line["nodes"] == nodes) {
                return;
            }
            let more = self.server.process.stderr.next().await;
            assert!(more.is_some(), "{} ended before it saw {nodes}", self.name);
        }
    }

    /// How often its list of live nodes has changed.
    fn changes_of_the_list(&mut self) -> usize {
        let lines = self.server.process.stderr.so_far().iter();
        lines.filter(|line| line.contains("\"the list of live nodes changed\"")).count()
    }

    /// Waits until so many more changes are settled on disk.
    async fn settled(&mut self, mut changes: usize) {
        while changes > 0 {
            let line = self.server.logged("change recorded").await;
            let settled = line["change"].as_str().unwrap().split(' ').count();
            changes = changes.saturating_sub(settled);
        }
    }
}

fn fair(shares: &[usize]) {
    let even = shares.iter().sum::<usize>() / shares.len();
    assert!(shares.iter().all(|share| share * 2 >= even && *share <= even * 2), "{shares:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_lose_no_push_when_any_of_them_is_killed_stopped_or_started() {
    let test =
        "program::nodes::three_nodes_lose_no_push_when_any_of_them_is_killed_stopped_or_started";
    let Some(mut cluster) = Cluster::new(test).await else { return };
    limited(async {
        let mut a = cluster.start("a", "").await;
        let mut b = cluster.start("b", "").await;
        let mut c = cluster.start("c", "").await;
        for node in [&mut a, &mut b, &mut c] {
            node.sees("a b c").await;
        }
        for _ in 0..20 {
            for node in [&a, &b, &c] {
                cluster.register(node).await;
            }
        }
        let shares = cluster.divided(&[&a, &b, &c]).await;
        println!("shares of a, b and c: {shares:?}");
        fair(&shares);
        // On a machine that lets one of them wait for seconds the others take over its share, and both push. Then
        // it is tried again.
        loop {
            cluster.divided(&[&a, &b, &c]).await;
            let before = [&mut a, &mut b, &mut c].map(Node::changes_of_the_list);
            let pushes = cluster.world.apns.received();
            let since = cluster.mail_to_all();
            cluster.all_told(since).await;
            let pushes = cluster.world.apns.received() - pushes;
            if before == [&mut a, &mut b, &mut c].map(Node::changes_of_the_list) {
                assert_eq!(pushes, 60, "each device gets one push");
                break;
            }
            println!("a share changed hands meanwhile: {pushes} pushes to 60 devices");
        }

        // Killed while mail comes, and more comes while nobody has noticed.
        cluster.mail_to_all();
        b.server.process.kill();
        let since = cluster.mail_to_all();
        cluster.all_told(since).await;
        println!("all told again {:?} after the SIGKILL of b", since.elapsed());
        a.sees("a c").await;
        println!("shares of a and c: {:?}", cluster.divided(&[&a, &c]).await);

        // Of twelve users who register at a, some are c's.
        let before = cluster.watched_by(&c).await.len();
        for _ in 0..12 {
            cluster.register(&a).await;
        }
        cluster.divided(&[&a, &c]).await;
        let of_c = cluster.watched_by(&c).await;
        assert!(of_c.len() > before, "{of_c:?}");
        let since = cluster.mail_to_all();
        cluster.all_told(since).await;

        // Asked at a of one of c's, both commands say so.
        let user = of_c.first().unwrap();
        assert!(cluster.ask(&a, &["watchers"]).await.contains("node a; other accounts"));
        let explained = cluster.ask(&a, &["push", user, "--explain"]).await;
        assert!(explained.contains("watcher: at node c, "), "{explained}");
        let explained = cluster.ask(&c, &["push", user, "--explain"]).await;
        assert!(explained.contains("watcher: watching (idle)"), "{explained}");

        // Stopped, it is gone at once; started again, it has a share again.
        let before = a.server.process.stderr.so_far().len();
        c.server.process.signal("TERM");
        c.server.process.end().await;
        assert_eq!(cluster.divided(&[&a]).await, [72]);
        let since = cluster.mail_to_all();
        cluster.all_told(since).await;
        a.sees("a").await;
        let log = a.server.process.stderr.so_far()[before..].join("\n");
        let buried =
            "\"message\":\"a node sends no heartbeat; the live nodes take over its share\",\"node\":\"c\"";
        assert!(!log.contains(buried), "{log}");
        let mut b = cluster.start("b", "").await;
        let mut c = cluster.start("c", "").await;
        for node in [&mut a, &mut b, &mut c] {
            node.sees("a b c").await;
        }
        let shares = cluster.divided(&[&a, &b, &c]).await;
        println!("shares of a, b and c: {shares:?}");
        fair(&shares);
        let since = cluster.mail_to_all();
        cluster.all_told(since).await;
        println!("{} mails, {} pushes", cluster.delivered, cluster.world.apns.received());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_on_mariadb_lose_no_push_when_one_is_killed_or_the_database_is() {
    let test =
        "program::nodes::three_nodes_on_mariadb_lose_no_push_when_one_is_killed_or_the_database_is";
    let Some(database) = MariaDb::start(test) else { return };
    limited(async {
        let mut cluster = Cluster::on(Box::new(database)).await;
        let mut a = cluster.start("a", "").await;
        let mut b = cluster.start("b", "").await;
        let mut c = cluster.start("c", "").await;
        for node in [&mut a, &mut b, &mut c] {
            node.sees("a b c").await;
        }
        for _ in 0..6 {
            for node in [&a, &b, &c] {
                cluster.register(node).await;
            }
        }
        cluster.divided(&[&a, &b, &c]).await;
        cluster.mail_to_all();
        b.server.process.kill();
        let since = cluster.mail_to_all();
        cluster.all_told(since).await;
        a.sees("a c").await;
        cluster.divided(&[&a, &c]).await;
        // Pushes are owed while it is away.
        cluster.mail_to_all();
        cluster.database.crash();
        let since = cluster.mail_to_all();
        cluster.database.restart();
        cluster.all_told(since).await;
        cluster.divided(&[&a, &c]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_password_at_one_node_wakes_the_watcher_at_another() {
    let test = "program::nodes::a_new_password_at_one_node_wakes_the_watcher_at_another";
    let Some(mut cluster) = Cluster::new(test).await else { return };
    limited(async {
        let mut a = cluster.start("a", "").await;
        let mut b = cluster.start("b", "").await;
        a.sees("a b").await;
        b.sees("a b").await;
        for _ in 0..8 {
            cluster.register(&a).await;
        }
        cluster.divided(&[&a, &b]).await;
        let login = cluster.watched_by(&b).await.first().unwrap().clone();
        cluster.world.backend.set_password(&login, b"another").unwrap();
        cluster.world.backend.drop_connections();
        b.server
            .logged(
                "not watched until its user logs in again: the backend refuses the stored password; mailchime pushes the devices so that they log in",
            )
            .await;

        let mut client = cluster.world.client(&a.server).await;
        client.send(format!("in LOGIN {login} another\r\n").as_bytes()).await;
        client.until("in OK").await;
        b.server.logged("the user logged in; mailchime watches the account again").await;
        cluster.divided(&[&a, &b]).await;
        let since = cluster.mail_to_all();
        cluster.all_told(since).await;
        // The node that takes over knows it, too.
        b.server.process.kill();
        let since = cluster.mail_to_all();
        cluster.all_told(since).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_at_one_node_by_the_api_or_a_command_ends_the_pushes_of_another() {
    let test =
        "program::nodes::a_removal_at_one_node_by_the_api_or_a_command_ends_the_pushes_of_another";
    let Some(mut cluster) = Cluster::new(test).await else { return };
    limited(async {
        let service = PushService::start(listener().await, &cluster.world.pki).unwrap();
        let web_push = format!(
            "[webpush]\ncontact = \"mailto:a@example.org\"\nhosts = [\"localhost:{}\"]\n\
             allow_private = [\"127.0.0.0/8\", \"::1\"]\nca = \"ca.pem\"\n",
            service.address().port()
        );
        let api = format!("[api]\naddress = \"127.0.0.1:0\"\n{web_push}");
        let mut a = cluster.start("a", &api).await;
        let mut b = cluster.start("b", &web_push).await;
        let api = a.server.logged("serving users' programs over HTTPS").await;
        let api = api["address"].as_str().unwrap().parse::<SocketAddr>().unwrap();
        a.sees("a b").await;
        b.sees("a b").await;
        while cluster.watched_by(&b).await.len() < 2 {
            cluster.register(&a).await;
            cluster.divided(&[&a, &b]).await;
        }
        let of_b = cluster.watched_by(&b).await;
        let [by_api, by_command] = [of_b.first().unwrap(), of_b.last().unwrap()];
        let since = cluster.mail_to_all();
        cluster.all_told(since).await;

        // One has a browser, too, which goes first; the phone goes on hearing.
        let url = format!("https://localhost:{}/v1", api.port());
        let list = format!("{url}/subscriptions");
        let browser = cluster.subscribe_browser(by_api, &url, &service).await;
        cluster.mail_to_all();
        soon("a push to the browser", service.next()).await;
        let held = cluster.world.backend.messages(by_api, "INBOX").unwrap().len();
        cluster.remove(by_api, &format!("{list}/{browser}")).await;
        let since = cluster.mail_to_all();
        cluster.all_told(since).await;

        let listed = cluster.of_user(by_api, Method::GET, &list, &Value::Null).await;
        let listed: Value = serde_json::from_slice(listed.body()).unwrap();
        let [phone] = &listed["subscriptions"].as_array().unwrap()[..] else { panic!("{listed}") };
        let phone = phone["id"].as_str().unwrap();
        cluster.remove(by_api, &format!("{list}/{phone}")).await;
        cluster.ask(&a, &["subscriptions", "remove", by_command]).await;
        let mut left = BTreeSet::from([by_api.clone(), by_command.clone()]);
        while !left.is_empty() {
            let line =
                b.server.logged("the account has no device left; mailchime stops watching it");
            left.remove(line.await["account"].as_str().unwrap());
        }
        let since = cluster.mail_to_all();
        cluster.users.retain(|user| ![by_api, by_command].contains(&&user.login));
        cluster.all_told(since).await;
        // The browser was sent a code and a push. What was under way tells of no mail that came after the removal.
        for _ in 2..service.received() {
            let told = service.next().await.json();
            let messages = told["data"]["mailboxes"][0]["messages"].as_u64();
            assert!(messages.is_none_or(|messages| messages <= held as u64), "{told}");
        }
        cluster.divided(&[&a, &b]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_in_memory_is_used_where_its_user_logged_in() {
    let test = "program::nodes::a_password_in_memory_is_used_where_its_user_logged_in";
    let Some(mut cluster) = Cluster::new(test).await else { return };
    limited(async {
        let memory = "[credentials]\nmode = \"memory\"\n";
        let mut a = cluster.start("a", memory).await;
        let mut b = cluster.start("b", memory).await;
        a.sees("a b").await;
        b.sees("a b").await;
        for _ in 0..8 {
            cluster.register(&a).await;
        }
        let idling = cluster.world.backend.wait_until(|now| now.idling == 8);
        soon("all in IDLE", idling).await;
        assert_eq!(cluster.watched_by(&a).await.len(), 8);
        let since = cluster.mail_to_all();
        cluster.all_told(since).await;

        // When that node is gone, users who log in at another one are watched there.
        a.server.process.kill();
        b.server.logged("a node sends no heartbeat; the live nodes take over its share").await;
        for user in &cluster.users {
            let mut client = cluster.world.client(&b.server).await;
            let login = format!("in LOGIN {} \"{PASSWORD}\"\r\n", user.login);
            client.send(login.as_bytes()).await;
            client.until("in OK").await;
        }
        let since = cluster.mail_to_all();
        cluster.all_told(since).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_node_owes_is_pushed_by_the_one_that_takes_over_and_once() {
    let test =
        "program::nodes::what_a_killed_node_owes_is_pushed_by_the_one_that_takes_over_and_once";
    let Some(mut cluster) = Cluster::new(test).await else { return };
    limited(async {
        let mut a = cluster.start("a", "").await;
        let mut b = cluster.start("b", "").await;
        a.sees("a b").await;
        b.sees("a b").await;
        // Few: after a failure one device at a time tries whether APNs is back.
        for _ in 0..4 {
            cluster.register(&a).await;
        }
        let [_, share_of_b] = cluster.divided(&[&a, &b]).await[..] else { panic!("two") };
        assert!(share_of_b > 0);
        // What is owed is marked on disk, and the rows that tell what was told have moved.
        cluster.world.apns.refuse().await;
        cluster.world.apns.drop_connections();
        cluster.mail_to_all();
        b.settled(share_of_b).await;
        b.server.process.kill();
        cluster.world.apns.resume().await.unwrap();
        let mut since = Instant::now();
        cluster.all_told(since).await;

        // Both are killed, and start anew, each for itself.
        let mut b = cluster.start("b", "").await;
        b.sees("a b").await;
        a.sees("a b").await;
        let [share_of_a, share_of_b] = cluster.divided(&[&a, &b]).await[..] else { panic!("two") };
        cluster.world.apns.refuse().await;
        cluster.world.apns.drop_connections();
        cluster.mail_to_all();
        a.settled(share_of_a).await;
        b.settled(share_of_b).await;
        a.server.process.kill();
        b.server.process.kill();
        cluster.world.apns.resume().await.unwrap();
        let before = cluster.world.apns.received();
        since = Instant::now();
        let a = cluster.start("a", "").await;
        let b = cluster.start("b", "").await;
        cluster.all_told(since).await;
        cluster.divided(&[&a, &b]).await;
        // Twice where the share changed hands while it was pushed, and no more.
        let pushes = cluster.world.apns.received() - before;
        assert!((4..=8).contains(&pushes), "{pushes} pushes to four devices");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_is_away_each_node_keeps_its_share() {
    let test = "program::nodes::while_the_database_is_away_each_node_keeps_its_share";
    let Some(mut cluster) = Cluster::new(test).await else { return };
    limited(async {
        let mut a = cluster.start("a", "").await;
        let mut b = cluster.start("b", "").await;
        a.sees("a b").await;
        b.sees("a b").await;
        for _ in 0..12 {
            cluster.register(&b).await;
        }
        let shares = cluster.divided(&[&a, &b]).await;
        cluster.database.stop();
        for node in [&mut a, &mut b] {
            node.server.logged("cluster state unreadable; keeping the current assignment").await;
        }
        let since = cluster.mail_to_all();
        assert_eq!(cluster.divided(&[&a, &b]).await, shares);
        cluster.database.restart();
        cluster.all_told(since).await;
        for node in [&mut a, &mut b] {
            node.server.logged("cluster state readable again").await;
        }
        assert_eq!(cluster.divided(&[&a, &b]).await, shares);
    })
    .await;
}
