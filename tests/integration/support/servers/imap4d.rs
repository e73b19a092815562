//! imap4d of GNU Mailutils 3: accepts IDLE and tells nothing, and its STATUS shows a new
//! UIDVALIDITY at each look until somebody has selected the mailbox.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::process::{self, Plan, Process, Stop};
use super::{available, deliver_to_maildir, folder_of_nobody, pki, run};

pub(crate) struct Imap4d {
    /// Without TLS, also for STARTTLS.
    pub(crate) plain: SocketAddr,
    /// With TLS from the first byte.
    pub(crate) tls: SocketAddr,
    process: Process,
}

impl Imap4d {
    pub(crate) fn start(test: &str) -> Option<Self> {
        let files = ["/usr/sbin/imap4d", "/usr/bin/openssl"].map(Path::new);
        if !available(test, "imap4d", &files) {
            return None;
        }
        let (process, [plain, tls]) = process::start(plan);
        Some(Self { plain, tls, process })
    }

    /// The name that a user logs in by.
    pub(crate) fn login_name(user: &str) -> String {
        format!("{user}@example.org")
    }

    /// Moves a mail into the Maildir of INBOX.
    pub(crate) fn deliver(&self, user: &str, mail: &[u8]) {
        deliver_to_maildir(&self.process.folder().join("home").join(user).join("INBOX"), mail);
    }

    /// Ends it in order: sessions get `* BYE`.
    pub(crate) fn stop(&mut self) {
        self.process.stop();
    }

    /// Starts it, stopped or not, on the same ports and with the same mail.
    pub(crate) fn restart(&mut self) {
        self.process.restart();
    }
}

fn plan(folder: &Path, [plain, tls]: [SocketAddr; 2]) -> Plan {
    let dir = folder.display();
    fs::create_dir(folder.join("passwd")).unwrap();
    let mut users = String::new();
    for (name, password) in super::users() {
        for subfolder in ["cur", "new", "tmp"] {
            folder_of_nobody(&folder.join("home").join(name).join("INBOX").join(subfolder));
        }
        let mut openssl = Command::new("openssl");
        let crypt = run(openssl.args(["passwd", "-6", "-stdin"]), &format!("{password}\n"));
        let crypt = crypt.trim_end();
        users += &format!("{name}:{crypt}:65534:65534:{name}:{dir}/home/{name}:/bin/sh\n");
    }
    let configuration = format!(
        "
foreground yes;
mode daemon;
tcp-wrappers {{ enable no; }};
logging {{ syslog no; }};
auth {{ authentication generic; authorization virtdomain; }};
virtdomain {{ passwd-dir {dir}/passwd; }};
mailbox {{ mailbox-type maildir; }};
tls-file-checks {{ key-file none; cert-file none; }};
tls {{ ssl-certificate-file {dir}/server.pem; ssl-key-file {dir}/server.key; }};
server {plain} {{ tls-mode ondemand; }};
server {tls} {{
  tls-mode connection;
  tls {{ ssl-certificate-file {dir}/server.pem; ssl-key-file {dir}/server.key; }};
}};
"
    );
    for (name, text) in [
        ("passwd/example.org", &*users),
        ("mu.conf", &configuration),
        ("server.pem", &pki().server.certificate),
        ("server.key", pki().server.expose_private_key()),
    ] {
        fs::write(folder.join(name), text).unwrap();
    }
    let mut command = Command::new("/usr/sbin/imap4d");
    command.arg(format!("--config-file={dir}/mu.conf"));
    Plan { command, ready: None, stop: Stop::Leader("TERM"), expendable: true }
}

mod tests {
    use super::super::client::Client;
    use super::super::{ALICE, BOB, mail};
    use super::*;

    #[test]
    fn it_serves_and_has_new_mail_at_the_next_look() {
        let Some(mut imap4d) = Imap4d::start("imap4d::it_serves") else { return };
        let (alice_name, bob_name) = (Imap4d::login_name(ALICE.0), Imap4d::login_name(BOB.0));
        let mut alice = Client::connect(imap4d.plain);
        assert!(alice.login((&alice_name, "wrong")).starts_with("x NO"));
        assert!(alice.login((&alice_name, ALICE.1)).starts_with("x OK"));
        assert_eq!(alice.messages("INBOX"), 0);
        imap4d.deliver(ALICE.0, &mail("one"));
        assert_eq!(alice.messages("INBOX"), 1);

        let mut bob = Client::connect_tls(imap4d.tls);
        assert!(bob.login((&bob_name, BOB.1)).starts_with("x OK"));
        imap4d.stop();
        alice.until("* BYE");
        imap4d.restart();
        let mut alice = Client::connect(imap4d.plain);
        assert!(alice.login((&alice_name, ALICE.1)).starts_with("x OK"));
        assert_eq!(alice.messages("INBOX"), 1);
    }
}
