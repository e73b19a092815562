//! Development certificates: a CA, a server certificate for this machine, and a client certificate
//! like those that Apple gives out for mail push. Made in memory; written to a folder on request.
//!
//! Nothing here is for production: the CA's key lies beside what it signed.

use std::fmt;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;

use super::{crypto, random_uuid};
use crate::files;

/// A certificate authority and what it signed. All keys are ECDSA P-256.
pub struct Pki {
    /// The authority.
    pub ca: Identity,
    /// For `localhost`, 127.0.0.1 and ::1.
    pub server: Identity,
    /// The subject's UID is [`Pki::topic`], as in a certificate from Apple (PROTOCOL.md section 2).
    pub client: Identity,
    /// The topic of the client's certificate.
    pub topic: String,
    /// What may be used in place of [`Pki::client`].
    pub provider: ProviderKey,
    issuer: Issuer<'static, KeyPair>,
}

/// A key for provider tokens, with the names that Apple gives to it and its team. `Debug` never
/// shows the key.
#[derive(Debug)]
pub struct ProviderKey {
    /// The key's id, as Apple gives one.
    pub key_id: String,
    /// The team's id, as Apple gives one.
    pub team_id: String,
    public_key: Vec<u8>,
    private_key: SecretString,
}

/// A certificate and its private key, both as PEM. `Debug` never shows the key.
#[derive(Debug)]
pub struct Identity {
    /// The certificate, as PEM.
    pub certificate: String,
    private_key: SecretString,
}

/// Why certificates could not be made, used or written.
#[derive(Debug, Error)]
pub enum PkiError {
    /// A key or certificate cannot be made.
    #[error("cannot make a development certificate: {0}")]
    Generate(#[from] rcgen::Error),
    /// TLS cannot be set up.
    #[error("cannot use a development certificate: {0}")]
    Tls(#[from] rustls::Error),
    /// The file is there already.
    #[error(
        "{} is there already and is not overwritten; move it away, or name another folder with --out",
        .path.display()
    )]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be written.
    #[error("cannot write {}: {source}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the library or the system says.
        source: io::Error,
    },
}

/// Subject attribute UID (RFC 4519 section 2.39), which holds the topic in Apple's certificates.
pub(super) const UID: [u64; 7] = [0, 9, 2342, 19_200_300, 100, 1, 1];

/// Apple's extension that lists all topics of a certificate.
pub(super) const TOPICS: [u64; 8] = [1, 2, 840, 113_635, 100, 6, 3, 6];

/// The longest validity that Apple's own TLS clients accept.
const VALIDITY: Duration = Duration::from_secs(825 * 24 * 3600);

/// A clock that is a little behind must not find the certificates to be of the future.
const BACKDATED: Duration = Duration::from_secs(24 * 3600);

// === impl Pki ===

impl Pki {
    /// Makes new keys and certificates. Without a `topic`, `com.apple.mail.XServer.` and a random
    /// UUID is taken.
    ///
    /// # Errors
    /// [`PkiError`] when a key or certificate cannot be made.
    pub fn generate(topic: Option<&str>) -> Result<Self, PkiError> {
        let topic = match topic {
            Some(topic) => topic.to_owned(),
            None => format!("com.apple.mail.XServer.{}", random_uuid().to_ascii_lowercase()),
        };

        let mut ca = params("mailchime development CA");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca_key = KeyPair::generate()?;
        let ca_identity = Identity::new(ca.self_signed(&ca_key)?, &ca_key);
        let issuer = Issuer::new(ca, ca_key);

        let names = ["localhost", "127.0.0.1", "::1"].map(String::from);
        let mut server = params("localhost");
        server.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];

