//! Nodes on one database see each other come, go and die.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mailchime::imap::registration::xapple::{DeviceToken, XAppleRegistration};
use mailchime::model::{Account, Mailbox, Registration, Snapshot, Timestamp};
use mailchime::nodes::{Assignment, ClusterView, Membership};
use mailchime::store::{Invalidation, Store};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::limited;
use crate::support::pushing::register;

/// A database that nodes share. In an SQLite file they share it as one process does.
struct NodesWorld {
    store: Store,
    _folder: TempDir,
}

struct Node {
    store: Store,
    cluster: ClusterView,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl NodesWorld {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("mailchime.db").display());
        let store = Store::open(&url.parse().unwrap(), Duration::from_secs(5)).await.unwrap();
        Self { store, _folder: folder }
    }

    /// Finds others dead after 300 ms.
    async fn node(&self, name: &str, incarnation: &str) -> Node {
        let store = self.store.clone().of_node(incarnation.into());
        let takeover = Duration::from_millis(300);
        let (membership, cluster) =
            Membership::new(name.into(), store.clone(), takeover, Arc::default());
        let stop = CancellationToken::new();
        let task = tokio::spawn(membership.run(stop.clone()));
        Node { store, cluster, stop, task }
    }
}

impl Node {
    /// Waits until the assignment is such.
    async fn until(&mut self, reached: impl FnMut(&Assignment) -> bool) -> Assignment {
        self.cluster.assignment.wait_for(reached).await.unwrap().clone()
    }

    async fn sees(&mut self, nodes: &[&str]) -> Assignment {
        self.until(|assignment| assignment.nodes().eq(nodes.iter().copied())).await
    }

    /// As SIGKILL does.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// Whose the accounts are, by the assignment of each node: each must be of one.
fn shares(assignments: &[&Assignment]) -> Vec<usize> {
    let accounts = (0..3000).map(|number| Account::from_login(&format!("user{number}")));
    let mut shares = vec![0; assignments.len()];
    for account in accounts {
        let owners: Vec<_> =
            (0..assignments.len()).filter(|at| assignments[*at].is_mine(&account)).collect();
        assert_eq!(owners.len(), 1, "{account} is watched by {owners:?}");
        shares[owners[0]] += 1;
    }
    shares
}

#[tokio::test]
async fn nodes_that_join_or_leave_are_seen_and_the_accounts_are_divided_anew() {
    limited(async {
        let world = NodesWorld::new().await;
        let mut a = world.node("a", "1").await;
        assert_eq!(shares(&[&a.sees(&["a"]).await]), [3000]);
        let mut b = world.node("b", "2").await;
        let mut c = world.node("c", "3").await;
        let all = ["a", "b", "c"];
        let assignments = [a.sees(&all).await, b.sees(&all).await, c.sees(&all).await];
        let even = shares(&assignments.each_ref());
        assert!(even.iter().all(|share| (900..1100).contains(share)), "{even:?}");

        // Killed: it takes a while. Stopped: its row goes with it.
        b.kill().await;
        shares(&[&a.sees(&["a", "c"]).await, &c.sees(&["a", "c"]).await]);
        c.stop().await;
        assert_eq!(a.store.nodes().await.unwrap().len(), 1);
        assert_eq!(shares(&[&a.sees(&["a"]).await]), [3000]);
    })
    .await;
}

#[tokio::test]
async fn a_name_that_two_have_is_of_the_later_until_that_one_dies() {
    limited(async {
        let world = NodesWorld::new().await;
        let mut earlier = world.node("a", "1").await;
        earlier.until(|assignment| assignment.is_mine(&Account::from_login("alice"))).await;
        let mut later = world.node("a", "2").await;
        let alice = Account::from_login("alice");
        later.until(|assignment| assignment.is_mine(&alice)).await;
        let displaced = earlier.until(|assignment| !assignment.is_mine(&alice)).await;
        assert_eq!(displaced.owner(&alice), Some("a"));
        later.kill().await;
        earlier.until(|assignment| assignment.is_mine(&alice)).await;
    })
    .await;
}

#[tokio::test]
async fn a_node_taken_for_dead_comes_back_and_reads_everything_again() {
    limited(async {
        let world = NodesWorld::new().await;
        let mut a = world.node("a", "1").await;
        let before = a.sees(&["a"]).await.joined();
        // As another node does that has not seen it beat for long.
        a.store.leave("a").await.unwrap();
        let back = a.until(|assignment| assignment.joined() > before).await;
        assert!(back.is_mine(&Account::from_login("alice")), "it has watched all the while");
        // And again when whatever began while it was away has ended.
        a.until(|assignment| assignment.joined() > back.joined()).await;
    })
    .await;
}

#[tokio::test]
async fn a_change_by_another_session_is_announced() {
    limited(async {
        let world = NodesWorld::new().await;
        let mut a = world.node("a", "1").await;
        a.sees(&["a"]).await;
        // More than is taken at a time.
        let other = world.store.clone();
        let users: BTreeSet<_> =
            (0..300).map(|number| Account::from_login(&format!("user{number}"))).collect();
        for (number, account) in users.iter().enumerate() {
            let device = XAppleRegistration {
                version: 2,
                account_id: "0715A26B-CA09-4730-A419-793000CA982E".into(),
                token: DeviceToken::new(&format!("{number:064x}")).unwrap(),
                subtopic: "com.apple.mobilemail".into(),
                mailboxes: Vec::new(),
            }
            .subscription(account.clone(), "com.apple.mail.XServer.1");
            let mailboxes = vec![(Mailbox::new("INBOX"), Snapshot::default())];
            let registration = Registration { subscription: device, mailboxes };
            register(&other, &registration, Timestamp::now()).await;
        }
        let mut told = BTreeSet::new();
        while told != users {
            let Invalidation { account, login } = a.cluster.news.recv().await.unwrap();
            assert!(login);
            told.insert(account);
        }
        a.stop().await;
    })
    .await;
}
