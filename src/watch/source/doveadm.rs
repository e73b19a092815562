//! Calls of doveadm's HTTP API: what is due of many accounts is asked for in one.

use std::sync::Arc;

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
}

impl Default for DoveadmCalls {
    fn default() -> Self {
        let turns = Semaphore::new(CALLS);
        Self(Arc::new(DoveadmCallsInner { waiting: Mutex::default(), turns }))
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
            let most = waiting.len().min(MOST_ACCOUNTS);
            waiting.drain(..most).collect()
        };
        if batch.is_empty() {
            return;
        }
        let (queries, replies): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        // A watcher that is gone needs no answer.
        match doveadm.status(&queries).await {
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
