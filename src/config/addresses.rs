//! The addresses of a configuration together: no two that one machine cannot have at once, and no backend that is
//! mailchime itself.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use super::backend::BackendConfig;
use super::check::{Check, CheckResult};
use super::listener::ListenerConfig;

/// Whether who listens at `bound` gets what comes to `address` of this machine. mailchime binds an IPv6 wildcard so that it
/// takes IPv4 as well.
pub fn takes(bound: SocketAddr, address: SocketAddr) -> bool {
    let [ours, theirs] = [bound, address].map(|it| it.ip().to_canonical());
    let scope = |address| match address {
        SocketAddr::V6(address) => address.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    let is_within = match ours {
        IpAddr::V4(all) if all.is_unspecified() => theirs.is_ipv4(),
        IpAddr::V6(all) if all.is_unspecified() => true,
        one => one == theirs && scope(bound) == scope(address),
    };
    is_within && bound.port() == address.port()
}

/// Whether a connection to this host and port comes to who listens at `bound`, as far as the text says it: what a name stands
/// for, and which addresses this machine has, is not known here.
fn leads_to(host: &str, port: u16, bound: SocketAddr) -> bool {
    let is_wildcard = bound.ip().to_canonical().is_unspecified();
    match host.parse::<IpAddr>() {
        Ok(address) => {
            // The address of no machine stands for this one.
            let is_here = address.is_loopback() || address.is_unspecified();
            (is_here || !is_wildcard) && takes(bound, SocketAddr::new(address, port))
        }
        Err(_) => host.eq_ignore_ascii_case("localhost") && is_wildcard && port == bound.port(),
    }
}

impl Check<'_> {
    /// The addresses of listening TCP sockets, each with its key.
    pub(super) fn apart(&self, addresses: &[(&str, SocketAddr)]) -> CheckResult<()> {
        for (at, (key, address)) in addresses.iter().enumerate() {
            // Port 0 is another port each time.
            let excludes = |(_, other): &&(&str, SocketAddr)| {
                address.port() != 0 && (takes(*address, *other) || takes(*other, *address))
            };
            let Some((other_key, other)) = addresses[..at].iter().find(excludes) else { continue };
            let problem = match (takes(*address, *other), takes(*other, *address)) {
                (true, true) if key == other_key => format!("{address} is given twice; remove one"),
                (true, true) => {
                    format!("{address} is that of {other_key}, too; give one of them another port")
                }
                (is_wider, _) => {
                    let all = if is_wider { address } else { other };
                    let also = if all.is_ipv6() { ", IPv4 included" } else { "" };
                    format!(
                        "{address} cannot be had beside {other} of {other_key}, since {all} is every address of \
                         this machine{also}; remove one, or give one of them another port"
                    )
                }
            };
            return Err(self.refusal(key, problem));
        }
        Ok(())
    }

    /// The files of Unix sockets, each with its key.
    pub(super) fn sockets_apart(&self, sockets: &[(&str, &Path)]) -> CheckResult<()> {
        for (at, (key, path)) in sockets.iter().enumerate() {
            if let Some((other, _)) = sockets[..at].iter().find(|(_, other)| other == path) {
                let problem = format!("is that of {other}; give each a file of its own");
                return Err(self.refusal(key, problem));
            }
        }
        Ok(())
    }

    /// A backend that is none of these listeners.
    pub(super) fn elsewhere(
        &self,
        table: &str,
        backend: &BackendConfig,
        listeners: &[ListenerConfig],
    ) -> CheckResult<()> {
        let BackendConfig { host, port, .. } = backend;
        let is_at = |listener: &&ListenerConfig| leads_to(host, *port, listener.address);
        let Some(ListenerConfig { address, .. }) = listeners.iter().find(is_at) else {
            return Ok(());
        };
        let host = match host.contains(':') {
            true => format!("[{host}]"),
            false => host.clone(),
        };
        let problem = format!(
            "{host}:{port} is mailchime itself, by [[listener]] address = \"{address}\"; name the port of the IMAP \
             server"
        );
        Err(self.refusal(&format!("{table} address"), problem))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parse, refused_with};

    #[test]
    fn addresses_that_a_machine_cannot_have_at_once_are_refused_with_both_keys() {
        let source = "[[events.source]]\nname = \"a\"\nsecret_file = \"certs/ca.pem\"";
        let listeners = |one, other| {
            format!(
                "[[listener]]\naddress = \"{one}:993\"\n[[listener]]\naddress = \"{other}:993\""
            )
        };
        for (text, expected) in [
            (
                listeners("[::]", "0.0.0.0"),
                "[[listener]] address: 0.0.0.0:993 cannot be had beside [::]:993 of [[listener]] address, since \
                 [::]:993 is every address of this machine, IPv4 included; remove one, or give one of them another port",
            ),
            (
                listeners("0.0.0.0", "[::]"),
                "[[listener]] address: [::]:993 cannot be had beside 0.0.0.0:993",
            ),
            (
                listeners("127.0.0.1", "0.0.0.0"),
                "[[listener]] address: 0.0.0.0:993 cannot be had beside 127.0.0.1:993 of [[listener]] address, since \
                 0.0.0.0:993 is every address of this machine; remove one",
            ),
            (
                listeners("[::1]", "[::1]"),
                "[[listener]] address: [::1]:993 is given twice; remove one",
            ),
            (
                listeners("127.0.0.1", "[::ffff:127.0.0.1]"),
                "[[listener]] address: [::ffff:127.0.0.1]:993 is given twice",
            ),
            (
                "[admin]\naddress = \"127.0.0.1:993\"".to_owned(),
                "[admin] address: 127.0.0.1:993 cannot be had beside [::]:993 of [[listener]] address",
            ),
            (
                "[admin]\naddress = \"127.0.0.1:8143\"\n[api]\naddress = \"127.0.0.1:8143\""
                    .to_owned(),
                "[api] address: 127.0.0.1:8143 is that of [admin] address, too; give one of them another port",
            ),
            (
                format!(
                    "[api]\naddress = \"[::]:8143\"\n[events]\naddress = \"192.0.2.1:8143\"\n{source}"
                ),
                "[events] address: 192.0.2.1:8143 cannot be had beside [::]:8143 of [api] address",
            ),
            (
                "[admin]\naddress = \"unix:a.sock\"\n[events]\ncyrus_stream = \"a.sock\""
                    .to_owned(),
                "[events] cyrus_stream: is that of [admin] address; give each a file of its own",
            ),
        ] {
            refused_with(&text, expected);
        }
        for text in [
            listeners("[::1]", "0.0.0.0"),
            listeners("[::1]", "127.0.0.1"),
            listeners("127.0.0.1", "127.0.0.2"),
            listeners("[fe80::1%1]", "[fe80::1%2]"),
            "[[listener]]\naddress = \"[::]:0\"\n[[listener]]\naddress = \"0.0.0.0:0\"".to_owned(),
            // Datagrams have ports of their own.
            format!(
                "[api]\naddress = \"[::]:8143\"\n[events]\nudp_address = \"127.0.0.1:8143\"\n\
                 udp_networks = [\"127.0.0.1\"]\n{source}"
            ),
        ] {
            parse(&text).unwrap();
        }
    }

    #[test]
    fn a_backend_that_is_a_listener_of_this_configuration_is_refused() {
        let text = |listener: &str, backend: &str| {
            format!(
                "[[listener]]\naddress = \"{listener}\"\n[backend]\naddress = \"{backend}\"\ntls = \"none\""
            )
        };
        for (listener, backend) in [
            ("[::]:993", "localhost:993"),
            ("[::]:993", "127.0.0.1:993"),
            ("[::]:993", "[::1]:993"),
            ("0.0.0.0:993", "LOCALHOST:993"),
            ("0.0.0.0:993", "127.0.0.1:993"),
            ("0.0.0.0:993", "0.0.0.0:993"),
            ("192.0.2.1:993", "192.0.2.1:993"),
            ("[2001:db8::1]:993", "[2001:db8::1]:993"),
        ] {
            let by = format!(
                "by [[listener]] address = \"{listener}\"; name the port of the IMAP server"
            );
            let expected = format!("[backend] address: {backend} is mailchime itself, {by}");
            refused_with(&text(listener, backend), &expected);
        }
        refused_with(
            "[[listener]]\n[[listener]]\ntls = \"starttls\"\n[backend]\naddress = \"192.0.2.7:993\"\n\
             [[route]]\ndomain = \"a.example\"\naddress = \"localhost:143\"",
            "[[route]] address: localhost:143 is mailchime itself, by [[listener]] address = \"[::]:143\"; name \
             the port of the IMAP server",
        );
        for (listener, backend) in [
            ("[::]:993", "localhost:143"),
            // Another machine, as far as this text tells.
            ("[::]:993", "192.0.2.1:993"),
            ("[::]:993", "imap.example.org:993"),
            ("192.0.2.1:993", "127.0.0.1:993"),
            ("192.0.2.1:993", "localhost:993"),
            ("0.0.0.0:993", "[::1]:993"),
            ("127.0.0.1:0", "127.0.0.1:993"),
        ] {
            parse(&text(listener, backend)).unwrap();
        }
    }
}
