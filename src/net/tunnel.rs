//! A way through an HTTP proxy: CONNECT (RFC 9110 section 9.3.6), and then the proxy passes every
//! byte on. It sees the name of the server; all else is TLS.

use std::fmt;
use std::io;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::config::ProxyConfig;
use crate::files;

/// The longest head of an answer, in bytes.
const MAX_HEAD: usize = 8 * 1024;

/// Most bytes of the file with the proxy's login.
const MAX_LOGIN: u64 = 4096;

/// How to ask a proxy for tunnels. `Debug` shows no login.
pub struct Tunnel {
    host: String,
    port: u16,
    /// The header line that proves to the proxy who asks; empty where it does not ask for that.
    login: SecretString,
}

/// The first line of a file with `user:password`.
fn login_line(file: &Path) -> Result<SecretString, String> {
    let unusable = |why: &str| format!("{}: {why}", file.display());
    let (text, _) = files::read_text(file, MAX_LOGIN)
        .map_err(|error| unusable(&format!("cannot be read: {error}")))?;
    let line = text.lines().next().filter(|line| !line.is_empty());
    let line = line.ok_or_else(|| unusable("has no first line; write user:password there"))?;
    Ok(SecretString::from(line))
}

impl Tunnel {
    /// Tunnels of this proxy. Reads the file with its login, if there is one (RFC 7617).
    ///
    /// # Errors
    /// Why the file cannot be used, a clause that names it.
    pub fn of(proxy: &ProxyConfig) -> Result<Self, String> {
        let login = proxy.login_file.as_ref().map(|file| login_line(file)).transpose()?;
        let login = login.map(|login| STANDARD.encode(login.expose_secret()));
        let login = login.map(|login| format!("Proxy-Authorization: Basic {login}\r\n"));
        Ok(Self {
            host: proxy.host.clone(),
            port: proxy.port,
            login: login.unwrap_or_default().into(),
        })
    }

    /// Host and port of the proxy.
    pub fn proxy(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// Asks for a tunnel to `host` on a connection to the proxy; after this the other end is that host.
    /// It has no limit of time of its own.
    ///
    /// # Errors
    /// When the connection fails, or the proxy answers anything but a 2xx, at whose end the tunnel begins.
    pub async fn open(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        host: &str,
        port: u16,
    ) -> io::Result<()> {
        let to = match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        let login = self.login.expose_secret();
        let request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{login}\r\n");
        let request = SecretString::from(request);
        stream.write_all(request.expose_secret().as_bytes()).await?;
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
