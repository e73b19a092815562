//! Sockets: listening, TLS configurations, and connections to a backend.
//!
//! Knows the wire (`imap`) as far as logging in at a backend needs it, and nothing of sessions,
//! watchers, pushes or the database.

pub mod backend;
pub mod deflate;
pub mod listen;
pub mod stream;
pub mod tls;
