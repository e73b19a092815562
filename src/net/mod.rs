//! Sockets: listening, TLS configurations, names and addresses, connections to a backend, and waits
//! between tries.
//!
//! Knows the wire (`imap`) as far as logging in at a backend needs it, and nothing of sessions,
//! watchers, pushes or the database.

pub mod account_connections;
pub mod backend;
pub mod backends;
pub mod backoff;
pub mod counters;
pub mod deflate;
pub mod descriptors;
pub mod dial;
pub mod door;
pub mod doveadm;
pub mod guard;
pub mod http;
pub mod https;
pub mod listen;
pub mod master;
pub mod proxy_protocol;
pub mod resolve;
pub mod stream;
pub mod tls;
pub mod tls_stream;
pub mod tunnel;
pub mod unix_socket;
pub mod webhook_signature;
