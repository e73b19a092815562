//! Many rows in one statement, so that what is written in a batch costs few round trips.
//!
//! Both databases take `with v (a, b) as (values ($1, $2), …)`. Types are those of what is bound.

use std::fmt::Write;

use sqlx::any::AnyArguments;
use sqlx::query::Query;
use sqlx::{Any, AssertSqlSafe};

/// Most rows of one statement. Both databases take ten times as many, but SQLite looks for each
/// parameter among all before it.
pub(super) const MOST: usize = 100;

/// `($first, $first+1), …`: `rows` rows of `columns` parameters each.
pub(super) fn values(first: usize, columns: usize, rows: usize) -> String {
    let mut text = String::with_capacity(rows * columns * 6);
    for row in 0..rows {
        text.push_str(if row == 0 { "(" } else { ", (" });
        for column in 0..columns {
            let comma = if column == 0 { "" } else { ", " };
            // Writing to a string does not fail.
            let _ = write!(text, "{comma}${}", first + row * columns + column);
        }
        text.push(')');
    }
    text
}

/// A statement that is written for a number of rows and so not kept prepared. `sql` must hold
/// nothing that came from outside.
pub(super) fn query<'q>(sql: String) -> Query<'q, Any, AnyArguments> {
    sqlx::query(AssertSqlSafe(sql)).persistent(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_numbered_on() {
        assert_eq!(values(1, 2, 2), "($1, $2), ($3, $4)");
        assert_eq!(values(4, 1, 3), "($4), ($5), ($6)");
        assert_eq!(values(1, 2, 0), "");
    }
}
