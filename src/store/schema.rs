//! The schema: one folder of migrations for both databases.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{Row, SqlSafeStr};

use super::StoreError;
use super::work::{Statement, Work};

pub(super) static MIGRATOR: Migrator = sqlx::migrate!("src/store/migrations");

/// The newest version that this program knows.
pub(super) fn known() -> i64 {
    MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// What sqlx's own migrator makes, which takes a lock for the session and so cannot pass a pooler.
const APPLIED: &str = "create table if not exists _sqlx_migrations (version bigint primary key, \
                       description text not null, \
                       installed_on timestamptz not null default now(), \
                       success boolean not null, checksum bytea not null, \
                       execution_time bigint not null)";

/// Held by a transaction that changes the schema. The number is ours alone.
const LOCK: &str = "select pg_advisory_xact_lock(4918724086124113)";

/// Applies what is missing to a server's database, in this transaction.
pub(super) async fn update(work: &mut Work) -> Result<(), MigrateError> {
    work.run(LOCK.into_sql_str()).await?;
    work.run(APPLIED.into_sql_str()).await?;
    let mut applied = HashMap::new();
    for row in
        sqlx::query("select version, success, checksum from _sqlx_migrations order by version")
            .fetch_all_in(work)
            .await?
    {
        let version: i64 = row.try_get("version")?;
        if !row.try_get::<bool, _>("success")? {
            return Err(MigrateError::Dirty(version));
        }
        if !MIGRATOR.version_exists(version) {
            return Err(MigrateError::VersionMissing(version));
        }
        applied.insert(version, row.try_get::<Vec<u8>, _>("checksum")?);
    }
    for migration in MIGRATOR.iter() {
        match applied.get(&migration.version) {
            Some(checksum) if *checksum == *migration.checksum => continue,
            Some(_) => return Err(MigrateError::VersionMismatch(migration.version)),
            None => {}
        }
        work.run(migration.sql.clone())
            .await
            .map_err(|error| MigrateError::ExecuteMigration(error, migration.version))?;
        sqlx::query(
            "insert into _sqlx_migrations (version, description, success, checksum, \
             execution_time) values ($1, $2, true, $3, -1)",
        )
        .bind(migration.version)
        .bind(&*migration.description)
        .bind(&*migration.checksum)
        .execute_in(work)
        .await?;
    }
    Ok(())
}

/// Why the schema could not be brought up to date.
pub(super) fn error(database: &Arc<str>, error: MigrateError) -> StoreError {
    let known = known();
    match error {
        MigrateError::VersionMissing(found) if found > known => {
            StoreError::Newer { database: Arc::clone(database), found, known }
        }
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            StoreError::from_sqlx(database, error)
        }
        error => StoreError::Unusable {
            database: Arc::clone(database),
            problem: error.to_string(),
            remedy: "it is not a database of this program; restore a backup or move it away",
        },
    }
}
