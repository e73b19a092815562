//! Web Push: browsers, web apps on a home screen, UnifiedPush (RFC 8030). How a message is encrypted for its
//! client ([`encrypt`], RFC 8188 and 8291), who we are to the push services ([`vapid`], RFC 8292), what is
//! said (`payload`, `message`), what the answers mean (`judge`), and the client that sends.
//!
//! All push services are one route, whose authority is the VAPID key: a subscription is bound to the public
//! key with which its browser made it. Endpoints are given by users, so what they name is guarded
//! ([`crate::net::guard`]).

mod client;
pub mod encrypt;
mod enrol;
mod judge;
mod message;
mod payload;
pub mod vapid;

use std::sync::Arc;

pub use self::client::{WebPushClient, WebPushSetupError};
pub use self::encrypt::ClientKeys;
pub use self::message::WebPush;
use crate::config::WebPushConfig;
use crate::model::TransportId;
use crate::net::resolve::NameResolver;
use crate::push::transport::Route;

/// The name of the transport.
pub const TRANSPORT: &str = "webpush";

/// The id of the transport.
pub fn transport() -> TransportId {
    TransportId::new(TRANSPORT)
}

/// The route of this key: its name, and the way out. Opens no socket.
///
/// # Errors
/// [`WebPushSetupError`] when a file of `config` cannot be used, or TLS cannot be set up.
pub fn route(
    web_push: &WebPush,
    config: &WebPushConfig,
    resolver: &NameResolver,
) -> Result<(Arc<str>, Route), WebPushSetupError> {
    let client = WebPushClient::new(config, Arc::clone(&web_push.guard), resolver)?;
    Ok((web_push.route(), Route::new(web_push.clone(), client, config.in_flight)))
}
