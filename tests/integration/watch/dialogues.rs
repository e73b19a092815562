//! Backends that do what the demo server does not: each a dialogue, `S: ` the backend's lines, `C: `
//! the watcher's.

use std::time::{Duration, Instant};

use crate::support::limited;
use crate::support::stage::{IDLE, QUIET, Stage, stop};

#[tokio::test]
async fn an_expunge_and_a_new_mail_in_one_batch_are_new_mail() {
    limited(async {
        let stage = Stage::new().await;
        let (mut watching, mut peer) = stage.quiet().await;
        peer.play(
            "\
S: * 1 EXPUNGE
S: * 5 EXISTS
C: DONE
S: w3 OK done
C: w4 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 2)
S: w4 OK done
C: w5 IDLE
S: + idling
",
        )
        .await;
        watching.expect(&["INBOX: new mail, next 11 of 5 with 2 unseen"]).await;
        watching.expect_nothing();
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn mail_announced_behind_the_answer_to_status_causes_another_status() {
    limited(async {
        let stage = Stage::new().await;
        let mut watching = stage.world.watch();
        let mut peer = stage.accept().await;
        peer.play(IDLE).await;
        peer.play(
            "\
C: w1 EXAMINE INBOX
S: * 5 EXISTS
S: w1 OK [READ-ONLY] open
C: w2 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2)
S: * 6 EXISTS
S: w2 OK done
C: w3 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 6 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 3)
S: w3 OK done
C: w4 IDLE
",
        )
        .await;
        let confirmed = "INBOX: confirmed, next 11 of 6 with 3 unseen";
        watching.expect(&["INBOX: new mail, announced", confirmed]).await;
        watching.expect_nothing();
        stop(watching, peer).await;
    })
    .await;
}

