//! The clients of the matrix, and what each does: all that it can of logging in, listing, selecting,
//! fetching, appending 5 MB, searching, storing flags, copying, moving, idling, logging out.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::mutt;
use super::rules::{self, Conversation};
use super::site::Kind;
use crate::support::servers::{ALICE, pki};
use crate::support::skip;

/// For one run of a program, in seconds.
const LIMIT: &str = "300";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    Curl,
    Mbsync,
    Mutt,
    Imaplib,
    Imapclient,
    Imapflow,
}

/// Whom a client talks to, and where it keeps its files.
pub(super) struct Place {
    pub(super) kind: Kind,
    /// On localhost, with TLS.
    pub(super) port: u16,
    /// Holds `ca.pem` and `big.eml`.
    pub(super) folder: tempfile::TempDir,
}

/// What a run showed.
#[derive(Debug, Default)]
pub(super) struct Run {
    pub(super) conversations: Vec<Conversation>,
    /// What the client printed and what it wrote, line by line.
    pub(super) outputs: Vec<String>,
    /// What could not be done.
    pub(super) notes: Vec<String>,
}

impl Place {
    pub(super) fn new(kind: Kind, port: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca.pem"), &pki().ca.certificate).unwrap();
        fs::write(folder.path().join("big.eml"), big_mail()).unwrap();
        Self { kind, port, folder }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A program that is ended when it takes too long.
    pub(super) fn limited(&self, program: &str) -> Command {
        let mut command = Command::new("timeout");
        command.args(["-k", "1", LIMIT, program]).current_dir(self.folder.path());
        command.env("HOME", self.folder.path()).env("PASSWORD", ALICE.1).env("LC_ALL", "C.UTF-8");
        command
    }
}

/// 5 MB in lines of 64 bytes, each another one.
fn big_mail() -> Vec<u8> {
    let mut mail = b"Message-ID: <big@matrix.example.org>\r\nFrom: Ann <ann@example.org>\r\n\
        Date: Sun, 1 Mar 2026 10:20:30 +0000\r\nSubject: big\r\n\r\n"
        .to_vec();
    for number in 0..5_000_000 / 64 {
        mail.extend_from_slice(format!("{number:08} {:-<53}\r\n", "").as_bytes());
    }
    mail
}

// === impl Client ===

impl Client {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Curl => "curl",
            Self::Mbsync => "mbsync",
            Self::Mutt => "mutt",
            Self::Imaplib => "imaplib",
            Self::Imapclient => "imapclient",
            Self::Imapflow => "imapflow",
        }
    }

    /// What `tests/run.sh` installs for it, the programs, and the file of the library.
    fn needs(self) -> (&'static [&'static str], &'static [&'static str], Option<&'static str>) {
        match self {
            Self::Curl => (&["curl"], &["curl"], None),
            Self::Mbsync => (&["mbsync"], &["mbsync"], None),
            Self::Mutt => (&["mutt"], &["mutt", "script"], None),
            Self::Imaplib => (&["python3"], &["python3"], None),
            Self::Imapclient => (&["python3", "imapclient"], &["python3"], Some(IMAPCLIENT)),
            Self::Imapflow => (&["imapflow"], &["node"], Some(IMAPFLOW)),
        }
    }

    /// Why it cannot run here, if so.
    pub(super) fn absent(self, test: &str) -> Option<String> {
        let (names, programs, library) = self.needs();
        if let Some(name) = names.iter().find(|name| skip::skipped(test, name)) {
            return Some(format!("{name} is not on this machine"));
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found =
            |program: &&&str| std::env::split_paths(&path).any(|it| it.join(program).exists());
        let absent = programs.iter().find(|program| !found(program)).copied();
        let absent = absent.or_else(|| library.filter(|folder| !libraries().join(folder).exists()));
        let reason = format!("{} is not on this machine", absent?);
        skip::report(test, &reason);
        Some(reason)
    }

    pub(super) fn run(self, place: &Place) -> Run {
        match self {
            Self::Curl => curl(place),
            Self::Mbsync => mbsync(place),
            Self::Mutt => mutt::run(place),
            Self::Imaplib | Self::Imapclient => {
                let script = Path::new(env!("CARGO_MANIFEST_DIR"))
                    .join("tests/integration/matrix/imaplib_run.py");
                let mut command = place.limited("python3");
                command.arg("-B").arg(script).arg(self.name());
                scripted(place, command, IMAPCLIENT)
            }
            Self::Imapflow => {
                let script = Path::new(env!("CARGO_MANIFEST_DIR"))
                    .join("tests/integration/matrix/imapflow_run.mjs");
                let mut command = place.limited("node");
                command.arg(script);
                scripted(place, command, IMAPFLOW)
            }
        }
    }
}

// === Python and Node ===

