//! Addresses that users give and mailchime connects to: none of them may lead into a network that its user
//! could not reach without mailchime.
//!
//! A URL is checked when it is given and again when it is used ([`Guard::check`]), and so is each address of
//! its name just before the connection goes there ([`Guard::public`]): the name may have had others when it
//! was asked for the last time.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hyper::Uri;
use rustls::pki_types::ServerName;

use crate::config::{HostPattern, Network};

/// The longest URL, in bytes.
pub const MAX_URL: usize = 1024;

/// The port of https.
const HTTPS: u16 = 443;

/// Which URLs and which addresses are allowed.
#[derive(Clone, Debug)]
pub struct Guard {
    hosts: Vec<HostPattern>,
    allow_private: Vec<Network>,
}

/// Whose a URL is (RFC 6454). `Display` gives `https://host`, with the port where it is not 443.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UrlOrigin {
    /// A name in lower case, or an IP address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

// === impl Guard ===

impl Guard {
    /// Allows URLs of these hosts, or of all at port 443 where there is none; and of the addresses that are
    /// not public those of the networks in `allow_private`.
    pub fn new(hosts: &[HostPattern], allow_private: &[Network]) -> Self {
        Self { hosts: hosts.to_vec(), allow_private: allow_private.to_vec() }
    }

    /// Whose this URL is, if it may be connected to as far as it says itself. Names are not looked up.
    ///
    /// # Errors
    /// A clause for people: what is wrong with it, or what is allowed.
    pub fn check(&self, url: &str) -> Result<UrlOrigin, String> {
        let origin = UrlOrigin::of(url)?;
        let UrlOrigin { host, port } = &origin;
        let port = *port;
        let listed = self.hosts.iter().any(|pattern| pattern.matches(host, port));
        if !self.hosts.is_empty() && !listed {
            return Err(format!("is at {host}:{port}, which is not one of the allowed hosts"));
        }
        if self.hosts.is_empty() && port != HTTPS {
            return Err(format!("is at port {port}; allowed is {HTTPS}"));
        }
        if host.parse().is_ok_and(|address| !self.allows(address)) {
            return Err(format!("is at {host}, which is no public address"));
        }
        Ok(origin)
    }

    /// Those of the addresses of `host` that may be connected to.
    ///
    /// # Errors
    /// `PermissionDenied` where there is none.
    pub fn public(
        &self,
        host: &str,
        mut addresses: Vec<SocketAddr>,
    ) -> io::Result<Vec<SocketAddr>> {
        let refused = addresses.iter().map(SocketAddr::ip).find(|address| !self.allows(*address));
        addresses.retain(|address| self.allows(address.ip()));
        match refused {
            Some(address) if addresses.is_empty() => {
                let why = format!("{host} is at {address}, which is no public address");
                Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
            }
            _ => Ok(addresses),
        }
    }

    fn allows(&self, address: IpAddr) -> bool {
        is_public(address) || self.allow_private.iter().any(|network| network.contains(address))
    }
}

// === impl UrlOrigin ===

impl UrlOrigin {
    /// Whose an `https://` URL is, whether or not it may be connected to.
    ///
    /// # Errors
    /// A clause for people: what is wrong with the URL.
    pub fn of(url: &str) -> Result<Self, String> {
        if url.len() > MAX_URL {
            return Err(format!("is longer than {MAX_URL} bytes"));
        }
        // What stands behind a "#" is not sent, so it is not wanted either.
        if !url.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
            return Err("is no URL of ASCII letters and signs without \"#\"".to_owned());
        }
        let uri: Uri = url.parse().map_err(|_| "is no URL".to_owned())?;
        if uri.scheme_str() != Some("https") {
            return Err("is not an https:// URL".to_owned());
        }
        let authority = uri.authority().ok_or("has no host")?;
        if authority.as_str().contains('@') {
            return Err("has a user in it, which is not allowed".to_owned());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let host = host.to_ascii_lowercase();
        let in_names = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        let is_name = host.bytes().all(in_names) && !host.ends_with('.');
        let is_address = host.parse::<IpAddr>().is_ok();
        if !(is_address || is_name) || ServerName::try_from(host.as_str()).is_err() {
            return Err("has no host name that is allowed".to_owned());
        }
        let port = match authority.port() {
            None if authority.as_str().ends_with(':') => return Err("has an empty port".to_owned()),
            None => HTTPS,
            Some(port) => port.as_u16(),
        };
        Ok(Self { host, port })
    }

