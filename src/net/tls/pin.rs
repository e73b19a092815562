//! Servers that are known by their public key.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};

use super::provider;
use super::verify::{RefusedCertificate, pin_of, public_key};
use crate::config::PublicKeyPin;

/// Takes a certificate with one of these keys, whatever else is in it. The server proves in the handshake that
/// it has the private key.
#[derive(Debug)]
pub(super) struct KeyVerifier {
    /// `None`: any key.
    pins: Option<Vec<PublicKeyPin>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl KeyVerifier {
    pub(super) fn new(pins: Option<Vec<PublicKeyPin>>) -> Self {
        Self { pins, algorithms: provider().signature_verification_algorithms }
    }
}

impl ServerCertVerifier for KeyVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pin = pin_of(end_entity).ok_or(CertificateError::BadEncoding)?;
        if self.pins.as_ref().is_none_or(|pins| pins.contains(&pin)) {
            return Ok(ServerCertVerified::assertion());
        }
        let why = OtherError(Arc::from(Box::from("its public key is not the pinned one")));
        Err(RefusedCertificate::of(end_entity, CertificateError::Other(why)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    /// By the key alone: WebPKI reads no certificate of X.509 version 1.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = public_key(cert).ok_or(CertificateError::BadEncoding)?;
        verify_tls13_signature_with_raw_key(message, &key, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
