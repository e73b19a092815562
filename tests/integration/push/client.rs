//! One push and its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::Response;
use mailchime::config;
use mailchime::demo::apns::Answer;
use mailchime::model::{ChangeKind, Mailbox, Snapshot, Subscription, Timestamp};
use mailchime::net::resolve::NameResolver;
use mailchime::push::transport::apns::identities::route;
use mailchime::push::transport::{MailboxChange, Notice, Route, Verdict};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::pushing::{Certificates, StandIn, account_id, route_of, token};
use crate::support::{limited, listener, stop_clock};

/// When each push expires.
const EXPIRATION: Timestamp = Timestamp(1_900_000_000_000);

pub(super) async fn push(apns: &Route, device: &Subscription) -> Verdict {
    let (id, at) = (Uuid::new_v4().to_string(), Timestamp::now());
    let (kind, state) = (ChangeKind::NewMail, Snapshot::default());
    let inbox = [MailboxChange { mailbox: Mailbox::inbox(), kind, state, unread_before: None }];
    let ttl = Duration::from_millis((EXPIRATION.0 - at.0).unsigned_abs());
    apns.send(device, &Notice { id: &id, mailboxes: &inbox, preview: None, at, ttl }).await
}

pub(super) fn is_accepted(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Accepted { .. })
}

pub(super) fn why(verdict: Verdict) -> String {
    match verdict {
        Verdict::Unavailable { why, .. } | Verdict::RouteClosed { why, .. } => why,
        verdict => panic!("not unavailable: {verdict:?}"),
    }
}

#[tokio::test]
async fn each_answer_has_its_outcome() {
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let apns = certificates.route(stand_in.address());
        let device = certificates.device("ab");
        let after = |seconds| Some(Duration::from_secs(seconds));
        let unavailable =
            |why: &str, retry_after| Verdict::Unavailable { why: why.into(), retry_after };
        let refused = |status: u16, reason: &str| {
            let why = format!("{status} {reason}");
            Verdict::Misconfigured { why }
        };
        let gone = Verdict::Gone { since: Some(Timestamp(1_700_000_000_123)) };
        for (answer, expected) in [
            (Answer::gone(1_700_000_000_123), gone),
            (Answer::refuse(410, "Unregistered"), Verdict::Gone { since: None }),
            (Answer::refuse(400, "BadDeviceToken"), Verdict::BadEndpoint),
            (Answer::refuse(400, "DeviceTokenNotForTopic"), Verdict::OtherRoute),
            (Answer::refuse(400, "TopicDisallowed"), refused(400, "TopicDisallowed")),
            (Answer::refuse(400, "NeverHeardOfThis"), refused(400, "NeverHeardOfThis")),
            (Answer::refuse(403, "BadCertificate"), refused(403, "BadCertificate")),
            (
                Answer::retry_after(429, "TooManyRequests", 7),
                Verdict::TooMany { retry_after: after(7) },
            ),
            (
                Answer::retry_after(503, "ServiceUnavailable", 9),
                unavailable("APNs answered 503 ServiceUnavailable", after(9)),
            ),
            (
                Answer::refuse(500, "InternalServerError"),
                unavailable("APNs answered 500 InternalServerError", None),
            ),
        ] {
            stand_in.answer_next(1, answer);
            assert_eq!(push(&apns, &device).await, expected);
        }
        assert_eq!(stand_in.connections(), 1, "answers are no reason to dial again");
    })
    .await;
}

#[tokio::test]
async fn a_push_has_the_headers_that_large_senders_use() {
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let apns = certificates.route(stand_in.address());
        let device = certificates.device("AB");
        let Verdict::Accepted { id: Some(apns_id) } = push(&apns, &device).await else {
            panic!("not accepted");
        };
        let seen = stand_in.next().await;
        assert_eq!(seen.token.as_ref(), Some(&token(&device)));
        assert_eq!(seen.token.unwrap().as_given(), device.endpoint.as_given());
        let headers: Vec<_> =
            seen.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(
            headers,
            [
                ("apns-expiration", "1900000000"),
                ("apns-id", &apns_id),
                ("apns-push-type", "background"),
                ("apns-topic", &certificates.pki.topic),
                ("content-type", "application/json"),
            ]
        );
        assert_eq!(
            seen.body,
            format!(r#"{{"aps":{{"account-id":"{}"}}}}"#, account_id(&device)).as_bytes()
        );

        let config = certificates.config(stand_in.address());
        let style = config::PushConfig { priority: Some(5), ..config::PushConfig::default() };
        let style = (&style).into();
        let apns =
            route(&certificates.identity(), &config, style, &NameResolver::default()).unwrap();
        assert!(is_accepted(&push(&apns, &device).await));
        assert_eq!(stand_in.next().await.header("apns-priority"), Some("5"));
    })
    .await;
}

