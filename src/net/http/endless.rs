//! A body that may last for hours, over HTTP/1.1. hyper keeps 16 KiB of buffers for each connection. So once the
//! head of such a response is sent, the connection is taken from it, and the pieces are written here (RFC 9112
//! section 7.1).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Bytes of what a client says meanwhile that are read at once. Nobody listens to it.
const SAID: usize = 64;

/// Where a body waits to be taken over.
pub(super) type BodySlot<B> = Arc<Mutex<Option<B>>>;

/// The body of a response, as hyper sees it.
pub(super) enum ServedBody<B> {
    /// It sends this one.
    Whole(B),
    /// It sends the head alone; this one goes into the slot then.
    Endless(Option<B>, BodySlot<B>),
}

/// A connection that knows whether all that was written to it was flushed.
pub(super) struct FlushNoted<T> {
    pub(super) inner: T,
    pub(super) unflushed: Arc<AtomicBool>,
}

/// Serves a connection until it ends, or until a body can be taken over: the head is sent, and nothing else.
pub(super) struct UntilEndless<C, B> {
    pub(super) connection: Box<C>,
    pub(super) slot: BodySlot<B>,
    pub(super) unflushed: Arc<AtomicBool>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for ServedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(cx),
            Self::Endless(body, slot) => {
                if let Some(body) = body.take() {
                    *slot.lock() = Some(body);
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Endless(..) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Endless(..) => SizeHint::default(),
        }
    }
}

impl<C, B> Future for UntilEndless<C, B>
where
    C: Future<Output = hyper::Result<()>> + Unpin,
{
    type Output = hyper::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(ended) = Pin::new(&mut *self.connection).poll(cx) {
            return Poll::Ready(ended);
        }
        let taken_over = self.slot.lock().is_some() && !self.unflushed.load(Ordering::Relaxed);
        if taken_over { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

/// Sends the pieces of `body`, behind a head that says `Transfer-Encoding: chunked`, until it or the connection
/// ends.
///
/// # Errors
/// The client has gone, or takes nothing for too long.
pub(super) async fn send<B>(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    mut body: B,
) -> io::Result<()>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut said = [0; SAID];
    loop {
        let piece = tokio::select! {
            frame = body.frame() => frame.map(Result::ok),
            read = stream.read(&mut said) => match read? {
                0 => return Ok(()),
                _ => continue,
            },
        };
        match piece.map(|frame| frame.map(chunk)) {
            Some(Some(Some(chunk))) => {
                stream.write_all(&chunk).await?;
                stream.flush().await?;
            }
            Some(Some(None)) => {}
            Some(None) => return Ok(()),
            None => {
                stream.write_all(b"0\r\n\r\n").await?;
                return stream.shutdown().await;
            }
        }
    }
}

/// A piece of a body as HTTP/1.1 sends it (RFC 9112 section 7.1). An empty one would end the body.
fn chunk(frame: Frame<Bytes>) -> Option<Vec<u8>> {
    let data = frame.into_data().ok().filter(|data| !data.is_empty())?;
    let size = format!("{:x}\r\n", data.len());
    Some([size.as_bytes(), &data, b"\r\n"].concat())
}

impl<T: AsyncRead + Unpin> AsyncRead for FlushNoted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for FlushNoted<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.unflushed.store(true, Ordering::Relaxed);
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.unflushed.store(true, Ordering::Relaxed);
        Pin::new(&mut self.inner).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.inner).poll_flush(cx));
        self.unflushed.store(false, Ordering::Relaxed);
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;

    use super::*;

    #[tokio::test]
    async fn pieces_are_sent_until_the_body_or_the_client_ends() {
        let piece = |text: &'static str| Ok::<_, io::Error>(Frame::data(Bytes::from(text)));
        let body = StreamBody::new(futures_util::stream::iter([piece("hello"), piece("")]));
        let (server, mut client) = tokio::io::duplex(1024);
        send(server, body).await.unwrap();
        let mut received = String::new();
        client.read_to_string(&mut received).await.unwrap();
        assert_eq!(received, "5\r\nhello\r\n0\r\n\r\n");

        let silent = StreamBody::new(futures_util::stream::pending::<io::Result<Frame<Bytes>>>());
        let (server, mut client) = tokio::io::duplex(1024);
        client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        drop(client);
        send(server, silent).await.unwrap();
    }
}
