//! TLS configurations from PEM files.

mod pin;
mod verify;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};
use secrecy::zeroize::Zeroizing;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Version};

use self::pin::KeyVerifier;
use self::verify::PinningVerifier;
pub use self::verify::{RefusedCertificate, pin_of};
use crate::config::PublicKeyPin;
use crate::files;

/// From so many days before its end a certificate is warned of: one that clients are shown, and one that
/// mailchime shows.
pub const EXPIRY_WARNING_DAYS: i64 = 30;

/// Why a TLS configuration cannot be made. Each message names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error(
        "{path}: cannot be read: {source}; {remedy}",
        path = path.display(),
        remedy = files::remedy(source)
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the library or the system says.
        source: std::io::Error,
    },
    /// A file has no certificate.
    #[error(
        "{path}: has no certificate in PEM form; name a file with -----BEGIN CERTIFICATE-----",
        path = path.display()
    )]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A file has no private key.
    #[error(
        "{path}: has no private key in PEM form; name a file with -----BEGIN PRIVATE KEY-----, not \
         encrypted with a passphrase",
        path = path.display()
    )]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// A private key is encrypted.
    #[error(
        "{path}: its private key is encrypted with a passphrase, which nobody can type at a start; write \
         one without: openssl pkey -in {path} -out KEY, and restrict that file to its owner",
        path = path.display()
    )]
    EncryptedKey {
        /// The file.
        path: PathBuf,
    },
    /// A certificate is of a version that no client takes.
    #[error(
        "{path}: is a certificate of X.509 version 1, which has no subject alternative names and which \
         clients refuse; make one of version 3 (openssl req -x509 -addext subjectAltName=DNS:HOST), or \
         have your authority make one",
        path = path.display()
    )]
    OutdatedCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A file is no PEM.
    #[error("{path}: is not well-formed PEM; make or copy the file anew", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// A certificate cannot be used.
    #[error(
        "{path}: holds no certificate that can be read ({why}); make or copy the file anew",
        path = path.display()
    )]
    BadCertificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: rustls::Error,
    },
    /// A private key cannot be used.
    #[error(
        "{path}: holds no private key that can be used; allowed are RSA, ECDSA and Ed25519 keys",
        path = path.display()
    )]
    BadKey {
        /// The file.
        path: PathBuf,
    },
    /// The key is not that of the certificate.
    #[error(
        "{certificate} and {private_key} do not belong together: name the private key that this \
         certificate was made for; of several in one file, its own comes first",
        certificate = certificate.display(), private_key = private_key.display()
    )]
    Mismatch {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of its private key.
        private_key: PathBuf,
    },
    /// The certificate is for other names.
    #[error("{path}: is not for {name}; name the certificate that is", path = path.display())]
    OtherName {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// It is no host name.
    #[error("{0:?} is no host name or IP address")]
    NoName(String),
    /// The system trusts no authority.
    #[error("the system has no certificate authorities: install ca-certificates, or set `ca`")]
    NoRoots,
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

impl TlsError {
    /// The one file that is at fault, if it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Unreadable { path, .. }
            | Self::NoCertificate { path }
            | Self::NoKey { path }
            | Self::EncryptedKey { path }
            | Self::OutdatedCertificate { path }
            | Self::Malformed { path }
            | Self::BadCertificate { path, .. }
            | Self::BadKey { path }
            | Self::OtherName { path, .. } => Some(path),
            Self::Mismatch { .. } | Self::NoName(_) | Self::NoRoots | Self::Setup(_) => None,
        }
    }
}

/// The cryptography that is used everywhere.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A certificate chain and its private key, from PEM files; they belong together.
///
/// # Errors
/// [`TlsError`] names the file that cannot be read or used.
pub fn identity(certificate: &Path, private_key: &Path) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(certificate)?;
    let outdated = |(_, leaf): (&[u8], X509Certificate<'_>)| leaf.version() != X509Version::V3;
    if chain.first().is_some_and(|leaf| X509Certificate::from_der(leaf).is_ok_and(outdated)) {
        return Err(TlsError::OutdatedCertificate { path: certificate.into() });
    }
    let pem = read(private_key)?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|why| match why {
        _ if is_encrypted(&pem) => TlsError::EncryptedKey { path: private_key.into() },
        rustls::pki_types::pem::Error::NoItemsFound => TlsError::NoKey { path: private_key.into() },
        _ => TlsError::Malformed { path: private_key.into() },
    })?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(|why| match why {
        rustls::Error::InconsistentKeys(_) => {
            TlsError::Mismatch { certificate: certificate.into(), private_key: private_key.into() }
        }
        rustls::Error::InvalidCertificate(_) => {
            TlsError::BadCertificate { path: certificate.into(), why }
        }
        _ => TlsError::BadKey { path: private_key.into() },
    })
}

/// Whether a PEM file has an encrypted private key, in the form of PKCS #8 (RFC 7468 section 11) or in that of
/// before (RFC 1421 section 4.6.1.1).
fn is_encrypted(pem: &[u8]) -> bool {
    let text = String::from_utf8_lossy(pem);
    text.lines().any(|line| {
        let line = line.trim();
        line == "-----BEGIN ENCRYPTED PRIVATE KEY-----"
            || line.strip_prefix("Proc-Type:").is_some_and(|rest| rest.contains("ENCRYPTED"))
    })
}

/// What seals the tickets by which clients resume a session without a full handshake (RFC 8446
/// section 2.2, RFC 5077). One for the life of the program: tickets hold over new certificates, and
/// their keys, which are never written, change every six hours.
///
/// # Errors
/// [`TlsError::Setup`] when there is no randomness.
pub fn tickets() -> Result<Arc<dyn ProducesTickets>, TlsError> {
    Ok(rustls::crypto::aws_lc_rs::Ticketer::new()?)
}

