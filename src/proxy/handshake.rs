//! Clients whose TLS has too little in common with mailchime's: the one log line that says why.

use std::io;
use std::net::SocketAddr;

use rustls::PeerIncompatible;

use crate::net::counters::LimitCounters;

/// Logs that the handshake with `peer` failed for what the client cannot do, if it did: once an hour for
/// each reason. Anybody can cause it, and only an old program's user needs to know.
pub(super) fn cannot_use_tls(peer: SocketAddr, error: &io::Error, counters: &LimitCounters) {
    let error = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::PeerIncompatible(reason)) = error else { return };
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
