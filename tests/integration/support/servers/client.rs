//! An IMAP client that knows little more than lines, to see whether a server works.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConnection, StreamOwned};

use super::{User, pki};

/// How long a server may be silent.
const LIMIT: Duration = Duration::from_secs(90);

trait Stream: Read + Write {}

impl<S: Read + Write> Stream for S {}

/// A connection whose greeting was read.
pub(crate) struct Client {
    stream: BufReader<Box<dyn Stream>>,
    pub(crate) greeting: String,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Self::greeted(Box::new(stream))
    }

    /// With TLS from the first byte, verified.
    pub(crate) fn connect_tls(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let config = Arc::new(pki().client_config(None).unwrap());
        let name = "localhost".try_into().unwrap();
        let connection = ClientConnection::new(config, name).unwrap();
        Self::greeted(Box::new(StreamOwned::new(connection, stream)))
    }

    fn greeted(stream: Box<dyn Stream>) -> Self {
        let mut client = Self { stream: BufReader::new(stream), greeting: String::new() };
        client.greeting = client.line();
        assert!(client.greeting.starts_with("* OK"), "{}", client.greeting);
        client
    }

    /// Logs in; the tagged answer.
    pub(crate) fn login(&mut self, (name, password): User<'_>) -> String {
        let password = password.replace('\\', "\\\\").replace('"', "\\\"");
        self.ask(&format!("LOGIN {name} \"{password}\"")).pop().expect("the tagged line is last")
    }

    /// Sends a command; the answer's lines, of which the last is the tagged one.
    pub(crate) fn ask(&mut self, command: &str) -> Vec<String> {
        self.ask_bytes(command.as_bytes())
    }

    /// The same with any bytes, such as literals that do not wait.
    pub(crate) fn ask_bytes(&mut self, command: &[u8]) -> Vec<String> {
        let said = [b"x ", command, b"\r\n"].concat();
        self.stream.get_mut().write_all(&said).unwrap();
        let mut lines = vec![self.line()];
        while !lines.last().is_some_and(|line| line.starts_with("x ")) {
            lines.push(self.line());
        }
        lines
    }

    /// Sends a command under a tag that no mail has; the answer's bytes as they came.
    pub(crate) fn ask_raw(&mut self, command: &str) -> Vec<u8> {
        self.say(&format!("q7Zk9 {command}"));
        let mut said = Vec::new();
        loop {
            let start = said.len();
            let length = self.stream.read_until(b'\n', &mut said).unwrap();
            assert!(length > 0, "the connection ended");
            if said[start..].starts_with(b"q7Zk9 ") {
                return said;
            }
        }
    }

    /// The number that STATUS gives for MESSAGES.
    pub(crate) fn messages(&mut self, mailbox: &str) -> u32 {
        let lines = self.ask(&format!("STATUS {mailbox} (MESSAGES)"));
        let count = lines[0].rsplit_once("(MESSAGES ").map(|(_, rest)| rest.trim_end_matches(')'));
        count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("{lines:?}"))
    }

    pub(crate) fn say(&mut self, line: &str) {
        self.stream.get_mut().write_all(format!("{line}\r\n").as_bytes()).unwrap();
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).unwrap();
        assert!(line.ends_with(b"\n"), "the connection ended");
        String::from_utf8_lossy(&line).trim_end().to_owned()
    }

    /// Reads until a line that begins so.
    pub(crate) fn until(&mut self, beginning: &str) {
        while !self.line().starts_with(beginning) {}
    }
}
