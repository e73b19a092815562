//! What one account meets counts for that account; what several accounts meet, for their backend.

use std::collections::HashMap;
use std::time::Duration;

use mailchime::metrics::Watching as Mode;

use crate::support::stage::{IDLE, Peer, QUIET, Stage, stop};
use crate::support::watching::told;
use crate::support::{later, limited};

/// Greets a watcher and lets it log in; whose it is.
async fn greet(peer: &mut Peer) -> String {
    peer.play("S: * OK [CAPABILITY IMAP4rev1] hi").await;
    let login = peer.line().await;
    let user = login.strip_prefix("m2 LOGIN \"");
    let user = user.and_then(|rest| rest.strip_suffix("\" \"wonderland\""));
    let user = user.expect(&login).to_owned();
    peer.play("S: m2 OK [CAPABILITY IMAP4rev1 IDLE] in").await;
    user
}

const REFUSED: &str = "\
S: w3 NO [SERVERBUG] not in this mailbox
C: w4 CLOSE
S: w4 OK closed
C: w5 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2)
S: w5 OK done
";

#[tokio::test]
async fn one_inbox_that_refuses_idle_leaves_others_as_they_are() {
    limited(async {
        let stage = Stage::new().await;
        stage.world.register("bob", &[("INBOX", told(7, 10, 5, 2))]).await;
        let mut watching = stage.world.watch();
        let until_idle = QUIET.strip_suffix("S: + idling\n").unwrap();
        let (mut bob, mut alices) = (None, 0);
        while bob.is_none() || alices < 3 {
            let mut peer = stage.accept().await;
            match greet(&mut peer).await.as_str() {
                "bob" => {
                    peer.play(QUIET).await;
                    bob = Some(peer);
                }
                _ if alices < 2 => {
                    peer.play(until_idle).await;
                    peer.play(REFUSED).await;
                    alices += 1;
                    peer.play("S: * BYE").await;
                }
                _ => {
                    peer.play("C: w1 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)").await;
                    alices += 1;
                }
            }
        }
        let mut bob = bob.unwrap();
        bob.play(
            "\
S: * 6 EXISTS
C: DONE
S: w3 OK done
C: w4 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 6 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 3)
S: w4 OK done
C: w5 IDLE
",
        )
        .await;
        let confirmed = "INBOX: confirmed, next 11 of 6 with 3 unseen";
        watching.expect(&["INBOX: new mail, announced", confirmed]).await;
        stop(watching, bob).await;
    })
    .await;
}

