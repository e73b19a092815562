//! The server below: protocols, and the limits of connections.

use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{ALICE, ApiReply, ApiWorld, basic};
use crate::support::{limited, reached, soon};

#[tokio::test(flavor = "multi_thread")]
async fn http_2_is_spoken_where_the_client_offers_it() {
    limited(async {
        let api = ApiWorld::start().await;
        let stream = api.connect(&["h2", "http/1.1"]).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        let serving = tokio::spawn(connection);
        // Several requests on one connection.
        let asked = (0..3).map(|_| {
            let (name, value) = basic(ALICE, "secret")
                .split_once(": ")
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .unwrap();
            let request = Request::get("https://localhost/v1/session").header(name, value);
            sender.send_request(request.body(Empty::<Bytes>::new()).unwrap())
        });
        for answer in asked.collect::<Vec<_>>() {
            let answer = soon("an answer", answer).await.unwrap();
            assert_eq!(answer.status(), 200);
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, "{\"account\":\"alice@example.org\"}");
        }
        drop(sender);
        soon("the end", serving).await.unwrap().unwrap();
        assert_eq!(
            api.connect(&["http/1.1"]).await.get_ref().1.alpn_protocol(),
            Some(&b"http/1.1"[..])
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_does_not_come_in_time_is_not_waited_for() {
    limited(async {
        let api = ApiWorld::with(|config| config.api.request_timeout = Duration::from_secs(5)).await;
        let mut slow = api.connect(&[]).await;
        slow.write_all(b"GET /v1/session HTTP/1.1\r\nHost: local").await.unwrap();
        assert_eq!(ApiReply::read(&mut slow).await.status, 0, "it is hung up on");
        let mut body = api.connect(&[]).await;
        let head = "POST /v1/session HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                    Content-Length: 5\r\nConnection: close\r\n\r\n{";
        body.write_all(head.as_bytes()).await.unwrap();
        assert_eq!(ApiReply::read(&mut body).await.error(), (408, "timeout".to_owned()));
        reached(&api.world.mailchime.counters().api.request_timeout, 2).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_too_large_is_refused() {
    limited(async {
        let api = ApiWorld::start().await;
        let reply = api.ask(&format!("GET /v1/session\nX: {}", "x".repeat(20_000))).await;
        assert_eq!(reply.status, 431, "{}", reply.head);
        let many = "X: x\n".repeat(100);
        assert_eq!(api.ask(&format!("GET /v1/session\n{many}")).await.status, 431);
        reached(&api.world.mailchime.counters().api.head_size, 2).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_too_many_costs_the_oldest_idle_one() {
    limited(async {
        let api = ApiWorld::with(|config| config.api.connections = 2).await;
        let mut first = api.connect(&[]).await;
        let _second = api.connect(&[]).await;
        let reply = api.ask(&format!("GET /v1/session\n{}", basic(ALICE, "secret"))).await;
        assert_eq!(reply.status, 200);
        let mut byte = [0];
        let read = soon("the end of the first", first.read(&mut byte)).await;
        assert!(!matches!(read, Ok(1)), "it is hung up on");
        reached(&api.world.mailchime.counters().api.connections, 1).await;
    })
    .await;
}
