//! `[backend]`: an IMAP server that holds the mail, and who watches there.

use std::path::PathBuf;

use hyper::Uri;
use rustls::pki_types::ServerName;
use serde::Deserialize;

use super::check::{Check, CheckResult, host_and_port, is_loopback};
use super::pin::PublicKeyPin;
use crate::model::BackendId;

/// `[backend]` or `[[route]]`: an IMAP server that holds the mail.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendConfig {
    /// Tells it from others when its address has changed; no other address has this name.
    pub name: Option<String>,
    /// A name or an IP address, the latter without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How TLS begins.
    pub tls: BackendTls,
    /// With TLS: the certificate counts by its public key alone, which is this one.
    pub pin: Option<PublicKeyPin>,
    /// Each connection begins with a PROXY header, version 2.
    pub proxy_protocol: bool,
    /// The client's ID goes there, with its address.
    pub send_id: bool,
    /// An access token is refused there that was not issued to the name that comes with it.
    pub checks_token_name: bool,
    /// Login names that differ in nothing but the case of ASCII letters are one user's there.
    pub names_ignore_case: bool,
    /// What is asked in place of logging in, for accounts on demand.
    pub doveadm: Option<DoveadmConfig>,
    /// Whom its accounts are watched as in the mode [`super::CredentialsMode::Master`]; `None`: they are not.
    pub master: Option<MasterUser>,
}

/// The user of a backend who may act as any other.
#[derive(Clone, Debug, PartialEq)]
pub struct MasterUser {
    /// Not empty.
    pub name: String,
    /// A file that exists.
    pub password_file: PathBuf,
    /// `None`: with the user as SASL authorization identity (RFC 4616).
    pub login_template: Option<LoginTemplate>,
}

/// The HTTP API of a Dovecot's doveadm.
#[derive(Clone, Debug, PartialEq)]
pub struct DoveadmConfig {
    /// `https://`, or `http://` of this machine.
    pub url: Uri,
    /// A file that exists.
    pub key_file: PathBuf,
}

/// How the backend is spoken to.
#[derive(Clone, Debug, PartialEq)]
pub enum BackendTls {
    /// In the clear.
    None,
    /// TLS after STARTTLS, or no connection.
    StartTls(TrustConfig),
    /// TLS from the first byte.
    Implicit(TrustConfig),
}

/// Whose certificates are good for a backend, and which.
#[derive(Clone, Debug, PartialEq)]
pub struct TrustConfig {
    /// A PEM file that exists; `None` trusts the system's roots.
    pub ca: Option<PathBuf>,
    /// The name or IP address that the certificate must bear.
    pub server_name: String,
}

/// A login name made of a user's and the master's, such as `{user}*{master}`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoginTemplate(String);

table!(RawBackend {
    name: Option<String>,
    address: Option<String>,
    tls: Option<RawBackendTls>,
    ca: Option<String>,
    server_name: Option<String>,
    tls_pin_sha256: Option<String>,
    proxy_protocol: Option<bool>,
    send_id: Option<bool>,
    checks_token_name: Option<bool>,
    names_ignore_case: Option<bool>,
    master_user: Option<String>,
    master_password_file: Option<String>,
    login_template: Option<String>,
    doveadm_url: Option<String>,
    doveadm_key_file: Option<String>,
});

#[derive(Clone, Copy, Debug, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "lowercase")]
pub(super) enum RawBackendTls {
    None,
    StartTls,
    Implicit,
}

impl BackendConfig {
    /// A backend that learns nothing of the client, and has no master user.
    pub fn new(host: impl Into<String>, port: u16, tls: BackendTls) -> Self {
        Self {
            name: None,
            host: host.into(),
            port,
            tls,
            pin: None,
            proxy_protocol: false,
            send_id: false,
            checks_token_name: false,
            names_ignore_case: false,
            doveadm: None,
            master: None,
        }
    }

