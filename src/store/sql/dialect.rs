//! What a database says in words of its own. All other SQL is written once, for all of them.

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Dialect {
    Sqlite,
    Postgres,
}

/// What sqlx's own migrator makes in each, which takes a lock for the session and so cannot pass a pooler.
const APPLIED_SQLITE: &str = "create table if not exists _sqlx_migrations (\
                              version bigint primary key, description text not null, \
                              installed_on timestamp not null default current_timestamp, \
                              success boolean not null, checksum blob not null, \
                              execution_time bigint not null)";
const APPLIED_POSTGRES: &str = "create table if not exists _sqlx_migrations (\
                                version bigint primary key, description text not null, \
                                installed_on timestamptz not null default now(), \
                                success boolean not null, checksum bytea not null, \
                                execution_time bigint not null)";

/// The number is ours alone.
const LOCK_POSTGRES: &str = "select pg_advisory_xact_lock(4918724086124113)";

impl Dialect {
    /// A primary key whose values the database makes, none of them twice.
    pub(in crate::store) fn id(self) -> &'static str {
        match self {
            Self::Sqlite => "integer not null primary key autoincrement",
            Self::Postgres => "bigint generated always as identity primary key",
        }
    }

    /// Makes the table of migrations that have been applied.
    pub(in crate::store) fn applied(self) -> &'static str {
        match self {
            Self::Sqlite => APPLIED_SQLITE,
            Self::Postgres => APPLIED_POSTGRES,
        }
    }

    /// What a transaction that changes the schema has to do first, so that others wait for it.
    pub(in crate::store) fn lock_schema(self) -> Option<&'static str> {
        match self {
            // It began with the lock of the file.
            Self::Sqlite => None,
            Self::Postgres => Some(LOCK_POSTGRES),
        }
    }
}
