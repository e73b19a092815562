//! What setup makes of certificates that phones refuse, and with which modes it writes them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use mailchime::demo::pki::Pki;

use super::{Machine, contains, line, printed};
use crate::support::limited;
use crate::support::program::mailchime;
use crate::support::servers::dovecot::{Dovecot, Options};
use crate::support::servers::pki;

/// Debian links its own into the certificates that the system trusts.
#[tokio::test]
async fn a_certificate_that_signed_itself_is_taken_where_there_is_no_other_and_with_a_warning() {
    let test =
        "a_certificate_that_signed_itself_is_taken_where_there_is_no_other_and_with_a_warning";
    let Some(dovecot) = Dovecot::start(test, &Options::default()) else { return };
    limited(async {
        let machine = Machine::new();
        machine.dovecot(pki());
        let own = |certificate: PathBuf, private_key: PathBuf, name: &str| {
            let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
            let key = rcgen::KeyPair::generate().unwrap();
            fs::write(certificate, params.self_signed(&key).unwrap().pem()).unwrap();
            fs::write(private_key, key.serialize_pem()).unwrap();
        };
        let snakeoil = ["etc/ssl/mail.pem", "etc/ssl/mail.key"].map(|file| machine.path(file));
        let [certificate, private_key] = snakeoil.clone();
        own(certificate, private_key, "localhost");
        let (code, said) = machine.setup_at(dovecot.plain, &["--dry-run"]).await;
        assert_eq!(code, Some(0), "{said}");
        let refused = "(of Dovecot); phones refuse it: it has signed itself";
        contains(&said, &[refused, "warning: get a certificate of a public authority"]);

        // That of certbot is for a name, and of an authority.
        machine.certbot("mail.example.org", pki());
        let (ca, key) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
        let params = |name: &str| {
            let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params
        };
        let issuer = rcgen::Issuer::new(params("ca.example.org"), ca);
        let certificate = params("mail.example.org").signed_by(&key, &issuer).unwrap();
        let live = |name: &str| machine.path("etc/letsencrypt/live/mail.example.org").join(name);
        fs::write(live("fullchain.pem"), certificate.pem()).unwrap();
        fs::write(live("privkey.pem"), key.serialize_pem()).unwrap();
        let (code, said) = machine.setup_at(dovecot.plain, &["--dry-run"]).await;
        assert_eq!(code, Some(0), "{said}");
        let chosen = line(&said, "certificate: ");
        contains(&chosen, &["live/mail.example.org/fullchain.pem for ", "(of certbot)"]);
        assert!(!said.contains("phones refuse it"), "{said}");

        let [certificate, private_key] = snakeoil.map(|file| file.display().to_string());
        let given = ["--certificate", &certificate, "--private-key", &private_key, "--port", "0"];
        let (code, said) = machine.setup_at(dovecot.plain, &given).await;
        assert_eq!(code, Some(0), "{said}");
        contains(&said, &["(as you say); phones refuse it: it has signed itself"]);
        // As the system has it that trusts it.
        let mut command = mailchime(&["check", "--config"]);
        command.arg(machine.path("etc/mailchime/proxy.toml"));
        command.env("SSL_CERT_FILE", certificate);
        let (code, said) = machine.run(&mut command).await;
        assert_eq!(code, Some(0), "{said}");
        contains(&said, &["warning  [tls]: ", "has signed itself, so phones refuse it"]);
    })
    .await;
}

/// mailchime's user is to read what root has made, whatever root's umask.
#[tokio::test]
async fn the_umask_of_who_runs_setup_takes_nothing_from_the_modes() {
    let test = "the_umask_of_who_runs_setup_takes_nothing_from_the_modes";
    let Some(dovecot) = Dovecot::start(test, &Options::default()) else { return };
    limited(async {
        let machine = Machine::new();
        machine.certbot("mail.example.org", pki());
        let mut command = Command::new("sh");
        command.args(["-c", "umask 077 && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_mailchime")]);
        command.args(["setup", "--backend", &dovecot.plain.to_string(), "--root"]);
        command.arg(machine.0.path());
        let (code, said) = machine.run(&mut command).await;
        assert_eq!(code, Some(0), "{said}");
        for (name, mode) in
            [("", 0o750), ("proxy.toml", 0o640), ("server.pem", 0o640), ("server.key", 0o640)]
        {
            let path = machine.path("etc/mailchime").join(name);
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, mode, "{}", path.display());
        }
    })
    .await;
}

