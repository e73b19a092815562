//! What `check` and a refused start say leads to the fault, and not away from it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use mailchime::demo::backend::DemoBackend;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::checked::server_that_says;
use crate::listeners::pinned::Openssl;
use crate::support::program::Process;
use crate::support::world::{LOGIN, PASSWORD, World};
use crate::support::{limited, listener};

/// What `check` says of the backend, which is not well.
async fn said_of_backend(world: &World) -> String {
    let said = world.command(&["check"]).await;
    assert_eq!(said.code, 1, "{}", said.stdout);
    said.line("FAILED   [backend]: ").to_owned()
}

fn has(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "{part:?} is not in {line}");
    }
}

#[tokio::test]
async fn a_backend_that_greets_in_another_protocol_is_shown_with_its_words() {
    limited(async {
        const SMTP: &[&str] = &["220 mail.example ESMTP Postfix\r\n"];
        const POP3: &[&str] = &["+OK Dovecot ready.\r\n"];
        const SSH: &[&str] = &["SSH-2.0-OpenSSH_9.2\r\n"];
        for (words, parts) in [
            (SMTP, ["\"220 mail.example ESMTP Postfix\"", "that is SMTP"]),
            (POP3, ["\"+OK Dovecot ready.\"", "that is POP3"]),
            (SSH, ["\"SSH-2.0-OpenSSH_9.2\"", "that is SSH"]),
        ] {
            let world = World::new().await;
            world.in_front_of(server_that_says(words).await);
            has(&said_of_backend(&world).await, &parts);
        }
    })
    .await;
}

#[tokio::test]
async fn a_backend_that_says_bye_is_shown_with_its_reason_quoted_and_cut() {
    limited(async {
        const BYE: &[&str] = &["* BYE [UNAVAILABLE] Maintenance until noon\r\n"];
        let world = World::new().await;
        world.in_front_of(server_that_says(BYE).await);
        let line = said_of_backend(&world).await;
        has(
            &line,
            &["\"* BYE [UNAVAILABLE] Maintenance until noon\"", "serves nobody at the moment"],
        );
        assert!(!line.contains("whether it is an IMAP server"), "{line}");

        let hostile = format!("* BYE \x1b[31mok       [backend]: {}\r\n", "é".repeat(2000));
        let hostile: &'static str = hostile.leak();
        let hostile: &'static [&'static str] = vec![hostile].leak();
        let world = World::new().await;
        world.in_front_of(server_that_says(hostile).await);
        let line = said_of_backend(&world).await;
        has(&line, &["\\x1b[31m", "\\xc3\\xa9"]);
        assert!(!line.contains('\x1b') && line.len() < 1200, "{line}");
    })
    .await;
}

#[tokio::test]
async fn tls_to_a_port_without_it_says_which_tls_to_set() {
    limited(async {
        for (greeting, parts) in [
            (
                &["* OK [CAPABILITY IMAP4rev1 STARTTLS] hello\r\n"][..],
                ["does not speak TLS from the first byte", "tls = \"starttls\""],
            ),
            (
                &["* OK [CAPABILITY IMAP4rev1] hello\r\n"],
                ["does not speak TLS: name the port that does", "tls = \"none\""],
            ),
            (&["220 mail.example ESMTP\r\n"], ["\"220 mail.example ESMTP\"", "that is SMTP"]),
        ] {
            let world = World::new().await;
            world.in_front_of(server_that_says(greeting).await);
            world.configure("tls = \"none\"\n", "");
            let line = said_of_backend(&world).await;
            has(&line, &parts);
            assert!(!line.contains("`ca`"), "{line}");
        }
    })
    .await;
}

#[tokio::test]
async fn no_tls_to_a_port_with_it_says_which_tls_to_set() {
    limited(async {
        for tls in ["tls = \"none\"\n", "tls = \"starttls\"\n"] {
            let world = World::new().await;
            let socket = listener().await;
            world.in_front_of(socket.local_addr().unwrap());
            let _server =
                DemoBackend::start(socket, Some(world.pki.server_config().unwrap())).unwrap();
            let waits = format!("{tls}[limits]\nconnect_timeout = \"1s\"\n");
            world.configure("tls = \"none\"\n", &waits);
            let line = said_of_backend(&world).await;
            has(&line, &["the port speaks TLS from the first byte: set tls = \"implicit\""]);
        }
    })
    .await;
}

#[tokio::test]
async fn a_backend_that_refuses_starttls_says_so_and_what_to_do() {
    limited(async {
        const REFUSES: &[&str] =
            &["* OK [CAPABILITY IMAP4rev1] hello\r\n", "m0 BAD TLS support isn't enabled.\r\n"];
        let world = World::new().await;
        world.in_front_of(server_that_says(REFUSES).await);
        world.configure("tls = \"none\"", "tls = \"starttls\"");
        let line = said_of_backend(&world).await;
        has(&line, &["refuses STARTTLS: m0 BAD TLS support", "ssl = yes", "tls = \"implicit\""]);
        assert!(!line.contains("host and port are right"), "{line}");
    })
    .await;
}

