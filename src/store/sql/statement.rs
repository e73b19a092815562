//! Statements, written once for all databases: `$1`, `$2`, … stand for the arguments. What a database says in
//! words of its own comes from its dialect.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{LazyLock, OnceLock};

use parking_lot::RwLock;
use sqlx::any::{AnyArguments, AnyQueryResult, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, AssertSqlSafe, SqlSafeStr};

use super::dialect::{DIALECTS, Dialect, MOST_ROWS, SelectBy, TableChange, UpdateFrom};
use super::work::Work;

/// A statement with its arguments.
pub(in crate::store) struct Statement<'q> {
    text: StatementText,
    arguments: Vec<Argument<'q>>,
    /// What it is written for; none of one that is not written for rows.
    rows: Rows,
}

/// Rows of arguments that a statement is written for.
#[derive(Clone, Copy, Default)]
struct Rows {
    /// Arguments before them.
    first: usize,
    columns: usize,
    count: usize,
}

/// What a statement is made from.
pub(in crate::store) enum StatementText {
    /// It is kept prepared, where that may be.
    Fixed(&'static str),
    /// It is written for what there is at the time. What is written for rows or for a list is kept prepared as well, and so
    /// is each on MariaDB: to close a statement is a packet without an answer, and the driver's next one waits
    /// 40 ms for its acknowledgement (RFC 1122 section 4.2.3.4: the driver does not set TCP_NODELAY).
    Made(String),
}

/// What a database is given. What is null has a type as well.
#[derive(Clone)]
pub(in crate::store) enum Argument<'q> {
    Text(Cow<'q, str>),
    NoText,
    Integer(i64),
    NoInteger,
    /// PostgreSQL's functions of texts take no others.
    Small(i32),
    NoSmall,
    Bytes(&'q [u8]),
    NoBytes,
}

/// A statement of which a shape differs by dialect: its text is made once for each.
pub(in crate::store) struct Shaped {
    make: fn(Dialect) -> String,
    made: [OnceLock<String>; DIALECTS],
}

/// The statement of this text. It must hold nothing that came from outside.
pub(in crate::store) fn query<'q>(text: impl Into<StatementText>) -> Statement<'q> {
    Statement { text: text.into(), arguments: Vec::new(), rows: Rows::default() }
}

/// The statement of an update, for this number of rows of arguments at least.
pub(in crate::store) fn update_from<'q>(
    work: &Work,
    update: &UpdateFrom<'_>,
    rows: usize,
) -> Statement<'q> {
    let rows = Rows::of(work, update.columns, rows);
    Statement { rows, ..query(work.dialect().update_from(update, rows.count)) }
}

/// The statement of a query, for this number of rows of arguments at least.
pub(in crate::store) fn select_by<'q>(
    work: &Work,
    select: &SelectBy<'_>,
    rows: usize,
) -> Statement<'q> {
    let rows = Rows::of(work, select.columns, rows);
    let only_if = work.asks_if_writable();
    Statement { rows, ..query(work.dialect().select_by(select, rows.count, only_if)) }
}

/// The statement of these changes and the query together, for this number of rows of arguments of each at least: those of
/// the first change, and of the others behind [`Statement::then`]. `None` where they are to be run one after the other.
pub(in crate::store) fn together<'q>(
    work: &Work,
    changes: &[TableChange<'_>],
    select: Option<&SelectBy<'_>>,
    rows: usize,
) -> Option<Statement<'q>> {
    let first = changes.first()?;
    let rows = Rows::of(work, first.columns(), rows);
    let text = work.dialect().together(changes, select, rows.count)?;
    Some(Statement { rows, ..query(text) })
}

/// A statement with a list of arguments behind `first` others. `text` gets the places of the list, `$n, …`: at least
/// `count`.
pub(in crate::store) fn with_list<'q>(
    work: &Work,
    first: usize,
    count: usize,
    text: impl FnOnce(&str) -> String,
) -> Statement<'q> {
    let rows = Rows { first, ..Rows::of(work, &["one"], count) };
    let places = (1..=rows.count).map(|place| format!("${}", first + place));
    let places: Vec<_> = places.collect();
    Statement { rows, ..query(text(&places.join(", "))) }
}

impl Rows {
    /// Few numbers of rows make few statements, each of which is prepared once for a connection.
    fn of(work: &Work, columns: &[&str], count: usize) -> Self {
        let count = if work.keeps_statements() { rounded_up(count) } else { count };
        Self { first: 0, columns: columns.len(), count }
    }

