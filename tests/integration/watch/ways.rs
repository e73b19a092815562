//! Ways of watching: NOTIFY, IDLE, LIST-STATUS and polls, and backends that lie about them.

use std::time::{Duration, Instant};

use mailchime::metrics::Watching as Mode;

use super::mail::backend;
use crate::support::stage::{IDLE, Stage, stop};
use crate::support::watching::{PASSWORD, WatchWorld, told};
use crate::support::{limited, until};

const MAIL: &str = "Subject: hello\r\n\r\nHi there\r\n";

/// Alice's devices were told of her INBOX, and of 3 messages in Team.
async fn stage_with_team() -> Stage {
    let stage = Stage::new().await;
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

const LIST: &str =
    r#"LIST "" ("INBOX" "Team") RETURN (STATUS (MESSAGES UIDNEXT UIDVALIDITY UNSEEN))"#;

/// The answer to [`LIST`] when all is as the devices were told.
const LISTED: &str = "\
S: * LIST () \"/\" INBOX
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 7 UNSEEN 2)
S: * LIST () \"/\" Team
S: * STATUS Team (MESSAGES 3 UIDNEXT 8 UIDVALIDITY 8 UNSEEN 0)
";

const NOTIFY: &str = "NOTIFY SET (selected (MessageNew MessageExpunge FlagChange)) \
                      (mailboxes (\"Team\") (MessageNew MessageExpunge FlagChange))";

