//! The files that the configuration names: how they are read, who else can use them, and how a new one
//! is made.
//!
//! Reading ends, whatever a path leads to: only regular files are read, none is waited for (a FIFO waits
//! for its other end, a device may have none), and nothing beyond a limit.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use secrecy::zeroize::Zeroizing;

/// Most bytes of a file: the authorities of a system take a quarter of a MiB.
pub const LARGEST: u64 = 4 * 1024 * 1024;

/// What tells a file from another of the same name: device, inode, length, and the time of its last change
/// in seconds and nanoseconds.
pub(crate) type Stamp = (u64, u64, u64, i64, i64);

/// The stamp of a file with this metadata.
pub(crate) fn stamp(metadata: &Metadata) -> Stamp {
    let (seconds, nanos) = (metadata.mtime(), metadata.mtime_nsec());
    (metadata.dev(), metadata.ino(), metadata.len(), seconds, nanos)
}

/// Whether there is something of this name, also if nothing else is known of it.
pub fn exists(path: &Path) -> bool {
    !fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Whether the first start can make this file, as far as its folder says; a sentence for people.
///
/// # Errors
/// What is wrong, and what to do.
pub fn to_be_made(path: &Path) -> Result<String, String> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let (shown, folder_shown) = (path.display(), folder.display());
    match (fs::metadata(folder), takes_new_files(folder)) {
        (Ok(found), Ok(())) if found.is_dir() => Ok(format!("{shown}: is made at the first start")),
        (Ok(found), Err(error)) if found.is_dir() => Err(format!(
            "{shown}: cannot be made in the folder {folder_shown} ({error}); make that writable for the \
             user that mailchime runs as"
        )),
        _ => Err(format!(
            "{shown}: there is no folder {}; make it, writable for the user that mailchime runs as",
            folder.display()
        )),
    }
}

/// Whether this user can make files in a folder.
///
/// # Errors
/// As the system says, where it cannot.
pub fn takes_new_files(folder: &Path) -> io::Result<()> {
    rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK)?;
    // The mode counts for nothing with root, who can make no file in /proc all the same. This one has no name, or loses
    // it at once where the file system knows no files without one; it goes away when it is closed.
    tempfile::tempfile_in(folder).map(drop)
}

/// Opens a regular file for reading.
///
/// # Errors
/// As the system says, or that it `is not a file`.
pub fn open(path: &Path) -> io::Result<(File, Metadata)> {
    // Some devices do something when they are opened, so that is not tried.
    regular(fs::metadata(path)?)?;
    // It may be another by now.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed())
        .open(path)?;
    let metadata = regular(file.metadata()?)?;
    Ok((file, metadata))
}

/// Reads a regular file of at most `most` bytes, which are overwritten when they are dropped.
///
/// # Errors
/// As [`open`], or that it is longer.
pub fn read(path: &Path, most: u64) -> io::Result<(Zeroizing<Vec<u8>>, Metadata)> {
    let (file, metadata) = open(path)?;
    // Room for all: what has to be moved to grow leaves a copy.
    let room = metadata.len().min(most) + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(room).unwrap_or(0)));
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let problem = format!("is longer than {most} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
    }
    Ok((bytes, metadata))
}

/// The same of a file that holds text.
///
/// # Errors
/// As [`read`], or that it is not text in UTF-8 ([`io::ErrorKind::InvalidData`]).
pub fn read_text(path: &Path, most: u64) -> io::Result<(Zeroizing<String>, Metadata)> {
    let (mut bytes, metadata) = read(path, most)?;
    match String::from_utf8(std::mem::take(&mut *bytes)) {
        Ok(text) => Ok((Zeroizing::new(text), metadata)),
        Err(error) => {
            drop(Zeroizing::new(error.into_bytes()));
            Err(io::Error::new(io::ErrorKind::InvalidData, "is not text in UTF-8"))
        }
    }
}

/// Who else can use a file with a secret than its group, which may read it, root, and the user that
/// runs this program; and what to run against it. `None` where nobody can, or there is no such file.
pub fn exposure(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok()?;
    let (mode, us) = (metadata.mode() & 0o777, rustix::process::geteuid().as_raw());
    let shown = path.display();
    if mode & 0o007 != 0 {
        let who = "everybody on this machine can use it";
        return Some(format!("{who} (mode {mode:03o}); run: chmod o= {shown}"));
    }
    if mode & 0o020 != 0 {
        return Some(format!("its group can change it (mode {mode:03o}); run: chmod g-w {shown}"));
    }
    let owner = metadata.uid();
    (owner != 0 && owner != us)
        .then(|| format!("it belongs to another user ({owner}); run: chown {us} {shown}"))
}

/// What to do about a file that cannot be read.
pub fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "correct the path, or make the file",
        io::ErrorKind::PermissionDenied => "let the user that mailchime runs as read it",
        _ => "see whether it is a file that can be read",
    }
}

/// Writes a new file with this mode, whole or not at all; it is on disk when this returns. A file that is
/// there stays as it is, and nothing is left of one that is not finished when the program is killed.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] where there is something at `path`, a link that leads nowhere too;
/// else as the system says.
pub fn create(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // It has no name before it is whole.
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let made = match rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => {
            let file = File::from(file);
            fill(&file, bytes, mode)?;
            let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::fs::linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW)
        }
        Err(error) => Err(error),
    };
    match made {
        Ok(()) => {}
        Err(Errno::EXIST) => return Err(Errno::EXIST.into()),
        // Some file systems have none without a name, and /proc need not be there.
        Err(_) => {
            let file = tempfile::Builder::new().prefix(".mailchime-").tempfile_in(folder)?;
            fill(file.as_file(), bytes, mode)?;
            file.persist_noclobber(path).map_err(|error| error.error)?;
        }
    }
    File::open(folder)?.sync_all()
}

/// Gives `file`, where root runs this, to the owner of its folder: root's one start must not lock out the
/// user that mailchime runs as from then on.
///
/// # Errors
/// As the system says.
pub(crate) fn give_to_owner_of_folder(file: &File, folder: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let owner = fs::metadata(folder)?;
    match owner.uid() {
        0 => Ok(()),
        uid => fchown(file, Some(uid), Some(owner.gid())),
    }
}

fn fill(mut file: &File, bytes: &[u8], mode: u32) -> io::Result<()> {
    file.write_all(bytes)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

fn regular(metadata: Metadata) -> io::Result<Metadata> {
    match metadata.is_file() {
        true => Ok(metadata),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a file")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_comes_whole_and_overwrites_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        create(&path, b"new", 0o640).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        let nowhere = folder.path().join("nowhere");
        std::os::unix::fs::symlink("gone", &nowhere).unwrap();
        for there in [&path, &nowhere, &folder.path().to_owned()] {
            let error = create(there, b"newer", 0o600).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{}", there.display());
        }
        assert_eq!(fs::read(&path).unwrap(), b"new");
        let missing = create(&folder.path().join("no/such"), b"", 0o600).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "something is left");
    }

    #[test]
    fn a_file_is_read_up_to_a_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "12345").unwrap();
        assert_eq!(*read(&path, 5).unwrap().0, b"12345");
        let error = read(&path, 4).map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), "is longer than 4 bytes");
        fs::write(&path, b"\xff").unwrap();
        let error = read_text(&path, 5).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let error = read(folder.path(), 5).map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), "is not a file");
        // It says that it is empty.
        let kernels = read(Path::new("/proc/self/status"), LARGEST);
        assert!(kernels.is_ok_and(|(bytes, _)| bytes.starts_with(b"Name:")));
    }
}
