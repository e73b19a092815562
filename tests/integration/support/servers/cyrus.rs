//! Cyrus 3: an IMAP server that knows `XAPPLEPUSHSERVICE` itself and has no NOTIFY.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::client::Client;
use super::process::{self, Plan, Process, Stop};
use super::unpacked::{self, available_unpacked};
use super::{NOBODY, User, deliver_by_lmtp, folder_of_nobody, next_second, pki, run, users};

/// May log in as anybody, by PLAIN with an authorization identity.
pub(crate) const ADMIN: User<'static> = ("cyrus", "adminpw");

const FILES: [&str; 3] =
    ["usr/lib/cyrus/bin/master", "usr/lib/cyrus/bin/imapd", "/usr/sbin/saslpasswd2"];

pub(crate) struct Cyrus {
    /// Without TLS, also for STARTTLS.
    pub(crate) plain: SocketAddr,
    /// With TLS from the first byte.
    pub(crate) tls: SocketAddr,
    process: Process,
}

impl Cyrus {
    pub(crate) fn start(test: &str) -> Option<Self> {
        Self::with_events(test, "event_notifier: log\nevent_groups: applepushservice\n")
    }

    /// One that tells of events as these lines of `imapd.conf` say.
    pub(crate) fn with_events(test: &str, events: &str) -> Option<Self> {
        Self::with_users(test, events, '/', &users().collect::<Vec<_>>())
    }

    /// One with these lines of `imapd.conf`, and this one of its service `imap` in `cyrus.conf`, both as of a
    /// machine that has Cyrus for itself.
    pub(crate) fn with_imap(test: &str, lines: &str, imap: &str) -> Option<Self> {
        let own = "cmd=\"{dir}/root/usr/lib/cyrus/bin/imapd -C {dir}/imapd.conf ";
        let imap = imap.replace("cmd=\"imapd ", own).replace(":imap\"", ":{plain}\"");
        Self::start_with(test, lines, '/', &users().collect::<Vec<_>>(), &imap)
    }

