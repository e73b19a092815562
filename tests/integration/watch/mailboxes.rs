//! Each mailbox stands for itself: one that is not answered, ends connections or is refused keeps no
//! other from being watched; and mailboxes whose UIDNEXT tells nothing.

use std::time::Duration;

use mailchime::metrics::Watching as Mode;
use mailchime::model::Snapshot;

use crate::support::limited;
use crate::support::stage::{IDLE, Peer, QUIET, Stage, stop};
use crate::support::watching::told;

/// Alice's devices were told of her INBOX, and of 3 messages in Team.
async fn stage() -> Stage {
    let mut stage = Stage::new().await;
    stage.world.watch.answer_timeout = Duration::from_secs(3);
    let mailboxes = [("INBOX", told(7, 10, 5, 2)), ("Team", told(8, 8, 3, 0))];
    stage.world.register("alice", &mailboxes).await;
    stage
}

fn login(capabilities: &str) -> String {
    format!(
        "\
S: * OK [CAPABILITY IMAP4rev1] hi
C: m2 LOGIN \"alice\" \"wonderland\"
S: m2 OK [CAPABILITY IMAP4rev1 {capabilities}] in
"
    )
}

const OPEN: &str = "\
C: w1 EXAMINE INBOX
S: * 5 EXISTS
S: w1 OK [READ-ONLY] open
";

const INBOX: &str = r#"STATUS "INBOX" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)"#;
const TEAM: &str = r#"STATUS "Team" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)"#;

/// STATUS of INBOX under this tag, with so many messages.
fn inbox(tag: u32, messages: u32) -> String {
    let (next, unseen) = (messages + 5, messages - 3);
    format!(
        "\
C: w{tag} {INBOX}
S: * STATUS INBOX (MESSAGES {messages} UIDNEXT {next} UIDVALIDITY 7 UNSEEN {unseen})
S: w{tag} OK done
"
    )
}

fn team(tag: u32, messages: u32) -> String {
    let (next, unseen) = (messages + 5, messages - 3);
    format!(
        "\
C: w{tag} {TEAM}
S: * STATUS Team (MESSAGES {messages} UIDNEXT {next} UIDVALIDITY 8 UNSEEN {unseen})
S: w{tag} OK done
"
    )
}

/// How a backend that cannot look at a mailbox treats the connection.
#[derive(Clone, Copy, Debug)]
enum Ends {
    /// It closes it.
    Closes,
    /// It says nothing any more.
    IsSilent,
}

impl Ends {
    const ALL: [Self; 2] = [Self::Closes, Self::IsSilent];

    async fn end(self, peer: Peer) {
        match self {
            Self::Closes => drop(peer),
            Self::IsSilent => peer.left().await,
        }
    }
}

