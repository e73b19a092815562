//! `mailchime setup`: what it finds, what it writes, and that this passes `mailchime check`.

mod certificates;
mod change;
mod courier;
mod documents;
mod kinds;
mod master;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mailchime::demo::pki::Pki;
use tempfile::TempDir;

use self::documents::{
    dovecot_2_4_takes_the_change, dovecot_takes_the_change, the_documents_have_what_is_printed,
};
use crate::support::program::{Process, mailchime, terminal};
use crate::support::servers::client::Client;
use crate::support::servers::courier::Courier;
use crate::support::servers::cyrus::Cyrus;
use crate::support::servers::dovecot::{Dovecot, Options};
use crate::support::servers::{ALICE, pki};
use crate::support::{limited, listener};

/// The root of a machine, as setup sees it.
struct Machine(TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        for folder in ["etc", "usr/sbin", "var/lib/mailchime", "run/mailchime"] {
            fs::create_dir_all(machine.path(folder)).unwrap();
        }
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A certificate as certbot lays it out.
    fn certbot(&self, name: &str, pki: &Pki) {
        let folder = self.path("etc/letsencrypt/live").join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("fullchain.pem"), &pki.server.certificate).unwrap();
        fs::write(folder.join("privkey.pem"), pki.server.expose_private_key()).unwrap();
    }

    /// The configuration of a Dovecot with a certificate of its own.
    fn dovecot(&self, pki: &Pki) {
        fs::create_dir_all(self.path("etc/dovecot/conf.d")).unwrap();
        fs::write(self.path("etc/dovecot/dovecot.conf"), "!include conf.d/*.conf\n").unwrap();
        let ssl = "ssl = required\nssl_cert = </etc/ssl/mail.pem\nssl_key = </etc/ssl/mail.key\n";
        fs::write(self.path("etc/dovecot/conf.d/10-ssl.conf"), ssl).unwrap();
        fs::create_dir_all(self.path("etc/ssl")).unwrap();
        fs::write(self.path("etc/ssl/mail.pem"), &pki.server.certificate).unwrap();
        fs::write(self.path("etc/ssl/mail.key"), pki.server.expose_private_key()).unwrap();
    }

    async fn run(&self, command: &mut Command) -> (Option<i32>, String) {
        let mut process = Process::spawn(std::mem::replace(command, Command::new("true")));
        let code = process.end().await.code();
        (code, [&process.stdout.seen[..], &process.stderr.seen[..]].concat().join("\n"))
    }

    async fn setup(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = mailchime(&["setup", "--root"]);
        command.arg(self.0.path()).args(arguments);
        self.run(&mut command).await
    }

    async fn setup_at(&self, server: SocketAddr, arguments: &[&str]) -> (Option<i32>, String) {
        let server = server.to_string();
        self.setup(&[&["--backend", &server], arguments].concat()).await
    }

    /// What is written passes `mailchime check`.
    async fn check(&self) -> String {
        let config = self.path("etc/mailchime/proxy.toml");
        let mut command = mailchime(&["check", "--config"]);
        command.arg(config);
        let (code, said) = self.run(&mut command).await;
        assert_eq!(code, Some(0), "{said}");
        said
    }

    fn written(&self) -> String {
        fs::read_to_string(self.path("etc/mailchime/proxy.toml")).unwrap()
    }
}

fn contains(said: &str, expected: &[&str]) {
    for expected in expected {
        assert!(said.contains(expected), "{expected:?} is not in\n{said}");
    }
}

/// The printed block that begins so.
fn printed(said: &str, first: &str) -> String {
    let block = said.lines().skip_while(|line| line.trim() != first);
    block.take_while(|line| !line.is_empty()).map(|line| format!("{line}\n")).collect()
}

