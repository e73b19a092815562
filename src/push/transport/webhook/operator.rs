//! The web hooks of the configuration, each of which is a route.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use hyper::header::HeaderValue;
use secrecy::zeroize::Zeroizing;

use super::WebhookSecret;
use super::message::OperatorMessages;
use crate::config::WebhookConfig;
use crate::files;
use crate::net::dial::Dialer;
use crate::net::https::{HttpsClient, client_tls};
use crate::net::resolve::NameResolver;
use crate::push::transport::Route;

/// Most events of one web hook under way at once.
const IN_FLIGHT: usize = 20;

/// Most bytes of a file with secrets or a token.
const MAX_FILE: u64 = 4096;

/// How many secrets sign while they are replaced.
const MOST_SECRETS: usize = 4;

/// The route of each web hook, with its name.
///
/// # Errors
/// As [`route`].
pub(super) fn all(
    config: &[WebhookConfig],
    resolver: &NameResolver,
) -> Result<Vec<(Arc<str>, Route)>, String> {
    let named =
        |webhook: &WebhookConfig| Ok((webhook.name.as_str().into(), route(webhook, resolver)?));
    config.iter().map(named).collect()
}

/// The route of this web hook. Reads the files that it names, and opens no socket.
///
/// # Errors
/// Which key is at fault, and what is wrong.
pub fn route(config: &WebhookConfig, resolver: &NameResolver) -> Result<Route, String> {
    let failed = |key: &str, why: &dyn Display| format!("[[webhook]] {key}: {why}");
    let secrets = config.secret_file.as_deref().map(secrets).transpose();
    let authorization = config.token_file.as_deref().map(bearer).transpose();
    let messages = OperatorMessages {
        url: config.url.clone(),
        secrets: secrets.map_err(|why| failed("secret_file", &why))?.unwrap_or_default(),
        authorization: authorization.map_err(|why| failed("token_file", &why))?,
        template: config.template.clone(),
    };
    let tls = client_tls(config.ca.as_deref()).map_err(|why| failed("ca", &why))?;
    // Its operator says where it is, so the address may be any.
    let client =
        HttpsClient::or_plain_here(Dialer::new(resolver.clone(), None, tls), config.timeout);
    Ok(Route::new(messages, client, IN_FLIGHT))
}

/// The secrets in a file, one a line, the newest first.
fn secrets(file: &Path) -> Result<Vec<WebhookSecret>, String> {
    let text = read(file)?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let secrets: Option<Vec<_>> = lines.map(WebhookSecret::parse).collect();
    let secrets = secrets.filter(|secrets| (1..=MOST_SECRETS).contains(&secrets.len()));
    secrets.ok_or_else(|| {
        format!(
            "{}: holds no secret, or something else; write one a line, \"whsec_\" and the base64 of 24 \
             to 64 bytes, the newest first, at most {MOST_SECRETS}",
            file.display()
        )
    })
}

fn bearer(file: &Path) -> Result<HeaderValue, String> {
    let text = read(file)?;
    let token = text.lines().next().unwrap_or_default().trim();
    let value = HeaderValue::try_from(format!("Bearer {token}")).ok();
    let mut value = value.filter(|_| !token.is_empty()).ok_or_else(|| {
        format!("{}: has no token in its first line; write it there", file.display())
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn read(file: &Path) -> Result<Zeroizing<String>, String> {
    let read = files::read_text(file, MAX_FILE).map(|(text, _)| text);
    read.map_err(|error| format!("{}: cannot be read: {error}", file.display()))
}
