//! From an event to a push, while no connection to the backend is open.

use mailchime::config::UdpEventsConfig;
use tokio::net::UdpSocket;

use super::{ALICE, IntakeWorld, MAIL, TOKEN};
use crate::support::in_process::loopback;
use crate::support::{limited, soon};

/// What a mail server says that has a mail in alice's INBOX, whose state is read from it.
fn event(event: &str, uid_next: u64, messages: u64, unseen: u64) -> String {
    format!(
        r#"{{"user":"alice","changes":[{{"mailbox":"INBOX","events":["{event}"],"uidvalidity":1,
        "uidnext":{uid_next},"messages":{messages},"unseen":{unseen}}}]}}"#
    )
}

#[tokio::test]
async fn an_event_with_numbers_is_a_push_without_a_login() {
    limited(async {
        let intake = IntakeWorld::start().await;
        intake.registered().await;
        let logins = intake.backend.counters().accepted;
        intake.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        let new = event("MessageNew", 2, 1, 1);
        assert_eq!(intake.post(&new).await.status, 204);
        soon("a push", intake.world.push_of(&["INBOX"])).await;
        // The same once more is no news; neither is what was so before. What has changed is.
        assert_eq!(intake.post(&new).await.status, 204);
        assert_eq!(intake.post(&event("MessageRead", 2, 1, 0)).await.status, 204);
        soon("a push", intake.world.push_of(&["INBOX"])).await;
        intake.resting().await;
        assert_eq!(intake.backend.counters().accepted, logins);
        assert_eq!(intake.world.apns.received(), 2);
        assert_eq!(intake.counted().await, [r#"_total{source="dovecot",what="recorded"} 3"#]);
    })
    .await;
}

#[tokio::test]
async fn a_delivery_that_dovecot_s_ox_driver_tells_of_is_announced_and_then_looked_at() {
    limited(async {
        let intake = IntakeWorld::start().await;
        intake.registered().await;
        let logins = intake.backend.counters().accepted;
        intake.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        let body = r#"{"user":"alice","event":"messageNew","folder":"INBOX","imap-uidvalidity":1,
            "imap-uid":1,"from":"Ann <ann@example.org>","subject":"hello","snippet":"hi","unseen":1}"#;
        let request = format!("PUT /v1/events/ox\nAuthorization: Bearer {TOKEN}\n\n{body}");
        assert_eq!(intake.ask(&request).await.status, 204);
        soon("a push", intake.world.push_of(&["INBOX"])).await;
        intake.resting().await;
        let seen = intake.backend.wait_until(|c| c.accepted > logins && c.connections == 0).await;
        assert_eq!(seen.accepted, logins + 1);
    })
    .await;
}

/// It comes with its mail where it is restored, or had another name.
#[tokio::test]
async fn a_mailbox_that_is_created_with_mail_in_it_is_a_push() {
    limited(async {
        let intake = IntakeWorld::start().await;
        intake.backend.create_mailbox(ALICE, "Team").unwrap();
        intake.world.register((ALICE, "secret"), &["INBOX", "Team"]).await;
        intake.resting().await;
        let tell = async |event: &str| {
            let change = format!(r#"{{"mailbox":"Team","events":["{event}"]}}"#);
            let body = format!(r#"{{"user":"alice","changes":[{change}]}}"#);
            assert_eq!(intake.post(&body).await.status, 204);
        };
        let mut session = intake.world.session(ALICE).await;
        assert!(session.command("d DELETE Team").await.starts_with("d OK"));
        session.command("e LOGOUT").await;
        tell("MailboxDelete").await;
        intake.resting().await;
        intake.backend.create_mailbox(ALICE, "Team").unwrap();
        intake.backend.deliver(ALICE, "Team", MAIL).unwrap();
        tell("MailboxCreate").await;
        soon("a push", intake.world.push_of(&["Team"])).await;
    })
    .await;
}

#[tokio::test]
async fn numbers_that_lie_heal_at_the_next_look() {
    limited(async {
        let intake = IntakeWorld::start().await;
        intake.registered().await;
        intake.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        assert_eq!(intake.post(&event("MessageNew", 900, 800, 700)).await.status, 204);
        soon("a push", intake.world.push_of(&["INBOX"])).await;
        intake.resting().await;
        // Somebody says that something happened, and not what.
        let unnamed = r#"{"user":"alice","changes":[{"mailbox":"INBOX"}]}"#;
        assert_eq!(intake.post(unnamed).await.status, 204);
        soon("a push", intake.world.push_of(&["INBOX"])).await;
        intake.resting().await;
        // From now on the truth is no news, and what comes after it is.
        assert_eq!(intake.post(&event("MessageNew", 2, 1, 1)).await.status, 204);
        intake.resting().await;
        assert_eq!(intake.world.apns.received(), 2);
        intake.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        assert_eq!(intake.post(&event("MessageNew", 3, 2, 2)).await.status, 204);
        soon("a push", intake.world.push_of(&["INBOX"])).await;
    })
    .await;
}

/// Anybody can send one, so nothing is pushed for it that the mailbox does not bear out.
#[tokio::test]
async fn a_datagram_has_the_mailbox_looked_at() {
    limited(async {
        let (named, other) = ("127.0.0.1", "192.0.2.1");
        let intake = IntakeWorld::with(|config| {
            config.events.udp = Some(UdpEventsConfig {
                address: loopback(),
                interface: None,
                networks: vec![named.parse().unwrap()],
                domains: Vec::new(),
                default_domain: Some("example.org".to_owned()),
            });
        });
        let intake = intake.await;
        intake.registered().await;
        let to = intake.world.mailchime.udp_events.unwrap();
        let socket = UdpSocket::bind((named, 0)).await.unwrap();
        let logins = intake.backend.counters().accepted;
        let delivery = b"log\0MAIL\0\0alice\0INBOX\x000\0From: a@b\nSubject: private\n\0";
        // A forged one, garbage, and one of a mail that is there.
        socket.send_to(delivery, to).await.unwrap();
        intake.backend.wait_until(|c| c.accepted > logins && c.connections == 0).await;
        intake.resting().await;
        assert_eq!(intake.world.apns.received(), 0);
        for garbage in [&b""[..], b"private", &[0; 2000]] {
            socket.send_to(garbage, to).await.unwrap();
        }
        intake.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        socket.send_to(delivery, to).await.unwrap();
        soon("a push", intake.world.push_of(&["INBOX"])).await;
        let counted = [
            r#"_refused_total{source="udp",why="malformed"} 2"#,
            r#"_total{source="udp",what="recorded"} 2"#,
        ];
        assert_eq!(intake.counted().await, counted);

        let intake = IntakeWorld::with(|config| {
            config.events.udp = Some(UdpEventsConfig {
                address: loopback(),
                interface: None,
                networks: vec![other.parse().unwrap()],
                domains: Vec::new(),
                default_domain: None,
            });
        });
        let intake = intake.await;
        let to = intake.world.mailchime.udp_events.unwrap();
        socket.send_to(delivery, to).await.unwrap();
        let refused = [r#"_refused_total{source="udp",why="unauthorized"} 1"#];
        while intake.counted().await.is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(intake.counted().await, refused);
    })
    .await;
}

/// What comes late is of an earlier moment than what is known, so the mailbox is looked at.
#[tokio::test]
async fn an_event_that_comes_late_makes_a_look_due() {
    limited(async {
        let intake = IntakeWorld::start().await;
        intake.registered().await;
        for _ in 0..2 {
            intake.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        }
        let logins = intake.backend.counters().accepted;
        assert_eq!(intake.post(&event("MessageNew", 3, 2, 2)).await.status, 204);
        soon("a push", intake.world.push_of(&["INBOX"])).await;
        intake.resting().await;
        assert_eq!(intake.post(&event("MessageNew", 2, 1, 1)).await.status, 204);
        intake.resting().await;
        let seen = intake.backend.wait_until(|c| c.accepted > logins && c.connections == 0).await;
        assert_eq!(seen.accepted, logins + 1);
        assert_eq!(intake.world.apns.received(), 1);
    })
    .await;
}

/// A forged, a foreign and a truncated event change nothing.
#[tokio::test]
async fn what_is_refused_marks_nothing() {
    limited(async {
        let intake = IntakeWorld::start().await;
        intake.registered().await;
        let body = event("MessageExpunge", 1, 0, 0).replace("alice", "alice@example.org");
        let forged = format!("POST /v1/events\nAuthorization: Bearer {TOKEN}1\n\n{body}");
        assert_eq!(intake.ask(&forged).await.status, 401);
        let foreign = format!("[{body},{}]", body.replace(".org", ".com"));
        assert_eq!(intake.post(&foreign).await.status, 403);
        assert_eq!(intake.post(&body[..body.len() - 1]).await.status, 422);
        assert_eq!(intake.due().await, [""; 0]);
        assert_eq!(intake.world.apns.received(), 0);
    })
    .await;
}
