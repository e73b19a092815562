//! The files that the configuration names: how they are read, and who else can use them.
//!
//! Reading ends, whatever a path leads to: only regular files are read, none is waited for (a FIFO waits
//! for its other end, a device may have none), and nothing beyond a limit.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use secrecy::zeroize::Zeroizing;

/// Most bytes of a file: the authorities of a system take a quarter of a MiB.
pub const LARGEST: u64 = 4 * 1024 * 1024;

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
