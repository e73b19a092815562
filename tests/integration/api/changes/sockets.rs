//! Streams over a WebSocket (RFC 6455), frame by frame.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::super::{ALICE, ApiReply, ApiWorld, basic};
use crate::support::{limited, reached, soon};

const MAIL: &str = "Subject: x\r\n\r\nx\r\n";

/// The key of RFC 6455 section 1.3, and the answer to it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// A client's end.
pub(in crate::api) struct Socket(TlsStream<TcpStream>);

impl ApiWorld {
    /// Asks for a WebSocket; the connection, and the head of the answer.
    async fn upgrade(&self, query: &str, fields: &str) -> (TlsStream<TcpStream>, String) {
        let mut stream = self.connect(&[]).await;
        let head = format!(
            "GET /v1/changes{query} HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\n\
             Upgrade: WebSocket\r\n{fields}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon("a head", stream.read_u8()).await.unwrap());
        }
        (stream, String::from_utf8(head).unwrap().to_ascii_lowercase())
    }

    pub(in crate::api) async fn socket(&self, query: &str, fields: &str) -> Socket {
        let fields = format!("Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{fields}");
        let (stream, head) = self.upgrade(query, &fields).await;
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        assert!(head.contains(&ACCEPT.to_ascii_lowercase()), "{head}");
        Socket(stream)
    }
}

impl Socket {
    /// The next frame: whole and not masked.
    async fn frame(&mut self) -> (u8, Vec<u8>) {
        soon("a frame", async {
            let first = self.0.read_u8().await.unwrap();
            assert_eq!(first & 0x80, 0x80, "a whole message");
            let length = match self.0.read_u8().await.unwrap() {
                126 => usize::from(self.0.read_u16().await.unwrap()),
                length => usize::from(length),
            };
            let mut payload = vec![0; length];
            self.0.read_exact(&mut payload).await.unwrap();
            (first & 0x0f, payload)
        })
        .await
    }

    pub(in crate::api) async fn event(&mut self) -> Value {
        let (kind, payload) = self.frame().await;
        assert_eq!(kind, TEXT);
        serde_json::from_slice(&payload).unwrap()
    }

    async fn say(&mut self, kind: u8, payload: &[u8]) {
        let mask = [1, 2, 3, 4];
        let mut frame = vec![0x80 | kind, 0x80 | u8::try_from(payload.len()).unwrap()];
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.0.write_all(&frame).await.unwrap();
    }

