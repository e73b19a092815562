//! `[api]`: HTTPS for users' programs.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::check::{Check, CheckResult, KIB, MIB, MINUTE, SECOND, domain};
use super::network::Network;

const ADDRESS: &str = "[api] address";
const PUBLIC_URL: &str = "[api] public_url";
const MAIL_URL: &str = "[api] mail_url";

/// Bytes of a URL.
const LONGEST_URL: usize = 2048;

/// No page leads there.
const REFUSED_SCHEMES: [&str; 8] =
    ["http", "javascript", "data", "vbscript", "blob", "file", "filesystem", "about"];

/// `[api]`: HTTPS for users' programs, with the certificates of `[tls]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiConfig {
    /// `None`: there is none of it. Port 0 lets the system choose one.
    pub address: Option<SocketAddr>,
    /// Who begins each connection with a PROXY header that tells the client's address.
    pub proxy_protocol: Vec<Network>,
    /// By which URL users reach it.
    pub public_url: Option<PublicUrl>,
    /// Where a tap on a notification of the web app leads: `https:`, or what a mail program opens.
    pub mail_url: Option<String>,
    /// Connections at once.
    pub connections: usize,
    /// For a connection's handshake, for the head of its first request, and for the body of a request.
    pub request_timeout: Duration,
    /// Bytes of a request's body.
    pub body_size: usize,
    /// Sessions that are open by a cookie.
    pub sessions: usize,
    /// Streams of changes at once.
    pub streams: usize,
    /// Those of one account.
    pub streams_per_account: usize,
    /// Between two signs of life on a stream on which nothing happens.
    pub stream_keepalive: Duration,
}

/// A URL of `https` that names a server and no path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl {
    /// In lower case; a port only where it is not 443.
    authority: String,
}

table!(RawApi {
    address: Option<String>,
    proxy_protocol: Vec<String>,
    public_url: Option<String>,
    mail_url: Option<String>,
    connections: Option<i64>,
    request_timeout: Option<String>,
    body_size: Option<String>,
    sessions: Option<i64>,
    streams: Option<i64>,
    streams_per_account: Option<i64>,
    stream_keepalive: Option<String>,
});

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            address: None,
            proxy_protocol: Vec::new(),
            public_url: None,
            mail_url: None,
            connections: 4096,
            request_timeout: Duration::from_secs(10),
            body_size: 64 * 1024,
            sessions: 10_000,
            streams: 2048,
            streams_per_account: 16,
            stream_keepalive: Duration::from_secs(30),
        }
    }
}

impl PublicUrl {
    /// The URL `https://` and this authority. The host is a name, or an IP address, with brackets if it is
    /// IPv6.
    pub fn new(host: &str, port: u16) -> Self {
        let host = host.to_ascii_lowercase();
        let authority = if port == 443 { host } else { format!("{host}:{port}") };
        Self { authority }
    }

    /// The host, with a port only where it is not 443.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The host alone, an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        let host = match self.authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => host,
            _ => &self.authority,
        };
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// The origin (RFC 6454), which is the URL without a slash at the end.
    pub fn origin(&self) -> String {
        format!("https://{}", self.authority)
    }
}

