//! What can go wrong with the database, as a caller can tell it apart.

use std::fmt;
use std::io;
use std::sync::Arc;

use sqlx::mysql::MySqlDatabaseError;
use sqlx::postgres::PgDatabaseError;
use sqlx::sqlite::SqliteError;

use super::vault::VaultError;

/// An error of the store. Each names the database (never its password) and what to do.
#[derive(thiserror::Error)]
pub enum StoreError {
    /// The URL or the file cannot be used as it is; an operator has to change something.
    #[error("{database}: {problem}; {remedy}")]
    Unusable {
        /// The database, without its password.
        database: Arc<str>,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Tables of mailchime belong to another user of PostgreSQL, and only their owner may change them.
    #[error(
        "{database}: {source}; the user of the database must own mailchime's tables: run this in that database, as its \
         administrator: {remedy}"
    )]
    NotOwner {
        /// The database, without its password.
        database: Arc<str>,
        /// A statement for each of these tables.
        remedy: String,
        /// What the server says.
        #[source]
        source: sqlx::Error,
    },
    /// It has none of mailchime's tables: it is empty, or another program's.
    #[error(
        "{database}: is no database of mailchime; name the one that mailchime uses, or start mailchime to \
         have it made"
    )]
    NoTables {
        /// The database, without its password.
        database: Arc<str>,
    },
    /// An older mailchime wrote this database.
    #[error(
        "{database}: has an older schema ({found}, this program's is {known}); mailchime brings it up to \
         date when it is started, after a backup say"
    )]
    Older {
        /// The database, without its password.
        database: Arc<str>,
        /// What was found.
        found: i64,
        /// The newest version that this program knows.
        known: i64,
    },
    /// A newer mailchime wrote this database. Nothing was changed.
    #[error(
        "{database} was written by a newer mailchime (schema {found}, this program knows up to \
         {known}); run the newer program, or restore the backup from before its first start"
    )]
    Newer {
        /// The database, without its password.
        database: Arc<str>,
        /// What was found.
        found: i64,
        /// The newest version that this program knows.
        known: i64,
    },
    /// Another process serves from this SQLite file.
    #[error(
        "{database} is in use by another mailchime ({by}): stop that one, or give this one a [store] \
         url of its own; several share a database of PostgreSQL or MariaDB, not a file"
    )]
    InUse {
        /// The database, without its password.
        database: Arc<str>,
        /// Which process, as far as is known.
        by: String,
    },
    /// The file at its path is not the one that was opened. What was written last may be in neither.
    #[error(
        "{database} {what} while mailchime had it open: nothing is written to it any more; start \
         mailchime anew, which then uses the file that is there"
    )]
    Replaced {
        /// The database, without its password.
        database: String,
        /// What happened to it.
        what: &'static str,
    },
    /// The key file that seals the secrets of subscriptions cannot be used. Nothing was changed.
    #[error(transparent)]
    Sealing(#[from] VaultError),
    /// Locked, full, out of reach, late: the same call may succeed later.
    #[error("{database} cannot be used at the moment, try again: {source}")]
    Unavailable {
        /// The database, without its password.
        database: Arc<str>,
        /// What the library or the system says.
        #[source]
        source: sqlx::Error,
    },
    /// Anything else: trying again will not help. Nothing was changed.
    #[error("{database}: {source}; {remedy}")]
    Other {
        /// The database, without its password.
        database: Arc<str>,
        /// What to do.
        remedy: &'static str,
        /// What the library or the system says.
        #[source]
        source: sqlx::Error,
    },
}

impl StoreError {
    /// Whether the same call may succeed later.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::InUse { .. })
    }

    /// Of an error that several calls got.
    pub(super) fn from_shared(database: &Arc<str>, source: Arc<sqlx::Error>) -> Self {
        match Arc::try_unwrap(source) {
            Ok(source) => Self::from_sqlx(database, source),
            Err(shared) if is_temporary(&shared) => Self::Unavailable {
                database: Arc::clone(database),
                source: sqlx::Error::Io(io::Error::other(shared)),
            },
            Err(shared) => Self::from_sqlx(database, sqlx::Error::Io(io::Error::other(shared))),
        }
    }

    pub(super) fn from_sqlx(database: &Arc<str>, source: sqlx::Error) -> Self {
        let database = Arc::clone(database);
        // What sqlx says of a value that it cannot read holds the value.
        let source = match source {
            sqlx::Error::ColumnDecode { index, .. } => {
                let source = "a value that is not what it should be".into();
                sqlx::Error::ColumnDecode { index, source }
            }
            source => source,
        };
        if is_temporary(&source) {
            return Self::Unavailable { database, source };
        }
        let remedy = match (sqlite_code(&source), postgres_code(&source)) {
            (Some(READONLY | PERM), _) => {
                "the user that runs mailchime must be able to write the file and its folder"
            }
            (Some(CORRUPT | NOT_A_DATABASE), _) => {
                "the file is damaged or no database: restore a backup, or move it away and let \
                 devices register again"
            }
            (_, Some(INSUFFICIENT_PRIVILEGE | NO_SCHEMA)) => {
                "the user of the database must be able to create tables in its schema: let it own \
                 the database (alter database NAME owner to USER)"
            }
            _ if mariadb_number(&source) == Some(MARIADB_NO_PRIVILEGE) => {
                "the user of the database must be able to create, alter and drop tables in it: grant it \
                 all privileges on the database (grant all privileges on NAME.* to USER)"
            }
            _ if mariadb_number(&source) == Some(MARIADB_TOO_LONG) => {
                "MariaDB takes account names of 512 characters and names of apps of 255 at most"
            }
            _ => "see the log for what led to it",
        };
        Self::Other { database, remedy, source }
    }
}

