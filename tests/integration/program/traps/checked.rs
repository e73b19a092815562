//! `mailchime check` is not content where `serve` would fail or nobody could log in, and ends as `serve` does.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use mailchime::store::Store;
use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection, PgConnection, SqliteConnection};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::support::ports::own_listener;
use crate::support::program::Process;
use crate::support::servers::mariadb::MariaDb;
use crate::support::servers::postgres::Postgres;
use crate::support::servers::{DatabaseServer, NOBODY};
use crate::support::world::World;
use crate::support::{limited, listener};

/// The address of a server that says this on each connection and answers each line of the client with the next one.
pub(super) async fn server_that_says(lines: &'static [&'static str]) -> SocketAddr {
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(say_to_all(listener, lines));
    address
}

async fn say_to_all(listener: TcpListener, lines: &'static [&'static str]) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut stream = tokio::io::BufStream::new(stream);
            for (at, line) in lines.iter().enumerate() {
                let mut heard = String::new();
                if at > 0
                    && tokio::io::AsyncBufReadExt::read_line(&mut stream, &mut heard).await? == 0
                {
                    break;
                }
                stream.write_all(line.as_bytes()).await?;
                stream.flush().await?;
            }
            // It stays, as long as the client does.
            tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut Vec::new()).await
        });
    }
}

/// An address that nobody else has: no test but these uses this one of loopback.
pub(super) fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.77.3.1:0").unwrap().local_addr().unwrap()
}

/// The status of `serve`, which does not start.
async fn serve_ends(world: &World) -> i32 {
    let mut process = Process::spawn(world.program());
    process.end().await.code().unwrap()
}

#[tokio::test]
async fn a_backend_that_takes_no_passwords_in_the_clear_is_not_ok() {
    limited(async {
        let world = World::new().await;
        let disabled: &[&str] =
            &["* OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED IDLE] hello\r\n"];
        world.in_front_of(server_that_says(disabled).await);
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 1, "{}", said.stdout);
        let line = said.line("FAILED   [backend]: ");
        for part in
            ["LOGINDISABLED", "nobody can log in", "tls = \"starttls\"", "login_trusted_networks"]
        {
            assert!(line.contains(part), "{part:?} is not in {line}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_backend_that_has_another_way_for_passwords_is_ok() {
    limited(async {
        let world = World::new().await;
        let plain: &[&str] = &["* OK [CAPABILITY IMAP4rev1 LOGINDISABLED AUTH=PLAIN] hello\r\n"];
        world.in_front_of(server_that_says(plain).await);
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 0, "{}", said.stdout);
        said.line("ok       [backend]: ");
    })
    .await;
}

#[tokio::test]
async fn a_port_that_another_program_has_is_not_ok_and_one_of_mailchime_is() {
    limited(async {
        let world = World::new().await;
        let other = server_that_says(&["* OK Another server ready\r\n"]).await;
        world.configure(
            "address = \"127.0.0.1:0\"",
            &format!("address = \"{other}\"\ntls = \"starttls\""),
        );
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 1, "{}", said.stdout);
        let line =
            said.line(&format!("FAILED   [[listener]]: {other}: another program listens there"));
        for part in ["says \"* OK Another server ready\"", "change [[listener]] address"] {
            assert!(line.contains(part), "{part:?} is not in {line}");
        }
        assert_eq!(serve_ends(&world).await, 1);

        // One that speaks no TLS where mailchime would.
        world.configure("\ntls = \"starttls\"", "");
        let said = world.command(&["check"]).await;
        said.line(&format!("FAILED   [[listener]]: {other}: another program listens there"));

        // Beside mailchime itself.
        let free = free_address();
        world.configure(&other.to_string(), &free.to_string());
        let said = world.command(&["check"]).await;
        assert!(said.line("ok       [[listener]]: ").contains("is free"), "{}", said.stdout);
        let server = world.serve().await;
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 0, "{}", said.stdout);
        let line = said.line(&format!("ok       [[listener]]: {}", server.address));
        assert!(line.contains("mailchime serves there already"), "{line}");
    })
    .await;
}