/// The phone may have looked by then.
#[tokio::test]
async fn mail_read_between_an_announcement_and_its_refresh_is_reported() {
    limited(async {
        let stage = Stage::new().await;
        let (mut watching, mut peer) = stage.quiet().await;
        peer.play(
            "\
S: * 6 EXISTS
C: DONE
S: * 1 FETCH (FLAGS (\\Seen))
S: w3 OK done
C: w4 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 6 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 2)
S: w4 OK done
C: w5 IDLE
",
        )
        .await;
        let read = "INBOX: quiet, next 11 of 6 with 2 unseen";
        watching.expect(&["INBOX: new mail, announced", read]).await;
        watching.expect_nothing();
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn idle_that_is_refused_is_replaced_by_polling() {
    limited(async {
        let mut stage = Stage::new().await;
        stage.world.watch.poll_interval = Duration::from_millis(20);
        let mut watching = stage.world.watch();
        let mut peer = stage.accept().await;
        peer.play(IDLE).await;
        let until_idle = QUIET.strip_suffix("S: + idling\n").unwrap();
        peer.play(until_idle).await;
        peer.play(
            "\
S: w3 BAD [CLIENTBUG] no
C: w4 CLOSE
S: w4 OK closed
C: w5 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2)
S: w5 OK done
C: w6 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 6 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 3)
S: w6 OK done
C: w7 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
",
        )
        .await;
        watching.expect(&["INBOX: new mail, next 11 of 6 with 3 unseen"]).await;
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn idle_that_is_refused_now_and_then_is_tried_again() {
    limited(async {
        let stage = Stage::new().await;
        let mut watching = stage.world.watch();
        let until_idle = QUIET.strip_suffix("S: + idling\n").unwrap();
        let refused = "\
S: w3 NO [SERVERBUG] not now
C: w4 CLOSE
S: w4 OK closed
C: w5 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * BYE that is all
";
        let told = "\
S: + idling
S: * 6 EXISTS
C: DONE
S: * BYE that is all
";
        for then in [refused, told, refused, "S: + idling\n"] {
            let mut peer = stage.accept().await;
            peer.play(IDLE).await;
            peer.play(until_idle).await;
            peer.play(then).await;
        }
        watching.expect(&["INBOX: new mail, announced"]).await;
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_inbox_without_status_is_no_reason_to_doubt_idle() {
    limited(async {
        let stage = Stage::new().await;
        let watching = stage.world.watch();
        for _ in 0..3 {
            let mut peer = stage.accept().await;
            peer.play(IDLE).await;
            peer.play(
                "\
C: w1 EXAMINE INBOX
S: w1 OK open
C: w2 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: w2 NO [SERVERBUG] its index is broken
C: w3 CLOSE
S: w3 OK closed
C: w4 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: w4 NO [SERVERBUG] its index is broken
",
            )
            .await;
        }
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn idle_that_the_backend_ends_at_once_is_replaced_by_polling() {
    limited(async {
        let stage = Stage::new().await;
        let (watching, mut peer) = stage.quiet().await;
        peer.play(
            "\
S: w3 OK that is enough
C: w4 CLOSE
S: w4 OK closed
C: w5 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
",
        )
        .await;
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn idle_that_is_never_answered_is_given_up_after_two_connections() {
    limited(async {
        let mut stage = Stage::new().await;
        stage.world.watch.answer_timeout = Duration::from_secs(3);
        let watching = stage.world.watch();
        let until_idle = QUIET.strip_suffix("S: + idling\n").unwrap();
        for _ in 0..2 {
            let mut peer = stage.accept().await;
            peer.play(IDLE).await;
            peer.play(until_idle).await;
            peer.left().await;
        }
        let mut peer = stage.accept().await;
        peer.play(IDLE).await;
        peer.play("C: w1 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)").await;
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn idle_is_renewed_and_mail_that_it_did_not_announce_is_found() {
    limited(async {
        let mut stage = Stage::new().await;
        stage.world.watch.idle_renewal = Duration::from_millis(50);
        let (mut watching, mut peer) = stage.quiet().await;
        peer.play(
            "\
C: DONE
S: w3 OK done
C: w4 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 6 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 3)
S: w4 OK done
C: w5 IDLE
",
        )
        .await;
        watching.expect(&["INBOX: new mail, next 11 of 6 with 3 unseen"]).await;
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn flags_settle_before_they_are_looked_at() {
    limited(async {
        let mut stage = Stage::new().await;
        stage.world.watch.settle = Duration::from_millis(200);
        let (mut watching, mut peer) = stage.quiet().await;
        let began = Instant::now();
        peer.play(
            "\
S: * 1 FETCH (FLAGS (\\Seen))
C: DONE
S: w3 OK done
C: w4 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 1)
S: w4 OK done
C: w5 IDLE
S: + idling
",
        )
        .await;
        assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
        watching.expect(&["INBOX: quiet, next 10 of 5 with 1 unseen"]).await;
        watching.expect_nothing();
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn done_waits_for_the_continuation_and_any_response_may_come_before_it() {
    limited(async {
        let stage = Stage::new().await;
        let mut watching = stage.world.watch();
        let mut peer = stage.accept().await;
        peer.play(IDLE).await;
        peer.play(QUIET.strip_suffix("S: + idling\n").unwrap()).await;
        peer.play(
            "\
S: * 6 EXISTS
S: * 0 FETCH
S: * OK Still here {5}
S: * X-NEW {3}
S: abc
S: + idling
C: DONE
",
        )
        .await;
        watching.expect(&["INBOX: new mail, announced"]).await;
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn bye_in_idle_brings_a_new_connection() {
    limited(async {
        let stage = Stage::new().await;
        let watching = stage.world.watch();
        for _ in 0..3 {
            let mut peer = stage.accept().await;
            peer.play(IDLE).await;
            peer.play(QUIET).await;
            peer.play("S: * BYE Session expired, please login again").await;
            peer.left().await;
        }
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_backend_that_says_nothing_is_given_up_in_time_and_tried_again() {
    limited(async {
        let mut stage = Stage::new().await;
        stage.world.watch.answer_timeout = Duration::from_secs(2);
        stage.world.connect_timeout = Duration::from_secs(3);
        let watching = stage.world.watch();
        stage.accept().await.left().await;
        // And one that greets and says no more.
        let mut peer = stage.accept().await;
        peer.play("S: * OK hi\nC: m1 CAPABILITY").await;
        peer.left().await;
        stage.accept().await;
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_backend_that_talks_and_never_answers_is_given_up_in_time() {
    limited(async {
        let mut stage = Stage::new().await;
        stage.world.watch.answer_timeout = Duration::from_secs(3);
        let watching = stage.world.watch();
        let mut peer = stage.accept().await;
        peer.play(IDLE).await;
        peer.play("C: w1 EXAMINE INBOX").await;
        peer.says_without_end(b"* OK still at it\r\n").await;
        stage.accept().await;
        watching.stop().await;
    })
    .await;
}

#[tokio::test]
async fn what_is_not_needed_is_skipped_whatever_its_length() {
    limited(async {
        let stage = Stage::new().await;
        let mut watching = stage.world.watch();
        let mut peer = stage.accept().await;
        peer.play(IDLE).await;
        peer.play("C: w1 EXAMINE INBOX").await;
        // An INBOX with 400 keywords, and a backend that sends it in small packets.
        let keyword = |number: usize| format!(" keyword-{number:03}-{}", "x".repeat(30));
        let keywords: String = (0..400).map(keyword).collect();
        let flags =
            format!("* FLAGS (\\Seen{keywords})\r\n* 5 EXISTS\r\nw1 OK [READ-ONLY] open\r\n");
        assert!(flags.len() > 17_000);
        for packet in flags.as_bytes().chunks(100) {
            peer.say(packet).await;
        }
        peer.play(
            QUIET
                .strip_prefix("C: w1 EXAMINE INBOX\nS: * 5 EXISTS\nS: w1 OK [READ-ONLY] open\n")
                .unwrap(),
        )
        .await;
        // A response that nobody knows, text for people that looks like an announcement, and a literal
        // with lines in it that look like others.
        let unknown = format!("* X-NEWS {}\r\n", "y".repeat(3 << 20));
        let text = format!("* OK {} {{99}}\r\n", "z".repeat(1 << 20));
        let lines = "* 9 EXISTS\r\nw3 OK done\r\n* BYE\r\n".repeat(1 << 16);
        let literal = format!("* X-NEWS (a {{{}}}\r\n{lines} {{3}}\r\n)\r\n)\r\n", lines.len());
        for said in [unknown, text, literal] {
            peer.say(said.as_bytes()).await;
        }
        peer.play(
            "\
S: * 6 EXISTS
C: DONE
S: w3 OK done
C: w4 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 6 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 3)
S: w4 OK done
C: w5 IDLE
S: + idling
",
        )
        .await;
        let confirmed = "INBOX: confirmed, next 11 of 6 with 3 unseen";
        watching.expect(&["INBOX: new mail, announced", confirmed]).await;
        watching.expect_nothing();
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn a_response_without_end_ends_the_connection() {
    limited(async {
        let mut stage = Stage::new().await;
        stage.world.watch.answer_timeout = Duration::from_secs(3);
        let watching = stage.world.watch();
        for endless in [&b"* X"[..], b"* 1 FETCH (X {4294967295}\r\n", b"\r\n\r\n* 1 FETCH {9"] {
            let mut peer = stage.accept().await;
            peer.play(IDLE).await;
            peer.play(QUIET).await;
            peer.say(endless).await;
            peer.says_without_end(&[b'0'; 1024]).await;
        }
        let mut peer = stage.accept().await;
        peer.play(IDLE).await;
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn the_end_does_not_wait_for_a_backend() {
    limited(async {
        let mut stage = Stage::new().await;
        stage.world.watch.settle = Duration::from_hours(1);
        let watching = stage.world.watch();
        let peer = stage.accept().await;
        watching.stop().await;
        drop(peer);

        let (mut watching, mut peer) = stage.quiet().await;
        peer.play("S: * 6 EXISTS").await;
        watching.expect(&["INBOX: new mail, announced"]).await;
        watching.stop().await;
        peer.play("C: DONE\nC: w4 LOGOUT").await;
    })
    .await;
}

#[tokio::test]
async fn condstore_tells_of_flags_and_is_dropped_where_it_is_not_understood() {
    limited(async {
        let stage = Stage::new().await;
        let mut watching = stage.world.watch();
        let mut peer = stage.accept().await;
        peer.play(
            "\
S: * OK [CAPABILITY IMAP4rev1] hi
C: m2 LOGIN \"alice\" \"wonderland\"
S: m2 OK in
C: w1 CAPABILITY
S: * CAPABILITY IMAP4rev1 IDLE CONDSTORE ID
S: w1 OK done
C: w2 ID (\"name\" \"mailchime\")
S: w2 NO never mind
C: w3 EXAMINE INBOX
S: w3 OK [READ-ONLY] open
C: w4 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN HIGHESTMODSEQ)
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2 HIGHESTMODSEQ 90)
S: w4 OK done
C: w5 IDLE
S: + idling
S: * 1 FETCH (FLAGS (\\Deleted))
C: DONE
S: w5 OK done
C: w6 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN HIGHESTMODSEQ)
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2 HIGHESTMODSEQ 91)
S: w6 OK done
C: w7 UID FETCH 1:* (FLAGS) (CHANGEDSINCE 90)
S: * 1 FETCH (UID 3 FLAGS (\\Deleted) MODSEQ (91))
S: w7 OK done
C: w8 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN HIGHESTMODSEQ)
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2 HIGHESTMODSEQ 91)
S: w8 OK done
C: w9 IDLE
S: + idling
S: * 2 FETCH (FLAGS ($Junk))
C: DONE
S: w9 OK done
C: w10 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN HIGHESTMODSEQ)
S: w10 BAD what is HIGHESTMODSEQ?
C: w11 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 1)
S: w11 OK done
C: w12 IDLE
",
        )
        .await;
        watching.expect(&["INBOX: quiet, next 10 of 5 with 2 unseen"]).await;
        watching.expect(&["INBOX: quiet, next 10 of 5 with 1 unseen"]).await;
        watching.expect_nothing();
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn examine_refused_and_status_refused_are_no_reason_to_hurry() {
    limited(async {
        let mut stage = Stage::new().await;
        (stage.world.watch.retry_min, stage.world.watch.retry_max) =
            (Duration::from_secs(3600), Duration::from_secs(3600));
        let watching = stage.world.watch();
        let mut peer = stage.accept().await;
        peer.play(IDLE).await;
        peer.play(
            "\
C: w1 EXAMINE INBOX
S: w1 NO not now
C: w2 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: w2 BAD User is authenticated but not connected.
",
        )
        .await;
        peer.left().await;
        // Its user's login is a sign that it may be better now.
        watching.logged_in("alice", "wonderland").await;
        let mut peer = stage.accept().await;
        peer.play(IDLE).await;
        peer.play(
            "\
C: w1 EXAMINE INBOX
S: w1 OK open
C: w2 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: w2 NO not while it is open
C: w3 CLOSE
S: w3 OK closed
C: w4 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2)
S: w4 OK done
",
        )
        .await;
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn a_refusal_without_a_code_is_not_tried_again_soon() {
    limited(async {
        let stage = Stage::new().await;
        let watching = stage.world.watch();
        let refusal = "\
S: * OK [CAPABILITY IMAP4rev1] hi
C: m2 LOGIN \"alice\" \"wonderland\"
S: m2 NO Login failed
";
        // The next tries are minutes away; a login of the user brings them forward.
        for _ in 0..2 {
            let mut peer = stage.accept().await;
            peer.play(refusal).await;
            peer.left().await;
            assert_eq!(stage.world.parked("alice").await, None);
            watching.logged_in("alice", "wonderland").await;
        }
        stage.accept().await.play(refusal).await;
        stage.world.until_parked("alice", true).await;
        watching.stop().await;
    })
    .await;
}
