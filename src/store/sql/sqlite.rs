//! What is peculiar to SQLite: the file, its mode, its settings and its two pools.
//!
//! SQLite has one writer at a time. All writes of this process go through a pool of one connection,
//! which queues them fairly, and begin with the write lock held, so that a transaction never finds
//! in its middle that another process was faster.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use sqlx::any::AnyPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AnyPool, AssertSqlSafe, ConnectOptions, Connection, Executor, Row, SqliteConnection};
use tokio::time::Instant;

use super::file::DatabaseFile;
use super::kept::KeptConnections;
use super::schema;
use super::work::{BEGIN_WRITE, Connections, TransactionKind, Work};
use crate::files;
use crate::secret_file::folder;
use crate::store::StoreError;
use crate::store::error::{CANNOT_OPEN, sqlite_code};

/// Reads run beside the writer and each other (WAL); few are ever in flight.
const READERS: u32 = 4;

/// What each connection keeps of the file, in KiB. The kernel caches the file as well.
const CACHE: u32 = 256;

/// A larger file is not written anew at the start, in bytes: that takes some seconds.
const MOST_WIPED: u64 = 256 * 1024 * 1024;

/// How long emptying the log waits for a reader or writer.
const LOG_TIMEOUT: Duration = Duration::from_millis(100);

/// Read and write by the owner only: the rows hold endpoints and sealed credentials.
const MODE: u32 = 0o600;

/// An open file, and the connections for reading and writing it.
pub(in crate::store) struct Opened {
    pub(in crate::store) file: Arc<DatabaseFile>,
    pub(in crate::store) connections: Connections,
}

