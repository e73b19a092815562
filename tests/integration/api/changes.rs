//! `GET /v1/changes`: streams as their clients see them.

mod ends;
mod events;
mod limits;
mod servers;
mod sockets;
mod watched;

use std::net::SocketAddr;

use serde_json::Value;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;

use super::ApiWorld;
use crate::support::soon;

/// A stream of Server-Sent Events over HTTP/1.1.
pub(crate) struct EventStream {
    connection: TlsStream<TcpStream>,
    pub(crate) head: String,
    /// What came and is not yet an event.
    text: String,
    /// What came and is not yet a whole piece of the body.
    bytes: Vec<u8>,
}

/// What stands between two empty lines.
#[derive(Debug, Default)]
pub(crate) struct EventBlock {
    pub(crate) id: Option<String>,
    event: Option<String>,
    pub(crate) data: Value,
    comment: Option<String>,
    retry: Option<u64>,
}

impl ApiWorld {
    /// Opens a stream: what stands behind `/v1/changes`, and perhaps further header fields.
    pub(super) async fn stream(&self, request: &str) -> EventStream {
        EventStream::open(self.connect(&[]).await, request).await
    }

    /// A stream that is open, behind its first event.
    pub(super) async fn opened(&self, request: &str) -> (EventStream, EventBlock) {
        let mut stream = self.stream(request).await;
        let opened = stream.event().await;
        assert_eq!(opened.data["type"], "stream.opened", "{}", stream.head);
        (stream, opened)
    }
}

impl EventStream {
    /// Opens a stream on a connection to `[api]`: what stands behind `/v1/changes`, and perhaps further header
    /// fields.
    pub(crate) async fn open(connection: TlsStream<TcpStream>, request: &str) -> Self {
        let (query, fields) = request.split_once('\n').unwrap_or((request, ""));
        let mut head = format!("GET /v1/changes{query} HTTP/1.1\r\nHost: localhost\r\n");
        for field in fields.lines().map(str::trim).filter(|field| !field.is_empty()) {
            head.push_str(&format!("{field}\r\n"));
        }
        let (text, bytes) = (String::new(), Vec::new());
        let mut stream = Self { connection, head: String::new(), text, bytes };
        stream.connection.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
        while !stream.bytes.windows(4).any(|end| end == b"\r\n\r\n") {
            assert!(stream.read().await, "a head");
        }
        let end = stream.bytes.windows(4).position(|end| end == b"\r\n\r\n").unwrap();
        stream.head = String::from_utf8(stream.bytes.drain(..end + 4).collect()).unwrap();
        stream
    }

    /// The next event.
    pub(crate) async fn event(&mut self) -> EventBlock {
        loop {
            let block = self.block().await.expect("an event");
            if block.event.is_some() {
                return block;
            }
        }
    }

    /// What comes next; `None` at the end.
    pub(crate) async fn block(&mut self) -> Option<EventBlock> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let block: String = self.text.drain(..end + 2).collect();
                return Some(EventBlock::parse(&block));
            }
            while !self.piece() {
                if self.bytes.starts_with(b"0\r\n") || !self.read().await {
                    return None;
                }
            }
        }
    }

    /// Takes the next piece of the body (RFC 9112 section 7.1), if it is there.
    fn piece(&mut self) -> bool {
        let Some(line) = self.bytes.windows(2).position(|end| end == b"\r\n") else { return false };
        let size = std::str::from_utf8(&self.bytes[..line]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 || self.bytes.len() < line + 2 + size + 2 {
            return false;
        }
        let piece: Vec<u8> = self.bytes.drain(..line + 2 + size + 2).collect();
        self.text.push_str(std::str::from_utf8(&piece[line + 2..line + 2 + size]).unwrap());
        true
    }

    /// False at the end.
    async fn read(&mut self) -> bool {
        let read = soon("bytes", self.connection.read_buf(&mut self.bytes)).await;
        read.is_ok_and(|read| read > 0)
    }
}

impl EventBlock {
    fn parse(text: &str) -> Self {
        let mut block = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let (key, value) = line.split_once(": ").expect("a field");
            match key {
                "id" => block.id = Some(value.to_owned()),
                "event" => block.event = Some(value.to_owned()),
                "data" => block.data = serde_json::from_str(value).unwrap(),
                "retry" => block.retry = Some(value.parse().unwrap()),
                "" => block.comment = Some(value.to_owned()),
                other => panic!("{other}"),
            }
        }
        if !block.data.is_null() {
            assert_eq!(block.data["type"].as_str(), block.event.as_deref());
            assert_eq!(block.data["id"].as_str(), block.id.as_deref());
        }
        block
    }

    /// Mailbox, kind, and number of messages of a change.
    pub(crate) fn change(&self) -> (&str, &str, u64) {
        assert_eq!(self.data["type"], "mailbox.changed", "{}", self.data);
        let data = &self.data["data"];
        let text = |key: &str| data[key].as_str().unwrap();
        (text("mailbox"), text("kind"), data["messages"].as_u64().unwrap())
    }
}

/// A connection on which little is under way at once, so that a client that does not read is soon noticed.
pub(crate) async fn narrow(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    SockRef::from(&socket).set_tcp_mss(536).unwrap();
    socket.connect(address).await.unwrap()
}