    /// What is missing behind these arguments becomes null, as a row of nulls leads to no row of a table.
    fn fill(self, arguments: &mut Vec<Argument<'_>>) {
        for place in arguments.len()..self.first + self.columns * self.count {
            let above = place.checked_sub(self.columns).filter(|above| *above >= self.first);
            let above = above.and_then(|place| arguments.get(place));
            arguments.extend(above.map(Argument::null));
        }
    }
}

/// The next power of two, or the most rows that a statement has.
fn rounded_up(count: usize) -> usize {
    count.next_power_of_two().min(MOST_ROWS.max(count))
}

impl<'q> Statement<'q> {
    /// The next argument.
    pub(in crate::store) fn bind(mut self, argument: impl Into<Argument<'q>>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// The arguments that follow are those of rows with these columns.
    pub(in crate::store) fn then(mut self, columns: &[&str]) -> Self {
        self.rows.fill(&mut self.arguments);
        (self.rows.first, self.rows.columns) = (self.arguments.len(), columns.len());
        self
    }

    /// As it is run in this work.
    pub(in crate::store) fn prepared(self, work: &Work) -> Query<'q, Any, AnyArguments> {
        let Self { text, mut arguments, rows } = self;
        rows.fill(&mut arguments);
        let counts = work.dialect().counts_arguments();
        match text {
            StatementText::Fixed(text) => {
                let rewritten = counts.then(|| rewritten(text));
                let sql = rewritten.map_or(text, |it| it.text.as_str()).into_sql_str();
                let query = sqlx::query(sql).persistent(work.keeps_statements());
                bound(query, arguments, rewritten.map(|it| &*it.order))
            }
            StatementText::Made(text) if counts => {
                let Rewritten { text, order } = Rewritten::of(&text);
                let query = sqlx::query(AssertSqlSafe(text)).persistent(work.keeps_statements());
                bound(query, arguments, Some(&order))
            }
            StatementText::Made(text) => {
                let keep = rows.count > 0 && work.keeps_statements();
                bound(sqlx::query(AssertSqlSafe(text)).persistent(keep), arguments, None)
            }
        }
    }

    pub(in crate::store) async fn execute_in(
        self,
        work: &mut Work,
    ) -> sqlx::Result<AnyQueryResult> {
        let ran = self.prepared(work).execute(work.connection()).await;
        work.ended(ran)
    }

    pub(in crate::store) async fn fetch_one_in(self, work: &mut Work) -> sqlx::Result<AnyRow> {
        let ran = self.prepared(work).fetch_one(work.connection()).await;
        work.ended(ran)
    }

    pub(in crate::store) async fn fetch_optional_in(
        self,
        work: &mut Work,
    ) -> sqlx::Result<Option<AnyRow>> {
        let ran = self.prepared(work).fetch_optional(work.connection()).await;
        work.ended(ran)
    }

    pub(in crate::store) async fn fetch_all_in(self, work: &mut Work) -> sqlx::Result<Vec<AnyRow>> {
        let ran = self.prepared(work).fetch_all(work.connection()).await;
        work.ended(ran)
    }
}

/// A statement whose arguments are `?`.
struct Rewritten {
    text: String,
    /// Which argument each of them is, rewritten from 0.
    order: Vec<usize>,
}

/// The same statement with `?` for arguments, made once.
fn rewritten(text: &'static str) -> &'static Rewritten {
    static REWRITTEN: LazyLock<RwLock<HashMap<&'static str, &'static Rewritten>>> =
        LazyLock::new(RwLock::default);
    if let Some(rewritten) = REWRITTEN.read().get(text) {
        return rewritten;
    }
    // There are as many as the program has statements.
    REWRITTEN.write().entry(text).or_insert_with(|| Box::leak(Box::new(Rewritten::of(text))))
}

impl Rewritten {
    fn of(text: &str) -> Self {
        let mut parts = text.split('$');
        let mut rewritten = Self { text: String::with_capacity(text.len()), order: Vec::new() };
        rewritten.text.push_str(parts.next().unwrap_or_default());
        for part in parts {
            let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            let number: usize = part[..end].parse().unwrap_or_default();
            rewritten.order.push(number.saturating_sub(1));
            rewritten.text.push('?');
            rewritten.text.push_str(&part[end..]);
        }
        rewritten
    }
}

/// The arguments as they come, or in this order.
fn bound<'q>(
    query: Query<'q, Any, AnyArguments>,
    arguments: Vec<Argument<'q>>,
    order: Option<&[usize]>,
) -> Query<'q, Any, AnyArguments> {
    match order {
        None => arguments.into_iter().fold(query, |query, argument| argument.bind_to(query)),
        Some(order) => order.iter().fold(query, |query, place| match arguments.get(*place) {
            Some(argument) => argument.clone().bind_to(query),
            None => query,
        }),
    }
}

