//! `mailchime demo`, as somebody types it who wants to see what this is.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::browser::BrowserScript;
use crate::support::program::{Process, mailchime, mailchime_after};
use crate::support::{limited, soon};

/// An empty folder to be in, and one for temporary files.
struct Folders {
    current: TempDir,
    temporary: TempDir,
}

impl Folders {
    fn new() -> Self {
        Self { current: tempfile::tempdir().unwrap(), temporary: tempfile::tempdir().unwrap() }
    }

    fn command(&self, mut command: Command) -> Command {
        command.current_dir(&self.current).env("TMPDIR", self.temporary.path());
        command
    }

    fn in_use(&self) -> usize {
        fs::read_dir(&self.temporary).unwrap().count()
    }

    #[track_caller]
    fn assert_empty(&self, context: &str) {
        for folder in [&self.current, &self.temporary] {
            let left: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap()).collect();
            assert!(left.is_empty(), "{context}: left behind: {left:?}");
        }
    }
}

#[tokio::test]
async fn once_shows_the_push_and_leaves_nothing_behind() {
    limited(async {
        let folders = Folders::new();
        let mut process = Process::spawn(folders.command(mailchime(&["demo", "--once"])));
        let status = process.end().await;
        let (shown, error) = (process.stdout.seen.join("\n"), process.stderr.seen.join("\n"));
        assert_eq!((status.code(), &*error), (Some(0), ""), "{shown}");
        let mut at = 0;
        for part in [
            "  web app, HTTPS           https://localhost:",
            "  Web Push stand-in        https://localhost:",
            "phone     > t1 LOGIN \"alice\"",
            "mailchime < t1 OK",
            "XAPPLEPUSHSERVICE \"aps-version\" \"2\"",
            "mailchime < * XAPPLEPUSHSERVICE \"mailbox\" \"INBOX\"",
            "\"aps-topic\" \"com.apple.mail.XServer.",
            "mailchime < t4 OK",
            "A mail arrives",
            "apns-topic: com.apple.mail.XServer.",
            "{\"aps\":{\"account-id\":\"0715A26B-CA09-4730-A419-793000CA982E\"}}",
            " ms after the mail was delivered",
        ] {
            let found = shown[at..].find(part);
            at += found.unwrap_or_else(|| panic!("{part:?} does not follow in\n{shown}"));
        }
        assert!(!shown.contains('\x1b'), "colours without a terminal");
        folders.assert_empty("demo --once");
    })
    .await;
}

#[tokio::test]
async fn it_stays_up_and_shows_what_a_second_terminal_delivers() {
    limited(async {
        let folders = Folders::new();
        let mut process = Process::spawn(folders.command(mailchime(&["demo"])));
        // The commands that are shown are meant to be copied.
        let (program, address) = process
            .stdout
            .find("the command to deliver with", |line| {
                let (program, address) = line.trim().split_once(" demo --deliver ")?;
                Some((program.to_owned(), address.to_owned()))
            })
            .await;
        assert_eq!(program, env!("CARGO_BIN_EXE_mailchime"));
        let mut second = Process::spawn(mailchime(&["demo", "--deliver", &address]));
        assert_eq!(second.end().await.code(), Some(0), "{:?}", second.stderr.seen);
        let shown = |line: &str| line.contains("\"account-id\"").then_some(());
        process.stdout.find("a further push", shown).await;
        assert_eq!(folders.in_use(), 1);
        process.signal("INT");
        let status = process.end().await;
        assert_eq!((status.code(), &*process.stderr.seen.join("\n")), (Some(0), ""));
        folders.assert_empty("demo");
    })
    .await;
}

