//! Who logs in with their own password and claims to be somebody else: a backend may overlook the
//! claim, and the session is the attacker's own. Nothing of it may reach the other's account.
//!
//! `fixtures/acts-as-another.imap` and its neighbours show the dialogues.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use mailchime::config::{self, Config};
use mailchime::demo::replay::Proxy;
use mailchime::model::{SessionEvent, Timestamp};
use sqlx::Connection;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::task::block_in_place;

use crate::support::dialogues::{proxy, push_offer};
use crate::support::line::Client;
use crate::support::servers::courier::Courier;
use crate::support::servers::dovecot::{Dovecot, Options, token};
use crate::support::servers::imap4d::Imap4d;
use crate::support::servers::{ALICE, BOB, mail};
use crate::support::world::{ACCOUNT_ID, Server, TOKEN, World, registration};
use crate::support::{limited, listener, sasl};

const FOREIGN_TOKEN: &str = "6666666666666666666666666666666666666666666666666666666666666666";
const FOREIGN_ID: &str = "66666666-CA09-4730-A419-793000CA982E";

/// The registration of the attacker's phone.
fn foreign_registration() -> String {
    registration().replace(TOKEN, FOREIGN_TOKEN).replace(ACCOUNT_ID, FOREIGN_ID)
}

/// What the database holds of accounts and devices; passwords are sealed anew at each registration.
async fn rows(world: &World) -> Vec<(String, Option<String>, String)> {
    let url = format!("sqlite://{}", world.file("mailchime.db").display());
    let mut database = sqlx::SqliteConnection::connect(&url).await.unwrap();
    let all = "select name, credentials, lower(endpoint) from account a \
               join subscription s on s.account = a.id";
    sqlx::query_as(all).fetch_all(&mut database).await.unwrap()
}

async fn logs_in_as(client: &mut Client, authorization: &str, login: &str, password: &str) {
    let message = BASE64_STANDARD.encode(format!("{authorization}\0{login}\0{password}"));
    client.send(format!("in AUTHENTICATE PLAIN {message}\r\n").as_bytes()).await;
    let answer = client.until("in ").await;
    assert!(answer.starts_with("in OK"), "this backend overlooks the claim: {answer}");
}

/// The session is not offered push, and a registration is refused as where push is off.
async fn is_not_offered_push(client: &mut Client) {
    client.send(b"c CAPABILITY\r\n").await;
    loop {
        let line = client.line().await;
        assert!(!line.contains("XAPPLEPUSHSERVICE"), "{line}");
        if line.starts_with("c ") {
            break;
        }
    }
    client.send(format!("r {}\r\n", foreign_registration()).as_bytes()).await;
    let answer = client.until("r ").await;
    assert_eq!(answer, "r BAD XAPPLEPUSHSERVICE is not available here");
}

