//! `[credentials]` mode `master`: one user of the server watches for all, and no user's password is
//! kept.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use mailchime::demo::phone::Phone;
use tokio::task::block_in_place;

use super::admin::Said;
use crate::support::sasl::scram;
use crate::support::servers::cyrus::{self, Cyrus};
use crate::support::servers::dovecot::{self, Dovecot, Options};
use crate::support::servers::{User, mail};
use crate::support::world::{ACCOUNT_ID, LOGIN, PASSWORD, World, registration};
use crate::support::{limited, soon};

impl World {
    /// Watches as this master user of the backend; `template` is a line of the configuration.
    fn watch_as(&self, (name, password): User<'_>, template: &str) {
        let file = self.file("master.password");
        fs::write(&file, format!("{password}\n")).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
        let master = format!(
            "[backend]\nmaster_user = \"{name}\"\nmaster_password_file = \"master.password\"\n\
             {template}\n"
        );
        self.configure("[backend]\n", &master);
        self.configure("[store]\n", "[credentials]\nmode = \"master\"\n[store]\n");
    }

    /// What `check --login` says of the only user.
    async fn checked(&self) -> Said {
        let said = self.command(&["check", "--login", LOGIN]).await;
        let probe = soon("the push that cannot be", self.apns.next()).await;
        assert_eq!(probe.json(), serde_json::json!({ "aps": {} }));
        said
    }

    /// How the only account is watched, once it is so.
    async fn until_watched(&self, state: &str) -> serde_json::Value {
        let wait = async {
            loop {
                let watcher =
                    self.command(&["watchers", "--json"]).await.json()["watchers"][0].clone();
                if watcher["state"] == state {
                    return watcher;
                }
            }
        };
        soon(state, wait).await
    }
}

