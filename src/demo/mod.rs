//! Stand-ins for the world around mailchime: real servers on real sockets.
//!
//! The `demo` command, the tests and the benchmarks use the same ones: a small IMAP server in
//! memory ([`backend`]), Apple's push service ([`apns`]), an iPhone that follows a script
//! ([`phone`]) and the certificates that they need ([`pki`]). Written dialogues ([`dialogue`]) are
//! read and played here, too ([`replay`]).
//!
//! The stand-ins are an independent check of mailchime's own wire code, so they may not use it: IMAP
//! is read and written by `imap-codec`, HTTP/2 by hyper.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::CryptoProvider;

pub mod apns;
pub mod backend;
pub mod dialogue;
pub mod phone;
pub mod pki;
mod port;
pub mod replay;

/// The one provider that all of them use; which one the process has installed does not matter.
fn crypto() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A random UUID (RFC 9562 section 5.4), in capitals as Apple writes them.
fn random_uuid() -> String {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02X}"));
    }
    text
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_has_its_version_and_variant() {
        let uuid = random_uuid();
        let parts: Vec<_> = uuid.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12], "{uuid}");
        assert_eq!(&uuid[14..15], "4", "{uuid}");
        assert!("89AB".contains(&uuid[19..20]), "{uuid}");
        assert_ne!(uuid, random_uuid());
    }
}
