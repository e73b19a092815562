//! `[webpush]`: pushes to browsers, and where they may go.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::check::{Check, CheckResult, MINUTE, SECOND};
use super::network::Network;
use super::proxy::ProxyConfig;
use crate::files;

/// `[webpush]`: who we are to push services, and to which of them mailchime connects.
#[derive(Clone, Debug, PartialEq)]
pub struct WebPushConfig {
    /// The key by which push services know us; made at the first start.
    pub key_file: PathBuf,
    /// How push services reach the operator: `mailto:` or `https:`.
    pub contact: String,
    /// The push services that endpoints may name; empty: all, at port 443.
    pub hosts: Vec<HostPattern>,
    /// Networks that endpoints may lead to although they are not public.
    pub allow_private: Vec<Network>,
    /// A PEM file that exists; `None` trusts the system's roots.
    pub ca: Option<PathBuf>,
    /// `None` connects directly. With a proxy there are `hosts`, since it looks up the names.
    pub proxy: Option<ProxyConfig>,
    /// For the whole answer to one push, connecting included.
    pub request_timeout: Duration,
    /// Most pushes under way at once.
    pub in_flight: usize,
}

/// A host that users may name: `push.example.net`, or `*.example.net` for all names below it, each at port 443
/// or at the one that follows a colon. `Display` gives that form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    /// In lower case, without `*`; begins with a dot where it stands for the names below.
    name: String,
    port: u16,
}

table!(RawWebPush {
    key_file: Option<String>,
    contact: Option<String>,
    hosts: Vec<String>,
    allow_private: Vec<String>,
    ca: Option<String>,
    proxy: Option<String>,
    proxy_login_file: Option<String>,
    request_timeout: Option<String>,
    in_flight: Option<i64>,
});

/// The port of https.
const HTTPS: u16 = 443;

// === impl WebPushConfig ===

impl WebPushConfig {
    /// The name of the file, when no other is given under `[webpush] key_file`.
    pub const KEY_FILE: &str = "mailchime-webpush.key";

    /// With this key and contact, and the defaults.
    pub fn new(key_file: impl Into<PathBuf>, contact: impl Into<String>) -> Self {
        Self {
            key_file: key_file.into(),
            contact: contact.into(),
            hosts: Vec::new(),
            allow_private: Vec::new(),
            ca: None,
            proxy: None,
            request_timeout: Duration::from_secs(30),
            in_flight: 200,
        }
    }
}

