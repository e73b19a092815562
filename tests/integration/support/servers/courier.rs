//! Courier IMAP 5: few extensions, no LITERAL+, no capability list in its answers to LOGIN.
//!
//! The paths of its configuration are compiled in, so it has mounts of its own there.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::{self, Plan, Process, Stop};
use super::unpacked::{self, available_unpacked};
use super::{deliver_to_maildir, folder_of_nobody, pki, run};

const FILES: [&str; 7] = [
    "usr/sbin/couriertcpd",
    "usr/bin/imapd",
    "usr/lib/courier/courier/imaplogin",
    "/usr/lib/courier/courier-authlib/authdaemond",
    "/usr/sbin/makeuserdb",
    "/usr/libexec/gam_server",
    "/etc/courier",
];

pub(crate) struct Courier {
    /// Without TLS, also for STARTTLS.
    pub(crate) plain: SocketAddr,
    /// With TLS from the first byte.
    pub(crate) tls: SocketAddr,
    process: Process,
}

/// Courier as its package sets it up: its own files of configuration, and the program that its unit of systemd starts
/// for port 143, here on another port.
pub(crate) struct Packaged {
    pub(crate) port: u16,
    process: Process,
}

impl Packaged {
    /// One with these lines in `/etc/courier/imapd`, in place of those there with the same names.
    pub(crate) fn start(test: &str, changed: &[&str]) -> Option<Self> {
        if !available_unpacked(test, "courier", &FILES) {
            return None;
        }
        let (process, [address]) = process::start(|folder, [address]: [SocketAddr; 1]| {
            let own = Courier::packaged("etc/courier/imapd");
            let port = format!("PORT={}", address.port());
            let name = |line: &str| Some(line.split_once('=')?.0.to_owned());
            let lines = own.lines().map(|own| {
                let of_name = |line: &&&str| name(own).is_some() && name(line) == name(own);
                match changed.iter().find(of_name) {
                    Some(line) => line,
                    None if own.starts_with("PORT=") => &*port,
                    None => own,
                }
            });
            let lines: String = lines.map(|line| format!("{line}\n")).collect();
            for line in changed {
                assert!(lines.contains(&format!("\n{line}\n")), "{line} is not for {lines}");
            }
            set_up(folder);
            for (name, text) in [
                ("imapd", &*lines),
                ("imapd-ssl", &*Courier::packaged("etc/courier/imapd-ssl")),
                ("imapaccess", ""),
            ] {
                fs::write(folder.join("etc").join(name), text).unwrap();
            }
            plan(folder, PACKAGED)
        });
        Some(Self { port: address.port(), process })
    }

    /// Moves a mail into the Maildir of INBOX.
    pub(crate) fn deliver(&self, user: &str, mail: &[u8]) {
        deliver_to_maildir(&maildir(&self.process, user), mail);
    }
}

/// INBOX of a user.
fn maildir(process: &Process, user: &str) -> PathBuf {
    process.folder().join("home").join(user).join("Maildir")
}

impl Courier {
    pub(crate) fn start(test: &str) -> Option<Self> {
        if !available_unpacked(test, "courier", &FILES) {
            return None;
        }
        let (process, [plain, tls]) = process::start(|folder, [plain, tls]: [SocketAddr; 2]| {
            set_up(folder);
            let script = RUN.replace("{plain}", &plain.port().to_string());
            plan(folder, &script.replace("{tls}", &tls.port().to_string()))
        });
        Some(Self { plain, tls, process })
    }

    /// Moves a mail into the Maildir of INBOX, or of a mailbox below it: `Team` is `INBOX.Team`.
    pub(crate) fn deliver(&self, user: &str, mailbox: &str, mail: &[u8]) {
        let inbox = maildir(&self.process, user);
        let mailbox = if mailbox == "INBOX" { inbox } else { inbox.join(format!(".{mailbox}")) };
        deliver_to_maildir(&mailbox, mail);
    }

