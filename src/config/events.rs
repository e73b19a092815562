//! `[events]`: news of mailboxes from mail servers and scripts, over HTTP.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::check::{Check, CheckResult, KIB, MIB, MINUTE, SECOND, domain};
use super::network::Network;
use crate::model::Account;

/// No source has this name: it stands for datagrams.
const UDP: &str = "udp";

const ADDRESS: &str = "[events] address";

/// `[events]`: where events come in, and who may send them.
#[derive(Clone, Debug, PartialEq)]
pub struct EventsConfig {
    /// `None`: there is none of it. Port 0 lets the system choose one.
    pub address: Option<SocketAddr>,
    /// Whether connections use TLS, with the certificates of `[tls]`. Always, unless it is a loopback
    /// address.
    pub tls: bool,
    /// `None`: no datagrams are heard.
    pub udp: Option<UdpEventsConfig>,
    /// `None`: there is no socket for Cyrus.
    pub cyrus: Option<CyrusEventsConfig>,
    /// Who may send events, each with a name of its own.
    pub sources: Vec<EventSourceConfig>,
    /// Connections at once.
    pub connections: usize,
    /// For a connection's handshake, for the head of its first request, and for the body of a request.
    pub request_timeout: Duration,
    /// Bytes of a request's body.
    pub body_size: usize,
    /// Events that wait until they are on disk.
    pub waiting: usize,
}

/// Where datagrams come in.
#[derive(Clone, Debug, PartialEq)]
pub struct UdpEventsConfig {
    /// Of this machine, or of a group that is joined.
    pub address: SocketAddr,
    /// An address of the network card at which a group of IPv4 is joined; the system chooses where there is none. A
    /// group of IPv6 has it in its own address, as scope.
    pub interface: Option<Ipv4Addr>,
    /// Whose datagrams are heard.
    pub networks: Vec<Network>,
    /// The domains of the accounts that datagrams may speak of, in lower case; empty: all accounts.
    pub domains: Vec<String>,
    /// The domain of users whose name comes without one, in lower case.
    pub default_domain: Option<String>,
}

/// The sockets to which Cyrus writes: at least one.
#[derive(Clone, Debug, PartialEq)]
pub struct CyrusEventsConfig {
    /// For datagrams.
    pub socket: Option<PathBuf>,
    /// For connections.
    pub stream: Option<PathBuf>,
    /// Name or number of a group that may write to them, beside mailchime's user.
    pub group: Option<String>,
    /// For whom Cyrus may speak. It has no secret: the sockets' files say who may write.
    pub source: EventSourceConfig,
}

/// `[[events.source]]`: who may send events.
#[derive(Clone, Debug, PartialEq)]
pub struct EventSourceConfig {
    /// Tells it from others. No two have one name.
    pub name: String,
    /// A file that exists, with the secret in its first line, and perhaps older ones.
    pub secret_file: PathBuf,
    /// The domains of the accounts that it may speak for, in lower case; empty: all accounts.
    pub domains: Vec<String>,
    /// The domain of users whose name comes without one, in lower case.
    pub default_domain: Option<String>,
    /// Events that it may send in a second, on average.
    pub events_per_second: u32,
    /// mailchime writes the entry of METADATA at the backend without which Dovecot's driver `ox` sends nothing of
    /// an account.
    pub metadata: bool,
    /// The route under which devices register at its Cyrus (`aps_topic` there): it may register them. `None`: it may
    /// not.
    pub route: Option<String>,
}

table!(RawEvents {
    address: Option<String>,
    tls: Option<RawEventsTls>,
    connections: Option<i64>,
    request_timeout: Option<String>,
    body_size: Option<String>,
    waiting: Option<i64>,
    udp_address: Option<String>,
    udp_interface: Option<String>,
    udp_networks: Vec<String>,
    udp_domains: Vec<String>,
    udp_default_domain: Option<String>,
    cyrus_socket: Option<String>,
    cyrus_stream: Option<String>,
    cyrus_group: Option<String>,
    cyrus_domains: Vec<String>,
    cyrus_default_domain: Option<String>,
    cyrus_events_per_second: Option<i64>,
    cyrus_route: Option<String>,
    source: Vec<RawEventSource>,
});

