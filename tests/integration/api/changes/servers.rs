//! Streams of a real Dovecot, read by curl.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tokio::sync::mpsc;

use crate::support::in_process::{InProcess, loopback};
use crate::support::servers::client::Client;
use crate::support::servers::dovecot::{Dovecot, Options};
use crate::support::servers::{ALICE, BOB, mail};
use crate::support::skip::skipped;
use crate::support::{limited, soon};

/// curl, and the JSON of each event that it prints.
struct Curl {
    process: Child,
    events: mpsc::Receiver<Value>,
}

impl Curl {
    fn start(world: &InProcess, (name, password): (&str, &str), query: &str) -> Self {
        let port = world.mailchime.api.unwrap().port();
        let mut process = Command::new("curl")
            .args(["--silent", "--no-buffer", "--user", &format!("{name}:{password}"), "--cacert"])
            .arg(world.file("ca.pem"))
            .arg(format!("https://localhost:{port}/v1/changes{query}"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (sender, events) = mpsc::channel(100);
        std::thread::spawn(move || {
            let lines = output.lines().map_while(Result::ok);
            for line in lines {
                let Some(data) = line.strip_prefix("data: ") else { continue };
                if sender.blocking_send(serde_json::from_str(data).unwrap()).is_err() {
                    return;
                }
            }
        });
        Self { process, events }
    }

    /// The next event; `None` when curl has ended.
    async fn next(&mut self) -> Option<Value> {
        soon("an event", self.events.recv()).await
    }
}

impl Drop for Curl {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_hears_of_what_happens_in_dovecot_until_its_password_is_another_one() {
    let test = "curl_hears_of_what_happens_in_dovecot_until_its_password_is_another_one";
    if skipped(test, "curl") {
        return;
    }
    let Some(mut dovecot) = Dovecot::start(test, &Options::default()) else { return };
    dovecot.deliver("alice", "Team", &mail("an old one"));
    for _ in 0..5 {
        dovecot.deliver("bob", "INBOX", &mail("an old one"));
    }
    limited(async {
        let world = InProcess::start(dovecot.plain, |config| {
            config.api.address = Some(loopback());
        });
        let world = world.await;
        let query = "?mailbox=INBOX&mailbox=Team";
        let mut alice = Curl::start(&world, ALICE, query);
        let mut bob = Curl::start(&world, BOB, "");
        let opened = alice.next().await.unwrap();
        assert_eq!(opened["data"]["mailboxes"][1]["messages"], 1, "{opened}");
        assert_eq!(bob.next().await.unwrap()["type"], "stream.opened");

        tokio::task::block_in_place(|| dovecot.deliver_by_lmtp("alice", &mail("hello")));
        let event = alice.next().await.unwrap();
        let data = &event["data"];
        assert_eq!((&data["mailbox"], &data["kind"]), (&"INBOX".into(), &"new".into()), "{event}");
        assert!(data["highestmodseq"].is_number(), "{event}");
        drop(alice);

        tokio::task::block_in_place(|| dovecot.deliver_by_lmtp("alice", &mail("meanwhile")));
        let id = event["id"].as_str().unwrap();
        let mut alice = Curl::start(&world, ALICE, &format!("{query}&last_event_id={id}"));
        let missed = alice.next().await.unwrap();
        assert_eq!(
            (&missed["data"]["kind"], &missed["data"]["messages"]),
            (&"new".into(), &2.into())
        );
        let opened = alice.next().await.unwrap();
        assert_eq!(opened["type"], "stream.opened");
        drop(alice);

        // The counts stay.
        tokio::task::block_in_place(|| {
            let mut client = Client::connect(dovecot.plain);
            client.login(ALICE);
            client.ask("SELECT INBOX");
            client.ask("STORE 1 +FLAGS (\\Flagged)");
        });
        let id = opened["id"].as_str().unwrap();
        let mut alice = Curl::start(&world, ALICE, &format!("{query}&last_event_id={id}"));
        let missed = alice.next().await.unwrap();
        assert_eq!(missed["data"]["kind"], "quiet", "{missed}");
        let before = opened["data"]["mailboxes"][0]["highestmodseq"].as_u64();
        assert!(missed["data"]["highestmodseq"].as_u64() > before, "{missed}");
        assert_eq!(alice.next().await.unwrap()["type"], "stream.opened");

        tokio::task::block_in_place(|| {
            dovecot.set_password("alice", "another");
            dovecot.restart();
        });
        let ended = alice.next().await.unwrap();
        assert_eq!(ended["data"]["reason"], "unauthorized", "{ended}");
        assert_eq!(alice.next().await, None);
        // Bob's goes on, and none of it was for him.
        tokio::task::block_in_place(|| dovecot.deliver_by_lmtp("bob", &mail("for bob")));
        let event = bob.next().await.unwrap();
        let data = &event["data"];
        assert_eq!((&data["account"], &data["messages"]), (&"bob".into(), &6.into()), "{event}");
    })
    .await;
}
