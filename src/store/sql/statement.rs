//! Statements, written once for all databases: `$1`, `$2`, … stand for the arguments. What a database says in
//! words of its own comes from its dialect.

use std::borrow::Cow;
use std::sync::OnceLock;

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
    /// It is written for a number of rows, and prepared for once.
    Made(String),
}

/// What a database is given. What is null has a type as well.
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
        let mut query = match text {
            StatementText::Fixed(text) => {
                let query = sqlx::query(text.into_sql_str());
                if work.keeps_statements() { query } else { query.persistent(false) }
            }
            StatementText::Made(text) => sqlx::query(AssertSqlSafe(text)).persistent(false),
        };
        for argument in arguments {
            query = match argument {
                Argument::Text(Cow::Borrowed(text)) => query.bind(text),
                Argument::Text(Cow::Owned(text)) => query.bind(text),
                Argument::NoText => query.bind(None::<String>),
                Argument::Integer(number) => query.bind(number),
                Argument::NoInteger => query.bind(None::<i64>),
                Argument::Small(number) => query.bind(number),
                Argument::Bytes(bytes) => query.bind(bytes),
            };
        }
        query
    }

    pub(in crate::store) async fn execute_in(
        self,
        work: &mut Work,
    ) -> sqlx::Result<AnyQueryResult> {
        self.prepared(work).execute(work.connection()).await
    }

    pub(in crate::store) async fn fetch_one_in(self, work: &mut Work) -> sqlx::Result<AnyRow> {
        self.prepared(work).fetch_one(work.connection()).await
    }

    pub(in crate::store) async fn fetch_optional_in(
        self,
        work: &mut Work,
    ) -> sqlx::Result<Option<AnyRow>> {
        self.prepared(work).fetch_optional(work.connection()).await
    }

    pub(in crate::store) async fn fetch_all_in(self, work: &mut Work) -> sqlx::Result<Vec<AnyRow>> {
        self.prepared(work).fetch_all(work.connection()).await
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
