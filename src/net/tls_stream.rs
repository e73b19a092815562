//! TLS over a TCP connection, which holds no buffer while nothing moves.
//!
//! rustls has the keys and the protocol, by its unbuffered API; the bytes are kept here. They come into a buffer that
//! all connections of a thread share, and leave from another one. A connection has bytes of its own only where a
//! record came in part, where its reader took less than a record had, and where the peer does not take what it is sent.

mod kept_bytes;
mod side;

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BufMut;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{EncryptError, InsufficientSizeError};
use rustls::{ClientConfig, CommonState, ServerConfig};
use secrecy::zeroize::Zeroize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

use self::kept_bytes::{KeptBytes, invalid};
pub use self::side::TlsSide;

/// Most bytes that are read at a time, and that are encrypted at a time: of what a peer does not take, TLS keeps no more. Large mail costs a
/// third less CPU than with an eighth of that (benches/README.md).
pub const READ_SIZE: usize = 512 * 1024;

/// Bytes of a record's head (RFC 8446 section 5.1).
const HEAD: usize = 5;

/// Most bytes of one record with its head: what TLS 1.2 allows (RFC 5246 section 6.2.3).
const LONGEST_RECORD: usize = HEAD + 16 * 1024 + 2048;

/// Most bytes of a handshake message that is kept until it is whole. rustls refuses longer ones by their length.
const LONGEST_HANDSHAKE: usize = 64 * 1024;

/// Bytes that are read at once into a buffer of the connection's own.
const PIECE: usize = 4 * 1024;

/// What records add to [`READ_SIZE`] bytes of plaintext, with room to spare.
const ADDED: usize = READ_SIZE / 64;

thread_local! {
    /// Where ciphertext comes to, and is decrypted in place.
    static INCOMING: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_SIZE]);

    /// Where ciphertext is made.
    static OUTGOING: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_SIZE + ADDED]);
}

/// TLS in which mailchime is the server.
pub type TlsServer = TlsStream<UnbufferedServerConnection>;

/// TLS in which mailchime is the client.
pub type TlsClient = TlsStream<UnbufferedClientConnection>;

/// A TLS connection, whose handshake is done. Dropped without [`poll_shutdown`](AsyncWrite::poll_shutdown), it ends
/// without close_notify.
///
/// Reading fails with [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) where the peer hangs up without close_notify
/// (RFC 8446 section 6.1), and with [`InvalidData`](io::ErrorKind::InvalidData) around a [`rustls::Error`] where it
/// breaks the protocol. Bytes that were written are on their way once they are flushed.
pub struct TlsStream<C> {
    tcp: TcpStream,
    tls: C,
    bytes: KeptBytes,
    /// Most bytes that are taken at a time.
    limit: usize,
    /// What comes may hold a password.
    is_secret: bool,
}

// === impl TlsStream ===

impl TlsServer {
    /// Answers a client's handshake. It has no limit of time of its own.
    ///
    /// # Errors
    /// `InvalidData` around a [`rustls::Error`] where TLS does not come about, which an alert tells the client, and what
    /// the connection says.
    pub async fn accept(tcp: TcpStream, config: &Arc<ServerConfig>) -> io::Result<Self> {
        let tls = UnbufferedServerConnection::new(Arc::clone(config)).map_err(invalid)?;
        Self::new(tcp, tls, true).handshaken().await
    }
}

impl TlsClient {
    /// Begins a handshake with a server whose certificate must be for `name`. It has no limit of time of its own.
    ///
    /// # Errors
    /// As [`TlsServer::accept`].
    pub async fn connect(
        tcp: TcpStream,
        config: &Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<Self> {
        let tls = UnbufferedClientConnection::new(Arc::clone(config), name).map_err(invalid)?;
        Self::new(tcp, tls, false).handshaken().await
    }
}

impl<C: TlsSide> TlsStream<C> {
    fn new(tcp: TcpStream, tls: C, is_secret: bool) -> Self {
        Self { tcp, tls, bytes: KeptBytes::default(), limit: READ_SIZE, is_secret }
    }

    /// What was agreed on in the handshake.
    pub fn agreed(&self) -> &CommonState {
        self.tls.common()
    }

    /// From now on at most so many bytes are taken at a time, so that no more wait for the peer to take them, but for
    /// what records add; at most and at first [`READ_SIZE`].
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit.min(READ_SIZE);
    }

