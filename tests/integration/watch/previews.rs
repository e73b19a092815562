//! When mailchime asks for sender and subject of new mail, and what it makes of the answer: dialogues with
//! backends.

use std::time::Duration;

use mailchime::config::{PreviewContent, WatchConnection};

use crate::support::limited;
use crate::support::stage::{IDLE, Peer, QUIET, Stage, stop};
use crate::support::watching::{Watching, told};

const FETCH: &str = "UID FETCH * (UID BODY.PEEK[HEADER.FIELDS (FROM SUBJECT)]<0.8192>)";

/// Alice's phone and her browser were told of 5 messages in INBOX; the browser's pushes may say who wrote.
async fn stage(content: PreviewContent) -> Stage {
    let mut stage = Stage::new().await;
    stage.world.preview = content;
    stage.world.register_browser("alice", &[("INBOX", told(7, 10, 5, 2))]).await;
    stage
}

/// INBOX has one mail more than [`QUIET`] says, in IDLE number 3.
const ONE_MORE: &str = "\
S: * 6 EXISTS
C: DONE
S: w3 OK done
C: w4 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 6 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 3)
S: w4 OK done
";

const TOLD_OF_ONE: [&str; 2] = [
    "INBOX: new mail, announced, a preview follows",
    "INBOX: confirmed, next 11 of 6 with 3 unseen",
];

/// The answer with this header, in lines.
fn header(uid: u64, lines: &[&str]) -> String {
    let header: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let length = header.len() + 2;
    let header = header.replace("\r\n", "\nS: ");
    format!(
        "S: * 6 FETCH (UID {uid} BODY[HEADER.FIELDS (FROM SUBJECT)]<0> {{{length}}}\nS: {header}\nS: )\n"
    )
}

/// The watcher asks for a state, which is this.
async fn answer_status(peer: &mut Peer, state: &str) {
    let line = peer.line().await;
    let (tag, question) = line.split_once(' ').unwrap();
    assert!(question.starts_with("STATUS "), "{line}");
    peer.play(&format!("S: * STATUS {state}\nS: {tag} OK done\n")).await;
}

async fn quiet(stage: &Stage) -> (Watching, Peer) {
    let watching = stage.world.watch();
    let mut peer = stage.accept().await;
    peer.play(IDLE).await;
    peer.play(QUIET).await;
    (watching, peer)
}

