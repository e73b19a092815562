//! Several mail servers behind one mailchime: what one of them was trusted with reaches no other, and
//! who has an account there hears of nobody else's mail.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use mailchime::demo::apns::Push;
use mailchime::demo::backend::DemoBackend;
use mailchime::demo::phone::{Phone, PhoneError, Registered};
use serde_json::Value;
use sqlx::{Connection, SqliteConnection};

use crate::support::line::Client;
use crate::support::world::{LOGIN, MAIL, PASSWORD, Server, TOKEN, World, registration};
use crate::support::{limited, listener, soon};

/// A user of the domain with a route.
const TENANT: &str = "alice@b.example";

const MASTER: &str = "the master's password";

async fn other_backend(accounts: &[(&str, &str)]) -> DemoBackend {
    let backend = DemoBackend::start(listener().await, None).unwrap();
    for (login, password) in accounts {
        backend.add_account(login, password.as_bytes());
    }
    backend
}

/// A route of the tenant's domain, with more keys.
fn route(to: &DemoBackend, keys: &str) -> String {
    let address = to.address();
    format!("[[route]]\ndomain = \"b.example\"\naddress = \"{address}\"\ntls = \"none\"\n{keys}")
}

async fn reload(world: &World, server: &mut Server, old: &str, new: &str) {
    world.configure(old, new);
    server.process.signal("HUP");
    server.logged("configuration reloaded").await;
}

async fn register(world: &World, server: &Server) -> Result<Registered, PhoneError> {
    let phone = Phone { login: TENANT.into(), ..world.phone() };
    phone.register(server.address, "localhost", &world.pki.ca.certificate, |_, _| {}).await
}

/// How the tenant's account is watched, once its state is this.
async fn watcher(world: &World, state: &str) -> Value {
    let wait = async {
        loop {
            let told = world.command(&["watchers", "--json"]).await.json()["watchers"][0].clone();
            if told["state"] == state {
                return told;
            }
        }
    };
    soon(state, wait).await
}

fn token_of(push: &Push) -> String {
    push.token.as_ref().unwrap().to_lowercase()
}

fn logins(backend: &DemoBackend, login: &str) -> u64 {
    backend.counters().logins.get(login).copied().unwrap_or_default()
}

/// The password of a master user opens every mailbox of its server: it is sent to that one alone.
#[tokio::test]
async fn the_masters_password_goes_to_no_backend_that_has_not_got_it() {
    limited(async {
        let world = World::new().await;
        let acting = format!("{TENANT}*boss");
        let other = other_backend(&[(TENANT, PASSWORD), (&acting, MASTER)]).await;
        world.backend.add_account(TENANT, PASSWORD.as_bytes());
        let file = world.file("master.password");
        fs::write(&file, MASTER).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let master = "master_user = \"boss\"\nmaster_password_file = \"master.password\"\n\
                      login_template = \"{user}*{master}\"\n";
        world.configure("[backend]\n", &format!("[backend]\n{master}"));
        let with = route(&other, master);
        let mode = "[credentials]\nmode = \"master\"\n[log]";
        world.configure("[log]", &format!("{with}{mode}"));
        let mut server = world.serve_with_admin().await;
        register(&world, &server).await.unwrap();
        watcher(&world, "watching").await;
        assert_eq!(logins(&other, &acting), 1);

        // The other server is somebody else's from now on.
        let without = route(&other, "");
        reload(&world, &mut server, &with, &without).await;
        let parked = watcher(&world, "parked").await;
        assert_eq!(parked["reason"], "its backend has no master_user");
        let refused = register(&world, &server).await.unwrap_err();
        assert!(matches!(refused, PhoneError::NotOffered), "{refused}");
        let tried = |backend: &DemoBackend| {
            let counters = backend.counters();
            let all = counters.logins.into_iter().chain(counters.refused);
            all.filter(|(login, _)| login.ends_with("*boss")).map(|(_, count)| count).sum::<u64>()
        };
        assert_eq!((tried(&other), tried(&world.backend)), (1, 0));

        // And so it is after a start, which says so; `check` does not try it either.
        server.process.kill();
        let mut server = world.serve().await;
        let said = "[[route]] b.example has no master_user: its accounts are not watched, and their \
                    phones are not offered push";
        server.process.stderr.find(said, |line| line.contains(said).then_some(())).await;
        watcher(&world, "parked").await;
        let said = world.command(&["check", "--login", TENANT]).await;
        said.line(&format!("FAILED   watching {TENANT}: "));
        said.line("warning  configuration: [[route]] b.example has no master_user: ");
        assert_eq!((tried(&other), tried(&world.backend)), (1, 0));

        // Until it is the operator's own again.
        reload(&world, &mut server, &without, &with).await;
        watcher(&world, "watching").await;
        assert_eq!(tried(&other), 2);
    })
    .await;
}

/// The tenant's registration in a session of the test's.
async fn register_in(client: &mut Client, token: &str) -> String {
    client.send(format!("r {}\r\n", registration().replace(TOKEN, token)).as_bytes()).await;
    client.until("r ").await
}

