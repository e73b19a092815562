//! The master user that setup prints: Dovecot takes it, and has no more of its password than a hash.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use super::documents::{dovecot_2_4_takes_the_change, trust_and_limits};
use super::{Machine, contains, line, printed};
use crate::support::limited;
use crate::support::program::mailchime;
use crate::support::servers::dovecot::{Dovecot, Options};
use crate::support::servers::dovecot24::{Dovecot24, PLACE};
use crate::support::servers::pki;

impl Machine {
    /// The password of the master user, which mailchime alone may read.
    pub(super) fn master_password(&self) -> String {
        let file = self.path("etc/mailchime/master.password");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        fs::read_to_string(file).unwrap().trim_end().to_owned()
    }

    /// The line of the master user in a file of Dovecot, as what was printed makes it: with a hash of the password.
    pub(super) fn master_line(&self, said: &str) -> String {
        let file = self.path("printed.master");
        let command = line(said, "(umask 077; printf 'mailchime:");
        let command = command.replace("/etc/dovecot/mailchime.master", &file.display().to_string());
        let made = Command::new("sh").arg("-c").arg(&command).status().unwrap();
        assert!(made.success(), "{command}");
        let made = fs::read_to_string(file).unwrap();
        assert!(made.starts_with("mailchime:{SHA512-CRYPT}$6$"), "{made}");
        assert!(made.ends_with("::::::allow_nets=127.0.0.0/8,::1/128\n"), "{made}");
        assert!(!made.contains(&self.master_password()), "{made}");
        made
    }

    /// The file with that line, and what has a Dovecot take the master user from it.
    pub(super) fn printed_master(&self, said: &str) -> (PathBuf, Options) {
        let file = self.path("mailchime.master");
        fs::write(&file, self.master_line(said)).unwrap();
        fs::set_permissions(self.0.path(), fs::metadata("/etc").unwrap().permissions()).unwrap();
        let block = printed(said, "passdb {");
        let extra = block.replace("/etc/dovecot/mailchime.master", &file.display().to_string());
        (file, Options { extra: extra.leak(), ..Options::default() })
    }

    /// What is written passes `mailchime check` with a login of the master user, who got it at `before` and is at
    /// `now`.
    pub(super) async fn master_acts(&self, before: SocketAddr, now: SocketAddr) {
        let (code, said) = self.try_master(before, now).await;
        assert_eq!(code, Some(0), "{said}");
        contains(&said, &["mailchime as alice: "]);
    }

    pub(super) async fn try_master(
        &self,
        before: SocketAddr,
        now: SocketAddr,
    ) -> (Option<i32>, String) {
        let config = self.path("etc/mailchime/proxy.toml");
        let text = self.written().replace(&before.to_string(), &now.to_string());
        fs::write(&config, text).unwrap();
        let mut command = mailchime(&["check", "--login", "alice", "--config"]);
        command.arg(config);
        self.run(&mut command).await
    }
}

#[tokio::test]
async fn a_master_user_gets_a_password_of_its_own() {
    let test = "a_master_user_gets_a_password_of_its_own";
    let Some(dovecot) = Dovecot::start(test, &Options::default()) else { return };
    limited(async {
        let machine = Machine::new();
        machine.certbot("mail.example.org", pki());
        let arguments = ["--credentials", "master", "--server", "dovecot-2.4", "--port", "0"];
        let (code, said) = machine.setup_at(dovecot.plain, &arguments).await;
        assert_eq!(code, Some(0), "{said}");
        let password = machine.master_password();
        assert_eq!(password.len(), 64);
        assert!(!said.contains(&password), "{said}");
        contains(&said, &["chown mailchime "]);
        contains(&said, &["passdb mailchime {", "mailchime.master", "listen = 127.0.0.1"]);
        contains(&machine.written(), &["master_user = \"mailchime\"", "mode = \"master\""]);
        let said = machine.check().await;
        contains(&said, &["accounts are watched as the master user mailchime"]);
    })
    .await;
}

#[tokio::test]
async fn dovecot_takes_the_master_user_that_setup_prints() {
    let test = "dovecot_takes_the_master_user_that_setup_prints";
    let Some(before) = Dovecot::start(test, &Options::default()) else { return };
    limited(async {
        let machine = Machine::new();
        machine.dovecot(pki());
        let arguments = ["--credentials", "master", "--port", "0"];
        let (code, said) = machine.setup_at(before.plain, &arguments).await;
        assert_eq!(code, Some(0), "{said}");
        let (file, options) = machine.printed_master(&said);
        let here = Dovecot::start(test, &options).unwrap();
        machine.master_acts(before.plain, here.plain).await;
        // From another address than the line says, Dovecot refuses the password.
        let line = machine.master_line(&said).replace("127.0.0.0/8", "192.0.2.1/32");
        assert!(line.contains("=192.0.2.1/32,::1/128"), "{line}");
        fs::write(&file, line).unwrap();
        let elsewhere = Dovecot::start(test, &options).unwrap();
        let (code, said) = machine.try_master(here.plain, elsewhere.plain).await;
        assert_eq!(code, Some(1), "{said}");
        contains(&said, &["FAILED   mailchime as alice: "]);
    })
    .await;
}

#[tokio::test]
async fn dovecot_2_4_is_known_by_its_version_and_takes_the_master_user_that_setup_prints() {
    let test = "dovecot_2_4_is_known_by_its_version_and_takes_the_master_user_that_setup_prints";
    let Some(before) = Dovecot24::start(test, "", &[]) else { return };
    limited(async {
        let machine = Machine::new();
        machine.dovecot(pki());
        let version = "dovecot_config_version = 2.4.1\n!include conf.d/*.conf\n";
        fs::write(machine.path("etc/dovecot/dovecot.conf"), version).unwrap();
        let arguments = ["--credentials", "master", "--port", "0"];
        let (code, said) = machine.setup_at(before.plain, &arguments).await;
        assert_eq!(code, Some(0), "{said}");
        contains(&said, &["IMAP server: Dovecot 2.4.1 at"]);
        dovecot_2_4_takes_the_change(test, &said, before.plain.port());
        let extra = printed(&said, "passdb mailchime {").replace("/etc/dovecot", PLACE);
        let extra = extra + &trust_and_limits(&said);
        let files = [("mailchime.master", &*machine.master_line(&said))];
        let now = Dovecot24::start(test, &extra, &files).unwrap();
        machine.master_acts(before.plain, now.plain).await;
        assert!(!now.log().contains("Warning"), "{}", now.log());
    })
    .await;
}
