//! TLS configurations from PEM files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Why a TLS configuration cannot be made. Each message names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(
        "{path}: cannot be read: {source}; let the user that mailchime runs as read it",
        path = path.display()
    )]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error(
        "{path}: has no certificate in PEM form; name a file with -----BEGIN CERTIFICATE-----",
        path = path.display()
    )]
    NoCertificate { path: PathBuf },
    #[error(
        "{path}: has no private key in PEM form; name a file with -----BEGIN PRIVATE KEY-----, not \
         encrypted with a passphrase",
        path = path.display()
    )]
    NoKey { path: PathBuf },
    #[error("{path}: is not well-formed PEM; make or copy the file anew", path = path.display())]
    Malformed { path: PathBuf },
    #[error(
        "{path}: holds no certificate that can be read ({why}); make or copy the file anew",
        path = path.display()
    )]
    BadCertificate { path: PathBuf, why: rustls::Error },
    #[error(
        "{path}: holds no private key that can be used; allowed are RSA, ECDSA and Ed25519 keys",
        path = path.display()
    )]
    BadKey { path: PathBuf },
    #[error(
        "{certificate} and {private_key} do not belong together: name the private key that this \
         certificate was made for; of several in one file, its own comes first",
        certificate = certificate.display(), private_key = private_key.display()
    )]
    Mismatch { certificate: PathBuf, private_key: PathBuf },
    #[error("the system has no certificate authorities: install ca-certificates, or set `ca`")]
    NoRoots,
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
            | Self::Malformed { path }
            | Self::BadCertificate { path, .. }
            | Self::BadKey { path } => Some(path),
            Self::Mismatch { .. } | Self::NoRoots | Self::Setup(_) => None,
        }
    }
}

/// The cryptography that is used everywhere.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A certificate chain and its private key, from PEM files; they belong together.
pub fn identity(certificate: &Path, private_key: &Path) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&read(private_key)?).map_err(|why| match why {
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

/// What clients connect to: TLS 1.2 and 1.3 with this certificate.
pub fn server(certificate: &Path, private_key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let identity = identity(certificate, private_key)?;
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
    Ok(Arc::new(config))
}

/// What connects to a backend: verified against `ca`, or the system's authorities.
pub fn client(ca: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca)?)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// The authorities in the file `ca`, or the system's.
pub fn roots(ca: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|_| TlsError::Malformed { path: path.into() })?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() { Err(TlsError::NoRoots) } else { Ok(roots) }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|_| TlsError::Malformed { path: path.into() })?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate { path: path.into() });
    }
    Ok(chain)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Unreadable { path: path.into(), source })
}