#[tokio::test]
async fn a_mailbox_that_ends_connections_is_left_out_and_inbox_is_pushed() {
    limited(async {
        for ends in Ends::ALL {
            let stage = stage().await;
            let mut watching = stage.world.watch();
            let mut peer = stage.accept().await;
            peer.play(IDLE).await;
            peer.play(OPEN).await;
            // Both are asked for at once. What was answered before the end counts.
            peer.play(&format!("C: w2 {INBOX}\nC: w3 {TEAM}\n")).await;
            peer.play("S: * STATUS INBOX (MESSAGES 6 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 3)\nS: w2 OK")
                .await;
            ends.end(peer).await;
            watching.expect(&["INBOX: new mail, next 11 of 6 with 3 unseen"]).await;
            // It is asked for once more, by itself and behind all others.
            let mut peer = stage.accept().await;
            peer.play(IDLE).await;
            peer.play(&inbox(1, 6)).await;
            peer.play(&format!("C: w2 {TEAM}")).await;
            ends.end(peer).await;
            // Nothing had been written of what was told.
            watching.expect(&["INBOX: new mail, next 11 of 6 with 3 unseen"]).await;
            // Then the others are watched without it.
            let mut peer = stage.accept().await;
            peer.play(IDLE).await;
            peer.play(OPEN).await;
            peer.play(&inbox(2, 6)).await;
            peer.play("C: w3 IDLE\nS: + idling\nS: * 7 EXISTS\nC: DONE\nS: w3 OK").await;
            peer.play(&inbox(4, 7)).await;
            peer.play("C: w5 IDLE\nS: + idling").await;
            watching.expect(&["INBOX: new mail, next 11 of 6 with 3 unseen"]).await;
            watching.expect(&["INBOX: new mail, announced"]).await;
            watching.expect(&["INBOX: confirmed, next 12 of 7 with 4 unseen"]).await;
            watching.expect_nothing();
            assert_eq!(watching.watched(Mode::Idle), 1, "{ends:?}");
            let shown = watching.until("watching").await.left_out;
            assert_eq!((shown.len(), shown[0].mailbox.as_str()), (1, "Team"), "{ends:?}");
            assert!(shown[0].next_try_at.is_some() && !shown[0].reason.is_empty());
            assert_eq!(watching.metrics.mailboxes_left_out.get(), 1);
            stop(watching, peer).await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_inbox_that_ends_connections_keeps_no_other_mailbox_from_being_pushed() {
    limited(async {
        for ends in Ends::ALL {
            let stage = stage().await;
            let mut watching = stage.world.watch();
            let mut peer = stage.accept().await;
            peer.play(&login("")).await;
            peer.play(&format!("C: w1 {INBOX}\nC: w2 {TEAM}")).await;
            ends.end(peer).await;
            let mut peer = stage.accept().await;
            peer.play(&login("")).await;
            peer.play(&team(1, 4)).await;
            peer.play(&format!("C: w2 {INBOX}")).await;
            watching.expect(&["Team: new mail, next 9 of 4 with 1 unseen"]).await;
            ends.end(peer).await;
            let mut peer = stage.accept().await;
            peer.play(&login("")).await;
            peer.play(&team(1, 4)).await;
            watching.expect(&["Team: new mail, next 9 of 4 with 1 unseen"]).await;
            watching.until("watching").await;
            watching.expect_nothing();
            stop(watching, peer).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_ends_a_command_for_many_mailboxes_is_found_by_asking_for_each() {
    limited(async {
        let stage = stage().await;
        let mut watching = stage.world.watch();
        let list =
            r#"LIST "" ("INBOX" "Team") RETURN (STATUS (MESSAGES UIDNEXT UIDVALIDITY UNSEEN))"#;
        let notify = r#"NOTIFY SET (selected (MessageNew MessageExpunge FlagChange)) (mailboxes ("Team") (MessageNew MessageExpunge FlagChange))"#;
        for (capabilities, command) in [("IDLE LIST-STATUS", list), ("IDLE NOTIFY", notify)] {
            let mut peer = stage.accept().await;
            peer.play(&login(capabilities)).await;
            peer.play(OPEN).await;
            peer.play(&format!("C: w2 {command}")).await;
            drop(peer);
            // Each is asked for by itself, the last one that is suspected behind the others.
            let mut peer = stage.accept().await;
            peer.play(&login(capabilities)).await;
            peer.play(&inbox(1, 5)).await;
            peer.play(&team(2, 3)).await;
            drop(peer);
        }
        watching.expect_nothing();
        watching.stop().await;
    })
    .await;
}

/// Logs in, and plays until Team is to be asked for by itself: at once behind INBOX, or out of IDLE if
/// it was left out for longer. The tag.
async fn until_team_is_next(peer: &mut Peer) -> u32 {
    peer.play(&login("IDLE")).await;
    if peer.line().await == format!("w1 {INBOX}") {
        let answer = inbox(1, 5);
        peer.play(answer.split_once('\n').unwrap().1).await;
        return 2;
    }
    peer.play("S: * 5 EXISTS\nS: w1 OK [READ-ONLY] open").await;
    peer.play(&inbox(2, 5)).await;
    peer.play("C: w3 IDLE\nS: + idling\nC: DONE\nS: w3 OK").await;
    peer.play(&inbox(4, 5)).await;
    5
}

#[tokio::test]
async fn a_mailbox_that_was_left_out_is_tried_again_after_growing_times() {
    limited(async {
        let mut stage = stage().await;
        stage.world.watch.poll_max = Duration::from_millis(100);
        let mut watching = stage.world.watch();
        let mut peer = stage.accept().await;
        peer.play(&login("IDLE")).await;
        peer.play(OPEN).await;
        peer.play(&format!("C: w2 {INBOX}\nC: w3 {TEAM}")).await;
        peer.play(inbox(2, 5).split_once('\n').unwrap().1).await;
        drop(peer);
        for _ in 0..3 {
            let mut peer = stage.accept().await;
            let tag = until_team_is_next(&mut peer).await;
            peer.play(&format!("C: w{tag} {TEAM}")).await;
            drop(peer);
        }
        let mut peer = stage.accept().await;
        let tag = until_team_is_next(&mut peer).await;
        peer.play(&team(tag, 5)).await;
        watching.expect(&["Team: new mail, next 10 of 5 with 2 unseen"]).await;
        watching.expect_nothing();
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn an_inbox_that_is_refused_for_now_is_asked_for_again_and_others_are_watched() {
    limited(async {
        let mut stage = stage().await;
        stage.world.watch.answer_timeout = Duration::from_secs(30);
        stage.world.watch.retry_min = Duration::from_millis(200);
        stage.world.watch.retry_max = Duration::from_millis(200);
        let mut watching = stage.world.watch();
        let mut peer = stage.accept().await;
        peer.play(&login("")).await;
        peer.play(&format!("C: w1 {INBOX}\nC: w2 {TEAM}")).await;
        peer.play(
            "\
S: w1 NO [INUSE] it is being repaired
S: * STATUS Team (MESSAGES 4 UIDNEXT 9 UIDVALIDITY 8 UNSEEN 1)
S: w2 OK done
",
        )
        .await;
        watching.expect(&["Team: new mail, next 9 of 4 with 1 unseen"]).await;
        let shown = watching.until("watching").await.left_out;
        assert_eq!((shown.len(), shown[0].mailbox.as_str()), (1, "INBOX"));
        assert_eq!(shown[0].reason, "NO [INUSE] it is being repaired");
        assert!(shown[0].next_try_at.is_some());
        // Meanwhile Team is waited for.
        peer.play(&format!("C: w3 {INBOX}\nC: w4 {TEAM}\nS: w3 NO [INUSE] still\n")).await;
        peer.play(team(4, 4).split_once('\n').unwrap().1).await;
        peer.play(&format!("C: w5 {INBOX}\nC: w6 {TEAM}\n")).await;
        peer.play(inbox(5, 6).split_once('\n').unwrap().1).await;
        peer.play(team(6, 4).split_once('\n').unwrap().1).await;
        watching.expect(&["INBOX: new mail, next 11 of 6 with 3 unseen"]).await;
        watching.expect_nothing();
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn mail_is_new_where_uidnext_stands_still_or_is_zero_and_is_reported_once() {
    limited(async {
        for next in [10, 0] {
            let mut stage = Stage::new().await;
            // Longer than all takes until NOTIFY has told of mail: a poll would be told first.
            let between = Duration::from_secs(3);
            (stage.world.watch.poll_interval, stage.world.watch.poll_max) = (between, between);
            let mailboxes = [("INBOX", told(7, 10, 5, 2)), ("Team", told(8, 10, 5, 2))];
            stage.world.register("alice", &mailboxes).await;
            let mut watching = stage.world.watch();
            let mut peer = stage.accept().await;
            peer.play(&login("IDLE NOTIFY")).await;
            let notify = r#"NOTIFY SET (selected (MessageNew MessageExpunge FlagChange)) (mailboxes ("Team") (MessageNew MessageExpunge FlagChange))"#;
            let status = |name: &str, count: u32| {
                let validity = if name == "INBOX" { 7 } else { 8 };
                let unseen = count - 3;
                format!("S: * STATUS {name} (MESSAGES {count} UIDNEXT {next} UIDVALIDITY {validity} UNSEEN {unseen})\n")
            };
            // Mail that came while nobody watched.
            peer.play(&format!(
                "{OPEN}C: w2 {notify}\nS: w2 OK\nC: w3 {INBOX}\nC: w4 {TEAM}\n{}S: w3 OK\n{}S: w4 OK\nC: w5 IDLE\nS: + idling\n",
                status("INBOX", 6),
                status("Team", 5),
            ))
            .await;
            let line = watching.next().await;
            assert!(line.starts_with("INBOX: new mail, next"), "{next}: {line}");
            // Mail that NOTIFY tells of, and one that a look finds.
            peer.play(&format!("S: * STATUS Team (MESSAGES 6 UIDNEXT {next} UNSEEN 3)\n")).await;
            watching.expect(&["Team: new mail, announced"]).await;
            peer.play("C: DONE\nS: w5 OK").await;
            let (mut tag, mut teams) = (6, 6);
            loop {
                let line = peer.line().await;
                if line == format!("w{tag} IDLE") {
                    peer.play("S: + idling\nC: DONE").await;
                    peer.play(&format!("S: w{tag} OK")).await;
                } else if line == format!("w{tag} {INBOX}") {
                    peer.play(&format!("{}S: w{tag} OK", status("INBOX", 6))).await;
                } else {
                    assert_eq!(line, format!("w{tag} {TEAM}"));
                    peer.play(&format!("{}S: w{tag} OK", status("Team", teams))).await;
                    teams += 1;
                }
                tag += 1;
                if teams == 9 {
                    break;
                }
            }
            let line = watching.next().await;
            assert!(line.starts_with("Team: confirmed, next"), "{next}: {line}");
            for count in [7, 8] {
                let line = watching.next().await;
                let told = line.starts_with("Team: new mail, next");
                assert!(told && line.contains(&format!("of {count} with")), "{next}: {line}");
            }
            watching.expect_nothing();
            stop(watching, peer).await;
        }
    })
    .await;
}

#[tokio::test]
async fn too_many_connections_are_no_wrong_password() {
    limited(async {
        let stage = Stage::new().await;
        let watching = stage.world.watch();
        let refusal = "\
S: * OK [CAPABILITY IMAP4rev1] hi
C: m2 LOGIN \"alice\" \"wonderland\"
S: m2 NO [AUTHENTICATIONFAILED] LOGIN failed. (Too many simultaneous connections.)
";
        for _ in 0..5 {
            let mut peer = stage.accept().await;
            peer.play(refusal).await;
            peer.left().await;
        }
        let mut peer = stage.accept().await;
        peer.play(IDLE).await;
        assert_eq!(stage.world.parked("alice").await, None);
        stop(watching, peer).await;
    })
    .await;
}

/// Mail may have come between the registration and the first look at the mailbox.
#[tokio::test]
async fn unread_mail_of_a_mailbox_registered_with_an_unknown_state_is_new_mail() {
    limited(async {
        for (unseen, kind) in [(2, "new mail"), (0, "quiet")] {
            let stage = Stage::told(Snapshot::default()).await;
            let mut watching = stage.world.watch();
            let mut peer = stage.accept().await;
            peer.play(IDLE).await;
            peer.play(&QUIET.replace("UNSEEN 2", &format!("UNSEEN {unseen}"))).await;
            let expected = format!("INBOX: {kind}, next 10 of 5 with {unseen} unseen");
            watching.expect(&[&expected]).await;
            watching.expect_nothing();
            stop(watching, peer).await;
        }
    })
    .await;
}