/// certbot runs what is executable there, with another certificate of this machine, too.
#[tokio::test]
async fn certbots_certificate_is_copied_after_a_renewal_by_the_lines_that_setup_prints() {
    let test = "certbots_certificate_is_copied_after_a_renewal_by_the_lines_that_setup_prints";
    let Some(dovecot) = Dovecot::start(test, &Options::default()) else { return };
    limited(async {
        let machine = Machine::new();
        let examples = machine.path("usr/share/doc/mailchime/examples/certbot");
        let hooks = machine.path("etc/letsencrypt/renewal-hooks/deploy");
        for folder in [&examples, &hooks] {
            fs::create_dir_all(folder).unwrap();
        }
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/certbot/mailchime");
        fs::copy(own, examples.join("mailchime")).unwrap();
        machine.certbot("www.example.org", &Pki::generate(None).unwrap());
        machine.certbot("mail.example.org", pki());
        let live = |lineage: &str, name: &str| {
            machine.path("etc/letsencrypt/live").join(lineage).join(name)
        };
        let [certificate, key] = ["fullchain.pem", "privkey.pem"]
            .map(|name| live("mail.example.org", name).display().to_string());
        let given = ["--certificate", &certificate, "--private-key", &key];
        let (code, said) = machine.setup_at(dovecot.plain, &given).await;
        assert_eq!(code, Some(0), "{said}");
        assert!(!said.contains("install -m 640"), "{said}");
        let begins = format!("install -m 755 {}", examples.display());
        let lines = [line(&said, &begins), line(&said, "sed -i ")].join(" && ");
        assert!(Command::new("sh").arg("-c").arg(lines).status().unwrap().success());

        // All are renewed.
        machine.certbot("mail.example.org", &Pki::generate(None).unwrap());
        for (lineage, is_copied) in [("www.example.org", false), ("mail.example.org", true)] {
            let mut hook = Command::new(hooks.join("mailchime"));
            hook.env("RENEWED_LINEAGE", machine.path("etc/letsencrypt/live").join(lineage));
            hook.env("FOLDER", machine.path("etc/mailchime"));
            let id = |kind: &str| {
                let said = Command::new("id").arg(kind).output().unwrap().stdout;
                String::from_utf8(said).unwrap().trim().to_owned()
            };
            hook.env("OWNER", id("-u")).env("GROUP", id("-g"));
            assert!(hook.status().unwrap().success(), "{lineage}");
            for (from, to) in [("fullchain.pem", "server.pem"), ("privkey.pem", "server.key")] {
                let copy = fs::read(machine.path("etc/mailchime").join(to)).unwrap();
                let new = fs::read(live("mail.example.org", from)).unwrap();
                assert_eq!(copy == new, is_copied, "{to} after {lineage}");
            }
        }
    })
    .await;
}

/// A server whose certificate is its own authority, as appliances make them.
#[tokio::test]
async fn a_server_that_is_not_trusted_is_told_with_its_pin_which_setup_takes_and_writes() {
    let test = "a_server_that_is_not_trusted_is_told_with_its_pin_which_setup_takes_and_writes";
    let Some(dovecot) = Dovecot::start(test, &Options::default()) else { return };
    limited(async {
        let machine = Machine::new();
        machine.certbot("mail.example.org", pki());
        let (code, said) = machine.setup_at(dovecot.tls, &["--port", "0"]).await;
        assert_eq!(code, Some(1), "{said}");
        contains(&said, &["no IMAP server can be used", "--backend-pin"]);
        let pin = said.split("tls_pin_sha256 = \"").nth(1).unwrap().split('"').next().unwrap();
        assert!(!machine.path("etc/mailchime").exists());

        let other = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        for (arguments, expected) in [
            (&["--backend-pin", other][..], 1),
            (&["--backend-pin", "abc="], 64),
            (&["--backend-pin", pin, "--backend-ca", "ca.pem"], 64),
        ] {
            let (code, said) = machine.setup_at(dovecot.tls, arguments).await;
            assert_eq!(code, Some(expected), "{said}");
        }
        let arguments = ["--port", "0", "--backend-pin", pin];
        let (code, said) = machine.setup_at(dovecot.tls, &arguments).await;
        assert_eq!(code, Some(0), "{said}");
        contains(&said, &["IMAP server: Dovecot"]);
        contains(&machine.written(), &[&format!("tls_pin_sha256 = \"{pin}\"")]);
        contains(&machine.check().await, &["TLS, "]);
        // The server then listens without TLS, where a pin has no meaning.
        assert!(!printed(&said, "[backend]").contains("tls_pin_sha256"), "{said}");

        // Nor where it is found without TLS.
        let arguments = ["--dry-run", "--backend-pin", pin];
        let (code, said) = machine.setup_at(dovecot.plain, &arguments).await;
        assert_eq!(code, Some(0), "{said}");
        contains(&said, &["tls = \"none\""]);
        assert!(!said.contains("tls_pin_sha256"), "{said}");
    })
    .await;
}
