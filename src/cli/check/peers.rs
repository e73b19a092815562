//! Who mailchime talks to: the backends, a login there, and push services.

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use secrecy::zeroize::Zeroizing;
use tokio::io::AsyncWriteExt;

use super::Report;
use super::doveadm::doveadm;
use crate::cli::CommandFailure;
use crate::config::{self, BackendTls, Config};
use crate::imap::capability::Capabilities;
use crate::imap::refusal::Refusal;
use crate::model::{Account, Credentials};
use crate::net::backend::{Backend, ConnectError, LoginError};
use crate::net::backends::{Backends, Table};
use crate::net::resolve::NameResolver;
use crate::push::transport::check::{self, CheckLine, CheckOutcome};
use crate::store::Store;

/// For a backend's answers.
const ANSWER_TIME: Duration = Duration::from_secs(15);

/// The environment variable with the password for `--login`.
const VARIABLE: &str = "MAILCHIME_PASSWORD";

/// What is worth telling of what a backend offers.
const TOLD: [&str; 6] = ["IDLE", "NOTIFY", "CONDSTORE", "LIST-STATUS", "ID", "LOGINDISABLED"];

/// Looks names up as the program does.
pub(super) fn resolver(config: &Config) -> NameResolver {
    NameResolver::new(&config.resolver, std::sync::Arc::default())
}

/// A user's password. `Debug` does not show it.
pub(super) struct Password(Zeroizing<Vec<u8>>);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The password for `--login`: the first line of `file`, or the environment's. Only where a master
/// user watches it may be left out.
pub(super) fn password(
    file: Option<&Path>,
    credentials: &config::CredentialsMode,
) -> Result<Option<Password>, CommandFailure> {
    let text = match file {
        Some(file) => Zeroizing::new(std::fs::read(file).map_err(|error| {
            CommandFailure::Usage(format!("--password-file {}: {error}", file.display()))
        })?),
        None => {
            let text = std::env::var_os(VARIABLE).filter(|text| !text.is_empty());
            if text.is_none() && *credentials == config::CredentialsMode::Master {
                return Ok(None);
            }
            let missing = || {
                let problem = "--login needs the user's password: put it into the environment \
                               variable MAILCHIME_PASSWORD, or into a file for --password-file";
                CommandFailure::Usage(problem.to_owned())
            };
            Zeroizing::new(text.ok_or_else(missing)?.into_encoded_bytes())
        }
    };
    let line = text.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    Ok(Some(Password(Zeroizing::new(line.to_vec()))))
}

pub(super) async fn backends(config: &Config, report: &mut Report) {
    let table = match Table::new(config, &resolver(config)) {
        Ok(table) => table,
        Err(error) => return report.failed("[backend]", error),
    };
    let backends = Backends::new(table, std::sync::Arc::default());
    backend("[backend]", &backends.default(), &config.backend, config, report).await;
    for route in &config.routes {
        let part = format!("[[route]] {}", route.domain);
        let someone = Account::from_login(&format!("someone@{}", route.domain));
        match backends.of(&someone) {
            Ok(found) => backend(&part, &found, &route.backend, config, report).await,
            Err(error) => report.failed(&part, error),
        }
    }
}

async fn backend(
    part: &str,
    backend: &Backend,
    how: &config::BackendConfig,
    config: &Config,
    report: &mut Report,
) {
    let name = backend.name();
    match backend.probe(ANSWER_TIME, config.limits.capability_size).await {
        Ok(()) => {
            let tls = match &how.tls {
                BackendTls::None => "no TLS",
                BackendTls::StartTls(_) => "STARTTLS, its certificate is good",
                BackendTls::Implicit(_) => "TLS, its certificate is good",
            };
            let offered = told(backend.seen().as_deref());
            report.ok(part, format_args!("{name}: {tls}; before login it offers {offered}"));
            tokens(part, backend, report);
        }
        Err(error) => report.failed(part, format_args!("{error}; {}", remedy(&error))),
    }
    if let Some(api) = backend.doveadm() {
        doveadm(part, api, report).await;
    }
    if let Some(master) = backend.master() {
        report.ok(part, format_args!("{name}: accounts are watched as the master user {master}"));
    }
}

/// What becomes of sessions by access token, where the backend takes one.
fn tokens(part: &str, backend: &Backend, report: &mut Report) {
    let takes = |offered: &Capabilities| {
        ["AUTH=XOAUTH2", "AUTH=OAUTHBEARER"].iter().any(|mechanism| offered.has(mechanism))
    };
    if !backend.seen().as_deref().is_some_and(takes) {
        return;
    }
    if backend.checks_token_name() {
        report.ok(
            part,
            "sessions by access token are offered push: checks_token_name says that the server \
             refuses a token that was issued to another name",
        );
    } else {
        report.warning(
            part,
            "sessions by access token (XOAUTH2, OAUTHBEARER) are not offered push; if the server \
             refuses a token that was issued to another name, set checks_token_name = true",
        );
    }
}