table!(RawEventSource {
    name: Option<String>,
    secret_file: Option<String>,
    domains: Vec<String>,
    default_domain: Option<String>,
    events_per_second: Option<i64>,
    metadata: Option<bool>,
    cyrus_route: Option<String>,
});

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "lowercase")]
pub(super) enum RawEventsTls {
    Implicit,
    None,
}

impl Default for EventsConfig {
    fn default() -> Self {
        Self {
            address: None,
            tls: false,
            udp: None,
            cyrus: None,
            sources: Vec::new(),
            connections: 1024,
            request_timeout: Duration::from_secs(10),
            body_size: 64 * 1024,
            waiting: 10_000,
        }
    }
}

impl EventsConfig {
    /// Whether there is an address or a socket for events.
    pub fn is_on(&self) -> bool {
        self.address.is_some() || self.udp.is_some() || self.cyrus.is_some()
    }

    /// The sources that need an entry of METADATA at the backend for each account.
    pub fn with_metadata(&self) -> impl Iterator<Item = &EventSourceConfig> {
        self.sources.iter().filter(|source| source.metadata)
    }
}

impl EventSourceConfig {
    /// One for all accounts, whose secret is in this file, with the defaults.
    pub fn new(name: &str, secret_file: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            secret_file: secret_file.into(),
            domains: Vec::new(),
            default_domain: None,
            events_per_second: 1000,
            metadata: false,
            route: None,
        }
    }

    /// Whether it may speak for this account.
    pub fn covers(&self, account: &Account) -> bool {
        covers(&self.domains, account)
    }
}

impl UdpEventsConfig {
    /// Whether datagrams may speak of this account.
    pub fn covers(&self, account: &Account) -> bool {
        covers(&self.domains, account)
    }
}

/// Whether the account is of one of these domains, or there are none.
fn covers(domains: &[String], account: &Account) -> bool {
    let is = |domain: &str| domains.iter().any(|ours| ours == domain);
    domains.is_empty() || account.domain().is_some_and(is)
}

impl CyrusEventsConfig {
    /// Without a socket; for all accounts.
    pub fn new() -> Self {
        let source = EventSourceConfig::new("cyrus", PathBuf::new());
        Self { socket: None, stream: None, group: None, source }
    }
}