/// A server with `NAME.pem` and `NAME.key` of this folder.
fn with_certificate(openssl: &Openssl, name: &str) -> Arc<ServerConfig> {
    let chain = CertificateDer::pem_file_iter(openssl.file(&format!("{name}.pem"))).unwrap();
    let key = PrivateKeyDer::from_pem_file(openssl.file(&format!("{name}.key"))).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain: Vec<_> = chain.map(Result::unwrap).collect();
    let key = provider.key_provider.load_private_key(key).unwrap();
    // Whatever rustls thinks of it.
    let certified = rustls::sign::CertifiedKey::new(chain, key);
    let resolver = rustls::sign::SingleCertAndKey::from(certified);
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    Arc::new(config)
}

/// The pin that a line offers.
fn offered(line: &str) -> String {
    let rest =
        line.split("tls_pin_sha256 = \"").nth(1).unwrap_or_else(|| panic!("no pin in {line}"));
    rest.split('"').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_self_signed_backend_is_offered_a_pin_that_works() {
    const TEST: &str = "a_self_signed_backend_is_offered_a_pin_that_works";
    let Some(openssl) = Openssl::new(TEST) else { return };
    limited(async {
        // As openssl makes it without a word more; of X.509 version 1; and for no name at all, expired or not.
        openssl.self_signed("plain", "-subj /CN=mail.example");
        fs::write(openssl.file("v1.cnf"), "[req]\ndistinguished_name = dn\nprompt = no\n[dn]\nCN = x\n").unwrap();
        openssl.run("req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout v1.key -out v1.csr -config v1.cnf");
        openssl.run("x509 -req -in v1.csr -signkey v1.key -out v1.pem");
        for (name, why) in [("plain", "has signed itself"), ("v1", "of X.509 version 1")] {
            let world = World::new().await;
            let socket = listener().await;
            world.in_front_of(socket.local_addr().unwrap());
            let server = DemoBackend::start(socket, Some(with_certificate(&openssl, name))).unwrap();
            server.add_account(LOGIN, PASSWORD.as_bytes());
            world.configure("tls = \"none\"\n", "");
            let line = said_of_backend(&world).await;
            has(&line, &[why, "its public key is this one"]);
            let pin = offered(&line);
            // openssl finds the same.
            let command = format!(
                "openssl x509 -in {name}.pem -pubkey -noout | openssl pkey -pubin -outform der | \
                 openssl dgst -sha256 -binary | base64"
            );
            let found = std::process::Command::new("sh")
                .args(["-c", &command])
                .current_dir(openssl.folder())
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(found.stdout).unwrap().trim(), pin);

            world.configure("[store]\n", &format!("tls_pin_sha256 = \"{pin}\"\n[store]\n"));
            let said = world.command(&["check"]).await;
            assert_eq!(said.code, 0, "{}", said.stdout);
            let serving = world.serve().await;
            let _session = world.session(&serving).await;

            // Another key is refused, whatever its certificate says.
            let other = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
            world.configure(&pin, other);
            let line = said_of_backend(&world).await;
            has(&line, &["its public key is not the pinned one", &pin]);
        }
    })
    .await;
}

#[tokio::test]
async fn a_certificate_for_another_name_says_for_which() {
    limited(async {
        let world = World::new().await;
        let socket = listener().await;
        let port = socket.local_addr().unwrap().port();
        world.configure(&world.backend.address().to_string(), &format!("localhost:{port}"));
        let _server = DemoBackend::start(socket, Some(world.pki.server_config().unwrap())).unwrap();
        world.configure("tls = \"none\"\n", "ca = \"ca.pem\"\nserver_name = \"imap.example\"\n");
        let line = said_of_backend(&world).await;
        has(&line, &["the certificate is for localhost", "set server_name"]);
        world.configure("server_name = \"imap.example\"\n", "");
        assert_eq!(world.command(&["check"]).await.code, 0);
        // Signed by an authority that nobody has named.
        world.configure("ca = \"ca.pem\"\n[store]", "[store]");
        let line = said_of_backend(&world).await;
        has(&line, &["name the authority that has signed it in `ca`"]);
    })
    .await;
}

/// The one line with which `serve` refuses a configuration, which is what `check` says, too.
async fn refusal(world: &World) -> String {
    let mut process = Process::spawn(world.program());
    assert_eq!(process.end().await.code(), Some(64), "{:?}", process.stderr.seen);
    process.stderr.seen.join("\n")
}