impl Check<'_> {
    /// `None` without a `contact`: it has no default, and push services want one. `credentials_key` is the file under
    /// `[credentials] key_file`.
    pub(super) fn web_push(
        &self,
        raw: RawWebPush,
        credentials_key: &Path,
    ) -> CheckResult<Option<WebPushConfig>> {
        let key_file = match raw.key_file.as_deref() {
            Some(given) => self.folder().join(given),
            None => self.vapid_key(credentials_key),
        };
        let contact = raw.contact.clone().unwrap_or_default();
        let mut web_push = WebPushConfig::new(key_file, contact);
        let hosts = raw.hosts.iter().map(|text| self.host(text));
        web_push.hosts = hosts.collect::<CheckResult<_>>()?;
        let key = "[webpush] allow_private";
        let networks = raw.allow_private.iter().map(|text| self.network(key, text));
        web_push.allow_private = networks.collect::<CheckResult<_>>()?;
        web_push.ca = self.file("[webpush] ca", raw.ca)?;
        web_push.proxy = self.proxy("[webpush]", raw.proxy, raw.proxy_login_file)?;
        let limit = &mut web_push.request_timeout;
        self.duration(
            "[webpush] request_timeout",
            raw.request_timeout,
            SECOND..=10 * MINUTE,
            limit,
        )?;
        self.number("[webpush] in_flight", raw.in_flight, 1..=100_000, &mut web_push.in_flight)?;
        if web_push.proxy.is_some() && web_push.hosts.is_empty() {
            let problem = "missing; a proxy looks up names itself, so mailchime cannot see that one leads \
                           into a private network: name the push services that are allowed";
            return Err(self.refusal("[webpush] hosts", problem));
        }
        let Some(contact) = raw.contact else {
            // The name that has been the default is none that was chosen.
            let before = self.folder().join(WebPushConfig::KEY_FILE);
            let is_default = |key: PathBuf| web_push == WebPushConfig::new(key, "");
            if is_default(self.vapid_key(credentials_key)) || is_default(before) {
                return Ok(None);
            }
            let problem = "missing; push services want to know whom to ask: \
                           \"mailto:postmaster@example.org\" or an https:// URL";
            return Err(self.refusal("[webpush] contact", problem));
        };
        let fits = match contact.split_once(':') {
            Some(("mailto", address)) => address
                .split_once('@')
                .is_some_and(|(name, host)| !name.is_empty() && !host.is_empty()),
            Some(("https", rest)) => rest.strip_prefix("//").is_some_and(|rest| !rest.is_empty()),
            _ => false,
        };
        if !fits || contact.len() > 255 || !contact.bytes().all(|byte| byte.is_ascii_graphic()) {
            let problem = format!(
                "{contact:?} is not understood; allowed is \"mailto:\" with an address, or an https:// URL"
            );
            return Err(self.refusal("[webpush] contact", problem));
        }
        Ok(Some(web_push))
    }

    /// Where the key is when no file is named: beside the one of the credentials, since mailchime can write there. One
    /// of an earlier version lies beside the configuration, and browsers have subscribed with it.
    fn vapid_key(&self, credentials_key: &Path) -> PathBuf {
        let before = self.folder().join(WebPushConfig::KEY_FILE);
        match files::exists(&before) {
            true => before,
            false => credentials_key.with_file_name(WebPushConfig::KEY_FILE),
        }
    }

    fn host(&self, text: &str) -> CheckResult<HostPattern> {
        text.parse().map_err(|()| {
            let allowed = "allowed is a name such as \"fcm.googleapis.com\", \"*.push.apple.com\" for all \
                           names below it, and a port other than 443 behind a colon";
            self.refusal("[webpush] hosts", format!("{text:?} is no host; {allowed}"))
        })
    }
}

// === impl HostPattern ===

impl HostPattern {
    /// Whether this host, in lower case, is meant with this port.
    pub fn matches(&self, host: &str, port: u16) -> bool {
        let fits = match self.name.starts_with('.') {
            true => host.len() > self.name.len() && host.ends_with(&self.name),
            false => host == self.name,
        };
        fits && port == self.port
    }
}

