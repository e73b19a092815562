//! The schema: one folder of migrations for both databases.

use std::sync::Arc;

use sqlx::migrate::{MigrateError, Migrator};

use super::StoreError;

pub(super) static MIGRATOR: Migrator = sqlx::migrate!("src/store/migrations");

/// The newest version that this program knows.
pub(super) fn known() -> i64 {
    MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or_default()
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
