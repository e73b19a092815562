//! Web Push: browsers, web apps on a home screen, UnifiedPush (RFC 8030). How a message is encrypted for its
//! client ([`encrypt`], RFC 8188 and 8291), who we are to the push services ([`vapid`], RFC 8292), what is
//! said (`payload`, `message`), what the answers mean (`judge`), and the client that sends.
//!
//! All push services are one route, whose authority is the VAPID key: a subscription is bound to the public
//! key with which its browser made it. Endpoints are given by users, so what they name is guarded
//! ([`crate::net::guard`]).

pub(super) mod check;
pub mod encrypt;
mod enrol;
pub(super) mod judge;
mod message;
mod options;
mod payload;
pub mod vapid;

use std::sync::Arc;

pub use self::encrypt::ClientKeys;
pub use self::message::WebPush;
use crate::config::WebPushConfig;
use crate::model::TransportId;
use crate::net::dial::Dialer;
use crate::net::guard::Guard;
use crate::net::https::{HttpsClient, client_tls};
use crate::net::resolve::NameResolver;
use crate::net::tls::TlsError;
use crate::net::tunnel::Tunnel;
use crate::push::transport::Route;

/// The name of the transport.
pub const TRANSPORT: &str = "webpush";

/// The id of the transport.
pub fn transport() -> TransportId {
    TransportId::new(TRANSPORT)
}

/// Why there can be no route. The texts name the file and what to do.
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

/// The route of this key: its name, and the way out to whichever push service an endpoint names, if the guard
/// allows it. Reads the files of the authorities and of the proxy's login, and opens no socket.
///
/// # Errors
/// [`WebPushSetupError`] when a file of `config` cannot be used, or TLS cannot be set up.
pub fn route(
    web_push: &WebPush,
    config: &WebPushConfig,
    resolver: &NameResolver,
) -> Result<(Arc<str>, Route), WebPushSetupError> {
    let client = client(config, Arc::clone(&web_push.guard), resolver)?;
    Ok((web_push.route(), Route::new(web_push.clone(), client, config.in_flight)))
}

/// The client of that route.
///
/// # Errors
/// As [`route`].
pub fn client(
    config: &WebPushConfig,
    guard: Arc<Guard>,
    resolver: &NameResolver,
) -> Result<HttpsClient, WebPushSetupError> {
    let tls = client_tls(config.ca.as_deref()).map_err(WebPushSetupError::Ca)?;
    let tunnel = config.proxy.as_ref().map(Tunnel::of).transpose();
    let tunnel = tunnel.map_err(WebPushSetupError::ProxyLogin)?;
    let dialer = Dialer::new(resolver.clone(), tunnel, tls).guarded(guard);
    Ok(HttpsClient::new(dialer, config.request_timeout))
}
