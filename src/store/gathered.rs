//! Reads of many callers in one statement, so that a server plans it and answers it once for all of them.
//!
//! While one statement is being answered the questions for the next one gather. A question that comes alone is
//! asked at once. Each question starts a task that waits for a turn and then asks all that wait: a caller that
//! goes away takes nobody's answer with it.

use std::sync::Arc;

use parking_lot::Mutex;
use sqlx::any::AnyRow;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use super::sql::rows::{self, Readable};
use super::sql::statement::Argument;
use super::sql::work::{SIGN_OF_LIFE, Work};
use super::sql::{self, SelectBy};
use super::{Store, StoreError, error};
use crate::metrics::Call;

/// Most questions of one statement.
const MOST: usize = 64;

/// The questions of one kind that wait.
pub(super) struct Questions<Q, R> {
    waiting: Mutex<Vec<Question<Q, R>>>,
    turns: Semaphore,
}

struct Question<Q, R> {
    what: Q,
    reply: oneshot::Sender<Result<Vec<R>, Arc<sqlx::Error>>>,
}

impl<Q, R> Questions<Q, R> {
    /// Has so many statements answered at a time. There are more connections that read.
    pub(super) fn new(turns: usize) -> Self {
        Self { waiting: Mutex::default(), turns: Semaphore::new(turns) }
    }

    /// Those that have waited for longest and whose callers still wait.
    fn take(&self) -> Vec<Question<Q, R>> {
        let mut waiting = self.waiting.lock();
        waiting.retain(|question| !question.reply.is_closed());
        let most = waiting.len().min(MOST);
        waiting.drain(..most).collect()
    }
}

/// How questions of one kind are asked.
pub(super) trait Asks: Send + Sync + Sized + 'static {
    /// The query. The first column of `v` is the number of the question, and the first that is selected as well.
    const QUERY: SelectBy<'static>;

    /// A row of the answer.
    type Row: Send + 'static;

    /// Where they wait.
    fn questions(store: &Store) -> &Questions<Self, Self::Row>;

    /// The columns of the question behind its number.
    fn arguments(&self) -> impl Iterator<Item = Argument<'_>>;

    /// What a row says.
    ///
    /// # Errors
    /// [`sqlx::Error`] where the row is not what it should be; it is left out.
    fn read(row: &AnyRow) -> sqlx::Result<Self::Row>;
}

