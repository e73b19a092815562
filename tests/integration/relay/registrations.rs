//! Registrations in the middle of a session: what the backend is asked, and what waits for the database.

use std::time::Duration;

use mailchime::config::Config;
use mailchime::demo::replay::Proxy;
use mailchime::imap::contract::{DomainRoute, PushOffer};
use mailchime::model::SessionEvent;
use mailchime::net::tls_stream::TlsClient;
use sqlx::{Connection, Executor, SqliteConnection};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::log_in;
use crate::support::dialogues::{proxy, push_offer, read_to_end};
use crate::support::{LIMIT, limited, listener};

/// Registers for INBOX and Bad, and plays the backend until Bad is asked for, if it is.
async fn register(client: &mut TlsClient, backend: &mut TcpStream, asks: bool) {
    let token = "0123456789abcdef".repeat(4);
    let command = format!(
        "r XAPPLEPUSHSERVICE aps-version 2 aps-account-id 0715A26B-CA09-4730-A419-793000CA982E \
         aps-device-token {token} aps-subtopic com.apple.mobilemail mailboxes (INBOX Bad)\r\n"
    );
    client.write_all(command.as_bytes()).await.unwrap();
    let mut lines = tokio::io::BufReader::new(backend);
    let mut expected = vec!["NOOP", "STATUS \"INBOX\""];
    expected.extend(asks.then_some("STATUS \"Bad\""));
    for command in expected {
        let mut line = String::new();
        lines.read_line(&mut line).await.unwrap();
        let (tag, said) = line.split_once(' ').unwrap();
        assert!(said.starts_with(command), "{line}");
        let answer = match command {
            "NOOP" => String::new(),
            "STATUS \"INBOX\"" => "* STATUS INBOX (MESSAGES 1 UIDNEXT 2 UIDVALIDITY 3)\r\n".into(),
            _ => return,
        };
        lines.write_all(format!("{answer}{tag} OK done\r\n").as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn a_mailbox_that_ends_its_session_is_asked_for_once_and_registered_all_the_same() {
    let test = async {
        let listener = listener().await;
        let address = listener.local_addr().unwrap();
        let limit = |config: &mut Config| config.limits.answer_timeout = Duration::from_secs(4);
        for hangs_up in [true, false] {
            let proxy = proxy(address, Some(push_offer()), limit).await;
            let (mut client, mut backend) = log_in(&proxy, &listener).await;
            register(&mut client, &mut backend, true).await;
            if hangs_up {
                drop(backend);
                assert_eq!(read_to_end(&mut client).await, b"");
                // The phone logs in anew, and registers.
                let (mut client, mut backend) = log_in(&proxy, &listener).await;
                register(&mut client, &mut backend, false).await;
                registered(&mut client).await;
            } else {
                registered(&mut client).await;
                let (mut client, mut backend) = log_in(&proxy, &listener).await;
                register(&mut client, &mut backend, false).await;
                registered(&mut client).await;
            }
        }
    };
    limited(test).await;
}

/// The client hears that it is registered for both.
async fn registered(client: &mut TlsClient) {
    let mut heard = Vec::new();
    while !heard.ends_with(b"r OK XAPPLEPUSHSERVICE completed\r\n") {
        heard.push(client.read_u8().await.unwrap());
    }
    let heard = String::from_utf8_lossy(&heard).into_owned();
    assert!(
        heard.contains("\"mailbox\" \"INBOX\"") && heard.contains("\"mailbox\" \"Bad\""),
        "{heard}"
    );
}

/// A session whose database takes nothing until it is let go.
struct Locked {
    proxy: Proxy,
    client: TlsClient,
    backend: tokio::io::BufReader<TcpStream>,
    beside: SqliteConnection,
}

impl Locked {
    async fn new() -> Self {
        let listener = listener().await;
        let address = listener.local_addr().unwrap();
        // Longer than the test.
        let patient = |config: &mut Config| config.store.busy_timeout = 4 * LIMIT;
        let proxy = proxy(address, Some(offer_of("first")), patient).await;
        let (client, backend) = log_in(&proxy, &listener).await;
        let mut beside = SqliteConnection::connect(&proxy.database()).await.unwrap();
        beside.execute("begin exclusive").await.unwrap();
        Self { proxy, client, backend: tokio::io::BufReader::new(backend), beside }
    }

    /// A device of this digit registers for INBOX; it is not written yet.
    async fn registers(&mut self, tag: &str, digit: &str) {
        let token = digit.repeat(64);
        let command = format!(
            "{tag} XAPPLEPUSHSERVICE aps-version 1 aps-account-id x aps-device-token {token} \
             aps-subtopic com.apple.mobilemail\r\n"
        );
        self.client.write_all(command.as_bytes()).await.unwrap();
        self.answers("NOOP", "").await;
        self.answers("STATUS \"INBOX\"", "* STATUS INBOX (MESSAGES 1)\r\n").await;
        // What comes behind it is answered first.
        self.client.write_all(format!("{tag}n NOOP\r\n").as_bytes()).await.unwrap();
        self.answers("NOOP", "").await;
        assert_eq!(self.until(&format!("{tag}n ")).await, [format!("{tag}n OK done")]);
    }

    /// The backend hears this command, says `before`, and that it is done.
    async fn answers(&mut self, command: &str, before: &str) {
        let mut line = String::new();
        self.backend.read_line(&mut line).await.unwrap();
        let (tag, said) = line.split_once(' ').unwrap();
        assert!(said.starts_with(command), "{line}");
        let answer = format!("{before}{tag} OK done\r\n");
        self.backend.write_all(answer.as_bytes()).await.unwrap();
    }

    async fn unlock(&mut self) {
        self.beside.execute("commit").await.unwrap();
    }

    /// What the client hears up to a line that starts so.
    async fn until(&mut self, start: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let mut line = Vec::new();
            while !line.ends_with(b"\r\n") {
                line.push(self.client.read_u8().await.unwrap());
            }
            lines.push(String::from_utf8(line).unwrap().trim_end().to_owned());
            if lines.last().unwrap().starts_with(start) {
                return lines;
            }
        }
    }
}

fn offer_of(topic: &str) -> PushOffer {
    let routes = vec![DomainRoute { domain: None, route: Some(topic.into()) }];
    PushOffer { routes, ..push_offer() }
}

#[tokio::test]
async fn a_registration_that_cannot_be_kept_is_refused_in_its_turn() {
    let test = async {
        let mut world = Locked::new().await;
        world.registers("r", "1").await;
        world.proxy.push.send_replace(None);
        world.registers("q", "2").await;
        world.unlock().await;
        let heard = world.until("q ").await;
        let tagged: Vec<_> = heard.iter().filter(|line| !line.starts_with('*')).collect();
        let refused = "q NO [UNAVAILABLE] Registrations cannot be kept just now";
        assert_eq!(tagged, ["r OK XAPPLEPUSHSERVICE completed", refused]);
    };
    limited(test).await;
}

#[tokio::test]
async fn compress_waits_for_no_registration() {
    let test = async {
        let mut world = Locked::new().await;
        world.registers("r", "1").await;
        world.client.write_all(b"c COMPRESS DEFLATE\r\n").await.unwrap();
        world.answers("NOOP", "").await;
        let refused = "c NO [INUSE] A registration is being written, try again";
        assert_eq!(world.until("c ").await, [refused]);
        world.unlock().await;
        world.until("r OK ").await;
        world.client.write_all(b"d COMPRESS DEFLATE\r\n").await.unwrap();
        world.answers("NOOP", "").await;
        assert_eq!(world.until("d ").await, ["d OK DEFLATE active"]);
    };
    limited(test).await;
}

#[tokio::test]
async fn the_answer_to_a_registration_names_the_topic_under_which_it_is_stored() {
    let test = async {
        let mut world = Locked::new().await;
        world.proxy.push.send_replace(Some(offer_of("second")));
        world.registers("r", "1").await;
        world.proxy.push.send_replace(Some(offer_of("third")));
        world.registers("q", "2").await;
        world.unlock().await;
        let told = |topic: &str| {
            format!("* XAPPLEPUSHSERVICE \"aps-version\" \"1\" \"aps-topic\" \"{topic}\"")
        };
        let completed = |tag: &str| format!("{tag} OK XAPPLEPUSHSERVICE completed");
        let expected = [told("second"), completed("r"), told("third"), completed("q")];
        assert_eq!(world.until("q ").await, expected);
        let (_, stored) = world.proxy.store.subscriptions(None, 1).await.unwrap().unwrap();
        let mut topics: Vec<_> =
            stored.iter().map(|of| of.subscription.route.to_string()).collect();
        topics.sort_unstable();
        assert_eq!(topics, ["second", "third"]);
    };
    limited(test).await;
}

/// The database holds up the end of no session, and what was registered is stored all the same.
#[tokio::test]
async fn a_registration_that_waits_for_the_database_does_not_hold_up_logout() {
    let test = async {
        let mut world = Locked::new().await;
        world.registers("r", "1").await;
        world.registers("q", "2").await;
        world.client.write_all(b"l LOGOUT\r\n").await.unwrap();
        world.answers("LOGOUT", "* BYE bye\r\n").await;
        let Locked { mut proxy, mut client, backend, mut beside } = world;
        drop(backend);
        assert_eq!(read_to_end(&mut client).await, b"* BYE bye\r\nl OK done\r\n");
        drop(client);
        beside.execute("commit").await.unwrap();
        let mut registered = 0;
        while registered < 2 {
            let event = proxy.events.recv().await.unwrap();
            registered += usize::from(matches!(event, SessionEvent::Registered { .. }));
        }
    };
    limited(test).await;
}
