//! A stream as Server-Sent Events (WHATWG HTML, `text/event-stream`).

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};

use super::stream::{LiveStream, StreamEnd, StreamMessage, StreamStep};
use crate::net::http::EndlessBody;

/// For a client to come back after a connection was lost.
const RETRY: Duration = Duration::from_secs(5);

/// The same after a stop, in which all clients lose theirs: up to this much more.
const SPREAD_MS: u64 = 10_000;

/// Web servers in front (nginx) are not to collect what they pass on.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The answer that this stream is.
pub(super) fn respond(stream: LiveStream) -> Response {
    let body = SseBody { step: Some(Box::pin(step(Box::new(stream)))), begun: false };
    let mut response = Body::new(body).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response.extensions_mut().insert(EndlessBody);
    response
}

/// The next step, and the stream for the one after it.
type PendingStep = Pin<Box<dyn Future<Output = (StreamStep, Box<LiveStream>)> + Send>>;

async fn step(mut stream: Box<LiveStream>) -> (StreamStep, Box<LiveStream>) {
    (stream.next().await, stream)
}

/// A body that ends with the stream.
struct SseBody {
    step: Option<PendingStep>,
    begun: bool,
}

impl HttpBody for SseBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(next) = &mut self.step else { return Poll::Ready(None) };
        let (done, stream) = ready!(next.as_mut().poll(cx));
        let mut text = String::new();
        if !std::mem::replace(&mut self.begun, true) {
            text.push_str(&retry(RETRY));
        }
        self.step = match done {
            StreamStep::Messages(messages) => {
                messages.iter().for_each(|message| write(&mut text, message));
                Some(Box::pin(step(stream)))
            }
            StreamStep::Alive => {
                text.push_str(": keep-alive\n\n");
                Some(Box::pin(step(stream)))
            }
            StreamStep::End(end, message) => {
                if end == StreamEnd::Restart {
                    let spread = Duration::from_millis(rand::random::<u64>() % SPREAD_MS);
                    text.push_str(&retry(RETRY + spread));
                }
                write(&mut text, &message);
                None
            }
        };
        Poll::Ready(Some(Ok(Frame::data(text.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.step.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

fn retry(time: Duration) -> String {
    format!("retry: {}\n\n", time.as_millis())
}

/// JSON has no line breaks of its own, and neither has an id.
fn write(text: &mut String, StreamMessage { id, kind, json }: &StreamMessage) {
    if let Some(id) = id {
        text.push_str(&format!("id: {id}\n"));
    }
    text.push_str(&format!("event: {kind}\ndata: {json}\n\n"));
}
