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
}