#[tokio::test]
async fn after_a_goaway_requests_under_way_end_and_the_next_push_has_a_new_connection() {
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let apns = certificates.route(stand_in.address());
        let device = certificates.device("ab");
        for connection in 1..4 {
            // Until the GOAWAY has come the old connection is good, and what it takes it answers.
            while {
                assert!(is_accepted(&push(&apns, &device).await));
                stand_in.pushes().last().unwrap().connection < connection
            } {}
            stand_in.go_away();
        }
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_breaks_costs_one_more_attempt_and_not_the_push() {
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let apns = certificates.route(stand_in.address());
        let device = certificates.device("ab");
        assert!(is_accepted(&push(&apns, &device).await));
        stand_in.drop_connections();
        assert!(is_accepted(&push(&apns, &device).await), "closed while idle");
        stand_in.answer_next(1, Answer::Disconnect);
        assert!(is_accepted(&push(&apns, &device).await), "closed while under way");
        assert_eq!(stand_in.connections(), 3);
        stand_in.answer_next(2, Answer::Disconnect);
        why(push(&apns, &device).await);
        assert_eq!(stand_in.connections(), 4, "tried again once, not for ever");
    })
    .await;
}

#[tokio::test]
async fn a_request_has_a_deadline_and_the_next_one_does_not_wait_behind_it() {
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let mut config = certificates.config(stand_in.address());
        config.request_timeout = Duration::from_secs(3);
        let apns = route_of(&certificates.identity(), &config);
        let device = certificates.device("ab");
        assert!(is_accepted(&push(&apns, &device).await));
        stand_in.answer_next(1, Answer::Hang);
        assert_eq!(why(push(&apns, &device).await), "no answer within 3s");
        assert!(is_accepted(&push(&apns, &device).await));
        assert_eq!(stand_in.pushes().last().unwrap().connection, 2);
    })
    .await;
}

#[tokio::test]
async fn a_ping_finds_an_idle_connection_that_is_dead() {
    // The limit is by the clock that is stopped below.
    let test = async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        // A box on the way that forgets the connection: nothing passes, nobody hears of it.
        let middle = listener().await;
        let apns = certificates.route(middle.local_addr().unwrap());
        let (forget, closed) = (CancellationToken::new(), Arc::new(Notify::new()));
        let relay = {
            let (forget, closed, to) = (forget.clone(), closed.clone(), stand_in.address());
            async move {
                let (mut near, _) = middle.accept().await.unwrap();
                let mut far = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    () = forget.cancelled() => {}
                }
                copy(&mut near, &mut tokio::io::sink()).await.unwrap();
                closed.notify_one();
                let (mut near, _) = middle.accept().await.unwrap();
                let mut far = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        };
        tokio::spawn(relay);
        let device = certificates.device("ab");
        assert!(is_accepted(&push(&apns, &device).await));

        forget.cancel();
        tokio::time::pause();
        let start = tokio::time::Instant::now();
        closed.notified().await;
        let seconds = start.elapsed().as_secs();
        assert!((60..=90).contains(&seconds), "{seconds}");
        tokio::time::resume();
        assert!(is_accepted(&push(&apns, &device).await));
    };
    tokio::time::timeout(Duration::from_secs(3600), test).await.expect("the test takes too long");
}

/// A server that takes TCP connections, counts them and does `what` with each.
fn count<F, Fut>(listener: TcpListener, what: F) -> Arc<AtomicUsize>
where
    F: Fn(TcpStream, usize) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let number = counted.fetch_add(1, Ordering::Relaxed) + 1;
            tokio::spawn(what(stream, number));
        }
    });
    count
}

#[tokio::test]
async fn many_pushes_dial_once_and_after_a_failure_none_dials_for_a_while() {
    limited(async {
        let certificates = Certificates::new();
        let stand_in = certificates.stand_in().await;
        let many = |apns: Route, count: usize| {
            let mut pushes = JoinSet::new();
            for n in 0..count {
                let (apns, device) = (apns.clone(), certificates.device(&format!("{n:x}f")));
                pushes.spawn(async move { push(&apns, &device).await });
            }
            pushes.join_all()
        };
        // More at once than the stand-in takes on one connection.
        let outcomes = many(certificates.route(stand_in.address()), 1200).await;
        let refused: Vec<_> = outcomes.iter().filter(|outcome| !is_accepted(outcome)).collect();
        assert!(refused.is_empty(), "{} {:?}", refused.len(), refused[0]);
        assert_eq!(stand_in.connections(), 1);

        let hangs_up = listener().await;
        let apns = certificates.route(hangs_up.local_addr().unwrap());
        let dialled = count(hangs_up, |stream, _| async move { drop(stream) });
        // The while is half a second, which may go by between two of these pushes.
        let _clock = stop_clock();
        let outcomes = many(apns.clone(), 50).await;
        assert!(outcomes.iter().all(|outcome| matches!(
            outcome,
            Verdict::RouteClosed { why, retry_after: Some(_) } if why.contains("TLS")
        )));
        why(push(&apns, &certificates.device("ab")).await);
        assert_eq!(dialled.load(Ordering::Relaxed), 1);
    })
    .await;
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    limited(async {
        let certificates = Certificates::new();
        let silent = listener().await;
        let mut config = certificates.config(silent.local_addr().unwrap());
        config.connect_timeout = Duration::from_secs(1);
        let apns = route_of(&certificates.identity(), &config);
        let said = why(push(&apns, &certificates.device("ab")).await);
        assert_eq!(said, "no connection: TLS: no answer in time");
    })
    .await;
}

