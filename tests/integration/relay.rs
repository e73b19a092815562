//! The relay after login is a plain copy but for what is ours: at random split points through the
//! pure core, and in bulk over real sockets.

mod cuts;
mod registrations;

use std::time::Duration;

use mailchime::demo::dialogue::Peer;
use mailchime::demo::replay::Proxy;
use mailchime::net::tls_stream::TlsClient;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::core::Core;
use crate::support::dialogues::{profile, proxy, push_offer, read_to_end};
use crate::support::limited;
use crate::support::listener;

/// A core whose user is logged in, with nothing heard.
fn relaying() -> Core {
    let mut core = Core::new(profile(None, Some(push_offer())), true);
    core.says(Peer::Client, b"a LOGIN alice x\r\n");
    core.connect();
    core.says(Peer::Backend, b"* OK [CAPABILITY IMAP4rev1] ready\r\nm2 OK in\r\n");
    assert!(core.session.is_relaying());
    core.to_client.clear();
    core.to_backend.clear();
    core
}

fn in_pieces(core: &mut Core, peer: Peer, bytes: &[u8], cuts: &[usize]) {
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.sort_unstable();
    let mut last = 0;
    for cut in cuts.into_iter().chain([bytes.len()]) {
        core.says(peer, &bytes[last..cut]);
        last = cut;
    }
}

/// What a literal may hold, to lead the framer astray.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"a OK done\r\n".to_vec()),
        Just(b"* CAPABILITY IMAP4rev1 STARTTLS\r\n".to_vec()),
        Just(b"* OK [CAPABILITY STARTTLS] x\r\n".to_vec()),
        Just(b"+ go\r\n".to_vec()),
        Just(b"x {5}\r\n".to_vec()),
        Just(b"y {9999999999+}\r\n".to_vec()),
        Just(b"t XAPPLEPUSHSERVICE \"a\" \"b\"\r\n".to_vec()),
        Just(b"DONE\r\n".to_vec()),
        prop::collection::vec(any::<u8>(), 0..20),
    ];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

fn response() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        hostile().prop_map(|body| {
            [format!("* 1 FETCH (BODY[] {{{}}}\r\n", body.len()).as_bytes(), &body, b")\r\n"]
                .concat()
        }),
        (hostile(), hostile()).prop_map(|(a, b)| {
            let first = format!("* 2 FETCH (A ~{{{}}}\r\n", a.len());
            let second = format!(" B {{{}}}\r\n", b.len());
            [first.as_bytes(), &a, second.as_bytes(), &b, b")\r\n"].concat()
        }),
        Just(b"* OK text with {7}\r\n".to_vec()),
        Just(b"b NO [TRYCREATE] CAPABILITY {7+}\r\n".to_vec()),
        Just(b"* 23 EXISTS\r\n".to_vec()),
        Just(b"*  5 EXPUNGE\n".to_vec()),
        Just(b"* STATUS x (MESSAGES 1)\r\n".to_vec()),
        Just(b"* ENABLED X\r\n".to_vec()),
        Just(b"* ENABLED X {33}\r\n* CAPABILITY IMAP4rev1 STARTTLS\r\n\r\n".to_vec()),
        Just(b"+ idling {3}\r\n".to_vec()),
        Just(b"\r\n".to_vec()),
        "[ -~]{0,40}".prop_map(|text| format!("* X{}\r\n", text.replace('}', "")).into_bytes()),
    ]
}

fn command() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        hostile().prop_map(|body| {
            [format!("c APPEND x {{{}+}}\r\n", body.len()).as_bytes(), &body, b"\r\n"].concat()
        }),
        Just(b"d NOOP\r\n".to_vec()),
        Just(b"e UID FETCH 1:* (FLAGS)\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"garbage\r\n".to_vec()),
        Just(b"DONE\r\n".to_vec()),
        "[a-z0-9]{1,8} [A-Z]{1,20} [ -~]{0,30}".prop_map(|text| format!(
            "{}\r\n",
            text.replace(['{', '}'], "")
        )
        .into_bytes()),
    ]
}

/// Says it at once, or byte by byte; returns what each side heard, and whether that was the end.
fn heard(mut core: Core, peer: Peer, bytes: &[u8], at_once: bool) -> (Vec<u8>, Vec<u8>, bool) {
    for piece in bytes.chunks(if at_once { bytes.len() } else { 1 }) {
        if !core.closed {
            core.says(peer, piece);
        }
    }
    (core.to_client, core.to_backend, core.closed)
}

