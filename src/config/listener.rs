//! `[[listener]]`: where clients connect.

use std::net::{Ipv6Addr, SocketAddr};

use serde::Deserialize;

use super::check::{Check, CheckResult};
use super::network::Network;

/// `[[listener]]`: one address.
#[derive(Clone, Debug, PartialEq)]
pub struct ListenerConfig {
    /// Port 0 lets the system choose one.
    pub address: SocketAddr,
    /// How TLS begins.
    pub tls: ListenerTls,
    /// Who begins each connection with a PROXY header that tells the client's address.
    pub proxy_protocol: Vec<Network>,
}

/// When TLS begins on a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerTls {
    /// From the first byte (RFC 8314 section 3.2).
    Implicit,
    /// After the client's STARTTLS, and nobody logs in before (RFC 9051 section 6.2.1).
    StartTls,
}

table!(RawListener {
    address: Option<String>,
    tls: Option<RawListenerTls>,
    proxy_protocol: Vec<String>,
});

#[derive(Clone, Copy, Debug, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "lowercase")]
pub(super) enum RawListenerTls {
    Implicit,
    StartTls,
}

impl Default for ListenerConfig {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv6Addr::UNSPECIFIED, 993)),
            tls: ListenerTls::Implicit,
            proxy_protocol: Vec::new(),
        }
    }
}

impl Check<'_> {
    pub(super) fn listeners(&self, raw: Vec<RawListener>) -> CheckResult<Vec<ListenerConfig>> {
        const ADDRESS: &str = "[[listener]] address";
        let mut listeners: Vec<ListenerConfig> = Vec::new();
        for RawListener { address, tls, proxy_protocol } in raw {
            let mut listener = ListenerConfig::default();
            match tls {
                None | Some(RawListenerTls::Implicit) => {}
                Some(RawListenerTls::StartTls) => {
                    listener.tls = ListenerTls::StartTls;
                    listener.address.set_port(143);
                }
            }
            if let Some(text) = address {
                listener.address = text.parse::<SocketAddr>().map_err(|_| {
                    let allowed = "allowed is an IP address with a port, such as \"[::]:993\" or \
                                   \"192.0.2.1:993\"";
                    self.refusal(ADDRESS, format!("{text:?} is no address; {allowed}"))
                })?;
            }
            let networks = proxy_protocol.iter();
            let networks = networks.map(|text| self.network("[[listener]] proxy_protocol", text));
            listener.proxy_protocol = networks.collect::<CheckResult<_>>()?;
            listeners.push(listener);
        }
        if listeners.is_empty() {
            let remedy = "remove the key for the default, or give at least one [[listener]]";
            return Err(self.refusal("listener", format!("the list is empty; {remedy}")));
        }
        Ok(listeners)
    }

    pub(super) fn network(&self, key: &str, text: &str) -> CheckResult<Network> {
        text.parse().map_err(|meant: Option<Network>| {
            let problem = match meant {
                Some(meant) => format!("{text:?} has bits beyond its prefix; write \"{meant}\""),
                None => format!(
                    "{text:?} is no network; allowed is an IP address with or without the length \
                     of its prefix, such as \"10.0.0.0/8\" or \"::1\""
                ),
            };
            self.refusal(key, problem)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parse, refused_with};
    use super::*;

    #[test]
    fn a_refused_value_names_its_key_and_what_is_allowed() {
        for (text, expected) in [
            (
                "[[listener]]\naddress = \"imap.example.org:993\"",
                "[[listener]] address: \"imap.example.org:993\" is no address",
            ),
            ("[[listener]]\n[[listener]]", "[[listener]] address: [::]:993 is given twice"),
            ("[[listener]]\ntls = \"none\"", "[[listener]] tls: unknown variant `none`"),
            (
                "[[listener]]\nadress = 1",
                "[[listener]]: unknown key `adress`, expected one of `address`, `tls`, `proxy_protocol` \
                 (line 5)",
            ),
            (
                "[[listener]]\nproxy_protocol = [\"10.0.0.1/8\"]",
                "[[listener]] proxy_protocol: \"10.0.0.1/8\" has bits beyond its prefix; write \
                 \"10.0.0.0/8\"",
            ),
            (
                "[[listener]]\nproxy_protocol = [\"lb.example.org\"]",
                "[[listener]] proxy_protocol: \"lb.example.org\" is no network; allowed is",
            ),
            (
                "[[listener]]\nproxy_protocol = \"::1\"",
                "[[listener]] proxy_protocol: invalid type: string \"::1\", expected a list, in brackets: [",
            ),
        ] {
            refused_with(text, expected);
        }
    }

    #[test]
    fn a_listener_for_starttls_has_a_port_of_its_own() {
        let listeners = parse("[[listener]]\n[[listener]]\ntls = \"starttls\"").unwrap().listeners;
        let told: Vec<_> = listeners.iter().map(|l| (l.address.to_string(), l.tls)).collect();
        let expected = [("[::]:993", ListenerTls::Implicit), ("[::]:143", ListenerTls::StartTls)];
        assert_eq!(told, expected.map(|(address, tls)| (address.to_owned(), tls)));
    }
}