async fn log_in(world: &World, server: &Server, password: &str) -> Client {
    let mut client = world.client(server).await;
    client.send(format!("in LOGIN {TENANT} \"{password}\"\r\n").as_bytes()).await;
    client.until("in OK").await;
    client
}

/// The tokens of the tenant's devices, as they are listed, each with its backend.
async fn devices(world: &World) -> Vec<(String, String)> {
    let said = world.command(&["devices", "list", "--json"]).await.json();
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let devices = said["subscriptions"].as_array().unwrap().iter();
    devices.map(|device| (text(&device["endpoint"]), text(&device["backend"]))).collect()
}

/// A route is removed: the former tenant's password goes to no other server, and the former tenant's
/// phone hears nothing of the namesake who is there.
#[tokio::test]
async fn an_account_is_parked_where_its_backend_is_another_one() {
    limited(async {
        let world = World::new().await;
        let other = other_backend(&[(TENANT, PASSWORD)]).await;
        world.backend.add_account(TENANT, b"another secret");
        let routed = route(&other, "");
        world.configure("[log]", &format!("{routed}[log]"));
        let mut server = world.serve_with_admin().await;
        let recorded = other.address().to_string();
        register(&world, &server).await.unwrap();
        watcher(&world, "watching").await;
        // A session that goes on, at the server that the route leads to.
        let mut session = log_in(&world, &server, PASSWORD).await;

        reload(&world, &mut server, &routed, "").await;
        let parked = watcher(&world, "parked").await;
        let why = parked["reason"].as_str().unwrap();
        assert!(
            why.starts_with(&format!("it registered at {recorded}, and its backend is ")),
            "{why}"
        );
        let said = world.command(&["push", TENANT]).await;
        assert!(said.code == 1 && said.stderr.contains("is parked"), "{}", said.stderr);
        let said = world.command(&["push", TENANT, "--explain"]).await;
        assert!(said.stdout.contains("its account registered at"), "{}", said.stdout);

        // Neither a login of the namesake nor a restart sends anything anywhere.
        drop(log_in(&world, &server, "another secret").await);
        world.backend.deliver(TENANT, "INBOX", MAIL).unwrap();
        server.process.kill();
        let mut server = world.serve().await;
        watcher(&world, "parked").await;
        let counters = world.backend.counters();
        assert_eq!(counters.refused.get(TENANT), None, "the former password was tried");
        assert_eq!((logins(&world.backend, TENANT), logins(&other, TENANT)), (1, 3));
        assert_eq!(world.apns.received(), 0);
        assert_eq!(devices(&world).await, [("8df2a4c1…".to_owned(), recorded.clone())]);
        drop(session.rest().await);

        // The route leads back, and the account is itself again.
        reload(&world, &mut server, "[log]", &format!("{routed}[log]")).await;
        watcher(&world, "watching").await;
        other.deliver(TENANT, "INBOX", MAIL).unwrap();
        world.push().await;
        assert_eq!(other.counters().refused.get(TENANT), None);
    })
    .await;
}

/// Of two people of one name, one after the other, neither's phone wakes for the other's mail.
#[tokio::test]
async fn a_former_tenants_phone_hears_nothing_of_the_new_one() {
    limited(async {
        let world = World::new().await;
        let other = other_backend(&[(TENANT, PASSWORD)]).await;
        world.backend.add_account(TENANT, b"another secret");
        let routed = route(&other, "");
        world.configure("[log]", &format!("{routed}[log]"));
        let mut server = world.serve_with_admin().await;
        register(&world, &server).await.unwrap();
        watcher(&world, "watching").await;
        let mut former = log_in(&world, &server, PASSWORD).await;
        reload(&world, &mut server, &routed, "").await;

        let namesake = "77".repeat(32);
        let mut client = log_in(&world, &server, "another secret").await;
        assert!(register_in(&mut client, &namesake).await.starts_with("r OK"));
        watcher(&world, "watching").await;
        let here = world.backend.address().to_string();
        assert_eq!(devices(&world).await, [("77777777…".to_owned(), here.clone())]);
        // The former tenant is still connected to the former server, and registers no more.
        let refused = register_in(&mut former, TOKEN).await;
        assert!(refused.starts_with("r NO"), "{refused}");
        assert_eq!(devices(&world).await.len(), 1);

        other.deliver(TENANT, "INBOX", MAIL).unwrap();
        world.backend.deliver(TENANT, "INBOX", MAIL).unwrap();
        let push = soon("a push", world.apns.next()).await;
        assert_eq!(token_of(&push), namesake);
        assert_eq!(world.apns.received(), 1);
        assert_eq!(world.backend.counters().refused.get(TENANT), None);
        assert_eq!(logins(&other, TENANT), 3);
    })
    .await;
}