const IMAPCLIENT: &str = "imapclient-4.1.0";
const IMAPFLOW: &str = "imapflow-2.1.2";

/// Where libraries are installed: `MAILCHIME_CLIENTS`, else where `tests/run.sh` leaves them.
fn libraries() -> PathBuf {
    std::env::var_os("MAILCHIME_CLIENTS").map_or_else(
        || Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("clients"),
        Into::into,
    )
}

/// A script that prints what its library returned, and leaves the bytes of its connections.
fn scripted(place: &Place, mut command: Command, library: &str) -> Run {
    command.arg(place.folder.path()).arg(place.port.to_string());
    command.args([&place.kind.login(), place.kind.prefix()]);
    command.env("LIBRARY_FOLDER", libraries().join(library));
    if place.kind.tells_by_the_clock() {
        command.env("BY_THE_CLOCK", "yes");
    }
    let output = command.output().unwrap();
    let said = text(&output.stdout);
    assert!(output.status.success(), "{}\n{said}\n{}", output.status, text(&output.stderr));
    let mut run = Run::default();
    for line in said.lines() {
        match line.strip_prefix("note: ") {
            Some(note) => run.notes.push(note.to_owned()),
            None => run.outputs.push(rules::masked(line)),
        }
    }
    for number in 1.. {
        let side = |side: &str| fs::read(place.path(&format!("{number}.{side}"))).ok();
        let (Some(client), Some(server)) = (side("client"), side("server")) else { break };
        run.conversations.push(Conversation {
            client: rules::units(&client).expect("what the client said is whole"),
            server: rules::units(&server).expect("what the server said is whole"),
        });
    }
    run
}

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

// === curl ===

/// One connection for each thing that it does.
fn curl(place: &Place) -> Run {
    let copy = format!("{}Copy", place.kind.prefix());
    let create = format!("CREATE {copy}");
    let (copy_one, copy_two) = (format!("UID COPY 1 {copy}"), format!("UID COPY 2 {copy}"));
    let move_two = format!("UID MOVE 2 {copy}");
    let status = format!("STATUS {}Team (MESSAGES UNSEEN)", place.kind.prefix());
    let mut steps = vec![
        ("", vec![]),
        ("", vec!["-X", &status]),
        ("", vec!["-X", &create]),
        ("INBOX/;UID=1", vec![]),
        ("INBOX/;UID=2/;SECTION=TEXT", vec![]),
        ("INBOX/;MAILINDEX=3", vec![]),
        ("INBOX", vec!["-T", "big.eml"]),
        ("INBOX/;UID=4", vec!["-o", "back.eml"]),
        ("INBOX?SUBJECT%20needle", vec![]),
        ("INBOX", vec!["-X", "STORE 1:2 +FLAGS (\\Seen \\Answered)"]),
        ("INBOX", vec!["-X", &copy_one]),
    ];
    let mut run = Run::default();
    if place.kind.has_move() {
        steps.push(("INBOX", vec!["-X", &move_two]));
    } else {
        run.notes.push("no MOVE: COPY + EXPUNGE".into());
        steps.push(("INBOX", vec!["-X", &copy_two]));
        steps.push(("INBOX", vec!["-X", "UID STORE 2 +FLAGS.SILENT (\\Deleted)"]));
        steps.push(("INBOX", vec!["-X", "EXPUNGE"]));
    }
    run.notes.push("no IDLE in curl".into());
    for (path, arguments) in steps {
        let mut command = place.limited("curl");
        command.args([
            "-q",
            "-v",
            "-sS",
            "--login-options",
            "AUTH=PLAIN",
            "--cacert",
            "ca.pem",
            "-u",
        ]);
        command.arg(format!("{}:{}", place.kind.login(), ALICE.1)).args(arguments);
        command.arg(format!("imaps://localhost:{}/{path}", place.port));
        let Output { status, stdout, stderr } = command.output().unwrap();
        let mut conversation = Conversation::default();
        for line in text(&stderr).lines() {
            if let Some(line) = line.strip_prefix("> ") {
                conversation.client.push(format!("{line}\r\n"));
            } else if let Some(line) = line.strip_prefix("< ") {
                conversation.server.push(format!("{line}\r\n"));
            }
        }
        assert!(!conversation.client.is_empty(), "{path}: {}", text(&stderr));
        run.conversations.push(conversation);
        run.outputs.push(format!("{path}: {status}"));
        run.outputs.extend(text(&stdout).lines().map(rules::masked));
    }
    let same = fs::read(place.path("back.eml")).is_ok_and(|back| back == big_mail());
    run.outputs.push(format!("the same as appended: {same}"));
    run
}

// === mbsync ===

