//! Dovecot 2.4 with the lines of docs/events.md: the script and the driver `ox`.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use mailchime::config::{EventSourceConfig, WatchConnection};
use tempfile::TempDir;

use super::TOKEN;
use super::dovecot::{HeardSession, intake, looked_at};
use super::ox::ENTRY;
use super::waits::{HeldUp, Listens, NotTaking};
use crate::support::in_process::{InProcess, loopback};
use crate::support::servers::client::Client;
use crate::support::servers::dovecot24::{Dovecot24, PLACE};
use crate::support::servers::event_script::{PATIENT, SCRIPT, TIMEOUT};
use crate::support::servers::{ALICE, mail};
use crate::support::{limited, soon, until};

const DOCS: &str = include_str!("../../../docs/events.md");

/// The block of the docs that begins with this line, behind the one for Dovecot 2.3.
fn lines_of_docs(first: &str, has: &str) -> String {
    let blocks = DOCS.split("```text\n").skip(1);
    let mut blocks = blocks.filter_map(|block| block.split_once("```").map(|(block, _)| block));
    let block = blocks.find(|block| block.starts_with(first) && block.contains(has));
    block.unwrap_or_else(|| panic!("docs/events.md has no block {first:?}")).to_owned()
}

/// mailchime in front of it, which has no connection to it while nothing happens.
async fn mailchime(dovecot: &Dovecot24, folder: &TempDir, metadata: bool) -> InProcess {
    let secret = folder.path().join("events.secret");
    fs::write(&secret, TOKEN).unwrap();
    let world = InProcess::pushing(dovecot.plain, |config| {
        config.watch.connection = WatchConnection::OnDemand;
        config.events.address = Some(loopback());
        let source = EventSourceConfig::new("dovecot", secret);
        config.events.sources = vec![EventSourceConfig { metadata, ..source }];
    });
    world.await
}

/// The script as it tells what listens there, and waits so long for it.
fn script(address: SocketAddr, timeout: &str) -> String {
    SCRIPT
        .replace("http://127.0.0.1:8144/", &format!("http://{address}/"))
        .replace("/etc/dovecot/", &format!("{PLACE}/"))
        .replace(TIMEOUT, timeout)
}

/// Dovecot with the script, which tells what listens there.
fn with_script(test: &str, address: SocketAddr, timeout: &str) -> Option<Dovecot24> {
    let lines = lines_of_docs("mail_plugins {", "lua_file");
    let lines = lines.replace("/etc/dovecot/", &format!("{PLACE}/"));
    let script = script(address, timeout);
    let files = [("mailchime.lua", &*script), ("mailchime.token", TOKEN)];
    Dovecot24::start(test, &lines, &files)
}