/// What keeps a connection to a server from coming about and an operator must change.
pub(super) fn unusable_server(database: &Arc<str>, error: sqlx::Error) -> StoreError {
    StoreError::Unusable {
        database: Arc::clone(database),
        problem: error.to_string(),
        remedy: pooler_remedy(&error).unwrap_or(
            "user, password (for PostgreSQL PGPASSWORD or ~/.pgpass, if it is not in the URL), database \
             and sslmode must be what the server expects",
        ),
    }
}

/// What to change at a pooler that does not let us in, or not as it is set.
fn pooler_remedy(error: &sqlx::Error) -> Option<&'static str> {
    let message = error.as_database_error()?.message();
    // PgBouncer gives both the code of a violation of the protocol.
    if message.contains("unsupported startup parameter") {
        return Some(
            "PgBouncer needs ignore_startup_parameters = extra_float_digits in its configuration",
        );
    }
    message.contains("statement pooling").then_some(
        "PgBouncer needs pool_mode = transaction or session in its configuration, for this database \
         at least",
    )
}

impl fmt::Debug for StoreError {
    /// The message: what a database adds in other fields may be a row.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Unusable { .. } => "Unusable",
            Self::NotOwner { .. } => "NotOwner",
            Self::NoTables { .. } => "NoTables",
            Self::Older { .. } => "Older",
            Self::Newer { .. } => "Newer",
            Self::InUse { .. } => "InUse",
            Self::Replaced { .. } => "Replaced",
            Self::Sealing(_) => "Sealing",
            Self::Unavailable { .. } => "Unavailable",
            Self::Other { .. } => "Other",
        };
        write!(f, "{kind}({:?})", self.to_string())
    }
}

// SQLite's primary result codes, https://www.sqlite.org/rescode.html
/// Whatever has no code of its own, such as a table that is not there.
const ERROR: i64 = 1;
const PERM: i64 = 3;
const BUSY: i64 = 5;
const LOCKED: i64 = 6;
const NO_MEMORY: i64 = 7;
const READONLY: i64 = 8;
const IO_ERROR: i64 = 10;
const CORRUPT: i64 = 11;
const FULL: i64 = 13;
pub(super) const CANNOT_OPEN: i64 = 14;
const PROTOCOL: i64 = 15;
const NOT_A_DATABASE: i64 = 26;

// PostgreSQL's, https://www.postgresql.org/docs/current/errcodes-appendix.html
const UNDEFINED_TABLE: &str = "42P01";
const UNDEFINED_FUNCTION: &str = "42883";
const NOT_SUPPORTED: &str = "0A000";
const INSUFFICIENT_PRIVILEGE: &str = "42501";
/// No schema in which a table could be made: there is none, or the user may not look into it.
const NO_SCHEMA: &str = "3F000";
/// A primary that became a standby: its successor will be found at the same address.
const READ_ONLY: &str = "25006";
const LOCK_NOT_AVAILABLE: &str = "55P03";
/// The transaction stood still, or went on, for too long: idle_in_transaction_session_timeout and
/// transaction_timeout.
const IDLE_IN_TRANSACTION: &str = "25P03";
const TRANSACTION_TIMEOUT: &str = "25P04";
const NO_SUCH_DATABASE: &str = "3D000";
/// The representation of a text is that of no value of the type.
const NO_VALUE: &str = "22P02";
/// Connection, resources (full, too many connections), operator (shutdown, statement_timeout), system
/// (I/O), conflict of transactions.
const TEMPORARY_CLASSES: [&str; 5] = ["08", "53", "57", "58", "40"];
const CONFLICT: &str = "40";
const AUTHORIZATION: &str = "28";

