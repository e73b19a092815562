//! The schema: one folder of migrations for SQLite and PostgreSQL, each of which is a part of one transaction,
//! and one for MariaDB, each of which may be run again.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::json;
use sqlx::any::AnyRow;
use sqlx::migrate::{MigrateError, Migration, Migrator};
use sqlx::{AssertSqlSafe, Row, SqlSafeStr};
use uuid::Uuid;

use super::dialect::{Dialect, MOST_ROWS, UpdateFrom};
use super::rows::{self, Readable};
use super::statement;
use super::work::Work;
use crate::metrics::Metrics;
use crate::model::PushEndpoint;
use crate::store::StoreError;

static MIGRATOR: Migrator = sqlx::migrate!("src/store/sql/migrations");

/// Those of MariaDB, with the same numbers.
static OF_MARIADB: Migrator = sqlx::migrate!("src/store/sql/migrations/mariadb");

fn migrator(dialect: Dialect) -> &'static Migrator {
    match dialect {
        Dialect::Sqlite | Dialect::Postgres => &MIGRATOR,
        Dialect::MariaDb => &OF_MARIADB,
    }
}

/// The newest version that this program knows.
pub(in crate::store) fn known() -> i64 {
    MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// A name for a table that no table has, of 122 bits by chance.
pub(in crate::store) fn unused_name() -> String {
    format!("mailchime_rights_{}", Uuid::new_v4().simple())
}

/// The tables that a database of SQLite or PostgreSQL may have, of whatever version.
pub(in crate::store) fn tables() -> BTreeSet<&'static str> {
    let texts = MIGRATOR.iter().flat_map(|migration| {
        let sql = migration.sql.as_str();
        ["create table ", " rename to "].into_iter().flat_map(|before| sql.split(before).skip(1))
    });
    let end = |byte: char| !byte.is_ascii_alphanumeric() && byte != '_';
    let names = texts.filter_map(|rest| rest.split(end).next());
    names.filter(|name| !name.is_empty()).chain(["_sqlx_migrations"]).collect()
}

/// Applies what is missing, in this transaction.
///
/// # Errors
/// [`MigrateError`]: the transaction must be rolled back.
pub(in crate::store) async fn update(work: &mut Work) -> Result<(), MigrateError> {
    let dialect = work.dialect();
    let migrator = migrator(dialect);
    if let Some(lock) = dialect.lock_schema() {
        work.run(lock.into_sql_str()).await?;
    }
    work.run(dialect.applied().into_sql_str()).await?;
    let mut applied = HashMap::new();
    for row in statement::query(
        "select version, case when success then 1 else 0 end as success, checksum \
         from _sqlx_migrations order by version",
    )
    .fetch_all_in(work)
    .await?
    {
        let version: i64 = row.try_get("version")?;
        if row.try_get::<i64, _>("success")? == 0 {
            return Err(MigrateError::Dirty(version));
        }
        if !migrator.version_exists(version) {
            return Err(MigrateError::VersionMissing(version));
        }
        applied.insert(version, row.try_get::<Vec<u8>, _>("checksum")?);
    }
    for migration in migrator.iter() {
        match applied.get(&migration.version) {
            Some(checksum) if *checksum == *migration.checksum => continue,
            Some(_) => return Err(MigrateError::VersionMismatch(migration.version)),
            None => {}
        }
        apply(work, dialect, migration)
            .await
            .map_err(|error| MigrateError::ExecuteMigration(error, migration.version))?;
        statement::query(
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

async fn apply(work: &mut Work, dialect: Dialect, migration: &Migration) -> sqlx::Result<()> {
    let sql = migration.sql.as_str().replace("{id}", dialect.id());
    work.run(AssertSqlSafe(sql).into_sql_str()).await?;
    match migration.version {
        ENDPOINT_HASH => hash_endpoints(work).await,
        _ => Ok(()),
    }
}

/// The migration behind which the endpoints are hashed.
const ENDPOINT_HASH: i64 = 9;

const HASHES: UpdateFrom<'_> = UpdateFrom {
    table: "device",
    columns: &["account", "token", "subtopic", "hash", "options"],
    account: "",
    joins: &[],
    on: "device.account = v.account and device.token = v.token and device.subtopic = v.subtopic",
    set: &[("endpoint_hash", "v.hash"), ("options", "v.options")],
};

/// Works out what the rows of devices become of which SQL cannot. What cannot be read stays without, and is
/// left behind.
async fn hash_endpoints(work: &mut Work) -> sqlx::Result<()> {
    let devices =
        statement::query("select account, token, subtopic, aps_account_id, version from device");
    let Readable { rows: devices, left_out } =
        rows::readable(work, &Metrics::default(), devices, hashed).await?;
    for devices in devices.chunks(MOST_ROWS) {
        let mut query = statement::update_from(work, &HASHES, devices.len());
        for values in devices {
            query = values.iter().fold(query, |query, value| query.bind(value.as_str()));
        }
        query.execute_in(work).await?;
    }
    if left_out > 0 {
        tracing::warn!(
            target: "mailchime::store::rows_left_behind",
            rows = left_out,
            "registrations of an earlier version cannot be read and are removed; their devices register \
             again"
        );
    }
    Ok(())
}

/// The row's key, and the hash of its endpoint and the options of its transport.
fn hashed(row: &AnyRow) -> sqlx::Result<[String; 5]> {
    let token: String = row.try_get("token")?;
    let hash = PushEndpoint::new(&token, &token).hash_hex();
    let account_id: String = row.try_get("aps_account_id")?;
    let version: i64 = row.try_get("version")?;
    let version = u8::try_from(version).map_err(|_| sqlx::Error::ColumnDecode {
        index: "\"version\"".to_owned(),
        source: "a value that cannot be".into(),
    })?;
    let options = json!({ "account_id": account_id, "version": version }).to_string();
    Ok([row.try_get("account")?, token, row.try_get("subtopic")?, hash, options])
}

/// Why the schema could not be brought up to date.
pub(in crate::store) fn error(database: &Arc<str>, error: MigrateError) -> StoreError {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_those_of_all_versions() {
        let tables = tables();
        for name in ["account", "device", "subscription", "former_account", "_sqlx_migrations"] {
            assert!(tables.contains(name), "{name} is not in {tables:?}");
        }
        assert!(!tables.contains("column") && tables.len() < 30, "{tables:?}");
    }

    #[test]
    fn the_newest_migration_has_one_number_for_all() {
        let newest = |migrator: &Migrator| migrator.iter().map(|it| it.version).max();
        assert_eq!(newest(&OF_MARIADB), newest(&MIGRATOR));
    }
}
