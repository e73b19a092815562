//! Whether the file of a server certificate has the certificates that link it to an authority: clients that do not
//! have them refuse it, and browsers that happen to know them hide the fault.

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

/// How a chain ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ChainEnd {
    /// With an authority that this system trusts.
    Trusted,
    /// With the server's certificate itself, which signed itself; whether this system trusts it, as Debian's `ssl-cert`
    /// has it, says nothing of phones.
    SelfSigned,
    /// With one that signed itself and that this system does not trust: its name.
    OwnAuthority(String),
    /// With the server's certificate itself, which says where the one of this authority can be downloaded, as
    /// public authorities have it in those that an intermediate one signs.
    Missing(String),
    /// With an authority that is neither in the file nor trusted by this system: its name.
    Unknown(String),
}

/// Follows the issuers from the first certificate on, in whatever order the others are. `None` where the first cannot
/// be read.
pub(super) fn end(chain: &[CertificateDer<'_>], trusted: &RootCertStore) -> Option<ChainEnd> {
    let parsed: Vec<_> = chain
        .iter()
        .filter_map(|der| X509Certificate::from_der(der).ok().map(|(_, parsed)| parsed))
        .collect();
    let mut last = parsed.first()?;
    if is_self_signed(last) {
        return Some(ChainEnd::SelfSigned);
    }
    // No longer than the file, so that two that name each other end it.
    for _ in 0..parsed.len() {
        let issuer = last.issuer().as_raw();
        let is_trusted = trusted.roots.iter().any(|root| names(&root.subject, issuer));
        if is_trusted {
            return Some(ChainEnd::Trusted);
        }
        if issuer == last.subject().as_raw() {
            return Some(ChainEnd::OwnAuthority(shown(last)));
        }
        match parsed.iter().find(|other| other.subject().as_raw() == issuer) {
            Some(next) => last = next,
            None => break,
        }
    }
    Some(match parsed.first() {
        Some(first) if first == last && can_be_downloaded(last) => ChainEnd::Missing(shown(last)),
        _ => ChainEnd::Unknown(shown(last)),
    })
}

/// Whether it names itself as its authority.
pub(in crate::cli) fn is_self_signed(certificate: &X509Certificate<'_>) -> bool {
    certificate.issuer().as_raw() == certificate.subject().as_raw()
}

/// Whether the content of a SEQUENCE, as rustls keeps the subject of a root, is that of a whole one.
fn names(content: &[u8], sequence: &[u8]) -> bool {
    sequence.strip_suffix(content).is_some_and(|header| (2..=4).contains(&header.len()))
}

/// Whether it says where the certificate of its authority is (RFC 5280 section 4.2.2.1).
fn can_be_downloaded(certificate: &X509Certificate<'_>) -> bool {
    const CA_ISSUERS: &str = "1.3.6.1.5.5.7.48.2";
    certificate.extensions().iter().any(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityInfoAccess(access) => {
            access.accessdescs.iter().any(|it| it.access_method.to_id_string() == CA_ISSUERS)
        }
        _ => false,
    })
}

/// The issuer, as people know it, quoted and cut.
fn shown(certificate: &X509Certificate<'_>) -> String {
    let name = certificate.issuer().to_string();
    name.chars().take(100).collect::<String>().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair,
    };

    use super::*;

    /// SEQUENCE { SEQUENCE { caIssuers, [6] "u:a" } }
    const ACCESS: &[u8] = b"\x30\x11\x30\x0f\x06\x08\x2b\x06\x01\x05\x05\x07\x30\x02\x86\x03u:a";

    fn params(name: &str, is_ca: bool, downloads: bool) -> CertificateParams {
        let mut params = CertificateParams::new(vec!["mail.example".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        if is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        if downloads {
            let access =
                CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], ACCESS.to_vec());
            params.custom_extensions.push(access);
        }
        params
    }

    #[test]
    fn a_chain_ends_where_its_issuers_end() {
        let keys: [KeyPair; 3] = std::array::from_fn(|_| KeyPair::generate().unwrap());
        let [root_key, middle_key, leaf_key] = keys;
        let root_params = params("Root", true, false);
        let root = root_params.self_signed(&root_key).unwrap().der().clone();
        let root_issuer = Issuer::new(root_params, root_key);
        let middle_params = params("Middle", true, true);
        let middle = middle_params.signed_by(&middle_key, &root_issuer).unwrap().der().clone();
        let middle_issuer = Issuer::new(middle_params, middle_key);
        let signed = |downloads| {
            let params = params("Leaf", false, downloads);
            params.signed_by(&leaf_key, &middle_issuer).unwrap().der().clone()
        };
        let (public, private) = (signed(true), signed(false));
        let mut trusted = RootCertStore::empty();
        trusted.add(root.clone()).unwrap();
        let nobody = RootCertStore::empty();
        let by = |name: &str| format!("CN={name}");
        for (chain, roots, expected) in [
            (vec![&public, &middle], &trusted, ChainEnd::Trusted),
            // Whatever the order, and with the root, too.
            (vec![&public, &root, &middle], &trusted, ChainEnd::Trusted),
            (vec![&public], &trusted, ChainEnd::Missing(by("Middle"))),
            (vec![&private], &trusted, ChainEnd::Unknown(by("Middle"))),
            (vec![&public, &root], &trusted, ChainEnd::Missing(by("Middle"))),
            (vec![&public, &middle], &nobody, ChainEnd::Unknown(by("Root"))),
            (vec![&public, &middle, &root], &nobody, ChainEnd::OwnAuthority(by("Root"))),
            (vec![&root], &nobody, ChainEnd::SelfSigned),
            // As Debian's ssl-cert has it, whose certificate is among those that the system trusts.
            (vec![&root], &trusted, ChainEnd::SelfSigned),
        ] {
            let chain: Vec<_> = chain.into_iter().cloned().collect();
            let found = end(&chain, roots).unwrap();
            match (found, expected) {
                (ChainEnd::Trusted, ChainEnd::Trusted)
                | (ChainEnd::SelfSigned, ChainEnd::SelfSigned) => {}
                (ChainEnd::Missing(found), ChainEnd::Missing(name))
                | (ChainEnd::Unknown(found), ChainEnd::Unknown(name))
                | (ChainEnd::OwnAuthority(found), ChainEnd::OwnAuthority(name)) => {
                    assert!(found.contains(&name), "{found} for {name}");
                }
                (found, expected) => panic!("{found:?}, not {expected:?}"),
            }
        }
        assert_eq!(end(&[], &trusted), None);
        assert_eq!(end(&[CertificateDer::from(vec![1, 2, 3])], &trusted), None);
    }
}