    /// Bytes of ciphertext that wait for the peer to take them. While there are any, nothing more is taken.
    pub fn unsent(&self) -> usize {
        self.bytes.outgoing.len() - self.bytes.sent
    }

    /// Memory that is held for them, in bytes.
    pub fn held_unsent(&self) -> usize {
        self.bytes.outgoing.capacity()
    }

    /// Whether what comes from now on may hold a password: it is overwritten where it was decrypted, which takes time.
    /// At first that is so for a server, and not for a client.
    pub fn set_secret(&mut self, is_secret: bool) {
        self.is_secret = is_secret;
    }

    async fn handshaken(mut self) -> io::Result<Self> {
        poll_fn(|cx| self.poll_handshake(cx)).await?;
        Ok(self)
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.process_kept(cx, &mut ReadBuf::new(&mut []))?;
            let sent = self.poll_send(cx)?;
            if !self.tls.common().is_handshaking() {
                return sent.map(Ok);
            }
            if self.bytes.ended || ready!(self.poll_read_kept(cx))? == 0 {
                let why = "the peer hung up in the handshake of TLS";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, why)));
            }
        }
    }

    /// Reads into what is kept: no more than the record needs that is there in part. Returns how many bytes.
    fn poll_read_kept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let kept = &mut self.bytes.incoming;
        if kept.len() > LONGEST_HANDSHAKE + LONGEST_RECORD {
            let why = "the peer's handshake message is too long";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)));
        }
        // A peer that says how much will come has not sent it yet.
        let most = missing(kept).unwrap_or(PIECE).min(PIECE.max(kept.len()));
        kept.reserve(most);
        poll_read_buf(Pin::new(&mut self.tcp), cx, &mut kept.limit(most))
    }

    /// Deals with what is kept.
    fn process_kept(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> io::Result<()> {
        let mut incoming = std::mem::take(&mut self.bytes.incoming);
        let used = self.process(cx, &mut incoming, into)?;
        if self.is_secret {
            incoming[..used].zeroize();
        }
        if used < incoming.len() {
            incoming.drain(..used);
            self.bytes.incoming = incoming;
        }
        Ok(())
    }

    /// Deals with what came, and returns how much of it is dealt with. What `into` has no room for is kept.
    fn process(
        &mut self,
        cx: &mut Context<'_>,
        incoming: &mut [u8],
        into: &mut ReadBuf<'_>,
    ) -> io::Result<usize> {
        let Self { tls, bytes, .. } = self;
        let (used, processed) = bytes.process(tls, incoming, into, |_| {});
        if let Err(why) = processed {
            bytes.take_alert(tls, &mut incoming[used..]);
            // An alert tells the peer why, if it leaves at once.
            let _ = self.poll_send(cx);
            return Err(self.bytes.failed(why));
        }
        if bytes.ended {
            return Ok(incoming.len());
        }
        Ok(used)
    }

    /// Reads what the peer has sent, once. Plaintext goes `into` that, and what has no room there is kept.
    fn poll_read_records(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.bytes.incoming.is_empty() {
            let read = ready!(self.poll_read_kept(cx))?;
            if read == 0 {
                return Poll::Ready(Err(hung_up()));
            }
            return Poll::Ready(self.process_kept(cx, into));
        }
        INCOMING.with_borrow_mut(|incoming| {
            // No more than the reader has room for, but for what one record adds.
            let most = into.remaining().clamp(PIECE, incoming.len());
            let mut read = ReadBuf::new(&mut incoming[..most]);
            ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut read))?;
            let read = read.filled().len();
            if read == 0 {
                return Poll::Ready(Err(hung_up()));
            }
            let came = &mut incoming[..read];
            let processed = self.process(cx, came, into);
            if let Ok(used) = processed
                && used < read
            {
                self.bytes.incoming = came[used..].to_vec();
            }
            if self.is_secret {
                came.zeroize();
            }
            Poll::Ready(processed.map(|_| ()))
        })
    }

    /// Sends what waits; ready when all has left.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { tcp, bytes, .. } = self;
        while bytes.sent < bytes.outgoing.len() {
            let rest = &bytes.outgoing[bytes.sent..];
            match ready!(Pin::new(&mut *tcp).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => bytes.sent += sent,
            }
        }
        if bytes.outgoing.capacity() > 0 {
            (bytes.outgoing, bytes.sent) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }

    /// Encrypts `plain` and sends as much of it as leaves; the rest is kept.
    fn encrypt_and_send(&mut self, cx: &mut Context<'_>, plain: &[u8]) -> io::Result<()> {
        OUTGOING.with_borrow_mut(|made| {
            let Self { tls, bytes, tcp, .. } = self;
            let mut encrypted = None;
            let mut kept = std::mem::take(&mut bytes.incoming);
            let nowhere = &mut ReadBuf::new(&mut []);
            let (used, processed) = bytes.process(tls, &mut kept, nowhere, |traffic| {
                let mut result = traffic.encrypt(plain, made);
                if let Err(EncryptError::InsufficientSize(InsufficientSizeError {
                    required_size,
                })) = result
                {
                    made.resize(required_size, 0);
                    result = traffic.encrypt(plain, made);
                }
                encrypted = Some(result);
            });
            kept.drain(..used);
            bytes.incoming = kept;
            processed.map_err(|why| bytes.failed(why))?;
            let length = match encrypted {
                Some(result) => result.map_err(|why| io::Error::other(why.to_string()))?,
                // Both sides have said close_notify.
                None => return Err(io::ErrorKind::BrokenPipe.into()),
            };
            let mut sent = 0;
            while bytes.outgoing.is_empty() && sent < length {
                match Pin::new(&mut *tcp).poll_write(cx, &made[sent..length]) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(more)) => sent += more,
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending => break,
                }
            }
            bytes.wait(&made[sent..length]);
            Ok(())
        })
    }

    /// Says close_notify, once.
    fn say_closed(&mut self) {
        let Self { tls, bytes, .. } = self;
        if std::mem::replace(&mut bytes.closed, true) {
            return;
        }
        let mut notice = Vec::new();
        let mut kept = std::mem::take(&mut bytes.incoming);
        let nowhere = &mut ReadBuf::new(&mut []);
        let (used, processed) = bytes.process(tls, &mut kept, nowhere, |traffic| {
            let Err(EncryptError::InsufficientSize(needed)) = traffic.queue_close_notify(&mut [])
            else {
                return;
            };
            notice = vec![0; needed.required_size];
            let length = traffic.queue_close_notify(&mut notice).unwrap_or(0);
            notice.truncate(length);
        });
        kept.drain(..used);
        bytes.incoming = kept;
        if let Err(why) = processed {
            // The end of the connection says as much.
            bytes.failed(why);
        }
        bytes.wait(&notice);
    }
}

