//! `[tls]` and `[[tls.sni]]`: what clients are shown.

use std::path::PathBuf;

use super::check::{Check, CheckResult, domain};
use super::table::OnePathOrMore;

/// `[tls]`: what clients are shown.
#[derive(Clone, Debug, PartialEq)]
pub struct TlsConfig {
    /// At least one; a client is shown the first that it can use.
    pub certificates: Vec<CertificateFiles>,
    /// Each with a name of its own.
    pub sni: Vec<Sni>,
}

/// A certificate and its private key: PEM files that exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, as PEM.
    pub certificate: PathBuf,
    /// Its private key, as PEM.
    pub private_key: PathBuf,
}

/// `[[tls.sni]]`: what clients are shown that ask for this name (RFC 6066 section 3).
#[derive(Clone, Debug, PartialEq)]
pub struct Sni {
    /// A host name in lower case; `*.` at its beginning stands for exactly one label.
    pub name: String,
    /// As in [`TlsConfig`].
    pub certificates: Vec<CertificateFiles>,
}

table!(RawTls {
    certificate: Option<OnePathOrMore>,
    private_key: Option<OnePathOrMore>,
    sni: Vec<RawSni>,
});

table!(RawSni {
    name: Option<String>,
    certificate: Option<OnePathOrMore>,
    private_key: Option<OnePathOrMore>,
});

impl TlsConfig {
    /// One certificate for every name.
    pub fn new(certificate: impl Into<PathBuf>, private_key: impl Into<PathBuf>) -> Self {
        Self {
            certificates: vec![CertificateFiles::new(certificate, private_key)],
            sni: Vec::new(),
        }
    }

    /// Those for every name, then those for one.
    pub fn all_certificates(&self) -> impl Iterator<Item = &CertificateFiles> {
        self.certificates.iter().chain(self.sni.iter().flat_map(|sni| &sni.certificates))
    }
}

impl CertificateFiles {
    /// The chain and the key in these files.
    pub fn new(certificate: impl Into<PathBuf>, private_key: impl Into<PathBuf>) -> Self {
        Self { certificate: certificate.into(), private_key: private_key.into() }
    }
}

impl Check<'_> {
    pub(super) fn tls(&self, raw: RawTls) -> CheckResult<TlsConfig> {
        const NAME: &str = "[[tls.sni]] name";
        let certificates = self.certificates("[tls]", raw.certificate, raw.private_key)?;
        let mut tls = TlsConfig { certificates, sni: Vec::new() };
        for RawSni { name, certificate, private_key } in raw.sni {
            let allowed = "give a host name, such as \"imap.example.org\", or one with \"*\" for \
                           its first label: \"*.example.org\"";
            let Some(name) = name else {
                return Err(self.refusal(NAME, format!("missing; {allowed}")));
            };
            let Some(known) = domain(name.strip_prefix("*.").unwrap_or(&name)) else {
                return Err(self.refusal(NAME, format!("{name:?} is no host name; {allowed}")));
            };
            let name = if name.starts_with("*.") { format!("*.{known}") } else { known };
            if tls.sni.iter().any(|other| other.name == name) {
                return Err(self.refusal(NAME, format!("{name} is given twice; remove one")));
            }
            let certificates = self.certificates("[[tls.sni]]", certificate, private_key)?;
            tls.sni.push(Sni { name, certificates });
        }
        Ok(tls)
    }

    /// The certificates of a table, each with its private key.
    fn certificates(
        &self,
        table: &str,
        certificate: Option<OnePathOrMore>,
        private_key: Option<OnePathOrMore>,
    ) -> CheckResult<Vec<CertificateFiles>> {
        let files = |key: &str, paths: Option<OnePathOrMore>| -> CheckResult<Vec<PathBuf>> {
            let key = format!("{table} {key}");
            match paths {
                Some(OnePathOrMore(paths)) if !paths.is_empty() => {
                    paths.into_iter().map(|path| self.required_file(&key, Some(path))).collect()
                }
                _ => Ok(vec![self.required_file(&key, None)?]),
            }
        };
        let certificates = files("certificate", certificate)?;
        let private_keys = files("private_key", private_key)?;
        if private_keys.len() != certificates.len() {
            let problem = format!(
                "names {} files, and `certificate` {}; give the private key of each certificate, in \
                 the same order",
                private_keys.len(),
                certificates.len()
            );
            return Err(self.refusal(&format!("{table} private_key"), problem));
        }
        let pairs = certificates.into_iter().zip(private_keys);
        Ok(pairs.map(|(certificate, key)| CertificateFiles::new(certificate, key)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::refused_with;

    #[test]
    fn a_refused_value_names_its_key_and_what_is_allowed() {
        for (text, expected) in [
            ("[[tls.sni]]", "[[tls.sni]] name: missing; give a host name"),
            ("[[tls.sni]]\nnme = 1", "[[tls.sni]]: unknown key `nme`"),
            ("[[tls.sni]]\nname = \"*\"", "[[tls.sni]] name: \"*\" is no host name"),
            ("[[tls.sni]]\nname = \"a.*.b\"", "[[tls.sni]] name: \"a.*.b\" is no host name"),
            ("[[tls.sni]]\nname = \"*.b\"", "[[tls.sni]] certificate: missing; name a PEM file"),
            (
                "[[tls.sni]]\nname = \"b\"\ncertificate = []",
                "[[tls.sni]] certificate: missing; name a PEM file",
            ),
            (
                "[[tls.sni]]\nname = \"b\"\ncertificate = 1",
                "[[tls.sni]] certificate: invalid type: integer `1`, expected a path or a list of paths",
            ),
            (
                "[[tls.sni]]\nname = \"b\"\ncertificate = [\"certs/server.pem\", \"certs/ca.pem\"]\n\
                 private_key = \"certs/server.key\"",
                "[[tls.sni]] private_key: names 1 files, and `certificate` 2; give the private key of each \
                 certificate",
            ),
            (
                "[[tls.sni]]\nname = \"b\"\ncertificate = [\"certs/server.pem\", \"certs/no.pem\"]",
                "[[tls.sni]] certificate: ",
            ),
        ] {
            refused_with(text, expected);
        }
    }
}
