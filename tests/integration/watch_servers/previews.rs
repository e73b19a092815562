//! Sender and subject of new mail at real servers, in each way of watching. Nothing is marked by asking.

use std::net::SocketAddr;

use mailchime::config::PreviewContent;
use mailchime::metrics::Watching as Mode;
use tokio::task::block_in_place;

use super::{Scene, dovecot};
use crate::support::limited;
use crate::support::servers::client::Client;
use crate::support::servers::courier::Courier;
use crate::support::servers::cyrus::Cyrus;
use crate::support::servers::{ALICE, mail};

const ENCODED: &str = "=?utf-8?q?Gr=C3=BC=C3=9Fe?= =?utf-8?b?8J+Pnw==?=";
const EIGHT_BITS: &str = "Grüße🏟";

/// How a mail comes into a mailbox.
type Deliver<'a> = &'a dyn Fn(&[u8]);

impl Scene {
    async fn previewing(address: SocketAddr, boxes: &[&str], mode: Mode) -> Self {
        let adjust = |world: &mut super::WatchWorld| world.preview = PreviewContent::Subject;
        Self::new(address, ALICE.0, boxes, mode, adjust).await
    }

    /// A mail of Ann's comes with this subject.
    async fn says_who_wrote(&mut self, (mailbox, deliver): (&str, Deliver<'_>), subject: &str) {
        block_in_place(|| deliver(&mail(subject)));
        let line = loop {
            let line = self.watching.next().await;
            if line.starts_with(&format!("{mailbox}: newest of ")) {
                break line;
            }
            let other = !line.starts_with(&format!("{mailbox}: "));
            assert!(!(other && line.contains(": new mail")), "{line}");
        };
        assert_eq!(line, format!("{mailbox}: newest of 1: \"Ann\" about \"Grüße🏟\""));
        self.seen.push(line);
    }
}

/// All mail of the mailbox is as if nobody had been there.
fn is_untouched(address: SocketAddr, mailbox: &str, messages: usize) {
    let mut client = Client::connect(address);
    client.login(ALICE);
    client.ask(&format!("SELECT {mailbox}"));
    let mut told = client.ask("FETCH 1:* (FLAGS)");
    told.retain(|line| line.contains("FETCH (FLAGS"));
    assert_eq!(told.len(), messages, "{told:?}");
    assert!(
        told.iter().all(|line| line.contains("\\Recent") && !line.contains("Seen")),
        "{told:?}"
    );
}

/// Dovecot with these capabilities, which is watched so.
async fn dovecot_says_who_wrote(test: &str, capability: Option<&'static str>, mode: Mode) {
    let Some(dovecot) = dovecot(test, capability) else { return };
    limited(async {
        let mut scene = Scene::previewing(dovecot.plain, &["INBOX", "Team"], mode).await;
        let boxes: [(&str, Deliver<'_>); 2] = [
            ("INBOX", &|mail| dovecot.deliver_by_lmtp(ALICE.0, mail)),
            ("Team", &|mail| dovecot.deliver_by_lmtp("alice+Team", mail)),
        ];
        for mailbox in boxes {
            for subject in [ENCODED, EIGHT_BITS] {
                scene.says_who_wrote(mailbox, subject).await;
            }
            block_in_place(|| is_untouched(dovecot.plain, mailbox.0, 2));
        }
        scene.end(&format!("Dovecot, {mode:?}")).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dovecot_by_notify_says_who_wrote_about_what() {
    let test = "watch_servers::previews::dovecot_by_notify_says_who_wrote_about_what";
    dovecot_says_who_wrote(test, None, Mode::Notify).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dovecot_by_idle_says_who_wrote_about_what() {
    let test = "watch_servers::previews::dovecot_by_idle_says_who_wrote_about_what";
    let capability = Some("IMAP4rev1 IDLE LIST-EXTENDED LIST-STATUS CONDSTORE");
    dovecot_says_who_wrote(test, capability, Mode::Idle).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dovecot_by_polls_says_who_wrote_about_what() {
    let test = "watch_servers::previews::dovecot_by_polls_says_who_wrote_about_what";
    dovecot_says_who_wrote(test, Some("IMAP4rev1"), Mode::Poll).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cyrus_says_who_wrote_about_what() {
    let test = "watch_servers::previews::cyrus_says_who_wrote_about_what";
    let Some(cyrus) = Cyrus::start(test) else { return };
    limited(async {
        let mut scene = Scene::previewing(cyrus.plain, &["INBOX"], Mode::Idle).await;
        for _ in 0..2 {
            // It takes no header with eight bits.
            let inbox: (&str, Deliver<'_>) = ("INBOX", &|mail| cyrus.deliver(ALICE.0, mail));
            scene.says_who_wrote(inbox, ENCODED).await;
        }
        block_in_place(|| is_untouched(cyrus.plain, "INBOX", 2));
        scene.end("Cyrus").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn courier_says_who_wrote_about_what() {
    let test = "watch_servers::previews::courier_says_who_wrote_about_what";
    let Some(courier) = Courier::start(test) else { return };
    // It makes the mailbox, too.
    courier.deliver(ALICE.0, "Team", &mail("the first"));
    limited(async {
        let boxes = ["INBOX", "INBOX.Team"];
        let mut scene = Scene::previewing(courier.plain, &boxes, Mode::Idle).await;
        scene.expect("INBOX.Team: new mail", || {}).await;
        let boxes: [(&str, Deliver<'_>); 2] = [
            ("INBOX", &|mail| courier.deliver(ALICE.0, "INBOX", mail)),
            ("INBOX.Team", &|mail| courier.deliver(ALICE.0, "Team", mail)),
        ];
        for mailbox in boxes {
            for subject in [ENCODED, EIGHT_BITS] {
                scene.says_who_wrote(mailbox, subject).await;
            }
        }
        block_in_place(|| is_untouched(courier.plain, "INBOX", 2));
        scene.end("Courier").await;
    })
    .await;
}
