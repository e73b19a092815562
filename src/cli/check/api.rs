//! `[api]`: whether browsers take its certificate.

use super::Report;
use crate::config::{CertificateFiles, Config, PublicUrl, TlsConfig};
use crate::net::tls;

const PART: &str = "[api]";

/// Reads certificates. Nothing where `[api]` is off.
pub(super) fn api(config: &Config, report: &mut Report) {
    if config.api.address.is_none() {
        return;
    }
    match &config.api.public_url {
        Some(url) => public_url(url, &config.tls, report),
        None => report.warning(
            PART,
            "there is no public_url, so requests for any address and for all names of the certificates are answered; set it \
             to the URL that users open",
        ),
    }
}

/// Whether a certificate that a browser is shown there is for the host of this URL.
fn public_url(url: &PublicUrl, tls: &TlsConfig, report: &mut Report) {
    let host = url.host();
    let parent = host.split_once('.').map(|(_, parent)| parent);
    let named = tls.sni.iter().find(|sni| match sni.name.strip_prefix("*.") {
        Some(domain) => parent == Some(domain),
        None => sni.name == host,
    });
    let shown = named.map_or(&tls.certificates, |sni| &sni.certificates);
    let fits = |CertificateFiles { certificate, private_key }: &CertificateFiles| {
        tls::identity_for(host, certificate, private_key).is_ok()
    };
    let origin = url.origin();
    match shown.iter().all(fits) {
        true => report.ok(PART, format_args!("{origin}: the certificate is for this name")),
        false => report.failed(
            PART,
            format_args!(
                "{origin}: a certificate that is shown there is not for this name, so browsers refuse it; \
                 get one that is, and name it as [tls] certificate or in a [[tls.sni]]"
            ),
        ),
    }
}
