//! Files that hold a secret: read only while nobody but their owner can use them, written whole or not
//! at all. What is in them is not known here.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use secrecy::zeroize::Zeroizing;

/// What tells a file from another of the same name: device, inode, length, time of change.
pub(crate) type Stamp = (u64, u64, u64, i64, i64);

/// No file with a secret comes near this, in bytes.
const MAX_FILE: u64 = 4096;

/// Why a file with a secret cannot be used.
pub(crate) enum Unfit {
    Io(io::Error),
    /// The mode of a file that others can use.
    Open(u32),
    Malformed,
}

impl From<io::Error> for Unfit {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Unfit {
    /// The problem and its remedy: of a file that cannot be read, and of one with the wrong content.
    pub(crate) fn told(
        self,
        path: &Path,
        unread: &str,
        malformed: &str,
        rewrite: &str,
    ) -> (String, String) {
        match self {
            Self::Io(error) => (error.to_string(), unread.to_owned()),
            Self::Open(mode) => (
                format!("others than its owner can use it (mode {mode:03o})"),
                format!("run: chmod 600 {}", path.display()),
            ),
            Self::Malformed => (malformed.to_owned(), rewrite.to_owned()),
        }
    }
}

/// The content of a file that only its owner can use.
pub(crate) fn read_private(path: &Path) -> Result<(Zeroizing<String>, fs::Metadata), Unfit> {
    let file = File::open(path)?;
    // Of the open file, so that what is checked is what is read.
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Unfit::Io(io::Error::other("is not a file")));
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Unfit::Open(mode));
    }
    let mut text = Zeroizing::new(String::with_capacity(MAX_FILE as usize));
    file.take(MAX_FILE).read_to_string(&mut text)?;
    Ok((text, metadata))
}

pub(crate) fn stamp(metadata: &fs::Metadata) -> Stamp {
    let (seconds, nanos) = (metadata.mtime(), metadata.mtime_nsec());
    (metadata.dev(), metadata.ino(), metadata.len(), seconds, nanos)
}

/// A file on disk with this text and mode 0600 in the folder of `path`, for the owner of the file
/// that it is to replace: an administrator's new file must not lock out mailchime's user.
pub(crate) fn write_beside(
    path: &Path,
    text: &str,
    replaced: Option<&fs::Metadata>,
) -> io::Result<tempfile::NamedTempFile> {
    // Said of the folder itself, since a temporary file's name would only puzzle.
    fs::metadata(folder(path))?;
    let mut file = tempfile::NamedTempFile::new_in(folder(path))?;
    if let Some(replaced) = replaced {
        let made = file.as_file().metadata()?;
        if (made.uid(), made.gid()) != (replaced.uid(), replaced.gid()) {
            std::os::unix::fs::fchown(file.as_file(), Some(replaced.uid()), Some(replaced.gid()))?;
        }
    }
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// The name too must outlive a power cut: rows sealed with a key that is gone are lost.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder(path))?.sync_all()
}

pub(crate) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
