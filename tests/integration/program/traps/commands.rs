//! The command line as people type it.

use std::fs;

use tokio::net::TcpListener;

use crate::support::program::{Process, mailchime};
use crate::support::world::{LOGIN, World};
use crate::support::{limited, soon, until};

/// How the program ended with these arguments and variables: its status, and what it said.
async fn run(world: &World, arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String) {
    let mut command = mailchime(arguments);
    command.current_dir(world.folder()).envs(variables.iter().copied());
    let mut process = Process::spawn(command);
    let code = process.end().await.code().unwrap();
    (code, [&process.stdout.seen[..], &process.stderr.seen[..]].concat().join("\n"))
}

#[tokio::test]
async fn the_configuration_is_named_before_or_behind_a_command_or_by_a_variable() {
    limited(async {
        let world = World::new().await;
        fs::rename(world.file("proxy.toml"), world.file("mine.toml")).unwrap();
        for arguments in [
            &["--config", "mine.toml", "check"][..],
            &["check", "--config", "mine.toml"],
            &["--config=mine.toml", "check"],
            &["--config", "none.toml", "check", "--config", "mine.toml"],
            &["--config", "mine.toml", "subscriptions", "list"],
            &["subscriptions", "--config", "mine.toml", "list"],
        ] {
            let (_, said) = run(&world, arguments, &[]).await;
            assert!(
                !said.contains("no such file;") && !said.contains("Usage"),
                "{arguments:?}: {said}"
            );
            if arguments.contains(&"check") {
                assert!(
                    said.contains("ok       configuration: mine.toml"),
                    "{arguments:?}: {said}"
                );
            }
        }
        // A command that would not read it does not take it in silence.
        for arguments in [["setup", "--config", "mine.toml"], ["--config", "mine.toml", "demo"]] {
            let (code, said) = run(&world, &arguments, &[]).await;
            assert!(code == 64 && said.contains("reads no configuration"), "{arguments:?}: {said}");
        }
        let variables = [("MAILCHIME_CONFIG", "mine.toml")];
        let (code, said) = run(&world, &["check"], &variables).await;
        assert_eq!(code, 0, "{said}");
        assert!(said.contains("ok       configuration: mine.toml"), "{said}");
        // The command line counts before it, and it before the file that is there.
        let (_, said) = run(&world, &["check", "--config", "other.toml"], &variables).await;
        assert!(said.contains("other.toml: no such file"), "{said}");
        fs::write(world.file("proxy.toml"), "[bad]\n").unwrap();
        assert_eq!(run(&world, &["check"], &variables).await.0, 0);
        let (code, said) = run(&world, &["check"], &[]).await;
        assert!(code == 64 && said.contains("proxy.toml: unknown key `bad`"), "{said}");
    })
    .await;
}

#[tokio::test]
async fn help_is_a_command() {
    limited(async {
        let world = World::new().await;
        let (code, said) = run(&world, &["help"], &[]).await;
        assert_eq!(code, 0, "{said}");
        assert!(said.contains("Usage: mailchime"), "{said}");
        let (code, said) = run(&world, &["help", "check"], &[]).await;
        assert_eq!(code, 0, "{said}");
        assert!(said.contains("--login"), "{said}");
    })
    .await;
}

/// `push --explain` for alice: its status and lines.
async fn explained(world: &World) -> (i32, String) {
    let said = world.command(&["push", LOGIN, "--explain"]).await;
    (said.code, said.stdout)
}

#[tokio::test]
async fn no_push_would_go_for_an_account_that_is_parked_or_not_watched() {
    limited(async {
        let world = World::new().await;
        let mut server = world.serve_with_admin().await;
        world.register(server.address).await.unwrap();
        world.watched().await;
        until(async || explained(&world).await.0 == 0).await;

        // Not reached.
        world.backend.refuse().await;
        world.backend.drop_connections();
        until(async || explained(&world).await.1.contains("not now: its account is not watched"))
            .await;
        assert_eq!(explained(&world).await.0, 1);
        let said = world.command(&["push", LOGIN, "--explain", "--json"]).await.json();
        assert_eq!(said["subscriptions"][0]["would_push"], false, "{said}");
        assert_eq!(said["subscriptions"][0]["reasons"][0]["reason"], "unwatched", "{said}");
        server.process.signal("TERM");
        server.process.end().await;
    })
    .await;
}

#[tokio::test]
async fn no_push_would_go_before_the_first_login() {
    limited(async {
        let world = World::new().await;
        let server = world.serve().await;
        world.register(server.address).await.unwrap();
        server.process.kill();
        // It accepts, and does not answer.
        world.backend.refuse().await;
        let silent = TcpListener::bind(world.backend.address()).await.unwrap();
        let server = world.serve_with_admin().await;
        let _dialled = soon("a connection", silent.accept()).await.unwrap();
        let (code, said) = explained(&world).await;
        assert_eq!(code, 1, "{said}");
        let why = "not now: its account is not watched yet; mailchime is about to log in";
        assert!(said.contains(why), "{said}");
        drop(silent);
        drop(server);
    })
    .await;
}

#[tokio::test]
async fn no_push_would_go_for_an_account_whose_password_was_changed() {
    limited(async {
        let world = World::new().await;
        let server = world.serve_with_admin().await;
        world.register(server.address).await.unwrap();
        world.watched().await;
        world.backend.set_password(LOGIN, b"another").unwrap();
        world.backend.drop_connections();
        until(async || explained(&world).await.1.contains("not now: its account is parked")).await;
        let (code, said) = explained(&world).await;
        assert_eq!(code, 1, "{said}");
        assert!(!said.contains("new mail would be pushed now"), "{said}");
        drop(server);
    })
    .await;
}
