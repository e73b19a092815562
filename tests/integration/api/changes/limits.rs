//! How many streams there may be, and for how long nothing is read or said.

use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::{ALICE, ApiWorld, BOB, basic};
use super::narrow;
use crate::support::{limited, reached, soon};

const MAIL: &str = "Subject: x\r\n\r\nx\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn one_stream_too_many_is_refused() {
    limited(async {
        let api = ApiWorld::with(|config| {
            (config.api.streams, config.api.streams_per_account) = (3, 2);
        })
        .await;
        let (alice, bob) = (basic(ALICE, "secret"), basic(BOB, "secret"));
        let (first, _) = api.opened(&format!("\n{alice}")).await;
        let _second = api.opened(&format!("\n{alice}")).await;
        let reply = api.ask(&format!("GET /v1/changes\n{alice}")).await;
        assert_eq!(reply.error(), (429, "too_many".to_owned()));
        let _third = api.opened(&format!("\n{bob}")).await;
        let reply = api.ask(&format!("GET /v1/changes\n{bob}")).await;
        assert_eq!(reply.error(), (503, "unavailable".to_owned()));
        let counters = &api.world.mailchime.counters().api;
        reached(&counters.streams_per_account, 1).await;
        reached(&counters.streams, 1).await;
        // A place is free when its client has gone.
        drop(first);
        soon("a place", async {
            while api.stream(&format!("\n{alice}")).await.head.starts_with("HTTP/1.1 429") {
                tokio::task::yield_now().await;
            }
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_asked_for_is_refused() {
    limited(async {
        let api = ApiWorld::start().await;
        let who = basic(ALICE, "secret");
        let many: String = (0..65).map(|number| format!("&mailbox=m{number}")).collect();
        for query in ["?mailbox=", "?mailbox=a%00b", "?mailbox=Nowhere", &format!("?{many}")] {
            let reply = api.ask(&format!("GET /v1/changes{query}\n{who}")).await;
            assert_eq!(reply.error(), (422, "invalid".to_owned()), "{query}");
            assert_eq!(reply.json()["field"], "mailbox");
        }
        assert_eq!(api.ask("GET /v1/changes").await.error().0, 401);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_on_which_nothing_happens_shows_that_it_lives() {
    limited(async {
        let api = ApiWorld::with(|config| {
            config.api.stream_keepalive = Duration::from_secs(1);
        })
        .await;
        let (mut stream, _) = api.opened(&format!("\n{}", basic(ALICE, "secret"))).await;
        for _ in 0..2 {
            let block = stream.block().await.expect("a sign of life");
            assert_eq!(block.comment.as_deref(), Some("keep-alive"));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_go_over_http_2_and_one_that_is_not_read_is_cut_off() {
    limited(async {
        let api =
            ApiWorld::with(|config| config.limits.write_timeout = Duration::from_secs(2)).await;
        let stream = api.connect(&["h2"]).await;
        // It takes little more than the first event, and then nothing.
        let (mut sender, connection) =
            hyper::client::conn::http2::Builder::new(TokioExecutor::new())
                .initial_stream_window_size(700)
                .handshake(TokioIo::new(stream))
                .await
                .unwrap();
        let serving = tokio::spawn(connection);
        let who = basic(ALICE, "secret");
        let (name, value) = who.split_once(": ").unwrap();
        let request = Request::get("https://localhost/v1/changes").header(name, value);
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let mut answer = soon("an answer", sender.send_request(request)).await.unwrap();
        assert_eq!(answer.status(), 200);
        let first = soon("an event", answer.frame()).await.unwrap().unwrap();
        let first = String::from_utf8(first.into_data().unwrap().to_vec()).unwrap();
        assert!(first.contains("event: stream.opened"), "{first}");
        // Mail after mail, until more waits than the client takes.
        let counters = &api.world.mailchime.counters().api;
        let ended = soon("the end", async {
            let mut serving = serving;
            loop {
                api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
                let pause = Duration::from_millis(50);
                if let Ok(ended) = tokio::time::timeout(pause, &mut serving).await {
                    return ended;
                }
            }
        });
        let _ = ended.await;
        reached(&counters.write_timeout, 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_over_http_1_that_is_not_read_is_cut_off() {
    limited(async {
        let api = ApiWorld::with(|config| {
            config.limits.write_timeout = Duration::from_secs(2);
            config.api.streams_per_account = 1;
        })
        .await;
        let mut slow = api.secured(narrow(api.address()).await, &["http/1.1"]).await;
        let who = basic(ALICE, "secret");
        let request = format!("GET /v1/changes HTTP/1.1\r\nHost: localhost\r\n{who}\r\n\r\n");
        slow.write_all(request.as_bytes()).await.unwrap();
        let mut read = Vec::new();
        while !String::from_utf8_lossy(&read).contains("event: stream.opened") {
            assert!(soon("an event", slow.read_buf(&mut read)).await.unwrap() > 0, "it ends");
        }
        // Mail after mail, until more waits than is under way.
        let counters = &api.world.mailchime.counters().api;
        let mut pace = tokio::time::interval(Duration::from_millis(10));
        soon("a client that is cut off", async {
            while counters.write_timeout.hits() == 0 {
                api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
                pace.tick().await;
            }
        })
        .await;
        reached(&counters.write_timeout, 1).await;
        // It gets no end of the answer, and another stream has its place.
        let _ = soon("the end", slow.read_to_end(&mut read)).await;
        assert!(!read.ends_with(b"0\r\n\r\n"));
        api.opened(&format!("\n{who}")).await;
        reached(&counters.write_timeout, 1).await;
    })
    .await;
}
