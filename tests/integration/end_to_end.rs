//! From end to end with a real Dovecot: a phone registers over TLS, a mail is dropped into the
//! Maildir with nobody connected, and APNs, the stand-in, gets the right push.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use mailchime::config::Config;
use serde_json::json;

use crate::support::in_process::{InProcess, implicit_tls};
use crate::support::servers::client::Client;
use crate::support::servers::dovecot::{Dovecot, Options};
use crate::support::servers::times::without_times;
use crate::support::servers::{ALICE, BOB, mail, pki};
use crate::support::world::{ACCOUNT_ID, TOKEN};
use crate::support::{limited, skip, until};

/// Between two looks at all mailboxes.
pub(crate) const POLL: Duration = Duration::from_millis(300);

/// mailchime in front of a backend without TLS.
pub(crate) async fn start(backend: SocketAddr) -> InProcess {
    InProcess::pushing(backend, |config| config.watch.poll_interval = POLL).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_in_dovecot_becomes_a_push() {
    let test = "a_mail_in_dovecot_becomes_a_push";
    let Some(dovecot) = Dovecot::start(test, &Options::default()) else { return };
    dovecot.deliver("alice", "Team", &mail("an old one"));
    limited(async {
        let world = start(dovecot.plain).await;
        let registered = world.register(ALICE, &["INBOX", "Team", "Nope"]).await;
        assert_eq!(registered.mailboxes, ["INBOX", "Team"]);
        assert_eq!(registered.topic, pki().topic);

        dovecot.deliver("alice", "INBOX", &mail("hello"));
        let push = world.apns.next().await;
        assert_eq!(push.json(), json!({ "aps": { "account-id": ACCOUNT_ID } }));
        assert_eq!(push.token.as_ref().unwrap().as_given(), TOKEN);
        assert_eq!(push.header("apns-topic"), Some(&*pki().topic));
        assert_eq!(push.header("apns-push-type"), Some("background"));
        assert_eq!(push.header("apns-priority"), None);

        dovecot.deliver("alice", "Team", &mail("for the team"));
        world.push_of(&["Team"]).await;

        // Read elsewhere: the badge is put right, too.
        let plain = dovecot.plain;
        tokio::task::spawn_blocking(move || {
            let mut client = Client::connect(plain);
            client.login(ALICE);
            client.ask("SELECT INBOX");
            client.ask("STORE 1 +FLAGS (\\Seen)");
        })
        .await
        .unwrap();
        world.push_of(&["INBOX"]).await;
        world.mailchime.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_behind_tls_is_verified() {
    let test = "a_backend_behind_tls_is_verified";
    let Some(dovecot) = Dovecot::start(test, &Options::default()) else { return };
    limited(async {
        let tls = |config: &mut Config| implicit_tls(config, "localhost");
        let world = InProcess::pushing(dovecot.tls, tls).await;
        world.register(BOB, &["INBOX"]).await;
        dovecot.deliver("bob", "INBOX", &mail("hello"));
        world.push_of(&["INBOX"]).await;
        world.mailchime.stop().await;

        // Another name than the certificate's: nobody gets a password.
        let tls = |config: &mut Config| implicit_tls(config, "imap.example.org");
        let world = InProcess::pushing(dovecot.tls, tls).await;
        let address = world.address();
        let answer = tokio::task::spawn_blocking(move || Client::connect_tls(address).login(ALICE));
        let answer = answer.await.unwrap();
        assert!(answer.starts_with("x NO [UNAVAILABLE]"), "{answer}");
        world.mailchime.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_that_comes_while_dovecot_or_mailchime_is_down_is_pushed_later() {
    let test = "mail_that_comes_while_dovecot_or_mailchime_is_down_is_pushed_later";
    let Some(mut dovecot) = Dovecot::start(test, &Options::default()) else { return };
    limited(async {
        let world = start(dovecot.plain).await;
        world.register(ALICE, &["INBOX"]).await;
        tokio::task::block_in_place(|| dovecot.stop());
        dovecot.deliver("alice", "INBOX", &mail("while it is down"));
        tokio::task::block_in_place(|| dovecot.restart());
        world.push_of(&["INBOX"]).await;
        world.mailchime.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_was_changed_is_tried_twice_and_replaced_at_the_next_login() {
    let test = "a_password_that_was_changed_is_tried_twice_and_replaced_at_the_next_login";
    let Some(mut dovecot) = Dovecot::start(test, &Options::default()) else { return };
    limited(async {
        let world = start(dovecot.plain).await;
        world.register(ALICE, &["INBOX"]).await;
        tokio::task::block_in_place(|| {
            dovecot.stop();
            dovecot.set_password("alice", "another one");
            dovecot.restart();
        });
        dovecot.deliver("alice", "INBOX", &mail("unseen"));
        let store = world.mailchime.store.clone();
        let accounts = async || store.accounts(mailchime::model::Timestamp(0)).await.unwrap();
        until(async || accounts().await[0].parked.is_some()).await;
        assert_eq!(world.apns.received(), 0);
        let address = world.address();
        let login = move || Client::connect_tls(address).login(("alice", "another one"));
        let answer = tokio::task::spawn_blocking(login).await.unwrap();
        assert!(answer.starts_with("x OK"), "{answer}");
        world.push_of(&["INBOX"]).await;
        world.mailchime.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_user_may_read_is_registered() {
    let test = "only_what_the_user_may_read_is_registered";
    let options = Options { acl: true, ..Options::default() };
    let Some(dovecot) = Dovecot::start(test, &options) else { return };
    dovecot.deliver("alice", "Team", &mail("for the team"));
    dovecot.deliver("alice", "Secret", &mail("for alice"));
    limited(async {
        let plain = dovecot.plain;
        tokio::task::spawn_blocking(move || {
            let mut client = Client::connect(plain);
            client.login(ALICE);
            client.ask("SETACL Team bob lrs");
        })
        .await
        .unwrap();
        let world = start(plain).await;
        let asked = ["INBOX", "shared/alice/Team", "shared/alice/Secret", "shared/alice/INBOX"];
        let registered = world.register(BOB, &asked).await;
        assert_eq!(registered.mailboxes, ["INBOX", "shared/alice/Team"]);
        dovecot.deliver("alice", "Secret", &mail("still for alice"));
        dovecot.deliver("alice", "Team", &mail("for the team again"));
        world.push_of(&["shared/alice/Team"]).await;
        assert_eq!(world.apns.received(), 1);
        world.mailchime.stop().await;
    })
    .await;
}

/// A mail whose body is made of what could lead a relay astray.
fn hostile_mail() -> Vec<u8> {
    let mut mail = mail("hostile");
    for _ in 0..2000 {
        mail.extend_from_slice(
            b"x OK FETCH completed\r\n* CAPABILITY IMAP4rev1 STARTTLS COMPRESS=DEFLATE\r\n\
              * OK [CAPABILITY STARTTLS] x\r\n+ go ahead\r\nmc0000000000000000x1 OK\r\n\
              here comes one {12}\r\n{99999999+}\r\n~{5}\r\n* BYE\r\n)\r\n\xff\xfe\r\n",
        );
    }
    mail
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_mail_arrives_as_dovecot_sends_it() {
    let test = "a_hostile_mail_arrives_as_dovecot_sends_it";
    let Some(dovecot) = Dovecot::start(test, &Options::default()) else { return };
    let mut with_nul = hostile_mail();
    with_nul.extend_from_slice(b"a NUL: \0 and more\r\n");
    dovecot.deliver("alice", "INBOX", &hostile_mail());
    dovecot.deliver("alice", "INBOX", &with_nul);
    limited(async {
        let world = start(dovecot.plain).await;
        let (proxied, plain) = (world.address(), dovecot.plain);
        let compare = move || {
            let commands = [
                "EXAMINE INBOX",
                "FETCH 1:2 (FLAGS RFC822.SIZE BODYSTRUCTURE ENVELOPE)",
                "FETCH 1:2 BODY.PEEK[]",
                "FETCH 1:2 BINARY.PEEK[1]",
                "UID SEARCH TEXT hostile",
                "LIST \"\" *",
                "STATUS INBOX (MESSAGES UIDNEXT)",
                "NOSUCHCOMMAND",
            ];
            // To the first to look all is recent.
            let mut first = Client::connect(plain);
            first.login(ALICE);
            first.ask("SELECT INBOX");
            first.ask("LOGOUT");
            let said = [Client::connect_tls(proxied), Client::connect(plain)].map(|mut client| {
                client.login(ALICE);
                commands.map(|command| client.ask_raw(command))
            });
            for ((proxied, direct), command) in said[0].iter().zip(&said[1]).zip(commands) {
                assert!(direct.len() > 20, "{command}: {}", direct.escape_ascii());
                let [proxied, direct] =
                    [proxied, direct].map(|said| without_times(&said.escape_ascii().to_string()));
                assert!(proxied == direct, "{command}");
            }
        };
        tokio::task::spawn_blocking(compare).await.unwrap();
        world.mailchime.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_and_imaplib_are_served() {
    let test = "curl_and_imaplib_are_served";
    if skip::skipped(test, "curl") || skip::skipped(test, "python3") {
        return;
    }
    let Some(dovecot) = Dovecot::start(test, &Options::default()) else { return };
    dovecot.deliver("alice", "INBOX", &mail("for curl"));
    limited(async {
        let world = start(dovecot.plain).await;
        let port = world.address().port();
        let ca = world.file("ca.pem");
        let script = format!(
            "import imaplib, ssl\n\
             m = imaplib.IMAP4_SSL('localhost', {port}, \
             ssl_context=ssl.create_default_context(cafile={ca:?}))\n\
             m.login('alice', 'wonder land')\n\
             assert 'XAPPLEPUSHSERVICE' in m.capability()[1][0].decode(), m.capability()\n\
             m.select('INBOX')\n\
             assert b'for curl' in m.fetch('1', '(BODY[])')[1][0][1]\n\
             m.append('INBOX', None, None, b'Subject: appended\\r\\n\\r\\n' + b'x' * 1000000)\n\
             assert m.noop()[0] == 'OK' and m.select('INBOX')[1] == [b'2']\n\
             m.logout()\n",
            ca = ca.to_str().unwrap(),
        );
        let run = move || {
            let url = format!("imaps://localhost:{port}/INBOX;UID=1");
            let curl = Command::new("curl")
                .args(["-sS", "--max-time", "120", "-u", "alice:wonder land", "--cacert"])
                .arg(&ca)
                .arg(url)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&curl.stdout).into_owned();
            assert!(curl.status.success(), "{curl:?}");
            assert!(said.contains("Subject: for curl"), "{said}");
            let python = Command::new("python3").arg("-c").arg(script).output().unwrap();
            assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
        };
        tokio::task::spawn_blocking(run).await.unwrap();
        world.mailchime.stop().await;
    })
    .await;
}
