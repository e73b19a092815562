//! Dovecot 2.4, whose configuration is another one than that of 2.3. Debian 12 has no package of it: `tests/run.sh`
//! unpacks those of Debian 13 with all their libraries, and it runs there by `chroot`.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::{self, Plan, Process, Stop};
use super::unpacked::{available_unpacked, command};
use super::{NOBODY, deliver_by_lmtp, folder_of_nobody, pki, users};

/// Below the folder of unpacked servers.
const ROOT: &str = "trixie";

/// The server's folder, as the server sees it.
pub(crate) const PLACE: &str = "/srv";

pub(crate) struct Dovecot24 {
    /// Without TLS.
    pub(crate) plain: SocketAddr,
    /// With TLS from the first byte.
    pub(crate) tls: SocketAddr,
    process: Process,
}

impl Dovecot24 {
    /// One with these lines behind its own configuration, and these files, by their names in [`PLACE`].
    pub(crate) fn start(test: &str, extra: &str, files: &[(&str, &str)]) -> Option<Self> {
        if !is_available(test) {
            return None;
        }
        let (process, [plain, tls]) =
            process::start(|folder, addresses| plan(folder, addresses, extra, files));
        Some(Self { plain, tls, process })
    }

    /// A file of its folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.process.folder().join(name)
    }

    /// Delivers a mail into INBOX.
    pub(crate) fn deliver(&self, user: &str, mail: &[u8]) {
        deliver_by_lmtp(&self.file("run/lmtp"), user, mail);
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.file("dovecot.log")).unwrap()
    }

    /// Starts it again, on the same ports and with the same mail.
    pub(crate) fn restart(&mut self) {
        self.process.restart();
    }
}

fn plan(folder: &Path, [plain, tls]: [SocketAddr; 2], extra: &str, files: &[(&str, &str)]) -> Plan {
    for name in ["run", "state"] {
        fs::create_dir(folder.join(name)).unwrap();
    }
    for name in ["mail", "home", "attributes"] {
        folder_of_nobody(&folder.join(name));
    }
    let line = |(name, password): (&str, &str)| {
        format!("{name}:{{PLAIN}}{password}:{NOBODY}:{NOBODY}::{PLACE}/home/{name}\n")
    };
    let config = CONFIG.replace("{plain}", &plain.port().to_string());
    let config = config.replace("{tls}", &tls.port().to_string()).replace("{extra}", extra);
    let own = [
        ("dovecot.conf", &*config),
        ("passwd", &users().map(line).collect::<String>()),
        ("ca.pem", &pki().ca.certificate),
        ("server.pem", &pki().server.certificate),
        ("server.key", pki().server.expose_private_key()),
    ];
    for (name, text) in own.iter().chain(files) {
        fs::write(folder.join(name), text).unwrap();
    }
    Plan {
        command: in_root(folder, "/usr/sbin/dovecot -F"),
        ready: None,
        stop: Stop::Group("TERM"),
        expendable: true,
    }
}

/// A program of Dovecot, with the configuration in the folder.
fn in_root(folder: &Path, program: &str) -> Command {
    let dir = folder.display();
    let script = format!(
        "root={dir}/root/{ROOT}; unset LD_LIBRARY_PATH\n\
         mount --bind {dir} $root{PLACE} && mount --bind /dev $root/dev && mount --bind /proc $root/proc || exit 1\n\
         exec chroot $root {program} -c {PLACE}/dovecot.conf"
    );
    command(folder, &[], &script)
}

fn is_available(test: &str) -> bool {
    available_unpacked(test, "dovecot24", &[&format!("{ROOT}/usr/sbin/dovecot")])
}

/// Whether Dovecot 2.4 takes these lines of a configuration, and what its `doveconf -n` says.
pub(crate) fn doveconf(test: &str, lines: &str) -> Option<(bool, String)> {
    if !is_available(test) {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let config =
        format!("dovecot_config_version = 2.4.1\ndovecot_storage_version = 2.4.1\n{lines}");
    fs::write(folder.path().join("dovecot.conf"), config).unwrap();
    let output = in_root(folder.path(), "/usr/bin/doveconf -n").output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

const CONFIG: &str = "
dovecot_config_version = 2.4.1
dovecot_storage_version = 2.4.1
protocols = imap lmtp
listen = 127.0.0.1
base_dir = /srv/run
state_dir = /srv/state
log_path = /srv/dovecot.log
mail_driver = maildir
mail_path = /srv/mail/%{user}
mailbox_list_layout = fs
auth_username_format = %{user | username | lower}
auth_allow_cleartext = yes
auth_failure_delay = 0
mail_max_userip_connections = 10000
ssl = yes
ssl_server_cert_file = /srv/server.pem
ssl_server_key_file = /srv/server.key
namespace inbox {
  inbox = yes
}
passdb passwd-file {
  passwd_file_path = /srv/passwd
  default_password_scheme = PLAIN
}
userdb passwd-file {
  passwd_file_path = /srv/passwd
}
service imap-login {
  inet_listener imap {
    port = {plain}
  }
  inet_listener imaps {
    port = {tls}
    ssl = yes
  }
}
# No penalty for a wrong password, which would delay the next answers.
service anvil {
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}
{extra}
";