/// Makes the file if need be, locks it and brings it up to date.
pub(in crate::store) async fn open(
    path: &Path,
    database: &Arc<str>,
    busy_timeout: Duration,
) -> Result<Opened, StoreError> {
    let path = make(path, database)?;
    expect_database(&path, database)?;
    let file = DatabaseFile::locked(&path, database)?;
    make_private(&path, database)?;
    // SQLite does not wait where two programs turn a new database to WAL at once.
    let deadline = Instant::now() + busy_timeout;
    while let Err(error) = migrate(&path, database, busy_timeout).await {
        if !error.is_temporary() || Instant::now() >= deadline {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let opened = pools(file, database, busy_timeout).await?;
    let noted = opened.file.is_open();
    noted.map_err(|error| StoreError::from_sqlx(database, sqlx::Error::Io(error)))?;
    Ok(opened)
}

/// Opens a file that is there, whatever is in it, beside the process that serves.
pub(in crate::store) async fn open_existing(
    path: &Path,
    database: &Arc<str>,
    busy_timeout: Duration,
) -> Result<Opened, StoreError> {
    let real = files::open(path).and_then(|_| fs::canonicalize(path));
    let path = real.map_err(|error| StoreError::Unusable {
        database: Arc::clone(database),
        problem: error.to_string(),
        remedy: "mailchime makes it at its first start",
    })?;
    expect_database(&path, database)?;
    let file = DatabaseFile::shared(&path, database)?;
    let opened = pools(file, database, busy_timeout).await?;
    // One without a log is none of mailchime's, which is found out next.
    let _ = opened.file.is_open();
    Ok(opened)
}

async fn pools(
    file: DatabaseFile,
    database: &Arc<str>,
    busy_timeout: Duration,
) -> Result<Opened, StoreError> {
    let named = |error| StoreError::from_sqlx(database, error);
    sqlx::any::install_default_drivers();
    let pragmas = format!(
        "pragma busy_timeout = {}; pragma synchronous = full; pragma foreign_keys = on; \
         pragma secure_delete = on; pragma cache_size = -{CACHE}",
        busy_timeout.as_millis()
    );
    let file = Arc::new(file);
    let beside = Arc::clone(&file);
    let patience = busy_timeout.max(Duration::from_secs(1));
    let options = AnyPoolOptions::new()
        .acquire_timeout(patience)
        // A connection to a file does not go stale.
        .test_before_acquire(false)
        .max_lifetime(None)
        // With the last one SQLite removes its log, and with the next one makes another.
        .idle_timeout(None)
        .after_connect(move |connection, _| {
            let pragmas = pragmas.clone();
            // A connection finds its file by the name.
            let same = beside.check().map_err(|error| sqlx::Error::Io(io::Error::other(error)));
            Box::pin(async move {
                same?;
                connection.execute(AssertSqlSafe(pragmas)).await.map(drop)
            })
        });
    let url = url_of(file.path());
    let writes = options.clone().max_connections(1).connect(&url).await.map_err(named)?;
    let reads = options.max_connections(READERS).connect(&url).await.map_err(named)?;
    // A connection opens the log, by its name too, with its first statement. From then on all of them
    // go on with what they have opened, whatever is at the path.
    let kept = async |pool: AnyPool, most| {
        let mut all = Vec::new();
        for _ in 0..most {
            let mut connection = pool.acquire().await?;
            connection.execute("select count(*) from sqlite_master").await?;
            all.push(connection);
        }
        Ok(KeptConnections::of_file(pool, all, patience))
    };
    let writes = kept(writes, 1).await.map_err(named)?;
    let reads = kept(reads, READERS).await.map_err(named)?;
    let connections = Connections { reads, writes, kind: TransactionKind::File };
    Ok(Opened { file, connections })
}

fn unusable(database: &Arc<str>, error: &io::Error) -> StoreError {
    StoreError::Unusable {
        database: Arc::clone(database),
        problem: error.to_string(),
        remedy: "it must be a file, in a folder that exists and belongs to the user that runs \
                 mailchime",
    }
}

/// Creates the file for its owner alone, before SQLite can create it for others, unless it is there.
/// Returns its path without links.
fn make(path: &Path, database: &Arc<str>) -> Result<PathBuf, StoreError> {
    match OpenOptions::new().write(true).create_new(true).mode(MODE).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Err(_) => fs::canonicalize(path),
        // SQLite gives -wal and -shm to the owner of the file.
        Ok(file) => files::give_to_owner_of_folder(&file, folder(path))
            .and_then(|()| fs::canonicalize(path)),
    }
    .map_err(|error| unusable(database, &error))
}

/// Closes a file to others. SQLite gives `-wal` and `-shm` the mode of the main file.
fn make_private(path: &Path, database: &Arc<str>) -> Result<(), StoreError> {
    let unusable = |error: io::Error| unusable(database, &error);
    for suffix in ["", "-wal", "-shm"] {
        let mut file = path.as_os_str().to_owned();
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
            fs::set_permissions(&file, Permissions::from_mode(MODE)).map_err(unusable)?;
            tracing::warn!(
                target: "mailchime::store::file_mode_corrected",
                file = %file.display(),
                "other users had access to the database (mode {mode:03o}); mailchime set the mode \
                 to {MODE:03o}"
            );
        }
    }
    Ok(())
}

/// A URL may name the wrong file, and that is not ours to change. What else is wrong with the file is found out later.
fn expect_database(path: &Path, database: &Arc<str>) -> Result<(), StoreError> {
    match is_database(path) {
        Ok(false) => Err(StoreError::Unusable {
            database: Arc::clone(database),
            problem: "is no SQLite database".to_owned(),
            remedy: "correct the path in the URL; or, if it was mailchime's database and is damaged, restore a \
                     backup, or move it away and let devices register again",
        }),
        Ok(true) | Err(_) => Ok(()),
    }
}

