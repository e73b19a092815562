//! Logins at real servers: each spelling of LOGIN that a server takes is taken through mailchime, and
//! clients are offered what the server takes.
//!
//! Each test of spellings prints what became of them, directly and through mailchime.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mailchime::demo::replay::Proxy;
use mailchime::net::tls_stream::TlsClient;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;

use crate::support::dialogues::{proxy, push_offer};
use crate::support::servers::courier::Courier;
use crate::support::servers::cyrus::Cyrus;
use crate::support::servers::dovecot::{Dovecot, Options, token};
use crate::support::servers::imap4d::Imap4d;
use crate::support::servers::{ALICE, BOB, OTHERS, User};
use crate::support::{SOON, limited};

/// For a whole test; a server may be slow to refuse.
/// For an answer: imap4d waits for more behind some escapes.
const PATIENCE: Duration = Duration::from_secs(20);

/// LOGIN's arguments in one spelling. `NAME` is the login name; behind each line end the client waits
/// for the go-ahead.
struct Spelling {
    what: &'static str,
    user: User<'static>,
    arguments: &'static str,
}

const fn spelling(what: &'static str, user: User<'static>, arguments: &'static str) -> Spelling {
    Spelling { what, user, arguments }
}

const CAROL: User<'static> = OTHERS[0];
const DAVE: User<'static> = OTHERS[1];
const EVA: User<'static> = OTHERS[2];

