//! `[apns]`: the push service, and who we are to it.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::pki_types::ServerName;

use super::check::{Check, CheckResult, HOUR, MINUTE, SECOND, host_and_port};
use super::proxy::ProxyConfig;
use super::table::OneOrMore;

/// `[apns]` or `[[apns]]`: one identity, how to reach the service with it, and whom it serves.
#[derive(Clone, Debug, PartialEq)]
pub struct ApnsConfig {
    /// The server that pushes go to.
    pub endpoint: ApnsServer,
    /// A PEM file that exists; `None` trusts the system's roots.
    pub ca: Option<PathBuf>,
    /// As whom mailchime pushes.
    pub identity: ProviderFiles,
    /// The domains whose users it serves, in lower case; empty: all that no other table names.
    pub domains: Vec<String>,
    /// `None` connects directly.
    pub proxy: Option<ProxyConfig>,
    /// For the connection, TLS included.
    pub connect_timeout: Duration,
    /// For the whole answer to one push.
    pub request_timeout: Duration,
    /// An idle connection is asked for a sign of life this often.
    pub ping_interval: Duration,
    /// Most pushes under way at once.
    pub in_flight: usize,
}

/// How we prove who we are; all files exist. The topic of a certificate is written in it, so there
/// `topic` only chooses among several.
#[derive(Clone, Debug, PartialEq)]
pub enum ProviderFiles {
    /// A client certificate and its key, both PEM.
    Pem {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of its private key.
        private_key: PathBuf,
        /// The topic.
        topic: Option<String>,
    },
    /// Both in one file (RFC 7292); without `password_file` its password is empty.
    Pkcs12 {
        /// The file.
        file: PathBuf,
        /// The file of its password, if it has one.
        password_file: Option<PathBuf>,
        /// The topic.
        topic: Option<String>,
    },
    /// A key that signs provider tokens: a `.p8` file of Apple's.
    Key {
        /// The file of the key.
        key: PathBuf,
        /// The id of the key.
        key_id: String,
        /// The id of the team.
        team_id: String,
        /// The topic.
        topic: String,
    },
}

/// A host that speaks HTTP/2 over TLS. `Display` gives `https://host:port`.
#[derive(Clone, Debug, PartialEq)]
pub struct ApnsServer {
    /// A name or an IP address, the latter without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

table!(RawApns {
    endpoint: Option<String>,
    ca: Option<String>,
    certificate: Option<String>,
    private_key: Option<String>,
    password_file: Option<String>,
    key: Option<String>,
    key_id: Option<String>,
    team_id: Option<String>,
    topic: Option<String>,
    domains: Vec<String>,
    proxy: Option<String>,
    proxy_login_file: Option<String>,
    connect_timeout: Option<String>,
    request_timeout: Option<String>,
    ping_interval: Option<String>,
    in_flight: Option<i64>,
});

impl ApnsConfig {
    /// The production service with this client certificate, and the defaults.
    pub fn new(certificate: impl Into<PathBuf>, private_key: impl Into<PathBuf>) -> Self {
        let (certificate, private_key) = (certificate.into(), private_key.into());
        Self::with(ProviderFiles::Pem { certificate, private_key, topic: None })
    }

    /// The production service with this identity, and the defaults.
    pub fn with(identity: ProviderFiles) -> Self {
        Self {
            endpoint: ApnsServer::production(),
            ca: None,
            identity,
            domains: Vec::new(),
            proxy: None,
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            ping_interval: Duration::from_mins(1),
            in_flight: 500,
        }
    }
}

impl ApnsServer {
    /// Apple's service for devices.
    pub fn production() -> Self {
        Self { host: "api.push.apple.com".into(), port: 443 }
    }

    /// Apple's service for development.
    pub fn sandbox() -> Self {
        Self { host: "api.sandbox.push.apple.com".into(), port: 443 }
    }
}

impl fmt::Display for ApnsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "https://[{}]:{}", self.host, self.port),
            false => write!(f, "https://{}:{}", self.host, self.port),
        }
    }
}