/// A folder of root that the user of the service can enter.
fn open_folder(world: &World) {
    fs::set_permissions(world.folder(), Permissions::from_mode(0o755)).unwrap();
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[tokio::test]
async fn files_that_the_user_of_the_service_cannot_read_are_not_ok() {
    if !is_root() {
        return crate::support::skip::report(
            "files_that_the_user…",
            "only root can look as another user",
        );
    }
    limited(async {
        let world = World::new().await;
        open_folder(&world);
        let check = async || world.command(&["check", "--user", "nobody"]).await;
        // Root can read all of them, and nobody the keys not.
        assert_eq!(world.command(&["check"]).await.code, 0);
        let said = check().await;
        assert_eq!(said.code, 64, "{}\n{}", said.stdout, said.stderr);
        let said = [&*said.stdout, &*said.stderr].concat();
        assert!(said.contains("server.key") && said.contains("cannot be read"), "{said}");

        let give = |name: &str| chown(world.file(name), Some(NOBODY), None).unwrap();
        ["server.key", "apns.key"].into_iter().for_each(give);
        let said = check().await;
        assert_eq!(said.code, 64, "{}", said.stdout);
        said.line("ok       user: files are looked at as nobody does");
        // Nothing can be made in root's folder.
        for part in ["[store]", "[credentials]"] {
            let line = said.line(&format!("FAILED   {part}: "));
            assert!(line.contains("make that writable"), "{line}");
        }
        chown(world.folder(), Some(NOBODY), None).unwrap();
        let said = check().await;
        assert_eq!(said.code, 0, "{}\n{}", said.stdout, said.stderr);

        // Unix sockets are files. Root can make them in a folder of root, and nobody cannot.
        fs::create_dir(world.file("of-root")).unwrap();
        let sockets = "[admin]\naddress = \"unix:of-root/admin.sock\"\n\
                       [events]\ncyrus_socket = \"of-root/c.sock\"\ncyrus_stream = \"of-root/s.sock\"\n[log]";
        world.configure("[log]", sockets);
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 0, "{}\n{}", said.stdout, said.stderr);
        let said = check().await;
        assert_eq!(said.code, 64, "{}\n{}", said.stdout, said.stderr);
        for part in ["[admin] address", "[events] cyrus_socket", "[events] cyrus_stream"] {
            let line = said.line(&format!("FAILED   {part}: "));
            assert!(line.contains("of-root takes no new files (Permission denied"), "{line}");
            assert!(!line.contains("1024"), "{line}");
        }
        chown(world.file("of-root"), Some(NOBODY), None).unwrap();
        assert_eq!(check().await.code, 0);

        let said = world.command(&["check", "--user", "no-such-user"]).await;
        assert_eq!(said.code, 64);
        assert!(said.stderr.contains("no such user"), "{}", said.stderr);
    })
    .await;
}

#[tokio::test]
async fn a_database_that_the_user_of_the_service_cannot_write_is_not_ok() {
    if !is_root() {
        return crate::support::skip::report(
            "a_database_that…",
            "only root can look as another user",
        );
    }
    limited(async {
        let world = World::new().await;
        open_folder(&world);
        ["server.key", "apns.key"]
            .into_iter()
            .for_each(|name| chown(world.file(name), Some(NOBODY), None).unwrap());
        // As a start by root left it, in a folder of root.
        let server = world.serve().await;
        server.process.kill();
        chown(world.folder(), Some(NOBODY), None).unwrap();
        let said = world.command(&["check", "--user", "nobody"]).await;
        assert_eq!(said.code, 64, "{}", said.stdout);
        let line = said.line("FAILED   [store]: ");
        for part in ["mailchime.db", "Permission denied", "-wal"] {
            assert!(line.contains(part), "{part:?} is not in {line}");
        }
    })
    .await;
}

/// An empty database on a server is what the first start wants to have.
async fn an_empty_database_is_ok(world: &World, url: &str) {
    world.configure("[store]\n", &format!("[store]\nurl = \"{url}\"\n"));
    // It has a password in it.
    fs::set_permissions(world.file("proxy.toml"), Permissions::from_mode(0o600)).unwrap();
    let said = world.command(&["check"]).await;
    assert_eq!(said.code, 0, "{}", said.stdout);
    let line = said.line("ok       [store]: ");
    assert!(line.contains("has no tables yet; the first start makes them"), "{line}");
    // It is right.
    let server = world.serve().await;
    drop(server);
    let said = world.command(&["check"]).await;
    assert!(said.line("ok       [store]: ").contains("0 accounts"), "{}", said.stdout);
}

