//! Lookup name servers, one after the other, as resolv.conf(5) says: each that does not answer in its
//! time leaves the question to the next, and the round is made as often as `attempts`.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Resolver, TokioResolver};
use resolv_conf::ScopedIp;
use tokio::time::timeout;

/// The port of name servers.
const PORT: u16 = 53;

/// For the addresses of the other family, once there are some of one: there are name servers that
/// never answer for AAAA.
const OTHER_FAMILY: Duration = Duration::from_secs(1);

/// Name servers of resolv.conf that count.
const SERVERS: usize = 3;

/// Addresses of a name that count.
const ADDRESSES: usize = 16;

/// Name servers, and how to ask them.
pub(super) struct Servers {
    /// In the order in which they are asked.
    servers: Vec<(SocketAddr, TokioResolver)>,
    attempts: u32,
    /// A name with at least so many dots is first taken as it is.
    ndots: usize,
    search: Vec<String>,
    /// Whether IPv6 addresses are wanted.
    ipv6: bool,
    generation: u64,
}

/// What a name was found to have.
#[derive(Debug)]
pub(super) struct FoundAddresses {
    /// At least one.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ttl: Duration,
}

/// Why there is no address.
#[derive(Clone, Debug)]
pub(super) enum LookupFailure {
    /// There is no such name, or none with an address, for so long.
    Absent { ttl: Option<Duration> },
    /// No name server answers.
    Silent,
    /// What a name server said instead.
    Other(String),
}

// === impl Servers ===

impl Servers {
    /// Those of `resolv_conf`, the text of such a file, unless others are given.
    pub(super) fn new(resolv_conf: &str, given: &[SocketAddr], generation: u64) -> Self {
        let (mut conf, errors) = resolv_conf::Config::parse_with_errors(resolv_conf.as_bytes());
        for error in errors {
            tracing::warn!(
                target: "mailchime::net::resolv_conf_line_ignored",
                %error, "ignored a line of resolv.conf that is not understood"
            );
        }
        conf.nameservers.truncate(SERVERS);
        let listed =
            conf.get_nameservers_or_local().into_iter().filter_map(|server| match server {
                ScopedIp::V4(address) => Some(SocketAddr::from((address, PORT))),
                ScopedIp::V6(address, None) => Some(SocketAddr::from((address, PORT))),
                ScopedIp::V6(_, Some(zone)) => {
                    tracing::warn!(
                        target: "mailchime::net::scoped_name_server_ignored",
                        zone, "ignored a name server that belongs to one network interface"
                    );
                    None
                }
            });
        let addresses = if given.is_empty() { listed.collect() } else { given.to_vec() };
        let options = options(&conf);
        let servers = addresses.into_iter().filter_map(|address| {
            let built = client(address, options.clone(), conf.use_vc);
            let failed = |error: &NetError| {
                tracing::error!(
                    target: "mailchime::net::name_server_unusable",
                    %address, %error, "could not set up a name server; mailchime goes on without it"
                )
            };
            Some((address, built.inspect_err(failed).ok()?))
        });
        Self {
            servers: servers.collect(),
            attempts: conf.attempts.max(1),
            ndots: usize::try_from(conf.ndots).unwrap_or(1),
            search: conf.get_last_search_or_domain().cloned().collect(),
            ipv6: !conf.no_aaaa,
            generation,
        }
    }

    /// A number that tells them from those before.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// The addresses of `name`, by the search list where the name is not whole.
    pub(super) async fn look_up(&self, name: &str) -> Result<FoundAddresses, LookupFailure> {
        let mut failure = LookupFailure::Absent { ttl: None };
        for candidate in self.candidates(name) {
            let Ok(name) = Name::from_ascii(&candidate) else { continue };
            match self.of_name(&name).await {
                Ok(found) => return Ok(found),
                // What is not known counts for more than what is not there.
                Err(LookupFailure::Absent { .. })
                    if !matches!(failure, LookupFailure::Absent { .. }) => {}
                Err(why) => failure = why,
            }
        }
        Err(failure)
    }

    /// The whole names that `name` may stand for, each with a dot at its end, in their order.
    fn candidates(&self, name: &str) -> Vec<String> {
        if name.ends_with('.') {
            return vec![name.to_owned()];
        }
        let whole = format!("{name}.");
        let within = |domain: &String| match domain.trim_matches('.') {
            "" => whole.clone(),
            domain => format!("{name}.{domain}."),
        };
        let mut candidates: Vec<_> = self.search.iter().map(within).collect();
        match name.matches('.').count() >= self.ndots {
            true => candidates.insert(0, whole),
            false => candidates.push(whole),
        }
        candidates
    }

    async fn of_name(&self, name: &Name) -> Result<FoundAddresses, LookupFailure> {
        let mut failure = LookupFailure::Silent;
        for _ in 0..self.attempts {
            for (address, server) in &self.servers {
                match self.at(server, name).await {
                    Err(why @ (LookupFailure::Silent | LookupFailure::Other(_))) => {
                        tracing::debug!(
                            target: "mailchime::net::name_server_without_address",
                            %name, %address, %why, "a name server gave no address for a name"
                        );
                        failure = why;
                    }
                    said => return said,
                }
            }
        }
        Err(failure)
    }

