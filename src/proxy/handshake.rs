//! Connections on which TLS does not come about: the log lines that say why.
//!
//! Anybody can cause them, so each reason has one line a minute, or an hour. Others are there at `debug`.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustls::{AlertDescription, Error, InvalidMessage, PeerIncompatible};

use crate::model::seconds;
use crate::net::counters::LimitCounters;

/// Logs that what comes before the first word of IMAP failed with `peer`. A client that only hangs up is
/// a detail, of which the caller has a line.
pub(super) fn handshake_failed(peer: SocketAddr, error: &io::Error, counters: &LimitCounters) {
    match error.get_ref().and_then(|error| error.downcast_ref::<Error>()) {
        Some(Error::PeerIncompatible(reason)) => cannot_use_tls(peer, reason, counters),
        Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            if let Some(left_out) = counters.tls_failed.due("clear text") {
                tracing::info!(
                    target: "mailchime::proxy::clear_text",
                    %peer,
                    left_out,
                    "a client speaks without TLS where TLS is expected; mailchime closes the connection"
                );
            }
        }
        Some(why) => {
            if let Some(left_out) = counters.tls_failed.due(&matter(why)) {
                tracing::info!(
                    target: "mailchime::proxy::tls_failed",
                    %peer, %why, left_out,
                    "TLS with a client failed; mailchime closes the connection"
                );
            }
        }
        None => {}
    }
}

/// Logs that it took longer than `limit`.
pub(super) fn handshake_too_slow(peer: SocketAddr, limit: Duration, counters: &LimitCounters) {
    counters.handshake_timeout.hit();
    let limit_seconds = seconds(limit);
    match counters.tls_failed.due("time") {
        Some(left_out) => tracing::info!(
            target: "mailchime::proxy::tls_handshake_timeout",
            %peer, limit_seconds, left_out,
            "[limits] handshake_timeout is reached; mailchime closes the connection"
        ),
        None => tracing::debug!(
            target: "mailchime::proxy::tls_handshake_timeout",
            %peer, limit_seconds,
            "[limits] handshake_timeout is reached; mailchime closes the connection"
        ),
    }
}

/// What has one line in the log a minute: an alert by its name, of which there are few, and all else together.
fn matter(why: &Error) -> String {
    match why {
        Error::AlertReceived(AlertDescription::Unknown(_)) => "other".to_owned(),
        Error::AlertReceived(alert) => format!("{alert:?}"),
        _ => "other".to_owned(),
    }
}

/// The client's TLS has too little in common with mailchime's: a line an hour for each reason. Only an old
/// program's user needs to know.
fn cannot_use_tls(peer: SocketAddr, reason: &PeerIncompatible, counters: &LimitCounters) {
    let why = why(reason);
    if let Some(left_out) = counters.tls_incompatible.due_hourly(why) {
        tracing::info!(
            target: "mailchime::proxy::tls_incompatible",
            %peer,
            why,
            left_out,
            "a client cannot use TLS as mailchime offers it; mailchime closes the connection"
        );
    }
}

/// What the client lacks.
fn why(reason: &PeerIncompatible) -> &'static str {
    match reason {
        PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::SupportedVersionsExtensionRequired
        // Versions before 1.2 have no such extension, and rustls looks for it first.
        | PeerIncompatible::SignatureAlgorithmsExtensionRequired => {
            "it speaks no version of TLS that mailchime speaks, which are 1.2 and 1.3: update it"
        }
        PeerIncompatible::NoCipherSuitesInCommon => {
            "it has no cipher suite in common with mailchime, which takes ECDHE with AES-GCM or \
             ChaCha20-Poly1305, and none with CBC: update it, or give [tls] a second certificate if the kind \
             of key (RSA or ECDSA) is the reason"
        }
        PeerIncompatible::NoSignatureSchemesInCommon => {
            "it cannot use the kind of key (RSA or ECDSA) that the certificate has: give [tls] a second \
             certificate, or update it"
        }
        PeerIncompatible::NoKxGroupsInCommon
        | PeerIncompatible::NamedGroupsExtensionRequired
        | PeerIncompatible::UncompressedEcPointsRequired
        | PeerIncompatible::EcPointsExtensionRequired
        | PeerIncompatible::KeyShareExtensionRequired => {
            "it has no key exchange in common with mailchime, which takes X25519 and the curves P-256 and \
             P-384: update it"
        }
        _ => "it lacks something that mailchime's TLS needs: update it",
    }
}