impl Default for CyrusEventsConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl Check<'_> {
    #[rustfmt::skip] // a table: one key, one line
    pub(super) fn event_intake(&self, raw: RawEvents) -> CheckResult<EventsConfig> {
        let mut events = EventsConfig { cyrus: self.cyrus_events(&raw)?, ..EventsConfig::default() };
        if let Some(text) = raw.address {
            (events.address, events.tls) = self.events_address(&text, raw.tls)?;
        }
        self.number("[events] connections", raw.connections, 1..=1_000_000, &mut events.connections)?;
        self.duration("[events] request_timeout", raw.request_timeout, SECOND..=10 * MINUTE, &mut events.request_timeout)?;
        self.size("[events] body_size", raw.body_size, KIB..=16 * MIB, &mut events.body_size)?;
        self.number("[events] waiting", raw.waiting, 1..=1_000_000, &mut events.waiting)?;
        for source in raw.source {
            let source = self.event_source(source)?;
            if events.sources.iter().any(|other| other.name == source.name) {
                let problem = format!("two are called {:?}; give one of them another name", source.name);
                return Err(self.refusal("[[events.source]] name", problem));
            }
            events.sources.push(source);
        }
        events.udp = self.udp_events(raw.udp_address, raw.udp_interface, &raw.udp_networks, (&raw.udp_domains, raw.udp_default_domain.as_ref()))?;
        if events.address.is_some() && events.sources.is_empty() {
            let problem = "nobody may send events there; add an [[events.source]], or remove the address";
            return Err(self.refusal(ADDRESS, problem));
        }
        Ok(events)
    }

    fn events_address(
        &self,
        text: &str,
        tls: Option<RawEventsTls>,
    ) -> CheckResult<(Option<SocketAddr>, bool)> {
        let address = text.parse::<SocketAddr>().map_err(|_| {
            let allowed = "allowed is an IP address with a port, such as \"127.0.0.1:8144\" or \
                           \"[::]:8144\"";
            self.refusal(ADDRESS, format!("{text:?} is no address; {allowed}"))
        })?;
        let here = address.ip().is_loopback();
        if !here && tls == Some(RawEventsTls::None) {
            let problem = format!(
                "\"none\" at {address} would have events travel unencrypted; remove the key, or listen at \
                 127.0.0.1"
            );
            return Err(self.refusal("[events] tls", problem));
        }
        Ok((Some(address), tls.map_or(!here, |tls| tls == RawEventsTls::Implicit)))
    }

    fn udp_events(
        &self,
        address: Option<String>,
        interface: Option<String>,
        networks: &[String],
        (domains, default_domain): (&[String], Option<&String>),
    ) -> CheckResult<Option<UdpEventsConfig>> {
        const NETWORKS: &str = "[events] udp_networks";
        let Some(text) = address else { return Ok(None) };
        let address = text.parse::<SocketAddr>().map_err(|_| {
            let allowed = "allowed is an IP address with a port, such as \"127.0.0.1:23420\"";
            self.refusal("[events] udp_address", format!("{text:?} is no address; {allowed}"))
        })?;
        let interface = interface.map(|text| {
            let is_group = matches!(address.ip(), IpAddr::V4(group) if group.is_multicast());
            let interface = text.parse::<Ipv4Addr>().ok().filter(|_| is_group);
            interface.ok_or_else(|| {
                let problem = format!(
                    "{text:?} cannot be used; allowed is an IPv4 address of this machine, where udp_address is \
                     one of a multicast group"
                );
                self.refusal("[events] udp_interface", problem)
            })
        });
        let networks = networks.iter().map(|text| self.network(NETWORKS, text));
        let networks = networks.collect::<CheckResult<Vec<_>>>()?;
        if networks.is_empty() {
            let problem =
                "missing; name the networks that may send datagrams, such as \"127.0.0.1\"";
            return Err(self.refusal(NETWORKS, problem));
        }
        let checked = |key: &str, text: &String| {
            domain(text).ok_or_else(|| {
                let problem =
                    format!("{text:?} is no domain; allowed is, for example, \"example.org\"");
                self.refusal(key, problem)
            })
        };
        let domains = domains.iter().map(|text| checked("[events] udp_domains", text));
        let default_domain =
            default_domain.map(|text| checked("[events] udp_default_domain", text));
        Ok(Some(UdpEventsConfig {
            address,
            interface: interface.transpose()?,
            networks,
            domains: domains.collect::<CheckResult<_>>()?,
            default_domain: default_domain.transpose()?,
        }))
    }

    fn cyrus_events(&self, raw: &RawEvents) -> CheckResult<Option<CyrusEventsConfig>> {
        let socket = |key: &str, path: &Option<String>| {
            let path = path.as_ref().map(|path| self.folder().join(path));
            // It is made under a longer name, and the system allows 107.
            let fits = |path: &PathBuf| path.as_os_str().len() <= 90 && path.file_name().is_some();
            match path {
                Some(path) if !fits(&path) => {
                    let allowed = "allowed is the path of a file of at most 90 bytes";
                    let problem = format!("{} is no socket; {allowed}", path.display());
                    Err(self.refusal(key, problem))
                }
                path => Ok(path),
            }
        };
        let mut cyrus = CyrusEventsConfig::new();
        cyrus.socket = socket("[events] cyrus_socket", &raw.cyrus_socket)?;
        cyrus.stream = socket("[events] cyrus_stream", &raw.cyrus_stream)?;
        if cyrus.socket.is_none() && cyrus.stream.is_none() {
            return Ok(None);
        }
        let checked = |key: &str, text: &String| {
            domain(text).ok_or_else(|| {
                let allowed = "allowed is what stands behind the \"@\", such as \"example.org\"";
                self.refusal(key, format!("{text:?} is no domain; {allowed}"))
            })
        };
        let domains = raw.cyrus_domains.iter().map(|text| checked("[events] cyrus_domains", text));
        cyrus.source.domains = domains.collect::<CheckResult<_>>()?;
        let default = raw.cyrus_default_domain.as_ref();
        let default = default.map(|text| checked("[events] cyrus_default_domain", text));
        cyrus.source.default_domain = default.transpose()?;
        let key = "[events] cyrus_events_per_second";
        let rate = &mut cyrus.source.events_per_second;
        self.number(key, raw.cyrus_events_per_second, 1..=1_000_000, rate)?;
        cyrus.group.clone_from(&raw.cyrus_group);
        cyrus.source.route.clone_from(&raw.cyrus_route);
        Ok(Some(cyrus))
    }

    fn event_source(&self, raw: RawEventSource) -> CheckResult<EventSourceConfig> {
        const NAME: &str = "[[events.source]] name";
        const SECRET: &str = "[[events.source]] secret_file";
        let Some(name) = raw.name else {
            return Err(self.refusal(NAME, "missing; give the source a name, such as \"dovecot\""));
        };
        let in_names = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
        if !(1..=64).contains(&name.len()) || !name.bytes().all(in_names) || name == UDP {
            let allowed =
                "allowed are 1 to 64 letters, digits, \".\", \"-\" and \"_\", but not \"udp\"";
            return Err(self.refusal(NAME, format!("{name:?} is no name; {allowed}")));
        }
        let secret_file = self.file(SECRET, raw.secret_file)?.ok_or_else(|| {
            let remedy = "name a file with the secret by which mailchime knows the source";
            self.refusal(SECRET, format!("missing; {remedy}"))
        })?;
        let mut source = EventSourceConfig::new(&name, secret_file);
        let checked = |key: &str, text: &String| {
            domain(text).ok_or_else(|| {
                let allowed = "allowed is what stands behind the \"@\", such as \"example.org\"";
                self.refusal(key, format!("{text:?} is no domain; {allowed}"))
            })
        };
        let domains = raw.domains.iter().map(|text| checked("[[events.source]] domains", text));
        source.domains = domains.collect::<CheckResult<_>>()?;
        let default = raw.default_domain.as_ref();
        let default = default.map(|text| checked("[[events.source]] default_domain", text));
        source.default_domain = default.transpose()?;
        let key = "[[events.source]] events_per_second";
        let rate = &mut source.events_per_second;
        self.number(key, raw.events_per_second, 1..=1_000_000, rate)?;
        source.metadata = raw.metadata.unwrap_or(false);
        source.route = raw.cyrus_route;
        Ok(source)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parse, refused_with};
    use super::*;

    const SOURCE: &str = "[[events.source]]\nname = \"dovecot\"\nsecret_file = \"certs/ca.pem\"\n";

    #[test]
    fn a_refused_value_names_its_key_and_what_is_allowed() {
        for (text, expected) in [
            (
                "[events]\naddress = \"events\"",
                "[events] address: \"events\" is no address; allowed",
            ),
            (
                "[events]\naddress = \"[::1]:1\"",
                "[events] address: nobody may send events there; add",
            ),
            (
                "[events]\naddress = \"192.0.2.1:1\"\ntls = \"none\"",
                "[events] tls: \"none\" at 192.0.2.1:1 would have events travel unencrypted; remove",
            ),
            ("[events]\ntls = \"starttls\"", "[events] tls: unknown variant `starttls`"),
            (
                "[events]\nudp_address = \"localhost:1\"",
                "[events] udp_address: \"localhost:1\" is no address; allowed is",
            ),
            (
                "[events]\nudp_address = \"127.0.0.1:1\"",
                "[events] udp_networks: missing; name the networks that may send datagrams",
            ),
            (
                "[events]\nudp_address = \"127.0.0.1:1\"\nudp_networks = [\"127.0.0.1\"]\nudp_interface = \"127.0.0.1\"",
                "[events] udp_interface: \"127.0.0.1\" cannot be used; allowed is an IPv4 address",
            ),
            (
                "[events]\nudp_address = \"239.1.1.1:1\"\nudp_networks = [\"127.0.0.1\"]\nudp_interface = \"eth0\"",
                "[events] udp_interface: \"eth0\" cannot be used; allowed is an IPv4 address",
            ),
            (
                "[events]\ncyrus_socket = \"/\"",
                "[events] cyrus_socket: / is no socket; allowed is the path of a file",
            ),
            (
                "[events]\ncyrus_socket = \"/a\"\ncyrus_stream = \"/a\"",
                "[events] cyrus_stream: is that of [events] cyrus_socket; give each a file",
            ),
            (
                "[events]\ncyrus_socket = \"/a\"\ncyrus_domains = [\"@a\"]",
                "[events] cyrus_domains: \"@a\" is no domain; allowed is",
            ),
            (
                "[events]\ncyrus_socket = \"/a\"\ncyrus_events_per_second = 0",
                "[events] cyrus_events_per_second: 0 is out of range; allowed is 1 to 1000000",
            ),
            (
                "[events]\nudp_address = \"127.0.0.1:1\"\nudp_networks = [\"127.0.0.1\"]\nudp_domains = [\"@a\"]",
                "[events] udp_domains: \"@a\" is no domain; allowed is",
            ),
            (
                "[[events.source]]\nname = \"udp\"",
                "[[events.source]] name: \"udp\" is no name; allowed",
            ),
            ("[[events.source]]", "[[events.source]] name: missing; give the source a name"),
            (
                "[[events.source]]\nname = \"a b\"",
                "[[events.source]] name: \"a b\" is no name; allowed",
            ),
            (
                &format!("{SOURCE}domains = [\"@a\"]"),
                "[[events.source]] domains: \"@a\" is no domain; allowed is",
            ),
            (
                &format!("{SOURCE}default_domain = \"a@b\""),
                "[[events.source]] default_domain: \"a@b\" is no domain; allowed is",
            ),
            (
                &format!("{SOURCE}events_per_second = 0"),
                "[[events.source]] events_per_second: 0 is out of range; allowed is 1 to 1000000",
            ),
            (
                &format!("{SOURCE}{SOURCE}"),
                "[[events.source]] name: two are called \"dovecot\"; give",
            ),
        ] {
            refused_with(text, expected);
        }
    }

    #[test]
    fn a_source_has_a_secret() {
        let refused = parse("[[events.source]]\nname = \"a\"").unwrap_err().to_string();
        let expected = "[[events.source]] secret_file: missing; name a file";
        assert!(refused.contains(expected), "{refused}");
    }

    #[test]
    fn only_a_loopback_address_is_without_tls() {
        for (address, tls, expected) in [
            ("127.0.0.1:1", "", false),
            ("[::1]:1", "tls = \"none\"", false),
            ("127.0.0.1:1", "tls = \"implicit\"", true),
            ("[::]:1", "", true),
            ("192.0.2.1:1", "tls = \"implicit\"", true),
        ] {
            let text = format!("[events]\naddress = \"{address}\"\n{tls}\n{SOURCE}");
            assert_eq!(parse(&text).unwrap().events.tls, expected, "{address} {tls}");
        }
    }

    #[test]
    fn a_source_speaks_for_its_domains_or_for_all_accounts() {
        let text = format!("{SOURCE}domains = [\"Example.org\"]");
        let some = parse(&text).unwrap().events.sources.remove(0);
        for (account, covered) in [
            ("alice@example.org", true),
            ("alice@EXAMPLE.org", true),
            ("a@b@example.org", true),
            ("alice", false),
            ("alice@example.org.", false),
            ("alice%example.org", false),
            ("alice@sub.example.org", false),
            ("example.org", false),
        ] {
            assert_eq!(some.covers(&Account::from_login(account)), covered, "{account}");
        }
        assert!(EventSourceConfig::new("a", "b").covers(&Account::from_login("alice")));
    }
}
