//! Login names that carry more than an address: where they mention a domain that has a route, no
//! server sees the password, for it may be another server's.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use mailchime::demo::backend::DemoBackend;

use crate::support::line::Client;
use crate::support::world::{LOGIN, PASSWORD, World};
use crate::support::{limited, listener};

const DELAY: Duration = Duration::from_millis(50);

/// Names that some server reads as one at routed.example, and some as one elsewhere.
const AMBIGUOUS: &[&str] = &[
    "user@routed.example\\shared",
    "user@ROUTED.example\\shared",
    "user@routed.example*master",
    "user@routed.example/x",
    "user@routed.example+tag",
    "user%routed.example",
    "user%routed.example@other.example",
    "user%40routed.example",
    "user_routed.example#EXT#@other.example",
    "routed.example\\user",
    "routed.example/user",
    "routed.example!user",
    "user@routed.example.",
    "user@.routed.example",
    "a@b@routed.example",
    "a@routed.example@b",
    "user@routed.example ",
    "user@ routed.example",
    "\"user@routed.example\"",
    "<user@routed.example>",
    "user@[routed.example]",
    "user@routed.example\\x@other.example",
    "user@second.example*master@routed.example",
    "user@\u{ff52}outed.example",
    "user\u{ff20}routed.example",
    "user@routed\u{3002}example",
    "user@rou\u{ad}ted.example",
    "user@routed.example\u{200b}",
];

/// A world with a backend of its own for two domains, and what passes there for a login.
async fn routed() -> (World, DemoBackend) {
    let world = World::new().await;
    let other = DemoBackend::start(listener().await, None).unwrap();
    other.add_account("user@routed.example", PASSWORD.as_bytes());
    let limits = format!(
        "[limits]\nfailure_delay = \"{}ms\"\nlogin_failures_per_minute = 10000\n",
        DELAY.as_millis()
    );
    let route = |domain| {
        format!(
            "[[route]]\ndomain = \"{domain}\"\naddress = \"{}\"\ntls = \"none\"\n",
            other.address()
        )
    };
    let all = [limits, route("routed.example"), route("second.example")].concat();
    world.configure("[log]", &format!("{all}[log]"));
    (world, other)
}

async fn log_in(client: &mut Client, name: &str) -> String {
    let command = format!("a LOGIN {{{}+}}\r\n{name} \"{PASSWORD}\"\r\n", name.len());
    client.send(command.as_bytes()).await;
    client.until("a ").await
}

async fn authenticate(client: &mut Client, mechanism: &str, message: &str) -> String {
    let message = BASE64_STANDARD.encode(message);
    client.send(format!("a AUTHENTICATE {mechanism} {message}\r\n").as_bytes()).await;
    client.until("a ").await
}

fn tries(backend: &DemoBackend) -> u64 {
    let counters = backend.counters();
    counters.refused.values().chain(counters.logins.values()).sum()
}

#[tokio::test]
async fn a_name_that_may_be_at_two_servers_brings_its_password_to_none() {
    limited(async {
        let (world, other) = routed().await;
        for name in AMBIGUOUS {
            world.backend.add_account(name, PASSWORD.as_bytes());
        }
        let mut server = world.serve().await;
        let mut refused = 0;
        for name in AMBIGUOUS {
            let mut client = world.client(&server).await;
            let bearer = format!("user={name}\x01auth=Bearer token\x01\x01");
            for way in ["LOGIN", "PLAIN", "authorization", "XOAUTH2"] {
                let since = Instant::now();
                let answer = match way {
                    "LOGIN" => log_in(&mut client, name).await,
                    "PLAIN" => {
                        authenticate(&mut client, way, &format!("\0{name}\0{PASSWORD}")).await
                    }
                    "authorization" => {
                        let message = format!("{name}\0boss\0{PASSWORD}");
                        authenticate(&mut client, "PLAIN", &message).await
                    }
                    _ => authenticate(&mut client, way, &bearer).await,
                };
                let took = since.elapsed();
                let expected = "a NO [AUTHENTICATIONFAILED] Authentication failed";
                assert_eq!(answer, expected, "{name} by {way}");
                assert!(took >= DELAY, "{name}: the refusal took {took:?}");
                let line = server.logged("login refused").await;
                assert_eq!(line["peer"], "127.0.0.1");
                refused += 1;
            }
        }
        assert_eq!(refused, 4 * AMBIGUOUS.len());
        assert_eq!((tries(&world.backend), tries(&other)), (0, 0), "no server saw a password");
        // A plain address is served where it is.
        let mut client = world.client(&server).await;
        assert!(log_in(&mut client, "user@routed.example").await.starts_with("a OK"));
        assert_eq!((tries(&world.backend), tries(&other)), (0, 1));
    })
    .await;
}