/// Pulls all; then flags one mail and removes another; then uploads a mail of 5 MB and a new mailbox;
/// then finds nothing to do.
#[expect(clippy::too_many_lines, reason = "one story")]
fn mbsync(place: &Place) -> Run {
    let rc = format!(
        "IMAPAccount a
Host localhost
Port {}
User {}
Pass \"{}\"
SSLType IMAPS
SystemCertificates no
CertificateFile ca.pem
AuthMechs LOGIN
Timeout 120

IMAPStore r
Account a

MaildirStore l
Path m/
Inbox m/INBOX
SubFolders Verbatim

Channel c
Far :r:
Near :l:
Patterns *
Create Both
Expunge Both
SyncState *
",
        place.port,
        place.kind.login(),
        ALICE.1,
    );
    fs::write(place.path("rc"), rc).unwrap();
    fs::create_dir(place.path("m")).unwrap();
    let mut run = Run::default();
    let sync = |run: &mut Run, what: &str| {
        let output = place.limited("mbsync").args(["-c", "rc", "-Dn", "-a"]).output().unwrap();
        let mut conversation = Conversation::default();
        for line in text(&output.stdout).lines() {
            let (_, said) = line.split_once(" in progress) ").unwrap_or(("", line));
            if let Some(command) = said.strip_prefix(">>> ") {
                conversation.client.push(format!("{command}\r\n"));
            } else if is_response(line) {
                conversation.server.push(format!("{line}\r\n"));
            }
        }
        run.conversations.push(conversation);
        run.outputs.push(format!("{what}: {}", output.status));
        run.outputs.extend(text(&output.stderr).lines().map(str::to_owned));
        run.outputs.extend(maildirs(&place.path("m")));
        output.status.success()
    };
    assert!(sync(&mut run, "pulled"), "{:?}", run.outputs);
    let find = |id: &str| {
        let id = format!("Message-ID: <{id}@");
        let mut files = files(&place.path("m/INBOX")).into_iter();
        files.find(|file| text(&fs::read(file).unwrap()).contains(&id)).unwrap()
    };
    let flag = |id: &str, flags: &str| {
        let old = find(id);
        let name = old.file_name().unwrap().to_str().unwrap();
        let name = name.split(":2,").next().unwrap();
        fs::rename(&old, place.path(&format!("m/INBOX/cur/{name}:2,{flags}"))).unwrap();
    };
    flag("1", "RS");
    flag("2", "ST");
    assert!(sync(&mut run, "flagged and removed"), "{:?}", run.outputs);
    let copy = place.path("m/Copy");
    for folder in ["cur", "new", "tmp"] {
        fs::create_dir_all(copy.join(folder)).unwrap();
    }
    fs::copy(find("1"), copy.join("new/1.one.here")).unwrap();
    fs::copy(place.path("big.eml"), place.path("m/INBOX/new/1.two.here")).unwrap();
    if place.kind == Kind::Imap4d {
        assert!(!sync(&mut run, "uploaded"), "mbsync has learned it: {:?}", run.outputs);
        run.notes.push("mbsync does not know again what it has uploaded".into());
    } else {
        assert!(sync(&mut run, "uploaded"), "{:?}", run.outputs);
        assert!(sync(&mut run, "nothing to do"), "{:?}", run.outputs);
    }
    let heard = run.conversations.iter().flat_map(|it| &it.server);
    let offers: Vec<_> = heard.filter(|line| line.contains("CAPABILITY ")).collect();
    for capability in ["LITERAL+", "UIDPLUS"] {
        if !offers.iter().any(|line| line.contains(capability)) {
            run.notes.push(format!("no {capability}"));
        }
    }
    for note in
        ["no SEARCH in mbsync", "no COPY or MOVE in mbsync: APPEND + EXPUNGE", "no IDLE in mbsync"]
    {
        run.notes.push(note.into());
    }
    run
}

/// Whether a line of mbsync's is a response: it begins with `*`, `+` or a tag, which is a number.
fn is_response(line: &str) -> bool {
    let mut words = line.split(' ');
    match words.next() {
        Some("*" | "+") => true,
        Some(tag) => {
            tag.parse::<u32>().is_ok() && matches!(words.next(), Some("OK" | "NO" | "BAD"))
        }
        None => false,
    }
}

/// The files of a Maildir.
fn files(maildir: &Path) -> Vec<PathBuf> {
    let folders = ["cur", "new"].map(|name| maildir.join(name));
    let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// What is in Maildirs: the flags and the text of each mail, in an order that names do not matter for.
fn maildirs(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let maildir = entry.unwrap().path();
        for file in files(&maildir) {
            let (name, mailbox) = (file.file_name().unwrap(), maildir.file_name().unwrap());
            let flags = name.to_str().unwrap().split_once(":2,").map_or("", |(_, flags)| flags);
            let mail = rules::masked(&text(&fs::read(&file).unwrap()));
            found.push(format!("{}: {flags}: {mail}", mailbox.display()));
        }
    }
    found.sort();
    found
}
