//! Rows of the database that cannot be read: damaged, or written by somebody else. Each costs its own
//! account something at most, and nobody else anything.

use sqlx::{AssertSqlSafe, Connection, Executor, SqliteConnection};

use crate::support::world::{LOGIN, World};
use crate::support::{limited, soon};

/// Accounts before and behind the good one, each with a device and a mailbox that is owed, and then
/// spoilt: what is changed, and the row that the log names.
const SPOILT: [(&str, &str); 10] = [
    ("update device set token_given = 'nonsense' where account = 'NAME'", "device"),
    ("update device set token_given = x'00ff' where account = 'NAME'", "device"),
    ("update device set token_given = cast(x'ff' as text) where account = 'NAME'", "device"),
    ("update device set version = 300 where account = 'NAME'", "device"),
    ("update device set version = 'two' where account = 'NAME'", "device"),
    ("update device set registered_at = 'soon' where account = 'NAME'", "device"),
    ("update device_mailbox set mailbox = x'ff' where account = 'NAME'", "device"),
    ("update account set parked = x'ff' where name = 'NAME'", "account"),
    ("update account set credentials = x'ff' where name = 'NAME'", "account"),
    ("update snapshot set uid_next = 'many' where account = 'NAME'", "snapshot"),
];

async fn spoil(world: &World, name: &str, statement: &str) {
    let url = format!("sqlite://{}", world.file("mailchime.db").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    let copy = |table: &str, columns: &str, name_column: &str| {
        format!(
            "insert into {table} ({name_column}, {columns}) select '{name}', {columns} \
             from {table} where {name_column} = '{LOGIN}'"
        )
    };
    for statement in [
        copy("account", "credentials, created_at", "name"),
        copy(
            "device",
            "token, subtopic, token_given, aps_account_id, version, topic, registered_at",
            "account",
        ),
        copy("device_mailbox", "token, subtopic, mailbox, owed_since", "account"),
        copy("snapshot", "mailbox, uid_validity, uid_next, messages, unseen", "account"),
        statement.replace("NAME", name),
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