/// Whether a file is one of SQLite's (<https://www.sqlite.org/fileformat.html> section 1.3) or empty.
fn is_database(path: &Path) -> io::Result<bool> {
    let mut head = Vec::new();
    // A FIFO would be waited for.
    let (file, _) = files::open(path)?;
    file.take(16).read_to_end(&mut head)?;
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
    sqlx::any::install_default_drivers();
    let pragmas = format!(
        "pragma busy_timeout = {}; pragma synchronous = full; pragma secure_delete = on",
        busy_timeout.as_millis()
    );
    let pool = AnyPoolOptions::new().max_connections(1).after_connect(move |connection, _| {
        let pragmas = pragmas.clone();
        Box::pin(async move { connection.execute(AssertSqlSafe(pragmas)).await.map(drop) })
    });
    let pool = pool.connect(&url_of(path)).await.map_err(named)?;
    let all = vec![pool.acquire().await.map_err(named)?];
    let kept = KeptConnections::of_file(pool, all, busy_timeout);
    let mut work = Work::begin_on(&kept, BEGIN_WRITE).await.map_err(named)?;
    let updated = schema::update(&mut work).await;
    updated.map_err(|error| schema::error(database, error))?;
    work.commit().await.map_err(named)?;
    kept.close().await;
    if let Err(error) = wipe(&mut connection, path, is_new).await {
        tracing::warn!(
            target: "mailchime::store::earlier_traces_remain",
            %error,
            "what earlier versions removed may still be in the database; mailchime tries to \
             overwrite it at the next start"
        );
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
                target: "mailchime::store::earlier_file_not_vacuumed",
                %file,
                "what an earlier version removed may still be in this file; stop mailchime and \
                 run: sqlite3 {file} \"vacuum; pragma user_version = {WIPED}\""
            );
            return Ok(());
        }
        connection.execute("vacuum").await?;
    }
    connection.execute(AssertSqlSafe(format!("pragma user_version = {WIPED}"))).await.map(drop)
}

/// Copies the log (`-wal`) into the database and cuts it down to nothing. Returns whether that could be
/// done at once: it does not wait for others, who would wait for it meanwhile.
pub(in crate::store) async fn empty_log(path: &Path) -> sqlx::Result<bool> {
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

/// The same by a connection that is open, for a database that has lost its place: what its log holds
/// goes into the file that it belongs to, wherever that is now. Waits for others.
pub(in crate::store) async fn empty_lost_log(writer: &mut Work) -> sqlx::Result<bool> {
    let row = super::query("pragma wal_checkpoint(truncate)").fetch_one_in(writer).await?;
    Ok(row.try_get::<i64, _>(0)? == 0)
}

/// A number that is another one when others than this connection, the only one that writes, have written to the file
/// (`PRAGMA data_version`).
pub(in crate::store) async fn data_version(writer: &mut Work) -> sqlx::Result<i64> {
    super::query("pragma data_version").fetch_one_in(writer).await?.try_get(0)
}

/// The URL under which sqlx finds `path`, which must be absolute: whatever a URL could take for
/// something else is escaped.
fn url_of(path: &Path) -> String {
    const ESCAPED: AsciiSet = NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_');
    let path = percent_encode(path.as_os_str().as_encoded_bytes(), &ESCAPED);
    format!("sqlite://{path}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sql::query;

    #[tokio::test]
    async fn every_connection_is_durable_and_keeps_references() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.db");
        let database: Arc<str> = "test.db".into();
        let opening = open(&path, &database, Duration::from_millis(4321));
        let opened = tokio::time::timeout(Duration::from_secs(30), opening).await.unwrap().unwrap();
        let connections = opened.connections;
        let writer = connections.writer().await.unwrap().unwrap();
        for mut work in [connections.read_once().await.unwrap(), writer] {
            for (pragma, expected) in [
                ("pragma synchronous", "2"),
                ("pragma foreign_keys", "1"),
                ("pragma busy_timeout", "4321"),
                ("pragma journal_mode", "wal"),
                ("pragma secure_delete", "1"),
                ("pragma cache_size", "-256"),
            ] {
                let row = query(pragma).fetch_one_in(&mut work).await.unwrap();
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
