//! As whom files are looked at: root reads everything, and the user that mailchime runs as does not.

use std::fs;
use std::path::Path;

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
    let is_installed = fs::canonicalize(config).is_ok_and(|path| path.starts_with(INSTALLED));
    let name = match wanted {
        Some(name) => name,
        None if is_installed && process::geteuid().is_root() => SERVICE,
        None => return Ok(None),
    };
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
    Some(User { uid, groups })
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
        assert_eq!(found, Some(User { uid: 999, groups: vec![998, 110] }));
        assert_eq!(user("mail", passwd, group), None);
        assert_eq!(user("bad", passwd, group), None);
    }
}
