//! Servers whose packages conflict with Dovecot's: `tests/run.sh` unpacks them into one folder.
//!
//! They run in a mount namespace of their own, where that folder is `root` in the server's: they
//! change user, and the way to the original may be closed to others.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::available;
use crate::support::skip;

/// Where they are unpacked: `MAILCHIME_SERVERS`, else where `tests/run.sh` leaves them by itself.
pub(super) fn root() -> PathBuf {
    std::env::var_os("MAILCHIME_SERVERS").map_or_else(
        || Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("servers"),
        Into::into,
    )
}

/// Whether `test` can have a server that needs these files, of which relative ones are unpacked;
/// says so if not.
pub(super) fn available_unpacked(test: &str, server: &str, files: &[&str]) -> bool {
    let files: Vec<_> = files.iter().map(|file| root().join(file)).collect();
    let files: Vec<_> = files.iter().map(PathBuf::as_path).collect();
    if !available(test, server, &files) {
        return false;
    }
    let allowed = Command::new("unshare").args(["-m", "-p", "-f", "true"]).output();
    let allowed = allowed.is_ok_and(|output| output.status.success());
    if !allowed {
        skip::report(test, &format!("{server} needs namespaces"));
    }
    allowed
}

/// Runs a shell script in namespaces of its own: a mount namespace, and others if `options` of
/// `unshare` say so. `root` is in the folder when it begins.
pub(super) fn command(folder: &Path, options: &[&str], script: &str) -> Command {
    let within = folder.join("root");
    std::fs::create_dir(&within).unwrap();
    let libraries = within.join("usr/lib");
    let script = format!(
        "mount --bind {} {} || exit 1\nset -- {}/*-linux-gnu\nexport LD_LIBRARY_PATH=\"$1\"\n{script}",
        quoted(&root()),
        quoted(&within),
        quoted(&libraries),
    );
    let mut command = Command::new("unshare");
    command.arg("-m").args(options).args(["sh", "-c", &script]);
    command
}

/// A path as one word of a shell script.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}