/// Alice has a phone; bob logs in with his password and claims to be her.
async fn bob_claims_to_be_alice(
    mode: &str,
    server: SocketAddr,
    [alice, bob]: [&str; 2],
    deliver: impl Fn(&str),
    restart: impl FnOnce(),
) {
    let world = World::new().await;
    world.in_front_of(server);
    world.configure("[store]\n", &format!("[credentials]\nmode = \"{mode}\"\n[store]\n"));
    world.configure("[watch]\n", "[watch]\npoll_interval = \"1s\"\npoll_max = \"1s\"\n");
    let mailchime = world.serve_with_admin().await;
    let mut phone = world.phone();
    phone.login = alice.into();
    let ca = &world.pki.ca.certificate;
    phone.register(mailchime.address, "localhost", ca, |_, _| {}).await.unwrap();
    let before = rows(&world).await;
    assert_eq!(before.len(), 1);

    let mut client = world.client(&mailchime).await;
    logs_in_as(&mut client, alice, bob, BOB.1).await;
    // It is bob's own mail that he sees, whatever he claims.
    block_in_place(|| deliver(BOB.0));
    client.send(b"s STATUS INBOX (MESSAGES)\r\n").await;
    let seen = client.until("* STATUS").await;
    assert!(seen.contains("MESSAGES 1"), "{seen}");
    is_not_offered_push(&mut client).await;
    assert_eq!(rows(&world).await, before, "alice's account is as it was");

    // Her watcher logs in anew, with her own password, and sees her mail and not his.
    block_in_place(restart);
    block_in_place(|| deliver(BOB.0));
    let mut again = world.client(&mailchime).await;
    logs_in_as(&mut again, alice, bob, BOB.1).await;
    block_in_place(|| deliver(ALICE.0));
    world.push().await;
    let devices = rows(&world).await;
    assert_eq!(devices.iter().map(|row| &*row.2).collect::<Vec<_>>(), [TOKEN]);
    assert_eq!(devices[0].1.is_some(), mode == "stored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claimed_identity_is_not_believed_at_a_real_courier() {
    let test = "attacks::identity::a_claimed_identity_is_not_believed_at_a_real_courier";
    for mode in ["stored", "memory"] {
        let Some(courier) = Courier::start(test) else { return };
        limited(async {
            let (address, courier) = (courier.plain, std::cell::RefCell::new(courier));
            let deliver = |user: &str| courier.borrow().deliver(user, "INBOX", &mail("hello"));
            let restart = || courier.borrow_mut().restart();
            bob_claims_to_be_alice(mode, address, [ALICE.0, BOB.0], deliver, restart).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claimed_identity_is_not_believed_at_a_real_imap4d() {
    let test = "attacks::identity::a_claimed_identity_is_not_believed_at_a_real_imap4d";
    for mode in ["stored", "memory"] {
        let Some(imap4d) = Imap4d::start(test) else { return };
        limited(async {
            let (address, imap4d) = (imap4d.plain, std::cell::RefCell::new(imap4d));
            let [alice, bob] = [ALICE.0, BOB.0].map(Imap4d::login_name);
            let deliver = |user: &str| imap4d.borrow().deliver(user, &mail("hello"));
            let restart = || imap4d.borrow_mut().restart();
            bob_claims_to_be_alice(mode, address, [&alice, &bob], deliver, restart).await;
        })
        .await;
    }
}

/// Whether a token's name counts is the operator's word: Dovecot checks it, so it may be given.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_registers_only_where_its_name_is_checked() {
    let test = "attacks::identity::a_token_registers_only_where_its_name_is_checked";
    let options = Options { tokens: true, ..Options::default() };
    let Some(dovecot) = Dovecot::start(test, &options) else { return };
    limited(async {
        for checks in [false, true] {
            let world = World::new().await;
            world.in_front_of(dovecot.plain);
            if checks {
                world.configure("[store]\n", "checks_token_name = true\n[store]\n");
            }
            let server = world.serve().await;
            // It offers what Dovecot does, once it has seen that.
            world.session(&server).await;
            for way in ["XOAUTH2", "OAUTHBEARER"] {
                let mut client = world.client(&server).await;
                let token = token(ALICE.0);
                let (answer, _) = sasl::bearer(&mut client, way, (ALICE.0, &token)).await;
                assert!(answer.starts_with("in OK"), "{way}: {answer}");
                if checks {
                    assert!(answer.contains(" XAPPLEPUSHSERVICE"), "{way}: {answer}");
                    client.send(format!("r {}\r\n", registration()).as_bytes()).await;
                    client.until("r OK").await;
                } else {
                    is_not_offered_push(&mut client).await;
                }
            }
            assert_eq!(rows(&world).await.len(), usize::from(checks));
            let said = world.command(&["check"]).await;
            let expected = if checks { "are offered push" } else { "are not offered push" };
            assert!(said.stdout.contains(expected), "{}", said.stdout);
        }
    })
    .await;
}

/// A backend that lets everybody in, whatever they say, and overlooks whom they claim to be.
async fn credulous() -> SocketAddr {
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut stream = BufStream::new(stream);
                let mut say = b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN AUTH=LOGIN \
                    AUTH=XOAUTH2 AUTH=OAUTHBEARER AUTH=SCRAM-SHA-256 AUTH=CRAM-MD5] ready\r\n"
                    .to_vec();
                loop {
                    stream.write_all(&say).await?;
                    stream.flush().await?;
                    let mut line = String::new();
                    if stream.read_line(&mut line).await? == 0 {
                        return std::io::Result::Ok(());
                    }
                    let words: Vec<_> = line.split_whitespace().collect();
                    if words.get(1) == Some(&"LOGOUT") {
                        return Ok(());
                    }
                    let tag = words.first().copied().unwrap_or("*");
                    say = match words.get(1..) {
                        Some(["AUTHENTICATE", "CRAM-MD5"]) => {
                            stream.write_all(b"+ PDFAeD4=\r\n").await?;
                            stream.flush().await?;
                            stream.read_line(&mut String::new()).await?;
                            format!("{tag} OK [CAPABILITY IMAP4rev1] in\r\n").into_bytes()
                        }
                        Some(["AUTHENTICATE", "SCRAM-SHA-256", _]) => {
                            let challenge = BASE64_STANDARD.encode("r=abXY,s=QQ==,i=4096");
                            stream.write_all(format!("+ {challenge}\r\n").as_bytes()).await?;
                            stream.flush().await?;
                            stream.read_line(&mut String::new()).await?;
                            format!("{tag} OK [CAPABILITY IMAP4rev1] in\r\n").into_bytes()
                        }
                        Some(["STATUS", ..]) => format!(
                            "* STATUS INBOX (MESSAGES 1 UIDNEXT 2 UIDVALIDITY 1 UNSEEN 1)\r\n\
                             {tag} OK\r\n"
                        )
                        .into_bytes(),
                        _ => format!("{tag} OK [CAPABILITY IMAP4rev1] in\r\n").into_bytes(),
                    };
                }
            });
        }
    });
    address
}