const SPELLINGS: [Spelling; 20] = [
    spelling("a tilde, unquoted", CAROL, "NAME Zip~ped9"),
    spelling("a tilde, quoted", CAROL, "NAME \"Zip~ped9\""),
    spelling("a tilde, all quoted", CAROL, "\"NAME\" \"Zip~ped9\""),
    spelling("a tilde, as literals", CAROL, "{LENGTH}\r\nNAME {8}\r\nZip~ped9"),
    spelling("a blank, quoted", ALICE, "NAME \"wonder land\""),
    spelling("a blank, as a literal", ALICE, "NAME {11}\r\nwonder land"),
    spelling("needless escapes in the password", ALICE, r#"NAME "wonder\ l\and""#),
    spelling("a needless escape in the name", ALICE, r#""\NAME" "wonder land""#),
    spelling("two blanks between", ALICE, "NAME  \"wonder land\""),
    spelling("a blank at the end", ALICE, "NAME \"wonder land\" "),
    spelling("escapes, quoted", BOB, r#"NAME "q\"uo\\te""#),
    spelling("a quote, unquoted", BOB, r#"NAME q"uo\te"#),
    spelling("a quote and a backslash, as a literal", BOB, "NAME {7}\r\nq\"uo\\te"),
    spelling("wildcards, unquoted", DAVE, r"NAME x%y\z*w]"),
    spelling("wildcards, quoted", DAVE, r#"NAME "x%y\\z*w]""#),
    spelling("8 bits, quoted", EVA, "NAME \"p\u{e4}ssw\u{f6}rd\""),
    spelling("8 bits, unquoted", EVA, "NAME p\u{e4}ssw\u{f6}rd"),
    spelling("8 bits, as a literal", EVA, "NAME {10}\r\np\u{e4}ssw\u{f6}rd"),
    spelling("a wrong password", ALICE, "NAME wonder"),
    spelling("another's password", ALICE, "NAME Zip~ped9"),
];

/// Logs in on a fresh connection; the tagged answer.
async fn log_in(stream: impl AsyncRead + AsyncWrite + Unpin, arguments: &str) -> String {
    let mut stream = BufStream::new(stream);
    let mut answer = String::new();
    let line = async |stream: &mut BufStream<_>| {
        let mut line = Vec::new();
        let read = stream.read_until(b'\n', &mut line);
        if tokio::time::timeout(PATIENCE, read).await.is_err() {
            return "x [no answer]".to_owned();
        }
        String::from_utf8_lossy(&line).trim_end().to_owned()
    };
    assert!(line(&mut stream).await.starts_with("* OK"));
    for piece in format!("x LOGIN {arguments}\r\n").split_inclusive('\n') {
        stream.write_all(piece.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        loop {
            answer = line(&mut stream).await;
            if answer.is_empty() || answer.starts_with("x ") {
                return answer;
            }
            if answer.starts_with('+') {
                break;
            }
        }
    }
    answer
}

/// The answers to each spelling, directly and through mailchime.
async fn compare(
    server: &str,
    address: SocketAddr,
    spellings: &[Spelling],
    name: impl Fn(&str) -> String,
) -> Vec<[String; 2]> {
    let proxy: Proxy = proxy(address, Some(push_offer()), |_| {}).await;
    let mut answers = Vec::new();
    let mut table = format!("{server}:\n");
    for Spelling { what, user, arguments } in spellings {
        let name = name(user.0);
        let arguments = arguments.replace("NAME", &name);
        let arguments = arguments.replace("LENGTH", &name.len().to_string());
        let direct = log_in(TcpStream::connect(address).await.unwrap(), &arguments).await;
        let through = log_in(proxy.connect().await.unwrap(), &arguments).await;
        writeln!(table, "  {what}: {direct:.40} / {through:.40}").unwrap();
        answers.push([direct, through]);
    }
    std::io::stderr().write_all(table.as_bytes()).unwrap();
    for ([direct, through], Spelling { what, .. }) in answers.iter().zip(spellings) {
        let [direct_in, in_through] = [direct, through].map(|answer| answer.starts_with("x OK"));
        assert!(in_through || !direct_in, "{server}, {what}: {direct}, but {through}");
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn courier_takes_each_spelling_through_mailchime_that_it_takes_itself() {
    let Some(courier) = Courier::start("logins::courier") else { return };
    limited(compare("Courier", courier.plain, &SPELLINGS, str::to_owned)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dovecot_takes_each_spelling_through_mailchime_that_it_takes_itself() {
    const DOMAIN: User<'static> = (r"DOMAIN\frank", "secret");
    const PERCENT: User<'static> = ("x%y", "secret");
    const NAMES: [Spelling; 4] = [
        spelling("a domain, unquoted", DOMAIN, r"DOMAIN\frank secret"),
        spelling("a domain, quoted", DOMAIN, r#""DOMAIN\\frank" "secret""#),
        spelling("a percent sign, unquoted", PERCENT, "x%y secret"),
        spelling("a master user, unquoted", ALICE, "alice*boss masterpw"),
    ];
    let users = [DOMAIN, PERCENT].map(|(name, password)| (name.into(), password.into()));
    let extra = "auth_username_chars =\nauth_username_format = %n\n";
    let options = Options { users: users.into(), master: true, extra, ..Options::default() };
    let Some(dovecot) = Dovecot::start("logins::dovecot", &options) else { return };
    limited(async {
        compare("Dovecot", dovecot.plain, &SPELLINGS, str::to_owned).await;
        compare("Dovecot, names", dovecot.plain, &NAMES, str::to_owned).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cyrus_takes_each_spelling_through_mailchime_that_it_takes_itself() {
    let Some(cyrus) = Cyrus::start("logins::cyrus") else { return };
    limited(compare("Cyrus", cyrus.plain, &SPELLINGS, str::to_owned)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn imap4d_takes_each_spelling_through_mailchime_that_it_takes_itself() {
    let Some(imap4d) = Imap4d::start("logins::imap4d") else { return };
    limited(compare("imap4d", imap4d.plain, &SPELLINGS, Imap4d::login_name)).await;
}

// === what is offered ===

/// The capabilities in the greeting of mailchime before this server, and a client that has heard it.
async fn greeted(proxy: &Proxy) -> (String, BufStream<TlsClient>) {
    let mut client = BufStream::new(proxy.connect().await.unwrap());
    let mut greeting = String::new();
    client.read_line(&mut greeting).await.unwrap();
    (greeting, client)
}

/// The tagged answer to a command.
async fn ask(client: &mut BufStream<TlsClient>, command: &str) -> String {
    client.write_all(format!("x {command}\r\n").as_bytes()).await.unwrap();
    client.flush().await.unwrap();
    loop {
        let mut line = String::new();
        client.read_line(&mut line).await.unwrap();
        if line.is_empty() || line.starts_with("x ") {
            return line;
        }
    }
}

async fn probed(address: SocketAddr) -> Proxy {
    let proxy = proxy(address, Some(push_offer()), |_| {}).await;
    proxy.backend.probe(SOON, 16 * 1024).await.unwrap();
    proxy
}

/// Dovecot's LOGIN needs the mechanism PLAIN.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dovecot_with_the_mechanism_login_alone_takes_all_passwords() {
    let options = Options { extra: "auth_mechanisms = login\n", ..Options::default() };
    let Some(dovecot) = Dovecot::start("logins::dovecot_with_login", &options) else { return };
    limited(async {
        let proxy = probed(dovecot.plain).await;
        let seen = proxy.backend.seen().unwrap();
        assert!(seen.has("LOGINDISABLED") && !seen.has("AUTH=PLAIN"), "{seen}");
        let plain = STANDARD.encode(format!("\0{}\0{}", ALICE.0, ALICE.1));
        for command in [
            format!("LOGIN {} \"{}\"", ALICE.0, ALICE.1),
            format!("AUTHENTICATE PLAIN {plain}"),
            format!("LOGIN {} \"{}\"", EVA.0, EVA.1),
        ] {
            let (greeting, mut client) = greeted(&proxy).await;
            assert!(greeting.contains(" AUTH=PLAIN AUTH=LOGIN "), "{greeting}");
            let wrong = ask(&mut client, "LOGIN alice wrong").await;
            assert!(wrong.starts_with("x NO [AUTHENTICATIONFAILED]"), "{wrong}");
            let answer = ask(&mut client, &command).await;
            assert!(answer.starts_with("x OK"), "{command}: {answer}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dovecot_that_takes_tokens_alone_is_shown_so() {
    const ONE: &str = "auth_mechanisms = xoauth2\n";
    const OTHER: &str = "auth_mechanisms = oauthbearer\n";
    let test = "logins::dovecot_that_takes_tokens_alone_is_shown_so";
    for (extra, takes_nameless) in [(ONE, false), (OTHER, true)] {
        let options = Options { tokens: true, extra, ..Options::default() };
        let Some(dovecot) = Dovecot::start(test, &options) else { return };
        limited(async {
            let proxy = probed(dovecot.plain).await;
            let token = token(ALICE.0);
            let bearer = |header: &str| {
                let message = format!("{header}\x01auth=Bearer {token}\x01\x01");
                STANDARD.encode(message)
            };
            let named = bearer(&format!("n,a={},", ALICE.0));
            for (command, expected) in [
                (format!("AUTHENTICATE XOAUTH2 {}", bearer("user=alice")), "x OK"),
                (format!("AUTHENTICATE OAUTHBEARER {named}"), "x OK"),
                (format!("LOGIN {} \"{}\"", ALICE.0, ALICE.1), "x NO [CANNOT]"),
                ("AUTHENTICATE PLAIN AGEAYg==".to_owned(), "x NO [CANNOT]"),
            ] {
                let (greeting, mut client) = greeted(&proxy).await;
                let tokens = " SASL-IR LOGINDISABLED AUTH=XOAUTH2 AUTH=OAUTHBEARER ";
                assert!(greeting.contains(tokens), "{greeting}");
                let answer = ask(&mut client, &command).await;
                assert!(answer.starts_with(expected), "{extra}{command}: {answer}");
            }
            // It is the server's to judge.
            let nameless = format!("AUTHENTICATE OAUTHBEARER {}", bearer("n,,"));
            let (_, mut client) = greeted(&proxy).await;
            let answer = ask(&mut client, &nameless).await;
            assert_eq!(answer.starts_with("x NO [CANNOT]"), !takes_nameless, "{answer}");
        })
        .await;
    }
}
