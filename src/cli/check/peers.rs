//! Who mailchime talks to: the backends, a login there, and push services.

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use secrecy::zeroize::Zeroizing;
use tokio::io::AsyncWriteExt;

use super::doveadm::doveadm;
use super::{ANSWER_TIME, Report, itself, remedies, resolver};
use crate::cli::CommandFailure;
use crate::config::{self, BackendTls, Config};
use crate::imap::capability::Capabilities;
use crate::imap::peek::{self, Response, Status};
use crate::imap::refusal::Refusal;
use crate::imap::responses::printable;
use crate::model::{Account, Credentials};
use crate::net::backend::{Backend, Connected, LoginError};
use crate::net::backends::{Backends, Table};
use crate::net::proxy_protocol::{Addresses, ClientTls, ProxiedClient};
use crate::push::transport::check::{self, CheckLine, CheckOutcome};
use crate::store::Store;

/// The environment variable with the password for `--login`.
const VARIABLE: &str = "MAILCHIME_PASSWORD";

/// What is worth telling of what a backend offers.
const TOLD: [&str; 6] = ["IDLE", "NOTIFY", "CONDSTORE", "LIST-STATUS", "ID", "LOGINDISABLED"];

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
        Err(error) => return report.refused("[backend]", error),
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
    if let Some(listener) = itself::listener_at(&how.host, how.port, config).await {
        let remedy = "name the port of the IMAP server";
        return report.failed(
            part,
            format_args!(
                "{name}: that is mailchime itself ([[listener]] address {listener}); {remedy}"
            ),
        );
    }
    match backend.probe(ANSWER_TIME, config.limits.capability_size).await {
        Ok(()) => {
            let tls = match &how.tls {
                BackendTls::None => "no TLS",
                BackendTls::StartTls(_) => "STARTTLS, its certificate is good",
                BackendTls::Implicit(_) => "TLS, its certificate is good",
            };
            let offered = told(backend.seen().as_deref());
            match backend.logins().passwords {
                true => {
                    report
                        .ok(part, format_args!("{name}: {tls}; before login it offers {offered}"));
                }
                false => no_passwords(part, (&name, tls), how, report),
            }
            tokens(part, backend, report);
        }
        Err(error) => {
            let remedy = remedies::of_backend(&error, how, config).await;
            report.failed(part, format_args!("{error}; {remedy}"));
        }
    }
    if how.proxy_protocol {
        as_of_a_client(part, backend, config, report).await;
    }
    if let Some(api) = backend.doveadm() {
        doveadm(part, api, report).await;
    }
    if let Some(master) = backend.master() {
        report.ok(part, format_args!("{name}: accounts are watched as the master user {master}"));
    }
}

/// A backend that lets nobody in by password on such a connection (RFC 9051 section 6.2.3).
fn no_passwords(
    part: &str,
    (name, tls): (&str, &str),
    how: &config::BackendConfig,
    report: &mut Report,
) {
    let remedy = match how.tls {
        BackendTls::None => {
            "set tls = \"starttls\" or \"implicit\"; or have the server take them from mailchime without TLS \
             (Dovecot: login_trusted_networks)"
        }
        BackendTls::StartTls(_) | BackendTls::Implicit(_) => {
            "see by which means the server lets users log in"
        }
    };
    // Clients have another header.
    let so = match how.proxy_protocol {
        true => "of mailchime itself (LOGINDISABLED), so no account can be watched",
        false => "on such a connection (LOGINDISABLED), so nobody can log in",
    };
    report.failed(part, format_args!("{name}: {tls}; it takes no passwords {so}; {remedy}"));
}

/// What the backend offers a client somewhere else, of whom the PROXY header tells.
async fn as_of_a_client(part: &str, backend: &Backend, config: &Config, report: &mut Report) {
    // Addresses for documentation (RFC 5737).
    let addresses = Addresses {
        source: (Ipv4Addr::new(192, 0, 2, 1), 50_000).into(),
        destination: (Ipv4Addr::new(192, 0, 2, 2), 993).into(),
    };
    let client = ProxiedClient { addresses, tls: ClientTls::Version("TLSv1.3") };
    let name = backend.name();
    let longest = config.limits.capability_size;
    let taken = tokio::time::timeout(ANSWER_TIME, takes_header(backend, client, longest)).await;
    if let Ok(Ok(Some(said))) = taken {
        let remedy = "it takes the PROXY header for a command, so nobody can log in: have it expect one (Dovecot: \
                      haproxy = yes in its inet_listener, and mailchime's address in haproxy_trusted_networks), \
                      or set send_id = true in place of proxy_protocol";
        return report.failed(part, format_args!("{name}: \"{said}\": {remedy}"));
    }
    match backend.probe_for(client, ANSWER_TIME, longest).await {
        Ok(()) if backend.logins().passwords => {
            report
                .ok(part, format_args!("{name}: it takes a PROXY header, and lets clients log in"));
        }
        Ok(()) => {
            let remedy = "it takes no passwords from clients of whom the PROXY header tells (LOGINDISABLED), \
                          so nobody can log in; set tls = \"starttls\" or \"implicit\", or send_id = true in \
                          place of proxy_protocol";
            report.failed(part, format_args!("{name}: {remedy}"));
        }
        // It was said of the connection before.
        Err(_) => {}
    }
}

/// What a backend says that does not expect a PROXY header and answers it; `None` where it is content.
async fn takes_header(
    backend: &Backend,
    client: ProxiedClient,
    longest: usize,
) -> Result<Option<String>, LoginError> {
    let unavailable = |error: io::Error| LoginError::Unavailable(error.to_string());
    let Connected { mut stream, mut heard, .. } = backend.connect(Some(client), longest).await?;
    stream.write_all(b"m1 NOOP\r\n").await.map_err(unavailable)?;
    stream.flush().await.map_err(unavailable)?;
    loop {
        let whole = heard.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        for line in heard.drain(..whole).collect::<Vec<_>>().split_inclusive(|byte| *byte == b'\n')
        {
            match peek::response(line) {
                Some(Response::Status { status: Status::Bad | Status::Bye, .. }) => {
                    return Ok(Some(printable(line)));
                }
                Some(Response::Status { tag: Some(_), .. }) => return Ok(None),
                _ => {}
            }
        }
        if heard.len() > longest || stream.fill(&mut heard).await.map_err(unavailable)? == 0 {
            return Ok(None);
        }
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

/// Logs in as the user does.
pub(super) async fn log_in(config: &Config, user: &str, password: Password, report: &mut Report) {
    let part = format!("login {}", user.escape_debug());
    let credentials = Credentials::password(user, password.0.to_vec());
    try_login(config, &part, user, credentials, remedies::of_login, report).await;
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
        other => remedies::of_login(other),
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
        // It names the backend.
        Err(error @ LoginError::Connect(_)) => {
            report.failed(part, format_args!("{error}; {}", remedy(&error)));
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
        CheckOutcome::Refused => report.refused(&line.part, line.text),
    };
    check::run(config, store, &resolver(config), report_line).await;
}
