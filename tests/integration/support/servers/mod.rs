//! Real servers for tests: each runs from a temporary folder on free ports of loopback, never as
//! the system's service, and is gone with its folder when it is dropped.
//!
//! `start` gives `None`, and says so as [`skip`](super::skip) does, where a server cannot run. It
//! and the other functions wait for the server's process without a runtime; a test that wants its
//! own tasks to go on meanwhile takes a runtime of several threads.
//!
//! Each server knows [`ALICE`], [`BOB`] and [`OTHERS`].

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{self as std_process, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mailchime::demo::pki::Pki;

use super::skip;

pub(crate) mod client;
pub(crate) mod courier;
pub(crate) mod cyrus;
pub(crate) mod dovecot;
pub(crate) mod dovecot24;
pub(crate) mod event_script;
pub(crate) mod forwarder;
pub(crate) mod imap4d;
pub(crate) mod mariadb;
pub(crate) mod pgbouncer;
pub(crate) mod postgres;
mod process;
pub(crate) mod times;
mod unpacked;

/// A database server that a test has to itself.
pub(crate) trait DatabaseServer: Send {
    /// What `store.url` takes, for a database that is there and empty.
    fn database_url(&self) -> String;

    /// Ends it and its sessions.
    fn stop(&mut self);

    /// Ends it as if it had crashed: it has to recover at its next start.
    fn crash(&mut self);

    /// Starts it, stopped or not, on the same port and with the same data.
    fn restart(&mut self);
}

/// A login name and its password.
pub(crate) type User<'a> = (&'a str, &'a str);

/// Has a blank in her password.
pub(crate) const ALICE: User<'static> = ("alice", "wonder land");

/// Has a quote and a backslash in his password, which IMAP must escape.
pub(crate) const BOB: User<'static> = ("bob", r#"q"uo\te"#);

/// Users with passwords that are written in several ways, of which servers take some and not others.
pub(crate) const OTHERS: [User<'static>; 3] =
    [("carol", "Zip~ped9"), ("dave", r"x%y\z*w]"), ("eva", "p\u{e4}ssw\u{f6}rd")];

/// All of them.
fn users() -> impl Iterator<Item = User<'static>> {
    [ALICE, BOB].into_iter().chain(OTHERS)
}

/// Number of the user `nobody` and of its group; servers read mail as this user.
pub(crate) const NOBODY: u32 = 65_534;

/// The certificates of all servers: `pki().server`, signed by `pki().ca`.
pub(crate) fn pki() -> &'static Pki {
    static PKI: OnceLock<Pki> = OnceLock::new();
    PKI.get_or_init(|| Pki::generate(None).unwrap())
}

/// A mail with an id of its own, without which some servers take it for one that they have.
pub(crate) fn mail(subject: &str) -> Vec<u8> {
    let id = unique();
    format!(
        "Message-ID: <{id}@example.org>\r\nFrom: Ann <ann@example.org>\r\n\
         To: alice@example.org\r\nSubject: {subject}\r\n\r\nHi there.\r\n"
    )
    .into_bytes()
}

// === for the servers ===

/// Whether `test` can have a server that needs root and these files; says so if not.
fn available(test: &str, server: &str, files: &[&Path]) -> bool {
    if skip::skipped(test, server) {
        return false;
    }
    let reason = if let Some(absent) = files.iter().find(|file| !file.exists()) {
        format!("{server} is not on this machine: no {}", absent.display())
    } else if fs::metadata("/proc/self").unwrap().uid() != 0 {
        format!("{server} needs root")
    } else {
        return true;
    };
    skip::report(test, &reason);
    false
}

/// Runs a command to its end with this input; its output. Panics with its errors if it fails.
fn run(command: &mut Command, input: &str) -> String {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// A command that runs as nobody.
fn as_nobody(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(program);
    command
}

/// A name that nothing else has.
fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{}.{count}.{:x}", std_process::id(), rand::random::<u32>())
}

/// Waits until the clock shows another second.
fn next_second() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    sleep(Duration::from_secs(now.as_secs() + 1) - now);
}

/// Makes a folder, with those above it, that belongs to nobody.
fn folder_of_nobody(path: &Path) {
    if !path.exists() {
        path.parent().map(folder_of_nobody);
        fs::create_dir(path).unwrap();
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// Moves a mail into a Maildir as a delivery agent does: whole or not at all. Makes the Maildir.
fn deliver_to_maildir(maildir: &Path, mail: &[u8]) -> PathBuf {
    for folder in ["cur", "new", "tmp"] {
        folder_of_nobody(&maildir.join(folder));
    }
    let name = unique();
    let (tmp, new) = (maildir.join("tmp").join(&name), maildir.join("new").join(&name));
    fs::write(&tmp, mail).unwrap();
    chown(&tmp, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::rename(&tmp, &new).unwrap();
    new
}

/// Delivers a mail by LMTP and waits until it is accepted.
fn deliver_by_lmtp(socket: &Path, user: &str, mail: &[u8]) {
    try_by_lmtp(socket, user, mail).unwrap();
}

/// Delivers a mail by LMTP (RFC 2033). After an error it may have been delivered all the same.
pub(crate) fn try_by_lmtp(socket: &Path, user: &str, mail: &[u8]) -> io::Result<()> {
    assert!(!mail.starts_with(b".") && !mail.windows(2).any(|at| at == b"\n."), "needs stuffing");
    let mut lmtp = UnixStream::connect(socket)?;
    lmtp.set_read_timeout(Some(Duration::from_secs(90)))?;
    let mut answers = BufReader::new(lmtp.try_clone()?).lines();
    let mut expect = |code: &str| {
        loop {
            let answer = answers.next().ok_or(io::ErrorKind::UnexpectedEof)??;
            if !answer.starts_with(code) {
                return Err(io::Error::other(answer));
            }
            if answer.as_bytes().get(3) != Some(&b'-') {
                return Ok(());
            }
        }
    };
    expect("220")?;
    for (command, code) in [
        ("LHLO localhost", "250"),
        ("MAIL FROM:<ann@example.org>", "250"),
        (&format!("RCPT TO:<{user}>"), "250"),
        ("DATA", "354"),
    ] {
        lmtp.write_all(format!("{command}\r\n").as_bytes())?;
        expect(code)?;
    }
    lmtp.write_all(mail)?;
    lmtp.write_all(b"\r\n.\r\n")?;
    expect("250")
}