async fn dovecot_is_watched(test: &str, template: &str) {
    let options = Options { master: true, ..Options::default() };
    let Some(mut dovecot) = Dovecot::start(test, &options) else { return };
    let world = World::new().await;
    world.in_front_of(dovecot.plain);
    world.watch_as(dovecot::MASTER, template);
    let server = world.serve_with_admin().await;
    let said = world.checked().await;
    assert_eq!(said.code, 0, "{}\n{}", said.stdout, said.stderr);
    said.line("ok       boss as alice: ");

    world.register(server.address).await.unwrap();
    world.until_watched("watching").await;
    block_in_place(|| dovecot.deliver_by_lmtp(LOGIN, &mail("the first")));
    world.push().await;

    // Whatever alice's password is by now: the session that registered is over, and so is that of
    // the watcher.
    block_in_place(|| {
        dovecot.set_password(LOGIN, "another");
        dovecot.restart();
        dovecot.deliver_by_lmtp(LOGIN, &mail("the second"));
    });
    world.push().await;

    server.process.kill();
    for file in fs::read_dir(world.folder()).unwrap() {
        let path = file.unwrap().path();
        let content = fs::read(&path).unwrap();
        for secret in [PASSWORD, dovecot::MASTER.1] {
            let held = content.windows(secret.len()).any(|it| it == secret.as_bytes());
            let own = path.ends_with("master.password") && secret == dovecot::MASTER.1;
            assert_eq!(held, own, "{}", path.display());
        }
    }
    let url = format!("sqlite://{}", world.file("mailchime.db").display());
    let mut database = <sqlx::SqliteConnection as sqlx::Connection>::connect(&url).await.unwrap();
    let kept = "select count(*), count(credentials) from account";
    let kept: (i64, i64) = sqlx::query_as(kept).fetch_one(&mut database).await.unwrap();
    assert_eq!(kept, (1, 0), "accounts, and kept credentials");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dovecot_by_authorization_identity() {
    limited(dovecot_is_watched("program::master::dovecot_by_authorization_identity", "")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dovecot_by_login_name() {
    let template = "login_template = \"{user}*{master}\"";
    limited(dovecot_is_watched("program::master::dovecot_by_login_name", template)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cyrus_by_authorization_identity() {
    let Some(mut cyrus) = Cyrus::start("program::master::cyrus") else { return };
    limited(async {
        let world = World::new().await;
        world.in_front_of(cyrus.plain);
        world.watch_as(cyrus::ADMIN, "");
        let server = world.serve_with_admin().await;
        let said = world.checked().await;
        said.line("ok       cyrus as alice: ");
        world.register(server.address).await.unwrap();
        for subject in ["the first", "the second"] {
            world.until_watched("watching").await;
            block_in_place(|| cyrus.deliver(LOGIN, &mail(subject)));
            world.push().await;
            block_in_place(|| cyrus.restart());
        }
    })
    .await;
}

/// Each of fifty phones comes with a good password of its user; the master's is wrong.
#[tokio::test]
async fn a_wrong_master_password_is_tried_by_few_accounts_and_reported() {
    limited(async {
        let world = World::new().await;
        world.watch_as(("boss", "wrong"), "login_template = \"{user}*{master}\"");
        let mut server = world.serve_with_admin().await;
        let at = server.address;
        let register = |number: usize| {
            let login = format!("user{number}");
            world.backend.add_account(&login, PASSWORD.as_bytes());
            let phone = Phone { login, ..world.phone() };
            let (address, ca) = (at, world.pki.ca.certificate.clone());
            async move { phone.register(address, "localhost", &ca, |_, _| {}).await.unwrap() }
        };
        for number in 0..50 {
            register(number).await;
        }
        let message =
            "the backend refuses the master user for any account; mailchime begins no watching there until it is accepted";
        let line = server.logged(message).await;
        assert_eq!(line["level"], "ERROR");
        assert!(line["remedy"].as_str().unwrap().contains("master_password_file"), "{line}");
        // Their users log in again, which helps nobody.
        for number in 0..50 {
            register(number).await;
        }
        let waiting = |said: &serde_json::Value| {
            let all = said["watchers"].as_array().unwrap();
            let why = |it: &serde_json::Value| it["reason"].as_str().map(str::to_owned);
            let refused = all.iter().filter_map(why).filter(|why| why.contains("master user"));
            (all.len(), refused.count())
        };
        let all = async {
            while waiting(&world.command(&["watchers", "--json"]).await.json()) != (50, 50) {}
        };
        soon("all wait", all).await;
        let refused = world.backend.counters().refused;
        assert_eq!(refused.values().sum::<u64>(), 3, "{refused:?}");
        assert!(refused.keys().all(|name| name.ends_with("*boss")), "{refused:?}");

        let said = world.checked().await;
        let line = said.line("FAILED   boss as alice: ");
        assert!(line.contains("AUTHENTICATIONFAILED") && line.contains("login_template"), "{line}");
    })
    .await;
}

/// One user whom the server knows no more is no reason to leave the others unwatched.
#[tokio::test]
async fn whom_the_master_may_not_act_as_waits_alone() {
    limited(async {
        let world = World::new().await;
        world.watch_as(("boss", "masterpw"), "login_template = \"{user}*{master}\"");
        for login in ["alice*boss", "carol*boss"] {
            world.backend.add_account(login, b"masterpw");
        }
        for login in ["bob", "carol"] {
            world.backend.add_account(login, PASSWORD.as_bytes());
        }
        let server = world.serve_with_admin().await;
        for login in ["bob", LOGIN, "carol"] {
            let phone = Phone { login: login.into(), ..world.phone() };
            let ca = &world.pki.ca.certificate;
            phone.register(server.address, "localhost", ca, |_, _| {}).await.unwrap();
        }
        soon("two in IDLE", world.backend.wait_until(|counters| counters.idling == 2)).await;
        world.backend.deliver("alice*boss", "INBOX", crate::support::world::MAIL).unwrap();
        let push = soon("a push", world.apns.next()).await;
        assert_eq!(push.json()["aps"]["account-id"], ACCOUNT_ID);
        let refused = async {
            loop {
                let said = world.command(&["watchers", "--json"]).await.json();
                let mut all = said["watchers"].as_array().unwrap().iter();
                let bob = all.find(|it| it["account"] == "bob").unwrap();
                if bob["state"] == "backing_off" {
                    break bob.clone();
                }
            }
        };
        let bob = soon("bob waits", refused).await;
        assert_eq!(world.backend.counters().refused.values().sum::<u64>(), 1);
        let wait = bob["next_try_at"].as_i64().unwrap() - bob["since"].as_i64().unwrap();
        assert!(Duration::from_millis(wait.unsigned_abs()) > Duration::from_mins(9), "{bob}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_whose_login_hides_the_password_is_watched_too() {
    let options = Options { master: true, ..Options::default() };
    let test = "program::master::a_user_whose_login_hides_the_password_is_watched_too";
    let Some(dovecot) = Dovecot::start(test, &options) else { return };
    limited(async {
        let world = World::new().await;
        world.in_front_of(dovecot.plain);
        world.watch_as(dovecot::MASTER, "login_template = \"{user}*{master}\"");
        let mut server = world.serve_with_admin().await;
        // It shows what Dovecot offers.
        world.session(&server).await;

        let mut client = world.client(&server).await;
        let (answer, _) = scram(&mut client, (LOGIN, "wrong")).await;
        assert!(answer.starts_with("in NO [AUTHENTICATIONFAILED]"), "{answer}");
        assert_eq!(server.logged("login refused").await["account"], LOGIN);
        let (answer, _) = scram(&mut client, (LOGIN, PASSWORD)).await;
        assert!(answer.starts_with("in OK [CAPABILITY "), "{answer}");
        assert_eq!(answer.matches(" XAPPLEPUSHSERVICE").count(), 1, "{answer}");
        client.send(format!("r {}\r\n", registration()).as_bytes()).await;
        let answer = client.until("r ").await;
        assert!(answer.starts_with("r OK"), "{answer}");
        assert_eq!(world.until_watched("watching").await["account"], LOGIN);
        block_in_place(|| dovecot.deliver_by_lmtp(LOGIN, &mail("hello")));
        world.push().await;
    })
    .await;
}
