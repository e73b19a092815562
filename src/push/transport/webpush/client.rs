//! The client of push services: one request in, one response out.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use hyper::Request;
use secrecy::SecretString;

use crate::config::{ProxyConfig, WebPushConfig};
use crate::files;
use crate::net::dial::Dialer;
use crate::net::guard::Guard;
use crate::net::https::{HttpsClient, client_tls};
use crate::net::resolve::NameResolver;
use crate::net::tls::TlsError;
use crate::net::tunnel::Tunnel;
use crate::push::transport::{Exchange, Sender, Verdict};

/// Most bytes of the file with the proxy's login.
const MAX_LOGIN: u64 = 4096;

/// Sends to whichever push service an endpoint names, if the guard allows it. Clones share the connections.
#[derive(Clone)]
pub struct WebPushClient(HttpsClient);

/// Why there can be no client. The texts name the file and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
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
    ) -> Result<Self, SetupError> {
        let tls = client_tls(config.ca.as_deref()).map_err(SetupError::Ca)?;
        let tunnel = config.proxy.as_ref().map(tunnel).transpose()?;
        let dialer = Dialer::new(resolver.clone(), tunnel, tls).guarded(guard);
        Ok(Self(HttpsClient::new(dialer, config.request_timeout)))
    }
}

/// Reads the file with the login, if there is one.
fn tunnel(proxy: &ProxyConfig) -> Result<Tunnel, SetupError> {
    let login = match &proxy.login_file {
        Some(file) => {
            let unusable = |why: &str| SetupError::ProxyLogin(format!("{}: {why}", file.display()));
            let (text, _) = files::read_text(file, MAX_LOGIN)
                .map_err(|error| unusable(&format!("cannot be read: {error}")))?;
            let line = text.lines().next().filter(|line| !line.is_empty());
            let line =
                line.ok_or_else(|| unusable("has no first line; write user:password there"))?;
            Some(SecretString::from(line))
        }
        None => None,
    };
    Ok(Tunnel::new(proxy.host.clone(), proxy.port, login.as_ref()))
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
