//! The body of a request to a stand-in.

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body;

/// The whole body of a request; `None` where it is longer than `most` bytes.
///
/// It waits for ever where the body ends in the middle, as that of a client that was killed does: no server acts on half
/// a request. hyper drops the wait together with the request.
pub(super) async fn whole<B>(body: B, most: usize) -> Option<Bytes>
where
    B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    match Limited::new(body, most).collect().await {
        Ok(body) => Some(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => None,
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use futures_util::FutureExt as _;
    use http_body_util::Full;
    use hyper::body::Frame;

    use super::*;

    /// A body that comes in these pieces.
    struct Pieces(VecDeque<io::Result<&'static str>>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = io::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
            let piece = self.0.pop_front();
            Poll::Ready(piece.map(|piece| piece.map(|text| Frame::data(text.into()))))
        }
    }

    #[test]
    fn half_a_request_is_none() {
        let whole =
            |pieces: [io::Result<&'static str>; 2]| whole(Pieces(pieces.into()), 4).now_or_never();
        assert_eq!(whole([Ok("ab"), Ok("cd")]), Some(Some("abcd".into())));
        let reset = || io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(whole([Ok("ab"), Err(reset())]), None, "it waits");
        assert_eq!(whole([Err(reset()), Ok("cd")]), None, "it waits");
    }

    #[test]
    fn a_body_that_is_too_long_is_said_to_be() {
        assert_eq!(whole(Full::<Bytes>::from("abcde"), 4).now_or_never(), Some(None));
    }
}
