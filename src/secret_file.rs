//! Files that hold a secret: read only while nobody but their owner can use them, written whole or not
//! at all. What is in them is not known here.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use secrecy::zeroize::Zeroizing;

use crate::files;

/// No file with a secret comes near this, in bytes.
const MAX_FILE: u64 = 4096;

/// Read and write by the owner only.
const MODE: u32 = 0o600;

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
    // The metadata are those of the open file, so that what is checked is what was read.
    let (text, metadata) = files::read_text(path, MAX_FILE)?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Unfit::Open(mode));
    }
    Ok((text, metadata))
}

/// The one right to give a file a new content: a file beside it, by a name that is always the same,
/// which is locked while it is written and then takes its place. A process that is killed in between
/// leaves it behind; the next one takes it over, and a program that starts removes it ([`tidy`]).
pub(crate) struct Successor {
    file: File,
    /// Where it is; `None` when it has taken its place, and the name may be another's.
    beside: Option<PathBuf>,
    /// Whose place it takes.
    path: PathBuf,
}

impl Successor {
    /// Waits until nobody else writes the file at `path`, which must not be a link.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        // Said of the folder itself, since the name of a file beside would only puzzle.
        fs::metadata(folder(path))?;
        let beside = beside(path);
        loop {
            // Not emptied: until the lock is there it may be somebody else's.
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(MODE)
                .custom_flags((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed())
                .open(&beside)?;
            file.lock()?;
            let ours = file.metadata()?;
            match fs::symlink_metadata(&beside) {
                Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {
                    return Ok(Self { file, beside: Some(beside), path: path.to_owned() });
                }
                // It has taken its place, or was taken away, while this one waited.
                _ => {}
            }
        }
    }

    /// Puts a file with this text and mode 0600 in the place of the one at the path, whole or not at
    /// all, for the owner of the one that it replaces: an administrator's new file must not lock out
    /// mailchime's user.
    pub(crate) fn write(mut self, text: &str, replaced: Option<&fs::Metadata>) -> io::Result<()> {
        self.file.set_permissions(fs::Permissions::from_mode(MODE))?;
        self.file.set_len(0)?;
        if let Some(replaced) = replaced {
            let made = self.file.metadata()?;
            if (made.uid(), made.gid()) != (replaced.uid(), replaced.gid()) {
                fchown(&self.file, Some(replaced.uid()), Some(replaced.gid()))?;
            }
        } else {
            files::give_to_owner_of_folder(&self.file, folder(&self.path))?;
        }
        self.file.write_all(text.as_bytes())?;
        self.file.sync_all()?;
        if let Some(beside) = &self.beside {
            fs::rename(beside, &self.path)?;
            self.beside = None;
        }
        // The name too must outlive a power cut: rows sealed with a key that is gone are lost.
        File::open(folder(&self.path))?.sync_all()
    }
}

impl Drop for Successor {
    /// Takes it away if it has not taken its place, while it is still locked.
    fn drop(&mut self) {
        if let Some(beside) = &self.beside {
            let _ = fs::remove_file(beside);
        }
    }
}

/// Takes away what somebody who was killed left beside the file at `path`.
pub(crate) fn tidy(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(beside(path)) {
        Ok(_) => Successor::of(path).map(drop),
        Err(_) => Ok(()),
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

pub(crate) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
