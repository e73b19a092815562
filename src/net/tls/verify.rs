//! Servers whose certificate is its own authority.
//!
//! `openssl req -x509`, mail bridges and appliances make certificates that a server shows and that say of
//! themselves that they are an authority's (CA:TRUE, RFC 5280 section 4.2.1.9). WebPKI accepts no such
//! certificate from a server. The administrator who names just that certificate has said that it is trusted.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

use crate::config::PublicKeyPin;

/// Takes what WebPKI takes, and a self-signed certificate that is, byte for byte, one of those named.
#[derive(Debug)]
pub(super) struct PinningVerifier {
    by_authorities: Arc<WebPkiServerVerifier>,
    named: Vec<CertificateDer<'static>>,
}

/// A server's certificate that does not count: why, and what an administrator who knows better can go by. It is the
/// error of a connection whose server shows it.
#[derive(Clone, Debug)]
pub struct RefusedCertificate {
    /// Why it does not count.
    pub why: CertificateError,
    /// Its public key; `None` where it cannot be read.
    pub pin: Option<PublicKeyPin>,
    /// It is its own issuer.
    pub is_self_issued: bool,
    /// It is of X.509 version 1 or 2, which WebPKI does not read.
    pub is_outdated: bool,
}

/// The pin of a certificate's public key; `None` where it cannot be read.
pub fn pin_of(certificate: &CertificateDer<'_>) -> Option<PublicKeyPin> {
    let key = public_key(certificate)?;
    let digest = digest::digest(&digest::SHA256, &key);
    digest.as_ref().try_into().ok().map(PublicKeyPin)
}

/// The public key of a certificate, if it can be read.
pub(super) fn public_key<'a>(
    certificate: &'a CertificateDer<'_>,
) -> Option<SubjectPublicKeyInfoDer<'a>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.tbs_certificate.subject_pki.raw.into())
}

impl RefusedCertificate {
    pub(super) fn of(certificate: &CertificateDer<'_>, why: CertificateError) -> Error {
        let parsed = X509Certificate::from_der(certificate).ok().map(|(_, parsed)| parsed);
        let refused = Self {
            why,
            pin: pin_of(certificate),
            is_self_issued: parsed.as_ref().is_some_and(is_self_issued),
            is_outdated: parsed.is_some_and(|parsed| parsed.version() != X509Version::V3),
        };
        CertificateError::Other(OtherError(Arc::new(refused))).into()
    }

    /// What the error of a handshake becomes: this one where a certificate is the reason, else it stays.
    pub(in crate::net) fn instead_of(error: io::Error) -> io::Error {
        let refused = match error.get_ref().and_then(|error| error.downcast_ref()) {
            Some(Error::InvalidCertificate(CertificateError::Other(other))) => {
                other.0.downcast_ref::<Self>().cloned()
            }
            _ => None,
        };
        refused.map_or(error, |refused| io::Error::new(io::ErrorKind::InvalidData, refused))
    }
}

impl fmt::Display for RefusedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("invalid peer certificate: ")?;
        match &self.why {
            CertificateError::Other(OtherError(why)) => why.fmt(f),
            why => why.fmt(f),
        }
    }
}

impl std::error::Error for RefusedCertificate {}

impl PinningVerifier {
    pub(super) fn new(
        by_authorities: Arc<WebPkiServerVerifier>,
        named: Vec<CertificateDer<'static>>,
    ) -> Self {
        Self { by_authorities, named }
    }
}

impl ServerCertVerifier for PinningVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let by_authorities = self.by_authorities.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        let Err(refusal) = by_authorities else { return by_authorities };
        let refuse = |refusal| match refusal {
            Error::InvalidCertificate(why) => Err(RefusedCertificate::of(end_entity, why)),
            other => Err(other),
        };
        if !self.named.contains(end_entity) {
            return refuse(refusal);
        }
        match X509Certificate::from_der(end_entity) {
            Ok((_, certificate)) if is_for_pinning(&certificate) => {
                verify_pinned(end_entity, &certificate, server_name, now)?;
                Ok(ServerCertVerified::assertion())
            }
            _ => refuse(refusal),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_authorities.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_authorities.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_authorities.supported_verify_schemes()
    }
}

/// Whether a certificate is its own issuer, and one that WebPKI takes for no server's: an authority's, or
/// one without alternative names.
fn is_for_pinning(certificate: &X509Certificate<'_>) -> bool {
    is_self_issued(certificate) && (certificate.is_ca() || has_no_names(certificate))
}

fn is_self_issued(certificate: &X509Certificate<'_>) -> bool {
    certificate.issuer().as_raw() == certificate.subject().as_raw()
}

/// All that WebPKI looks at but who has signed it: which certificate it is is known.
fn verify_pinned(
    der: &CertificateDer<'_>,
    certificate: &X509Certificate<'_>,
    server_name: &ServerName<'_>,
    now: UnixTime,
) -> Result<(), Error> {
    // Refuses an extension that is critical and unknown, too.
    let parsed = ParsedCertificate::try_from(der)?;
    let (validity, time) = (certificate.validity(), now.as_secs().cast_signed());
    if time < validity.not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if time > validity.not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    let usage = certificate.extended_key_usage();
    if !usage.is_ok_and(|usage| usage.is_none_or(|usage| usage.value.server_auth)) {
        return Err(CertificateError::InvalidPurpose.into());
    }
    if has_no_names(certificate) {
        return verify_common_name(certificate, server_name);
    }
    verify_server_name(&parsed, server_name)
}

fn has_no_names(certificate: &X509Certificate<'_>) -> bool {
    matches!(certificate.subject_alternative_name(), Ok(None))
}

/// The common name counts where there is no other (RFC 6125 section 6.4.4), as a whole.
fn verify_common_name(
    certificate: &X509Certificate<'_>,
    server_name: &ServerName<'_>,
) -> Result<(), Error> {
    let names = certificate.subject().iter_common_name();
    let names: Vec<_> = names.filter_map(|name| name.as_str().ok()).collect();
    let wanted = server_name.to_str();
    let is_wanted = |name: &str| match wanted.parse::<IpAddr>() {
        Ok(address) => name.parse() == Ok(address),
        Err(_) => name.eq_ignore_ascii_case(&wanted),
    };
    match names[..] {
        [name] if is_wanted(name) => Ok(()),
        _ => {
            let presented = names.iter().map(|name| format!("CommonName({name:?})")).collect();
            let expected = server_name.to_owned();
            Err(CertificateError::NotValidForNameContext { expected, presented }.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    use super::super::verifier;
    use super::*;

    /// 2027-01-01 and 2027-12-31, in the certificate, and seconds around them.
    const FROM: u64 = 1_798_761_600;
    const TO: u64 = 1_830_211_200;

    #[test]
    fn a_pinned_certificate_counts_for_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(["mail.example".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = rcgen::date_time_ymd(2027, 1, 1);
        params.not_after = rcgen::date_time_ymd(2027, 12, 31);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, certificate.pem()).unwrap();
        let verifier = verifier(Some(&ca)).unwrap();
        let at = |seconds: u64| {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            let name = ServerName::try_from("mail.example").unwrap();
            let verified = verifier.verify_server_cert(certificate.der(), &[], &name, &[], now);
            verified.map(drop)
        };
        assert_eq!(at(FROM - 1), Err(CertificateError::NotValidYet.into()));
        assert_eq!(at(TO + 1), Err(CertificateError::Expired.into()));
        assert_eq!([at(FROM), at(TO - 1), at(TO)], [Ok(()), Ok(()), Ok(())]);
    }
}