    /// A file of the package, by its path without the first `/`.
    pub(crate) fn packaged(path: &str) -> String {
        fs::read_to_string(unpacked::root().join(path)).unwrap()
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

/// The users, their mail and the certificate.
fn set_up(folder: &Path) {
    fs::create_dir(folder.join("etc")).unwrap();
    let mut users = String::new();
    for (name, password) in super::users() {
        let home = folder.join("home").join(name);
        for subfolder in ["cur", "new", "tmp"] {
            folder_of_nobody(&home.join("Maildir").join(subfolder));
        }
        let hash = |kind| run(Command::new("userdbpw").arg(kind), &format!("{password}\n"));
        let (plain, cram) = (hash("-md5"), hash("-hmac-md5"));
        users += &format!(
            "{name}\tuid=65534|gid=65534|home={home}|mail={home}/Maildir|systempw={}|hmac-md5pw={}\n",
            plain.trim_end(),
            cram.trim_end(),
            home = home.display()
        );
    }
    let identity = &pki().server;
    let pem = format!("{}{}", identity.expose_private_key(), identity.certificate);
    for (name, text) in [("imapd.pem", &*pem), ("userdb", &users), ("authdaemonrc", AUTHDAEMONRC)] {
        let file = folder.join("etc").join(name);
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    }
    run(Command::new("chown").arg("courier").arg(folder.join("etc/imapd.pem")), "");
    run(Command::new("makeuserdb").arg("-f").arg(folder.join("etc/userdb")), "");
}

/// What a script runs once somebody answers who users are.
fn plan(folder: &Path, script: &str) -> Plan {
    let script = format!("{AUTHDAEMON}{script}").replace("{dir}", &folder.display().to_string());
    // The process namespace takes along what leaves the group, such as gamin's server.
    let command = unpacked::command(folder, &["-p", "-f", "--kill-child", "--mount-proc"], &script);
    Plan { command, ready: None, stop: Stop::Group("KILL"), expendable: true }
}

const AUTHDAEMONRC: &str = r#"
authmodulelist="authuserdb"
authmodulelistorig="authuserdb"
daemons=2
authdaemonvar=/run/courier/authdaemon
"#;

const AUTHDAEMON: &str = r#"
mount --bind {dir}/etc /etc/courier && mount -t tmpfs tmpfs /run || exit 1
mkdir -p /run/courier/authdaemon
authmodulelist=authuserdb daemons=2 DEBUG_LOGIN=0 DEFAULTOPTIONS= \
    /usr/lib/courier/courier-authlib/authdaemond 2>>{dir}/auth.log &
until [ -S /run/courier/authdaemon/socket ]; do sleep 0.01; done
"#;

const RUN: &str = r#"
export IMAP_CAPABILITY="IMAP4rev1 UIDPLUS CHILDREN NAMESPACE THREAD=ORDEREDSUBJECT \
THREAD=REFERENCES SORT QUOTA IDLE AUTH=CRAM-MD5"
export IMAP_CAPABILITY_TLS="$IMAP_CAPABILITY AUTH=PLAIN" AUTHMODULES=authdaemon
export MAILDIRPATH=Maildir IMAP_KEYWORDS=1 IMAP_ACL=1 IMAP_USELOCKS=1 IMAP_UMASK=022
export IMAP_ENHANCEDIDLE=1 IMAP_IDLE_TIMEOUT=60
# Else all share one of gamin's servers, which knows nobody from another namespace.
export GAM_CLIENT_ID={plain}
export COURIERTLS={dir}/root/usr/bin/couriertls TLS_CERTFILE=/etc/courier/imapd.pem
export TLS_VERIFYPEER=NONE
tcpd="{dir}/root/usr/sbin/couriertcpd -stderr={dir}/imapd.log -address=127.0.0.1 -maxprocs=200
    -maxperip=200 -nodnslookup -noidentlookup"
imapd="{dir}/root/usr/lib/courier/courier/imaplogin {dir}/root/usr/bin/imapd Maildir"
IMAP_STARTTLS=YES $tcpd {plain} $imapd &
IMAP_TLS=1 $tcpd {tls} $COURIERTLS -server -tcpd -user=courier $imapd &
wait
"#;

/// The files of the package, over those of the machine, where its programs look for each other; and what the unit of
/// systemd runs.
const PACKAGED: &str = r#"
unset LD_LIBRARY_PATH
mount -t tmpfs tmpfs /var/lib && mkdir /var/lib/courier || exit 1
mount -t overlay -o lowerdir={dir}/root/usr:/usr overlay /usr || exit 1
/usr/sbin/imapd start
wait
"#;

mod tests {
    use super::super::client::Client;
    use super::super::{ALICE, BOB, mail};
    use super::*;

    #[test]
    fn it_serves_and_tells_of_new_mail() {
        let Some(mut courier) = Courier::start("courier::it_serves") else { return };
        let mut alice = Client::connect(courier.plain);
        assert!(alice.login(ALICE).starts_with("x OK"));
        alice.ask("SELECT INBOX");
        alice.say("x IDLE");
        alice.until("+ ");
        courier.deliver(ALICE.0, "INBOX", &mail("one"));
        alice.until("* 1 EXISTS");

        let mut bob = Client::connect_tls(courier.tls);
        assert!(bob.login((BOB.0, "wrong")).starts_with("x NO Login failed."));
        assert!(bob.login(BOB).starts_with("x OK"));
        courier.deliver(BOB.0, "Team", &mail("in a folder"));
        assert_eq!(bob.messages("INBOX.Team"), 1);

        courier.stop();
        courier.restart();
        let mut alice = Client::connect(courier.plain);
        assert!(alice.login(ALICE).starts_with("x OK"));
        assert_eq!(alice.messages("INBOX"), 1);
    }
}
