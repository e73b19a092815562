//! Who is let in, and how: listeners, PROXY headers, certificates by name, routes, limits, and what
//! a configuration that is read again changes. Real sockets throughout.

mod backends;
mod door;
mod greetings;
mod limits;
pub(crate) mod pinned;
mod proxy_protocol;
mod reload;
mod tls;