impl Check<'_> {
    #[rustfmt::skip] // a table: one key, one line
    pub(super) fn api(&self, raw: RawApi) -> CheckResult<ApiConfig> {
        let mut api = ApiConfig { address: self.api_address(raw.address)?, ..ApiConfig::default() };
        let networks = raw.proxy_protocol.iter();
        api.proxy_protocol = networks.map(|text| self.network("[api] proxy_protocol", text)).collect::<CheckResult<_>>()?;
        api.public_url = raw.public_url.map(|text| self.public_url(&text)).transpose()?;
        api.mail_url = raw.mail_url.map(|text| self.mail_url(text)).transpose()?;
        self.number("[api] connections", raw.connections, 1..=1_000_000, &mut api.connections)?;
        self.duration("[api] request_timeout", raw.request_timeout, SECOND..=10 * MINUTE, &mut api.request_timeout)?;
        self.size("[api] body_size", raw.body_size, 8 * KIB..=16 * MIB, &mut api.body_size)?;
        self.number("[api] sessions", raw.sessions, 1..=1_000_000, &mut api.sessions)?;
        self.number("[api] streams", raw.streams, 1..=1_000_000, &mut api.streams)?;
        self.number("[api] streams_per_account", raw.streams_per_account, 1..=10_000, &mut api.streams_per_account)?;
        self.duration("[api] stream_keepalive", raw.stream_keepalive, SECOND..=10 * MINUTE, &mut api.stream_keepalive)?;
        Ok(api)
    }

    fn api_address(&self, text: Option<String>) -> CheckResult<Option<SocketAddr>> {
        let parse = |text: String| {
            text.parse().map_err(|_| {
                let allowed = "allowed is an IP address with a port, such as \"[::]:8443\" or \
                               \"192.0.2.1:443\"";
                self.refusal(ADDRESS, format!("{text:?} is no address; {allowed}"))
            })
        };
        text.map(parse).transpose()
    }

    fn mail_url(&self, text: String) -> CheckResult<String> {
        if mail_url(&text) {
            return Ok(text);
        }
        let allowed =
            "allowed is an https:// URL, or what a mail program opens, such as \"message:\"";
        Err(self.refusal(MAIL_URL, format!("{text:?} is no such URL; {allowed}")))
    }

    fn public_url(&self, text: &str) -> CheckResult<PublicUrl> {
        public_url(text).ok_or_else(|| {
            let allowed = "allowed is \"https://\" and a host, perhaps with a port, and no path, such as \
                           \"https://push.example.org\"";
            self.refusal(PUBLIC_URL, format!("{text:?} is no such URL; {allowed}"))
        })
    }
}

/// What a browser may open: no script, no file, and nothing that others can read on the way.
fn mail_url(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    let named = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let refused = REFUSED_SCHEMES.iter().any(|it| scheme.eq_ignore_ascii_case(it));
    let whole = match scheme.eq_ignore_ascii_case("https") {
        true => rest.strip_prefix("//").is_some_and(|rest| !rest.is_empty()),
        false => true,
    };
    let fits = text.len() <= LONGEST_URL && text.bytes().all(|byte| byte.is_ascii_graphic());
    named && !refused && whole && fits
}

fn public_url(text: &str) -> Option<PublicUrl> {
    let authority = text.strip_prefix("https://")?;
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            (host, port.parse().ok().filter(|p| *p != 0)?)
        }
        _ => (authority, 443),
    };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let valid = match bracketed {
        Some(address) => matches!(address.parse(), Ok(IpAddr::V6(_))),
        None => domain(host).is_some(),
    };
    valid.then(|| PublicUrl::new(host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mail_url_is_of_https_or_of_a_mail_program() {
        for good in ["https://webmail.example.org/", "message:", "googlegmail:///", "ms-outlook://"]
        {
            assert!(mail_url(good), "{good}");
        }
        let long = format!("https://{}", "x".repeat(2048));
        for bad in [
            "",
            "webmail.example.org",
            "https:",
            "https://",
            "http://webmail.example.org/",
            "JavaScript:alert(1)",
            "data:text/html,x",
            "file:///etc/passwd",
            "https://webmail.example.org/ x",
            "https://webmail.example.org/\u{202e}",
            &long,
        ] {
            assert!(!mail_url(bad), "{bad}");
        }
    }

    #[test]
    fn the_host_of_a_public_url_has_no_port_and_no_brackets() {
        for (text, host) in [
            ("https://Push.example.org", "push.example.org"),
            ("https://push.example.org:8443", "push.example.org"),
            ("https://[2001:db8::1]:8443", "2001:db8::1"),
            ("https://[2001:db8::1]", "2001:db8::1"),
        ] {
            assert_eq!(public_url(text).unwrap().host(), host);
        }
    }

    #[test]
    fn a_public_url_is_an_origin() {
        let origin = |text| public_url(text).map(|url| url.origin());
        for (text, expected) in [
            ("https://Push.example.org", Some("https://push.example.org")),
            ("https://push.example.org/", Some("https://push.example.org")),
            ("https://push.example.org:443", Some("https://push.example.org")),
            ("https://push.example.org:8443", Some("https://push.example.org:8443")),
            ("https://[2001:db8::1]:8443", Some("https://[2001:db8::1]:8443")),
            ("https://[2001:db8::1]", Some("https://[2001:db8::1]")),
            ("https://192.0.2.1", Some("https://192.0.2.1")),
            ("http://push.example.org", None),
            ("push.example.org", None),
            ("https://push.example.org/mail", None),
            ("https://user@push.example.org", None),
            ("https://push.example.org:0", None),
            ("https://", None),
        ] {
            assert_eq!(origin(text).as_deref(), expected, "{text}");
        }
    }
}
