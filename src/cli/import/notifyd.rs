//! The tables of a notifyd script for Cyrus, in MySQL or MariaDB: users, their devices, and the mailboxes that
//! each device asked for. What such a script keeps is known from its author's description: a device is a token and
//! an id of an account, which has mailboxes and the time of its last registration (info-cyrus, 24 August 2017).
//! The names of its tables and columns are not: those here are assumed. A statement can take the place of the one
//! that is here, and where this one fails, the columns that there are get listed.

use std::future::poll_fn;
use std::path::PathBuf;
use std::str::FromStr;

use sqlx::mysql::{MySqlConnectOptions, MySqlConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};
use tokio::time::{Duration, timeout};

use super::super::CommandFailure;
use super::{FormerDevices, FoundDevice, ImportOptions};
use crate::cli::not_empty;
use crate::config::{DatabaseKind, DatabaseUrl};
use crate::files;
use crate::model::Timestamp;
use crate::net::https::printable;

/// What tables of these names are asked: one row for each mailbox of a device.
const STATEMENT: &str = "select u.name as user, d.device_token, d.account_id, d.subtopic, d.version, \
     m.name as mailbox, d.registered_at from devices d join users u on u.id = d.user \
     join mailboxes m on m.device = d.id";

/// For the connection, and for all rows.
const CONNECT_TIME: Duration = Duration::from_secs(15);
const READ_TIME: Duration = Duration::from_mins(10);

/// For the list of the columns that there are.
const COLUMNS_TIME: Duration = Duration::from_secs(15);

/// Columns in that list, at most.
const MOST_COLUMNS: usize = 200;

/// All columns of the database, table by table.
const COLUMNS: &str = "select cast(table_name as char) as table_name, cast(column_name as char) as column_name \
     from information_schema.columns where table_schema = database() order by table_name, ordinal_position";

/// Rows of one import, at most: as many as 100,000 users have.
const MOST_ROWS: u32 = 2_000_000;

/// Characters of what the database says that are shown.
const LONGEST_SAID: usize = 500;

/// Longest password file and longest statement, in bytes.
const LONGEST: u64 = 64 * 1024;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct NotifydOptions {
    /// Where the tables are: mysql://user@host/database, without a password
    #[arg(value_parser = not_empty())]
    url: String,

    /// The password of the database user is the first line of this file
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,

    /// A select statement in place of the usual one, for tables with other names. Its columns are user,
    /// device_token, account_id, subtopic, version, mailbox and registered_at (a time)
    #[arg(long, value_name = "FILE")]
    query: Option<PathBuf>,

    #[command(flatten)]
    common: ImportOptions,
}

impl NotifydOptions {
    pub(super) fn common(&self) -> &ImportOptions {
        &self.common
    }

    /// Its registrations.
    pub(super) async fn read(&self) -> Result<FormerDevices, CommandFailure> {
        let url: DatabaseUrl = self.url.parse().map_err(CommandFailure::Usage)?;
        if !matches!(url.kind(), DatabaseKind::MariaDb(_)) {
            return Err(CommandFailure::Usage(format!("{url}: write mysql://user@host/database")));
        }
        if url.holds_password() {
            return Err(CommandFailure::Usage(format!(
                "{url}: others on this machine can read a password in a command; write it to a file that \
                 only you can read, and name that with --password-file"
            )));
        }
        let text = |path: &PathBuf| {
            files::read_text(path, LONGEST)
                .map(|(text, _)| text)
                .map_err(|error| CommandFailure::Usage(format!("{}: {error}", path.display())))
        };
        let mut server = MySqlConnectOptions::from_str(&self.url)
            .map_err(|error| CommandFailure::Usage(format!("{url}: {error}")))?
            // Times without a zone are of the server's.
            .timezone(None)
            .disable_statement_logging();
        if let Some(path) = &self.password_file {
            server = server.password(text(path)?.lines().next().unwrap_or_default());
        }
        let statement = match &self.query {
            Some(path) => text(path)?.trim().trim_end_matches(';').to_owned(),
            None => STATEMENT.to_owned(),
        };
        if url.is_in_the_clear() {
            return Err(CommandFailure::Usage(format!(
                "{url}: the password and the device tokens would travel unencrypted; add {}",
                url.verification()
            )));
        }
        let failed =
            |error: sqlx::Error| CommandFailure::Failed(format!("{url}: {}", said(&error)));
        let late = |_| CommandFailure::Failed(format!("{url}: does not answer in time"));
        let connecting = MySqlConnection::connect_with(&server);
        let mut connection =
            timeout(CONNECT_TIME, connecting).await.map_err(late)?.map_err(failed)?;
        // Columns come in types of many kinds, and leave as text and numbers.
        let statement = format!(
            "select cast(q.user as char) as user, cast(q.device_token as char) as device_token, \
             cast(q.account_id as char) as account_id, cast(q.subtopic as char) as subtopic, \
             cast(q.version as signed) as version, cast(q.mailbox as char) as mailbox, \
             cast(unix_timestamp(q.registered_at) as signed) as registered_at from ({statement}\n) q"
        );
        let reading = devices(&mut connection, statement);
        let devices = match timeout(READ_TIME, reading).await.map_err(late)? {
            Ok(devices) => devices,
            Err(error) => {
                let said = said(&error);
                let columns = timeout(COLUMNS_TIME, columns(&mut connection)).await;
                let columns = columns.ok().and_then(Result::ok).unwrap_or_default();
                return Err(CommandFailure::Failed(format!(
                    "{url}: {said}; where the tables or columns have other names, write a statement for them \
                     and name its file with --query{columns}"
                )));
            }
        };
        // A farewell, whether it arrives or not.
        let _ = connection.close().await;
        Ok(FormerDevices { devices, notes: Vec::new() })
    }
}

