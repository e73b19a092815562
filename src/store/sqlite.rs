//! What is peculiar to SQLite: the file, its mode, its settings and its two pools.
//!
//! SQLite has one writer at a time. All writes of this process go through a pool of one connection,
//! which queues them fairly, and begin with the write lock held, so that a transaction never finds
//! in its middle that another process was faster.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::any::AnyPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AnyPool, AssertSqlSafe, ConnectOptions, Connection, Executor, SqliteConnection};
use tokio::time::Instant;

use super::error::{CANNOT_OPEN, sqlite_code};
use super::{StoreError, schema};
use crate::files;

/// Begins a transaction that holds the write lock from the start.
pub(super) const BEGIN_WRITE: &str = "begin immediate";

/// Reads run beside the writer and each other (WAL); few are ever in flight.
const READERS: u32 = 4;

/// A larger file is not written anew at the start, in bytes: that takes some seconds.
const MOST_WIPED: u64 = 256 * 1024 * 1024;

/// How long emptying the log waits for a reader or writer.
const LOG_TIMEOUT: Duration = Duration::from_millis(100);

/// Read and write by the owner only: the rows hold device tokens and sealed credentials.
const MODE: u32 = 0o600;

/// The file of `sqlite://path`.
pub(super) fn path_of(url: &str) -> Result<PathBuf, StoreError> {
    let path = url.strip_prefix("sqlite://").unwrap_or_default();
    if path.is_empty() || path.contains('?') || path == ":memory:" {
        return Err(StoreError::Unusable {
            // One of another kind may hold a password.
            database: if url.contains('@') { "the URL" } else { url }.into(),
            problem: "is not the URL of a database file".into(),
            remedy: "write sqlite://PATH, where PATH is relative or starts with a slash, or \
                     postgres://…",
        });
    }
    Ok(path.into())
}