#[tokio::test]
async fn the_password_of_one_server_is_not_brought_to_another_by_an_authorization_identity() {
    limited(async {
        let (world, other) = routed().await;
        let server = world.serve().await;
        let mut client = world.client(&server).await;
        for (authorization, login) in [
            (LOGIN, "user@routed.example"),
            ("user@other.example", "user@routed.example"),
            (LOGIN, "user@routed.example\\shared"),
        ] {
            let message = format!("{authorization}\0{login}\0{PASSWORD}");
            let answer = authenticate(&mut client, "PLAIN", &message).await;
            assert!(answer.starts_with("a NO [AUTHENTICATIONFAILED]"), "{login}: {answer}");
        }
        assert_eq!((tries(&world.backend), tries(&other)), (0, 0));
    })
    .await;
}

#[tokio::test]
async fn ambiguous_names_count_as_wrong_passwords_do() {
    limited(async {
        let (world, _other) = routed().await;
        world.configure("login_failures_per_minute = 10000", "login_failures_per_minute = 3");
        let server = world.serve().await;
        let mut client = world.client(&server).await;
        for _ in 0..3 {
            let answer = log_in(&mut client, "user%routed.example").await;
            assert!(answer.starts_with("a NO [AUTHENTICATIONFAILED]"), "{answer}");
        }
        let answer = log_in(&mut client, LOGIN).await;
        assert!(answer.starts_with("a NO [LIMIT]"), "{answer}");
    })
    .await;
}

/// A client that connected before the route was there is not sent to where the account was.
#[tokio::test]
async fn a_route_that_comes_while_a_client_is_connected_counts() {
    limited(async {
        let (world, other) = routed().await;
        let name = "user@routed.example\\shared";
        world.backend.add_account(name, PASSWORD.as_bytes());
        world.configure("\"routed.example\"", "\"later.example\"");
        let mut server = world.serve().await;
        let mut client = world.client(&server).await;
        world.configure("\"later.example\"", "\"routed.example\"");
        server.process.signal("HUP");
        server.logged("configuration reloaded").await;
        let answer = log_in(&mut client, name).await;
        assert!(answer.starts_with("a NO [AUTHENTICATIONFAILED]"), "{answer}");
        assert_eq!(server.logged("login refused").await["account"], name);
        assert_eq!((tries(&world.backend), tries(&other)), (0, 0));
    })
    .await;
}

/// Exchange and Dovecot know such names, and a server alone reads them as it likes.
#[tokio::test]
async fn names_that_mention_no_routed_domain_are_the_servers_matter() {
    let names = [
        "user@domain.example\\shared",
        "user*master",
        "CORP\\user",
        "user%domain.example",
        "a@b@c",
    ];
    limited(async {
        for routes in [false, true] {
            let (world, other) = match routes {
                true => {
                    let (world, other) = routed().await;
                    (world, Some(other))
                }
                false => (World::new().await, None),
            };
            let more = if routes { &[][..] } else { AMBIGUOUS };
            let server = {
                for name in names.iter().chain(more) {
                    world.backend.add_account(name, PASSWORD.as_bytes());
                }
                world.serve().await
            };
            for name in names.iter().chain(more) {
                let answer = log_in(&mut world.client(&server).await, name).await;
                assert!(answer.starts_with("a OK"), "{name}: {answer}");
                assert!(answer.contains("XAPPLEPUSHSERVICE"), "{name}: {answer}");
            }
            assert!(other.is_none_or(|other| tries(&other) == 0));
        }
    })
    .await;
}

#[tokio::test]
async fn check_says_that_such_a_name_is_not_certain() {
    limited(async {
        let (world, other) = routed().await;
        let check = ["check", "--login", "user@routed.example\\shared"];
        let said = world.command_with(&check, &[("MAILCHIME_PASSWORD", PASSWORD)]).await;
        assert_eq!(said.code, 1, "{}", said.stdout);
        let line = said.line("FAILED   login user@routed.example");
        assert!(line.contains("give the user as user@domain"), "{line}");
        assert_eq!((tries(&world.backend), tries(&other)), (0, 0));
    })
    .await;
}
