//! The client of receivers: one request out, one answer in.

use bytes::Bytes;
use hyper::Request;

use crate::net::https::HttpsClient;
use crate::push::transport::{Exchange, Sender, Verdict};

/// Sends to whichever URL a request names.
#[derive(Clone, Debug)]
pub(super) struct WebhookSender(pub(super) HttpsClient);

impl Sender for WebhookSender {
    fn exchange(&self, request: Request<Bytes>) -> Exchange<'_> {
        Box::pin(async {
            self.0.send(request).await.map_err(|error| Verdict::unavailable(error.to_string()))
        })
    }
}
