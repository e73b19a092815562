//! Calls of doveadm's HTTP API: what is due of many accounts is asked for in one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

use crate::net::doveadm::{Doveadm, DoveadmAnswer, DoveadmQuery, MOST_ACCOUNTS};

/// Calls of one backend that are under way at once.
const CALLS: usize = 2;

/// The answer to one query; an error where the call failed, and nothing is known of any account of it.
type CallAnswer = Result<DoveadmAnswer, String>;

/// What waits to be asked for at one backend. Clones share it.
#[derive(Clone, Debug)]
pub(in crate::watch) struct DoveadmCalls(Arc<DoveadmCallsInner>);

#[derive(Debug)]
struct DoveadmCallsInner {
    waiting: Mutex<Vec<(DoveadmQuery, oneshot::Sender<CallAnswer>)>>,
    turns: Semaphore,
    most: MostAccounts,
}

/// Accounts that are asked for in one call. A server may be too slow for as many as there may be, as when it has just
/// started: after a call that has failed the next ones are for half as many.
#[derive(Debug)]
struct MostAccounts(AtomicUsize);

impl Default for DoveadmCalls {
    fn default() -> Self {
        let turns = Semaphore::new(CALLS);
        let most = MostAccounts::default();
        Self(Arc::new(DoveadmCallsInner { waiting: Mutex::default(), turns, most }))
    }
}

impl Default for MostAccounts {
    fn default() -> Self {
        Self(AtomicUsize::new(MOST_ACCOUNTS))
    }
}

impl MostAccounts {
    fn now(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// A call for so many accounts was answered, or has failed.
    fn called(&self, accounts: usize, is_answered: bool) {
        let most = match is_answered {
            true => self.now().max(accounts.saturating_mul(2)),
            false => self.now().min(accounts / 2),
        };
        self.0.store(most.clamp(1, MOST_ACCOUNTS), Ordering::Relaxed);
    }
}

impl DoveadmCalls {
    /// Asks together with others that wait meanwhile. One that goes away takes nobody's answer with it.
    pub(in crate::watch) async fn ask(
        &self,
        doveadm: &Arc<Doveadm>,
        query: DoveadmQuery,
    ) -> CallAnswer {
        let (reply, answer) = oneshot::channel();
        self.0.waiting.lock().push((query, reply));
        let (calls, doveadm) = (self.clone(), Arc::clone(doveadm));
        tokio::spawn(async move {
            let Ok(_turn) = calls.0.turns.acquire().await else { return };
            calls.call(&doveadm).await;
        });
        answer.await.unwrap_or_else(|_| Err("the call of doveadm broke off".to_owned()))
    }

    /// Asks for the first that wait, and answers.
    async fn call(&self, doveadm: &Doveadm) {
        let batch: Vec<_> = {
            let mut waiting = self.0.waiting.lock();
            waiting.retain(|(_, reply)| !reply.is_closed());
            let most = waiting.len().min(self.0.most.now());
            waiting.drain(..most).collect()
        };
        if batch.is_empty() {
            return;
        }
        let (queries, replies): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let answers = doveadm.status(&queries).await;
        self.0.most.called(queries.len(), answers.is_ok());
        // A watcher that is gone needs no answer.
        match answers {
            Ok(answers) => {
                for (reply, answer) in replies.into_iter().zip(answers) {
                    let _ = reply.send(Ok(answer));
                }
            }
            Err(error) => {
                for reply in replies {
                    let _ = reply.send(Err(error.to_string()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_slow_is_asked_for_fewer_accounts_until_it_answers() {
        let most = MostAccounts::default();
        let mut tried = Vec::new();
        // It can do 30.
        for _ in 0..8 {
            tried.push(most.now());
            most.called(most.now(), most.now() <= 30);
        }
        assert_eq!(tried, [200, 100, 50, 25, 50, 25, 50, 25]);
        // A short one says nothing of a long one.
        most.called(2, true);
        assert_eq!(most.now(), 50);
        for _ in 0..8 {
            most.called(most.now(), true);
        }
        assert_eq!(most.now(), MOST_ACCOUNTS);
        for accounts in [1, 1] {
            most.called(accounts, false);
            assert_eq!(most.now(), 1);
        }
    }
}
