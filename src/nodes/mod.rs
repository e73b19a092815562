//! The nodes: processes that share one database and divide the watching among them, without a
//! coordinator.
//!
//! ```text
//!   each node ──▶ its row, beating ──▶ all see the same rows ──▶ Assignment ──▶ watch, push
//!   any change of an account ──▶ news for the other nodes ──▶ the one that watches it looks again
//!   an event of a mail server ──▶ the same, and its account by name, where the database carries that
//! ```
//!
//! Who has a row takes part. A row goes when its node stops, or when it has not changed for too long
//! and another node removes it. A node that cannot reach the database keeps the assignment that it
//! knows: its mailboxes may be watched twice then, but never by nobody.
//!
//! Nothing here knows what is done with the assignment. A process with a database of its own needs
//! none of this: it is [alone](ClusterView::none).

mod assignment;
mod failure_detector;
mod listening;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

pub use self::assignment::Assignment;
use self::failure_detector::FailureDetector;
use self::listening::NewsBell;
use crate::metrics::Metrics;
use crate::model::Timestamp;
use crate::store::{Node, NodeNews, Store, StoreError};

/// How many looks at the rows it takes to find a node dead.
const LOOKS: u32 = 30;

/// One beat in so many looks.
const LOOKS_PER_HEARTBEAT: u32 = 5;

/// News that may wait to be looked into; what is more waits in the database.
const NEWS: usize = 256;

/// Each look for news is a transaction that writes. However often the bell rings, one begins so many times as long after
/// the last one as that took: the quicker the database is, the sooner a node knows.
const APART: u32 = 4;

/// The least and the most that can be.
const LEAST_APART: Duration = Duration::from_millis(2);
const MOST_APART: Duration = Duration::from_millis(20);

/// Where nothing tells of news: behind some there may be more, and it is looked for after so long. After a look that
/// found none the wait doubles, up to that between two looks at the rows.
const MORE: Duration = Duration::from_millis(20);

/// What a node sees of the others.
#[derive(Debug)]
pub struct ClusterView {
    /// Which accounts are this node's.
    pub assignment: watch::Receiver<Assignment>,
    /// What other processes tell.
    pub news: mpsc::Receiver<NodeNews>,
}

/// A node that takes part.
#[derive(Debug)]
pub struct Membership {
    name: Arc<str>,
    store: Store,
    metrics: Arc<Metrics>,
    assignment: watch::Sender<Assignment>,
    news: mpsc::Sender<NodeNews>,
    /// Between two looks.
    pause: Duration,
    bell: Arc<NewsBell>,
    /// What the bell rings for before that is one look for news.
    hears_from: Instant,
    /// The next look for news between two looks at the rows, and what was waited for it.
    next_news: Option<(Instant, Duration)>,
    failures: FailureDetector,
    turns: u32,
    /// As [`Assignment::joined`].
    joined: u64,
    /// Calls that began before this node had its row, and so told it nothing, have ended by then.
    told_from: Option<Instant>,
    displaced: bool,
    cut_off: bool,
}

/// The name of a node that was given none: that of the machine, and the port on which it listens,
/// for there may be several.
pub fn default_name(port: u16) -> String {
    match machine() {
        Some(machine) => format!("{machine}:{port}"),
        None => format!("{}:{port}", incarnation()),
    }
}

/// The name of this machine, where the system tells it.
pub fn machine() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// For [`Store::of_node`].
pub fn incarnation() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// How long after the beginning of a look that took so long the next one may begin.
fn apart(took: Duration) -> Duration {
    (took * APART).clamp(LEAST_APART, MOST_APART)
}

impl ClusterView {
    /// Of a process that shares its database with nobody.
    pub fn none(name: &str) -> Self {
        let (_, assignment) = watch::channel(Assignment::alone(name.into()));
        let (_, news) = mpsc::channel(1);
        Self { assignment, news }
    }
}

impl Membership {
    /// Of a node that finds others dead after `takeover` and looks after them 30 times in this time.
    /// `store` must know it as a [node](Store::of_node).
    pub fn new(
        name: Arc<str>,
        store: Store,
        takeover: Duration,
        metrics: Arc<Metrics>,
    ) -> (Self, ClusterView) {
        let (assignment, assigned) = watch::channel(Assignment::unknown(Arc::clone(&name)));
        let (news, told) = mpsc::channel(NEWS);
        let membership = Self {
            name,
            store,
            metrics,
            assignment,
            news,
            pause: takeover / LOOKS,
            bell: Arc::default(),
            hears_from: Instant::now(),
            next_news: None,
            failures: FailureDetector::new(LOOKS),
            turns: 0,
            joined: 0,
            told_from: None,
            displaced: false,
            cut_off: false,
        };
        (membership, ClusterView { assignment: assigned, news: told })
    }

