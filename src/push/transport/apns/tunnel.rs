//! A way through an HTTP proxy: CONNECT (RFC 9110 section 9.3.6), and then the proxy passes every
//! byte on. It sees the name of the endpoint; all else is TLS.

use std::fmt;
use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::identity::{IdentityError, first_line};
use crate::config::{ApnsServer, ProxyConfig};

/// The longest head of an answer.
const MAX_HEAD: usize = 8 * 1024;

/// How to ask a proxy for a tunnel to one endpoint. `Debug` shows no login.
pub(super) struct Tunnel {
    host: String,
    port: u16,
    request: SecretString,
}

impl Tunnel {
    /// Reads the file with the login, if there is one.
    pub(super) fn new(proxy: &ProxyConfig, to: &ApnsServer) -> Result<Self, IdentityError> {
        let to = to.to_string();
        let to = to.trim_start_matches("https://");
        let login = match &proxy.login_file {
            Some(file) => {
                let login = STANDARD.encode(first_line(file)?.expose_secret());
                format!("Proxy-Authorization: Basic {login}\r\n")
            }
            None => String::new(),
        };
        let request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{login}\r\n").into();
        Ok(Self { host: proxy.host.clone(), port: proxy.port, request })
    }

    /// Host and port of the proxy.
    pub(super) fn proxy(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// Asks for the tunnel on a connection to the proxy; after this the other end is the endpoint.
    pub(super) async fn open(&self, stream: &mut TcpStream) -> io::Result<()> {
        stream.write_all(self.request.expose_secret().as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() == MAX_HEAD {
                return Err(io::Error::other("its answer is too long"));
            }
            // Byte by byte, a few dozen once in a connection: what follows is not ours to take.
            head.push(stream.read_u8().await?);
        }
        let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let line: String = String::from_utf8_lossy(line).chars().take(100).collect();
        let mut words = line.split(' ');
        let is_http = words.next().is_some_and(|version| version.starts_with("HTTP/1."));
        match words.next() {
            Some(status) if is_http && status.len() == 3 && status.starts_with('2') => Ok(()),
            _ => Err(io::Error::other(format!("it answers {}", line.escape_debug()))),
        }
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tunnel({}:{})", self.host, self.port)
    }
}
