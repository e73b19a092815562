//! A connection with or without TLS, as one type.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls::ProtocolVersion;
use secrecy::zeroize::Zeroize;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;

use super::deflate::{self, Deflated};
use super::proxy_protocol::ClientTls;
pub use super::tls_stream::READ_SIZE;
use super::tls_stream::{TlsClient, TlsServer};

/// Finds a peer that is gone without a word within some minutes, well below what NAT boxes keep.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(120)).with_interval(Duration::from_secs(30));

/// Most bytes that [`Stream::fill`] reads at once: they are kept, and are few in most dialogues.
const FILL: usize = 64 * 1024;

/// Most bytes that TLS keeps of what a peer does not take, before a login.
const LITTLE: usize = 16 * 1024;

thread_local! {
    /// Where bytes are read to: one for all connections of a thread, so that a connection that
    /// waits holds no buffer.
    static READ_BUFFER: RefCell<AlignedBuffer> = RefCell::new(AlignedBuffer::new());
}

/// Of a page, in which processors look for what a load may depend on, in bytes.
const PAGE: usize = 4096;

/// Where the bytes begin in their page. rustls copies what it encrypts to behind the head of a record, 5 bytes into a block
/// of the allocator, which often begins a page. To a place a few bytes further on in its page than where they come from,
/// a copy is slow on some processors, which take each load for one of what was just stored: 3 GB/s where others have 50 to 90,
/// a third of the CPU of large mail (benches/README.md).
const IN_PAGE: usize = 96;

/// [`READ_SIZE`] bytes that begin [`IN_PAGE`].
struct AlignedBuffer {
    bytes: Vec<u8>,
    begins: usize,
}

impl AlignedBuffer {
    fn new() -> Self {
        let bytes = vec![0; READ_SIZE + PAGE + IN_PAGE];
        // It may fail by its contract. Then copies are slow, and nothing else.
        let begins = bytes.as_ptr().align_offset(PAGE).min(PAGE) + IN_PAGE;
        Self { bytes, begins }
    }

    fn room(&mut self, most: usize) -> &mut [u8] {
        &mut self.bytes[self.begins..][..most.min(READ_SIZE)]
    }
}

/// A connection of a client or to a backend.
#[derive(Debug)]
pub enum Stream {
    /// Without TLS.
    Plain(TcpStream),
    /// Of a client in this process.
    Local(DuplexStream),
    /// TLS in which mailchime is the server.
    Server(Box<TlsServer>),
    /// TLS in which mailchime is the client.
    Client(Box<TlsClient>),
    /// Any of the others, under DEFLATE.
    Deflated(Box<Deflated<Self>>),
    /// In its place while a connection is being wrapped: at its end, and takes nothing.
    Taken,
}

/// Sets what every connection wants: no Nagle delay, keepalive. Failure is harmless and ignored:
/// the peer may be gone already, which the next read tells.
pub fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(stream).set_tcp_keepalive(&KEEPALIVE);
}

/// Overwrites the last `length` bytes that [`Stream::poll_fresh`] has read on this thread, where they
/// may have held a password.
pub fn forget_read(length: usize) {
    READ_BUFFER.with_borrow_mut(|buffer| buffer.room(length).zeroize());
}

impl Stream {
    /// The same connection, under DEFLATE from here on.
    pub fn deflated(self) -> Self {
        Self::Deflated(Box::new(Deflated::new(self)))
    }

    /// Plain and compressed bytes from the peer, then to it; `None` where there is no DEFLATE.
    pub fn totals(&self) -> Option<[u64; 4]> {
        match self {
            Self::Deflated(deflated) => Some(deflated.totals()),
            _ => None,
        }
    }

    /// Whether it is under DEFLATE.
    pub fn is_deflated(&self) -> bool {
        matches!(self, Self::Deflated(_))
    }

