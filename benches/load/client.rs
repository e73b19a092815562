//! One IMAP session as a client, with as little work of its own as possible.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, HandshakeKind, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::server::literal;

/// How clients connect: TLS 1.3 with one suite and X25519, so that all servers do the same work. Only
/// perdition insists on another group.
///
/// With `resumption` what is returned remembers the tickets that it was given.
pub(crate) fn tls(resumption: bool) -> Arc<ClientConfig> {
    let provider = CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384],
        kx_groups: vec![aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1],
        ..aws_lc_rs::default_provider()
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    if !resumption {
        config.resumption = Resumption::disabled();
    }
    Arc::new(config)
}

/// Takes any certificate: what checking it costs the load is not there for the server.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// A session, and what was read of it.
pub(crate) struct Session {
    stream: TlsStream<BufReader<TcpStream>>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    deflate: Option<Box<Deflate>>,
}

/// COMPRESS=DEFLATE (RFC 4978).
struct Deflate {
    inflate: Decompress,
    deflate: Compress,
    /// Compressed bytes that were read; those before `start` are inflated already.
    input: Vec<u8>,
    start: usize,
    end: usize,
    /// There may be more to inflate of what is in the inflater.
    more: bool,
}

impl Session {
    /// Connects and reads the greeting. `buffer` is how much is read at a time, in bytes.
    pub(crate) async fn connect(
        to: SocketAddr,
        tls: &Arc<ClientConfig>,
        buffer: usize,
    ) -> io::Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        // rustls itself reads 4 KiB at a time.
        let stream = BufReader::with_capacity(buffer, stream);
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?;
        let mut session = Self { stream, buffer: vec![0; buffer], start: 0, end: 0, deflate: None };
        if !session.line().await?.starts_with(b"* OK") {
            return Err(io::Error::other("no greeting"));
        }
        Ok(session)
    }

    pub(crate) async fn login(&mut self, user: usize) -> io::Result<()> {
        self.command(format!("a LOGIN user{user}@example.org secret\r\n").as_bytes()).await?;
        Ok(())
    }

    /// Switches to DEFLATE.
    pub(crate) async fn compress(&mut self) -> io::Result<()> {
        self.command(b"a COMPRESS DEFLATE\r\n").await?;
        self.deflate = Some(Box::new(Deflate {
            inflate: Decompress::new(false),
            deflate: Compress::new(Compression::fast(), false),
            input: vec![0; 64 * 1024],
            start: 0,
            end: 0,
            more: false,
        }));
        Ok(())
    }

    /// Sends a command, whose tag is `a`, and awaits its OK. Returns the bytes of literals on the way.
    pub(crate) async fn command(&mut self, command: &[u8]) -> io::Result<u64> {
        self.send(command).await?;
        let mut literals = 0;
        loop {
            let line = self.line().await?;
            if line.starts_with(b"a ") {
                if line.starts_with(b"a OK") {
                    return Ok(literals);
                }
                return Err(io::Error::other(String::from_utf8_lossy(line).into_owned()));
            }
            if let Some((length, _)) = literal(line) {
                self.skip(length).await?;
                literals += length as u64;
            }
        }
    }

    /// Sends a message of `size` bytes, of which there are some in `text`.
    pub(crate) async fn append(&mut self, size: usize, text: &[u8]) -> io::Result<()> {
        self.send(format!("a APPEND INBOX {{{size}}}\r\n").as_bytes()).await?;
        self.go_ahead().await?;
        let mut left = size;
        while left > 0 {
            let next = left.min(text.len());
            self.stream.write_all(&text[..next]).await?;
            left -= next;
        }
        self.command(b"\r\n").await?;
        Ok(())
    }

    pub(crate) async fn idle(&mut self) -> io::Result<()> {
        self.send(b"a IDLE\r\n").await?;
        self.go_ahead().await
    }

    /// Reads until the server hangs up.
    pub(crate) async fn end(mut self) {
        while self.line().await.is_ok() {}
        // Who has hung up already does not mind.
        let _ = self.stream.shutdown().await;
    }

    /// Whether a ticket spared the handshake's certificate.
    pub(crate) fn is_resumed(&self) -> bool {
        self.stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    async fn go_ahead(&mut self) -> io::Result<()> {
        let line = self.line().await?;
        if line.starts_with(b"+") {
            return Ok(());
        }
        Err(io::Error::other(String::from_utf8_lossy(line).into_owned()))
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.deflate {
            None => self.stream.write_all(bytes).await?,
            Some(deflate) => {
                let mut out = Vec::with_capacity(bytes.len() + 256);
                deflate.deflate.compress_vec(bytes, &mut out, FlushCompress::Sync)?;
                self.stream.write_all(&out).await?;
            }
        }
        self.stream.flush().await
    }

    /// The next line, without its end.
    async fn line(&mut self) -> io::Result<&[u8]> {
        let mut seen = 0;
        let length = loop {
            match memchr::memchr(b'\n', &self.buffer[self.start + seen..self.end]) {
                Some(length) => break seen + length,
                None => {
                    seen = self.end - self.start;
                    self.fill().await?;
                }
            }
        };
        let line = &self.buffer[self.start..self.start + length];
        self.start += length + 1;
        Ok(line.strip_suffix(b"\r").unwrap_or(line))
    }

    async fn skip(&mut self, mut length: usize) -> io::Result<()> {
        loop {
            let here = length.min(self.end - self.start);
            self.start += here;
            length -= here;
            if length == 0 {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    /// Reads more behind what there is.
    async fn fill(&mut self) -> io::Result<()> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let room = &mut self.buffer[self.end..];
        let read = match &mut self.deflate {
            None => self.stream.read(room).await?,
            Some(deflate) => loop {
                if deflate.start == deflate.end && !deflate.more {
                    (deflate.start, deflate.end) = (0, self.stream.read(&mut deflate.input).await?);
                    if deflate.end == 0 {
                        break 0;
                    }
                }
                let (before_in, before_out) =
                    (deflate.inflate.total_in(), deflate.inflate.total_out());
                let input = &deflate.input[deflate.start..deflate.end];
                deflate.inflate.decompress(input, room, FlushDecompress::Sync)?;
                deflate.start += (deflate.inflate.total_in() - before_in) as usize;
                let made = (deflate.inflate.total_out() - before_out) as usize;
                deflate.more = made == room.len();
                if made > 0 {
                    break made;
                }
            },
        };
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.end += read;
        Ok(())
    }
}
