//! Which backend a session gets, how it is protected, and how many connections an account may have.

use std::net::SocketAddr;

use mailchime::config::{BackendTls, RouteConfig, TrustConfig};
use mailchime::demo::backend::DemoBackend;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::support::in_process::{InProcess, demo_backend, logins, plain, register};
use crate::support::line::Line;
use crate::support::{limited, listener, soon, until};

pub(super) fn route(domain: &str, backend: &DemoBackend) -> RouteConfig {
    RouteConfig { domain: domain.into(), backend: plain(backend.address()) }
}

#[tokio::test]
async fn an_account_is_logged_in_at_the_backend_of_its_domain() {
    limited(async {
        let users = ["bob", "bob@b.example", "bob@B.example", "bob@c.example", "bob@d.example"];
        let default = demo_backend(&users).await;
        let (b, c) = (demo_backend(&users).await, demo_backend(&users).await);
        let world = InProcess::start(default.address(), |config| {
            config.routes = vec![route("b.example", &b), route("c.example", &c)];
        })
        .await;
        for user in users {
            world.session(user).await;
        }
        let served = |backend: &DemoBackend| {
            backend.counters().logins.into_keys().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(served(&default), "bob bob@d.example");
        assert_eq!(served(&b), "bob@B.example bob@b.example");
        assert_eq!(served(&c), "bob@c.example");
    })
    .await;
}

#[tokio::test]
async fn starttls_to_a_backend_protects_the_password_or_there_is_no_login() {
    limited(async {
        let backend = listener().await;
        let world = InProcess::start(backend.local_addr().unwrap(), |config| {
            let folder = config.tls.certificates[0].certificate.parent().unwrap();
            let ca = Some(folder.join("ca.pem"));
            config.backend.tls = BackendTls::StartTls(TrustConfig { ca, server_name: "localhost".into() });
        })
        .await;
        let acceptor = TlsAcceptor::from(world.pki.server_config().unwrap());
        for (answer, secure) in [("OK go", true), ("NO not here", false)] {
            let mut client = world.client().await;
            client.send("in LOGIN alice secret\r\n").await;
            let played = async {
                loop {
                    let (stream, _) = backend.accept().await.unwrap();
                    let mut line = Line::of(stream);
                    line.send("* OK [CAPABILITY IMAP4rev1 STARTTLS] ready\r\n").await;
                    assert_eq!(line.line().await, "m0 STARTTLS");
                    line.send(&format!("m0 {answer}\r\n")).await;
                    if !secure {
                        assert_eq!(line.rest().await, "", "nothing more is said in the clear");
                        continue;
                    }
                    let mut line = Line::of(acceptor.accept(line.0.into_inner()).await.unwrap());
                    while let Some(command) = line.try_line().await {
                        let (tag, rest) = command.split_once(' ').unwrap();
                        let list = "* CAPABILITY IMAP4rev1\r\n";
                        line.send(&format!("{list}{tag} OK done\r\n")).await;
                        if rest.starts_with("LOGIN alice secret") {
                            return line;
                        }
                    }
                }
            };
            let answered = async {
                loop {
                    let line = client.line().await;
                    if line.starts_with("in ") {
                        return line;
                    }
                }
            };
            tokio::select! {
                line = answered, if !secure => assert!(line.starts_with("in NO [UNAVAILABLE]"), "{line}"),
                _ = soon("the login", played) => assert!(secure),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn the_connections_of_an_account_are_limited_its_watcher_included() {
    limited(async {
        let backend = demo_backend(&["alice", "bob"]).await;
        let world = InProcess::pushing(backend.address(), |config| {
            config.limits.connections_per_account = 1;
        })
        .await;
        let mut alice = world.session("alice").await;
        let mut second = world.client().await;
        let refusal = second.log_in("alice", "secret").await;
        assert_eq!(refusal, "in NO [LIMIT] Too many connections of this account");
        world.session("bob").await;

        // The watcher of a device that registers in the only session has to wait for its end.
        assert!(alice.command(&register()).await.starts_with("r OK"));
        let counters = world.mailchime.counters();
        until(async || counters.connections_per_account.hits() >= 3).await;
        // The session's, and that of the client that was turned away: none of the watcher's.
        assert_eq!(logins(&backend, "alice"), 2);
        drop(alice);
        soon("a watcher in IDLE", backend.wait_until(|counters| counters.idling == 1)).await;
        // Now the watcher has the only place.
        let refusal = second.log_in("alice", "secret").await;
        assert_eq!(refusal, "in NO [LIMIT] Too many connections of this account");
        world.mailchime.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_login_that_fails_takes_no_place() {
    limited(async {
        let backend = demo_backend(&["alice"]).await;
        let world = InProcess::start(backend.address(), |config| {
            config.limits.connections_per_account = 1;
        })
        .await;
        let mut client = world.client().await;
        for _ in 0..3 {
            let refusal = client.command("x LOGIN alice wrong").await;
            assert!(refusal.starts_with("x NO") && !refusal.contains("LIMIT"), "{refusal}");
        }
        assert!(client.log_in("alice", "secret").await.starts_with("in OK"));
    })
    .await;
}

/// Bytes behind the backend's answer came without protection, so anybody can have sent them. What was
/// listed before TLS counts for nothing after it (CVE-2011-0411 and its kin, RFC 9051 section 6.2.1).
#[tokio::test]
async fn starttls_injection_by_a_backend() {
    limited(async {
        let backend = listener().await;
        let world = InProcess::start(backend.local_addr().unwrap(), |config| {
            let folder = config.tls.certificates[0].certificate.parent().unwrap();
            let ca = Some(folder.join("ca.pem"));
            config.backend.tls =
                BackendTls::StartTls(TrustConfig { ca, server_name: "localhost".into() });
        })
        .await;
        let acceptor = TlsAcceptor::from(world.pki.server_config().unwrap());
        // What a connection does beyond STARTTLS: a login, or asking what the backend offers.
        let greeted = async || {
            let (stream, _) = backend.accept().await.unwrap();
            let mut line = Line::of(stream);
            // One that had to wait for this too long has gone.
            line.try_send("* OK [CAPABILITY IMAP4rev1 STARTTLS XEVIL] ready\r\n").await;
            let said = line.try_line().await?;
            assert_eq!(said, "m0 STARTTLS");
            Some(line)
        };
        let playing = async {
            let injected = [
                "m0 OK go\r\n* CAPABILITY IMAP4rev1 XEVIL\r\n",
                "m0 OK go\r\nm1 OK\r\nm2 OK in\r\n",
                "m0 OK go\r\n\x16",
                "* BYE\r\nm0 OK go\r\n",
                "* X {10}\r\nm0 OK go\r\n\r\n",
            ];
            // Twice each: for one of both kinds.
            for answer in injected.into_iter().flat_map(|answer| [answer; 2]) {
                let mut line = loop {
                    if let Some(line) = greeted().await {
                        break line;
                    }
                };
                line.send(answer).await;
                assert_eq!(line.rest().await, "", "{answer:?}");
            }
            loop {
                let Some(mut line) = greeted().await else { continue };
                line.send("m0 OK go\r\n").await;
                let Ok(stream) = acceptor.accept(line.0.into_inner()).await else { continue };
                let mut line = Line::of(stream);
                if line.try_line().await.is_none_or(|said| said != "m1 CAPABILITY") {
                    continue;
                }
                line.send("* CAPABILITY IMAP4rev1 XGOOD\r\nm1 OK\r\n").await;
                if line.try_line().await.is_some_and(|said| said.starts_with("m2 LOGIN ")) {
                    line.send("m2 OK in\r\n").await;
                    return line;
                }
            }
        };
        let trying = async {
            loop {
                let answer = world.client().await.log_in("alice", "secret").await;
                if answer == "in OK in" {
                    return;
                }
                assert!(answer.starts_with("in NO [UNAVAILABLE]"), "{answer}");
            }
        };
        let (_line, ()) = tokio::join!(playing, trying);
        let mut client = world.client().await;
        client.send("b CAPABILITY\r\n").await;
        let list = client.line().await;
        assert!(list.contains(" XGOOD") && !list.contains("XEVIL"), "{list}");
    })
    .await;
}

/// A backend that offers this before login, and says OK to all.
async fn offering(list: &'static str) -> SocketAddr {
    let backend = listener().await;
    let address = backend.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = backend.accept().await {
            tokio::spawn(async move {
                let mut line = Line::of(stream);
                line.send(&format!("* OK [CAPABILITY IMAP4rev1 {list}] ready\r\n")).await;
                while let Some(command) = line.try_line().await {
                    let (tag, _) = command.split_once(' ').unwrap();
                    line.send(&format!("{tag} OK done\r\n")).await;
                }
            });
        }
    });
    address
}

/// Nobody knows whose session it will be.
#[tokio::test]
async fn a_client_is_shown_each_way_in_which_some_backend_takes_logins() {
    limited(async {
        let (tokens, passwords) = ("LOGINDISABLED AUTH=XOAUTH2", "AUTH=PLAIN");
        for (default, route, shown) in [
            (passwords, passwords, " AUTH=PLAIN AUTH=LOGIN]"),
            (tokens, tokens, " LOGINDISABLED AUTH=XOAUTH2 AUTH=OAUTHBEARER]"),
            (passwords, tokens, " AUTH=PLAIN AUTH=LOGIN AUTH=XOAUTH2 AUTH=OAUTHBEARER]"),
            (tokens, passwords, " AUTH=PLAIN AUTH=LOGIN AUTH=XOAUTH2 AUTH=OAUTHBEARER]"),
        ] {
            let (default, backend) = (offering(default).await, offering(route).await);
            let route = RouteConfig { domain: "b.example".into(), backend: plain(backend) };
            let world = InProcess::start(default, |config| config.routes = vec![route]).await;
            let asked = async {
                loop {
                    let stream = TcpStream::connect(world.address()).await.unwrap();
                    let mut client = Line::of(world.secured(stream).await.unwrap());
                    let greeting = client.line().await;
                    if greeting.contains(shown) {
                        return;
                    }
                }
            };
            soon("both backends to be asked what they offer", asked).await;
        }
    })
    .await;
}