/// Says these lines, each when it is asked for, and then a registration; returns what the login and
/// the registration were answered.
async fn session(proxy: &Proxy, lines: &[String]) -> (String, String) {
    let mut client = BufStream::new(proxy.connect().await.unwrap());
    let mut heard = String::new();
    client.read_line(&mut heard).await.unwrap();
    for line in lines {
        client.write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
        client.flush().await.unwrap();
        heard.clear();
        client.read_line(&mut heard).await.unwrap();
    }
    let login = heard.clone();
    client.write_all(format!("r {}\r\n", registration()).as_bytes()).await.unwrap();
    client.write_all(b"z LOGOUT\r\n").await.unwrap();
    client.flush().await.unwrap();
    let mut registered = String::new();
    while !registered.starts_with("r ") {
        registered.clear();
        client.read_line(&mut registered).await.unwrap();
    }
    let _ = client.read_to_end(&mut Vec::new()).await;
    (login.trim_end().to_owned(), registered.trim_end().to_owned())
}

/// How a session came about, and how many events of its login and registration left for the watching side.
async fn events_of(mode: &str, change: impl FnOnce(&mut Config), lines: &[String]) -> usize {
    let credentials = match mode {
        "stored" => config::CredentialsMode::Stored,
        "memory" => config::CredentialsMode::Memory,
        _ => config::CredentialsMode::Master,
    };
    let mut proxy = proxy(credulous().await, Some(push_offer()), |config| {
        config.credentials = credentials;
        config.auth.relay = config::RelayedLogins::Always;
        config.limits.failure_delay = Duration::from_millis(1);
        change(config);
    })
    .await;
    // What the backend offers is known once somebody has logged in.
    session(&proxy, &["a LOGIN somebody secret".to_owned()]).await;
    while proxy.events.try_recv().is_ok() {}
    let before = proxy.store.accounts(Timestamp(0)).await.unwrap().len();
    let (login, registered) = session(&proxy, lines).await;
    assert!(login.starts_with("a OK"), "{login}");
    let (mut events, mut ended) = (0, 0);
    while let Ok(event) = proxy.events.try_recv() {
        match event {
            SessionEvent::Ended { account } if account.as_str() == "somebody" => {}
            SessionEvent::Ended { .. } => ended += 1,
            _ => events += 1,
        }
    }
    assert!(ended == 0 || events > 0, "of the end of a session alone: {login}");
    let stored = proxy.store.accounts(Timestamp(0)).await.unwrap().len() - before;
    assert_eq!(login.contains("XAPPLEPUSHSERVICE"), registered.starts_with("r OK"), "{login}");
    assert_eq!(registered.starts_with("r OK"), stored == 1, "{registered}");
    assert_eq!(events == 2, stored == 1, "{registered}");
    events
}

