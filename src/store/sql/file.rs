//! The files of a SQLite database: which process writes them, and whether they are still the ones that
//! it opened.
//!
//! ```text
//!   mailchime.db        the database; SQLite finds the other two by its name
//!   mailchime.db-wal    what was written last, until it is copied into the database
//!   mailchime.db-shm    the index of that
//!   mailchime.db-lock   locked by the process that serves; says which one, and the inodes of the first two
//! ```
//!
//! A database that is moved over another one gets that one's log, and SQLite would mix the two. So what
//! is at the path is compared with what was opened, before and after each write.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use parking_lot::Mutex;
use rustix::fs::OFlags;

use crate::files;
use crate::secret_file::folder;
use crate::store::StoreError;

/// Read and write by the owner only.
const MODE: u32 = 0o600;

/// A lock file is much shorter, in bytes.
const LONGEST: u64 = 4096;

/// A database, its log and the log's index.
const SUFFIXES: [&str; 3] = ["", "-wal", "-shm"];

/// The files of one database, which this process has open.
pub(in crate::store) struct DatabaseFile {
    /// Without links.
    path: PathBuf,
    /// How errors name it.
    database: Arc<str>,
    /// Device and inode of each.
    opened: OnceLock<[(u64, u64); 3]>,
    /// Held by the process that serves, to its end.
    lock: Mutex<Option<Lock>>,
    /// What is at the path is not what was opened, and the log of what was opened is not yet emptied.
    lost: AtomicBool,
    emptied: AtomicBool,
}

/// A lock file that this process holds.
struct Lock {
    file: File,
    /// What it says of this process.
    owner: String,
    /// Where it is; `None` where it is to stay there.
    path: Option<PathBuf>,
}

/// Whose lock it is, and of which files.
struct Note {
    owner: String,
    /// The inodes of the database and of its log.
    files: Option<[u64; 2]>,
}

// === impl DatabaseFile ===

impl DatabaseFile {
    /// The files of a database that others may write as well. `path` is without links.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] where the log beside the database is that of another one.
    pub(in crate::store) fn shared(path: &Path, database: &Arc<str>) -> Result<Self, StoreError> {
        let note = File::open(with(path, "-lock")).and_then(|file| Note::read(&file));
        if note.is_ok_and(|note| note.is_of_another(path)) {
            return Err(StoreError::Unusable {
                database: Arc::clone(database),
                problem:
                    "was put in the place of the file that a mailchime had opened, and beside \
                          it is the log of that one"
                        .into(),
                remedy: "stop mailchime if it runs, and start mailchime anew",
            });
        }
        Ok(Self::new(path, database, None))
    }

    /// The same for the one process that serves: no other one does until [`release`](Self::release).
    ///
    /// # Errors
    /// [`StoreError::InUse`] where another process does; as [`shared`](Self::shared).
    pub(in crate::store) fn locked(path: &Path, database: &Arc<str>) -> Result<Self, StoreError> {
        let lock = Lock::take(&with(path, "-lock")).map_err(|error| StoreError::Unusable {
            database: Arc::clone(database),
            problem: format!("cannot be locked: {error}"),
            remedy: "the user that runs mailchime must be able to make a file beside it that ends in \
                     -lock",
        })?;
        let mut lock =
            lock.map_err(|by| StoreError::InUse { database: Arc::clone(database), by })?;
        // Left by a process that was killed.
        let log = with(path, "-wal");
        let holds_something = fs::metadata(&log).is_ok_and(|log| log.len() > 0);
        if holds_something && Note::read(&lock.file).is_ok_and(|note| note.is_of_another(path)) {
            lock.path = None;
            return Err(StoreError::Unusable {
                database: Arc::clone(database),
                problem: format!(
                    "was put in the place of the file that mailchime had open when it was killed, \
                     and {} is the log of that one, which SQLite would mix into this one",
                    log.display()
                ),
                remedy: "put the file of before back, or move that log away, and start mailchime anew",
            });
        }
        lock.note(None);
        Ok(Self::new(path, database, Some(lock)))
    }

    fn new(path: &Path, database: &Arc<str>, lock: Option<Lock>) -> Self {
        Self {
            path: path.to_owned(),
            database: Arc::clone(database),
            opened: OnceLock::new(),
            lock: Mutex::new(lock),
            lost: AtomicBool::new(false),
            emptied: AtomicBool::new(false),
        }
    }

