//! A backend counts as reached when it has greeted, and each address of its name has its chance to.

use std::net::SocketAddr;
use std::time::Duration;

use mailchime::config::{BackendTls, TrustConfig};
use mailchime::demo::backend::DemoBackend;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::attacks::names::NameServer;
use crate::support::in_process::{InProcess, register};
use crate::support::line::Line;
use crate::support::{limited, listener, reached, soon};

/// What a server that is no good does with each connection.
#[derive(Clone, Copy)]
enum Manner {
    /// Nothing, for as long as it is open.
    Silent,
    /// Says this, and hangs up.
    Says(&'static str),
}

/// Sockets with one port on this many addresses of the loopback network.
async fn listeners(number: u8) -> Vec<TcpListener> {
    loop {
        let first = listener().await;
        let port = first.local_addr().unwrap().port();
        let mut all = vec![first];
        for at in 2..=number {
            match TcpListener::bind(SocketAddr::from(([127, 0, 0, at], port))).await {
                Ok(another) => all.push(another),
                // Somebody else has this port there.
                Err(_) => break,
            }
        }
        if all.len() == usize::from(number) {
            return all;
        }
    }
}

fn behave(listener: TcpListener, manner: Manner) {
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            match manner {
                Manner::Silent => open.push(stream),
                Manner::Says(words) => Line::of(stream).send(words).await,
            }
        }
    });
}

/// A name with these servers at its first addresses, and a good one at the last.
async fn name_of(manners: &[Manner]) -> (NameServer, SocketAddr, DemoBackend) {
    let mut sockets = listeners(u8::try_from(manners.len()).unwrap() + 1).await;
    let addresses: Vec<_> = sockets.iter().map(|it| it.local_addr().unwrap()).collect();
    let hosts: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
    let names = NameServer::start().await;
    names.addresses("imap.example", &hosts.iter().map(String::as_str).collect::<Vec<_>>(), 3600);
    let good = DemoBackend::start(sockets.pop().unwrap(), None).unwrap();
    good.add_account("alice", b"secret");
    for (socket, manner) in sockets.into_iter().zip(manners) {
        behave(socket, *manner);
    }
    (names, addresses[0], good)
}

#[tokio::test]
async fn each_address_of_a_backend_has_its_chance_to_greet() {
    limited(async {
        let manners = [
            Manner::Silent,
            Manner::Says("* BYE down for maintenance\r\n"),
            Manner::Says("220 mail.example ESMTP\r\n"),
            Manner::Says("* PREAUTH you are root\r\n"),
            Manner::Says("* OK half a greet"),
            Manner::Says(""),
        ];
        let (names, address, good) = name_of(&manners).await;
        let world = InProcess::pushing(address, |config| {
            config.backend.host = "imap.example".into();
            config.resolver.name_servers = vec![names.address];
            config.limits.connect_timeout = Duration::from_secs(20);
        })
        .await;
        let mut client = world.session("alice").await;
        assert!(client.command(&register()).await.starts_with("r OK"));
        // The watcher goes the same way.
        soon("a watcher in IDLE", good.wait_until(|counters| counters.idling == 1)).await;
        assert_eq!(world.mailchime.counters().connect_timeout.hits(), 0, "somebody has greeted");
    })
    .await;
}

/// Where none greets as it should, the user reads the words of one that said something.
#[tokio::test]
async fn words_of_one_address_count_more_than_the_silence_of_others() {
    limited(async {
        for manners in [
            [Manner::Says("* BYE [ALERT] back at noon\r\n"), Manner::Silent],
            [Manner::Silent, Manner::Says("* BYE [ALERT] back at noon\r\n")],
        ] {
            let (names, address, good) = name_of(&manners).await;
            drop(good);
            let world = InProcess::start(address, |config| {
                config.backend.host = "imap.example".into();
                config.resolver.name_servers = vec![names.address];
                config.limits.connect_timeout = Duration::from_secs(6);
            })
            .await;
            let answer = world.client().await.log_in("alice", "secret").await;
            assert_eq!(answer, "in NO [ALERT] The mail server says: back at noon");
        }
    })
    .await;
}

