//! What many callers want of the database, gathered while earlier statements are being answered, so that the next
//! one is for all of them.
//!
//! ```text
//!   caller ──▶ waits ──▶ its answer
//!                └─────▶ a turn, where one is free: take, ask, answer, take, … until nothing waits
//! ```
//!
//! A turn is a task of its own: a caller that goes away takes nobody's answer with it. There are few of them,
//! however many wait.

use std::cmp::Ordering;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Store, StoreError, error};

/// Most that is taken at once, so that it does not hold up others for long.
const MOST: usize = 64;

/// What is wanted together with others.
pub(super) trait Gathered: Send + Sync + Sized + 'static {
    /// What is answered to each.
    type Answer: Send + 'static;

    /// Where they wait.
    fn gathering(store: &Store) -> &Arc<Gathering<Self>>;

    /// In which order they are asked together.
    fn compare(&self, _other: &Self) -> Ordering {
        Ordering::Equal
    }

    /// The answers to all of them, in their order.
    ///
    /// # Errors
    /// [`sqlx::Error`], for all of them.
    fn answers(
        store: &Store,
        together: &[Self],
    ) -> impl Future<Output = sqlx::Result<Vec<Self::Answer>>> + Send;
}

/// What waits, and how many turns are under way.
pub(super) struct Gathering<G: Gathered> {
    state: Mutex<State<G>>,
    /// Statements that may be under way at once.
    most_turns: usize,
}

struct State<G: Gathered> {
    waiting: Vec<Waiting<G>>,
    turns: usize,
}

/// What a caller wants, and whom to answer.
pub(super) struct Waiting<G: Gathered> {
    pub(super) what: G,
    reply: oneshot::Sender<GatheredAnswer<G>>,
}

type GatheredAnswer<G> = Result<<G as Gathered>::Answer, Arc<sqlx::Error>>;

/// The right to answer what waits.
pub(super) struct Turn<G: Gathered> {
    gathering: Arc<Gathering<G>>,
    is_over: bool,
}

impl<G: Gathered> Gathering<G> {
    /// Has so many statements answered at a time. There are more connections.
    pub(super) fn new(most_turns: usize) -> Self {
        Self { state: Mutex::new(State { waiting: Vec::new(), turns: 0 }), most_turns }
    }

    /// Another one, in which nothing waits.
    pub(super) fn anew(&self) -> Arc<Self> {
        Arc::new(Self::new(self.most_turns))
    }

    /// Adds what a caller wants. Returns where its answer comes, and a turn if one is free.
    fn add(self: &Arc<Self>, what: G) -> (oneshot::Receiver<GatheredAnswer<G>>, Option<Turn<G>>) {
        let (reply, answer) = oneshot::channel();
        let mut state = self.state.lock();
        state.waiting.push(Waiting { what, reply });
        let free = state.turns < self.most_turns;
        (answer, free.then(|| self.begin(&mut state)))
    }

    fn begin(self: &Arc<Self>, state: &mut State<G>) -> Turn<G> {
        state.turns += 1;
        Turn { gathering: Arc::clone(self), is_over: false }
    }
}

impl<G: Gathered> Turn<G> {
    /// Asks until nothing waits.
    pub(super) async fn run(mut self, store: Store) {
        loop {
            // Callers that are about to ask go along.
            tokio::task::yield_now().await;
            let Some(taken) = self.take() else { return };
            // What takes longer than a call may is given up with its connection, and so is what hangs at the end.
            let asked = async {
                ask(&store, taken).await;
                Ok(())
            };
            let _ = store.limited(asked).await;
        }
    }

    /// Those that have waited for longest and whose callers still wait, in their order. `None` where nothing does: then
    /// the turn is over.
    pub(super) fn take(&mut self) -> Option<Vec<Waiting<G>>> {
        let mut state = self.gathering.state.lock();
        state.waiting.retain(|waiting| !waiting.reply.is_closed());
        if state.waiting.is_empty() {
            // Whoever adds something from now on begins another one.
            state.turns -= 1;
            self.is_over = true;
            return None;
        }
        let most = state.waiting.len().min(MOST);
        let mut taken: Vec<_> = state.waiting.drain(..most).collect();
        drop(state);
        taken.sort_by(|one, other| one.what.compare(&other.what));
        Some(taken)
    }
}

impl<G: Gathered> Drop for Turn<G> {
    fn drop(&mut self) {
        if !self.is_over {
            self.gathering.state.lock().turns -= 1;
        }
    }
}

/// Asks for all of these, and answers. Where one of them may be what the database refuses, each is asked alone.
pub(super) async fn ask<G: Gathered>(store: &Store, taken: Vec<Waiting<G>>) {
    let (together, replies): (Vec<G>, Vec<_>) =
        taken.into_iter().map(|waiting| (waiting.what, waiting.reply)).unzip();
    match G::answers(store, &together).await {
        Err(error) if together.len() > 1 && !error::is_temporary(&error) => {
            for (what, reply) in together.iter().zip(replies) {
                let alone = G::answers(store, std::slice::from_ref(what)).await;
                let answer =
                    alone.and_then(|mut answers| answers.pop().ok_or(sqlx::Error::WorkerCrashed));
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

impl Store {
    /// The answer to this, asked for together with others. It is asked for at once where nothing is under way.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be used.
    pub(super) async fn with_others<G: Gathered>(&self, what: G) -> Result<G::Answer, StoreError> {
        let (answer, turn) = G::gathering(self).add(what);
        if let Some(turn) = turn {
            tokio::spawn(turn.run(self.clone()));
        }
        match answer.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(StoreError::from_shared(&self.database, error)),
            Err(_) => self.named(Err(sqlx::Error::WorkerCrashed)),
        }
    }
}

#[cfg(test)]
impl<G: Gathered> Gathering<G> {
    /// The only turn: nothing is answered before it [runs](Turn::run).
    pub(super) fn hold(self: &Arc<Self>) -> Turn<G> {
        assert_eq!(self.most_turns, 1);
        let mut state = self.state.lock();
        assert_eq!(state.turns, 0);
        self.begin(&mut state)
    }

    /// How many wait, and how many of them were given up.
    pub(super) fn waiting(&self) -> (usize, usize) {
        let state = self.state.lock();
        let given_up = state.waiting.iter().filter(|waiting| waiting.reply.is_closed());
        (state.waiting.len(), given_up.count())
    }

    /// How many turns are under way.
    pub(super) fn turns(&self) -> usize {
        self.state.lock().turns
    }
}