impl<'q> Argument<'q> {
    /// What is null in place of it.
    fn null(&self) -> Argument<'static> {
        match self {
            Self::Text(_) | Self::NoText => Argument::NoText,
            Self::Integer(_) | Self::NoInteger => Argument::NoInteger,
            Self::Small(_) | Self::NoSmall => Argument::NoSmall,
            Self::Bytes(_) | Self::NoBytes => Argument::NoBytes,
        }
    }

    fn bind_to(self, query: Query<'q, Any, AnyArguments>) -> Query<'q, Any, AnyArguments> {
        match self {
            Self::Text(Cow::Borrowed(text)) => query.bind(text),
            Self::Text(Cow::Owned(text)) => query.bind(text),
            Self::NoText => query.bind(None::<String>),
            Self::Integer(number) => query.bind(number),
            Self::NoInteger => query.bind(None::<i64>),
            Self::Small(number) => query.bind(number),
            Self::NoSmall => query.bind(None::<i32>),
            Self::Bytes(bytes) => query.bind(bytes),
            Self::NoBytes => query.bind(None::<Vec<u8>>),
        }
    }
}

impl Shaped {
    pub(in crate::store) const fn new(make: fn(Dialect) -> String) -> Self {
        Self { make, made: [const { OnceLock::new() }; DIALECTS] }
    }

    /// Its text in this dialect.
    pub(in crate::store) fn of(&'static self, dialect: Dialect) -> &'static str {
        self.made[dialect as usize].get_or_init(|| (self.make)(dialect))
    }
}

impl From<&'static str> for StatementText {
    fn from(text: &'static str) -> Self {
        Self::Fixed(text)
    }
}

impl From<String> for StatementText {
    fn from(text: String) -> Self {
        Self::Made(text)
    }
}

impl<'q> From<&'q str> for Argument<'q> {
    fn from(text: &'q str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Argument<'_> {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl<'q> From<Option<&'q str>> for Argument<'q> {
    fn from(text: Option<&'q str>) -> Self {
        text.map_or(Self::NoText, Self::from)
    }
}

impl From<i64> for Argument<'_> {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<Option<i64>> for Argument<'_> {
    fn from(number: Option<i64>) -> Self {
        number.map_or(Self::NoInteger, Self::from)
    }
}

impl From<i32> for Argument<'_> {
    fn from(number: i32) -> Self {
        Self::Small(number)
    }
}

impl<'q> From<&'q [u8]> for Argument<'q> {
    fn from(bytes: &'q [u8]) -> Self {
        Self::Bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_come_in_the_order_in_which_they_occur() {
        let Rewritten { text, order } =
            Rewritten::of("update t set a = $2 where name = $1 and coalesce(b, $2) in ($2, $10)");
        assert_eq!(text, "update t set a = ? where name = ? and coalesce(b, ?) in (?, ?)");
        assert_eq!(order, [1, 0, 1, 1, 9]);
    }

    #[test]
    fn rows_that_a_statement_has_room_for_are_null() {
        let counts = [1, 2, 3, 5, 64, 65, 100, 101].map(rounded_up);
        assert_eq!(counts, [1, 2, 4, 8, 64, 100, 100, 101]);
        let mut arguments = vec!["a".into(), 1_i64.into(), Argument::NoText, 2_i64.into()];
        Rows { first: 0, columns: 2, count: 3 }.fill(&mut arguments);
        assert!(matches!(&arguments[4..], [Argument::NoText, Argument::NoInteger]));
        Rows::default().fill(&mut arguments);
        assert_eq!(arguments.len(), 6);
        arguments.push(7_i64.into());
        Rows { first: 6, columns: 1, count: 3 }.fill(&mut arguments);
        assert!(matches!(&arguments[7..], [Argument::NoInteger, Argument::NoInteger]));
    }
}