/// In the clear, under TLS and before STARTTLS alike, the greeting is a part of connecting.
#[tokio::test]
async fn a_backend_that_accepts_and_says_nothing_is_given_up_in_time() {
    limited(async {
        for security in ["none", "starttls", "implicit", "implicit, and shakes hands"] {
            let backend = listener().await;
            let address = backend.local_addr().unwrap();
            let world = InProcess::start(address, |config| {
                let ca = Some(config.tls.certificates[0].certificate.with_file_name("ca.pem"));
                let trust = TrustConfig { ca, server_name: "localhost".into() };
                config.backend.tls = match security {
                    "none" => BackendTls::None,
                    "starttls" => BackendTls::StartTls(trust),
                    _ => BackendTls::Implicit(trust),
                };
                config.limits.connect_timeout = Duration::from_millis(500);
            })
            .await;
            let acceptor = TlsAcceptor::from(world.pki.server_config().unwrap());
            tokio::spawn(async move {
                let (mut silent, mut secure) = (Vec::new(), Vec::new());
                while let Ok((stream, _)) = backend.accept().await {
                    match security {
                        "implicit, and shakes hands" => secure.push(acceptor.accept(stream).await),
                        _ => silent.push(stream),
                    }
                }
            });
            let mut client = world.client().await;
            let answer = client.log_in("alice", "secret").await;
            let expected = "in NO [UNAVAILABLE] The mail server cannot be reached, try again later";
            assert_eq!(answer, expected, "{security}");
            reached(&world.mailchime.counters().connect_timeout, 1).await;
            assert_eq!(client.command("n NOOP").await, "n OK NOOP completed", "{security}");
        }
    })
    .await;
}

/// Before STARTTLS and after it, blank lines and farewells mean the same as in the clear.
#[tokio::test]
async fn a_greeting_before_starttls_is_read_as_any_other() {
    limited(async {
        let backend = listener().await;
        let world = InProcess::start(backend.local_addr().unwrap(), |config| {
            let ca = Some(config.tls.certificates[0].certificate.with_file_name("ca.pem"));
            config.backend.tls =
                BackendTls::StartTls(TrustConfig { ca, server_name: "localhost".into() });
        })
        .await;
        let acceptor = TlsAcceptor::from(world.pki.server_config().unwrap());
        let playing = async {
            // The probe at the start may come behind the login.
            for greeting in ["* BYE [ALERT] no\r\n", "* BYE [ALERT] no\r\n"] {
                let (stream, _) = backend.accept().await.unwrap();
                Line::of(stream).send(greeting).await;
            }
            loop {
                let (stream, _) = backend.accept().await.unwrap();
                let mut line = Line::of(stream);
                line.send("\r\n\r\n* OK [CAPABILITY IMAP4rev1 STARTTLS] ready\r\n").await;
                assert_eq!(line.line().await, "m0 STARTTLS");
                line.send("m0 OK go\r\n").await;
                let mut line = Line::of(acceptor.accept(line.0.into_inner()).await.unwrap());
                assert_eq!(line.line().await, "m1 CAPABILITY");
                line.send("* CAPABILITY IMAP4rev1\r\nm1 OK\r\n").await;
                if line.try_line().await.is_some_and(|said| said.starts_with("m2 LOGIN ")) {
                    line.send("m2 OK in\r\n").await;
                    return line;
                }
            }
        };
        let trying = async {
            let answer = world.client().await.log_in("alice", "secret").await;
            assert_eq!(answer, "in NO [ALERT] The mail server says: no");
            while !world.client().await.log_in("alice", "secret").await.starts_with("in OK") {}
        };
        let (_line, ()) = soon("the login", async { tokio::join!(playing, trying) }).await;
    })
    .await;
}
