//! Registrations for the mailboxes of others, as in Cyrus before CVE-2026-47081, at real servers
//! with shared folders: what is echoed and pushed is what this user's own session can read.

use std::net::SocketAddr;

use mailchime::model::Mailbox;
use mailchime::push::transport::apns::payload::mailbox_hash;
use tokio::task::spawn_blocking;

use crate::end_to_end::{POLL, start};
use crate::support::in_process::InProcess;
use crate::support::limited;
use crate::support::servers::client::Client;
use crate::support::servers::cyrus::{ADMIN, Cyrus};
use crate::support::servers::dovecot::{Dovecot, Options};
use crate::support::servers::{ALICE, BOB, User, mail};
use crate::support::world::ACCOUNT_ID;

/// Names that try to be another mailbox, and are nobody's on either server.
const TRICKS: &[&[u8]] = &[
    b"*",
    b"%",
    b"shared/*",
    b"shared/alice/%",
    b"Other Users/*",
    b"Other Users/alice/%",
    b"..",
    b"../alice",
    b"../../alice/Secret",
    b"INBOX/../../alice/Secret",
    b"shared/alice/../alice/Secret",
    b"/etc/passwd",
    b"~alice/Secret",
    b"alice/Secret",
    b"user/alice",
    b"user.alice",
    b"user.alice.Secret",
    b"user/alice/Secret",
    b"Other Users/alice",
    b"Other Users/bob/../alice/Secret",
    // Another's INBOX, and INBOX spelled so that it is none.
    b"shared/alice",
    b"shared/alice/INBOX",
    b"&AEkATgBCAE8AWA-",
    b"&AGkATgBCAE8AWA-",
    b"INBOX&AAA-",
    b"INBOX&AC8-x",
    // What would end the question, or the line, and begin another.
    b"INBOX\0Secret",
    b"INBOX\0",
    b"INBOX\r\nx1 DELETE Secret",
    b"INBOX\nx1 DELETE Secret",
    b"INBOX\" (MESSAGES)\r\nx1 DELETE \"Secret",
    b"INBOX\" (UIDNEXT) \"",
    b"{5}",
    b"INBOX {5+}",
    b"\x01\x02\x7f",
    b"\xff\xfe",
    b"\xe2\x80\xae",
    b"",
    b" ",
    b"INBOX ",
    b" INBOX",
    b"(INBOX)",
    b"\\",
    b"\"",
];

/// What is echoed to `user` who registers for these, each given as a literal.
fn echoed(mailchime: SocketAddr, user: User<'_>, names: &[&[u8]]) -> Vec<String> {
    let mut client = Client::connect_tls(mailchime);
    assert!(client.login(user).starts_with("x OK"));
    let mut command = format!(
        "XAPPLEPUSHSERVICE \"aps-version\" \"2\" \"aps-account-id\" \"{}\" \"aps-device-token\" \
         \"{}\" \"aps-subtopic\" \"com.apple.mobilemail\" \"mailboxes\" (",
        ACCOUNT_ID,
        "0123ABCD".repeat(8),
    )
    .into_bytes();
    for (at, name) in names.iter().enumerate() {
        let blank = if at > 0 { " " } else { "" };
        command.extend_from_slice(format!("{blank}{{{}+}}\r\n", name.len()).as_bytes());
        command.extend_from_slice(name);
    }
    command.push(b')');
    let answer = client.ask_bytes(&command);
    assert!(answer.last().unwrap().starts_with("x OK"), "{answer:?}");
    let echo = |line: &String| {
        let name = line.strip_prefix("* XAPPLEPUSHSERVICE \"mailbox\" \"")?;
        Some(name.strip_suffix('"').unwrap().to_owned())
    };
    let echoed = answer.iter().filter_map(echo).collect();
    // Nothing of a name has become a command.
    assert!(client.ask("NOOP").last().unwrap().starts_with("x OK"));
    echoed
}

/// Bob registers for all tricks, of which none is echoed, and for these mailboxes: the `expected` are
/// echoed, and are those that the server lets him open in a session of his own.
async fn only(mailchime: SocketAddr, server: SocketAddr, mailboxes: &[&str], expected: &[&str]) {
    let names: Vec<Vec<u8>> = mailboxes.iter().map(|name| name.as_bytes().to_vec()).collect();
    let expected: Vec<String> = expected.iter().map(|name| (*name).to_owned()).collect();
    let asking = move || {
        let tricks = TRICKS.chunks(60).flat_map(|names| echoed(mailchime, BOB, names));
        assert_eq!(tricks.collect::<Vec<_>>(), Vec::<String>::new());
        let names: Vec<_> = names.iter().map(Vec::as_slice).collect();
        assert_eq!(echoed(mailchime, BOB, &names), expected);
        let mut own = Client::connect(server);
        own.login(BOB);
        for name in names {
            let name = String::from_utf8_lossy(name);
            let read = own.ask(&format!("EXAMINE \"{name}\"")).pop().unwrap();
            let echoed = expected.contains(&name.clone().into_owned());
            assert_eq!(read.starts_with("x OK"), echoed, "{name}: {read}");
        }
    };
    spawn_blocking(asking).await.unwrap();
}

