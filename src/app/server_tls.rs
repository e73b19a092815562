//! The certificates that clients are shown, read from the files that the configuration names.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::server::ProducesTickets;

use super::StartError;
use crate::config::{self, CertificateFiles, Sni};
use crate::net::tls::{self, ServerTls};

/// What clients are shown.
///
/// # Errors
/// [`StartError`] names the key and the file that cannot be used.
pub(super) fn server_tls(
    tls: &config::TlsConfig,
    tickets: &Arc<dyn ProducesTickets>,
) -> Result<ServerTls, StartError> {
    let identities = |table, name: Option<&str>, certificates: &[CertificateFiles]| {
        let identity = |CertificateFiles { certificate, private_key }: &CertificateFiles| {
            let identity = match name {
                None => tls::identity(certificate, private_key),
                Some(name) => tls::identity_for(name, certificate, private_key),
            };
            identity.map(Arc::new).map_err(|error| {
                StartError::pair(table, [certificate, private_key], error.file(), &error)
            })
        };
        certificates.iter().map(identity).collect::<Result<Vec<_>, _>>()
    };
    let default = identities("[tls]", None, &tls.certificates)?;
    let mut named = HashMap::new();
    for Sni { name, certificates } in &tls.sni {
        named.insert(name.clone(), identities("[[tls.sni]]", Some(name), certificates)?);
    }
    tls::server(default, named, Arc::clone(tickets))
        .map_err(|error| StartError::key("[tls]", error))
}