#[tokio::test]
async fn a_pilot_beside_dovecot_is_written_once_and_passes_check() {
    let test = "a_pilot_beside_dovecot_is_written_once_and_passes_check";
    let Some(dovecot) = Dovecot::start(test, &Options::default()) else { return };
    limited(async {
        let machine = Machine::new();
        machine.dovecot(pki());
        machine.certbot("other.example.org", &Pki::generate(None).unwrap());
        symlink("/usr/sbin/dovecot", machine.path("usr/sbin/dovecot")).unwrap();

        let (code, said) = machine.setup_at(dovecot.plain, &["--dry-run"]).await;
        assert_eq!(code, Some(0), "{said}");
        contains(&said, &["would write", "proxy.toml", "[[listener]]", "server.key (mode 640)"]);
        assert!(!said.contains("PRIVATE KEY"), "{said}");
        assert!(!machine.path("etc/mailchime").exists());

        // Without a pilot mailchime begins once the port is free, and again with the machine.
        let arguments = ["--dry-run", "--port", "993"];
        let (code, said) = machine.setup_at(dovecot.plain, &arguments).await;
        assert_eq!(code, Some(0), "{said}");
        let steps = ["restart dovecot", "mailchime check", "enable mailchime", "restart mailchime"];
        let places = steps.map(|step| said.find(step).unwrap_or_else(|| panic!("{step}: {said}")));
        assert!(places.is_sorted(), "{said}");

        let (code, said) = machine.setup_at(dovecot.plain, &[]).await;
        assert_eq!(code, Some(0), "{said}");
        contains(
            &said,
            &[
                "/etc/ssl/mail.pem for localhost, until",
                "(of Dovecot)",
                "greets: * OK ",
                "IMAP server: Dovecot 2.3.",
                "without TLS, on this machine",
                "useradd --system",
                "systemctl enable --now mailchime",
                "Server Port 1993",
                "inet_listener imap {\n       address = 127.0.0.1",
                "login_trusted_networks",
                "install -m 640 -g mailchime",
                "docs/certificate.md of the sources",
                &format!("Port {} is then closed to other machines", dovecot.plain.port()),
                "tls = \"starttls\"",
                // Both ways to watch, the chosen one and the other by its flag.
                "mailboxes are watched with stored: the password of each user who has a phone",
                "with --credentials master they are watched with master: a master user",
            ],
        );
        // Nothing has brought the program and its unit.
        let steps = [
            "install -m 755 ",
            "install -m 644 contrib/systemd/mailchime.service ",
            "systemctl daemon-reload",
            "systemctl enable --now mailchime",
        ];
        let places = steps.map(|step| said.find(step).unwrap_or_else(|| panic!("{step}: {said}")));
        assert!(places.is_sorted(), "{said}");
        let unit = line(&said, steps[1]);
        let file = unit.strip_prefix("install -m 644 ").unwrap().split(' ').next().unwrap();
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(file).exists(), "{unit}");
        assert!(unit.ends_with("/etc/systemd/system/mailchime.service"), "{unit}");
        contains(&machine.written(), &["[::]:1993", "tls = \"none\"", "mode = \"stored\""]);
        let key = machine.path("etc/mailchime/server.key");
        assert_eq!(fs::metadata(key).unwrap().mode() & 0o777, 0o640);
        dovecot_takes_the_change(&said, dovecot.plain.port());
        let said = machine.check().await;
        contains(&said, &["no TLS; before login it offers"]);

        // What is there stays.
        let before = machine.written();
        let (code, said) = machine.setup_at(dovecot.plain, &["--port", "993"]).await;
        assert_eq!(code, Some(1), "{said}");
        contains(&said, &["there is already", "proxy.toml", "nothing was written"]);
        assert!(!said.contains("is the package's"), "{said}");
        assert_eq!(machine.written(), before);

        // A dry run says so with the same line, and shows what it is about.
        let why = said.lines().find(|line| line.contains("there is already")).unwrap();
        let why = &why[why.find("there is already").unwrap()..];
        let (code, said) = machine.setup_at(dovecot.plain, &["--dry-run"]).await;
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(line(&said, "there is already"), why);
        contains(&said, &["once it is away, would write ", "[[listener]]", "Move it away"]);
        assert!(!said.contains("\nwould write"), "{said}");
        assert_eq!(machine.written(), before);
    })
    .await;
}