#[test]
fn what_is_too_long_is_so_however_it_arrives() {
    let long = |before: &str, after: &str| format!("{before}{}{after}", "x".repeat(70_000));
    for (logged_in, peer, said, ends) in [
        (true, Peer::Backend, long("* CAPABILITY IMAP4rev1 ", "\r\n"), true),
        (true, Peer::Backend, long("b OK [CAPABILITY X] ", "\r\n"), true),
        (true, Peer::Backend, long("* ENABLED ", " UTF8=ACCEPT\r\n"), false),
        (true, Peer::Client, format!("b NOOP\r\n{}", long("", " NOOP\r\n")), true),
        (true, Peer::Client, long("b LOGIN ", " y\r\nc NOOP\r\n"), false),
        (false, Peer::Client, long("b LOGIN ", " y\r\nc NOOP\r\n"), true),
        (false, Peer::Client, long("b LOGIN {70000+}\r\n", "\r\nc NOOP\r\n"), true),
        (false, Peer::Client, "b LOGIN {70000}\r\nc NOOP\r\n".to_owned(), false),
    ] {
        let core = || if logged_in { relaying() } else { Core::new(profile(None, None), true) };
        let whole = heard(core(), peer, said.as_bytes(), true);
        assert_eq!(whole.2, ends, "{}", &said[..20]);
        assert!(whole == heard(core(), peer, said.as_bytes(), false), "{}", &said[..20]);
    }
}

#[test]
fn what_is_inside_a_literal_is_not_looked_at_when_a_hang_up_cuts_it_short() {
    let mut core = relaying();
    let token = "0123456789abcdef".repeat(4);
    let asked = format!(
        "b XAPPLEPUSHSERVICE aps-version 2 aps-account-id x aps-device-token {token} \
         aps-subtopic com.apple.mobilemail mailboxes (INBOX)\r\n"
    );
    core.says(Peer::Client, asked.as_bytes());
    core.says(Peer::Backend, b"mcRANDOMx1 OK\r\n");
    assert!(core.to_backend.ends_with(b"UNSEEN)\r\n"), "STATUS is asked");
    let cut_short = b"* STATUS {99}\r\n* CAPABILITY STARTTLS\r\n";
    core.says(Peer::Backend, cut_short);
    core.hang_up();
    assert_eq!(core.to_client, cut_short);
}

proptest! {
    #[test]
    fn what_a_backend_says_arrives_unchanged(
        responses in prop::collection::vec(response(), 1..8),
        cuts in prop::collection::vec(any::<usize>(), 0..20),
    ) {
        let stream = responses.concat();
        let mut core = relaying();
        in_pieces(&mut core, Peer::Backend, &stream, &cuts);
        prop_assert_eq!(core.to_client.escape_ascii().to_string(), stream.escape_ascii().to_string());
        prop_assert!(core.to_backend.is_empty());
    }

    #[test]
    fn what_a_client_says_arrives_unchanged(
        commands in prop::collection::vec(command(), 1..8),
        cuts in prop::collection::vec(any::<usize>(), 0..20),
    ) {
        let stream = commands.concat();
        let mut core = relaying();
        in_pieces(&mut core, Peer::Client, &stream, &cuts);
        prop_assert_eq!(core.to_backend.escape_ascii().to_string(), stream.escape_ascii().to_string());
        prop_assert!(core.to_client.is_empty());
    }

    /// Whatever bytes come from either side, in whatever order: no panic, and nothing is made up.
    #[test]
    fn no_bytes_of_either_side_break_it(
        said in prop::collection::vec((any::<bool>(), prop_oneof![response(), command(), hostile()]), 0..12),
    ) {
        let mut core = relaying();
        for (from_client, bytes) in said {
            core.says(if from_client { Peer::Client } else { Peer::Backend }, &bytes);
        }
    }

    #[test]
    fn no_bytes_before_login_break_it(
        said in prop::collection::vec(prop_oneof![response(), command(), hostile()], 0..12),
    ) {
        let mut core = Core::new(profile(None, None), true);
        for bytes in said {
            core.says(Peer::Client, &bytes);
        }
    }
}

/// A client and a backend with mailchime between them, after a login.
async fn between() -> (Proxy, TlsClient, TcpStream) {
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    let proxy = proxy(address, Some(push_offer()), |_| {}).await;
    let (client, backend) = log_in(&proxy, &listener).await;
    (proxy, client, backend)
}

