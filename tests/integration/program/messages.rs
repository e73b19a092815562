//! Bad input: one message that names the file, the key and the remedy, and the right exit code.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use mailchime::demo::pki::Pki;
use sqlx::{Connection, Executor, SqliteConnection};

use crate::support::ports::own_listener;
use crate::support::program::{Process, mailchime};
use crate::support::{limited, listener};

const CONFIG: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\n\
    [tls]\ncertificate = \"server.pem\"\nprivate_key = \"server.key\"\n\
    [backend]\naddress = \"127.0.0.1:1\"\ntls = \"none\"\n\
    [store]\nurl = \"sqlite://mailchime.db\"\n\
    [credentials]\nkey_file = \"mailchime.key\"\n\
    [apns]\ncertificate = \"apns.pem\"\nprivate_key = \"apns.key\"\nca = \"ca.pem\"\n";

/// How a run ended: exit code, standard output, standard error.
type End = (Option<i32>, String, String);

async fn run(folder: &Path, arguments: &[&str]) -> End {
    let mut command = mailchime(arguments);
    command.current_dir(folder);
    let mut process = Process::spawn(command);
    let code = process.end().await.code();
    (code, process.stdout.seen.join("\n"), process.stderr.seen.join("\n"))
}

/// The one line with which a configuration is refused.
async fn refusal(folder: &Path, config: &str) -> (Option<i32>, String) {
    fs::write(folder.join("proxy.toml"), config).unwrap();
    let (code, out, error) = run(folder, &["serve", "--config", "proxy.toml"]).await;
    assert_eq!(out, "", "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    let message = error.strip_prefix("mailchime: ").unwrap_or_else(|| panic!("{error}"));
    (code, message.to_owned())
}

/// A folder with certificates, those of another authority in `other`, and files that are no good.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    Pki::generate(None).unwrap().write_to(folder.path()).unwrap();
    Pki::generate(None).unwrap().write_to(&folder.path().join("other")).unwrap();
    for (name, text) in [
        ("text.pem", "Dear administrator,\n"),
        ("torn.pem", "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n"),
        ("empty.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        ("empty.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
        (
            "locked.key",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        ),
        ("text.key", "not a key\n"),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    }
    folder
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one table of all messages")]
async fn a_bad_configuration_is_refused_in_one_line() {
    limited(async {
        let folder = folder();
        let key = folder.path().join("open.key");
        fs::write(&key, "").unwrap();
        fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
        // What is changed in the configuration; then the key, the file and the remedy that the
        // message names.
        for (old, new, [key, file, remedy]) in [
            ("tls =", "colour = 1\ntls =", ["[backend]", "`colour`", "expected one of `name`"]),
            (
                "\"none\"",
                "\"no\"",
                ["[backend] tls:", "`no`", "one of `none`, `starttls`, `implicit`"],
            ),
            (
                "\"none\"",
                "7",
                ["[backend] tls:", "`7`", "one of `none`, `starttls`, `implicit` (line 8)"],
            ),
            ("[tls]", "[tls", ["proxy.toml", "line 3", "expected `]`"]),
            ("127.0.0.1:0", "localhost", ["[[listener]] address:", "localhost", "[::]:993"]),
            ("127.0.0.1:1", "imap", ["[backend] address:", "\"imap\"", "imap.example.org:993"]),
            ("server.pem", "no.pem", ["[tls] certificate:", "no.pem", "correct the path"]),
            ("server.key", "other", ["[tls] private_key:", "other", "name a PEM file"]),
            (
                "server.key",
                "other/server.key",
                ["[tls] certificate, private_key:", "other/server.key", "certificate was made for"],
            ),
            (
                "apns.key",
                "other/apns.key",
                ["[apns] certificate, private_key:", "other/apns.key", "certificate was made for"],
            ),
            ("server.pem", "text.pem", ["[tls] certificate:", "text.pem", "BEGIN CERT"]),
            ("server.pem", "torn.pem", ["[tls] certificate:", "torn.pem", "file anew"]),
            ("server.pem", "empty.pem", ["[tls] certificate:", "empty.pem", "file anew"]),
            (
                "server.pem",
                "server.key",
                ["[tls] certificate, private_key:", "server.key", "BEGIN CERT"],
            ),
            (
                "server.key",
                "server.pem",
                ["[tls] certificate, private_key:", "server.pem", "BEGIN PRIV"],
            ),
            (
                "[tls]",
                "[record]\nfolder = \"/proc\"\n[tls]",
                ["[record] folder:", "/proc", "cannot be written"],
            ),
            (
                "[tls]",
                "[record]\nfolder = \"none\"\n[tls]",
                ["[record] folder:", "none", "make it"],
            ),
            ("server.key", "text.key", ["[tls] private_key:", "text.key", "BEGIN PRIV"]),
            ("server.key", "empty.key", ["[tls] private_key:", "empty.key", "allowed are"]),
            ("server.key", "locked.key", ["[tls] private_key:", "locked.key", "passphrase"]),
            ("apns.pem", "empty.pem", ["[apns] certificate:", "empty.pem", "file anew"]),
            ("apns.key", "empty.key", ["[apns] private_key:", "empty.key", "allowed are"]),
            ("ca.pem", "text.pem", ["[apns] ca:", "text.pem", "BEGIN CERT"]),
            ("apns.", "server.", ["[apns] certificate:", "no UID", "Apple made for mail"]),
            (
                "mailchime.key",
                "open.key",
                ["[credentials] key_file:", "(mode 640)", "chmod 600 open.key"],
            ),
            (
                "mailchime.key",
                "text.key",
                ["[credentials] key_file:", "text.key", "restore it from a copy"],
            ),
            (
                "mailchime.key",
                "no/my.key",
                ["[credentials] key_file:", "no/my.key", "in a folder that exists"],
            ),
            ("mailchime.key", "other", ["[credentials] key_file:", "not a file", "must be"]),
            (
                "sqlite://mail",
                "sqlite://no/",
                ["[store] url:", "no/chime.db", "a folder that exists"],
            ),
            ("sqlite://mailchime.db", "oracle://a", ["[store] url:", "oracle", "allowed is"]),
        ] {
            let config = CONFIG.replace(old, new);
            assert_ne!(config, CONFIG, "{old} is not in the configuration");
            let (code, message) = refusal(folder.path(), &config).await;
            assert_eq!(code, Some(64), "{message}");
            assert!(message.starts_with("proxy.toml: "), "{message}");
            for part in [key, file, remedy] {
                assert!(message.contains(part), "{part:?} is not in: {message}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_left_alone() {
    limited(async {
        let folder = folder();
        let config = CONFIG.replace("mailchime.db", "text.pem").replace("mailchime.key", "my.key");
        for mode in [0o600, 0o644] {
            let path = folder.path().join("text.pem");
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            fs::write(folder.path().join("my.key"), format!("{}=\n", "A".repeat(43))).unwrap();
            let key = folder.path().join("my.key");
            fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
            let (code, message) = refusal(folder.path(), &config).await;
            assert_eq!(code, Some(64), "{message}");
            assert!(message.starts_with("proxy.toml: [store] url: text.pem"), "{message}");
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
            assert_eq!(fs::read_to_string(&path).unwrap(), "Dear administrator,\n");
        }
    })
    .await;
}

#[tokio::test]
async fn a_database_of_a_newer_program_is_refused() {
    limited(async {
        let folder = folder();
        fs::write(folder.path().join("proxy.toml"), CONFIG).unwrap();
        let mut command = mailchime(&["serve", "--config", "proxy.toml"]);
        command.current_dir(folder.path());
        let mut process = Process::spawn(command);
        process.stderr.find("listening", |line| line.contains("listening").then_some(())).await;
        process.signal("TERM");
        assert_eq!(process.end().await.code(), Some(0));

        let url = format!("sqlite://{}", folder.path().join("mailchime.db").display());
        let mut database = SqliteConnection::connect(&url).await.unwrap();
        database
            .execute(
                "insert into _sqlx_migrations (version, description, success, checksum, \
                 execution_time) values (9999, 'of tomorrow', 1, x'00', 0)",
            )
            .await
            .unwrap();
        database.close().await.unwrap();
        let (code, message) = refusal(folder.path(), CONFIG).await;
        assert_eq!(code, Some(64), "{message}");
        for part in ["proxy.toml: [store] url: ", "mailchime.db", "newer", "run the newer program"]
        {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    limited(async {
        let folder = folder();
        let taken = own_listener();
        let address = taken.local_addr().unwrap().to_string();
        let config = CONFIG.replace("127.0.0.1:0", &address);
        let (code, message) = refusal(folder.path(), &config).await;
        assert_eq!(code, Some(1), "{message}");
        assert!(message.starts_with(&address), "{message}");
        assert!(message.contains("change [[listener]] address"), "{message}");
        let made = ["mailchime.db", "mailchime.key"].map(|name| folder.path().join(name).exists());
        assert_eq!(made, [false, false]);
    })
    .await;
}

#[tokio::test]
async fn the_command_line_is_checked() {
    limited(async {
        let folder = tempfile::tempdir().unwrap();
        for (arguments, said) in [
            (&["--colour"][..], "--colour"),
            (&["sing"], "sing"),
            (&["serve", "--config"], "--config"),
            (&["demo", "--once", "--deliver", "localhost:1"], "--deliver"),
            (&["demo", "--deliver", "localhost"], "the demo printed"),
            (&["certs"], "Usage:"),
            (&["serve"], "proxy.toml: no such file; name the configuration with --config"),
            (&[], "proxy.toml: no such file"),
        ] {
            let (code, out, error) = run(folder.path(), arguments).await;
            assert_eq!((code, &*out), (Some(64), ""), "{arguments:?}: {error}");
            assert!(error.contains(said), "{arguments:?}: {error}");
        }
        for (argument, said) in [("--help", "Usage: mailchime"), ("--version", "mailchime 0.")] {
            let (code, out, error) = run(folder.path(), &[argument]).await;
            assert_eq!((code, &*error), (Some(0), ""));
            assert!(out.contains(said), "{out}");
        }
        let mut command = mailchime(&["demo", "--once"]);
        command.env("RUST_LOG", "mailchime=loud");
        let mut process = Process::spawn(command);
        assert_eq!(process.end().await.code(), Some(64));
        assert!(process.stderr.seen[0].contains("RUST_LOG"), "{:?}", process.stderr.seen);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "something was written");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_whether_the_api_has_its_address_and_a_certificate_for_its_url() {
    limited(async {
        let folder = folder();
        let listening = listener().await;
        let taken = listening.local_addr().unwrap();
        let (start, _) = CONFIG.split_once("[apns]").unwrap();
        // Root learns which program has the port.
        let is_taken = match rustix::process::geteuid().is_root() {
            true => "FAILED   [api]: 127.0.0.1:",
            false => "warning  [api]: 127.0.0.1:",
        };
        for (api, expected) in [
            (
                "address = \"127.0.0.1:0\"\npublic_url = \"https://localhost:8443\"".to_owned(),
                vec![
                    "ok       [api]: 127.0.0.1:0: is free",
                    "ok       [api]: https://localhost:8443: the certificate is for this name",
                ],
            ),
            (
                format!("address = \"{taken}\"\npublic_url = \"https://push.example.org\""),
                vec![
                    is_taken,
                    "FAILED   [api]: https://push.example.org: a certificate that is shown there is not for",
                ],
            ),
            (
                "address = \"192.0.2.1:8443\"".to_owned(),
                vec!["FAILED   [api]: 192.0.2.1:8443: cannot listen", "warning  [api]: there is no public_url"],
            ),
        ] {
            fs::write(folder.path().join("proxy.toml"), format!("{start}[api]\n{api}\n")).unwrap();
            let (_, said, _) = run(folder.path(), &["check", "--config", "proxy.toml"]).await;
            let lines: Vec<_> = said.lines().filter(|line| line.contains(" [api]: ")).filter(|line| !line.contains("takes web hooks of users")).collect();
            assert_eq!(lines.len(), expected.len(), "{said}");
            for (line, expected) in lines.iter().zip(expected) {
                assert!(line.starts_with(expected), "{said}");
            }
        }
    })
    .await;
}
