//! `mailchime serve` is not silent about what nobody would notice for days, and harms nothing that is stored.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::process::{Command, Stdio};

use mailchime::demo::pki::Pki;

use crate::support::program::{Process, mailchime_after, terminal};
use crate::support::servers::NOBODY;
use crate::support::skip;
use crate::support::world::{Server, World};
use crate::support::{limited, soon};

#[tokio::test]
async fn a_topic_that_ios_mail_drops_is_not_offered_and_reported() {
    limited(async {
        let world = World::new().await;
        let other = Pki::generate(Some("com.example.other")).unwrap();
        other.write_to(&world.file("other")).unwrap();
        world.configure("certificate = \"apns.pem\"", "certificate = \"other/apns.pem\"");
        world.configure("private_key = \"apns.key\"", "private_key = \"other/apns.key\"");
        let mut server = world.serve().await;
        let message = "iOS Mail ignores pushes of this topic; it takes topics that begin with \
                       com.apple.mobilemail.push. or com.apple.mail.";
        let line = server.logged(message).await;
        assert_eq!((&line["level"], &line["topic"]), (&"WARN".into(), &"com.example.other".into()));
        let mut session = world.session(&server).await;
        session.send(b"c CAPABILITY\r\n").await;
        let offered = session.line().await;
        assert!(offered.starts_with("* CAPABILITY "), "{offered}");
        assert!(!offered.contains("XAPPLEPUSHSERVICE"), "{offered}");
        session.until("c OK").await;
    })
    .await;
}

#[tokio::test]
async fn no_key_is_made_in_the_place_of_one_that_is_missing_while_credentials_are_stored() {
    limited(async {
        let world = World::new().await;
        let server = world.serve().await;
        world.register(server.address).await.unwrap();
        server.process.kill();
        let (key, aside) = (world.file("mailchime.key"), world.file("aside.key"));
        fs::rename(&key, &aside).unwrap();
        let mut process = Process::spawn(world.program());
        assert_eq!(process.end().await.code(), Some(64), "{:?}", process.stderr.seen);
        let said = process.stderr.seen.join("\n");
        for part in ["[credentials] key_file: ", "mailchime.key", "of 1 accounts", "put it back"] {
            assert!(said.contains(part), "{part:?} is not in {said}");
        }
        assert!(!key.exists(), "a key was made");
        assert_eq!(world.command(&["check"]).await.code, 64);

        // The command that the message has, for the one who has no copy.
        let (_, command) = said.split_once("has logged in: ").unwrap();
        let made = Command::new("sh").args(["-c", command]).current_dir(world.folder()).status();
        assert!(made.unwrap().success(), "{command}");
        drop(world.serve().await);

        fs::rename(&aside, &key).unwrap();
        let server = world.serve().await;
        world.watched().await;
        drop(server);
    })
    .await;
}

#[tokio::test]
async fn files_that_a_start_by_root_makes_belong_to_the_owner_of_their_folder() {
    const TEST: &str = "files_that_a_start_by_root_makes_belong_to_the_owner_of_their_folder";
    if !rustix::process::geteuid().is_root() {
        return skip::report(TEST, "only root makes files for others");
    }
    limited(async {
        let world = World::new().await;
        fs::create_dir(world.file("state")).unwrap();
        chown(world.file("state"), Some(NOBODY), Some(NOBODY)).unwrap();
        world.configure(
            "[store]\n",
            "[credentials]\nkey_file = \"state/mailchime.key\"\n\
             [webpush]\ncontact = \"mailto:a@example.org\"\nkey_file = \"state/webpush.key\"\n\
             [store]\nurl = \"sqlite://state/mailchime.db\"\n",
        );
        let server = world.serve().await;
        world.register(server.address).await.unwrap();
        // What a process that is killed leaves, too.
        server.process.kill();
        let mut names = Vec::new();
        for entry in fs::read_dir(world.file("state")).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            assert_eq!(entry.metadata().unwrap().uid(), NOBODY, "{name}");
            names.push(name);
        }
        for name in
            ["mailchime.db", "mailchime.db-wal", "mailchime.db-shm", "mailchime.key", "webpush.key"]
        {
            assert!(names.iter().any(|made| made == name), "{name} is not among {names:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn the_limit_of_open_files_is_raised_and_reported_where_it_is_below_the_sessions() {
    limited(async {
        let world = World::new().await;
        let arguments = world.arguments();
        let arguments = arguments.each_ref().map(String::as_str);
        let started = async |first: &str| {
            Server::of(Process::spawn(mailchime_after(first, &arguments))).await
        };
        let limits = |server: &Server| {
            let limits = fs::read_to_string(format!("/proc/{}/limits", server.process.id())).unwrap();
            let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
            let numbers: Vec<_> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            let [soft, hard] = numbers[..] else { panic!("{line}") };
            (soft, hard)
        };
        // The soft limit is what a shell and many units have.
        let server = started("ulimit -Sn 256").await;
        let (soft, hard): (u64, u64) = limits(&server);
        assert_eq!(soft, hard);
        assert!(hard > 256, "{hard}");
        drop(server);

        let mut server = started("ulimit -n 1000").await;
        let message = "the system allows fewer open files than [limits] needs; clients are refused before that";
        let line = server.logged(message).await;
        assert_eq!(line["level"], "WARN");
        let why = line["shortage"].as_str().unwrap();
        for part in ["1000 files", "sessions = 20000", "LimitNOFILE"] {
            assert!(why.contains(part), "{part:?} is not in {why}");
        }
        drop(server);

        // `check` says it as well, to the one who runs it with the limits of the service.
        let config = world.file("proxy.toml").display().to_string();
        let mut process =
            Process::spawn(mailchime_after("ulimit -n 1000", &["check", "--config", &config]));
        process.end().await;
        let said = process.stdout.seen.join("\n");
        assert!(said.contains("warning  [limits] sessions: the system lets mailchime have 1000"), "{said}");
    })
    .await;
}

#[tokio::test]
async fn a_closed_terminal_ends_it_in_order_and_a_hangup_without_one_is_a_reload() {
    const TEST: &str = "a_closed_terminal_ends_it_in_order_and_a_hangup_without_one_is_a_reload";
    if skip::skipped(TEST, "setsid") {
        return;
    }
    limited(async {
        let world = World::new().await;
        let (ours, theirs) = terminal();
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(env!("CARGO_BIN_EXE_mailchime")).args(world.arguments());
        command.stdin(Stdio::from(theirs));
        let mut server = Server::of(Process::spawn(command)).await;
        server.process.signal("HUP");
        server.logged("configuration reloaded").await;
        drop(ours);
        server
            .logged("the terminal that mailchime was started in is closed; mailchime stops")
            .await;
        let ended = soon("the end", server.process.end()).await;
        assert_eq!(ended.code(), Some(0));
    })
    .await;
}