async fn log_in(proxy: &Proxy, listener: &TcpListener) -> (TlsClient, TcpStream) {
    let mut client = proxy.connect().await.unwrap();
    client.write_all(b"a LOGIN alice x\r\n").await.unwrap();
    let (mut backend, _) = listener.accept().await.unwrap();
    backend.write_all(b"* OK [CAPABILITY IMAP4rev1] ready\r\n").await.unwrap();
    hear(&mut backend, b"m2 LOGIN alice x\r\n").await;
    backend.write_all(b"m2 OK in\r\n").await.unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"a OK in\r\n") {
        heard.push(client.read_u8().await.unwrap());
    }
    (client, backend)
}

async fn hear(stream: &mut (impl AsyncReadExt + Unpin), expected: &[u8]) {
    let mut heard = vec![0; expected.len()];
    stream.read_exact(&mut heard).await.unwrap();
    assert!(heard == expected, "heard {}", heard[..heard.len().min(200)].escape_ascii());
}

/// A response of `size` bytes in which nothing is what it seems.
fn large(size: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(size + 100);
    while body.len() < size {
        body.extend_from_slice(b"a OK done\r\n* CAPABILITY STARTTLS\r\n{99}\r\n\0\xff");
        let random: [u8; 32] = std::array::from_fn(|i| (body.len() * 31 + i * 7) as u8);
        body.extend_from_slice(&random);
    }
    let head = format!("* 1 FETCH (BODY[] {{{}}}\r\n", body.len());
    [head.as_bytes(), &body, b")\r\nb OK done\r\n"].concat()
}

#[tokio::test]
async fn twenty_megabytes_arrive_at_a_client_that_reads_in_fits() {
    let test = async {
        let (_proxy, mut client, mut backend) = between().await;
        let response = large(20_000_000);
        let expected = response.clone();
        let sender = tokio::spawn(async move {
            backend.write_all(&response).await.unwrap();
            backend
        });
        let mut at = 0;
        let mut piece = vec![0; 1_000_000];
        while at < expected.len() {
            // Nothing is read for some turns: what is under way has to wait where it is.
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            let length = client.read(&mut piece).await.unwrap();
            assert!(length > 0, "ended after {at}");
            assert!(piece[..length] == expected[at..at + length], "differs after {at}");
            at += length;
        }
        drop(sender.await.unwrap());
        assert_eq!(read_to_end(&mut client).await, b"");
    };
    limited(test).await;
}

#[tokio::test]
async fn uploads_and_downloads_do_not_wait_for_each_other() {
    let test = async {
        let (_proxy, client, backend) = between().await;
        let (mut from_client, mut to_client) = tokio::io::split(client);
        let (mut from_backend, mut to_backend) = backend.into_split();
        let down = large(5_000_000);
        let body = large(5_000_000);
        let up =
            [format!("b APPEND x {{{}+}}\r\n", body.len()).as_bytes(), &body, b"\r\n"].concat();
        let (up_said, down_said) = (up.clone(), down.clone());
        let saying = async {
            let up = async {
                to_client.write_all(&up_said).await.unwrap();
                to_client.flush().await.unwrap();
            };
            let down = async { to_backend.write_all(&down_said).await.unwrap() };
            tokio::join!(up, down)
        };
        tokio::join!(saying, hear(&mut from_backend, &up), hear(&mut from_client, &down));
    };
    limited(test).await;
}

#[tokio::test]
async fn a_client_that_has_said_all_still_hears_the_rest() {
    let test = async {
        let (_proxy, mut client, mut backend) = between().await;
        client.write_all(b"b FETCH 1 BODY[]\r\nc LOG").await.unwrap();
        client.shutdown().await.unwrap();
        hear(&mut backend, b"b FETCH 1 BODY[]\r\nc LOG").await;
        assert_eq!(read_to_end(&mut backend).await, b"", "the half-close goes on");
        backend.write_all(b"* 1 FETCH (BODY[] {3}\r\nabc)\r\nb OK\r\n* BY").await.unwrap();
        drop(backend);
        let expected = b"* 1 FETCH (BODY[] {3}\r\nabc)\r\nb OK\r\n* BY";
        assert_eq!(read_to_end(&mut client).await, expected);
    };
    limited(test).await;
}