/// What the database says, fit for a terminal. What sqlx says of a value that it cannot read holds the value.
fn said(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::ColumnDecode { index, .. } => {
            format!("the column {} holds what it should not", printable(index, LONGEST_SAID))
        }
        error => printable(&error.to_string(), LONGEST_SAID),
    }
}

/// The devices of the rows that the statement gives, of which each has one mailbox.
async fn devices(
    connection: &mut MySqlConnection,
    statement: String,
) -> sqlx::Result<Vec<FoundDevice>> {
    let mut devices: std::collections::BTreeMap<[String; 4], FoundDevice> = Default::default();
    let mut rows = sqlx::query(AssertSqlSafe(statement)).fetch(connection);
    let mut left = MOST_ROWS;
    while let Some(row) = poll_fn(|context| rows.as_mut().poll_next(context)).await {
        let row = row?;
        left = left.checked_sub(1).ok_or_else(|| {
            sqlx::Error::Configuration(format!("there are more than {MOST_ROWS} rows").into())
        })?;
        let text = |column| {
            let text: sqlx::Result<Option<String>> = row.try_get(column);
            text.map(Option::unwrap_or_default)
        };
        let key = [text("user")?, text("device_token")?, text("account_id")?, text("subtopic")?];
        let version: Option<i64> = row.try_get("version")?;
        let registered_at: Option<i64> = row.try_get("registered_at")?;
        let at = registered_at.filter(|seconds| *seconds > 0);
        let at = at.map(|seconds| Timestamp(seconds.saturating_mul(1000)));
        let [user, token, account_id, app] = key.clone();
        let device = devices.entry(key).or_insert_with(|| FoundDevice {
            user,
            token,
            account_id,
            app,
            version: version.map_or(2, |version| u64::try_from(version).unwrap_or_default()),
            mailboxes: Vec::new(),
            registered_at: at,
        });
        device.registered_at = device.registered_at.max(at);
        device.mailboxes.push(text("mailbox")?);
    }
    Ok(devices.into_values().collect())
}

/// The tables of the database with their columns, a line for each, to be shown below the failure; empty if there
/// is none.
async fn columns(connection: &mut MySqlConnection) -> sqlx::Result<String> {
    let mut shown = String::new();
    let mut rows = sqlx::query(COLUMNS).fetch(connection);
    let (mut before, mut count) = (String::new(), 0);
    while let Some(row) = poll_fn(|context| rows.as_mut().poll_next(context)).await {
        let row = row?;
        count += 1;
        if count > MOST_COLUMNS {
            shown.push_str(", …");
            break;
        }
        let (table, column): (String, String) =
            (row.try_get("table_name")?, row.try_get("column_name")?);
        match (before == table, shown.is_empty()) {
            (true, _) => shown.push_str(", "),
            (false, true) => shown.push_str(". These are there:\n  "),
            (false, false) => shown.push_str("\n  "),
        }
        if before != table {
            shown += &format!("{}: ", printable(&table, LONGEST_SAID));
            before = table;
        }
        shown += &printable(&column, LONGEST_SAID);
    }
    Ok(shown)
}
