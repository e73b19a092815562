//! What becomes of events while something is away, and after a SIGKILL.

use std::fs;
use std::io::Write;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::Stdio;

use mailchime::config::UdpEventsConfig;
use mailchime::store::Store;
use sqlx::{Connection, Executor, SqliteConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::cyrus::{SocketFolder, datagram, notify, said};
use super::udp::DELIVERY;
use super::{ALICE, IntakeWorld, MAIL, TOKEN, post, written};
use crate::support::in_process::loopback;
use crate::support::program::mailchime;
use crate::support::world::{Server, World};
use crate::support::{limited, reached, soon, until};

/// Of which the numbers are not said.
const EVENT: &str =
    r#"{"user":"alice","changes":[{"mailbox":"INBOX","events":["MessageExpunge"]}]}"#;

/// Another program has the database, for as long as this lives.
async fn busy(file: &std::path::Path) -> SqliteConnection {
    let url = format!("sqlite://{}", file.display());
    let mut beside = SqliteConnection::connect(&url).await.unwrap();
    beside.execute("begin immediate").await.unwrap();
    beside
}

/// Sends this, and goes before mailchime has read any of it: nothing here runs meanwhile.
async fn send_and_go(intake: &IntakeWorld, sent: &str) {
    let stream = TcpStream::connect(intake.address()).await.unwrap();
    let length = stream.try_write(sent.as_bytes()).unwrap();
    assert_eq!(length, sent.len());
}

#[tokio::test]
async fn an_event_counts_although_its_sender_does_not_wait_for_the_answer() {
    limited(async {
        let intake = IntakeWorld::start().await;
        intake.registered().await;
        intake.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        let request = format!("POST /v1/events\nAuthorization: Bearer {TOKEN}\n\n{EVENT}");
        send_and_go(&intake, &written(&request)).await;
        soon("a push", intake.world.push_of(&["INBOX"])).await;
        assert_eq!(intake.counted().await, [r#"_total{source="dovecot",what="recorded"} 1"#]);
    })
    .await;
}

#[tokio::test]
async fn the_mail_of_an_event_that_breaks_off_is_found() {
    limited(async {
        let intake = IntakeWorld::start().await;
        intake.registered().await;
        intake.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        let request = format!("POST /v1/events\nAuthorization: Bearer {TOKEN}\n\n{EVENT}");
        let whole = written(&request);
        send_and_go(&intake, &whole[..whole.len() - 1]).await;
        // A sweep follows.
        soon("a push", intake.world.push_of(&["INBOX"])).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mail_of_an_event_of_cyrus_that_breaks_off_is_found() {
    limited(async {
        let folder = SocketFolder::new();
        let intake = IntakeWorld::with(|config| config.events.cyrus = Some(folder.config())).await;
        intake.registered().await;
        intake.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        let whole = notify("alice");
        let mut stream = UnixStream::connect(folder.stream()).unwrap();
        stream.write_all(&whole.as_bytes()[..whole.len() - 1]).unwrap();
        drop(stream);
        soon("a push", intake.world.push_of(&["INBOX"])).await;
        let counted = [
            r#"_missed_total{source="cyrus"} 1"#,
            r#"_refused_total{source="cyrus",why="malformed"} 1"#,
        ];
        assert_eq!(intake.counted().await, counted);
    })
    .await;
}

#[tokio::test]
async fn while_the_database_is_away_an_event_is_answered_503_and_counts_again_later() {
    limited(async {
        let intake = IntakeWorld::with(|config| {
            config.store.busy_timeout = std::time::Duration::from_millis(200);
        })
        .await;
        intake.registered().await;
        let mut beside = busy(&intake.world.file("mailchime.db")).await;
        let reply = intake.post(EVENT).await;
        assert_eq!(reply.error(), (503, "unavailable".to_owned()), "{reply:?}");
        assert!(!reply.head.contains("retry-after"), "{reply:?}");
        beside.execute("rollback").await.unwrap();
        assert_eq!(intake.post(EVENT).await.status, 204);
        let counted = intake.counted().await;
        assert!(counted.iter().any(|line| line.contains("unrecorded")), "{counted:?}");
    })
    .await;
}

/// Nobody repeats what came by UDP or by Cyrus.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_udp_and_cyrus_told_while_the_database_was_away_is_counted_as_missed_and_found() {
    limited(async {
        let folder = SocketFolder::new();
        let intake = IntakeWorld::with(|config| {
            config.store.busy_timeout = std::time::Duration::from_millis(200);
            config.events.udp = Some(UdpEventsConfig {
                address: loopback(),
                interface: None,
                networks: vec!["127.0.0.1".parse().unwrap()],
                domains: Vec::new(),
                default_domain: Some("example.org".to_owned()),
            });
            let mut cyrus = folder.config();
            cyrus.source.default_domain = Some("example.org".to_owned());
            config.events.cyrus = Some(cyrus);
        })
        .await;
        intake.registered().await;
        let udp = UdpSocket::bind(loopback()).await.unwrap();
        let address = intake.world.mailchime.udp_events.unwrap();
        let counts = async |line: &str| intake.counted().await.iter().any(|it| it == line);

        let mut beside = busy(&intake.world.file("mailchime.db")).await;
        intake.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        udp.send_to(DELIVERY, address).await.unwrap();
        until(async || counts(r#"_missed_total{source="udp"} 1"#).await).await;
        assert_eq!(said(&folder.stream(), notify("alice")).await, "NO ()\r\n");
        until(async || counts(r#"_missed_total{source="cyrus"} 1"#).await).await;
        let datagrams = UnixDatagram::unbound().unwrap();
        datagrams.send_to(datagram("alice").as_bytes(), folder.datagrams()).unwrap();
        until(async || counts(r#"_missed_total{source="cyrus"} 2"#).await).await;
        beside.execute("rollback").await.unwrap();
        soon("a push", intake.world.push_of(&["INBOX"])).await;
    })
    .await;
}

/// As many as wait to be written, and more. Cyrus waits for none of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_of_cyrus_for_which_there_is_no_room_are_missed() {
    limited(async {
        let folder = SocketFolder::new();
        let intake = IntakeWorld::with(|config| {
            config.events.waiting = 4;
            let mut cyrus = folder.config();
            cyrus.source.default_domain = Some("example.org".to_owned());
            config.events.cyrus = Some(cyrus);
        })
        .await;
        intake.registered().await;
        let mut beside = busy(&intake.world.file("mailchime.db")).await;
        let datagrams = UnixDatagram::unbound().unwrap();
        for _ in 0..12 {
            datagrams.send_to(datagram("alice").as_bytes(), folder.datagrams()).unwrap();
        }
        let missed = async || {
            let counted = intake.counted().await;
            counted.contains(&r#"_missed_total{source="cyrus"} 8"#.to_owned())
        };
        until(missed).await;
        beside.execute("rollback").await.unwrap();
        until(async || {
            let recorded = r#"_total{source="cyrus",what="recorded"} 4"#.to_owned();
            intake.counted().await.contains(&recorded)
        })
        .await;
        assert!(missed().await);
    })
    .await;
}

#[tokio::test]
async fn of_a_flood_as_much_waits_as_may_and_the_rest_is_answered_503() {
    limited(async {
        let intake = IntakeWorld::with(|config| config.events.waiting = 4).await;
        intake.registered().await;
        let mut beside = busy(&intake.world.file("mailchime.db")).await;
        let address = intake.address();
        // One is being written, and the others wait; which of them are too many is chance.
        let flood: Vec<_> =
            (0..12).map(|_| tokio::spawn(async move { post(address, EVENT).await })).collect();
        while intake.world.mailchime.counters().events_waiting.hits() < 8 {
            tokio::task::yield_now().await;
        }
        beside.execute("rollback").await.unwrap();
        let mut answers = Vec::new();
        for answer in flood {
            answers.push(answer.await.unwrap().error());
        }
        answers.sort();
        let full = vec![(503, "overloaded".to_owned()); 8];
        assert_eq!(answers, [vec![(204, String::new()); 4], full].concat());
        assert_eq!(intake.post(EVENT).await.status, 204);
        assert!(
            intake.counted().await.contains(&r#"_missed_total{source="dovecot"} 8"#.to_owned())
        );
    })
    .await;
}

#[tokio::test]
async fn a_source_that_sends_more_than_it_may_is_answered_503() {
    limited(async {
        let intake = IntakeWorld::with(|config| {
            config.events.sources[0].events_per_second = 1;
        })
        .await;
        let many = format!("[{}]", vec![EVENT; 100].join(","));
        assert_eq!(intake.post(&many).await.status, 204);
        let reply = intake.post(EVENT).await;
        assert_eq!(reply.error(), (503, "too_many".to_owned()));
        assert!(reply.head.contains("retry-after: 1"), "{reply:?}");
        // Another one is not held up by that.
        let signing = super::SIGNING;
        let script = format!("POST /v1/events\nAuthorization: Bearer {signing}\n\n{EVENT}");
        assert_eq!(intake.ask(&script).await.status, 204);
        reached(&intake.world.mailchime.counters().events_per_second, 1).await;
        // Each event of a request counts.
        assert_eq!(intake.post(&many).await.status, 503);
        let missed = r#"_missed_total{source="dovecot"} 101"#.to_owned();
        assert!(intake.counted().await.contains(&missed));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cyrus_sends_more_than_it_may_is_missed() {
    limited(async {
        let folder = SocketFolder::new();
        let intake = IntakeWorld::with(|config| {
            let mut cyrus = folder.config();
            cyrus.source.events_per_second = 1;
            config.events.cyrus = Some(cyrus);
        })
        .await;
        // A burst may have ten, and some more come by while it lasts.
        let mut answer = String::new();
        while answer != "NO ()\r\n" {
            answer = said(&folder.stream(), notify("alice")).await;
        }
        let counted = intake.counted().await;
        for line in [
            r#"_missed_total{source="cyrus"} 1"#,
            r#"_refused_total{source="cyrus",why="too_many"} 1"#,
        ] {
            assert!(counted.contains(&line.to_owned()), "{counted:?}");
        }
    })
    .await;
}

/// A source of events, for accounts without a connection.
fn with_events(world: &World) {
    fs::write(world.file("events.secret"), TOKEN).unwrap();
    world.configure("[watch]\n", "[watch]\nconnection = \"on_demand\"\n");
    world.configure(
        "[store]\n",
        "[events]\naddress = \"127.0.0.1:0\"\n[[events.source]]\nname = \"dovecot\"\n\
         secret_file = \"events.secret\"\n[store]\n",
    );
    use std::os::unix::fs::PermissionsExt;
    let private = fs::Permissions::from_mode(0o600);
    fs::set_permissions(world.file("events.secret"), private).unwrap();
}

/// mailchime as a process, where a phone is registered and nothing is due; and where it takes events.
async fn registered(world: &World) -> (Server, std::net::SocketAddr) {
    let mut server = world.serve().await;
    let line = server.logged("taking events of mail servers over HTTP").await;
    let events = line["address"].as_str().unwrap().parse().unwrap();
    world.register(server.address).await.unwrap();
    world.backend.wait_until(|c| c.commands.contains_key("STATUS") && c.connections == 0).await;
    while due(world).await > 0 {
        tokio::task::yield_now().await;
    }
    (server, events)
}

/// How many mailboxes are due on disk.
async fn due(world: &World) -> i64 {
    let url = format!("sqlite://{}", world.file("mailchime.db").display());
    let mut beside = SqliteConnection::connect(&url).await.unwrap();
    let count = "select count(*) from mailbox where due_since is not null";
    sqlx::query_scalar(count).fetch_one(&mut beside).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn check_reads_the_secrets_of_sources() {
    limited(async {
        let world = World::new().await;
        with_events(&world);
        let said = world.command(&["check"]).await;
        let line = said.line("ok       [events]: ");
        assert!(line.contains("127.0.0.1:0, HTTP, for dovecot"), "{line}");
        fs::write(world.file("events.secret"), "short").unwrap();
        let said = world.command(&["check"]).await;
        let line = said.line("FAILED   [events]: ");
        assert!(line.contains("at least 16 characters"), "{line}");
        world.configure("[events]\n", "[events]\ncyrus_stream = \"none/cyrus\"\n");
        let said = world.command(&["check"]).await;
        let line = said.line("FAILED   [events] cyrus_stream: ");
        assert!(line.contains("is no folder; make it"), "{line}");
        assert_eq!(said.code, 64);
    })
    .await;
}

/// What `mailchime event` says at its end, and whether that is well.
fn event(world: &World, arguments: &[&str], event: &str) -> (bool, String) {
    let config = world.file("proxy.toml").display().to_string();
    let all = [&["event", "--config", &config], arguments].concat();
    let mut command = mailchime(&all);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(event.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_sends_an_event_by_the_program() {
    limited(async {
        let world = World::new().await;
        with_events(&world);
        let (_server, events) = registered(&world).await;
        // Of the configuration, the address is that of the process.
        world.configure(
            "[events]\naddress = \"127.0.0.1:0\"",
            &format!("[events]\naddress = \"{events}\""),
        );
        world.deliver();
        let dovecot = &["--source", "dovecot"][..];
        assert_eq!(event(&world, dovecot, EVENT), (true, String::new()));
        world.push().await;
        let url = format!("http://{events}");
        let file = world.file("events.secret").display().to_string();
        let by_url = ["--source", "dovecot", "--url", &url, "--secret-file", &file];
        assert_eq!(event(&world, &by_url, EVENT), (true, String::new()));
        // As Cyrus gives it to a program, which may say so.
        let of_cyrus =
            r#"{"event":"MessageNew","uri":"imap://localhost/user/alice;UIDVALIDITY=7"}"#;
        for arguments in [dovecot, &["--source", "dovecot", "--cyrus"]] {
            world.deliver();
            assert_eq!(event(&world, arguments, of_cyrus), (true, String::new()));
            world.push().await;
        }
        for (arguments, body, expected) in [
            (dovecot, "{", "422 Unprocessable Entity: {\\\"error\\\":\\\"invalid\\\""),
            (&["--source", "nobody"], EVENT, "no [[events.source]] with the name \"nobody\""),
            (
                &["--source", "other", "--url", &url, "--secret-file", &file],
                EVENT,
                "401 Unauthorized",
            ),
        ] {
            let (well, said) = event(&world, arguments, body);
            assert!(!well && said.contains(expected), "{said}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_answered_event_survives_sigkill() {
    limited(async {
        let world = World::new().await;
        with_events(&world);
        let (server, events) = registered(&world).await;
        // Nobody can look yet.
        world.backend.refuse().await;
        world.deliver();
        assert_eq!(post(events, EVENT).await.status, 204);
        server.process.kill();
        assert_eq!(due(&world).await, 1, "it is on disk");
        world.backend.resume().await.unwrap();
        let _server = world.serve().await;
        world.push().await;
    })
    .await;
}

/// What is not answered is not on disk, and found by the look at all accounts after a start.
#[tokio::test]
async fn an_event_that_sigkill_cuts_off_has_no_answer_and_its_mail_is_found() {
    limited(async {
        let world = World::new().await;
        with_events(&world);
        let (server, events) = registered(&world).await;
        let mut beside = busy(&world.file("mailchime.db")).await;
        world.deliver();
        let mut stream = TcpStream::connect(events).await.unwrap();
        let request = format!("POST /v1/events\nAuthorization: Bearer {TOKEN}\n\n{EVENT}");
        stream.write_all(written(&request).as_bytes()).await.unwrap();
        // What comes later is answered.
        for _ in 0..3 {
            assert_eq!(post(events, "{").await.status, 422);
        }
        server.process.kill();
        let mut answer = Vec::new();
        let _ = soon("the end of the connection", stream.read_to_end(&mut answer)).await;
        assert_eq!(answer, b"");
        beside.execute("rollback").await.unwrap();
        assert_eq!(due(&world).await, 0);
        let _server = world.serve().await;
        world.push().await;
    })
    .await;
}

#[tokio::test]
async fn marks_are_told_of_each_mailbox_whatever_their_order() {
    limited(async {
        use mailchime::model::{Account, Mailbox, Timestamp};
        use mailchime::store::DueMark;

        let intake = IntakeWorld::start().await;
        intake.registered().await;
        let store: &Store = &intake.world.mailchime.store;
        let mark = |user: &str, mailbox: Option<&str>| {
            let (account, mailbox) = (Account::from_login(user), mailbox.map(Mailbox::new));
            DueMark {
                account,
                mailbox,
                state: None,
                shown_flags: false,
                is_due: true,
                for_another_node: false,
            }
        };
        let marks = [
            mark("carol@example.com", None),
            mark("alice@example.org", Some("INBOX")),
            mark("alice@example.org", Some("Drafts")),
            mark("alice@example.org", None),
        ];
        let known = store.mark_due(&[], &marks, Timestamp::now()).await.unwrap();
        assert_eq!(known, [false, true, false, true]);
    })
    .await;
}
