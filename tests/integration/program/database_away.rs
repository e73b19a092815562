//! A database that is away, or slow, or has failed over: mail goes on, and answers are honest.

#![expect(clippy::print_stdout, reason = "the helpers of tests are tests")]

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use sqlx::{Connection, Executor, PgConnection, Row, SqliteConnection};

use crate::admin;
use crate::support::servers::DatabaseServer;
use crate::support::servers::forwarder::Forwarder;
use crate::support::servers::mariadb::MariaDb;
use crate::support::servers::pgbouncer::{IGNORES, PgBouncer};
use crate::support::servers::postgres::Postgres;
use crate::support::world::{ACCOUNT_ID, Server, World, registration, registration_as};
use crate::support::{limited, soon, until};

/// The `busy_timeout` of these tests: longer than a command behind a registration may wait.
const BUSY: Duration = Duration::from_secs(12);

/// For what has to happen within two seconds, on a machine that is busy. Less than `BUSY`, which is
/// what a command would take that waits for a registration.
const AT_ONCE: Duration = Duration::from_secs(9);

/// How a database is away.
enum Away {
    /// SQLite: another program holds the write lock.
    Locked(SqliteConnection),
    /// A server: nobody listens.
    Down(Box<dyn DatabaseServer>),
    /// A server: nothing comes back from its address.
    Silent(Forwarder),
}

impl Away {
    async fn begin(&mut self) {
        match self {
            Self::Locked(beside) => drop(beside.execute("begin exclusive").await.unwrap()),
            Self::Down(server) => tokio::task::block_in_place(|| server.stop()),
            Self::Silent(network) => network.freeze(),
        }
    }

    async fn end(&mut self) {
        match self {
            Self::Locked(beside) => drop(beside.execute("commit").await.unwrap()),
            Self::Down(server) => tokio::task::block_in_place(|| server.restart()),
            Self::Silent(network) => network.thaw(),
        }
    }
}

fn patient(world: &World) {
    world.configure("busy_timeout = \"5s\"", &format!("busy_timeout = \"{}s\"", BUSY.as_secs()));
}

fn on_server(world: &World, url: &str) {
    patient(world);
    world.configure("[store]\n", &format!("[store]\nurl = \"{url}\"\n"));
    // It holds a password now.
    std::fs::set_permissions(world.file("proxy.toml"), Permissions::from_mode(0o600)).unwrap();
}

/// The program with an `[admin]` port.
async fn serve(world: &World) -> (Server, SocketAddr) {
    world.configure("[log]", "[admin]\naddress = \"127.0.0.1:0\"\n[log]");
    let mut server = world.serve().await;
    let admin = server.admin_address().await;
    (server, admin)
}

