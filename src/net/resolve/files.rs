//! `/etc/hosts` and `/etc/resolv.conf`: read when a name is asked for, and again when they change.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Sources;
use super::servers::Servers;
use crate::files::{self, Stamp};

/// Between two looks whether a file has changed.
const INTERVAL: Duration = Duration::from_secs(1);

/// Of a file, what is read.
const SIZE: u64 = 4 * 1024 * 1024;

/// Names in lower case without a dot at the end.
pub(super) type Hosts = HashMap<String, Vec<IpAddr>>;

/// What was read last.
#[derive(Debug)]
pub(super) struct ResolverFiles {
    sources: Sources,
    looked: Option<Instant>,
    hosts: (Option<Stamp>, Arc<Hosts>),
    servers: (Option<Stamp>, Arc<Servers>),
}

impl ResolverFiles {
    /// Nothing is read yet.
    pub(super) fn new(sources: Sources) -> Self {
        let servers = Servers::new("", &sources.name_servers, 0);
        Self {
            sources,
            looked: None,
            hosts: (None, Arc::default()),
            servers: (None, Arc::new(servers)),
        }
    }

    /// What the files say, as of a second ago at most. They are small and local; `getaddrinfo` reads
    /// one of them for each question.
    pub(super) fn current(&mut self) -> (Arc<Hosts>, Arc<Servers>) {
        let now = Instant::now();
        let first = self.looked.is_none();
        if self.looked.is_none_or(|looked| now.duration_since(looked) >= INTERVAL) {
            self.looked = Some(now);
            let Sources { hosts, resolv_conf, name_servers } = &self.sources;
            let seen = stamp(hosts);
            if first || self.hosts.0 != seen {
                self.hosts = (seen, Arc::new(parse_hosts(&read(hosts))));
            }
            let seen = stamp(resolv_conf);
            if first || self.servers.0 != seen {
                let generation = self.servers.1.generation() + 1;
                let servers = Servers::new(&read(resolv_conf), name_servers, generation);
                self.servers = (seen, Arc::new(servers));
            }
        }
        (Arc::clone(&self.hosts.1), Arc::clone(&self.servers.1))
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    fs::metadata(path).ok().map(|metadata| files::stamp(&metadata))
}

/// The beginning of a file; nothing where it cannot be read, as `getaddrinfo` has it.
fn read(path: &Path) -> String {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(SIZE).read_to_end(&mut bytes));
    if let Err(error) = read
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(
            target: "mailchime::net::resolver_file_unreadable",
            file = %path.display(), %error,
            "could not read a file of the resolver; mailchime looks up names without it"
        );
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// hosts(5).
fn parse_hosts(text: &str) -> Hosts {
    let mut hosts = Hosts::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) else { continue };
        for name in words {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            let addresses = hosts.entry(name).or_default();
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    hosts
}

/// Names that no name server is asked for (RFC 6761 section 6.3).
pub(super) fn is_localhost(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    name == "localhost" || name.ends_with(".localhost")
}

/// What they mean where `/etc/hosts` does not say.
pub(super) fn localhost() -> Vec<IpAddr> {
    vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()]
}

/// The number of a network interface.
pub(super) fn interface(name: &str) -> Option<u32> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    let valid = !name.is_empty() && !name.starts_with('.') && name.bytes().all(plain);
    let number = valid.then(|| fs::read_to_string(format!("/sys/class/net/{name}/ifindex")));
    number?.ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_file_is_read_as_the_system_reads_it() {
        let hosts = parse_hosts(
            "# comment\n127.0.0.1\tlocalhost\n::1 localhost ip6-localhost\n\n\
             192.0.2.1 Mail.Example.org mail # the server\n192.0.2.1 mail\nnonsense x\n192.0.2.9\n",
        );
        let of = |name: &str| hosts.get(name).cloned().unwrap_or_default();
        assert_eq!(
            of("localhost"),
            ["127.0.0.1", "::1"].map(|text| text.parse::<IpAddr>().unwrap())
        );
        assert_eq!(of("mail.example.org"), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(of("mail"), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(hosts.len(), 4, "{hosts:?}");
    }

    #[test]
    fn localhost_is_this_machine_whatever_a_name_server_says() {
        for (name, is) in [
            ("localhost", true),
            ("localhost.", true),
            ("imap.localhost", true),
            ("notlocalhost", false),
            ("localhost.example.org", false),
        ] {
            assert_eq!(is_localhost(name), is, "{name}");
        }
    }

    #[test]
    fn an_interface_has_a_number_and_no_path() {
        assert_eq!(interface("lo"), Some(1));
        assert_eq!(interface("../net/lo"), None);
        assert_eq!(interface(""), None);
    }
}
