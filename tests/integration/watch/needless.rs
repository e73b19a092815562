//! What the phone need not fetch again, and what it must.

use crate::support::limited;
use crate::support::stage::{IDLE, Peer, Stage, stop};
use crate::support::watching::{Watching, told};
use mailchime::model::Snapshot;

const STATUS: &str = "STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)";
const CONDSTORE_STATUS: &str =
    "STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN HIGHESTMODSEQ)";

/// One mail has come, and the look finds 2 unread ones as before. The backend then says this.
async fn read_on_arrival(fetched: &str, expected: &str) {
    let stage = Stage::new().await;
    let (mut watching, mut peer) = stage.quiet().await;
    let state = "S: * STATUS INBOX (MESSAGES 6 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 2)";
    peer.play(&format!(
        "\
S: * 6 EXISTS
S: * 1 RECENT
C: DONE
S: w3 OK done
C: w4 {STATUS}
{state}
S: w4 OK done
C: w5 UID FETCH 10:10 (FLAGS)
{fetched}
C: w6 {STATUS}
{state}
S: w6 OK done
C: w7 IDLE
S: + idling
"
    ))
    .await;
    watching.expect(&["INBOX: new mail, announced", expected]).await;
    watching.expect_nothing();
    stop(watching, peer).await;
}

#[tokio::test]
async fn mail_that_arrives_read_is_reported_once() {
    limited(read_on_arrival(
        "S: * 6 FETCH (FLAGS (\\Seen \\Recent) UID 10)\nS: w5 OK done",
        "INBOX: confirmed, next 11 of 6 with 2 unseen",
    ))
    .await;
}

#[tokio::test]
async fn other_mail_that_was_read_meanwhile_is_reported_although_the_backend_does_not_announce_it()
{
    limited(read_on_arrival(
        "S: * 6 FETCH (UID 10 FLAGS (\\Recent))\nS: w5 OK done",
        "INBOX: quiet, next 11 of 6 with 2 unseen",
    ))
    .await;
}

#[tokio::test]
async fn where_the_backend_does_not_send_the_flags_of_new_mail_every_change_is_reported() {
    limited(async {
        let stage = Stage::new().await;
        let (mut watching, mut peer) = stage.quiet().await;
        peer.play(&format!(
            "\
S: * 6 EXISTS
C: DONE
S: w3 OK done
C: w4 {STATUS}
S: * STATUS INBOX (MESSAGES 6 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 2)
S: w4 OK done
C: w5 UID FETCH 10:10 (FLAGS)
S: w5 NO not now
C: w6 IDLE
"
        ))
        .await;
        let quiet = "INBOX: quiet, next 11 of 6 with 2 unseen";
        watching.expect(&["INBOX: new mail, announced", quiet]).await;
        stop(watching, peer).await;
    })
    .await;
}

/// Of three that came together, two were read before.
#[tokio::test]
async fn some_of_several_mails_arrive_read() {
    limited(async {
        let stage = Stage::new().await;
        let (mut watching, mut peer) = stage.quiet().await;
        let state = "S: * STATUS INBOX (MESSAGES 8 UIDNEXT 13 UIDVALIDITY 7 UNSEEN 3)";
        peer.play(&format!(
            "\
S: * 8 EXISTS
C: DONE
S: w3 OK done
C: w4 {STATUS}
{state}
S: w4 OK done
C: w5 UID FETCH 10:12 (FLAGS)
S: * 6 FETCH (UID 10 FLAGS (\\Seen))
S: * 7 FETCH (UID 11 FLAGS ())
S: * 8 FETCH (UID 12 FLAGS ($Label \\seen))
S: w5 OK done
C: w6 {STATUS}
{state}
S: w6 OK done
C: w7 IDLE
"
        ))
        .await;
        let confirmed = "INBOX: confirmed, next 13 of 8 with 3 unseen";
        watching.expect(&["INBOX: new mail, announced", confirmed]).await;
        watching.expect_nothing();
        stop(watching, peer).await;
    })
    .await;
}