    /// The same with these users alone. `separator` stands in the names that administrators see, by these lines;
    /// the domain of a user of a virtual domain is in the name.
    pub(crate) fn with_users(
        test: &str,
        lines: &str,
        separator: char,
        users: &[User<'_>],
    ) -> Option<Self> {
        Self::start_with(test, lines, separator, users, IMAP)
    }

    fn start_with(
        test: &str,
        lines: &str,
        separator: char,
        users: &[User<'_>],
        imap: &str,
    ) -> Option<Self> {
        if !available_unpacked(test, "cyrus", &FILES) {
            return None;
        }
        let (process, [plain, tls]) =
            process::start(|folder, addresses| plan(folder, addresses, lines, users, imap));
        let mut cyrus = Self { plain, tls, process };
        let mut admin = Client::connect(plain);
        admin.login(ADMIN);
        for (name, _) in users {
            let answer = admin.ask(&format!("CREATE user{separator}{name}"));
            assert!(answer[0].starts_with("x OK"), "{answer:?}");
        }
        // Each of its processes numbers mailboxes by what the clock said at its start, so that those
        // that two of one second make are the same one on the disk: one session makes what a test
        // needs. The processes of the test are of another second than this one.
        cyrus.stop();
        next_second();
        cyrus.restart();
        Some(cyrus)
    }

    /// Delivers a mail into INBOX. One with a Message-ID seen before is accepted and dropped.
    pub(crate) fn deliver(&self, user: &str, mail: &[u8]) {
        deliver_by_lmtp(&self.process.folder().join("conf/socket/lmtp"), user, mail);
    }

    /// Where passwords are.
    pub(crate) fn passwords(&self) -> PathBuf {
        self.process.folder().join("sasldb2")
    }

    /// Gives a user another password.
    pub(crate) fn set_password(&self, user: User<'_>) {
        set_password(self.process.folder(), user);
    }

    /// Ends it; sessions get no `* BYE`.
    pub(crate) fn stop(&mut self) {
        self.process.stop();
    }

    /// Starts it, stopped or not, on the same ports and with the same mail.
    pub(crate) fn restart(&mut self) {
        self.process.restart();
    }
}

fn plan(
    folder: &Path,
    [plain, tls]: [SocketAddr; 2],
    lines: &str,
    users: &[User<'_>],
    imap: &str,
) -> Plan {
    let dir = folder.display().to_string();
    folder_of_nobody(&folder.join("conf/socket"));
    folder_of_nobody(&folder.join("spool"));
    for user in users.iter().chain([&ADMIN]) {
        set_password(folder, *user);
    }
    let ports = |text: &str| {
        let text = text.replace("{dir}", &dir).replace("{plain}", &plain.port().to_string());
        text.replace("{tls}", &tls.port().to_string())
    };
    let notifyd = if lines.contains("notify_external:") { NOTIFYD } else { "" };
    // It takes no line twice.
    let plaintext = if lines.contains(PLAINTEXT) { "" } else { PLAINTEXT };
    for (name, text) in [
        ("imapd.conf", &*(ports(IMAPD_CONF) + plaintext + &ports(lines))),
        ("cyrus.conf", &ports(&CYRUS_CONF.replace("{notifyd}", notifyd).replace("{imap}", imap))),
        ("server.pem", &pki().server.certificate),
        ("server.key", pki().server.expose_private_key()),
    ] {
        fs::write(folder.join(name), text).unwrap();
    }
    for name in ["sasldb2", "server.key", "."] {
        std::os::unix::fs::chown(folder.join(name), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let script = format!(
        "exec setpriv --reuid=nobody --regid=nogroup --clear-groups \
         {dir}/root/usr/lib/cyrus/bin/master \
         -C {dir}/imapd.conf -M {dir}/cyrus.conf -p {dir}/master.pid -D"
    );
    Plan {
        command: unpacked::command(folder, &[], &script),
        ready: None,
        stop: Stop::Leader("TERM"),
        expendable: true,
    }
}

fn set_password(folder: &Path, (name, password): User<'_>) {
    let (name, domain) = name.split_once('@').unwrap_or((name, "localhost"));
    let mut command = Command::new("saslpasswd2");
    command.args(["-p", "-c", "-f"]).arg(folder.join("sasldb2"));
    run(command.args(["-u", domain, name]), password);
}

const IMAPD_CONF: &str = "
configdirectory: {dir}/conf
partition-default: {dir}/spool
servername: localhost
admins: cyrus
autocreate_quota: 0
failedloginpause: 0
sasl_pwcheck_method: auxprop
sasl_auxprop_plugin: sasldb
sasl_sasldb_path: {dir}/sasldb2
sasl_mech_list: PLAIN LOGIN CRAM-MD5 SCRAM-SHA-256
tls_server_cert: {dir}/server.pem
tls_server_key: {dir}/server.key
cyrus_user: nobody
aps_topic: com.apple.mail.XServer.11111111-2222-3333-4444-555555555555
";

const PLAINTEXT: &str = "allowplaintext: yes\n";

const IMAP: &str = r#"imap cmd="{dir}/root/usr/lib/cyrus/bin/imapd -C {dir}/imapd.conf" listen="127.0.0.1:{plain}" prefork=1"#;

const CYRUS_CONF: &str = r#"
START {
  recover cmd="{dir}/root/usr/lib/cyrus/bin/ctl_cyrusdb -C {dir}/imapd.conf -r"
  idled cmd="{dir}/root/usr/lib/cyrus/bin/idled -C {dir}/imapd.conf"
}
SERVICES {
  {imap}
  imaps cmd="{dir}/root/usr/lib/cyrus/bin/imapd -C {dir}/imapd.conf -s" listen="127.0.0.1:{tls}" prefork=0
  lmtpunix cmd="{dir}/root/usr/lib/cyrus/bin/lmtpd -C {dir}/imapd.conf" listen="{dir}/conf/socket/lmtp" prefork=0
  {notifyd}
}
"#;

/// Runs a program for each event.
const NOTIFYD: &str = r#"notify cmd="{dir}/root/usr/lib/cyrus/bin/notifyd -C {dir}/imapd.conf" listen="{dir}/conf/socket/notify" proto="udp" prefork=1"#;

mod tests {
    use super::super::{ALICE, BOB, mail};
    use super::*;

    #[test]
    fn it_serves_and_tells_of_new_mail() {
        let Some(mut cyrus) = Cyrus::start("cyrus::it_serves") else { return };
        let mut alice = Client::connect(cyrus.plain);
        assert!(alice.greeting.contains(" XAPPLEPUSHSERVICE"), "{}", alice.greeting);
        assert!(alice.login((ALICE.0, "wrong")).starts_with("x NO Login failed"));
        assert!(alice.login(ALICE).starts_with("x OK [CAPABILITY IMAP4rev1 "));
        alice.ask("SELECT INBOX");
        alice.say("x IDLE");
        alice.until("+ ");
        // It does not tell of what comes while IDLE begins.
        cyrus.deliver(ALICE.0, &mail("one"));
        cyrus.deliver(ALICE.0, &mail("two"));
        alice.until("* 2 EXISTS");

        let mut bob = Client::connect_tls(cyrus.tls);
        assert!(bob.login(BOB).starts_with("x OK"));
        cyrus.deliver(BOB.0, &mail("one"));
        assert_eq!(bob.messages("INBOX"), 1);
        assert!(Client::connect(cyrus.plain).login(ADMIN).starts_with("x OK"));

        cyrus.stop();
        cyrus.restart();
        let mut alice = Client::connect(cyrus.plain);
        assert!(alice.login(ALICE).starts_with("x OK"));
        assert_eq!(alice.messages("INBOX"), 2);
    }
}