    /// Waits for the end of the connection.
    async fn end(&mut self) {
        let mut rest = Vec::new();
        let _ = soon("the end", self.0.read_to_end(&mut rest)).await;
        assert!(rest.is_empty(), "{rest:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_socket_carries_the_same_json() {
    limited(async {
        let api = ApiWorld::start().await;
        let who = basic(ALICE, "secret");
        let mut socket = api.socket("", &who).await;
        let opened = socket.event().await;
        assert_eq!(opened["type"], "stream.opened");
        api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        let event = socket.event().await;
        assert_eq!(
            (&event["type"], &event["data"]["kind"]),
            (&"mailbox.changed".into(), &"new".into())
        );
        let (mut stream, _) = api.opened(&format!("\n{who}")).await;
        api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        let (by_events, by_socket) = (stream.event().await.data, socket.event().await);
        assert_eq!(by_events["data"], by_socket["data"]);
        // What it says is not listened to; a ping is answered, and a close.
        socket.say(TEXT, b"hello").await;
        socket.say(PING, b"there?").await;
        assert_eq!(socket.frame().await, (PONG, b"there?".to_vec()));
        socket.say(CLOSE, &1000_u16.to_be_bytes()).await;
        assert_eq!(socket.frame().await.0, CLOSE);
        socket.end().await;

        // It comes again, and knows the first of the two. The third is known when it comes.
        api.backend.deliver(ALICE, "INBOX", MAIL).unwrap();
        stream.event().await;
        let id = event["id"].as_str().unwrap();
        let mut socket = api.socket(&format!("?last_event_id={id}"), &who).await;
        let missed = socket.event().await;
        assert_eq!(
            (&missed["data"]["kind"], &missed["data"]["messages"]),
            (&"new".into(), &3.into())
        );
        assert_eq!(socket.event().await["type"], "stream.opened");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_site_opens_no_stream() {
    limited(async {
        let api = ApiWorld::start().await;
        let cookie = api.cookie(ALICE).await;
        let handshake = format!("Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n");
        let by_cookie = format!("{handshake}Cookie: {cookie}");
        // A browser may send the password that it remembers, too.
        let by_password = format!("{handshake}{}", basic(ALICE, "secret"));
        for (fields, origin) in [
            (&by_cookie, ""),
            (&by_cookie, "\r\nOrigin: https://evil.example"),
            (&by_password, "\r\nOrigin: https://evil.example"),
            (&by_password, "\r\nOrigin: null"),
        ] {
            let (_, head) = api.upgrade("", &format!("{fields}{origin}")).await;
            assert!(head.starts_with("http/1.1 403 "), "{origin}: {head}");
        }
        for who in [format!("Cookie: {cookie}"), basic(ALICE, "secret")] {
            let ask = format!("GET /v1/changes\n{who}\nOrigin: https://evil.example");
            assert_eq!(api.ask(&ask).await.error(), (403, "foreign_origin".to_owned()), "{who}");
            api.opened(&format!("\n{who}\nOrigin: https://localhost")).await;
        }
        let mut socket =
            api.socket("", &format!("Cookie: {cookie}\r\nOrigin: https://localhost")).await;
        assert_eq!(socket.event().await["data"]["account"], ALICE);
        let close = format!("DELETE /v1/session\nCookie: {cookie}\nOrigin: https://localhost");
        assert_eq!(api.ask(&close).await.status, 204);
        assert_eq!(socket.event().await["data"]["reason"], "logged_out");
        let (kind, payload) = socket.frame().await;
        assert_eq!((kind, &payload[..]), (CLOSE, &b"\x03\xf0logged_out"[..]), "1008");
        socket.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_socket_is_pinged_and_one_that_does_not_answer_ends() {
    limited(async {
        let api = ApiWorld::with(|config| {
            config.api.stream_keepalive = Duration::from_secs(3);
            config.api.streams = 1;
        })
        .await;
        let mut socket = api.socket("", &basic(ALICE, "secret")).await;
        socket.event().await;
        for answers in [true, true, false, false] {
            assert_eq!(socket.frame().await.0, PING);
            if answers {
                socket.say(PONG, b"").await;
            }
        }
        socket.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_socket_that_is_not_read_is_cut_off() {
    limited(async {
        let api =
            ApiWorld::with(|config| config.limits.write_timeout = Duration::from_secs(1)).await;
        let mut socket = api.socket("", &basic(ALICE, "secret")).await;
        socket.event().await;
        // Each ping has an answer, which it does not read, until nothing more goes on the way.
        let cut_off = soon("the end", async {
            let pings =
                [[0x89, 0x80 | 125, 0, 0, 0, 0].as_slice(), &[b'x'; 125]].concat().repeat(100);
            while socket.0.write_all(&pings).await.is_ok() {}
        });
        cut_off.await;
        reached(&api.world.mailchime.counters().api.write_timeout, 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_socket_ends_with_the_password_that_it_was_opened_with() {
    limited(async {
        let api = ApiWorld::with(|config| config.watch.retry_min = Duration::from_secs(1)).await;
        let mut socket = api.socket("", &basic(ALICE, "secret")).await;
        socket.event().await;
        api.backend.set_password(ALICE, b"other").unwrap();
        api.backend.drop_connections();
        assert_eq!(socket.event().await["data"]["reason"], "unauthorized");
        let (kind, payload) = socket.frame().await;
        assert_eq!((kind, &payload[..]), (CLOSE, &b"\x03\xf0unauthorized"[..]), "1008");
        socket.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_closes_web_sockets() {
    limited(async {
        let api = ApiWorld::start().await;
        let mut socket = api.socket("", &basic(ALICE, "secret")).await;
        socket.event().await;
        let stopping = tokio::spawn(api.world.mailchime.stop());
        assert_eq!(socket.event().await["data"]["reason"], "restart");
        let (kind, payload) = socket.frame().await;
        assert_eq!((kind, &payload[..]), (CLOSE, &b"\x03\xf4restart"[..]), "1012");
        socket.end().await;
        soon("the stop", stopping).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_handshake_is_refused() {
    limited(async {
        let api = ApiWorld::start().await;
        let who = basic(ALICE, "secret");
        for fields in [
            "",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: short",
            &format!("Sec-WebSocket-Version: 8\r\nSec-WebSocket-Key: {KEY}"),
        ] {
            let (_, head) = api.upgrade("", &format!("{fields}\r\n{who}")).await;
            assert!(head.starts_with("http/1.1 400 "), "{fields}: {head}");
        }
        let reply: ApiReply = api.ask(&format!("GET /v1/changes\nUpgrade: websocket\n{who}")).await;
        assert_eq!(reply.error(), (400, "not_websocket".to_owned()));
    })
    .await;
}
