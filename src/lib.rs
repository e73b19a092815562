//! mailchime: a TLS IMAP proxy that gives any mail server native push to iOS Mail.

pub mod admin;
pub mod api;
pub mod app;
pub mod cli;
pub mod config;
pub mod demo;
pub mod files;
pub mod imap;
pub mod intake;
pub mod metrics;
pub mod model;
pub mod net;
pub mod nodes;
pub mod proxy;
pub mod push;
pub mod record;
pub mod registrar;
mod secret_file;
pub mod store;
pub mod watch;
