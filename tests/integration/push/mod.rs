//! The way of a change out, over real sockets: HTTP/2 and TLS with a client certificate to the
//! stand-in for APNs, HTTPS to that for push services, and a database in a file.

mod advertisement;
mod client;
mod dispatcher;
mod fake;
mod fcm;
mod identities;
mod second_transport;
mod tokens;
mod transports;
mod tunnel;
mod webhook;
mod webpush;
mod webpush_testing;
