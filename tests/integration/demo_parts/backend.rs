//! The IMAP server, read line by line.

use std::sync::Arc;

use mailchime::demo::backend::DemoBackend;
use mailchime::demo::pki::Pki;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::{Client, MAIL, backend, connect, logged_in};
use crate::support::{limited, listener};

#[tokio::test]
async fn a_session_from_login_to_logout() {
    limited(async {
        let backend = backend().await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        let mut alice = connect(&backend).await;
        alice
            .play(
                r#"
S: * OK [CAPABILITY IMAP4REV1 LITERAL+ SASL-IR ID ENABLE IDLE UNSELECT UIDPLUS MOVE AUTH=PLAIN AUTH=LOGIN] mailchime demo server ready
C: a ID ("name" "test")
S: * ID ("name" "mailchime demo")
S: a OK ID completed
C: b SELECT INBOX
S: b BAD log in first
C: c LOGIN alice "wrong"
S: c NO [AUTHENTICATIONFAILED] wrong name or password
C: d LOGIN "alice" "wonder \"land\\"
S: d OK [CAPABILITY IMAP4REV1 LITERAL+ SASL-IR ID ENABLE IDLE UNSELECT UIDPLUS MOVE] logged in
C: e LIST "" "*"
S: * LIST () "/" INBOX
S: e OK LIST completed
C: f STATUS INBOX (MESSAGES UIDNEXT UIDVALIDITY UNSEEN RECENT)
S: * STATUS INBOX (MESSAGES 1 UIDNEXT 2 UIDVALIDITY 1 UNSEEN 1 RECENT 1)
S: f OK STATUS completed
C: g STATUS "bob/secret" (MESSAGES)
S: g NO [NONEXISTENT] no such mailbox
C: h SELECT inbox
S: * FLAGS (\Answered \Flagged \Deleted \Seen \Draft)
S: * 1 EXISTS
S: * 1 RECENT
S: * OK [PERMANENTFLAGS (\Answered \Flagged \Deleted \Seen \Draft \*)] flags that stay
S: * OK [UNSEEN 1] noted
S: * OK [UIDVALIDITY 1] noted
S: * OK [UIDNEXT 2] noted
S: h OK [READ-WRITE] mailbox selected
C: i FETCH 1 (UID FLAGS RFC822.SIZE BODY.PEEK[HEADER.FIELDS (SUBJECT)])
S: * 1 FETCH (UID 1 FLAGS (\Recent) RFC822.SIZE 50 BODY[HEADER.FIELDS (SUBJECT)] {18}
S: Subject: hello
S: 
S: )
S: i OK FETCH completed
C: j UID FETCH 1:* BODY[TEXT]<0.4>
S: * 1 FETCH (UID 1 FLAGS (\Seen \Recent) BODY[TEXT]<0> {4}
S: Hi t)
S: j OK FETCH completed
C: k SEARCH UNSEEN
S: * SEARCH
S: k OK SEARCH completed
C: l UID SEARCH SEEN SUBJECT HELLO 1:4294967294
S: * SEARCH 1
S: l OK SEARCH completed
C: m STORE 1 +FLAGS (\Deleted $Junk)
S: * 1 FETCH (FLAGS (\Seen \Deleted $Junk \Recent) UID 1)
S: m OK STORE completed
C: n EXPUNGE
S: * 1 EXPUNGE
S: n OK EXPUNGE completed
C: o FROB
S: o BAD command unknown or arguments invalid
C: p FETCH 1 BINARY[]
S: p BAD a FETCH item that is not supported
C: q LOGOUT
S: * BYE logging out
S: q OK LOGOUT completed
"#,
            )
            .await;
        assert_eq!(alice.0.read_u8().await.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
        let counters = backend.wait_until(|c| c.connections == 0).await;
        assert_eq!((counters.logins["alice"], counters.refused["alice"]), (1, 1));
        assert_eq!((counters.commands["FROB"], counters.commands["UID FETCH"]), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn every_form_of_login() {
    limited(async {
        let backend = backend().await;
        // Bytes that no quoted string can hold.
        backend.add_account("bob", "пароль\"\\".as_bytes());
        for script in [
            "C: a LOGIN alice {13+}\nC: wonder \"land\\",
            "C: a LOGIN {5}\nS: + OK\nC: alice {13}\nS: + OK\nC: wonder \"land\\",
            "C: a AUTHENTICATE PLAIN AGFsaWNlAHdvbmRlciAibGFuZFw=",
            "C: a AUTHENTICATE PLAIN\nS: + \nC: AGFsaWNlAHdvbmRlciAibGFuZFw=",
            "C: a AUTHENTICATE PLAIN\nS: + \nC: YWxpY2UAYWxpY2UAd29uZGVyICJsYW5kXA==",
            "C: a AUTHENTICATE LOGIN\nS: + VXNlcm5hbWU6\nC: YWxpY2U=\nS: + UGFzc3dvcmQ6\nC: d29uZGVyICJsYW5kXA==",
            "C: a AUTHENTICATE LOGIN YWxpY2U=\nS: + UGFzc3dvcmQ6\nC: d29uZGVyICJsYW5kXA==",
            "C: a LOGIN bob {14}\nS: + OK\nC: пароль\"\\",
        ] {
            let mut client = connect(&backend).await;
            client.play("S: * OK…").await;
            client.play(script).await;
            client.play("S: a OK [CAPABILITY…").await;
        }
        for (script, answer) in [
            ("C: a AUTHENTICATE PLAIN\nS: + \nC: *", "a BAD AUTHENTICATE cancelled"),
            ("C: a AUTHENTICATE PLAIN AGFsaWNlAHg=", "a NO [AUTHENTICATIONFAILED]…"),
            // As bob, with alice's password.
            (
                "C: a AUTHENTICATE PLAIN Ym9iAGFsaWNlAHdvbmRlciAibGFuZFw=",
                "a NO [AUTHORIZATIONFAILED]…",
            ),
            ("C: a AUTHENTICATE CRAM-MD5", "a NO mechanism not supported"),
        ] {
            let mut client = connect(&backend).await;
            client.play("S: * OK…").await;
            client.play(script).await;
            client.play(&format!("S: {answer}")).await;
            // The connection is as good as before.
            client.play("C: b LOGIN alice \"wonder \\\"land\\\\\"\nS: b OK…").await;
        }
    })
    .await;
}

#[tokio::test]
async fn idle_tells_at_once_what_changes() {
    limited(async {
        let backend = backend().await;
        let mut alice = logged_in(&backend).await;
        alice
            .play("C: a EXAMINE INBOX\nS: * FLAGS…\nS: * 0 EXISTS\nS: * 0 RECENT\nS: * OK [PERMANENTFLAGS ()]…\nS: * OK [UIDVALIDITY 1]…\nS: * OK [UIDNEXT 1]…\nS: a OK [READ-ONLY]…\nC: b IDLE\nS: + idling")
            .await;
        backend.wait_until(|c| c.idling == 1).await;

        let first = backend.deliver("alice", "INBOX", MAIL).unwrap();
        alice.play("S: * 1 EXISTS\nS: * 1 RECENT").await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        alice.play("S: * 2 EXISTS\nS: * 2 RECENT").await;
        backend.set_flags("alice", "INBOX", first, &["\\Seen"]).unwrap();
        alice.play("S: * 1 FETCH (FLAGS (\\Seen \\Recent) UID 1)").await;
        backend.expunge("alice", "INBOX", first).unwrap();
        alice.play("S: * 1 EXPUNGE").await;
        // Another mailbox is none of its business.
        backend.create_mailbox("alice", "Other").unwrap();
        backend.deliver("alice", "Other", MAIL).unwrap();
        alice.play("C: DONE\nS: b OK IDLE completed").await;
        assert_eq!(backend.counters().idling, 0);

        // EXAMINE has left \Recent to the session that SELECTs.
        alice
            .play("C: c STATUS INBOX (RECENT MESSAGES)\nS: * STATUS INBOX (RECENT 1 MESSAGES 1)\nS: c OK…")
            .await;
    })
    .await;
}

#[tokio::test]
async fn idle_and_what_follows_it_in_one_packet() {
    limited(async {
        let backend = backend().await;
        let mut alice = logged_in(&backend).await;
        alice.send(b"a IDLE\r\nDONE\r\nb NOOP\r\nc IDLE\r\nDO").await;
        alice.play("S: + idling\nS: a OK IDLE completed\nS: b OK completed\nS: + idling").await;
        alice.play("C: NE\nS: c OK IDLE completed").await;
    })
    .await;
}

#[tokio::test]
async fn no_expunge_comes_in_the_middle_of_a_fetch() {
    limited(async {
        let backend = backend().await;
        for _ in 0..2 {
            backend.deliver("alice", "INBOX", MAIL).unwrap();
        }
        let mut alice = logged_in(&backend).await;
        alice.select().await;
        backend.expunge("alice", "INBOX", 1).unwrap();
        alice
            .play("C: a FETCH 1:2 UID\nS: * 2 FETCH (UID 2)\nS: a OK FETCH completed\nC: b NOOP\nS: * 1 EXPUNGE\nS: b OK completed\nC: c FETCH 1 UID\nS: * 1 FETCH (UID 2)\nS: c OK FETCH completed")
            .await;
    })
    .await;
}

#[tokio::test]
async fn what_is_appended_is_fetched_byte_for_byte() {
    limited(async {
        let backend = backend().await;
        let mut alice = logged_in(&backend).await;
        // Larger than any buffer, with whatever could pass for protocol.
        let mut mail = b"Subject: x\r\n\r\n* OK [CAPABILITY X]\r\na OK\r\n{5}\r\n)\r\n".to_vec();
        mail.extend((0..3_000_000_u32).map(|i| i as u8 | 1));
        alice.send(format!("a APPEND INBOX (\\Seen) {{{}}}\r\n", mail.len()).as_bytes()).await;
        alice.play("S: + OK").await;
        alice.send(&mail).await;
        alice.play("C: \nS: a OK [APPENDUID 1 1] APPEND completed").await;
        // With a NUL, as it may come by other ways than APPEND.
        let mut delivered = mail.clone();
        delivered.push(0);
        backend.deliver("alice", "INBOX", delivered.clone()).unwrap();

        alice.select().await;
        alice.send(b"b UID FETCH 1:2 BODY.PEEK[]\r\n").await;
        for (number, expected) in [(1, &mail), (2, &delivered)] {
            let length = expected.len();
            alice.play(&format!("S: * {number} FETCH (UID {number} BODY[] {{{length}}}")).await;
            let mut got = vec![0; length];
            alice.0.read_exact(&mut got).await.unwrap();
            assert!(got == *expected, "message {number} differs");
            alice.play("S: )").await;
        }
        alice.play("S: b OK FETCH completed").await;
        alice.play("C: c UID SEARCH SEEN\nS: * SEARCH 1\nS: c OK SEARCH completed").await;
    })
    .await;
}

#[tokio::test]
async fn mailboxes_are_made_copied_to_and_deleted() {
    limited(async {
        let backend = backend().await;
        backend.deliver("alice", "INBOX", MAIL).unwrap();
        let mut alice = logged_in(&backend).await;
        alice.select().await;
        alice
            .play(
                r#"
C: a COPY 1 Trash
S: a NO [TRYCREATE] no such mailbox
C: b CREATE Entw&APw-rfe
S: b OK CREATE completed
C: c CREATE Entw&APw-rfe
S: c NO [ALREADYEXISTS] it is there already
C: d COPY 1 Entw&APw-rfe
S: d OK completed
C: e RENAME Entw&APw-rfe "a b"
S: e OK RENAME completed
C: f LSUB "" %
S: * LSUB () "/" INBOX
S: * LSUB () "/" "a b"
S: f OK LSUB completed
C: g UID MOVE 1 "a b"
S: * 1 EXPUNGE
S: g OK completed
C: h STATUS "a b" (MESSAGES UIDNEXT)
S: * STATUS "a b" (MESSAGES 2 UIDNEXT 3)
S: h OK STATUS completed
C: i DELETE INBOX
S: i NO [CANNOT] INBOX stays
C: j CLOSE
S: j OK CLOSE completed
C: k DELETE "a b"
S: k OK DELETE completed
C: l LIST "" ""
S: * LIST (\Noselect) "/" ""
S: l OK LIST completed
"#,
            )
            .await;
        // A mailbox that is deleted under a session ends it.
        backend.create_mailbox("alice", "Gone").unwrap();
        let mut other = logged_in(&backend).await;
        other.play("C: a SELECT Gone").await;
        other.until("a OK [READ-WRITE]…").await;
        other.play("C: b IDLE\nS: + idling").await;
        alice.play("C: m DELETE Gone\nS: m OK DELETE completed").await;
        other.play("S: * BYE the mailbox is gone").await;
        // One of the same name is not the same mailbox.
        backend.create_mailbox("alice", "Gone").unwrap();
        let mut other = logged_in(&backend).await;
        other.play("C: a SELECT Gone").await;
        other.until("a OK [READ-WRITE]…").await;
        alice.play("C: n DELETE Gone\nS: n OK…\nC: o CREATE Gone\nS: o OK…").await;
        other.play("C: b NOOP\nS: * BYE the mailbox is gone").await;
    })
    .await;
}

#[tokio::test]
async fn behaviour_can_be_changed_while_it_runs() {
    limited(async {
        let backend = backend().await;
        backend.create_mailbox("alice", "Private").unwrap();
        backend.deny("alice", "Private", true).unwrap();
        backend.behave(|behaviour| {
            for token in ["IDLE", "SASL-IR", "AUTH=PLAIN", "LITERAL+"] {
                behaviour.remove(token);
            }
            behaviour.add("COMPRESS=DEFLATE");
            behaviour.add("XAPPLEPUSHSERVICE");
            behaviour.list_in_greeting = false;
            behaviour.list_in_login = false;
            behaviour.unavailable = true;
        });
        let mut alice = connect(&backend).await;
        alice
            .play(
                r#"
S: * OK mailchime demo server ready
C: a CAPABILITY
S: * CAPABILITY IMAP4REV1 ID ENABLE UNSELECT UIDPLUS MOVE AUTH=LOGIN COMPRESS=DEFLATE XAPPLEPUSHSERVICE
S: a OK CAPABILITY completed
C: b AUTHENTICATE PLAIN
S: b NO mechanism not supported
C: c AUTHENTICATE LOGIN YWxpY2U=
S: c BAD no initial response here
C: d LOGIN alice "wonder \"land\\"
S: d NO [UNAVAILABLE] try again later
"#,
            )
            .await;
        backend.behave(|behaviour| behaviour.unavailable = false);
        alice
            .play(
                r#"
C: e LOGIN alice "wonder \"land\\"
S: e OK logged in
C: f IDLE
S: f BAD not now, or not known here
C: g STATUS Private (MESSAGES)
S: g NO [NOPERM] not for you
C: h COMPRESS DEFLATE
S: h BAD not now, or not known here
C: i XAPPLEPUSHSERVICE "aps-version" "2"
S: i BAD command unknown or arguments invalid
C: j LIST "" {1+}
S: * BYE line or literal not acceptable
"#,
            )
            .await;
        assert_eq!(backend.counters().refused["alice"], 1);
        assert_eq!(backend.counters().commands["XAPPLEPUSHSERVICE"], 1);

        backend.behave(|behaviour| *behaviour = Default::default());
        backend.set_password("alice", b"new").unwrap();
        connect(&backend).await.play("S: * OK…\nC: a LOGIN alice new\nS: a OK…").await;
    })
    .await;
}

#[tokio::test]
async fn input_is_bounded() {
    limited(async {
        let backend = backend().await;
        for flood in [&b"a LOGIN {99999999999+}\r\n"[..], &b"x".repeat(10_000_000)] {
            let mut stranger = connect(&backend).await;
            stranger.play("S: * OK…").await;
            // The server may close before it has read everything.
            let _ = stranger.0.get_mut().write_all(flood).await;
            let mut rest = Vec::new();
            let _ = stranger.0.read_to_end(&mut rest).await;
        }
        let mut stranger = connect(&backend).await;
        stranger
            .play("S: * OK…\nC: a LOGIN {4294967295}\nS: a NO [TOOBIG] literal too long\nC: b NOOP\nS: b OK completed\nC: \nS: * BAD…\nC: \0\nS: * BAD…")
            .await;
    })
    .await;
}

#[tokio::test]
async fn connections_can_be_dropped_and_the_port_closed() {
    limited(async {
        let backend = backend().await;
        let mut alice = logged_in(&backend).await;
        alice.play("C: a IDLE\nS: + idling").await;
        backend.wait_until(|c| c.idling == 1).await;
        backend.drop_connections();
        alice.0.read_u8().await.unwrap_err();
        backend.wait_until(|c| c.connections == 0 && c.idling == 0).await;

        let mut alice = logged_in(&backend).await;
        backend.refuse().await;
        TcpStream::connect(backend.address()).await.unwrap_err();
        alice.play("C: a NOOP\nS: a OK completed").await;
        backend.resume().await.unwrap();
        logged_in(&backend).await;

        let address = backend.address();
        backend.stop().await;
        alice.0.read_u8().await.unwrap_err();
        TcpStream::connect(address).await.unwrap_err();
        TcpListener::bind(address).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn imap_over_tls() {
    limited(async {
        let pki = Pki::generate(None).unwrap();
        let tls = pki.server_config().unwrap();
        let backend = DemoBackend::start(listener().await, Some(tls)).unwrap();
        backend.add_account("alice", b"x");
        let client = TlsConnector::from(Arc::new(pki.client_config(None).unwrap()));
        for name in ["localhost", "127.0.0.1", "::1"] {
            let tcp = TcpStream::connect(backend.address()).await.unwrap();
            let name = ServerName::try_from(name).unwrap();
            let mut client = Client(BufStream::new(client.connect(name, tcp).await.unwrap()));
            client.play("S: * OK…\nC: a LOGIN alice x\nS: a OK…\nC: b LOGOUT\nS: * BYE…").await;
        }
    })
    .await;
}