/// Says these in a session of `user` at the server; each must be done.
async fn by(server: SocketAddr, user: User<'static>, commands: &'static [&'static str]) {
    let saying = move || {
        let mut client = Client::connect(server);
        assert!(client.login(user).starts_with("x OK"));
        for command in commands {
            let answer = client.ask(command);
            assert!(answer.last().unwrap().starts_with("x OK"), "{command}: {answer:?}");
        }
    };
    spawn_blocking(saying).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_47081_mailboxes_of_others_at_dovecot() {
    let test = "cve_2026_47081_mailboxes_of_others_at_dovecot";
    // A session that is open may read by rights that Dovecot has looked up within this time.
    let extra = "plugin {\n  acl = vfile::cache_secs=1\n}";
    let options = Options { acl: true, extra, ..Options::default() };
    let Some(dovecot) = Dovecot::start(test, &options) else { return };
    for mailbox in ["Secret", "Seen", "Read", "Entw&APw-rfe"] {
        dovecot.deliver(ALICE.0, mailbox, &mail("of alice"));
    }
    limited(async {
        by(dovecot.plain, ALICE, &["SETACL Seen bob l", "SETACL Read bob lr"]).await;
        by(dovecot.plain, ALICE, &["SETACL Entw&APw-rfe bob lrs"]).await;
        let world = start(dovecot.plain).await;
        let asked = [
            "INBOX",
            "shared/alice/Secret",
            "shared/alice/Seen",
            "shared/alice/Read",
            "shared/alice/Entw&APw-rfe",
            // The same letter in two characters, and the same name spelled otherwise.
            "shared/alice/Entwu&Awg-rfe",
            "shared/alice/&AEUAbgB0AHcA,AByAGYAZQ-",
            "shared/alice/read",
        ];
        let readable = ["INBOX", "shared/alice/Read", "shared/alice/Entw&APw-rfe"];
        only(world.address(), dovecot.plain, &asked, &readable).await;

        dovecot.deliver(ALICE.0, "Read", &mail("for both"));
        world.push_of(&["shared/alice/Read"]).await;

        // Withdrawn: there is no push of what comes then, and no echo.
        by(dovecot.plain, ALICE, &["DELETEACL Read bob"]).await;
        pushed_no_more(&world, "shared/alice/Read", || {
            dovecot.deliver(ALICE.0, "Read", &mail("for alice alone"));
            dovecot.deliver(BOB.0, "INBOX", &mail("for bob"));
        })
        .await;
        let readable = ["INBOX", "shared/alice/Entw&APw-rfe"];
        only(world.address(), dovecot.plain, &asked, &readable).await;
        world.mailchime.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_47081_mailboxes_of_others_at_cyrus() {
    let Some(cyrus) = Cyrus::start("cve_2026_47081_mailboxes_of_others_at_cyrus") else { return };
    limited(async {
        let made = &[
            "CREATE user/alice/Secret",
            "CREATE user/alice/Seen",
            "SETACL user/alice/Seen bob l",
            "CREATE user/alice/Read",
            "SETACL user/alice/Read bob lr",
            "CREATE closed",
            "SETACL closed anyone \"\"",
            "CREATE seen",
            "SETACL seen anyone l",
            "CREATE open",
            "SETACL open anyone lr",
        ];
        by(cyrus.plain, ADMIN, made).await;
        let world = start(cyrus.plain).await;
        let asked = [
            "INBOX",
            "Other Users/alice",
            "Other Users/alice/Secret",
            "Other Users/alice/Seen",
            "Other Users/alice/Read",
            "Shared Folders/closed",
            "Shared Folders/seen",
            "Shared Folders/open",
            "shared.closed",
            "closed",
        ];
        let readable = ["INBOX", "Other Users/alice/Read", "Shared Folders/open"];
        only(world.address(), cyrus.plain, &asked, &readable).await;

        let append = |subject| {
            let mail = mail(subject);
            tokio::task::block_in_place(|| {
                let mut alice = Client::connect(cyrus.plain);
                alice.login(ALICE);
                let head = format!("APPEND Read {{{}+}}\r\n", mail.len());
                let answer = alice.ask_bytes(&[head.as_bytes(), &mail].concat());
                assert!(answer.last().unwrap().starts_with("x OK"), "{answer:?}");
            });
        };
        append("for both");
        world.push_of(&["Other Users/alice/Read"]).await;

        by(cyrus.plain, ALICE, &["DELETEACL Read bob"]).await;
        pushed_no_more(&world, "Other Users/alice/Read", || {
            append("for alice alone");
            cyrus.deliver(BOB.0, &mail("for bob"));
        })
        .await;
        let readable = ["INBOX", "Shared Folders/open"];
        only(world.address(), cyrus.plain, &asked, &readable).await;
        world.mailchime.stop().await;
    })
    .await;
}

/// Lets mail come some times, into `mailbox` and into the INBOX of who may not see it any more, with
/// time for a look after each: INBOX is pushed, `mailbox` is not.
async fn pushed_no_more(world: &InProcess, mailbox: &str, deliver: impl Fn()) {
    // Rights that were looked up before may still hold for the first of them.
    let mut before = 0;
    for times in 0..8 {
        deliver();
        world.push_of(&["INBOX"]).await;
        tokio::time::sleep(2 * POLL).await;
        if times == 3 {
            before = world.apns.pushes().len();
        }
    }
    let pushes = world.apns.pushes().split_off(before);
    assert!(!pushes.is_empty());
    let hidden = mailbox_hash(&Mailbox::new(mailbox));
    for push in pushes {
        assert!(!push.json().to_string().contains(&hidden), "{mailbox} is pushed");
    }
}
