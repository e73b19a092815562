//! TLS configurations from PEM files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Why a TLS configuration cannot be made. Each message names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path}: cannot be read: {source}", path = path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{path}: has no {what} in PEM form (-----BEGIN …)", path = path.display())]
    Missing { path: PathBuf, what: &'static str },
    #[error("{path}: is not well-formed PEM", path = path.display())]
    Malformed { path: PathBuf },
    #[error(
        "{certificate} and {private_key} do not belong together: {why}. Name the key that this \
         certificate was made for",
        certificate = certificate.display(), private_key = private_key.display()
    )]
    Mismatch { certificate: PathBuf, private_key: PathBuf, why: rustls::Error },
    #[error("the system has no certificate authorities: install ca-certificates, or set `ca`")]
    NoRoots,
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

/// The cryptography that is used everywhere.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A certificate chain and its private key, from PEM files.
pub fn identity(
    certificate: &Path,
    private_key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = certificates(certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&read(private_key)?).map_err(|why| match why {
        rustls::pki_types::pem::Error::NoItemsFound => {
            TlsError::Missing { path: private_key.into(), what: "private key" }
        }
        _ => TlsError::Malformed { path: private_key.into() },
    })?;
    Ok((chain, key))
}

/// What clients connect to: TLS 1.2 and 1.3 with this certificate.
pub fn server(certificate: &Path, private_key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let (chain, key) = identity(certificate, private_key)?;
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|why| TlsError::Mismatch {
            certificate: certificate.into(),
            private_key: private_key.into(),
            why,
        })?;
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
        return Err(TlsError::Missing { path: path.into(), what: "certificate" });
    }
    Ok(chain)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Unreadable { path: path.into(), source })
}
