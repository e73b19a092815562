//! Who we are to APNs: a client certificate, its key and the topic that it speaks for.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::model::Timestamp;
use crate::net::tls::{self, TlsError};

/// The subject attribute that holds the topic: `userId` (RFC 4519 section 2.39).
const UID: &str = "0.9.2342.19200300.100.1.1";

/// A client certificate with its key. `Debug` shows neither.
#[derive(Clone)]
pub struct Identity {
    pub(super) certified: Arc<CertifiedKey>,
    topic: String,
    not_after: Timestamp,
}

/// Why a certificate and a key are no identity. The texts name the file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file cannot be read, holds something else, or the two do not belong together.
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{certificate}: is no certificate that can be read: {why}; copy the file anew", certificate = .certificate.display())]
    BadCertificate { certificate: PathBuf, why: String },
    #[error(
        "{certificate}: its subject has no UID ({UID}), so it names no topic; take a push \
         certificate that Apple made for mail",
        certificate = .certificate.display()
    )]
    NoTopic { certificate: PathBuf },
}

impl IdentityError {
    /// The one file that is at fault, if it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Tls(error) => error.file(),
            Self::BadCertificate { certificate, .. } | Self::NoTopic { certificate } => {
                Some(certificate)
            }
        }
    }
}

impl Identity {
    /// From the file of a PEM certificate chain, the client's own first, and that of its PEM
    /// private key. Reads no clock: whether it has expired is [`Identity::not_after`]'s to tell.
    pub fn load(certificate: &Path, private_key: &Path) -> Result<Self, IdentityError> {
        let certified = tls::identity(certificate, private_key)?;
        let own = certified.end_entity_cert().map_err(TlsError::Setup)?;
        let (topic, not_after) = read(own, certificate)?;
        Ok(Self { certified: Arc::new(certified), topic, not_after })
    }

    /// The topic that devices are to be told and that each push carries.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// When the certificate expires.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("topic", &self.topic)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// The topic and the end of the validity of a certificate from the file `path`.
fn read(
    certificate: &CertificateDer<'_>,
    path: &Path,
) -> Result<(String, Timestamp), IdentityError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| {
        IdentityError::BadCertificate { certificate: path.into(), why: error.to_string() }
    })?;
    let topic = parsed
        .subject()
        .iter_attributes()
        .find(|attribute| attribute.attr_type().to_id_string() == UID)
        .and_then(|attribute| attribute.as_str().ok())
        // It becomes the value of a header.
        .filter(|topic| !topic.is_empty() && topic.bytes().all(|byte| byte.is_ascii_graphic()))
        .ok_or_else(|| IdentityError::NoTopic { certificate: path.into() })?;
    let not_after = parsed.validity().not_after.timestamp().saturating_mul(1000);
    Ok((topic.to_owned(), Timestamp(not_after)))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn certificate(topic: Option<&str>) -> (String, String) {
        let mut params = CertificateParams::default();
        params.not_after = rcgen::date_time_ymd(2031, 2, 3);
        if let Some(topic) = topic {
            let uid = DnType::CustomDnType(vec![0, 9, 2342, 19_200_300, 100, 1, 1]);
            params.distinguished_name.push(uid, topic);
        }
        let key = KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    fn load(certificate: &str, key: &str) -> Result<Identity, IdentityError> {
        let folder = tempfile::tempdir().unwrap();
        let [certificate, key] =
            [("apns.pem", certificate), ("apns.key", key)].map(|(name, pem)| {
                let path = folder.path().join(name);
                std::fs::write(&path, pem).unwrap();
                path
            });
        Identity::load(&certificate, &key)
    }

    #[test]
    fn topic_and_expiry_are_the_certificates() {
        let (certificate, key) = certificate(Some("com.apple.mail.XServer.1"));
        let identity = load(&certificate, &key).unwrap();
        assert_eq!(identity.topic(), "com.apple.mail.XServer.1");
        assert_eq!(identity.not_after(), Timestamp(1_927_843_200_000));
        assert!(!format!("{identity:?}").contains("key"), "{identity:?}");
    }

    #[test]
    fn what_is_wrong_is_said_with_the_file() {
        let (good, key) = certificate(Some("com.apple.mail.XServer.1"));
        let (_, other_key) = certificate(None);
        let (topicless, its_key) = certificate(None);
        let (blank, blank_key) = certificate(Some("a b"));
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (certificate, key, file, said) in [
            (&*good, &*other_key, "apns.key", "do not belong together"),
            (&topicless, &its_key, "apns.pem", "names no topic"),
            (&blank, &blank_key, "apns.pem", "names no topic"),
            (&key, &key, "apns.pem", "has no certificate"),
            (&good, &good, "apns.key", "has no private key"),
            (garbage, &key, "apns.pem", "no certificate that can be read"),
        ] {
            let error = load(certificate, key).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains(file), "{error}");
        }
    }
}
