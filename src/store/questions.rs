//! Reads of many callers in one statement, so that a server plans it and answers it once for all of them.

use std::sync::Arc;

use sqlx::any::AnyRow;
use tokio::time::timeout;

use super::gathering::{Gathered, Gathering};
use super::sql::rows::{self, Readable};
use super::sql::statement::Argument;
use super::sql::work::{SIGN_OF_LIFE, Work};
use super::sql::{self, SelectBy};
use super::{Store, StoreError, error};
use crate::metrics::Call;

/// A question that waits for others.
pub(super) struct Question<Q>(Q);

/// How questions of one kind are asked.
pub(super) trait Asks: Send + Sync + Sized + 'static {
    /// The query. The first column of `v` is the number of the question, and the first that is selected as well.
    const QUERY: SelectBy<'static>;

    /// A row of the answer.
    type Row: Send + 'static;

    /// Where they wait.
    fn questions(store: &Store) -> &Arc<Gathering<Question<Self>>>;

    /// The columns of the question behind its number.
    fn arguments(&self) -> impl Iterator<Item = Argument<'_>>;

    /// What a row says.
    ///
    /// # Errors
    /// [`sqlx::Error`] where the row is not what it should be; it is left out.
    fn read(row: &AnyRow) -> sqlx::Result<Self::Row>;
}

impl<Q: Asks> Gathered for Question<Q> {
    type Answer = Vec<Q::Row>;

    fn gathering(store: &Store) -> &Arc<Gathering<Self>> {
        Q::questions(store)
    }

    async fn answers(store: &Store, together: &[Self]) -> sqlx::Result<Vec<Self::Answer>> {
        store.answers(together).await
    }
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
            self.with_others(Question(what)).await
        }))
    }

    /// The rows that answer each of the questions.
    async fn answers<Q: Asks>(&self, questions: &[Question<Q>]) -> sqlx::Result<Vec<Vec<Q::Row>>> {
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
        questions: &[Question<Q>],
    ) -> sqlx::Result<Vec<Vec<Q::Row>>> {
        let mut statement = sql::select_by(&work, &Q::QUERY, questions.len());
        for (number, Question(question)) in (0_i64..).zip(questions) {
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

    use super::super::gathering;
    use super::*;
    use crate::model::{Account, Timestamp};

    async fn open() -> (TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("test.db").display());
        let store = Store::open(&url.parse().unwrap(), Duration::from_secs(30)).await.unwrap();
        (folder, store)
    }

    /// Asks, with no statement being answered before the only turn runs, and waits until that is a question.
    async fn ask(store: &Store, login: &str) -> tokio::task::JoinHandle<bool> {
        let (before, _) = store.asked_targets.waiting();
        let (asking, account) = (store.clone(), Account::from_login(login));
        let task = tokio::spawn(async move {
            asking.targets(&account, Timestamp(0)).await.is_ok_and(|targets| targets.is_empty())
        });
        while store.asked_targets.waiting().0 == before {
            tokio::task::yield_now().await;
        }
        task
    }

    #[tokio::test]
    async fn what_waits_together_is_asked_together_without_what_is_given_up() {
        let (_folder, store) = open().await;
        let mut turn = store.asked_targets.hold();
        let mut tasks = Vec::new();
        for login in ["alice", "bob", "carol"] {
            tasks.push(ask(&store, login).await);
        }
        tasks.remove(1).abort();
        while store.asked_targets.waiting().1 == 0 {
            tokio::task::yield_now().await;
        }
        let taken = turn.take().unwrap();
        let accounts: Vec<_> = taken.iter().map(|it| it.what.0.0.to_string()).collect();
        assert_eq!(accounts, ["alice", "carol"]);
        gathering::ask(&store, taken).await;
        for task in tasks {
            assert!(task.await.unwrap());
        }
    }

    #[tokio::test]
    async fn a_statement_that_fails_fails_for_all_who_wait_for_it() {
        let (_folder, store) = open().await;
        let turn = store.asked_targets.hold();
        let tasks = [ask(&store, "alice").await, ask(&store, "bob").await];
        store.connections.close_reads().await;
        turn.run(store).await;
        for task in tasks {
            assert!(!task.await.unwrap());
        }
    }

    /// However many wait, few tasks ask for them; and when nothing waits, none is left.
    #[tokio::test]
    async fn as_many_tasks_ask_as_statements_may_be_under_way() {
        let (_folder, store) = open().await;
        let runtime = tokio::runtime::Handle::current().metrics();
        let turn = store.asked_targets.hold();
        let mut tasks = Vec::new();
        for number in 0..200 {
            tasks.push(ask(&store, &format!("user{number}")).await);
        }
        assert_eq!((store.asked_targets.waiting().0, runtime.num_alive_tasks()), (200, 200));
        turn.run(store.clone()).await;
        for task in tasks {
            assert!(task.await.unwrap());
        }
        assert_eq!(store.asked_targets.turns(), 0);
        assert!(ask_alone(&store).await);
    }

    /// With nothing that waits, and no turn that is held.
    async fn ask_alone(store: &Store) -> bool {
        store.targets(&Account::from_login("alice"), Timestamp(0)).await.is_ok()
    }
}
