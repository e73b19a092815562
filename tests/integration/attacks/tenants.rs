//! Several mail servers behind one mailchime: what one of them was trusted with reaches no other, and
//! who has an account there hears of nobody else's mail.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use mailchime::demo::backend::Backend;
use mailchime::demo::phone::{Phone, PhoneError, Registered};
use serde_json::Value;

use super::limited;
use crate::program::soon;
use crate::program::world::{PASSWORD, Server, World, listener};

/// A user of the domain with a route.
const TENANT: &str = "alice@b.example";

const MASTER: &str = "the master's password";

async fn other_backend(accounts: &[(&str, &str)]) -> Backend {
    let backend = Backend::start(listener().await, None).unwrap();
    for (login, password) in accounts {
        backend.add_account(login, password.as_bytes());
    }
    backend
}

/// A route of the tenant's domain, with more keys.
fn route(to: &Backend, keys: &str) -> String {
    let address = to.address();
    format!("[[route]]\ndomain = \"b.example\"\naddress = \"{address}\"\ntls = \"none\"\n{keys}")
}

async fn reload(world: &World, server: &mut Server, old: &str, new: &str) {
    world.configure(old, new);
    server.process.signal("HUP");
    server.logged("the configuration was read again").await;
}

async fn register(world: &World, server: &Server) -> Result<Registered, PhoneError> {
    let phone = Phone { login: TENANT.into(), ..world.phone() };
    phone.register(server.address, "localhost", &world.pki.ca.certificate, |_, _| {}).await
}

/// How the tenant's account is watched, once its state is this.
async fn watcher(world: &World, state: &str) -> Value {
    let wait = async {
        loop {
            let told = world.command(&["watchers", "--json"]).await.json()["watchers"][0].take();
            if told["state"] == state {
                return told;
            }
        }
    };
    soon(state, wait).await
}

fn logins(backend: &Backend, login: &str) -> u64 {
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
        let tried = |backend: &Backend| {
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
        assert!(server.process.stderr.seen.iter().any(|line| line.contains(said)));
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
