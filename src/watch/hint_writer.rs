//! News of accounts without a connection here, on its way to the disk: their mailboxes are marked as due in
//! the database, many in one transaction, before the source has an answer. The marks of mailboxes that were looked at
//! are taken away by the same transactions, or, where nodes share the database, mostly by others. The supervisor
//! does not wait for that.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::WatchContext;
use crate::model::{Account, Hint, Timestamp};
use crate::store::{DueMark, LookedAt, StoreError};

/// Marks that may wait to be taken away. Of more, the mailboxes are looked at once more: none is taken away later, for
/// there may be a new one by then.
const LOOKED_AT: usize = 10_000;

/// Hints that are written in one transaction, but for the last call's, and marks that are taken away.
const BATCH: usize = 500;

/// Marks wait for so long for hints, whose transaction takes them away. A look more is all that a stop meanwhile costs.
const WITH_HINTS: Duration = Duration::from_millis(50);

/// Where other nodes read them they wait for each other: a hint alone is written by fewer trips to the server.
const TOGETHER: Duration = Duration::from_millis(20);

/// Why a hint was not taken. Its source may send it again.
#[derive(Clone, Debug)]
pub enum HintError {
    /// Too many wait to be written.
    Busy,
    /// The watching part has ended.
    Stopped,
    /// The database has not taken it.
    Store(Arc<StoreError>),
}

/// What waits to be written, and the batch that is. While one is being written, the next one gathers.
#[derive(Debug)]
pub(super) struct HintWriter {
    context: Arc<WatchContext>,
    waiting: VecDeque<HintCall>,
    /// Hints in `waiting`.
    hints: usize,
    pub(super) looked_at: Vec<LookedAt>,
    /// When `looked_at` is written without hints.
    alone_at: Option<Instant>,
    writing: JoinSet<RecordedHints>,
    /// Hints in `writing`.
    written: usize,
    /// Whose they are.
    written_of: HashSet<Account>,
}

/// What one call has brought.
#[derive(Debug)]
struct HintCall {
    hints: Vec<Hint>,
    /// `None` where nobody waits for an answer: after a session's end, and of news that another node is to get.
    reply: Option<HintReply>,
}

pub(super) type HintReply = oneshot::Sender<Result<Vec<bool>, HintError>>;

/// A batch that was written, or was not.
#[derive(Debug)]
pub(super) struct RecordedHints {
    /// Those that are on disk, each with whether other nodes have word of it.
    pub(super) hints: Vec<(Hint, bool)>,
    /// How many hints each call has brought, in their order.
    replies: Vec<(usize, Option<HintReply>)>,
    /// Whether somebody has registered for the mailbox of each.
    known: Result<Vec<bool>, HintError>,
    /// Marks of mailboxes that were looked at are left.
    pub(super) marks_left: bool,
}

impl HintWriter {
    pub(super) fn new(context: Arc<WatchContext>) -> Self {
        let (waiting, looked_at, writing) = (VecDeque::new(), Vec::new(), JoinSet::new());
        let written_of = HashSet::new();
        let (hints, written, alone_at) = (0, 0, None);
        Self { context, waiting, hints, looked_at, alone_at, writing, written, written_of }
    }

    /// Has hints written, and answers then. Those of one call may be more than may wait, where nothing else does.
    /// An error where they are not taken, which is answered.
    pub(super) fn add(
        &mut self,
        hints: Vec<Hint>,
        reply: Option<HintReply>,
    ) -> Result<(), HintError> {
        let before = self.hints + self.written;
        if before > 0 && before + hints.len() > self.context.most_hints {
            match reply {
                // Who asked may have gone.
                Some(reply) => drop(reply.send(Err(HintError::Busy))),
                None => tracing::debug!(
                    target: "mailchime::watch::event_not_recorded",
                    events = hints.len(),
                    "the database is busy; mailchime does not record that these mailboxes may have \
                     changed, and finds it with the next sweep"
                ),
            }
            return Err(HintError::Busy);
        }
        self.hints += hints.len();
        self.waiting.push_back(HintCall { hints, reply });
        Ok(())
    }

