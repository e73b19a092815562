//! `[api]`: HTTPS for users' programs.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::check::{Check, CheckResult, KIB, MIB, MINUTE, SECOND, domain};
use super::network::Network;

const ADDRESS: &str = "[api] address";
const PUBLIC_URL: &str = "[api] public_url";

/// `[api]`: HTTPS for users' programs, with the certificates of `[tls]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiConfig {
    /// `None`: there is none of it. Port 0 lets the system choose one.
    pub address: Option<SocketAddr>,
    /// Who begins each connection with a PROXY header that tells the client's address.
    pub proxy_protocol: Vec<Network>,
    /// By which URL users reach it.
    pub public_url: Option<PublicUrl>,
    /// Connections at once.
    pub connections: usize,
    /// For a connection's handshake, for the head of its first request, and for the body of a request.
    pub request_timeout: Duration,
    /// Bytes of a request's body.
    pub body_size: usize,
    /// Sessions that are open by a cookie.
    pub sessions: usize,
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
    connections: Option<i64>,
    request_timeout: Option<String>,
    body_size: Option<String>,
    sessions: Option<i64>,
});

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            address: None,
            proxy_protocol: Vec::new(),
            public_url: None,
            connections: 4096,
            request_timeout: Duration::from_secs(10),
            body_size: 64 * 1024,
            sessions: 10_000,
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
        self.number("[api] connections", raw.connections, 1..=1_000_000, &mut api.connections)?;
        self.duration("[api] request_timeout", raw.request_timeout, SECOND..=10 * MINUTE, &mut api.request_timeout)?;
        self.size("[api] body_size", raw.body_size, 8 * KIB..=16 * MIB, &mut api.body_size)?;
        self.number("[api] sessions", raw.sessions, 1..=1_000_000, &mut api.sessions)?;
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

    fn public_url(&self, text: &str) -> CheckResult<PublicUrl> {
        public_url(text).ok_or_else(|| {
            let allowed = "allowed is \"https://\" and a host, perhaps with a port, and no path, such as \
                           \"https://push.example.org\"";
            self.refusal(PUBLIC_URL, format!("{text:?} is no such URL; {allowed}"))
        })
    }
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