/// A table that has the name of what `check` once made and dropped.
const ANOTHERS: &str = "create table mailchime_rights (name int, kept int)";

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_database_of_postgresql_is_ok_and_its_other_tables_are_left_alone() {
    let test = "program::traps::an_empty_database_of_postgresql_is_ok";
    let Some(postgres) = Postgres::start(test) else { return };
    limited(async {
        let mut beside = PgConnection::connect(&postgres.url()).await.unwrap();
        beside.execute(ANOTHERS).await.unwrap();
        an_empty_database_is_ok(&World::new().await, &postgres.url()).await;
        beside.execute("select name, kept from mailchime_rights").await.unwrap();
    })
    .await;
}

/// An older mailchime made the tables, as another user of the database.
#[tokio::test(flavor = "multi_thread")]
async fn older_tables_of_postgresql_that_another_user_owns_are_refused() {
    let test = "program::traps::older_tables_of_postgresql_that_another_user_owns_are_refused";
    let Some(postgres) = Postgres::start(test) else { return };
    limited(async {
        let patience = Duration::from_secs(5);
        Store::open(&postgres.url().parse().unwrap(), patience).await.unwrap().close().await;
        let mut beside = PgConnection::connect(&postgres.url()).await.unwrap();
        for sql in [
            "delete from _sqlx_migrations where version = (select max(version) from _sqlx_migrations)",
            "create table anothers (name int)",
            "create user \"Poor One\" password 'secret'",
            "grant all on schema public to \"Poor One\"",
            "grant all on all tables in schema public to \"Poor One\"",
        ] {
            beside.execute(sql).await.unwrap();
        }
        let url = format!("postgres://Poor%20One:secret@{}/postgres", postgres.address);
        let expected = [
            "must be owner of table",
            "ALTER TABLE public.subscription OWNER TO \"Poor One\"; ",
        ];
        let poor = World::new().await;
        a_database_without_rights_is_refused(&poor, &url, expected).await;
        let said = poor.command(&["check"]).await;
        let remedy = said.line("FAILED   [store]: ").split_once(" administrator: ").unwrap().1;
        assert!(!remedy.contains("anothers"), "{remedy}");
        beside.execute(AssertSqlSafe(remedy.to_owned())).await.unwrap();
        let said = poor.command(&["check"]).await;
        assert!(said.line("warning  [store]: ").contains("has an older schema"), "{}", said.stdout);
        // Whose they are may bring them up to date.
        let world = World::new().await;
        world.configure("[store]\n", &format!("[store]\nurl = \"{}\"\n", postgres.url()));
        fs::set_permissions(world.file("proxy.toml"), Permissions::from_mode(0o600)).unwrap();
        let said = world.command(&["check"]).await;
        assert!(said.line("warning  [store]: ").contains("has an older schema"), "{}", said.stdout);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_database_of_mariadb_is_ok_and_its_other_tables_are_left_alone() {
    let test = "program::traps::an_empty_database_of_mariadb_is_ok";
    let Some(mariadb) = MariaDb::start(test) else { return };
    limited(async {
        let mut beside = MySqlConnection::connect(&mariadb.database_url()).await.unwrap();
        beside.execute(ANOTHERS).await.unwrap();
        an_empty_database_is_ok(&World::new().await, &mariadb.database_url()).await;
        beside.execute("select name, kept from mailchime_rights").await.unwrap();
    })
    .await;
}

/// `check` ends as `serve` does where the user of the database may make no tables, and leaves nothing there.
async fn a_database_without_rights_is_refused(world: &World, url: &str, expected: [&str; 2]) {
    world.configure("[store]\n", &format!("[store]\nurl = \"{url}\"\n"));
    fs::set_permissions(world.file("proxy.toml"), Permissions::from_mode(0o600)).unwrap();
    let said = world.command(&["check"]).await;
    assert_eq!(said.code, 64, "{}", said.stdout);
    let line = said.line("FAILED   [store]: ");
    for part in expected {
        assert!(line.contains(part), "{part:?} is not in {line}");
    }
    assert_eq!(Process::spawn(world.program()).end().await.code(), Some(64));
}

/// What the documents have for a server's own shell, without its password. Of PostgreSQL, then of MariaDB.
fn documented() -> [Vec<String>; 2] {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/install.md");
    let page = fs::read_to_string(page).unwrap();
    ["### PostgreSQL", "### MariaDB"].map(|title| {
        let block = page.split(title).nth(1).unwrap().split("```sql\n").nth(1).unwrap();
        let block = block.split("```").next().unwrap();
        block.lines().map(|line| line.replace("'A-PASSWORD'", "'secret'")).collect()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_postgresql_who_may_make_no_table_is_refused_and_the_documented_one_is_not() {
    let test = "program::traps::a_user_of_postgresql_who_may_make_no_table_is_refused";
    let Some(postgres) = Postgres::start(test) else { return };
    limited(async {
        let mut beside = PgConnection::connect(&postgres.url()).await.unwrap();
        let own = ["create user poor password 'secret'", "create database poor"];
        // It gives no right to the schema, since PostgreSQL 15.
        let own = own.into_iter().chain(["grant all on database poor to poor"]).map(str::to_owned);
        for sql in own.chain(documented()[0].clone()) {
            beside.execute(AssertSqlSafe(sql)).await.unwrap();
        }
        let url = |name: &str| format!("postgres://{name}:secret@{}/{name}", postgres.address);
        let expected = ["permission denied for schema public", "let it own the database"];
        a_database_without_rights_is_refused(&World::new().await, &url("poor"), expected).await;
        an_empty_database_is_ok(&World::new().await, &url("mailchime")).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_mariadb_who_may_make_no_table_is_refused_and_the_documented_one_is_not() {
    let test = "program::traps::a_user_of_mariadb_who_may_make_no_table_is_refused";
    let Some(mariadb) = MariaDb::start(test) else { return };
    limited(async {
        let mut beside = MySqlConnection::connect(&mariadb.database_url()).await.unwrap();
        let poor = |rights: &str| format!("grant {rights} on poor.* to poor@'127.0.0.1'");
        let own = ["create user poor@'127.0.0.1' identified by 'secret'", "create database poor"];
        let own = own.map(str::to_owned).into_iter().chain([poor("select")]);
        for sql in own.chain(documented()[1].clone()) {
            // The documents have a name where the server looks names up.
            let sql = sql.replace("@localhost", "@'127.0.0.1'");
            beside.execute(AssertSqlSafe(sql)).await.unwrap();
        }
        let url = |name: &str| format!("mariadb://{name}:secret@{}/{name}", mariadb.address);
        let expected = ["CREATE command denied", "grant it all privileges"];
        a_database_without_rights_is_refused(&World::new().await, &url("poor"), expected).await;
        // Of rights that are not enough to bring a later schema about.
        let some = "select, insert, update, delete, create, alter, index";
        beside.execute(AssertSqlSafe(poor(some))).await.unwrap();
        let world = World::new().await;
        world.configure("[store]\n", &format!("[store]\nurl = \"{}\"\n", url("poor")));
        fs::set_permissions(world.file("proxy.toml"), Permissions::from_mode(0o600)).unwrap();
        let said = world.command(&["check"]).await;
        assert!(said.line("FAILED   [store]: ").contains("DROP command denied"), "{}", said.stdout);
        an_empty_database_is_ok(&World::new().await, &url("mailchime")).await;
    })
    .await;
}

/// A pool would say that it timed out.
#[tokio::test]
async fn a_database_at_a_closed_port_is_named_with_the_error_of_the_connection() {
    limited(async {
        let closed = listener().await.local_addr().unwrap();
        for scheme in ["postgres", "mariadb"] {
            let world = World::new().await;
            let url = format!("{scheme}://mailchime:secret@{closed}/mailchime");
            world.configure("busy_timeout = \"5s\"", "busy_timeout = \"1s\"");
            world.configure("[store]\n", &format!("[store]\nurl = \"{url}\"\n"));
            fs::set_permissions(world.file("proxy.toml"), Permissions::from_mode(0o600)).unwrap();
            let said = world.command(&["check"]).await;
            let line = said.line("FAILED   [store]: ");
            assert!(line.contains("Connection refused") && !line.contains("pool"), "{line}");
            let mut server = world.serve().await;
            let logged = server
                .logged("the database is not ready yet; mail goes on, and mailchime keeps trying")
                .await;
            assert!(logged.to_string().contains("Connection refused"), "{logged}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_database_of_the_version_before_is_ok_since_a_start_updates_it() {
    limited(async {
        let world = World::new().await;
        let url = format!("sqlite://{}", world.file("mailchime.db").display());
        let patience = Duration::from_secs(5);
        Store::open(&url.parse().unwrap(), patience).await.unwrap().close().await;
        let mut database = SqliteConnection::connect(&url).await.unwrap();
        let older = "delete from _sqlx_migrations where version = \
                     (select max(version) from _sqlx_migrations)";
        database.execute(older).await.unwrap();
        database.close().await.unwrap();
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 0, "{}", said.stdout);
        let line = said.line("warning  [store]: ");
        assert!(line.contains("has an older schema"), "{line}");
    })
    .await;
}

/// A table of one source.
fn events(address: &str) -> String {
    let source = "[[events.source]]\nname = \"a\"\nsecret_file = \"events.secret\"";
    format!("[events]\n{address}\n{source}\n[log]")
}

/// A table with this address.
fn admin(address: &str, more: &str) -> String {
    format!("[admin]\naddress = \"{address}\"\n{more}[log]")
}

/// With this change of the configuration, which is taken back.
async fn both_end_with(world: &World, (old, new): (&str, &str), status: i32) {
    let before = fs::read_to_string(world.file("proxy.toml")).unwrap();
    world.configure(old, new);
    if new.starts_with("[[apns]]") {
        world.configure("[apns]\nend", "[[apns]]\nend");
    }
    if ["[admin]", "[api]", "[events]"].iter().any(|table| new.starts_with(table)) {
        // That no mailchime runs is known by the port of a listener alone.
        let free = free_address();
        world.configure("address = \"127.0.0.1:0\"", &format!("address = \"{free}\""));
    }
    assert_eq!(serve_ends(world).await, status, "serve with {new}");
    let said = world.command(&["check"]).await;
    assert_eq!(said.code, status, "check with {new}: {}{}", said.stdout, said.stderr);
    assert!(status == 1 || !said.stdout.contains("FAILED") || said.stderr.contains("failed"));
    fs::write(world.file("proxy.toml"), before).unwrap();
    remove(&world.file("mailchime.db"));
    remove(&world.file("mailchime.key"));
}

/// What is changed in the configuration, by which `check` and `serve` end alike.
#[tokio::test]
async fn check_ends_with_the_status_of_serve() {
    limited(async {
        let folder = World::new().await;
        for (name, text) in [("bad.key", "not a key\n"), ("events.secret", "a-secret-of-25-characters")] {
            fs::write(folder.file(name), text).unwrap();
            fs::set_permissions(folder.file(name), Permissions::from_mode(0o600)).unwrap();
        }
        fs::write(folder.file("text.db"), "Dear administrator,\n".repeat(1000)).unwrap();
        let taken = own_listener();
        let address = taken.local_addr().unwrap();
        let other = mailchime::demo::pki::Pki::generate(None).unwrap();
        other.write_to(&folder.file("other")).unwrap();
        let _used = std::os::unix::net::UnixListener::bind(folder.file("used.sock")).unwrap();
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let udp = datagrams.local_addr().unwrap();
        for (old, new, status) in [
            ("private_key = \"server.key\"", "private_key = \"bad.key\"", 64),
            ("private_key = \"apns.key\"", "private_key = \"bad.key\"", 64),
            ("ca = \"ca.pem\"", "ca = \"bad.key\"", 64),
            ("[log]", "[credentials]\nkey_file = \"bad.key\"\n[log]", 64),
            ("[log]", "[credentials]\nkey_file = \"none/new.key\"\n[log]", 64),
            ("[store]\n", "[store]\nurl = \"sqlite://text.db\"\n", 64),
            ("[store]\n", "[store]\nurl = \"sqlite://none/new.db\"\n", 64),
            ("[log]", "[record]\nfolder = \"/proc\"\n[log]", 64),
            ("[log]", "[webpush]\ncontact = \"mailto:a@example.org\"\nkey_file = \"bad.key\"\n[log]", 64),
            // Each of them is well, and both together are not.
            (
                "[log]",
                "[[apns]]\ndomains = [\"b.example\"]\ncertificate = \"apns.pem\"\nprivate_key = \"apns.key\"\n[log]",
                64,
            ),
            ("address = \"127.0.0.1:0\"", &format!("address = \"{address}\""), 1),
            ("address = \"127.0.0.1:0\"", "address = \"192.0.2.1:993\"", 1),
            // What may be free later is no fault of the configuration.
            ("[log]", &admin(&address.to_string(), ""), 1),
            ("[log]", "[api]\naddress = \"192.0.2.1:8443\"\n[log]", 1),
            // A network that is not there yet.
            ("[log]", "[api]\naddress = \"[fe80::1%9999]:8443\"\n[log]", 1),
            ("[log]", &format!("[api]\naddress = \"{address}\"\n[log]"), 1),
            ("[log]", &events(&format!("address = \"{address}\"")), 1),
            ("[log]", &events(&format!("udp_address = \"{udp}\"\nudp_networks = [\"127.0.0.0/8\"]")), 1),
            ("[log]", &admin("unix:/nonexistent/admin.sock", ""), 64),
            ("[log]", &admin("unix:/run/mailchime-typo/admin.sock", ""), 64),
            ("[log]", &admin("unix:/run/mailchime/admin.sock", "group = \"no-such-group\"\n"), 64),
            ("[log]", "[events]\ncyrus_socket = \"text.db\"\n[log]", 64),
            ("[log]", "[events]\ncyrus_stream = \"c.sock\"\ncyrus_group = \"no-such-group\"\n[log]", 64),
            ("[log]", &admin("unix:admin.sock", "group = \"no-such-group\"\n"), 64),
            ("[log]", &admin("unix:text.db", ""), 64),
            ("[log]", &admin("unix:used.sock", ""), 1),
            ("[log]", "[events]\ncyrus_stream = \"used.sock\"\n[log]", 1),
            // The mode of this folder stops nobody but root, and the system stops root.
            ("[log]", &admin("unix:/proc/admin.sock", ""), 64),
            ("[log]", "[events]\ncyrus_socket = \"/proc/c.sock\"\n[log]", 64),
            ("[log]", "[events]\ncyrus_stream = \"/proc/c.sock\"\n[log]", 64),
            ("[log]", "[credentials]\nkey_file = \"/proc/new.key\"\n[log]", 64),
            (
                "[log]",
                "[webpush]\ncontact = \"mailto:a@example.org\"\nkey_file = \"/proc/new.key\"\n[log]",
                64,
            ),
            ("[store]\n", "[store]\nurl = \"sqlite:///proc/new.db\"\n", 64),
        ] {
            both_end_with(&folder, (old, new), status).await;
        }
    })
    .await;
}

#[tokio::test]
async fn check_and_serve_refuse_addresses_that_exclude_each_other_and_a_backend_of_their_own() {
    limited(async {
        let folder = World::new().await;
        let secret = folder.file("events.secret");
        fs::write(&secret, "a-secret-of-25-characters").unwrap();
        fs::set_permissions(secret, Permissions::from_mode(0o600)).unwrap();
        let free = free_address();
        let port = free.port();
        let anywhere = format!("[[listener]]\naddress = \"[::]:{port}\"\n");
        for (old, new) in [
            // A loop: mailchime would be its own backend.
            (
                "address = \"127.0.0.1:0\"",
                &format!("address = \"{}\"", folder.backend.address()),
            ),
            (
                "[log]",
                &format!("[[route]]\ndomain = \"a.example\"\naddress = \"localhost:{port}\"\n{anywhere}[log]"),
            ),
            // Addresses that exclude each other.
            ("[log]", &format!("{anywhere}[[listener]]\naddress = \"0.0.0.0:{port}\"\n[log]")),
            ("[log]", &admin(&format!("127.0.0.1:{port}"), &anywhere)),
            ("[log]", &format!("[api]\naddress = \"0.0.0.0:{port}\"\n{}", admin(&free.to_string(), ""))),
            ("[log]", &format!("[api]\naddress = \"{free}\"\n{}", events(&format!("address = \"{free}\"")))),
            ("[log]", &format!("[events]\ncyrus_socket = \"a.sock\"\n{}", admin("unix:a.sock", ""))),
        ] {
            both_end_with(&folder, (old, new), 64).await;
        }
    })
    .await;
}

fn remove(path: &Path) {
    for suffix in ["", "-wal", "-shm", "-lock"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let _ = fs::remove_file(name);
    }
}
