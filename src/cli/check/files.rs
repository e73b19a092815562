//! What lies on this machine: certificates, the key of the credentials, the database.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::Report;
use super::chain::{self, ChainEnd};
use super::ports::Running;
use crate::config::{self, Config, CredentialsMode, DatabaseKind, TlsConfig};
use crate::files;
use crate::model::Timestamp;
use crate::net::tls::{self, EXPIRY_WARNING_DAYS};
use crate::secret_file::folder;
use crate::store::{Store, StoreError, Vault, unreadable};

const DAY: i64 = 24 * 3600;

pub(super) fn certificates(tls: &TlsConfig, report: &mut Report) {
    const DEFAULT: &str = "[tls]";
    let trusted = tls::system_roots();
    for config::CertificateFiles { certificate: file, private_key } in &tls.certificates {
        match tls::identity(file, private_key) {
            Ok(identity) => certificate(DEFAULT, file, (&identity, &trusted), report),
            Err(error) => report.refused(DEFAULT, error),
        }
    }
    for config::Sni { name, certificates } in &tls.sni {
        let part = format!("[[tls.sni]] {name}");
        for config::CertificateFiles { certificate: file, private_key } in certificates {
            match tls::identity_for(name, file, private_key) {
                Ok(identity) => certificate(&part, file, (&identity, &trusted), report),
                Err(error) => report.refused(&part, error),
            }
        }
    }
}

fn certificate(
    part: &str,
    file: &Path,
    (identity, trusted): (&CertifiedKey, &RootCertStore),
    report: &mut Report,
) {
    let file = file.display();
    let leaf = identity.cert.first().and_then(|der| X509Certificate::from_der(der).ok());
    let Some((_, leaf)) = leaf else {
        return report.failed(part, format_args!("{file}: cannot be read; copy it anew"));
    };
    let names = names(&leaf);
    if names.is_empty() {
        let remedy = "phones take no certificate without subject alternative names; get another";
        return report.failed(part, format_args!("{file}: {remedy}"));
    }
    let names = names.join(", ");
    // Where the system trusts nobody, nothing can be said of it.
    let end = chain::end(&identity.cert, trusted)
        .filter(|end| !trusted.is_empty() || *end == ChainEnd::SelfSigned);
    if let Some(ChainEnd::Missing(authority)) = &end {
        let problem = format!(
            "{file}: lacks the certificate of its authority ({authority}), without which phones refuse it; \
             append it (from certbot take fullchain.pem, not cert.pem)"
        );
        report.failed(part, problem);
    }
    let validity = leaf.validity();
    let now = Timestamp::now().0 / 1000;
    let (from, to) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let until = Timestamp(to.saturating_mul(1000)).date();
    match (to - now).div_euclid(DAY) {
        _ if now < from => {
            let from = Timestamp(from.saturating_mul(1000)).date();
            report
                .failed(part, format_args!("{file}: is valid from {from} on; is the clock right?"));
        }
        ..0 => report.failed(part, format_args!("{file}: expired on {until}; renew it")),
        days @ 0..EXPIRY_WARNING_DAYS => {
            report.warning(part, format_args!("{file}: expires in {days} days; renew it"));
        }
        _ if matches!(end, Some(ChainEnd::Missing(_))) => {}
        _ => report.ok(part, format_args!("{file}: for {names}, until {until}")),
    }
    match end {
        Some(ChainEnd::SelfSigned) => report.warning(
            part,
            format_args!(
                "{file}: has signed itself, so phones refuse it, also where this system trusts it; get one of a \
                 public authority (certbot), or of your own that is installed on the phones"
            ),
        ),
        Some(ChainEnd::OwnAuthority(authority)) => report.warning(
            part,
            format_args!(
                "{file}: goes back to an authority that this system does not trust ({authority}); phones \
                 take it only where that one is installed on them"
            ),
        ),
        Some(ChainEnd::Unknown(authority)) => report.warning(
            part,
            format_args!(
                "{file}: goes back to an authority that is neither in the file nor trusted by this system \
                 ({authority}); if it is an intermediate one, append its certificate; else phones take it \
                 only where that authority is installed on them"
            ),
        ),
        Some(ChainEnd::Trusted | ChainEnd::Missing(_)) | None => {}
    }
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).escape_debug().to_string()),
        GeneralName::IPAddress(bytes) => match *bytes {
            [a, b, c, d] => Some(format!("{a}.{b}.{c}.{d}")),
            bytes => <[u8; 16]>::try_from(bytes)
                .ok()
                .map(|bytes| std::net::Ipv6Addr::from(bytes).to_string()),
        },
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).collect()
}

/// Fails for files with secrets that others can use. As root it is not known whose they should be: the
/// program may run as any user.
pub(super) fn secrets(config: &Config, report: &mut Report) {
    let root = rustix::process::geteuid().is_root();
    // These are refused where others can use them.
    let refused = ["master_password_file", "[credentials] key_file", "[webpush] key_file"];
    let files = config.secret_files().into_iter();
    for (key, path) in files.filter(|(key, _)| !refused.contains(key)) {
        let Ok(metadata) = fs::metadata(path) else { continue };
        let (mode, file) = (metadata.permissions().mode() & 0o777, path.display());
        match files::exposure(path) {
            Some(why) if mode & 0o027 != 0 || !root => {
                report.failed(key, format_args!("{file}: {why}"));
            }
            _ if mode & 0o040 != 0 => {
                let note = format_args!("{file}: its group can read it, too (mode {mode:03o})");
                report.ok(key, note);
            }
            _ => {}
        }
    }
}