#[tokio::test]
async fn a_key_encrypted_in_either_form_is_named_as_such() {
    const TEST: &str = "a_key_encrypted_in_either_form_is_named_as_such";
    let Some(openssl) = Openssl::new(TEST) else { return };
    limited(async {
        openssl.self_signed("plain", "-subj /CN=localhost -addext subjectAltName=DNS:localhost");
        openssl.run("pkey -in plain.key -aes128 -passout pass:secret -out pkcs8.key");
        openssl.run("ec -in plain.key -aes128 -passout pass:secret -out traditional.key");
        let traditional = fs::read_to_string(openssl.file("traditional.key")).unwrap();
        assert!(traditional.contains("Proc-Type: 4,ENCRYPTED"), "{traditional}");
        for name in ["pkcs8.key", "traditional.key"] {
            for (table, file) in [("[tls]", "server"), ("[apns]", "apns")] {
                let world = World::new().await;
                fs::copy(openssl.file(name), world.file("locked.key")).unwrap();
                fs::set_permissions(world.file("locked.key"), Permissions::from_mode(0o600))
                    .unwrap();
                world.configure(
                    &format!("private_key = \"{file}.key\""),
                    "private_key = \"locked.key\"",
                );
                let line = refusal(&world).await;
                has(
                    &line,
                    &[table, "locked.key", "encrypted with a passphrase", "openssl pkey -in"],
                );
                assert!(!line.contains("well-formed"), "{line}");
                let said = world.command(&["check"]).await;
                assert_eq!(said.code, 64, "{}", said.stdout);
                assert!(
                    said.line(&format!("FAILED   {table}")).contains("passphrase"),
                    "{}",
                    said.stdout
                );
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_certificate_of_version_1_is_named_as_such() {
    const TEST: &str = "a_server_certificate_of_version_1_is_named_as_such";
    let Some(openssl) = Openssl::new(TEST) else { return };
    limited(async {
        fs::write(openssl.file("v1.cnf"), "[req]\ndistinguished_name = dn\nprompt = no\n[dn]\nCN = x\n").unwrap();
        openssl.run("req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout v1.key -out v1.csr -config v1.cnf");
        openssl.run("x509 -req -in v1.csr -signkey v1.key -out v1.pem");
        let world = World::new().await;
        for name in ["v1.pem", "v1.key"] {
            fs::copy(openssl.file(name), world.file(name)).unwrap();
        }
        world.configure("certificate = \"server.pem\"", "certificate = \"v1.pem\"");
        world.configure("private_key = \"server.key\"", "private_key = \"v1.key\"");
        let line = refusal(&world).await;
        has(&line, &["[tls] certificate: ", "v1.pem", "X.509 version 1", "subjectAltName"]);
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 64, "{}", said.stdout);
        assert!(said.line("FAILED   [tls]: ").contains("X.509 version 1"), "{}", said.stdout);
    })
    .await;
}

#[tokio::test]
async fn a_database_file_that_is_none_is_named_as_such() {
    limited(async {
        let world = World::new().await;
        fs::write(world.file("text.db"), "Dear administrator,\n".repeat(1000)).unwrap();
        fs::set_permissions(world.file("text.db"), Permissions::from_mode(0o600)).unwrap();
        world.configure("[store]\n", "[store]\nurl = \"sqlite://text.db\"\n");
        let line = refusal(&world).await;
        has(&line, &["[store] url: ", "text.db", "is no SQLite database", "url"]);
        let said = world.command(&["check"]).await;
        assert_eq!(said.code, 64, "{}", said.stdout);
        has(said.line("FAILED   [store]: "), &["text.db", "is no SQLite database"]);
    })
    .await;
}

#[tokio::test]
async fn values_and_tables_in_the_wrong_form_are_named_with_the_right_one() {
    limited(async {
        let world = World::new().await;
        for (old, new, parts) in [
            (
                "tls = \"none\"",
                "tls = false",
                ["[backend] tls: ", "expected one of `none`, `starttls`, `implicit`"],
            ),
            (
                "[log]",
                "[limits]\nlogin_timeout = 60\n[log]",
                ["[limits] login_timeout: ", "allowed is 1s to 1h"],
            ),
            (
                "[log]",
                "[watch]\n[log]",
                ["[watch] is given twice", "put all its keys into one table"],
            ),
            (
                "[[listener]]",
                "[listener]",
                ["[[listener]]: is written [listener]", "write [[listener]]"],
            ),
            ("[backend]", "[[backend]]", ["[backend]: is written [[backend]]", "write [backend]"]),
        ] {
            world.configure(old, new);
            let line = refusal(&world).await;
            has(&line, &parts);
            let said = world.command(&["check"]).await;
            assert_eq!((said.code, &said.stderr), (64, &line), "{}", said.stdout);
            world.configure(new, old);
        }
    })
    .await;
}
