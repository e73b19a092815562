//! A profile of Firefox for a demo or a test: with the stand-in as its push service, and with trust in one
//! certificate at one address. It needs no other program and changes no other profile.

use std::fs;
use std::io;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::pki::Identity;

/// Settings that keep Firefox from what a demo does not need.
const QUIET: &[&str] = &[
    "app.update.enabled",
    "browser.aboutwelcome.enabled",
    "browser.shell.checkDefaultBrowser",
    "datareporting.policy.dataSubmissionEnabled",
    "extensions.update.enabled",
    "network.captive-portal-service.enabled",
    "network.connectivity-service.enabled",
    "toolkit.telemetry.enabled",
];

/// Makes `folder` a profile of a Firefox that trusts this `server` at `localhost` and this port, and takes
/// `push_service` (a `ws://` URL) for its push service.
///
/// # Errors
/// When the certificate is none, or a file cannot be written.
pub fn write(folder: &Path, push_service: &str, server: &Identity, port: u16) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut settings = format!(
        "user_pref(\"dom.push.serverURL\", \"{push_service}\");\n\
         user_pref(\"dom.push.testing.allowInsecureServerURL\", true);\n"
    );
    for name in QUIET {
        settings.push_str(&format!("user_pref(\"{name}\", false);\n"));
    }
    fs::write(folder.join("user.js"), settings)?;

    let certificate = CertificateDer::from_pem_slice(server.certificate.as_bytes());
    let certificate = certificate.map_err(io::Error::other)?;
    let hash = digest(&SHA256, &certificate);
    let hash: Vec<_> = hash.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    // The object identifier is that of SHA-256.
    let trusted = format!("localhost:{port}:\tOID.2.16.840.1.101.3.4.2.1\t{}\t\n", hash.join(":"));
    fs::write(folder.join("cert_override.txt"), trusted)
}