/// A backend with CONDSTORE (RFC 7162), whose devices were told of the state at MODSEQ 90; it is at
/// `modseq` now.
async fn condstore(modseq: u64) -> (Stage, Watching, Peer) {
    let stage = Stage::told(Snapshot { highest_mod_seq: Some(90), ..told(7, 10, 5, 2) }).await;
    let watching = stage.world.watch();
    let mut peer = stage.accept().await;
    peer.play(&IDLE.replace("IDLE", "IDLE CONDSTORE")).await;
    peer.play(&format!(
        "\
C: w1 EXAMINE INBOX
S: * 5 EXISTS
S: w1 OK [READ-ONLY] open
C: w2 {CONDSTORE_STATUS}
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2 HIGHESTMODSEQ {modseq})
S: w2 OK done
"
    ))
    .await;
    (stage, watching, peer)
}

/// Nothing but the MODSEQ is another one since the devices were told; the backend says what has changed.
async fn only_flags_changed(changed: &str, expected: &str) {
    let (_stage, mut watching, mut peer) = condstore(95).await;
    peer.play(&format!(
        "\
C: w3 UID FETCH 1:* (FLAGS) (CHANGEDSINCE 90)
{changed}
C: w4 {CONDSTORE_STATUS}
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2 HIGHESTMODSEQ 95)
S: w4 OK done
C: w5 IDLE
"
    ))
    .await;
    watching.expect(&[expected]).await;
    watching.expect_nothing();
    stop(watching, peer).await;
}

const AS_TOLD: &str = "INBOX: as told, next 10 of 5 with 2 unseen";
const QUIETLY: &str = "INBOX: quiet, next 10 of 5 with 2 unseen";

#[tokio::test]
async fn keywords_and_marks_cause_no_push() {
    limited(only_flags_changed(
        "\
S: * 1 FETCH (UID 3 FLAGS ($Junk) MODSEQ (94))
S: * 2 FETCH (UID 4 MODSEQ (95) FLAGS (\\Flagged \\Answered))
S: w3 OK done",
        AS_TOLD,
    ))
    .await;
    limited(only_flags_changed(
        "S: * 1 FETCH (UID 3 FLAGS (\\Seen $Junk) MODSEQ (95))\nS: w3 OK done",
        AS_TOLD,
    ))
    .await;
}

#[tokio::test]
async fn one_read_and_another_unread_are_reported() {
    limited(only_flags_changed(
        "\
S: * 1 FETCH (UID 3 FLAGS (\\Seen) MODSEQ (94))
S: * 2 FETCH (UID 4 FLAGS () MODSEQ (95))
S: w3 OK done",
        QUIETLY,
    ))
    .await;
}

#[tokio::test]
async fn mail_that_is_marked_as_deleted_is_reported() {
    limited(only_flags_changed(
        "S: * 1 FETCH (UID 3 FLAGS (\\Deleted) MODSEQ (95))\nS: w3 OK done",
        QUIETLY,
    ))
    .await;
}

#[tokio::test]
async fn where_the_backend_does_not_send_what_changed_the_change_is_reported() {
    limited(async {
        let (_stage, mut watching, mut peer) = condstore(95).await;
        peer.play("C: w3 UID FETCH 1:* (FLAGS) (CHANGEDSINCE 90)\nS: w3 BAD what?\nC: w4 IDLE")
            .await;
        watching.expect(&[QUIETLY]).await;
        stop(watching, peer).await;
        // The same where it counts anew.
        let (_stage, mut watching, mut peer) = condstore(5).await;
        peer.play("C: w3 IDLE").await;
        watching.expect(&[QUIETLY]).await;
        stop(watching, peer).await;
    })
    .await;
}

/// It may be the question that makes the backend hang up.
#[tokio::test]
async fn an_unanswered_fetch_of_flags_is_not_repeated_and_counts_as_a_change() {
    limited(async {
        let told = Snapshot { highest_mod_seq: Some(90), ..told(7, 10, 5, 2) };
        let stage = Stage::told(told).await;
        let mut watching = stage.world.watch();
        for asked in [true, false] {
            let mut peer = stage.accept().await;
            peer.play(&IDLE.replace("IDLE", "IDLE CONDSTORE")).await;
            peer.play(&format!(
                "\
C: w1 EXAMINE INBOX
S: * 5 EXISTS
S: w1 OK [READ-ONLY] open
C: w2 {CONDSTORE_STATUS}
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2 HIGHESTMODSEQ 95)
S: w2 OK done
"
            ))
            .await;
            match asked {
                true => peer.play("C: w3 UID FETCH 1:* (FLAGS) (CHANGEDSINCE 90)").await,
                false => peer.play("C: w3 IDLE").await,
            }
        }
        watching.expect(&[QUIETLY]).await;
        watching.stop().await;
    })
    .await;
}

