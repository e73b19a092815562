//! Certificates that are on this machine: that of Dovecot's configuration, and those of certbot.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::below;
use crate::cli::check::is_self_signed;
use crate::files;
use crate::model::Timestamp;
use crate::net::tls::{self, TlsError};

/// Longest configuration file that is read, in bytes.
const LONGEST: u64 = 1024 * 1024;

/// Where certbot has a folder for each certificate that it renews, below the root.
const LIVE: &str = "etc/letsencrypt/live";

/// A file of such a folder.
const CERTIFICATE: &str = "fullchain.pem";

/// Its private key.
const PRIVATE_KEY: &str = "privkey.pem";

/// A certificate that can be used.
#[derive(Debug)]
pub(super) struct FoundCertificate {
    pub(super) certificate: PathBuf,
    pub(super) private_key: PathBuf,
    /// The first name that it is for.
    pub(super) name: String,
    /// The mail server shows it, so phones know it.
    pub(super) is_of_server: bool,
    /// Why phones refuse it all the same.
    pub(super) refused: Option<&'static str>,
    until: String,
    from: &'static str,
}

impl FoundCertificate {
    /// One that is nowhere.
    #[cfg(test)]
    pub(super) fn of_test() -> Self {
        Self {
            certificate: "/etc/ssl/mail.pem".into(),
            private_key: "/etc/ssl/mail.key".into(),
            name: "mail.example.org".to_owned(),
            is_of_server: false,
            refused: None,
            until: String::new(),
            from: "",
        }
    }

    /// The name by which certbot knows it, where certbot renews these files.
    pub(super) fn lineage(&self, root: &Path) -> Option<&str> {
        let folder = self.certificate.parent()?;
        let is_certbots = self.certificate.ends_with(CERTIFICATE)
            && self.private_key == folder.join(PRIVATE_KEY)
            && folder.parent()? == below(root, LIVE);
        folder.file_name()?.to_str().filter(|_| is_certbots)
    }

    /// The certificate in these files; an error says what is wrong with them.
    pub(super) fn load(
        certificate: &Path,
        private_key: &Path,
        from: &'static str,
    ) -> Result<Self, String> {
        let identity = tls::identity(certificate, private_key).map_err(|error| match error {
            // It is root who runs setup, and not mailchime's user.
            TlsError::Unreadable { path, source } => unreadable(&path, &source),
            error => error.to_string(),
        })?;
        let file = certificate.display();
        let leaf = identity.cert.first().and_then(|der| X509Certificate::from_der(der).ok());
        let (_, leaf) = leaf.ok_or_else(|| format!("{file}: cannot be read"))?;
        let names = leaf.subject_alternative_name().ok().flatten();
        let names = names.map(|names| &names.value.general_names[..]).unwrap_or_default();
        let names = names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        });
        // A name that a server has, rather than a pattern of such names.
        let name = names.min_by_key(|name| name.starts_with("*."));
        let name =
            name.ok_or_else(|| format!("{file}: names no host, so phones do not take it"))?;
        let name = match name.strip_prefix("*.") {
            Some(domain) => format!("mail.{domain}"),
            None => name.to_owned(),
        };
        let refused = match () {
            () if is_self_signed(&leaf) => Some("it has signed itself"),
            () if !name.contains('.') || name.ends_with(".localhost") => {
                Some("it is for a name that phones cannot look up")
            }
            () => None,
        };
        let end = leaf.validity().not_after.timestamp().saturating_mul(1000);
        if Timestamp::now().0 > end {
            return Err(format!("{file}: expired on {}", Timestamp(end).date()));
        }
        Ok(Self {
            certificate: absolute(certificate)?,
            private_key: absolute(private_key)?,
            name,
            is_of_server: false,
            refused,
            until: Timestamp(end).date(),
            from,
        })
    }
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!("{path}: {error}; run setup as root"),
        _ => format!("{path}: cannot be read: {error}; {}", files::remedy(error)),
    }
}

/// The path as another folder sees it.
fn absolute(file: &Path) -> Result<PathBuf, String> {
    std::path::absolute(file).map_err(|error| format!("{}: {error}", file.display()))
}

impl fmt::Display for FoundCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { certificate, name, until, from, .. } = self;
        let name = name.escape_debug();
        write!(f, "{} for {name}, until {until} ({from})", certificate.display())?;
        match self.refused {
            Some(why) => write!(f, "; phones refuse it: {why}"),
            None => Ok(()),
        }
    }
}

/// Those below `root`, the server's own first; and why others cannot be used.
pub(super) fn find(root: &Path) -> (Vec<FoundCertificate>, Vec<String>) {
    let (mut found, mut unfit) = (Vec::new(), Vec::new());
    let mut seen = Vec::new();
    if let Some((certificate, private_key)) = of_dovecot(root) {
        match FoundCertificate::load(&certificate, &private_key, "of Dovecot") {
            Ok(of_server) => {
                seen.extend(fs::canonicalize(certificate));
                found.push(FoundCertificate { is_of_server: true, ..of_server });
            }
            Err(why) => unfit.push(why),
        }
    }
    let live = below(root, LIVE);
    let live = fs::read_dir(&live).inspect_err(|error| {
        if error.kind() == io::ErrorKind::PermissionDenied {
            unfit.push(unreadable(&live, error));
        }
    });
    let live = live.into_iter().flatten().flatten();
    let mut folders: Vec<_> = live.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    for folder in folders {
        let (certificate, private_key) = (folder.join(CERTIFICATE), folder.join(PRIVATE_KEY));
        if fs::canonicalize(&certificate).is_ok_and(|path| seen.contains(&path)) {
            continue;
        }
        match FoundCertificate::load(&certificate, &private_key, "of certbot") {
            Ok(certificate) => found.push(certificate),
            Err(why) => unfit.push(why),
        }
    }
    (found, unfit)
}