    /// `host`, with the port where it is not 443.
    pub fn authority(&self) -> String {
        let Self { host, port } = self;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        match *port {
            HTTPS => host,
            port => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for UrlOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

/// Whether anybody on the Internet could reach this address, by the registries of special-purpose addresses
/// (RFC 6890).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !matches!(
        (a, b, c),
        (0 | 10 | 127, _, _)                       // this network, private, loopback
            | (100, 64..=127, _)                   // CGNAT (RFC 6598)
            | (169, 254, _)                        // link-local: clouds tell their secrets there
            | (172, 16..=31, _) | (192, 168, _)    // private (RFC 1918)
            | (192, 0, 0 | 2)                      // protocols, documentation
            | (192, 88, 99)                        // 6to4 relays
            | (198, 18..=19, _)                    // benchmarks
            | (198, 51, 100) | (203, 0, 113)       // documentation
            | (224.., _, _) // multicast, reserved, broadcast
    )
}

/// Of IPv6 only global unicast is public, and of that not what holds an IPv4 address (6to4, Teredo) or is for
/// documentation. So loopback, unique-local, link-local, multicast, IPv4-mapped and NAT64 are not.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    let special = matches!(
        (a, b),
        (0x2001, 0x0000..=0x01ff | 0x0db8) | (0x2002, _) | (0x3fff, 0x0000..=0x0fff)
    );
    (0x2000..=0x3fff).contains(&a) && !special
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(hosts: &[&str], allow_private: &[&str]) -> Guard {
        let hosts: Vec<_> = hosts.iter().map(|host| host.parse().unwrap()).collect();
        let networks: Vec<_> = allow_private.iter().map(|net| net.parse().unwrap()).collect();
        Guard::new(&hosts, &networks)
    }

    #[test]
    fn addresses_that_not_everybody_reaches_are_not_public() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "64:ff9b::7f00:1",
            "64:ff9b::808:808",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.1.0.1",
            "198.17.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450:4001::200a",
            "2001:4860:4860::8888",
            "2003::1",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn of_several_addresses_the_public_ones_and_those_that_are_allowed_are_left() {
        let at = |addresses: &[&str]| {
            addresses
                .iter()
                .map(|address| SocketAddr::new(address.parse().unwrap(), 443))
                .collect::<Vec<_>>()
        };
        let all = ["10.0.0.1", "1.1.1.1", "::1"];
        assert_eq!(guard(&[], &[]).public("a.example", at(&all)).unwrap(), at(&["1.1.1.1"]));
        let own = guard(&[], &["10.0.0.0/8"]);
        assert_eq!(own.public("a.example", at(&all)).unwrap(), at(&["10.0.0.1", "1.1.1.1"]));
        let error = guard(&[], &[]).public("a.example", at(&["10.0.0.1"])).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(error.to_string(), "a.example is at 10.0.0.1, which is no public address");
        assert_eq!(guard(&[], &[]).public("a.example", Vec::new()).unwrap(), []);
    }

    #[test]
    fn a_url_is_of_https_at_its_port_without_a_user() {
        let any = guard(&[], &[]);
        for (url, origin) in [
            ("https://Push.Example.net/x?y=z", "https://push.example.net"),
            ("https://push.example.net:443/", "https://push.example.net"),
            ("https://1.1.1.1/", "https://1.1.1.1"),
            ("https://[2606:4700::1111]/", "https://[2606:4700::1111]"),
        ] {
            assert_eq!(any.check(url).unwrap().to_string(), origin);
            assert_eq!(UrlOrigin::of(url), any.check(url));
        }
        let long = format!("https://push.example.net/{}", "x".repeat(MAX_URL));
        for (url, why) in [
            ("", "is no URL"),
            ("/x", "is not an https:// URL"),
            ("http://push.example.net/", "is not an https:// URL"),
            ("file:///etc/passwd", "is no URL"),
            ("gopher://push.example.net/", "is not an https:// URL"),
            ("https:///x", "is no URL"),
            ("https://user@push.example.net/", "has a user"),
            ("https://user:pass@push.example.net/", "has a user"),
            ("https://push.example.net:8443/", "is at port 8443; allowed is 443"),
            ("https://push.example.net:0/", "is at port 0"),
            ("https://push.example.net/\r\nx: y", "is no URL"),
            ("https://push.example.net/ x", "is no URL"),
            ("https://push.example.net/#x", "is no URL"),
            ("https://püsh.example.net/", "is no URL"),
            ("https://push.example.net./", "has no host name"),
            ("https://push%2eexample.net/", "is no URL"),
            ("https://127.0.0.1/", "is at 127.0.0.1, which is no public address"),
            ("https://127.1/", "has no host name"),
            ("https://0x7f000001/", ""),
            ("https://2130706433/", "has no host name"),
            ("https://[::1]/", "is at ::1, which is no public address"),
            ("https://[::ffff:127.0.0.1]/", "is at ::ffff:127.0.0.1, which is no public"),
            ("https://[fe80::1%25eth0]/", "has no host name"),
            (&long, "is longer than 1024 bytes"),
        ] {
            match any.check(url) {
                Err(found) => assert!(found.starts_with(why), "{url}: {found}"),
                // A name like any other, which no name server knows.
                Ok(origin) => assert_eq!(origin.host, "0x7f000001", "{url}"),
            }
        }
    }

    #[test]
    fn a_list_of_hosts_allows_no_other_and_names_their_ports() {
        let listed = guard(&["fcm.googleapis.com", "*.push.apple.com", "localhost:8443"], &[]);
        for url in [
            "https://fcm.googleapis.com/fcm/send/1",
            "https://web.push.apple.com/1",
            "https://localhost:8443/1",
        ] {
            assert!(listed.check(url).is_ok(), "{url}");
        }
        for url in [
            "https://push.apple.com/1",
            "https://evilpush.apple.com/1",
            "https://web.push.apple.com.evil.example/1",
            "https://fcm.googleapis.com:8443/1",
            "https://localhost/1",
            "https://push.example.net/1",
        ] {
            let why = listed.check(url).unwrap_err();
            assert!(why.contains("which is not one of the allowed hosts"), "{url}: {why}");
        }
    }
}
