//! Unix sockets that others may open: each has a file, whose mode says who may.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use crate::files;

/// The file of a Unix socket, which goes when this is dropped, unless another has its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
}

/// Listens for connections. The file has the mode 0600, or 0660 where it has a group, by its name or number.
/// A socket that nobody listens at any more is replaced.
///
/// # Errors
/// What the system says; `AddrInUse` where somebody listens there, `AlreadyExists` where something else than
/// a socket is.
pub fn listen(path: &Path, group: Option<&str>) -> io::Result<(UnixListener, SocketFile)> {
    place(path, group, |made| UnixListener::bind(made))
}

/// Takes datagrams. The file is as that of [`listen`].
///
/// # Errors
/// As [`listen`].
pub fn datagrams(path: &Path, group: Option<&str>) -> io::Result<(UnixDatagram, SocketFile)> {
    place(path, group, |made| UnixDatagram::bind(made))
}

/// Whether this user could make a socket here, as far as that can be known without making it.
///
/// # Errors
/// As [`listen`]; `NotFound` where its folder is missing, and `Other` where that takes no new files.
pub fn examine(path: &Path) -> io::Result<()> {
    is_free(path)?;
    let folder = folder_of(path);
    if !folder.is_dir() {
        let problem = format!("{} is no folder; make it", folder.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, problem));
    }
    files::takes_new_files(folder).map_err(|error| {
        io::Error::other(format!(
            "{} takes no new files ({error}); make it writable for the user that mailchime runs as",
            folder.display()
        ))
    })
}

/// Whether this machine has this group, by its name or number.
///
/// # Errors
/// `NotFound` where it has none.
pub fn find_group(group: &str) -> io::Result<()> {
    gid(group).map(drop)
}

/// The folder of a path; the current one where the path is a name alone.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        folder => folder.unwrap_or(Path::new("/")),
    }
}

/// Whether nothing else has the place of a socket.
fn is_free(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            let problem = "there is something else than a socket, which is left alone";
            Err(io::Error::new(io::ErrorKind::AlreadyExists, problem))
        }
        Ok(_) if is_used(path) => Err(io::ErrorKind::AddrInUse.into()),
        _ => Ok(()),
    }
}

/// The socket is made in a folder that only this user can enter, and comes to its place when it has its
/// mode: nobody else can connect in between.
fn place<T>(
    path: &Path,
    group: Option<&str>,
    bind: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<(T, SocketFile)> {
    examine(path)?;
    let parent = folder_of(path);
    let folder = tempfile::Builder::new().prefix(".").rand_bytes(6).tempdir_in(parent)?;
    let made = folder.path().join("s");
    let socket = bind(&made)?;
    let mode = match group {
        Some(group) => {
            chown(&made, None, Some(gid(group)?))?;
            0o660
        }
        None => 0o600,
    };
    fs::set_permissions(&made, fs::Permissions::from_mode(mode))?;
    let file = inode(&made)?;
    fs::rename(&made, path)?;
    Ok((socket, SocketFile { path: path.to_owned(), file }))
}

/// Whether somebody reads from the socket, of whatever type it is.
fn is_used(path: &Path) -> bool {
    let takes_datagrams = || UnixDatagram::unbound().and_then(|socket| socket.connect(path));
    UnixStream::connect(path).is_ok() || takes_datagrams().is_ok()
}

/// The number of a group of this machine, by its name or itself.
fn gid(group: &str) -> io::Result<u32> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let groups = fs::read_to_string("/etc/group")?;
    // group(5)
    let number = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is = fields.next() == Some(group);
        if is { fields.nth(1)?.parse().ok() } else { None }
    });
    let missing = || {
        let problem = format!("there is no group {group:?} in /etc/group");
        io::Error::new(io::ErrorKind::NotFound, problem)
    };
    number.ok_or_else(missing)
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|file| file == self.file) {
            // The next program that listens there replaces what is left.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_alone_is_in_the_current_folder() {
        examine(Path::new("no-such.socket")).unwrap();
        assert_eq!(folder_of(Path::new("folder/no-such.socket")), Path::new("folder"));
        let missing = examine(Path::new("no-such-folder/no-such.socket")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_socket_in_use_stays_and_one_that_was_left_behind_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let in_use = |error: io::Error| assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let (_stream, file) = listen(&path, None).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o777, 0o600);
        in_use(datagrams(&path, None).unwrap_err());
        drop(file);
        assert!(!path.exists());

        let (datagram, file) = datagrams(&path, None).unwrap();
        in_use(listen(&path, None).unwrap_err());
        in_use(datagrams(&path, None).unwrap_err());
        // Its program has died.
        drop(datagram);
        let (_datagram, _file) = datagrams(&path, None).unwrap();
        // The file of the one that died is another's now.
        drop(file);
        in_use(listen(&path, None).unwrap_err());

        let other = folder.path().join("other");
        fs::write(&other, "").unwrap();
        let refused = datagrams(&other, None).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&other).unwrap(), b"");
    }
}
