//! A sweep that a kill ends, and the next start.

use std::collections::BTreeSet;
use std::time::Duration;

use mailchime::config::WatchConnection;

use crate::support::stage::{Peer, Stage};
use crate::support::watching::told;
use crate::support::{limited, until};

const ACCOUNTS: usize = 300;

/// So many of them are asked for at once.
const AT_ONCE: usize = 256;

/// So many have been asked for when the program is killed.
const SWEPT: usize = 40;

/// A visit up to its question.
const LOGGED_IN: &str = "\
S: m2 OK [CAPABILITY IMAP4rev1 IDLE] in
C: w1 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
";

const ANSWERED: &str = "\
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2)
S: w1 OK done
C: w2 LOGOUT
S: * BYE
S: w2 OK out
";

/// The next visits, each with its user, up to their question. All of them wait for its answer.
async fn visits(stage: &Stage, number: usize) -> Vec<(String, Peer)> {
    let mut visits = Vec::new();
    for _ in 0..number {
        let mut peer = stage.accept().await;
        peer.play("S: * OK [CAPABILITY IMAP4rev1] hi\n").await;
        let login = peer.line().await;
        let user = login.strip_prefix("m2 LOGIN \"").and_then(|rest| rest.split_once('"'));
        let user = user.expect(&login).0.to_owned();
        peer.play(LOGGED_IN).await;
        visits.push((user, peer));
    }
    visits
}

/// Their questions are answered. Whose they were.
async fn answer(visits: impl Iterator<Item = (String, Peer)>) -> BTreeSet<String> {
    let mut users = BTreeSet::new();
    for (user, mut peer) in visits {
        peer.play(ANSWERED).await;
        users.insert(user);
    }
    users
}

/// What came while the program was away is to be found in all accounts, so those that were asked for come again: behind
/// the others.
#[tokio::test]
async fn a_sweep_that_a_kill_has_ended_goes_on_with_those_that_it_has_not_asked_for() {
    limited(async {
        let mut stage = Stage::new().await;
        stage.world.watch.connection = WatchConnection::OnDemand;
        stage.world.connect_timeout = Duration::from_hours(1);
        for number in 1..ACCOUNTS {
            let user = format!("user{number:03}");
            stage.world.register(&user, &[("INBOX", told(7, 10, 5, 2))]).await;
        }
        let due = async || {
            let due = stage.world.store.due_accounts().await.unwrap();
            due.iter().map(|(user, _)| user.as_str().to_owned()).collect::<BTreeSet<_>>()
        };

        let watching = stage.world.watch();
        let mut under_way = visits(&stage, AT_ONCE).await;
        let swept = answer(under_way.drain(..SWEPT)).await;
        // Others have their places, and the last ones wait.
        under_way.extend(visits(&stage, SWEPT).await);
        until(async || due().await.is_disjoint(&swept)).await;
        // Nothing of the program gets to say or write anything any more.
        watching.task.abort();
        assert!(watching.task.await.unwrap_err().is_cancelled());
        drop(under_way);
        assert_eq!(due().await.len(), ACCOUNTS - SWEPT);

        let watching = stage.world.watch();
        let first = visits(&stage, AT_ONCE).await;
        let again: Vec<_> = first.iter().map(|it| &it.0).filter(|it| swept.contains(*it)).collect();
        assert!(again.is_empty(), "asked for again before {} others: {again:?}", ACCOUNTS - SWEPT);
        let mut asked = answer(first.into_iter()).await;
        let rest = visits(&stage, ACCOUNTS - AT_ONCE).await;
        asked.extend(answer(rest.into_iter()).await);
        assert_eq!(asked.len(), ACCOUNTS, "each of them once");
        assert!(asked.is_superset(&swept));
        until(async || due().await.is_empty()).await;
        watching.stop().await;
    })
    .await;
}