impl<C> fmt::Debug for TlsStream<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream").field("tcp", &self.tcp).finish_non_exhaustive()
    }
}

impl<C: TlsSide + Unpin> AsyncRead for TlsStream<C> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        loop {
            this.bytes.give(buf);
            if buf.filled().len() > before || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if let Some(failure) = this.bytes.failure.take() {
                return Poll::Ready(Err(failure));
            }
            if this.bytes.ended {
                return Poll::Ready(Ok(()));
            }
            let had_sent = this.bytes.outgoing.is_empty();
            if let Err(failure) = ready!(this.poll_read_records(cx, buf)) {
                this.bytes.failure = Some(failure);
            } else if had_sent && !this.bytes.outgoing.is_empty() {
                // An answer of TLS itself. Where it cannot leave, the next that writes finds out. What waited before
                // is its writer's, who wakes when it can leave.
                let _ = this.poll_send(cx);
            }
        }
    }
}

impl<C: TlsSide + Unpin> AsyncWrite for TlsStream<C> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if this.bytes.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        // Where something waits, the task wakes when it can leave.
        let _ = this.poll_send(cx)?;
        if this.unsent() > 0 {
            return Poll::Pending;
        }
        let most = this.limit.min(buf.len());
        this.encrypt_and_send(cx, &buf[..most])?;
        Poll::Ready(Ok(most))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.say_closed();
        ready!(this.poll_send(cx))?;
        match ready!(Pin::new(&mut this.tcp).poll_shutdown(cx)) {
            // The peer was quicker.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            result => Poll::Ready(result),
        }
    }
}

/// How many bytes the record still lacks with which these begin; `None` before its length is known, and where it is
/// there and waits for others.
fn missing(record: &[u8]) -> Option<usize> {
    let length = u16::from_be_bytes([*record.get(3)?, *record.get(4)?]);
    (HEAD + usize::from(length)).checked_sub(record.len()).filter(|missing| *missing > 0)
}

/// The end of a connection without close_notify.
fn hung_up() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the peer hung up without TLS's close_notify")
}

#[cfg(test)]
mod tests;
