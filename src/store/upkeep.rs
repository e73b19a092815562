//! What keeps a database as it should be: whether it works, what its log holds, and its end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use sqlx::SqlSafeStr;

use super::sql::sqlite;
use super::{Store, StoreError, records};
use crate::metrics::Call;

/// Between the tries to empty SQLite's log for somebody who waits.
const SCRUB_PAUSES: [Duration; 5] = [Duration::from_millis(50); 5];

impl Store {
    /// Whether the database has all that writing needs, and is the one that was opened; changes nothing.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.write(Call::Ping, || async {
            // No account has an empty name. It is rolled back.
            records::lock(&mut self.begin().await?, "").await
        })
        .await
    }

    /// Takes what was removed or replaced out of SQLite's log, too, if there is any: it is overwritten
    /// in the database itself, but stays in the log until that is emptied. Returns whether nothing is
    /// left; if not, somebody reads what was there before, or writes. To be called again then.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn scrub(&self) -> Result<bool, StoreError> {
        let Some(file) = &self.file else { return Ok(true) };
        if !self.traces.swap(false, Ordering::Relaxed) {
            return Ok(true);
        }
        let emptied = self.write(Call::Scrub, || sqlite::empty_log(file.path())).await;
        if !matches!(emptied, Ok(true)) {
            self.traces.store(true, Ordering::Relaxed);
        }
        emptied
    }

    /// The same, for somebody who waits until it is done, but not for long.
    pub(crate) async fn scrub_soon(&self) {
        for pause in SCRUB_PAUSES {
            match self.scrub().await {
                Ok(true) => return,
                Ok(false) => tokio::time::sleep(pause).await,
                Err(error) => {
                    return tracing::warn!(
                        target: "mailchime::store::traces_remain",
                        %error,
                        "what was removed may stay in the database's log until mailchime stops"
                    );
                }
            }
        }
        tracing::warn!(
            target: "mailchime::store::traces_remain",
            "what was removed may stay in the database's log until mailchime stops"
        );
    }

    /// From now on there is something to [`scrub`](Self::scrub).
    pub(super) fn leaves_traces(&self) {
        self.traces.store(true, Ordering::Relaxed);
    }

    /// Waits for the calls in flight and closes the database; later calls fail.
    pub async fn close(&self) {
        self.connections.close_reads().await;
        match self.is_in_place() {
            Ok(()) => self.scrub_soon().await,
            Err(_) => self.look_at_file().await,
        }
        self.connections.close_writes().await;
        if let Some(file) = &self.file {
            file.release();
        }
    }

    /// Has the database count what its tables hold, once many rows were written at once. PostgreSQL does so by itself within
    /// minutes, and until then plans each statement as if the tables were empty. Where it fails, those minutes pass.
    pub async fn take_statistics(&self) {
        let Some(statement) = self.dialect().take_statistics() else { return };
        let counted = async {
            let mut work = self.begin().await?;
            work.run(statement.into_sql_str()).await?;
            work.commit().await
        };
        if let Err(error) = self.limited(async { self.named(counted.await) }).await {
            tracing::debug!(
                target: "mailchime::store::statistics_not_taken",
                %error, "could not have the database count what its tables hold; it does so later"
            );
        }
    }

    /// A number of the SQLite file, which is another one when another program has written to it. `None` of a server.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub async fn version_of_file(&self) -> Result<Option<i64>, StoreError> {
        let asked = async {
            match self.connections.writer().await? {
                Some(mut work) => sqlite::data_version(&mut work).await.map(Some),
                None => Ok(None),
            }
        };
        self.limited(async { self.named(asked.await) }).await
    }

    /// Whether the file of SQLite is still the one that was opened.
    ///
    /// # Errors
    /// [`StoreError::Replaced`]: no OK may be said on account of this database.
    pub(super) fn is_in_place(&self) -> Result<(), StoreError> {
        self.file.as_ref().map_or(Ok(()), |file| file.check())
    }

    /// Looks whether the file of SQLite is still the one that was opened, says so in the log when it is
    /// not any more, and then keeps its log from being taken for that of the file that is there now. To be
    /// called again and again.
    pub async fn look_at_file(&self) {
        let Some(file) = self.file.as_ref().filter(|file| file.has_to_be_emptied()) else { return };
        let emptied = async {
            match self.connections.writer().await? {
                Some(mut work) => sqlite::empty_lost_log(&mut work).await,
                None => Ok(true),
            }
        };
        match emptied.await {
            Ok(true) => {
                file.is_emptied();
                tracing::warn!(
                    target: "mailchime::store::lost_log_emptied",
                    "the database was replaced; mailchime moved its write-ahead log into the \
                     former file"
                );
            }
            Ok(false) => tracing::debug!(
                target: "mailchime::store::lost_log_in_use",
                "the write-ahead log of the replaced database is in use; mailchime tries again"
            ),
            Err(error) => tracing::error!(
                target: "mailchime::store::lost_log_not_emptied",
                %error,
                "could not empty the write-ahead log of the replaced database; mailchime tries \
                 again"
            ),
        }
    }
}