    /// What one server says of both families.
    async fn at(
        &self,
        server: &TokioResolver,
        name: &Name,
    ) -> Result<FoundAddresses, LookupFailure> {
        let v4 = one_family(server, name, RecordType::A);
        if !self.ipv6 {
            return v4.await;
        }
        let v6 = one_family(server, name, RecordType::AAAA);
        tokio::pin!(v4, v6);
        let (first, second) = tokio::select! {
            first = &mut v4 => match &first {
                Ok(_) => (first, timeout(OTHER_FAMILY, v6).await.ok()),
                Err(_) => (first, Some(v6.await)),
            },
            first = &mut v6 => match &first {
                Ok(_) => (first, timeout(OTHER_FAMILY, v4).await.ok()),
                Err(_) => (first, Some(v4.await)),
            },
        };
        match (first, second) {
            (Ok(one), Some(Ok(other))) => Ok(FoundAddresses {
                addresses: [one.addresses, other.addresses].concat(),
                ttl: one.ttl.min(other.ttl),
            }),
            // The other family may be there at the next look.
            (Ok(one), None | Some(Err(LookupFailure::Silent | LookupFailure::Other(_)))) => {
                Ok(FoundAddresses { ttl: one.ttl.min(Duration::from_secs(60)), ..one })
            }
            (Ok(one), _) | (Err(_), Some(Ok(one))) => Ok(one),
            (Err(LookupFailure::Absent { .. }), Some(Err(other))) => Err(other),
            (Err(one), _) => Err(one),
        }
    }
}

async fn one_family(
    server: &TokioResolver,
    name: &Name,
    family: RecordType,
) -> Result<FoundAddresses, LookupFailure> {
    let lookup = server.lookup(name.clone(), family).await.map_err(LookupFailure::from)?;
    let answers = lookup.answers();
    let addresses = answers.iter().filter_map(|record| record.data.ip_addr());
    let addresses: Vec<_> = addresses.take(ADDRESSES).collect();
    let ttl = answers.iter().map(|record| Duration::from_secs(record.ttl.into())).min();
    match addresses.is_empty() {
        true => Err(LookupFailure::Absent { ttl }),
        false => Ok(FoundAddresses { addresses, ttl: ttl.unwrap_or_default() }),
    }
}

fn options(conf: &resolv_conf::Config) -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.timeout = Duration::from_secs(conf.timeout.clamp(1, 30).into());
    options.edns0 = conf.edns0;
    // What follows is done here, for all servers together.
    options.attempts = 0;
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options
}

fn client(
    address: SocketAddr,
    options: ResolverOpts,
    tcp_alone: bool,
) -> Result<TokioResolver, NetError> {
    let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
    if tcp_alone {
        connections.remove(0);
    }
    connections.iter_mut().for_each(|connection| connection.port = address.port());
    let server = NameServerConfig::new(address.ip(), true, connections);
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
    let provider = TokioRuntimeProvider::default();
    Resolver::builder_with_config(config, provider).with_options(options).build()
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.servers.iter().map(|(address, _)| address)).finish()
    }
}

// === impl LookupFailure ===

impl From<NetError> for LookupFailure {
    fn from(error: NetError) -> Self {
        match error {
            NetError::Dns(DnsError::NoRecordsFound(none)) => {
                let seconds = none.negative_ttl.map(u64::from);
                Self::Absent { ttl: seconds.map(Duration::from_secs) }
            }
            NetError::Timeout => Self::Silent,
            other => Self::Other(other.to_string()),
        }
    }
}

impl fmt::Display for LookupFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent { .. } => f.write_str("the name has no address"),
            Self::Silent => f.write_str("no name server answers for this name"),
            Self::Other(why) => write!(f, "the name cannot be looked up: {why}"),
        }
    }
}

impl From<LookupFailure> for io::Error {
    fn from(failure: LookupFailure) -> Self {
        let kind = match failure {
            LookupFailure::Absent { .. } => io::ErrorKind::NotFound,
            LookupFailure::Silent => io::ErrorKind::TimedOut,
            LookupFailure::Other(_) => io::ErrorKind::Other,
        };
        Self::new(kind, failure.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_name_is_looked_for_in_the_domains_of_the_search_list() {
        let candidates = |conf: &str, name: &str| Servers::new(conf, &[], 0).candidates(name);
        let conf = "search a.example b.example.\noptions ndots:2\n";
        assert_eq!(candidates("", "imap"), ["imap."]);
        assert_eq!(candidates(conf, "imap"), ["imap.a.example.", "imap.b.example.", "imap."]);
        assert_eq!(
            candidates(conf, "imap.c"),
            ["imap.c.a.example.", "imap.c.b.example.", "imap.c."]
        );
        assert_eq!(candidates(conf, "x.imap.c")[0], "x.imap.c.");
        assert_eq!(candidates(conf, "imap."), ["imap."]);
        assert_eq!(candidates("domain c.example\n", "imap"), ["imap.c.example.", "imap."]);
    }

    #[test]
    fn name_servers_are_those_of_the_file_or_else_those_of_the_configuration() {
        let servers = |conf: &str, given: &[SocketAddr]| {
            let servers = Servers::new(conf, given, 0).servers;
            servers.into_iter().map(|(address, _)| address.to_string()).collect::<Vec<_>>()
        };
        let conf = "nameserver 192.0.2.1\nnameserver 2001:db8::1\nnameserver fe80::1%eth0\n";
        assert_eq!(servers(conf, &[]), ["192.0.2.1:53", "[2001:db8::1]:53"]);
        assert_eq!(servers(conf, &["127.0.0.1:5353".parse().unwrap()]), ["127.0.0.1:5353"]);
        assert_eq!(servers("", &[])[0], "127.0.0.1:53");
    }
}
