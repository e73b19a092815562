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

/// What is added to that where the group reads, too.
const GROUP_READS: u32 = 0o040;

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

/// Whether nobody but this process's user and root can use a file: it is its owner's alone; or it is root's, and the group
/// that this process runs with reads it, too. Kubernetes mounts secrets so, as root:fsGroup with mode 0440. A group that the
/// user is merely a member of has other members. Root runs commands beside the service: there any group does but root's.
fn is_private(metadata: &fs::Metadata, user: u32, group: u32) -> bool {
    match metadata.permissions().mode() & 0o077 {
        0 => true,
        GROUP_READS if metadata.uid() != 0 => false,
        // Root does not know as whom mailchime runs, and rotates its keys all the same.
        GROUP_READS if user == 0 => metadata.gid() != 0,
        GROUP_READS => metadata.gid() == group,
        _ => false,
    }
}

/// The content of a file that nobody else can use.
pub(crate) fn read_private(path: &Path) -> Result<(Zeroizing<String>, fs::Metadata), Unfit> {
    // The metadata are those of the open file, so that what is checked is what was read.
    let (text, metadata) = files::read_text(path, MAX_FILE)?;
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    match is_private(&metadata, user.as_raw(), group.as_raw()) {
        true => Ok((text, metadata)),
        false => Err(Unfit::Open(metadata.permissions().mode() & 0o777)),
    }
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
    /// all, for the owner of the one that it replaces, and for its group where that could read it: an
    /// administrator's new file must not lock out mailchime's user.
    pub(crate) fn write(mut self, text: &str, replaced: Option<&fs::Metadata>) -> io::Result<()> {
        let group = replaced.map_or(0, |replaced| replaced.permissions().mode() & GROUP_READS);
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
        self.file.set_permissions(fs::Permissions::from_mode(MODE | group))?;
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::chown;

    use super::*;

    /// As Kubernetes mounts a secret with `fsGroup`.
    #[test]
    fn a_file_of_root_may_be_read_by_the_group_that_mailchime_runs_with_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, "secret").unwrap();
        if chown(&path, Some(0), Some(65532)).is_err() {
            return; // Root alone can give it away.
        }
        let judge = |mode: u32, user: u32, group: u32| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            is_private(&fs::metadata(&path).unwrap(), user, group)
        };
        for mode in [0o440, 0o640] {
            assert!(judge(mode, 65532, 65532), "{mode:o}");
            // Of another group the user may be a member, among others.
            assert!(!judge(mode, 65532, 999), "{mode:o}");
            // Root runs commands beside it.
            assert!(judge(mode, 0, 0), "{mode:o}");
        }
        for mode in [0o444, 0o460, 0o660, 0o604] {
            assert!(!judge(mode, 65532, 65532), "{mode:o}");
            assert!(!judge(mode, 0, 0), "{mode:o}");
        }
        assert!(judge(0o400, 65532, 65532));
        chown(&path, Some(1000), None).unwrap();
        assert!(!judge(0o440, 65532, 65532), "it is another user's");
        assert!(!judge(0o440, 0, 0), "it is another user's");
        chown(&path, Some(0), Some(0)).unwrap();
        assert!(!judge(0o640, 0, 0) && !judge(0o640, 65532, 65532), "it is root's group's");
    }

    #[test]
    fn a_new_content_stays_readable_for_the_group_that_could_read_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        for mode in [0o640, 0o600] {
            fs::write(&path, "before").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let before = fs::metadata(&path).unwrap();
            Successor::of(&path).unwrap().write("after", Some(&before)).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "after");
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, mode);
        }
    }
}
