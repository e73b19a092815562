//! Many rows in one statement, so that what is written in a batch costs few round trips; and what is
//! read of many, of which one may be damaged.
//!
//! Types are those of what is bound.

use std::future::poll_fn;

use sqlx::Row;
use sqlx::any::AnyRow;

use super::statement::Statement;
use super::work::Work;
use crate::metrics::Metrics;

/// What was made of the rows of a query.
#[derive(Debug)]
pub(in crate::store) struct Readable<T> {
    pub(in crate::store) rows: Vec<T>,
    /// How many could not be read.
    pub(in crate::store) left_out: u64,
}

/// Most rows of one query that are named in the log.
const NAMED: u64 = 10;

/// Most characters of a name that are shown.
const SHOWN: usize = 64;

/// What `read` makes of each row of the query. A row that cannot be read is left out, named in the log
/// and counted: whatever is wrong with it, the others are not to suffer.
pub(in crate::store) async fn readable<T>(
    work: &mut Work,
    metrics: &Metrics,
    query: Statement<'_>,
    read: impl Fn(&AnyRow) -> sqlx::Result<T>,
) -> sqlx::Result<Readable<T>> {
    let query = query.prepared(work);
    let mut stream = query.fetch(work.connection());
    let mut found = Readable { rows: Vec::new(), left_out: 0 };
    while let Some(row) = poll_fn(|cx| stream.as_mut().poll_next(cx)).await {
        let why =
            match row.as_ref().map_err(reason).and_then(|row| read(row).map_err(|e| reason(&e))) {
                Ok(value) => {
                    found.rows.push(value);
                    continue;
                }
                Err(why) => why,
            };
        let Some(why) = why else { return row.and_then(|row| read(&row)).map(|_| found) };
        found.left_out += 1;
        metrics.unreadable_rows.inc();
        if found.left_out <= NAMED {
            let of = row.as_ref().map_or("?", name);
            tracing::warn!(
                target: "mailchime::store::row_unreadable",
                of, why, "could not read a row of the database; mailchime leaves it out"
            );
        }
    }
    drop(stream);
    work.ended(Ok(()))?;
    if found.left_out > NAMED {
        let rows = found.left_out - NAMED;
        tracing::warn!(
            target: "mailchime::store::more_rows_unreadable",
            rows, "could not read more rows of the database; mailchime leaves them out"
        );
    }
    Ok(found)
}

/// Whose row it is, of which no more is shown than a name should take.
fn name(row: &AnyRow) -> &str {
    let mut columns = ["account", "name"].into_iter();
    columns.find_map(|column| row.try_get(column).ok()).map_or("?", shortened)
}

pub(in crate::store) fn shortened(name: &str) -> &str {
    name.char_indices().nth(SHOWN).map_or(name, |(end, _)| &name[..end])
}

/// Why a row cannot be read, without what is in it; `None` if the error is of another kind.
fn reason(error: &sqlx::Error) -> Option<String> {
    match error {
        sqlx::Error::ColumnDecode { index, .. } => {
            Some(format!("{index} is not what it should be"))
        }
        sqlx::Error::Decode(_) => Some("a value is not what it should be".to_owned()),
        _ => None,
    }
}