    /// These were looked at. Whether their marks are left, since too many wait. Those of an account that is being marked
    /// anew are left to the next look, which is for that mark. Written behind that mark, they would take it away.
    pub(super) fn looked_at(&mut self, mut looked_at: Vec<LookedAt>) -> bool {
        looked_at.retain(|it| !self.written_of.contains(&it.account));
        if self.looked_at.len() < LOOKED_AT {
            self.looked_at.extend(looked_at);
            if !self.looked_at.is_empty() {
                let wait = if self.context.store.is_shared() { TOGETHER } else { WITH_HINTS };
                self.alone_at.get_or_insert_with(|| Instant::now() + wait);
            }
            return false;
        }
        !looked_at.is_empty()
    }

    /// Begins to write the next batch, unless one is being written. `is_ours` says which accounts this node
    /// watches, and `is_watched` whether one of these is watched.
    pub(super) fn write(
        &mut self,
        is_ours: impl Fn(&Account) -> bool,
        is_watched: impl Fn(&Account) -> bool,
    ) {
        let alone = self.alone_at.is_some_and(|at| at <= Instant::now());
        if !self.writing.is_empty() || self.waiting.is_empty() && !alone {
            return;
        }
        let (mut hints, mut replies) = (Vec::new(), Vec::new());
        while hints.len() < BATCH
            && let Some(call) = self.waiting.pop_front()
        {
            self.hints -= call.hints.len();
            replies.push((call.hints.len(), call.reply));
            hints.extend(call.hints.into_iter().map(|hint| {
                let others = !is_ours(&hint.account);
                (hint, others)
            }));
        }
        self.written = hints.len();
        self.written_of = hints.iter().map(|(hint, _)| hint.account.clone()).collect();
        let most = self.to_take_away(alone, self.context.store.is_shared());
        let looked_at: Vec<_> = self.looked_at.drain(..most).collect();
        self.alone_at = self.alone_at.filter(|_| !self.looked_at.is_empty());
        let on_demand = |hint: &Hint| self.context.is_on_demand(&hint.account);
        let marks = hints.iter().map(|(hint, others)| mark(hint, on_demand(hint), *others));
        let marks: Vec<_> = marks.collect();
        // A connection that is held looks at everything when it begins. So nothing has to be on disk.
        let held =
            looked_at.is_empty() && marks.iter().all(|mark| !mark.is_due && !mark.for_another_node);
        let watched = held.then(|| hints.iter().map(|(hint, _)| is_watched(&hint.account)));
        let watched: Option<Vec<bool>> = watched.map(Iterator::collect);
        let store = self.context.store.clone();
        self.writing.spawn(async move {
            let known = match watched {
                Some(watched) => Ok(watched),
                None => store.mark_due(&looked_at, &marks, Timestamp::now()).await,
            };
            let known = known.map_err(|error| {
                // Who sends them says so, and how often.
                tracing::debug!(
                    target: "mailchime::watch::events_not_recorded",
                    events = hints.len(), %error,
                    "could not record events of mail servers in the database; mailchime refuses them, \
                     and finds what they tell with the next sweep"
                );
                hints.clear();
                HintError::Store(Arc::new(error))
            });
            let marks_left = known.is_err() && !looked_at.is_empty();
            RecordedHints { hints, replies, known, marks_left }
        });
    }

    /// How many of the marks that wait are taken away before the hints of this batch are written. Those of an account that
    /// is marked anew have to be, with all that came before them: later they would take that one away.
    fn to_take_away(&self, alone: bool, is_shared: bool) -> usize {
        let is_marked = |looked_at: &LookedAt| self.written_of.contains(&looked_at.account);
        let marked = self.looked_at.iter().rposition(is_marked).map_or(0, |last| last + 1);
        match alone || !is_shared {
            true => self.looked_at.len().min(BATCH).max(marked),
            false => marked,
        }
    }

    /// A batch is written; `None`: the next one is to be. Cancel safe.
    pub(super) async fn written(&mut self) -> Option<RecordedHints> {
        let Some(written) = self.writing.join_next().await else {
            match self.alone_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
            return None;
        };
        self.written = 0;
        self.written_of.clear();
        written.ok()
    }
}