    /// How the connection of a client is protected. Clients in this process are those of HTTPS.
    pub fn client_tls(&self) -> ClientTls {
        match self {
            Self::Server(stream) => match stream.agreed().protocol_version() {
                Some(ProtocolVersion::TLSv1_3) => ClientTls::Version("TLSv1.3"),
                Some(ProtocolVersion::TLSv1_2) => ClientTls::Version("TLSv1.2"),
                _ => ClientTls::Unknown,
            },
            Self::Local(_) | Self::Client(_) => ClientTls::Unknown,
            Self::Plain(_) | Self::Deflated(_) | Self::Taken => ClientTls::None,
        }
    }

    /// Memory that is held for DEFLATE, in bytes.
    pub fn held(&self) -> usize {
        if self.is_deflated() { deflate::HELD } else { 0 }
    }

    /// Memory that TLS holds for bytes that were written and that the peer does not take, in bytes.
    pub fn held_unsent(&self) -> usize {
        match self {
            Self::Server(stream) => stream.held_unsent(),
            Self::Client(stream) => stream.held_unsent(),
            Self::Deflated(stream) => stream.get_ref().held_unsent(),
            Self::Plain(_) | Self::Local(_) | Self::Taken => 0,
        }
    }

    /// Bytes that were written and that TLS keeps, as the peer does not take them; 0 under DEFLATE, which keeps bytes of
    /// its own.
    pub fn unsent(&self) -> usize {
        match self {
            Self::Server(stream) => stream.unsent(),
            Self::Client(stream) => stream.unsent(),
            Self::Plain(_) | Self::Local(_) | Self::Deflated(_) | Self::Taken => 0,
        }
    }

    /// From now on TLS keeps at most 16 KiB of what the peer does not take, as before a login, or
    /// [`READ_SIZE`]. A client's password is overwritten before a login, where it was decrypted.
    pub fn keep_little(&mut self, little: bool) {
        let most = if little { LITTLE } else { READ_SIZE };
        match self {
            Self::Server(stream) => {
                stream.set_limit(most);
                stream.set_secret(little);
            }
            Self::Client(stream) => stream.set_limit(most),
            Self::Plain(_) | Self::Local(_) | Self::Deflated(_) | Self::Taken => {}
        }
    }

    /// Reads what there is, at most `most` bytes and [`READ_SIZE`], and gives it to `take`; nothing at the
    /// end. A TLS peer that hangs up without close_notify has ended as well: IMAP delimits itself.
    ///
    /// `take` must not read from another connection.
    pub fn poll_fresh<T>(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
        take: impl FnOnce(&mut Context<'_>, &[u8]) -> T,
    ) -> Poll<io::Result<T>> {
        READ_BUFFER.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(buffer.room(most));
            match ready!(Pin::new(self).poll_read(cx, &mut read)) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => read.clear(),
                result => result?,
            }
            Poll::Ready(Ok(take(cx, read.filled())))
        })
    }

    /// Reads what there is behind what `into` has; returns how many bytes, 0 at the end. Cancel
    /// safe, and no room is taken while waiting.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn fill(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
        poll_fn(|cx| {
            self.poll_fresh(cx, FILL, |_, fresh| {
                into.extend_from_slice(fresh);
                fresh.len()
            })
        })
        .await
    }
}

macro_rules! each {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Plain($stream) => {
                let $stream = Pin::new($stream);
                $call
            }
            Stream::Local($stream) => {
                let $stream = Pin::new($stream);
                $call
            }
            Stream::Server($stream) => {
                let $stream = Pin::new(&mut **$stream);
                $call
            }
            Stream::Client($stream) => {
                let $stream = Pin::new(&mut **$stream);
                $call
            }
            Stream::Deflated($stream) => {
                let $stream = Pin::new(&mut **$stream);
                $call
            }
            Stream::Taken => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_to_a_place_from_which_they_are_copied_quickly() {
        let mut buffer = AlignedBuffer::new();
        let room = buffer.room(usize::MAX);
        assert_eq!((room.len(), room.as_ptr().align_offset(PAGE)), (READ_SIZE, PAGE - IN_PAGE));
    }
}