fn told(offered: Option<&Capabilities>) -> String {
    let told = |offered: &Capabilities| {
        let told = TOLD.iter().copied().filter(|word| offered.has(word)).collect::<Vec<_>>();
        if told.is_empty() { format!("none of {}", TOLD.join(", ")) } else { told.join(", ") }
    };
    offered.map_or_else(|| "nothing".to_owned(), told)
}

/// What to do about a backend that cannot be used.
fn remedy(error: &LoginError) -> &'static str {
    match error {
        LoginError::Connect(ConnectError::Io { source, .. }) => match source.kind() {
            io::ErrorKind::ConnectionRefused => "is it running, and are host and port right?",
            // What rustls says of a certificate, or of an answer that is no TLS.
            io::ErrorKind::InvalidData => {
                "name the authority in `ca` or the certificate's name in `server_name`, and see \
                 whether the port speaks TLS from the first byte"
            }
            _ => "see whether host and port are right and this machine reaches them",
        },
        LoginError::Connect(ConnectError::Timeout { missing: "greeting", .. }) => {
            "it takes connections and says nothing: see whether it is an IMAP server, and whether it wants \
             another `tls`"
        }
        LoginError::Connect(ConnectError::Unfit { .. }) => {
            "see whether it is an IMAP server, and what its own log says"
        }
        LoginError::Connect(_) => "see whether this machine reaches it, a firewall may be between",
        LoginError::Refused { refusal: Refusal::Temporary, .. } => {
            "the server has trouble of its own, which may pass: see what it logs"
        }
        LoginError::Refused { refusal: Refusal::Barred, .. } => {
            "name and password are not the reason: see what the server allows this user"
        }
        LoginError::Refused { .. } => "see whether login name and password are right",
        LoginError::Unavailable(_) => {
            "see whether it is an IMAP server, and whether it wants another `tls`"
        }
    }
}

/// Logs in as the user does.
pub(super) async fn log_in(config: &Config, user: &str, password: Password, report: &mut Report) {
    let part = format!("login {}", user.escape_debug());
    let credentials = Credentials::password(user, password.0.to_vec());
    try_login(config, &part, user, credentials, remedy, report).await;
}

/// Logs in as the watcher of the user does, where that needs no password of theirs.
pub(super) async fn watch(config: &Config, user: &str, report: &mut Report) {
    // What is wrong with it has been said.
    let Ok(table) = Table::new(config, &resolver(config)) else { return };
    if config.credentials != config::CredentialsMode::Master {
        return;
    }
    let backends = Backends::new(table, std::sync::Arc::default());
    let account = backends.canonical(Account::from_login(user));
    let backend = match backends.of(&account) {
        Ok(backend) => backend,
        Err(error) => {
            let part = format!("watching {}", user.escape_debug());
            return report.failed(&part, format_args!("{error}; give the user as user@domain"));
        }
    };
    let Some(master) = backend.master() else {
        let part = format!("watching {}", user.escape_debug());
        let why = "has no master_user, so this user is not offered push";
        return report.failed(&part, format_args!("{}: {why}", backend.name()));
    };
    let part = format!("{master} as {}", user.escape_debug());
    let credentials = master.acting_as(&account);
    let master_remedy = |error: &LoginError| match error {
        LoginError::Refused { refusal: Refusal::Wrong | Refusal::Unexplained, .. } => {
            "see whether the user exists, master_user and its password are right, the server lets it \
             act as others, and whether it wants a login_template"
        }
        other => remedy(other),
    };
    try_login(config, &part, user, credentials, master_remedy, report).await;
}

async fn try_login(
    config: &Config,
    part: &str,
    user: &str,
    credentials: Credentials,
    remedy: impl Fn(&LoginError) -> &'static str,
    report: &mut Report,
) {
    // What is wrong with it has been said.
    let Ok(table) = Table::new(config, &resolver(config)) else { return };
    let backends = Backends::new(table, std::sync::Arc::default());
    let backend = match backends.of(&Account::from_login(user)) {
        Ok(backend) => backend,
        Err(error) => {
            return report.failed(part, format_args!("{error}; give the user as user@domain"));
        }
    };
    let longest = config.limits.capability_size;
    match backend.log_in(credentials, ANSWER_TIME, longest).await {
        Ok(mut logged_in) => {
            let name = backend.name();
            match &logged_in.capabilities {
                Some(offered) => {
                    let offered = told(Some(offered));
                    report.ok(part, format_args!("{name} accepts it and offers {offered}"));
                }
                None => report.ok(part, format_args!("{name} accepts it")),
            }
            // A farewell, whether it arrives or not.
            let _ = logged_in.stream.write_all(b"m3 LOGOUT\r\n").await;
            let _ = logged_in.stream.shutdown().await;
        }
        Err(error) => {
            report.failed(part, format_args!("{}: {error}; {}", backend.name(), remedy(&error)));
        }
    }
}

pub(super) async fn push(config: &Config, store: Option<&Store>, report: &mut Report) {
    let report_line = |line: CheckLine| match line.result {
        CheckOutcome::Ok => report.ok(&line.part, line.text),
        CheckOutcome::Warning => report.warning(&line.part, line.text),
        CheckOutcome::Failed => report.failed(&line.part, line.text),
    };
    check::run(config, store, &resolver(config), report_line).await;
}
