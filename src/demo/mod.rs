//! Stand-ins for the world around mailchime: real servers on real sockets.
//!
//! The `demo` command, the tests and the benchmarks use the same ones: a small IMAP server in
//! memory ([`backend`]), Apple's push service ([`apns`]), Google's ([`fcm`]), a browser with its push
//! service ([`push_service`]), which a real Firefox takes as well ([`firefox_profile`]), a receiver of web hooks
//! ([`webhook`]), an iPhone that follows a script
//! ([`phone`]) and the certificates that they need ([`pki`]). Written dialogues ([`dialogue`]) are
//! read and played here, too ([`replay`]).
//!
//! The stand-ins are an independent check of mailchime's own wire code, so they may not use it: IMAP
//! is read and written by `imap-codec`, HTTP/2 by hyper.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::CryptoProvider;
use uuid::Uuid;

mod answer_gate;
pub mod apns;
pub mod backend;
pub mod dialogue;
mod farewell;
pub mod fcm;
pub mod firefox_profile;
pub mod phone;
pub mod pki;
mod port;
pub mod push_service;
pub mod replay;
mod reply_body;
mod request_body;
pub mod webhook;

/// The one provider that all of them use; which one the process has installed does not matter.
fn crypto() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A random UUID (version 4, RFC 9562 section 5.4), in capitals as Apple writes them.
fn random_uuid() -> String {
    format!("{:X}", Uuid::new_v4())
}

/// A date-time of RFC 5322 section 3.3, in UTC: `17 Jul 1996 09:44:25 +0000`.
fn date_time(date: SystemTime) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let last = UNIX_EPOCH + Duration::from_secs(253_402_300_799); // of the year 9999
    let rfc3339 = humantime::format_rfc3339_seconds(date.clamp(UNIX_EPOCH, last)).to_string();
    let month = rfc3339[5..7].parse::<usize>().unwrap_or(1);
    let month = MONTHS[(month - 1) % 12];
    format!("{} {month} {} {} +0000", &rfc3339[8..10], &rfc3339[..4], &rfc3339[11..19])
}