/// The Debian package has brought the unit, and a configuration to be filled in.
#[tokio::test]
async fn the_packages_own_configuration_is_moved_away_by_the_line_that_setup_prints() {
    let test = "the_packages_own_configuration_is_moved_away_by_the_line_that_setup_prints";
    let Some(dovecot) = Dovecot::start(test, &Options::default()) else { return };
    limited(async {
        let machine = Machine::new();
        machine.certbot("mail.example.org", pki());
        let packaged = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/debian/proxy.toml");
        for (folder, name) in [
            ("etc/mailchime", "proxy.toml"),
            ("usr/share/mailchime", "proxy.toml"),
            ("usr/lib/systemd/system", "mailchime.service"),
        ] {
            fs::create_dir_all(machine.path(folder)).unwrap();
            fs::copy(&packaged, machine.path(folder).join(name)).unwrap();
        }
        let (code, said) = machine.setup_at(dovecot.plain, &[]).await;
        assert_eq!(code, Some(1), "{said}");
        contains(&said, &["there is already", "is the package's, and nobody has changed it"]);
        let moved = Command::new("sh").arg("-c").arg(line(&said, "mv ")).status().unwrap();
        assert!(moved.success());
        let (code, said) = machine.setup_at(dovecot.plain, &["--port", "0"]).await;
        assert_eq!(code, Some(0), "{said}");
        assert!(!said.contains("daemon-reload"), "{said}");
        contains(&said, &["systemctl enable --now mailchime"]);
        let before = fs::read_to_string(machine.path("etc/mailchime/proxy.toml.before")).unwrap();
        assert_eq!(before, fs::read_to_string(&packaged).unwrap());
        // What the file itself says is the same line.
        let own = "mv /etc/mailchime/proxy.toml /etc/mailchime/proxy.toml.before";
        contains(&before, &[own, "mailchime setup"]);
        let postinst = packaged.with_file_name("postinst");
        contains(&fs::read_to_string(postinst).unwrap(), &[&format!("{own} && mailchime setup")]);

        // A unit of the administrator, and one where Debian had them before.
        for folder in ["etc/systemd/system", "lib/systemd/system"] {
            fs::remove_file(machine.path("usr/lib/systemd/system/mailchime.service")).unwrap();
            fs::create_dir_all(machine.path(folder)).unwrap();
            let unit = machine.path(folder).join("mailchime.service");
            fs::write(&unit, "").unwrap();
            let (_, said) = machine.setup_at(dovecot.plain, &["--dry-run"]).await;
            assert!(!said.contains("daemon-reload"), "{said}");
            fs::rename(unit, machine.path("usr/lib/systemd/system/mailchime.service")).unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn both_ports_are_looked_at_and_another_program_at_993_is_to_give_it_up() {
    let test = "both_ports_are_looked_at_and_another_program_at_993_is_to_give_it_up";
    let Some(dovecot) = Dovecot::start(test, &Options::default()) else { return };
    // It takes connections, says nothing, and is this process.
    let other = listener().await;
    let other_at = other.local_addr().unwrap().to_string();
    tokio::spawn(async move { while other.accept().await.is_ok() {} });
    limited(async {
        let machine = Machine::new();
        machine.certbot("mail.example.org", pki());
        let ca = machine.path("ca.pem");
        fs::write(&ca, &pki().ca.certificate).unwrap();
        let ca = ca.display().to_string();
        let (plain, tls) = (dovecot.plain.to_string(), dovecot.tls.to_string());
        let looked = async |imap: &str, imaps: &str| {
            let places = ["--imap-at", imap, "--imaps-at", imaps];
            let (code, said) =
                machine.setup(&[&places[..], &["--dry-run", "--backend-ca", &ca]].concat()).await;
            assert_eq!(code, Some(0), "{said}");
            said
        };
        const GIVES_UP: &str = ", which is not your IMAP server, give up port 993";

        let said = looked(&plain, &tls).await;
        for (at, tls) in [(&plain, "without TLS"), (&tls, "with TLS")] {
            let line = line(&said, &format!("Dovecot of an unknown version at {at}, {tls}"));
            contains(&line, &["by the program dovecot", "greets: * OK "]);
        }
        contains(&said, &[&format!("IMAP server: Dovecot of an unknown version at {plain},")]);
        assert!(!said.contains(GIVES_UP), "{said}");

        let said = looked(&plain, &other_at).await;
        let own = fs::read_to_string("/proc/self/comm").unwrap().trim().to_owned();
        let seen = line(&said, &format!("{other_at}: no IMAP server that can be used"));
        contains(&seen, &[&format!("by the program {own}")]);
        contains(&said, &["Dovecot of an unknown version at", &format!("have {own}{GIVES_UP}")]);
        contains(&said, &[&format!("take the change to dovecot and that to {own} back")]);

        let said = looked(&plain, "127.0.0.1:1").await;
        contains(&said, &["127.0.0.1:1: nobody listens"]);
        assert!(!said.contains(GIVES_UP), "{said}");

        let said = looked("127.0.0.1:1", &tls).await;
        contains(&said, &["127.0.0.1:1: nobody listens"]);
        contains(
            &said,
            &[&format!("IMAP server: Dovecot of an unknown version at {tls}, with TLS")],
        );
        contains(&said, &["tls = \"implicit\"", "in place of the lines of [backend]"]);
    })
    .await;
}

#[tokio::test]
async fn at_a_terminal_the_ways_to_watch_are_asked_for_with_a_word_on_each() {
    let test = "at_a_terminal_the_ways_to_watch_are_asked_for_with_a_word_on_each";
    let Some(dovecot) = Dovecot::start(test, &Options::default()) else { return };
    limited(async {
        let machine = Machine::new();
        machine.certbot("mail.example.org", pki());
        let (ours, theirs) = terminal();
        // No number of the list, and one.
        rustix::io::write(&ours, b"3\n2\n").unwrap();
        let mut command = mailchime(&["setup", "--root"]);
        command.arg(machine.0.path()).args(["--backend", &dovecot.plain.to_string()]);
        command.stdin(Stdio::from(theirs));
        let (code, said) = machine.run(&mut command).await;
        assert_eq!(code, Some(0), "{said}");
        let asked = said.matches("With what does mailchime watch mailboxes?").count();
        assert_eq!(asked, 2, "{said}");
        contains(
            &said,
            &[
                "  1  stored: the password of each user who has a phone",
                "  2  master: a master user of the server watches for all",
                "Number [1]: ",
                "mailboxes are watched with master: a master user",
                "with --credentials stored they are watched with stored: the password",
            ],
        );
        contains(&machine.written(), &["mode = \"master\""]);
    })
    .await;
}

/// In a container, as it looks from outside.
#[tokio::test]
async fn a_dovecot_of_an_unknown_version_gets_the_lines_of_either() {
    let test = "a_dovecot_of_an_unknown_version_gets_the_lines_of_either";
    let Some(dovecot) = Dovecot::start(test, &Options::default()) else { return };
    limited(async {
        let machine = Machine::new();
        machine.certbot("mail.example.org", pki());
        let arguments = ["--credentials", "master", "--port", "0"];
        let (code, said) = machine.setup_at(dovecot.plain, &arguments).await;
        assert_eq!(code, Some(0), "{said}");
        contains(&said, &["IMAP server: Dovecot of an unknown version at", "dovecot --version"]);
        let port = format!("port = {}\n", dovecot.plain.port());
        the_documents_have_what_is_printed(&said.replace(&port, "port = 143\n"));
        contains(&said, &["args = /etc/dovecot/mailchime.master", "passdb mailchime {"]);
        contains(&said, &["address = 127.0.0.1", "listen = 127.0.0.1"]);
        dovecot_takes_the_change(&said, dovecot.plain.port());
        dovecot_2_4_takes_the_change(test, &said, dovecot.plain.port());
    })
    .await;
}

#[tokio::test]
async fn cyrus_and_courier_say_what_they_are() {
    let test = "cyrus_and_courier_say_what_they_are";
    let (cyrus, courier) = (Cyrus::start(test), Courier::start(test));
    limited(async {
        if let Some(cyrus) = cyrus {
            let machine = Machine::new();
            machine.certbot("mail.example.org", pki());
            let (code, said) = machine.setup_at(cyrus.plain, &["--port", "0"]).await;
            assert_eq!(code, Some(0), "{said}");
            contains(&said, &["IMAP server: Cyrus 3.", "/etc/cyrus.conf"]);
            machine.check().await;
        }
        if let Some(courier) = courier {
            let machine = Machine::new();
            machine.certbot("mail.example.org", pki());
            let (code, said) = machine.setup_at(courier.plain, &["--credentials", "master"]).await;
            assert_eq!(code, Some(64), "{said}");
            let (code, said) = machine.setup_at(courier.plain, &["--port", "0"]).await;
            assert_eq!(code, Some(0), "{said}");
            contains(&said, &["IMAP server: Courier of an unknown version at"]);
            machine.check().await;
            // The package has what is to be changed, and reads it.
            let address = line(&said, "ADDRESS=");
            assert!(Courier::packaged("etc/courier/imapd").contains("\nADDRESS="), "{address}");
            assert!(Courier::packaged("usr/lib/courier/imapd").contains("-address=$ADDRESS"));
            assert_eq!(address, "ADDRESS=127.0.0.1");
            for (command, starts) in [
                ("systemctl restart ", "/usr/sbin/imapd start"),
                ("systemctl disable --now courier", "/usr/sbin/imapd-ssl start"),
            ] {
                let service = line(&said, command).rsplit(' ').next().unwrap().to_owned();
                let unit = Courier::packaged(&format!("lib/systemd/system/{service}.service"));
                assert!(unit.contains(&format!("ExecStart={starts}\n")), "{service}: {unit}");
            }
        }
    })
    .await;
}

/// The first printed line that begins so.
fn line(said: &str, begin: &str) -> String {
    let mut lines = said.lines().map(str::trim);
    lines
        .find(|line| line.starts_with(begin))
        .unwrap_or_else(|| panic!("{begin}: {said}"))
        .to_owned()
}

#[tokio::test]
async fn cyrus_takes_the_change_and_the_master_user_that_setup_prints() {
    let test = "cyrus_takes_the_change_and_the_master_user_that_setup_prints";
    let Some(before) = Cyrus::start(test) else { return };
    limited(async {
        let machine = Machine::new();
        machine.certbot("mail.example.org", pki());
        let arguments = ["--credentials", "master", "--port", "0"];
        let (code, said) = machine.setup_at(before.plain, &arguments).await;
        assert_eq!(code, Some(0), "{said}");
        let lines = ["allowplaintext: ", "proxyservers: "].map(|begin| line(&said, begin) + "\n");
        let imap = line(&said, "imap cmd=");
        let at = format!("listen=\"{}\"", before.plain);
        contains(&imap, &[&at]);
        let imap = imap.replace(&at, "listen=\"127.0.0.1:imap\"");
        let now = Cyrus::with_imap(test, &lines.concat(), &imap).unwrap();
        let made = line(&said, "saslpasswd2 ");
        let ours = format!("-c -f {} -u localhost ", now.passwords().display());
        let made = Command::new("sh").arg("-c").arg(made.replace("-c ", &ours)).status().unwrap();
        assert!(made.success());
        assert!(Client::connect(now.plain).login(ALICE).starts_with("x OK"));
        machine.master_acts(before.plain, now.plain).await;
    })
    .await;
}

#[tokio::test]
async fn a_server_with_tls_from_the_first_byte_is_reached_by_the_name_in_the_certificate() {
    let test = "a_server_with_tls_from_the_first_byte_is_reached_by_the_name_in_the_certificate";
    let Some(dovecot) = Dovecot::start(test, &Options::default()) else { return };
    limited(async {
        let machine = Machine::new();
        machine.certbot("mail.example.org", pki());
        let ca = machine.path("ca.pem");
        fs::write(&ca, &pki().ca.certificate).unwrap();
        let ca = ca.display().to_string();
        let arguments = ["--port", "0", "--backend-ca", &ca];
        let (code, said) = machine.setup_at(dovecot.tls, &arguments).await;
        assert_eq!(code, Some(0), "{said}");
        let written = machine.written();
        contains(
            &written,
            &["tls = \"implicit\"", "server_name = \"localhost\"", "backend-ca.pem"],
        );
        contains(&machine.check().await, &["TLS, its certificate is good"]);
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_decided_is_asked_for_by_a_flag() {
    limited(async {
        let machine = Machine::new();
        let (code, said) = machine.setup(&["--backend", "127.0.0.1:1"]).await;
        assert_eq!(code, Some(64), "{said}");
        contains(&said, &["found no certificate", "--certificate"]);

        // Two of certbot, and nobody to ask.
        machine.certbot("one.example.org", pki());
        machine.certbot("two.example.org", &Pki::generate(None).unwrap());
        let (code, said) = machine.setup(&["--backend", "127.0.0.1:1"]).await;
        assert_eq!(code, Some(64), "{said}");
        contains(
            &said,
            &["one.example.org", "two.example.org", "say which by --certificate and --private-key"],
        );

        let live = |name: &str| machine.path("etc/letsencrypt/live/one.example.org").join(name);
        let shown = |path: &Path| path.display().to_string();
        let [certificate, key] = ["fullchain.pem", "privkey.pem"].map(live);
        let arguments = ["--certificate", &shown(&certificate), "--private-key", &shown(&key)];
        let nothing_there = [&["--backend", "127.0.0.1:1"][..], &arguments].concat();
        let (code, said) = machine.setup(&nothing_there).await;
        assert_eq!(code, Some(1), "{said}");
        contains(&said, &["no IMAP server can be used", "--backend HOST:PORT"]);
        let (code, said) =
            machine.setup(&[&["--backend", "nowhere"][..], &arguments].concat()).await;
        assert_eq!(code, Some(64), "{said}");
        assert!(!machine.path("etc/mailchime").exists());

        // A key of another certificate, and one that is no longer valid.
        fs::copy(machine.path("etc/letsencrypt/live/two.example.org/privkey.pem"), &key).unwrap();
        let (code, said) = machine.setup(&["--backend", "127.0.0.1:1"]).await;
        assert_eq!(code, Some(1), "{said}");
        contains(&said, &["passed over a certificate: ", "two.example.org"]);
    })
    .await;
}
