//! The client of one project: a message out under an access token, an answer in.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::{Request, Response};

use super::account::ServiceAccount;
use super::judge;
use super::message::FcmMessages;
use super::token::{AccessTokens, authorized};
use crate::net::https::HttpsClient;
use crate::push::transport::{Exchange, Sender, Verdict};

/// For the answer to one message, or for an access token; connecting included.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Sends the messages of one project. Clones share connections and tokens.
#[derive(Clone)]
pub(super) struct FcmClient {
    client: HttpsClient,
    tokens: Arc<AccessTokens>,
}

impl FcmClient {
    pub(super) fn new(account: ServiceAccount, client: HttpsClient) -> Self {
        let tokens = Arc::new(AccessTokens::new(account, client.clone()));
        Self { client, tokens }
    }

    /// Has FCM check a message that it delivers to nobody: [`Verdict::Accepted`] where nothing is wrong.
    pub(super) async fn probe(&self, messages: &FcmMessages) -> Verdict {
        match messages.probe() {
            Ok(request) => match self.send(request).await {
                Ok(response) => judge::judge(&response),
                Err(verdict) => verdict,
            },
            Err(verdict) => verdict,
        }
    }

    /// Whether Google refused to give an access token, when it was asked last.
    pub(super) fn is_refused(&self) -> bool {
        self.tokens.is_refused()
    }

    /// With another token once, if FCM refuses the first.
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Verdict> {
        let mut retried = false;
        loop {
            let authorization = self.tokens.authorization().await?;
            let attempt = authorized(&request, authorization.clone());
            let response = self.client.exchange(attempt).await?;
            if !judge::refuses_token(&response) {
                return Ok(response);
            }
            self.tokens.refused(&authorization);
            if retried {
                return Ok(response);
            }
            retried = true;
        }
    }
}

impl Sender for FcmClient {
    fn exchange(&self, request: Request<Bytes>) -> Exchange<'_> {
        Box::pin(self.send(request))
    }
}

impl fmt::Debug for FcmClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FcmClient").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}