// MariaDB's, https://mariadb.com/kb/en/mariadb-error-code-reference/. SQLSTATE does not tell them apart.
/// A deadlock, a record that has changed.
const MARIADB_CONFLICTS: [u16; 2] = [1213, 1020];
/// Full, too many connections or transactions, shutdown, killed, too long, a lock that was not given back in
/// time, no answer of a node of a cluster.
const MARIADB_TEMPORARY: [u16; 16] = [
    1021, 1040, 1041, 1047, 1053, 1105, 1114, 1152, 1203, 1205, 1226, 1317, 1637, 1927, 1969, 3024,
];
/// A primary that became a replica.
const MARIADB_READ_ONLY: [u16; 3] = [1290, 1792, 1836];
/// The user, its password, its right to the database, the database.
const MARIADB_REFUSALS: [u16; 4] = [1044, 1045, 1049, 1698];
const MARIADB_NO_PRIVILEGE: u16 = 1142;
const MARIADB_NO_TABLE: u16 = 1146;
const MARIADB_TOO_LONG: u16 = 1406;

pub(super) fn is_temporary(error: &sqlx::Error) -> bool {
    if let Some(number) = mariadb_number(error) {
        let temporary = [&MARIADB_CONFLICTS[..], &MARIADB_TEMPORARY, &MARIADB_READ_ONLY];
        return temporary.iter().any(|numbers| numbers.contains(&number));
    }
    if let Some(code) = postgres_code(error) {
        return TEMPORARY_CLASSES.iter().any(|class| code.starts_with(class))
            || [READ_ONLY, LOCK_NOT_AVAILABLE, IDLE_IN_TRANSACTION, TRANSACTION_TIMEOUT]
                .contains(&code);
    }
    match error {
        sqlx::Error::PoolTimedOut | sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed => true,
        // The server's process was killed between two messages.
        sqlx::Error::Protocol(_) => true,
        _ => matches!(
            sqlite_code(error),
            Some(BUSY | LOCKED | NO_MEMORY | IO_ERROR | FULL | CANNOT_OPEN | PROTOCOL)
        ),
    }
}

/// Whether another transaction was in the way, and the same one may succeed at once.
pub(super) fn is_conflict(error: &sqlx::Error) -> bool {
    postgres_code(error).is_some_and(|code| code.starts_with(CONFLICT))
        || mariadb_number(error).is_some_and(|number| MARIADB_CONFLICTS.contains(&number))
}

/// Whether the server became a standby.
pub(super) fn is_read_only(error: &sqlx::Error) -> bool {
    postgres_code(error) == Some(READ_ONLY)
        || mariadb_number(error).is_some_and(|number| MARIADB_READ_ONLY.contains(&number))
}

/// Whether the server, or the pooler before it, does not let us in, as we are.
pub(super) fn is_refusal(error: &sqlx::Error) -> bool {
    // What rustls finds wrong with a certificate comes as invalid data.
    let invalid = |error: &io::Error| error.kind() == io::ErrorKind::InvalidData;
    matches!(error, sqlx::Error::Tls(_) | sqlx::Error::Configuration(_))
        || matches!(error, sqlx::Error::Io(error) if invalid(error))
        || pooler_remedy(error).is_some()
        || mariadb_number(error).is_some_and(|number| MARIADB_REFUSALS.contains(&number))
        || postgres_code(error)
            .is_some_and(|code| code.starts_with(AUTHORIZATION) || code == NO_SUCH_DATABASE)
}

/// Whether a text was to become a number and is none (PostgreSQL: `invalid_text_representation`).
pub(super) fn is_no_value(error: &sqlx::Error) -> bool {
    postgres_code(error) == Some(NO_VALUE)
}

/// Whether the server does not know a statement or a function, as those do that speak PostgreSQL's protocol alone.
pub(super) fn is_unsupported(error: &sqlx::Error) -> bool {
    postgres_code(error).is_some_and(|code| [UNDEFINED_FUNCTION, NOT_SUPPORTED].contains(&code))
}

/// Whether the user of the database has no right to a statement.
pub(super) fn is_no_right(error: &sqlx::Error) -> bool {
    mariadb_number(error) == Some(MARIADB_NO_PRIVILEGE)
        || postgres_code(error) == Some(INSUFFICIENT_PRIVILEGE)
}

/// Whether a table is not there, so that it is another's database or an empty one.
pub(super) fn is_no_table(error: &sqlx::Error) -> bool {
    sqlite_code(error) == Some(ERROR)
        || postgres_code(error) == Some(UNDEFINED_TABLE)
        || mariadb_number(error) == Some(MARIADB_NO_TABLE)
}

/// The primary code; the low byte of the extended one that sqlx gives.
pub(super) fn sqlite_code(error: &sqlx::Error) -> Option<i64> {
    let error = error.as_database_error()?.try_downcast_ref::<SqliteError>()?;
    let code = sqlx::error::DatabaseError::code(error)?.parse::<i64>().ok()?;
    Some(code & 0xff)
}

fn postgres_code(error: &sqlx::Error) -> Option<&str> {
    error.as_database_error()?.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::code)
}

fn mariadb_number(error: &sqlx::Error) -> Option<u16> {
    error
        .as_database_error()?
        .try_downcast_ref::<MySqlDatabaseError>()
        .map(MySqlDatabaseError::number)
}