        Ok(Self {
            ca: ca_identity,
            server: Identity::signed(server, &issuer)?,
            client: Identity::signed(client_params(&[&topic]), &issuer)?,
            topic,
            provider: ProviderKey::generate()?,
            issuer,
        })
    }

    /// Another client certificate, for these topics, of which the first is its subject's, and from
    /// so many seconds from now (or before, if negative) to so many.
    ///
    /// # Errors
    /// [`PkiError`] when a key or certificate cannot be made.
    pub fn client(&self, topics: &[&str], validity: Range<i64>) -> Result<Identity, PkiError> {
        let mut client = client_params(topics);
        let now = client.not_before + BACKDATED;
        let at = |seconds: i64| {
            let by = Duration::from_secs(seconds.unsigned_abs());
            if seconds < 0 { now - by } else { now + by }
        };
        (client.not_before, client.not_after) = (at(validity.start), at(validity.end));
        Identity::signed(client, &self.issuer)
    }

    /// Writes `ca.pem`, `ca.key`, `server.pem`, `server.key`, `apns.pem` and `apns.key` into the
    /// folder `dir`, which is made if it is not there. A key can be read by its owner alone from the
    /// moment that it exists.
    ///
    /// Returns the paths that were written.
    ///
    /// # Errors
    /// [`PkiError::Exists`] where one of the files is there: nothing was written then.
    pub fn write_to(&self, dir: &Path) -> Result<Vec<PathBuf>, PkiError> {
        let identities = [("ca", &self.ca), ("server", &self.server), ("apns", &self.client)];
        let files = identities.into_iter().flat_map(|(name, identity)| {
            [
                (dir.join(format!("{name}.key")), identity.expose_private_key(), 0o600),
                (dir.join(format!("{name}.pem")), identity.certificate.as_str(), 0o644),
            ]
        });
        let files: Vec<_> = files.collect();
        if let Some((path, ..)) = files.iter().find(|(path, ..)| fs::symlink_metadata(path).is_ok())
        {
            return Err(PkiError::Exists { path: path.clone() });
        }
        fs::create_dir_all(dir).map_err(|source| PkiError::Write { path: dir.into(), source })?;
        for (path, text, mode) in &files {
            files::create(path, text.as_bytes(), *mode)
                .map_err(|source| PkiError::Write { path: path.clone(), source })?;
        }
        Ok(files.into_iter().map(|(path, ..)| path).collect())
    }

    /// TLS for a server with [`Pki::server`] that asks no certificate of its clients.
    ///
    /// # Errors
    /// [`PkiError`] when TLS cannot be set up.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, PkiError> {
        let config = ServerConfig::builder_with_provider(crypto())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(self.server.chain()?, self.server.key()?)?;
        Ok(Arc::new(config))
    }

    /// TLS for a server that talks HTTP/2 to clients with a certificate of this CA, or without any.
    pub(super) fn apns_config(&self) -> Result<Arc<ServerConfig>, PkiError> {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), crypto())
                .allow_unauthenticated()
                .build()
                .map_err(|e| rustls::Error::General(e.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(crypto())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.server.chain()?, self.server.key()?)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    /// TLS for a client that trusts [`Pki::ca`] and shows `identity`, if any.
    ///
    /// # Errors
    /// [`PkiError`] when TLS cannot be set up.
    pub fn client_config(&self, identity: Option<&Identity>) -> Result<ClientConfig, PkiError> {
        let builder = ClientConfig::builder_with_provider(crypto())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots()?);
        Ok(match identity {
            Some(identity) => builder.with_client_auth_cert(identity.chain()?, identity.key()?)?,
            None => builder.with_no_client_auth(),
        })
    }

    fn roots(&self) -> Result<RootCertStore, rustls::Error> {
        roots(&self.ca.certificate)
    }
}

impl fmt::Debug for Pki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pki")
            .field("ca", &self.ca)
            .field("server", &self.server)
            .field("client", &self.client)
            .field("topic", &self.topic)
            .field("provider", &self.provider)
            .finish_non_exhaustive()
    }
}

// === impl ProviderKey ===

impl ProviderKey {
    /// A new key, under names that are the same each time.
    ///
    /// # Errors
    /// [`PkiError`] when a key or certificate cannot be made.
    pub fn generate() -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        Ok(Self {
            key_id: "ABCDE12345".into(),
            team_id: "TEAM123456".into(),
            public_key: key.public_key_raw().to_vec(),
            private_key: key.serialize_pem().into(),
        })
    }

    /// The private key as PEM, like Apple's `.p8` files; for such a file only.
    pub fn expose_private_key(&self) -> &str {
        self.private_key.expose_secret()
    }

    pub(super) fn public_key(&self) -> &[u8] {
        &self.public_key
    }
}

// === impl Identity ===

impl Identity {
    fn new(certificate: rcgen::Certificate, key: &KeyPair) -> Self {
        Self { certificate: certificate.pem(), private_key: key.serialize_pem().into() }
    }

