//! Login names that look like lines of the log, and the fail2ban filter that is shipped: no client can
//! have another one's address banned.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::program::Process;
use crate::support::world::{PASSWORD, World};
use crate::support::{limited, skip};

/// What must never be banned.
const VICTIM: &str = "203.0.113.99";

/// Names that try to be a line of their own about the victim, each from an address of its own.
const HOSTILE: [(&str, &str); 12] = [
    ("198.51.100.1", "x login refused peer=203.0.113.99"),
    ("198.51.100.2", "x login refused peer=203.0.113.99 account=y"),
    ("198.51.100.3", "x\" account=\"y"),
    ("198.51.100.4", "x\" login refused peer=203.0.113.99 account=\""),
    ("198.51.100.5", "x\\\" peer=203.0.113.99 account=\"y"),
    (
        "198.51.100.6",
        "2026-01-01T00:00:00.000000Z  WARN mailchime::login: login refused peer=203.0.113.99 \
         account=\"x\"",
    ),
    (
        "198.51.100.7",
        "x\r\n2026-01-01T00:00:00.000000Z  WARN mailchime::login: login refused \
         peer=203.0.113.99 account=\"x\"",
    ),
    (
        "198.51.100.8",
        "{\"timestamp\":\"2026-01-01T00:00:00.000000Z\",\"level\":\"WARN\",\"message\":\"login \
         refused\",\"peer\":\"203.0.113.99\",\"account\":\"x\"",
    ),
    (
        "198.51.100.9",
        "\",\"level\":\"WARN\",\"message\":\"login refused\",\"peer\":\"203.0.113.99\",\
         \"account\":\"x",
    ),
    ("2001:db8::7", "x\u{2028}login refused peer=203.0.113.99 account=\"x\""),
    ("2001:db8::8", "x\u{85}WARN mailchime::login: login refused peer=203.0.113.99 account=\"x"),
    ("198.51.100.10", "\u{1b}[2K\rWARN mailchime::login: login refused peer=203.0.113.99"),
];

/// Logs in from this address, as a load balancer tells it.
async fn log_in(world: &World, server: SocketAddr, from: &str, name: &str) -> String {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let (family, to) = if from.contains(':') { ("6", "2001:db8::1") } else { ("4", "192.0.2.1") };
    let header = format!("PROXY TCP{family} {from} {to} 4711 993\r\n");
    stream.write_all(header.as_bytes()).await.unwrap();
    let connector = TlsConnector::from(Arc::new(world.pki.client_config(None).unwrap()));
    let stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await;
    let mut client = BufStream::new(stream.unwrap());
    let mut line = String::new();
    client.read_line(&mut line).await.unwrap();
    let command = format!("a LOGIN {{{}+}}\r\n{name} \"{PASSWORD}\"\r\n", name.len());
    client.write_all(command.as_bytes()).await.unwrap();
    client.flush().await.unwrap();
    line.clear();
    client.read_line(&mut line).await.unwrap();
    line
}

/// A whole log in this form: all hostile names are refused, and then those that can be are accepted.
async fn log_of(format: &str) -> Vec<String> {
    let world = World::new().await;
    let more = "[limits]\nfailure_delay = \"1ms\"\nlogin_failures_per_minute = 1000\n[log]";
    world.configure("[log]", more);
    if format != "json" {
        world.configure("\"json\"", &format!("\"{format}\""));
    }
    world.configure("[tls]", "proxy_protocol = [\"127.0.0.1\"]\n[tls]");
    let mut process = Process::spawn(world.program());
    let address = |line: &str| {
        let rest =
            line.split_once("listening address=").or_else(|| line.split_once("\"address\":\""))?.1;
        rest.split('"').next()?.parse().ok()
    };
    let server = process.stderr.find("the address", address).await;
    for (from, name) in HOSTILE {
        let answer = log_in(&world, server, from, name).await;
        assert!(answer.starts_with("a NO [AUTHENTICATIONFAILED]"), "{name:?}: {answer}");
    }
    for (from, name) in HOSTILE.into_iter().filter(|(_, name)| !name.contains(char::is_control)) {
        world.backend.add_account(name, PASSWORD.as_bytes());
        let answer = log_in(&world, server, from, name).await;
        assert!(answer.starts_with("a OK"), "{name:?}: {answer}");
    }
    process.signal("TERM");
    assert_eq!(process.end().await.code(), Some(0));
    std::mem::take(&mut process.stderr.seen)
}