    /// What accounts that it has accepted are recorded with.
    pub fn id(&self) -> BackendId {
        BackendId::new(self.name.as_deref(), &self.host, self.port)
    }
}

impl LoginTemplate {
    const USER: &str = "{user}";
    const MASTER: &str = "{master}";

    /// `None` unless `text` holds `{user}` and `{master}`, once each, and no other brace.
    pub fn new(text: &str) -> Option<Self> {
        let once = |part: &str| text.matches(part).count() == 1;
        let valid = once(Self::USER) && once(Self::MASTER) && text.matches(['{', '}']).count() == 4;
        valid.then(|| Self(text.to_owned()))
    }

    /// The login name with which `master` acts as `user`.
    pub fn login(&self, user: &str, master: &str) -> String {
        // The names may hold anything, so neither may be put in before the other is looked for.
        let filled = |text: &str| text.replace(Self::MASTER, master);
        let (before, behind) = self.0.split_once(Self::USER).unwrap_or((&self.0, ""));
        format!("{}{user}{}", filled(before), filled(behind))
    }
}

impl Check<'_> {
    /// The backend of a table that is called so.
    pub(super) fn backend(&self, table: &str, raw: RawBackend) -> CheckResult<BackendConfig> {
        let key = |name: &str| format!("{table} {name}");
        let allowed = "give the IMAP server as \"host:port\", such as \"imap.example.org:993\"";
        let Some(address) = raw.address else {
            return Err(self.refusal(&key("address"), format!("missing; {allowed}")));
        };
        let Some((host, port)) = host_and_port(&address) else {
            let problem = format!("{address:?} is no address; {allowed}");
            return Err(self.refusal(&key("address"), problem));
        };
        let trust = |ca, server_name: Option<String>| {
            // A host that cannot stand in a certificate is a fault only where it would have to.
            let (name, server_name) = match server_name {
                Some(name) => ("server_name", name),
                None => ("address", host.clone()),
            };
            if ServerName::try_from(server_name.as_str()).is_err() {
                let problem = format!(
                    "{server_name:?} cannot be the name in a certificate; allowed is a host name \
                     or an IP address without port"
                );
                return Err(self.refusal(&key(name), problem));
            }
            Ok(TrustConfig { ca: self.file(&key("ca"), ca)?, server_name })
        };
        let pin = self.pin(table, raw.tls_pin_sha256.as_deref(), raw.ca.is_some())?;
        let tls = match raw.tls.unwrap_or(RawBackendTls::Implicit) {
            RawBackendTls::None => {
                for (name, value) in [
                    ("ca", &raw.ca),
                    ("server_name", &raw.server_name),
                    ("tls_pin_sha256", &raw.tls_pin_sha256),
                ] {
                    if value.is_some() {
                        let problem = "has no meaning with tls = \"none\"; remove one of the two";
                        return Err(self.refusal(&key(name), problem));
                    }
                }
                BackendTls::None
            }
            RawBackendTls::StartTls => BackendTls::StartTls(trust(raw.ca, raw.server_name)?),
            RawBackendTls::Implicit => BackendTls::Implicit(trust(raw.ca, raw.server_name)?),
        };
        let mut backend = BackendConfig::new(host, port, tls);
        backend.pin = pin;
        backend.name = self.backend_name(&key("name"), raw.name)?;
        backend.proxy_protocol = raw.proxy_protocol.unwrap_or(backend.proxy_protocol);
        backend.send_id = raw.send_id.unwrap_or(backend.send_id);
        backend.checks_token_name = raw.checks_token_name.unwrap_or(backend.checks_token_name);
        backend.names_ignore_case = raw.names_ignore_case.unwrap_or(backend.names_ignore_case);
        let master = (raw.master_user, raw.master_password_file, raw.login_template);
        backend.master = self.master(table, master)?;
        backend.doveadm = self.doveadm(table, raw.doveadm_url, raw.doveadm_key_file)?;
        Ok(backend)
    }

    fn pin(
        &self,
        table: &str,
        text: Option<&str>,
        has_ca: bool,
    ) -> CheckResult<Option<PublicKeyPin>> {
        let Some(text) = text else { return Ok(None) };
        let key = format!("{table} tls_pin_sha256");
        if has_ca {
            let problem = "has no meaning with ca, since a pinned key needs no authority; remove one of the two";
            return Err(self.refusal(&key, problem));
        }
        let pin = text.parse().map_err(|_| {
            let allowed = "allowed is the SHA-256 of a public key in base64, of 44 characters; \
                           `mailchime check` shows that of the server, if it does not trust it";
            self.refusal(&key, format!("{text:?} is no pin; {allowed}"))
        })?;
        Ok(Some(pin))
    }

    /// No address is a name: it has a colon.
    fn backend_name(&self, key: &str, name: Option<String>) -> CheckResult<Option<String>> {
        let Some(name) = name else { return Ok(None) };
        let fits = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
        if !(1..=64).contains(&name.len()) || !name.bytes().all(fits) {
            let allowed = "allowed are 1 to 64 letters and digits of ASCII, \".\", \"-\" and \"_\"";
            return Err(self.refusal(key, format!("{name:?} is no name; {allowed}")));
        }
        Ok(Some(name))
    }

    fn doveadm(
        &self,
        table: &str,
        url: Option<String>,
        key_file: Option<String>,
    ) -> CheckResult<Option<DoveadmConfig>> {
        let [url_key, key_key] =
            ["doveadm_url", "doveadm_key_file"].map(|it| format!("{table} {it}"));
        let (url, key_file) = match (url, key_file) {
            (None, None) => return Ok(None),
            (Some(url), Some(key_file)) => (url, key_file),
            (Some(_), None) => {
                let remedy = "name a file with nothing but Dovecot's doveadm_api_key";
                return Err(self.refusal(&key_key, format!("missing; {remedy}")));
            }
            (None, Some(_)) => {
                let remedy = "give the URL of doveadm's HTTP API, or remove this key";
                return Err(
                    self.refusal(&key_key, format!("has no meaning without doveadm_url; {remedy}"))
                );
            }
        };
        let allowed = "allowed is https://HOST:PORT/doveadm/v1, or http:// with an address of this \
                       machine, such as http://127.0.0.1:8080/doveadm/v1";
        let parsed = url.parse::<Uri>().ok().filter(|uri| {
            let host = uri.host().unwrap_or_default();
            match uri.scheme_str() {
                Some("https") => !host.is_empty(),
                Some("http") => is_loopback(host.trim_start_matches('[').trim_end_matches(']')),
                _ => false,
            }
        });
        let Some(parsed) = parsed else {
            return Err(self.refusal(&url_key, format!("{url:?} is not understood; {allowed}")));
        };
        let Some(key_file) = self.file(&key_key, Some(key_file))? else { return Ok(None) };
        Ok(Some(DoveadmConfig { url: parsed, key_file }))
    }

    fn master(
        &self,
        table: &str,
        (user, password_file, template_text): (Option<String>, Option<String>, Option<String>),
    ) -> CheckResult<Option<MasterUser>> {
        let key = |name: &str| format!("{table} {name}");
        if user.is_none() && password_file.is_none() && template_text.is_none() {
            return Ok(None);
        }
        let Some(name) = user.filter(|user| !user.is_empty()) else {
            let remedy = "name the user of the IMAP server who may act as any other";
            return Err(self.refusal(&key("master_user"), format!("missing; {remedy}")));
        };
        let password_key = key("master_password_file");
        let password_file = self.file(&password_key, password_file)?.ok_or_else(|| {
            let remedy = "name a file with nothing but the password of master_user";
            self.refusal(&password_key, format!("missing; {remedy}"))
        })?;
        let template = |text: String| {
            LoginTemplate::new(&text).ok_or_else(|| {
                let allowed = "allowed is a text that holds {user} and {master} once each, such as \
                               \"{user}*{master}\"";
                let problem = format!("{text:?} is not understood; {allowed}");
                self.refusal(&key("login_template"), problem)
            })
        };
        let login_template = template_text.map(template).transpose()?;
        Ok(Some(MasterUser { name, password_file, login_template }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::refused_with;

    #[test]
    fn a_refused_value_names_its_key_and_what_is_allowed() {
        for (text, expected) in [
            (
                "[backend]\naddress = \"a:1\"\nmaster_user = \"boss\"\n\
                 master_password_file = \"certs/ca.pem\"",
                "[backend] master_user: has no meaning unless [credentials] mode = \"master\"",
            ),
            (
                "[credentials]\nmode = \"master\"",
                "[backend] master_user: missing, and so in each [[route]]: with [credentials] mode",
            ),
            (
                "[backend]\naddress = \"a:1\"\nmaster_user = \"boss\"",
                "[backend] master_password_file: missing; name a file with nothing but the password",
            ),
            (
                "[backend]\naddress = \"a:1\"\nmaster_user = \"boss\"\n\
                 master_password_file = \"certs/ca.pem\"\nlogin_template = \"{user}\"",
                "[backend] login_template: \"{user}\" is not understood; allowed is a text that holds",
            ),
            (
                "[backend]\naddress = \"a:1\"\nname = \"a:1\"",
                "[backend] name: \"a:1\" is no name; allowed are 1 to 64 letters and digits",
            ),
            (
                "[backend]\naddress = \"a:1\"\ndoveadm_url = \"http://10.0.0.1/doveadm/v1\"\n\
                 doveadm_key_file = \"certs/ca.pem\"",
                "[backend] doveadm_url: \"http://10.0.0.1/doveadm/v1\" is not understood; allowed is",
            ),
            (
                "[backend]\naddress = \"a:1\"\ndoveadm_url = \"https://a/doveadm/v1\"",
                "[backend] doveadm_key_file: missing; name a file",
            ),
            (
                "[backend]\naddress = \"a:1\"\ndoveadm_key_file = \"certs/ca.pem\"",
                "[backend] doveadm_key_file: has no meaning without doveadm_url",
            ),
            ("[backend]", "[backend] address: missing; give the IMAP server as \"host:port\""),
            (
                "[backend]\naddress = \"localhost\"",
                "[backend] address: \"localhost\" is no address",
            ),
            ("[backend]\naddress = \"::1:143\"", "[backend] address: \"::1:143\" is no address"),
            ("[backend]\naddress = \"a b:143\"", "[backend] address: "),
            ("[backend]\naddress = \"localhost:0\"", "[backend] address: "),
            (
                "[backend]\naddress = \"localhost:1\"\nserver_name = \"a:b\"",
                "[backend] server_name: \"a:b\" cannot be",
            ),
            (
                "[backend]\naddress = \"localhost:1\"\ntls_pin_sha256 = \"abc=\"",
                "[backend] tls_pin_sha256: \"abc=\" is no pin; allowed is the SHA-256 of a public key in base64",
            ),
            (
                "[backend]\naddress = \"localhost:1\"\nca = \"certs/ca.pem\"\n\
                 tls_pin_sha256 = \"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\"",
                "[backend] tls_pin_sha256: has no meaning with ca",
            ),
            (
                "[backend]\naddress = \"localhost:1\"\ntls = \"none\"\n\
                 tls_pin_sha256 = \"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\"",
                "[backend] tls_pin_sha256: has no meaning with tls = \"none\"",
            ),
            (
                "[backend]\naddress = \"localhost:1\"\ntls = \"none\"\nca = \"certs/ca.pem\"",
                "[backend] ca: has no meaning with tls = \"none\"",
            ),
        ] {
            refused_with(text, expected);
        }
    }
}
