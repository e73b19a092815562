//! The body of an answer of a stand-in, which may have no end.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame};

/// The body of an answer.
pub(super) enum ReplyBody {
    Text(Option<Bytes>),
    Endless,
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        const MORE: &[u8] = &[b'x'; 1024];
        Poll::Ready(match &mut *self {
            Self::Text(text) => text.take().map(|text| Ok(Frame::data(text))),
            Self::Endless => Some(Ok(Frame::data(Bytes::from_static(MORE)))),
        })
    }

    /// A text that is empty has no frame: a client of HTTP/2 ends a connection with too many empty ones.
    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Text(text) if text.as_ref().is_none_or(Bytes::is_empty))
    }
}