/// With a database that goes away while phones and mail clients are at work.
async fn goes_on_without(world: World, mut away: Away) {
    let (mut server, admin) = serve(&world).await;
    world.register(server.address).await.unwrap();
    world.watched().await;
    let ready = async { while admin::get(admin, "/readyz?exclude=backend").await.status != 200 {} };
    soon("it is ready", ready).await;

    let mut client = world.session(&server).await;
    client.send(b"s SELECT INBOX\r\n").await;
    client.until("s OK").await;
    away.begin().await;
    // All in one packet, two registrations first.
    let commands = format!(
        "r {}\r\nq {}\r\nn NOOP\r\nf STATUS INBOX (MESSAGES)\r\nx BADVERB\r\nz COMPRESS NONE\r\n",
        registration_as("another"),
        registration_as("and another")
    );
    let began = Instant::now();
    client.send(commands.as_bytes()).await;
    for expected in ["n OK", "f OK", "x BAD", "z BAD"] {
        let line = loop {
            let line = client.line().await;
            if !line.starts_with('*') {
                break line;
            }
        };
        assert!(line.starts_with(expected), "{line}");
    }
    let took = began.elapsed();
    println!("the commands behind a registration are answered within {took:?}");
    assert!(took < AT_ONCE, "{took:?}");
    // Others do not notice.
    let began = Instant::now();
    let mut other = world.session(&server).await;
    other.send(b"s SELECT INBOX\r\nl LOGOUT\r\n").await;
    other.until("l OK").await;
    println!("another session takes {:?}", began.elapsed());
    // Nor does who asks the program.
    let asked = Instant::now();
    let (watchers, ready) =
        tokio::join!(admin::get(admin, "/watchers"), admin::get(admin, "/readyz?exclude=backend"),);
    assert!(watchers.body.contains("\"account\":\"alice\""), "{}", watchers.body);
    assert_eq!(ready.status, 503, "{}", ready.body);
    println!("/watchers and /readyz answer within {:?}", asked.elapsed());
    // The registration is answered within busy_timeout, which began at most a second before.
    let answer = client.until("r ").await;
    let took = began.elapsed();
    assert!(answer.starts_with("r NO [UNAVAILABLE]"), "{answer}");
    println!("the registration gets its NO within {took:?} more");
    assert!(took < BUSY + AT_ONCE, "{took:?}");
    let answer = client.until("q ").await;
    assert!(answer.starts_with("q NO [UNAVAILABLE]"), "{answer}");

    away.end().await;
    let renewed = async {
        for number in 0.. {
            client.send(format!("a{number} {}\r\n", registration_as("third")).as_bytes()).await;
            if client.until(&format!("a{number} ")).await.contains(" OK ") {
                return;
            }
        }
    };
    soon("a registration is taken again", renewed).await;
    client.send(format!("b {}\r\n", registration()).as_bytes()).await;
    client.until("b OK").await;
    world.deliver();
    world.push().await;

    // An end in the middle of it.
    away.begin().await;
    client.send(format!("e {}\r\ng NOOP\r\n", registration_as("fourth")).as_bytes()).await;
    client.until("g OK").await;
    let asked = Instant::now();
    server.process.signal("TERM");
    let last = client.rest().await;
    assert!(last.starts_with("e NO [UNAVAILABLE]") && last.contains("* BYE"), "{last}");
    drop(client);
    assert_eq!(server.process.end().await.code(), Some(0));
    let took = asked.elapsed();
    println!("the end takes {took:?}");
    assert!(took < 2 * BUSY, "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_file_that_is_locked_holds_up_no_mail() {
    limited(async {
        let world = World::new().await;
        patient(&world);
        // It is made, so that it can be locked.
        drop(world.serve().await);
        let url = format!("sqlite://{}", world.file("mailchime.db").display());
        let beside = SqliteConnection::connect(&url).await.unwrap();
        goes_on_without(world, Away::Locked(beside)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_is_down_holds_up_no_mail() {
    let test = "program::database_away::a_postgres_that_is_down_holds_up_no_mail";
    let Some(postgres) = Postgres::start(test) else { return };
    limited(async {
        let world = World::new().await;
        on_server(&world, &postgres.url());
        goes_on_without(world, Away::Down(Box::new(postgres))).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mariadb_that_is_down_holds_up_no_mail() {
    let test = "program::database_away::a_mariadb_that_is_down_holds_up_no_mail";
    let Some(mariadb) = MariaDb::start(test) else { return };
    limited(async {
        let world = World::new().await;
        on_server(&world, &mariadb.database_url());
        goes_on_without(world, Away::Down(Box::new(mariadb))).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_says_nothing_holds_up_no_mail() {
    let test = "program::database_away::a_postgres_that_says_nothing_holds_up_no_mail";
    let Some(postgres) = Postgres::start(test) else { return };
    limited(async {
        let world = World::new().await;
        let network = Forwarder::start(postgres.address).await;
        on_server(&world, &network.url(&postgres.url(), postgres.address));
        goes_on_without(world, Away::Silent(network)).await;
    })
    .await;
}

/// A world whose database says nothing until the network thaws.
async fn without_answer(postgres: &Postgres) -> (World, Forwarder) {
    let world = World::new().await;
    let network = Forwarder::start(postgres.address).await;
    network.freeze();
    on_server(&world, &network.url(&postgres.url(), postgres.address));
    (world, network)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_without_its_database_serves_mail_and_takes_registrations_later() {
    let test = "program::database_away::a_start_without_its_database_serves_mail_and_takes_registrations_later";
    let Some(postgres) = Postgres::start(test) else { return };
    limited(async {
        let (world, network) = without_answer(&postgres).await;
        let began = Instant::now();
        let (server, admin) = serve(&world).await;
        let mut client = world.session(&server).await;
        client.send(b"s SELECT INBOX\r\n").await;
        client.until("s OK").await;
        println!("mail is served {:?} after the start", began.elapsed());
        let answer = admin::get(admin, "/watchers").await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        network.thaw();
        let registered = async { while world.register(server.address).await.is_err() {} };
        soon("a registration is taken", registered).await;
        world.watched().await;
        world.deliver();
        world.push().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vapid_key_that_no_start_could_make_is_made_when_the_database_answers() {
    let test = "program::database_away::a_vapid_key_that_no_start_could_make_is_made_when_the_database_answers";
    let Some(postgres) = Postgres::start(test) else { return };
    limited(async {
        let (world, network) = without_answer(&postgres).await;
        let key = world.file("webpush.key");
        let table = "[webpush]\ncontact = \"mailto:a@example.org\"\nkey_file = \"webpush.key\"\n[log]";
        world.configure("[log]", table);
        let mut server = world.serve().await;
        let line = server
            .logged(
                "the file of the VAPID key is missing, and the database does not say whether browsers have subscribed with \
                 it; mail goes on, and nothing is pushed to browsers; mailchime asks again",
            )
            .await;
        assert_eq!(line["level"], "ERROR");
        assert!(!key.exists());
        network.thaw();
        server
            .logged("made the key by which push services know mailchime; keep a copy of the file")
            .await;
        assert!(key.exists());
    })
    .await;
}

/// A whole day behind PgBouncer: a registration, mail, a restart, another password's login.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_pgbouncer_in_transaction_mode_no_push_is_lost() {
    let test = "program::database_away::behind_pgbouncer_in_transaction_mode_no_push_is_lost";
    let Some(postgres) = Postgres::start(test) else { return };
    let Some(bouncer) = PgBouncer::start(test, &postgres, "transaction", IGNORES) else { return };
    limited(async {
        let world = World::new().await;
        on_server(&world, &bouncer.url(&postgres.url(), postgres.address));
        let mut server = world.serve().await;
        for restart in 0..2 {
            if restart > 0 {
                server = world.serve().await;
            }
            world.register(server.address).await.unwrap();
            world.watched().await;
            for _ in 0..10 {
                world.deliver();
                world.push().await;
            }
            server.process.signal("TERM");
            assert_eq!(server.process.end().await.code(), Some(0));
            soon("nobody in IDLE", world.backend.wait_until(|now| now.idling == 0)).await;
            let log = server.process.stderr.seen.join("\n");
            assert!(!log.contains("\"level\":\"ERROR\""), "{log}");
        }
    })
    .await;
}

/// Two nodes whose database fails over behind its address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_switchover_phones_register_and_are_pushed_within_seconds() {
    let test =
        "program::database_away::after_a_switchover_phones_register_and_are_pushed_within_seconds";
    let Some(primary) = Postgres::start(test) else { return };
    limited(async {
        let standby = tokio::task::block_in_place(|| primary.standby());
        let address = Forwarder::start(primary.address).await;
        let world = World::new().await;
        on_server(&world, &address.url(&primary.url(), primary.address));
        let (server, admin) = serve(&world).await;
        world.register(server.address).await.unwrap();
        world.watched().await;
        world.deliver();
        world.push().await;

        // The old primary stays alive, and lets nobody write. Then the standby takes over.
        let mut old = PgConnection::connect(&primary.url()).await.unwrap();
        old.execute("alter system set default_transaction_read_only = on").await.unwrap();
        old.execute("select pg_reload_conf()").await.unwrap();
        let lag = "select count(*) from pg_stat_replication \
                   where replay_lsn < pg_current_wal_lsn()";
        until(async || sqlx::query(lag).fetch_one(&mut old).await.unwrap().get::<i64, _>(0) == 0)
            .await;
        let fenced = async {
            while admin::get(admin, "/readyz?exclude=backend").await.status != 503 {}
            admin::get(admin, "/readyz?exclude=backend").await
        };
        let told = soon("/readyz says that nothing can be written", fenced).await;
        assert!(told.body.contains("read-only"), "{}", told.body);
        tokio::task::block_in_place(|| standby.promote());
        let mut client = world.session(&server).await;
        client.send(format!("r {}\r\n", registration_as("another")).as_bytes()).await;
        client.until("r NO [UNAVAILABLE]").await;

        address.move_to(standby.address);
        let moved = Instant::now();
        client.send(format!("s {}\r\n", registration_as("third")).as_bytes()).await;
        let answer = client.until("s ").await;
        println!("after the address has moved: {answer:?} within {:?}", moved.elapsed());
        assert!(answer.starts_with("s OK"), "{answer}");
        let ready =
            async { while admin::get(admin, "/readyz?exclude=backend").await.status != 200 {} };
        soon("it is ready again", ready).await;
        client.send(format!("t {}\r\n", registration()).as_bytes()).await;
        client.until("t OK").await;
        world.deliver();
        // What was pushed while nothing could be written may be pushed again, under the id of then.
        let told =
            async { while world.apns.next().await.json()["aps"]["account-id"] != ACCOUNT_ID {} };
        soon("a push under the newest id", told).await;
        let mut new = PgConnection::connect(&standby.url()).await.unwrap();
        let known = "select count(*) from subscription";
        assert_eq!(sqlx::query(known).fetch_one(&mut new).await.unwrap().get::<i64, _>(0), 1);
    })
    .await;
}
