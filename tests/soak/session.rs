//! A mail client that checks what it reads. Whatever goes wrong is an error but bytes that are
//! others than they must be, which is a panic.

use std::io;
use std::time::Duration;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::site::{FIRST, Site, User};

/// A session that gets no answer for so long is given up; its user opens another.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Session {
    stream: TlsStream<TcpStream>,
    deflate: Option<(Compress, Decompress)>,
    /// What was read and not yet asked for.
    unread: Vec<u8>,
}

impl Session {
    /// Connects and logs in as the user does who knows the newest password.
    pub(crate) async fn open(site: &Site, user: &User) -> io::Result<Self> {
        let stream = in_time(TcpStream::connect(site.address())).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let connector = TlsConnector::from(site.client_config.clone());
        let stream = in_time(connector.connect(name, stream)).await?;
        let mut session = Self { stream, deflate: None, unread: Vec::new() };
        session.line().await?;
        session.command(&format!("LOGIN {} \"{}\"", user.login, user.password())).await?;
        Ok(session)
    }

    /// From now on all is compressed (RFC 4978).
    pub(crate) async fn compress(&mut self) -> io::Result<()> {
        self.command("COMPRESS DEFLATE").await?;
        assert!(self.unread.is_empty(), "there is more behind the OK to COMPRESS");
        self.deflate = Some((Compress::new(Compression::default(), false), Decompress::new(false)));
        Ok(())
    }

    /// Sends a command and awaits its OK; the untagged lines before it.
    pub(crate) async fn command(&mut self, command: &str) -> io::Result<Vec<String>> {
        self.send(&format!("t {command}\r\n")).await?;
        self.completed().await
    }

    /// Reads the first message, whose text must be `expected`.
    pub(crate) async fn fetch(&mut self, expected: &str) -> io::Result<()> {
        self.begin_fetch().await?;
        let announced = format!("BODY[TEXT] {{{}}}", expected.len());
        loop {
            let line = self.line().await?;
            if line.contains("BODY[TEXT]") {
                assert!(line.ends_with(&announced), "{line:?} is not the message");
                break;
            }
            if !line.starts_with("* ") || line.starts_with("* BYE") {
                return Err(io::Error::other(line));
            }
        }
        let text = self.exactly(expected.len()).await?;
        assert!(text == expected.as_bytes(), "a session read other bytes than the message's");
        self.completed().await?;
        Ok(())
    }

    /// Asks for the first message.
    pub(crate) async fn begin_fetch(&mut self) -> io::Result<()> {
        self.send(&format!("t UID FETCH {FIRST} (FLAGS BODY.PEEK[TEXT])\r\n")).await
    }

    /// Is in IDLE until `over`, and says how often EXISTS came.
    pub(crate) async fn idle(&mut self, over: impl Future<Output = ()>) -> io::Result<u64> {
        self.send("t IDLE\r\n").await?;
        let mut exists = 0;
        let line = self.line().await?;
        assert!(line.starts_with("+ ") || line.starts_with("* "), "{line:?} to IDLE");
        let mut over = std::pin::pin!(over);
        loop {
            tokio::select! {
                line = self.silent_line() => {
                    let line = line?;
                    exists += u64::from(line.ends_with(" EXISTS"));
                    if line.starts_with("* BYE") {
                        return Err(io::Error::other(line));
                    }
                }
                () = &mut over => break,
            }
        }
        self.send("DONE\r\n").await?;
        self.completed().await?;
        Ok(exists)
    }

    async fn completed(&mut self) -> io::Result<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            let line = self.line().await?;
            if line.starts_with("t OK") {
                return Ok(lines);
            }
            if line.starts_with("t ") || line.starts_with("* BYE") && !line.contains("ogging out") {
                return Err(io::Error::other(line));
            }
            lines.push(line);
        }
    }

    async fn send(&mut self, text: &str) -> io::Result<()> {
        let mut bytes = text.as_bytes().to_vec();
        if let Some((compress, _)) = &mut self.deflate {
            let mut packed = Vec::with_capacity(bytes.len() + 64);
            compress.compress_vec(&bytes, &mut packed, FlushCompress::Sync)?;
            bytes = packed;
        }
        in_time(self.stream.write_all(&bytes)).await?;
        in_time(self.stream.flush()).await
    }

    async fn line(&mut self) -> io::Result<String> {
        in_time(self.silent_line()).await
    }

    /// The next line without its end, however long it takes. Cancel safe.
    async fn silent_line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            self.fill().await?;
        }
    }

    async fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.unread.len() < length {
            in_time(self.fill()).await?;
        }
        Ok(self.unread.drain(..length).collect())
    }

    async fn fill(&mut self) -> io::Result<()> {
        let mut read = [0; 16 * 1024];
        let length = self.stream.read(&mut read).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some((_, inflate)) = &mut self.deflate else {
            self.unread.extend_from_slice(&read[..length]);
            return Ok(());
        };
        let mut packed = &read[..length];
        loop {
            let before = inflate.total_in();
            let mut plain = Vec::with_capacity(64 * 1024);
            inflate.decompress_vec(packed, &mut plain, FlushDecompress::Sync)?;
            packed = &packed[usize::try_from(inflate.total_in() - before).unwrap()..];
            self.unread.extend_from_slice(&plain);
            if packed.is_empty() && plain.len() < plain.capacity() {
                return Ok(());
            }
        }
    }
}

async fn in_time<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(PATIENCE, step).await?
}