/// The flags of another mailbox are asked for as well: it is opened for a moment, and INBOX again.
#[tokio::test]
async fn flags_in_other_mailboxes_are_looked_into() {
    for (flags, expected) in [
        ("$Junk", "Team: as told, next 8 of 3 with 1 unseen"),
        ("\\Seen", "Team: quiet, next 8 of 3 with 1 unseen"),
    ] {
        limited(async {
            let (inbox, team) = (told(7, 10, 5, 2), told(8, 8, 3, 1));
            let team = Snapshot { highest_mod_seq: Some(40), ..team };
            let stage = Stage::new().await;
            stage.world.register("alice", &[("INBOX", inbox), ("Team", team)]).await;
            let mut watching = stage.world.watch();
            let mut peer = stage.accept().await;
            peer.play(&IDLE.replace("IDLE", "IDLE CONDSTORE")).await;
            peer.play(&format!(
                "\
C: w1 EXAMINE INBOX
S: * 5 EXISTS
S: w1 OK [READ-ONLY] open
C: w2 {CONDSTORE_STATUS}
C: w3 STATUS \"Team\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN HIGHESTMODSEQ)
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2 HIGHESTMODSEQ 90)
S: w2 OK done
S: * STATUS Team (MESSAGES 3 UIDNEXT 8 UIDVALIDITY 8 UNSEEN 1 HIGHESTMODSEQ 43)
S: w3 OK done
C: w4 EXAMINE \"Team\"
S: * 3 EXISTS
S: * 0 RECENT
S: w4 OK [READ-ONLY] open
C: w5 UID FETCH 1:* (FLAGS) (CHANGEDSINCE 40)
S: * 1 FETCH (UID 1 FLAGS ($Label) MODSEQ (42))
S: * 2 FETCH (UID 2 FLAGS ({flags}) MODSEQ (43))
S: w5 OK done
C: w6 EXAMINE INBOX
S: * 3 EXISTS
S: * OK [CLOSED] Previous mailbox closed
S: * 6 EXISTS
S: w6 OK [READ-ONLY] open
C: w7 {CONDSTORE_STATUS}
S: * STATUS INBOX (MESSAGES 6 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 3 HIGHESTMODSEQ 91)
S: w7 OK done
C: w8 IDLE
"
            ))
            .await;
            let confirmed = "INBOX: confirmed, next 11 of 6 with 3 unseen";
            watching.expect(&[expected, "INBOX: new mail, announced", confirmed]).await;
            watching.expect_nothing();
            stop(watching, peer).await;
        })
        .await;
    }
}

#[tokio::test]
async fn flags_in_an_inbox_that_is_polled_are_looked_into() {
    limited(async {
        let told = Snapshot { highest_mod_seq: Some(90), ..told(7, 10, 5, 2) };
        let stage = Stage::told(told).await;
        let mut watching = stage.world.watch();
        let mut peer = stage.accept().await;
        peer.play(&IDLE.replace("IDLE", "CONDSTORE")).await;
        peer.play(&format!(
            "\
C: w1 {CONDSTORE_STATUS}
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2 HIGHESTMODSEQ 93)
S: w1 OK done
C: w2 EXAMINE \"INBOX\"
S: * 5 EXISTS
S: w2 OK [READ-ONLY] open
C: w3 UID FETCH 1:* (FLAGS) (CHANGEDSINCE 90)
S: * 1 FETCH (UID 3 FLAGS ($Label) MODSEQ (93))
S: w3 OK done
C: w4 CLOSE
S: w4 OK closed
"
        ))
        .await;
        watching.expect(&[AS_TOLD]).await;
        watching.expect_nothing();
        stop(watching, peer).await;
    })
    .await;
}