    /// Takes part until `stop`, then gives up its share, so that others take it over at once.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut turns = interval(self.pause);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (bell, store) = (Arc::clone(&self.bell), self.store.clone());
        let taking_part = async {
            loop {
                let next_news = self.next_news.map(|(at, _)| at);
                let (bell, hears_from) = (&bell, self.hears_from);
                let rung = async move {
                    sleep_until(hears_from).await;
                    bell.rung().await;
                };
                let (result, is_turn) = tokio::select! {
                    _ = turns.tick() => (self.turn().await, true),
                    () = rung => (self.take_news().await, false),
                    () = bell.events() => {
                        self.pass_on_events();
                        (Ok(()), false)
                    }
                    () = sleep_until(next_news.unwrap_or_else(Instant::now)), if next_news.is_some() => {
                        (self.take_news().await, false)
                    }
                };
                self.report(result, is_turn);
            }
        };
        let listening = async { tokio::join!(taking_part, bell.listen(&store)) };
        stop.run_until_cancelled(listening).await;
        if let Err(error) = self.store.leave(&self.name).await {
            tracing::warn!(
                target: "mailchime::nodes::departure_not_recorded",
                %error,
                "could not record that this node stops; the other nodes take over its share after \
                 [node] takeover"
            );
        }
    }

    async fn turn(&mut self) -> Result<(), StoreError> {
        self.turns = self.turns.wrapping_add(1);
        if self.turns.is_multiple_of(LOOKS_PER_HEARTBEAT) {
            self.store.heartbeat(&self.name).await?;
        }
        let mut rows = self.store.nodes().await?;
        // A name that is there at the start is left from an earlier run that was killed.
        if self.joined == 0 || !rows.iter().any(|row| *row.name == *self.name) {
            self.store.join(&self.name).await?;
            if self.joined > 0 {
                tracing::warn!(
                    target: "mailchime::nodes::declared_dead",
                    node = %self.name,
                    "the other nodes had declared this node dead, and it has joined again; check \
                     its load and its way to the database"
                );
            }
            self.joined += 1;
            self.told_from = Some(Instant::now() + self.store.limit());
            rows = self.store.nodes().await?;
        }
        if self.told_from.is_some_and(|at| at <= Instant::now()) {
            self.joined += 1;
            self.told_from = None;
        }
        self.evict(&mut rows).await?;
        self.assign(&rows);
        self.take_news().await
    }

    /// Passes on the accounts whose events it has heard of. Where there is no room for them, their rows are news soon.
    fn pass_on_events(&self) {
        let accounts = self.bell.take_events();
        if !accounts.is_empty() {
            let _ = self.news.try_send(NodeNews::Events(accounts));
        }
    }

    /// Takes what news there is room for.
    async fn take_news(&mut self) -> Result<(), StoreError> {
        let (waited, most) =
            (self.next_news.take().map(|(_, waited)| waited), self.news.capacity());
        if self.displaced || self.joined == 0 {
            return Ok(());
        }
        let began = Instant::now();
        let news = match most {
            0 => Ok(Vec::new()),
            most => self.store.take_news(&self.name, most).await,
        };
        self.hears_from = began + apart(began.elapsed());
        // What could not be taken may be gone.
        self.joined += u64::from(news.is_err());
        let news = news?;
        let wait = match news.len() {
            // There is more, or may be.
            taken if taken == most => Some(MORE),
            _ if self.bell.hears() => None,
            0 => waited.map(|waited| waited * 2).filter(|wait| *wait < self.pause),
            _ => Some(MORE),
        };
        self.next_news = wait.map(|wait| (Instant::now() + wait, wait));
        for news in news {
            // There is room, unless nobody reads it any more.
            let _ = self.news.try_send(news);
        }
        Ok(())
    }

    /// Removes the nodes that are dead.
    async fn evict(&mut self, rows: &mut Vec<Node>) -> Result<(), StoreError> {
        let others = rows.iter().filter(|row| row.incarnation != self.store.incarnation());
        for dead in self.failures.look(others) {
            if self.store.evict(&dead).await? {
                tracing::warn!(
                    target: "mailchime::nodes::node_dead",
                    node = dead.name,
                    "a node sends no heartbeat; the live nodes take over its share"
                );
                rows.retain(|row| *row != dead);
            }
        }
        Ok(())
    }

    fn assign(&mut self, rows: &[Node]) {
        let own = rows.iter().find(|row| *row.name == *self.name);
        let displaced = own.is_some_and(|row| row.incarnation != self.store.incarnation());
        if displaced && !self.displaced {
            tracing::error!(
                target: "mailchime::nodes::name_taken",
                node = %self.name,
                "another mailchime has taken the name of this node and watches in its place, and \
                 this one watches nothing; give each node its own [node] name"
            );
        }
        self.displaced = displaced;
        let names = rows.iter().map(|row| Arc::from(&*row.name));
        let assignment = Assignment::new(Arc::clone(&self.name), !displaced, names, self.joined);
        self.metrics.nodes.set(i64::try_from(rows.len()).unwrap_or(i64::MAX));
        self.assignment.send_if_modified(|before| {
            let assignment = assignment.after(before, Timestamp::now());
            let changed = *before != assignment;
            if !before.nodes().eq(assignment.nodes()) {
                let nodes: Vec<_> = assignment.nodes().collect();
                tracing::info!(
                    target: "mailchime::nodes::members_changed",
                    node = %self.name, nodes = nodes.join(" "), "the list of live nodes changed"
                );
            }
            *before = assignment;
            changed
        });
    }

    /// Says when the others go out of sight, and when a whole turn has seen them again. A look for news alone proves
    /// nothing: it may make no call to the database.
    fn report(&mut self, result: Result<(), StoreError>, is_turn: bool) {
        match result {
            Err(error) if !self.cut_off => {
                tracing::warn!(
                    target: "mailchime::nodes::cluster_state_unreadable",
                    %error, "cluster state unreadable; keeping the current assignment"
                );
                self.cut_off = true;
            }
            Ok(()) if self.cut_off && is_turn => {
                tracing::info!(
                    target: "mailchime::nodes::cluster_state_readable",
                    "cluster state readable again"
                );
                self.cut_off = false;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_for_news_take_a_quarter_of_the_time_of_a_quick_database() {
        for (took, next) in [(0, 2), (1, 4), (3, 12), (5, 20), (15, 20)] {
            assert_eq!(apart(Duration::from_millis(took)), Duration::from_millis(next), "{took}");
        }
    }
}
