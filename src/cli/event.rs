//! `mailchime event`: sends one event from standard input to the mailchime that runs.

use std::io::{Read, stdin};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Request, Uri};
use secrecy::zeroize::Zeroizing;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{CommandFailure, Configured, configuration, not_empty, runtime};
use crate::config::Config;
use crate::intake::first_secret;
use crate::net::dial::Dialer;
use crate::net::https::{HttpsClient, client_tls};
use crate::net::resolve::NameResolver;

/// For the connection and the answer.
const LIMIT: Duration = Duration::from_secs(10);

/// The longest event, in bytes.
const LONGEST: u64 = 16 * 1024 * 1024;

#[derive(Debug, clap::Args)]
pub(super) struct EventOptions {
    /// The name of the [[events.source]] that speaks
    #[arg(long, value_name = "NAME", value_parser = not_empty())]
    source: String,

    /// Send it to https://HOST:PORT, or http://ADDRESS:PORT of this machine; without this option, to
    /// the address at which the configuration takes events
    #[arg(long, value_name = "URL", value_parser = not_empty())]
    url: Option<String>,

    /// The secret is the first line of this file; without this option, of that in the configuration. With
    /// --url and this no configuration is read, so that any user may send events
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,

    /// A PEM file with the authorities that may have signed the server's certificate
    #[arg(long, value_name = "FILE", requires = "url")]
    ca: Option<PathBuf>,

    /// Standard input has an event as Cyrus gives it to the program of notify_external; without this option, if
    /// it looks like one
    #[arg(long)]
    cyrus: bool,

    #[command(flatten)]
    configured: Configured,
}

pub(super) fn run(options: &EventOptions) -> Result<(), CommandFailure> {
    let config = match (&options.url, &options.secret_file) {
        (Some(_), Some(_)) => None,
        _ => Some(configuration(&options.configured)?),
    };
    let (url, secret) = (url(options, config.as_ref())?, secret(options, config.as_ref())?);
    let mut body = Vec::new();
    stdin().take(LONGEST).read_to_end(&mut body).map_err(CommandFailure::failed)?;
    let of_cyrus = options.cyrus || is_of_cyrus(&body);
    let url = url + if of_cyrus { "/v1/events/cyrus" } else { "/v1/events" };
    let request = request(&url, &options.source, &secret, body)?;
    let tls = client_tls(options.ca.as_deref()).map_err(CommandFailure::failed)?;
    let dialer = Dialer::new(NameResolver::default(), None, tls);
    let sending = async { HttpsClient::or_plain_here(dialer, LIMIT).send(request).await };
    let answer = runtime()?.block_on(sending).map_err(|error| {
        CommandFailure::Failed(format!("{url}: {error}; is mailchime running there?"))
    })?;
    if answer.status().is_success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(answer.body());
    Err(CommandFailure::Failed(format!("{url}: {}: {}", answer.status(), said.escape_debug())))
}

/// Whether it is an object with `event`, and without the `changes` of mailchime's own form.
fn is_of_cyrus(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct EventKeys {
        event: Option<IgnoredAny>,
        changes: Option<IgnoredAny>,
    }
    let is_object = body.trim_ascii_start().starts_with(b"{");
    let keys = serde_json::from_slice::<EventKeys>(body);
    is_object && keys.is_ok_and(|keys| keys.event.is_some() && keys.changes.is_none())
}

/// The URL of the server that takes events.
fn url(options: &EventOptions, config: Option<&Config>) -> Result<String, CommandFailure> {
    if let Some(url) = &options.url {
        return Ok(url.trim_end_matches('/').to_owned());
    }
    let file = options.configured.config.display();
    let events = config.map(|config| &config.events);
    match events.and_then(|events| Some((events.address?, events.tls))) {
        Some((address, false)) => Ok(format!("http://{}", reachable(address))),
        Some((_, true)) => Err(CommandFailure::Usage(format!(
            "{file}: [events] is HTTPS; give --url with the name that its certificate bears"
        ))),
        None => {
            Err(CommandFailure::Usage(format!("{file}: [events] address: not set; give --url")))
        }
    }
}

/// A server at every address of the machine is asked at loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn secret(
    options: &EventOptions,
    config: Option<&Config>,
) -> Result<Zeroizing<String>, CommandFailure> {
    let sources = config.map(|config| &*config.events.sources).unwrap_or_default();
    let source = sources.iter().find(|source| source.name == options.source);
    let file = options.secret_file.as_ref().or(source.map(|source| &source.secret_file));
    let file = file.ok_or_else(|| {
        let name = &options.source;
        CommandFailure::Usage(format!("there is no [[events.source]] with the name {name:?}"))
    })?;
    first_secret(file).map_err(CommandFailure::Usage)
}

fn request(
    url: &str,
    source: &str,
    secret: &str,
    body: Vec<u8>,
) -> Result<Request<bytes::Bytes>, CommandFailure> {
    let url: Uri = url.parse().map_err(|_| {
        CommandFailure::Usage(format!("--url: {url:?} is no URL; give https://HOST:PORT"))
    })?;
    let login = Zeroizing::new(format!("{source}:{secret}"));
    let login = Zeroizing::new(format!("Basic {}", STANDARD.encode(login.as_bytes())));
    let mut login = HeaderValue::try_from(login.as_str()).map_err(CommandFailure::failed)?;
    login.set_sensitive(true);
    Request::post(url)
        .header(AUTHORIZATION, login)
        .header(CONTENT_TYPE, "application/json")
        .body(body.into())
        .map_err(CommandFailure::failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_cyrus_is_told_from_mailchime_s_own_form() {
        for (body, expected) in [
            (r#" {"event":"MessageNew","uri":"imap://localhost/user/alice"}"#, true),
            (r#"{"user":"alice","apsVersion":2,"event":"ApplePushService"}"#, true),
            (r#"{"user":"alice","changes":[]}"#, false),
            (r#"{"user":"alice","changes":[],"event":"MessageNew"}"#, false),
            (r#"[{"user":"alice","changes":[]}]"#, false),
            (r#"["event",null]"#, false),
            (r#"{"event":"#, false),
            ("", false),
        ] {
            assert_eq!(is_of_cyrus(body.as_bytes()), expected, "{body}");
        }
    }
}