    pub(in crate::store) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes note of the files as they are: this process has them open from now on.
    pub(in crate::store) fn is_open(&self) -> io::Result<()> {
        let [Some(database), Some(log), Some(index)] = self.files() else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "one of its files is not there"));
        };
        if self.opened.set([database, log, index]).is_ok()
            && let Some(lock) = &*self.lock.lock()
        {
            lock.note(Some([database.1, log.1]));
        }
        Ok(())
    }

    /// Whether the files are still the ones that were opened; the log says when they are not any more.
    ///
    /// # Errors
    /// [`StoreError::Replaced`]: what is at the path must not be written, and no OK be said to what was
    /// written just before.
    pub(in crate::store) fn check(&self) -> Result<(), StoreError> {
        let Some(opened) = self.opened.get() else { return Ok(()) };
        let now = self.files();
        let Some(at) = (0..SUFFIXES.len()).find(|at| now[*at] != Some(opened[*at])) else {
            if self.lost.swap(false, Ordering::Relaxed) {
                self.emptied.store(false, Ordering::Relaxed);
                tracing::warn!(
                    target: "mailchime::store::file_is_back",
                    database = %self.database,
                    "the database file that mailchime had opened is in its place again; mailchime \
                     uses it"
                );
            }
            return Ok(());
        };
        let what = if now[at].is_some() { "was replaced" } else { "was removed" };
        let database = format!("{}{}", self.database, SUFFIXES[at]);
        let error = StoreError::Replaced { database, what };
        if !self.lost.swap(true, Ordering::Relaxed) {
            tracing::error!(
                target: "mailchime::store::file_replaced",
                %error,
                "the database {what} while mailchime uses it; mailchime writes nothing more to it \
                 until it is back or mailchime is restarted"
            );
        }
        Err(error)
    }

    /// Whether the files are not the ones that were opened, and what the log of those holds is still to
    /// be copied into the database that it belongs to.
    pub(in crate::store) fn has_to_be_emptied(&self) -> bool {
        self.check().is_err() && !self.emptied.load(Ordering::Relaxed)
    }

    /// That has been done. Where another database has the place, what is left of the log goes, so that
    /// nobody takes it for that one's.
    pub(in crate::store) fn is_emptied(&self) {
        self.emptied.store(true, Ordering::Relaxed);
        let (Some(opened), now) = (self.opened.get(), self.files()) else { return };
        if now[0] != Some(opened[0]) {
            for at in 1..SUFFIXES.len() {
                if now[at] == Some(opened[at]) {
                    let _ = fs::remove_file(with(&self.path, SUFFIXES[at]));
                }
            }
        }
    }

    /// Lets another process serve. To be called when nothing is open any more.
    pub(in crate::store) fn release(&self) {
        let mut lock = self.lock.lock();
        let holds_something =
            self.lost.load(Ordering::Relaxed) && !self.emptied.load(Ordering::Relaxed);
        if let Some(lock) = &mut *lock
            && holds_something
        {
            // It says whose log that is.
            lock.path = None;
        }
        *lock = None;
    }

    fn files(&self) -> [Option<(u64, u64)>; 3] {
        SUFFIXES.map(|suffix| {
            let metadata = fs::metadata(with(&self.path, suffix)).ok()?;
            Some((metadata.dev(), metadata.ino()))
        })
    }
}

impl Drop for DatabaseFile {
    fn drop(&mut self) {
        self.release();
    }
}

// === impl Lock ===

impl Lock {
    /// The lock, or who has it.
    fn take(path: &Path) -> io::Result<Result<Self, String>> {
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(MODE)
                .custom_flags((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed())
                .open(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Note::read(&file).map(|note| Err(note.owner));
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
            let ours = file.metadata()?;
            match fs::symlink_metadata(path) {
                Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {
                    // One that a killed process of root leaves behind would shut out the next one.
                    if ours.uid() == 0 {
                        files::give_to_owner_of_folder(&file, folder(path))?;
                    }
                    return Ok(Ok(Self { file, owner: owner(), path: Some(path.to_owned()) }));
                }
                // Its process took it away when it stopped, after this one had opened it.
                _ => {}
            }
        }
    }

    /// Writes whose it is, and of which files. Where that fails it is locked all the same.
    fn note(&self, files: Option<[u64; 2]>) {
        let mut text = format!("{}\n", self.owner);
        if let Some([database, log]) = files {
            text.push_str(&format!("database {database} log {log}\n"));
        }
        let write = || {
            let mut file = &self.file;
            file.rewind()?;
            file.write_all(text.as_bytes())?;
            file.set_len(text.len() as u64)
        };
        if let Err(error) = write() {
            tracing::warn!(
                target: "mailchime::store::lock_holder_unknown",
                %error, "could not find out which process holds the lock of the database"
            );
        }
    }
}

/// Which process serves from the database at `path`, which is without links; `None` where nobody does, or that cannot be
/// known.
pub(in crate::store) fn locked_by(path: &Path) -> Option<String> {
    let file = File::open(with(path, "-lock")).ok()?;
    // Let go at once.
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Note::read(&file).ok().map(|note| note.owner),
        _ => None,
    }
}

impl Drop for Lock {
    /// Takes the file away while it is still locked.
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// This process, as a lock names it.
fn owner() -> String {
    let machine = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let on = match machine.trim() {
        "" => String::new(),
        machine => format!(" on {machine}"),
    };
    let since = humantime::format_rfc3339_seconds(SystemTime::now());
    format!("process {}{on}, since {since}", std::process::id())
}

// === impl Note ===

impl Note {
    fn read(mut file: &File) -> io::Result<Self> {
        let mut text = String::new();
        file.rewind()?;
        file.take(LONGEST).read_to_string(&mut text)?;
        let mut lines = text.lines();
        let owner = lines.next().filter(|owner| !owner.is_empty());
        let owner = owner.unwrap_or("a process that is starting").escape_debug().to_string();
        let files = lines.next().and_then(|line| {
            let (database, log) = line.strip_prefix("database ")?.split_once(" log ")?;
            Some([database.parse().ok()?, log.parse().ok()?])
        });
        Ok(Self { owner, files })
    }

    /// Whether the log beside the database at `path` is that of another database. Copied together, both
    /// are others than those of the note.
    fn is_of_another(&self, path: &Path) -> bool {
        let inode = |path: &Path| fs::metadata(path).map(|metadata| metadata.ino()).ok();
        self.files.is_some_and(|[database, log]| {
            inode(&with(path, "-wal")) == Some(log) && inode(path) != Some(database)
        })
    }
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