impl FromStr for HostPattern {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (name, port) = match text.rsplit_once(':') {
            // An IPv6 address has brackets where a port follows.
            Some((name, port)) if !name.contains(':') || name.ends_with(']') => {
                (name, port.parse().map_err(|_| ())?)
            }
            _ => (text, HTTPS),
        };
        let name = name.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let is_address = name.parse::<std::net::IpAddr>().is_ok();
        let below = name.strip_prefix('*');
        let rest = below.map_or(&*name, |below| below.strip_prefix('.').unwrap_or_default());
        let in_names = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        let is_name = !rest.is_empty()
            && rest.bytes().all(in_names)
            && !rest.starts_with('.')
            && !rest.ends_with('.');
        match is_address || is_name {
            true => Ok(Self { name: below.unwrap_or(&name).to_owned(), port }),
            false => Err(()),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.starts_with('.') {
            f.write_str("*")?;
        }
        match (self.name.contains(':'), self.port) {
            (false, HTTPS) | (true, HTTPS) => f.write_str(&self.name),
            (true, port) => write!(f, "[{}]:{port}", self.name),
            (false, port) => write!(f, "{}:{port}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parse, refused_with};
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_refused_value_names_its_key_and_what_is_allowed() {
        for (text, expected) in [
            ("contact = \"admin@example.org\"", "contact: \"admin@example.org\" is not understood"),
            ("contact = \"mailto:\"", "contact: \"mailto:\" is not understood"),
            (
                "contact = \"http://example.org\"",
                "contact: \"http://example.org\" is not understood",
            ),
            ("hosts = [\"push.example.net\"]", "contact: missing"),
            ("hosts = [\"https://a.example\"]", "hosts: \"https://a.example\" is no host"),
            ("allow_private = [\"10.0.0.1/8\"]", "allow_private: \"10.0.0.1/8\" has bits beyond"),
            ("proxy = \"http://proxy:3128\"", "hosts: missing"),
            (
                "proxy_login_file = \"certs/ca.pem\"",
                "proxy_login_file: has no meaning without proxy",
            ),
        ] {
            refused_with(&format!("[webpush]\n{text}"), &format!("[webpush] {expected}"));
        }
    }

    #[test]
    fn it_is_on_with_a_contact() {
        assert_eq!(parse("[webpush]").unwrap().web_push, None);
        // As the manual has it.
        let default = "[credentials]\nkey_file = \"/var/lib/x/a.key\"\n[webpush]\nkey_file = \"mailchime-webpush.key\"";
        assert_eq!(parse(default).unwrap().web_push, None);
        let given = "[webpush]\ncontact = \"mailto:a@example.org\"\nhosts = [\"*.push.apple.com\"]\n\
                     allow_private = [\"10.0.0.0/8\"]\nproxy = \"http://proxy:3128\"";
        let config = parse(given).unwrap();
        let web_push = config.web_push.as_ref().unwrap();
        assert!(web_push.hosts[0].matches("web.push.apple.com", 443));
        assert_eq!(web_push.allow_private[0].to_string(), "10.0.0.0/8");
        assert!(config.secret_files().iter().any(|(key, _)| *key == "[webpush] key_file"));
        let said = "there is no [apns] table: nothing is pushed to iOS Mail";
        assert!(config.warnings.iter().any(|warning| warning.starts_with(said)));
    }

    #[test]
    fn the_key_is_beside_that_of_the_credentials_unless_there_is_one_of_before() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["server.pem", "server.key"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let key_file = |credentials: &str| {
            let text = format!(
                "[tls]\ncertificate = \"server.pem\"\nprivate_key = \"server.key\"\n\
                 [backend]\naddress = \"127.0.0.1:143\"\ntls = \"none\"\n{credentials}\n\
                 [webpush]\ncontact = \"mailto:a@example.org\"\n"
            );
            let config = Config::parse(&text, &folder.path().join("proxy.toml")).unwrap();
            config.web_push.unwrap().key_file
        };
        let before = folder.path().join("mailchime-webpush.key");
        let packaged = "[credentials]\nkey_file = \"/var/lib/mailchime/mailchime.key\"";
        assert_eq!(key_file(packaged), Path::new("/var/lib/mailchime/mailchime-webpush.key"));
        assert_eq!(key_file(""), before);
        std::fs::write(&before, "").unwrap();
        assert_eq!(key_file(packaged), before);
    }

    #[test]
    fn users_web_hooks_alone_are_push() {
        let said = |text| {
            let warnings = parse(text).unwrap().warnings.into_iter();
            warnings.filter(|it| it.starts_with("there is no [apns] table")).collect::<Vec<_>>()
        };
        let config = "[api]\naddress = \"127.0.0.1:8443\"";
        assert!(said(config)[0].contains("nothing is pushed to iOS Mail,"));
        assert!(said("[webpush]")[0].contains("nothing is pushed,"));
    }

    #[test]
    fn a_pattern_is_a_name_or_all_below_one_at_one_port() {
        for (pattern, host, port, fits) in [
            ("push.example.net", "push.example.net", 443, true),
            ("Push.Example.net", "push.example.net", 443, true),
            ("push.example.net", "push.example.net", 8443, false),
            ("push.example.net:8443", "push.example.net", 8443, true),
            ("*.example.net", "push.example.net", 443, true),
            ("*.example.net", "a.push.example.net", 443, true),
            ("*.example.net", "example.net", 443, false),
            ("*.example.net", ".example.net", 443, false),
            ("*.example.net:8443", "push.example.net", 8443, true),
            ("127.0.0.1:8443", "127.0.0.1", 8443, true),
            ("::1", "::1", 443, true),
            ("[::1]:8443", "::1", 8443, true),
        ] {
            let parsed: HostPattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(host, port), fits, "{pattern} {host}:{port}");
            assert_eq!(parsed.to_string(), pattern.to_ascii_lowercase());
        }
        for text in [
            "",
            "*",
            "*.",
            "*a.example",
            "a.*.example",
            "a.example:",
            "a.example:x",
            "a b",
            "https://a.example",
            ".a.example",
            "a.example.",
        ] {
            assert!(text.parse::<HostPattern>().is_err(), "{text}");
        }
    }
}