#[tokio::test]
async fn idle_that_several_accounts_cannot_use_is_not_tried_by_others() {
    limited(async {
        let stage = Stage::new().await;
        for user in ["bob", "carol"] {
            stage.world.register(user, &[("INBOX", told(7, 10, 5, 2))]).await;
        }
        let watching = stage.world.watch();
        let until_idle = QUIET.strip_suffix("S: + idling\n").unwrap();
        let mut refused: HashMap<String, usize> = HashMap::new();
        let mut polled = Vec::new();
        while refused.values().sum::<usize>() < 6 {
            let mut peer = stage.accept().await;
            let user = greet(&mut peer).await;
            let refused = refused.entry(user).or_default();
            if *refused == 2 {
                polled.push(peer);
                continue;
            }
            *refused += 1;
            peer.play(until_idle).await;
            peer.play(REFUSED).await;
            peer.play("S: * BYE").await;
        }
        stage.world.register("dave", &[("INBOX", told(7, 10, 5, 2))]).await;
        watching.registered("dave").await;
        loop {
            let mut peer = stage.accept().await;
            let user = greet(&mut peer).await;
            peer.play("C: w1 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)").await;
            polled.push(peer);
            if user == "dave" {
                break;
            }
        }
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_inbox_whose_idle_ends_the_connection_is_polled_after_some_of_them() {
    limited(async {
        let mut stage = Stage::new().await;
        // What ends within five times this was no good.
        stage.world.watch.retry_min = Duration::from_secs(60);
        let watching = stage.world.watch();
        for _ in 0..5 {
            let mut peer = stage.accept().await;
            peer.play(IDLE).await;
            peer.play(QUIET).await;
        }
        let mut peer = stage.accept().await;
        peer.play(IDLE).await;
        peer.play("C: w1 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)").await;
        stop(watching, peer).await;
    })
    .await;
}

const NOTIFY: &str = "NOTIFY SET (selected (MessageNew MessageExpunge FlagChange)) \
                      (mailboxes (\"Team\") (MessageNew MessageExpunge FlagChange))";
const LIST: &str =
    r#"LIST "" ("INBOX" "Team") RETURN (STATUS (MESSAGES UIDNEXT UIDVALIDITY UNSEEN))"#;

fn listed(team: u64) -> String {
    format!(
        "\
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2)
S: * STATUS Team (MESSAGES {team} UIDNEXT {} UIDVALIDITY 8 UNSEEN 0)
",
        team + 5
    )
}

async fn stage_with_team() -> Stage {
    let stage = Stage::new().await;
    let mailboxes = [("INBOX", told(7, 10, 5, 2)), ("Team", told(8, 8, 3, 0))];
    stage.world.register("alice", &mailboxes).await;
    stage
}

const LOGIN: &str = "\
S: * OK [CAPABILITY IMAP4rev1] hi
C: m2 LOGIN \"alice\" \"wonderland\"
S: m2 OK [CAPABILITY IMAP4rev1 IDLE NOTIFY LIST-STATUS] in
C: w1 EXAMINE INBOX
S: w1 OK open
";

/// RFC 5465 section 5.8: the backend then tells nothing at all until NOTIFY is set anew.
#[tokio::test]
async fn notify_that_overflows_is_set_anew_at_once_and_more_slowly_where_it_overflows_again() {
    limited(async {
        let mut stage = stage_with_team().await;
        // The longest time until it is set anew.
        stage.world.watch.idle_check = Duration::from_secs(3);
        let mut watching = stage.world.watch();
        let mut peer = stage.accept().await;
        peer.play(LOGIN).await;
        let (first, second, third) = (listed(3), listed(4), listed(5));
        peer.play(&format!(
            "\
C: w2 {NOTIFY}
S: w2 OK done
C: w3 {LIST}
{first}S: w3 OK done
C: w4 IDLE
S: + idling
S: * OK [NOTIFICATIONOVERFLOW] too much to tell
C: DONE
S: w4 OK done
C: w5 {NOTIFY}
S: w5 OK done
C: w6 {LIST}
{second}S: w6 OK done
C: w7 IDLE
S: + idling
S: * OK [NOTIFICATIONOVERFLOW] too much to tell
C: DONE
S: w7 OK done
C: w8 {LIST}
{third}S: w8 OK done
C: w9 IDLE
S: + idling
"
        ))
        .await;
        let news = [
            "Team: new mail, next 9 of 4 with 0 unseen",
            "Team: new mail, next 10 of 5 with 0 unseen",
        ];
        watching.expect(&news).await;
        peer.play(&format!(
            "\
C: DONE
S: w9 OK done
C: w10 {NOTIFY}
S: w10 OK done
C: w11 {LIST}
{third}S: w11 OK done
C: w12 IDLE
S: + idling
"
        ))
        .await;
        assert_eq!(watching.watched(Mode::Notify), 1);
        watching.expect_nothing();
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn notify_that_overflows_as_it_is_set_is_not_refused() {
    limited(async {
        let stage = stage_with_team().await;
        let watching = stage.world.watch();
        for _ in 0..3 {
            let mut peer = stage.accept().await;
            peer.play(LOGIN).await;
            let listed = listed(3);
            peer.play(&format!(
                "\
C: w2 {NOTIFY}
S: w2 NO [NOTIFICATIONOVERFLOW] too many mailboxes
C: w3 {LIST}
{listed}S: w3 OK done
C: w4 IDLE
S: + idling
C: DONE
S: w4 OK done
C: w5 {NOTIFY}
S: w5 NO [NOTIFICATIONOVERFLOW] too many mailboxes
C: w6 {LIST}
{listed}S: w6 OK done
C: w7 IDLE
S: + idling
S: * BYE that is all
"
            ))
            .await;
            drop(peer);
        }
        watching.stop().await;
    })
    .await;
}

/// Without NOTIFY the backend tells nothing of INBOX either, whatever IDLE is good for.
#[tokio::test]
async fn after_an_overflow_that_cannot_be_mended_everything_is_polled() {
    limited(async {
        let mut stage = stage_with_team().await;
        stage.world.watch.poll_interval = Duration::from_secs(5);
        let mut watching = stage.world.watch();
        let mut peer = stage.accept().await;
        peer.play(LOGIN).await;
        let listed = listed(3);
        peer.play(&format!(
            "\
C: w2 {NOTIFY}
S: w2 OK done
C: w3 {LIST}
{listed}S: w3 OK done
C: w4 IDLE
S: + idling
S: * 6 EXISTS
C: DONE
S: w4 OK done
C: w5 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 6 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 3)
S: w5 OK done
C: w6 IDLE
S: + idling
"
        ))
        .await;
        let confirmed = "INBOX: confirmed, next 11 of 6 with 3 unseen";
        watching.expect(&["INBOX: new mail, announced", confirmed]).await;
        // A second look at INBOX alone would be due before the others are polled.
        later(Duration::from_secs(2)).await;
        peer.play(&format!(
            "\
S: * OK [NOTIFICATIONOVERFLOW] too much to tell
C: DONE
S: w6 OK done
C: w7 {NOTIFY}
S: w7 NO not any more
C: w8 {LIST}
S: * STATUS INBOX (MESSAGES 6 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 3)
S: * STATUS Team (MESSAGES 3 UIDNEXT 8 UIDVALIDITY 8 UNSEEN 0)
S: w8 OK done
C: w9 IDLE
S: + idling
"
        ))
        .await;
        // What is not set any more cannot end.
        peer.play("S: * OK [NOTIFICATIONOVERFLOW] still").await;
        let soon = tokio::time::timeout(Duration::from_secs(1), peer.line()).await;
        assert!(soon.is_err(), "it does not wait for the next poll: {soon:?}");
        // Although IDLE has shown that it tells of INBOX.
        peer.play(&format!("C: DONE\nS: w9 OK done\nC: w10 {LIST}")).await;
        stop(watching, peer).await;
    })
    .await;
}