/// Of the key file and the credentials in the database, if that could be opened.
pub(super) async fn credentials(config: &Config, store: Option<&Store>, report: &mut Report) {
    const PART: &str = "[credentials]";
    let key_file = &config.key_file;
    match config.credentials {
        CredentialsMode::Stored => {}
        CredentialsMode::Memory => report.ok(PART, "kept in memory: gone at each restart"),
        // For each backend it is shown with the rest of what is known of that.
        CredentialsMode::Master => report.ok(PART, "no user's password is kept"),
    }
    let shown = key_file.display();
    let vault = match files::exists(key_file).then(|| Vault::open_existing(key_file)).transpose() {
        Ok(vault) => vault,
        Err(error) => return report.refused(PART, error),
    };
    let unreadable = match store {
        Some(store) => unreadable(store, vault.as_ref()).await,
        None => Ok(0),
    };
    match (unreadable, vault) {
        (Err(error), _) => report.failed(PART, error),
        (Ok(accounts @ 1..), vault) => {
            let is = if vault.is_some() { "not the one" } else { "not there, and was the one" };
            let problem = format!(
                "{shown}: is {is} that sealed what is stored of {accounts} accounts; put back the \
                 key file of that time, or each of them is watched again when its user has logged in"
            );
            // `serve` makes no key where one is missing.
            match (vault, &config.credentials) {
                (None, CredentialsMode::Stored) => report.refused(PART, problem),
                _ => report.failed(PART, problem),
            }
        }
        (Ok(0), Some(_)) => report.ok(PART, format_args!("{shown}: can be used")),
        (Ok(0), None) if config.credentials == CredentialsMode::Stored => {
            to_be_made(PART, key_file, report);
        }
        (Ok(0), None) => {}
    }
}

/// The database, to be closed.
pub(super) async fn database(
    config: &config::StoreConfig,
    running: Running,
    report: &mut Report,
) -> Option<Store> {
    const PART: &str = "[store]";
    if let DatabaseKind::Sqlite(path) = config.url.kind()
        && !files::exists(path)
    {
        to_be_made(PART, path, report);
        return None;
    }
    if let DatabaseKind::Sqlite(path) = config.url.kind() {
        let folder = folder(path);
        let shut = fs::OpenOptions::new().write(true).open(path).err();
        let shut = shut.or_else(|| files::takes_new_files(folder).err());
        if let Some(error) = shut.filter(|error| error.kind() == io::ErrorKind::PermissionDenied) {
            let (file, folder) = (path.display(), folder.display());
            let problem = format!(
                "{file}: {error}; the user that mailchime runs as must be able to write the file, those \
                 beside it that end in -wal and -shm, and the folder {folder}"
            );
            report.refused(PART, problem);
            return None;
        }
    }
    // One file has one process.
    let mut is_free = true;
    if running != Running::Yes
        && let Some(error) = Store::in_use(&config.url)
    {
        let text = format!(
            "{error}. If that one runs with this configuration as it was before, restart it"
        );
        is_free = running == Running::Unknown;
        match running {
            Running::No => report.failed(PART, text),
            _ => report.warning(PART, text),
        }
    }
    let store = match Store::open_existing(&config.url, config.busy_timeout).await {
        Ok(store) => store,
        Err(error) => {
            not_opened(error, config, report).await;
            return None;
        }
    };
    match store.accounts(Timestamp(0)).await {
        Ok(accounts) if is_free => {
            report.ok(PART, format_args!("{}: {} accounts", config.url, accounts.len()));
        }
        Ok(_) => {}
        Err(error) => report.failed(PART, error),
    }
    Some(store)
}

/// Of a database that is not as `serve` wants to have it.
async fn not_opened(error: StoreError, config: &config::StoreConfig, report: &mut Report) {
    const PART: &str = "[store]";
    // What `serve` makes, or brings up to date, where it may.
    if matches!(error, StoreError::NoTables { .. } | StoreError::Older { .. })
        && let Err(error) = Store::may_migrate(&config.url, config.busy_timeout).await
    {
        return match error.is_temporary() {
            true => report.failed(PART, error),
            false => report.refused(PART, error),
        };
    }
    match error {
        StoreError::NoTables { .. } if !matches!(config.url.kind(), DatabaseKind::Sqlite(_)) => {
            let text = "has no tables yet; the first start makes them";
            report.ok(PART, format_args!("{}: {text}", config.url));
        }
        StoreError::NoTables { .. } => {
            let what = "is empty or another program's database; mailchime makes its tables there at its start";
            report.warning(PART, format_args!("{}: {what}", config.url));
        }
        StoreError::Older { .. } => report.warning(PART, error),
        // What it waits for.
        error if error.is_temporary() => report.failed(PART, error),
        error => report.refused(PART, error),
    }
}

/// A file that the first start makes.
fn to_be_made(part: &str, file: &Path, report: &mut Report) {
    match files::to_be_made(file) {
        Ok(well) => report.ok(part, well),
        Err(problem) => report.refused(part, problem),
    }
}
