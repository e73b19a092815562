//! `mailchime replay`, and recordings: what is in them, and that they can be replayed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use mailchime::config::RecordConfig;
use mailchime::demo::backend::DemoBackend;
use mailchime::demo::dialogue::Dialogue;
use mailchime::demo::replay::{against_mailchime, against_mailchime_as};

use crate::support::dialogues::{PKI, all};
use crate::support::listener;

const LIMIT: Duration = Duration::from_secs(240);

fn replay(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mailchime"));
    command.arg("replay").args(arguments).env("MAILCHIME_PASSWORD", "wonder land");
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

fn fixture(name: &str) -> String {
    format!("{}/fixtures/{name}.imap", env!("CARGO_MANIFEST_DIR"))
}

/// A file with this text.
fn written(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn a_dialogue_that_holds_is_ok_and_one_that_does_not_names_its_line() {
    let (good, bad) = (fixture("before-login"), fs::read_to_string(fixture("goodbye")).unwrap());
    let line = 2 + bad.lines().position(|line| line.starts_with("BS: * BYE")).unwrap();
    let bad = bad.replace("BS: * BYE Logging out", "B: * BYE Logging out\nS: * BYE Gone");
    let bad = written(&bad);
    let bad = bad.path().display().to_string();
    let (code, told, error) = replay(&[&good, &bad]);
    assert_eq!(code, Some(1), "{told}{error}");
    let expected = format!(
        "{good}: ok\n{bad}:{line}: differs\n  expected: * BYE Gone\\r\\n\n  heard:    * BYE Logging out\\r\\n\n"
    );
    assert_eq!(told, expected, "and no colours where there is no terminal");
    assert_eq!(error, "mailchime: 1 of 2 dialogues do not hold\n");
}

#[test]
fn a_file_that_is_malformed_or_missing_is_bad_usage_and_nothing_is_played() {
    let good = fixture("before-login");
    let malformed = written("C: a NOOP\nX: what\n");
    let malformed = malformed.path().display().to_string();
    let (code, told, error) = replay(&[&good, &malformed]);
    assert_eq!((code, told.as_str()), (Some(64), ""), "{error}");
    assert!(error.contains(&format!("{malformed}:2: begins with none of")), "{error}");
    let (code, _, error) = replay(&[&fixture("no-such-file")]);
    assert!(code == Some(64) && error.contains("cannot be read"), "{error}");
    let (code, _, error) = replay(&[&good, "--to", "localhost"]);
    assert!(code == Some(64) && error.contains("give the server as host:port"), "{error}");
    let (code, _, _) = replay(&[&good, "--user", "alice"]);
    assert_eq!(code, Some(64), "a user is for a server");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_half_is_played_to_a_live_server() {
    let plain = DemoBackend::start(listener().await, None).unwrap();
    let tls = PKI.server_config().unwrap();
    let tls = DemoBackend::start(listener().await, Some(tls)).unwrap();
    for server in [&plain, &tls] {
        server.add_account("bob", b"wonder land");
    }
    let test = tokio::task::spawn_blocking(move || {
        let folder = tempfile::tempdir().unwrap();
        PKI.write_to(folder.path()).unwrap();
        let ca = folder.path().join("ca.pem").display().to_string();
        let session = fixture("session");
        let (plain_at, tls_port) = (plain.address().to_string(), tls.address().port());
        let tls_at = format!("localhost:{tls_port}");
        let to_plain = ["--to", &plain_at, "--insecure-plain", "--user", "bob"];

        let (code, told, error) = replay(&[&[session.as_str()][..], &to_plain].concat());
        assert_eq!((code, told), (Some(0), format!("{session}: ok\n")), "{error}");
        let (code, told, error) =
            replay(&[&session, "--to", &tls_at, "--ca", &ca, "--user", "bob"]);
        assert_eq!((code, told), (Some(0), format!("{session}: ok\n")), "{error}");

        // The password of a file is as good; another is not.
        let password = written("wrong word\n");
        let password = password.path().display().to_string();
        let wrong = [&[session.as_str(), "--password-file", &password][..], &to_plain].concat();
        let (code, told, _) = replay(&wrong);
        assert_eq!(code, Some(1));
        assert!(told.contains("expected: t1 OK Logged in"), "{told}");
        assert!(told.contains("heard:    t1 NO") && !told.contains("wrong word"), "{told}");

        // Without trust there is no password on the way.
        let (code, told, _) = replay(&[&session, "--to", &tls_at, "--user", "bob"]);
        assert!(code == Some(1) && told.contains("cannot be played"), "{told}");

        let other = fixture("unavailable");
        let (code, told, _) = replay(&[&[other.as_str()][..], &to_plain].concat());
        assert_eq!((code, told), (Some(0), format!("{other}: skipped (not for a live server)\n")));
    });
    tokio::time::timeout(LIMIT, test).await.expect("in time").unwrap();
}

/// Plays a dialogue while it is recorded; gives what was written.
async fn recorded(dialogue: &Dialogue, max_size: u64) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let record = RecordConfig { folder: folder.path().into(), max_size };
    let played = against_mailchime_as(dialogue, &PKI, |config| config.record = Some(record));
    if let Err(failure) = played.await {
        panic!("{failure:?}");
    }
    let mut files: Vec<_> = fs::read_dir(folder.path()).unwrap().map(Result::unwrap).collect();
    let file = files.pop()?;
    assert!(files.is_empty(), "one session, one file");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(file.path().extension().unwrap(), "imap");
    Some(fs::read_to_string(file.path()).unwrap())
}

async fn replays(name: &str, recording: &str) {
    let again = match Dialogue::parse(recording) {
        Ok(again) => again,
        Err(error) => panic!("{name}:{}: {error}\n{recording}", error.line),
    };
    if let Err(failure) = against_mailchime(&again, &PKI).await {
        panic!("{name}: {failure:?}\n{recording}");
    }
}

#[tokio::test]
async fn what_is_recorded_can_be_replayed() {
    for (path, dialogue) in all() {
        let name = path.file_stem().unwrap().to_str().unwrap();
        // The first has a line that is longer than what is kept of one. The second has a LOGIN that is
        // malformed, and is not when its words are hidden. In the others the backend answers inside a
        // line or refuses a literal without a tag. A recording holds each line whole, where it ends, and
        // hides what may be the literal.
        let exceptions = [
            "register-malformed",
            "literal-smuggling-by-a-client",
            "early-answers",
            "go-aheads-in-order",
        ];
        if exceptions.contains(&name) {
            continue;
        }
        let recording = recorded(&dialogue, 1 << 20).await;
        let recording = recording.unwrap_or_else(|| panic!("{name}: no file"));
        replays(name, &recording).await;
    }
}

/// Words that must not be in a recording, wherever they were said.
const SECRETS: [&str; 21] = [
    "carol",
    "wonderland",
    "hunter2",
    "0715A26B",
    "c0ffee",
    "Subject:",
    "meeting",
    "Dear",
    "INTERNALNOTE",
    "plan.pdf",
    "dave",
    "example.org",
    "192.0.2.9",
    "searched",
    "boundary",
    "eve@",
    "cyrus-1234567",
    "2025",
    "Y2Fyb2w",
    "aHVudGVyMg",
    "PLAIN\" NIL",
];

#[tokio::test]
async fn no_secret_and_no_content_is_recorded() {
    let path = "tests/integration/dialogues/private.imap";
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let dialogue = Dialogue::parse(&text).unwrap();
    for secret in SECRETS {
        assert!(text.contains(secret), "{secret} is not said at all");
    }
    let recording = recorded(&dialogue, 1 << 20).await.unwrap();
    for secret in SECRETS {
        assert!(!recording.contains(secret), "{secret} is in\n{recording}");
    }
    // Nothing of a token is left in base64 either.
    for said in text.lines().filter_map(|line| line.split(' ').next_back()) {
        if said.len() > 50 && said.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'=') {
            assert!(!recording.contains(said), "{said} is in\n{recording}");
        }
    }
    // What is of use stays.
    for kept in ["Work/Plans", "UID FETCH", "BODYSTRUCTURE", "[APPENDUID 7 4]", "iPhone Mail"] {
        assert!(recording.contains(kept), "{kept} is not in\n{recording}");
    }
    replays(path, &recording).await;
}

#[tokio::test]
async fn a_recording_ends_at_its_size_and_the_session_does_not() {
    let line = "CF: x NOOP\nBS: * 1 EXISTS\nBS: x OK NOOP completed\n";
    let text = fs::read_to_string(fixture("goodbye")).unwrap();
    let (login, logout) = text.split_once("CF: a LOGOUT").unwrap();
    let text = format!("{login}{}CF: a LOGOUT{logout}", line.repeat(200));
    let recording = recorded(&Dialogue::parse(&text).unwrap(), 4096).await.unwrap();
    assert!(recording.len() < 4096 + 100, "{}", recording.len());
    assert!(recording.ends_with("# The recording ends here: [record] max_size is reached.\n"));
    Dialogue::parse(&recording).unwrap();
}