/// The lines of the docs for the driver `ox`: those before the driver's block, and the block.
fn ox_lines(address: SocketAddr) -> (String, String) {
    let lines = lines_of_docs("mail_plugins {", "push_notification ox {");
    let lines = lines.replace("/var/lib/dovecot/attributes", &format!("{PLACE}/attributes"));
    let url = format!("http://dovecot:{TOKEN}@{address}/");
    let lines = lines.replace("http://dovecot:SECRET@127.0.0.1:8144/", &url);
    assert!(lines.contains(&url), "{lines}");
    let block = lines.find("push_notification ox {").unwrap();
    (lines[..block].to_owned(), lines[block..].to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_script_tells_of_changes_with_their_numbers() {
    limited(async {
        let test = "intake::dovecot24::the_script_tells_of_changes_with_their_numbers";
        let Some(mut dovecot) = with_script(test, loopback(), PATIENT) else { return };
        let folder = tempfile::tempdir().unwrap();
        let world = mailchime(&dovecot, &folder, false).await;
        // It reads the script when it starts.
        let script = script(world.mailchime.events.unwrap(), PATIENT);
        fs::write(dovecot.file("mailchime.lua"), script).unwrap();
        dovecot.restart();
        world.register(ALICE, &["INBOX"]).await;
        looked_at(&world).await;
        dovecot.deliver(ALICE.0, &mail("by LMTP"));
        soon("a push", world.push_of(&["INBOX"])).await;
        looked_at(&world).await;
        let mut client = Client::connect(dovecot.plain);
        assert!(client.login(ALICE).starts_with("x OK"));
        client.ask("SELECT INBOX");
        // It would let nobody in any more: the numbers are the look.
        let passwords = fs::read_to_string(dovecot.file("passwd")).unwrap();
        let passwords = passwords.replace("{PLAIN}", "{PLAIN}another ");
        fs::write(dovecot.file("passwd"), passwords).unwrap();
        let read = client.ask("STORE 1 +FLAGS (\\Seen)");
        assert!(read.last().unwrap().starts_with("x OK"), "{read:?}");
        soon("a push", world.push_of(&["INBOX"])).await;
        assert!(!dovecot.log().contains("Warning: mailchime: "), "{}", dovecot.log());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_script_tells_of_each_change_of_a_mailbox() {
    limited(async {
        let test = "intake::dovecot24::the_script_tells_of_each_change_of_a_mailbox";
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("mailchime.token"), TOKEN).unwrap();
        let (address, heard) = intake(folder.path()).await;
        let Some(dovecot) = with_script(test, address, PATIENT) else { return };
        let mut client = Client::connect(dovecot.plain);
        assert!(client.login(ALICE).starts_with("x OK"));
        let mut alice = HeardSession { client, heard };
        // The first delivery makes INBOX.
        dovecot.deliver(ALICE.0, &mail("by LMTP"));
        alice.hears_of("INBOX", "MailboxCreate", true).await;
        alice.hears("INBOX", "MessageNew").await;
        dovecot.deliver(ALICE.0, &mail("by LMTP"));
        alice.hears("INBOX", "MessageNew").await;
        alice.ask("CREATE Team");
        alice.hears("Team", "MailboxCreate").await;
        alice.does_and_hears_all().await;
    })
    .await;
}

/// Mails come, and each waits so long at most. How many requests have come, and what Dovecot's log says.
fn mail_goes_on(
    dovecot: &Dovecot24,
    mailchime: &NotTaking,
    (deliveries, wait): (usize, Duration),
) -> (usize, String) {
    let mut client = Client::connect(dovecot.plain);
    assert!(client.login(ALICE).starts_with("x OK"));
    let mut held_up = HeldUp::default();
    for _ in 0..deliveries {
        held_up.at_most(wait, || dovecot.deliver(ALICE.0, &mail("all the same")));
    }
    assert_eq!(client.messages("INBOX") as usize, deliveries);
    (mailchime.requests(), dovecot.log())
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_goes_on_where_mailchime_says_nothing_to_the_script() {
    limited(async {
        let test = "intake::dovecot24::mail_goes_on_where_mailchime_says_nothing_to_the_script";
        let folder = tempfile::tempdir().unwrap();
        let mailchime = NotTaking::start(Listens::Silent, folder.path()).await;
        let Some(dovecot) = with_script(test, mailchime.address, TIMEOUT) else { return };
        let once = (16, Duration::from_millis(500));
        let (requests, log) = mail_goes_on(&dovecot, &mailchime, once);
        assert_eq!(requests, once.0, "{log}");
        assert_eq!(log.matches(": 9008 Request timed out ").count(), once.0, "{log}");
    })
    .await;
}

/// A second, twice. Without the lines of the docs it would be a minute.
#[tokio::test(flavor = "multi_thread")]
async fn mail_goes_on_where_mailchime_says_nothing_to_the_driver_ox() {
    limited(async {
        let test = "intake::dovecot24::mail_goes_on_where_mailchime_says_nothing_to_the_driver_ox";
        let folder = tempfile::tempdir().unwrap();
        let mailchime = NotTaking::start(Listens::Silent, folder.path()).await;
        let (before, driver) = ox_lines(mailchime.address);
        let Some(dovecot) = Dovecot24::start(test, &(before + &driver), &[]) else { return };
        let mut client = Client::connect(dovecot.plain);
        assert!(client.login(ALICE).starts_with("x OK"));
        let set = client.ask(&format!("SETMETADATA \"\" ({ENTRY} \"user=alice\")"));
        assert!(set[0].starts_with("x OK"), "{set:?}");
        let twice = (3, Duration::from_secs(2));
        let (requests, log) = mail_goes_on(&dovecot, &mailchime, twice);
        assert_eq!(requests, 2 * twice.0, "{log}");
        assert_eq!(log.matches("Request timed out ").count(), twice.0, "{log}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_driver_ox_tells_of_a_user_who_has_registered() {
    limited(async {
        let test = "intake::dovecot24::the_driver_ox_tells_of_a_user_who_has_registered";
        let (before, _) = ox_lines(loopback());
        let included = format!("{before}!include_try {PLACE}/driver.conf\n");
        let Some(mut dovecot) = Dovecot24::start(test, &included, &[]) else { return };
        let folder = tempfile::tempdir().unwrap();
        let world = mailchime(&dovecot, &folder, true).await;
        let (_, driver) = ox_lines(world.mailchime.events.unwrap());
        fs::write(dovecot.file("driver.conf"), driver).unwrap();
        dovecot.restart();
        let mut client = Client::connect(dovecot.plain);
        assert!(client.login(ALICE).starts_with("x OK"));
        world.register(ALICE, &["INBOX"]).await;
        let ask = format!("GETMETADATA \"\" {ENTRY}");
        until(async || client.ask(&ask).concat().contains("user=alice")).await;
        looked_at(&world).await;
        dovecot.deliver(ALICE.0, &mail("hello"));
        soon("a push", world.push_of(&["INBOX"])).await;
    })
    .await;
}