/// Makes the file if need be, brings it up to date and returns the pools for reading and writing.
pub(super) async fn open(
    path: &Path,
    database: &Arc<str>,
    busy_timeout: Duration,
) -> Result<(AnyPool, AnyPool), StoreError> {
    let path = make_private(path, database)?;
    // SQLite does not wait where two programs turn a new database to WAL at once.
    let deadline = Instant::now() + busy_timeout;
    while let Err(error) = migrate(&path, database, busy_timeout).await {
        if !error.is_temporary() || Instant::now() >= deadline {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    pools(&path, database, busy_timeout).await
}

/// The pools for reading and writing of a file that is there, whatever is in it.
pub(super) async fn open_existing(
    path: &Path,
    database: &Arc<str>,
    busy_timeout: Duration,
) -> Result<(AnyPool, AnyPool), StoreError> {
    let real = files::open(path).and_then(|_| fs::canonicalize(path));
    let path = real.map_err(|error| StoreError::Unusable {
        database: Arc::clone(database),
        problem: error.to_string(),
        remedy: "mailchime makes it at its first start",
    })?;
    pools(&path, database, busy_timeout).await
}

async fn pools(
    path: &Path,
    database: &Arc<str>,
    busy_timeout: Duration,
) -> Result<(AnyPool, AnyPool), StoreError> {
    let named = |error| StoreError::from_sqlx(database, error);
    sqlx::any::install_default_drivers();
    let pragmas = format!(
        "pragma busy_timeout = {}; pragma synchronous = full; pragma foreign_keys = on; \
         pragma secure_delete = on",
        busy_timeout.as_millis()
    );
    let options = AnyPoolOptions::new()
        .acquire_timeout(busy_timeout.max(Duration::from_secs(1)))
        // A connection to a file does not go stale.
        .test_before_acquire(false)
        .max_lifetime(None)
        // SQLite ends a transaction by itself when the disk is full. Whoever then tries to roll back
        // fails, and the connection counts itself as in a transaction for good.
        .before_acquire(|connection, _| {
            let usable = !connection.is_in_transaction();
            Box::pin(async move { Ok(usable) })
        })
        .after_connect(move |connection, _| {
            let pragmas = pragmas.clone();
            Box::pin(async move { connection.execute(AssertSqlSafe(pragmas)).await.map(drop) })
        });
    let url = url_of(path);
    let writes = options.clone().max_connections(1).connect(&url).await.map_err(named)?;
    let reads = options.max_connections(READERS).connect(&url).await.map_err(named)?;
    Ok((reads, writes))
}

/// Creates the file for its owner alone before SQLite can create it for others, and closes an
/// existing one to them. SQLite gives `-wal` and `-shm` the mode of the main file.
fn make_private(path: &Path, database: &Arc<str>) -> Result<PathBuf, StoreError> {
    let unusable = |error: io::Error| StoreError::Unusable {
        database: Arc::clone(database),
        problem: error.to_string(),
        remedy: "it must be a file, in a folder that exists and belongs to the user that runs \
                 mailchime",
    };
    match OpenOptions::new().write(true).create_new(true).mode(MODE).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(unusable(error)),
        _ => {}
    }
    let path = fs::canonicalize(path).map_err(unusable)?;
    for suffix in ["", "-wal", "-shm"] {
        let mut file = path.clone().into_os_string();
        file.push(suffix);
        let file = PathBuf::from(file);
        let mode = match fs::metadata(&file) {
            Ok(metadata) if !metadata.is_file() => {
                return Err(unusable(io::Error::other("is not a file")));
            }
            Ok(metadata) => metadata.permissions().mode() & 0o777,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(unusable(error)),
        };
        if mode & 0o077 != 0 {
            // A URL may name the wrong file, and that is not ours to change.
            if suffix.is_empty() && !is_database(&file).map_err(unusable)? {
                return Err(unusable(io::Error::other("is not an SQLite database")));
            }
            fs::set_permissions(&file, Permissions::from_mode(MODE)).map_err(unusable)?;
            tracing::warn!(
                file = %file.display(),
                "the database was open to others (mode {mode:03o}); it is now {MODE:03o}"
            );
        }
    }
    Ok(path)
}

/// Whether a file is one of SQLite's (<https://www.sqlite.org/fileformat.html> section 1.3) or empty.
fn is_database(path: &Path) -> io::Result<bool> {
    let mut head = Vec::new();
    File::open(path)?.take(16).read_to_end(&mut head)?;
    Ok(head.is_empty() || head == b"SQLite format 3\0")
}

/// Applies what is missing of the schema, all or nothing. The write lock is held meanwhile, so that
/// of two programs that start at once one waits for the other.
async fn migrate(
    path: &Path,
    database: &Arc<str>,
    busy_timeout: Duration,
) -> Result<(), StoreError> {
    let named = |error| StoreError::from_sqlx(database, error);
    let options = SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(busy_timeout)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("secure_delete", "on");
    let is_new = fs::metadata(path).is_ok_and(|metadata| metadata.len() == 0);
    let mut connection = options.connect().await.map_err(|error| match sqlite_code(&error) {
        // At run time this is a lack of file descriptors; at the start it is the file.
        Some(CANNOT_OPEN) => StoreError::Unusable {
            database: Arc::clone(database),
            problem: error.to_string(),
            remedy: "it must be a file that the user who runs mailchime can read and write",
        },
        _ => named(error),
    })?;
    let mut transaction = connection.begin_with(BEGIN_WRITE).await.map_err(named)?;
    schema::MIGRATOR
        .run(&mut *transaction)
        .await
        .map_err(|error| schema::error(database, error))?;
    transaction.commit().await.map_err(named)?;
    if let Err(error) = wipe(&mut connection, path, is_new).await {
        tracing::warn!(%error, "{WIPED_LATER}");
    }
    connection.close().await.map_err(named)
}

/// The `user_version` of a file all of whose free space was overwritten: all that ever wrote to it did
/// so with `secure_delete`.
const WIPED: i64 = 1;

/// Writes a file anew in which earlier versions may have left what they removed, once. A large one is
/// left alone, as nobody can write meanwhile.
async fn wipe(connection: &mut SqliteConnection, path: &Path, is_new: bool) -> sqlx::Result<()> {
    let version: i64 =
        sqlx::query_scalar("pragma user_version").fetch_one(&mut *connection).await?;
    if version >= WIPED {
        return Ok(());
    }
    if !is_new {
        let size = fs::metadata(path).map(|metadata| metadata.len()).unwrap_or_default();
        if size > MOST_WIPED {
            let file = path.display();
            tracing::warn!(
                %file,
                "an earlier version may have left in this file what it removed; stop mailchime and \
                 run: sqlite3 {file} \"vacuum; pragma user_version = {WIPED}\""
            );
            return Ok(());
        }
        connection.execute("vacuum").await?;
    }
    connection.execute(AssertSqlSafe(format!("pragma user_version = {WIPED}"))).await.map(drop)
}

const WIPED_LATER: &str = "what earlier versions removed may be left in the database; the next start \
                           tries again";

/// Copies the log (`-wal`) into the database and cuts it down to nothing. Returns whether that could be
/// done at once: it does not wait for others, who would wait for it meanwhile.
pub(super) async fn empty_log(path: &Path) -> sqlx::Result<bool> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(LOG_TIMEOUT)
        .synchronous(SqliteSynchronous::Full);
    let mut connection = options.connect().await?;
    let busy: i64 =
        sqlx::query_scalar("pragma wal_checkpoint(truncate)").fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(busy == 0)
}

/// The URL under which sqlx finds `path`, which must be absolute: whatever a URL could take for
/// something else is escaped.
fn url_of(path: &Path) -> String {
    let mut url = String::from("sqlite://");
    for &byte in path.as_os_str().as_encoded_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    url
}

#[cfg(test)]
mod tests {
    use sqlx::Row;

    use super::*;

    #[tokio::test]
    async fn every_connection_is_durable_and_keeps_references() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.db");
        let database: Arc<str> = "test.db".into();
        let opening = open(&path, &database, Duration::from_millis(4321));
        let (reads, writes) =
            tokio::time::timeout(Duration::from_secs(30), opening).await.unwrap().unwrap();
        for pool in [reads, writes] {
            for (pragma, expected) in [
                ("pragma synchronous", "2"),
                ("pragma foreign_keys", "1"),
                ("pragma busy_timeout", "4321"),
                ("pragma journal_mode", "wal"),
                ("pragma secure_delete", "1"),
            ] {
                let row = sqlx::query(pragma).fetch_one(&pool).await.unwrap();
                let value = row
                    .try_get::<i64, _>(0)
                    .map(|number| number.to_string())
                    .or_else(|_| row.try_get::<String, _>(0))
                    .unwrap();
                assert_eq!(value, expected, "{pragma}");
            }
        }
    }
}
