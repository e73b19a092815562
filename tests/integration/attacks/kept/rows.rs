//! Rows of the database that cannot be read: damaged, or written by somebody else. Each costs its own
//! account something at most, and nobody else anything.

use sqlx::{AssertSqlSafe, Connection, Executor, SqliteConnection};

use crate::support::world::{LOGIN, World};
use crate::support::{limited, soon};

/// Accounts before and behind the good one, each with a device and a mailbox that is owed, and then
/// spoilt: what is changed, and the row that the log names.
const SPOILT: [(&str, &str); 10] = [
    ("update subscription set endpoint_hash = 'nonsense' where account = ID", "subscription"),
    ("update subscription set endpoint = x'00ff' where account = ID", "subscription"),
    ("update subscription set endpoint = cast(x'ff' as text) where account = ID", "subscription"),
    ("update subscription set options = x'ff' where account = ID", "subscription"),
    ("update subscription set route = x'ff' where account = ID", "subscription"),
    ("update subscription set registered_at = 'soon' where account = ID", "subscription"),
    ("update mailbox set name = x'ff' where account = ID", "mailbox"),
    ("update account set parked = x'ff' where name = 'NAME'", "account"),
    ("update account set credentials = x'ff' where name = 'NAME'", "account"),
    ("update mailbox set uid_next = 'many' where account = ID", "mailbox"),
];

async fn spoil(world: &World, name: &str, statement: &str) {
    let url = format!("sqlite://{}", world.file("mailchime.db").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    let id = |name: &str| format!("(select id from account where name = '{name}')");
    let (own, other) = (id(LOGIN), id(name));
    let copy = |table: &str, columns: &str| {
        format!(
            "insert into {table} (account, {columns}) select {other}, {columns} \
             from {table} where account = {own}"
        )
    };
    for statement in [
        format!(
            "insert into account (name, credentials, created_at) \
             select '{name}', credentials, created_at from account where name = '{LOGIN}'"
        ),
        copy(
            "subscription",
            "transport, endpoint_hash, endpoint, app, route, options, registered_at",
        ),
        copy("mailbox", "name, uid_validity, uid_next, messages, unseen"),
        format!(
            "insert into subscription_mailbox (subscription, mailbox, owed_since) \
             select s.id, m.id, owed.owed_since from subscription s \
             join mailbox m on m.account = s.account \
             join mailbox known on known.name = m.name and known.account = {own} \
             join subscription_mailbox owed on owed.mailbox = known.id where s.account = {other}"
        ),
        statement.replace("NAME", name).replace("ID", &other),
    ] {
        database.execute(AssertSqlSafe(statement)).await.unwrap();
    }
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_bad_row_costs_nobody_else_anything() {
    limited(async {
        let world = World::new().await;
        let server = world.serve().await;
        world.register(server.address).await.unwrap();
        server.process.kill();
        let mut failed = Vec::new();
        for (at, (statement, _)) in SPOILT.iter().enumerate() {
            // Before the good one and behind it, by name.
            for side in ["a", "z"] {
                let name = format!("{side}{at}\u{1b}[31m{}", "x".repeat(300));
                spoil(&world, &name, statement).await;
            }
            let said = world.command(&["devices", "list"]).await;
            let listed = said.stdout.lines().any(|line| line.starts_with("alice "));
            if said.code != 0 || !listed {
                failed.push(format!("list: {statement}: {}", said.stderr));
            }
        }
        assert!(failed.is_empty(), "{failed:#?}");

        let said = world.command(&["devices", "list"]).await;
        for name in ["a0", "a3", "z0"] {
            let named = format!("\"{name}\\u{{1b}}[31mxxx");
            assert!(said.stderr.contains(&named), "{named} is not in {}", said.stderr);
        }
        assert!(
            said.stderr.contains("could not read more rows of the database"),
            "{}",
            said.stderr
        );
        assert!(!said.stderr.contains('\u{1b}'), "{}", said.stderr);
        assert!(!said.stderr.contains(&"x".repeat(200)), "{}", said.stderr);
        let said = world.command(&["check"]).await;
        said.line("ok       [store]: ");
        // The push by which it tries the service.
        soon("a push of the check", world.apns.next()).await;

        // It starts, watches alice and pushes for her.
        let mut server = world.serve_with_admin().await;
        world.deliver();
        world.push().await;
        server.logged("could not read a row of the database; mailchime leaves it out").await;
        let said = world.command(&["credentials", "rotate"]).await;
        assert_eq!(said.code, 1, "{}", said.stdout);
        assert!(said.stderr.contains("\"z0\\u{1b}[31mxxx"), "{}", said.stderr);
        assert!(!said.stderr.contains('\u{1b}'), "{}", said.stderr);
        assert!(!said.stderr.contains(&"x".repeat(200)), "{}", said.stderr);

        // What cannot be read can be removed.
        for at in 0..SPOILT.len() {
            for side in ["a", "z"] {
                let name = format!("{side}{at}\u{1b}[31m{}", "x".repeat(300));
                let said = world.command(&["devices", "remove", &name]).await;
                assert_eq!(said.code, 0, "{}{}", said.stdout, said.stderr);
            }
        }
        let said = world.command(&["devices", "list"]).await;
        assert!(!said.stderr.contains("\"a0"), "{}", said.stderr);
        let said = world.command(&["credentials", "rotate"]).await;
        assert_eq!(said.code, 0, "{}", said.stderr);
    })
    .await;
}
