//! The script of `contrib/dovecot` by which Dovecot 2.3 tells mailchime of its mailboxes.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::pki;

pub(crate) const SCRIPT: &str = include_str!("../../../../contrib/dovecot/mailchime.lua");

/// How long the script waits for mailchime.
pub(crate) const TIMEOUT: &str = "TIMEOUT_MSECS = 500";
/// So long in place of it that an answer comes at all: a machine under load takes longer than a mail server should wait.
pub(crate) const PATIENT: &str = "TIMEOUT_MSECS = 60000";

/// A folder that all users can read, for the script and its token.
pub(crate) struct EventScript(TempDir);

impl EventScript {
    pub(crate) fn new(token: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        fs::write(folder.path().join("mailchime.token"), format!("{token}\n")).unwrap();
        Self(folder)
    }

    pub(crate) fn folder(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn token(&self) -> PathBuf {
        self.0.path().join("mailchime.token")
    }

    /// Has the script tell what listens there, and wait so long for it.
    pub(crate) fn tell_by(&self, scheme: &str, address: SocketAddr, timeout: &str) {
        let token = self.token().display().to_string();
        let script = SCRIPT
            .replace("http://127.0.0.1:8144/", &format!("{scheme}://{address}/"))
            .replace("/etc/dovecot/mailchime.token", &token)
            .replace(TIMEOUT, timeout);
        for told in [&*token, &*address.to_string(), timeout] {
            assert!(script.contains(told), "{script}");
        }
        fs::write(self.path(), script).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("mailchime.lua")
    }

    /// The lines for Dovecot, as docs/events.md says.
    pub(crate) fn lines(&self) -> String {
        let ca = self.0.path().join("ca.pem");
        fs::write(&ca, &pki().ca.certificate).unwrap();
        format!(
            "ssl_client_ca_file = {}\n\
             mail_plugins = $mail_plugins notify mail_lua push_notification push_notification_lua\n\
             plugin {{\n  push_notification_driver = lua:file={}\n}}\n",
            ca.display(),
            self.path().display()
        )
    }
}