/// A certificate chain that is for `name`, a host name whose first label may be `*`, and its private
/// key.
///
/// # Errors
/// [`TlsError`] names the file that cannot be read or used, or that is for other names.
pub fn identity_for(
    name: &str,
    certificate: &Path,
    private_key: &Path,
) -> Result<CertifiedKey, TlsError> {
    let identity = identity(certificate, private_key)?;
    // What stands for any label is tried with one.
    let host = name.replace('*', "any");
    let fits = || {
        let certificate = ParsedCertificate::try_from(identity.end_entity_cert()?)?;
        let host = ServerName::try_from(host).map_err(|_| CertificateError::NotValidForName)?;
        verify_server_name(&certificate, &host)
    };
    fits().map_err(|_| TlsError::OtherName { path: certificate.into(), name: name.to_owned() })?;
    Ok(identity)
}

/// What clients connect to, and by which names.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// How TLS is spoken.
    pub config: Arc<ServerConfig>,
    /// The names of certificates that are shown for a name, in lower case; `*.` stands for any first label.
    pub named: Arc<[String]>,
    /// The same of all certificates.
    pub names: Arc<[String]>,
}

/// What clients connect to: TLS 1.2 and 1.3, with a certificate that is for the name they ask for,
/// in lower case and with `*.` for any first label, or else with a default one. Of several for one name a
/// client is shown the first that it can use; each list has at least one.
///
/// ALPN is left alone: a client that offers `imap` (its name in IANA's registry) or anything else is
/// served, and none is chosen.
///
/// # Errors
/// [`TlsError::Setup`] when TLS cannot be set up.
pub fn server(
    default: Vec<Arc<CertifiedKey>>,
    named: HashMap<String, Vec<Arc<CertifiedKey>>>,
    tickets: Arc<dyn ProducesTickets>,
) -> Result<ServerTls, TlsError> {
    let of_default = default.iter().flat_map(|identity| names_of(identity));
    let names = named.keys().cloned().chain(of_default).collect();
    let by_name = named.keys().cloned().collect();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Certificates { named, default }));
    config.ticketer = tickets;
    Ok(ServerTls { config: Arc::new(config), named: by_name, names })
}

/// The host names that a certificate is for (RFC 6125 section 6.4), in lower case.
fn names_of(identity: &CertifiedKey) -> Vec<String> {
    let leaf = identity.cert.first().and_then(|der| X509Certificate::from_der(der).ok());
    let Some((_, leaf)) = leaf else { return Vec::new() };
    let Ok(Some(names)) = leaf.subject_alternative_name() else { return Vec::new() };
    let names = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    names.collect()
}

/// Which certificate a client is shown.
#[derive(Debug)]
struct Certificates {
    named: HashMap<String, Vec<Arc<CertifiedKey>>>,
    default: Vec<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().and_then(|name| {
            let name = name.to_ascii_lowercase();
            let parent = name.split_once('.').map(|(_, parent)| format!("*.{parent}"));
            self.named.get(&name).or_else(|| self.named.get(&parent?))
        });
        let certificates = named.unwrap_or(&self.default);
        // rustls leaves only those that go with the cipher suites in common.
        let schemes = hello.signature_schemes();
        let usable = certificates.iter().find(|it| it.key.choose_scheme(schemes).is_some());
        // Where there is none, rustls finds out and says what is missing.
        usable.or(certificates.first()).map(Arc::clone)
    }
}

/// What connects to a backend: verified as by [`verifier`].
///
/// # Errors
/// [`TlsError`] when the authorities cannot be read or used.
pub fn client(ca: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    client_with(verifier(ca)?)
}

/// What connects to a backend that this verifies.
///
/// # Errors
/// [`TlsError::Setup`] when TLS cannot be set up.
pub fn client_with(verifier: Arc<dyn ServerCertVerifier>) -> Result<Arc<ClientConfig>, TlsError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// What verifies a server's certificate by its public key, which must be one of these, and by nothing else.
pub fn key_verifier(pins: Vec<PublicKeyPin>) -> Arc<dyn ServerCertVerifier> {
    Arc::new(KeyVerifier::new(Some(pins)))
}

/// Takes the certificate of any server: for a look at who is there, with words that everybody may know.
pub fn any_verifier() -> Arc<dyn ServerCertVerifier> {
    Arc::new(KeyVerifier::new(None))
}

/// What verifies a server's certificate: by the authorities in the file `ca`, or the system's. A
/// self-signed one that is itself in `ca` needs no authority.
///
/// # Errors
/// [`TlsError`] when the authorities cannot be read or used, or there are none.
pub fn verifier(ca: Option<&Path>) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    let (mut roots, mut named) = (RootCertStore::empty(), Vec::new());
    match ca {
        Some(path) => {
            named = certificates(path)?;
            for certificate in &named {
                let added = roots.add(certificate.clone());
                added.map_err(|_| TlsError::Malformed { path: path.into() })?;
            }
        }
        None => roots = system_roots(),
    }
    if roots.is_empty() {
        return Err(TlsError::NoRoots);
    }
    let by_authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    Ok(Arc::new(PinningVerifier::new(by_authorities, named)))
}

/// The authorities that the system trusts.
pub fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// The certificates of a PEM file, of which there is at least one.
///
/// # Errors
/// [`TlsError`] when the file cannot be read or has no certificate.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|_| TlsError::Malformed { path: path.into() })?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate { path: path.into() });
    }
    Ok(chain)
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let read = files::read(path, files::LARGEST);
    let (bytes, _) = read.map_err(|source| TlsError::Unreadable { path: path.into(), source })?;
    Ok(bytes)
}
