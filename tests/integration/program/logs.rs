//! What is logged, and what never is; and the modes of the files that are made.

use std::fs;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use mailchime::demo::apns::Answer;
use mailchime::demo::pki::Pki;
use rustls::pki_types::ServerName;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::program::{Process, mailchime, mailchime_after, terminal};
use crate::support::world::{LOGIN, PASSWORD, Server, TOKEN, World, registration};
use crate::support::{limited, soon};

const WRONG: &str = "blunder land";

/// Words that stand in the mail and nowhere else.
const MAIL: &str = "Subject: Jabberwocky\r\nFrom: a <b@c>\r\n\r\n'Twas brillig, and the slithy\r\n";

/// A run in which everything happens that has to do with secrets; returns what was logged.
async fn full_run(world: &World, mut server: Server) -> Vec<String> {
    let mut client = world.client(&server).await;
    client.send(format!("a LOGIN {LOGIN} \"{WRONG}\"\r\n").as_bytes()).await;
    client.until("a NO").await;
    client.send(format!("b LOGIN {LOGIN} {{{}+}}\r\n{WRONG}\r\n", WRONG.len()).as_bytes()).await;
    client.until("b NO").await;
    let plain = |password| BASE64_STANDARD.encode(format!("\0{LOGIN}\0{password}"));
    client.send(format!("c AUTHENTICATE PLAIN {}\r\n", plain(WRONG)).as_bytes()).await;
    client.until("c NO").await;
    client.send(b"d AUTHENTICATE LOGIN\r\n").await;
    for answer in [LOGIN, PASSWORD] {
        client.until("+ ").await;
        client.send(format!("{}\r\n", BASE64_STANDARD.encode(answer)).as_bytes()).await;
    }
    client.until("d OK").await;
    client.send(format!("e {}\r\n", registration().replace("INBOX", "NIL")).as_bytes()).await;
    client.until("e OK").await;
    client.send(format!("f {}\r\n", registration().replace("\"INBOX\"", "NIL")).as_bytes()).await;
    client.until("f BAD").await;
    client.send(format!("g {}\r\n", registration()).as_bytes()).await;
    client.until("g OK").await;
    client.send(format!("h APPEND INBOX {{{}+}}\r\n{MAIL}\r\n", MAIL.len()).as_bytes()).await;
    client.until("h OK").await;
    client.send(b"i SELECT INBOX\r\nj FETCH 1 BODY.PEEK[]\r\n").await;
    client.until("j OK").await;
    client.send(b"k LOGOUT\r\n").await;
    client.until("k OK").await;
    drop(client);
    world.push().await;

    let mut client = world.client(&server).await;
    client.send(format!("a AUTHENTICATE PLAIN {}\r\n", plain(PASSWORD)).as_bytes()).await;
    client.until("a OK").await;
    client.send(b"b LOGOUT\r\n").await;
    client.until("b OK").await;
    drop(client);

    // Refused once, so that reasons are logged; then for good, so that the registration goes.
    world.apns.answer_next(1, Answer::refuse(500, "InternalServerError"));
    world.backend.deliver(LOGIN, "INBOX", MAIL).unwrap();
    world.push().await;
    world.push().await;
    world.apns.answer_next(1, Answer::gone(i64::MAX));
    world.backend.deliver(LOGIN, "INBOX", MAIL).unwrap();
    world.push().await;
    let removed = |line: &str| line.contains("registration removed").then_some(());
    server.process.stderr.find("the removal", removed).await;

    // The watcher's password, refused and unusable.
    world.register(server.address).await.unwrap();
    world.watched().await;
    world.backend.set_password(LOGIN, b"looking glass").unwrap();
    world.backend.drop_connections();
    let parked = |line: &str| line.contains("not watched until its user").then_some(());
    server.process.stderr.find("that the account is parked", parked).await;
    server.process.signal("TERM");
    assert_eq!(server.process.end().await.code(), Some(0));
    std::mem::take(&mut server.process.stderr.seen)
}