/// A backend that has a name keeps its accounts when only its address changes, and gets the name
/// without losing any.
#[tokio::test]
async fn a_backend_with_a_name_keeps_its_accounts_at_another_address() {
    limited(async {
        let world = World::new().await;
        let mut server = world.serve_with_admin().await;
        world.register(server.address).await.unwrap();
        watcher(&world, "watching").await;
        let named = "[backend]\nname = \"main\"\n";
        reload(&world, &mut server, "[backend]\n", named).await;
        watcher(&world, "watching").await;
        let recorded = async { while devices(&world).await[0].1 != "main" {} };
        soon("the name is recorded", recorded).await;

        let moved = other_backend(&[(LOGIN, PASSWORD)]).await;
        let (from, to) = (world.backend.address().to_string(), moved.address().to_string());
        reload(&world, &mut server, &from, &to).await;
        soon("a watcher there", moved.wait_until(|counters| counters.idling > 0)).await;
        moved.deliver(LOGIN, "INBOX", MAIL).unwrap();
        world.push().await;

        // Without the name it is another server.
        reload(&world, &mut server, named, "[backend]\n").await;
        let parked = watcher(&world, "parked").await;
        assert!(parked["reason"].as_str().unwrap().starts_with("it registered at main, "));
    })
    .await;
}

/// After an upgrade no backend is recorded for the accounts: they stay with the one that they have.
#[tokio::test]
async fn accounts_of_before_belong_to_the_backend_that_they_have() {
    limited(async {
        let world = World::new().await;
        let server = world.serve_with_admin().await;
        world.register(server.address).await.unwrap();
        server.process.kill();
        let url = format!("sqlite://{}", world.file("mailchime.db").display());
        let mut database = SqliteConnection::connect(&url).await.unwrap();
        sqlx::query("update account set backend = null").execute(&mut database).await.unwrap();
        assert_eq!(devices(&world).await[0].1, "-");

        let _server = world.serve().await;
        watcher(&world, "watching").await;
        world.deliver();
        world.push().await;
        assert_eq!(devices(&world).await[0].1, world.backend.address().to_string());
    })
    .await;
}

/// The tokens of the devices that a test push reaches.
async fn pushed(world: &World) -> Vec<String> {
    let said = world.command(&["push", TENANT, "--json"]).await.json();
    let devices = said["subscriptions"].as_array().unwrap().iter();
    let mut pushed: Vec<_> =
        devices.map(|it| it["endpoint"].as_str().unwrap().to_owned()).collect();
    for _ in &pushed {
        soon("a test push", world.apns.next()).await;
    }
    pushed.sort();
    pushed
}

/// A stolen phone goes on to chime for as long as its registration lives, unless the new password
/// ends that. By `mode` of `[credentials]`.
async fn a_new_password_forgets(mode: &str) {
    let world = World::new().await;
    world.backend.add_account(TENANT, PASSWORD.as_bytes());
    world.configure("[store]", &format!("[credentials]\nmode = \"{mode}\"\n[store]"));
    world.configure("[push]\n", "[push]\nforget_subscriptions_on_password_change = true\n");
    let server = world.serve_with_admin().await;
    let [stolen, own, late] = ["5a".repeat(32), "0b".repeat(32), "1c".repeat(32)];
    let mut thief = log_in(&world, &server, PASSWORD).await;
    assert!(register_in(&mut thief, &stolen).await.starts_with("r OK"));
    let mut client = log_in(&world, &server, PASSWORD).await;
    assert!(register_in(&mut client, &own).await.starts_with("r OK"));
    watcher(&world, "watching").await;
    assert_eq!(pushed(&world).await, ["0b0b0b0b…", "5a5a5a5a…"]);

    world.backend.set_password(TENANT, b"a new one").unwrap();
    let mut client = log_in(&world, &server, "a new one").await;
    assert!(register_in(&mut client, &own).await.starts_with("r OK"));
    assert_eq!(pushed(&world).await, ["0b0b0b0b…"]);
    // The session of before is still open, and makes no device live: not its own, nor another.
    assert!(register_in(&mut thief, &stolen).await.starts_with("r OK"));
    assert!(register_in(&mut thief, &late).await.starts_with("r OK"));
    assert_eq!(pushed(&world).await, ["0b0b0b0b…"]);
    // Nor does it bring its password back: the watcher finds that it is refused, once, and goes on with
    // the new one.
    world.backend.drop_connections();
    watcher(&world, "watching").await;
    world.backend.deliver(TENANT, "INBOX", MAIL).unwrap();
    let push = soon("a push", world.apns.next()).await;
    assert_eq!(token_of(&push), own);
    assert_eq!(world.backend.counters().refused.get(TENANT), Some(&1));
    world.backend.drop_connections();
    watcher(&world, "watching").await;
    assert_eq!(world.backend.counters().refused.get(TENANT), Some(&1));
}

#[tokio::test]
async fn a_device_of_an_old_password_is_forgotten_where_passwords_are_stored() {
    limited(a_new_password_forgets("stored")).await;
}

#[tokio::test]
async fn a_device_of_an_old_password_is_forgotten_where_passwords_are_in_memory() {
    limited(a_new_password_forgets("memory")).await;
}
