//! A connection under DEFLATE (RFC 4978): raw deflate both ways, flushed when a batch is written.
//!
//! Memory is bounded by the window and one buffer each way: what inflates to more than the reader
//! asks for waits compressed, so a bomb is read no faster than it is passed on.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Compressed bytes that are kept each way.
const BUFFER_SIZE: usize = 16 * 1024;

/// What is read of a peer that sends much that inflates to nothing, before others have their turn.
const TURN: usize = 64 * 1024;

/// RFC 4978 leaves it open; 6 is zlib's own middle.
const LEVEL: u32 = 6;

/// A quarter of what DEFLATE allows: text comes out a sixteenth larger and a third quicker, and a
/// session holds 96 KiB less. What a peer compresses may have the largest window all the same.
const WINDOW_BITS: u8 = 13;

/// Both directions of one connection, `stream`.
#[derive(Debug)]
pub struct Deflated<S> {
    stream: S,
    inflate: Decompress,
    deflate: Compress,
    /// Compressed bytes from the peer, and how many of them are inflated.
    input: Vec<u8>,
    inflated: usize,
    /// The inflater may have more to give although no input is left.
    more: bool,
    /// Compressed bytes for the peer.
    output: Vec<u8>,
    /// Bytes were compressed since the last flush.
    dirty: bool,
}

/// Memory that both directions hold, in bytes: the windows, their tables, and what zlib gathers.
pub const HELD: usize = 260 * 1024;