    fn signed(params: CertificateParams, issuer: &Issuer<'_, KeyPair>) -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        Ok(Self::new(params.signed_by(&key, issuer)?, &key))
    }

    /// The private key as PEM (PKCS #8), for a file or a TLS configuration only.
    pub fn expose_private_key(&self) -> &str {
        self.private_key.expose_secret()
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, rustls::Error> {
        certificates(&self.certificate)
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, rustls::Error> {
        PrivateKeyDer::from_pem_slice(self.expose_private_key().as_bytes())
            .map_err(|e| rustls::Error::General(e.to_string()))
    }
}

/// The trust anchors in a PEM text.
pub(super) fn roots(pem: &str) -> Result<RootCertStore, rustls::Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, rustls::Error> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| rustls::Error::General(e.to_string()))
}

/// A client certificate as Apple's are; `topics` has at least one.
fn client_params(topics: &[&str]) -> CertificateParams {
    let topic = topics.first().copied().unwrap_or_default();
    let mut client = params(&format!("APSP:{topic}"));
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    client.distinguished_name.push(DnType::from_oid(&UID), topic);
    client.custom_extensions.push(CustomExtension::from_oid_content(&TOPICS, listed(topics)));
    client
}

/// `SEQUENCE { UTF8String topic, SEQUENCE { UTF8String "app" }, … }`, in DER.
fn listed(topics: &[&str]) -> Vec<u8> {
    const UTF8_STRING: u8 = 0x0c;
    const SEQUENCE: u8 = 0x30;
    let der = |tag: u8, content: &[u8]| {
        let length = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
        let head = match length {
            [0, short @ ..0x80] => vec![tag, short],
            [0, long] => vec![tag, 0x81, long],
            [high, low] => vec![tag, 0x82, high, low],
        };
        [&head, content].concat()
    };
    let kind = der(SEQUENCE, &der(UTF8_STRING, b"app"));
    let entry = |topic: &&str| [der(UTF8_STRING, topic.as_bytes()), kind.clone()].concat();
    der(SEQUENCE, &topics.iter().flat_map(entry).collect::<Vec<u8>>())
}

fn params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now - BACKDATED;
    params.not_after = params.not_before + VALIDITY;
    params
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_topic_is_the_uid_of_the_client_certificate() {
        let pki = Pki::generate(Some("com.apple.mail.XServer.test")).unwrap();
        let der = pki.client.chain().unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(&der[0]).unwrap();
        let subject = certificate.subject().to_string();
        assert!(subject.contains("uid=com.apple.mail.XServer.test"), "{subject}");
        let days = (certificate.validity().not_after.timestamp()
            - certificate.validity().not_before.timestamp())
            / 86_400;
        assert_eq!(days, 825);

        let other = Pki::generate(None).unwrap();
        let uuid = other.topic.strip_prefix("com.apple.mail.XServer.").unwrap();
        assert_eq!(uuid.len(), 36);
    }

    #[test]
    fn debug_has_no_key() {
        let pki = Pki::generate(None).unwrap();
        let shown = format!("{pki:?} {pki:#?}");
        assert!(shown.contains("BEGIN CERTIFICATE") && !shown.contains("PRIVATE KEY"), "{shown}");
        assert!(pki.ca.expose_private_key().contains("PRIVATE KEY"));
    }

    #[test]
    fn keys_are_their_owners_alone_and_what_is_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let certs = dir.path().join("certs");
        let pki = Pki::generate(None).unwrap();
        let written = pki.write_to(&certs).unwrap();
        assert_eq!(written.len(), 6);
        assert_eq!(fs::read_dir(&certs).unwrap().count(), 6, "nothing else is left behind");
        for path in &written {
            let mode = fs::metadata(path).unwrap().permissions().mode() & 0o777;
            let key = path.extension().unwrap() == "key";
            assert_eq!(mode, if key { 0o600 } else { 0o644 }, "{} {mode:o}", path.display());
        }
        let apns_key = || fs::read_to_string(certs.join("apns.key")).unwrap();
        assert_eq!(apns_key(), pki.client.expose_private_key());

        for path in &written[..5] {
            fs::remove_file(path).unwrap();
        }
        let refused = Pki::generate(None).unwrap().write_to(&certs).unwrap_err();
        assert!(matches!(refused, PkiError::Exists { .. }), "{refused}");
        assert_eq!(fs::read_dir(&certs).unwrap().count(), 1, "nothing was written");
    }
}
