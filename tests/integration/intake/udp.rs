//! Datagrams to a group, on loopback: no other network is needed.

use std::net::SocketAddr;

use mailchime::config::UdpEventsConfig;
use tokio::net::UdpSocket;

use super::{ALICE, IntakeWorld, MAIL};
use crate::support::in_process::loopback;
use crate::support::{limited, soon, until};

/// A group of the administrator's own scope (RFC 2365).
const GROUP: &str = "239.255.23.42:0";

pub(super) const DELIVERY: &[u8] =
    b"log\0MAIL\0\0alice\0INBOX\x000\0From: a@b\nSubject: private\n\0";

/// mailchime in the group, which hears this network.
async fn in_group(network: &str) -> IntakeWorld {
    in_group_for(network, &[]).await
}

/// For these domains alone.
async fn in_group_for(network: &str, domains: &[&str]) -> IntakeWorld {
    let domains = domains.iter().map(|domain| (*domain).to_owned()).collect();
    let networks = vec![network.parse().unwrap()];
    let intake = IntakeWorld::with(|config| {
        config.events.udp = Some(UdpEventsConfig {
            address: GROUP.parse().unwrap(),
            interface: Some("127.0.0.1".parse().unwrap()),
            networks,
            domains,
            default_domain: Some("example.org".to_owned()),
        });
    });
    intake.await
}

#[tokio::test]
async fn a_datagram_to_the_group_has_the_mailboxes_looked_at() {
    limited(async {
        let intake = in_group("127.0.0.1").await;
        intake.registered().await;
        let group: SocketAddr = intake.world.mailchime.udp_events.unwrap();
        assert!(group.ip().is_multicast() && group.port() > 0);
        // What is bound to an address of loopback sends by loopback.
        let socket = UdpSocket::bind(loopback()).await.unwrap();
        intake.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        socket.send_to(DELIVERY, group).await.unwrap();
        soon("a push", intake.world.push_of(&["INBOX"])).await;
        assert_eq!(intake.counted().await, [r#"_total{source="udp",what="recorded"} 1"#]);
    })
    .await;
}

/// It says by which name the server knows the folder, which is another one than clients know.
#[tokio::test]
async fn a_datagram_of_a_folder_has_it_looked_at_by_whatever_name() {
    limited(async {
        let intake = in_group("127.0.0.1").await;
        intake.backend.create_mailbox(ALICE, "INBOX/Team").unwrap();
        intake.world.register((ALICE, "secret"), &["INBOX", "INBOX/Team"]).await;
        intake.resting().await;
        let group = intake.world.mailchime.udp_events.unwrap();
        let socket = UdpSocket::bind(loopback()).await.unwrap();
        for named in ["Team", "INBOX"] {
            intake.backend.deliver(ALICE, "INBOX/Team", MAIL).unwrap();
            let datagram = format!("log\0MAIL\0\0alice\0{named}\x000\0From: a@b\n\0");
            socket.send_to(datagram.as_bytes(), group).await.unwrap();
            soon("a push", intake.world.push_of(&["INBOX/Team"])).await;
            intake.resting().await;
        }
        assert_eq!(intake.world.apns.received(), 2);
    })
    .await;
}

/// Whatever it says counts, so nobody who floods is asked what he says.
#[tokio::test]
async fn more_datagrams_than_are_heard_are_missed_and_have_all_accounts_looked_at() {
    limited(async {
        let intake = in_group("127.0.0.1").await;
        intake.registered().await;
        let group = intake.world.mailchime.udp_events.unwrap();
        let socket = UdpSocket::bind(loopback()).await.unwrap();
        intake.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        let count = async |of: &str| {
            let counted = intake.counted().await;
            let line = counted.iter().find_map(|line| line.strip_prefix(of)).unwrap_or("0");
            line.parse::<u64>().unwrap()
        };
        let missed = r#"_missed_total{source="udp"} "#;
        while count(missed).await == 0 {
            for _ in 0..20 {
                for _ in 0..20 {
                    socket.send_to(b"garbage", group).await.unwrap();
                }
                tokio::task::yield_now().await;
            }
        }
        soon("a push", intake.world.push_of(&["INBOX"])).await;
        let refused = r#"_refused_total{source="udp",why="too_many"} "#;
        assert_eq!(count(missed).await, count(refused).await);
    })
    .await;
}

#[tokio::test]
async fn a_datagram_to_the_group_from_another_network_is_refused() {
    limited(async {
        let intake = in_group("192.0.2.0/24").await;
        let group = intake.world.mailchime.udp_events.unwrap();
        let socket = UdpSocket::bind(loopback()).await.unwrap();
        socket.send_to(DELIVERY, group).await.unwrap();
        until(async || !intake.counted().await.is_empty()).await;
        let refused = [r#"_refused_total{source="udp",why="unauthorized"} 1"#];
        assert_eq!(intake.counted().await, refused);
    })
    .await;
}

#[tokio::test]
async fn a_datagram_about_a_user_of_another_domain_is_refused() {
    limited(async {
        let intake = in_group_for("127.0.0.1", &["example.org"]).await;
        let group = intake.world.mailchime.udp_events.unwrap();
        let socket = UdpSocket::bind(loopback()).await.unwrap();
        let count = async |line: &str| intake.counted().await.iter().any(|it| it == line);
        socket.send_to(b"log\0MAIL\0\0carol@example.com\0INBOX\0", group).await.unwrap();
        until(async || count(r#"_refused_total{source="udp",why="foreign"} 1"#).await).await;
        socket.send_to(DELIVERY, group).await.unwrap();
        until(async || count(r#"_total{source="udp",what="unwatched"} 1"#).await).await;
    })
    .await;
}