/// In each mode of `[credentials]` and by each mechanism that has room for a claim.
#[tokio::test]
async fn a_claimed_identity_makes_no_event_and_nothing_is_stored() {
    limited(async {
        let encode = |text: &str| BASE64_STANDARD.encode(text);
        let plain = |text: &str| vec![format!("a AUTHENTICATE PLAIN {}", encode(text))];
        let xoauth2 = |name: &str| {
            let text = format!("user={name}\x01auth=Bearer token\x01\x01");
            vec![format!("a AUTHENTICATE XOAUTH2 {}", encode(&text))]
        };
        let oauthbearer = |flag: &str, name: &str| {
            let text = format!("{flag},a={name},\x01auth=Bearer token\x01\x01");
            vec![format!("a AUTHENTICATE OAUTHBEARER {}", encode(&text))]
        };
        let scram = |header: &str, name: &str| {
            vec![
                format!(
                    "a AUTHENTICATE SCRAM-SHA-256 {}",
                    encode(&format!("{header}n={name},r=ab"))
                ),
                encode("c=biws,r=abXY,p=x"),
            ]
        };
        let cram = |name: &str| {
            let proof = format!("{name} b913a602c7eda7a495b4e6e7334d3890");
            vec!["a AUTHENTICATE CRAM-MD5".to_owned(), encode(&proof)]
        };
        let login =
            |name: &str| vec!["a AUTHENTICATE LOGIN".to_owned(), encode(name), encode("secret")];
        for mode in ["stored", "memory", "master"] {
            // SCRAM and CRAM hide the password: then a registration needs a master.
            let hidden = if mode == "master" { 2 } else { 1 };
            for (name, expected, lines) in [
                ("PLAIN as another", 0, plain("alice\0mallory\0secret")),
                ("PLAIN as one in another case", 0, plain("Mallory\0mallory\0secret")),
                ("PLAIN as one of another domain", 0, plain("m@a.example\0m@b.example\0secret")),
                ("PLAIN as oneself", 2, plain("mallory\0mallory\0secret")),
                (
                    "PLAIN as oneself, the domain in capitals",
                    2,
                    plain("m@A.EXAMPLE\0m@a.example\0x"),
                ),
                ("PLAIN as nobody else", 2, plain("\0mallory\0secret")),
                ("LOGIN", 2, login("mallory")),
                ("the LOGIN command", 2, vec!["a LOGIN mallory secret".to_owned()]),
                ("XOAUTH2", 0, xoauth2("alice")),
                ("OAUTHBEARER", 0, oauthbearer("n", "alice")),
                ("OAUTHBEARER with y", 0, oauthbearer("y", "alice")),
                ("SCRAM as another", 0, scram("n,a=alice,", "mallory")),
                ("SCRAM", hidden, scram("n,,", "mallory")),
                ("SCRAM as oneself", hidden, scram("y,a=mallory,", "mallory")),
                ("CRAM-MD5", hidden, cram("mallory")),
            ] {
                let events = events_of(mode, |_| {}, &lines).await;
                assert_eq!(events, expected, "{mode}: {name}");
            }
        }
    })
    .await;
}

/// All spellings of `name` by the case of its letters, all in lower case first.
fn spellings(name: &str) -> Vec<String> {
    let spelling = |number: u32| {
        let letters = name.chars().enumerate().map(|(place, letter)| {
            if number >> place & 1 == 1 { letter.to_ascii_uppercase() } else { letter }
        });
        letters.collect()
    };
    (0..1 << name.len()).map(spelling).collect()
}

/// The accounts with devices, and how many devices there are; each is of one account alone.
async fn accounts(world: &World) -> (Vec<String>, usize) {
    let rows = rows(world).await;
    let mut names: Vec<_> = rows.iter().map(|row| row.0.clone()).collect();
    let mut tokens: Vec<_> = rows.iter().map(|row| &row.2).collect();
    names.sort();
    names.dedup();
    tokens.sort();
    tokens.dedup();
    assert_eq!(tokens.len(), rows.len(), "no device is registered twice");
    (names, rows.len())
}

