//! The stand-ins on real sockets.

use mailchime::demo::backend::DemoBackend;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;

use crate::support::listener;

mod apns;
mod backend;
mod phone;

const TOKEN: &str = "ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12";
const TOPIC: &str = "com.apple.mail.XServer.test";
const MAIL: &str = "Subject: hello\r\nFrom: a <b@c>\r\n\r\nHi there, Alice\r\n";

async fn backend() -> DemoBackend {
    let backend = DemoBackend::start(listener().await, None).unwrap();
    backend.add_account("alice", b"wonder \"land\\");
    backend
}

/// A peer whose side of a dialogue is written down: `C: ` and `S: ` begin what the client and the
/// server say, `…` ends a line of which only the beginning counts.
struct Client<S>(BufStream<S>);

async fn connect(backend: &DemoBackend) -> Client<TcpStream> {
    Client(BufStream::new(TcpStream::connect(backend.address()).await.unwrap()))
}

async fn logged_in(backend: &DemoBackend) -> Client<TcpStream> {
    let mut client = connect(backend).await;
    client.play("S: * OK…\nC: in LOGIN alice \"wonder \\\"land\\\\\"\nS: in OK…").await;
    client
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    async fn play(&mut self, script: &str) {
        self.act("C: ", "S: ", script).await;
    }

    async fn act(&mut self, own: &str, peer: &str, script: &str) {
        for line in script.lines().filter(|line| !line.is_empty()) {
            if let Some(say) = line.strip_prefix(own) {
                self.send(format!("{say}\r\n").as_bytes()).await;
            } else {
                let expected = line.strip_prefix(peer).expect("a line of the script has a speaker");
                let heard = self.line().await;
                assert!(fits(&heard, expected), "heard {heard:?}, not {expected:?}");
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
        self.0.flush().await.unwrap();
    }

    async fn line(&mut self) -> String {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line).await.unwrap();
        let line = line.strip_suffix(b"\r\n").unwrap_or_else(|| panic!("cut off: {line:?}"));
        String::from_utf8_lossy(line).into_owned()
    }

    async fn until(&mut self, expected: &str) {
        while !fits(&self.line().await, expected) {}
    }

    async fn select(&mut self) {
        self.play("C: sel SELECT INBOX").await;
        self.until("sel OK…").await;
    }
}

fn fits(heard: &str, expected: &str) -> bool {
    match expected.strip_suffix('…') {
        Some(start) => heard.starts_with(start),
        None => heard == expected,
    }
}
