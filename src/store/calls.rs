//! How the calls of a store run: each as one transaction, within its time, and again where another one
//! got into its way.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sqlx::any::AnyRow;

use super::sql::dialect::Dialect;
use super::sql::rows::{self, Readable};
use super::sql::statement::Statement;
use super::sql::work::Work;
use super::{Stopping, Store, StoreError, error};
use crate::metrics::{Call, Labels};
use crate::model::seconds;

/// What a call may take from the moment in which the program gets the signal to stop.
const LAST: Duration = Duration::from_secs(2);

/// A call that takes longer is said in the log, at most once in this time.
const SLOW: Duration = Duration::from_secs(1);
const BETWEEN_LINES: Duration = Duration::from_mins(1);

/// How often a transaction is run that others got into the way of.
const TRIES: u32 = 5;

impl Store {
    /// The same for a page of rows behind the last one's: an error if there are some, and none can be
    /// read, so that nobody takes it for the end.
    pub(super) async fn page<T>(
        &self,
        query: Statement<'_>,
        read: impl Fn(&AnyRow) -> sqlx::Result<T>,
    ) -> sqlx::Result<Vec<T>> {
        let mut work = self.read_once().await?;
        let Readable { rows, left_out } =
            rows::readable(&mut work, &self.metrics, query, read).await?;
        match left_out {
            1.. if rows.is_empty() => {
                Err(sqlx::Error::Decode("no row of a page can be read".into()))
            }
            _ => Ok(rows),
        }
    }

    /// What `read` makes of the rows of a query that can be read.
    pub(super) async fn rows<T>(
        &self,
        query: Statement<'_>,
        read: impl Fn(&AnyRow) -> sqlx::Result<T>,
    ) -> sqlx::Result<Vec<T>> {
        let mut work = self.read_once().await?;
        Ok(rows::readable(&mut work, &self.metrics, query, read).await?.rows)
    }

    /// Runs the work of a call that only reads.
    ///
    /// Calls are boxed: there are thousands of tasks that make one now and then, and each would have
    /// room for the largest all the time.
    pub(super) fn read<'a, T: Send + 'a>(
        &'a self,
        call: Call,
        work: impl Future<Output = sqlx::Result<T>> + Send + 'a,
    ) -> impl Future<Output = Result<T, StoreError>> + Send + 'a {
        Box::pin(self.measured(call, async {
            self.ready().await?;
            self.named(work.await)
        }))
    }

    /// Runs the work of a call that writes: one transaction, which is run again when another one got
    /// into its way.
    pub(super) fn write<'a, T: Send + 'a, F: Future<Output = sqlx::Result<T>> + Send + 'a>(
        &'a self,
        call: Call,
        work: impl Fn() -> F + Send + Sync + 'a,
    ) -> impl Future<Output = Result<T, StoreError>> + Send + 'a {
        Box::pin(self.measured(call, async move {
            self.ready().await?;
            self.is_in_place()?;
            let written = self.named(self.repeated(work).await)?;
            self.is_in_place()?;
            Ok(written)
        }))
    }

    /// Runs a transaction, and again when another one got into its way.
    pub(super) async fn repeated<T, F: Future<Output = sqlx::Result<T>>>(
        &self,
        work: impl Fn() -> F,
    ) -> sqlx::Result<T> {
        for _ in 1..TRIES {
            match work().await {
                Err(error) if error::is_conflict(&error) => {}
                // Its server has just become a standby.
                Err(error) if error::is_read_only(&error) => self.connections.distrust(),
                result => return result,
            }
        }
        work().await
    }

    pub(super) async fn measured<T>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let began = Instant::now();
        let result = self.limited(work).await;
        let took = began.elapsed();
        self.metrics.database_call(call, took, &result);
        if took >= SLOW {
            self.took_long(call, took);
        }
        result
    }

    /// Says so, once a minute.
    pub(super) fn took_long(&self, call: Call, took: Duration) {
        let mut said = self.said_slow.lock();
        if said.is_some_and(|said| said.elapsed() < BETWEEN_LINES) {
            return;
        }
        *said = Some(Instant::now());
        let call = call.pairs().first().map_or("", |(_, name)| name);
        tracing::warn!(
            target: "mailchime::store::slow_call",
            call, seconds = seconds(took), "a database call took long"
        );
    }

    /// What the database speaks.
    pub(super) fn dialect(&self) -> Dialect {
        self.connections.dialect()
    }

    /// Begins a transaction that writes.
    pub(super) async fn begin(&self) -> sqlx::Result<Work> {
        self.connections.begin_write().await
    }

    /// For one statement that reads.
    pub(super) async fn read_once(&self) -> sqlx::Result<Work> {
        self.connections.read_once().await
    }

    /// Begins a transaction that reads.
    pub(super) async fn begin_read(&self) -> sqlx::Result<Work> {
        self.connections.begin_read().await
    }

    pub(super) async fn limited<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let late = |limit: Duration| {
            let late = format!("no answer within {limit:?}");
            self.named(Err(sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, late))))
        };
        let Stopping { begun, away } = &*self.stopping;
        if away.load(Ordering::Relaxed) {
            return late(LAST);
        }
        let stopping = async {
            begun.cancelled().await;
            tokio::time::sleep(LAST).await;
        };
        tokio::select! {
            result = tokio::time::timeout(self.limit, call) => {
                result.unwrap_or_else(|_| late(self.limit))
            }
            () = stopping => {
                away.store(true, Ordering::Relaxed);
                late(LAST)
            }
        }
    }

    /// Gives an error the database's name.
    pub(super) fn named<T>(&self, result: sqlx::Result<T>) -> Result<T, StoreError> {
        result.map_err(|error| StoreError::from_sqlx(&self.database, error))
    }
}