impl RecordedHints {
    /// Answers those that wait for it. An error where hints were not written.
    pub(super) fn answer(self) -> Result<(), HintError> {
        let had_hints = !self.replies.is_empty();
        let mut known = self.known.map(Vec::into_iter);
        for (hints, reply) in self.replies {
            let answer = match &mut known {
                Ok(known) => Ok(known.by_ref().take(hints).collect()),
                Err(error) => Err(error.clone()),
            };
            if let Some(reply) = reply {
                // Who asked may have gone.
                let _ = reply.send(answer);
            }
        }
        if had_hints { known.map(drop) } else { Ok(()) }
    }
}

fn mark(hint: &Hint, is_due: bool, for_another_node: bool) -> DueMark {
    let Hint { account, mailbox, state, .. } = hint;
    let counts = [state.uid_next, state.messages, state.unseen];
    let state = counts.iter().all(Option::is_some).then_some(*state);
    let (account, mailbox) = (account.clone(), mailbox.clone());
    let shown_flags = hint.event.changes_shown_flags();
    DueMark { account, mailbox, state, shown_flags, is_due, for_another_node }
}

impl fmt::Display for HintError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str("too many events wait to be written"),
            Self::Stopped => f.write_str("watching has ended"),
            Self::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for HintError {}

#[cfg(test)]
mod tests {
    use super::super::test_context;
    use super::*;
    use crate::model::Mailbox;
    use crate::store::NodeMarks;

    fn failed(replies: Vec<(usize, Option<HintReply>)>) -> RecordedHints {
        RecordedHints { hints: Vec::new(), replies, known: Err(HintError::Busy), marks_left: true }
    }

    #[test]
    fn marks_that_could_not_be_taken_away_are_no_lost_events() {
        assert!(failed(Vec::new()).answer().is_ok());
        let (reply, mut answer) = oneshot::channel();
        assert!(failed(vec![(1, Some(reply))]).answer().is_err());
        assert!(answer.try_recv().unwrap().is_err());
        // So it is where nobody waits.
        assert!(failed(vec![(1, None)]).answer().is_err());
    }

    #[tokio::test]
    async fn where_nodes_share_a_database_a_hint_goes_without_what_was_looked_at_of_others() {
        let (_folder, context) = test_context::context(&test_context::one_backend("imap")).await;
        let mut writer = HintWriter::new(context);
        let of = |login: &str| HashSet::from([Account::from_login(login)]);
        let (account, mailbox) = (Account::from_login("alice"), Mailbox::inbox());
        let alice = LookedAt { account, mailbox, marks: NodeMarks::default() };
        let others = (0..BATCH).map(|number| {
            let account = Account::from_login(&format!("user{number}"));
            LookedAt { account, ..alice.clone() }
        });
        let many: Vec<_> = others.chain([alice.clone()]).collect();
        writer.looked_at(vec![alice]);
        writer.written_of = of("bob");
        assert_eq!(writer.to_take_away(false, true), 0);
        assert_eq!(writer.to_take_away(true, true), 1);
        assert_eq!(writer.to_take_away(false, false), 1);
        writer.written_of = of("alice");
        assert_eq!(writer.to_take_away(false, true), 1);
        // However many wait.
        writer.looked_at = many;
        assert_eq!(writer.to_take_away(true, true), BATCH + 1);
        writer.written_of = of("bob");
        assert_eq!(writer.to_take_away(true, true), BATCH);
    }

    #[tokio::test]
    async fn a_mark_that_is_being_written_stays_behind_the_look_before_it() {
        let (_folder, context) = test_context::context(&test_context::one_backend("imap")).await;
        let mut writer = HintWriter::new(context);
        let [alice, bob] = ["alice", "bob"].map(Account::from_login);
        writer.add(vec![Hint::of_all(alice.clone())], None).unwrap();
        writer.write(|_| true, |_| true);
        let look = |account: &Account| {
            let (account, mailbox) = (account.clone(), Mailbox::inbox());
            LookedAt { account, mailbox, marks: NodeMarks::default() }
        };
        assert!(!writer.looked_at(vec![look(&alice), look(&bob)]));
        assert_eq!(writer.looked_at, [look(&bob)]);
        assert!(writer.written().await.is_some());
        assert!(!writer.looked_at(vec![look(&alice)]));
        assert_eq!(writer.looked_at, [look(&bob), look(&alice)]);
    }
}