impl<S: AsyncRead + AsyncWrite + Unpin> Deflated<S> {
    /// `stream`, of which each byte is under DEFLATE from here on.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            inflate: Decompress::new(false),
            deflate: Compress::new_with_window_bits(Compression::new(LEVEL), false, WINDOW_BITS),
            input: Vec::new(),
            inflated: 0,
            more: false,
            output: Vec::new(),
            dirty: false,
        }
    }

    /// What is under it.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Plain and compressed bytes from the peer, then plain and compressed bytes to it.
    pub fn totals(&self) -> [u64; 4] {
        [
            self.inflate.total_out(),
            self.inflate.total_in(),
            self.deflate.total_in(),
            self.deflate.total_out(),
        ]
    }

    /// Writes compressed bytes until fewer than a buffer are left, or none if `all`.
    fn poll_drain(&mut self, cx: &mut Context<'_>, all: bool) -> Poll<io::Result<()>> {
        let most = if all { 0 } else { BUFFER_SIZE - 1 };
        let mut written = 0;
        while self.output.len() - written > most {
            match Pin::new(&mut self.stream).poll_write(cx, &self.output[written..]) {
                Poll::Ready(Ok(length @ 1..)) => written += length,
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.output.drain(..written);
                    return Poll::Pending;
                }
            }
        }
        self.output.drain(..written);
        if self.output.is_empty() {
            self.output = Vec::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Compresses some of `bytes`; returns how many.
    fn compress(&mut self, bytes: &[u8], flush: FlushCompress) -> io::Result<usize> {
        self.output.reserve(BUFFER_SIZE);
        let before = self.deflate.total_in();
        self.deflate
            .compress_vec(bytes, &mut self.output, flush)
            .map_err(|_| io::Error::other("cannot be compressed"))?;
        // Never more than a slice's length.
        Ok((self.deflate.total_in() - before) as usize)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Deflated<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut read_here = 0;
        loop {
            if !this.input.is_empty() || this.more {
                let (before_in, before_out) = (this.inflate.total_in(), this.inflate.total_out());
                let room = buf.initialize_unfilled();
                let size = room.len();
                let status = this
                    .inflate
                    .decompress(&this.input[this.inflated..], room, FlushDecompress::Sync)
                    .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not DEFLATE"))?;
                let used = (this.inflate.total_in() - before_in) as usize;
                let made = (this.inflate.total_out() - before_out) as usize;
                this.inflated += used;
                if this.inflated == this.input.len() {
                    (this.input, this.inflated) = (Vec::new(), 0);
                }
                // A full buffer may hide more.
                this.more = made == size;
                if made > 0 {
                    buf.advance(made);
                    return Poll::Ready(Ok(()));
                }
                if status == Status::StreamEnd {
                    return Poll::Ready(Ok(()));
                }
                if used == 0 && !this.input.is_empty() {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "not DEFLATE",
                    )));
                }
                if !this.input.is_empty() {
                    continue;
                }
            }
            this.more = false;
            if read_here >= TURN {
                let _ = pin!(tokio::task::yield_now()).poll(cx);
                return Poll::Pending;
            }
            let mut fresh = [0; BUFFER_SIZE];
            let mut read = ReadBuf::new(&mut fresh);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            read_here += read.filled().len();
            this.input.extend_from_slice(read.filled());
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Deflated<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            ready!(this.poll_drain(cx, false))?;
            this.dirty = true;
            // What was compressed before may take all the room there is.
            let taken = this.compress(bytes, FlushCompress::None)?;
            if taken > 0 || bytes.is_empty() {
                return Poll::Ready(Ok(taken));
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.dirty {
            ready!(this.poll_drain(cx, false))?;
            this.compress(&[], FlushCompress::Sync)?;
            // A flush is complete once it leaves room.
            this.dirty = this.output.len() == this.output.capacity();
        }
        ready!(this.poll_drain(cx, true))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn pair() -> (Deflated<TcpStream>, Deflated<TcpStream>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (one, other) = tokio::join!(TcpStream::connect(address), listener.accept());
        let other = other.unwrap().0;
        (Deflated::new(one.unwrap()), Deflated::new(other))
    }

    async fn in_time<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(120), future).await.expect("in time")
    }

    #[tokio::test]
    async fn each_flushed_batch_arrives_whole() {
        in_time(async {
            let (mut one, mut other) = pair().await;
            for batch in [&b"a NOOP\r\n"[..], b"* 1 EXISTS\r\na OK\r\n", &[0; 100_000], b"x"] {
                one.write_all(batch).await.unwrap();
                one.flush().await.unwrap();
                let mut heard = vec![0; batch.len()];
                other.read_exact(&mut heard).await.unwrap();
                assert!(heard == batch);
            }
            let [_, _, plain, compressed] = one.totals();
            assert_eq!(plain, 8 + 18 + 100_000 + 1);
            assert!(compressed < 1000, "{compressed}");
        })
        .await;
    }

    #[tokio::test]
    async fn what_does_not_compress_arrives_as_well() {
        in_time(async {
            let (mut one, mut other) = pair().await;
            let mut noise = vec![0; 3_000_000];
            for (i, word) in noise.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                *word =
                    (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17).to_le_bytes();
            }
            let said = noise.clone();
            let saying = tokio::spawn(async move {
                one.write_all(&said).await.unwrap();
                one.shutdown().await.unwrap();
                one
            });
            let mut heard = Vec::new();
            other.read_to_end(&mut heard).await.unwrap();
            assert!(heard == noise);
            saying.await.unwrap();
        })
        .await;
    }

    #[tokio::test]
    async fn garbage_is_an_error() {
        in_time(async {
            let (one, mut other) = pair().await;
            let mut raw = one.stream;
            raw.write_all(&[0xff; 100]).await.unwrap();
            let error = other.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        })
        .await;
    }

    #[tokio::test]
    async fn a_bomb_is_inflated_as_it_is_read_and_no_faster() {
        in_time(async {
            let (mut one, mut other) = pair().await;
            let sender = tokio::spawn(async move {
                let zeros = vec![0; 1_000_000];
                for _ in 0..50 {
                    one.write_all(&zeros).await.unwrap();
                }
                one.shutdown().await.unwrap();
            });
            let mut heard = 0;
            let mut piece = vec![0; 1000];
            loop {
                let length = other.read(&mut piece).await.unwrap();
                if length == 0 {
                    break;
                }
                heard += length;
                assert!(other.input.capacity() <= 2 * BUFFER_SIZE, "{}", other.input.capacity());
            }
            assert_eq!(heard, 50_000_000);
            sender.await.unwrap();
        })
        .await;
    }
}