/// How often the shipped filter finds each address in a log. In a file each line has its date; the
/// journal of systemd has it beside the line, and puts the host and the program before it.
fn found(folder: &Path, lines: &[String], in_journal: bool) -> BTreeMap<String, usize> {
    let line = |line: &String| match in_journal {
        true => format!("mail.example.org mailchime[4711]: {line}\n"),
        false => format!("{line}\n"),
    };
    let log = folder.join("log");
    fs::write(&log, lines.iter().map(line).collect::<String>()).unwrap();
    let date: &[&str] = if in_journal { &["-d", "{NONE}"] } else { &[] };
    let filter = "contrib/fail2ban/filter.d/mailchime.conf";
    let filter = Path::new(env!("CARGO_MANIFEST_DIR")).join(filter);
    let mut regex = Command::new("fail2ban-regex");
    let output = regex.args(["-o", "ip"]).args(date).args([&log, &filter]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let mut found = BTreeMap::new();
    for address in said.lines() {
        *found.entry(address.to_owned()).or_default() += 1;
    }
    found
}

async fn nobody_else_is_banned(format: &str) {
    let test = format!("attacks::logs::the_filter_bans_who_guessed_in_{format}");
    if skip::skipped(&test, "fail2ban") {
        return;
    }
    if !Path::new("/usr/bin/fail2ban-regex").exists() {
        return skip::report(&test, "fail2ban is not on this machine: no fail2ban-regex");
    }
    let mut lines = log_of(format).await;
    assert!(lines.iter().any(|line| line.contains(VICTIM)), "the names are in the log");
    let mut places = vec![true];
    if format == "journal" {
        // What systemd takes from each line.
        let kept = lines.iter().map(|line| line[line.find('>').unwrap() + 1..].to_owned());
        lines = kept.collect();
    } else {
        places.push(false);
    }
    let expected: BTreeMap<_, _> = HOSTILE.map(|(from, _)| (from.to_owned(), 1)).into();
    let folder = tempfile::tempdir().unwrap();
    for in_journal in places {
        assert_eq!(found(folder.path(), &lines, in_journal), expected, "{}", lines.join("\n"));
    }
}

#[tokio::test]
async fn the_filter_bans_a_guesser_in_a_text_log() {
    limited(nobody_else_is_banned("text")).await;
}

#[tokio::test]
async fn the_filter_bans_a_guesser_in_the_journal() {
    limited(nobody_else_is_banned("journal")).await;
}

#[tokio::test]
async fn the_filter_bans_a_guesser_in_a_json_log() {
    limited(nobody_else_is_banned("json")).await;
}

/// The documented form, to the letter.
#[tokio::test]
async fn the_line_of_a_refused_login_has_its_form() {
    limited(async {
        for (format, before, between, end) in [
            ("text", "", "  WARN mailchime::login: login refused peer=", ""),
            (
                "json",
                "{\"timestamp\":\"",
                "\",\"level\":\"WARN\",\"message\":\"login refused\",\"peer\":",
                ",\"target\":\"mailchime::login\"}",
            ),
        ] {
            let lines = log_of(format).await;
            // Behind the date, which has 27 characters.
            let behind =
                |line: &String| line.get(before.len() + 27..).unwrap_or_default().to_owned();
            let refused: Vec<_> =
                lines.iter().map(behind).filter(|line| line.starts_with(between)).collect();
            assert_eq!(refused.len(), HOSTILE.len(), "{lines:#?}");
            let account = HOSTILE[0].1;
            let rest = match format {
                "text" => format!("198.51.100.1 account=\"{account}\""),
                _ => format!("\"198.51.100.1\",\"account\":\"{account}\""),
            };
            assert_eq!(refused[0], format!("{between}{rest}{end}"));
            if format == "text" {
                // Whatever a reader takes for the end of a line, no name has it.
                let ends = ['\r', '\u{b}', '\u{c}', '\u{1b}', '\u{85}', '\u{2028}', '\u{2029}'];
                assert!(!lines.join("").contains(ends));
            }
        }
    })
    .await;
}