#[track_caller]
fn assert_no_secret(log: &str) {
    let secrets = [PASSWORD, WRONG, "looking glass"];
    let plain = |password| BASE64_STANDARD.encode(format!("\0{LOGIN}\0{password}"));
    let mut never: Vec<_> = secrets.iter().map(ToString::to_string).collect();
    never.extend(secrets.iter().map(|secret| BASE64_STANDARD.encode(secret)));
    never.extend(secrets.iter().map(plain));
    // As a list of numbers, which is how bytes are shown by `Debug`.
    never.extend(secrets.iter().map(|secret| {
        let bytes: Vec<_> = secret.bytes().map(|byte| byte.to_string()).collect();
        bytes.join(", ")
    }));
    never.extend(["Jabberwocky", "brillig", "slithy"].map(String::from));
    // More of the token than its first 8 digits.
    never.push(TOKEN[..9].to_owned());
    never.push(TOKEN[..9].to_uppercase());
    for secret in never {
        let line = log.lines().find(|line| line.contains(&secret));
        assert_eq!(line, None, "{secret:?} was logged");
    }
}

#[tokio::test]
async fn json_tells_each_session_and_push_in_a_line_and_no_secret() {
    limited(async {
        let world = World::new().await;
        let arguments = world.arguments();
        let mut command = mailchime(&arguments.each_ref().map(String::as_str));
        command.env("RUST_LOG", "trace");
        let server = Server::of(Process::spawn(command)).await;
        let log = full_run(&world, server).await;
        assert_no_secret(&log.join("\n"));

        let lines: Vec<Value> =
            log.iter().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
        let said = |message: &str| -> Vec<_> {
            lines.iter().filter(|line| line["message"] == message).collect()
        };
        let sessions = said("session ended");
        // Two that the test speaks for, and the phone.
        assert_eq!(sessions.len(), 3, "{sessions:#?}");
        for session in sessions {
            assert_eq!(session["account"], LOGIN);
            assert!(session["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{session}");
            assert!(session["received"].is_u64() && session["sent"].is_u64(), "{session}");
            assert_eq!(session["ended"], "Closed");
        }
        let pushes = said("push attempted");
        let outcomes: Vec<_> =
            pushes.iter().map(|push| push["outcome"].as_str().unwrap()).collect();
        assert_eq!(outcomes, ["accepted", "unavailable", "accepted", "gone"], "{pushes:#?}");
        for push in pushes {
            assert_eq!((&push["account"], &push["endpoint"]), (&LOGIN.into(), &"8df2a4c1…".into()));
            assert!(push["seconds"].is_f64(), "{push}");
        }
        // Numbers are numbers, and times are seconds.
        for (name, value) in lines.iter().flat_map(|line| line.as_object().unwrap()) {
            assert!(!name.ends_with("seconds") || value.is_number(), "{name}: {value}");
            let text = value.as_str().unwrap_or_default();
            let rest = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
            let number = text[..text.len() - rest.len()].parse::<f64>().is_ok();
            let unit = ["", "ns", "µs", "ms", "s", "m", "h", "d"].contains(&rest);
            assert!(!number || !unit, "{name}: {value}");
        }
        let began = said("session began");
        assert_eq!(began.len(), 3, "{began:#?}");
        assert!(began.iter().all(|line| line["account"] == LOGIN && line["peer"].is_string()));
        let registered = said("a client registered for push");
        assert!(registered.iter().all(|line| line["endpoint"] == "8df2a4c1…"), "{registered:#?}");
    })
    .await;
}

/// Where a program listens whose log is text.
async fn listening(process: &mut Process) -> SocketAddr {
    let address = |line: &str| line.split_once("listening address=")?.1.parse().ok();
    process.stderr.find("the address", address).await
}

/// It is killed when this is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn lines_at_a_terminal_have_colours_unless_no_color_forbids_them() {
    limited(async {
        let world = World::new().await;
        world.configure("\"json\"", "\"text\"");
        for (forbidden, has_colours) in [(None, true), (Some("1"), false), (Some(""), true)] {
            let (ours, theirs) = terminal();
            let mut command = world.program();
            command.stdout(Stdio::null()).stderr(Stdio::from(theirs));
            if let Some(value) = forbidden {
                command.env("NO_COLOR", value);
            }
            let _process = Killed(command.spawn().unwrap());
            let mut screen = fs::File::from(ours);
            let shown = tokio::task::spawn_blocking(move || {
                let (mut shown, mut piece) = (String::new(), [0; 4096]);
                while !shown.contains("listening") {
                    let read = screen.read(&mut piece).unwrap();
                    shown += &String::from_utf8_lossy(&piece[..read]);
                }
                shown
            });
            let shown = soon("the first lines", shown).await.unwrap();
            assert_eq!(shown.contains('\x1b'), has_colours, "{forbidden:?}: {shown:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn text_tells_each_session_and_push_in_a_line_and_no_secret() {
    limited(async {
        let world = World::new().await;
        world.configure("\"json\"", "\"text\"");
        let arguments = world.arguments();
        let mut command = mailchime(&arguments.each_ref().map(String::as_str));
        command.env("RUST_LOG", "mailchime=trace");
        let mut process = Process::spawn(command);
        let address = listening(&mut process).await;
        let log = full_run(&world, Server { process, address }).await;
        assert_no_secret(&log.join("\n"));
        assert!(!log.join("").contains('\x1b'), "colours without a terminal");
        let count = |parts: [&str; 4]| {
            log.iter().filter(|line| parts.iter().all(|part| line.contains(part))).count()
        };
        let account = "account=\"alice\"";
        assert_eq!(
            count(["session ended", account, "seconds=", "ended=\"Closed\""]),
            3,
            "{log:#?}"
        );
        let push = ["push attempted account=\"alice\" endpoint=\"8df2a4c1…\" ", " seconds="];
        assert_eq!(count([push[0], push[1], "outcome=\"accepted\"", ""]), 2, "{log:#?}");
        assert_eq!(count([push[0], push[1], "outcome=\"gone\"", ""]), 1, "{log:#?}");
    })
    .await;
}

#[tokio::test]
async fn the_journal_gets_priorities_and_no_second_time() {
    limited(async {
        let world = World::new().await;
        world.configure("\"json\"", "\"text\"");
        let arguments = world.arguments();
        // As systemd says it to a service whose standard error is the journal.
        let journal = "JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2); export JOURNAL_STREAM";
        let command = mailchime_after(journal, &arguments.each_ref().map(String::as_str));
        let mut process = Process::spawn(command);
        let address = listening(&mut process).await;
        let log = full_run(&world, Server { process, address }).await;
        for line in &log {
            let (priority, rest) = line.split_at(3);
            let level = match priority {
                "<3>" => "ERROR mailchime::",
                "<4>" => " WARN mailchime::",
                "<6>" => " INFO mailchime::",
                "<7>" => "DEBUG mailchime::",
                _ => panic!("no priority: {line}"),
            };
            assert!(rest.starts_with(level), "{line}");
        }
        let starts = |start: &str| log.iter().any(|line| line.starts_with(start));
        assert!(starts(
            "<4> WARN mailchime::login: login refused peer=127.0.0.1 account=\"alice\""
        ));
        assert!(starts("<6> INFO mailchime::proxy::session_began: session began peer=127.0.0.1:"));
    })
    .await;
}

/// `journalctl -p err` shows why a service did not start.
#[tokio::test]
async fn what_ends_a_start_is_an_error_in_the_journal() {
    limited(async {
        let world = World::new().await;
        let journal = "JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2); export JOURNAL_STREAM";
        let ends = async |first: &str, arguments: &[&str]| {
            let mut process = Process::spawn(mailchime_after(first, arguments));
            let code = process.end().await.code();
            (code, process.stderr.seen.clone())
        };
        let config = world.file("none.toml").display().to_string();
        let missing = ["serve", "--config", &config];
        let (code, said) = ends(journal, &missing).await;
        assert_eq!(code, Some(64), "{said:?}");
        assert!(said.len() == 1 && said[0].starts_with("<3>mailchime: "), "{said:?}");
        assert!(said[0].contains("no such file"), "{said:?}");
        let (code, said) = ends(journal, &["serve", "--no-such-option"]).await;
        assert_eq!(code, Some(64), "{said:?}");
        assert!(said.len() > 1 && said.iter().all(|line| line.starts_with("<3>")), "{said:?}");
        // Elsewhere it is a text as any.
        let (code, said) = ends("true", &missing).await;
        assert_eq!(code, Some(64), "{said:?}");
        assert!(said[0].starts_with("mailchime: "), "{said:?}");
    })
    .await;
}

#[tokio::test]
async fn clients_with_which_tls_fails_have_a_line_that_says_why() {
    limited(async {
        let world = World::new().await;
        world.configure("[log]", "[limits]\nhandshake_timeout = \"5s\"\n[log]");
        let mut server = world.serve().await;
        let clear =
            "a client speaks without TLS where TLS is expected; mailchime closes the connection";
        for _ in 0..3 {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            stream.write_all(b"a LOGIN alice secret\r\n").await.unwrap();
            // The answer is an alert of TLS.
            stream.read_to_end(&mut Vec::new()).await.unwrap();
        }
        let line = server.logged(clear).await;
        assert_eq!((&line["level"], &line["left_out"]), (&"INFO".into(), &0.into()), "{line}");
        assert!(line["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");

        // One that does not know the authority.
        let stranger = Pki::generate(None).unwrap().client_config(None).unwrap();
        let stream = TcpStream::connect(server.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(stranger)).connect(name, stream).await.unwrap_err();
        let line = server.logged("TLS with a client failed; mailchime closes the connection").await;
        assert!(line["why"].as_str().unwrap().starts_with("received fatal alert: "), "{line}");

        // One without TLS that waits for a greeting.
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.unwrap();
        let message = "[limits] handshake_timeout is reached; mailchime closes the connection";
        let line = server.logged(message).await;
        assert_eq!((&line["level"], &line["limit_seconds"]), (&"INFO".into(), &5.0.into()));

        server.process.signal("TERM");
        server.process.end().await;
        let lines = server.process.stderr.seen.iter().filter(|line| line.contains(clear));
        assert_eq!(lines.count(), 1, "one line a minute");
    })
    .await;
}

#[tokio::test]
async fn a_client_that_just_closes_is_no_warning() {
    limited(async {
        let world = World::new().await;
        // What a machine with few open files has room for, or that would be a warning.
        world.configure("[log]", "[limits]\nsessions = 100\nwaiting = 100\n[log]");
        let mut server = world.serve().await;
        // Without a last word of TLS.
        drop(world.session(&server).await);
        server.logged("session ended").await;
        // By a reset, while nothing is under way.
        world.session(&server).await.reset();
        server.logged("session ended").await;
        // With answers on their way to it that it does not want.
        world.deliver();
        let mut client = world.session(&server).await;
        client.send(b"s SELECT INBOX\r\n").await;
        client.until("s OK").await;
        for _ in 0..200 {
            client.send(b"f FETCH 1 BODY.PEEK[]\r\n").await;
        }
        client.reset();
        server.logged("session ended").await;
        // Before it is logged in.
        world.client(&server).await.reset();
        server.logged("connection ended without login").await;
        server.process.signal("TERM");
        server.process.end().await;
        let lines = server.process.stderr.seen.iter().map(|line| serde_json::from_str(line));
        // A machine with more to do may take its time for a call of the database.
        let is_warning = |line: &Value| {
            line["level"] == "WARN" && line["message"] != "a database call took long"
        };
        let warnings: Vec<Value> = lines.map(Result::unwrap).filter(is_warning).collect();
        assert!(warnings.is_empty(), "{warnings:#?}");
    })
    .await;
}

#[tokio::test]
async fn a_statement_that_takes_long_is_named_by_its_call_and_not_by_its_text() {
    limited(async {
        let world = World::new().await;
        world.configure("busy_timeout = \"5s\"", "busy_timeout = \"60s\"");
        let mut server = world.serve().await;
        let url = format!("sqlite://{}", world.file("mailchime.db").display());
        let mut database = sqlx::SqliteConnection::connect(&url).await.unwrap();
        // How far this machine counts in two seconds at its fastest.
        let count = |to: u64| {
            format!(
                "with recursive number(n) as (select 1 union all select n + 1 from number where \
                 n < {to}) select count(*) from number"
            )
        };
        let mut fastest = std::time::Duration::MAX;
        for _ in 0..10 {
            let began = std::time::Instant::now();
            sqlx::query(AssertSqlSafe(count(100_000))).execute(&mut database).await.unwrap();
            fastest = fastest.min(began.elapsed());
        }
        let to = (100_000.0 * 2.0 / fastest.as_secs_f64()) as u64;
        let slow = format!(
            "create trigger slow before insert on subscription when 0 < ({}) begin select 1; end",
            count(to)
        );
        sqlx::query(AssertSqlSafe(slow)).execute(&mut database).await.unwrap();
        // Its answer may take longer than a phone waits.
        let mut client = world.session(&server).await;
        client.send(format!("r {}\r\n", registration()).as_bytes()).await;
        // On a busy machine others take long, too.
        let line = loop {
            let line = server.logged("a database call took long").await;
            if line["call"] == "register" {
                break line;
            }
        };
        assert_eq!(line["level"], "WARN", "{line}");
        assert!(line["seconds"].as_f64().unwrap() >= 1.0, "{line}");
        let log = server.process.stderr.so_far().join("\n");
        for part in ["insert into subscription", "on conflict", "slow statement"] {
            assert!(!log.contains(part), "{part:?} is in {log}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_log_that_nobody_reads_any_more_harms_nobody() {
    limited(async {
        let world = World::new().await;
        let arguments = world.arguments();
        let mut command = mailchime(&arguments.each_ref().map(String::as_str));
        let (reader, writer) = io::pipe().unwrap();
        let mut child = command.stderr(writer).spawn().unwrap();
        drop(command);
        // As a log collector that reads the first line and ends.
        let mut lines = io::BufRead::lines(io::BufReader::new(reader));
        let address = lines.find_map(|line| {
            let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
            line["address"].as_str()?.parse::<SocketAddr>().ok()
        });
        let address = address.expect("it listens");
        drop(lines);

        let phone = world.phone();
        let registered = phone.register(address, "localhost", &world.pki.ca.certificate, |_, _| {});
        let registered = registered.await;
        world.deliver();
        let pushed = tokio::time::timeout(crate::support::SOON, world.apns.next()).await;
        let running = child.try_wait().unwrap().is_none();
        child.kill().unwrap();
        child.wait().unwrap();
        registered.unwrap();
        assert!(pushed.is_ok() && running);
    })
    .await;
}

#[tokio::test]
async fn what_it_writes_is_its_users_alone_whatever_the_umask() {
    limited(async {
        let world = World::new().await;
        let arguments = world.arguments();
        let arguments = arguments.each_ref().map(String::as_str);
        let process = Process::spawn(mailchime_after("umask 0", &arguments));
        let server = Server::of(process).await;
        world.register(server.address).await.unwrap();
        let mut made = Vec::new();
        for entry in fs::read_dir(world.folder()).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if name.starts_with("mailchime.") {
                let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
                assert_eq!(mode, 0o600, "{name} has mode {mode:o}");
                made.push(name);
            }
        }
        made.sort();
        let expected = ["db", "db-lock", "db-shm", "db-wal", "key"];
        assert_eq!(made, expected.map(|end| format!("mailchime.{end}")));
    })
    .await;
}

/// A phone that asks for more mailboxes than it can have is registered for the first ones, and the log and
/// the metrics say so.
#[tokio::test]
async fn a_registration_that_was_cut_short_is_in_the_log() {
    limited(async {
        let world = World::new().await;
        world.configure("[push]\n", "[push]\nmailboxes = 2\n");
        world.backend.create_mailbox(LOGIN, "Sent").unwrap();
        world.backend.create_mailbox(LOGIN, "Drafts").unwrap();
        let mut server = world.serve().await;
        let mut client = world.session(&server).await;
        let asked = registration().replace("\"INBOX\"", "\"Sent\" \"Drafts\" \"INBOX\"");
        client.send(format!("r {asked}\r\n").as_bytes()).await;
        for echoed in ["Sent", "INBOX"] {
            let line = client.line().await;
            assert_eq!(line, format!("* XAPPLEPUSHSERVICE \"mailbox\" \"{echoed}\""));
        }
        client.until("r OK").await;
        let message = "[push] mailboxes is reached; mailchime registers the first mailboxes and leaves out the others";
        let line = server.logged(message).await;
        assert_eq!(line["level"], "WARN", "{line}");
        assert_eq!((&line["account"], &line["limit"]), (&LOGIN.into(), &2.into()), "{line}");
        assert_eq!(line["left_out"], 1, "{line}");
    })
    .await;
}