impl Store {
    /// The rows of the answer to a question.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used, or does not answer in time.
    pub(super) fn ask<Q: Asks>(
        &self,
        call: Call,
        what: Q,
    ) -> impl Future<Output = Result<Vec<Q::Row>, StoreError>> + Send + '_ {
        // Boxed with the question, as all calls are: thousands of tasks make one now and then.
        Box::pin(self.measured(call, async move {
            self.ready().await?;
            let (reply, answer) = oneshot::channel();
            Q::questions(self).waiting.lock().push(Question { what, reply });
            let store = self.clone();
            tokio::spawn(async move {
                let Ok(_turn) = Q::questions(&store).turns.acquire().await else { return };
                // Callers that are about to ask go along.
                tokio::task::yield_now().await;
                // What takes longer than a call may is given up with its connection, and so is what hangs at the end.
                let asked = async {
                    store.ask_waiting::<Q>().await;
                    Ok(())
                };
                let _ = store.limited(asked).await;
            });
            match answer.await {
                Ok(Ok(rows)) => Ok(rows),
                Ok(Err(error)) => Err(StoreError::from_shared(&self.database, error)),
                Err(_) => self.named(Err(sqlx::Error::WorkerCrashed)),
            }
        }))
    }

    /// Asks all that wait, and answers. Where one of them may be what the database refuses, each is asked alone.
    async fn ask_waiting<Q: Asks>(&self) {
        let (questions, replies): (Vec<Q>, Vec<_>) = Q::questions(self)
            .take()
            .into_iter()
            .map(|question| (question.what, question.reply))
            .unzip();
        if questions.is_empty() {
            return;
        }
        match self.answers(&questions).await {
            Err(error) if questions.len() > 1 && !error::is_temporary(&error) => {
                for (question, reply) in questions.iter().zip(replies) {
                    let answer = self.answers(std::slice::from_ref(question)).await;
                    let answer = answer.map(|mut answers| answers.pop().unwrap_or_default());
                    let _ = reply.send(answer.map_err(Arc::new));
                }
            }
            Ok(answers) => {
                for (reply, answer) in replies.into_iter().zip(answers) {
                    let _ = reply.send(Ok(answer));
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for reply in replies {
                    let _ = reply.send(Err(Arc::clone(&error)));
                }
            }
        }
    }

    /// The rows that answer each of the questions.
    async fn answers<Q: Asks>(&self, questions: &[Q]) -> sqlx::Result<Vec<Vec<Q::Row>>> {
        if let Some(work) = self.connections.read_alone().await? {
            let answered = timeout(SIGN_OF_LIFE, self.answers_in(work, questions)).await;
            match answered {
                Ok(Err(error)) if error::is_temporary(&error) || error::is_no_value(&error) => {}
                Ok(answered) => return answered,
                Err(_) => {}
            }
            // The begin of a transaction finds out what is wrong with the server, if anything is.
        }
        self.answers_in(self.read_once().await?, questions).await
    }

    async fn answers_in<Q: Asks>(
        &self,
        mut work: Work,
        questions: &[Q],
    ) -> sqlx::Result<Vec<Vec<Q::Row>>> {
        let mut statement = sql::select_by(&work, &Q::QUERY, questions.len());
        for (number, question) in (0_i64..).zip(questions) {
            statement = statement.bind(number);
            statement = question.arguments().fold(statement, |it, argument| it.bind(argument));
        }
        let read = |row: &AnyRow| {
            use sqlx::Row;
            let number: i64 = row.try_get(0)?;
            Ok((usize::try_from(number).unwrap_or(usize::MAX), Q::read(row)?))
        };
        let Readable { rows, .. } =
            rows::readable(&mut work, &self.metrics, statement, read).await?;
        let mut answers: Vec<Vec<Q::Row>> = questions.iter().map(|_| Vec::new()).collect();
        for (number, row) in rows {
            if let Some(answer) = answers.get_mut(number) {
                answer.push(row);
            }
        }
        Ok(answers)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;
    use crate::model::{Account, Timestamp};

    async fn open() -> (TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("test.db").display());
        let store = Store::open(&url.parse().unwrap(), Duration::from_secs(30)).await.unwrap();
        (folder, store)
    }

    /// Asks, with no statement being answered before this is dropped, and waits until that is a question.
    async fn ask(store: &Store, login: &str) -> tokio::task::JoinHandle<bool> {
        let before = store.asked_targets.waiting.lock().len();
        let (asking, account) = (store.clone(), Account::from_login(login));
        let task = tokio::spawn(async move {
            asking.targets(&account, Timestamp(0)).await.is_ok_and(|targets| targets.is_empty())
        });
        while store.asked_targets.waiting.lock().len() == before {
            tokio::task::yield_now().await;
        }
        task
    }

    #[tokio::test]
    async fn what_waits_together_is_asked_together_without_what_is_given_up() {
        let (_folder, store) = open().await;
        let turns = store.asked_targets.turns.acquire().await.unwrap();
        let mut tasks = Vec::new();
        for login in ["alice", "bob", "carol"] {
            tasks.push(ask(&store, login).await);
        }
        tasks.remove(1).abort();
        while store.asked_targets.waiting.lock().iter().all(|asked| !asked.reply.is_closed()) {
            tokio::task::yield_now().await;
        }
        let questions = store.asked_targets.take();
        let accounts: Vec<_> = questions.iter().map(|asked| asked.what.0.to_string()).collect();
        assert_eq!(accounts, ["alice", "carol"]);
        *store.asked_targets.waiting.lock() = questions;
        drop(turns);
        for task in tasks {
            assert!(task.await.unwrap());
        }
    }

    #[tokio::test]
    async fn a_statement_that_fails_fails_for_all_who_wait_for_it() {
        let (_folder, store) = open().await;
        let turns = store.asked_targets.turns.acquire().await.unwrap();
        let tasks = [ask(&store, "alice").await, ask(&store, "bob").await];
        store.connections.close_reads().await;
        drop(turns);
        for task in tasks {
            assert!(!task.await.unwrap());
        }
    }
}