impl Check<'_> {
    pub(super) fn identities(
        &self,
        raw: Option<OneOrMore<RawApns>>,
    ) -> CheckResult<Vec<ApnsConfig>> {
        let mut identities: Vec<ApnsConfig> = Vec::new();
        let mut served = HashSet::new();
        for raw in raw.map(|OneOrMore(tables)| tables).unwrap_or_default() {
            let apns = self.apns(raw)?;
            let twice = apns.domains.iter().find(|domain| !served.insert((*domain).clone()));
            if let Some(domain) = twice {
                let problem = format!("{domain:?} is served by two; remove it from one of them");
                return Err(self.refusal("[[apns]] domains", problem));
            }
            if apns.domains.is_empty() && identities.iter().any(|other| other.domains.is_empty()) {
                let problem = "two tables have none, but only one can serve all other users; say \
                               which domains each of the others serves";
                return Err(self.refusal("[[apns]] domains", problem));
            }
            identities.push(apns);
        }
        Ok(identities)
    }

    #[rustfmt::skip] // a table: one key, one line
    fn apns(&self, mut raw: RawApns) -> CheckResult<ApnsConfig> {
        let mut apns = ApnsConfig::with(self.identity(&mut raw)?);
        if let Some(endpoint) = raw.endpoint {
            apns.endpoint = self.endpoint(&endpoint)?;
        }
        apns.ca = self.file("[apns] ca", raw.ca)?;
        apns.domains = self.domains(raw.domains)?;
        apns.proxy = self.proxy("[apns]", raw.proxy, raw.proxy_login_file)?;
        self.duration("[apns] connect_timeout", raw.connect_timeout, SECOND..=10 * MINUTE, &mut apns.connect_timeout)?;
        self.duration("[apns] request_timeout", raw.request_timeout, SECOND..=10 * MINUTE, &mut apns.request_timeout)?;
        self.duration("[apns] ping_interval", raw.ping_interval, SECOND..=HOUR, &mut apns.ping_interval)?;
        self.number("[apns] in_flight", raw.in_flight, 1..=100_000, &mut apns.in_flight)?;
        Ok(apns)
    }

    /// A certificate with its key, both in one file, or a key that signs tokens; what belongs to
    /// another of the three is refused.
    fn identity(&self, raw: &mut RawApns) -> CheckResult<ProviderFiles> {
        let topic = self.topic(raw.topic.take())?;
        let refuse = |found: &[(&str, &Option<String>)], kind: &str| {
            let given = found.iter().find(|(_, value)| value.is_some());
            given.map_or(Ok(()), |(key, _)| {
                let problem = format!("has no meaning with {kind}; remove one of the two");
                Err(self.refusal(&format!("[apns] {key}"), problem))
            })
        };
        if let Some(key) = raw.key.take() {
            let certificate =
                [("certificate", &raw.certificate), ("private_key", &raw.private_key)];
            refuse(&certificate, "key")?;
            refuse(&[("password_file", &raw.password_file)], "key")?;
            let key = self.required_file("[apns] key", Some(key))?;
            let Some(topic) = topic else {
                let problem = "missing; a key is not bound to a topic, so name yours";
                return Err(self.refusal("[apns] topic", problem));
            };
            return Ok(ProviderFiles::Key {
                key,
                key_id: self.apple_id("[apns] key_id", raw.key_id.take())?,
                team_id: self.apple_id("[apns] team_id", raw.team_id.take())?,
                topic,
            });
        }
        let token = [("key_id", &raw.key_id), ("team_id", &raw.team_id)];
        let certificate = raw.certificate.take();
        let is_pkcs12 =
            certificate.as_deref().map(Path::new).and_then(Path::extension).is_some_and(
                |extension| {
                    ["p12", "pfx"].iter().any(|known| extension.eq_ignore_ascii_case(known))
                },
            );
        let certificate = self.required_file("[apns] certificate", certificate)?;
        refuse(&token, "certificate")?;
        if is_pkcs12 {
            refuse(&[("private_key", &raw.private_key)], "a certificate that brings its own")?;
            let password_file = self.file("[apns] password_file", raw.password_file.take())?;
            return Ok(ProviderFiles::Pkcs12 { file: certificate, password_file, topic });
        }
        refuse(&[("password_file", &raw.password_file)], "a PEM certificate")?;
        let private_key = self.required_file("[apns] private_key", raw.private_key.take())?;
        Ok(ProviderFiles::Pem { certificate, private_key, topic })
    }

    fn topic(&self, topic: Option<String>) -> CheckResult<Option<String>> {
        let fits = |topic: &String| {
            (1..=255).contains(&topic.len()) && topic.bytes().all(|byte| byte.is_ascii_graphic())
        };
        match topic {
            Some(topic) if !fits(&topic) => {
                let allowed = "allowed are 1 to 255 letters, digits and signs without blanks, such \
                               as \"com.apple.mail.XServer.…\"";
                let problem = format!("{topic:?} is no topic; {allowed}");
                Err(self.refusal("[apns] topic", problem))
            }
            topic => Ok(topic),
        }
    }

    /// The names that Apple gives to keys and teams: ten letters and digits.
    fn apple_id(&self, key: &str, id: Option<String>) -> CheckResult<String> {
        let allowed = "give the ten letters and digits that Apple's developer site shows";
        let problem = match id {
            Some(id) if id.len() == 10 && id.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                return Ok(id);
            }
            Some(id) => format!("{id:?} is not understood; {allowed}"),
            None => format!("missing; {allowed}"),
        };
        Err(self.refusal(key, problem))
    }

    fn domains(&self, domains: Vec<String>) -> CheckResult<Vec<String>> {
        let fits = |domain: &String| {
            let in_names = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b) || b >= 128;
            !domain.is_empty() && domain.bytes().all(in_names)
        };
        match domains.iter().find(|domain| !fits(domain)) {
            Some(domain) => {
                let allowed = "allowed is what stands after the \"@\" of a login: \"example.org\"";
                let problem = format!("{domain:?} is no domain; {allowed}");
                Err(self.refusal("[apns] domains", problem))
            }
            None => Ok(domains.into_iter().map(|domain| domain.to_ascii_lowercase()).collect()),
        }
    }

    fn endpoint(&self, text: &str) -> CheckResult<ApnsServer> {
        let address = match text {
            "production" => return Ok(ApnsServer::production()),
            "sandbox" => return Ok(ApnsServer::sandbox()),
            other => other.strip_prefix("https://").and_then(host_and_port),
        };
        match address {
            Some((host, port)) if ServerName::try_from(host.as_str()).is_ok() => {
                Ok(ApnsServer { host, port })
            }
            _ => {
                let allowed = "allowed are \"production\", \"sandbox\" and \"https://host:port\"";
                Err(self
                    .refusal("[apns] endpoint", format!("{text:?} is not understood; {allowed}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parse, refused_with, required_in};
    use super::*;

    #[test]
    fn a_refused_value_names_its_key_and_what_is_allowed() {
        for (text, expected) in [
            ("[apns]", "[apns] certificate: missing; name a PEM file"),
            (
                "[apns]\ncertificate = \"certs/apns.pem\"",
                "[apns] private_key: missing; name a PEM file",
            ),
            (
                "[apns]\ncertificate = \"certs/apns.p12\"\nprivate_key = \"certs/apns.key\"",
                "[apns] private_key: has no meaning with a certificate that brings its own",
            ),
            (
                "[apns]\ncertificate = \"certs/apns.pem\"\npassword_file = \"certs/ca.pem\"",
                "[apns] password_file: has no meaning with a PEM certificate",
            ),
            (
                "[apns]\ncertificate = \"certs/apns.pem\"\nkey_id = \"ABCDE12345\"",
                "[apns] key_id: has no meaning with certificate",
            ),
            (
                "[apns]\nkey = \"certs/apns.key\"\nprivate_key = \"certs/apns.key\"",
                "[apns] private_key: has no meaning with key",
            ),
            ("[apns]\nkey = \"certs/apns.key\"", "[apns] topic: missing; a key is not bound"),
            (
                "[apns]\nkey = \"certs/apns.key\"\ntopic = \"t\"\nkey_id = \"ABC\"",
                "[apns] key_id: \"ABC\" is not understood; give the ten letters",
            ),
            (
                "[apns]\nkey = \"certs/apns.key\"\ntopic = \"t\"\nkey_id = \"ABCDE12345\"",
                "[apns] team_id: missing; give the ten letters",
            ),
            ("[apns]\ntopic = \"a b\"", "[apns] topic: \"a b\" is no topic; allowed are"),
        ] {
            refused_with(text, expected);
        }
        let pem = required_in("[apns]");
        for (text, expected) in [
            ("domains = [\"a@b\"]", "[apns] domains: \"a@b\" is no domain; allowed is"),
            ("proxy = \"https://proxy:1\"", "[apns] proxy: is not understood; allowed is"),
            ("proxy = \"http://me:secret@proxy:1\"", "[apns] proxy: is not understood; allowed is"),
            (
                "proxy_login_file = \"certs/ca.pem\"",
                "[apns] proxy_login_file: has no meaning without proxy",
            ),
        ] {
            refused_with(&format!("[apns]\n{pem}{text}"), expected);
        }
        for (domains, expected) in [
            (["[]", "[]"], "[[apns]] domains: two tables have none"),
            (
                ["[\"a.org\"]", "[\"b.org\", \"A.org\"]"],
                "[[apns]] domains: \"a.org\" is served by two",
            ),
        ] {
            let table = |domains| format!("[[apns]]\n{pem}domains = {domains}\n");
            refused_with(&domains.map(table).concat(), expected);
        }
        refused_with(
            "[[apns]]\nkez = 1",
            "[apns]: unknown key `kez`, expected one of `endpoint`, ",
        );
    }

    #[test]
    fn an_identity_is_two_files_or_one_or_a_key() {
        let identity = |text: &str| parse(text).unwrap().apns.remove(0).identity;
        let pem = identity(&format!("[apns]\n{}topic = \"t\"", required_in("[apns]")));
        assert!(matches!(pem, ProviderFiles::Pem { topic: Some(topic), .. } if topic == "t"));
        for password in ["", "password_file = \"certs/ca.pem\""] {
            let one = identity(&format!("[apns]\ncertificate = \"certs/apns.p12\"\n{password}"));
            let ProviderFiles::Pkcs12 { file, password_file, topic: None } = one else {
                panic!("{one:?}")
            };
            assert!(file.ends_with("certs/apns.p12"));
            assert_eq!(password_file.is_some(), !password.is_empty());
        }
        let key = "[apns]\nkey = \"certs/apns.key\"\nkey_id = \"ABCDE12345\"\n\
                   team_id = \"TEAM123456\"\ntopic = \"t\"";
        let ProviderFiles::Key { key_id, team_id, topic, .. } = identity(key) else {
            panic!("no key")
        };
        assert_eq!([key_id, team_id, topic], ["ABCDE12345", "TEAM123456", "t"]);
    }

    #[test]
    fn several_identities_serve_different_domains() {
        let pem = required_in("[apns]");
        let domains = ["[\"A.example\", \"bücher.example\"]", "[\"b.example\"]", "[]"];
        let text = domains.map(|domains| format!("[[apns]]\n{pem}domains = {domains}\n")).concat();
        let apns = parse(&text).unwrap().apns;
        let served: Vec<_> = apns.iter().map(|apns| apns.domains.join(" ")).collect();
        assert_eq!(served, ["a.example bücher.example", "b.example", ""]);
    }

    #[test]
    fn endpoints_are_named_or_https() {
        let endpoint = |value: &str| {
            let required = required_in("[apns]");
            parse(&format!("[apns]\n{required}endpoint = \"{value}\""))
                .map(|c| c.apns[0].endpoint.clone())
        };
        assert_eq!(endpoint("production").unwrap().to_string(), "https://api.push.apple.com:443");
        assert_eq!(
            endpoint("sandbox").unwrap().to_string(),
            "https://api.sandbox.push.apple.com:443"
        );
        for url in ["https://127.0.0.1:8443", "https://[::1]:8443", "https://localhost:2197"] {
            assert_eq!(endpoint(url).unwrap().to_string(), url);
        }
        for bad in ["prod", "http://localhost:1", "https://localhost", "https://localhost:1/3", ""]
        {
            let message = endpoint(bad).unwrap_err().to_string();
            assert!(message.contains("[apns] endpoint: "), "{message}");
        }
    }
}