/// Waits until so many accounts are watched and all are in order, and no others are known.
async fn watched(world: &World, expected: usize) {
    loop {
        let said = world.command(&["watchers", "--json"]).await.json();
        let watchers = said["watchers"].as_array().unwrap();
        let well = |watcher: &&serde_json::Value| watcher["state"] == "watching";
        if watchers.len() == expected && watchers.iter().filter(well).count() == expected {
            return;
        }
    }
}

async fn registers_as(world: &World, server: &Server, login: &str, number: usize) {
    let registration = registration().replace(TOKEN, &format!("{:064x}", number + 1));
    let mut client = world.client(server).await;
    let both = format!("in LOGIN {login} \"{}\"\r\nr {registration}\r\n", ALICE.1);
    client.send(both.as_bytes()).await;
    client.until("r OK").await;
}

/// To this Dovecot `alice` and `ALICE` are one user. Where the configuration says so they are one account,
/// with the devices of one and one watcher.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_user_in_many_spellings_is_one_account_where_names_ignore_case() {
    let test =
        "attacks::identity::one_user_in_many_spellings_is_one_account_where_names_ignore_case";
    let Some(dovecot) = Dovecot::start(test, &Options::default()) else { return };
    limited(async {
        const DEVICES: usize = 8;
        const OFF: &str = "names_ignore_case = false\n";
        const ON: &str = "names_ignore_case = true\n";
        let spellings = spellings(ALICE.0);
        for ignores in [true, false] {
            let world = World::new().await;
            world.in_front_of(dovecot.plain);
            world.configure("[store]\n", &format!("{}[store]\n", if ignores { ON } else { OFF }));
            world.configure("[push]\n", &format!("[push]\ndevices = {DEVICES}\n"));
            let more = "[limits]\nregistrations_per_minute = 100\n[log]\n";
            world.configure("[log]\n", more);
            let server = world.serve_with_admin().await;
            for (number, spelling) in spellings.iter().enumerate() {
                registers_as(&world, &server, spelling, number).await;
            }
            let (names, devices) = accounts(&world).await;
            println!("{ignores}: {} spellings, {names:?}, {devices} devices", spellings.len());
            assert_eq!(devices, DEVICES);
            if ignores {
                assert_eq!(names, ["alice"]);
                watched(&world, 1).await;
            } else {
                // A server may tell them apart.
                assert_eq!(names.len(), DEVICES);
            }
            drop(server);
            if !ignores {
                world.configure(OFF, ON);
            }
            // What is kept opens the account after a restart, under whichever name it is.
            let server = world.serve().await;
            watched(&world, names.len()).await;
            // The devices of before come over to the one name, each as it registers.
            for (moved, name) in names.iter().filter(|name| *name != "alice").take(3).enumerate() {
                let number = spellings.iter().position(|spelling| spelling == name).unwrap();
                registers_as(&world, &server, name, number).await;
                let (now, devices) = accounts(&world).await;
                assert_eq!((now.len(), devices), (DEVICES - moved - 1, DEVICES), "{now:?}");
                assert!(now.contains(&"alice".to_owned()) && !now.contains(name));
            }
            // The commands find the account under any spelling, and those of before under their own.
            let said = world.command(&["push", "AlIcE"]).await;
            assert_eq!(said.code, 0, "{}{}", said.stdout, said.stderr);
            let said = world.command(&["devices", "remove", "AlIcE"]).await;
            assert_eq!(said.code, 0, "{}{}", said.stdout, said.stderr);
            assert!(!accounts(&world).await.0.contains(&"alice".to_owned()));
            let (left, _) = accounts(&world).await;
            for name in left {
                let said = world.command(&["devices", "remove", &name]).await;
                assert_eq!(said.code, 0, "{}{}", said.stdout, said.stderr);
            }
            assert_eq!(rows(&world).await.len(), 0);
        }
    })
    .await;
}
