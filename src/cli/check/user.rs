//! As whom files are looked at: root reads everything, and the user that mailchime runs as does not.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::process::{self, Gid, Uid};
use rustix::thread;

use crate::cli::CommandFailure;

/// The user of the unit and of the package.
const SERVICE: &str = "mailchime";

/// Where installed configurations are.
const INSTALLED: &str = "/etc";

/// A user of this machine, of passwd(5) and group(5).
#[derive(Debug, PartialEq, Eq)]
struct User {
    uid: u32,
    /// Its own first.
    groups: Vec<u32>,
    home: String,
}

/// Whether this configuration is that of a service.
pub(super) fn is_installed(config: &Path) -> bool {
    fs::canonicalize(config).is_ok_and(|path| path.starts_with(INSTALLED))
}

/// Whom mailchime runs as, where it is known.
fn service<'a>(wanted: Option<&'a str>, config: &Path) -> Option<&'a str> {
    let is_services = || is_installed(config) && process::geteuid().is_root();
    wanted.or_else(|| is_services().then_some(SERVICE))
}

/// Runs this command anew with `HOME` as systemd sets it for the user that mailchime runs as, where root runs it with
/// another: below it are files such as `.pgpass`. A process cannot change its own variables while it has threads. Returns
/// where that is not so, or nothing can be run.
pub(super) fn go_home(wanted: Option<&str>, config: &Path) {
    let home = || {
        let name = service(wanted, config).filter(|_| process::geteuid().is_root())?;
        let user = user(name, &fs::read_to_string("/etc/passwd").ok()?, "")?;
        (user.uid != 0).then_some(user.home)
    };
    let Some(home) = home() else { return };
    if std::env::var_os("HOME").is_some_and(|now| now == home.as_str()) {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        let mut arguments = std::env::args_os();
        let mut command = Command::new(program);
        command.arg0(arguments.next().unwrap_or_else(|| SERVICE.into()));
        // It returns where it fails, and then all goes on as it is.
        let _ = command.args(arguments).env("HOME", home).exec();
    }
}

/// Makes this thread, and those that it starts from now on, act as the user that mailchime runs as, where root
/// runs the command: `wanted`, or, for an installed configuration, the one of the unit if there is one. Returns the
/// name.
///
/// # Errors
/// Where there is no such user, or another than root wants to be somebody else.
pub(super) fn become_service(
    wanted: Option<&str>,
    config: &Path,
) -> Result<Option<String>, CommandFailure> {
    let Some(name) = service(wanted, config) else { return Ok(None) };
    let usage = |problem: String| CommandFailure::Usage(format!("--user {name}: {problem}"));
    let read = |path: &str| {
        fs::read_to_string(path).map_err(|error| usage(format!("{path} cannot be read: {error}")))
    };
    let user = match user(name, &read("/etc/passwd")?, &read("/etc/group")?) {
        Some(user) => user,
        None if wanted.is_none() => return Ok(None),
        None => return Err(usage("there is no such user in /etc/passwd".to_owned())),
    };
    if user.uid == process::geteuid().as_raw() {
        return Ok(None);
    }
    let become_it = || {
        let groups: Vec<_> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        let (uid, gid) = (Uid::from_raw(user.uid), groups[0]);
        thread::set_thread_groups(&groups)?;
        thread::set_thread_res_gid(gid, gid, gid)?;
        thread::set_thread_res_uid(uid, uid, uid)
    };
    match become_it() {
        Ok(()) => Ok(Some(name.to_owned())),
        // In a container root may not be allowed to, and nobody has asked for it.
        Err(_) if wanted.is_none() => Ok(None),
        Err(error) => Err(usage(format!("{error}; only root can look as another user"))),
    }
}

fn user(name: &str, passwd: &str, group: &str) -> Option<User> {
    let mut entries = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let entry = entries.find(|entry| entry.first() == Some(&name))?;
    let (uid, own) = (entry.get(2)?.parse().ok()?, entry.get(3)?.parse().ok()?);
    let member = |line: &str| {
        let entry: Vec<_> = line.split(':').collect();
        let is = entry.get(3)?.split(',').any(|member| member == name);
        is.then(|| entry[2].parse().ok())?
    };
    let mut groups = vec![own];
    groups.extend(group.lines().filter_map(member).filter(|gid: &u32| *gid != own));
    let home = entry.get(5).copied().unwrap_or_default().to_owned();
    Some(User { uid, groups, home })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_its_own_group_and_those_that_it_is_a_member_of() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nmailchime:x:999:998::/var/lib/mailchime:/x\nbad\n";
        let group = "root:x:0:\nssl-cert:x:110:postfix,mailchime\nmailchime:x:998:mailchime\n\
                     other:x:5:mailchimes\nbad:x\n";
        let found = user("mailchime", passwd, group);
        let home = "/var/lib/mailchime".to_owned();
        assert_eq!(found, Some(User { uid: 999, groups: vec![998, 110], home }));
        assert_eq!(user("mail", passwd, group), None);
        assert_eq!(user("bad", passwd, group), None);
    }
}