/// The files of Dovecot's configuration, in the order in which they are read as a rule.
pub(super) fn files_of_dovecot(root: &Path) -> Vec<String> {
    let parts = fs::read_dir(below(root, "etc/dovecot/conf.d")).into_iter().flatten().flatten();
    let mut parts: Vec<_> = parts.map(|entry| entry.path()).collect();
    parts.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
    parts.sort();
    let main = below(root, "etc/dovecot/dovecot.conf");
    let local = below(root, "etc/dovecot/local.conf");
    let all = std::iter::once(main).chain(parts).chain([local]);
    all.filter_map(|path| Some(files::read_text(&path, LONGEST).ok()?.0.to_string())).collect()
}

/// The block of Dovecot 2.4 for what all its listeners show.
const OF_ALL: &str = "ssl_server";

/// Certificate and key that all its listeners show: the last ones that are set outside of any block, or in that of
/// [`OF_ALL`].
fn of_dovecot(root: &Path) -> Option<(PathBuf, PathBuf)> {
    let (mut certificate, mut private_key) = (None, None);
    for text in files_of_dovecot(root) {
        let mut blocks: Vec<&str> = Vec::new();
        for line in text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
            if let Some(block) = line.strip_suffix('{') {
                blocks.push(block.trim());
            } else if line == "}" {
                blocks.pop();
            }
            let Some((key, value)) = line.split_once('=') else { continue };
            let value = below(root, value.trim().trim_start_matches('<').trim().trim_matches('"'));
            match (&blocks[..], key.trim()) {
                ([], "ssl_cert" | "ssl_server_cert_file") | ([OF_ALL], "cert_file") => {
                    certificate = Some(value);
                }
                ([], "ssl_key" | "ssl_server_key_file") | ([OF_ALL], "key_file") => {
                    private_key = Some(value);
                }
                _ => {}
            }
        }
    }
    Some((certificate?, private_key?))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    #[test]
    fn a_certificate_gives_the_name_of_a_server_and_counts_while_it_is_valid() {
        for (names, year, expected) in [
            (&["mail.example.org", "example.org"][..], 4000, Ok("mail.example.org")),
            (&["*.example.org", "imap.example.org"], 4000, Ok("imap.example.org")),
            (&["*.example.org"], 4000, Ok("mail.example.org")),
            (&["mail.example.org"], 2020, Err("expired on 2020-01-01")),
            (&[], 4000, Err("names no host")),
        ] {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut params = CertificateParams::new(names).unwrap();
            params.not_before = date_time_ymd(2019, 1, 1);
            params.not_after = date_time_ymd(year, 1, 1);
            let key = KeyPair::generate().unwrap();
            let folder = tempfile::tempdir().unwrap();
            let [certificate, private_key] =
                ["a.pem", "a.key"].map(|name| folder.path().join(name));
            fs::write(&certificate, params.self_signed(&key).unwrap().pem()).unwrap();
            fs::write(&private_key, key.serialize_pem()).unwrap();
            let found = FoundCertificate::load(&certificate, &private_key, "test");
            match (found, expected) {
                (Ok(found), Ok(name)) => assert_eq!(found.name, name),
                (Err(why), Err(part)) => assert!(why.contains(part), "{why}"),
                (found, _) => panic!("{:?}", found.map(|found| found.name)),
            }
        }
    }

    #[test]
    fn the_last_setting_outside_of_blocks_counts_in_both_forms_of_dovecot() {
        for (main, part, expected) in [
            (
                "!include conf.d/*.conf\n",
                "ssl_cert = </etc/a.pem # mine\nssl_key = < /etc/a.key\n",
                "a",
            ),
            (
                "dovecot_config_version = 2.4.1\n",
                "ssl_server_cert_file = /etc/b.pem\nssl_server_key_file = \"/etc/b.key\"\n\
                 local_name x {\n  ssl_server_cert_file = /etc/x.pem\n  ssl_server_key_file = /etc/x.key\n}\n",
                "b",
            ),
            (
                "dovecot_config_version = 2.4.1\n",
                "ssl_server {\n  cert_file = /etc/c.pem\n  key_file = /etc/c.key\n  dh_file = /etc/dh.pem\n}\n\
                 local_name x {\n  ssl_server {\n    cert_file = /etc/x.pem\n    key_file = /etc/x.key\n  }\n}\n",
                "c",
            ),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path();
            fs::create_dir_all(root.join("etc/dovecot/conf.d")).unwrap();
            fs::write(root.join("etc/dovecot/dovecot.conf"), main).unwrap();
            fs::write(root.join("etc/dovecot/conf.d/10-ssl.conf"), part).unwrap();
            fs::write(root.join("etc/dovecot/conf.d/10-ssl.conf.orig"), "ssl_cert = </no\n")
                .unwrap();
            let files = ["pem", "key"].map(|kind| root.join(format!("etc/{expected}.{kind}")));
            assert_eq!(of_dovecot(root), Some(files.into()), "{part}");
        }
    }
}