#[tokio::test]
async fn notify_tells_of_the_other_mailboxes_while_idle_tells_of_inbox() {
    limited(async {
        let stage = stage_with_team().await;
        let mut watching = stage.world.watch();
        let mut peer = stage.accept().await;
        peer.play(&login("IDLE NOTIFY LIST-STATUS")).await;
        peer.play(&format!(
            "\
C: w1 EXAMINE INBOX
S: w1 OK open
C: w2 {NOTIFY}
S: w2 OK done
C: w3 {LIST}
{LISTED}S: w3 OK done
C: w4 IDLE
S: + idling
"
        ))
        .await;
        assert_eq!(watching.watched(Mode::Notify), 1);
        // Dovecot: parts of a state, at times twice, and of mailboxes that nobody asked for.
        peer.play(
            "\
S: * STATUS Team (MESSAGES 4 UIDNEXT 9 UNSEEN 1)
S: * STATUS Team (MESSAGES 4 UIDNEXT 9 UNSEEN 1)
S: * STATUS Other (MESSAGES 4 UIDNEXT 9 UNSEEN 1)
C: DONE
S: w4 OK done
C: w5 STATUS \"Team\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS Team (MESSAGES 4 UIDNEXT 9 UIDVALIDITY 8 UNSEEN 1)
S: w5 OK done
C: w6 IDLE
S: + idling
",
        )
        .await;
        let confirmed = "Team: confirmed, next 9 of 4 with 1 unseen";
        watching.expect(&["Team: new mail, announced", confirmed]).await;
        peer.play(
            "\
S: * STATUS Team (MESSAGES 4 UIDNEXT 9 UNSEEN 1)
S: * STATUS Team (UNSEEN 0)
C: DONE
S: w6 OK done
C: w7 STATUS \"Team\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS Team (MESSAGES 4 UIDNEXT 9 UIDVALIDITY 8 UNSEEN 0)
S: w7 OK done
C: w8 IDLE
S: + idling
S: * STATUS Team (MESSAGES 5)
S: * 6 EXISTS
C: DONE
S: w8 OK done
C: w9 LIST \"\" (\"INBOX\" \"Team\") RETURN (STATUS (MESSAGES UIDNEXT UIDVALIDITY UNSEEN))
S: * STATUS INBOX (MESSAGES 6 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 3)
S: * STATUS Team (MESSAGES 5 UIDNEXT 10 UIDVALIDITY 8 UNSEEN 1)
S: w9 OK done
C: w10 IDLE
",
        )
        .await;
        watching.expect(&["Team: quiet, next 9 of 4 with 0 unseen"]).await;
        let mut lines = Vec::new();
        while lines.len() < 4 {
            lines.push(watching.next().await);
        }
        lines.sort();
        let expected = [
            "INBOX: confirmed, next 11 of 6 with 3 unseen",
            "INBOX: new mail, announced",
            "Team: confirmed, next 10 of 5 with 1 unseen",
            "Team: new mail, announced",
        ];
        assert_eq!(lines, expected);
        watching.expect_nothing();
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn notify_is_taken_back_before_it_is_asked_for_again() {
    limited(async {
        let mut stage = stage_with_team().await;
        stage.world.watch.idle_check = Duration::from_millis(500);
        let mut watching = stage.world.watch();
        let mut peer = stage.accept().await;
        peer.play(&login("IDLE NOTIFY LIST-STATUS")).await;
        peer.play(&format!(
            "\
C: w1 EXAMINE INBOX
S: w1 OK open
C: w2 {NOTIFY}
S: w2 OK done
C: w3 {LIST}
{LISTED}S: w3 OK done
C: w4 IDLE
S: + idling
C: DONE
S: w4 OK done
C: w5 EXAMINE INBOX
S: w5 OK open
C: w6 NOTIFY NONE
S: w6 OK done
C: w7 {NOTIFY}
S: w7 OK done
C: w8 {LIST}
{LISTED}S: w8 OK done
C: w9 IDLE
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
async fn notify_that_is_refused_is_replaced_by_polling_and_not_tried_for_ever() {
    limited(async {
        let mut stage = stage_with_team().await;
        stage.world.watch.poll_interval = Duration::from_millis(500);
        let mut watching = stage.world.watch();
        for answer in ["NO [BADEVENT FlagChange] never heard of it", "BAD what?"] {
            let mut peer = stage.accept().await;
            peer.play(&login("IDLE NOTIFY LIST-STATUS")).await;
            peer.play(&format!(
                "\
C: w1 EXAMINE INBOX
S: w1 OK open
C: w2 {NOTIFY}
S: w2 {answer}
C: w3 {LIST}
{LISTED}S: w3 OK done
C: w4 IDLE
S: + idling
C: DONE
S: w4 OK done
C: w5 {LIST}
{LISTED}S: w5 OK done
C: w6 IDLE
S: + idling
S: * BYE that is all
"
            ))
            .await;
            assert_eq!(watching.watched(Mode::Idle), 1);
            peer.left().await;
        }
        let mut peer = stage.accept().await;
        peer.play(&login("IDLE NOTIFY LIST-STATUS")).await;
        peer.play(&format!("C: w1 EXAMINE INBOX\nS: w1 OK open\nC: w2 {LIST}")).await;
        watching.expect_nothing();
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn notify_that_sends_nothing_is_found_out_by_two_refreshes() {
    limited(async {
        let mut stage = stage_with_team().await;
        stage.world.watch.idle_check = Duration::from_millis(500);
        let mut watching = stage.world.watch();
        let mut peer = stage.accept().await;
        peer.play(&login("NOTIFY LIST-STATUS")).await;
        let notify = "NOTIFY SET (mailboxes (\"INBOX\" \"Team\") \
                      (MessageNew MessageExpunge FlagChange))";
        let mut tags = 1..;
        let mut tag = || tags.next().unwrap();
        for look in 0..3 {
            if look > 0 {
                let tag = tag();
                peer.play(&format!("C: w{tag} NOTIFY NONE\nS: w{tag} OK")).await;
            }
            let told = LISTED.replace("3 UIDNEXT 8", &format!("{} UIDNEXT {}", 3 + look, 8 + look));
            let (first, second) = (tag(), tag());
            peer.play(&format!(
                "C: w{first} {notify}\nS: w{first} OK\nC: w{second} {LIST}\n{told}S: w{second} OK"
            ))
            .await;
        }
        // It is looked at again at once, by the other way from here on.
        peer.play(&format!("C: w9 {LIST}\n{LISTED}S: w9 OK")).await;
        let news = [
            "Team: new mail, next 9 of 4 with 0 unseen",
            "Team: new mail, next 10 of 5 with 0 unseen",
        ];
        watching.expect(&news).await;
        until(async || watching.watched(Mode::Poll) > 0).await;
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn idle_that_sends_nothing_is_found_out_by_two_refreshes() {
    limited(async {
        let mut stage = Stage::new().await;
        stage.world.watch.idle_check = Duration::from_millis(500);
        let (mut watching, mut peer) = stage.quiet().await;
        peer.play(
            "\
C: DONE
S: w3 OK done
C: w4 EXAMINE INBOX
S: * 6 EXISTS
S: w4 OK open
C: w5 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 6 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 3)
S: w5 OK done
C: w6 IDLE
S: + idling
C: DONE
S: w6 OK done
C: w7 EXAMINE INBOX
S: * 7 EXISTS
S: w7 OK open
C: w8 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 7 UIDNEXT 12 UIDVALIDITY 7 UNSEEN 4)
S: w8 OK done
C: w9 CLOSE
S: w9 OK closed
C: w10 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 7 UIDNEXT 12 UIDVALIDITY 7 UNSEEN 4)
S: w10 OK done
",
        )
        .await;
        for news in ["next 11 of 6 with 3 unseen", "next 12 of 7 with 4 unseen"] {
            watching.expect(&[&format!("INBOX: new mail, {news}")]).await;
        }
        drop(peer);
        let mut peer = stage.accept().await;
        peer.play(IDLE).await;
        peer.play("C: w1 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)").await;
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn many_mailboxes_are_asked_for_ahead_of_the_answers_and_within_bounds() {
    limited(async {
        let stage = Stage::new().await;
        let names: Vec<String> = (1..=20).map(|number| format!("m{number}")).collect();
        let mailboxes: Vec<_> =
            names.iter().map(|name| (name.as_str(), told(1, 2, 1, 1))).collect();
        stage.world.register("alice", &mailboxes).await;
        let mut watching = stage.world.watch();
        let mut peer = stage.accept().await;
        peer.play(&login("")).await;
        let mut asked = Vec::new();
        for number in 1..=16 {
            let line = peer.line().await;
            let name = line.strip_prefix(&format!("w{number} STATUS \"")).expect(&line);
            asked.push(name.split_once('"').unwrap().0.to_owned());
        }
        let answer = |number: usize, name: &str| {
            let (count, next) = if number == 3 { (2, 3) } else { (1, 2) };
            format!("S: * STATUS {name} (MESSAGES {count} UIDNEXT {next} UIDVALIDITY 1 UNSEEN 1)\n")
        };
        // In whatever order; one is gone, and one is called something else.
        for number in (1..=8).rev() {
            let text = match number {
                5 => format!("S: w{number} NO there is none\n"),
                6 => format!("{}S: w{number} OK\n", answer(number, "somewhere-else")),
                _ => format!("{}S: w{number} OK\n", answer(number, &asked[number - 1])),
            };
            peer.play(&text).await;
        }
        for number in 17..=20 {
            let line = peer.line().await;
            let name = line.strip_prefix(&format!("w{number} STATUS \"")).expect(&line);
            asked.push(name.split_once('"').unwrap().0.to_owned());
        }
        for number in 9..=20 {
            peer.play(&format!("{}S: w{number} OK\n", answer(number, &asked[number - 1]))).await;
        }
        let changed = format!("{}: new mail, next 3 of 2 with 1 unseen", asked[2]);
        watching.expect(&[&changed]).await;
        watching.expect_nothing();
        asked.sort();
        asked.dedup();
        assert_eq!(asked.len(), 20);
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn what_list_does_not_tell_is_asked_for_by_itself() {
    limited(async {
        let stage = Stage::new().await;
        let mailboxes =
            [("INBOX", told(7, 10, 5, 2)), ("Team", told(8, 8, 3, 0)), ("100%", told(9, 2, 1, 0))];
        stage.world.register("alice", &mailboxes).await;
        let mut watching = stage.world.watch();
        let mut peer = stage.accept().await;
        peer.play(&login("LIST-STATUS")).await;
        peer.play(&format!("C: w1 {LIST}\n{LISTED}S: w1 OK\n")).await;
        peer.play(
            "\
C: w2 STATUS \"100%\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS \"100%\" (MESSAGES 2 UIDNEXT 3 UIDVALIDITY 9 UNSEEN 1)
S: w2 OK
",
        )
        .await;
        watching.expect(&["100%: new mail, next 3 of 2 with 1 unseen"]).await;
        stop(watching, peer).await;

        // The command may be refused altogether.
        let mut watching = stage.world.watch();
        let mut peer = stage.accept().await;
        peer.play(&login("LIST-STATUS")).await;
        peer.play(&format!("C: w1 {LIST}\nS: w1 BAD what?\n")).await;
        for _ in 0..3 {
            let line = peer.line().await;
            assert!(line.contains(" STATUS \""), "{line}");
        }
        watching.expect_nothing();
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn a_mailbox_made_anew_moves_what_was_told_once_and_a_number_that_never_stays_does_not() {
    limited(async {
        let mut stage = Stage::new().await;
        stage.world.watch.poll_interval = Duration::from_millis(10);
        stage.world.watch.poll_max = Duration::from_millis(10);
        let mut watching = stage.world.watch();
        let mut peer = stage.accept().await;
        peer.play(&login("")).await;
        // Mailutils imap4d: UIDVALIDITY is the clock, and UIDNEXT moves with it.
        let anew = [(21, 12), (22, 14), (23, 13), (24, 10), (24, 10), (24, 10)];
        // Where UIDNEXT alone has grown it is asked for again, which at imap4d makes it grow.
        let stays = [(24, 11), (24, 11)];
        let grows = [(24, 13), (24, 15), (24, 17), (24, 19), (24, 19)];
        let states = [&anew[..], &stays, &grows].concat();
        for (tag, (validity, next)) in (1..).zip(states) {
            peer.play(&format!(
                "\
C: w{tag} STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 5 UIDNEXT {next} UIDVALIDITY {validity} UNSEEN 2)
S: w{tag} OK done
"
            ))
            .await;
        }
        let news = [
            "INBOX: as told, next 10 of 5 with 2 unseen",
            "INBOX: new mail, next 11 of 5 with 2 unseen",
        ];
        watching.expect(&news).await;
        watching.expect_nothing();
        stop(watching, peer).await;
    })
    .await;
}

/// Cyrus looks at the mailbox as IDLE begins, and only then has itself be told: it says nothing of
/// what comes in between.
#[tokio::test]
async fn mail_that_comes_while_idle_begins_is_found_by_one_more_look() {
    limited(async {
        let mut stage = Stage::new().await;
        stage.world.watch.poll_interval = Duration::from_secs(2);
        stage.world.watch.idle_check = Duration::from_secs(7);
        let (mut watching, mut peer) = stage.quiet().await;
        let looks = [(6, 11), (7, 12), (7, 12)];
        for ((messages, next), tag) in looks.into_iter().zip((4..).step_by(2)) {
            if tag == 4 {
                peer.play("S: * 6 EXISTS\n").await;
            }
            peer.play(&format!(
                "\
C: DONE
S: w{} OK done
C: w{tag} STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES {messages} UIDNEXT {next} UIDVALIDITY 7 UNSEEN 3)
S: w{tag} OK done
C: w{} IDLE
S: + idling
",
                tag - 1,
                tag + 1
            ))
            .await;
        }
        let news = [
            "INBOX: new mail, announced",
            "INBOX: confirmed, next 11 of 6 with 3 unseen",
            "INBOX: new mail, next 12 of 7 with 3 unseen",
        ];
        watching.expect(&news).await;
        // After a look that found nothing there is none until all is checked.
        peer.play("C: DONE\nS: w9 OK done\nC: w10 EXAMINE INBOX").await;
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn what_condstore_and_qresync_tell_is_activity_like_any_other() {
    limited(async {
        let stage = Stage::new().await;
        let (mut watching, mut peer) = stage.quiet().await;
        peer.play(
            "\
S: * OK [HIGHESTMODSEQ 99] Highest
S: * VANISHED 3
S: * 5 EXISTS
S: * 5 FETCH (UID 10 MODSEQ (99) FLAGS ())
C: DONE
S: * VANISHED (EARLIER) 1:2
S: w3 OK done
C: w4 STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)
S: * STATUS INBOX (MESSAGES 5 UIDNEXT 11 UIDVALIDITY 7 UNSEEN 3)
S: w4 OK done
C: w5 IDLE
",
        )
        .await;
        watching.expect(&["INBOX: new mail, next 11 of 5 with 3 unseen"]).await;
        watching.expect_nothing();
        stop(watching, peer).await;
    })
    .await;
}

#[tokio::test]
async fn more_accounts_than_connections_take_turns() {
    limited(async {
        let backend = backend().await;
        let mut world = WatchWorld::new(backend.address()).await;
        world.watch.connections = 2;
        world.watch.poll_interval = Duration::from_millis(30);
        let users: Vec<String> = (0..5).map(|number| format!("user{number}")).collect();
        for user in &users {
            backend.add_account(user, PASSWORD.as_bytes());
            world.register(user, &[("INBOX", told(1, 1, 0, 0))]).await;
        }
        let mut watching = world.watch();
        backend.wait_until(|c| users.iter().all(|user| c.logins.get(user) >= Some(&2))).await;
        let began = Instant::now();
        for user in &users {
            backend.deliver(user, "INBOX", MAIL).unwrap();
        }
        for _ in &users {
            while !watching.next().await.starts_with("INBOX: new mail") {}
        }
        println!("5 accounts over 2 connections: all told within {:?}", began.elapsed());
        let seen = backend.counters();
        // A connection that has said goodbye may still be counted by the server.
        assert!(seen.connections <= 4, "{seen:?}");
        watching.stop().await;
    })
    .await;
}
