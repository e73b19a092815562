//! The client of push services: one request in, one response out.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use hyper::Request;

use crate::config::WebPushConfig;
use crate::net::dial::Dialer;
use crate::net::guard::Guard;
use crate::net::https::{HttpsClient, client_tls};
use crate::net::resolve::NameResolver;
use crate::net::tls::TlsError;
use crate::net::tunnel::Tunnel;
use crate::push::transport::{Exchange, Sender, Verdict};

/// Sends to whichever push service an endpoint names, if the guard allows it. Clones share the connections.
#[derive(Clone)]
pub struct WebPushClient(HttpsClient);

/// Why there can be no client. The texts name the file and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WebPushSetupError {
    /// The authorities cannot be read.
    #[error("[webpush] ca: {0}")]
    Ca(TlsError),
    /// The proxy's login cannot be read.
    #[error("[webpush] proxy_login_file: {0}")]
    ProxyLogin(String),
}

impl WebPushClient {
    /// Reads the files of the authorities and of the proxy's login, and opens no socket.
    ///
    /// # Errors
    /// When there is nobody to trust, a file cannot be read, or TLS cannot be set up.
    pub fn new(
        config: &WebPushConfig,
        guard: Arc<Guard>,
        resolver: &NameResolver,
    ) -> Result<Self, WebPushSetupError> {
        let tls = client_tls(config.ca.as_deref()).map_err(WebPushSetupError::Ca)?;
        let tunnel = config
            .proxy
            .as_ref()
            .map(Tunnel::of)
            .transpose()
            .map_err(WebPushSetupError::ProxyLogin)?;
        let dialer = Dialer::new(resolver.clone(), tunnel, tls).guarded(guard);
        Ok(Self(HttpsClient::new(dialer, config.request_timeout)))
    }
}

impl Sender for WebPushClient {
    fn exchange(&self, request: Request<Bytes>) -> Exchange<'_> {
        Box::pin(async {
            self.0.send(request).await.map_err(|error| Verdict::unavailable(error.to_string()))
        })
    }
}

impl fmt::Debug for WebPushClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebPushClient")
    }
}