#[tokio::test]
async fn new_mail_in_the_open_inbox_is_asked_for_who_wrote_what() {
    limited(async {
        let stage = stage(PreviewContent::Subject).await;
        let (mut watching, mut peer) = quiet(&stage).await;
        let from = "From: =?utf-8?q?J=C3=BCrgen?= <j@b.example>";
        let told = header(10, &[from, "Subject: =?utf-8?b?R3LDvMOfZQ==?="]);
        // The answer is no news: IDLE goes on until there is some.
        peer.play(&format!(
            "{ONE_MORE}C: w5 {FETCH}\n{told}S: w5 OK done\nC: w6 IDLE\nS: + idling\nS: * 7 EXISTS\nC: DONE\n"
        ))
        .await;
        watching.expect(&TOLD_OF_ONE).await;
        watching.expect(&["INBOX: newest of 1: \"Jürgen\" about \"Grüße\""]).await;
        watching.expect(&[TOLD_OF_ONE[0]]).await;
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn the_subject_is_not_asked_for_where_it_is_not_wanted() {
    limited(async {
        let stage = stage(PreviewContent::Sender).await;
        let (mut watching, mut peer) = quiet(&stage).await;
        // A server that tells more than it was asked for.
        let told = header(10, &["From: bob@b.example", "Subject: secret"]);
        peer.play(&format!(
            "{ONE_MORE}C: w5 UID FETCH * (UID BODY.PEEK[HEADER.FIELDS (FROM)]<0.8192>)\n{told}S: w5 OK done\nC: w6 IDLE\n"
        ))
        .await;
        watching.expect(&TOLD_OF_ONE).await;
        watching.expect(&["INBOX: newest of 1: \"bob@b.example\" about nothing"]).await;
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn with_phones_alone_nothing_of_a_mail_is_ever_asked_for() {
    limited(async {
        let mut stage = Stage::new().await;
        stage.world.preview = PreviewContent::Subject;
        let (mut watching, mut peer) = quiet(&stage).await;
        peer.play(&format!("{ONE_MORE}C: w5 IDLE\nS: + idling\n")).await;
        let told = ["INBOX: new mail, announced", TOLD_OF_ONE[1]];
        watching.expect(&told).await;
        watching.expect_nothing();
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn nothing_is_asked_for_without_the_key_or_where_no_browser_wants_it() {
    limited(async {
        let off = stage(PreviewContent::None).await;
        let mut other = Stage::new().await;
        other.world.preview = PreviewContent::Subject;
        other.world.register_browser("alice", &[("Team", told(8, 8, 3, 0))]).await;
        for stage in [off, other] {
            let mut watching = stage.world.watch();
            let mut peer = stage.accept().await;
            peer.play(IDLE).await;
            peer.play("C: w1 EXAMINE INBOX\nS: * 5 EXISTS\nS: w1 OK open\n").await;
            answer_status(&mut peer, "INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2)").await;
            if stage.world.preview != PreviewContent::None {
                answer_status(&mut peer, "Team (MESSAGES 3 UIDNEXT 8 UIDVALIDITY 8 UNSEEN 0)")
                    .await;
            }
            let idle = peer.line().await;
            assert!(idle.ends_with(" IDLE"), "{idle}");
            peer.play("S: + idling\nS: * 6 EXISTS\nC: DONE\n").await;
            let tag = idle.split(' ').next().unwrap();
            peer.play(&format!("S: {tag} OK done\n")).await;
            answer_status(&mut peer, "INBOX (MESSAGES 6 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 3)").await;
            let next = peer.line().await;
            assert!(next.ends_with(" IDLE"), "{next}");
            watching.expect(&["INBOX: new mail, announced"]).await;
            stop(watching, peer).await;
        }
    })
    .await;
}

#[tokio::test]
async fn another_mailbox_is_opened_for_it_without_a_trace_and_inbox_again() {
    limited(async {
        let mut stage = stage(PreviewContent::Subject).await;
        stage.world.register_browser("alice", &[("Team", told(8, 8, 3, 0))]).await;
        stage.world.watch.settle = Duration::from_millis(1);
        let mut watching = stage.world.watch();
        let mut peer = stage.accept().await;
        let login = IDLE.replace("IMAP4rev1 IDLE]", "IMAP4rev1 IDLE NOTIFY]");
        let events = "(MessageNew MessageExpunge FlagChange)";
        let told = header(9, &["From: Bob <b@x>", "Subject: Hi"]);
        peer.play(&login).await;
        peer.play(&format!(
            "\
C: w1 EXAMINE INBOX
S: * 5 EXISTS
S: w1 OK open
C: w2 NOTIFY SET (selected {events}) (mailboxes (\"Team\") {events})
S: w2 OK done
C: w3 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2)
S: w3 OK done
C: w4 STATUS \"Team\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS Team (MESSAGES 3 UIDNEXT 8 UIDVALIDITY 8 UNSEEN 0)
S: w4 OK done
C: w5 IDLE
S: + idling
S: * STATUS Team (MESSAGES 5 UIDNEXT 10 UNSEEN 2)
C: DONE
S: w5 OK done
C: w6 STATUS \"Team\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS Team (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 8 UNSEEN 2)
S: w6 OK done
C: w7 EXAMINE \"Team\"
S: * 5 EXISTS
S: w7 OK [READ-ONLY] open
C: w8 {FETCH}
{told}S: w8 OK done
C: w9 EXAMINE INBOX
S: * 5 EXISTS
S: w9 OK open
C: w10 IDLE
S: + idling
C: DONE
S: w10 OK done
C: w11 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 1)
S: w11 OK done
C: w12 IDLE
S: + idling
"
        ))
        .await;
        // What happens in INBOX while another mailbox is open is not told: it is looked at once more.
        watching
            .expect(&[
                "Team: new mail, announced, a preview follows",
                "Team: confirmed, next 10 of 5 with 2 unseen",
                "Team: newest of 2: \"Bob\" about \"Hi\"",
                "INBOX: quiet, next 10 of 5 with 1 unseen",
            ])
            .await;
        watching.expect_nothing();
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn a_polled_inbox_is_opened_for_it_and_closed() {
    limited(async {
        let mut stage = stage(PreviewContent::Subject).await;
        stage.world.watch.poll_interval = Duration::from_millis(50);
        let mut watching = stage.world.watch();
        let mut peer = stage.accept().await;
        let told = header(10, &["From: Bob <b@x>", "Subject: Hi"]);
        peer.play(&IDLE.replace(" IDLE]", "]")).await;
        peer.play(&format!(
            "\
C: w1 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2)
S: w1 OK done
C: w2 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 6 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 3)
S: w2 OK done
C: w3 EXAMINE \"INBOX\"
S: * 6 EXISTS
S: w3 OK [READ-ONLY] open
C: w4 {FETCH}
{told}S: w4 OK done
C: w5 CLOSE
S: w5 OK closed
C: w6 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
"
        ))
        .await;
        watching
            .expect(&[
                "INBOX: new mail, next 11 of 6 with 3 unseen, a preview follows",
                "INBOX: newest of 1: \"Bob\" about \"Hi\"",
            ])
            .await;
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn what_a_backend_does_not_tell_is_left_out_and_nothing_else_suffers() {
    let long = "x".repeat(9000);
    let endless = "x".repeat(100_000);
    let too_long = |text: &str| header(10, &[&format!("From: {text} <b@x>"), "Subject: Hi"]);
    for (answer, end) in [
        (String::new(), "NO not now"),
        (String::new(), "OK nothing there"),
        // The new mail is gone, and this is an old one.
        (header(9, &["From: Bob <b@x>", "Subject: Hi"]), "OK done"),
        ("S: * 6 FETCH (UID 10 BODY[HEADER.FIELDS (FROM SUBJECT)] NIL)\n".to_owned(), "OK done"),
        (header(10, &[]), "OK done"),
        (too_long(&long), "OK done"),
        (too_long(&endless), "OK done"),
    ] {
        limited(async {
            let stage = stage(PreviewContent::Subject).await;
            let (mut watching, mut peer) = quiet(&stage).await;
            peer.play(&format!("{ONE_MORE}C: w5 {FETCH}\n{answer}S: w5 {end}\n")).await;
            watching.expect(&TOLD_OF_ONE).await;
            watching.expect(&["INBOX: newest of 0: nothing about nothing"]).await;
            let next = peer.line().await;
            // What is too long to be read may have been anything.
            assert!(next == "w6 IDLE" || answer.len() > 20_000, "{next}");
            stop(watching, peer).await;
        })
        .await;
    }
}

#[tokio::test]
async fn a_backend_that_does_not_understand_it_or_breaks_over_it_is_not_asked_again() {
    for breaks in [false, true] {
        limited(async {
            let stage = stage(PreviewContent::Subject).await;
            let (mut watching, mut peer) = quiet(&stage).await;
            peer.play(&format!("{ONE_MORE}C: w5 {FETCH}\n")).await;
            watching.expect(&TOLD_OF_ONE).await;
            let mut tag = 6;
            match breaks {
                false => peer.play("S: w5 BAD what?\nC: w6 IDLE\nS: + idling\n").await,
                true => {
                    peer.play("S: * BYE too much\n").await;
                    peer.left().await;
                    peer = stage.accept().await;
                    peer.play(IDLE).await;
                    peer.play(
                        &QUIET
                            .replace("MESSAGES 5 UIDNEXT 10", "MESSAGES 6 UIDNEXT 11")
                            .replace("5 EXISTS", "6 EXISTS"),
                    )
                    .await;
                    tag = 3;
                }
            }
            watching.expect(&["INBOX: newest of 0: nothing about nothing"]).await;
            if breaks {
                // What was not pushed yet is found again.
                watching.expect(&["INBOX: new mail, next 11 of 6 with 2 unseen"]).await;
            }
            peer.play(&format!("S: * 7 EXISTS\nC: DONE\nS: w{tag} OK done\n")).await;
            answer_status(&mut peer, "INBOX (MESSAGES 7 UIDNEXT 12 UIDVALIDITY 7 UNSEEN 4)").await;
            watching.expect(&["INBOX: new mail, announced"]).await;
            let next = peer.line().await;
            assert!(next.ends_with(" IDLE"), "{next}");
            stop(watching, peer).await;
        })
        .await;
    }
}

#[tokio::test]
async fn an_account_on_demand_is_asked_on_the_visit_that_is_due_anyway() {
    limited(async {
        let mut stage = stage(PreviewContent::Subject).await;
        stage.world.watch.connection = WatchConnection::OnDemand;
        let mut watching = stage.world.watch();
        let mut peer = stage.accept().await;
        let told = header(10, &["From: Bob <b@x>", "Subject: Hi"]);
        peer.play(&IDLE.replace(" IDLE]", "]")).await;
        peer.play(&format!(
            "\
C: w1 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 6 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 3)
S: w1 OK done
C: w2 EXAMINE \"INBOX\"
S: w2 OK open
C: w3 {FETCH}
{told}S: w3 OK done
C: w4 CLOSE
S: w4 OK closed
C: w5 LOGOUT
S: * BYE bye
S: w5 OK done
"
        ))
        .await;
        watching
            .expect(&[
                "INBOX: new mail, next 11 of 6 with 3 unseen, a preview follows",
                "INBOX: newest of 1: \"Bob\" about \"Hi\"",
            ])
            .await;
        stop(watching, peer).await;
    })
    .await;
}