#[tokio::test]
async fn a_client_that_has_said_all_before_its_login_is_answered_hears_all_of_it() {
    let test = async {
        let listener = listener().await;
        let address = listener.local_addr().unwrap();
        let proxy = proxy(address, Some(push_offer()), |_| {}).await;
        let mut client = proxy.connect().await.unwrap();
        // The second registers, and asks the backend after the client has said all.
        let token = "0123456789abcdef".repeat(4);
        let said = format!(
            "a LOGIN alice wrong\r\nb LOGIN alice x\r\nc NOOP\r\nd XAPPLEPUSHSERVICE aps-version 2 \
             aps-account-id x aps-device-token {token} aps-subtopic com.apple.mobilemail mailboxes \
             (INBOX)\r\n"
        );
        client.write_all(said.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let greeting = b"* OK [CAPABILITY IMAP4rev1] ready\r\n";
        let (mut backend, _) = listener.accept().await.unwrap();
        backend.write_all(greeting).await.unwrap();
        hear(&mut backend, b"m2 LOGIN alice wrong\r\n").await;
        backend.write_all(b"m2 NO wrong\r\n").await.unwrap();
        let (mut backend, _) = listener.accept().await.unwrap();
        backend.write_all(greeting).await.unwrap();
        hear(&mut backend, b"m2 LOGIN alice x\r\n").await;
        backend.write_all(b"m2 OK in\r\n").await.unwrap();
        hear(&mut backend, b"c NOOP\r\n").await;
        backend.write_all(b"c OK done\r\n").await.unwrap();
        for question in ["NOOP", "STATUS \"INBOX\" (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)"] {
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n") {
                asked.push(backend.read_u8().await.expect("a question"));
            }
            let asked = String::from_utf8(asked).unwrap();
            let (tag, rest) = asked.trim_end().split_once(' ').unwrap();
            assert_eq!(rest, question);
            let answer = format!("* STATUS INBOX (MESSAGES 1)\r\n{tag} OK\r\n");
            backend.write_all(answer.as_bytes()).await.unwrap();
        }
        assert_eq!(read_to_end(&mut backend).await, b"", "the half-close goes on");
        drop(backend);
        let heard = String::from_utf8(read_to_end(&mut client).await).unwrap();
        let tagged: Vec<_> = heard.lines().filter(|line| !line.starts_with('*')).collect();
        let expected = ["a NO wrong", "b OK in", "c OK done", "d OK XAPPLEPUSHSERVICE completed"];
        assert_eq!(tagged, expected, "{heard}");
    };
    limited(test).await;
}

/// Who hangs up in the middle of a login, or in none, is let go.
#[tokio::test]
async fn a_client_that_hangs_up_before_it_logs_in_is_let_go() {
    let test = async {
        let listener = listener().await;
        let proxy = proxy(listener.local_addr().unwrap(), None, |_| {}).await;
        for said in ["", "a NOOP\r\nb LOG", "a AUTHENTICATE PLAIN\r\n", "a LOGIN {5}\r\n"] {
            let mut client = proxy.connect().await.unwrap();
            client.write_all(said.as_bytes()).await.unwrap();
            client.shutdown().await.unwrap();
            let heard = String::from_utf8(read_to_end(&mut client).await).unwrap();
            assert!(heard.starts_with("* OK ") && !heard.contains("BYE"), "{heard}");
        }
    };
    limited(test).await;
}

#[tokio::test]
async fn the_last_words_of_a_backend_that_takes_no_more_arrive() {
    let test = async {
        let (_proxy, mut client, mut backend) = between().await;
        backend.write_all(b"* BYE Autologout\r\n").await.unwrap();
        backend.shutdown().await.unwrap();
        for _ in 0..50 {
            // Some of these meet a closed socket.
            if client.write_all(b"b NOOP\r\n").await.is_err() {
                break;
            }
        }
        assert_eq!(read_to_end(&mut client).await, b"* BYE Autologout\r\n");
    };
    limited(test).await;
}

#[tokio::test]
async fn a_capability_list_without_end_ends_the_session() {
    let test = async {
        let (_proxy, mut client, mut backend) = between().await;
        let _ = backend.write_all(b"* CAPABILITY ").await;
        for _ in 0..200 {
            if backend.write_all(&[b'x'; 1000]).await.is_err() {
                break;
            }
        }
        assert_eq!(read_to_end(&mut client).await, b"");
    };
    limited(test).await;
}