#[tokio::test]
async fn an_apns_server_that_is_not_trusted_is_named_and_gets_nothing() {
    limited(async {
        let (ours, theirs) = (Certificates::new(), Certificates::new());
        let stand_in = theirs.stand_in().await;
        let said = why(push(&ours.route(stand_in.address()), &ours.device("ab")).await);
        assert!(said.contains("TLS: invalid peer certificate"), "{said}");

        // Our own CA, but the certificate is for another address.
        let elsewhere = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let elsewhere = StandIn::start(elsewhere, &ours.pki).unwrap();
        let said = why(push(&ours.route(elsewhere.address()), &ours.device("ab")).await);
        assert!(said.contains("not valid for"), "{said}");

        // The server does not believe us. TLS 1.3 says so after the handshake, when a request may
        // be under way and break, so what is said varies.
        let apns = route_of(&ours.identity(), &theirs.config(stand_in.address()));
        why(push(&apns, &ours.device("ab")).await);
        assert_eq!(stand_in.received(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_refused_stream_is_sent_again_on_the_same_connection() {
    limited(async {
        let certificates = Certificates::new();
        let listener = listener().await;
        let apns = certificates.route(listener.local_addr().unwrap());
        let tls = TlsAcceptor::from(certificates.pki.server_config().unwrap());
        let dialled = count(listener, move |stream, _| {
            let tls = tls.clone();
            async move {
                let stream = tls.accept(stream).await.unwrap();
                let mut connection = h2::server::handshake(stream).await.unwrap();
                let mut requests = 0;
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    requests += 1;
                    match requests {
                        1 => respond.send_reset(h2::Reason::REFUSED_STREAM),
                        _ => drop(respond.send_response(Response::new(()), true)),
                    }
                }
            }
        });
        assert!(is_accepted(&push(&apns, &certificates.device("ab")).await));
        assert_eq!(dialled.load(Ordering::Relaxed), 1);
    })
    .await;
}

/// A frame of HTTP/2 (RFC 9113 section 4.1) on stream 0.
fn frame(kind: u8, payload: &[u8]) -> Bytes {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [length[1], length[2], length[3], kind, 0, 0, 0, 0, 0];
    [&head[..], payload].concat().into()
}

#[tokio::test]
async fn the_reason_of_a_goaway_is_reported_and_unprocessed_requests_are_sent_again() {
    limited(async {
        let certificates = Certificates::new();
        let listener = listener().await;
        let apns = certificates.route(listener.local_addr().unwrap());
        let tls = TlsAcceptor::from(certificates.pki.server_config().unwrap());
        let dialled = count(listener, move |stream, _| {
            let tls = tls.clone();
            async move {
                let mut stream = tls.accept(stream).await.unwrap();
                stream.write_all(&frame(4, &[])).await.unwrap();
                // The client's preface and its settings, then its request.
                let mut read = Vec::new();
                while !read
                    .windows(4)
                    .any(|bytes| bytes == b"\x00\x01\x04\x00" || bytes[..2] == [1, 4])
                {
                    assert!(stream.read_buf(&mut read).await.unwrap() > 0);
                }
                // Last stream 0, NO_ERROR: as APNs does with a certificate that it dislikes.
                let reason = br#"{"reason":"BadCertificateEnvironment"}"#;
                let goaway = frame(7, &[&[0; 8], &reason[..]].concat());
                stream.write_all(&goaway).await.unwrap();
                let _ = copy(&mut stream, &mut tokio::io::sink()).await;
            }
        });
        // The while in which nobody dials is a second.
        let _clock = stop_clock();
        let said = why(push(&apns, &certificates.device("ab")).await);
        assert!(said.contains("BadCertificateEnvironment"), "{said}");
        assert_eq!(dialled.load(Ordering::Relaxed), 2, "sent again once");
        // Two connections that answered nothing: nobody dials for a while.
        let said = why(push(&apns, &certificates.device("ab")).await);
        assert!(said.starts_with("no connection: ") && said.contains("BadCert"), "{said}");
        assert_eq!(dialled.load(Ordering::Relaxed), 2);
    })
    .await;
}
