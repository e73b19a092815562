//! What can go wrong with the database, as a caller can tell it apart.

use std::sync::Arc;

/// An error of the store. Each names the database (never its password) and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL or the file cannot be used as it is; an operator has to change something.
    #[error("{database}: {problem}; {remedy}")]
    Unusable { database: Arc<str>, problem: String, remedy: &'static str },
    /// A newer mailchime wrote this database. Nothing was changed.
    #[error(
        "{database} was written by a newer mailchime (schema {found}, this program knows up to \
         {known}); run the newer program, or restore the backup from before its first start"
    )]
    Newer { database: Arc<str>, found: i64, known: i64 },
    /// Locked, full, out of reach: nothing was changed and the same call may succeed later.
    #[error("{database} cannot be used at the moment, try again: {source}")]
    Unavailable {
        database: Arc<str>,
        #[source]
        source: sqlx::Error,
    },
    /// Anything else: trying again will not help. Nothing was changed.
    #[error("{database}: {source}; {remedy}")]
    Other {
        database: Arc<str>,
        remedy: &'static str,
        #[source]
        source: sqlx::Error,
    },
}

impl StoreError {
    /// Whether the same call may succeed later.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    pub(super) fn from_sqlx(database: &Arc<str>, source: sqlx::Error) -> Self {
        let database = Arc::clone(database);
        if is_temporary(&source) {
            return Self::Unavailable { database, source };
        }
        let remedy = match sqlite_code(&source) {
            Some(READONLY | PERM) => {
                "the user that runs mailchime must be able to write the file and its folder"
            }
            Some(CORRUPT | NOT_A_DATABASE) => {
                "the file is damaged or no database: restore a backup, or move it away and let \
                 devices register again"
            }
            _ => "see the log for what led to it",
        };
        Self::Other { database, remedy, source }
    }
}

// SQLite's primary result codes, https://www.sqlite.org/rescode.html
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

fn is_temporary(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::PoolTimedOut | sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed => true,
        _ => matches!(
            sqlite_code(error),
            Some(BUSY | LOCKED | NO_MEMORY | IO_ERROR | FULL | CANNOT_OPEN | PROTOCOL)
        ),
    }
}

/// The primary code; the low byte of the extended one that sqlx gives.
pub(super) fn sqlite_code(error: &sqlx::Error) -> Option<i64> {
    let code = error.as_database_error()?.code()?.parse::<i64>().ok()?;
    Some(code & 0xff)
}
