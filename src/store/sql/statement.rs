//! Statements, written once for all databases: `$1`, `$2`, … stand for the arguments. What a database says in
//! words of its own comes from its dialect.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{LazyLock, OnceLock};

use parking_lot::RwLock;
use sqlx::any::{AnyArguments, AnyQueryResult, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, AssertSqlSafe, SqlSafeStr};

use super::dialect::{DIALECTS, Dialect};
use super::work::Work;

/// A statement with its arguments.
pub(in crate::store) struct Statement<'q> {
    text: StatementText,
    arguments: Vec<Argument<'q>>,
}

/// What a statement is made from.
pub(in crate::store) enum StatementText {
    /// It is kept prepared, where that may be.
    Fixed(&'static str),
    /// It is written for a number of rows, and prepared for once. On MariaDB it is kept: to close a statement is a
    /// packet without an answer, and the driver's next one waits 40 ms for its acknowledgement (RFC 1122 section 4.2.3.4:
    /// the driver does not set TCP_NODELAY).
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
    Bytes(&'q [u8]),
}

/// A statement of which a shape differs by dialect: its text is made once for each.
pub(in crate::store) struct Shaped {
    make: fn(Dialect) -> String,
    made: [OnceLock<String>; DIALECTS],
}

/// The statement of this text. It must hold nothing that came from outside.
pub(in crate::store) fn query<'q>(text: impl Into<StatementText>) -> Statement<'q> {
    Statement { text: text.into(), arguments: Vec::new() }
}

impl<'q> Statement<'q> {
    /// The next argument.
    pub(in crate::store) fn bind(mut self, argument: impl Into<Argument<'q>>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// As it is run in this work.
    pub(in crate::store) fn prepared(self, work: &Work) -> Query<'q, Any, AnyArguments> {
        let Self { text, arguments } = self;
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
                bound(sqlx::query(AssertSqlSafe(text)).persistent(false), arguments, None)
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
    fn bind_to(self, query: Query<'q, Any, AnyArguments>) -> Query<'q, Any, AnyArguments> {
        match self {
            Self::Text(Cow::Borrowed(text)) => query.bind(text),
            Self::Text(Cow::Owned(text)) => query.bind(text),
            Self::NoText => query.bind(None::<String>),
            Self::Integer(number) => query.bind(number),
            Self::NoInteger => query.bind(None::<i64>),
            Self::Small(number) => query.bind(number),
            Self::Bytes(bytes) => query.bind(bytes),
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
}