#[tokio::test]
async fn at_the_end_an_idle_client_is_sent_away_and_a_busy_one_is_answered_first() {
    let test = async {
        let (proxy, mut idle, _idle_backend) = between().await;
        proxy.stop();
        assert_eq!(read_to_end(&mut idle).await, b"* BYE The server is shutting down\r\n");

        let (proxy, mut idling, mut backend) = between().await;
        idling.write_all(b"b IDLE\r\n").await.unwrap();
        hear(&mut backend, b"b IDLE\r\n").await;
        backend.write_all(b"+ idling\r\n").await.unwrap();
        hear(&mut idling, b"+ idling\r\n").await;
        proxy.stop();
        assert_eq!(read_to_end(&mut idling).await, b"* BYE The server is shutting down\r\n");

        let (proxy, mut busy, mut backend) = between().await;
        busy.write_all(b"b FETCH 1 BODY[]\r\n").await.unwrap();
        hear(&mut backend, b"b FETCH 1 BODY[]\r\n").await;
        backend.write_all(b"* 1 FETCH (BODY[] {5}\r\nab").await.unwrap();
        hear(&mut busy, b"* 1 FETCH (BODY[] {5}\r\nab").await;
        proxy.stop();
        backend.write_all(b"cde)\r\nb OK\r\n").await.unwrap();
        let rest = read_to_end(&mut busy).await;
        assert_eq!(rest, b"cde)\r\nb OK\r\n* BYE The server is shutting down\r\n");
    };
    limited(test).await;
}

#[tokio::test]
async fn at_the_end_a_command_without_answer_has_its_grace_and_no_more() {
    let test = async {
        let listener = listener().await;
        let address = listener.local_addr().unwrap();
        let grace = Duration::from_millis(50);
        let proxy = proxy(address, None, |config| config.limits.shutdown_grace = grace).await;
        let (mut client, mut backend) = log_in(&proxy, &listener).await;
        client.write_all(b"b NOOP\r\n").await.unwrap();
        hear(&mut backend, b"b NOOP\r\n").await;
        proxy.stop();
        assert_eq!(read_to_end(&mut client).await, b"* BYE The server is shutting down\r\n");
    };
    limited(test).await;
}

/// Bytes go through deflate both ways, and what comes in one packet with COMPRESS ends the session.
#[tokio::test]
async fn compression_ends_here() {
    let test = async {
        let (_proxy, mut client, mut backend) = between().await;
        client.write_all(b"b COMPRESS DEFLATE\r\n").await.unwrap();
        let mut fence = vec![0; 27];
        backend.read_exact(&mut fence).await.unwrap();
        let tag = String::from_utf8(fence).unwrap().replace(" NOOP\r\n", "");
        backend.write_all(format!("{tag} OK\r\n").as_bytes()).await.unwrap();
        hear(&mut client, b"b OK DEFLATE active\r\n").await;
        let stream = mailchime::net::stream::Stream::Client(Box::new(client));
        let mut client = mailchime::net::deflate::Deflated::new(stream);
        client.write_all(b"c FETCH 1 BODY[]\r\n").await.unwrap();
        client.flush().await.unwrap();
        hear(&mut backend, b"c FETCH 1 BODY[]\r\n").await;
        let response = large(3_000_000);
        let said = response.clone();
        let saying = tokio::spawn(async move {
            backend.write_all(&said).await.unwrap();
            backend
        });
        hear(&mut client, &response).await;
        let mut backend = saying.await.unwrap();
        // One flush a batch: a short line does not wait for more.
        backend.write_all(b"* 2 EXISTS\r\n").await.unwrap();
        hear(&mut client, b"* 2 EXISTS\r\n").await;
        let [_, _, plain, compressed] = client.totals();
        assert!(plain > 0 && compressed > 0);
        drop(backend);
        assert_eq!(read_to_end(&mut client).await, b"");
    };
    limited(test).await;
}

#[tokio::test]
async fn bytes_that_come_with_compress_end_the_session() {
    let test = async {
        let (_proxy, mut client, mut backend) = between().await;
        client.write_all(b"b COMPRESS DEFLATE\r\nc NOOP\r\n").await.unwrap();
        let mut fence = vec![0; 27];
        backend.read_exact(&mut fence).await.unwrap();
        let tag = String::from_utf8(fence).unwrap().replace(" NOOP\r\n", "");
        backend.write_all(format!("{tag} OK\r\n").as_bytes()).await.unwrap();
        assert_eq!(read_to_end(&mut client).await, b"b OK DEFLATE active\r\n");
    };
    limited(test).await;
}