/// Firefox is started as the demo says, but by a driver and without a window.
#[tokio::test(flavor = "multi_thread")]
async fn firefox_in_the_profile_of_the_demo_is_notified_of_the_mail_that_it_delivers() {
    limited(async {
        let folders = Folders::new();
        let test = "firefox_in_the_profile_of_the_demo_is_notified_of_the_mail_that_it_delivers";
        let script =
            BrowserScript::start(test, "push.mjs", "firefox-esr", folders.temporary.path());
        let Some(mut script) = script else { return };
        let mut process = Process::spawn(folders.command(mailchime(&["demo"])));
        let login = process.stdout.find("who logs in", |line| {
            let (_, rest) = line.split_once("(log in as ")?;
            let (login, rest) = rest.split_once(" with the password \"")?;
            Some((login.to_owned(), rest.split_once('"')?.0.to_owned()))
        });
        let (login, password) = login.await;
        let firefox = process.stdout.find("how Firefox is started", |line| {
            let rest = line.trim().strip_prefix("firefox --new-instance --profile ")?;
            rest.split_once(' ').map(|(profile, url)| (profile.to_owned(), url.to_owned()))
        });
        let (profile, url) = firefox.await;
        let address = process.stdout.find("the command to deliver with", delivers_to).await;
        for line in [&profile, &url, &login, &password] {
            script.tell(line);
        }
        assert_eq!(script.next().await.as_deref(), Some("deliver"));
        let mut second = Process::spawn(mailchime(&["demo", "--deliver", &address]));
        assert_eq!(second.end().await.code(), Some(0), "{:?}", second.stderr.seen);
        // It has seen the notification, and wants it to be read.
        assert_eq!(script.next().await.as_deref(), Some("read"));
        let shown = |line: &str| line.contains("encrypted to the browser").then_some(());
        process.stdout.find("what the push service got", shown).await;
        script.tell("stop");
        assert_eq!(script.next().await, None);
        process.signal("INT");
        assert_eq!(process.end().await.code(), Some(0), "{:?}", process.stderr.seen);
    })
    .await;
}

/// Where `demo --deliver` leads, if this line says it.
fn delivers_to(line: &str) -> Option<String> {
    let (_, address) = line.trim().split_once(" demo --deliver ")?;
    Some(address.to_owned())
}

#[tokio::test]
async fn a_signal_ends_it_at_any_time() {
    limited(async {
        for signal in ["INT", "TERM", "HUP"] {
            let folders = Folders::new();
            let mut process = Process::spawn(folders.command(mailchime(&["demo"])));
            // The story has only begun.
            process.stdout.next().await;
            process.signal(signal);
            assert_eq!(process.end().await.code(), Some(0), "{:?}", process.stdout.seen);
            folders.assert_empty(signal);
        }
    })
    .await;
}

#[tokio::test]
async fn where_file_descriptors_are_short_it_says_so_and_leaves_nothing_behind() {
    limited(async {
        let mut failures = 0;
        let arguments = ["demo", "--once"];
        let runs: Vec<_> = (8..26)
            .step_by(2)
            .map(|limit| {
                let folders = Folders::new();
                let command = mailchime_after(&format!("ulimit -n {limit}"), &arguments);
                (limit, Process::spawn(folders.command(command)), folders, Instant::now())
            })
            .collect();
        for (limit, mut process, folders, started) in runs {
            let status = process.end().await;
            let context = format!("{limit}: {:?} {:?}", process.stdout.seen, process.stderr.seen);
            match status.code() {
                Some(0) => {}
                Some(1) => {
                    let reason = process.stderr.seen.last().unwrap();
                    assert!(reason.starts_with("mailchime: "), "{context}");
                    failures += 1;
                }
                _ => panic!("{status}: {context}"),
            }
            assert!(!context.contains("panicked"), "{context}");
            // Ten seconds of patience, and some for a start that waits for its database.
            assert!(started.elapsed() < Duration::from_secs(60), "{context}");
            folders.assert_empty(&context);
        }
        assert!(failures > 3, "only {failures} of the limits were too low");
    })
    .await;
}

/// As with `| head -3`: it would stay up otherwise.
#[tokio::test]
async fn a_reader_that_has_read_enough_ends_it() {
    limited(async {
        for lines in [3, 12] {
            let folders = Folders::new();
            let (reader, writer) = io::pipe().unwrap();
            let mut command = folders.command(mailchime(&["demo"]));
            let mut child = command.stdout(writer).stderr(Stdio::null()).spawn().unwrap();
            drop(command);
            let ended = tokio::task::spawn_blocking(move || {
                let read = BufReader::new(reader).lines().take(lines).map(Result::unwrap).count();
                (read, child.wait().unwrap())
            });
            let (read, status) = soon("its end", ended).await.unwrap();
            assert_eq!((read, status.code()), (lines, Some(0)));
            folders.assert_empty("demo, without a reader");
        }
    })
    .await;
}

#[tokio::test]
async fn nobody_has_to_read_what_it_shows() {
    limited(async {
        let folders = Folders::new();
        let mut command = folders.command(mailchime(&["demo", "--once"]));
        // As with `| true`.
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut child = command.stdout(writer).stderr(Stdio::null()).spawn().unwrap();
        let status = tokio::task::spawn_blocking(move || child.wait().unwrap());
        assert_eq!(status.await.unwrap().code(), Some(0));
        folders.assert_empty("without a reader");
    })
    .await;
}
